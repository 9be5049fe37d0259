"""nll: against enumeration and the exact problems; its standard error is what it says; precision and what may not be."""

import itertools
import math

import numpy as np
import pytest
import torch

import samplers
from samplers import DenoiserError, FamilyError, Head, OptionError, TokenDenoiser, nll, problems
from samplers.canvas import PAD
from samplers.likelihood import METHODS
from samplers.models import zoo
from samplers.testing.tiny import TinyJoint, TinyMixture, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [("any_order", "linear"), ("lambda_dce", "linear"), ("t_dce", "linear"), ("t_dce", "1-cos"), ("t_dce", "sin^2")]


def surprisals(denoiser, x, hidden):
    """-log p of the tokens at `hidden` (positions) of one row (L,), the plain way: float64 log-softmax."""
    noisy = x.clone()
    noisy[list(hidden)] = denoiser.mask_id
    rows = torch.zeros(1, len(x), dtype=torch.bool)
    rows[0, list(hidden)] = True
    logits = denoiser.predict(noisy[None], rows=rows).double()
    logits[:, denoiser.mask_id] = -math.inf
    return -torch.log_softmax(logits, 1).gather(1, x[sorted(hidden)][:, None]).squeeze(1)


def by_orders(denoiser, x, fill):
    """The mean over all orders of `fill` of the chain rule's sum."""
    total, orders = 0.0, list(itertools.permutations(fill))
    for order in orders:
        for j in range(len(order)):
            hidden = sorted(order[j:])
            total += float(surprisals(denoiser, x, hidden)[hidden.index(order[j])])
    return total / len(orders)


def by_subsets(denoiser, x, fill):
    """Sum over all sets S of C(S) / (|S| binomial(n, |S|))."""
    n = len(fill)
    return sum(
        float(surprisals(denoiser, x, s).sum()) / (k * math.comb(n, k))
        for k in range(1, n + 1)
        for s in itertools.combinations(fill, k)
    )


# ---------------------------------------------------------------------------------------------- the number itself


def test_orders_and_subsets_are_one_number():
    net = TinyNet(vocab=5)
    x = torch.tensor([1, 4, 0, 2, 2])
    for fill in ([0, 1, 2, 3, 4], [1, 4], [0, 2, 3]):
        assert by_orders(net, x, fill) == pytest.approx(by_subsets(net, x, fill), rel=1e-12)


@pytest.mark.parametrize(("method", "schedule"), WAYS)
def test_any_model_gets_its_bound(method, schedule):
    """A model whose conditionals do not agree: the estimate is unbiased for the enumerated bound, whole or in part."""
    net = TinyNet(vocab=5, seed=3)
    x = torch.randint(0, 5, (3, 5), generator=torch.Generator().manual_seed(2))
    for fill in ([0, 1, 2, 3, 4], [1, 2, 4]):
        where = torch.zeros(5, dtype=torch.bool)
        where[fill] = True
        bound = torch.tensor([by_subsets(net, row, fill) for row in x], dtype=torch.float64)
        out = samplers.nll(net, x, fill=where, method=method, schedule=schedule, mc=4096, replicates=32, batch=4096)
        assert out.nll.dtype == out.stderr.dtype == torch.float64
        assert ((out.nll - bound).abs() < 4.5 * out.stderr).all()
        assert (out.stderr < 0.02 * bound).all()
        assert out.tokens.tolist() == [len(fill)] * 3
    assert abs(bound - samplers.nll(TinyNet(vocab=5, seed=4), x, fill=where, mc=256).nll).max() > 0.05  # it could fail


@pytest.mark.parametrize(("method", "schedule"), WAYS)
def test_consistent_conditionals_are_tight(method, schedule):
    joint = TinyJoint(length=4, vocab=3)
    x = joint.strings[::7]
    true = -joint.law[joint.index(x)].log()
    assert by_subsets(joint, x[1], [0, 1, 2, 3]) == pytest.approx(float(true[1]), rel=1e-6)
    out = samplers.nll(joint, x, method=method, schedule=schedule, mc=512, replicates=32, batch=512)
    z = (out.nll - true) / out.stderr
    assert float(z.abs().max()) < 4.5
    assert abs(out.mean - float(true.mean())) < 4 * out.mc_stderr


