"""When do remdm and p2 beat ancestral sampling? Two kinds of wrong, measured with 95 % intervals.

    python bench/remasking_study.py [--rows 1.0] [--no-save]     four minutes of one core
    python bench/remasking_study.py --show                       the tables and the plot of what is saved; nothing is run

Saved as bench/results/MACHINE/remasking.json and drawn as docs/remasking.png; docs/remasking.md is the conclusion in words.

parallel  An exact denoiser and few steps, L/8 to 2L of them. All that is wrong comes from tokens drawn side by side. On
          sudoku4 (every cell depends on every other, some absolutely), text (pairs of neighbours only, 32 characters) and
          digits (all pixels share one image).
noise     Steps L/4 to 4L with a denoiser that is wrong itself, on sudoku4 and digits: logits + sigma z, z ~ N(0, 1) a fixed
          function of the state and the position; or probabilities (1 - eps) p + eps / V.
solvers   Two forward passes per step, frozen rates, extrapolation: the exact denoisers again, L/4 to L passes. docs/solvers.md

Forwards are counted for each row: a step in which nothing appears costs none. Compare along that axis, not by steps.
"""

import argparse
import io
import json
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import samplers
from samplers import TokenDenoiser, problems
from samplers.random import uniform


class Wrong(TokenDenoiser):
    """A denoiser that is off by a fixed amount in each state: sigma of noise in its logits, and eps of uniform tokens.

    The noise is Philox's, keyed by a hash of the whole row, so a row's answer is the same in every batch and whenever it is
    asked again; impossible tokens stay impossible under sigma and become possible under eps.
    """

    def __init__(self, inner, sigma=0.0, eps=0.0):
        self.inner, self.sigma, self.eps = inner, sigma, eps
        self.vocab_size, self.mask_id, self.length = inner.vocab_size, inner.mask_id, inner.length
        self.name = f"{inner.name}, sigma {sigma:g}, eps {eps:g}"
        # Zobrist's hash: a random number for each token at each position, added up modulo 2^64.
        g = torch.Generator().manual_seed(0)
        self.keys = torch.randint(-(2**62), 2**62, (self.length, self.vocab_size), generator=g)

    def predict(self, x, t=None, *, rows=None, cache=None):
        rows = torch.ones_like(x, dtype=torch.bool) if rows is None else rows
        logits = self.inner.predict(x, t, rows=rows)  # (N, V)
        clean = torch.arange(self.vocab_size) != self.mask_id
        if self.eps:
            p = logits.softmax(1) * (1 - self.eps) + clean * self.eps / (self.vocab_size - 1)
            logits = p.log()
        if self.sigma:
            state = self.keys[torch.arange(self.length), x].sum(1)  # (B,) int64
            row, position = rows.nonzero().unbind(1)
            place = position[:, None] * self.vocab_size + torch.arange(self.vocab_size)  # (N, V)
            u, v = (uniform(state[row][:, None], 0, place, 0, draw) for draw in (0, 1))
            logits = logits + self.sigma * (torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * math.pi * v)).float()
        return logits


