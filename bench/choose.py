"""What the page "Choose a sampler" needs and bench/zoo.py does not measure: real numbers, other temperatures, plug-ins.

    python bench/choose.py                     # about ten minutes of one core; goes on where it was stopped
    python bench/choose.py --only mixture      # one part of PARTS; may be repeated
    python bench/choose.py --samplers 'gms*'   # these samplers only, such as those of a plug-in
    python bench/choose.py --timed             # keep seconds too; for a machine that does nothing else meanwhile
    python bench/choose.py --save              # measure nothing, only write bench/results/choose.json again

Samplers run with their options as they come; an adaptive one is walked along the option that its facts name. Cells are kept
in --out (runs/choose); the saved file keeps what it has of samplers that are not measured again. Samplers of installed plug-ins
are measured like ours. The page is made from the saved file and from bench/results/zoo.json by tools/measured.py.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from zoo import ROWS, SAVED, budgets, points

from samplers import problems, registry
from samplers.bench import Point, Request, run
from samplers.bench.machine import machine
from samplers.bench.store import CELLS
from samplers.testing.tiny import for_any_model

CHOOSE = Path(__file__).parent / "results/choose.json"
REALS = (3, 5, 8, 10, 15, 20, 40)  # forward passes of samplers of real numbers


@dataclass(frozen=True)
class Part:
    """One group of runs that may be compared.

    Attributes:
        families: the kinds of noise; those that no sampler has are left out.
        rows: samples per run, and of these at a time.
        missing: only samplers that bench/results/zoo.json has not measured, with its numbers of samples.
    """

    problem: str
    families: tuple[str, ...]
    nfe: tuple[int, ...]
    rows: tuple[int, int]
    temperature: float | None = None
    seeds: int = 1
    missing: bool = False


TOKENS = ("masked", "uniform")
FLOWS = ("bayesian_flow",)  # from samplers-bfn: tokens if a problem has any
PARTS = {
    "mixture": Part("mixture", ("gaussian", *FLOWS), REALS, (2000, 2000), seeds=2),
    "digits reals": Part("digits", ("gaussian",), REALS, (512, 512), seeds=2),
    "sudoku4 0.5": Part("sudoku4", TOKENS, budgets("sudoku4"), ROWS["sudoku4"], 0.5),
    "sudoku4 0": Part("sudoku4", TOKENS, budgets("sudoku4"), ROWS["sudoku4"], 0.0),
    "sudoku4 1": Part("sudoku4", TOKENS + FLOWS, budgets("sudoku4"), ROWS["sudoku4"], 1.0, missing=True),
    "digits 1": Part("digits", TOKENS + FLOWS, budgets("digits"), (128, 128), 1.0, missing=True),
    "text 1": Part("text", TOKENS + FLOWS, budgets("text"), (64, 64), 1.0, missing=True),
}  # fmt: skip


def chosen_of(part: Part, pattern: str) -> tuple[str, ...]:
    """The samplers of a part that match a pattern."""
    names = [n for n in registry.names(pattern) if registry.entry(n).family in part.families]
    if part.missing:
        there = {record["sampler"] for record in json.loads(SAVED.read_text(encoding="utf-8"))[part.problem]}
        runs = set(for_any_model())
        names = [n for n in names if n not in there and (n in runs or registry.entry(n).family in FLOWS)]
    return tuple(names)


def measure(part: Part, folder: Path, pattern: str) -> None:
    """Run what is not in the folder yet, and print a line for each run."""
    chosen = chosen_of(part, pattern)
    if not chosen:
        return
    request = Request(
        (part.problem,),
        chosen,
        nfe=part.nfe,
        seeds=part.seeds,
        rows=part.rows[0],
        batch=part.rows[1],
        temperature=part.temperature,
    )
    begun = time.perf_counter()

    def finished(record: dict[str, Any]) -> None:
        what = record.get("error") or f"{record['nfe']['per_row']:.4g} forward passes per row"
        print(
            f"{time.perf_counter() - begun:6.0f} s  {record['sampler']} {record['knob']}={record['value']}: {what}",
            flush=True,
        )

    run([request], folder, command="python bench/choose.py", threads=1, finished=finished)


def saved(name: str, part: Part, made: list[Point], timed: bool) -> dict[str, Any]:
    """A group as the page reads it: what is common to all its points, and each point with value and 95 % interval."""
    first = made[0]
    return {
        "part": name,
        "problem": part.problem,
        "temperature": part.temperature,
        "rows": part.rows[0],
        "seeds": part.seeds,
        "primary": first.primary,
        "metrics": {m: {"better": c.better, "exact": c.truth} for m, c in first.metrics.items()},
        "machine": first.records[0]["machine"],
        "points": [
            {
                "family": p.family, "sampler": p.sampler, "distribution": p.records[0]["distribution"], "knob": p.knob,
                "value": p.value, "nfe": p.nfe, "seconds": p.seconds if timed else None,
                **{m: [c.value, c.low, c.high] for m, c in p.metrics.items()},
            }
            for p in made
        ],
    }  # fmt: skip


def exact() -> dict[str, dict[str, Any]]:
    """What exact samples score, as many as bench/results/zoo.json has of each problem, which does not keep it."""
    found = {}
    for problem, records in json.loads(SAVED.read_text(encoding="utf-8")).items():
        if problem not in ROWS:
            continue
        subject = problems.create(problem)
        score = subject.score(subject.sample_truth(records[0]["rows"], 0, "masked"), "masked")
        found[problem] = {m: {"better": e.better, "exact": e.truth} for m, e in score.items()} | {
            "primary": score.primary
        }
    return found


def save(out: Path, timed: bool) -> None:
    before = json.loads(CHOOSE.read_text(encoding="utf-8"))["groups"] if CHOOSE.exists() else []
    kept = {group["part"]: group for group in before}
    for name, part in PARTS.items():
        if (out / name / CELLS).exists():
            group = saved(name, part, points(out / name), timed)
            again = {p["sampler"] for p in group["points"]}
            group["points"] += [p for p in kept.get(name, group)["points"] if p["sampler"] not in again]
            kept[name] = group
    groups = [kept[name] for name in PARTS if name in kept]
    rounded = json.loads(json.dumps(groups), parse_float=lambda text: float(f"{float(text):.6g}"))
    # One point per line, so that a change of one is a change of one line.
    text = json.dumps({"machine": machine(), "zoo": exact(), "groups": rounded}, separators=(",", ":"))
    text = text.replace('{"family"', '\n{"family"').replace('{"part"', '\n{"part"')
    CHOOSE.write_text(text + "\n", encoding="utf-8")
    print(CHOOSE)


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure what the page "Choose a sampler" shows.')
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only; may be repeated")
    parser.add_argument("--samplers", default="*", metavar="PATTERN", help="measure these samplers only")
    parser.add_argument("--out", type=Path, default=Path("runs/choose"), help="where cells are kept (runs/choose)")
    parser.add_argument("--save", action="store_true", help="measure nothing, only write the file again")
    parser.add_argument("--timed", action="store_true", help="keep seconds: nothing else must run on the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in () if args.save else args.only or PARTS:
        print(name, flush=True)
        measure(PARTS[name], args.out / name, args.samplers)
    save(args.out, args.timed)


if __name__ == "__main__":
    main()
