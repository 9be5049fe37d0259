"""Slots, caches and plain autoregression on the trained text models: the tables of docs/caches_and_slots.md.

    python bench/slots.py               a quarter of an hour of a core that does nothing else; goes on where it was stopped
    python bench/slots.py --write       measures nothing, writes the tables of what has been measured

text-refusion decoded autoregressively and by refusion; text-mdm by low_confidence and threshold, without a cache and with those
that it can have. Everybody gets the same prompts, 32 tokens of held-out text, and fills 128 positions (blocks of 32; no end
of text). Settings take turns, prompt by prompt, so what the machine does meanwhile hits them all alike.

What is written is judged by neither model: an interpolated 5-gram over the same tokens, fitted to the training text (the one
that training.json compares them with), says the nats of each token given those before it; what really followed the prompts
also has that. A text that repeats itself is cheap to a judge and no good, so the share of 4-grams that the same
row had before stands beside it.

Cells are kept in runs/slots/cells.jsonl (delete it after a change of code that matters; a changed model makes new ones), what
the tables show in bench/results/MACHINE/slots.json.
"""

import argparse
import json
import statistics
import zlib
from pathlib import Path

import torch
from kernels import RESULTS, facts, slug
from rich.console import Console
from rich.progress import Progress
from train import VOCAB, Ngram, Text
from zoo import fill_in

import samplers
from samplers.models import zoo as models
from samplers.models.tokenizer import Tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "caches_and_slots.md"
PROMPT, GEN, BLOCK = 32, 128, 32
PROMPTS, ROWS, ALONE = 16, 8, 4  # so many prompts, rows in a batch, and prompts that are also decoded alone
TEMPERATURES = (1.0, 0.0)
BAND = 0.25  # nats per token

PLAN = [  # model, sampler, its options, arguments of sample()
    ("text-refusion", "autoregressive", {}, {}),
    ("text-refusion", "autoregressive", {"slot_size": 8}, {}),
    *(
        ("text-refusion", "refusion",
         {"slot_size": size, "serial_num_blocks": blocks, "slot_threshold": slot, "token_threshold": token}, {})
        for size, blocks, slot, token in (
            (8, 4, 0.9, 0.9), (8, 4, 0.6, 0.3), (8, 4, 0.3, 0.3), (8, 4, 0.1, 0.3), (8, 4, 0.0, 0.9), (8, 4, 0.0, 0.3),
            (8, 4, 0.0, 0.0), (4, 4, 0.3, 0.3), (4, 4, 0.0, 0.9), (8, 1, 0.1, 0.3), (8, 1, 0.0, 0.9)
        )
    ),
    *(
        ("text-mdm", "low_confidence", {}, {"steps": steps, "block_length": BLOCK, "cache": cache})
        for steps in (128, 64, 32)
        for cache in (None, "prefix", "dual", *(["delayed(4)"] if steps == 64 else []))
    ),
    *(
        ("text-mdm", "threshold", {"threshold": threshold}, {"block_length": BLOCK, "cache": cache})
        for threshold in (0.9, 0.3, 0.1)
        for cache in (None, "prefix", "dual")
    ),
]  # fmt: skip


def said(options, args):
    """A setting in words."""
    if "slot_threshold" in options:
        slots = f"{options['serial_num_blocks']} blocks of slots of {options['slot_size']}".replace(
            "1 blocks", "1 block"
        )
        return f"{slots}, {options['slot_threshold']:g} / {options['token_threshold']:g}"
    if "slot_size" in options:
        return f"slots of {options['slot_size']}"
    return f"{args['steps']} steps" if "steps" in args else f"threshold {options['threshold']:g}" if options else ""


def key(job, temperature, first, rows):
    """What a cell is, its model's weights included."""
    model, sampler, options, args = job
    digest = zlib.crc32((models.FOLDER / model / "model.safetensors").read_bytes())
    return json.dumps([model, digest, sampler, options, args, temperature, first, rows], sort_keys=True)


def repeated(row):
    """Share of the row's 4-grams that it had before."""
    grams = list(zip(*(row[i:] for i in range(4))))
    return 1 - len(set(grams)) / len(grams)