# The authors' eta belongs to 1,024 steps; eta x steps is kept, which masks a token as often in a run of any length.
SAMPLERS = {
    "ancestral": lambda steps: ("radd", {}),  # the same tokens, and what they cost at least
    "equal counts": lambda steps: ("first_hitting", {}),
    "greedy": lambda steps: ("low_confidence", {}),
    "remdm cap": lambda steps: ("remdm", {"strategy": "cap", "eta": min(1.0, 0.008 * 1024 / steps)}),
    "remdm loop": lambda steps: ("remdm", {"strategy": "loop", "eta": min(1.0, 0.02 * 1024 / steps)}),
    "remdm conf": lambda steps: ("remdm", {"strategy": "conf"}),
    "p2": lambda steps: ("p2", {}),
    "p2 token, eta 2": lambda steps: ("p2", {"planner": "token", "eta": 2.0}),
}
SOLVERS = {
    "ancestral": SAMPLERS["ancestral"],
    "tau_leaping": lambda steps: ("tau_leaping", {}),
    "theta_rk2": lambda steps: ("theta_rk2", {}),
    "theta_trapezoidal": lambda steps: ("theta_trapezoidal", {}),
    "first_hitting": SAMPLERS["equal counts"],
    "first_hitting, line": lambda steps: ("first_hitting", {"method": "extrapolation"}),
}
PROBLEMS = {"sudoku4": {}, "text": {"order": 2, "length": 32}, "digits": {}}
EXACT = [(0.0, 0.0)]
SIGMAS_AND_EPS = [(0.0, 0.02), (0.0, 0.1), (0.5, 0.0), (1.5, 0.0)]
# kind, problem, rows, steps as shares of L, (sigma, eps) of the denoiser, samplers that are left out
PLAN = [
    ("parallel", "sudoku4", 4000, (1 / 8, 1 / 4, 1 / 2, 1, 2, 4), EXACT, ()),
    ("parallel", "text", 800, (1 / 8, 1 / 4, 1 / 2, 1, 2), EXACT, ("p2 token, eta 2",)),
    ("parallel", "digits", 160, (1 / 8, 1 / 4, 1 / 2, 1, 2), EXACT, ("p2 token, eta 2",)),
    ("noise", "sudoku4", 2000, (1 / 2, 1, 4), SIGMAS_AND_EPS, ("remdm conf",)),
    ("noise", "digits", 160, (1 / 4, 1), [(0.0, 0.05), (1.0, 0.0)], ("remdm loop", "remdm conf", "p2 token, eta 2")),
    ("solvers", "sudoku4", 4000, (1 / 4, 1 / 2, 1), EXACT, ()),
    ("solvers", "text", 800, (1 / 4, 1 / 2, 1), EXACT, ()),
    ("solvers", "digits", 160, (1 / 4, 1 / 2, 1), EXACT, ()),
]
SEED = 11


def run(rows_factor):
    """-> the cells, a dictionary each."""
    jobs = [
        (kind, problem, max(20, int(rows * rows_factor)), share, wrong, label)
        for kind, problem, rows, shares, wrongs, without in PLAN
        for wrong in wrongs
        for share in shares
        for label in (SOLVERS if kind == "solvers" else SAMPLERS)
        if label not in without
    ]
    made = {name: problems.create(name, **options) for name, options in PROBLEMS.items()}
    cells = []
    for kind, name, rows, share, (sigma, eps), label in track(jobs, "runs"):
        problem = made[name]
        denoiser = problem.denoiser("masked")
        if sigma or eps:
            denoiser = Wrong(denoiser, sigma, eps)
        steps = max(1, round(share * problem.length))
        sampler, options = (SOLVERS if kind == "solvers" else SAMPLERS)[label](steps)
        out = samplers.sample(denoiser, sampler, batch=rows, steps=steps, seed=SEED, temperature=1.0, **options)
        score = problem.score(out).to_dict()["estimates"]
        keep = ("value", "low", "high", "truth")
        score = {m: {k: e[k] if e[k] is None else round(e[k], 5) for k in keep} for m, e in score.items()}
        cells.append(
            {
                "kind": kind,
                "problem": name,
                "sigma": sigma,
                "eps": eps,
                "label": label,
                "sampler": sampler,
                "options": options,
                "steps": steps,
                "rows": rows,
                "nfe": float(out.nfe_rows.double().mean()),
                "score": score,
            }
        )
    return cells


# What is shown: kind, problem, sigma, eps, metric and what it is.
PANELS = [
    ("parallel", "sudoku4", 0.0, 0.0, "invalid", "sudoku4: invalid grids"),
    ("parallel", "text", 0.0, 0.0, "bigram_tv", "text: distance of pairs"),
    ("parallel", "digits", 0.0, 0.0, "nll", "digits: NLL a pixel"),
    ("noise", "sudoku4", 0.0, 0.1, "invalid", "sudoku4, eps 0.1: invalid grids"),
    ("noise", "sudoku4", 1.5, 0.0, "tv", "sudoku4, sigma 1.5: distance to the distribution"),
    ("noise", "digits", 0.0, 0.05, "nll", "digits, eps 0.05: NLL a pixel"),
]
TABLES = [
    *((k, p, 0.0, 0.0, m) for k, p, m in (("parallel", "sudoku4", "invalid"), ("parallel", "sudoku4", "tv"))),
    *((k, p, 0.0, 0.0, m) for k, p, m in (("parallel", "text", "bigram_tv"), ("parallel", "text", "nll"))),
    *((k, p, 0.0, 0.0, m) for k, p, m in (("parallel", "digits", "nll"), ("parallel", "digits", "mmd"))),
    *(("noise", "sudoku4", s, e, m) for s, e in SIGMAS_AND_EPS for m in ("invalid", "tv")),
    *(("noise", "digits", s, e, m) for s, e in ((0.0, 0.05), (1.0, 0.0)) for m in ("nll", "mmd")),
    *(("solvers", p, 0.0, 0.0, m) for p, m in (("sudoku4", "invalid"), ("text", "nll"), ("digits", "nll"))),
]


