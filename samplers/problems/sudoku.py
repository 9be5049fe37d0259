"""sudoku4: the 288 valid 4 x 4 grids, all equally likely. Its posteriors are counts, weighted under uniform noise."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..curves import SUBSETS, exact_curve
from ..schedule import NoiseSchedule
from .base import (
    Z95,
    Estimate,
    ExactTokens,
    Problem,
    Score,
    check_reals,
    check_tokens,
    exact_matmul,
    on_grid,
    per_position,
    truth_uniforms,
    wilson,
)
from .finite import FiniteGaussian
from .pictures import strip

__all__ = ["CountingTokens", "Sudoku4", "conflicts", "sudoku_grids"]

QUIET_BITS = 40  # a noise level below 2^-40 is none


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


class CountingTokens(ExactTokens):
    """Posteriors of a finite support whose points are equally likely: sums over the points, exact and so the same in
    every batch.

    A position at level t keeps its token with probability 1 - t + t/V and else holds any other one: a point's weight has a
    factor r = (t/V) / (1 - t + t/V) for each of its mismatches. A mask says nothing, and a token at level 0 (all visible
    ones of masked noise) rules out the points that differ. If no point is left, those with the fewest such mismatches
    count: the limit of vanishing smoothing of the distribution. Equal probabilities are equal bit for bit.

    Args:
        support: (n, L) int64, tokens below `tokens`.
        tokens: how many there are.
        family: masked or uniform.
    """

    def __init__(
        self,
        support: Tensor,
        tokens: int,
        family: str,
        *,
        device: torch.device | str = "cpu",
        name: str = "counting",
    ):
        self.tokens, self.length = tokens, support.shape[1]
        self._noised(family)
        self.device, self.name = torch.device(device), name
        self.support = support.to(self.device)  # (n, L)
        points = F.one_hot(self.support, tokens).flatten(1).to(torch.float64)  # (n, L V)
        self.points_t = points.t().contiguous()  # (L V, n)
        self.table = torch.cat(
            [points, torch.ones_like(points[:, :1])], 1
        )  # (n, L V + 1): the last makes the normaliser
        # L logs of factors are below 2^magnitude in sum, and on this grid any sum of them is exact.
        magnitude = math.ceil(math.log2(self.length * (QUIET_BITS * math.log(2) + math.log(tokens))))
        self.log_bits = 52 - magnitude

    @functools.cached_property
    def entropy_curve(self) -> Tensor | None:  # type: ignore[override]
        """(L,) float64, exact; None if the support has too many subsets of positions to go through."""
        if len(self.support) << self.length > SUBSETS:
            return None
        return exact_curve(self.support).nats

    def weights(self, x: Tensor, t: Tensor | None) -> Tensor:
        """Each point's weight, the largest 1: (B, n) float64. t: (B, L), None for masked noise."""
        seen = F.one_hot(x, self.tokens + 1)[..., : self.tokens].to(torch.float64)  # (B, L, V), 0 at masks
        quiet = torch.ones_like(x, dtype=torch.bool) if t is None else t < 2.0**-QUIET_BITS  # (B, L)
        matches = (seen * quiet[..., None]).flatten(1) @ self.points_t  # (B, n), whole numbers
        nearest = matches == matches.amax(1, keepdim=True)
        if t is None:
            return nearest.to(torch.float64)
        level = t.clamp_min(2.0**-QUIET_BITS)
        log_r = on_grid(torch.log(level / self.tokens / (1 - level + level / self.tokens)), self.log_bits)
        log_r = torch.where(quiet, 0.0, log_r)  # (B, L)
        log_w = ((1 - seen) * log_r[..., None]).flatten(1) @ self.points_t  # (B, n), exact
        log_w = torch.where(nearest, log_w, -math.inf)
        return torch.exp(log_w - log_w.amax(1, keepdim=True))

    def posterior(self, x: Tensor, t: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        w = self.weights(x, None if t is None else per_position(t, x))  # (B, n)
        p = self._shares(w, counted=t is None)  # (B, L, V)
        return p if positions is None else p[:, positions]

    def _posterior_given(self, evidence: Tensor) -> Tensor:
        log_w = exact_matmul(evidence.flatten(1), self.points_t, slices=2)  # (B, n)
        return self._shares(torch.exp(log_w - log_w.amax(1, keepdim=True)), counted=False)

    def _shares(self, w: Tensor, counted: bool) -> Tensor:
        """The share of each position's tokens in the weights (B, n) of the points: (B, L, V)."""
        # Weights of 0 and 1 are counted; others are summed in three slices, for probabilities as small as 2^-100.
        sums = w @ self.table if counted else exact_matmul(w, self.table, slices=3)  # (B, L V + 1)
        return (sums[:, :-1] / sums[:, -1:]).unflatten(1, (self.length, self.tokens))


class Sudoku4(Problem):
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
    length = 16
    tokens = 4
    primary = {"masked": "tv", "uniform": "tv", "gaussian": "tv"}

    def __init__(self) -> None:
        self.grids = sudoku_grids()  # (288, 16)
        powers = 4 ** torch.arange(15, -1, -1, device="cpu")  # (16,)
        self._powers = powers
        self._keys = (self.grids * powers).sum(1)  # (288,), increasing: the grids are in lexicographic order

    def _masked(self, device: torch.device | str = "cpu") -> CountingTokens:
        return CountingTokens(self.grids, 4, "masked", device=device, name="sudoku4/masked")

    def _uniform(self, device: torch.device | str = "cpu") -> CountingTokens:
        return CountingTokens(self.grids, 4, "uniform", device=device, name="sudoku4/uniform")

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

    def index(self, x: Tensor) -> Tensor:
        """Which of the 288 grids each row is, -1 if it is none: (n, 16) int64 -> (n,) int64."""
        key = (x * self._powers).sum(1)  # (n,)
        at = torch.searchsorted(self._keys, key).clamp_max(len(self._keys) - 1)
        return torch.where(self._keys[at] == key, at, -1)

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        pick = (truth_uniforms(n, seed, 1)[:, 0] * len(self.grids)).to(torch.int64)  # (n,)
        x = self.grids[pick]
        return self.to_reals(x).to(torch.float32) if family == "gaussian" else x

    def _score(self, x: Tensor, family: str) -> Score:
        if family == "gaussian":
            check_reals(x, (16, 4), "sudoku4 score")
            x = self.decode(x)
        check_tokens(x, 16, 4, None, "sudoku4 score")
        which = self.index(x)
        counts = torch.bincount(which[which >= 0], minlength=len(self.grids)).numpy()  # (288,)
        n, valid = len(x), int(counts.sum())
        kl, chi2_p = _kl(counts)
        return Score(
            {"invalid": wilson(n - valid, n, truth=0.0), "tv": _tv(counts, n), "kl": kl},
            problem=self.name,
            family=family,
            primary=self.primary[family],
            extras={"chi2_p": chi2_p, "grids_seen": float((counts > 0).sum())},
        )

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


def _tv(counts: np.ndarray, n: int) -> Estimate:
    """Total variation of the frequencies of n samples to uniform; whatever is missing from counts is invalid mass.

    The interval is the delta method's, with at least the spread of n exact samples: near the floor |p - u| has its
    kinks, and if grids are seen once at most, the delta method sees no spread at all.
    """
    u = 1 / len(counts)
    p = counts / n
    invalid = 1 - counts.sum() / n
    value = float(np.abs(p - u).sum() + invalid) / 2
    sign = np.sign(p - u)  # an invalid sample counts as a point of probability 0: sign +1
    variance = (float((sign**2 * p).sum() + invalid) - float((sign * p).sum() + invalid) ** 2) / 4
    floor, spread = tv_floor(n, len(counts))
    half = Z95 * max(math.sqrt(max(variance, 0.0) / n), spread)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), n, "lower", floor)


