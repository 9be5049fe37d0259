"""KV caches in a whole run, on llm-small: LLaDA's vocabulary, 6 layers of width 1024, random bfloat16 weights.

    make bench-kernels        or  python bench/kernels.py --only caches

A prompt of 64, 128 positions to fill in blocks of 32, low_confidence with 16 forwards, so 4 a block: one full forward and
three cached ones. Side by side: no cache with the head on all positions (what a model's own forward does), no cache with
the head on the positions that are needed, and the caches. extra_info has the positions fed and the bytes kept a row, and of a
cached step the share of time that is spent outside matrix products (torch's profiler, one run).
"""

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


def outside(denoiser, run):
    """Share of a run's CPU time that is in no matrix product. Attention counts as one where torch does it in one op."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        samplers.sample(denoiser, "low_confidence", **run)
    own = {e.key.split("::")[-1]: e.self_cpu_time_total for e in profile.key_averages()}
    inside = sum(v for k, v in own.items() if k in PRODUCTS or "scaled_dot_product" in k)
    return 1 - inside / sum(own.values())


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
    race(benchmark, f"llm-small, {rows} rows, {STEPS} forwards", calls, slow=3, **ops.status())
    benchmark.extra_info["rows"] = {
        name: {"fed": out.token_evals / rows, "cache_bytes": out.cache_bytes / rows, "nfe": out.nfe}
        for name, out in found.items()
    }
    if not benchmark.disabled:
        for cache in (None, "prefix", "dual"):
            share = outside(denoiser, settings | {"cache": cache})
            benchmark.extra_info["rows"][f"ours, {cache or 'no cache'}"]["outside_products"] = share
        print(benchmark.extra_info["rows"])
