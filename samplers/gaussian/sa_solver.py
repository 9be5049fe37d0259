"""SA-Solver: stochastic Adams methods, a predictor and a corrector that share their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, Point
from .steps import decay, fitted, history_nodes, moments, spread, weighted
from .stochastic import MultistepSdeSampler, PathState


@dataclass(frozen=True, eq=False)
class SaState(PathState):
    """A run of a predictor and a corrector.

    Attributes:
        before: x at the previous point, corrected, from which the step to the present one went; None at the first
            point.
        added: the noise of that step.
    """

    before: Tensor | None = None
    added: Tensor | float = 0.0


@dataclass(frozen=True)
class SaSolver(MultistepSdeSampler[SaState]):
    """Xue et al. 2023, arXiv 2309.05019, algorithm 1 (data prediction): a step of order p predicts x_t; x_0 there corrects it.

    x_t = (s_t / s_s) e^{-tau^2 h} x_s + a_t I + s_t sqrt(1 - e^{-2 tau^2 h}) z, where I is the integral of the
    polynomial in lambda through past
    predictions: for the predictor the last p of them, for the corrector q, the one at t included. Both have the same z.
    The prediction that corrects is not made anew, so a step costs one evaluation.

    tau is the amount of noise where s_tmin <= sigma / alpha <= s_tmax, and 0 elsewhere (the paper: 0.05 to 1 on
    CIFAR-10, 0.05 to 50 on ImageNet 64). simple_order_2 gives the change of x_0 in steps with two predictions the
    weight (1 + tau^2) h / 2, as the published code and diffusers do. The order, for tau = 0, is min(p + 1, q), or p
    without a corrector.
    """

    name = "sa_solver"
    cite = "Xue et al. 2023, SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models, arXiv 2309.05019"
    summary = "stochastic Adams predictor and corrector, one evaluation per step"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "tau": 0.0})
    STATE: ClassVar[type[PathState]] = SaState

    tau: float = option(1.0, "amount of noise; 0: none, the ODE; 1: that of the reverse SDE", ge=0)
    s_tmin: float = option(0.0, "sigma / alpha below which none is added", ge=0)
    s_tmax: float | None = option(None, "sigma / alpha above which none is added; none: no bound", gt=0)
    predictor_order: int = option(2, "predictions that the predictor uses", ge=1, le=4)
    corrector_order: int = option(
        2, "predictions that the corrector uses, the new one included; 0: no corrector", ge=0, le=4
    )
    simple_order_2: bool = option(False, "the published weights for two predictions")

    @property
    def order(self) -> int:
        return min(self.predictor_order + 1, self.corrector_order) or self.predictor_order

    @property
    def effective_facts(self) -> Facts:
        return Facts(stochastic=self.tau > 0)

    def update(self, predict: GaussianPredict, state: SaState, s: Point, t: Point) -> SaState:
        x, x0 = state.x, predict(state.x, s)
        if self.corrector_order and state.before is not None:
            r = state.points[state.i - 1]
            nodes, values = history_nodes(state, r, s.lam - r.lam, self.corrector_order - 1)
            x = self._adams(state.before, [1.0, *nodes], [x0, *values], r, s) + state.added
        h = t.lam - s.lam
        nodes, values = history_nodes(state, s, h, self.predictor_order - 1)
        mean = self._adams(x, [0.0, *nodes], [x0, *values], s, t)
        rate = self._rate(t)
        added = t.sigma * spread(h, rate) * self.normal(state, s, t) if rate else 0.0
        keep = max(self.predictor_order, self.corrector_order) - 1
        history = (*state.history, (s.lam, x0))[-max(keep, 1) :]
        return self.advance(state, mean + added, history=history, before=x, added=added)

    def _rate(self, t: Point) -> float:
        """tau^2 on the step that ends at t."""
        return self.tau**2 if self.s_tmin <= math.exp(-t.lam) <= (self.s_tmax or math.inf) else 0.0

    def _adams(self, x: Tensor, nodes: Sequence[float], values: Sequence[Tensor], s: Point, t: Point) -> Tensor:
        """The mean of x at t, from x at s, with x_0 the polynomial through `values` at `nodes`, in shares of the step."""
        h, rate = t.lam - s.lam, self._rate(t)

        def integrals(count: int) -> list[float]:
            out = moments((1 + rate) * h, count)
            if self.simple_order_2 and count == 2:
                out[1] = (1 + rate) * h / 2
            return out

        by = fitted(nodes, integrals, self.growth)
        return weighted([x, *values], [t.sigma / s.sigma * decay(h, rate), *(t.alpha * w for w in by)])
