"""What a run's trace says, and the table by kind of dependence, against loops in plain Python and scipy."""

import math

import pytest
import torch
from scipy.stats import kendalltau

import samplers
from samplers import problems
from samplers.bench.by_kind import aup, by_kind_md, valid_within
from samplers.bench.collect import Point
from samplers.bench.estimates import Combined
from samplers.errors import OptionError, SamplersError
from samplers.testing.tiny import TinyNet, TinyUniformNet
from samplers.traces import effective_tokens, final_stable_step, order_tau, tokens_per_pass

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def revised():
    """Rows of two lengths, by a sampler that masks positions anew."""
    return samplers.sample(
        TinyNet(vocab=5, visible_too=True), "remdm", prompt=[[1, 2], [3], [4, 0, 1], []], gen_length=9, steps=7,
        temperature=1.0, seed=2, trace=True,
    )  # fmt: skip


def by_hand(out):
    """Final stable steps as the definition says: of all steps the first after which x_i is always what it is at the end."""
    xs = [state.x.tolist() for state in out.trace]
    rows, length = out.x.shape
    found = [[0] * length for _ in range(rows)]
    for b in range(rows):
        for i in range(length):
            found[b][i] = next(k for k in range(len(xs)) if all(x[b][i] == xs[-1][b][i] for x in xs[k:]))
    return found


def test_final_stable_step(revised):
    steps = final_stable_step(revised)
    assert steps.tolist() == by_hand(revised)
    first = [[next((k for k, s in enumerate(revised.trace) if s.x[b, i] != 5), 0) for i in range(12)] for b in range(4)]
    assert (steps >= torch.tensor(first)).all() and (steps > torch.tensor(first)).any()  # some were masked anew
    assert (steps[~revised.fill] == 0).all()
    assert (steps[revised.fill] >= 1).all()


def test_effective_tokens(revised):
    counts, steps = effective_tokens(revised), by_hand(revised)
    assert counts.shape == (4, len(revised.trace) - 1)
    for b in range(4):
        for k in range(1, len(revised.trace)):
            assert counts[b, k - 1] == sum(s == k and bool(f) for s, f in zip(steps[b], revised.fill[b]))
    assert counts.sum(1).tolist() == [9] * 4


def test_tokens_per_pass(revised):
    assert tokens_per_pass(revised).tolist() == pytest.approx([9 / int(n) for n in revised.nfe_rows])
    out = samplers.sample(problems.create("copy").denoiser(), "threshold", prompt=[[0, 1, 2, 3, 4]] * 2)
    assert tokens_per_pass(out).tolist() == [5.0, 5.0]


def test_order_tau_is_scipys(revised):
    steps, fill = by_hand(revised), revised.fill.tolist()
    values = []
    for b in range(4):
        where = [i for i in range(len(fill[b])) if fill[b][i]]
        values.append(kendalltau(where, [steps[b][i] for i in where]).statistic)
    estimate = order_tau(revised)
    assert estimate.value == pytest.approx(sum(values) / 4)
    assert estimate.n == 4
    assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)


def test_order_tau_of_known_orders():
    denoiser = problems.create("shuffle").denoiser()
    run = {"batch": 300, "temperature": 1.0, "trace": True}
    left = order_tau(samplers.sample(denoiser, "random_order", steps=6, block_length=1, **run))
    assert (left.low, left.value, left.high) == (1.0, 1.0, 1.0)
    blind = order_tau(samplers.sample(denoiser, "random_order", steps=6, **run))
    assert blind.low < 0 < blind.high
    # tau of n in a random order has variance 2 (2 n + 5) / (9 n (n - 1)), Kendall 1938.
    half = 1.96 * math.sqrt(2 * 17 / (9 * 6 * 5) / 300)
    assert (blind.high - blind.low) / 2 == pytest.approx(half, rel=0.2)
    assert order_tau(samplers.sample(denoiser, "random_order", steps=6, **run), seed=1).value == blind.value
    at_once = order_tau(samplers.sample(denoiser, "random_order", steps=1, **run))
    assert at_once.n == 0 and math.isnan(at_once.value)


def test_runs_without_a_trace_or_tokens():
    out = samplers.sample(problems.create("shuffle").denoiser(), "threshold", batch=2)
    for of in (final_stable_step, effective_tokens, order_tau):
        with pytest.raises(SamplersError, match="trace=True"):
            of(out)
    reals = samplers.sample(problems.create("mixture").denoiser(), "ddim", batch=2, steps=2, trace=True)
    for of in (tokens_per_pass, final_stable_step):
        with pytest.raises(OptionError, match="run of tokens"):
            of(reals)


