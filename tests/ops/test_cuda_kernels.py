"""The CUDA kernel bodies, run by the block emulator, against what the ops give on the CPU: tokens and statuses equal, floats
to the bit (the twin's logarithm is torch's own, so to the last bit where no native kernel is built)."""

import math
import sys

import numpy as np
import pytest
import torch
from emulator import emulated

from samplers.ops import _native, masked_softmax
from samplers.ops._check import DTYPES

ms = sys.modules["samplers.ops.masked_softmax"]  # the module; its function has its name
WANT = ms.WANT
ALL = tuple(WANT)
WHOLE_ROWS, PARTS_OF_ROWS = 1, 132  # multiprocessors: one is full with few rows, 132 are not


@pytest.fixture(autouse=True)
def module(one_thread):
    module = emulated("masked_softmax")
    yield module
    module.turns(0)


def address(x):
    return 0 if x is None else x.data_ptr()


def on_device(
    logits, index=None, *, uniform=None, temperature=0.0, confidence_temperature=1.0, forbid=None, guidance=None,
    guidance_index=None, cfg_scale=0.0, top_k=0, top_p=1.0, truncated=False,
    want=("confidence",), given=None, multiprocessors=1,
):  # fmt: skip
    """masked_softmax's arguments → its outputs by name, from the kernels."""
    n = logits.shape[0] if index is None else index.shape[0]
    guidance_index = index if guidance_index is None else guidance_index
    out = {name: torch.full((n,), 7.0) for name in want}
    out["token"], out["status"] = torch.full((n,), -7), torch.full((n,), -7, dtype=torch.int32)
    call = {
        "type": DTYPES.index(logits.dtype), "n": n, "vocab": logits.shape[1],
        "logits": address(logits), "stride": logits.stride(0) * logits.element_size(), "index": address(index),
        "rows": logits.shape[0], "guidance": address(guidance), "guidance_index": address(guidance_index),
        "guidance_stride": 0 if guidance is None else guidance.stride(0) * guidance.element_size(),
        "guidance_rows": 0 if guidance is None else guidance.shape[0], "cfg_scale": cfg_scale,
        "uniform": address(uniform), "temperature": temperature, "confidence_temperature": confidence_temperature,
        "forbid": address(forbid), "n_forbid": 0 if forbid is None else forbid.numel(),
        "given": address(given), "top_k": top_k, "top_p": top_p, "truncated": truncated,
        "want": sum(WANT[name] for name in want), "multiprocessors": multiprocessors,
        **{name: address(out.get(name)) for name in ("token", "confidence", "margin", "entropy", "lse", "status")},
        "given_out": address(out.get("given")),
    }  # fmt: skip
    assert emulated("masked_softmax").run(call) == 0
    return out


def compare(logits, index=None, ways=(WHOLE_ROWS, PARTS_OF_ROWS), **kw):
    expected = masked_softmax(logits, index, **kw)
    for multiprocessors in ways:
        got = on_device(logits, index, multiprocessors=multiprocessors, **kw)
        assert got["status"].equal(expected.status)
        assert got["token"].equal(expected.token)
        for name in kw.get("want", ("confidence",)):
            x, y = got[name], getattr(expected, name)
            assert x.isnan().equal(y.isnan()), name
            x, y = x.nan_to_num(0.0), y.nan_to_num(0.0)
            ulp = 0 if _native.C else torch.nextafter(y.abs(), torch.full_like(y, math.inf)) - y.abs()
            assert ((x - y).abs() <= ulp).all(), (name, x, y)
    return expected


def randn(n, v, seed=0, scale=4.0, dtype=torch.float32):
    return (torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def uniforms(n, seed=0):
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))


def ids(n, v, seed=0):
    return torch.randint(v, (n,), generator=torch.Generator().manual_seed(2000 + seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 5, 127, 128, 129, 1000, 1024, 1025, 4097, 20000])
def test_equals_the_cpu(dtype, vocab):
    n = 7 if vocab < 2000 else 4
    x = randn(n, vocab, seed=vocab, dtype=dtype)
    for temperature in (0.0, 0.7, 1.0):
        compare(x, want=ALL, given=ids(n, vocab), uniform=uniforms(n, vocab), temperature=temperature)
        compare(x, want=("confidence",), uniform=uniforms(n, vocab), temperature=temperature)
        compare(x, want=(), uniform=uniforms(n, vocab), temperature=temperature)


