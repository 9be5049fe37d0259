"""Every token sampler on every exact problem: the tables and the picture of docs/zoo.md, by one command.

    python bench/zoo.py                   # an hour of one core; goes on where it was stopped
    python bench/zoo.py --only latin3     # a part: alone, clues, or a problem; may be repeated
    python bench/zoo.py --samplers wino   # a new sampler, beside what bench/results/zoo.json has of the others
    python bench/zoo.py --write           # measure nothing, write the page again from what has been measured

At temperature 1 the distance to the model's own distribution and the share of valid rows are measured; at temperature 0 the share
of valid rows that end a given beginning (clues.py); and each sampler's own error with one position at a time. Cells are kept in
--out (runs/zoo). What the page shows is in bench/results/zoo.json, which keeps what it has of samplers that were not measured
again. The tables go between the marks in docs/zoo.md; its words are written by hand.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clues
import torch
from rich.console import Console
from rich.progress import track

import samplers
from samplers import problems, registry
from samplers.bench import Point, Request, Store, collect, run
from samplers.bench.estimates import Combined
from samplers.bench.machine import machine
from samplers.bench.source import fingerprint
from samplers.bench.store import CELLS
from samplers.problems.base import wilson

HERE = Path(__file__).parent
PAGE, PICTURE, SAVED = HERE.parent / "docs/zoo.md", HERE.parent / "docs/zoo.png", HERE / "results/zoo.json"
FAMILIES = ("masked", "uniform")
# Samples, and of these at a time. The first three are also what the page "Choose a sampler" is made of.
ROWS = {"sudoku4": (4000, 1000), "digits": (128, 128), "text": (64, 64)}
OTHERS = {"domino": (200, 200)}
SMALL = (400, 400)
POINT_MASSES = (
    "copy",
    "reverse",
    "sort",
)  # one answer: what counts is how few passes a rule takes
# What is the distance on a problem, if not its own primary metric: a kernel does not see what goes wrong on these two.
DISTANCE = {"domino": "invalid", "hmm": "nll"}
# At their defaults these are another sampler: entropy_bound in copies, and low_confidence. The tables by kind leave them out.
UNSET = ("smc", "smc_uniform", "learned")
KINDS = ("waiting line", "puzzle", "chain", "global", "picture")
PARTS = (8, 4, 2, 1)  # budgets: L / 8, L / 4, L / 2 and L forward passes per row
ALONE_ROWS = 20_000
BLIND = "random_order"


# ---------------------------------------------------------------------------------------------- measuring


@functools.cache
def to_fill(problem: str) -> int:
    """How many positions a row has that are not given."""
    made = problems.create(problem)
    assert made.length is not None
    return made.length - len(made.settings.get("prompt", ()))


def budgets(problem: str, given: int = 0) -> tuple[int, ...]:
    """L/8, L/4, L/2 and L forward passes, rounded up; L is the number of positions to fill."""
    return tuple(dict.fromkeys(-(-(to_fill(problem) - given) // part) for part in PARTS))


@functools.cache
def kinds() -> dict[str, list[str]]:
    """The problems of each kind. One picture of 8 x 8 pixels is a kind of its own."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in problems.list_problems():
        made = problems.create(name)
        if name in ROWS or made.kind:
            found[made.kind or "picture"].append(name)
    return found


def ours(families: Sequence[str], pattern: str = "*") -> tuple[str, ...]:
    """This library's samplers that match a pattern, without those of plug-ins."""
    found = [n for family in families for n in registry.names(pattern, family)]
    return tuple(n for n in found if registry.entry(n).distribution == registry.DISTRIBUTION)


