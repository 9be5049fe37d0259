"""From cells to points: seeds combined, sections of what may be compared, the Pareto front.

The seconds of a point are per sample, and the median over its seeds: one run on a busy machine must not decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .cells import label
from .estimates import Combined, combine, loss
from .records import Record

__all__ = ["Difference", "Point", "Section", "current", "difference", "front", "points", "sections"]


@dataclass(frozen=True)
class Point:
    """One setting of one sampler on one problem, all seeds together.

    Attributes:
        nfe: forward passes that a row takes part in, mean over rows.
        denoiser, overhead: seconds per sample, inside the model and outside it.
        fed: positions that the model was fed, per sample.
        cached: bytes of keys and values that were written to caches, per sample.
        records: the records of its cells, by seed.
        conditions: how it was run, apart from the sampler: rows, temperature and so on (see `Section`).
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
    records: list[Record] = field(repr=False)
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def quality(self) -> Combined:
        """The metric that plots use; NaN if nothing is scored."""
        return self.metrics.get(self.primary) or Combined(math.nan, math.nan, math.nan, 0, "lower", None)

    @property
    def seconds(self) -> float:
        """Seconds per sample, inside the denoiser and outside it."""
        return self.denoiser + self.overhead

    @property
    def setting(self) -> str:
        if self.value is None:  # a sampler that has no steps to set
            return "–"
        return f"{self.knob} {self.value:g}" if isinstance(self.value, (int, float)) else f"{self.knob} {self.value}"


