"""masked_softmax on generated inputs: every instruction set equal to the twin, and nothing that should not matter does.

tests/ops/test_ops.py has the cases somebody thought of; these are the ones nobody did. The fuzzer is here in small, `make
fuzz` runs it in large; so are the ten million draws of bench/draws.py.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from fuzz_ops import one
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from native import C, isas, needs_native
from test_ops import ALL, DTYPES, assert_same, compare

from samplers.ops import masked_softmax

generated = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Around what the kernel counts by (vectors of 16, blocks of 128, chunks of 1024), and a few of no special kind.
edges = st.sampled_from([n + d for n in (16, 128, 1024, 2048) for d in (-1, 0, 1)])
widths = st.one_of(st.just(1), st.integers(1, 40), edges, st.integers(1, 3500))
temperatures = st.one_of(
    st.sampled_from([1e-30, 1e-6, 0.3, 1.0, 1e6, 1e30]),
    st.floats(-30, 30).map(lambda e: min(max(10.0**e, 1e-30), 1e30)),
)
finite = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, -0.0, 1.0, 6e4, -6e4, 1e-30]))
seeds = st.integers(0, 2**32)


@st.composite
def rows_of_logits(draw, n, vocab, dtype):
    """(n, vocab) at some stride and offset: noise of some spread about some level, with ties, holes, peaks and spoilt
    entries here and there."""
    left, right, apart = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(1, 2))
    g = torch.Generator().manual_seed(draw(seeds))
    x = torch.randn(n * apart, left + vocab + right, generator=g) * draw(
        st.sampled_from([0.0, 0.01, 2.0, 30.0, 1000.0])
    )
    x += draw(st.sampled_from([0.0, 0.0, 300.0, -2e4]))
    if draw(st.booleans()):
        x = x.round()  # ties
    x = x.to(dtype)[::apart, left : left + vocab]
    if n == 0:
        return x
    for _ in range(draw(st.integers(0, 4))):  # stretches of one value
        row, begin = draw(st.integers(0, n - 1)), draw(st.integers(0, vocab - 1))
        step = draw(st.sampled_from([1, 1, 2, 128]))
        x[row, begin : begin + draw(st.integers(1, 1500)) : step] = draw(st.one_of(st.just(-math.inf), finite))
    for _ in range(draw(st.integers(0, 3))):
        value = draw(st.one_of(finite, st.sampled_from([-math.inf, math.inf, math.nan])))
        x[draw(st.integers(0, n - 1)), draw(st.integers(0, vocab - 1))] = value
    return x


@st.composite
def calls(draw):
    """Arguments of masked_softmax that are right, whatever they are."""
    vocab, dtype, stored = draw(widths), draw(st.sampled_from(DTYPES)), draw(st.integers(1, 5))
    kw = {"logits": draw(rows_of_logits(stored, vocab, dtype))}
    if draw(st.booleans()):
        kw["index"] = torch.tensor(draw(st.lists(st.integers(0, stored - 1), max_size=7)), dtype=torch.int64)
    n = len(kw["index"]) if "index" in kw else stored
    if draw(st.booleans()):
        u = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=n, max_size=n))
        kw.update(temperature=draw(temperatures), uniform=torch.tensor(u, dtype=torch.float64))
    kw["confidence_temperature"] = draw(st.one_of(st.just(1.0), temperatures, st.just(kw.get("temperature", 1.0))))
    kw["want"] = tuple(draw(st.sets(st.sampled_from(ALL))))
    if "given" in kw["want"]:
        kw["given"] = torch.tensor(draw(st.lists(st.integers(0, vocab - 1), min_size=n, max_size=n)), dtype=torch.int64)
    if draw(st.booleans()):
        kw["forbid"] = torch.tensor(draw(st.lists(st.integers(0, vocab + 2), max_size=5)), dtype=torch.int64)
    if draw(st.booleans()):
        kw.update(guidance=draw(rows_of_logits(stored, vocab, dtype)), cfg_scale=draw(st.floats(-3, 5)))
    if draw(st.booleans()):
        kw["top_k"] = draw(st.one_of(st.integers(0, 5), st.integers(0, vocab + 2)))
        kw["top_p"] = draw(st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True)))
        kw["truncated"] = draw(st.booleans())
    return kw


@needs_native
@generated
@given(calls())
def test_native_is_the_twin(kw):
    compare(kw.pop("logits"), kw.pop("index", None), **kw)


def rows_only(kw, rows):
    """The same call for some of its rows, in that order."""
    index = kw.get("index", torch.arange(len(kw["logits"])))[rows]
    mine = {k: kw[k][rows] for k in ("uniform", "given") if k in kw}
    return masked_softmax(**{**kw, **mine, "index": index})


@generated
@given(calls(), st.data())
def test_rows_are_alone(kw, data):
    """Order, repetition and splitting of rows change nothing, to the bit."""
    n = len(kw["index"]) if "index" in kw else len(kw["logits"])
    assume(n > 0)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    whole = masked_softmax(**kw)
    assert_same(rows_only(kw, rows), type(whole)(*(v if v is None else v[rows] for v in whole)), ulp=0)


@needs_native
@settings(generated, max_examples=40)
@given(calls(), st.integers(1, 9))
def test_threads_change_nothing(kw, repeats):
    """Long enough rows are split between threads, many rows are shared out; neither shows."""
    wide = kw["logits"].repeat(1, repeats * 4)  # past the size from which a row is split
    kw = {**kw, "logits": wide}
    if "guidance" in kw:
        kw["guidance"] = kw["guidance"].repeat(1, repeats * 4)
    before = torch.get_num_threads()
    try:
        for _ in isas():
            torch.set_num_threads(1)
            alone = masked_softmax(**kw)
            for threads in (2, 5):
                torch.set_num_threads(threads)
                assert_same(masked_softmax(**kw), alone, ulp=0)
    finally:
        torch.set_num_threads(before)


# ---- the fuzzer and the draws, in small ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_fuzz(start):
    before = torch.get_num_threads()
    try:
        wrong = [text for text in (one(0, number)[1] for number in range(start, start + 500)) if text]
    finally:
        torch.set_num_threads(before)
    assert not wrong, "\n".join(wrong)


def test_the_fuzzer_finds_faults(monkeypatch):
    """An op that forgets to leave out forbidden ids, and one that answers a wrong call with the kernel's error."""
    import fuzz_ops

    right = fuzz_ops.ops.masked_softmax
    monkeypatch.setattr(fuzz_ops.ops, "masked_softmax", lambda **kw: right(**{**kw, "forbid": None}))
    assert any(one(0, number, "masked_softmax")[1] for number in range(200))

    def broken(**kw):
        raise RuntimeError("from the kernel")

    monkeypatch.setattr(fuzz_ops.ops, "masked_softmax", broken)
    assert all("from the kernel" in one(0, number, "masked_softmax")[1] for number in range(5))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.skipif(C is None, reason="the twin takes minutes")
def test_a_hundred_thousand_draws(dtype):
    path = Path(__file__).parents[2] / "bench" / "draws.py"
    spec = importlib.util.spec_from_file_location("draws", path)
    draws = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draws)
    row, forbid = draws.row_of_logits(dtype, 20_000)
    tokens = draws.draw(row, forbid, 100_000, seed=3)
    result = draws.judge(row, forbid, tokens)
    assert result["impossible"] == 0
    assert result["chi2_p"] > 1e-4 and result["ks_p"] > 1e-4
    # What is wrong by a few percent of a temperature, or by a factor in the tail, is seen.
    assert draws.judge(row.float() * 1.05, forbid, tokens)["chi2_p"] < 1e-4
    thinner = torch.where(row < -5, row.float() - 1, row.float())  # ids of less than one draw each
    assert draws.judge(thinner, forbid, tokens)["chi2_p"] < 1e-4
