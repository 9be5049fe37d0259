"""speculative_copies against every other masked sampler: on the exact problems of tokens, and on text-mdm.

    python bench/moonshot.py                    # a quarter of an hour on one core; goes on where it was stopped
    python bench/moonshot.py --only text        # a part: problems or text
    python bench/moonshot.py --write            # measure nothing, write bench/results/moonshot.json and the page again

On a problem every sampler gets ceil(L / 4), ceil(L / 2) and L forward passes, L the positions to fill, or is walked along the
option that sets its passes. `best other` at a budget is the setting of lowest error among all that take at most so many passes
per row; it is the best of some hundred settings, chosen by what is reported, which favours the others. Ours is `level` if its
error is not above that by more than the two 95 % intervals, halves added in quadrature. At equal rows, the budget of the others
is not passes but the rows of the model that ours took, copies included.
On text-mdm tokens are judged by the 5-gram model of bench/slots.py. Cells are kept in --out (runs/moonshot).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from zoo import fill_in

import samplers
from samplers import problems
from samplers.bench import Request, Store, collect, run
from samplers.bench.machine import machine
from samplers.bench.store import CELLS
from samplers.masked import _CLASSES

HERE = Path(__file__).parent
PAGE, SAVED = HERE.parent / "docs/speculative_copies.md", HERE / "results/moonshot.json"
OURS = "speculative_copies"
LEFT_OUT = {"smc"}  # it runs another sampler of the list
ROWS = {"text": 32, "domino": 500, "hmm": 200}  # samples; of other problems:
MANY = 1000
METRIC = {
    "domino": "invalid"
}  # in place of the primary one, whose value for exact samples is hardly below that of any other
PROBLEMS = (  # all of tokens but digits, whose metric is of pictures
    *("copy", "reverse", "sort", "shuffle", "replace_random", "remove_random", "insert_random"),
    *("latin3", "latin4", "sudoku4"),
    *("domino", "hmm", "text", "parity", "mirror", "dyck"),
)
DRAFTS = (8, 16)
TEXT = [  # sampler, options, steps of 64 positions
    *(("random_order", {}, steps) for steps in (64, 32, 16, 8)),
    *(("entropy_bound", {"bound": b}, None) for b in (0.1, 0.5, 1.0, 3.0)),
    *(("threshold", {"threshold": t}, None) for t in (0.9, 0.7, 0.4)),
    *((OURS, {"drafts": k}, None) for k in (4, 8, 16)),
    *((OURS, {"drafts": 8}, steps) for steps in (16, 8)),
    (OURS, {"drafts": 8, "order": "entropy"}, None),
]


def positions(name: str) -> int:
    problem = problems.create(name)
    assert problem.length is not None
    return problem.length - len(problem.settings.get("prompt", ()))


def measure(name: str, out: Path, console: Console) -> None:
    """Every masked sampler on one problem."""
    length, rows = positions(name), ROWS.get(name, MANY)
    others = tuple(f"masked/{n}" for n in _CLASSES if n not in LEFT_OUT | {OURS})
    budgets = sorted({math.ceil(length / 4), math.ceil(length / 2), length})
    common: dict[str, Any] = {"family": "masked", "seeds": 1, "rows": rows, "batch": rows}
    requests = [Request((name,), others, nfe=tuple(budgets), **common)]
    requests += [
        Request((name,), (f"masked/{OURS}",), nfe=tuple(budgets), options=(f"drafts={k}",), **common) for k in DRAFTS
    ]
    begun = time.perf_counter()
    done = run(requests, out / name, command="python bench/moonshot.py", threads=1)
    console.print(
        f"{name}: {done.planned} cells, {len(done.failed)} failed, {time.perf_counter() - begun:.0f} s", highlight=False
    )
    for record in done.failed:
        console.print(f"  {record['sampler']}: {record['error'][:200]}", highlight=False)


def kept(folder: Path) -> list[dict[str, Any]]:
    """What the results hold of each setting."""
    made = []
    for r in collect.current(Store(folder, write=False).records.values())[0]:
        if r["status"] == "ok":
            metric = METRIC.get(r["problem"], r["score"]["primary"])
            error = r["score"]["estimates"][metric]
            made.append(
                {
                    "sampler": r["sampler"], "knob": r["knob"], "value": r["value"], "drafts": r["options"].get("drafts"),
                    "metric": metric, "nfe": r["nfe"]["per_row"], "rows": r["nfe"]["row_evals"] / r["rows"],
                    "error": [round(error[k], 5) for k in ("value", "low", "high")], "exact": error["truth"],
                }
            )  # fmt: skip
    return made


def half(cell: dict[str, Any]) -> float:
    return (cell["error"][2] - cell["error"][1]) / 2


def best(cells: list[dict[str, Any]], by: str, budget: float) -> dict[str, Any] | None:
    inside = [c for c in cells if c[by] <= budget * 1.005]
    return min(inside, key=lambda c: (c["error"][0], c["nfe"]), default=None)


def verdict(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """below, level or above: ours against the best other, by more than the two intervals or not."""
    gap = ours["error"][0] - other["error"][0]
    if abs(gap) <= math.hypot(half(ours), half(other)):
        return "level"
    return "above" if gap > 0 else "below"


def compared(name: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours, with 8 drafts, against the best other at L/4 and L/2: at equal passes, and at equal rows."""
    mine = [c for c in cells if c["sampler"] == OURS and c["drafts"] == 8]
    others, length = [c for c in cells if c["sampler"] != OURS], positions(name)
    rows = []
    for part in (4, 2):
        budget = math.ceil(length / part)
        ours = next(c for c in mine if c["value"] == budget)
        row: dict[str, Any] = {"problem": name, "part": part, "budget": budget, "length": length, "ours": ours}
        for by, most in (("nfe", budget), ("rows", ours["rows"])):
            other = best(others, by, most)
            row[by] = None if other is None else {"other": other, "verdict": verdict(ours, other)}
        rows.append(row)
    return rows