# ---------------------------------------------------------------------------------------------- the table


def plain_aup(pairs, best, alpha=3.0):
    pairs = sorted(pairs)
    kept = [p for p in pairs if p[1] >= pairs[0][1] - 5]

    def height(y):
        return y * min(math.exp(-alpha * (1 - y / best)), 1)

    strips = [(b[0] - a[0]) * (height(a[1]) + height(b[1])) / 2 for a, b in zip(kept, kept[1:])]
    return kept[0][0] * kept[0][1] + sum(strips)


def test_aup():
    pairs = [(4.0, 71.0), (1.0, 75.0), (2.0, 74.0), (6.0, 40.0), (5.0, 70.5)]
    assert aup(*zip(*pairs), best=80.0) == pytest.approx(plain_aup(pairs, 80.0))
    # No accuracy is lost: the area under a constant, whatever alpha is.
    assert aup([1, 2, 5], [60, 60, 60], best=60, alpha=9) == pytest.approx(300)
    assert aup([2], [50], best=90) == 100
    for bad in (([], [], 1), ([1], [1, 2], 1), ([0], [1], 1), ([1], [101], 1), ([1], [1], 0)):
        with pytest.raises(OptionError, match="aup takes"):
            aup(*bad)


def point(problem, sampler, nfe, invalid, n=400):
    half = 0.02
    e = Combined(invalid, invalid - half, invalid + half, n, "lower", 0.0)
    return Point(problem, "masked", sampler, "steps", nfe, "invalid", {"invalid": e}, nfe, 0.0, 0.0, 0.0, 0.0, [])


def test_the_table_by_kind():
    """shuffle has 6 positions to fill, copy 5 (its prompt is given), parity 8."""
    made = [
        *(point("shuffle", "a", nfe, v) for nfe, v in ((1, 0.9), (2, 0.6), (3, 0.4), (6, 0.0))),
        *(point("copy", "a", nfe, 0.0) for nfe in (1, 3)),
        *(point("parity", "a", nfe, v) for nfe, v in ((2, 0.5), (4, 0.45), (8, 0.0))),
        *(point("parity", "b", nfe, v) for nfe, v in ((3, 0.5), (8, 0.0))),
        point("text", "a", 4, 0.0),
        point("digits", "a", 4, 0.0),  # of no kind
    ]
    assert valid_within(made[:4], 2) == (pytest.approx(0.4), pytest.approx(0.02))
    assert valid_within(made[1:4], 1) is None
    del made[-2].metrics["invalid"]
    (text,) = by_kind_md(made)
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert header == "| sampler | waiting line: shuffle, copy | global: parity | all | AUP |"
    cells = [c.strip() for c in rows[0].strip("|").split("|")]
    assert cells[0] == "a"
    assert cells[1].startswith("70.0 ± 1.4 / 80.0 ± 1.4 / 100.0")  # copy 100, shuffle 40, 60 and 100
    assert cells[2] == "50.0 ± 2.0 / 55.0 ± 2.0 / 100.0 ± 2.0"
    assert cells[3].startswith("63.3 ± 1.2 / 71.7 ± 1.2 / 100.0")  # of three problems, not of two kinds
    areas = [
        plain_aup([(6 / 1, 10), (6 / 2, 40), (6 / 3, 60), (6 / 6, 100)], 100),
        plain_aup([(5 / 1, 100), (5 / 3, 100)], 100),
        plain_aup([(8 / 2, 50), (8 / 4, 55), (8 / 8, 100)], 100),
    ]
    assert float(cells[4]) == pytest.approx(sum(areas) / 3, rel=0.01)
    assert rows[1].split("|")[3].strip().startswith("– / 50.0")
    assert rows[1].split("|")[2].strip() == "– / – / –"
    assert by_kind_md(made[:4]) == [] == by_kind_md(made[-1:])


def test_a_canvas_that_has_grown_has_no_stable_steps():
    out = samplers.sample(TinyNet(), "daedal", gen_length=3, eos=1, maximum=12, enough=1.0, trace=True)
    with pytest.raises(OptionError, match="the canvas of this run of 'daedal' grew from 3 to 12 positions"):
        final_stable_step(out)


def test_noise_that_is_the_token_already_never_becomes_final():
    out = samplers.sample(TinyUniformNet(vocab=4), "dfm_euler_uniform", gen_length=12, batch=8, steps=3, trace=True)
    never = (final_stable_step(out) == 0).sum(1)
    assert never.any() and torch.equal(effective_tokens(out).sum(1), 12 - never)
