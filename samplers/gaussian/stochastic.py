"""What solvers of the reverse SDE share: where their normals come from, and how much noise a step takes out and puts back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import Tensor

from ..errors import OptionError
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, GridState, Point
from .path import NoisePath
from .steps import decay, spread, weighted

if TYPE_CHECKING:
    from ..canvas import NoiseCanvas

__all__ = ["AncestralSampler", "EtaSampler", "MultistepSdeSampler", "PathState", "StochasticSampler", "joined"]

P = TypeVar("P", bound="PathState")


@dataclass(frozen=True, eq=False)
class PathState(GridState):
    """A run that draws noise.

    Attributes:
        path: the Brownian path of each row. What it remembers is a cache: it decides no number.
    """

    path: NoisePath | None = None


@dataclass(frozen=True)
class StochasticSampler(GaussianSampler[P]):
    """Base of the samplers that draw noise in their steps.

    With noise="path" the normals are increments of one Brownian path for each row (samplers/gaussian/path.py), so a run
    with twice the steps follows the same path, only finer: its result comes close to the first one's. With "fresh"
    every step has new normals. Both have the same distribution.

    Class attributes:
        NORMALS: how many normals a step draws at most.
        STATE: the class of its states.
    """

    facts = Facts(stochastic=True)
    conformance = Conformance()
    NORMALS: ClassVar[int] = 1
    STATE: ClassVar[type[PathState]] = PathState

    s_noise: float = option(1.0, "factor of the noise that is added", ge=0)
    noise: str = option(
        "path",
        "increments of one Brownian path, the same for every number of steps; or new normals in every step",
        choices=("path", "fresh"),
    )

    def init(self, canvas: NoiseCanvas) -> P:
        points = self.times(canvas, self.solver_steps(canvas))
        lams = [p.lam for p in points]
        inner = [s + share * (t - s) for s, t in zip(lams, lams[1:]) for share in self.shares()]
        path = NoisePath(canvas.noise, [*lams, *inner])
        return self.STATE.begin(canvas, points=points, path=path)  # type: ignore[return-value]

    def shares(self) -> tuple[float, ...]:
        """Where steps have parts with normals of their own, as shares of a step in lambda."""
        return ()

    def normal(self, state: P, s: Point, t: Point, number: int = 0) -> Tensor:
        """(B, *shape): the standard normals for the way from s to t, a step or a part of one, times s_noise.

        Args:
            number: counts the parts of a step, from 0, below NORMALS.
        """
        if self.noise == "path":
            assert state.path is not None
            z = state.path.normal(s.lam, t.lam)
        else:
            z = state.canvas.noise(1 + self.NORMALS * state.i + number)  # draw 0 made the first x
        return z if self.s_noise == 1 else self.s_noise * z


@dataclass(frozen=True)
class EtaSampler(StochasticSampler[P]):
    """Base of the samplers that are a solver of the ODE with eta = 0, and of the reverse SDE with eta = 1.

    The convergence order that is declared and tested is that of eta = 0. With noise it is the weak order that matters,
    the order of the error of the samples' mean and variance; the docstring of each sampler has it.
    """

    conformance = Conformance(order={**GaussianSampler.conformance.order, "eta": 0.0})

    eta: float = option(1.0, "amount of noise; 0: none, the ODE; 1: that of the reverse SDE", ge=0)

    @property
    def effective_facts(self) -> Facts:
        return Facts(stochastic=self.eta > 0)

    def with_noise(self, state: P, values: Sequence[Tensor], by: Sequence[float], s: Point, t: Point) -> Tensor:
        """The weighted sum of the values (those beyond the last weight left out), and the reverse SDE's noise from s to t."""
        if not self.eta:
            return weighted(values, by)
        scale = t.sigma * spread(t.lam - s.lam, self.eta)
        return weighted([*values[: len(by)], self.normal(state, s, t)], [*by, scale])


@dataclass(frozen=True)
class MultistepSdeSampler(StochasticSampler[P]):
    """Base of the samplers of the reverse SDE that put a polynomial through past predictions."""

    growth: float | None = option(
        1.5,
        "how much a step may enlarge errors, as a multiple of equal steps; if it would do more, its order is lower. none: any",
        ge=1,
    )


def joined(first: Tensor, second: Tensor, s: Point, middle: Point, t: Point, rate: float = 1.0) -> Tensor:
    """The normals of the step from s to t that belong to those of its two parts, from s to a middle and from there to t.

    The noise of the first part decays by e^{-rate h} over the second. Drawing the step's normals anew instead would
    lose one order of accuracy.
    """
    h = t.lam - middle.lam
    a, b = decay(h, rate) * spread(middle.lam - s.lam, rate), spread(h, rate)
    whole = spread(t.lam - s.lam, rate)
    return weighted([first, second], [a / whole, b / whole])


@dataclass(frozen=True)
class AncestralSampler(EtaSampler[PathState]):
    """Base of the samplers that step below the next point along the ODE, and then add noise up to it.

    split "snr" puts back n = eta s_t sqrt(1 - e^{-2h}), as DDIM and k-diffusion do. split "sigma" is ComfyUI's rule for
    rectified flow, alpha = 1 - sigma: down to sigma = s_t (1 - eta (1 - s_t / s_s)), and up by what is missing there.
    """

    split: str = option(
        "snr",
        "how far below the next point a step goes: by sigma / alpha, or by sigma (for alpha = 1 - sigma)",
        choices=("snr", "sigma"),
    )

    def down_and_up(self, s: Point, t: Point) -> tuple[Point, float]:
        """Where the ODE's part of a step from s to t ends, and the standard deviation of the noise that leads to t from there.

        The first is given in the scale of t: it has t's alpha, and a smaller sigma; no time belongs to it.

        Raises:
            OptionError: split is "sigma" and the schedule is not a flow's.
        """
        if not self.eta:
            return t, 0.0
        if self.split == "sigma":
            if abs(t.alpha + t.sigma - 1) > 1e-9:
                raise OptionError(
                    f"sampler {self.name!r}: split='sigma' is for flow schedules, where alpha = 1 - sigma; here alpha is "
                    f"{t.alpha:.4g} and sigma {t.sigma:.4g}: use split='snr'"
                )
            sigma = max(t.sigma * (1 - self.eta * (1 - t.sigma / s.sigma)), 0.0)
            down = sigma * t.alpha / (1 - sigma)
            up = math.sqrt(max((t.sigma - down) * (t.sigma + down), 0.0))
        else:
            h = t.lam - s.lam
            # 1 - eta^2 (1 - e^{-2h}), without the cancellation that it has at eta = 1 and a large h.
            down = t.sigma * math.sqrt(max((1 - self.eta) * (1 + self.eta) + self.eta**2 * decay(2 * h), 0.0))
            up = t.sigma * min(self.eta * spread(h), 1.0)
        lam = t.lam + math.log(t.sigma / down) if down else math.inf
        return Point(math.nan, t.alpha, down, lam), up
