"""What has been measured of each sampler, for the pages: groups of points, the ranking at a budget, tables and plots.

bench/results/zoo.json (bench/zoo.py) has the token samplers at temperature 1, bench/results/choose.json (bench/choose.py) the
rest. Everything here is made from those two files; nothing is run. docs/_static/choose.js ranks in the reader's browser by
the same rule as `ranking`, which tests/test_site.py holds it to.
"""

from __future__ import annotations

import functools
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
Point = dict[str, Any]
Group = dict[str, Any]

PROBLEMS = {
    "sudoku4": "hard constraints between all cells: 4 × 4 sudoku, 16 tokens",
    "digits": "soft dependence between all pixels: handwritten digits, 64 tokens",
    "digits reals": "handwritten digits as 64 real numbers",
    "text": "dependence between neighbours: 64 characters",
    "mixture": "a mixture of Gaussians in two dimensions",
}
HEATED = ("masked", "uniform")  # the families whose runs take a temperature
# The metrics that samplers are ranked by. Lower is better for all of them.
METRICS = {
    "tv": (
        "total variation",
        "Half the sum, over all valid grids, of the distance between how often a grid was drawn and how often it should be. "
        "Invalid grids count in full. 0 is perfect, 1 is disjoint; a finite number of exact samples is not at 0, by chance.",
    ),
    "invalid": (
        "share of invalid grids",
        "The share of grids that break a rule of sudoku. It says nothing of variety.",
    ),
    "mmd": (
        "squared kernel distance",
        "The squared maximum mean discrepancy between the samples and the exact distribution of the digits. A sampler that draws "
        "one digit again and again is far away, even if each of its digits looks right.",
    ),
    "bigram_tv": (
        "total variation of neighbouring pairs",
        "Half the sum, over all pairs of characters, of the distance between how often a pair stands side by side and how often "
        "it should. 0 is perfect, 1 is disjoint.",
    ),
    "energy": (
        "energy distance",
        "The energy distance between the samples and the exact distribution: 0 if and only if both are the same.",
    ),
}


# ---------------------------------------------------------------------------------------------- reading


@functools.cache
def groups() -> tuple[Group, ...]:
    """Groups of points that may be compared: one problem, one kind of data, one temperature, one number of samples.

    Each has id, problem, title, temperature (None for real numbers), families, rows, seeds, machine, primary, metrics
    {name: exact samples' value or None}, budgets, and points. A point has the keys of those in bench/results/zoo.json, and
    distribution; seconds are per sample, None if the machine was not idle; a metric is [value, low, high] of a 95 % interval.
    """
    zoo = json.loads((RESULTS / "zoo.json").read_text(encoding="utf-8"))
    new = json.loads((RESULTS / "choose.json").read_text(encoding="utf-8"))
    found: dict[str, Group] = {}
    for one in new["groups"]:
        key = _key(one["problem"], one["temperature"])
        found[key] = one | {"id": key, "metrics": {m: about["exact"] for m, about in one["metrics"].items()}}
    for problem, about in new["zoo"].items():
        key = _key(problem, 1.0)
        points = [{"distribution": "sampler-zoo"} | p for p in zoo[problem]]
        more = found[key]["points"] if key in found else []
        metrics = {m: e["exact"] for m, e in about.items() if m != "primary"}
        found[key] = {
            "id": key,
            "problem": problem,
            "temperature": 1.0,
            "rows": points[0]["rows"],
            "seeds": 1,
            "machine": zoo["machine"],
            "primary": about["primary"],
            "metrics": metrics,
            "points": points + [p | {"seconds": None} for p in more],
        }
    order = list(PROBLEMS)
    made = sorted(found.values(), key=lambda g: (order.index(_data(g["id"])), -(g["temperature"] or 0)))
    return tuple(_completed(g) for g in made)


def _key(problem: str, temperature: float | None) -> str:
    if temperature is not None:
        return f"{problem} {temperature:g}"
    return f"{problem} reals" if problem == "digits" else problem


