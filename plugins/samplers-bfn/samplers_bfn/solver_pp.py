"""BFN-Solver++: DPM-Solver++ on the schedule of a continuous flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from samplers.authoring import Facts, Point

from .euler import Euler
from .sampler import FlowSampler, FlowState, first_order, sde_first_order

if TYPE_CHECKING:
    from .family import FlowPredictor


@dataclass(frozen=True)
class SolverPp1(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, BFN-Solver++1 for real numbers: DPM-Solver++1, which is DDIM.

    x_t = (sigma_t / sigma_s) x_s - alpha_t (e^{-h} - 1) x_0, with alpha = gamma and sigma^2 = gamma (1 - gamma).
    """

    name, family = "bfnpp_1", "bayesian_flow"
    cite = Euler.cite
    summary = "first-order solver of the ODE, for real numbers"
    KIND = "continuous"
    order: ClassVar[int] = 1

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        return self.advance(state, first_order(state.x, predict(state.x, s), s, t))


def extrapolated(x0: Tensor, state: FlowState, s: Point, t: Point) -> Tensor:
    """(1 + 1 / (2 r)) x0 - 1 / (2 r) x0', with x0' of the step before and r its length as a share of this one's, in lambda."""
    if not state.history:
        return x0
    lam, past = state.history[-1]
    half = (t.lam - s.lam) / (2 * (s.lam - lam))
    return (1 + half) * x0 - half * past


@dataclass(frozen=True)
class SolverPp2(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, BFN-Solver++2 for real numbers: DPM-Solver++ (2M) with the midpoint rule.

    As BFN-Solver++1 with x_0 carried on to the middle of the step, along the line in lambda through the last two. The first
    step has order 1.
    """

    name, family = "bfnpp_2", "bayesian_flow"
    cite = Euler.cite
    summary = "second-order multistep solver of the ODE, for real numbers"
    KIND = "continuous"
    order: ClassVar[int] = 2

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0 = predict(state.x, s)
        x = first_order(state.x, extrapolated(x0, state, s, t), s, t)
        return self.advance(state, x, history=((s.lam, x0),))


@dataclass(frozen=True)
class SdeSolverPp2(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, SDE-BFN-Solver++2 for real numbers: SDE-DPM-Solver++ (2M) with the midpoint rule.

    x_t = (sigma_t / sigma_s) e^{-h} x_s + alpha_t (1 - e^{-2h}) x_0 + sigma_t sqrt(1 - e^{-2h}) n, x_0 carried on to the middle
    of the step. The first step has order 1. Weak order 2.
    """

    name, family = "bfnpp_sde_2", "bayesian_flow"
    cite = Euler.cite
    summary = "second-order multistep solver of the SDE, for real numbers"
    KIND = "continuous"
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 2

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0 = predict(state.x, s)
        x = sde_first_order(state, extrapolated(x0, state, s, t), s, t)
        return self.advance(state, x, history=((s.lam, x0),))
