"""Left to right, one token per forward pass, through a KV cache: what faster samplers of causal models are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..canvas import Layout
from ..feeds.sequence import SequenceState
from ..predictor import SequencePredictor
from ..sampler import Facts, Sampler, option


@dataclass(frozen=True)
class Autoregressive(Sampler[SequenceState]):
    """The chain rule: x_i ~ p(x_i | x_0 ... x_{i-1}), i ascending, each read at the token before it.

    For models that look back only and predict the next token. In three cases a position is answered by a mask in its own
    place, which is fed in the same forward pass and is not kept: the first position of a row without a prompt; the first
    position after positions that were given in the middle, since the token before it is not the last of the row's sequence;
    and the first position of a slot, since ReFusion's training (Li et al. 2025, arXiv 2512.13586) has no next token across the
    ends of slots. NFE is the number of positions; a forward pass is fed one token or two.
    """

    name = "autoregressive"
    family = "masked"
    cite = "the chain rule; slots as in Li et al. 2025, ReFusion, arXiv 2512.13586"
    summary = (
        "left to right, one token per forward pass, through a KV cache; for causal models that predict the next token"
    )
    facts = Facts(bias="exact", sequential=True)

    slot_size: int | None = option(
        None, "positions per slot, whose first token is answered by a mask; none: no slots", ge=1
    )

    def init(self, canvas: Layout) -> SequenceState:
        return SequenceState.begin(canvas)

    def step(self, predict: SequencePredictor, state: SequenceState) -> SequenceState:
        first = state.open & (state.open.cumsum(1) == 1)  # (B, L), one per row
        last = state.order.gather(1, (state.length - 1).clamp(min=0)[:, None])  # (B, 1)
        position = torch.arange(first.shape[1], device=first.device)
        masks = (position != last + 1) | (state.length == 0)[:, None]
        if self.slot_size is not None:
            masks |= (state.canvas.fill.cumsum(1) - 1) % self.slot_size == 0
        return state.commit(first, predict.next(state, first, masks).token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return length