def test_few_rows_are_split_and_many_are_not():
    x = torch.zeros(4, 20000)
    module, call = emulated("masked_softmax"), {}
    original = module.run
    try:
        module.run = lambda d: call.update(parts=module.parts(d)) or original(d)
        on_device(x, multiprocessors=WHOLE_ROWS)
        assert call["parts"] == 1
        on_device(x, multiprocessors=PARTS_OF_ROWS)
        assert call["parts"] == 3  # 20 chunks of fp32, 8 to a block
    finally:
        module.run = original


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_real_vocabulary(dtype):
    x = randn(2, 126464, dtype=dtype)
    kw = {"uniform": uniforms(2), "want": ALL, "given": ids(2, 126464), "forbid": torch.tensor([126336])}
    compare(x, temperature=0.7, **kw)
    compare(x, **kw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_at_any_address(dtype):
    wide = randn(5, 3300, dtype=dtype)
    for begin in range(9):
        for vocab in (1030, 2048, 3300 - 9):
            x = wide[:, begin : begin + vocab]
            compare(x, want=ALL, given=ids(5, vocab), uniform=uniforms(5, begin), temperature=0.7)
    x = wide.flatten()[3 : 3 + 5 * 2311].view(5, 2311)  # every row at another address
    compare(x, want=ALL, given=ids(5, 2311), index=None, uniform=uniforms(5), temperature=1.0)
    x = wide.flatten()[: 4 * 4096].view(4, 4096)[:, :1024]
    compare(x, torch.tensor([3, 0, 3, 3, 1, 2]), uniform=uniforms(6), temperature=1.0)


def test_nothing_outside_a_row_is_read_into_it():
    for dtype in DTYPES:
        wide = torch.full((3, 6000), math.nan, dtype=dtype)
        for begin, vocab in ((1, 5), (3, 1024), (5, 1025), (7, 2048), (2, 3000)):
            x = wide.clone()[:, begin : begin + vocab]
            x.copy_(randn(3, vocab, seed=vocab))
            assert (compare(x, uniform=uniforms(3), temperature=1.0, want=ALL, given=ids(3, vocab)).status == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forbidden_ids(dtype):
    for vocab in (3, 1000, 5000):
        x = randn(5, vocab, dtype=dtype)
        kw = {"uniform": uniforms(5), "want": ALL, "given": ids(5, vocab)}
        many = torch.randperm(vocab + 50, generator=torch.Generator().manual_seed(1))[: vocab // 2]
        lists = [
            [],
            [vocab // 2],
            [vocab - 1, 0, 0, vocab, vocab + 7],
            [*x.argmax(1)],
            [*range(vocab)],
            [*range(1, vocab)],
            many,
        ]
        for forbid in lists:
            for temperature in (0.0, 0.7):
                compare(x, forbid=torch.as_tensor(forbid, dtype=torch.int64), temperature=temperature, **kw)
    x[:, 17] = math.nan
    assert (compare(x, forbid=torch.tensor([17]), want=ALL, given=ids(5, 5000)).status == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance(dtype):
    for vocab in (5, 1000, 2500):
        x, y = randn(6, vocab, dtype=dtype), randn(8, vocab, seed=1, dtype=dtype)
        x[0, : vocab // 2] = -math.inf
        y[1, vocab // 3 :] = -math.inf
        y[2, 1] = math.inf
        x[3, 2] = math.nan
        y[4, vocab - 1] = math.nan
        for kw in (
            {},
            {"temperature": 0.7, "confidence_temperature": 0.7},
            {"temperature": 1.0, "confidence_temperature": 0.5},
        ):
            kw = {"uniform": uniforms(6), "want": ALL, "given": ids(6, vocab), "cfg_scale": 1.5, **kw}
            compare(x, guidance=y[:6], **kw)
            rows = torch.tensor([5, 5, 0, 1, 3, 2])
            compare(
                x,
                rows,
                guidance=y,
                guidance_index=torch.tensor([7, 6, 1, 0, 3, 5]),
                forbid=torch.tensor([vocab - 1]),
                **kw,
            )
            compare(x, rows, guidance=y, **kw)
        compare(x, guidance=y[:6], cfg_scale=0.5, want=())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_top_k_and_top_p(dtype):
    cuts = [
        {"top_k": 40, "top_p": 0.9},
        {"top_p": 0.3},
        {"top_k": 3},
        {"top_p": 1e-9},
        {"top_p": 0.999},
        {"top_k": 1400},
    ]
    for vocab in (7, 1300):
        x, y = randn(6, vocab, dtype=dtype), randn(6, vocab, seed=1, dtype=dtype)
        x[0] = x[0].round()  # ties
        x[1] = 0
        x[1, vocab // 2 :] = -0.0
        x[2, vocab // 3 :] = -math.inf
        x[3, vocab // 2] = math.nan
        x[4] = -math.inf
        kw = {"uniform": uniforms(6), "want": ALL, "given": ids(6, vocab)}
        for cut in cuts:
            for truncated in (False, True):
                compare(x, temperature=0.7, ways=(PARTS_OF_ROWS,), truncated=truncated, **cut, **kw)
        kw["ways"] = (WHOLE_ROWS,)
        for cut in cuts[:3]:
            for truncated in (False, True):
                compare(x, temperature=0.0, truncated=truncated, **cut, **kw)
                more = {"guidance": y, "cfg_scale": 0.5, "forbid": torch.tensor([vocab // 4]), **cut, **kw}
                compare(x, temperature=1.0, truncated=truncated, **more)
    compare(x, want=(), top_k=5)
    compare(x, want=(), top_k=5, temperature=1.0, uniform=kw["uniform"])
    compare(x[:, :1], top_k=1, top_p=0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_truncation_and_chunks_that_are_left_out(dtype):
    """Rows of which one temperature needs chunks that the other leaves out, and chunks of which nothing may be drawn."""
    x = torch.full((3, 4000), -20.0, dtype=dtype)
    x[:, 10] = 0
    x[0, 1024:] = -3.5
    x[1, 2048:] = randn(1, 1952, dtype=dtype)[0].abs().neg()
    x[2, 2048:3072] = -math.inf
    for T, confidence_temperature in ((0.1, 1.0), (1.0, 0.1), (0.5, 0.5)):
        for cut in ({}, {"top_k": 5}, {"top_p": 0.95}):
            kw = {"temperature": T, "confidence_temperature": confidence_temperature, "uniform": uniforms(3), **cut}
            compare(x, want=ALL, given=ids(3, 4000), **kw)


def test_ties_and_plateaus():
    for dtype in DTYPES:
        x = torch.zeros(4, 3000, dtype=dtype)
        x[1, 1500:] = 2
        x[2, [7, 1030, 2999]] = 2
        x[3] = randn(1, 3000).round()[0]
        for u in (0.0, 0.25, 0.5, 0.75, 1 / 3, 1 - 2**-53):  # most of them land on an entry's edge
            kw = {"uniform": torch.full((4,), u, dtype=torch.float64), "want": ALL, "given": ids(4, 3000)}
            assert compare(x, **kw).token.tolist()[:3] == [0, 1500, 7]
            compare(x, temperature=1.0, **kw)
            compare(x[:, :4], temperature=1.0, uniform=kw["uniform"])


def test_no_rows():
    """On a GPU this was a division by zero."""
    none = torch.zeros(0, dtype=torch.int64)
    for kw in ({}, {"top_k": 3, "temperature": 1.0, "uniform": uniforms(0)}):
        compare(randn(0, 130), **kw)
        compare(randn(4, 130), none, **kw)


def test_spoilt_and_impossible_rows():
    for dtype in DTYPES:
        x = randn(9, 2100, dtype=dtype)
        x[0, 0] = x[1, 1200] = x[2, 2099] = math.nan
        x[3, 5] = x[4, 2099] = math.inf
        x[5] = -math.inf
        x[6, :1500] = -math.inf
        x[7] = -math.inf
        x[7, 2098] = math.nan
        x[8] = -math.inf
        x[8, 1024] = -1
        for want in (ALL, ("confidence",), ()):
            for temperature in (0.0, 0.7):
                kw = {"uniform": uniforms(9), "want": want, "given": ids(9, 2100) if want == ALL else None}
                out = compare(x, temperature=temperature, **kw)
                assert out.status.tolist() == [1, 1, 1, 1, 1, 2, 0, 1, 0]


def test_ranges_of_logits_and_temperatures():
    for dtype in DTYPES:
        steep = torch.linspace(-60000, 60000, 2500).to(dtype).repeat(3, 1)
        rising = (
            (torch.arange(2500) / 1000).exp2().mul(20).to(dtype).repeat(3, 1)
        )  # entries far above their chunk's head
        for x in (steep, rising, randn(3, 2500, scale=30, dtype=dtype), randn(3, 2500, dtype=dtype) - 3e4):
            for pair in ((0.0, 1.0), (1e-4, 1.0), (1.0, 1e-4), (1e4, 1e4), (0.01, 0.01), (3.0, 0.2), (1e-30, 1e30)):
                kw = dict(zip(("temperature", "confidence_temperature"), pair))
                compare(x, uniform=uniforms(3), want=ALL, given=ids(3, 2500), **kw)


def test_many_draws():
    """A draw settled in parallel is the draw settled in order."""
    n = 3000
    for seed, scale in enumerate((0.0, 0.5, 4.0, 12.0)):
        x = randn(1, 1100, seed=seed, scale=scale).expand(n, -1)
        compare(x, torch.zeros(n, dtype=torch.int64), uniform=uniforms(n, seed), temperature=1.0, ways=(PARTS_OF_ROWS,))
    for scale in (0.0, 4.0):  # and where it lands on an entry's edge, but for a rounding
        x = randn(1, 1024, scale=scale)
        k = float(np.float32(ms.LOG2E))
        weights = ms._exp2((x[0] - x.max()) * k)
        cumulative = np.cumsum(weights.double().numpy())
        edges = torch.from_numpy(cumulative[:-1] / cumulative[-1])
        draws = torch.cat([edges, torch.nextafter(edges, edges - 1), torch.nextafter(edges, edges + 1)])
        same = torch.zeros(len(draws), dtype=torch.int64)
        out = compare(x, same, uniform=draws, temperature=1.0, ways=(PARTS_OF_ROWS,))
        assert out.token.unique().numel() > 500


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_order_of_threads_does_not_show(module, turns):
    module.turns(turns)
    for dtype in DTYPES:
        x, y = randn(11, 5001, dtype=dtype), randn(11, 5001, seed=1, dtype=dtype)
        kw = {"uniform": uniforms(11), "temperature": 0.7, "want": ALL, "given": ids(11, 5001)}
        compare(x, forbid=torch.tensor([4000, 12, 3]), **kw)
        compare(x, guidance=y, cfg_scale=1.0, forbid=torch.tensor([4000, 12, 3]), **kw)
        compare(x)


def test_ids_out_of_range_are_told_and_nothing_is_read():
    x = randn(4, 1500)
    for ways in (WHOLE_ROWS, PARTS_OF_ROWS):
        index = torch.tensor([1, -1, 4, 2**40, 3])
        got = on_device(x, index, multiprocessors=ways)
        assert got["status"].tolist() == [0, 3, 3, 3, 0]
        assert got["token"].tolist() == [int(x[1].argmax()), -1, -1, -1, int(x[3].argmax())]
        assert got["confidence"].isnan().tolist() == [False, True, True, True, False]
        got = on_device(x, want=("given",), given=torch.tensor([0, 1500, -3, 1499]), multiprocessors=ways)
        assert got["status"].tolist() == [0, 3, 3, 0]
        got = on_device(
            x, guidance=randn(2, 1500), guidance_index=torch.tensor([0, 1, 2, -1]), cfg_scale=1.0, multiprocessors=ways
        )
        assert got["status"].tolist() == [0, 0, 3, 3]
    bad = torch.tensor([math.nan, -1.0, 1.0, 7.0], dtype=torch.float64)
    got = on_device(x, uniform=bad, temperature=1.0)
    assert ((got["token"] >= 0) & (got["token"] < 1500)).all()


def test_float64():
    """Independently of the CPU's code: against float64."""
    for dtype in DTYPES:
        x = randn(6, 7001, dtype=dtype)
        got = on_device(x, want=ALL, given=ids(6, 7001), uniform=uniforms(6), temperature=1.0)
        p = x.double().softmax(1)
        rows = torch.arange(6)
        assert got["token"].equal(torch.searchsorted(p.cumsum(1), uniforms(6)[:, None])[:, 0])
        two = p.topk(2, 1).values
        expected = {
            "confidence": p[rows, got["token"]], "margin": two[:, 0] - two[:, 1], "entropy": -(p * p.log()).sum(1),
            "lse": x.double().logsumexp(1), "given": p[rows, ids(6, 7001)],
        }  # fmt: skip
        for name, value in expected.items():
            torch.testing.assert_close(got[name].double(), value, rtol=2e-6, atol=1e-9)


def test_the_fast_exponential_is_the_specified_one(module):
    zero, low = (b & 0xFFFFFFFF for b in torch.tensor([-0.0, -126.0]).view(torch.int32).tolist())
    assert module.exp2_differs(zero, low, 997) is None  # a step of 1 takes a minute, and passes too
    assert module.exp2_differs(0, 0, 1) is None