def requests_of(part: str, pattern: str = "*") -> list[Request]:
    """Fixed-count samplers at the budgets, adaptive ones along their own option, the blind order at every number of passes."""
    if part.startswith("clues "):
        name = part.removeprefix("clues ")
        of: clues.Clues = getattr(clues, name)
        fill, spend = of.length - of.given, budgets(name, of.given)
        rows, said = (clues.ROWS, clues.ROWS), f"clues:{name}"
        more: dict[str, Any] = {
            "prompts": f"{said}.prompts", "metric": f"{said}.invalid", "gen_length": fill, "temperature": 0.0,
        }  # fmt: skip
        subject, families = f"{said}.denoiser", list(FAMILIES[:1])
    else:
        subject, families, spend, fill = part, list(FAMILIES), budgets(part), to_fill(part)
        rows, more = (ROWS | OTHERS).get(part, SMALL), {}
    names = ours(families, pattern)
    every = range(1, fill + 1) if fill <= 24 else (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
    return [
        Request((subject,), chosen, nfe=tuple(nfe), seeds=1, rows=rows[0], batch=rows[1], **more)
        for chosen, nfe in ((tuple(n for n in names if n == BLIND), every), (names, spend))
        if chosen
    ]


def measure(part: str, out: Path, console: Console, pattern: str = "*") -> None:
    """Run what is not in the folder yet, and print a line for each cell."""
    requests = requests_of(part, pattern)
    if not requests:
        return
    begun = time.perf_counter()

    def finished(record: dict[str, Any]) -> None:
        nfe = record.get("nfe", {}).get("per_row", math.nan)
        what = record.get("error") or f"{nfe:.4g} forward passes per row"
        console.print(
            f"{time.perf_counter() - begun:6.0f} s  {part}: {record['sampler']} {record['knob']}={record['value']}: {what}",
            highlight=False,
        )

    done = run(requests, out / part, command="python bench/zoo.py", threads=1, finished=finished)
    for record in done.failed:
        console.print(f"failed: {record['sampler']} on {part}: {record['error']}", highlight=False)


def points(folder: Path) -> list[Point]:
    """The points of one page must be comparable: those of the library and the row count of the latest cell."""
    records = list(Store(folder, write=False).records.values())
    latest = [(r["library"], r["rows"]) for r in records][-1:]
    return collect.points(r for r in records if (r["library"], r["rows"]) in latest)


def alone(out: Path, pattern: str = "*") -> None:
    """Each masked sampler on sudoku4, one position at a time: what is its own error when no two are drawn together?"""
    problem, file = problems.create("sudoku4"), out / "alone.json"
    there: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    denoiser = problem.denoiser("masked")
    for name in track(ours(FAMILIES[:1], pattern), description="alone"):
        cls: Any = registry.load(name)
        code = fingerprint(cls)
        if cls.facts.sequential or there.get(name, {}).get("code") == code:
            continue
        # A biased rule is left to choose: a block of one position would take its choice away.
        chooses = cls.facts.bias in ("exact", "asymptotic") or "block_length" not in cls.conformance.one_at_a_time
        options = dict(cls.conformance.exact) | (dict(cls.conformance.one_at_a_time) if chooses else {})
        try:
            made = samplers.sample(denoiser, name, batch=ALONE_ROWS, temperature=1.0, seed=5, **options)
        except samplers.SamplersError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        score = problem.score(made)
        tv = score["tv"]
        there[name] = {
            "code": code,
            "claim": cls.facts.bias or "",
            "options": {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in options.items()},
            "nfe": float(made.nfe_rows.double().mean()),
            "evals": made.row_evals / ALONE_ROWS,
            "invalid": score["invalid"].value,
            "tv": [tv.value, tv.low, tv.high],
            "tv_exact": tv.truth,
            "p": score.extras["chi2_p"],
        }
        file.write_text(json.dumps(there), encoding="utf-8")  # after each, so that a run that is stopped goes on


# ---------------------------------------------------------------------------------------------- saving
#
# {"alone": {sampler: ...}, "runs": {part: {"rows", "metric", "exact", "runs": {family/sampler: {"knob", "runs": LINES}}}},
# and "sudoku4", "digits", "text": the points of the chooser's page}. A line is [value, passes, row evaluations, share of invalid
# rows, distance, low, high]; of clues it ends with the share.


def far(e: Combined, metric: str) -> tuple[float, float, float]:
    """A distance with its 95 % interval. A likelihood is as far as it is from that of exact samples, above it or below."""
    if metric != "nll" or e.truth is None:
        return e.value, e.low, e.high
    value = abs(e.value - e.truth)
    return value, max(0.0, value - (e.value - e.low)), value + (e.high - e.value)


def save(out: Path, timed: bool = False) -> dict[str, Any]:
    """bench/results/zoo.json with what `out` has put in its place; samplers that `out` does not have keep what was measured."""
    saved: dict[str, Any] = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}
    saved.setdefault("runs", {})
    registered = set(ours(FAMILIES))
    if (out / "alone.json").exists():
        saved["alone"] = saved.get("alone", {}) | json.loads((out / "alone.json").read_text(encoding="utf-8"))
    for folder in sorted(out.glob("*")):
        if not (folder / CELLS).exists():
            continue
        made = [p for p in points(folder) if p.sampler in registered]
        if not made:
            continue
        part, clued = saved["runs"].get(folder.name, {}).get("runs", {}), folder.name.startswith("clues ")
        metric = made[0].primary if clued else DISTANCE.get(folder.name, made[0].primary)
        new: dict[str, Any] = {}
        for p in made:
            invalid = p.metrics.get(metric if clued else "invalid")
            cost = [p.value, p.nfe, sum(r["nfe"]["row_evals"] for r in p.records) / sum(r["rows"] for r in p.records)]
            said = [None if invalid is None else invalid.value, *(() if clued else far(p.metrics[metric], metric))]
            one = new.setdefault(f"{p.family}/{p.sampler}", {"knob": p.knob, "runs": []})
            one["runs"].append(cost + said)
        saved["runs"][folder.name] = {
            "rows": made[0].records[0]["rows"],
            "metric": None if clued else metric,
            "exact": None if clued or metric == "nll" else made[0].metrics[metric].truth,
            "runs": part | new,
        }
        if folder.name in ROWS:
            again = {p.sampler for p in made}
            offered = {p.sampler: budgets(folder.name) for p in made if p.knob == "steps"}
            saved[folder.name] = [r for r in saved.get(folder.name, ()) if r["sampler"] not in again] + [
                {
                    "family": p.family, "sampler": p.sampler, "knob": p.knob, "value": p.value, "nfe": p.nfe,
                    "rows": p.records[0]["rows"], "seconds": p.seconds if timed else None,
                    **{m: [c.value, c.low, c.high] for m, c in p.metrics.items()},
                }
                for p in made
                if p.value in offered.get(p.sampler, (p.value,))  # the blind order was run at more of them
            ]  # fmt: skip
    saved["machine"], saved["torch_threads"] = machine(), 1
    rounded = json.loads(json.dumps(saved), parse_float=lambda text: float(f"{float(text):.4g}"))
    text = json.dumps(rounded, separators=(",", ":"))
    # One sampler or one point per line, so that a change of one is a change of one line.
    SAVED.write_text(re.sub(r'(?<=[{,\[])("\w+/\w+":|\{"family")', r"\n\1", text) + "\n", encoding="utf-8")
    return rounded


