"""Long canvases: what a step takes in time and memory, from 4096 to 131,072 positions.

    python bench/long.py                 two and a half minutes of one core
    python bench/long.py --write         measures nothing, writes the tables of what was measured

Blocks of 32, low_confidence at temperature 0, one row, all but the last 96 positions given: a step is most expensive where the
canvas ends. One thread. Time is the median of a few steps; memory is the most that torch's allocator gave out in a step beside
what there was before it. Three parts:

    driver      a model that does nothing: what sampler, state and feed take themselves
    model       llm-small (6 layers of width 1024, LLaDA's vocabulary, bfloat16), with the cache "block". The keys and values of
                the prompt are random numbers and not computed, which would take an hour; a step does not ask what they are
    whole       one layer of the same: what is given whole canvases, and a prompt whose keys and values are computed

What the tables show is kept in bench/results/MACHINE/long.json.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from kernels import RESULTS, facts, slug
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import fill_in

import samplers
from samplers import TokenDenoiser
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.problems.speed import MASK, VOCAB, LlmSmall

PAGE = Path(__file__).parents[1] / "docs" / "long_canvases.md"
LENGTHS = (4096, 16_384, 65_536, 131_072)
BLOCK = 32


class Sizes(TorchDispatchMode):
    """The largest tensor of floats, and all bytes, that operations make in memory of their own."""

    def __init__(self):
        super().__init__()
        self.floats = self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given:
                size = x.untyped_storage().nbytes()
                self.total += size
                self.floats = max(self.floats, size if x.is_floating_point() else 0)
        return out


class Store:
    """A cache of nothing."""

    bytes_written = 0

    def __init__(self, batch):
        self.lengths = torch.zeros(batch, dtype=torch.int64)


class Nothing(TokenDenoiser):
    """A model that takes no time: its logits are there already."""

    vocab_size, mask_id, name, caches = 64, 64, "nothing", ("block",)
    attention, attention_block = "block_causal", BLOCK
    answers = torch.zeros(1, 64).expand(BLOCK, -1).contiguous()

    def new_cache(self, batch, length):
        return Store(batch)

    def predict(self, x, t=None, *, rows=None, cache=None):
        if cache is not None and cache.write == "append":
            cache.store.lengths += cache.count
        return self.answers[: int(rows.sum())]


def llm(attention, layers=6, *, computes_prompt=False):
    """llm-small, or some layers of it."""
    shape = LlmSmall.shape | {"layers": layers}
    block = BLOCK if attention == "block_causal" else None
    config = Config(vocab_size=VOCAB, attention=attention, block_length=block, **shape)
    model = TransformerDenoiser(Transformer(config, dtype=torch.bfloat16), mask_id=MASK)
    model.kv_bytes = model.new_cache(1, 1).row_bytes
    if computes_prompt:
        return model
    hidden = model.hidden

    def with_a_prompt(x, t=None, *, rows=None, cache=None, lengths=None):
        if cache is None or cache.write != "append" or x.shape[1] <= BLOCK:
            return hidden(x, t, rows=rows, cache=cache, lengths=lengths)
        new = torch.randn(layers, 1, config.kv_heads, x.shape[1], config.head_width).bfloat16()
        cache.store.append(new, new, cache.count)
        return torch.zeros(0, config.width, dtype=torch.bfloat16)

    model.hidden = with_a_prompt
    return model


def allocated(call):
    """The most bytes of tensors that were there at a time in call(), beside those before it, as torch's allocator has them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))


def measure(model, length, each, **run):
    """Of the last three blocks, each filled in `each` steps, the second is timed and the third is looked at.

    The first step of a block is apart from the others: it is the one that gives the model more than the block.
    """
    prompt = torch.arange(length - 3 * BLOCK) * 37 % min(model.vocab_size, 1000)
    going = samplers.stream(
        model, "low_confidence", prompt=prompt, gen_length=3 * BLOCK, block_length=BLOCK, steps=3 * each,
        temperature=0.0, **run,
    )  # fmt: skip
    next(going)
    counter, start = going.predictor.counter, time.perf_counter()
    most = allocated(lambda: next(going))
    prompt_seconds = time.perf_counter() - start
    prompt_bytes = most - getattr(model, "kv_bytes", 0) * length * ("cache" in run)
    for _ in range(each - 1):
        next(going)
    times = []
    for _ in range(each):
        before, processor, start = counter.seconds, time.process_time(), time.perf_counter()
        next(going)
        took = time.perf_counter() - start
        times.append((took, time.process_time() - processor, took - counter.seconds + before))
    asked = counter.head_rows, counter.nfe
    first_bytes = allocated(lambda: next(going))
    step_bytes = allocated(lambda: next(going))
    rows = (counter.head_rows - asked[0]) / 2
    with Sizes() as sizes:
        next(going)
    seconds, processor, outside = (statistics.median(part) for part in zip(*times[1:]))
    return {
        "length": length, "timed": each - 1, "seconds": seconds, "processor": processor, "outside": outside,
        "first_seconds": times[0][0], "prompt_seconds": prompt_seconds, "prompt_bytes": prompt_bytes,
        "first_bytes": first_bytes, "step_bytes": step_bytes, "largest_floats": sizes.floats, "bytes_made": sizes.total,
        "logits_rows": rows, "cache_bytes": going.result().cache_bytes, **run,
    }  # fmt: skip


def run(console):
    found = {"driver": [], "model": [], "whole": []}

    def note(part, name, row):
        found[part].append({"model": name, **row})
        console.print(f"{part}: {name}, {row['length']}: {row['seconds'] * 1e3:.4g} ms")

    nothing = Nothing()
    for how in ({"window": "block"}, {"cache": "block"}):
        for length in LENGTHS:
            note("driver", "nothing", measure(nothing, length, 16, **how))
    for attention, lengths in (("block_causal", LENGTHS), ("causal", LENGTHS[::3])):
        model = llm(attention)
        for length in lengths:
            note("model", attention, measure(model, length, 4, cache="block"))
        del model
    for attention, how, longest in (
        ("full", {"window": "block"}, 4096),
        ("full", {"cache": "dual"}, 4096),
        ("causal", {"cache": "prefix"}, 4096),
        ("block_causal", {"window": "block"}, 4096),
        ("block_causal", {"cache": "block"}, 8192),
    ):
        model = llm(attention, 1, computes_prompt=True)
        for length in (longest // 4, longest):
            note("whole", attention, measure(model, length, 3, **how))
        del model
    return found


def tables(found):
    mb = 2**20
    driver = [
        '| positions | window="block": processor ms per step | bytes made, per position | cache="block": processor ms per step | '
        "bytes made, per position |",
        "|---" * 5 + "|",
    ]
    for length in LENGTHS:
        rows = [r for r in found["driver"] if r["length"] == length]
        cells = [f"{r['processor'] * 1e3:.2f} | {r['bytes_made'] / length:.0f}" for r in rows]
        driver.append(f"| {length:,} | {' | '.join(cells)} |")
    model = [
        "| attention | positions | s per step | processor s | of it outside the model, ms | MiB beside in a step | "
        "largest floats, MiB | logits rows | KV cache, MiB |",
        "|---" * 9 + "|",
    ]
    for r in found["model"]:
        model.append(
            f"| {r['model']} | {r['length']:,} | {r['seconds']:.2f} | {r['processor']:.2f} | {r['outside'] * 1e3:.1f} | "
            f"{r['step_bytes'] / mb:.1f} | {r['largest_floats'] / mb:.2f} | {r['logits_rows']:.0f} | "
            f"{r['cache_bytes'] / mb:,.0f} |"
        )
    whole = [
        "| attention | given by | positions | prompt, MiB beside the cache | first step of a block, s | MiB beside | "
        "a later step, s | MiB beside |",
        "|---" * 8 + "|",
    ]
    for r in found["whole"]:
        how = next(f'`{name}="{r[name]}"`' for name in ("window", "cache") if name in r)
        whole.append(
            f"| {r['model']} | {how} | {r['length']:,} | {r['prompt_bytes'] / mb:.0f} | {r['first_seconds']:.2f} | "
            f"{r['first_bytes'] / mb:.0f} | {r['seconds']:.2f} | {r['step_bytes'] / mb:.0f} |"
        )
    return {"the driver alone": "\n".join(driver), "a step of llm-small": "\n".join(model), "whole": "\n".join(whole)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="measure nothing, write the tables of what is saved")
    args = parser.parse_args()
    path, console = RESULTS / slug() / "long.json", Console()
    torch.set_num_threads(1)
    if not args.write:
        start = time.perf_counter()
        found = run(console)
        head = {"machine": facts(), "threads": torch.get_num_threads(), "block_length": BLOCK}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head | {"seconds": time.perf_counter() - start} | found, indent=1) + "\n")
    fill_in(PAGE, tables(json.loads(path.read_text())))
    console.print(f"{PAGE}, {path}")


if __name__ == "__main__":
    main()