def tv_floor(n: int, k: int) -> tuple[float, float]:
    """The total variation to uniform over k points of the frequencies of n exact samples: mean, bound of its sd.

    De Moivre's mean absolute deviation of a binomial: E|X - np| = 2 m (1 - p) P(X = m), m = floor(np) + 1. The bound
    takes the k points as independent; they are negatively correlated.
    """
    from scipy.stats import binom

    p = 1 / k
    m = math.floor(n * p) + 1
    deviation = 2 * m * (1 - p) * float(binom.pmf(m, n, p))  # E|X - np|
    variance = max(n * p * (1 - p) - deviation**2, 0.0)  # of |X - np|
    return k * deviation / (2 * n), math.sqrt(k * variance) / (2 * n)


def _kl(counts: np.ndarray) -> tuple[Estimate, float]:
    """KL of valid samples to uniform, Miller-Madow corrected, and Pearson's p-value."""
    from scipy.stats import binom, chi2

    k, n = len(counts), int(counts.sum())
    if n == 0:
        return Estimate(math.inf, 0.0, math.inf, 0, "lower", None), 0.0
    p = counts[counts > 0] / n
    # Plug-in KL is too large by about (k - 1) / 2n; Miller and Madow's estimate of k is the number of points seen.
    value = math.log(k) + float((p * np.log(p)).sum()) - (len(p) - 1) / (2 * n)
    first = float((p * np.log(p) ** 2).sum() - (p * np.log(p)).sum() ** 2) / n
    # At uniform the first-order variance is 0 and 2 n KL is chi-square with k - 1 degrees of freedom.
    half = Z95 * math.sqrt(max(first, (k - 1) / (2 * n**2)))
    c = np.arange(n + 1)
    mass = binom.pmf(c, n, 1 / k)
    plug_in = math.log(k) + k * float((mass[1:] * c[1:] / n * np.log(c[1:] / n)).sum())
    truth = plug_in - (k * (1 - float(mass[0])) - 1) / (2 * n)
    chi2_stat = float(((counts - n / k) ** 2).sum() / (n / k))
    return Estimate(value, value - half, value + half, n, "lower", truth), float(chi2.sf(chi2_stat, k - 1))