def _data(key: str) -> str:
    """The key of PROBLEMS of a group's id."""
    return max((p for p in PROBLEMS if key == p or key.startswith(p + " ")), key=len)


def _completed(group: Group) -> Group:
    metrics = {m: exact for m, exact in group["metrics"].items() if m in METRICS}
    keep = ("family", "sampler", "distribution", "knob", "value", "nfe", "seconds", *metrics)
    points = [{k: p[k] for k in keep} for p in group["points"]]
    points = [p for p in points if all(isinstance(v, (int, float)) for m in metrics for v in p[m])]
    # At another temperature than 1 samples are not meant to follow the model's distribution; whether they are valid still counts.
    primary = "invalid" if group["temperature"] not in (None, 1.0) and "invalid" in metrics else group["primary"]
    return group | {
        "data": _data(group["id"]),
        "primary": primary,
        "title": PROBLEMS[_data(group["id"])],
        "families": sorted({p["family"] for p in points}),
        "metrics": metrics,
        "points": points,
        "budgets": sorted({p["value"] for p in points if p["knob"] == "steps" and p["value"] is not None}),
    }


def of_sampler(sampler: str, distribution: str) -> list[Group]:
    """The groups that have points of a sampler: at each problem the highest temperature, which is the model's own."""
    found: dict[str, Group] = {}
    for group in groups():
        if any(p["sampler"] == sampler and p["distribution"] == distribution for p in group["points"]):
            found.setdefault(group["data"], group)
    return list(found.values())


# ---------------------------------------------------------------------------------------------- ranking


def ranking(points: Sequence[Point], metric: str, budget: float, cost: str = "nfe") -> list[tuple[int, Point]]:
    """(rank, point) of the best setting of each sampler that costs at most the budget, best first.

    The rank is one more than the number of samplers whose whole 95 % interval lies below: those whose intervals overlap that
    of the first are all first. Among equals the lower value stands first, then the lower cost, then the name.
    """
    best: dict[tuple[str, str], Point] = {}
    for p in points:
        if p[cost] is None or p[cost] > budget * 1.005:  # counts of passes are means over rows
            continue
        who = (p["distribution"], p["sampler"])
        if who not in best or (p[metric][0], p[cost]) < (best[who][metric][0], best[who][cost]):
            best[who] = p
    ranked = [(1 + sum(q[metric][2] < p[metric][1] for q in best.values()), p) for p in best.values()]
    return sorted(ranked, key=lambda r: (r[0], r[1][metric][0], r[1][cost], r[1]["sampler"]))


def best_table(group: Group) -> list[str]:
    """A table of the best sampler at each budget, and of those that cannot be told from it."""
    metric = group["primary"]
    exact = group["metrics"][metric]
    head = METRICS[metric][0] + ("" if exact is None else f" (exact samples: {exact:.3g})")
    lines = [f"| forward passes, at most | best | {head} | as good, as far as one can tell |", "|---|---|---|---|"]
    for budget in group["budgets"]:
        ranked = ranking(group["points"], metric, budget)
        if not ranked:
            continue
        (_, first), *others = ranked
        value, low, high = first[metric]
        ties = [f"`{p['sampler']}`" for rank, p in others if rank == 1]
        many = f", and {len(ties) - 8} more" if len(ties) > 8 else ""
        how = "" if first["knob"] == "steps" else f", {first['knob']} {first['value']:g}"
        lines.append(
            f"| {budget} | `{first['sampler']}` ({first['nfe']:.3g} passes{how}) | {value:.3g} <sub>{low:.3g}–{high:.3g}</sub> | "
            f"{', '.join(ties[:8]) + many or 'none'} |"
        )
    return lines


def data() -> dict[str, Any]:
    """What the page "Choose a sampler" reads: plain numbers and texts."""
    keys = (
        "id",
        "problem",
        "data",
        "title",
        "temperature",
        "families",
        "rows",
        "seeds",
        "primary",
        "metrics",
        "budgets",
        "points",
    )
    return {
        "metrics": {m: {"label": label, "meaning": meaning} for m, (label, meaning) in METRICS.items()},
        "groups": [{k: g[k] for k in keys} | {"cpu": g["machine"]["cpu"], "heated": HEATED} for g in groups()],
    }