@pytest.mark.parametrize("where", [(1, 3), (2,), (0, 1, 2, 3)])
def test_part_of_a_row_is_conditional(where):
    """Scoring `fill` alone is -log p(x_fill | the rest)."""
    joint = TinyJoint(length=4, vocab=3, seed=5)
    x = joint.strings[5::11]
    fill = torch.zeros(4, dtype=torch.bool)
    fill[list(where)] = True
    rest = ~fill
    same = (x[:, None, rest] == joint.strings[:, rest]).all(2)  # (B, S)
    true = (same * joint.law).sum(1).log() - joint.law[joint.index(x)].log()
    out = samplers.nll(joint, x, fill=fill, mc=256, replicates=16)
    assert ((out.nll - true).abs() <= 4.5 * out.stderr + 1e-6).all()
    if where == (2,):
        assert (out.stderr < 1e-12).all()  # one position, one mask: nothing is random
    if where == (0, 1, 2, 3):
        assert (samplers.nll(joint, x, mc=256, replicates=16).nll == out.nll).all()


def test_a_prompt_is_given():
    joint = TinyJoint(length=4, vocab=3, seed=5)
    x = joint.strings[5::11]
    lengths = torch.arange(len(x)) % 4
    fill = torch.arange(4) >= lengths[:, None]
    a, b = samplers.nll(joint, x, prompt=lengths, mc=32), samplers.nll(joint, x, fill=fill, mc=32)
    assert (a.nll == b.nll).all()
    assert a.tokens.tolist() == (4 - lengths).tolist()
    assert (samplers.nll(joint, x, prompt=2, mc=32).tokens == 2).all()


# ---------------------------------------------------------------------------------------------- the exact problems


def truth(name, rows):
    problem = problems.create(name)
    x = problem.sample_truth(rows, 11)
    if name == "sudoku4":
        return problem.denoiser("masked"), x, torch.full((rows,), math.log(288), dtype=torch.float64)
    return problem.denoiser("masked"), x, problem.nll(x) * 64 if name == "digits" else -problem.log_prob(x)


@pytest.mark.parametrize(("name", "rows", "mc"), [("sudoku4", 48, 128), ("digits", 16, 64), ("text", 8, 64)])
def test_the_exact_problems(name, rows, mc):
    denoiser, x, true = truth(name, rows)
    means = {}
    for method in METHODS:
        out = samplers.nll(denoiser, x, method=method, mc=mc, batch=256, seed=1)
        z = (out.mean - float(true.mean())) / out.mc_stderr
        assert abs(z) < 4, (method, z)
        assert out.mc_stderr < 0.05 * out.mean
        assert out.mean_stderr > 0
        means[method] = out.mean, out.mc_stderr
    for a, b in itertools.combinations(METHODS, 2):
        assert abs(means[a][0] - means[b][0]) < 4 * math.hypot(means[a][1], means[b][1])


@pytest.mark.parametrize(
    "design",
    [
        {"stratified": True, "antithetic": True, "replicates": 16, "mc": 128},
        {"stratified": True, "antithetic": False, "replicates": 16, "mc": 64},
        {"stratified": False, "antithetic": True, "mc": 64},
        {"stratified": False, "antithetic": False, "mc": 64},
    ],
    ids=["both", "stratified", "antithetic", "plain"],
)
@pytest.mark.parametrize("method", METHODS)
def test_the_standard_error_is_calibrated(design, method):
    """z-scores over 1,200 independent estimates: mean 0; variance that of Student's t with replicates - 1."""
    joint = TinyJoint(length=5, vocab=2, skew=0.7)  # no token so rare that normal means take thousands of masks
    x = joint.strings[:30].repeat(40, 1)
    true = -joint.law[joint.index(x)].log()
    out = samplers.nll(joint, x, method=method, seed=3, batch=1 << 14, **design)
    z = (out.nll - true) / out.stderr
    copies = design["replicates"] if design["stratified"] else design["mc"] // (1 + design["antithetic"])
    expected = (copies - 1) / (copies - 3)
    assert abs(float(z.mean())) < 4 * math.sqrt(expected / len(z))
    assert 0.8 < float(z.var()) / expected < 1.25
    assert 0.9 < float((z.abs() < 2).double().mean()) < 0.97


