"""BFN-Solver: the ODE of a discrete flow, with the linear part solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from samplers.authoring import Point, ops, option

from .euler import Euler
from .sampler import FlowSampler, FlowState, first_order

if TYPE_CHECKING:
    from .family import FlowPredictor


@dataclass(frozen=True)
class Solver1(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, BFN-Solver1 for tokens.

    z_t = (1 - t) / (1 - s) z_s + K beta_1 (1 - t) (t - s) (1 / K - p_s), p the network's probabilities and t < s. It is
    DPM-Solver++1, which is DDIM, on alpha = beta, sigma = sqrt(K beta) and x_0 = K p - 1.
    """

    name, family = "bfn_solver_1", "bayesian_flow"
    cite = Euler.cite
    summary = "first-order solver of the ODE, for tokens"
    order: ClassVar[int] = 1

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        return self.advance(state, first_order(state.x, predict(state.x, s), s, t))


@dataclass(frozen=True)
class Solver2(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, BFN-Solver2 for tokens, multistep and singlestep.

    The probabilities follow a straight line in time, through p_s and p_r: the step of BFN-Solver1 less
    K beta_1 (1 - t) (t - s)^2 / 2 (p_s - p_r) / (s - r). method "multistep": r is the point before s, and the first step is of
    order 1. "singlestep": r is the middle of s and t, at which the network is asked after a step of order 1; a step has two
    evaluations, and if one is left for the last step, that is of order 1.
    """

    name, family = "bfn_solver_2", "bayesian_flow"
    cite = Euler.cite
    summary = "second-order solver of the ODE, for tokens"
    order: ClassVar[int] = 2

    method: str = option(
        "multistep",
        "the second point of the line: the one before, or the middle of the step",
        choices=("multistep", "singlestep"),
    )

    @property
    def per_step(self) -> int:
        return 1 if self.method == "multistep" else 2

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0 = predict(state.x, s)
        line, lam = None, s.lam
        if self.evaluations(state) == 2:
            r = Point.at(state.flow.schedule, t=(s.t + t.t) / 2)
            line, lam = predict(first_order(state.x, x0, s, r), r), r.lam
        elif self.method == "multistep" and state.history:
            lam, line = state.history[-1]
        if line is None:
            x = first_order(state.x, x0, s, t)
        else:
            # e^lambda = (1 - t) sqrt(beta_1 / K) is time, and x / sigma the integral of x_0 over it.
            step, back = math.exp(t.lam) - math.exp(s.lam), math.exp(s.lam) - math.exp(lam)
            bend = step**2 / 2 / back
            x = ops.combine(state.x, t.sigma / s.sigma, x0, t.sigma * (step + bend), line, -t.sigma * bend)
        return self.advance(state, x, history=((s.lam, x0),))
