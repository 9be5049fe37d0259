"""masked_softmax: the native kernels against their twin, the twin against float64, and both against bad input.

If the extension is not built, the tests that compare the two are skipped and the rest runs on the twin.
"""

import math
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from native import C, isas, needs_native
from scipy import stats

import samplers.ops
from samplers.ops import _native, masked_softmax, reference

ms = sys.modules["samplers.ops.masked_softmax"]
ALL = ("confidence", "margin", "entropy", "lse", "given")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def randn(n, v, seed=0, scale=4.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, v, generator=g) * scale).to(dtype)


def uniforms(n, seed=0):
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))


def ids(n, v, seed=0):
    return torch.randint(v, (n,), generator=torch.Generator().manual_seed(2000 + seed))


def twin(logits, index=None, **kw):
    """masked_softmax on the twin, whatever is registered."""
    want, given = kw.pop("want", ("confidence",)), kw.pop("given", None)
    defaults = {"uniform": None, "temperature": 0.0, "confidence_temperature": 1.0, "forbid": None}
    defaults.update(guidance=None, guidance_index=None, cfg_scale=0.0, top_k=0, top_p=1.0, truncated=False)
    bits = ms.wanted("masked_softmax", want, given)
    call = reference.SoftmaxCall(logits=logits, index=index, given=given, want=bits, **{**defaults, **kw})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # hundreds of small torch ops: on a busy machine each would wait for the other core
    out = reference.masked_softmax(*call)
    torch.set_num_threads(threads)
    return ms.result(out, bits)


def assert_same(a, b, ulp=1):
    assert torch.equal(a.token, b.token)
    assert torch.equal(a.status, b.status)
    for name in ALL:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert torch.equal(x.isnan(), y.isnan()), name
            near = torch.nextafter(y, torch.full_like(y, math.inf)) - y if ulp else torch.zeros_like(y)
            assert ((x - y).abs() <= near * ulp)[~x.isnan()].all(), (name, (x - y).abs().max())


def compare(logits, index=None, **kw):
    expected = twin(logits, index, **kw)
    for _ in isas():
        assert_same(masked_softmax(logits, index, **kw), expected)


def truth(l, T=1.0):
    """float64 softmax of guided logits (n, V)."""
    return torch.softmax(l.double() / T, -1)


