"""Saber: a threshold that follows the run, and some of the filled tokens masked again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict, sum_over
from ..sampler import Conformance, Facts, Sampler, option
from ..state import DraftState


@dataclass(frozen=True, eq=False)
class SaberState(DraftState):
    """A state that remembers confidences.

    Attributes:
        filled: (B, L) float32, the confidence of a position when it was filled last; -1: it never was.
        before: (B, L) float32, its confidence in the last forward pass that asked about it; 0: none did.
    """

    filled: Tensor
    before: Tensor


@dataclass(frozen=True)
class Saber(Sampler[SaberState]):
    """Dong et al. 2025 (Saber), arXiv 2510.18165: fill above the mean confidence of what was filled, and mask some again.

    The bar is the mean confidence, when it was filled last, of every position that was ever filled, in this block or an
    earlier one; 1 if there is none. A step fills the masks whose confidence is above the bar, or the best `least` if they are
    fewer. Unless the block is full then, it masks r = min(k - 1, max(least // 2, ceil(k / 8))) of its filled positions again,
    where k is the number that this step filled: those whose confidence has changed by the smallest (most negative) amount
    since the forward pass before. This step's own may be among them. Confidence is the probability of what the model would
    write there now, whether or not it is what stands there. Each step leaves fewer masks than there were; the block is
    done when it is full.

    Differs from the reference: tokens of earlier blocks are final; a position that was never asked about changes from 0, so
    in the first step of a block the least confident of those filled are masked again (the paper does not say); `steps` is a
    cap, which is kept by filling more and masking less (if left out: no cap); rows count for themselves. Above temperature 0
    the confidence is that of the drawn token.
    """

    name = "saber"
    family = "masked"
    cite = "Dong et al. 2025, Saber: Sampling with Adaptive Acceleration and Backtracking Enhanced Remasking, arXiv 2510.18165"
    summary = "fill above the mean confidence so far, mask again what has lost most confidence"
    default_temperature = 0.0
    facts = Facts(bias="biased", revises=True, sweep=("least", (1, 2, 3, 4, 6, 8, 12, 16)))
    conformance = Conformance(one_at_a_time={"block_length": 1})

    least: int = option(
        2, "least number of positions that a step fills; half of it is the least that is masked again", ge=1
    )

    def init(self, canvas: Layout) -> SaberState:
        zeros = torch.zeros_like(canvas.x, dtype=torch.float32)
        return SaberState.begin(canvas, filled=zeros - 1, before=zeros)

    def step(self, predict: Predict, state: SaberState) -> SaberState:
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        masked = state.masked & state.open
        left = masked.sum(1)  # (B,)
        need = -(-left // (state.block_steps - state.block_step).clamp_min(1))  # what the cap on steps demands
        ever = state.filled >= 0
        bar = torch.where(ever.any(1), sum_over(state.filled, ever) / ever.sum(1).clamp_min(1), 1.0)  # (B,) float64

        confidence = predict(state, want="confidence")
        now, token = confidence.confidence, confidence.token
        sure = (masked & (now.double() > bar[:, None])).sum(1)
        chosen, k = ops.select(now, masked, k=torch.maximum(sure, need.clamp_min(self.least)))
        again = torch.minimum(k - 1, ((k + 7) // 8).clamp_min(self.least // 2))
        again = torch.where(k == left, 0, torch.minimum(again, k - need))  # (B,) none if the block is full
        visible = (state.open & ~masked) | chosen
        lost = ops.select(now - state.before, visible, k=again, lowest=True).chosen
        x = torch.where(lost, mask_id, torch.where(chosen, token, state.x))
        return state.revise(
            x,
            k == left,
            filled=torch.where(chosen, now, state.filled),
            before=torch.where(state.open, now, state.before),
        )
