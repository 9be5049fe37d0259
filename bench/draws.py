"""Ten million draws of one row at LLaDA's vocabulary against the distribution they should have.

    make draws        or  python bench/draws.py [--draws 10000000] [--dtype fp32 --dtype bf16] [--no-save]

The row is made so that every part of the distribution can be seen: probabilities from 2e-4 down to 1e-15 at shuffled ids, one in
64 impossible (-inf), and 16 forbidden, with the highest logits of all. Uniforms are the library's own (Philox).

Two tests, and one count that must be 0:
- chi-square over the ids in order of their probability, neighbours pooled until a cell expects 10 draws: ids of up to two
  thousand draws stand alone, the tail in ever larger cells, down to what is never drawn at all;
- Kolmogorov-Smirnov of F(id - 1) + v p(id), v uniform, F over the ids in their own order: chunks that were mistaken for
  each other are seen here, and not there;
- draws of impossible and forbidden ids.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from rich.progress import track
from scipy import stats

from samplers import ops
from samplers import random as zoo_random

VOCAB = 126_464
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPREAD = 27.0  # nats between the likeliest and the least likely id
SLAB = 20_000  # draws per call


def row_of_logits(dtype, vocab=VOCAB):
    """→ logits (V,), forbidden ids (F,) int64."""
    g = torch.Generator().manual_seed(0)
    row = torch.linspace(0, -SPREAD, vocab)[torch.randperm(vocab, generator=g)]
    special = torch.randperm(vocab, generator=g)
    forbid, impossible = special[:16], special[16 : 16 + vocab // 64]
    row[forbid] = 5.0
    row[impossible] = -torch.inf
    return row.to(DTYPES[dtype]), forbid


def draw(row, forbid, draws, seed=0, progress=lambda slabs: slabs):
    """→ (draws,) int64."""
    parts = []
    for begin in progress(range(0, draws, SLAB)):
        number = torch.arange(begin, min(begin + SLAB, draws))
        u = zoo_random.uniform(seed, number, 0, 0, zoo_random.DRAW_TOKEN)
        index = torch.zeros(len(number), dtype=torch.int64)  # the same row again and again: it stays in cache
        out = ops.masked_softmax(row[None], index, uniform=u, temperature=1.0, forbid=forbid, want=())
        if (out.status != 0).any():
            raise SystemExit("a row without a token")
        parts.append(out.token)
    return torch.cat(parts)


def judge(row, forbid, tokens):
    """→ the three findings, as a dictionary."""
    draws = len(tokens)
    logits = row.double()
    logits[forbid] = -torch.inf
    p = torch.softmax(logits, 0).numpy()
    seen = torch.bincount(tokens, minlength=len(p)).numpy()

    order = np.argsort(-p, kind="stable")
    order = order[p[order] > 0]
    expected = p[order] * draws
    # A cell is closed by the id that brings it to 10; what is left at the end joins the last one.
    cells, held = np.empty(len(order), dtype=np.int64), 0.0
    number = 0
    for i, e in enumerate(expected):
        cells[i] = number
        held += e
        if held >= 10:
            number, held = number + 1, 0.0
    cells = np.minimum(cells, max(number - 1, 0))
    observed = np.bincount(cells, weights=seen[order])
    wanted = np.bincount(cells, weights=expected)
    alone = int((np.bincount(cells) == 1).sum())
    if observed.sum() < draws:  # impossible ids were drawn: counted below, and no distribution to test
        observed = observed * (draws / max(observed.sum(), 1))
    chi2, chi2_p = stats.chisquare(observed, wanted * (observed.sum() / wanted.sum()))

    cumulative = np.concatenate([[0.0], p.cumsum()])
    v = np.random.Generator(np.random.Philox(7)).random(draws)
    at = tokens.numpy()
    ks = stats.kstest(cumulative[at] + v * p[at], "uniform")
    tail = order[expected < 10]
    return {
        "draws": draws,
        "cells": len(wanted),
        "cells_of_one_id": alone,
        "chi2": float(chi2),
        "chi2_p": float(chi2_p),
        "ks": float(ks.statistic),
        "ks_p": float(ks.pvalue),
        "tail_ids": len(tail),
        "tail_draws": int(seen[tail].sum()),
        "tail_expected": float(p[tail].sum() * draws),
        "impossible": int(seen[p == 0].sum()),
        "impossible_ids": int((p == 0).sum()),
    }


def main():
    from kernels import RESULTS, facts, slug

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000_000)
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = {}
    for dtype in options.dtype or DTYPES:
        row, forbid = row_of_logits(dtype)
        start = time.perf_counter()
        tokens = draw(row, forbid, options.draws, progress=lambda slabs, d=dtype: track(list(slabs), d))
        seconds = time.perf_counter() - start
        found[dtype] = {**judge(row, forbid, tokens), "vocab": VOCAB, "seconds": round(seconds, 1)}
        print(dtype, json.dumps(found[dtype], indent=1))
    if not options.no_save:
        path = RESULTS / slug() / "draws.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text())["draws"] if path.exists() else {}
        path.write_text(json.dumps({"machine": facts(), "draws": {**before, **found}}, indent=1) + "\n")
        print("saved", path)
    good = all(f["impossible"] == 0 and min(f["chi2_p"], f["ks_p"]) > 1e-4 for f in found.values())
    sys.exit(not good)


if __name__ == "__main__":
    main()
