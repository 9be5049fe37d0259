"""Prompts of different lengths: a forward pass for each length beside one for all, in tokens per second.

    python bench/ragged.py               three minutes on two cores that do nothing else
    python bench/ragged.py --write       measures nothing, writes the table of what was measured

Of 16 prompts of 33 to 48 tokens, one of each length, 1, 4 or 16 are run at once, and 32 positions are filled after each by
low_confidence: ragged="groups", ragged="pad", and as many prompts that all have the mean length, which need no padding. The
three take turns. A ratio is the median over the rounds of what two of them took in the same round: of the time that passed, and
of the processor time, which others on the machine disturb less. One and two threads.

What the table shows is kept in bench/results/MACHINE/ragged.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from kernels import RESULTS, facts, slug
from rich.console import Console
from side_by_side import measure
from zoo import fill_in

import samplers
from samplers import problems
from samplers.models import zoo as models

PAGE = Path(__file__).parents[1] / "docs" / "blocks_and_batches.md"
LENGTHS = range(33, 49)
GEN = 32
BATCHES = {1: [40], 4: [33, 38, 43, 48], 16: list(LENGTHS)}
PLAN = [("text-mdm", 8, 5), ("llm-small", 2, 3)]  # model, steps, rounds


def prompt(model, length):
    """Any tokens: the time does not depend on which."""
    return torch.arange(length) * 37 % (model.vocab_size - 1)


def race(model, steps, rounds, lengths):
    """Seconds and processor seconds of each competitor per round, rounds that others disturbed, passes of each."""
    mean = round(statistics.fmean(lengths))
    setting = {"gen_length": GEN, "steps": steps, "temperature": 0.0}
    runs = {
        "groups": {"prompt": [prompt(model, n) for n in lengths], "ragged": "groups"},
        "pad": {"prompt": [prompt(model, n) for n in lengths], "ragged": "pad"},
        "equal": {"prompt": [prompt(model, mean) for _ in lengths]},
    }
    passes = {}

    def call(name):
        passes[name] = samplers.sample(model, "low_confidence", **setting, **runs[name]).nfe

    seconds, processor, disturbed = {name: [] for name in runs}, {name: [] for name in runs}, 0
    call("pad")
    for _ in range(rounds):
        for name in runs:
            before = time.process_time()
            took, quiet = measure(lambda name=name: call(name), 1)
            processor[name].append(time.process_time() - before)
            seconds[name].append(took)
            disturbed += not quiet
    return seconds, processor, disturbed, passes


def run(console):
    rows = []
    for name, steps, rounds in PLAN:
        model = models.load(name) if name in models.list_models() else problems.create(name).denoiser()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for batch, lengths in BATCHES.items():
                seconds, processor, disturbed, passes = race(model, steps, rounds, lengths)
                ratios = [g / p for g, p in zip(seconds["groups"], seconds["pad"])]
                ratios_processor = [g / p for g, p in zip(processor["groups"], processor["pad"])]
                row = {
                    "model": name, "steps": steps, "threads": threads, "batch": batch, "passes": passes, "rounds": rounds,
                    "disturbed": disturbed, "measured": 3 * rounds,
                    "tokens_per_second": {k: batch * GEN / statistics.median(v) for k, v in seconds.items()},
                    "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
                    "ratio_processor": statistics.median(ratios_processor),
                    "ratio_to_equal": statistics.median(e / p for e, p in zip(seconds["equal"], seconds["pad"])),
                }  # fmt: skip
                rows.append(row)
                console.print(f"{name}, {threads} threads, {batch} rows: {row['ratio']:.2f}, {disturbed} disturbed")
    return rows


def table(rows):
    lines = [
        "| model | threads | prompts | passes, groups / pad | tokens/s, groups | tokens/s, pad | pad / groups | "
        "the same of processor time | tokens/s, prompts of one length |",
        "|---" * 9 + "|",
    ]
    for r in rows:
        rate, passes, (low, high) = r["tokens_per_second"], r["passes"], r["ratio_range"]
        lines.append(
            f"| {r['model']} | {r['threads']} | {r['batch']} | {passes['groups']} / {passes['pad']} | {rate['groups']:.4g} | "
            f"{rate['pad']:.4g} | {r['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{r['ratio_processor']:.2f} | {rate['equal']:.4g} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="measure nothing, write the table of what is saved")
    args = parser.parse_args()
    path, console = RESULTS / slug() / "ragged.json", Console()
    if not args.write:
        head = {"machine": facts(), "lengths": [LENGTHS[0], LENGTHS[-1]], "gen_length": GEN}
        rows = run(console)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    fill_in(PAGE, {"groups beside pad": table(json.loads(path.read_text())["rows"])})
    console.print(f"{PAGE}, {path}")


if __name__ == "__main__":
    main()