def current(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records that count, and notes on those that do not.

    A sampler whose code was changed has records of two codes. On each problem only those of the code that stands last in
    the file count, whether they ended well or not. Records of two versions of this library all count: they are kept
    apart as sections.
    """

    def who(r: Record) -> str:
        settings = r["settings"]
        return repr((r["problem"], r["family"], r["distribution"], r["sampler"], r["library"], r.get("metric"),
                     settings.get("prompts")))  # fmt: skip

    def code(r: Record) -> tuple[Any, ...]:
        return r["version"], r.get("code")

    records = list(records)
    last = {who(r): code(r) for r in records}
    old: dict[str, int] = {}
    for r in records:
        if code(r) != last[who(r)]:
            old[r["sampler"]] = old.get(r["sampler"], 0) + 1
    notes = [f"{name}: {n} cell{'s' * (n > 1)} of earlier code left out" for name, n in old.items()]
    return [r for r in records if code(r) == last[who(r)]], notes


def points(records: Iterable[Record], metric: str | None = None) -> list[Point]:
    """Points of all cells that ended well and whose code is current, in the order of the file.

    Cells become one point only if they differ in nothing but the seed. If one sampler was run under several options in
    one section, the options that differ become part of its name.

    Args:
        metric: what plots use, for a cell that has it; else the cell's own primary one.
    """
    settings: dict[str, dict[int, Record]] = {}
    for r in current(records)[0]:
        if r["status"] != "ok":
            continue
        what = (r["problem"], r["family"], r["distribution"], r["sampler"], r["knob"], r["options"], _conditions(r))
        settings.setdefault(repr((what, r["settings"])), {})[r["seed"]] = r
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
                conditions=_conditions(first),
            )
        )
    return [p for section in sections(made) for p in _told_apart(section.points)]


def _told_apart(made: list[Point]) -> list[Point]:
    """The points of a section; those of one sampler with several options have these in the sampler's name."""
    by: dict[str, list[Point]] = {}
    for p in made:
        by.setdefault(p.sampler, []).append(p)
    names = {}
    for same in by.values():
        options = [{k: v for k, v in p.records[0]["options"].items() if k != p.knob} for p in same]
        differ = [
            k for k in dict.fromkeys(k for o in options for k in o) if len({repr(o[k]) for o in options if k in o}) > 1
        ]
        for p, o in zip(same, options):
            what = ", ".join(f"{k}={o[k]:g}" if isinstance(o[k], float) else f"{k}={o[k]}" for k in differ if k in o)
            names[id(p)] = f"{p.sampler} ({what})" if what else p.sampler
    return [replace(p, sampler=names[id(p)]) for p in made]


# ---------------------------------------------------------------------------------------------- sections

# How a condition reads in a heading: its text, and its text if it is None. Only those that differ must be said.
CONDITIONS: dict[str, tuple[str, str]] = {
    "rows": ("{:,} rows per run", ""),
    "temperature": ("temperature {:g}", "each sampler's own temperature"),
    "block_length": ("blocks of {}", "one block"),
    "gen_length": ("{} positions to fill", "the model's own length"),
    "prompts": ("prompts {}", "no prompts"),
    "metric": ("metric {}", "nothing scored"),
    "higher": ("higher is better: {}", ""),
    "batch": ("batches of {:,} rows", "one batch"),
    "library": ("sampler-zoo {}", ""),
}


def _conditions(r: Record) -> dict[str, Any]:
    settings = {k: v for k, v in r["settings"].items() if k not in ("steps", "cache")}
    own = {k: r.get(k) for k in ("rows", "metric", "higher", "batch", "library")}
    own["higher"] = bool(own["higher"])
    if r["batch"] == r["rows"]:
        own["batch"] = None
    return dict.fromkeys(CONDITIONS) | settings | own


@dataclass(frozen=True)
class Section:
    """What may be compared: points on one problem, of one family, that were all run under the same conditions.

    Attributes:
        apart: the conditions in which it differs from the other sections of its problem and family, as text.
        conditions: all of them, by name: rows, batch, temperature and so on.
    """

    problem: str
    family: str
    apart: list[str]
    conditions: dict[str, Any]
    points: list[Point]

    @property
    def title(self) -> str:
        return ", ".join([self.problem, self.family, *self.apart])

    def say(self, *names: str) -> list[str]:
        """Conditions as text."""
        return [text for name in names if (text := _say(name, self.conditions.get(name)))]

    @property
    def seeds(self) -> str:
        counts = sorted({len(p.records) for p in self.points})
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{many} seed{'s' * (counts[-1] > 1)}"


def _say(name: str, value: Any) -> str:
    text, absent = CONDITIONS.get(name, (name.replace("_", " ") + " {}", f"no {name.replace('_', ' ')}"))
    return absent if value is None else text.format(value)


def sections(made: Iterable[Point]) -> list[Section]:
    """Points by what may be compared; the sections of one problem and family beside each other."""
    by: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for p in made:
        by.setdefault((p.problem, p.family), {}).setdefault(repr(p.conditions), []).append(p)
    found = []
    for (problem, family), groups in by.items():
        each = [group[0].conditions for group in groups.values()]
        differ = [k for k in dict.fromkeys(k for c in each for k in c) if len({repr(c.get(k)) for c in each}) > 1]
        for conditions, group in zip(each, groups.values()):
            apart = [text for k in differ if (text := _say(k, conditions.get(k)))]
            found.append(Section(problem, family, apart, conditions, group))
    return found


def front(made: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The Pareto front, cheapest first: each is better than all cheaper ones, and by more than chance.

    Points are visited from the cheapest to the dearest. A point joins the front if its value is beyond the 95 % interval of
    the last that joined. Without that rule, the luckiest of many samplers that are all as good as exact would seem to be
    worth its price.
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

    The loss is the distance to what exact samples score, if that is known; else the metric, with its sign changed if higher is
    better. Below 0 the found pair is better.
    """

    value: float
    low: float
    high: float


def difference(a: Point, b: Point) -> Difference:
    """The loss of a less the loss of b, seed by seed; both ran on the same seeds."""
    from scipy.stats import t as student

    def losses(p: Point) -> np.ndarray:
        estimates = [r["score"]["estimates"][p.primary] for r in p.records]
        return np.array([loss(e["value"], e["truth"], e["better"]) for e in estimates])

    values = losses(a) - losses(b)  # (seeds,)
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Difference(mean, mean - half, mean + half)