def text(out: Path, console: Console) -> list[dict[str, Any]]:
    """text-mdm: 32 tokens of held-out text, 64 more in one block, at temperature 1."""
    from train import VOCAB, Ngram, Text

    from samplers.models import zoo as models
    from samplers.models.tokenizer import Tokenizer

    path = out / "text-mdm.json"
    if path.exists():
        return json.loads(path.read_text())
    prompts, given, fill = 16, 32, 64
    source = Text(Tokenizer.load(models.FOLDER / "text-mdm" / "vocab.json"))
    windows = source.held_windows()
    windows = windows[torch.linspace(0, len(windows) - 1, prompts).long()][:, : given + fill]
    judge, denoiser = Ngram(source.ids.tolist(), 5, VOCAB), models.load("text-mdm")

    def judged(rows: torch.Tensor) -> list[float]:
        nll = [float(judge.nll(row)[given:].mean()) for row in rows.tolist()]
        mean, error = statistics.fmean(nll), statistics.stdev(nll) / math.sqrt(len(nll))
        return [mean, mean - 1.96 * error, mean + 1.96 * error]

    made: list[dict[str, Any]] = [{"sampler": "the text itself", "nll": judged(windows)}]
    for name, options, steps in TEXT:
        how: dict[str, Any] = {
            "gen_length": fill,
            "temperature": 1.0,
            "steps": steps,
            "forbid": [denoiser.eos_id],
            **options,
        }
        drawn = samplers.sample(denoiser, name, prompt=windows[:, :given], seed=0, **how)
        alone = [
            samplers.sample(denoiser, name, prompt=windows[:1, :given], seed=i, **how).seconds.total for i in range(3)
        ]
        made.append(
            {
                "sampler": name, "options": options, "steps": steps, "nfe": float(drawn.nfe_rows.double().mean()),
                "rows": drawn.row_evals / prompts, "nll": judged(drawn.x), "seconds": drawn.seconds.total / prompts,
                "alone": statistics.median(alone),
            }
        )  # fmt: skip
        console.print(json.dumps(made[-1]), highlight=False)
    path.write_text(json.dumps(made))
    return made


def shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    name = "" if cell["sampler"] == OURS else f"`{cell['sampler']}` "
    value, low, high = cell["error"]
    return f"{name}{value:.3g} <sub>{low:.3g}–{high:.3g} · {cell['nfe']:.3g} / {cell['rows']:.3g}</sub>"


def tables(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| problem | L | error of exact samples | budget | ours: error · passes / rows | best other at so many passes | is | "
        "best other at so many rows | is |",
        "|---" * 9 + "|",
    ]
    for r in rows:
        exact = "" if r["ours"]["exact"] is None else f"{r['ours']['exact']:.3g}"
        cells = [
            r["problem"],
            str(r["length"]),
            f"{r['ours']['metric']} {exact}",
            f"L/{r['part']} = {r['budget']}",
            shown(r["ours"]),
        ]
        for by in ("nfe", "rows"):
            cells += ["–", ""] if r[by] is None else [shown(r[by]["other"]), r[by]["verdict"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *counted(rows)])


def counted(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(r["problem"] for r in rows))
    lines = []
    for by, what in (("nfe", "passes"), ("rows", "rows of the model")):
        said = {n: [r[by]["verdict"] for r in rows if r["problem"] == n and r[by]] for n in names}
        fine = sum("above" not in v for v in said.values())
        each = [sum(r[by] is not None and r[by]["verdict"] == v for r in rows) for v in ("below", "level", "above")]
        lines.append(
            f"At equal {what}: below or level at both budgets on {fine} of {len(names)} problems; of the {sum(each)} pairs "
            f"{each[0]} below, {each[1]} level, {each[2]} above."
        )
    return ["  \n".join(lines)]


def text_table(made: list[dict[str, Any]]) -> str:
    lines = [
        "| sampler | steps | passes | rows | nats per token | ms per sample, 16 at a time | ms, one alone |",
        "|---" * 7 + "|",
    ]
    for m in made:
        nll = f"{m['nll'][0]:.2f} <sub>{m['nll'][1]:.2f}–{m['nll'][2]:.2f}</sub>"
        if "nfe" not in m:
            lines.append(f"| {m['sampler']} | | | | {nll} | | |")
            continue
        options = "".join(f", {k} {v}" for k, v in m["options"].items())
        lines.append(
            f"| `{m['sampler']}`{options} | {m['steps'] or ''} | {m['nfe']:.1f} | {m['rows']:.1f} | {nll} "
            f"| {1000 * m['seconds']:.0f} | {1000 * m['alone']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="speculative_copies against all other masked samplers: docs/speculative_copies.md."
    )
    parser.add_argument("--only", choices=("problems", "text"), help="measure this part only")
    parser.add_argument("--problems", nargs="*", default=PROBLEMS, choices=PROBLEMS, help="measure these problems only")
    parser.add_argument("--out", type=Path, default=Path("runs/moonshot"), help="where cells are kept (runs/moonshot)")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the results and the page")
    args = parser.parse_args()
    console = Console(width=200)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    saved = json.loads(SAVED.read_text()) if SAVED.exists() else {"problems": {}, "text": []}
    if not args.write:
        if args.only != "text":
            for name in args.problems:
                measure(name, args.out, console)
        if args.only != "problems":
            saved["text"] = text(args.out, console)
    measured = [name for name in args.problems if (args.out / name / CELLS).exists()]
    if measured or not args.write:
        saved["problems"] |= {name: kept(args.out / name) for name in measured}
        saved["machine"], saved["torch_threads"] = machine(), 1
        SAVED.write_text(json.dumps(saved) + "\n")
    rows = [row for name in PROBLEMS if name in saved["problems"] for row in compared(name, saved["problems"][name])]
    parts = {"problems": tables(rows)} if rows else {}
    if saved["text"]:
        parts["text"] = text_table(saved["text"])
    if PAGE.exists():
        fill_in(PAGE, parts)
    for part in parts.values():
        print(part)


if __name__ == "__main__":
    main()