# ---- native == twin --------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab", "rows"), [(3, 1500), (17, 1500), (129, 1000), (1000, 400), (1024, 300), (1025, 300)])
def test_twin_small(dtype, vocab, rows):
    x = randn(rows, vocab, dtype=dtype)
    for temperature in (0.0, 0.3, 0.7, 1.0, 2.0):
        u = uniforms(rows, int(10 * temperature))
        compare(
            x, uniform=u, temperature=temperature, want=ALL, given=ids(rows, vocab), forbid=torch.tensor([vocab // 2])
        )


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_twin_large(dtype):
    x = randn(100, 5000, dtype=dtype)
    for temperature, confidence_temperature in ((0.0, 1.0), (0.7, 1.0), (0.3, 0.3), (1.0, 2.0), (2.0, 1.0)):
        kw = {"temperature": temperature, "confidence_temperature": confidence_temperature, "uniform": uniforms(100)}
        compare(x, want=ALL, given=ids(100, 5000), forbid=torch.tensor([4999, 7, 7, 2048, 5000]), **kw)
    x = randn(5, 126464, dtype=dtype)
    compare(x, temperature=0.7, uniform=uniforms(5), want=ALL, given=ids(5, 126464), forbid=torch.tensor([126336]))


@needs_native
@pytest.mark.parametrize("want", [(), ("confidence",), ("margin",), ("entropy",), ("lse",), ("lse", "margin")])
def test_twin_each_want(want):
    x = randn(40, 2500)
    for temperature in (0.0, 0.7, 1.0):
        compare(x, uniform=uniforms(40), temperature=temperature, want=want)


@needs_native
def test_twin_shapes_of_data():
    """Rows on which the first reference of a chunk does not do, and rows far away from zero."""
    base = randn(8, 5000)
    ramp = torch.linspace(-300, 300, 5000)
    spike = base.clone()
    spike[:, 4000] = 1e4
    hidden = torch.full((8, 5000), -math.inf)
    hidden[:, 200::1024] = base[:, 200::1024]  # nothing among the first 128 of any chunk
    cases = (base + ramp, base - ramp, spike, hidden, base - 1e29, base + 1e4, base + 1000, base * 0, base * 1e37)
    for x in cases:
        for temperature in (0.0, 0.1, 1.0):
            compare(x, uniform=uniforms(8), temperature=temperature, want=ALL, given=ids(8, 5000))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_twin_strides_index_guidance(dtype):
    store = randn(64, 3 * 2000, dtype=dtype)
    x, g = store[::2, 1:1501], store[1::2, 2003:3503]  # rows 2 apart, starts that are aligned to nothing
    x[3, 7] = -math.inf
    g[4, 9] = -math.inf
    g[5] = -math.inf
    index, other = ids(100, 32), ids(100, 32, 1)
    kw = {
        "uniform": uniforms(100),
        "temperature": 0.7,
        "want": ALL,
        "given": ids(100, 1500),
        "forbid": torch.tensor([3, 1499]),
    }
    compare(x, index, **kw)
    compare(x, index, guidance=g, cfg_scale=1.5, **kw)
    compare(x, index, guidance=g, guidance_index=other, cfg_scale=-0.5, **kw)
    compare(x, index, guidance=g, guidance_index=other, cfg_scale=0.0, **kw)


@needs_native
def test_threads_and_batch_change_nothing():
    x = randn(9, 20000)
    kw = {"uniform": uniforms(9), "temperature": 0.7, "want": ALL, "given": ids(9, 20000)}
    whole = masked_softmax(x, **kw)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):  # 5: fewer rows than twice the threads, so rows are split
            torch.set_num_threads(threads)
            assert_same(masked_softmax(x, **kw), whole, ulp=0)
            for i in (0, 8):
                one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
                alone = masked_softmax(x[i : i + 1], **one)
                assert_same(alone, ms.MaskedSoftmax(*(v[i : i + 1] for v in whole)), ulp=0)
    finally:
        torch.set_num_threads(before)


# ---- against the truth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "vocab", "offset"),
    [
        *((dtype, 126464, 0.0) for dtype in DTYPES),
        *((torch.float32, 5000, offset) for offset in (1000.0, 1e4, -1e29)),  # an offset leaves nothing of 16 bits
    ],
    ids=str,
)
def test_float64(dtype, vocab, offset):
    x = randn(20, vocab, scale=3.0, dtype=dtype) + offset
    for T in (1.0, 0.5):
        out = masked_softmax(x, confidence_temperature=T, want=ALL, given=ids(20, x.shape[1]))
        p = truth(x, T)
        best = p.gather(1, out.token[:, None])[:, 0]
        assert torch.equal(out.token, (x == x.amax(1, keepdim=True)).int().argmax(1))
        assert ((out.confidence - best).abs() / best).max() < 2e-6
        at = p.gather(1, ids(20, x.shape[1])[:, None])[:, 0]
        assert ((out.given - at).abs() / at).max() < 2e-6
        top = p.topk(2).values
        assert (out.margin - (top[:, 0] - top[:, 1])).abs().max() < 2e-6
        entropy = torch.special.entr(p).sum(1)
        assert (out.entropy - entropy).abs().max() < 1e-5
        lse = torch.logsumexp(x.double() / T, 1)
        assert ((out.lse - lse).abs() / lse.abs().clamp(min=1)).max() < 2e-6


def test_extremes():
    sure = torch.full((1, 3000), -1e4)
    sure[0, 1234] = 0.0
    out = masked_softmax(sure, want=("confidence", "margin", "entropy", "lse"))
    assert [v.item() for v in out[:3]] == [1234, 1.0, 1.0]
    assert 0 <= out.entropy.item() < 1e-30  # not 0: an impossible entry still weighs 2^-126
    flat = masked_softmax(torch.zeros(1, 3000), want=("confidence", "margin", "entropy", "lse"))
    assert flat.token.item() == 0
    assert flat.margin.item() == 0
    assert flat.entropy.item() == pytest.approx(math.log(3000), abs=1e-5)
    single = masked_softmax(torch.tensor([[3.0]]), want=("confidence", "margin", "entropy", "lse"))
    assert [single.token.item(), single.confidence.item(), single.margin.item(), single.lse.item()] == [0, 1, 1, 3]


def test_probabilities_never_exceed_one():
    x = randn(3000, 7, scale=30.0)
    out = masked_softmax(x, temperature=1.0, uniform=uniforms(3000), want=("confidence", "margin", "entropy"))
    assert out.confidence.max() <= 1
    assert out.margin.max() <= 1
    assert out.margin.min() >= 0
    assert out.entropy.min() >= 0


