"""The grid of a Gaussian run: its times and their alpha, sigma and lambda. All continuous samplers share it.

Coefficients are Python floats made in float64: in float32 the textbook forms of e^h - 1 and similar terms lose all digits at
small steps, and a float costs no device sync.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..canvas import NoiseCanvas
from ..errors import OptionError, SamplersError
from ..noise_schedules import NoiseSchedule, Point
from ..prediction import GaussianPredict
from ..sampler import Conformance, Sampler, option
from ..state import NoiseState
from .grids import GRIDS, place_of, spaced

__all__ = ["GaussianSampler", "GridState", "Point", "over_times"]

G = TypeVar("G", bound="GridState")
# A list of times may begin without data where the noise is ten times the data's scale: lambda = -log 10.
LAM_LATE = -2.3


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
        """The state before the first step: x at the first point.

        Args:
            fields: `points`, and the values of the subclass's own fields.
        """
        points = fields.get("points")
        if not points:
            raise SamplersError(
                f"{cls.__name__}.begin(canvas, points=...) needs the points of the grid: self.times(...)"
            )
        if "x" not in fields:
            up = points[-1].t > points[0].t  # inversion: `start` is x at the first point
            fields["x"] = canvas.start if up and canvas.start is not None else canvas.first(points[0])
        return super().begin(canvas, **fields)


@dataclass(frozen=True)
class GaussianSampler(Sampler[G]):
    """Base of the continuous samplers: x_t = alpha x_0 + sigma e, followed down a grid of times.

    A solver has one method, `update`: the paper's step from a point s to the next point t.

    `end` says how a run closes. "zero": the last evaluation is returned as the denoised x_0, which is a first-order step to
    sigma = 0, so `steps` evaluations make steps - 1 solver steps. "t_end": all evaluations go into solver steps, and x is
    returned at t_end with the noise that it has; for convergence studies, and for inversion (t_end above t_start).
    """

    family = "gaussian"
    conformance = Conformance(order={"grid": "logsnr", "end": "t_end"})

    grid: str = option(
        "auto", "spacing of the times; auto: by the schedule and the number of steps", choices=GRIDS, kind="grids"
    )
    t_start: float | None = option(None, "time at which to start; none: the schedule's t_max", ge=0)
    t_end: float | None = option(None, "time at which to end; none: the schedule's t_min", ge=0)
    end: str = option("zero", "what is returned: x_0 of the last evaluation, or x at t_end", choices=("zero", "t_end"))
    rho: float | None = option(None, "exponent of the grids that have one; none: the grid's own, 7 for 'karras'", gt=0)

    def times(self, canvas: NoiseCanvas, intervals: int) -> tuple[Point, ...]:
        """The `intervals` + 1 points of a run, the first at t_start (or where `strength` says).

        With end="zero" they are the points of the evaluations before the closing one and of that one. With "t_end" the last
        is t_end. Times that the caller gave are taken as they are.

        Raises:
            OptionError: t_end equals t_start or is out of the schedule's range; a start below t_max without anything to start
                from; an inversion that closes with x_0, or by a sampler that draws noise.
        """
        schedule = canvas.denoiser.schedule
        if canvas.times is not None:
            return schedule.points(torch.tensor(canvas.times, dtype=torch.float64, device="cpu"))
        start = schedule.t_max if self.t_start is None else self.t_start
        end = schedule.t_min if self.t_end is None else self.t_end
        self._check_range(canvas, start, end)
        closing = self.end == "zero"
        # A run of a share of the noise levels is the end of a longer one.
        more = intervals if canvas.strength == 1 else int((intervals + closing) / canvas.strength + 1e-9) - closing
        points = _spaced(self.grid, schedule, start, end, more, closing=closing, rho=self.rho)
        return points[more - intervals :]

    def _check_range(self, canvas: NoiseCanvas, start: float, end: float) -> None:
        schedule, who = canvas.denoiser.schedule, f"sampler {self.name!r}"
        if start > schedule.t_max:
            raise OptionError(
                f"{who}: t_start={start:g} is above t_max={schedule.t_max:g} of {schedule!r}, the most noise that the model "
                "knows. If it knows more, wrap it with a schedule that says so, such as samplers.schedule.EDM(t_max=...)"
            )
        if start == end:
            raise OptionError(f"{who}: t_end={end:g} must not be t_start")
        if end > start:
            if self.end == "zero":
                raise OptionError(
                    f"{who}: t_end={end:g} must be below t_start={start:g}. For inversion, a run that adds noise, say end='t_end'"
                )
            if self.effective_facts.stochastic:
                raise OptionError(
                    f"{who} draws noise, and inversion (t_end above t_start) is for solvers that draw none"
                )
            if canvas.start is None:
                raise OptionError(f"{who}: inversion (t_end above t_start) needs start=, the x at t_start")
            if not float(schedule.sigma(start)):
                raise OptionError(
                    f"{who}: inversion cannot start at t={start:g}, where x has no noise and the half log-SNR has no bound: "
                    f"start at t_min={schedule.t_min:g}, where x is all but the same"
                )
            return
        if canvas.strength != 1 and self.t_start is not None:
            raise OptionError(
                f"{who}: strength={canvas.strength:g} and t_start={start:g} both say where to start: give one"
            )
        begins = any(given is not None for given in (canvas.start, canvas.moments, canvas.first_noise))
        # A list may start a little below: published ones are rounded, and made for models with another largest sigma.
        late = canvas.times is None or float(schedule.lam(start)) > LAM_LATE
        if start < schedule.t_max and late and not begins:
            what = f"t_start={start:g}" if canvas.times is None else f"the first of the times, {start:g},"
            raise OptionError(
                f"{who}: {what} is below t_max={schedule.t_max:g}, where x still has a part of the data: give start= "
                "(x_0 to start from), or start_moments= (its mean and variance), or start_noise= (x there, divided by sigma). "
                "If the model knows no more noise, wrap it with a schedule that says so, such as samplers.schedule.EDM(t_max=...)"
            )

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        """How many solver steps canvas.steps evaluations pay for; here one evaluation each."""
        return canvas.steps - (self.end == "zero")

    def init(self, canvas: NoiseCanvas) -> G:
        return GridState.begin(canvas, points=self.times(canvas, self.solver_steps(canvas)))  # type: ignore[return-value]

    def step(self, predict: GaussianPredict, state: G) -> G:
        """The solver's update from the present point to the next one; when the grid is used up, the closing step."""
        if state.i + 1 < len(state.points):
            t = state.points[state.i + 1]
            state = self.update(predict, state, state.points[state.i], t)
            if state.last and state.canvas.known is not None:  # x is returned at a noise level: so is what is known
                state = dataclasses.replace(state, x=state.canvas.with_known(state.x, t.alpha, t.sigma))
            return state
        x = predict(state.x, state.points[-1]) if self.end == "zero" else state.x
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


