"""The report of a sweep: table.md, two plots, and one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import problems
from ..errors import SamplersError
from . import plot
from .by_kind import by_kind_md
from .collect import Point, Section, current, front, points, sections
from .estimates import Combined, number
from .records import unpack
from .store import Store, read_about, write_whole, writing
from .tables import METRICS, aim, best_in, best_rows, columns, in_order, table_md
from .user_model import UserModel, is_user_model

__all__ = ["esc", "page_html", "plotted", "section_html", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: str | Path) -> tuple[Path, list[str]]:
    """Write table.md, pareto_*.png and report.html beside the cells of `folder`.

    Returns:
        (the report, notes for the user).

    Raises:
        SamplersError: there is nothing to report, or it cannot be written.
    """
    folder = Path(folder)
    store = Store(folder, write=False)
    records, old = current(store.records.values())
    about = read_about(folder)
    made = points(records, plotted(about))
    if not made:
        raise SamplersError(f"{store.path} has no cell that ended well: nothing to report")
    notes = [*store.notes, *old]
    if len({json.dumps(r["machine"], sort_keys=True) for p in made for r in p.records}) > 1:
        notes.append("cells of different machines or threads are here: their seconds cannot be compared")
    page = folder / "report.html"
    with writing(folder):
        parts = [f"## {s.title}\n\n{', '.join(_facts(s))}\n\n{table_md(s.points)}\n" for s in sections(made)]
        write_whole(folder / "table.md", "\n".join([*by_kind_md(made), *parts]))
        if not plot.available():
            notes.append("no plots: matplotlib is not installed (pip install sampler-zoo[bench])")
        elif scored := [p for p in made if p.metrics]:
            plot.write_pngs(scored, folder)
        write_whole(page, _page(made, records, about, notes))
    return page, notes


def plotted(about: dict[str, Any]) -> str | None:
    """The metric that the requests behind a sweep asked for."""
    return next((r["metric"] for r in about.get("requests", []) if r.get("metric")), None)


# ---------------------------------------------------------------------------------------------- the page


def _palette() -> str:
    light, dark = ("".join(f"--c{i}:{c};" for i, c in enumerate(many)) for many in (plot.COLOURS, plot.DARK))
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def esc(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _page(made: list[Point], records: list[dict[str, Any]], about: dict[str, Any], notes: Sequence[str]) -> str:
    style = plot.styles(made)
    names = sorted({p.sampler for p in made})
    *others, last = dict.fromkeys(p.problem for p in made)
    where = f"{', '.join(others)} and {last}" if others else last
    cells = [r for p in made for r in p.records]
    dates = sorted(r["time"] for r in cells)
    body = [
        f"<h1>{len(names)} sampler{'s' * (len(names) > 1)}, measured on {esc(where)}</h1>",
        f'<p class="byline">{len(cells):,} runs, {sum(r["rows"] for r in cells):,} samples, {esc(dates[-1][:10])}, '
        f"sampler-zoo {esc(' and '.join(sorted({r['library'] for r in cells})))}</p>",
        f'<p class="lead">{_lead(made)}</p>',
    ]
    body += [f'<p class="note">{esc(n)}</p>' for n in notes]
    for i, section in enumerate(sections(made)):
        body += section_html(section, style, f"g{i}")
    body += _trouble(records)
    body += _colophon(cells, about)
    return page_html(f"Samplers on {where}", body)


def page_html(title: str, body: Sequence[str]) -> str:
    """A whole page that needs nothing else, light or dark as the reader's system is. body: lines of HTML."""
    page = string.Template((TEMPLATES / "report.html").read_text(encoding="utf-8"))
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return page.substitute(title=esc(title), style=css + _palette(), body="\n".join(body))


def _lead(made: Sequence[Point]) -> str:
    exact = any(not is_user_model(p.problem) for p in made)
    if not any(p.metrics for p in made):
        return "Forward passes and seconds of samplers on a model; nothing was scored."
    truth = (
        "The denoisers here are exact, so every distance from the exact distribution is caused by the sampler "
        "(and by the temperature, if it is not 1). The dashed line is what equally many exact samples score on average: no "
        "sampler can be expected below it. "
    )
    higher = any(p.quality.better == "higher" for p in made)
    return (
        f"{truth if exact else ''}Each line is a sampler with more and more forward passes of the model; "
        f"{'up' if higher else 'down'} and to the left is "
        "better, and bars are 95 % intervals over all rows and seeds. Ringed points on the grey stair are the Pareto "
        "front: each is better than everything cheaper by more than chance."
    )