def chosen(cells, *where):
    """-> label: its cells, of one kind, problem, sigma and eps."""
    lines = {}
    for c in cells:
        if (c["kind"], c["problem"], c["sigma"], c["eps"]) == where:
            lines.setdefault(c["label"], []).append(c)
    return lines


def table(cells, kind, problem, sigma, eps, metric):
    """A row a sampler, a column a number of steps: the value, half its interval, and the NFE."""
    lines = chosen(cells, kind, problem, sigma, eps)
    steps = sorted({c["steps"] for line in lines.values() for c in line})
    truth = next(iter(lines.values()))[0]["score"][metric]["truth"]
    wrong = f", sigma {sigma:g}" * bool(sigma) + f", eps {eps:g}" * bool(eps)
    out = Table(title=f"{problem}{wrong}: {metric}, exact samples {truth:.3g}", title_justify="left")
    out.add_column("steps")
    for s in steps:
        out.add_column(str(s), justify="right")
    for label, line in lines.items():
        by_steps = {c["steps"]: c for c in line}
        row = []
        for s in steps:
            e = by_steps[s]["score"][metric]
            row.append(f"{e['value']:.3f} ±{(e['high'] - e['low']) / 2:.3f} @{by_steps[s]['nfe']:.1f}")
        out.add_row(label, *row)
    return out


def plot(cells, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    from samplers.bench.plot import look

    style = {name: look(i) for i, name in enumerate(SAMPLERS)}
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), constrained_layout=True)
    for axis, (kind, problem, sigma, eps, metric, title) in zip(axes.flat, PANELS):
        for label, line in chosen(cells, kind, problem, sigma, eps).items():
            colour, dashes, marker = style[label]
            value = [c["score"][metric]["value"] for c in line]
            low = [c["score"][metric]["value"] - c["score"][metric]["low"] for c in line]
            high = [c["score"][metric]["high"] - c["score"][metric]["value"] for c in line]
            nfe = [c["nfe"] for c in line]
            axis.errorbar(
                nfe,
                value,
                (low, high),
                color=colour,
                ls=dashes,
                marker=marker,
                ms=5,
                lw=1.2,
                elinewidth=1,
                label=label,
                alpha=0.9,
            )
        truth = line[0]["score"][metric]["truth"]
        axis.axhline(truth, color="#4A4A4A", lw=0.8, ls="--")
        axis.set(title=title, xlabel="forward passes per row, counted", xscale="log")
        ticks = [t for t in (2, 4, 8, 16, 32, 64, 128) if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        if metric == "bigram_tv":
            axis.set_yscale("log")
            axis.set_yticks([0.1, 0.2, 0.5], ["0.1", "0.2", "0.5"])
            axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.suptitle(
        "Exact denoiser (above) and a wrong one (below); dashed: exact samples; lower is better, NLL: nearer to the line"
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).quantize(64).save(path, optimize=True)  # a third of the bytes


def main():
    from kernels import RESULTS, facts, slug

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1.0, help="a factor on the rows of every run")
    parser.add_argument("--show", action="store_true", help="tables and plot of what is saved")
    parser.add_argument("--no-save", action="store_true", help="tables only")
    options = parser.parse_args()
    path = RESULTS / slug() / "remasking.json"
    if options.show:
        cells = json.loads(path.read_text())["cells"]
    else:
        torch.set_num_threads(1)
        start = time.process_time()
        cells = run(options.rows)
        seconds = round(time.process_time() - start, 1)
        if not options.no_save:
            path.parent.mkdir(parents=True, exist_ok=True)
            head = {"machine": facts(), "seed": SEED, "cpu_seconds": seconds}
            lines = ",\n".join(json.dumps(c) for c in cells)
            path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n ]\n}}\n')
    console = Console(width=160)
    for which in TABLES:
        console.print(table(cells, *which))
    if not options.no_save:
        plot(cells, Path(__file__).parent.parent / "docs" / "remasking.png")


if __name__ == "__main__":
    main()
