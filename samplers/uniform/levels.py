"""States that know the noise level of each position."""

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
    """A state of drafts with a noise level per position, which models are given.

    Attributes:
        level: (B, L) float64, the noise level of the token that stands there: 1 if it carries no information (all tokens of a
            fresh block), 0 if it is taken for clean. Given and decided tokens are clean, whatever this says.
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
        """As `revise`, with the noise levels of the tokens that are written.

        Args:
            x: (B, L) int64, the tokens.
            level: (B, L) or (B, 1) float64.
            decide: (B, L) or (B,) bool, what is final now.
            changes: new values of a subclass's own fields.
        """
        return self.revise(x, decide, level=torch.where(self.open, level, self.level), **changes)


def quota(state: NoisyState, left: Tensor) -> Tensor:
    """(B,) int64: how many more positions of the block must be settled in this step to keep pace.

    After step k of S, ceil((k + 1) n / S) of the block's n positions are to be settled.

    Args:
        left: (B,) int64, how many positions are not settled yet.
    """
    steps = state.block_steps.clamp_min(1)
    settled = ((state.block_step + 1) * state.block_size + steps - 1) // steps
    return (settled - state.block_size + left).clamp_min(0)