def run(path, console):
    """Measures what is not there yet, and adds it to `path`, a line a cell."""
    done = {}
    if path.exists():
        for line in path.read_text().splitlines():
            cell = json.loads(line)
            done[cell["key"]] = cell
    jobs = [
        (job, temperature, first, rows)
        for first in range(0, PROMPTS, ROWS)
        for temperature in TEMPERATURES
        for job in PLAN
        for rows in ((ROWS, 1) if first == 0 else (ROWS,))
    ]
    jobs = [
        (job, temperature, first + i, rows)
        for job, temperature, first, rows in jobs
        for i in (range(ALONE) if rows == 1 else (0,))
    ]
    jobs.sort(key=lambda j: (j[2], j[3], j[1]))  # prompt by prompt, the settings in turns
    real = f"real, {models.facts('text-mdm')['text_sha256']}"
    wanted = [real, *(key(*job) for job in jobs)]
    if all(k in done for k in wanted):
        return [done[k] for k in wanted]
    loaded = {name: models.load(name) for name in ("text-refusion", "text-mdm")}
    text = Text(Tokenizer.load(models.FOLDER / "text-mdm" / "vocab.json"))
    windows = text.held_windows()
    windows = windows[torch.linspace(0, len(windows) - 1, PROMPTS).long()]  # (PROMPTS, 160)
    judge = Ngram(text.ids.tolist(), 5, VOCAB)

    def judged(row):
        return float(judge.nll(row)[PROMPT:].mean()), repeated(row[PROMPT:])

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out, Progress(console=console) as progress:

        def keep(cell):
            out.write(json.dumps(cell) + "\n")
            out.flush()
            done[cell["key"]] = cell

        if real not in done:
            nll, repeats = zip(*(judged(row) for row in windows.tolist()))
            keep({"key": real, "nll": nll, "repeats": repeats})
        for job, temperature, first, rows in progress.track(jobs, description="slots"):
            k = key(job, temperature, first, rows)
            if k in done:
                continue
            model, sampler, options, args = job
            denoiser = loaded[model]
            setting = {"gen_length": GEN, "temperature": temperature, "seed": 0, "forbid": [denoiser.eos_id]}
            prompt = windows[first : first + rows, :PROMPT]
            made = samplers.sample(denoiser, sampler, prompt=prompt, first_row=first, **setting, **args, **options)
            x = made.x.tolist()
            nll, repeats = zip(*map(judged, x)) if rows > 1 else ((), ())
            keep(
                {
                    "key": k, "model": model, "sampler": sampler, "options": options, "args": args,
                    "temperature": temperature, "first": first, "rows": rows, "seconds": made.seconds.total,
                    "nfe": made.nfe_rows.tolist(), "token_evals": made.token_evals, "cache_bytes": made.cache_bytes,
                    "nll": nll, "repeats": repeats, "x": [row[PROMPT:] for row in x] if rows > 1 else [],
                }
            )  # fmt: skip
    return [done[k] for k in wanted]


def summary(cells):
    """→ what really followed, and the settings: a dictionary each."""
    real = next(c for c in cells if "model" not in c)
    truth = {"nll": statistics.fmean(real["nll"]), "repeats": statistics.fmean(real["repeats"])}
    groups = {}
    for c in cells:
        if c is not real:
            groups.setdefault(
                json.dumps([c["model"], c["sampler"], c["options"], c["args"], c["temperature"]]), []
            ).append(c)
    plain, settings = {}, []
    for name, own in groups.items():
        model, sampler, options, args, temperature = json.loads(name)
        many, alone = ([c for c in own if (c["rows"] == 1) == one] for one in (False, True))
        nll = torch.tensor([n for c in many for n in c["nll"]])
        nfe = [n for c in many for n in c["nfe"]]
        x = torch.tensor([row for c in sorted(many, key=lambda c: c["first"]) for row in c["x"]])
        cache = args.get("cache")
        kind = json.dumps([sampler, options, args | {"cache": None}, temperature])
        if cache is None:
            plain[kind] = x
        settings.append(
            {
                "model": model, "sampler": sampler, "setting": said(options, args), "cache": cache,
                "options": options, "args": args, "temperature": temperature, "prompts": len(nll),
                "tokens_a_forward": GEN / statistics.fmean(nfe),
                "tokens_a_second": {
                    "1": GEN / statistics.median(c["seconds"] for c in alone),
                    str(ROWS): GEN * ROWS / statistics.median(c["seconds"] for c in many),
                },
                "fed_a_token": sum(c["token_evals"] for c in many) / (GEN * len(nll)),
                "cache_bytes_a_token": sum(c["cache_bytes"] for c in many) / (GEN * len(nll)),
                "nll": float(nll.mean()), "nll_error": float(nll.std()) / len(nll) ** 0.5,
                "repeats": statistics.fmean(r for c in many for r in c["repeats"]),
                "changed": None if cache is None else float((x != plain[kind]).double().mean()),
            }
        )  # fmt: skip
    return truth, settings


