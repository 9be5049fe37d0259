"""Error against evaluations of the samplers of Bayesian flows, on exact models, beside baselines, with 95 % intervals.

    python study/few_steps.py            # a few minutes of one core; writes few_steps.json and few_steps.png beside itself

What is scored is each problem's own metric; exact samples of the same number score the dashed line.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

import samplers

HERE = Path(__file__).parent
EVALUATIONS = (5, 7, 10, 20)
TOKENS = (
    "bfn",
    "bfn_euler",
    "bfn_euler_sde",
    "bfn_solver_1",
    "bfn_solver_2",
    "bfn_sde_solver_1",
    "bfn_sde_solver_2",
)
REALS = ("bfn", "bfn_euler", "bfn_euler_sde", "bfnpp_1", "bfnpp_2", "bfnpp_sde_2")
PUBLISHED = {"grid": "time", "eta": 0.01}  # the grid that was published for reals, and where its configuration starts
# problem, kind of data, metric, rows, samplers
CASES = (
    ("mixture", "continuous", "energy", 4000, REALS),
    ("digits", "continuous", "mmd", 400, REALS),
    ("sudoku4", "discrete", "tv", 2000, TOKENS),
    ("digits", "discrete", "nll", 128, TOKENS),
    ("text", "discrete", "nll", 96, TOKENS),
)


def measure() -> list[dict[str, Any]]:
    """One record for each problem, sampler and number of evaluations."""
    records: list[dict[str, Any]] = []
    for problem_name, kind, metric, rows, names in CASES:
        problem = samplers.problems.create(problem_name)
        flow = problem.denoiser("bayesian_flow", kind=kind)
        runs: list[tuple[str, Any, dict[str, Any]]] = [(name, flow, {}) for name in names]
        if kind == "continuous":
            runs += [(name, flow, PUBLISHED) for name in ("bfn", "bfnpp_2", "bfnpp_sde_2")]
            runs.append(("dpmpp_2m", problem.denoiser("gaussian"), {}))  # the same data under another kind of noise
        for name, model, options in runs:
            label = f"{name}, published grid" if options else name
            for steps in EVALUATIONS:
                out = samplers.sample(model, name, batch=rows, steps=steps, seed=1, **options)
                assert out.nfe == steps
                said = problem.score(out, "masked" if kind == "discrete" else "gaussian")[metric]
                records.append(
                    {"problem": problem_name, "kind": kind, "metric": metric, "sampler": label, "nfe": steps, "n": rows}
                    | {"value": said.value, "low": said.low, "high": said.high, "exact": said.truth}
                )
        print(table(records, problem_name, kind), end="\n\n", flush=True)
    return records


def table(records: list[dict[str, Any]], problem: str, kind: str) -> str:
    """A table in Markdown: value, and half the width of its interval."""
    mine = [r for r in records if (r["problem"], r["kind"]) == (problem, kind)]
    shown = (5, 10, 20)
    lines = [f"| {problem}, {mine[0]['metric']} (exact {mine[0]['exact']:.3g}) | " + " | ".join(map(str, shown)) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for name in dict.fromkeys(r["sampler"] for r in mine):
        cells = [r for n in shown for r in mine if (r["sampler"], r["nfe"]) == (name, n)]
        lines.append(
            f"| {name} | " + " | ".join(f"{r['value']:.3f} ± {(r['high'] - r['low']) / 2:.3f}" for r in cells) + " |"
        )
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """One panel for each problem and kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.5), dpi=110, layout="constrained")
    colours = dict(zip(("dpmpp_2m", *dict.fromkeys((*TOKENS, *REALS))), ["black", *(f"C{i}" for i in range(10))]))
    panels = figure.subplots(2, 3).flatten()
    seen: dict[str, Any] = {}
    for axes, (problem, kind, metric, rows, _) in zip(panels, CASES):
        mine = [r for r in records if (r["problem"], r["kind"]) == (problem, kind)]
        for k, name in enumerate(dict.fromkeys(r["sampler"] for r in mine)):
            line = [r for r in mine if r["sampler"] == name]
            x = [
                r["nfe"] * (1 + 0.006 * (k - 3)) for r in line
            ]  # moved aside, so that intervals do not cover each other
            y = [r["value"] for r in line]
            ends = [[max(r["value"] - r["low"], 0) for r in line], [r["high"] - r["value"] for r in line]]
            sampler, _, published = name.partition(", ")
            look = {"color": colours[sampler], "linestyle": ":" if published else "-", "marker": "o", "markersize": 3}
            axes.errorbar(x, y, ends, label=name, capsize=2, **look)
        axes.axhline(mine[0]["exact"], color="grey", linestyle="--", label="exact samples")
        axes.set_title(f"{problem}, {'real numbers' if kind == 'continuous' else 'tokens'}, {rows} samples")
        axes.set_xscale("log")
        axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axes.minorticks_off()
        if kind == "continuous":
            axes.set_yscale("log")
            axes.set_ylim(bottom=mine[0]["exact"] / 4)
        axes.set_xlabel("evaluations")
        axes.set_ylabel(f"{metric} (lower is better)" if metric != "nll" else "nats per position")
        seen |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    panels[-1].axis("off")
    panels[-1].legend(seen.values(), seen.keys(), loc="center", fontsize=9)
    figure.savefig(path)


def main() -> None:
    torch.set_num_threads(1)
    begun = time.perf_counter()
    records = measure()
    (HERE / "few_steps.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    plot(records, HERE / "few_steps.png")
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
