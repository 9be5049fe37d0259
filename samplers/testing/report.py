"""The page of `samplers check --report`: what a sampler promises, and its quality against forward passes beside its relatives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from .. import registry
from ..bench.collect import points, sections
from ..bench.plot import styles
from ..bench.report import esc, page_html, section_html
from ..bench.request import SHOWN, Request
from ..bench.store import Store, write_whole, writing
from ..bench.sweep import run
from ..errors import PluginError, SamplersError
from ..family import family_of, has_denoiser
from ..problems import create
from .kit import Result

__all__ = ["relatives", "write_report"]

# What every sampler of a family is shown beside; of another family, its default sampler.
BASELINES = {"masked": "random_order", "uniform": "d3pm_ancestral", "gaussian": "euler"}
# Of relatives that are equally near, those that most readers know.
WELL_KNOWN = (*SHOWN, "low_confidence", "ddim", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "unipc")
BESIDE = 2  # relatives beside the baseline

# (problem, budgets, rows, seeds): small enough for half a minute, large enough for intervals that tell good from bad.
TOKENS = ("sudoku4", (1, 2, 4, 8, 16), 400, 3)
REALS = ("mixture", (5, 10, 20, 40), 1000, 3)


def relatives(name: str) -> list[str]:
    """The samplers of the zoo that a sampler is shown beside.

    The first is the baseline of its family. The others are of its family as well, and differ from it in the fewest of: the
    facts that both declare, the order, and the forward passes that both expect to make in 16 steps.
    """
    cls = registry.load(name)
    baseline = BASELINES.get(cls.family) or family_of(cls.family).default_sampler
    own = [e.name for e in registry.entries() if e.distribution == registry.DISTRIBUTION and e.family == cls.family]
    others = [n for n in own if n not in (name, baseline) and registry.load(n).facts.sequential == cls.facts.sequential]
    others.sort(key=lambda n: (_unlike(name, n), n not in WELL_KNOWN, n))
    return [baseline] * (baseline != name) + others[:BESIDE]


def _unlike(name: str, other: str) -> int:
    """In how many of the things that samplers declare two of them differ."""
    a, b = registry.load(name), registry.load(other)
    facts = [f.name for f in dataclasses.fields(a.facts) if f.name not in ("sweep", "sequential")]
    passes = [registry.entry(n).expected_nfe(16, 16) for n in (name, other)]
    return (
        sum(getattr(a.facts, f) != getattr(b.facts, f) for f in facts)
        + (getattr(a, "order", None) != getattr(b, "order", None))
        + (passes[0] != passes[1])
    )


def write_report(folder: str | Path, name: str, results: Sequence[Result]) -> Path:
    """Measure a sampler and its relatives on an exact problem of its family, and write the page.

    Args:
        folder: the page is FOLDER/NAME/check.html; what was measured stays beside it, and is not measured again while the
            code of the samplers is the same.
        results: what became of its checks.

    Returns:
        The page.

    Raises:
        SamplersError: it cannot be written.
    """
    place = Path(folder) / re.sub(r"[^\w.+-]+", ".", name)
    item = registry.entry(name)
    broken = [r for r in results if r.broken]
    body = [
        f"<h1>{esc(name)} {'breaks' if broken else 'keeps'} {'a promise' if len(broken) == 1 else 'its promises'}</h1>",
        f'<p class="byline">{esc(item.origin)}, {len(results)} checks of the sampler zoo {esc(registry.version())} in '
        f"{sum(r.seconds for r in results):.1f} s</p>",
        f'<p class="lead">{_lead(name)}</p>',
    ]
    body += _broken(broken)
    if not any(r.case.name == "loads" and r.broken for r in results):
        body += _measured(place, name)
    body += _promises(results)
    page = place / "check.html"
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        write_whole(page, page_html(f"{name}: promises", body))
    return page


def _lead(name: str) -> str:
    try:
        cls = registry.load(name)
    except PluginError as error:
        return esc(error)
    return f"{esc(cls.summary[:1].upper() + cls.summary[1:])}. {esc(cls.cite)}."


def _broken(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    out = [f"<h2>{len(results)} broken promise{'s' * (len(results) > 1)}</h2>"]
    for result in results:
        assert result.broken is not None
        rows = "".join(
            f'<dt>{esc(heading)}</dt><dd style="white-space: pre-wrap">{esc(text)}</dd>'
            for heading, text in result.broken.parts()
        )
        out.append(f'<h3>{esc(result.case.id)}</h3><dl class="note">{rows}</dl>')
    return out


def _promises(results: Sequence[Result]) -> list[str]:
    """A table with a row for each check, its settings together."""
    by: dict[str, list[Result]] = {}
    for result in results:
        by.setdefault(result.case.name, []).append(result)
    out = [
        '<h2>Promises</h2><div class="scroll"><table class="data"><thead><tr><th></th><th class="l">check</th>'
        '<th class="l">what it promises</th><th class="l">kept</th><th>seconds</th></tr></thead><tbody>'
    ]
    for name, own in by.items():
        kept, skipped = (sum(r.status == status for r in own) for status in ("kept", "skipped"))
        said = f"{kept} of {len(own)}" if len(own) > 1 else {"kept": "yes", "broken": "no"}.get(own[0].status, "")
        if skipped:
            reason = next(r.reason for r in own if r.reason)
            said = f"does not apply: {reason}" if skipped == len(own) else f"{said}; else {reason}"
        mark = "" if all(r.broken is None for r in own) else "✗"
        out.append(
            f'<tr><td>{mark}</td><td class="l">{esc(name)}</td><td class="l" style="white-space: normal">'
            f'{esc(own[0].case.about)}</td><td class="l" style="white-space: normal">{esc(said)}</td>'
            f"<td>{sum(r.seconds for r in own):.2f}</td></tr>"
        )
    return [*out, "</tbody></table></div>"]


def _measured(place: Path, name: str) -> list[str]:
    """The sweep on an exact problem, and its part of the page; a sentence if nothing could be measured."""
    family = registry.load(name).family
    found = next((sweep for sweep in (REALS, TOKENS) if has_denoiser(family, create(sweep[0]))), None)
    head = "<h2>Beside its relatives</h2>"
    if found is None:
        return [head, f"<p>No exact problem of the zoo has a denoiser of the family {esc(family)}.</p>"]
    problem, budgets, rows, seeds = found
    near = relatives(name)
    request = Request((problem,), (name, *near), family=family, nfe=budgets, seeds=seeds, rows=rows, batch=rows)
    try:
        outcome = run([request], place, command=f"samplers check {name} --report {place.parent}", threads=1)
    except SamplersError as error:
        return [head, f'<p class="note">Nothing was measured: {esc(error)}</p>']
    records = [r for r in Store(place, write=False).records.values() if r["sampler"] in request.samplers]
    made = points(records)
    out = [
        head,
        f'<p class="what">{rows:,} samples of each of {seeds} seeds for each setting; bars are 95 % intervals. Beside it are the '
        "baseline of its family and the samplers of the zoo that differ from it in the fewest declared facts: "
        f"{esc(', '.join(near))}.</p>",
    ]
    out += [f'<p class="note">{esc(r["sampler"])}: {esc(r["error"])}</p>' for r in (*outcome.failed, *outcome.declined)]
    style = styles(made)
    for i, section in enumerate(sections(made)):
        out += section_html(section, style, f"g{i}")
    return out