def _facts(section: Section) -> list[str]:
    """How the points of a section were run."""
    said = [name for name in ("temperature", "block_length", "gen_length") if section.conditions.get(name) is not None]
    return [*section.say("rows"), section.seeds, *section.say(*said)]


def section_html(section: Section, style: plot.Style, prefix: str) -> list[str]:
    """Plots, table and pictures of the points of a section, as lines of HTML.

    Args:
        prefix: what the ids of the plots begin with; each section of a page needs another one.
    """
    group, family = section.points, section.family
    made = None if is_user_model(section.problem) else problems.create(section.problem)
    facts = [family, *dict.fromkeys([*_facts(section), *section.apart])]
    summary = made.summary if made else UserModel.summary
    out = [
        f"<h2>{esc(section.problem)}<small>{esc(' · '.join(facts))}</small></h2>",
        f'<p class="what">{esc(summary[:1].upper() + summary[1:])}.</p>',
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
        " • on the Pareto front by NFE. Marked: the best of a column among all settings; if the score of exact "
        "samples is known, the nearest to it."
    )
    out.append(
        f'<p class="key">{known + ". " if known else ""}Milliseconds are per sample, in {esc(section.say("batch")[0])}, '
        f"split into the denoiser and everything else.{marks if group[0].metrics else ''}</p>"
    )
    if len(short) < len(group):
        out.append(f"<details><summary>All {len(group)} settings</summary>{_table(group, in_order(group))}</details>")
    return out + (_pictures(made, family, group) if made and group[0].metrics else [])


def _table(group: Sequence[Point], rows: Sequence[Point]) -> str:
    cols, on = columns(group), {id(p) for p in front(group, lambda p: p.nfe)}
    best = [best_in(c, group) for c in cols]
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
    if any(aim(m, group) is not None for m in group[0].metrics):
        out.append('<tr class="exact"><td></td>')
        for header, kind, _ in cols:
            truth = aim(header, group) if kind == "metric" else None
            text = "exact samples" if header == "sampler" else "" if truth is None else number(truth)
            out.append(f'<td class="{"l" if kind == "text" else ""}">{text}</td>')
        out.append("</tr>")
    return "".join(out) + "</tbody></table></div>"


# ---------------------------------------------------------------------------------------------- pictures


def _budgets(group: Sequence[Point], most: int) -> list[float]:
    """A few budgets for the columns of pictures, spread evenly over the step counts that were run."""
    asked = sorted({p.value for p in group if p.knob == "steps" and p.value is not None}) or sorted(
        {round(p.nfe, 1) for p in group}
    )
    if len(asked) <= most:
        return [float(a) for a in asked]
    return [float(asked[round(i * (len(asked) - 1) / (most - 1))]) for i in range(most)]


def _near(group: Sequence[Point], sampler: str, budget: float) -> Point | None:
    """The sampler's setting for a budget: the one that was asked to spend it; for an adaptive sampler, the best that
    spent about as much."""
    own = [p for p in group if p.sampler == sampler]
    exact = [p for p in own if p.knob == "steps" and p.value == budget]
    if exact:
        return exact[0]
    close = [p for p in own if p.knob != "steps" and 0.7 * budget <= p.nfe <= 1.05 * budget]
    sign = -1 if close and close[0].quality.better == "higher" else 1
    return min(close, key=lambda p: sign * p.quality.value, default=None)


def _pictures(problem: problems.Problem, family: str, group: list[Point]) -> list[str]:
    """Samples as small pictures: one row per sampler, one column per budget, exact samples at the top."""
    truth = problem.sample_truth(problem.figure_rows, 7, family)
    shown = problem.figure(truth, truth, 8)
    if not shown:
        return []
    budgets = _budgets(group, problem.figure_columns)
    names = list(dict.fromkeys(p.sampler for p in in_order(group)))
    note = f" · {problem.figure_note}" if problem.figure_note else ""
    out = [
        f"<h3>Samples <span>of the first seed, the first rows as they came{note}</span></h3>",
        f'<div class="grid" style="grid-template-columns: 118px repeat({len(budgets)}, minmax(0, 1fr))">',
        '<div class="head"></div>',
        *(f'<div class="head">{b:g} forward pass{"es" * (b != 1)}</div>' for b in budgets),
        '<div class="name">exact<small>exact samples</small></div>',
        f'<figure style="grid-column: 2 / -1">{shown}</figure>',
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
            figure = problem.figure(unpack(packed), truth)
            out.append(f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")
    return [*out, "</div>"]


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
    if commands := about.get("commands", []):
        out.append(f"<h3>Command{'s' * (len(commands) > 1)}</h3>")
        out.append(f'<pre class="cmd">{esc(chr(10).join(commands))}</pre>')
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
