"""What samplers that choose among candidates share: sums that do not depend on the width of the batch, and the best candidate."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import TokenState

__all__ = ["best_of", "goes_on", "sum_over"]


def sum_over(value: Tensor, where: Tensor) -> Tensor:
    """(B,) float64: the sum of `value`, (B, L) floats below 2^20 in size, over `where`, (B, L) bool; elsewhere it is not read.

    It is added up in whole units of 2^-40, so that it has the same bits however many positions the batch has beyond the row.
    """
    units = (torch.where(where, value, 0.0).double() * 2.0**40).round().to(torch.int64)
    return units.sum(1).double() * 2.0**-40


def best_of(score: Tensor, valid: Tensor) -> Tensor:
    """(B,) int64: the valid candidate of the highest score in each row, the first of equals. score, valid: (B, K)."""
    return torch.where(valid, score, -torch.inf).argmax(1)


def goes_on(before: TokenState, after: TokenState) -> Tensor:
    """(B,) bool: rows that are not done with the block that they were in; under a window that moves, with the row."""
    return after.block == before.block if before.canvas.window is None else ~after.done
