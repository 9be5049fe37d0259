"""From cells to points: seeds combined, intervals kept honest, the Pareto front.

Rows are independent across seeds as within one, since all randomness is keyed by (seed, row). Seeds of one setting are
therefore so many more rows, and are combined by metric:
    a share (its interval is Wilson's) is pooled: counts are added, and Wilson's interval made anew;
    anything else is the mean of the seeds' values. The halves of the seeds' 95 % intervals are added in quadrature and
    divided by the number of seeds, the usual error of a mean of independent estimates; the result is never wider
    than the seeds' own intervals together, which keeps bounds such as 0 in force.
The bias of a metric at finite n (`truth`: what as many exact samples score) is that of one seed's rows and is not made
smaller by more seeds: it is why a perfect sampler's total variation is not 0, and why plots draw it.
Seconds are the median of the seeds, a sample: a machine that was busy once should not decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cells import label

__all__ = [
    "Combined",
    "Difference",
    "Point",
    "combine",
    "difference",
    "front",
    "groups",
    "loss",
    "number",
    "points",
]


@dataclass(frozen=True)
class Combined:
    """A metric over seeds; NaN where a seed has no value (a divergence of nothing)."""

    value: float
    low: float
    high: float
    n: int
    better: str
    truth: float | None


@dataclass(frozen=True)
class Point:
    """One setting of one sampler on one problem, all seeds together.

    Attributes:
        nfe: mean forwards that a row takes part in.
        denoiser, overhead: seconds a sample, in the model and out of it.
        fed: positions that the model was fed, a sample.
        cached: bytes of keys and values that were written, a sample.
        records: the cells behind it, by seed.
    """

    problem: str
    family: str
    sampler: str
    knob: str
    value: Any
    primary: str
    metrics: dict[str, Combined]
    nfe: float
    denoiser: float
    overhead: float
    fed: float
    cached: float
    records: list[dict[str, Any]] = field(repr=False)

    @property
    def quality(self) -> Combined:
        """The metric that plots use; NaN where nothing is scored."""
        return self.metrics.get(self.primary) or Combined(math.nan, math.nan, math.nan, 0, "lower", None)

    @property
    def seconds(self) -> float:
        """Seconds a sample, in the denoiser and out of it."""
        return self.denoiser + self.overhead

    @property
    def setting(self) -> str:
        return f"{self.knob} {self.value:g}" if isinstance(self.value, (int, float)) else f"{self.knob} {self.value}"


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


def points(records: Iterable[dict[str, Any]], metric: str | None = None) -> list[Point]:
    """Points of all cells that ended well, in the order of the file; of two versions of a cell the later one counts.

    metric: what plots use, where a cell has it; else the cell's own primary one.
    """
    settings: dict[str, dict[int, dict[str, Any]]] = {}
    for r in records:
        if r["status"] != "ok":
            continue
        what = (r["problem"], r["family"], r["sampler"], r["knob"], r["options"], r["settings"], r["rows"])
        settings.setdefault(repr(what), {})[r["seed"]] = r
    made = []
    for by_seed in settings.values():
        cells = [by_seed[s] for s in sorted(by_seed)]
        first = cells[0]
        names = first["score"]["estimates"]
        made.append(
            Point(
                problem=first["problem"],
                family=first["family"],
                sampler=label(first["sampler"], first["settings"]),
                knob=first["knob"],
                value=first["value"],
                primary=metric if metric is not None and metric in names else first["score"]["primary"],
                metrics={m: combine([c["score"]["estimates"][m] for c in cells]) for m in names},
                nfe=statistics.fmean(c["nfe"]["per_row"] for c in cells),
                denoiser=statistics.median(c["seconds"]["denoiser"] / c["rows"] for c in cells),
                overhead=statistics.median(c["seconds"]["sampler"] / c["rows"] for c in cells),
                fed=statistics.fmean(c["nfe"]["token_evals"] / c["rows"] for c in cells),
                cached=statistics.fmean(c["nfe"].get("cache_bytes", 0) / c["rows"] for c in cells),
                records=cells,
            )
        )
    return made


def groups(made: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points by (problem, family): what may be compared."""
    by: dict[tuple[str, str], list[Point]] = {}
    for p in made:
        by.setdefault((p.problem, p.family), []).append(p)
    return by


def front(made: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The Pareto front, cheapest first: each is better than all cheaper ones, and by more than chance.

    Walking from cheap to dear, a point joins when its value is beyond the 95 % interval of the last that joined.
    Without that, the luckiest of many samplers that are all as good as exact would seem to be worth its price.
    """
    found: list[Point] = []
    usable = [p for p in made if math.isfinite(p.quality.value)]
    sign = -1 if usable and usable[0].quality.better == "higher" else 1
    for p in sorted(usable, key=lambda p: (cost(p), sign * p.quality.value)):
        if not found:
            found.append(p)
            continue
        best = found[-1].quality
        bound = best.low if sign > 0 else best.high
        if sign * p.quality.value < sign * (bound if math.isfinite(bound) else best.value):
            found.append(p)
    return found


@dataclass(frozen=True)
class Difference:
    """Loss of the found pair less that of a reference on the same seeds; `low`, `high` its 95 % interval, Student's.

    The loss is the distance to what exact samples score, where that is known; else the metric, or less it where more is
    better. Below 0 the found pair is better.
    """

    value: float
    low: float
    high: float


def loss(value: float | None, truth: float | None, better: str) -> float:
    if value is None:
        return math.nan
    # A likelihood can be too good to be true: what exact samples score is then the aim.
    return abs(value - truth) if truth is not None else -value if better == "higher" else value


def difference(a: Point, b: Point) -> Difference:
    """Of a less b, seed by seed: both ran on the same ones."""
    from scipy.stats import t as student

    def losses(p: Point) -> np.ndarray:
        estimates = [r["score"]["estimates"][p.primary] for r in p.records]
        return np.array([loss(e["value"], e["truth"], e["better"]) for e in estimates])

    values = losses(a) - losses(b)  # (seeds,)
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Difference(mean, mean - half, mean + half)


def number(v: float | None, digits: int = 3) -> str:
    """A number in a table: three significant digits, no exponent where one can be avoided."""
    if v is None or not math.isfinite(v):
        return "–"
    if v == 0:
        return "0"
    if abs(v) >= 10 ** (digits - 1):
        return f"{v:,.0f}"
    if abs(v) < 1e-4:
        return f"{v:.1e}"
    return f"{v:.{max(0, digits - 1 - math.floor(math.log10(abs(v))))}f}"
