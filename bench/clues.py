"""Exact problems with the first quarter of each row given, for bench/zoo.py at temperature 0.

Without a prompt a deterministic rule at temperature 0 makes one row again and again, and its share of valid rows says nothing.
Here every row begins as another exact sample begins, and a rule has to end it in some valid way. samplers.bench takes each as a
user's model: denoiser clues:sudoku4.denoiser, prompts clues:sudoku4.prompts, metric clues:sudoku4.invalid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers import Sample, TokenDenoiser, problems

ROWS = 300
SEED = 1 << 20  # the prompts are drawn by it; runs have seeds of their own
# The problems whose rows can break a rule and are not determined by what is given. copy, reverse and sort have one answer each.
NAMES = (
    *("shuffle", "replace_random", "remove_random", "insert_random", "latin3", "latin4", "sudoku4", "domino"),
    *("parity", "mirror", "dyck"),
)


@dataclass(frozen=True)
class Clues:
    """One problem, the first quarter of whose positions (rounded down, at least one) is given."""

    name: str

    @property
    def length(self) -> int:
        """L, given and other positions."""
        length = problems.create(self.name).length
        assert length is not None
        return length

    @property
    def given(self) -> int:
        return max(1, self.length // 4)

    def denoiser(self) -> TokenDenoiser:
        """The exact denoiser for masks."""
        made = problems.create(self.name).denoiser("masked")
        assert isinstance(made, TokenDenoiser)
        return made

    def prompts(self) -> list[list[int]]:
        """The beginnings of ROWS exact samples."""
        rows: list[list[int]] = problems.create(self.name).sample_truth(ROWS, SEED, "masked")[:, : self.given].tolist()
        return rows

    def invalid(self, sample: Sample) -> Tensor:
        """(B,) float64: 1 if the finished row breaks a rule of the problem, else 0."""
        return torch.isinf(problems.create(self.name).log_prob(sample.x.cpu())).double()


globals().update({name: Clues(name) for name in NAMES})
