"""Every token sampler on every exact problem: the tables and the picture of docs/zoo.md, by one command.

    python bench/zoo.py                 # minutes; goes on where it was stopped
    python bench/zoo.py --only law      # a part: law, sudoku4, digits or text
    python bench/zoo.py --write         # only write the page again, from what has been measured

Quality against forward passes per row, at temperature 1 (the model's own distribution), and each sampler's own error with
one position at a time.
Cells are kept in --out (runs/zoo); what the page shows is in bench/results/zoo.json too. The tables go between the marks
in docs/zoo.md; its words are written by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import samplers
from samplers import problems, registry
from samplers.bench import Request, Store, collect, plot, run
from samplers.bench.machine import machine
from samplers.bench.store import CELLS
from samplers.testing.tiny import for_any_model

HERE = Path(__file__).parent
PAGE, PICTURE, SAVED = HERE.parent / "docs/zoo.md", HERE.parent / "docs/zoo.png", HERE / "results/zoo.json"
FAMILIES = ("masked", "uniform")
ROWS = {"sudoku4": (4000, 1000), "digits": (192, 192), "text": (128, 128)}  # samples, and of these at a time
LAW_ROWS = 20_000
PARTS = ("law", *ROWS)


def budgets(problem: str) -> tuple[int, ...]:
    """L/8, L/4, L/2 and L forward passes."""
    length = problems.create(problem).length
    assert length is not None
    return length // 8, length // 4, length // 2, length


# ---------------------------------------------------------------------------------------------- measuring


def measure(problem: str, out: Path, console: Console) -> list[collect.Point]:
    """The sweep of one problem: fixed-count samplers at the budgets, adaptive ones along their own knob."""
    rows, batch = ROWS[problem]
    patterns = tuple(f"{family}/*" for family in FAMILIES)
    request = Request((problem,), patterns, nfe=budgets(problem), seeds=1, rows=rows, batch=batch)
    begun = time.perf_counter()

    def finished(record: dict[str, Any]) -> None:
        nfe = record.get("nfe", {}).get("per_row", math.nan)
        what = record.get("error") or f"{nfe:.4g} forward passes per row"
        console.print(
            f"{time.perf_counter() - begun:6.0f} s  {problem} {record['sampler']} {record['knob']}={record['value']}: {what}",
            highlight=False,
        )

    folder = out / problem
    done = run([request], folder, command="python bench/zoo.py", threads=1, finished=finished)
    if done.failed:
        raise SystemExit(f"{len(done.failed)} cells failed; the first: {done.failed[0]['error']}")
    return points(folder)


def points(folder: Path) -> list[collect.Point]:
    """The points of one page must be comparable: those of the library and the row count of the latest cell."""
    records = list(Store(folder, write=False).records.values())
    latest = [(r["library"], r["rows"]) for r in records][-1:]
    return collect.points(r for r in records if (r["library"], r["rows"]) in latest)


def law() -> list[dict[str, Any]]:
    """Each sampler on sudoku4, one position at a time: what is its own error when no two are drawn together?"""
    problem, rows = problems.create("sudoku4"), []
    denoiser = problem.denoiser("masked")
    for name in track(for_any_model(), description="law"):
        cls: Any = registry.load(name)
        # A biased rule is left to choose: a block of one position would take its choice away.
        chooses = cls.facts.bias in ("exact", "asymptotic") or "block_length" not in cls.conformance.one_at_a_time
        options = dict(cls.conformance.exact) | (dict(cls.conformance.one_at_a_time) if chooses else {})
        try:
            out = samplers.sample(denoiser, name, batch=LAW_ROWS, temperature=1.0, seed=5, **options)
        except samplers.SamplersError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        score = problem.score(out)
        tv = score["tv"]
        rows.append(
            {
                "sampler": name,
                "claim": cls.facts.bias or "",
                "options": options,
                "nfe": float(out.nfe_rows.double().mean()),
                "invalid": score["invalid"].value,
                "tv": [tv.value, tv.low, tv.high],
                "tv_exact": tv.truth,
                "p": score.extras["chi2_p"],
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------- writing


def best_at(made: list[collect.Point], name: str, budget: int) -> collect.Point | None:
    """The sampler's best setting that spends at most the budget, and more than half of it."""
    own = [p for p in made if p.sampler == name and budget / 2 < p.nfe <= budget * 1.005]
    return min(own, key=lambda p: p.quality.value, default=None)


