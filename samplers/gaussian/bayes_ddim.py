"""DDIM with a variance beside the sample: how much the model's own uncertainty moves each coordinate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..canvas import NoiseCanvas
from ..errors import OptionError
from ..prediction import GaussianPredict
from ..sampler import Conformance, option
from .grid import GaussianSampler, GridState, Point

CLEAN = Point(0.0, 1.0, 0.0, math.inf)  # the closing step has the form of the others: x_0 is x at alpha = 1, sigma = 0

# k of alpha and sigma: x_0 = (what x gives) +- k z for what a model predicts, z, as in GaussianDenoiser.wrap.
SPREAD: dict[str, Callable[[float, float], float]] = {
    "epsilon": lambda a, s: s / a,
    "x0": lambda a, s: 1.0,
    "v": lambda a, s: s / (a**2 + s**2),
    "flow": lambda a, s: s / (a + s),
    "score": lambda a, s: s**2 / a,
}


def _check_variance(value: float | Callable[[Tensor, float], Any]) -> None:
    if not callable(value) and not 0 <= value < math.inf:
        raise OptionError("a finite number, 0 or more, or a function is needed")


@dataclass(frozen=True, eq=False)
class BayesState(GridState):
    """A run with the variance of its x.

    Attributes:
        variance: (B, *shape), 0 at the start.
        probes: the number of probes at each point where the model is asked.
    """

    variance: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32, device="cpu"))
    probes: tuple[int, ...] = ()


@dataclass(frozen=True)
class BayesDdim(GaussianSampler[BayesState]):
    """Kou et al. 2023 (BayesDiff), arXiv 2310.11142, for DDIM: x is DDIM's own, and its variance is carried along.

    The model's answer is taken as random, with the variance `model_variance`, independent at each point; x_0 then has k^2 of it,
    with k = s / a for a model of the noise (`variance_of` has the names and formulas of GaussianDenoiser.wrap). A DDIM step is
    x_t = K x_s + C x_0(x_s), K = s_t / s_s, C = a_t - K a_s, so from Var x_T = 0, for each coordinate,
        Var x_t = K^2 Var x_s + 2 K C Cov(x_s, x_0) + C^2 (Var x_0(x_s) + k^2 model_variance).
    The paper takes the covariance from samples of x_s. Here x_s moves by r sqrt(Var x_s) with random signs r (a probe), and the
    mean square of what the step makes of the move is the sum of the first three terms: exact where the model is linear and
    does not mix coordinates, so for Gaussian data with independent coordinates. With probes = 0, x_0(x_s) counts as fixed.

    Each step returns {"variance": (B, *shape)}; sample(info=True).info["variance"][-1] is that of the returned x.
    `steps` is spent exactly: one evaluation at the start, where there is nothing to move, and 1 + `probes` at each later
    point. Those that remain are more probes at the last one; of two evaluations none is left for a probe.
    """

    name = "bayes_ddim"
    cite = "Kou et al. 2023, BayesDiff: Estimating Pixel-wise Uncertainty in Diffusion via Bayesian Inference, arXiv 2310.11142"
    summary = "DDIM, with the variance of each coordinate that the model's uncertainty causes"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "probes": 0})
    order: ClassVar[int] = 1

    model_variance: float | Callable[[Tensor, float], Any] = option(  # noqa: RUF009
        1e-4,
        "variance of the model's answer: a number, or a function of x (B, *shape) and t that gives (B, *shape)",
        check=_check_variance,
    )
    variance_of: str = option("flow", "what it is the variance of: the model's prediction", choices=tuple(SPREAD))
    probes: int = option(1, "evaluations per point beside DDIM's own", ge=0)

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        later = canvas.steps - 1  # evaluations after the first
        points = max(min(later, 1), later // (1 + self.probes))  # at which they are spent
        return points + (self.end == "t_end")

    def init(self, canvas: NoiseCanvas) -> BayesState:
        intervals = self.solver_steps(canvas)
        points, inner = self.times(canvas, intervals), intervals - (self.end == "t_end")
        probes = (self.probes,) * inner
        if inner and self.probes:
            probes = (*probes[:-1], canvas.steps - 1 - inner - self.probes * (inner - 1))
        if self.variance_of in ("epsilon", "score") and not points[0].alpha:
            raise OptionError(
                f"sampler {self.name!r}: variance_of={self.variance_of!r} says nothing of x_0 at t={points[0].t:g}, where alpha "
                "is 0: start at a lower t_start, or give the variance of another prediction"
            )
        state = BayesState.begin(canvas, points=points, probes=(0, *probes))
        return dataclasses.replace(state, variance=torch.zeros_like(state.x))

    def step(self, predict: GaussianPredict, state: BayesState) -> tuple[BayesState, dict[str, Tensor]]:  # type: ignore[override]
        closing = state.i + 1 == len(state.points)
        if not closing:
            after = super().step(predict, state)
        else:
            after = dataclasses.replace(self.update(predict, state, state.points[-1], CLEAN), last=True)
        return after, {"variance": after.variance}

    def update(self, predict: GaussianPredict, state: BayesState, s: Point, t: Point) -> BayesState:
        x, variance = state.x, state.variance
        keep = t.sigma / s.sigma
        take = t.alpha - keep * s.alpha
        x0 = predict(x, s)
        move, moved = variance.sqrt(), keep**2 * variance
        first, number = 1 + sum(state.probes[: state.i]), state.probes[state.i]  # draw 0 made x_T
        for k in range(number):
            sign = torch.where(state.canvas.noise(first + k) < 0, -move, move)
            square = (keep * sign + take * (predict(x + sign, s) - x0)) ** 2
            moved = square if k == 0 else moved + square
        own = self.model_variance(x, s.t) if callable(self.model_variance) else self.model_variance
        spread = take * SPREAD[self.variance_of](s.alpha, s.sigma)
        variance = moved / max(number, 1) + spread**2 * own
        if state.canvas.known is not None:
            variance = torch.where(state.canvas.known, 0.0, variance)
        return self.advance(state, keep * x + take * x0, variance=variance)
