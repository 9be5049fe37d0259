"""Finite supports whose points are equally likely: posteriors by counting, what parallel decoding costs, and scores.

Every number that says what a blind order costs is exact here: a group of positions that are decided together is drawn from
the product of their posteriors, so the probability that a plan makes a point is a product of counts over counts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..curves import SUBSETS, exact_curve
from ..errors import OptionError
from .base import (
    Z95,
    Estimate,
    ExactTokens,
    Problem,
    Score,
    check_tokens,
    exact_matmul,
    on_grid,
    per_position,
    truth_uniforms,
    wilson,
)

__all__ = ["CountingTokens", "Plan", "Points", "Support", "groups_of", "tv_floor", "uniform_scores"]

QUIET_BITS = 40  # a noise level below 2^-40 is none
MASK = "·"

# Groups of positions, each decided at once: a number is that many positions from left to right.
Plan = Sequence[int | Sequence[int]]


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


class Points:
    """The rows of a table of tokens, to be found again.

    Args:
        x: (n, L) int64, no row twice.
    """

    def __init__(self, x: Tensor):
        self.x = x
        # Odd multipliers modulo 2^64: equal rows have equal keys, and what is found is compared token by token.
        powers = [pow(0x9E3779B97F4A7C15, i + 1, 1 << 64) for i in range(x.shape[1])]
        signed = [p - (1 << 64) if p >= 1 << 63 else p for p in powers]
        self._multipliers = torch.tensor(signed, dtype=torch.int64, device="cpu")  # (L,)
        self._keys, self._order = ((x + 1) * self._multipliers).sum(1).sort()
        assert bool((self._keys.diff() != 0).all()), "two points have one key"

    def index(self, x: Tensor) -> Tensor:
        """Which of the points each row is, -1 if it is none: (n, L) int64 -> (n,) int64."""
        key = ((x + 1) * self._multipliers).sum(1)
        at = self._order[torch.searchsorted(self._keys, key).clamp_max(len(self._keys) - 1)]
        return torch.where((self.x[at] == x).all(1), at, -1)


def groups_of(plan: Plan | None, free: Sequence[int], who: str) -> list[list[int]]:
    """The positions of each group of a plan; None: all at once.

    Raises:
        OptionError: the groups do not hold each of the positions `free` exactly once.
    """
    if plan is None:
        return [list(free)]
    left, groups, asked = list(free), [], 0
    try:
        for group in plan:
            if isinstance(group, (int, np.integer)):
                groups.append(left[: max(group, 0)])
                left = left[max(group, 0) :]
                asked += group
            else:
                groups.append([int(i) for i in group])
                left = [i for i in left if i not in groups[-1]]
                asked += len(groups[-1])
    except (TypeError, ValueError):  # neither numbers nor lists of positions
        groups = []
    if sorted(i for group in groups for i in group) != sorted(free) or asked != len(free) or not all(groups):
        raise OptionError(
            f"{who}: a plan is groups that hold each position to fill ({min(free)} to {max(free)}) once, such as "
            f"{[len(free) - len(free) // 2, len(free) // 2]}, not {plan!r}"
        )
    return groups


def check_rows(x: Tensor, length: int, who: str) -> None:
    """OptionError if x is not (n, length) int64."""
    if x.dim() != 2 or x.shape[1] != length or x.dtype != torch.int64:
        raise OptionError(f"{who} takes x of shape (n, {length}) int64, not {tuple(x.shape)} {x.dtype}")


def encoded(text: str, names: str, problem: str) -> Tensor:
    """Characters to tokens, one each: (n,) int64, blanks left out; '·' is the mask.

    Raises:
        OptionError: a character that is none of `names`.
    """
    known = {c: i for i, c in enumerate(names + MASK)}
    found = [known.get(c) for c in text if c != " "]
    if None in found:
        raise OptionError(f"problem {problem!r} has the tokens {' '.join(names)}, which {text!r} is not made of")
    return torch.tensor(found, dtype=torch.int64, device="cpu")


def uniform_scores(points: Points, x: Tensor, seen: str) -> tuple[dict[str, Estimate], dict[str, float]]:
    """`invalid`, `tv` and `kl` of samples (n, L) against points that are equally likely; and chi2_p, and how many points were
    seen under the name `seen`."""
    which = points.index(x)
    counts = torch.bincount(which[which >= 0], minlength=len(points.x)).numpy()
    n = len(x)
    kl, chi2_p = uniform_kl(counts)
    estimates = {"invalid": wilson(n - int(counts.sum()), n, truth=0.0), "tv": uniform_tv(counts, n), "kl": kl}
    return estimates, {"chi2_p": chi2_p, seen: float((counts > 0).sum())}


class Support(Problem):
    """Base of problems that are uniform over a finite support. Subclasses make the points, and say how to render a row.

    A problem may have a prompt, which is given: the first tokens of every canvas. The distribution is then the uniform one over
    the points that begin with it, and all exact numbers are of the other positions. The denoisers know all points, so any
    other prompt will do in a run.

    Scores: `invalid` (the share of rows outside the support), and unless the prompt leaves one point `tv` (total variation to
    the uniform distribution, invalid mass included; its floor is the mean of exact samples), `kl` (nats, of the valid part's
    frequencies to uniform, Miller-Madow corrected), and chi2_p, the p-value of Pearson's test that valid rows are uniform.

    Args:
        points: (n, L) int64, no row twice.
        vocab: how many tokens there are.
        names: one character for each token.
        prompt: (P,) int64, which at least one point begins with, or None.
    """

    families: tuple[str, ...] = ("masked", "uniform")
    primary = {"masked": "tv", "uniform": "tv"}
    names: str = ""
    seen: str = "rows_seen"

    def __init__(self, points: Tensor, vocab: int, names: str = "", prompt: Tensor | None = None):
        self.points, self._vocab, self.names, self.length = points, vocab, names, points.shape[1]
        given = 0 if prompt is None else len(prompt)
        self.free = range(given, points.shape[1])
        if prompt is not None:
            self.settings = {"prompt": prompt}
        #: (n, L) int64, the points that begin with the prompt.
        self.truth = points if prompt is None else points[(points[:, :given] == prompt).all(1)]
        if len(self.truth) == 1:
            self.primary = dict.fromkeys(self.families, "invalid")

    @property
    def tokens(self) -> int:
        """V, the number of clean tokens."""
        return self._vocab

    def _masked(self, device: torch.device | str = "cpu") -> CountingTokens:
        return CountingTokens(self.points, self.tokens, "masked", device=device, name=f"{self.name}/masked")

    def _uniform(self, device: torch.device | str = "cpu") -> CountingTokens:
        return CountingTokens(self.points, self.tokens, "uniform", device=device, name=f"{self.name}/uniform")

    # what is known exactly

    @functools.cached_property
    def _found(self) -> Points:
        return Points(self.points)

    def index(self, x: Tensor) -> Tensor:
        """Which of `points` each row is, -1 if it is none: (n, L) int64 -> (n,) int64."""
        return self._found.index(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exact: (n, L) int64 -> (n,) float64, nats; -inf outside the distribution."""
        check_rows(x, self.points.shape[1], f"problem {self.name!r}: log_prob")
        inside = Points(self.truth).index(x) >= 0
        return torch.where(inside, -math.log(len(self.truth)), -math.inf).to(torch.float64)

    def entropy(self) -> float:
        """The distribution's entropy in nats: the log of the number of points that begin with the prompt."""
        return math.log(len(self.truth))

    def marginals(self) -> Tensor:
        """p(x_i = v): (L, V) float64."""
        return F.one_hot(self.truth, self.tokens).to(torch.float64).mean(0)

    def plan_prob(self, plan: Plan | None = None) -> Tensor:
        """The probability with which a plan makes each point of `truth`: (n,) float64.

        Each group of positions is drawn at once from the product of its posteriors given the groups before it. The sum
        is the share of valid rows, since no valid row has an invalid beginning.

        Args:
            plan: the groups; a number is that many positions from left to right. None: all at once.

        Raises:
            OptionError: the groups do not hold each position to fill once.
        """
        log_q = torch.zeros(len(self.truth), dtype=torch.float64, device="cpu")
        alike = torch.zeros(
            len(self.truth), dtype=torch.int64, device="cpu"
        )  # points that agree so far have one number
        for group in groups_of(plan, self.free, f"problem {self.name!r}"):
            size = torch.bincount(alike)[alike]  # (n,)
            for i in group:
                _, pair, count = torch.unique(
                    alike * self.tokens + self.truth[:, i], return_inverse=True, return_counts=True
                )
                log_q += torch.log(count[pair] / size.to(torch.float64))
            for i in group:
                alike = torch.unique(alike * self.tokens + self.truth[:, i], return_inverse=True)[1]
        return log_q.exp()

    def one_shot(self, plan: Plan | None = None) -> float:
        """The probability that a row is valid if all its positions are drawn at once, or group by group: see plan_prob."""
        return min(1.0, float(self.plan_prob(plan).sum()))

    def plan_kl(self, plan: Plan | None = None) -> float:
        """KL(p || q) in nats, q being what the plan makes: see plan_prob. A row that is wrong costs what it takes from p."""
        return max(0.0, -math.log(len(self.truth)) - float(self.plan_prob(plan).log().mean()))

    def total_correlation(self) -> float:
        """The sum of the entropies of the positions less that of the row, nats: plan_kl of all positions at once."""
        return self.plan_kl()

    # samples

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        pick = (truth_uniforms(n, seed, 1)[:, 0] * len(self.truth)).to(torch.int64)  # (n,)
        return self.truth[pick]

    def _score(self, x: Tensor, family: str) -> Score:
        check_tokens(x, self.points.shape[1], self.tokens, None, f"{self.name} score")
        invalid = wilson(int((self.index(x) < 0).sum()), len(x), truth=0.0)
        estimates: dict[str, Estimate] = {"invalid": invalid}
        extras: dict[str, float] = {}
        if len(self.truth) > 1:
            estimates, extras = uniform_scores(self._found, x, self.seen)
        return Score(estimates, problem=self.name, family=family, primary=self.primary[family], extras=extras)

    # text

    def encode(self, text: str) -> Tensor:
        """Characters to tokens, one each: (n,) int64, blanks left out; '·' is the mask. OptionError for any other character."""
        return encoded(text, self.names, self.name)

    def render(self, x_row: Tensor) -> str:
        """The names of the tokens, a '|' after the prompt, '·' at masks."""
        marks = list(self._marks(x_row))
        first = self.free.start
        return " ".join([*marks[:first], *("|" for _ in range(bool(first))), *marks[first:]])

    def _marks(self, x_row: Tensor) -> Iterator[str]:
        for v in x_row.detach().cpu().tolist():
            yield self.names[v] if 0 <= v < self.tokens else MASK


def uniform_tv(counts: np.ndarray, n: int) -> Estimate:
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


def uniform_kl(counts: np.ndarray) -> tuple[Estimate, float]:
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