def test_ties_go_to_the_lowest_id():
    x = randn(6, 4000)
    for i, places in enumerate(([5, 6], [0, 3999], [1023, 1024], [1024, 2048, 3072], [130, 2], [3999])):
        x[i, places] = 99.0
    out = masked_softmax(x, want=("margin",))
    assert out.token.tolist() == [5, 0, 1023, 1024, 2, 3999]
    assert (out.margin[:5] == 0).all()
    assert out.margin[5] > 0.99
    assert masked_softmax(torch.tensor([[-0.0, 0.0]])).token.item() == 0


@pytest.mark.parametrize("vocab", [37, 3000])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draws_follow_the_distribution(vocab, temperature):
    draws = 60_000 if C else 20_000
    x = randn(1, vocab, seed=3, scale=1.5)
    u = uniforms(draws, seed=vocab)
    token = masked_softmax(
        x, torch.zeros(draws, dtype=torch.int64), uniform=u, temperature=temperature, forbid=torch.tensor([2]), want=()
    ).token
    x[0, 2] = -math.inf
    expected = truth(x, temperature)[0] * draws
    seen = torch.bincount(token, minlength=vocab).double()
    assert seen[2] == 0
    rare = expected < 5  # pooled into one cell, as the test asks for
    cells = [torch.cat([v[~rare], v[rare].sum()[None]]) for v in (seen, expected)]
    keep = cells[1] > 0
    assert stats.chisquare(cells[0][keep].numpy(), cells[1][keep].numpy()).pvalue > 1e-4


def test_draw_is_the_inverse_cdf():
    """Ids in order, so that the same uniform at two temperatures, or on two machines, moves no further than it must."""
    x = randn(1, 2000, seed=5, scale=1.0)
    u = torch.linspace(0, 1, 4097, dtype=torch.float64)[:-1]
    token = masked_softmax(x, torch.zeros(4096, dtype=torch.int64), uniform=u, temperature=1.0, want=()).token
    assert (token.diff() >= 0).all()
    cdf = truth(x)[0].cumsum(0)
    low = torch.nn.functional.pad(cdf, (1, 0))[token]
    assert (u > low - 1e-6).all()
    assert (u < cdf[token] + 1e-6).all()


def test_uniform_edges():
    x = torch.full((2, 2100), -math.inf)
    x[:, [100, 1500]] = 0.0
    u = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert masked_softmax(x, uniform=u, temperature=1.0).token.tolist() == [100, 1500]


def test_forbid():
    x = randn(50, 300, seed=1)
    best = x.argmax(1)
    x[:, 9] = math.nan  # a forbidden id may hold anything
    forbid = torch.cat([best.unique(), torch.tensor([9, 300, 10**9])])
    kw = {"forbid": forbid, "want": ALL, "given": torch.full((50,), 9)}
    out = masked_softmax(x, **kw)
    y = x.clone()
    y[:, forbid[forbid < 300]] = -math.inf
    assert torch.equal(out.token, y.argmax(1))
    torch.testing.assert_close(out.confidence, truth(y).amax(1).float(), rtol=2e-6, atol=0)
    assert (out.given == 0).all()
    assert (out.status == 0).all()
    drawn = masked_softmax(x, temperature=3.0, uniform=uniforms(50), **kw).token
    assert not torch.isin(drawn, forbid).any()


