"""masked_softmax at LLaDA's size: 256 masked positions, 126,464 tokens.

    pytest bench/test_masked_softmax.py --benchmark-enable
    pytest bench/test_masked_softmax.py --benchmark-enable --benchmark-json=out.json
    python bench/trim.py out.json bench/results/MACHINE/masked_softmax.json

One group a (dtype, temperature): ours, the torch twin, the step as published code does it in eager torch, and a floor,
one pass that only takes each row's maximum. Compare within a group and within a run; a busy machine doubles anything.
"""

import pytest
import torch

from samplers import ops
from samplers.ops import _native, masked_softmax

ROWS, VOCAB = 256, 126464
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=DTYPES)
def logits(request):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(ROWS, VOCAB, generator=g) * 3).to(DTYPES[request.param])  # (N, V)


@pytest.fixture(params=[0.0, 0.7], ids=["T=0", "T=0.7"])
def case(request, logits, benchmark):
    name = next(k for k, v in DTYPES.items() if v == logits.dtype)
    benchmark.group = f"{name} T={request.param}"
    benchmark.extra_info.update(
        rows=ROWS, vocab=VOCAB, bytes=logits.numel() * logits.element_size(), temperature=request.param, **ops.status()
    )
    return logits, request.param


def uniform():
    return torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # (N,) float64


def eager_step(logits, temperature):
    """A LLaDA-style step in plain torch: exponential race in float64 (Gumbel-max in another form), confidence by a full
    softmax, gathered at the token."""
    scores = logits
    if temperature > 0:
        noise = torch.rand_like(logits, dtype=torch.float64)
        scores = logits.double().exp() / (-noise.log()) ** temperature
    token = scores.argmax(-1)  # (N,) int64
    probability = torch.softmax(logits, -1)  # (N, V)
    return token, probability.gather(-1, token[:, None])[:, 0]


def test_floor(benchmark, case):
    """Nearest to one read that the machine allows: maximum and position, no exponential."""
    if not ops.status()["native"]:
        pytest.skip("the floor is a native pass")
    x, _ = case
    benchmark.pedantic(masked_softmax, (x,), {"want": ()}, rounds=9, iterations=5, warmup_rounds=1)


def test_ours(benchmark, case):
    if not ops.status()["native"]:
        pytest.skip(_native.REASON)
    x, temperature = case
    kw = {"uniform": uniform(), "temperature": temperature, "want": ("confidence",)}
    benchmark.pedantic(masked_softmax, (x,), kw, rounds=9, iterations=5, warmup_rounds=1)


def test_ours_everything(benchmark, case):
    """Margin, entropy and log-sum-exp too."""
    if not ops.status()["native"]:
        pytest.skip(_native.REASON)
    x, temperature = case
    want = ("confidence", "margin", "entropy", "lse")
    kw = {"uniform": uniform(), "temperature": temperature, "want": want}
    benchmark.pedantic(masked_softmax, (x,), kw, rounds=9, iterations=5, warmup_rounds=1)


def test_twin(benchmark, case):
    from samplers.ops.masked_softmax import _twin

    x, temperature = case
    u = uniform() if temperature > 0 else None
    args = (x, None, u, temperature, 1.0, None, None, None, 0.0, 0, 1.0, None, 1)
    benchmark.pedantic(_twin, args, rounds=3, iterations=1, warmup_rounds=1)


def test_eager(benchmark, case):
    benchmark.pedantic(eager_step, case, rounds=3, iterations=1, warmup_rounds=1)
