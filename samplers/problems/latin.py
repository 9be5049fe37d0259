"""Latin squares: latin3 (12 of them) and latin4 (576), all equally likely."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .support import Support

__all__ = ["Latin3", "Latin4", "latin_squares"]


def latin_squares(n: int) -> Tensor:
    """All n x n grids with each of 0..n-1 once in every row and column, in lexicographic order: (count, n n) int64."""
    lines = list(itertools.permutations(range(n)))
    grids: list[tuple[tuple[int, ...], ...]] = [()]
    for _ in range(n):
        grids = [(*g, line) for g in grids for line in lines if all(a != b for row in g for a, b in zip(row, line))]
    return torch.tensor([sum(g, ()) for g in grids], dtype=torch.int64, device="cpu")


class _Latin(Support):
    """Squares of n x n cells, L = n n, tokens 0 to n - 1: see Support for the scores."""

    kind = "puzzle"
    side: int

    def __init__(self) -> None:
        super().__init__(latin_squares(self.side), self.side, "123456789"[: self.side])

    def render(self, x_row: Tensor) -> str:
        """A line per row of the square, the digits from 1, '·' at masks."""
        marks = list(self._marks(x_row))
        return "\n".join(" ".join(marks[i : i + self.side]) for i in range(0, len(marks), self.side))


class Latin3(_Latin):
    """The 12 Latin squares of order 3."""

    name, side = "latin3", 3
    summary = "the 12 Latin squares of order 3; two cells that are decided together may clash"


class Latin4(_Latin):
    """The 576 Latin squares of order 4."""

    name, side = "latin4", 4
    summary = "the 576 Latin squares of order 4; as sudoku4 without the boxes"
