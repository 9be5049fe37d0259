"""Whether samples follow a distribution: one chi-square test for the kit and for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BOUND", "fits"]

# The kit asks for a p-value above this. Right samplers fall below it with one seed in a thousand; seeds are fixed, so a
# check that has passed once passes again.
BOUND = 1e-3
POOLED = 8  # the chi-square approximation wants cells that expect at least this many


def fits(counts: Tensor | Sequence[float], distribution: Tensor | Sequence[float]) -> float:
    """The p-value of Pearson's chi-square test that `counts` are independent draws of `distribution`.

    Cells that expect fewer than 8 draws are pooled into one. A draw of a cell of probability 0 makes the p-value 0.

    Args:
        counts: (S,) how often each cell was drawn.
        distribution: (S,) the probabilities, or weights in proportion to them.

    Returns:
        The probability that draws of `distribution` differ from it as much as `counts` do: uniform in [0, 1] for a right
        sampler, and practically 0 for a wrong one with enough draws.
    """
    from scipy.stats import chi2

    seen = torch.as_tensor(counts, dtype=torch.float64)
    weight = torch.as_tensor(distribution, dtype=torch.float64)
    if seen.shape != weight.shape or seen.dim() != 1:
        raise ValueError(f"fits takes two sequences of one length, not {tuple(seen.shape)} and {tuple(weight.shape)}")
    expected = weight * (seen.sum() / weight.sum())
    if bool((seen[expected == 0] > 0).any()):
        return 0.0
    rare = expected < POOLED
    if bool(rare.any()):
        seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    statistic = ((seen - expected) ** 2 / expected).sum()
    return float(chi2.sf(float(statistic), max(len(expected) - 1, 1)))
