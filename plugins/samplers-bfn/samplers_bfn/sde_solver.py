"""SDE-BFN-Solver: the reverse SDE of a discrete flow, with the linear part and the noise solved exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from samplers.authoring import Facts, Point, option

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

    name = "bfn_sde_solver_1"
    cite = Euler.cite
    summary = "first-order solver of the SDE, for tokens"
    KINDS = ("discrete",)
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 1

    draw: bool = option(False, "draw a token in every step, in place of the probabilities (published as cate_samp)")

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        p = predict.probabilities(state.x, s)
        if self.draw:
            p = F.one_hot(draw_tokens(state, p), p.shape[-1])
        return self.advance(state, sde_first_order(state, predict.as_data(p), s, t))


@dataclass(frozen=True)
class SdeSolver2(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, SDE-BFN-Solver2 for tokens.

    The probabilities follow the line through those at s and at the point r before it: the step of SDE-BFN-Solver1 and
    K beta_1 (t - s)^2 (s + 2t - 3) / 3 (p_r - p_s) / (r - s), the exact integral. The first step has order 1. Weak order 2.
    """

    name = "bfn_sde_solver_2"
    cite = Euler.cite
    summary = "second-order solver of the SDE, for tokens; the best at few steps"
    KINDS = ("discrete",)
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 2

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0 = predict(state.x, s)
        x = sde_first_order(state, x0, s, t)
        if state.history:
            r, past = state.history[-1]
            beta_1 = state.canvas.denoiser.schedule.beta_1  # type: ignore[attr-defined]
            slope = beta_1 * (t.t - s.t) ** 2 * (s.t + 2 * t.t - 3) / (3 * (r - s.t))
            x = x + slope * (past - x0)
        return self.advance(state, x, history=((s.t, x0),))
