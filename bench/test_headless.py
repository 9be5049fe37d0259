"""headless_softmax at LLaDA's size: 256 masked positions, width 4096, 126,464 tokens.

    pytest bench/test_headless.py --benchmark-enable
    pytest bench/test_headless.py --benchmark-enable --benchmark-json=out.json
    python bench/trim.py out.json bench/results/MACHINE/headless.json

One group a (dtype, temperature): ours; the bare matrix product, which is the floor; the product and then
masked_softmax; and the step as published code does it in eager torch. Compare within a group and within a run. The
weight takes 1 GB in bf16 and 2 GB in fp32. bf16 is worth a look where the machine multiplies it.
"""

import pytest
import torch
from test_masked_softmax import eager_step

from samplers import ops
from samplers.ops import _native, headless_softmax, masked_softmax

ROWS, WIDTH, VOCAB = 256, 4096, 126464
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=DTYPES)
def head(request):
    dtype, g = DTYPES[request.param], torch.Generator().manual_seed(0)
    weight = torch.empty(VOCAB, WIDTH, dtype=dtype)
    for part in weight.split(8192):  # no second copy of it all
        part.copy_(torch.randn(part.shape, generator=g) * 0.05)
    return torch.randn(ROWS, WIDTH, generator=g).to(dtype), weight  # (N, D), (V, D)


@pytest.fixture(params=[0.0, 0.7], ids=["T=0", "T=0.7"])
def case(request, head, benchmark):
    hidden, weight = head
    name = next(k for k, v in DTYPES.items() if v == weight.dtype)
    benchmark.group = f"headless {name} T={request.param}"
    benchmark.extra_info.update(
        rows=ROWS, width=WIDTH, vocab=VOCAB, bytes=weight.numel() * weight.element_size(),
        flop=2 * ROWS * WIDTH * VOCAB, temperature=request.param, **ops.status(),
    )  # fmt: skip
    return hidden, weight, request.param


def uniform():
    return torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # (N,) float64


def timed(benchmark, call, *args):
    benchmark.pedantic(call, args, rounds=5, iterations=1, warmup_rounds=1)


def test_product(benchmark, case):
    """The floor: the head's product alone, its logits stored."""
    hidden, weight, _ = case
    timed(benchmark, lambda: torch.mm(hidden, weight.t()))


def test_ours(benchmark, case):
    if not ops.status()["native"]:
        pytest.skip(_native.REASON)
    hidden, weight, temperature = case
    u = uniform()
    timed(benchmark, lambda: headless_softmax(hidden, weight, uniform=u, temperature=temperature))


def test_ours_everything(benchmark, case):
    """Margin, entropy and log-sum-exp too."""
    if not ops.status()["native"]:
        pytest.skip(_native.REASON)
    hidden, weight, temperature = case
    u, want = uniform(), ("confidence", "margin", "entropy", "lse")
    timed(benchmark, lambda: headless_softmax(hidden, weight, uniform=u, temperature=temperature, want=want))


def test_product_then_masked_softmax(benchmark, case):
    if not ops.status()["native"]:
        pytest.skip(_native.REASON)
    hidden, weight, temperature = case
    u = uniform()
    timed(benchmark, lambda: masked_softmax(hidden @ weight.t(), uniform=u, temperature=temperature))


def test_product_then_eager(benchmark, case):
    hidden, weight, temperature = case
    timed(benchmark, lambda: eager_step(hidden @ weight.t(), temperature))
