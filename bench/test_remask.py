"""Committing each row's k best positions, k differing by row, as a step of LLaDA's does.

    make bench-kernels        or  python bench/kernels.py --only remask

One group a size: the floor, a copy of the confidences; ours, by each rule; the row loop of LLaDA's generate.py; a stable
sort of the whole batch; topk of the largest k, masked; the twin. Peers get the confidences, tokens and masks that ours
gets. Compare within a group and a run.
"""

import pytest
import torch
from side_by_side import race

from samplers import ops
from samplers.ops import _native, reference

SIZES = [(1, 32, 4), (1, 256, 8), (8, 256, 16), (32, 1024, 64), (32, 4096, 256), (8, 8192, 512)]  # B, L, highest k
RULES = {
    "threshold": {"threshold": 0.95, "least": 1},
    "factor": {"factor": 1.0, "least": 1},
    "budget": {"budget": 0.1, "lowest": True},
}


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def llada(x, token, confidence, masked, k):
    """The end of a step in LLaDA's generate.py: a topk a row."""
    token = torch.where(masked, token, x)
    confidence = torch.where(masked, confidence, -torch.inf)
    chosen = torch.zeros_like(token, dtype=torch.bool)
    for j in range(confidence.shape[0]):
        chosen[j, torch.topk(confidence[j], k=k[j]).indices] = True
    x[chosen] = token[chosen]


def batched_sort(x, token, confidence, masked, k):
    """One stable sort, ranks by scatter: the best that torch has with ties defined."""
    confidence = torch.where(masked, confidence, -torch.inf)
    order = torch.sort(confidence, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(x.shape[1]).expand_as(order))
    chosen = (rank < k[:, None]) & masked
    x.copy_(torch.where(chosen, token, x))


def batched_topk(x, token, confidence, masked, k):
    """topk of the highest k for all rows, the surplus masked away; ties are anybody's."""
    confidence = torch.where(masked, confidence, -torch.inf)
    most = int(k.max())
    at = torch.topk(confidence, most, dim=1).indices
    keep = torch.arange(most) < k[:, None]
    chosen = torch.zeros_like(masked).scatter_(1, at, keep) & masked
    x.copy_(torch.where(chosen, token, x))


@pytest.mark.skipif(_native.C is None, reason=_native.REASON)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_commit(benchmark, threads, size):
    rows, length, most = size
    g = torch.Generator().manual_seed(0)
    masked = torch.rand(rows, length, generator=g) < 0.9  # (B, L)
    confidence = torch.rand(rows, length, generator=g)  # (B, L), no two alike
    token = torch.randint(1, 100_000, (rows, length), generator=g)
    k = torch.randint(1, most + 1, (rows,), generator=g)  # (B,)
    start, to = torch.where(masked, 0, 7), torch.empty_like(confidence)
    ours = start.clone()
    ops.commit_(ours, token, confidence, masked, k=k)
    for peer in (llada, batched_sort, batched_topk):
        x = start.clone()
        peer(x, token, confidence, masked, k)
        assert x.equal(ours), peer
    x = start.clone()
    given = x, token, confidence, masked
    twin = reference.select_call("commit_", confidence, masked, (k, None, None, None), None, 0, None, False)
    calls = {
        "copy": lambda: to.copy_(confidence),
        "ours": lambda: ops.commit_(*given, k=k),
        **{f"ours, {name}": lambda rule=rule: ops.commit_(*given, **rule) for name, rule in RULES.items()},
        "llada": lambda: llada(*given, k),
        "batched_sort": lambda: batched_sort(*given, k),
        "batched_topk": lambda: batched_topk(*given, k),
        "twin": lambda: reference.commit_(x, token, 0, *twin),
    }
    group = f"{rows}x{length}, k <= {most}, {threads} thread{'s' if threads > 1 else ''}"
    race(benchmark, group, calls, rows=rows, length=length, most=most, **ops.status())