def table(truth, settings, temperature):
    columns = (
        "model, sampler",
        "setting",
        "cache",
        "tokens per pass",
        "fed per token",
        "tokens/s, 1 row",
        f"{ROWS} rows",
    )
    columns += ("nats per token", "repeats", "changed")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for s in settings:
        if s["temperature"] != temperature:
            continue
        changed = "" if s["changed"] is None else f"{100 * s['changed']:.0f} %"
        rate = s["tokens_a_second"]
        lines.append(
            f"| {s['model']}, `{s['sampler']}` | {s['setting']} | {s['cache'] or ''} | {s['tokens_a_forward']:.2f} | "
            f"{s['fed_a_token']:.3g} | {rate['1']:.0f} | {rate[str(ROWS)]:.0f} | {s['nll']:.2f} ± {s['nll_error']:.2f} | "
            f"{100 * s['repeats']:.0f} % | {changed} |"
        )
    lines.append(f"| what really followed | | | | | | | {truth['nll']:.2f} | {100 * truth['repeats']:.0f} % | |")
    return "\n".join(lines)


def bands(settings, temperature):
    """The fastest of each kind among those whose judge's nats lie in a band."""
    kinds = {}
    for s in settings:
        if s["temperature"] == temperature:
            kind = s["sampler"] + (", cached" if s["cache"] else "")
            kinds.setdefault(kind, {}).setdefault(int(s["nll"] // BAND), []).append(s)
    every = sorted({b for own in kinds.values() for b in own})
    lines = ["| nats per token | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for b in every:
        row = []
        for own in kinds.values():
            best = max(own.get(b, []), key=lambda s: s["tokens_a_second"]["1"], default=None)
            row.append("" if best is None else _fastest(best))
        lines.append(f"| {b * BAND:.2f} to {(b + 1) * BAND:.2f} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _fastest(s):
    how = ", ".join(filter(None, (s["setting"], s["cache"])))
    rate = s["tokens_a_second"]
    return f"{rate['1']:.0f} / {rate[str(ROWS)]:.0f} <sub>{s['tokens_a_forward']:.2f} per pass{how and '; '}{how}</sub>"


def write(saved):
    parts = {}
    for t in TEMPERATURES:
        parts[f"bands at T = {t:g}"] = bands(saved["settings"], t)
        parts[f"all at T = {t:g}"] = table(saved["real"], saved["settings"], t)
    fill_in(PAGE, parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/slots"), help="where cells are kept (runs/slots)")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the tables of what is saved")
    args = parser.parse_args()
    path, console = RESULTS / slug() / "slots.json", Console()
    if not args.write:
        torch.set_num_threads(1)
        truth, settings = summary(run(args.out / "cells.jsonl", console))
        head = {
            "machine": facts(),
            "torch_threads": 1,
            "prompts": PROMPTS,
            "prompt": PROMPT,
            "gen_length": GEN,
            "real": truth,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head | {"settings": settings}, indent=1) + "\n")
    write(json.loads(path.read_text()))
    console.print(f"{PAGE}, {path}")


if __name__ == "__main__":
    main()
