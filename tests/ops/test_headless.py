"""headless_softmax: against masked_softmax of the stored logits, native fold against its twin, the draw against its distribution."""

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from emulator import emulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import C, isas, needs_native
from scipy import stats

from samplers.ops import headless_softmax, masked_softmax, reference

hs = sys.modules["samplers.ops.headless"]
ALL = ("confidence", "margin", "entropy", "lse", "given")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = torch.ops.sampler_zoo

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(n, v, d=24, seed=0, dtype=torch.float32):
    """Hidden rows and a weight of small whole numbers: every product is exact, in any order of summation."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (n, d), generator=g).to(dtype), torch.randint(-1, 2, (v, d), generator=g).to(dtype) / 2


def uniforms(n, seed=0):
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))


def ids(n, v, seed=0):
    return torch.randint(v, (n,), generator=torch.Generator().manual_seed(2000 + seed))


def of_bias(logits, n):
    """Arguments that give n rows these logits (V,), -inf and NaN included."""
    zero = torch.zeros(1, 1, dtype=logits.dtype)
    return {"hidden": zero.expand(n, 1), "weight": zero.expand(len(logits), 1), "bias": logits}


def folded(logits, tile, fold, finish, guidance=None, **kw):
    """What fold and finish make of logits (N, V) that come in tiles."""
    temperature, T = kw.get("temperature", 0.0), kw.get("confidence_temperature", 1.0)
    want = hs.wanted(hs.OP, kw.get("want", ALL), kw.get("given"))
    n, vocab = logits.shape
    real, whole = torch.empty(n, 7, dtype=torch.float64), torch.empty(n, 3, dtype=torch.int64)
    real.fill_(7.0)  # what the state held before is nobody's business
    for begin in range(0, vocab, tile):
        here = slice(begin, begin + tile)
        fold(
            logits[:, here], begin, real, whole, kw.get("uniform"), temperature, T, kw.get("forbid"),
            None if guidance is None else guidance[:, here], kw.get("cfg_scale", 0.0), kw.get("given"),
            want,
        )  # fmt: skip
    return finish(real, whole, temperature, T, want)


def twin(logits, tile=2048, **kw):
    return folded(logits, tile, reference.headless_fold_, reference.headless_finish, **kw)


def native(logits, tile=2048, **kw):
    return folded(logits, tile, OPS.headless_fold_, OPS.headless_finish, **kw)


def assert_same(a, b, tolerance=0.0):
    for name, x, y in zip(("token", *ALL, "status"), a, b):
        assert (x is None) == (y is None), name
        if x is None:
            continue
        if x.is_floating_point():
            assert torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True), (name, (x - y).abs().max())
        else:
            assert torch.equal(x, y), name


# ---- as masked_softmax of the stored logits --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 17, 129, 1024, 1025, 5000])
def test_as_masked_softmax(dtype, vocab):
    """At temperature 0 every output; at any other all that does not depend on the draw."""
    hidden, weight = exact(30, vocab, dtype=dtype)
    logits = hidden @ weight.T
    kw = {
        "want": ALL,
        "given": ids(30, vocab),
        "forbid": torch.tensor([vocab, vocab + 9, vocab // 2][: 2 + (vocab > 1)]),
    }
    for T in (1.0, 0.3):
        stored = masked_softmax(logits, confidence_temperature=T, **kw)
        assert_same(headless_softmax(hidden, weight, confidence_temperature=T, **kw), stored, 2e-7)
        drawn = headless_softmax(hidden, weight, confidence_temperature=T, uniform=uniforms(30), temperature=0.7, **kw)
        for name in ("margin", "entropy", "lse", "given"):
            assert torch.allclose(getattr(drawn, name), getattr(stored, name), atol=1e-6), name
        again = masked_softmax(logits, confidence_temperature=T, **{**kw, "given": drawn.token})
        assert torch.allclose(drawn.confidence, again.given, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_and_softcap(dtype):
    """To the bit what a head of torch operations gives."""
    hidden, weight = exact(20, 3000, dtype=dtype)
    bias = (ids(3000, 9).to(dtype) - 4) / 2
    logits = torch.nn.functional.linear(hidden, weight, bias)
    capped = (logits / 5.0).tanh() * 5.0
    kw = {"want": ALL, "given": ids(20, 3000)}
    assert_same(headless_softmax(hidden, weight, bias=bias, **kw), masked_softmax(logits, **kw), 1e-6)
    got = headless_softmax(hidden, weight, bias=bias, softcap=5.0, **kw)
    assert_same(got, masked_softmax(capped, **kw), 1e-6)
    assert (got.lse < masked_softmax(logits, **kw).lse).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance(dtype):
    hidden, weight = exact(20, 3000, dtype=dtype)
    other, _ = exact(20, 1, seed=1, dtype=dtype)
    kw = {"want": ALL, "given": ids(20, 3000), "forbid": torch.tensor([5, 2999])}
    stored = masked_softmax(hidden @ weight.T, guidance=other @ weight.T, cfg_scale=1.5, **kw)
    assert_same(headless_softmax(hidden, weight, guidance=other, cfg_scale=1.5, **kw), stored, 1e-6)
    plain = headless_softmax(hidden, weight, guidance=other, cfg_scale=0.0, **kw)
    assert_same(plain, headless_softmax(hidden, weight, **kw))
    assert not torch.equal(plain.lse, stored.lse)


def test_real_numbers():
    """Products that do round: as near to float64 as fp32 logits are."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(16, 64, generator=g), torch.randn(20000, 64, generator=g) * 0.4
    truth = torch.softmax(hidden.double() @ weight.double().T, -1)
    got = headless_softmax(hidden, weight, want=("confidence", "entropy", "margin"))
    first, second = truth.topk(2).values.unbind(1)
    assert torch.equal(got.token, truth.argmax(-1))
    assert torch.allclose(got.confidence.double(), first, rtol=2e-5)
    assert torch.allclose(got.margin.double(), first - second, rtol=2e-5, atol=5e-6)
    assert torch.allclose(got.entropy.double(), -(truth * truth.log()).sum(-1), rtol=2e-5)


