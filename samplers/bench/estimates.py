"""Estimates of several seeds made one, and numbers as text.

Rows are independent across seeds as within one, since all randomness is keyed by (seed, row). Seeds of one setting are
therefore so many more rows, and are combined by metric:
    a share (its interval is Wilson's) is pooled: counts are added, and Wilson's interval made anew;
    anything else is the mean of the seeds' values. The halves of the seeds' 95 % intervals are added in quadrature and
    divided by the number of seeds, the usual error of a mean of independent estimates; the result is never wider
    than the seeds' own intervals together, which keeps bounds such as 0 in force.
The bias of a metric at finite n (`truth`: what as many exact samples score) is that of one seed's rows and is not made
smaller by more seeds: it is why a perfect sampler's total variation is not 0, and why plots draw it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Combined", "combine", "loss", "number"]


@dataclass(frozen=True)
class Combined:
    """A metric over seeds; NaN if a seed has no value (such as a divergence of no samples)."""

    value: float
    low: float
    high: float
    n: int
    better: str
    truth: float | None


def _wilson(count: int, n: int) -> tuple[float, float, float]:
    from ..problems.base import wilson

    e = wilson(count, n)
    return e.value, e.low, e.high


def _is_share(e: dict[str, Any]) -> bool:
    """Whether an estimate is a count over n with Wilson's interval; told by making it again."""
    count = round(e["value"] * e["n"])
    if e["n"] < 1 or not 0 <= count <= e["n"]:
        return False
    return all(abs(a - e[k]) < 1e-9 for a, k in zip(_wilson(count, e["n"]), ("value", "low", "high")))


def combine(estimates: Sequence[dict[str, Any]]) -> Combined:
    """One estimate of those of several seeds (see the module). Each has value, low, high, n, better, truth."""
    better, n = estimates[0]["better"], sum(e["n"] for e in estimates)
    truths = [e["truth"] for e in estimates if e["truth"] is not None]
    truth = sum(truths) / len(truths) if truths else None
    if any(e[k] is None for e in estimates for k in ("value", "low", "high")):
        values = [e["value"] for e in estimates if e["value"] is not None]
        whole = len(values) == len(estimates)
        return Combined(sum(values) / len(values) if whole else math.nan, math.nan, math.nan, n, better, truth)
    if all(map(_is_share, estimates)):
        value, low, high = _wilson(sum(round(e["value"] * e["n"]) for e in estimates), n)
        return Combined(value, low, high, n, better, truth)
    value = sum(e["value"] for e in estimates) / len(estimates)
    half = math.sqrt(sum(max(e["value"] - e["low"], e["high"] - e["value"]) ** 2 for e in estimates)) / len(estimates)
    low, high = (
        max(value - half, min(e["low"] for e in estimates)),
        min(value + half, max(e["high"] for e in estimates)),
    )
    return Combined(value, low, high, n, better, truth)


def loss(value: float | None, truth: float | None, better: str) -> float:
    if value is None:
        return math.nan
    # A likelihood can be too good to be true: what exact samples score is then the aim.
    return abs(value - truth) if truth is not None else -value if better == "higher" else value


def number(v: float | None, digits: int = 3) -> str:
    """A number in a table: three significant digits, no exponent if one can be avoided."""
    if v is None or not math.isfinite(v):
        return "–"
    if v == 0:
        return "0"
    if abs(v) >= 10 ** (digits - 1):
        return f"{v:,.0f}"
    if abs(v) < 1e-4:
        return f"{v:.1e}"
    return f"{v:.{max(0, digits - 1 - math.floor(math.log10(abs(v))))}f}"