def table(problem: str, family: str, made: list[collect.Point]) -> str:
    """Quality at each budget: value, 95 % interval, and NFE spent. Bold: no other is better by more than chance."""
    spend = budgets(problem)
    metric, truth = made[0].primary, made[0].quality.truth
    names = sorted({p.sampler for p in made})
    cells = {(n, b): best_at(made, n, b) for n in names for b in spend}
    lines = [f"| {family} sampler | " + " | ".join(f"≤ {b} (L/{spend[-1] // b})" for b in spend) + " |"]
    lines[0] = lines[0].replace("(L/1)", "(L)")
    lines.append("|---" * (len(spend) + 1) + "|")
    least = {b: min((c.quality.high for n in names if (c := cells[n, b])), default=math.inf) for b in spend}
    mean = {n: sum((c.quality.value for b in spend if (c := cells[n, b])), 0.0) for n in names}
    for n in sorted(names, key=lambda n: (cells[n, spend[1]] is None, mean[n])):
        row = []
        for b in spend:
            c = cells[n, b]
            if c is None:
                row.append("")
                continue
            q = c.quality
            value = f"**{q.value:.3g}**" if q.low <= least[b] else f"{q.value:.3g}"
            how = f"{c.nfe:.3g}" + (f", {c.setting}" if c.knob != "steps" else "")
            row.append(f"{value} <sub>{q.low:.3g}–{q.high:.3g} · {how}</sub>")
        lines.append(f"| `{n}` | " + " | ".join(row) + " |")
    exact = "" if truth is None else f" Exact samples: {truth:.3g}."
    head = f"#### {problem}, {family}: {metric}, lower is better, {made[0].records[0]['rows']:,} rows.{exact}"
    return "\n".join([head, "", *lines])


def law_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"#### sudoku4, {LAW_ROWS:,} rows, one position at a time. Exact samples: total variation {rows[0]['tv_exact']:.3f}.",
        "",
        "| sampler | says | NFE | invalid grids | total variation | χ² p | options |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["claim"] != "exact", r["tv"][0])):
        options = ", ".join(f"{k}={v}" for k, v in r["options"].items())
        p = f"{r['p']:.2g}" if r["p"] > 1e-12 else "< 1e-12"
        tv = f"{r['tv'][0]:.3f} <sub>{r['tv'][1]:.3f}–{r['tv'][2]:.3f}</sub>"
        lines.append(
            f"| `{r['sampler']}` | {r['claim']} | {r['nfe']:.4g} | {100 * r['invalid']:.3g} % | {tv} | {p} | {options} |"
        )
    return "\n".join(lines)


def fill_in(path: Path, parts: dict[str, str]) -> None:
    """Each text goes between its marks in a page: <!-- name --> … <!-- end -->, an empty line or the old text."""
    page = path.read_text()
    for name, text in parts.items():
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.S)
        if not mark.search(page):
            raise SystemExit(f"{path} has no place for {name}: <!-- {name} --> … <!-- end -->")
        page = mark.sub(lambda m, text=text: m[1] + text + m[2], page)
    path.write_text(page)


def write(out: Path) -> None:
    saved = json.loads(SAVED.read_text()) if SAVED.exists() else {}
    parts, made = {}, []
    if (out / "law.json").exists():
        saved["law"] = json.loads((out / "law.json").read_text())
    for problem in ROWS:
        if (out / problem / CELLS).exists():
            own = points(out / problem)
            made += own
            saved[problem] = [
                {
                    "family": p.family, "sampler": p.sampler, "knob": p.knob, "value": p.value, "nfe": p.nfe,
                    "rows": p.records[0]["rows"], "seconds": p.seconds,
                    **{m: [c.value, c.low, c.high] for m, c in p.metrics.items()},
                }
                for p in own
            ]  # fmt: skip
            parts[problem] = "\n\n".join(
                table(problem, family, [p for p in own if p.family == family])
                for family in FAMILIES
                if any(p.family == family for p in own)
            )
    if "law" in saved:
        parts["law"] = law_table(saved["law"])
    saved["machine"], saved["torch_threads"] = machine(), 1
    SAVED.write_text(json.dumps(saved, indent=1) + "\n")
    fill_in(PAGE, parts)
    if made and plot.available():
        style = plot.styles(made)
        panels = [(section.title, section.points) for section in collect.sections(made)]
        plot.figure(panels, "nfe", style).savefig(PICTURE, dpi=110, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description="All token samplers on all exact problems: docs/zoo.md.")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="where cells are kept (runs/zoo)")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args()
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for part in () if args.write else args.only or PARTS:
        if part == "law":
            (args.out / "law.json").write_text(json.dumps(law()))
        else:
            measure(part, args.out, console)
    if not args.only:
        write(args.out)
        console.print(f"{PAGE}, {PICTURE}, {SAVED}")


if __name__ == "__main__":
    main()
