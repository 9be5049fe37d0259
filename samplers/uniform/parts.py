"""What several uniform samplers share: states that know how noisy each position is, and draws of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..canvas import Canvas, DraftState

__all__ = ["DRAW_NOISE_TOKEN", "DRAW_PICK", "DRAW_ROUTE", "NoisyState", "noisy", "owed"]

# Uniforms of a step, besides the token draw's.
DRAW_ROUTE = 8  # clean, stay or noise
DRAW_NOISE_TOKEN = 9  # which token noise puts there
DRAW_PICK = 10  # which positions a corrector takes

S = TypeVar("S", bound="NoisyState")


@dataclass(frozen=True, eq=False)
class NoisyState(DraftState):
    """Drafts that know how noisy they are; models are told so.

    Attributes:
        level: (B, L) float64, the noise level of the token that stands there: 1 where it says nothing (all of a fresh
            block), 0 where it is taken for clean. What is given or decided is clean whatever stands here.
    """

    level: Tensor  # (B, L) float64

    @property
    def levels(self) -> Tensor:
        return self.level * super().levels

    @property
    def noise_level(self) -> Tensor:
        """(B,) float64: the mean level of the positions to fill."""
        return (self.level * self.undecided).sum(1) / self.canvas.fill.sum(1)

    def renoised(self: S, x: Tensor, level: Tensor, decide: Tensor, **changes: Any) -> S:
        """As `revise`, with the noise level, (B, L) or (B, 1), of the tokens that are written."""
        return self.revise(x, decide, level=torch.where(self.open, level, self.level), **changes)


def noisy(canvas: Canvas, cls: type[S], **more: Any) -> S:
    """The state before the first step, as a subclass with more fields."""
    drafts = canvas.drafts()
    level = torch.ones_like(drafts.x, dtype=torch.float64)
    return drafts.extend(cls, decided=drafts.decided, level=level, **more)


def owed(state: NoisyState, left: Tensor) -> Tensor:
    """(B,) int64: how many of the `left` (B,) positions of the block must be settled in this step to keep pace.

    After step k of S that is ceil((k + 1) n / S) of the block's n.
    """
    steps = state.block_steps.clamp_min(1)
    settled = ((state.block_step + 1) * state.block_size + steps - 1) // steps
    return (settled - state.block_size + left).clamp_min(0)
