"""sudoku4: the 288 valid 4 x 4 grids, all equally likely. Its posteriors are counts, weighted under uniform noise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import NoiseSchedule
from .base import Score, check_reals
from .finite import FiniteGaussian
from .pictures import strip
from .support import CountingTokens, Support, tv_floor

__all__ = ["CountingTokens", "Sudoku4", "conflicts", "sudoku_grids", "tv_floor"]


@functools.lru_cache(maxsize=1)
def sudoku_grids() -> Tensor:
    """All valid 4 x 4 grids, in lexicographic order: (288, 16) int64. Each row, column and 2 x 2 box holds 0..3."""
    lines = list(itertools.permutations(range(4)))
    grids: list[tuple[int, ...]] = []
    for rows in itertools.product(lines, repeat=2):
        boxes = (rows[0][:2] + rows[1][:2], rows[0][2:] + rows[1][2:])
        if any(len(set(box)) < 4 for box in boxes):
            continue
        for more in itertools.product(lines, repeat=2):
            boxes = (more[0][:2] + more[1][:2], more[0][2:] + more[1][2:])
            columns = zip(*rows, *more)
            if all(len(set(box)) == 4 for box in boxes) and all(len(set(column)) == 4 for column in columns):
                grids.append(sum((*rows, *more), ()))
    return torch.tensor(grids, dtype=torch.int64, device="cpu")  # (288, 16) int64


class Sudoku4(Support):
    """The 288 valid 4 x 4 sudoku grids, uniform. L = 16, tokens 0..3, the mask is 4.

    Gaussian samples are one-hot reals of shape (16, 4) in {-1, 1}, decoded by argmax.

    Scores: `invalid` (the share of grids that break a rule), `tv` (total variation to the uniform distribution, invalid mass
    included; its floor is the mean of exact samples), `kl` (nats, of the valid part's frequencies to uniform,
    Miller-Madow corrected), and chi2_p, the p-value of Pearson's test that valid grids are uniform. Plots use `tv`: a
    sampler that always returns the same valid grid has `invalid` 0.
    """

    name = "sudoku4"
    families = ("masked", "uniform", "gaussian")
    figure_columns = 4
    figure_note = "cells in red repeat a digit in their row, column or box"
    summary = "the 288 valid 4 x 4 sudoku grids; wrong joint decisions show as invalid grids"
    kind = "puzzle"
    seen = "grids_seen"
    length = 16
    primary = {"masked": "tv", "uniform": "tv", "gaussian": "tv"}

    def __init__(self) -> None:
        self.grids = sudoku_grids()  # (288, 16)
        super().__init__(self.grids, 4, "1234")

    def _gaussian(
        self,
        schedule: str | NoiseSchedule = "vp_linear",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> FiniteGaussian:
        return FiniteGaussian(
            self.to_reals(self.grids).flatten(1),
            (16, 4),
            unit=1.0,
            schedule=schedule,
            dtype=dtype,
            device=device,
            name="sudoku4/gaussian",
        )

    @staticmethod
    def to_reals(x: Tensor) -> Tensor:
        """Tokens (n, 16) int64 as one-hot reals in {-1, 1}: (n, 16, 4) float64."""
        return F.one_hot(x, 4).to(torch.float64) * 2 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Reals (n, 16, 4) to tokens by argmax, (n, 16) int64; tokens are left alone."""
        return x.argmax(-1) if x.is_floating_point() else x

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        x = super()._sample_truth(n, seed, family)
        return self.to_reals(x).to(torch.float32) if family == "gaussian" else x

    def _score(self, x: Tensor, family: str) -> Score:
        if family == "gaussian":
            check_reals(x, (16, 4), "sudoku4 score")
            x = self.decode(x)
        return super()._score(x, family)

    def picture(self, x: Tensor, k: int = 8) -> list[np.ndarray]:
        """The first k grids, uint8 (50, 50, 3): one colour per token, masks grey, a red frame around an invalid grid."""
        x = self.decode(x.detach().cpu())[:k]
        colours = np.array([[230, 97, 1], [253, 208, 98], [178, 171, 210], [94, 60, 153], [128, 128, 128]], np.uint8)
        pictures = []
        for grid, index in zip(x, self.index(x)):
            cells = colours[grid.clamp(0, 4).reshape(4, 4).numpy()]  # (4, 4, 3)
            image = np.full((50, 50, 3), 255, np.uint8)
            for r, c in itertools.product(range(4), repeat=2):
                top, left = 2 + 11 * r + 2 * (r > 1), 2 + 11 * c + 2 * (c > 1)  # boxes stand 3 pixels apart, cells 1
                image[top : top + 10, left : left + 10] = cells[r, c]
            if index < 0 and int(grid.max()) < 4:
                image[[0, -1]] = image[:, [0, -1]] = (220, 0, 0)
            pictures.append(image)
        return pictures

    def figure(self, x: Tensor, truth: Tensor, k: int | None = None) -> str:
        """The first grids as digits, those that break a rule in red."""
        return strip(_svg(grid) for grid in self.decode(x)[: k or 4].tolist())

    def render(self, x_row: Tensor) -> str:
        """Four lines, the digits 1 to 4, '·' at masks, boxes apart."""
        row = self.decode(x_row.detach().cpu()).tolist()
        marks = [str(v + 1) if 0 <= v < 4 else "·" for v in row]
        lines = [f"{marks[4 * r]} {marks[4 * r + 1]} │ {marks[4 * r + 2]} {marks[4 * r + 3]}" for r in range(4)]
        return "\n".join([*lines[:2], "────┼────", *lines[2:]])


def conflicts(grid: Sequence[int]) -> set[int]:
    """Cells of a 4 x 4 grid whose digit stands again in their row, column or 2 x 2 box."""
    units: Iterable[list[int]] = [
        *([4 * i + j for j in range(4)] for i in range(4)),
        *([4 * j + i for j in range(4)] for i in range(4)),
        *([8 * r + 2 * c + k for k in (0, 1, 4, 5)] for r in range(2) for c in range(2)),
    ]
    return {a for unit in units for a in unit for b in unit if a != b and grid[a] == grid[b]}


def _svg(grid: list[int]) -> str:
    wrong = conflicts(grid)
    out = [f'<svg class="sudoku" viewBox="0 0 50 50" role="img" aria-label="{"invalid" if wrong else "valid"} grid">']
    for i, v in enumerate(grid):
        x, y = 1 + 12 * (i % 4), 1 + 12 * (i // 4)
        if i in wrong:
            out.append(f'<rect class="x" x="{x}" y="{y}" width="12" height="12"/>')
        out.append(f'<text{" class=x" if i in wrong else ""} x="{x + 6}" y="{y + 9.6}">{v + 1}</text>')
    out.append('<path d="M1 13h48M1 37h48M13 1v48M37 1v48" stroke="var(--faint)" fill="none" stroke-width=".7"/>')
    edge = "var(--bad)" if wrong else "var(--soft)"
    out.append(f'<path d="M1 1h48v48h-48zM1 25h48M25 1v48" stroke="{edge}" fill="none" stroke-width="1"/></svg>')
    return "".join(out)