# ---- native == twin --------------------------------------------------------------------------------------------------

SHAPES = {
    "plain": lambda x: x,
    "ties": lambda x: x.round(),
    "ascending": lambda x: x + torch.linspace(-300, 300, x.shape[1]),
    "descending": lambda x: x - torch.linspace(-300, 300, x.shape[1]),
    "spike": lambda x: torch.where(torch.arange(x.shape[1]) == x.shape[1] * 2 // 3, 1e4, x),
    "far": lambda x: x - 1e29,
    "mostly impossible": lambda x: torch.where(torch.arange(x.shape[1]) % 777 == 300, x, -math.inf),
    "impossible tile": lambda x: torch.where(torch.arange(x.shape[1]) < 2048, -math.inf, x),
    "impossible": lambda x: x.fill_(-math.inf),
    "nan": lambda x: torch.where(torch.arange(x.shape[1]) == x.shape[1] - 1, math.nan, x),
    "+inf": lambda x: torch.where(torch.arange(x.shape[1]) == x.shape[1] // 2, math.inf, x),
}


CASES = {
    "seed": st.integers(0, 10**6),
    "n": st.integers(1, 5),
    "vocab": st.sampled_from([1, 5, 127, 128, 300, 1023, 1024, 1025, 2048, 3333, 5200]),
    "tile": st.sampled_from([1024, 2048, 8192]),
    "dtype": st.sampled_from(DTYPES),
    "shape": st.sampled_from(list(SHAPES)),
    "scale": st.sampled_from([0.0, 1.0, 5.0, 30.0]),
    "temperature": st.sampled_from([0.0, 0.05, 0.7, 1.0, 2.0]),
    "T": st.sampled_from([0.3, 1.0]),
    "want": st.sampled_from([(), ("confidence",), ("margin",), ("entropy",), ("lse", "given"), ALL]),
    "forbids": st.integers(0, 3),
    "guided": st.booleans(),
}


def of_case(seed, n, vocab, tile, dtype, shape, scale, temperature, T, want, forbids, guided):
    g = torch.Generator().manual_seed(seed)
    logits = SHAPES[shape](torch.randn(n, vocab, generator=g) * scale).to(dtype)
    kw = {"temperature": temperature, "confidence_temperature": T, "want": want}
    kw |= {"uniform": uniforms(n, seed)} if temperature else {}
    kw |= {"given": ids(n, vocab, seed)} if "given" in want else {}
    kw |= {"forbid": ids(forbids, vocab + 3, seed)} if forbids else {}
    kw |= {"guidance": torch.randn(n, vocab, generator=g).to(dtype), "cfg_scale": 0.7} if guided else {}
    return logits, tile, kw


@needs_native
@settings(max_examples=120, deadline=None, derandomize=True)
@given(**CASES)
def test_twin(**case):
    logits, tile, kw = of_case(**case)
    expected = twin(logits, tile, **kw)
    for _ in isas():
        assert_same(native(logits, tile, **kw), expected, 1.2e-7)


@needs_native
def test_twin_at_size():
    logits = torch.randn(4, 126464, generator=torch.Generator().manual_seed(0)) * 3
    for dtype in (torch.float32, torch.bfloat16):
        kw = {"uniform": uniforms(4), "temperature": 0.7, "given": ids(4, 126464), "forbid": torch.tensor([126336])}
        expected = twin(logits.to(dtype), 65536, **kw)
        for _ in isas():
            assert_same(native(logits.to(dtype), 8192, **kw), expected, 1.2e-7)


# ---- the CUDA bodies, under the block emulator -----------------------------------------------------------------------


def address(x):
    return 0 if x is None else x.data_ptr()


def emulated_fold(
    logits, offset, real, whole, uniform, temperature, confidence_temperature, forbid, guidance, cfg_scale, given, want
):
    call = {
        "type": DTYPES.index(logits.dtype), "n": len(logits), "offset": offset, "width": logits.shape[1],
        "logits": address(logits), "stride": logits.stride(0) * logits.element_size(), "guidance": address(guidance),
        "guidance_stride": 0 if guidance is None else guidance.stride(0) * guidance.element_size(),
        "cfg_scale": cfg_scale, "uniform": address(uniform), "temperature": temperature,
        "confidence_temperature": confidence_temperature, "forbid": address(forbid),
        "n_forbid": 0 if forbid is None else forbid.numel(), "given": address(given), "want": want,
        "real": address(real), "whole": address(whole),
    }  # fmt: skip
    assert emulated("headless").fold(call) == 0


def emulated_finish(real, whole, temperature, confidence_temperature, want):
    out = hs._empty(len(real), want, torch.device("cpu"))
    names = ("token", *ALL, "status")
    wanted = {name: address(x) if x.numel() else 0 for name, x in zip(names, out)}
    call = {"n": len(real), "real": address(real), "whole": address(whole), "temperature": temperature, "want": want}
    assert emulated("headless").finish({**call, **wanted, "confidence_temperature": confidence_temperature}) == 0
    return out


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(**CASES, turns=st.integers(0, 2))
def test_emulated(turns, **case):
    logits, tile, kw = of_case(**case)
    emulated("headless").turns(turns)
    assert_same(folded(logits, tile, emulated_fold, emulated_finish, **kw), twin(logits, tile, **kw), 1.2e-7)


def test_emulated_many_chunks():
    """More than one batch of 32 chunks in a tile, and every row at another alignment."""
    logits = torch.randn(2, 70001, generator=torch.Generator().manual_seed(0)) * 3
    kw = {"uniform": uniforms(2), "temperature": 0.7, "given": ids(2, 70001), "forbid": torch.tensor([69000, 3])}
    for dtype in (torch.float32, torch.bfloat16):
        expected = twin(logits.to(dtype), 1 << 20, **kw)
        assert_same(folded(logits.to(dtype), 1 << 20, emulated_fold, emulated_finish, **kw), expected, 1.2e-7)
        assert_same(folded(logits.to(dtype), 36864, emulated_fold, emulated_finish, **kw), expected, 1.2e-7)


# ---- nothing depends on how it is shared out -------------------------------------------------------------------------


def test_tile_and_batch_and_threads_change_nothing():
    hidden, weight = exact(70, 7000)
    kw = {"want": ALL, "temperature": 0.7}
    given_ids, u = ids(70, 7000), uniforms(70)
    whole = headless_softmax(hidden, weight, given=given_ids, uniform=u, **kw)
    for tile in (1024, 2048, 3072, 8192, 1 << 20):
        assert_same(headless_softmax(hidden, weight, given=given_ids, uniform=u, tile=tile, **kw), whole)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_same(headless_softmax(hidden, weight, given=given_ids, uniform=u, tile=2048, **kw), whole)
    torch.set_num_threads(1)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(4))
    for part in order.split(23):
        some = headless_softmax(hidden[part], weight, given=given_ids[part], uniform=u[part], **kw)
        assert_same(some, [x[part] for x in whole])


def test_no_rows():
    got = headless_softmax(torch.zeros(0, 4), torch.zeros(2000, 4), want=("confidence", "lse"))
    assert got.token.shape == got.confidence.shape == got.lse.shape == got.status.shape == (0,)
    assert got.margin is None


def test_inputs_are_left_alone_and_may_need_gradients():
    hidden, weight = exact(6, 2000)
    linear = torch.nn.Linear(24, 2000)
    linear.weight.data.copy_(weight)
    before = hidden.clone(), weight.clone(), linear.bias.clone()
    kw = {"bias": linear.bias, "softcap": 3.0, "uniform": uniforms(6), "temperature": 1.0}
    got = headless_softmax(hidden.requires_grad_(), linear.weight, **kw)
    assert not got.confidence.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (hidden, linear.weight, linear.bias)))
    assert_same(headless_softmax(hidden.detach(), weight.T.contiguous().T, **kw), got)  # any layout of the weight


