"""Left to right, one token a forward, through a KV cache: what faster samplers of causal models are measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..canvas import Layout
from ..feeds.sequence import SequenceState
from ..predictor import SequencePredictor
from ..sampler import Facts, Sampler, option


@dataclass(frozen=True)
class Autoregressive(Sampler[SequenceState]):
    """The chain rule: x_i ~ p(x_i | x_0 ... x_{i-1}), i ascending, each from the line of the token before it.

    Of a model that looks back only and predicts the next token. A position is answered by a mask in its place, which
    is fed beside the token before it and not kept, where that token is not the last of the row's sequence (the first of a
    row without a prompt; the first behind positions that were given in the middle), and where a slot begins: ReFusion's
    training (Li et al. 2025, arXiv 2512.13586) has no next token across the ends of slots. NFE is the number of positions;
    a forward is fed one token or two.
    """

    name = "autoregressive"
    family = "masked"
    cite = "the chain rule; slots as in Li et al. 2025, ReFusion, arXiv 2512.13586"
    summary = "left to right, one token a forward, through a KV cache; of causal models that predict the next token"
    facts = Facts(bias="exact", sequential=True)

    slot_size: int | None = option(
        None, "positions a slot, whose first token is answered by a mask; None: no slots", ge=1
    )

    def init(self, canvas: Layout) -> SequenceState:
        return SequenceState.begin(canvas)

    def step(self, predict: SequencePredictor, state: SequenceState) -> SequenceState:
        first = state.open & (state.open.cumsum(1) == 1)  # (B, L), one a row
        last = state.order.gather(1, (state.length - 1).clamp(min=0)[:, None])  # (B, 1)
        position = torch.arange(first.shape[1], device=first.device)
        masks = (position != last + 1) | (state.length == 0)[:, None]
        if self.slot_size is not None:
            masks |= (state.canvas.fill.cumsum(1) - 1) % self.slot_size == 0
        return state.commit(first, predict.next(state, first, masks).token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return length