def test_guidance_is_its_formula():
    a, b, w = randn(30, 1300, seed=1), randn(30, 1300, seed=2), 1.7
    a[:, 5] = -math.inf
    b[:, 6] = -math.inf
    l = (1 + w) * a.double() - w * b.double()
    l[:, 5] = -math.inf
    l[:, 6] = a[:, 6].double()
    out = masked_softmax(a, guidance=b, cfg_scale=w, want=ALL, given=ids(30, 1300))
    assert torch.equal(out.token, l.argmax(1))
    p = truth(l)
    torch.testing.assert_close(out.confidence.double(), p.amax(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(out.given.double(), p.gather(1, ids(30, 1300)[:, None])[:, 0], rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(out.entropy.double(), torch.special.entr(p).sum(1), rtol=0, atol=3e-5)
    twice = masked_softmax(a, torch.tensor([3, 3]), guidance=b, guidance_index=torch.tensor([3, 4]), cfg_scale=w)
    assert twice.confidence[0] == out.confidence[3]
    assert twice.confidence[1] != out.confidence[3]
    b[0, 0], b[1, 1], a[2, 2], b[2, 2] = math.nan, math.inf, -math.inf, math.nan
    assert masked_softmax(a, guidance=b, cfg_scale=w).status.tolist()[:4] == [1, 1, 1, 0]
    assert masked_softmax(a, guidance=b, cfg_scale=0.0).status.max() == 0  # guidance is not read


@pytest.mark.parametrize("want", [(), ("confidence",), ALL])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("vocab", [50, 3000])
def test_status(want, temperature, vocab):
    x = randn(9, vocab)
    x[0, 13] = math.nan
    x[1, vocab - 1] = math.inf
    x[2] = -math.inf
    x[3, :-1] = -math.inf  # one candidate is enough
    x[4] = -math.inf
    x[4, vocab - 2] = math.nan
    x[5, 0] = math.nan
    x[6] = math.nan
    x[7] = -math.inf
    x[7, 0] = math.inf
    kw = {"temperature": temperature, "uniform": uniforms(9), "want": want}
    if "given" in want:
        kw["given"] = ids(9, vocab)
    outs = [twin(x, **kw)]
    if C:
        outs += [masked_softmax(x, **kw) for _ in isas()]
    for out in outs:
        assert out.status.tolist() == [1, 1, 2, 0, 1, 1, 1, 1, 0]
        bad = out.status != 0
        assert (out.token[bad] == -1).all()
        assert out.token[3] == vocab - 1
        for name in want:
            assert torch.equal(getattr(out, name).isnan(), bad), name
    nothing = masked_softmax(torch.zeros(1, 3), forbid=torch.arange(3))
    assert nothing.status.item() == 2


# ---- top-k and top-p ------------------------------------------------------------------------------------------------


def kept(x, top_k, top_p, temperature):
    """Which ids survive, by sorting in float64: an independent formulation. Rows x (N, V)."""
    out = torch.zeros_like(x, dtype=torch.bool)
    for row, mine in zip(x.double(), out):
        order = sorted(range(len(row)), key=lambda i: (-row[i].item(), i))
        order = order[: top_k or len(row)]
        p = torch.softmax(row[order] / temperature, 0)
        through = 0.0
        for i, share in zip(order, p.tolist()):
            mine[i] = through < top_p - 1e-9
            through += share
    return out & (x > -math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (7, 1.0), (40, 0.8), (0, 0.35), (0, 0.95), (3000, 0.999)])
@pytest.mark.parametrize("vocab", [5, 130, 2500])
def test_truncation_keeps_what_sorting_keeps(vocab, top_k, top_p, dtype):
    x, temperature = randn(6, vocab, 3, dtype=dtype), 0.7
    x[0, ::3] = -math.inf
    alive = kept(x.float(), top_k, top_p, temperature)
    one = masked_softmax(
        x, top_k=top_k, top_p=top_p, truncated=True, uniform=uniforms(6), temperature=temperature, want=("lse",)
    )
    for row in range(6):
        lse = torch.logsumexp(x[row].double()[alive[row]], 0).item()
        assert one.lse[row].item() == pytest.approx(lse, rel=1e-5, abs=1e-5), row
        assert alive[row, one.token[row]]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_truncation_twin(dtype, one_thread):
    x = randn(40, 3300, 9, dtype=dtype)
    x[3, 5] = math.nan
    x[4] = -math.inf
    x[5] = 1.0
    x[6, :7] = math.inf
    forbid, g = torch.tensor([0, 17, 3299]), randn(40, 3300, 10, dtype=dtype)
    for top_k, top_p in [(1, 1.0), (50, 1.0), (2900, 0.99), (0, 0.1), (0, 0.9), (0, 1e-9), (5000, 0.5)]:
        for T in (0.0, 0.3, 1.0, 5.0):
            for extra in ({}, {"forbid": forbid}, {"guidance": g, "cfg_scale": 1.5}):
                kw = {"uniform": uniforms(40), "temperature": T, "top_k": top_k, "top_p": top_p, **extra}
                for truncated in (False, True):
                    compare(x, want=("confidence", "entropy", "margin"), truncated=truncated, **kw)


def test_truncation_and_ties():
    x = torch.zeros(1, 2000)
    x[0, 100:1500] = 1.0  # 1,400 equals: the lowest ids stay
    many = masked_softmax(x.expand(3000, -1), uniform=uniforms(3000), temperature=1.0, top_k=10, truncated=True)
    assert set(many.token.tolist()) == set(range(100, 110))
    assert many.confidence.tolist() == pytest.approx([0.1] * 3000)
    half = masked_softmax(x[:, 100:1500].expand(9000, -1), uniform=uniforms(9000), temperature=1.0, top_p=0.5)
    assert half.token.max() < 700 and half.token.unique().numel() == 700


MOST = 126464  # LLaDA's vocabulary: 124 chunks, the last of them short


@pytest.mark.parametrize("top", [{"top_p": 0.9}, {"top_k": 1}, {"top_k": 1, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_what_is_reported_is_the_whole_distribution(temperature, top):
    """The best token has probability .42 at every temperature of the draw, and a nucleus of one token does not change
    it."""
    p = torch.tensor([[0.42, 0.28, 0.06, 0.06, 0.06, 0.06, 0.06]], dtype=torch.float64)
    kw = {"uniform": torch.full((1,), 0.5, dtype=torch.float64), "temperature": temperature, **top}
    kw.update(want=ALL, given=torch.tensor([1]))
    for _ in isas():
        out = masked_softmax(p.log().float(), **kw)
        assert out.token.item() == 0  # at T = 0.1 the best has .983 of the draw, so the nucleus of .9 is this one
        assert out.confidence.item() == pytest.approx(0.42, abs=1e-6)
        assert out.given.item() == pytest.approx(0.28, abs=1e-6)
        assert out.margin.item() == pytest.approx(0.14, abs=1e-6)
        assert out.entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)
        assert out.lse.item() == pytest.approx(0, abs=1e-6)
        out = masked_softmax(p.log().float(), truncated=True, **kw)
        if temperature == 0 and "top_k" not in top:  # at 0 the shares are the confidence's: six reach .9
            left = p[0, :6].sum().item()
            assert out.confidence.item() == pytest.approx(0.42 / left, abs=1e-6)
            assert out.margin.item() == pytest.approx(0.14 / left, abs=1e-6)
        else:
            assert [out.confidence.item(), out.margin.item(), out.entropy.item(), out.given.item()] == [1, 1, 0, 0]


@pytest.mark.parametrize("vocab", [50, 3000, MOST])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_truncation_is_the_draws_alone(vocab, dtype, one_thread):
    """Tokens are those of `truncated`, to the bit; the rest is what the same call says without top_k and top_p."""
    n = 12 if vocab < MOST else 3
    x = randn(n, vocab, 7, dtype=dtype)
    x[0, 1] = 40.0  # most chunks of this row are left out
    kw = {"uniform": uniforms(n), "forbid": torch.tensor([2]), "guidance": randn(n, vocab, 8, dtype=dtype)}
    for T, confidence_temperature in ((0.1, 1.0), (1.0, 1.0), (1.0, 0.1), (0.0, 1.0)):
        kw.update(temperature=T, confidence_temperature=confidence_temperature)
        for cut in ({"top_k": 3}, {"top_p": 0.5}, {"top_k": 40, "top_p": 0.9}):
            for cfg_scale in (0.0, 0.5):
                kw["cfg_scale"] = cfg_scale
                drawn = masked_softmax(x, truncated=True, want=("confidence",), **cut, **kw).token
                out = masked_softmax(x, want=ALL, given=ids(n, vocab), **cut, **kw)
                assert torch.equal(out.token, drawn)
                assert torch.equal(out.token, masked_softmax(x, want=(), **cut, **kw).token)
                whole = masked_softmax(x, want=ALL, given=ids(n, vocab), **kw)
                for name in ("margin", "entropy", "lse", "given"):
                    assert torch.equal(getattr(out, name), getattr(whole, name)), name
                same = masked_softmax(x, want=("given",), given=out.token, **kw)
                assert torch.equal(out.confidence, same.given)


# ---- what cannot matter is left out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [{}, {"top_k": 20}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperatures", [(0.1, 1.0), (1.0, 0.1), (0.1, 0.1)])
def test_each_temperature_leaves_out_its_own_chunks(temperatures, cut):
    """At T = 0.1 chunks 2.9 nats below the best are left out, at T = 1 those 29 nats below: a chunk that one of the two
    does not need is still in the other's sums."""
    T, confidence_temperature = temperatures
    x = torch.full((4, 8000), -20.0)
    x[:, 10] = 0.0
    x[:, 1024:] = torch.tensor([[-3.5], [-6.0], [-12.0], [-28.0]])  # 6,976 tokens: 99.5 % of row 0's weight at T = 1
    kw = {"temperature": T, "confidence_temperature": confidence_temperature, "uniform": uniforms(4), **cut}
    p = truth(x, confidence_temperature)
    for _ in isas():
        out = masked_softmax(x, want=ALL, given=torch.full((4,), 5000), **kw)
        rows = torch.arange(4)
        torch.testing.assert_close(out.confidence.double(), p[rows, out.token], rtol=1e-6, atol=0)
        torch.testing.assert_close(out.given.double(), p[:, 5000], rtol=1e-5, atol=1e-44)
        torch.testing.assert_close(out.entropy.double(), torch.special.entr(p).sum(1), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(out.lse.double(), torch.logsumexp(x.double() / confidence_temperature, 1), rtol=1e-6,
                                   atol=1e-6)  # fmt: skip
        many = 4000
        draws = masked_softmax(x, torch.zeros(many, dtype=torch.int64), **{**kw, "uniform": uniforms(many, 9)})
        share = (draws.token == 10).double().mean().item()
        l = x[0].double() / T
        if cut:
            alive = kept(x[:1], cut.get("top_k", 0), cut.get("top_p", 1.0), T)[0]
            l = l.masked_fill(~alive, -math.inf)
        assert share == pytest.approx(l.softmax(0)[10].item(), abs=0.025)


@pytest.mark.parametrize("dtype", DTYPES)
def test_left_out_is_less_than_rounding(dtype):
    """A row with one high peak: whole chunks are left out, and float64 sees no difference."""
    x = randn(8, 20000, 5, scale=3.0, dtype=dtype)
    for row, peak in enumerate([10, 20, 28, 33, 38, 45, 60, 100]):
        x[row, 137 * (row + 1)] = peak
    out = masked_softmax(x, want=ALL, given=torch.full((8,), 77), uniform=uniforms(8), temperature=0.9)
    p = torch.log_softmax(x.double(), 1)
    assert torch.allclose(out.lse.double(), torch.logsumexp(x.double(), 1), rtol=1e-7, atol=1e-6)
    assert torch.allclose(out.confidence.double().log(), p.gather(1, out.token[:, None])[:, 0], rtol=0, atol=1e-6)
    assert torch.allclose(out.given.double(), p[:, 77].exp(), rtol=1e-5, atol=1e-44)  # the last are denormal
    assert torch.allclose(out.entropy.double(), -(p.exp() * p).sum(1), rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_left_out_in_any_order(dtype, one_thread):
    """Whether a chunk was skipped, weighed and dropped, or found droppable first never shows: rows peaked and flat in
    turn make the kernel change its way through a row."""
    g = torch.Generator().manual_seed(3)
    x = randn(96, 9000, 8, scale=2.0, dtype=dtype)
    x[torch.arange(96), torch.randint(9000, (96,), generator=g)] = torch.randint(15, 60, (96,), generator=g).to(dtype)
    for T in (0.0, 0.5, 1.0, 2.0):
        compare(x, uniform=uniforms(96), temperature=T, want=("confidence", "margin", "entropy", "lse"))
    order = torch.randperm(96, generator=g)
    a = masked_softmax(x, uniform=uniforms(96), temperature=0.5)
    b = masked_softmax(x, order, uniform=uniforms(96)[order], temperature=0.5)
    assert torch.equal(a.token[order], b.token) and torch.equal(a.confidence[order], b.confidence)


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 10)
U = torch.zeros(4, dtype=torch.float64)
I = torch.arange(4)

BAD = {
    "no tensor": (TypeError, r"logits is \[\[1.0\]\], expected Tensor", {"logits": [[1.0]]}),
    "index no tensor": (TypeError, r"index is 3, expected Tensor or None", {"index": 3}),
    "temperature no number": (TypeError, "temperature is 'hot', expected float", {"temperature": "hot"}),
    "sparse": (ValueError, "index is torch.sparse_coo, expected a dense tensor", {"index": I.to_sparse()}),
    "top_k huge": (ValueError, "top_k is 9223372036854775808, expected a number that fits", {"top_k": 2**63}),
    "dims": (ValueError, r"logits has shape \(4,\)", {"logits": torch.zeros(4)}),
    "empty vocabulary": (ValueError, "no columns", {"logits": torch.zeros(4, 0)}),
    "dtype": (TypeError, "logits is torch.int64, expected float32", {"logits": X.long()}),
    "truncated": (TypeError, "truncated is 'yes', expected bool", {"truncated": "yes"}),
    "index dtype": (TypeError, "index is torch.int32, expected torch.int64", {"index": I.int()}),
    "index dims": (ValueError, "index has shape", {"index": I[None]}),
    "index above": (IndexError, r"index\[2\] is 4, expected 0 to 3", {"index": torch.tensor([0, 1, 4])}),
    "index below": (IndexError, r"index\[0\] is -1", {"index": torch.tensor([-1])}),
    "temperature": (ValueError, "temperature is -1.0", {"temperature": -1.0}),
    "temperature nan": (ValueError, "temperature is nan", {"temperature": math.nan}),
    "temperature inf": (ValueError, "temperature is inf", {"temperature": math.inf, "uniform": U}),
    "confidence temperature": (ValueError, "confidence_temperature is 0", {"confidence_temperature": 0.0}),
    "no uniform": (ValueError, r"uniform is needed: \(4,\) float64", {"temperature": 1.0}),
    "uniform shape": (ValueError, r"uniform has shape \(3,\), expected \(4,\)", {"temperature": 1.0, "uniform": U[:3]}),
    "uniform dtype": (TypeError, "uniform is torch.float32", {"temperature": 1.0, "uniform": U.float()}),
    "uniform one": (ValueError, r"uniform\[0\] is 1.0", {"temperature": 1.0, "uniform": U + 1}),
    "uniform nan": (ValueError, r"uniform\[0\] is nan", {"temperature": 1.0, "uniform": U * math.nan}),
    "forbid negative": (IndexError, r"forbid\[1\] is -3", {"forbid": torch.tensor([1, -3])}),
    "forbid dtype": (TypeError, "forbid is torch.bool", {"forbid": torch.zeros(10, dtype=torch.bool)}),
    "want": (ValueError, "want has 'mode', expected any of confidence", {"want": ("mode",)}),
    "want string": (TypeError, "want is the string", {"want": "lse"}),
    "given missing": (ValueError, "given", {"want": ("given",)}),
    "given unwanted": (ValueError, "given", {"given": I}),
    "given above": (IndexError, r"given\[3\] is 10, expected 0 to 9", {"want": ("given",), "given": I + 7}),
    "guidance columns": (ValueError, "guidance has 9 columns", {"guidance": X[:, :9], "cfg_scale": 1.0}),
    "guidance dtype": (TypeError, "guidance is torch.float16", {"guidance": X.half(), "cfg_scale": 1.0}),
    "guidance rows": (ValueError, "guidance has 3 rows", {"guidance": X[:3], "cfg_scale": 1.0}),
    "guidance index": (
        IndexError,
        r"guidance_index\[3\] is 3, expected 0 to 2",
        {"guidance": X[:3], "guidance_index": I, "cfg_scale": 1.0},
    ),
    "top_k": (ValueError, "top_k is -1, expected a whole number", {"top_k": -1}),
    "top_p": (ValueError, "top_p is 0.0, expected a number above 0", {"top_p": 0.0}),
    "top_p nan": (ValueError, "top_p is nan", {"top_p": math.nan}),
    "top_p wide": (ValueError, "at most 262144 columns", {"logits": torch.zeros(1, 262145), "top_p": 0.5}),
    "cfg without guidance": (ValueError, "cfg_scale is given without guidance", {"cfg_scale": 1.0}),
    "cfg nan": (ValueError, "cfg_scale is nan", {"guidance": X, "cfg_scale": math.nan}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    error, message, kw = BAD[name]
    with pytest.raises(error, match=message):
        masked_softmax(**{"logits": X, **kw})


@needs_native
def test_kernel_guards_memory_by_itself():
    """Compiled code reaches the op without the Python checks."""
    op = torch.ops.sampler_zoo.masked_softmax
    for index, uniform in ((I + 1, U), (I, U + 1), (I, U[:2]), (I[::2], U), (I.int(), U)):
        with pytest.raises(RuntimeError, match="masked_softmax"):
            op(X, index, uniform, 1.0, 1.0, None, None, None, 0.0, 0, 1.0, False, None, 1)


def test_no_rows():
    out = masked_softmax(X, torch.empty(0, dtype=torch.int64), want=("confidence", "lse"))
    assert [v.shape if v is not None else None for v in out] == [(0,), (0,), None, None, (0,), None, (0,)]
    none = masked_softmax(X, torch.empty(0, dtype=torch.int64), guidance=X[:3], cfg_scale=1.0)
    assert none.token.shape == (0,)


def test_inputs_are_left_alone():
    x = randn(5, 100).requires_grad_()
    before = x.detach().clone()
    out = masked_softmax(x, forbid=torch.tensor([3]))
    assert torch.equal(x, before)
    assert not out.confidence.requires_grad


# ---- torch integration -----------------------------------------------------------------------------------------------


def test_schema_is_one():
    assert (
        str(torch.ops.sampler_zoo.masked_softmax.default._schema)
        == f"sampler_zoo::{reference.SCHEMAS['masked_softmax']}"
    )


@needs_native
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not here")
def test_binary_needs_torchs_c_functions_only():
    """So that one binary serves many versions of torch: nothing of its C++ interface, which changes with each."""
    lines = subprocess.run(["nm", "-D", "--undefined-only", C.__file__], capture_output=True, text=True).stdout
    needed = [line.split()[-1] for line in lines.splitlines()]
    assert [name for name in needed if name.startswith(("aoti_torch_", "torch_"))]
    assert not [name for name in needed if re.match(r"_Z\w*?(2at|3c10|5torch)\d", name)]


def test_opcheck():
    x, n = randn(6, 300), 6
    op = torch.ops.sampler_zoo.masked_softmax.default
    torch.library.opcheck(op, (x, None, None, 0.0, 1.0, None, None, None, 0.0, 0, 1.0, False, None, 1))
    args = (
        x,
        ids(n, 6),
        uniforms(n),
        0.7,
        1.0,
        torch.tensor([3]),
        randn(6, 300, 1),
        ids(n, 6, 1),
        0.5,
        250,
        0.9,
        False,
        ids(n, 300),
        31,
    )
    torch.library.opcheck(op, args)
    torch.library.opcheck(op, (*args[:11], True, *args[12:]))


def test_compile():
    """fullgraph: no break around the op. aot_eager traces and runs the graph without a C++ compiler's minutes."""

    def step(x, u):
        out = masked_softmax(x * 2, uniform=u, temperature=0.7, want=("confidence", "entropy"))
        return out.token, out.confidence + out.entropy

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (4, 7):  # a second size, for dynamic shapes
        x, u = randn(n, 200), uniforms(n)
        for a, b in zip(compiled(x, u), step(x, u)):
            assert torch.equal(a, b)


# ---- the shared maths, without torch ---------------------------------------------------------------------------------


@needs_native
def test_philox_known_answers():
    """The vectors that come with the Random123 paper's code."""
    full = 0xFFFFFFFF
    assert C.philox(0, 0, 0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert C.philox(full, full, full, full, full, full) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    assert C.philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@needs_native
def test_uniform_contract():
    seed, row, position, step, draw = 0x0123456789ABCDEF, 0x1_0000_0007, 11, 12, 13
    r = C.philox(position, step, draw, 0x01234567 ^ 1, 0x89ABCDEF, 7)
    assert C.uniform(seed, row, position, step, draw) == ((r[0] >> 5) * 2**26 + (r[1] >> 6)) * 2.0**-53
    many = [C.uniform(5, r, 0, 0, 0) for r in range(4000)]
    assert min(many) >= 0
    assert max(many) < 1
    assert stats.kstest(many, "uniform").pvalue > 1e-4


@needs_native
def test_exponentials():
    t = torch.cat([torch.linspace(-126, 0, 20001), -torch.logspace(-40, 0, 2000), torch.tensor([-126.1, -math.inf])])
    native = torch.tensor(C.exp2_weight(t.tolist()))
    assert torch.equal(native, ms._exp2(t))
    assert (native.double() / torch.exp2(t.double()) - 1)[t >= -126].abs().max() < 1.5e-7
    assert (native[t < -126] == 0).all() and C.exp2_weight([0.0]) == [1.0]
    x = torch.cat(
        [torch.linspace(-1100, 100, 20001, dtype=torch.float64), torch.tensor([-math.inf, -1e300, 0.0]).double()]
    )
    native = torch.tensor(C.exp2_scale(x.tolist()), dtype=torch.float64)
    assert torch.equal(native, ms._exp2_double(x))
    inside = x >= -1000
    assert (native[inside] / torch.exp2(x[inside]) - 1).abs().max() < 1e-15


# ---- what is in use --------------------------------------------------------------------------------------------------


def run(code, **env):
    code = textwrap.dedent(code)
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("SAMPLERS_")}, **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_status_keys():
    status = samplers.ops.status()
    assert {"native", "reason", "isa", "torch", "threads"} <= set(status)
    assert status["native"] == (C is not None)
    if C:
        assert status["isa"] in _native.ISAS
        assert status["compiler"]


def test_twin_says_so_once():
    done = run(
        """
        import torch, samplers.ops as ops
        print("quiet so far")
        for _ in range(3):
            out = ops.masked_softmax(torch.tensor([[1.0, 3.0, 2.0]]), want=("lse",))
        print(out.token.item(), ops.status()["native"], ops.status()["reason"], ops.status()["isa"])
        """,
        SAMPLERS_NATIVE="0",
    )
    assert done.stdout.splitlines() == ["quiet so far", "1 False SAMPLERS_NATIVE=0 None"], done.stderr
    assert done.stderr.count("torch twins") == 1


@needs_native
def test_isa_by_environment():
    code = "import samplers.ops as o; print(o.status()['isa'])"
    assert run(code, SAMPLERS_ISA="portable").stdout.strip() == "portable"
    assert "one of avx512, avx2, portable" in run(code, SAMPLERS_ISA="mmx").stderr