# ---- the draw --------------------------------------------------------------------------------------------------------


def check_law(token, p):
    """Drawn ids against the probabilities (V,): each id with enough draws by itself, the tail in bins."""
    n = len(token)
    count = torch.bincount(token, minlength=len(p))
    assert (count[p == 0] == 0).all()
    order = p.argsort(descending=True)
    order = order[p[order] > 0]
    edge = (p[order].cumsum(0) * n / 12).floor().long()  # bins of about 12 expected draws, more for likelier ids
    bins = torch.zeros(2, int(edge.max()) + 1, dtype=torch.float64)
    bins[0].index_add_(0, edge, count[order].double())
    bins[1].index_add_(0, edge, p[order] * n)
    bins = bins[:, bins[1] > 0]
    bins = torch.cat([bins[:, :-2], bins[:, -2:].sum(1, keepdim=True)], 1)  # the last one may be all but empty
    assert stats.chisquare(bins[0], bins[1] * (bins[0].sum() / bins[1].sum())).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("shape", ["flat", "steep", "last chunk", "first chunk"])
def test_draws_follow_the_law(shape, temperature):
    """Every id against softmax, rare ones in bins; ids without probability never."""
    vocab, n = 3300, 60000 if C else 3000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1))
    logits += {
        "flat": torch.zeros(vocab),
        "steep": torch.linspace(12, -12, vocab)[ids(vocab, vocab)],
        "last chunk": (torch.arange(vocab) >= 3072) * 4.0,
        "first chunk": (torch.arange(vocab) < 1024) * 4.0,
    }[shape]
    logits[100:120] = -math.inf
    forbid = torch.tensor([0, 2047, vocab - 1])
    got = headless_softmax(
        **of_bias(logits, n), uniform=uniforms(n), temperature=temperature, forbid=forbid, want=(), tile=2048
    )
    truth = logits.double()
    truth[forbid] = -math.inf
    check_law(got.token, torch.softmax(truth / temperature, 0))


