"""The grid of a Gaussian run: its times and their alpha, sigma and lambda. All continuous samplers share it.

Coefficients are Python floats made in float64: in float32 the textbook forms of e^h - 1 and similar terms lose all digits at
small steps, and a float costs no device sync.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..canvas import NoiseCanvas
from ..errors import OptionError, SamplersError
from ..noise_schedules import Point
from ..prediction import GaussianPredict
from ..sampler import Conformance, Sampler, option
from ..state import NoiseState

__all__ = ["GRIDS", "GaussianSampler", "GridState", "Point"]

GRIDS = ("logsnr", "time_uniform", "time_quadratic", "karras")


G = TypeVar("G", bound="GridState")


@dataclass(frozen=True, eq=False)
class GridState(NoiseState):
    """A run over a grid.

    Attributes:
        points: the points of the whole run, the noisiest first.
        history: ((lambda, prediction), ...) of past steps, the latest last; for multistep samplers.
    """

    points: tuple[Point, ...] = ()
    history: tuple[tuple[float, Any], ...] = ()

    @classmethod
    def begin(cls: type[G], canvas: NoiseCanvas, **fields: Any) -> G:
        """The state before the first step: noise at the first point's scale (the data's own part of x_T is left out).

        Args:
            fields: `points`, and the values of the subclass's own fields.
        """
        if not fields.get("points"):
            raise SamplersError(
                f"{cls.__name__}.begin(canvas, points=...) needs the points of the grid: self.times(...)"
            )
        scale = fields["points"][0].sigma
        return super().begin(canvas, **({"x": scale * canvas.noise(0)} | fields))


@dataclass(frozen=True)
class GaussianSampler(Sampler[G]):
    """Base of the continuous samplers: x_t = alpha x_0 + sigma e, followed down a grid of times.

    A solver has one method, `update`: the paper's step from a point s to the next point t.

    `end` says how a run closes. "zero": the last evaluation, at t_end, is returned as the denoised x_0 (k-diffusion's
    trailing sigma = 0), so `steps` evaluations make steps - 1 solver steps and one first-order step to sigma = 0. "t_end":
    all evaluations go into solver steps, and x is returned at t_end with the noise that it has; for convergence studies.
    """

    family = "gaussian"
    conformance = Conformance(order={"grid": "logsnr", "end": "t_end"})

    grid: str = option(
        "logsnr", "spacing of the times: uniform in lambda, in t or in t^(1/2), or as Karras et al.", choices=GRIDS
    )
    t_start: float | None = option(None, "time at which to start; none: the schedule's t_max", gt=0)
    t_end: float | None = option(None, "time at which to end; none: the schedule's t_min", gt=0)
    end: str = option("zero", "what is returned: x_0 as denoised at t_end, or x at t_end", choices=("zero", "t_end"))

    def times(self, canvas: NoiseCanvas, intervals: int) -> tuple[Point, ...]:
        """`intervals` + 1 points from t_start to t_end.

        Raises:
            OptionError: t_end is not below t_start, or the half log-SNR is not finite at one of them.
        """
        schedule = canvas.denoiser.schedule
        start = schedule.t_max if self.t_start is None else self.t_start
        end = schedule.t_min if self.t_end is None else self.t_end
        if start > schedule.t_max:
            raise OptionError(
                f"sampler {self.name!r}: t_start={start:g} is above t_max={schedule.t_max:g} of {schedule!r}, the most noise "
                "that the model knows. If it knows more, wrap it with a schedule that says so, such as "
                "samplers.schedule.EDM(t_max=...)"
            )
        if not end < start:
            raise OptionError(f"sampler {self.name!r}: t_end={end:g} must be below t_start={start:g}")
        first, last = Point.at(schedule, t=start), Point.at(schedule, t=end)
        if not (math.isfinite(first.lam) and math.isfinite(last.lam)):
            raise OptionError(
                f"sampler {self.name!r}: the half log-SNR of {schedule!r} is not finite at t={start:g} or t={end:g}; "
                "choose t_start and t_end inside"
            )
        points = [first]
        for k in range(1, intervals):
            r = k / intervals
            if self.grid == "logsnr":
                points.append(Point.at(schedule, lam=first.lam + r * (last.lam - first.lam)))
            elif self.grid == "time_uniform":
                points.append(Point.at(schedule, t=start + r * (end - start)))
            elif self.grid == "time_quadratic":
                points.append(Point.at(schedule, t=(start**0.5 + r * (end**0.5 - start**0.5)) ** 2))
            else:  # Karras et al. 2022, eq. 5, rho = 7, on the noise-to-signal ratio e^{-lambda}
                hi, lo = math.exp(-first.lam / 7), math.exp(-last.lam / 7)
                points.append(Point.at(schedule, lam=-7 * math.log(hi + r * (lo - hi))))
        return (*points, last) if intervals else (last,)

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        """How many evaluations are left for solver steps."""
        return canvas.steps - (self.end == "zero")

    def init(self, canvas: NoiseCanvas) -> G:
        return GridState.begin(canvas, points=self.times(canvas, self.solver_steps(canvas)))  # type: ignore[return-value]

    def step(self, predict: GaussianPredict, state: G) -> G:
        """The solver's update from the present point to the next one; when the grid is used up, the closing step."""
        if state.i + 1 < len(state.points):
            return self.update(predict, state, state.points[state.i], state.points[state.i + 1])
        x = predict(state.x, state.points[-1].t) if self.end == "zero" else state.x
        return self.advance(state, x, last=True)

    def update(self, predict: GaussianPredict, state: G, s: Point, t: Point) -> G:
        """The state at the point t, from the state at the point s: `return self.advance(state, x)`."""
        raise NotImplementedError(f"sampler {self.name!r} has no update")

    def advance(self, state: G, x: torch.Tensor, **changes: Any) -> G:
        """The state one step on. The last step of a "t_end" run is the one that reaches the end of the grid.

        Args:
            x: (B, *shape), the new x.
            changes: new values of other fields, such as `history`.
        """
        reached = self.end == "t_end" and state.i + 2 >= len(state.points)
        return dataclasses.replace(state, x=x, i=state.i + 1, **({"last": reached} | changes))

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps
