"""KV caches in a whole run, on llm-small: LLaDA's vocabulary, 6 layers of width 1024, random bfloat16 weights.

    make bench-kernels        or  python bench/kernels.py --only caches

A prompt of 64, 128 positions to fill in blocks of 32, low_confidence with 16 forward passes, so 4 per block: one full and
three cached ones. Side by side: no cache with the head on all positions (what a model's own forward does), no cache with
the head on the positions that are needed, and the caches. extra_info has the positions fed and the bytes kept a row, and of the
steps that begin no block (cached ones, where there is a cache) the share of time that is spent outside matrix products.
"""

import statistics
import time

import pytest
import torch
from side_by_side import race

import samplers
from samplers import ops, problems

STEPS = 16
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "_linear_pointwise", "matmul")


@pytest.fixture(scope="module")
def problem():
    return problems.create("llm-small")


def outside(denoiser, run, times):
    """Share of a step's time that is in no matrix product. Attention counts as one: torch does it in one op.

    The profiler says how long a step's products took; its own cost, which falls on the many small ops, is kept out by timing
    the same step in a run without it. The median over the steps, of so many runs each.
    """
    between = STEPS * run["block_length"] // run["gen_length"]

    def once(look):
        stream, found = samplers.stream(denoiser, "low_confidence", **run), []
        next(stream)  # the canvas
        for step in range(STEPS):
            if step % between == 0:
                next(stream)
            else:
                found.append(look(stream))
        assert next(stream, None) is None
        return found

    def clock(stream):
        begun = time.perf_counter()
        next(stream)
        return time.perf_counter() - begun

    def products(stream):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            next(stream)
        own = {e.key.split("::")[-1]: e.self_cpu_time_total for e in profile.key_averages()}
        return 1e-6 * sum(v for k, v in own.items() if k in PRODUCTS or "scaled_dot_product" in k)

    shares = [1 - inside / whole for _ in range(times) for whole, inside in zip(once(clock), once(products))]
    return statistics.median(shares)


@pytest.mark.parametrize("rows", [1, 8])
def test_caches(benchmark, problem, rows):
    denoiser = problem.denoiser()
    settings = dict(problem.settings) | {"batch": rows, "steps": STEPS}
    body, head = denoiser.model, denoiser.head
    plain = samplers.TokenDenoiser.wrap(
        lambda ids: head.logits(body(ids)), vocab_size=denoiser.vocab_size, mask_id=denoiser.mask_id
    )
    found = {}

    def call(name, model, **more):
        def once():
            with torch.no_grad():
                found[name] = samplers.sample(model, "low_confidence", **settings, **more)

        return once

    calls = {
        "no cache, head on all": call("no cache, head on all", plain),
        "ours, no cache": call("ours, no cache", denoiser),
        "ours, prefix": call("ours, prefix", denoiser, cache="prefix"),
        "ours, dual": call("ours, dual", denoiser, cache="dual"),
        "ours, delayed(4)": call("ours, delayed(4)", denoiser, cache="delayed(4)"),
    }
    race(
        benchmark, f"llm-small, {rows} rows, {STEPS} forward passes", calls, slow=3 if rows == 1 else 2, **ops.status()
    )
    benchmark.extra_info["rows"] = {
        name: {"fed": out.token_evals / rows, "cache_bytes": out.cache_bytes / rows, "nfe": out.nfe}
        for name, out in found.items()
    }
    if not benchmark.disabled:
        for cache in (None, "prefix", "dual"):
            share = outside(denoiser, settings | {"cache": cache}, 3 if rows == 1 else 1)
            benchmark.extra_info["rows"][f"ours, {cache or 'no cache'}"]["outside_products"] = share
        print(benchmark.extra_info["rows"])
