"""How far samples are from the target, by evaluations: DDPM, Analytic-DPM, the second moment alone, and GMS.

    python study.py              # some minutes; writes results/study.json and results/study.png, prints the tables of the README
    python study.py --plot       # the picture and the tables again, from results/study.json

All denoisers are exact, so every error is the sampler's own. Intervals are of 95 %.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from pathlib import Path

import torch

import samplers
from samplers.statistics import noise_norms

HERE = Path(__file__).parent / "results"
EVALUATIONS = (5, 10, 15, 20)
PARTS = {  # weight, mean, standard deviation of each coordinate
    "bimodal": ((0.4, -0.8, 0.1), (0.6, 0.5, 0.15)),
    "skewed": ((0.75, -0.45, 0.15), (0.25, 0.75, 0.5)),
    "mixture": ((0.4, -1.0, 0.3), (0.6, 0.8, 0.5)),
}
ROWS = {"bimodal": 16_000, "skewed": 16_000, "mixture": 16_000, "digits": 800}
SCORED = 2500  # rows of the energy distance, whose cost is their square
MEASURES = {"bimodal": ("ks", "energy"), "skewed": ("ks", "energy"), "mixture": ("ks", "energy"), "digits": ("mmd",)}
RUNS = {  # what tables call it: sampler, options
    "ddpm": ("ddpm", {}),
    "analytic_ddpm": ("analytic_ddpm", {}),
    "sn_ddpm": ("sn_ddpm", {}),
    "gms": ("gms", {}),
    "gms, floor=0.1": ("gms", {"floor": 0.1}),
    "gms, per sample": ("gms", {"components": "sample"}),
    "gms, published fit": ("gms", {"fit": "published", "components": "sample"}),
}
COLOURS = dict(zip(RUNS, ("#8a8a8a", "#b8860b", "#1f77b4", "#c2185b", "#7b1fa2", "#2e7d32", "#e67300")))


def problem_of(target: str) -> samplers.problems.Problem:
    if target == "digits":
        return samplers.problems.create("digits")
    if target == "mixture":
        return samplers.problems.create("mixture")
    weights, means, stds = zip(*PARTS[target])
    # The schedule of the published models: beta from 0.0001 to 0.02 in 1000 steps.
    return samplers.problems.create(
        "mixture", weights=weights, means=[[m] for m in means], stds=stds, schedule="ddpm_linear"
    )


def ks(
    x: torch.Tensor, parts: tuple[tuple[float, float, float], ...], alpha: float = 1.0, sigma: float = 0.0
) -> tuple[float, float, float]:
    """The largest Kolmogorov-Smirnov distance of a coordinate of alpha x_0 + sigma e, and its interval."""
    n, found = len(x), (0.0, 0.0)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n
    for column in x.double().sort(0).values.T:
        cdf = sum(w * torch.special.ndtr((column - alpha * m) / math.hypot(alpha * s, sigma)) for w, m, s in parts)
        gap = torch.maximum(above - cdf, cdf - above + 1 / n)
        found = max(found, (float(gap.max()), float(cdf[gap.argmax()])))
    half = 1.96 * math.sqrt(max(found[1] * (1 - found[1]), 1 / n) / n)
    return found[0], max(0.0, found[0] - half), found[0] + half


def norms_of(problem: samplers.problems.Problem) -> tuple[tuple[float, float], ...]:
    """What analytic_ddpm needs: measured on exact samples, at 20 noise levels."""
    model = problem.denoiser("gaussian")
    ends = [float(model.schedule.lam(t)) for t in (model.schedule.t_max, model.schedule.t_min)]
    lams = torch.linspace(*ends, 20, dtype=torch.float64)
    data = problem.sample_truth(1000, 1, "gaussian").to(model.dtype)
    return noise_norms(model, data, model.schedule.t_of(lams).tolist())


def sampler_of(run: str, norms: tuple[tuple[float, float], ...]) -> samplers.Sampler:
    name, options = RUNS[run]
    return samplers.create(name, **options, **({"norms": norms} if name == "analytic_ddpm" else {}))


def measured(target: str) -> list[dict]:
    problem, out = problem_of(target), []
    model, norms = problem.denoiser("gaussian"), norms_of(problem)
    for run in RUNS:
        if model.shape == (1,) and run == "gms, per sample":
            continue  # with one coordinate it is the same as gms
        for steps in EVALUATIONS:
            begun = time.perf_counter()
            done = samplers.sample(model, sampler_of(run, norms), steps=steps, batch=ROWS[target], seed=11)
            seconds = time.perf_counter() - begun
            score = problem.score(done.x[:SCORED])
            shown = ("value", "low", "high", "truth")
            values = {m: [getattr(score[m], k) for k in shown] for m in MEASURES[target]}
            if target in PARTS:  # from all rows, where the score is from a part of them
                few = math.sqrt(SCORED / len(done.x))
                values["ks"] = [*ks(done.x, PARTS[target]), values["ks"][3] * few]
            out.append(
                {"target": target, "run": run, "evaluations": steps, "nfe": done.nfe, "seconds": seconds, **values}
            )
            print(target, run, steps, {k: round(v[0], 4) for k, v in values.items()}, flush=True)
    return out


def reference() -> list[dict]:
    """The bimodal target at the last noise level of the table, over evenly spaced times: other people's numbers beside ours."""
    problem, out = problem_of("bimodal"), []
    model, norms = problem.denoiser("gaussian"), norms_of(problem)
    alpha, sigma = (float(f(0.0)) for f in (model.schedule.alpha, model.schedule.sigma))
    for run in RUNS:
        if run == "gms, per sample":
            continue
        for k in (5, 10, 20, 50):
            if run == "gms, published fit" and k == 50:
                continue  # a minute for one number
            times = [round(1 + i * 999 / (k - 1)) - 1 for i in range(k)][::-1]
            states = samplers.stream(model, sampler_of(run, norms), timesteps=times, batch=ROWS["bimodal"], seed=5)
            x = [state.x for state in states][k - 1]  # after k - 1 steps, before the closing one
            out.append({"run": run, "times": k, "ks": ks(x, PARTS["bimodal"], alpha, sigma)})
            print("reference", run, k, [round(v, 4) for v in out[-1]["ks"]], flush=True)
    return out


