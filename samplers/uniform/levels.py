"""States that know how noisy each position is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..canvas import Layout
from ..state import DraftState

__all__ = ["NoisyState", "quota"]

S = TypeVar("S", bound="NoisyState")


@dataclass(frozen=True, eq=False)
class NoisyState(DraftState):
    """Drafts that know how noisy they are; models are told so.

    Attributes:
        level: (B, L) float64, the noise level of the token that stands there: 1 where it says nothing (all of a fresh
            block), 0 where it is taken for clean. What is given or decided is clean whatever stands here.
    """

    level: Tensor  # (B, L) float64

    @classmethod
    def begin(cls: type[S], canvas: Layout, **fields: Any) -> S:
        """The state before the first step: every level is 1. fields: the values of the subclass's own fields."""
        level = torch.ones(canvas.x.shape, dtype=torch.float64, device=canvas.x.device)
        return super().begin(canvas, **({"level": level} | fields))

    @property
    def levels(self) -> Tensor:
        return self.level * super().levels

    @property
    def noise_level(self) -> Tensor:
        """(B,) float64: the mean level of the positions to fill."""
        return (self.level * self.undecided).sum(1) / self.canvas.fill_count

    def renoised(self: S, x: Tensor, level: Tensor, decide: Tensor, **changes: Any) -> S:
        """As `revise`, with the noise level, (B, L) or (B, 1), of the tokens that are written."""
        return self.revise(x, decide, level=torch.where(self.open, level, self.level), **changes)


def quota(state: NoisyState, left: Tensor) -> Tensor:
    """(B,) int64: how many of the `left` (B,) positions of the block must be settled in this step to keep pace.

    After step k of S that is ceil((k + 1) n / S) of the block's n.
    """
    steps = state.block_steps.clamp_min(1)
    settled = ((state.block_step + 1) * state.block_size + steps - 1) // steps
    return (settled - state.block_size + left).clamp_min(0)
