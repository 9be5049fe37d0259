"""What a step costs outside the model: driver, op and sampler, at LLaDA's vocabulary, 8 rows, a block of 32.

    make bench-kernels        or  pytest bench/test_driver.py --benchmark-enable --benchmark-json=OUT

The model is free here: it hands out logits that are there already, so what is timed is everything else. `ms_per_step` in
extra_info is Sample.seconds.sampler over the steps, the median of the rounds.
"""

import statistics

import pytest
import torch

import samplers

ROWS, BLOCK, VOCAB, MASK = 8, 32, 126_464, 126_336
STEPS = 8


@pytest.fixture(scope="module")
def denoiser():
    logits = torch.randn(ROWS, BLOCK, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    return samplers.TokenDenoiser.wrap(lambda ids: logits[: len(ids)], vocab_size=VOCAB, mask_id=MASK)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "name", ["low_confidence", "threshold", "entropy_bound", "hierarchy", "klass", "credit", "ancestral", "radd"]
)
def test_step_outside_the_denoiser(benchmark, denoiser, name, temperature):
    benchmark.group = f"{STEPS} steps, logits [{ROWS}, {BLOCK}, {VOCAB}] fp32, T={temperature}"
    run = {"gen_length": BLOCK, "batch": ROWS, "steps": STEPS, "temperature": temperature}
    outside = []

    def once():
        out = samplers.sample(denoiser, name, **run)
        outside.append(1e3 * out.seconds.sampler / out.steps)

    benchmark.pedantic(once, rounds=7, warmup_rounds=2)
    benchmark.extra_info["ms_per_step"] = statistics.median(outside[2:]) if len(outside) > 2 else outside[-1]
    benchmark.extra_info["native"] = samplers.ops.status()["native"]