def table(found: dict, target: str, measure: str) -> str:
    rows = [r for r in found["runs"] if r["target"] == target]
    lines = [
        f"| {target}, {measure} | " + " | ".join(map(str, EVALUATIONS)) + " |",
        "|---" * (1 + len(EVALUATIONS)) + "|",
    ]
    for run in dict.fromkeys(r["run"] for r in rows):
        cells = [r[measure] for r in rows if r["run"] == run]
        lines.append(
            f"| {run} | " + " | ".join(f"{v:.3g} ({low:.2g} to {high:.2g})" for v, low, high, _ in cells) + " |"
        )
    lines.append(f"| exact samples | {cells[0][3]:.2g} |" + " |" * (len(EVALUATIONS) - 1))
    return "\n".join(lines)


def plot(found: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("bimodal", "ks"), ("skewed", "ks"), ("mixture", "ks"), ("digits", "mmd")]
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
    for axis, (target, measure) in zip(axes, panels):
        rows = [r for r in found["runs"] if r["target"] == target]
        for j, run in enumerate(dict.fromkeys(r["run"] for r in rows)):
            mine = [r for r in rows if r["run"] == run]
            at = [r["evaluations"] * (1 + 0.02 * (j - 3)) for r in mine]  # side by side, so that intervals can be read
            value, low, high = ([r[measure][k] for r in mine] for k in range(3))
            least = 0.2 * min(r[measure][0] for r in rows if r[measure][0] > 0)
            spans = [[max(v - max(b, least), 0) for v, b in zip(value, low)], [t - v for v, t in zip(value, high)]]
            how = {"marker": "o", "markersize": 4, "linewidth": 1.6, "elinewidth": 0.9, "capsize": 2}
            axis.errorbar(at, [max(v, least) for v in value], spans, label=run, color=COLOURS[run], **how)
        axis.axhline(rows[0][measure][3], color="#444444", linestyle=":", linewidth=1, label="exact samples")
        axis.set_yscale("log")
        axis.set_xticks(EVALUATIONS)
        axis.set_title(target)
        axis.set_xlabel("evaluations")
        axis.set_ylabel({"ks": "KS distance", "mmd": "squared kernel distance (mmd)"}[measure])
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(HERE / "study.png", dpi=110)


def main() -> None:
    file = HERE / "study.json"
    if "--plot" not in sys.argv:
        begun = time.perf_counter()
        found = {"reference": reference(), "runs": [row for target in ROWS for row in measured(target)]}
        found |= {
            "rows": ROWS,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "seconds": time.perf_counter() - begun,
        }
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    plot(found)
    for target, measures in MEASURES.items():
        for measure in measures:
            print("\n" + table(found, target, measure))
    print("\n| bimodal, KS before the closing step | 5 | 10 | 20 | 50 |\n|---|---|---|---|---|")
    for run in dict.fromkeys(r["run"] for r in found["reference"]):
        cells = [f"{r['ks'][0]:.3f}" for r in found["reference"] if r["run"] == run]
        print(f"| {run} | " + " | ".join(cells + [""] * (4 - len(cells))) + " |")


if __name__ == "__main__":
    main()
