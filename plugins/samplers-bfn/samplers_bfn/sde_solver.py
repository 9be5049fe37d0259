"""SDE-BFN-Solver: the reverse SDE of a discrete flow, with the linear part and the noise solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from samplers.authoring import Facts, Point, ops, option

from .euler import Euler
from .sampler import FlowSampler, FlowState, draw_tokens, sde_first_order

if TYPE_CHECKING:
    from .family import FlowPredictor


@dataclass(frozen=True)
class SdeSolver1(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, SDE-BFN-Solver1 for tokens.

    z_t = z_s + (beta_t - beta_s) (K p - 1) + sqrt(K (beta_t - beta_s)) n. With `draw` the token is drawn from the network's
    probabilities p, which makes it the sampler of Graves et al. (`bfn`); without, weak order 1.
    """

    name, family = "bfn_sde_solver_1", "bayesian_flow"
    cite = Euler.cite
    summary = "first-order solver of the SDE, for tokens"
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 1

    draw: bool = option(False, "draw a token in every step, in place of the probabilities (published as cate_samp)")

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        if self.draw:
            tokens = draw_tokens(state, predict.probabilities(state.x, s))
            x0 = predict.as_data(F.one_hot(tokens, state.x.shape[-1]))
        else:
            x0 = predict(state.x, s)
        return self.advance(state, sde_first_order(state, x0, s, t))


@dataclass(frozen=True)
class SdeSolver2(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, SDE-BFN-Solver2 for tokens.

    The probabilities follow the line through those at s and at the point r before it: the step of SDE-BFN-Solver1 and
    K beta_1 (t - s)^2 (s + 2t - 3) / 3 (p_r - p_s) / (r - s), the exact integral. The first step has order 1. Weak order 2.
    """

    name, family = "bfn_sde_solver_2", "bayesian_flow"
    cite = Euler.cite
    summary = "second-order solver of the SDE, for tokens"
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 2

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0 = predict(state.x, s)
        x = sde_first_order(state, x0, s, t)
        if state.history:
            lam, past = state.history[-1]
            # e^lambda = w is (1 - t) sqrt(beta_1 / K), and x w / sigma the integral of 2 w x_0 over it, but for the noise.
            first, last, back = math.exp(s.lam), math.exp(t.lam), math.exp(s.lam) - math.exp(lam)
            bend = t.sigma / last * (last - first) ** 2 * (first + 2 * last) / 3 / back
            x = ops.combine(x, 1.0, x0, bend, past, -bend)
        return self.advance(state, x, history=((s.lam, x0),))
