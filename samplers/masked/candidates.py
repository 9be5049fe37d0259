"""What samplers that choose among candidates share: the best candidate, and whether it goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import TokenState

__all__ = ["best_of", "goes_on"]


def best_of(score: Tensor, valid: Tensor) -> Tensor:
    """(B,) int64: the valid candidate of the highest score in each row, the first of equals. score, valid: (B, K)."""
    return torch.where(valid, score, -torch.inf).argmax(1)


def goes_on(before: TokenState, after: TokenState) -> Tensor:
    """(B,) bool: rows that are not done with the block that they were in; under a window that moves, with the row."""
    return after.block == before.block if before.canvas.window is None else ~after.done