# Making a grid takes as long as four steps of a solver on a small image.
_remembered = functools.lru_cache(maxsize=32)(spaced)


def _spaced(grid: str, schedule: NoiseSchedule, *args: Any, **keywords: Any) -> tuple[Point, ...]:
    """As `spaced`; it remembers the grids of schedules that cannot change."""
    parameters = getattr(type(schedule), "__dataclass_params__", None)
    place = place_of(grid)  # a name may come to mean another plug-in's grid
    known = parameters is not None and parameters.frozen and type(place).__hash__ is not None
    return (_remembered if known else spaced)(grid, schedule, *args, **keywords, place=place)


def over_times(sampler: Any, canvas: NoiseCanvas, closing: bool) -> tuple[Any, NoiseCanvas]:
    """The sampler and the canvas of a run over the times that the caller gave.

    Args:
        closing: whether the x_0 of the last evaluation is returned.

    Raises:
        OptionError: the sampler follows no grid, or is told of another one as well; a start below t_max without anything to
            start from; times that rise, for a sampler that draws noise.
    """
    assert canvas.times is not None
    if not isinstance(sampler, GaussianSampler):
        raise OptionError(f"sampler {sampler.name!r} follows no grid, so it takes no list of times")
    for name in ("grid", "t_start", "t_end"):
        if getattr(sampler, name) != next(o.default for o in sampler.options() if o.name == name):
            raise OptionError(
                f"sampler {sampler.name!r}: {name}={getattr(sampler, name)!r} and a list of times: give one"
            )
    sampler = dataclasses.replace(sampler, end="zero" if closing else "t_end")
    if len(canvas.times) > 1:
        sampler._check_range(canvas, canvas.times[0], canvas.times[-1])
    intervals = len(canvas.times) - 1
    # The most evaluations that make this many steps: all of them of full order.
    counts = range(intervals + closing, 8 * intervals + 9)
    fitting = [n for n in counts if n and sampler.solver_steps(dataclasses.replace(canvas, steps=n)) == intervals]
    if not fitting:
        raise OptionError(f"sampler {sampler.name!r} cannot take {intervals} steps: give another number of times")
    return sampler, dataclasses.replace(canvas, steps=fitting[-1])
