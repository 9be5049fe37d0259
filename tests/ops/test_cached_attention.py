"""cached_attention against plain float64 attention over the keys put together, row by row."""

import itertools
import sys

import pytest
import torch

from samplers.ops import cached_attention, reference

ca = sys.modules["samplers.ops.cached_attention"]
pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # of values of order 1
KINDS = {"full": None, "causal": None, "block_causal": 2}


def problem(dtype=torch.float32, batch=3, heads=2, groups=1, length=40, width=16, n=6, seed=0, value_width=None):
    """Query, one layer of each half of a (layers, 2, B, H, L, D) cache, and new rows."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=g).to(dtype)

    cache = randn(3, 2, batch, heads, length + 3, width)[..., 1 : 1 + length, :]
    value = cache[1, 1] if value_width is None else randn(batch, heads, length, value_width)
    new_value = randn(batch, heads, n, value_width or width)
    new_key = randn(batch, n, heads, width).transpose(1, 2)  # as a projection gives it
    return randn(batch, heads * groups, n, width), cache[1, 0], value, new_key, new_value


def truth(
    query,
    key,
    value,
    new_key,
    new_value,
    lengths,
    attention="full",
    block_length=None,
    keep=None,
    new_keep=None,
    scale=None,
):
    """Batch row by batch row, in float64, over keys that are picked and concatenated."""
    groups, n = query.shape[1] // key.shape[1], query.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    block = {"full": n, "causal": 1}.get(attention, block_length)
    out = []
    for b, length in enumerate(lengths.tolist()):
        seen = [i for i in range(length) if keep is None or keep[b, i]]
        k, v = (
            torch.cat([x[b][:, seen], y[b]], 1).double().repeat_interleave(groups, 0)
            for x, y in ((key, new_key), (value, new_value))
        )
        scores = query[b].double() @ k.mT * scale
        for i, j in itertools.product(range(n), repeat=2):
            if j // block > i // block or (new_keep is not None and i != j and not new_keep[b, j]):
                scores[:, i, len(seen) + j] = -torch.inf
        out.append(scores.softmax(-1) @ v)
    return torch.stack(out)


def compare(tensors, **kw):
    """The op, its twin, and what a device would run, against the truth."""
    expected = truth(*tensors, **kw)
    call = dict(kw)
    attention, block = call.pop("attention", "full"), call.pop("block_length", None)
    scale = call.get("scale") or tensors[0].shape[3] ** -0.5
    number = {"full": 0, "causal": 1}.get(attention, block)
    args = (*tensors, call["lengths"], call.get("keep"), number, scale, call.get("new_keep"))
    for out in (cached_attention(*tensors, **kw), reference.cached_attention(*args), ca._on_device(*args)):
        assert out.dtype == tensors[0].dtype
        assert out.shape == expected.shape
        assert (out - expected).abs().max() <= TOLERANCE[out.dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("attention", KINDS)
def test_float64(dtype, groups, attention):
    tensors = problem(dtype, groups=groups)
    kw = {"attention": attention, "block_length": KINDS[attention]}
    keep = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    keep[1, :7] = False  # a row that sees nothing of the cache
    for lengths in ([40, 40, 40], [0, 7, 40], [0, 0, 0], [1, 39, 39]):
        lengths = torch.tensor(lengths)
        compare(tensors, lengths=lengths, **kw)
        compare(tensors, lengths=lengths, keep=keep, **kw)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("attention", KINDS)
def test_filling_among_new_rows(dtype, groups, attention):
    """New rows that fill up a ragged batch: the others are as if they were not there, and nothing becomes a NaN."""
    tensors = problem(dtype, groups=groups)
    new_keep = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    for lengths in ([40, 40, 40], [0, 7, 0]):
        kw = {"attention": attention, "block_length": KINDS[attention], "lengths": torch.tensor(lengths)}
        compare(tensors, new_keep=new_keep, **kw)
        compare(tensors, new_keep=new_keep, keep=torch.arange(120).view(3, 40) % 3 != 0, **kw)


@pytest.mark.parametrize("cost", [0, 1e18], ids=["a call a length", "one masked call"])
def test_ragged_both_ways(monkeypatch, cost):
    monkeypatch.setattr(ca, "CALL", cost)
    tensors = problem(batch=5, groups=2, seed=3)
    for lengths in ([3, 3, 40, 0, 17], [0, 0, 5, 5, 5], [9, 8, 7, 6, 5]):
        compare(tensors, lengths=torch.tensor(lengths), attention="causal")
        keep = torch.arange(40).expand(5, 40) % 3 != 0
        compare(tensors, lengths=torch.tensor(lengths), keep=keep)
    spans = ca._spans([3, 3, 40, 0, 17], 1)
    assert spans == (
        [(0, 5, 40, True)] if cost else [(0, 2, 3, False), (2, 3, 40, False), (3, 4, 0, False), (4, 5, 17, False)]
    )


def test_shapes():
    """One row, one column, blocks longer than the rows, other widths of values, a scale, no capacity, no batch."""
    lengths = torch.tensor([4, 0, 9])
    compare(problem(n=1), lengths=lengths, attention="causal")
    compare(problem(width=1), lengths=lengths)
    compare(problem(), lengths=lengths, attention="block_causal", block_length=4)
    compare(problem(), lengths=lengths, attention="block_causal", block_length=100)
    compare(problem(value_width=5), lengths=lengths, attention="causal")
    compare(problem(), lengths=lengths, scale=0.9)
    compare(problem(length=0), lengths=lengths * 0)
    empty = [x[:0] for x in problem()]
    assert cached_attention(*empty, lengths=lengths[:0]).shape == (0, 2, 6, 16)


def test_no_fused_attention_in_torch(monkeypatch):
    monkeypatch.setattr(ca, "_flash", None)
    compare(problem(groups=2), lengths=torch.tensor([4, 0, 9]), attention="causal")


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("cost", [0, 1e18], ids=["a call a length", "one masked call"])
def test_unseen_rows_may_hold_anything(monkeypatch, garbage, cost):
    """A cache that was only allocated, never filled, and rows that keep hides."""
    monkeypatch.setattr(ca, "CALL", cost)
    tensors = problem(seed=4)
    lengths, keep = torch.tensor([3, 0, 30]), torch.ones(3, 40, dtype=torch.bool)
    keep[:, 1] = False
    for b, length in enumerate(lengths.tolist()):
        for x in tensors[1:3]:
            x[b, :, length:] = garbage
    compare(tensors, lengths=lengths)
    for x in tensors[1:3]:
        x[:, :, 1] = garbage
    compare(tensors, lengths=lengths, keep=keep)


def test_same_as_stored():
    """Rows attended to unstored, and the same rows stored and read back from the cache."""
    query, key, value, new_key, new_value = problem(seed=5)
    lengths = torch.tensor([30, 30, 30])
    one = cached_attention(query, key, value, new_key, new_value, lengths=lengths)
    key, value = (torch.cat([x[:, :, :30], y], 2) for x, y in ((key, new_key), (value, new_value)))
    torch.testing.assert_close(one, torch.nn.functional.scaled_dot_product_attention(query, key, value))


def test_inputs_are_left_alone():
    tensors = [x.clone().requires_grad_() for x in problem()]
    before = [x.detach().clone() for x in tensors]
    out = cached_attention(*tensors, lengths=torch.tensor([5, 6, 7]), attention="causal")
    assert not out.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(tensors, before))


Q, KEY, VALUE, NEW_KEY, NEW_VALUE = problem()
GOOD = {"query": Q, "key": KEY, "value": VALUE, "new_key": NEW_KEY, "new_value": NEW_VALUE, "lengths": torch.arange(3)}
BAD = [
    (ValueError, r"query has shape \(2, 6, 16\), expected four dimensions", {"query": Q[0]}),
    (TypeError, "query is torch.float64, expected float32", {"query": Q.double()}),
    (TypeError, "value is torch.float16, query is torch.float32", {"value": VALUE.half()}),
    (ValueError, "new_key is on meta, query on cpu", {"new_key": NEW_KEY.to("meta")}),
    (ValueError, "key has strides", {"key": KEY.mT.contiguous().mT}),
    (ValueError, "query has 3 heads, key has 2", {"query": torch.zeros(3, 3, 6, 16)}),
    (ValueError, "at least one row", {"query": Q[:, :, :0], "new_key": NEW_KEY[:, :, :0], "new_value": NEW_VALUE[:, :, :0]}),
    (ValueError, r"key has shape \(2, 2, 40, 16\), expected \(3, 2, 40, 16\)", {"key": KEY[:2]}),
    (ValueError, r"key has shape \(3, 2, 40, 15\), expected \(3, 2, 40, 16\)", {"key": KEY[..., :15]}),
    (ValueError, r"value has shape \(3, 2, 39, 16\)", {"value": VALUE[:, :, :39]}),
    (ValueError, r"new_key has shape \(3, 2, 5, 16\), expected \(3, 2, 6, 16\)", {"new_key": NEW_KEY[:, :, :5]}),
    (ValueError, r"new_value has shape \(3, 2, 6, 15\)", {"new_value": NEW_VALUE[..., :15]}),
    (ValueError, r"lengths has shape \(2,\), expected \(3,\)", {"lengths": torch.arange(2)}),
    (TypeError, "lengths is torch.int32", {"lengths": torch.arange(3).int()}),
    (IndexError, r"lengths\[1\] is 41, expected 0 to 40", {"lengths": torch.tensor([1, 41, 2])}),
    (IndexError, r"lengths\[0\] is -1", {"lengths": torch.tensor([-1, 0, 2])}),
    (ValueError, r"keep has shape \(3, 39\), expected \(3, 40\)", {"keep": torch.ones(3, 39, dtype=torch.bool)}),
    (TypeError, "keep is torch.float32", {"keep": torch.ones(3, 40)}),
    (ValueError, r"new_keep has shape \(3, 40\), expected \(3, 6\)", {"new_keep": torch.ones(3, 40, dtype=torch.bool)}),
    (TypeError, "new_keep is torch.int64", {"new_keep": torch.ones(3, 6, dtype=torch.int64)}),
    (ValueError, "attention is 'banded', expected one of full, causal, block_causal", {"attention": "banded"}),
    (ValueError, "go together", {"attention": "block_causal"}),
    (ValueError, "go together", {"attention": "causal", "block_length": 4}),
    (ValueError, "block_length is 0, expected an int, 1 or more", {"attention": "block_causal", "block_length": 0}),
    (ValueError, "scale is nan", {"scale": float("nan")}),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(BAD)))
def test_bad_input(row):
    error, message, kw = BAD[row]
    with pytest.raises(error, match=message) as info:
        cached_attention(**{**GOOD, **kw})
    assert str(info.value).startswith("cached_attention: ")


@pytest.mark.parametrize("keep", [None, torch.arange(120).view(3, 40) % 2 == 0], ids=["all", "keep"])
def test_opcheck(keep):
    op = torch.ops.sampler_zoo.cached_attention.default
    torch.library.opcheck(op, (*problem(groups=2), torch.tensor([4, 0, 9]), keep, 2, 0.25))
    new_keep = torch.arange(18).view(3, 6) % 3 != 0
    torch.library.opcheck(op, (*problem(groups=2), torch.tensor([4, 0, 9]), keep, 2, 0.25, new_keep))


def test_compile():
    def step(*tensors, lengths):
        return cached_attention(*tensors, lengths=lengths, attention="block_causal", block_length=3) * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for lengths in ([40, 40, 40], [0, 7, 40]):
        lengths = torch.tensor(lengths)
        assert torch.equal(compiled(*problem(), lengths=lengths), step(*problem(), lengths=lengths))
