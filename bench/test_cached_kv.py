"""Cache operations, at the sizes of LLaDA-8B (32 heads) and Qwen3-8B (36 layers, 8 heads), bfloat16.

    make bench-kernels        or  python bench/kernels.py --only cached_kv

One group a case: the floor, a contiguous copy of the same bytes; ours; and what published code does. A block of 32 rows
is replaced or appended, the last that there is room for; 256 random rows are scattered or gathered. The capacity is part of
a group's name, and no time of ours may depend on it. index_copy_ and torch.cat, which makes a new cache of the old one and
the new rows, run over the layers in a Python loop, as models hold a cache a layer.
cached_attention stands against torch's attention over keys that are put together first.
"""

import pytest
import torch
import torch.nn.functional as F
from side_by_side import race

from samplers import ops

WIDTH, BLOCK, SOME = 128, 32, 256
CASES = {  # layers, heads, capacity
    "one layer, 32 heads, 1024": (1, 32, 1024),
    "one layer, 32 heads, 4096": (1, 32, 4096),
    "8 layers, 32 heads, 4096": (8, 32, 4096),
    "36 layers, 8 heads, 4096": (36, 8, 4096),
}


@pytest.fixture(scope="module", params=CASES)
def cache(request):
    layers, heads, length = CASES[request.param]
    key = torch.zeros(layers, 1, heads, length, WIDTH, dtype=torch.bfloat16)  # (layers, B, H, L, D)
    return request.param, key, torch.zeros_like(key)


def new_rows(key, n):
    g = torch.Generator().manual_seed(0)
    shape = (*key.shape[:3], n, WIDTH)
    return [torch.randn(shape, generator=g).to(key.dtype) for _ in range(2)]


def index_copy(key, value, new_key, new_value, index):
    for layer in range(key.shape[0]):
        key[layer].index_copy_(2, index, new_key[layer])
        value[layer].index_copy_(2, index, new_value[layer])


def slice_copy(key, value, new_key, new_value, start):
    key[:, :, :, start : start + new_key.shape[3]].copy_(new_key)
    value[:, :, :, start : start + new_key.shape[3]].copy_(new_value)


def cat(key, value, new_key, new_value):
    """A cache that grows: each layer's rows so far and the new ones, put together anew."""
    old = key.shape[3] - new_key.shape[3]
    for layer in range(key.shape[0]):
        for x, y in ((key, new_key), (value, new_value)):
            torch.cat([x[layer][:, :, :old], y[layer]], 2)


def copy(to, new):
    for x, y in zip(to, new):
        x.copy_(y)


def append(key, value, new_key, new_value, lengths):
    lengths.fill_(key.shape[3] - new_key.shape[3])
    ops.kv_append_(key, value, new_key, new_value, lengths)


def measure(benchmark, group, key, value, rows, calls):
    race(benchmark, group, calls, rounds=15, bytes=rows * ops.kv_row_bytes(key, value), **ops.status())


def test_block(benchmark, cache):
    name, key, value = cache
    new = new_rows(key, BLOCK)
    to, lengths, start = [torch.empty_like(x) for x in new], torch.tensor([0]), key.shape[3] - BLOCK
    index = torch.arange(start, start + BLOCK)
    calls = {
        "copy": lambda: copy(to, new),
        "ours, replace": lambda: ops.kv_replace_(key, value, *new, start),
        "ours, append": lambda: append(key, value, *new, lengths),
        "slice copy_": lambda: slice_copy(key, value, *new, start),
        "index_copy_": lambda: index_copy(key, value, *new, index),
        "torch.cat": lambda: cat(key, value, *new),
    }
    measure(benchmark, f"block of {BLOCK}; {name}", key, value, BLOCK, calls)


def test_random_rows(benchmark, cache):
    name, key, value = cache
    new = new_rows(key, SOME)
    index = torch.randperm(key.shape[3], generator=torch.Generator().manual_seed(1))[:SOME]
    out = [torch.empty_like(x) for x in new]

    def index_select():
        for x, y in zip((key, value), out):
            torch.index_select(x, 3, index, out=y)

    calls = {
        "copy": lambda: copy(out, new),
        "ours, scatter": lambda: ops.kv_scatter_(key, value, *new, index),
        "index_copy_": lambda: index_copy(key, value, *new, index),
        "ours, gather": lambda: ops.kv_gather(key, value, index, out=out),
        "index_select": index_select,
    }
    measure(benchmark, f"{SOME} random rows; {name}", key, value, SOME, calls)


@pytest.mark.parametrize("heads", [32, 8], ids=["32 heads", "8 of 32 heads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_attention(benchmark, dtype, heads):
    """32 new rows over 1024 stored of 4096; "cache alone" is less than the work that is asked for."""
    g = torch.Generator().manual_seed(0)

    def randn(heads, n):
        return torch.randn(1, heads, n, WIDTH, generator=g).to(dtype)

    query, key, value = randn(32, BLOCK), randn(heads, 4096), randn(heads, 4096)
    new_key, new_value, lengths = randn(heads, BLOCK), randn(heads, BLOCK), torch.tensor([1024])
    old = [x[:, :, :1024] for x in (key, value)]

    def together():
        k, v = (torch.cat([x, y], 2) for x, y in zip(old, (new_key, new_value)))
        return F.scaled_dot_product_attention(query, k, v, enable_gqa=True)

    calls = {
        "cache alone": lambda: F.scaled_dot_product_attention(query, *old, enable_gqa=True),
        "ours": lambda: ops.cached_attention(query, key, value, new_key, new_value, lengths=lengths),
        "put together": together,
    }
    race(benchmark, f"attention {str(dtype)[6:]}, {heads} heads of keys", calls, **ops.status())
