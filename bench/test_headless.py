"""headless_softmax at LLaDA's size: 256 masked positions, width 4096, 126,464 tokens.

    make bench-kernels        or  python bench/kernels.py --only headless

One group a (dtype, temperature): the bare matrix product, which is the floor; ours; the product and then
masked_softmax; and the step as published code does it in eager torch. Compare within a group and within a run. The
weight takes 1 GB in bf16 and 2 GB in fp32. bf16 is worth a run if the machine multiplies it.
"""

import pytest
import torch
from side_by_side import race
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


@pytest.mark.skipif(_native.C is None, reason=_native.REASON)
@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["T=0", "T=0.7"])
def test_headless(benchmark, head, temperature):
    hidden, weight = head
    uniform = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # (N,) float64
    kw = {"uniform": uniform, "temperature": temperature}
    everything = ("confidence", "margin", "entropy", "lse")
    calls = {
        "product": lambda: torch.mm(hidden, weight.t()),
        "ours": lambda: headless_softmax(hidden, weight, **kw),
        "ours, everything": lambda: headless_softmax(hidden, weight, want=everything, **kw),
        "product, then masked_softmax": lambda: masked_softmax(hidden @ weight.t(), **kw),
        "product, then eager": lambda: eager_step(hidden @ weight.t(), temperature),
    }
    name = next(k for k, v in DTYPES.items() if v == weight.dtype)
    facts = {"rows": ROWS, "width": WIDTH, "vocab": VOCAB, "flop": 2 * ROWS * WIDTH * VOCAB, "temperature": temperature}
    race(benchmark, f"headless {name} T={temperature}", calls, rounds=5, slow=5, **facts, **ops.status())
