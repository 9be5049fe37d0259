"""Gaussian noise of a batch: row_normals beside torch's generator, which is read in order and knows no rows.

    make bench-kernels        or  python bench/kernels.py --only normals

One group per size, dtype and number of threads: the floor, which fills the output; ours, by op and as a run calls it; as many
uniform numbers; torch.randn; the twin. Compare within a group and a run.
"""

import pytest
import torch
from side_by_side import race

from samplers import ops
from samplers.ops import _native, reference
from samplers.random import DRAW_NOISE, Rng

SIZES = [(1, 16384), (8, 16384), (64, 3072), (4096, 2)]  # B, numbers in a row


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(_native.C is None, reason=_native.REASON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_normals(benchmark, threads, size, dtype):
    rows, length = size
    rng = Rng.of(5, rows)
    step, to = torch.zeros_like(rng.row), torch.empty(size, dtype=dtype)
    calls = {
        "fill": lambda: to.fill_(1.0),
        "ours": lambda: ops.row_normals(rng.seed, rng.row, step, length=length, draw=DRAW_NOISE, dtype=dtype),
        "ours, Rng.normal": lambda: rng.normal((length,), 0, dtype),
        "ours, row_uniforms": lambda: ops.row_uniforms(rng.seed, rng.row, step, length=length),
        "randn": lambda: torch.randn(size, dtype=dtype),
        "twin": lambda: reference.row_normals(rng.seed, rng.row, step, length, DRAW_NOISE, dtype),
    }
    group = (
        f"{rows}x{length} {'fp32' if dtype == torch.float32 else 'fp64'}, {threads} thread{'s' if threads > 1 else ''}"
    )
    race(benchmark, group, calls, rows=rows, length=length, bytes=to.nbytes, **ops.status())