def test_strata_and_pairs_pay():
    """At equal cost the variance falls by more than 3 on sudoku4 (7.6 measured), and each of the two helps alone."""
    denoiser, x, true = truth("sudoku4", 400)
    error = {}
    for stratified, antithetic in itertools.product((False, True), repeat=2):
        out = samplers.nll(denoiser, x, mc=64, stratified=stratified, antithetic=antithetic, batch=4096)
        error[stratified, antithetic] = float((out.nll - true).square().mean())
    assert error[False, False] / error[True, True] > 3
    assert error[False, False] / error[True, False] > 2
    assert error[False, False] / error[False, True] > 1.3


def test_constant_surprise():
    """C(S) = c k: any_order has no variance at all, the others that of their weights."""
    flat = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 5), vocab_size=5, mask_id=4)
    x = torch.randint(0, 4, (200, 12), generator=torch.Generator().manual_seed(0))
    exact = samplers.nll(flat, x, mc=64)
    torch.testing.assert_close(exact.nll, torch.full_like(exact.nll, 12 * math.log(4)), rtol=1e-6, atol=0)
    assert float(exact.stderr.max()) < 1e-12
    for method, schedule in WAYS[1:]:
        out = samplers.nll(flat, x, mc=64, method=method, schedule=schedule, batch=4096)
        assert float(out.stderr.mean()) > 0.1
        assert abs(out.mean - 12 * math.log(4)) < 4.5 * out.mc_stderr


