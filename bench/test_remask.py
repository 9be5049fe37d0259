"""Committing each row's k best positions, k differing by row, as a step of LLaDA's does.

    pytest bench/test_remask.py --benchmark-enable

One group a size: ours; the row loop of LLaDA's generate.py; a stable sort of the whole batch; topk of the largest k, masked;
and the other rules. Peers get the confidences, tokens and masks that ours gets. Compare within a group and a run.
"""

import pytest
import torch

from samplers import ops
from samplers.ops import _native, remask

SIZES = [(1, 32, 4), (1, 256, 8), (8, 256, 16), (32, 1024, 64), (32, 4096, 256), (8, 8192, 512)]  # B, L, highest k
MANY = {"rounds": 30, "iterations": 20, "warmup_rounds": 2}
needs_native = pytest.mark.skipif(_native.C is None, reason=_native.REASON)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def case(request, threads, benchmark):
    """→ x, token, confidence, masked (B, L), k (B,)"""
    rows, length, most = request.param
    benchmark.group = f"{rows}x{length}, k <= {most}, {threads} thread{'s' if threads > 1 else ''}"
    benchmark.extra_info.update(rows=rows, length=length, most=most, **ops.status())
    g = torch.Generator().manual_seed(0)
    masked = torch.rand(rows, length, generator=g) < 0.9
    confidence = torch.rand(rows, length, generator=g)
    token = torch.randint(1, 100_000, (rows, length), generator=g)
    k = torch.randint(1, most + 1, (rows,), generator=g)
    return torch.where(masked, 0, 7), token, confidence, masked, k


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


@needs_native
def test_ours(benchmark, case):
    *tensors, k = case
    benchmark.pedantic(ops.commit_, tensors, {"k": k}, **MANY)


@pytest.mark.parametrize("peer", [llada, batched_sort, batched_topk], ids=lambda f: f.__name__)
def test_peer(benchmark, case, peer):
    x, *rest, k = case
    mine = x.clone()
    ops.commit_(mine, *rest, k=k)
    benchmark.pedantic(peer, case, rounds=15, iterations=5, warmup_rounds=2)
    assert x.equal(mine)  # no two confidences here are equal, so all agree


def test_twin(benchmark, case):
    x, token, confidence, masked, k = case
    args = remask._arguments("commit_", confidence, masked, (k, None, None, None), None, 0, None, False)
    benchmark.pedantic(remask._twin_commit, (x, token, 0, *args), rounds=15, iterations=5, warmup_rounds=2)


@needs_native
@pytest.mark.parametrize(
    "rule",
    [{"threshold": 0.95, "least": 1}, {"factor": 1.0, "least": 1}, {"budget": 0.1, "lowest": True}],
    ids=["threshold", "factor", "budget"],
)
def test_other_rules(benchmark, case, rule):
    *tensors, _ = case
    benchmark.pedantic(ops.commit_, tensors, rule, **MANY)