# ---------------------------------------------------------------------------------------------- plots

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 52, 14, 34, 40


def scale(values: Sequence[float], start: float, end: float, log: bool) -> Any:
    """A function from a number to a place between start and end."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda v: start + (end - start) * ((math.log(v) if log else v) - low) / span


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Few round numbers from low to high."""
    if log:
        many = high / low > 100
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**k for k in powers for m in ((1,) if many else (1, 2, 5)) if low <= m * 10.0**k <= high]
        if len(found) >= 2:
            return found
    step = 10.0 ** math.floor(math.log10((high - low) or 1.0))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if (high - low) / s <= 6)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def plot(group: Group, sampler: str, distribution: str, family: str) -> str:
    """Quality against forward passes of one sampler, the others of its family in grey: an <svg> for a page with site.css."""
    metric, exact = group["primary"], group["metrics"][group["primary"]]
    family_points = [p for p in group["points"] if p["family"] == family]
    own = sorted((p for p in family_points if _is(p, sampler, distribution)), key=lambda p: p["nfe"])
    shown = [p[metric][0] for p in family_points] + [v for p in own for v in p[metric][1:]]
    positive = [v for v in shown if v > 0]
    log = min(p[metric][0] for p in family_points) > 0 and max(shown) / min(positive) > 6
    floor = min(p[metric][0] for p in family_points) / 2 if log else min(0.0, *shown)
    values = [max(v, floor) for v in shown] + ([exact] if exact is not None and (exact > 0 or not log) else [])
    x = scale([p["nfe"] for p in family_points], LEFT + 8, WIDTH - RIGHT, log=True)
    y = scale([*values, *([] if log else [0.0])], HEIGHT - BOTTOM, TOP, log)

    def place(p: Point, which: int = 0) -> str:
        return f"{x(p['nfe']):.1f},{y(max(p[metric][which], floor)):.1f}"

    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(sampler)} on {group["data"]}: '
        f'{METRICS[metric][0]} against forward passes, beside the other {family} samplers">',
        f'<text class="title" x="0" y="13">{group["data"]}</text>',
        f'<text class="soft" x="0" y="27">{METRICS[metric][0]}, lower is better</text>',
        f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">forward passes per row</text>',
    ]
    for v in ticks(min(values), max(values), log):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>')
    costs = [p["nfe"] for p in family_points]
    for v in [b for b in group["budgets"] if min(costs) <= b <= max(costs)]:
        parts.append(f'<text class="soft" x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{v:g}</text>')
    if exact is not None and (exact > 0 or not log):
        parts.append(f'<line class="exact" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(exact):.1f}" y2="{y(exact):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT + 4}" y="{y(exact) - 4:.1f}">exact samples</text>')
    for other in sorted({p["sampler"] for p in family_points} - {sampler}):
        line = sorted((p for p in family_points if p["sampler"] == other), key=lambda p: p["nfe"])
        joined = " ".join(place(p) for p in line)
        parts.append(f'<polyline class="other" points="{joined}"><title>{html.escape(other)}</title></polyline>')
    for p in own:
        at, low, high = (place(p, i).split(",") for i in range(3))
        parts.append(f'<line class="bar" x1="{at[0]}" x2="{at[0]}" y1="{low[1]}" y2="{high[1]}"/>')
    parts.append(f'<polyline class="own" points="{" ".join(place(p) for p in own)}"/>')
    for p in own:
        cx, cy = place(p).split(",")
        value, low, high = p[metric]
        what = f"{p['nfe']:.3g} passes ({p['knob']} {p['value']}): {value:.3g}, 95 % interval {low:.3g} to {high:.3g}"
        parts.append(f'<circle class="own" cx="{cx}" cy="{cy}" r="3.5"><title>{what}</title></circle>')
    return "".join([*parts, "</svg>"])


def _is(p: Point, sampler: str, distribution: str) -> bool:
    return p["sampler"] == sampler and p["distribution"] == distribution