@needs_native
def test_draws_at_a_real_size():
    """124 chunks in 124 tiles; peaked and with a long tail, as a model's logits are."""
    vocab, n = 126464, 12000
    g = torch.Generator().manual_seed(5)
    logits = torch.randn(vocab, generator=g) * 1.5
    logits[torch.randint(vocab, (12,), generator=g)] += 9.0
    token = native(logits.expand(n, vocab), 1024, uniform=uniforms(n, 7), temperature=1.0, want=())[0]
    check_law(token, torch.softmax(logits.double(), 0))
    chunk = torch.nn.functional.pad(torch.softmax(logits.double(), 0), (0, 512)).view(-1, 1024).sum(1)
    assert stats.chisquare(torch.bincount(token // 1024, minlength=124), chunk * n).pvalue > 1e-3


def test_neighbouring_uniforms_are_unrelated_and_equal_ones_agree():
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    u = 0.37 + torch.arange(500).double() * 2.0**-53
    token = headless_softmax(**of_bias(logits, 500), uniform=u, temperature=1.0).token
    assert len(token.unique()) > 400
    assert torch.equal(token, headless_softmax(**of_bias(logits, 500), uniform=u, temperature=1.0).token)


def test_uniform_edges():
    logits = torch.randn(2500, generator=torch.Generator().manual_seed(1))
    u = torch.tensor([0.0, 2.0**-53, 1e-300, 1 - 2.0**-53], dtype=torch.float64)
    got = headless_softmax(**of_bias(logits, 4), uniform=u, temperature=0.5)
    assert ((got.token >= 0) & (got.token < 2500)).all()
    assert (got.status == 0).all()


def test_cold_draws_take_the_best():
    hidden, weight = exact(40, 4000)
    best = headless_softmax(hidden, weight)
    cold = headless_softmax(hidden, weight, uniform=uniforms(40), temperature=1e-3)
    logits = hidden @ weight.T
    assert torch.equal(logits.gather(1, cold.token[:, None]), logits.gather(1, best.token[:, None]))


def test_ties_go_to_the_lowest_id():
    logits = torch.zeros(5000)
    logits[[1500, 1501, 3000, 4999]] = 1.0
    assert headless_softmax(**of_bias(logits, 3)).token.tolist() == [1500] * 3
    assert headless_softmax(**of_bias(logits, 3), forbid=torch.tensor([1500, 1501])).token.tolist() == [3000] * 3


# ---- rows that are not fine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("want", [(), ALL])
@pytest.mark.parametrize("at", [0, 1023, 1024, 2999])
def test_status(temperature, want, at):
    def status_of(change, **kw):
        logits = torch.zeros(3000)
        change(logits)
        given_ids = {"given": torch.tensor([at] * 3)} if want else {}
        got = headless_softmax(
            **of_bias(logits, 3), uniform=uniforms(3), temperature=temperature, want=want, tile=1024, **given_ids, **kw
        )
        if got.status[0]:
            assert (got.token == -1).all()
            assert all(getattr(got, name).isnan().all() for name in want)
        return got.status.tolist()

    assert status_of(lambda l: None) == [0, 0, 0]
    assert status_of(lambda l: l[at].fill_(math.nan)) == [1, 1, 1]
    assert status_of(lambda l: l[at].fill_(math.inf)) == [1, 1, 1]
    assert status_of(lambda l: l.fill_(-math.inf)) == [2, 2, 2]
    assert status_of(lambda l: (l.fill_(-math.inf), l[at].fill_(-1e30))) == [0, 0, 0]
    only = lambda l: (l.fill_(-math.inf), l[at].fill_(3.0))  # noqa: E731
    assert status_of(only, forbid=torch.tensor([at])) == [2, 2, 2]


def test_a_nan_row_spoils_no_other():
    hidden, weight = exact(5, 3000)
    fine = headless_softmax(hidden, weight, want=ALL, given=ids(5, 3000))
    hidden[2, 3] = math.nan
    got = headless_softmax(hidden, weight, want=ALL, given=ids(5, 3000))
    assert got.status.tolist() == [0, 0, 1, 0, 0]
    keep = torch.tensor([0, 1, 3, 4])
    assert_same([x[keep] for x in got], [x[keep] for x in fine])


# ---- bad input -------------------------------------------------------------------------------------------------------

H, W = torch.zeros(4, 8), torch.zeros(50, 8)
BAD = {
    "flat hidden": (lambda: headless_softmax(H[0], W), ValueError, r"hidden has shape \(8,\).*\(N, D\)"),
    "3-d weight": (lambda: headless_softmax(H, W[None]), ValueError, r"weight has shape .*\(V, D\)"),
    "int hidden": (lambda: headless_softmax(H.long(), W), TypeError, "hidden is torch.int64, expected float32"),
    "dtype": (lambda: headless_softmax(H.long(), W.long()), TypeError, "hidden is torch.int64"),
    "two dtypes": (lambda: headless_softmax(H, W.bfloat16()), TypeError, "weight is torch.bfloat16, hidden is"),
    "widths": (lambda: headless_softmax(H, W[:, :7]), ValueError, "weight has 7 columns, hidden has 8"),
    "empty vocabulary": (lambda: headless_softmax(H, W[:0]), ValueError, "weight has no rows"),
    "bias shape": (lambda: headless_softmax(H, W, bias=torch.zeros(49)), ValueError, r"bias has shape \(49,\)"),
    "bias dtype": (lambda: headless_softmax(H, W, bias=torch.zeros(50).half()), TypeError, "bias is torch.float16"),
    "softcap": (lambda: headless_softmax(H, W, softcap=0.0), ValueError, "softcap is 0.0"),
    "softcap nan": (lambda: headless_softmax(H, W, softcap=math.nan), ValueError, "softcap is nan"),
    "tile": (lambda: headless_softmax(H, W, tile=1000), ValueError, "tile is 1000, expected a positive multiple"),
    "tile type": (lambda: headless_softmax(H, W, tile=1024.0), ValueError, "tile is 1024.0"),
    "tile zero": (lambda: headless_softmax(H, W, tile=0), ValueError, "tile is 0"),
    "temperature": (lambda: headless_softmax(H, W, temperature=-1.0), ValueError, "temperature is -1.0"),
    "nan temperature": (lambda: headless_softmax(H, W, temperature=math.nan), ValueError, "temperature is nan"),
    "confidence temperature": (
        lambda: headless_softmax(H, W, confidence_temperature=0.0), ValueError, "confidence_temperature is 0.0"),
    "no uniform": (lambda: headless_softmax(H, W, temperature=1.0), ValueError, r"uniform is needed: \(4,\)"),
    "uniform dtype": (
        lambda: headless_softmax(H, W, temperature=1.0, uniform=torch.rand(4)), TypeError, "uniform is torch.float32"),
    "uniform range": (
        lambda: headless_softmax(H, W, temperature=1.0, uniform=torch.tensor([0, 0, 1, 0]).double()),
        ValueError, r"uniform\[2\] is 1.0"),
    "uniform nan": (
        lambda: headless_softmax(H, W, temperature=1.0, uniform=torch.full((4,), math.nan).double()),
        ValueError, r"uniform\[0\] is nan"),
    "forbid": (lambda: headless_softmax(H, W, forbid=torch.tensor([1, -2])), IndexError, r"forbid\[1\] is -2"),
    "want": (lambda: headless_softmax(H, W, want=("conf",)), ValueError, "want has 'conf'"),
    "want string": (lambda: headless_softmax(H, W, want="lse"), TypeError, "want is the string 'lse'"),
    "given alone": (lambda: headless_softmax(H, W, given=torch.zeros(4).long()), ValueError, "go together"),
    "given range": (
        lambda: headless_softmax(H, W, want=("given",), given=torch.tensor([0, 50, 0, 0])),
        IndexError, r"given\[1\] is 50"),
    "guidance rows": (lambda: headless_softmax(H, W, guidance=H[:3], cfg_scale=1.0), ValueError, "guidance has 3 rows"),
    "guidance width": (
        lambda: headless_softmax(H, W, guidance=H[:, :3], cfg_scale=1.0), ValueError, "guidance has 3 columns"),
    "no guidance": (lambda: headless_softmax(H, W, cfg_scale=1.0), ValueError, "cfg_scale is given without guidance"),
    "cfg_scale": (lambda: headless_softmax(H, W, guidance=H, cfg_scale=math.inf), ValueError, "cfg_scale is inf"),
    "device": (lambda: headless_softmax(H, W.to("meta")), ValueError, "weight is on meta, hidden on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, says = BAD[name]
    with pytest.raises(error, match=says) as caught:
        call()
    assert str(caught.value).startswith("headless_softmax: ")


@needs_native
def test_kernels_guard_memory_by_themselves():
    logits, real, whole = torch.zeros(4, 1024), torch.zeros(4, 7).double(), torch.zeros(4, 3).long()
    good = (logits, 0, real, whole, None, 0.0, 1.0, None, None, 0.0, None, 1)
    OPS.headless_fold_(*good)
    for at, wrong in (
        (0, logits.double()),
        (0, logits[0]),
        (0, torch.zeros(1024, 4).T),
        (1, 1000),
        (1, -1024),
        (2, real[:3]),
        (2, real.float()),
        (2, torch.zeros(4, 14).double()[:, ::2]),
        (3, whole[:, :2]),
        (3, whole.int()),
        (5, math.nan),
        (5, 1.0),  # no uniform
        (6, 0.0),
        (11, 16),  # no given
    ):
        with pytest.raises(RuntimeError, match="headless_fold_"):
            OPS.headless_fold_(*good[:at], wrong, *good[at + 1 :])
    with pytest.raises(RuntimeError, match="guidance must be like logits"):
        OPS.headless_fold_(*good[:8], logits[:, :1000], 1.0, *good[10:])
    with pytest.raises(RuntimeError, match="headless_finish"):
        OPS.headless_finish(real[:, :4], whole, 0.0, 1.0, 1)


# ---- as an op --------------------------------------------------------------------------------------------------------


def test_schemas_are_one():
    for op, schema in (
        (OPS.headless_softmax, hs.SCHEMA),
        (OPS.headless_fold_, hs.FOLD_SCHEMA),
        (OPS.headless_finish, hs.FINISH_SCHEMA),
    ):
        assert str(op.default._schema) == f"sampler_zoo::{schema}"


def test_opcheck():
    hidden, weight = exact(4, 2100)
    u, some, bits = uniforms(4), ids(4, 2100), sum(hs.WANT.values())
    logits, forbid = hidden @ weight.T, torch.tensor([3])
    real, whole = torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.int64)
    fold = (logits[:, :1024].contiguous(), 0, real, whole, u, 0.7, 1.0, forbid, logits[:, :1024].neg(), 0.5, some, bits)
    torch.library.opcheck(OPS.headless_fold_.default, fold)
    torch.library.opcheck(OPS.headless_fold_.default, (*fold[:4], None, 0.0, 1.0, None, None, 0.0, None, 1))
    torch.library.opcheck(OPS.headless_finish.default, (real, whole, 0.7, 1.0, bits))
    torch.library.opcheck(OPS.headless_finish.default, (real, whole, 0.0, 1.0, 0))
    args = (hidden, weight, weight[:, 0].contiguous(), 5.0, u, 0.7, 1.0, forbid, hidden.neg(), 0.5, some, bits, 1024)
    torch.library.opcheck(OPS.headless_softmax.default, args)


def test_compile():
    hidden, weight = exact(8, 3000)

    def step(hidden, u):
        got = headless_softmax(hidden * 2, weight, uniform=u, temperature=0.7, want=("confidence", "entropy"))
        return got.token + 1, got.confidence * got.entropy

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        u = uniforms(8, seed)
        for a, b in zip(compiled(hidden, u), step(hidden, u)):
            assert torch.equal(a, b)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_tile_rule():
    call = lambda n, guided=False: reference.HeadlessCall(  # noqa: E731
        torch.zeros(n, 1), torch.zeros(1, 1), None, None, None, 0.0, 1.0, None, torch.zeros(n, 1) if guided else None,
        0.0, None, 0, 0)  # fmt: skip
    assert hs._tile(call(256), None) == 1024
    assert hs._tile(call(5000), None) == 1024
    assert hs._tile(call(64), None) == 4096
    assert hs._tile(call(64, True), None) == 2048
    assert hs._tile(call(0), None) == 262144


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="freed memory is held back to be watched")
@pytest.mark.skipif(sys.platform != "linux", reason="resets and reads the kernel's peak of resident memory")
def test_memory_below_two_percent_of_the_logits():
    code = """
        import ctypes, re, sys, torch
        from samplers.ops import headless_softmax
        torch.set_num_threads(1)
        n, d, v = 256, 16, 126464
        u = torch.rand(n, dtype=torch.float64)
        def kib(name):
            return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
        def peak(call):
            ctypes.CDLL(None).malloc_trim(0)
            before = kib("VmRSS")
            try:
                open("/proc/self/clear_refs", "w").write("5")
            except OSError:
                sys.exit(77)
            call()
            return (kib("VmHWM") - before) * 1024 / (n * v * hidden.element_size())
        for dtype in (torch.float32, torch.bfloat16):
            hidden, weight = torch.ones(n, d, dtype=dtype), torch.ones(v, d, dtype=dtype)
            call = lambda: headless_softmax(hidden, weight, uniform=u, temperature=0.7)
            call()  # code is paged in, threads have their stacks
            print(min(peak(call) for _ in range(3)), peak(lambda: hidden @ weight.T))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        ours, stored = map(float, line.split())
        assert stored > 0.9, "the measurement sees the logits where they are stored"
        assert ours < 0.02
