"""The columns and rows of a sweep's tables, for Markdown, HTML and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .collect import Point, front
from .estimates import Combined, number

__all__ = ["METRICS", "Column", "aim", "best_in", "best_rows", "columns", "in_order", "table_md"]

METRICS = {
    "tv": "total variation distance between the frequencies of the samples and the exact distribution, invalid samples included",
    "kl": "Kullback-Leibler divergence of the valid samples' frequencies from the exact distribution, nats",
    "invalid": "share of samples that break a rule",
    "mmd": "squared kernel distance (MMD) between the samples and the exact distribution",
    "nll": "negative log-likelihood under the exact distribution, nats per position",
    "entropy": "entropy of the frequencies of tokens, nats: below that of exact samples if a sampler repeats itself",
    "energy": "energy distance to the exact distribution",
    "bigram_tv": "total variation distance between the frequencies of neighbouring pairs and the exact ones",
}

Column = tuple[str, str, Callable[[Point], Any]]  # header, kind (text | metric | number), value


def columns(group: Sequence[Point]) -> list[Column]:
    """The columns of a table: what it is, what it costs, how good it is (the plotted metric first)."""
    metrics = sorted(group[0].metrics, key=lambda m: m != group[0].primary)  # the plotted one first

    cached = any(p.cached for p in group)

    def metric(name: str) -> Callable[[Point], Combined | None]:
        return lambda p: p.metrics.get(name)

    return [
        ("sampler", "text", lambda p: p.sampler),
        ("setting", "text", lambda p: p.setting),
        ("NFE per row", "number", lambda p: p.nfe),
        *((("rows evaluated", "number", _rows),) if any(_rows(p) > 1.001 * p.nfe for p in group) else ()),
        *((("positions fed", "number", lambda p: p.fed),) if not metrics or cached else ()),
        *((("MB cached", "number", lambda p: p.cached / 1e6),) if cached else ()),
        *((("tokens per pass", "number", _per_pass),) if any("tokens" in p.records[0] for p in group) else ()),
        *((m, "metric", metric(m)) for m in metrics),
        ("ms denoiser", "number", lambda p: p.denoiser * 1e3),
        ("ms sampler", "number", lambda p: p.overhead * 1e3),
    ]


def _rows(p: Point) -> float:
    """Row evaluations per sample: more than its forward passes if they hold several copies of a row; NaN if no cell says so."""
    said = [r["nfe"]["row_evals"] / r["rows"] for r in p.records if "nfe" in r and r.get("rows")]
    return statistics.fmean(said) if said else math.nan


def _per_pass(p: Point) -> float:
    """Tokens written per forward pass of a row, where the cells say how many they wrote; else NaN."""
    said = [r["tokens"]["per_pass"] for r in p.records if "tokens" in r]
    return statistics.fmean(said) if said else math.nan


def in_order(group: Sequence[Point]) -> list[Point]:
    """Best first by the plotted metric; the cheaper of two equals first; what has no value last."""
    sign = -1 if group[0].quality.better == "higher" else 1
    return sorted(group, key=lambda p: (not math.isfinite(p.quality.value), sign * p.quality.value, p.nfe))


def best_rows(group: Sequence[Point]) -> list[Point]:
    """For a short table: what is on the front, and the best of every sampler; all points if nothing is scored."""
    if not group[0].metrics:
        return in_order(group)
    chosen = {id(p) for p in front(group, lambda p: p.nfe)}
    seen = set()
    for p in in_order(group):
        if p.sampler not in seen:
            seen.add(p.sampler)
            chosen.add(id(p))
    return [p for p in in_order(group) if id(p) in chosen]


def aim(metric: str, group: Sequence[Point]) -> float | None:
    """What exact samples score, as many as a point has; None if the metric has no such number.

    The divergence of the valid samples has another number for each count of them, and exact samples are all valid: so the
    number of the point that comes nearest to that is taken.
    """
    found = [m for p in group if (m := p.metrics.get(metric)) is not None and m.truth is not None]
    if not found:
        return None
    return (max if found[0].better == "higher" else min)(m.truth for m in found if m.truth is not None)


def best_in(column: Column, group: Sequence[Point]) -> set[int]:
    """ids of the points that are best in a column; for a metric those nearest to its truth, if it has one."""
    header, kind, value = column
    truth = aim(header, group) if kind == "metric" else None
    scored: list[tuple[float, int]] = []
    for p in group:
        v = value(p)
        if kind == "text" or v is None:
            continue
        if isinstance(v, Combined):
            # A likelihood may be too good to be true: what exact samples score is then the aim.
            v = abs(v.value - truth) if truth is not None else -v.value if v.better == "higher" else v.value
        if math.isfinite(v):
            scored.append((v, id(p)))
    return {i for v, i in scored if v == min(scored)[0]} if scored else set()


def table_md(group: Sequence[Point]) -> str:
    """A Markdown table of all points; • on the Pareto front (by NFE), the best of a column in bold."""
    cols, on = columns(group), {id(p) for p in front(group, lambda p: p.nfe)}
    best = [best_in(c, group) for c in cols]
    lines = [
        "| | " + " | ".join(c[0] for c in cols) + " |",
        "|---|" + "|".join("---" if c[1] == "text" else "--:" for c in cols) + "|",
    ]
    for p in in_order(group):
        cells = []
        for (_, kind, value), winners in zip(cols, best):
            v = value(p)
            text = (
                v
                if kind == "text"
                else number(v)
                if not isinstance(v, Combined)
                else f"{number(v.value)} [{number(v.low)}, {number(v.high)}]"
            )
            cells.append(f"**{text}**" if id(p) in winners else str(text) if v is not None else "–")
        lines.append(f"| {'•' if id(p) in on else ''} | " + " | ".join(cells) + " |")
    truths = [f"{m} {number(truth)}" for m in group[0].metrics if (truth := aim(m, group)) is not None]
    if truths:
        lines += ["", f"As many exact samples score: {', '.join(truths)}."]
    return "\n".join(lines)