def test_strata_meet_every_count_equally_often():
    seen = []

    def fn(ids):
        seen.append((ids == 4).sum(1))
        return torch.zeros(*ids.shape, 5)

    model = TokenDenoiser.wrap(fn, vocab_size=5, mask_id=4)
    for antithetic, replicates, mc in ((True, 2, 32), (False, 2, 16)):
        seen.clear()
        samplers.nll(model, [[0] * 8], mc=mc, replicates=replicates, antithetic=antithetic)
        assert torch.bincount(torch.cat(seen), minlength=9).tolist() == [0, *[mc // 8] * 8]


def test_pairs_are_complements_but_for_one_position():
    masks = []

    def fn(ids):
        masks.append(ids == 4)
        return torch.zeros(*ids.shape, 5)

    model = TokenDenoiser.wrap(fn, vocab_size=5, mask_id=4)
    samplers.nll(model, [[0] * 9], mc=24, stratified=False)
    pairs = torch.cat(masks).view(12, 2, 9)
    assert pairs.any(1).all()
    assert (pairs.all(1).sum(1) == 1).all()
    assert len({tuple(p.flatten().tolist()) for p in pairs}) > 8


# ---------------------------------------------------------------------------------------------- rows


def test_a_row_is_what_it_is_alone():
    net = TinyNet()
    x = torch.randint(0, 11, (6, 20), generator=torch.Generator().manual_seed(1))
    x[1, 13:] = x[4, 13:] = PAD
    x[3, 19:] = PAD
    for method in METHODS:
        together = samplers.nll(net, x, method=method, mc=32, seed=9, prompt=[0, 3, 5, 7, 9, 1])
        for i, given in enumerate([0, 3, 5, 7, 9, 1]):
            row = x[i : i + 1, : int((x[i] != PAD).sum())]
            for batch in (1, 7, 32):
                alone = samplers.nll(net, row, method=method, mc=32, seed=9, first_row=i, prompt=given, batch=batch)
                assert float(alone.nll) == float(together.nll[i])
                assert float(alone.stderr) == float(together.stderr[i])
                assert int(alone.tokens) == int(together.tokens[i])
    other = samplers.nll(net, x, mc=32, seed=10)
    assert (other.nll != samplers.nll(net, x, mc=32, seed=9).nll).all()


def test_what_it_counts():
    net = TinyNet()
    x = torch.zeros(3, 8, dtype=torch.int64)
    x[2, 5:] = PAD
    out = samplers.nll(net, x, mc=16, batch=10)
    assert out.row_evals == 3 * 16
    assert out.nfe == 4 + 2 == len(net.asked)  # rows of one length share forwards: 32 and 16 masks in tens
    assert out.tokens.tolist() == [8, 8, 5]
    assert out.per_token == pytest.approx(float(out.nll.sum()) / 21)
    assert "3 rows by any_order" in repr(out)
    before = torch.get_rng_state()
    samplers.nll(net, x, mc=16)
    assert (torch.get_rng_state() == before).all()


def test_means():
    net = TinyNet()
    x = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(1))
    out = samplers.nll(net, x, mc=32)
    assert out.mean == pytest.approx(float(out.nll.mean()))
    assert out.mc_stderr == pytest.approx(math.sqrt(float((out.stderr**2).sum())) / 5)
    assert out.mean_stderr == pytest.approx(float(out.nll.std()) / math.sqrt(5))
    assert samplers.nll(net, x[:1], mc=32).mean_stderr == math.inf


def test_a_time_conditioned_model_is_told_the_level():
    seen = []

    def fn(ids, t):
        seen.append((t.clone(), (ids == 4).double().sum(1)))
        return torch.zeros(*ids.shape, 5)

    model = TokenDenoiser.wrap(fn, vocab_size=5, mask_id=4, time_conditioned=True)
    x = torch.zeros(4, 10, dtype=torch.int64)
    samplers.nll(model, x, mc=32, prompt=2)
    for t, masked in seen:
        torch.testing.assert_close(t, masked / 8)
    seen.clear()
    samplers.nll(model, x, mc=512, prompt=2, method="t_dce", schedule="sin")
    t, masked = (torch.cat(column) for column in zip(*seen))
    assert ((t > 0) & (t <= 1)).all()
    # Given the level, a mask that is not empty hides n t / (1 - (1 - t)^n) positions on average.
    expected = 8 * t / (1 - (1 - t) ** 8)
    assert abs(float((masked - expected).mean())) < 4 * float((masked - expected).std()) / math.sqrt(len(t))


def test_what_else_a_model_may_ask_for():
    class Curious(TokenDenoiser):
        vocab_size, mask_id, time_conditioned, time_per_position, self_conditioned = 5, 4, True, True, True

        def predict(self, x, t=None, *, rows=None, cache=None, previous=None):
            assert torch.equal(previous.fill, rows) and not previous.dense().any()
            assert t.shape == x.shape
            assert ((t > 0) == (x == 4)).all()
            return torch.zeros(int(rows.sum()), 5)

    out = samplers.nll(Curious(), [[0, 1, 2, 3]], prompt=1, mc=16)
    assert float(out.nll) == pytest.approx(3 * math.log(4), rel=1e-6)


# ---------------------------------------------------------------------------------------------- precision


def constant(row, **kw):
    return TokenDenoiser.wrap(
        lambda ids: torch.tensor(row, **kw).expand(*ids.shape, -1), vocab_size=len(row), mask_id=3
    )


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e4])
def test_tiny_probabilities_do_not_underflow(offset):
    model = constant([offset, offset - 200.0, offset - 1.0, 50.0])
    expected = torch.log_softmax(torch.tensor([0.0, -200.0, -1.0], dtype=torch.float64), 0)
    for token in range(3):
        out = samplers.nll(model, [[token]], mc=16)
        assert float(out.nll) == pytest.approx(-float(expected[token]), rel=1e-6, abs=2e-7)


def test_half_precision_logits():
    model = constant([0.5, -60.0, 2.0, 9.0], dtype=torch.bfloat16)
    out = samplers.nll(model, [[1, 2]], fill=[True, False], mc=16)
    assert float(out.nll) == pytest.approx(62 + math.log1p(math.exp(-1.5)), rel=1e-6)


def test_an_impossible_token_is_infinite_and_nothing_else():
    model = constant([0.0, -math.inf, 1.0, 0.0])
    x = torch.tensor([[0, 2, 0], [0, 1, 2], [2, 2, 2]])
    for method in METHODS:
        for design in ({}, {"stratified": False}, {"antithetic": False}):
            out = samplers.nll(model, x, method=method, mc=32, **design)
            assert out.nll.isinf().tolist() == [False, True, False]
            assert not out.nll.isnan().any()
            assert out.stderr.isinf().tolist() == [False, True, False]
            assert (out.mean, out.mc_stderr, out.mean_stderr, out.per_token) == (math.inf,) * 4
            assert (out.nll[[0, 2]] == samplers.nll(model, x, method=method, mc=32, **design).nll[[0, 2]]).all()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_says_what_its_logits_say(softcap, bias):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 16, generator=generator)
    head = Head(torch.randn(7, 16, generator=generator), torch.randn(7, generator=generator) if bias else None, softcap)
    with_head = TokenDenoiser.wrap(lambda ids: table[ids], vocab_size=7, mask_id=6, head=head)
    plain = TokenDenoiser.wrap(lambda ids: head.logits(table[ids]), vocab_size=7, mask_id=6)
    x = torch.randint(0, 6, (4, 9), generator=generator)
    a, b = (samplers.nll(d, x, mc=32) for d in (with_head, plain))
    torch.testing.assert_close(a.nll, b.nll, rtol=2e-6, atol=0)
    assert a.nfe == b.nfe