# ---------------------------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Run:
    """One setting of one sampler on one problem: what it costs per row, and what is lost: less is better."""

    setting: str
    passes: float
    evals: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """Over the problems of a kind: passes and evaluations per position to fill, loss and half the width of its 95 % interval."""

    passes: float
    evals: float
    loss: float
    half: float

    @property
    def low(self) -> float:
        return self.loss - self.half

    @property
    def high(self) -> float:
        return self.loss + self.half


@dataclass(frozen=True)
class Against:
    """A rule beside the blind order at as many passes: passes are whole numbers for the blind order, and means for the rule.

    Attributes:
        own: the rule.
        less, more: the blind order at the next number of passes that is not above the rule's, and at the next not below.
    """

    own: Mean
    less: Mean
    more: Mean

    @property
    def ahead(self) -> bool:
        """The rule is better, by more than chance, although the blind order spends no less."""
        return self.own.high < self.more.low

    @property
    def beaten(self) -> bool:
        """The blind order is better, by more than chance, although it spends no more."""
        return self.less.high < self.own.low


def setting(knob: str, line: Sequence[Any]) -> str:
    """What a run was made with, if a number of steps does not say it."""
    return "" if knob == "steps" else f"{knob} {line[0]:g}"


class View:
    """One question to the measurements, by kind of problem.

    Args:
        valid: True: the share of invalid rows at temperature 0. False: the distance to the model's distribution at temperature 1,
            on a scale on which exact samples have 0 and one pass for all positions has 1.
    """

    def __init__(self, saved: dict[str, Any], valid: bool, family: str = "masked"):
        self.valid, self.family = valid, family
        self.kinds: dict[str, list[str]] = {}
        self.runs: dict[str, dict[str, list[Run]]] = {}  # by problem and sampler
        self.fill: dict[str, int] = {}
        for kind, names in kinds().items():
            for name in names:
                part = saved["runs"].get(f"clues {name}" if valid else name)
                if part is None or name in POINT_MASSES:
                    continue
                self.kinds.setdefault(kind, []).append(name)
                self.fill[name] = to_fill(name) - (getattr(clues, name).given if valid else 0)
                self.runs[name] = self._read(part)

    def _read(self, part: dict[str, Any]) -> dict[str, list[Run]]:
        def read(knob: str, line: Sequence[Any]) -> Run:
            if self.valid:
                e = wilson(round(line[3] * part["rows"]), part["rows"])
                return Run(setting(knob, line), line[1], line[2], e.value, e.low, e.high)
            return Run(setting(knob, line), line[1], line[2], *((v - exact) / (once - exact) for v in line[4:]))

        if not self.valid:
            exact = part["exact"] or 0.0
            (once,) = (line[4] for line in part["runs"][f"masked/{BLIND}"]["runs"] if line[0] == 1)
        names = [BLIND] if self.family != "masked" else []
        found = {}
        for who, one in part["runs"].items():
            family, _, name = who.partition("/")
            if (family == self.family or name in names) and name not in UNSET:
                found[name] = [
                    read(one["knob"], line) for line in one["runs"] if line[4 if not self.valid else 3] is not None
                ]
        return found

    def names(self, kind: str) -> list[str]:
        """The samplers that were measured on each problem of a kind."""
        return [n for n in self.runs[self.kinds[kind][0]] if all(n in self.runs[p] for p in self.kinds[kind])]

    def best(self, problem: str, name: str, budget: float) -> Run | None:
        """The sampler's best setting that spends at most the budget; the cheaper of two equals."""
        runs = [r for r in self.runs[problem][name] if r.passes <= budget * 1.005]
        return min(runs, key=lambda r: (r.loss, r.passes), default=None)

    def mean(self, kind: str, runs: Iterable[Run | None]) -> Mean | None:
        """One run of each problem of a kind as one; None if one of the problems has none. Halves add as independent errors do."""
        made, fills = list(runs), [self.fill[p] for p in self.kinds[kind]]
        known = [r for r in made if r is not None]
        if len(known) < len(made):
            return None
        n = len(known)
        return Mean(
            sum(r.passes / f for r, f in zip(known, fills)) / n,
            sum(r.evals / f for r, f in zip(known, fills)) / n,
            sum(r.loss for r in known) / n,
            math.sqrt(sum(max(r.high - r.loss, r.loss - r.low) ** 2 for r in known)) / n,
        )

    def at(self, kind: str, name: str, part: int, rows: bool = False) -> Against | None:
        """A sampler's best within L/part passes, and the blind order at as many.

        Args:
            rows: the blind order is given as many passes as the sampler has row evaluations.
        """
        chosen = [self.best(p, name, -(-self.fill[p] // part)) for p in self.kinds[kind]]
        less, more = [], []
        for p, r in zip(self.kinds[kind], chosen):
            if r is None:
                return None
            spent, blind = r.evals if rows else r.passes, self.runs[p][BLIND]
            less.append(max((b for b in blind if b.passes <= spent * 1.005), key=lambda b: b.passes, default=None))
            # More than all positions has no meaning for it.
            above = [b for b in blind if b.passes >= spent * 0.995] or [max(blind, key=lambda b: b.passes)]
            more.append(min(above, key=lambda b: b.passes))
        means = [self.mean(kind, runs) for runs in (chosen, less, more)]
        return None if any(m is None for m in means) else Against(*means)  # type: ignore[arg-type]

    def ranked(self, kind: str, part: int) -> list[tuple[list[str], Against]]:
        """(names, what they did) best first. Samplers that did the very same are one entry."""
        found: dict[tuple[float, ...], tuple[list[str], Against]] = {}
        for name in self.names(kind):
            if made := self.at(kind, name, part):
                key = tuple(round(v, 6) for v in (made.own.loss, made.own.passes, made.own.evals))
                found.setdefault(key, ([], made))[0].append(name)
        return sorted(found.values(), key=lambda f: (f[1].own.loss, f[1].own.passes, f[1].own.evals))

    def number(self, mean: Mean) -> str:
        """The mean as pages write it: percent of valid rows, or the distance."""
        if self.valid:
            return f"{100 * (1 - mean.loss):.0f} ± {100 * mean.half:.0f} %"
        return f"{mean.loss:.2f} ± {mean.half:.2f}"

    def parts(self, kind: str) -> list[int]:
        """The budgets that differ: with few positions to fill, L/8 is one pass, which no choice of positions helps."""
        return [p for p in PARTS if any(-(-self.fill[n] // p) > 1 for n in self.kinds[kind])]


def share(part: int) -> str:
    return "L" if part == 1 else f"L/{part}"


def cost(mean: Mean) -> str:
    """What it spends, in L; row evaluations if they are not the passes, as with rules that run copies."""
    return f"{mean.passes:.2f} L" + (f", {mean.evals:.2f} L rows" if mean.evals > 1.03 * mean.passes else "")


# ---------------------------------------------------------------------------------------------- writing


def kind_table(view: View, kind: str, shown: int = 5) -> str:
    """The best at each budget. Bold: better than a blind order at the same number of passes, by more than chance."""
    parts = view.parts(kind)
    columns = []
    for part in parts:
        ranked = view.ranked(kind, part)
        column = []
        for names, made in ranked[:shown]:
            own, text = made.own, view.number(made.own)
            who = ", ".join(f"`{n}`" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            column.append(f"{who} {f'**{text}**' if made.ahead else text} <sub>{cost(own)}</sub>")
        column += [""] * (shown - len(column))
        more = (
            sum(len(names) for names, made in ranked[shown:] if made.own.low <= ranked[0][1].own.high) if ranked else 0
        )
        column.append(f"{more}")
        blind_there = view.at(kind, BLIND, part)
        column.append(f"{view.number(blind_there.own)} <sub>{cost(blind_there.own)}</sub>" if blind_there else "")
        columns.append(column)
    heads = [*map(str, range(1, shown + 1)), "more that overlap 1", "blind order"]
    lines = ["| | " + " | ".join(f"≤ {share(p)}" for p in parts) + " |", "|---" * (len(parts) + 1) + "|"]
    lines += ["| " + " | ".join([head, *cells]) + " |" for head, cells in zip(heads, zip(*columns))]
    what = "valid rows at temperature 0" if view.valid else "distance at temperature 1"
    return "\n".join([f"**{what}** ({', '.join(f'`{n}`' for n in view.kinds[kind])})", "", *lines])


def pick_table(distance: View, valid: View) -> str:
    """The first of each kind and budget under both questions, and whether a blind order does as well."""
    lines = [
        "| what joins the positions | passes | follow the model (temperature 1) | end in a valid row (temperature 0) |",
        "|---|---|---|---|",
    ]
    for kind in distance.kinds:
        for part in distance.parts(kind):
            cells = []
            for view in (distance, valid):
                ranked = view.ranked(kind, part) if kind in view.kinds else []
                if not ranked:
                    cells.append("")
                    continue
                names, own = ranked[0][0], ranked[0][1].own
                blind = view.at(kind, BLIND, part)
                text = f"`{names[0]}` {view.number(own)}"
                if blind is not None and blind.own.low <= own.high:
                    text = f"a blind order is as good as any ({view.number(blind.own)})"
                    alike = [
                        (n, m.own) for n, m in ranked if m.own.low <= own.high and m.own.evals <= 1.03 * m.own.passes
                    ]
                    cheap = min(alike, key=lambda a: a[1].passes)
                    if cheap[1].passes < 0.9 * blind.own.passes and view.number(cheap[1]) != view.number(blind.own):
                        text += f", and `{cheap[0][0]}` with {cost(cheap[1])} ({view.number(cheap[1])})"
                    elif cheap[1].passes < 0.9 * blind.own.passes:
                        text += f", and `{cheap[0][0]}` with {cost(cheap[1])}"
                elif own.evals > 1.03 * own.passes:
                    text += f" ({cost(own)})"
                    single = [(n, m.own) for n, m in ranked if m.own.evals <= 1.03 * m.own.passes]
                    text += f"; without copies `{single[0][0][0]}` {view.number(single[0][1])}" if single else ""
                cells.append(text)
            lines.append(
                f"| {kind if part == distance.parts(kind)[0] else ''} | {share(part)} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


def beaten_table(view: View, rows: bool = False) -> str:
    """Each rule that a blind order beats at the same number of passes or fewer: by kind, its own number and the blind order's.

    Args:
        rows: only the rules that run copies, and the blind order is given as many passes as they have row evaluations.
    """
    lost: dict[str, dict[str, list[str]]] = {}
    count = ahead = behind = 0
    for kind in view.kinds:
        for part in view.parts(kind):
            for name in view.names(kind):
                made = view.at(kind, name, part, rows)
                if made is None or name == BLIND or (rows and not registry.load(name).facts.copies):
                    continue
                count += 1
                ahead += made.ahead
                if made.beaten:
                    behind += 1
                    text = f"{share(part)}: {view.number(made.own)}, blind {view.number(made.less)}"
                    lost.setdefault(name, {}).setdefault(kind, []).append(text)
    said = f"Of {count} comparisons, the rule is ahead of the blind order in {ahead} and beaten in {behind}."
    if not lost:
        return said
    lines = [said, "", "| rule | " + " | ".join(view.kinds) + " |", "|---" * (len(view.kinds) + 1) + "|"]
    for name in sorted(lost, key=lambda n: (-sum(map(len, lost[n].values())), n)):
        lines.append(f"| `{name}` | " + " | ".join("<br>".join(lost[name].get(k, ())) for k in view.kinds) + " |")
    return "\n".join(lines)


def uniform_table(view: View) -> str:
    """Uniform noise: the same scale, within L/4, L/2 and L passes."""
    every = dict.fromkeys(n for kind in view.kinds for n in view.names(kind))
    lines = ["| sampler | " + " | ".join(view.kinds) + " |", "|---" * (len(view.kinds) + 1) + "|"]
    for name in every:
        cells = []
        for kind in view.kinds:
            found = [view.at(kind, name, part) if name in view.names(kind) else None for part in (4, 2, 1)]
            cells.append(" / ".join("–" if f is None else f"{f.own.loss:.2f}" for f in found))
        who = f"`{name}`" + (" (masked)" if name == BLIND else "")
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sure_text(saved: dict[str, Any]) -> str:
    """What rules that adapt spend if there is only one answer: the passes of the cheapest setting."""
    spent: dict[str, float] = {}
    for part in filter(None, map(saved["runs"].get, POINT_MASSES)):
        for who, one in part["runs"].items():
            if one["knob"] != "steps" and who.startswith("masked/"):
                name = who.partition("/")[2]
                spent[name] = max(spent.get(name, 0.0), min(line[1] for line in one["runs"] if not line[3]))
    once = sorted(n for n, v in spent.items() if v <= 1.005)
    more = sorted((v, n) for n, v in spent.items() if v > 1.005)
    text = f"One pass: {', '.join(f'`{n}`' for n in once)}."
    return text + (f" More: {', '.join(f'`{n}` ({v:.3g})' for v, n in more)}." if more else "")


def clean_table(saved: dict[str, Any], shown: int = 10) -> str:
    """The cheapest setting of each rule that made no invalid grid of sudoku, and how far its grids are from evenly spread."""
    part = saved["runs"]["sudoku4"]
    found = []
    for who, one in part["runs"].items():
        clean = [line for line in one["runs"] if line[3] == 0]
        if clean and who.startswith("masked/"):
            line = min(clean, key=lambda line: (line[1], line[4]))
            found.append((line[1], line[2], line[4], who.partition("/")[2], setting(one["knob"], line)))
    lines = ["| sampler | setting | passes | row evaluations | total variation |", "|---|---|---|---|---|"]
    lines += [
        f"| `{n}` | {how} | {nfe:.2f} | {rows:.2f} | {tv:.2f} |" for nfe, rows, tv, n, how in sorted(found)[:shown]
    ]
    return "\n".join(lines)


def problem_table(saved: dict[str, Any], problem: str, family: str) -> str:
    """All samplers on one problem, in its own metric. Bold: no other is better by more than chance."""
    part, spend = saved["runs"][problem], budgets(problem)
    runs = {
        who.partition("/")[2]: [Run(setting(one["knob"], line), line[1], line[2], *line[4:]) for line in one["runs"]]
        for who, one in part["runs"].items()
        if who.startswith(f"{family}/")
    }

    def best(name: str, budget: int) -> Run | None:
        # More than half of the budget, so that a sampler stands once for each number of passes.
        own = [r for r in runs[name] if budget / 2 < r.passes <= budget * 1.005]
        return min(own, key=lambda r: r.loss, default=None)

    cells = {(n, b): best(n, b) for n in runs for b in spend}
    least = {b: min((c.high for n in runs if (c := cells[n, b])), default=math.inf) for b in spend}
    mean = {n: sum((c.loss for b in spend if (c := cells[n, b])), 0.0) for n in runs}
    lines = [f"| {family} sampler | " + " | ".join(f"≤ {b} ({share(p)})" for b, p in zip(spend, PARTS)) + " |"]
    lines.append("|---" * (len(spend) + 1) + "|")
    for n in sorted(runs, key=lambda n: (cells[n, spend[1]] is None, mean[n])):
        row = []
        for b in spend:
            if (c := cells[n, b]) is None:
                row.append("")
                continue
            value = f"**{c.loss:.3g}**" if c.low <= least[b] else f"{c.loss:.3g}"
            rows = f" ({c.evals:.3g} rows)" if c.evals > 1.03 * c.passes else ""
            how = f", {c.setting}" if c.setting else ""
            row.append(f"{value} <sub>{c.low:.3g}–{c.high:.3g} · {c.passes:.3g}{rows}{how}</sub>")
        lines.append(f"| `{n}` | " + " | ".join(row) + " |")
    exact = "" if part["exact"] is None else f" Exact samples: {part['exact']:.3g}."
    return "\n".join(
        [f"{problem}, {family}: {part['metric']}, lower is better, {part['rows']:,} rows.{exact}", "", *lines]
    )


def alone_table(saved: dict[str, Any]) -> str:
    rows = [{"sampler": name} | about for name, about in saved["alone"].items()]
    lines = [
        f"sudoku4, {ALONE_ROWS:,} rows. Exact samples: total variation {rows[0]['tv_exact']:.3f}.",
        "",
        "| sampler | says | passes | invalid grids | total variation | χ² p | options |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["claim"] != "exact", r["tv"][0])):
        options = ", ".join(f"{k}={v}" for k, v in r["options"].items())
        p = f"{r['p']:.2g}" if r["p"] > 1e-12 else "< 1e-12"
        tv = f"{r['tv'][0]:.3f} <sub>{r['tv'][1]:.3f}–{r['tv'][2]:.3f}</sub>"
        copies = f" ({r['evals']:.4g} rows)" if r["evals"] > 1.03 * r["nfe"] else ""
        lines.append(
            f"| `{r['sampler']}` | {r['claim']} | {r['nfe']:.4g}{copies} | {100 * r['invalid']:.3g} % | {tv} | {p} | {options} |"
        )
    return "\n".join(lines)


def fill_in(path: Path, parts: dict[str, str]) -> None:
    """Each text goes between its marks in a page: <!-- name --> and <!-- end -->, an empty line or the old text."""
    page = path.read_text(encoding="utf-8")
    for name, text in parts.items():
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.S)
        if not mark.search(page):
            raise SystemExit(f"{path} has no place for {name}: <!-- {name} --> ... <!-- end -->")
        page = mark.sub(lambda m, text=text: m[1] + text + m[2], page)
    path.write_text(page, encoding="utf-8")


def picture(views: Sequence[View], path: Path) -> None:
    """What is lost against passes, by kind: every rule in grey, the blind order in black, the best at L/4 and L/2 in colour."""
    from matplotlib.figure import Figure

    every = [k for k in KINDS if k in views[0].kinds]
    figure = Figure(figsize=(3.1 * len(every), 6.2), layout="constrained")
    axes = figure.subplots(len(views), len(every), squeeze=False)
    for row, view in zip(axes, views):
        for axis, kind in zip(row, every):
            if kind not in view.kinds:
                axis.axis("off")
                continue
            parts = view.parts(kind)
            best = dict.fromkeys(n[0] for part in (4, 2) for n, *_ in view.ranked(kind, part)[:2] if BLIND not in n)
            for name in sorted(view.names(kind), key=lambda n: (n in best, n == BLIND)):
                found = [(share(p), view.at(kind, name, p)) for p in parts]
                x = [s for s, made in found if made]
                y = [1 - made.own.loss if view.valid else made.own.loss for _, made in found if made]
                style: dict[str, Any] = {"color": "0.8", "linewidth": 0.7, "zorder": 1}
                if name == BLIND:
                    style = {"color": "black", "linewidth": 2, "label": name, "zorder": 3}
                elif name in best:
                    style = {
                        "color": f"C{list(best).index(name)}",
                        "linewidth": 1.8,
                        "label": name,
                        "zorder": 2,
                        "marker": "o",
                        "markersize": 3.5,
                    }
                axis.plot(x, y, **style)
            axis.set_title(kind if view is views[0] else "", fontsize=10)
            axis.set_xlabel("forward passes per row, at most", fontsize=8)
            axis.set_ylim(-0.05, 1.05 if view.valid else 1.4)
            axis.legend(fontsize=7, frameon=False)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        what = (
            "valid rows, temperature 0\n(higher is better)"
            if view.valid
            else "distance, temperature 1\n(0 exact, 1 all at once; lower is better)"
        )
        row[0].set_ylabel(what, fontsize=9)
    figure.savefig(path, dpi=100, facecolor="white")


def write(saved: dict[str, Any]) -> None:
    distance, valid = View(saved, valid=False), View(saved, valid=True)
    parts = {
        "pick": pick_table(distance, valid),
        "sure": sure_text(saved),
        "clean": clean_table(saved),
        "alone": alone_table(saved),
    }
    for kind in distance.kinds:
        tables = [kind_table(v, kind) for v in (distance, valid) if kind in v.kinds]
        parts[kind] = "\n\n".join(tables)
    parts |= {f"beaten {what}": beaten_table(v) for what, v in (("distance", distance), ("valid", valid))}
    parts |= {f"copies {what}": beaten_table(v, rows=True) for what, v in (("distance", distance), ("valid", valid))}
    parts["uniform"] = uniform_table(View(saved, valid=False, family="uniform"))
    for problem in ROWS:
        parts[problem] = "\n\n".join(problem_table(saved, problem, family) for family in FAMILIES)
    fill_in(PAGE, parts)
    picture((distance, valid), PICTURE)


def main() -> None:
    every = [n for names in kinds().values() for n in names]
    every = ["alone", *sorted(every, key=lambda n: (n in ROWS or n in OTHERS, n)), *(f"clues {n}" for n in clues.NAMES)]
    parser = argparse.ArgumentParser(description="All token samplers on all exact problems: docs/zoo.md.")
    parser.add_argument("--only", choices=[*every, "clues"], metavar="PART", action="append",
                        help="measure this part only: alone, clues, or a problem; may be repeated")  # fmt: skip
    parser.add_argument(
        "--samplers", default="*", metavar="PATTERN", help="measure these samplers only, such as a new one"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="where cells are kept (runs/zoo)")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--timed", action="store_true", help="keep seconds: nothing else must run on the machine")
    args = parser.parse_args()
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for part in [] if args.write else args.only or every:
        for one in [n for n in every if n.startswith("clues ")] if part == "clues" else [part]:
            if one == "alone":
                alone(args.out, args.samplers)
            else:
                measure(one, args.out, console, args.samplers)
    write(save(args.out, args.timed))
    console.print(f"{PAGE}, {PICTURE}, {SAVED}")


if __name__ == "__main__":
    main()
