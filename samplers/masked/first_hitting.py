"""First-hitting sampling: jump from one appearance to the next, with no grid of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import ops
from ..canvas import Canvas
from ..sampler import Sampler, option
from ..schedule import mask_schedule
from .parts import TimedState, even_plan, timed


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """Zheng et al. 2024, arXiv 2409.02908, algorithm 1: the continuous-time reverse process, simulated exactly.

    The paper draws the next time recursively, tau_{n-1} = a^{-1}(1 - u^{1/n} (1 - a_{tau_n})), and then a masked position
    at random. Those times are the order statistics of one uniform time a position, so here each position has its own
    time and the earliest goes next: the same law. The model sees the time of the hit (where it is time-conditioned).
    NFE is the number of positions. With fewer `steps` than positions a step takes the next n // steps or so positions
    from one forward (the paper's parallel decoding, equal counts); its extrapolation and corrector are not here.
    """

    name = "first_hitting"
    family = "masked"
    cite = "Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic Masked Models, arXiv 2409.02908"
    summary = "exact continuous-time reverse process: one forward a token, in random order"
    exact_order = True
    counts_known = True

    schedule: str = option("linear", "mask schedule, which sets the times a model sees", check=mask_schedule)

    def init(self, canvas: Canvas) -> TimedState:
        return timed(canvas, self.schedule)

    def step(self, believe, state: TimedState) -> TimedState:
        chosen = ops.select(state.time, state.open, k=even_plan(state), lowest=True).chosen  # (B, L) the earliest
        # `time` is a visible fraction: at the hit, 1 - time of the block's positions are expected masked.
        hit = torch.where(chosen, state.time, 1.0).amin(1)  # (B,)
        later = state.undecided.sum(1) - state.count
        t = (later + state.block_size * (1 - hit)) / state.canvas.fill.sum(1)
        belief = believe(state, chosen, t=t)
        return state.commit(chosen, belief.token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)