# ---------------------------------------------------------------------------------------------- what may not be

NET = {"vocab_size": 5, "mask_id": 4}


@pytest.mark.parametrize(
    ("x", "arguments", "words"),
    [
        ([[0, 1]], {"method": "any-order"}, "did you mean 'any_order'"),
        ([[0, 4]], {}, "row 0, position 1 is the mask id 4"),
        ([[0, 1], [9, 1]], {}, "row 1, position 0 is 9; tokens of"),
        ([[0, PAD, 1]], {}, "row 0 has padding"),
        ([[[0, 1]]], {}, "row 0 has shape (1, 2)"),
        (torch.zeros(2, 0), {}, "token ids are needed"),
        (torch.zeros(2, 0, dtype=torch.int64), {}, "no tokens in it"),
        ([[0.5, 1.0]], {}, "row 0 is of torch.float32; token ids are needed"),
        ([[0, 1]], {"prompt": 2}, "row 0 has no position to score"),
        ([[0, 1]], {"prompt": -1}, "prompt is -1; a length"),
        ([[0, 1]], {"prompt": [1, 1]}, "one per row (1 of them)"),
        ([[0, 1]], {"prompt": 1, "fill": [True, True]}, "not both"),
        ([[0, 1]], {"fill": [1, 0]}, "bools"),
        ([[0, 1]], {"fill": [True, True, True]}, "fill has rows of [3] positions, and x of [2]"),
        ([[0, 1]], {"mc": 100}, "multiple of 16"),
        ([[0, 1]], {"mc": 0}, "mc"),
        ([[0, 1]], {"replicates": 1}, "2 copies at least"),
        ([[0, 1]], {"mc": 3, "stratified": False}, "antithetic pairs"),
        ([[0, 1]], {"mc": 1, "stratified": False, "antithetic": False}, "2 copies at least"),
        ([[0, 1]], {"schedule": "cosine"}, "two opposite"),
        ([[0, 1]], {"batch": 0}, "batch"),
        ([[0, 1]], {"seed": [1, 2]}, "2 seeds"),
    ],
)
def test_what_cannot_be_is_said(x, arguments, words):
    model = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 5), **NET)
    with pytest.raises(OptionError) as error:
        samplers.nll(model, x, **arguments)
    assert words in str(error.value)


def test_rows_of_several_lengths_are_what_they_are_alone():
    """A list of rows is the padded tensor, and each row is what it is alone; fill and prompt go by row."""
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    model = TokenDenoiser.wrap(lambda ids: table[ids] + table[ids.roll(1, 1)], **NET)
    rows = [[0, 1, 2, 3], [3, 1], [2, 2, 1]]
    padded = torch.tensor([[0, 1, 2, 3], [3, 1, PAD, PAD], [2, 2, 1, PAD]])
    out = samplers.nll(model, rows, mc=32)
    assert torch.equal(out.nll, samplers.nll(model, padded, mc=32).nll)
    assert out.tokens.tolist() == [4, 2, 3]
    for i, row in enumerate(rows):
        for alone in (row, [row], np.array(row), torch.tensor([row], dtype=torch.int32)):
            assert samplers.nll(model, alone, mc=32, first_row=i).nll.tolist() == [float(out.nll[i])]
    given = samplers.nll(model, rows, mc=32, prompt=[1, 1, 2])
    marked = [[False, True, True, True], [False, True], [False, False, True]]
    assert torch.equal(samplers.nll(model, rows, mc=32, fill=marked).nll, given.nll)
    assert given.tokens.tolist() == [3, 1, 1]


