"""The report of a sweep: table.md, two plots, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import problems
from ..errors import SamplersError
from . import plot
from .collect import Combined, Point, front, groups, points
from .own import OwnModel, is_own
from .sweep import REQUEST, Store, unpack

__all__ = ["best_rows", "columns", "number", "plotted", "table_md", "write_report"]

METRICS = {
    "tv": "total variation distance between the frequencies of the samples and the exact law, invalid samples included",
    "kl": "Kullback-Leibler divergence of the valid samples' frequencies from the exact law, nats",
    "invalid": "share of samples that break a rule",
    "mmd": "squared kernel distance (MMD) between the samples and the exact law",
    "nll": "negative log-likelihood under the exact law, nats a position",
    "entropy": "entropy of the frequencies of tokens, nats: below the truth where a sampler repeats itself",
    "energy": "energy distance to the exact law",
    "bigram_tv": "total variation distance between the frequencies of neighbouring pairs and the exact ones",
}

Column = tuple[str, str, Callable[[Point], Any]]  # header, kind (text | metric | number), value


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


def columns(group: Sequence[Point]) -> list[Column]:
    """The columns of a table: what it is, what it costs, how good it is (the plotted metric first)."""
    metrics = sorted(group[0].metrics, key=lambda m: m != group[0].primary)  # the plotted one first

    def metric(name: str) -> Callable[[Point], Combined | None]:
        return lambda p: p.metrics.get(name)

    return [
        ("sampler", "text", lambda p: p.sampler),
        ("setting", "text", lambda p: p.setting),
        ("NFE a row", "number", lambda p: p.nfe),
        *((m, "metric", metric(m)) for m in metrics),
        ("ms denoiser", "number", lambda p: p.denoiser * 1e3),
        ("ms sampler", "number", lambda p: p.overhead * 1e3),
    ]


def in_order(group: Sequence[Point]) -> list[Point]:
    """Best first by the plotted metric; the cheaper of two equals first; what has no value last."""
    sign = -1 if group[0].quality.better == "higher" else 1
    return sorted(group, key=lambda p: (not math.isfinite(p.quality.value), sign * p.quality.value, p.nfe))


def best_rows(group: Sequence[Point]) -> list[Point]:
    """For a short table: what is on the front, and the best of every sampler; all where nothing is scored."""
    if not group[0].metrics:
        return in_order(group)
    chosen = {id(p) for p in front(group, lambda p: p.nfe)}
    seen = set()
    for p in in_order(group):
        if p.sampler not in seen:
            seen.add(p.sampler)
            chosen.add(id(p))
    return [p for p in in_order(group) if id(p) in chosen]


def _best_of(column: Column, group: Sequence[Point]) -> set[int]:
    """ids of the points that are best in a column; for a metric those nearest to its truth, if it has one."""
    _, kind, value = column
    scored: list[tuple[float, int]] = []
    for p in group:
        v = value(p)
        if kind == "text" or v is None:
            continue
        if isinstance(v, Combined):
            # A likelihood may be too good to be true: what exact samples score is then the aim.
            v = abs(v.value - v.truth) if v.truth is not None else -v.value if v.better == "higher" else v.value
        if math.isfinite(v):
            scored.append((v, id(p)))
    return {i for v, i in scored if v == min(scored)[0]} if scored else set()


def table_md(group: Sequence[Point]) -> str:
    """A Markdown table of all points; • on the Pareto front (by NFE), the best of a column in bold."""
    cols, on = columns(group), {id(p) for p in front(group, lambda p: p.nfe)}
    best = [_best_of(c, group) for c in cols]
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
    truths = [f"{m} {number(e.truth)}" for m, e in group[0].metrics.items() if e.truth is not None]
    if truths:
        lines += ["", f"Exact samples, as many as a cell has: {', '.join(truths)}."]
    return "\n".join(lines)


def write_report(folder: str | Path) -> tuple[Path, list[str]]:
    """Write table.md, pareto_*.png and report.html beside the cells of `folder`.

    Returns:
        (the report, notes for the user). Raises SamplersError where there is nothing to report or it cannot be written.
    """
    folder = Path(folder)
    store = Store(folder, write=False)
    records = list(store.records.values())
    about = json.loads((folder / REQUEST).read_text(encoding="utf-8")) if (folder / REQUEST).exists() else {}
    made = points(records, plotted(about))
    if not made:
        raise SamplersError(f"{store.path} has no cell that ended well: nothing to report")
    notes = list(store.notes)
    page = folder / "report.html"
    parts = [f"## {problem}, {family}\n\n{table_md(group)}\n" for (problem, family), group in groups(made).items()]
    try:
        (folder / "table.md").write_text("\n".join(parts), encoding="utf-8")
        scored = [p for p in made if p.metrics]
        if plot.available():
            if scored:
                plot.write_pngs(scored, folder)
        else:
            notes.append("no plots: matplotlib is not installed (pip install sampler-zoo[bench])")
        page.write_text(_page(made, records, about, notes), encoding="utf-8")
    except OSError as error:
        raise SamplersError(f"the report cannot be written: {error}") from error
    return page, notes


def plotted(about: dict[str, Any]) -> str | None:
    """The metric that the requests behind a sweep asked for."""
    return next((r["metric"] for r in about.get("requests", []) if r.get("metric")), None)


# ---------------------------------------------------------------------------------------------- the page

_CSS = """
:root { --paper: #fdfcf8; --ink: #211f1c; --soft: #6f6a62; --faint: #e2ddd3; --panel: #f5f2ea; --accent: #0068a8;
  --bad: #c8381b; --badpaper: #fbe3da; --good: #1d7a53; --shade: 255, 255, 255; color-scheme: light dark;
  --sans: "Inter", "Helvetica Neue", "Segoe UI", "Liberation Sans", Arial, sans-serif;
  --serif: "Iowan Old Style", "Charter", "Palatino Linotype", "Source Serif 4", Georgia, "DejaVu Serif", serif;
  --mono: "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e9e5dc; --soft: #a19b90; --faint: #33343a;
  --panel: #1f2124; --accent: #6db7ee; --bad: #ff8a6b; --badpaper: #48231a; --good: #69c79b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.55 var(--serif); }
main { max-width: 1120px; margin: 0 auto; padding: 56px 28px 80px; }
h1 { font-weight: 500; font-size: 38px; line-height: 1.12; letter-spacing: -.015em; margin: 0 0 6px; }
.byline { color: var(--soft); font: 13px/1.5 var(--sans); margin: 0 0 26px; }
.lead { max-width: 44em; margin: 0 0 8px; }
h2 { font-weight: 500; font-size: 27px; margin: 64px 0 2px; padding-top: 18px; border-top: 1px solid var(--ink);
  letter-spacing: -.01em; }
h2 small { font: 14px var(--sans); color: var(--soft); letter-spacing: 0; margin-left: .5em; }
h3 { font: 600 13px var(--sans); margin: 34px 0 10px; }
h3 span { font-weight: 400; color: var(--soft); }
p.what { color: var(--soft); margin: 0 0 18px; max-width: 48em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 10px 28px; margin: 20px 0 0; }
.plots svg { width: 100%; height: auto; overflow: visible; display: block; }
.plots svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table.data { border-collapse: collapse; font: 13px/1.35 var(--sans); font-variant-numeric: tabular-nums; width: 100%; }
.data th { font-weight: 500; color: var(--soft); text-align: right; padding: 5px 12px 6px;
  border-bottom: 1px solid var(--soft); white-space: nowrap; vertical-align: bottom; }
.data td { text-align: right; padding: 4px 12px; border-bottom: 1px solid var(--faint); white-space: nowrap; }
.data th.l, .data td.l { text-align: left; }
.data td:first-child, .data th:first-child { padding-left: 2px; width: 14px; color: var(--accent); }
.data .i { color: var(--soft); font-size: 11px; margin-left: .5em; }
.data b { font-weight: 650; box-shadow: inset 0 -0.42em color-mix(in srgb, var(--accent) 24%, transparent); }
.data tr.exact td { font-style: italic; color: var(--soft); }
.key { color: var(--soft); font: 12.5px/1.5 var(--sans); max-width: 62em; margin: 8px 0 0; }
details { margin: 14px 0 0; font-family: var(--sans); font-size: 13px; }
summary { cursor: pointer; color: var(--accent); margin-bottom: 8px; }
.grid { display: grid; gap: 14px 18px; align-items: start; font: 12px/1.35 var(--sans); overflow-x: auto; }
.grid .head { color: var(--soft); border-bottom: 1px solid var(--faint); padding-bottom: 4px; align-self: end; }
.grid .name { font-weight: 600; padding-top: 2px; }
.grid .name small { display: block; font-weight: 400; color: var(--soft); }
.grid figure { margin: 0; }
.grid figcaption { color: var(--soft); font-size: 11px; margin-top: 3px; font-variant-numeric: tabular-nums; }
.none { color: var(--faint); }
.strip { display: flex; flex-wrap: wrap; gap: 4px; }
.strip img { image-rendering: pixelated; display: block; width: 40px; height: 40px; border: 1px solid var(--faint); }
.sudoku { width: 46px; height: 46px; display: block; }
.sudoku text { font: 10px var(--sans); text-anchor: middle; fill: var(--ink); }
.sudoku text.x { fill: var(--bad); font-weight: 700; }
.sudoku rect.x { fill: var(--badpaper); }
.scatter { width: 100%; max-width: 176px; display: block; background: var(--panel); }
pre.sample { font: 11px/1.45 var(--mono); margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.cmd { font: 13px/1.5 var(--mono); background: var(--panel); padding: 12px 16px; overflow-x: auto; margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font: 13px/1.5 var(--sans); margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.note { font: 13px/1.5 var(--sans); border-left: 3px solid var(--bad); padding: 2px 0 2px 12px; margin: 18px 0; }
@media (max-width: 640px) { .plots { grid-template-columns: 1fr; }
  main { padding: 28px 16px; } h1 { font-size: 29px; } }
@media print { body { font-size: 11pt; } h2 { break-after: avoid; } figure, .plots svg { break-inside: avoid; } }
"""


def _palette() -> str:
    light, dark = ("".join(f"--c{i}:{c};" for i, c in enumerate(many)) for many in (plot.COLOURS, plot.DARK))
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def esc(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _page(made: list[Point], records: list[dict[str, Any]], about: dict[str, Any], notes: Sequence[str]) -> str:
    by = groups(made)
    style = plot.styles(made)
    names = sorted({p.sampler for p in made})
    *others, last = dict.fromkeys(p.problem for p in made)
    where = f"{', '.join(others)} and {last}" if others else last
    cells = [r for p in made for r in p.records]
    dates = sorted(r["time"] for r in cells)
    body = [
        f"<h1>{len(names)} sampler{'s' * (len(names) > 1)}, measured on {esc(where)}</h1>",
        f'<p class="byline">{len(cells):,} runs, {sum(r["rows"] for r in cells):,} samples, {esc(dates[-1][:10])}, '
        f"sampler-zoo {esc(cells[-1]['library'])}</p>",
        f'<p class="lead">{_lead(made)}</p>',
    ]
    body += [f'<p class="note">{esc(n)}</p>' for n in notes]
    for number_, ((problem, family), group) in enumerate(by.items()):
        body += _section(problem, family, group, style, f"g{number_}")
    body += _trouble(records)
    body += _colophon(cells, about)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Samplers on {esc(where)}</title><style>{_CSS}{_palette()}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _lead(made: Sequence[Point]) -> str:
    exact = any(not is_own(p.problem) for p in made)
    if not any(p.metrics for p in made):
        return "Forwards and seconds of samplers on a model; nothing was scored."
    truth = (
        "The denoisers here are exact, so every distance from the truth is the sampler’s own doing, "
        "and the dashed line is what exact samples score on average when there are as many of them: no sampler can be "
        "expected below it. "
    )
    higher = any(p.quality.better == "higher" for p in made)
    return (
        f"{truth if exact else ''}Each line is a sampler with ever more forwards of the model; "
        f"{'up' if higher else 'down'} and to the left is "
        "better, and bars are 95 % intervals over all rows and seeds. Ringed points on the grey stair are the Pareto "
        "front: each is better than everything cheaper by more than chance."
    )


def _section(problem: str, family: str, group: list[Point], style: plot.Style, prefix: str) -> list[str]:
    made = None if is_own(problem) else problems.create(problem)
    first = group[0].records[0]
    seeds = max(len(p.records) for p in group)
    facts = [f"{first['rows']:,} samples a run", f"{seeds} seed{'s' * (seeds > 1)}"]
    if (temperature := first["settings"].get("temperature")) is not None:
        facts.append(f"temperature {temperature:g}")
    if first["settings"].get("block_length"):
        facts.append(f"blocks of {first['settings']['block_length']}")
    out = [
        f"<h2>{esc(problem)}<small>{esc(family)} · {' · '.join(facts)}</small></h2>",
        f'<p class="what">{esc(made.summary[:1].upper() + made.summary[1:] if made else OwnModel.summary)}.</p>',
    ]
    if plot.available() and group[0].metrics:
        titles = {"nfe": "Quality against model calls", "seconds": "Quality against time"}
        drawn = [plot.svg(group, cost, style, f"{prefix}{cost}", titles[cost]) for cost in plot.COSTS]
        out.append(f'<div class="plots">{"".join(drawn)}</div>')
    short = best_rows(group)
    title = "The front, and every sampler at its best" if group[0].metrics else "Cheapest first"
    out += [f"<h3>{title}</h3>", _table(group, short)]
    known = "; ".join(f"<b>{esc(m)}</b> {esc(METRICS[m])}" for m in group[0].metrics if m in METRICS)
    marks = (
        " • on the Pareto front by NFE. Marked: the best of a column among all settings; where exact samples are known to "
        "score something, the nearest to that."
    )
    out.append(
        f'<p class="key">{known + ". " if known else ""}Milliseconds are a sample’s, at {first["batch"]:,} rows a batch, '
        f"split into the denoiser and everything else.{marks if group[0].metrics else ''}</p>"
    )
    if len(short) < len(group):
        out.append(f"<details><summary>All {len(group)} settings</summary>{_table(group, in_order(group))}</details>")
    return out + (_pictures(made, family, group) if made else [])


def _table(group: Sequence[Point], rows: Sequence[Point]) -> str:
    cols, on = columns(group), {id(p) for p in front(group, lambda p: p.nfe)}
    best = [_best_of(c, group) for c in cols]
    out = ['<div class="scroll"><table class="data"><thead><tr><th></th>']
    out += [f'<th class="{"l" if c[1] == "text" else ""}">{esc(c[0])}</th>' for c in cols]
    out.append("</tr></thead><tbody>")
    for p in rows:
        out.append(f"<tr><td>{'•' if id(p) in on else ''}</td>")
        for (header, kind, value), winners in zip(cols, best):
            v, interval = value(p), ""
            if isinstance(v, Combined):
                shown = math.isfinite(v.low) and (header == p.primary or len(p.metrics) < 4)  # else it does not fit
                interval = f'<span class="i">{number(v.low)} to {number(v.high)}</span>' if shown else ""
                v = number(v.value)
            text = esc(v) if kind != "number" else number(v)
            text = f"<b>{text}</b>" if id(p) in winners else text
            out.append(f'<td class="{"l" if kind == "text" else ""}">{text}{interval}</td>')
        out.append("</tr>")
    if any(e.truth is not None for e in group[0].metrics.values()):
        out.append('<tr class="exact"><td></td>')
        for header, kind, value in cols:
            v = value(group[0])
            text = (
                "exact samples"
                if header == "sampler"
                else number(v.truth)
                if kind == "metric" and v and v.truth is not None
                else ""
            )
            out.append(f'<td class="{"l" if kind == "text" else ""}">{text}</td>')
        out.append("</tr>")
    return "".join(out) + "</tbody></table></div>"


# ---------------------------------------------------------------------------------------------- pictures


def _budgets(group: Sequence[Point], most: int) -> list[float]:
    """A few budgets for the columns of pictures: of the step counts that were run, spread evenly."""
    asked = sorted({p.value for p in group if p.knob == "steps"}) or sorted({round(p.nfe, 1) for p in group})
    if len(asked) <= most:
        return [float(a) for a in asked]
    return [float(asked[round(i * (len(asked) - 1) / (most - 1))]) for i in range(most)]


def _near(group: Sequence[Point], sampler: str, budget: float) -> Point | None:
    """The sampler's setting for a budget: what was asked to spend it; of an adaptive one, the best that spent about that."""
    own = [p for p in group if p.sampler == sampler]
    exact = [p for p in own if p.knob == "steps" and p.value == budget]
    if exact:
        return exact[0]
    close = [p for p in own if p.knob != "steps" and 0.7 * budget <= p.nfe <= 1.05 * budget]
    sign = -1 if close and close[0].quality.better == "higher" else 1
    return min(close, key=lambda p: sign * p.quality.value, default=None)


def _pictures(problem: problems.Problem, family: str, group: list[Point]) -> list[str]:
    """Small multiples: a row a sampler, a column a budget, the truth on top."""
    wide = not _has_pictures(problem, family)
    budgets = _budgets(group, 2 if wide else 4)
    truth = problem.sample_truth(512 if _plane(problem, family) else 8, 7, family)
    if wide and not _text(problem, truth):
        return []
    names = list(dict.fromkeys(p.sampler for p in in_order(group)))
    out = [
        "<h3>Samples <span>of the first seed, the first rows as they came"
        + (" · cells in red repeat a digit in their row, column or box" if problem.name == "sudoku4" else "")
        + (" · grey: exact samples" if _plane(problem, family) else "")
        + "</span></h3>",
        f'<div class="grid" style="grid-template-columns: 118px repeat({len(budgets)}, minmax(0, 1fr))">',
        '<div class="head"></div>',
        *(f'<div class="head">{b:g} forward{"s" * (b != 1)}</div>' for b in budgets),
        '<div class="name">exact<small>the law itself</small></div>',
        f'<figure style="grid-column: 2 / -1">{_show(problem, family, truth, truth, 8)}</figure>',
    ]
    for name in names:
        out.append(f'<div class="name">{esc(name)}</div>')
        for b in budgets:
            p = _near(group, name, b)
            packed = p.records[0].get("x") if p else None
            if p is None or packed is None:
                out.append('<div class="none">–</div>')
                continue
            caption = f"{p.primary} {number(p.quality.value)}"
            if p.knob != "steps" or abs(p.nfe - b) > 0.05:
                caption += f" · {number(p.nfe)} NFE"
            if p.knob != "steps":
                caption += f" · {esc(p.setting)}"
            out.append(
                f"<figure>{_show(problem, family, unpack(packed), truth)}<figcaption>{caption}</figcaption></figure>"
            )
    return [*out, "</div>"]


def _plane(problem: problems.Problem, family: str) -> bool:
    return family == "gaussian" and getattr(problem, "dim", None) == 2


def _has_pictures(problem: problems.Problem, family: str) -> bool:
    return _plane(problem, family) or bool(problem.picture(problem.sample_truth(2, 7, family), 1))


def _text(problem: problems.Problem, x: Tensor) -> bool:
    return not x.is_floating_point()


def _show(problem: problems.Problem, family: str, x: Tensor, truth: Tensor, k: int = 0) -> str:
    """The first rows; k of them, or as many as stand in a column."""
    if _plane(problem, family):
        return _scatter(x, truth)
    if problem.name == "sudoku4":
        decode = getattr(problem, "decode", lambda v: v)
        return f'<div class="strip">{"".join(_sudoku(row) for row in decode(x)[: k or 4].tolist())}</div>'
    pictures = problem.picture(x, k or 5)
    if pictures:
        return f'<div class="strip">{"".join(_img(p) for p in pictures)}</div>'
    return f'<pre class="sample">{esc(chr(10).join(problem.render(row) for row in x[:2]))}</pre>'


def conflicts(grid: Sequence[int]) -> set[int]:
    """Cells of a 4 x 4 grid whose digit stands again in their row, column or 2 x 2 box."""
    units: Iterable[list[int]] = [
        *([4 * i + j for j in range(4)] for i in range(4)),
        *([4 * j + i for j in range(4)] for i in range(4)),
        *([8 * r + 2 * c + k for k in (0, 1, 4, 5)] for r in range(2) for c in range(2)),
    ]
    return {a for unit in units for a in unit for b in unit if a != b and grid[a] == grid[b]}


def _sudoku(grid: list[int]) -> str:
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


def _scatter(x: Tensor, truth: Tensor) -> str:
    low, high = truth.amin(0), truth.amax(0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.56

    def path(points: Tensor) -> str:
        at = ((points[:512] - middle) / half * 100).clamp(-99, 99).tolist()
        return "".join(f"M{a:.0f} {-b:.0f}h0" for a, b in at)

    strokes = [f'<path d="{path(truth)}" stroke="var(--soft)" opacity=".35"/>']
    if x is not truth:
        strokes.append(f'<path d="{path(x)}" stroke="var(--accent)" opacity=".75"/>')
    return (
        '<svg class="scatter" viewBox="-100 -100 200 200" role="img" aria-label="points of the plane" fill="none" '
        f'stroke-width="3.4" stroke-linecap="round">{"".join(strokes)}</svg>'
    )


def _img(pixels: np.ndarray) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels, (H, W) grey or (H, W, 3)."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()  # each line: filter 0, then its bytes

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------- the end of the page


def _trouble(records: list[dict[str, Any]]) -> list[str]:
    bad = [r for r in records if r["status"] != "ok"]
    if not bad:
        return []
    out = ["<h2>What did not run</h2>", '<div class="scroll"><table class="data"><tbody>']
    seen = set()
    for r in bad:
        line = (r["problem"], f"{r['family']}/{r['sampler']}", f"{r['knob']} {r['value']}", r["status"], r["error"])
        if line not in seen:
            seen.add(line)
            out.append("<tr><td></td>" + "".join(f'<td class="l">{esc(v)}</td>' for v in line) + "</tr>")
    return [*out, "</tbody></table></div>"]


def _colophon(cells: list[dict[str, Any]], about: dict[str, Any]) -> list[str]:
    out = ["<h2>How this was made</h2>"]
    if about.get("command"):
        out += ["<h3>Command</h3>", f'<pre class="cmd">{esc(about["command"])}</pre>']
    machines = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in cells}
    for m in machines.values():
        native = f"native kernels, {m['isa']}" if m["native"] else "torch twins (no native kernels)"
        facts = {
            "Processor": f"{m['cpu']}, {m['threads']} thread{'s' * (m['threads'] != 1)}",
            "Device": m["device"] + (f" ({m['gpu']})" if m.get("gpu") and m["device"] != "cpu" else ""),
            "Ops": native,
            "Software": f"torch {m['torch']}, Python {m['python']}, {m['system']}",
        }
        out.append(
            "<h3>Machine</h3><dl>" + "".join(f"<dt>{k}</dt><dd>{esc(v)}</dd>" for k, v in facts.items()) + "</dl>"
        )
    versions: dict[str, set[str]] = {}
    for r in cells:
        versions.setdefault(f"{r['distribution']} {r['version']}", set()).add(r["sampler"])
    out.append("<h3>Samplers</h3><dl>")
    out += [f"<dt>{esc(d)}</dt><dd>{esc(', '.join(sorted(s)))}</dd>" for d, s in sorted(versions.items())]
    return [*out, "</dl>"]