def test_a_text_longer_than_the_model_is_refused():
    model = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 5), max_length=3, **NET)
    with pytest.raises(OptionError, match=r"row 1 has 4 positions.*at most 3"):
        samplers.nll(model, [[0, 1, 2], [0, 1, 2, 3]])


def test_other_families_are_refused():
    with pytest.raises(FamilyError, match="uniform family"):
        samplers.nll(problems.create("sudoku4").denoiser("uniform"), [[0] * 16])
    with pytest.raises(FamilyError, match="gaussian family"):
        samplers.nll(TinyMixture(), [[0]])
    with pytest.raises(OptionError, match="not a Denoiser"):
        samplers.nll(lambda ids: ids, [[0]])
    with pytest.raises(OptionError, match="takes 16"):
        samplers.nll(problems.create("sudoku4").denoiser("masked"), [[0] * 15])


def test_a_bad_answer_names_its_place():
    def broken(ids):
        out = torch.zeros(*ids.shape, 5)
        out[:, 2] = math.nan
        return out

    model = TokenDenoiser.wrap(broken, **NET)
    with pytest.raises(DenoiserError, match=r"position 2 a NaN .*of nll"):
        samplers.nll(model, [[0, 1, 2, 3]], mc=16)
    with pytest.raises(DenoiserError, match="only -inf"):
        samplers.nll(constant([-math.inf] * 4), [[0]], mc=16)
    with pytest.raises(DenoiserError, match="shape"):
        samplers.nll(TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 4), **NET), [[0]], mc=16)


def test_progress_is_shown(capsys):
    samplers.nll(TinyNet(), [[0, 1, 2]], mc=16, progress=True)
    assert "any_order" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- guidance


def guided_by_subsets(denoiser, row, fill, scale):
    """The number of the module's second line under guided conditionals, by all subsets, in float64."""
    given, n = ~fill, int(fill.sum())
    total = 0.0
    for bits in itertools.product((False, True), repeat=n):
        hidden = fill.clone()
        hidden[fill] = torch.tensor(bits)
        k = int(hidden.sum())
        if k:
            x = torch.where(hidden, denoiser.mask_id, row)[None]
            blind = torch.where(given, denoiser.mask_id, x)
            plain, other = (denoiser.predict(z).view(len(row), -1).double() for z in (x, blind))
            logits = torch.where(plain.isinf() | other.isinf(), plain, (1 + scale) * plain - scale * other)
            logits[:, denoiser.mask_id] = -torch.inf
            total -= float(logits.log_softmax(1)[hidden, row[hidden]].sum()) / k / math.comb(n, k)
    return total


@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_guided_surprise_is_that_of_all_subsets(scale):
    denoiser = TinyJoint(length=4, seed=3)
    x, fill = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]]), torch.tensor([False, True, True, True])
    for method in ("any_order", "lambda_dce"):
        out = nll(denoiser, x, fill=fill, mc=2048, cfg_scale=scale, method=method, seed=1)
        for i, row in enumerate(x):
            exact = guided_by_subsets(denoiser, row, fill, scale)
            assert abs(float(out.nll[i]) - exact) < 5 * float(out.stderr[i]) + 1e-6
            assert float(out.stderr[i]) < 0.1
    plain = nll(denoiser, x, fill=fill, mc=64)
    assert not torch.allclose(plain.nll, out.nll, atol=0.02)
    assert torch.equal(plain.nll, nll(denoiser, x, fill=fill, mc=64, cfg_scale=0.0).nll)
    assert nll(denoiser, x, fill=fill, mc=64, cfg_scale=1.0).row_evals == 2 * plain.row_evals


def test_guided_surprise_by_head_and_by_logits():
    model = zoo.load("text-mdm", dtype=torch.float64)
    by_logits = samplers.TokenDenoiser.wrap(
        lambda ids: model.predict(ids).float(), vocab_size=model.vocab_size, mask_id=model.mask_id
    )
    x = [model.encode("The name of the module"), model.encode("A list")]
    one, other = (nll(m, x, prompt=1, mc=16, cfg_scale=0.8) for m in (model, by_logits))
    torch.testing.assert_close(one.nll, other.nll, rtol=1e-5, atol=0)


def test_guidance_needs_something_given():
    with pytest.raises(OptionError, match="cfg_scale=1 guides by what is given, and no position is"):
        nll(TinyJoint(length=3), [[0, 1, 2]], cfg_scale=1.0)
