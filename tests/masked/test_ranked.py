"""Ranked and adaptive masked samplers: counts, trajectories worked out by hand, and the laws of what chance they have.

(Parity with the published loops is in test_parity.py, what every sampler must keep in the kit.)
"""

import itertools
import math

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser, ops, token_family
from samplers.masked.hierarchy import leaders
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")


class Script:
    """A model of one row that says in its n-th forward what the script says: for each position (token, probability).

    The rest of the probability is spread evenly over the other tokens. The last line is repeated.
    """

    def __init__(self, lines, vocab=12):
        self.lines, self.vocab, self.asked = lines, vocab, 0

    def __call__(self, ids):
        line = self.lines[min(self.asked, len(self.lines) - 1)]
        self.asked += 1
        p = torch.empty(1, len(line), self.vocab + 1, dtype=torch.float64)
        for i, (token, prob) in enumerate(line):
            p[0, i] = (1 - prob) / (self.vocab - 1)
            p[0, i, token] = prob
        return p.log().float().expand(len(ids), -1, -1)


def order(lines, name, vocab=12, **kw):
    """The positions that each step committed, and the tokens in the end."""
    denoiser = TokenDenoiser.wrap(Script(lines, vocab), vocab_size=vocab + 1, mask_id=vocab)
    out = samplers.sample(denoiser, name, gen_length=len(lines[0]), trace=True, **{"temperature": 0.0} | kw)
    rows = [s.x[0] for s in out.trace]
    return [(a != b).nonzero().flatten().tolist() for a, b in zip(rows, rows[1:])], out.x[0].tolist()


def sure(*confidences):
    """A line in which every position has token 0 at these probabilities."""
    return [(0, c) for c in confidences]


def p_value(problem, name, rows=12_000, **kw):
    """Of the samples of a sampler on a TinyJoint at temperature 1: whether they follow its distribution."""
    out = samplers.sample(problem, name, batch=rows, seed=3, temperature=1.0, **kw)
    return fits(torch.bincount(problem.index(out.x), minlength=len(problem.law)), problem.law)


# ---------------------------------------------------------------------------------------------- plans


PLANS = ["even", "floor(0.001)", "floor(1e-5)", "floor(0)", "linear", "1-cos", "sin", "beta(0.9,0.3)"]


def counts_of(name, n, **kw):
    states = list(samplers.stream(TinyNet(), name, gen_length=n, **kw))
    left = [int(s.masked.sum()) for s in states]
    return [a - b for a, b in zip(left, left[1:]) if a > b]


@pytest.mark.parametrize("name", ["low_confidence", "random_order"])
@pytest.mark.parametrize("least", [0, 1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_plans_keep_their_count_and_their_word(name, plan, least):
    sampler = samplers.create(name, plan=plan, least=least)
    for n, steps in ((16, 16), (16, 5), (10, 4), (7, 12), (9, 1), (64, 20)):
        counts = counts_of(sampler, n, steps=steps)
        assert sum(counts) == n
        assert len(counts) == sampler.expected_nfe(n, steps) <= steps
        assert all(c >= least for c in counts[:-1])
        if plan == "even" and not least:
            assert counts == [n // steps + (k < n % steps) for k in range(steps) if k < n]
        elif "floor" in plan and not least:
            assert counts == floor_counts(n, steps, float(plan[6:-1]))
        elif "floor" not in plan and plan != "even":
            expected = (
                samplers.mask_schedule(plan).counts(n, steps)
                if not least
                else scheduled_with_least(least, plan, n, steps)
            )
            assert counts == expected


def floor_counts(n, steps, eps):
    """floor(m (1 - s/t)) in exact fractions: a count never hangs on the last bit here."""
    from fractions import Fraction

    e, counts = Fraction(str(eps)), []
    for k in range(steps):
        t, s = (1 - (1 - e) * Fraction(i, steps) for i in (k, k + 1))
        c = n if k == steps - 1 else math.floor(n * (1 - s / t))
        counts, n = counts + [c] * (c > 0), n - c
    return counts


def scheduled_with_least(least, plan, n, steps):
    """eMIGM's rule is least = 1: the expected total, and `least` or more in every step until nothing is left."""
    a, have, counts = samplers.mask_schedule(plan), 0, []
    for k in range(steps):
        c = min(max(least, math.floor(n * float(a((k + 1) / steps)) + 0.5) - have), n - have)
        counts, have = counts + [c] * (c > 0), have + c
    return counts


def test_emigm_counts():
    """All rows the same counts, none of them 0, at positions of their own."""
    states = list(samplers.stream(TinyNet(), "random_order", gen_length=64, batch=5, steps=8, plan="1-cos", least=1))
    counts = torch.stack([s.masked.sum(1) for s in states]).diff(dim=0).neg()
    assert (counts == counts[:, :1]).all() and int(counts.min()) >= 1
    assert len({tuple(s.tolist()) for s in states[4].masked}) == 5, "rows choose their own positions"


def test_plan_works_in_blocks_and_ragged_rows():
    for plan in PLANS:
        out = samplers.sample(
            TinyNet(), "topk_margin", prompt=[[1], [2, 3, 4]], gen_length=14, block_length=5, steps=9, plan=plan
        )
        assert bool((out.x[0, :15] < 11).all()) and bool((out.x[1] < 11).all())
        assert int(out.nfe_rows.max()) <= 9


def test_beta_energy_is_low_confidence_with_its_schedule():
    kw = {"prompt": [[1], [2, 3]], "gen_length": 20, "steps": 9, "block_length": 8, "temperature": 1.0}
    energy = samplers.sample(TinyNet(), "beta_energy", a=0.7, b=0.4, **kw)
    assert torch.equal(energy.x, samplers.sample(TinyNet(), "low_confidence", plan="beta(0.7,0.4)", **kw).x)


@pytest.mark.parametrize("plan", PLANS)
def test_plans_end_where_a_row_stops_or_is_fixed(plan):
    kw = {"gen_length": 24, "batch": 6, "seed": 2, "steps": 11, "plan": plan, "temperature": 1.0}
    free = samplers.sample(TinyNet(), "low_confidence", **kw)
    stop = int(free.x[0, 4])
    out = samplers.sample(TinyNet(), "low_confidence", stop=stop, **kw)
    assert int(out.lengths.min()) < 24 and bool((out.nfe_rows <= 11).all())

    def fix(state):
        ids = torch.where(torch.arange(24) % 3 == state.step[:, None] % 3, 5, -1)
        return samplers.Constraint(fix=ids)

    fixed = samplers.sample(TinyNet(), "low_confidence", constrain=fix, **kw)
    assert bool((fixed.x < 11).all()) and bool((fixed.nfe_rows <= 11).all())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"plan": "floor"}, "unknown mask schedule 'floor'.* Or a plan: even, floor"),
        ({"plan": "floor(1)"}, "floor.eps. takes a number from 0 up to 1"),
        ({"plan": "floor(x)"}, "floor.eps. takes a number"),
        ({"plan": "evn"}, "unknown mask schedule 'evn'"),
        ({"plan": "cosine"}, "two opposite schedules"),
        ({"least": -1}, "must be >= 0"),
        ({"alg_temp": -0.5}, "must be >= 0"),
    ],
)
def test_bad_plans(options, says):
    with pytest.raises(OptionError, match=says):
        samplers.create("low_confidence", **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("low_confidence", {"plan": "floor(1e-3)", "tempered": True}),
        ("low_confidence", {"plan": "1-cos", "alg_temp": 0.3}),
        ("neg_entropy", {"plan": "sin", "least": 1}),
        ("random_order", {"plan": "beta(0.9,0.3)", "least": 1}),
        ("random_remask", {"plan": "floor(0.01)"}),
        ("maskgit", {"late": True, "schedule": "arcsin"}),
    ],
)
def test_counts_are_foreseen_under_any_plan(name, options, monkeypatch):
    kw = {"prompt": [[1], [2, 3, 4]], "gen_length": 14, "block_length": 6, "steps": 9, "temperature": 0.8, **options}
    looked = samplers.sample(TinyNet(), name, **kw)
    monkeypatch.setattr(token_family, "_uses_dry_run", lambda sampler, denoiser: True)
    foreseen = samplers.sample(TinyNet(), name, **kw)
    assert torch.equal(looked.x, foreseen.x)
    assert torch.equal(looked.nfe_rows, foreseen.nfe_rows) and looked.head_rows == foreseen.head_rows


# ---------------------------------------------------------------------------------------------- chance in the order


def test_alg_temp_draws_without_replacement():
    """Dream: k positions one after another from softmax(confidence / alg_temp), those drawn left out. All sets enumerated."""
    confidence, alg_temp, k, rows = (0.9, 0.5, 0.3, 0.7, 0.2), 0.25, 2, 20_000
    weight = [math.exp(c / alg_temp) for c in confidence]
    law = {}
    for first, second in itertools.permutations(range(5), 2):
        p = weight[first] / sum(weight) * weight[second] / (sum(weight) - weight[first])
        law[frozenset((first, second))] = law.get(frozenset((first, second)), 0) + p
    denoiser = TokenDenoiser.wrap(Script([sure(*confidence)]), vocab_size=13, mask_id=12)
    run = samplers.stream(
        denoiser, "low_confidence", gen_length=5, steps=3, batch=rows, alg_temp=alg_temp, temperature=0.0
    )
    first = list(itertools.islice(run, 2))[1].masked
    seen = [frozenset((~row).nonzero().flatten().tolist()) for row in first]
    assert {len(s) for s in seen} == {k}
    assert sum(law.values()) == pytest.approx(1) and sum(map(seen.count, law)) == rows
    assert fits([seen.count(s) for s in law], list(law.values())) > BOUND


def test_random_remask_chooses_all_sets_alike_and_anew():
    rows = 12_000
    denoiser = TokenDenoiser.wrap(Script([sure(*[0.5] * 5)]), vocab_size=13, mask_id=12)
    run = list(samplers.stream(denoiser, "random_remask", gen_length=5, steps=3, batch=rows))
    for state, before in zip(run[1:3], run):
        new = before.masked & ~state.masked
        keys = (new * 2 ** torch.arange(5)).sum(1)
        counts = torch.bincount(keys, minlength=32).double()
        counts = counts[counts > 0]
        assert len(counts) == 10, "5 choose 2"
        assert fits(counts, [0.1] * 10) > BOUND


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk_margin", {"alg_temp": 0.1}),
        ("neg_entropy", {"tempered": True, "alg_temp": 0.5}),
        ("neg_entropy", {"plan": "floor(1e-3)", "least": 1}),
        ("random_order", {"plan": "sin", "steps": 3, "block_length": 1}),
    ],
)
def test_orders_blind_to_the_draw_keep_the_law(name, options):
    assert p_value(TinyJoint(), name, **options) > BOUND


def test_alg_temp_goes_from_the_best_to_blind():
    confidences = sure(0.9, 0.2, 0.6, 0.4)
    assert order([confidences], "low_confidence", steps=4, alg_temp=1e-6)[0] == [[0], [2], [3], [1]]
    orders = {str(order([confidences], "low_confidence", steps=4, alg_temp=1e6, seed=s)[0]) for s in range(40)}
    assert len(orders) > 10


# ---------------------------------------------------------------------------------------------- ranks


def test_three_ranks_disagree_where_they_should():
    """Position 0 has the best token, 1 the largest margin, 2 the lowest entropy."""
    p = torch.tensor([
        [0.60, 0.36, 0.01, 0.01, 0.01, 0.01],
        [0.55, 0.09, 0.09, 0.09, 0.09, 0.09],
        [0.51, 0.49, 0.00, 0.00, 0.00, 0.00],
    ])  # fmt: skip
    logits = torch.cat([p.log(), torch.zeros(3, 1)], 1)[None]
    denoiser = TokenDenoiser.wrap(lambda ids: logits.expand(len(ids), -1, -1), vocab_size=7, mask_id=6)
    for name, first in (("low_confidence", 0), ("smdm_greedy", 0), ("topk_margin", 1), ("neg_entropy", 2)):
        states = list(samplers.stream(denoiser, name, gen_length=3, temperature=0.0, least=1))
        assert (~states[1].masked[0]).nonzero().item() == first, name


# ---------------------------------------------------------------------------------------------- factor


def test_factor_by_hand():
    # factor 1: the second must have 1 - 1/3, the third 1 - 1/4, the fourth 1 - 1/5.
    assert order([sure(0.6, 0.9, 0.7, 0.8)], "factor")[0] == [[1, 3], [2], [0]]
    # Only the last fails: the reference code commits it too.
    assert order([sure(0.99, 0.98, 0.10)], "factor")[0] == [[0, 1], [2]]
    assert order([sure(0.99, 0.98, 0.10)], "factor", reference=True)[0] == [[0, 1, 2]]
    assert order([sure(0.99, 0.10, 0.10)], "factor", reference=True)[0] == [[0], [1, 2]]
    assert order([sure(0.5, 0.6)], "factor", factor=0.0)[0] == [[1], [0]]


# ---------------------------------------------------------------------------------------------- hierarchy


def test_hierarchy_by_hand():
    lines = [sure(0.5, 0.3, 0.6, 0.2, 0.95, 0.35, 0.45, 0.1)]
    # One run: its best, 4. Then 0-3 and 5-7: 2 and 6. Then {0, 1}, {3}, {5}, {7}: 0 alone is above 0.4. Then none is:
    # the best of all, three times, and so on.
    assert order(lines, "hierarchy")[0] == [[4], [2, 6], [0], [5], [1], [3], [7]]
    # 0.3 and up at the head of a run, anything above 0.5.
    assert order(lines, "hierarchy", threshold=0.49, low_threshold=0.29)[0] == [[0, 2, 4], [1, 6], [5], [3], [7]]
    # Equals go to the lower position; neither bound is included.
    assert order([sure(*[0.5] * 5)], "hierarchy", low_threshold=0.4)[0] == [[0], [1], [2], [3], [4]]
    half = {"vocab": 2, "threshold": 0.8}  # two tokens, equally likely: exactly 0.5
    assert order([sure(0.5, 0.9, 0.5)], "hierarchy", **half, low_threshold=0.5)[0] == [[1], [0], [2]]
    assert order([sure(0.5, 0.9, 0.5)], "hierarchy", **half, low_threshold=0.49)[0] == [[1], [0, 2]]
    assert order([sure(0.5, 0.5)], "hierarchy", **half | {"threshold": 0.5})[0] == [[0], [1]]
    assert order([sure(0.5, 0.5)], "hierarchy", **half | {"threshold": 0.49})[0] == [[0, 1]]
    # A run ends with its block.
    assert order(lines, "hierarchy", block_length=4)[0] == [[2], [0], [1], [3], [4], [6], [5], [7]]


def test_leaders_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    for shape in ((40, 17), (8, 1), (3, 2), (1, 64)):
        score = torch.randint(0, 4, shape, generator=g) / 4 - 0.5  # many ties, negative ones too
        score[score == -0.5] = -math.inf
        member = torch.rand(shape, generator=g) < 0.7
        expected = torch.zeros_like(member)
        for b in range(shape[0]):
            runs = itertools.groupby(range(shape[1]), key=lambda i: bool(member[b, i]))
            for inside, run in runs:
                if inside:
                    expected[b, max(run, key=lambda i: float(score[b, i]))] = True
        assert torch.equal(leaders(score, member), expected)


# ---------------------------------------------------------------------------------------------- KLASS


def test_klass_by_hand():
    """Eight positions in eight steps: the plan is one a step. What moves is never ready, however sure it is."""

    def line(n):
        still = [(0, 0.80), (0, 0.70), (0, 0.50)]  # never move; 2 is not sure enough
        moving = [(n % 5, c) for c in (0.99, 0.98, 0.97, 0.96, 0.95)]  # another token in every step
        return still + moving

    lines = [line(n) for n in range(8)]
    options = {"history_length": 2, "kl_threshold": 0.01, "conf_threshold": 0.6}
    # Steps 0 and 1: too early, the most confident. Step 2: 0 and 1 have stood still twice. Then nothing is ready.
    assert order(lines, "klass", **options)[0] == [[3], [4], [0, 1], [5], [6], [7], [2]]
    assert order(lines, "klass", **options | {"history_length": 3})[0] == [[3], [4], [5], [0, 1], [6], [7], [2]]
    assert order(lines, "klass", **options | {"history_length": 1})[0] == [[3], [0, 1], [4], [5], [6], [7], [2]]
    assert order(lines, "klass", **options, strategy="max_conf")[0][:5] == [[3], [4], [0], [1], [5]]
    assert order(lines, "klass", **options | {"conf_threshold": 0.4})[0][2] == [0, 1, 2]
    # A threshold is not passed by being equal to it: two tokens, equally likely.
    half = {"vocab": 2, "history_length": 1}
    assert order([sure(0.5, 0.5, 0.5)], "klass", **half, conf_threshold=0.5)[0] == [[0], [1], [2]]
    assert order([sure(0.5, 0.5, 0.5)], "klass", **half, conf_threshold=0.49)[0] == [[0], [1, 2]]
    # In two steps: the plan is four a step. In the second, the last of the block, all must go.
    assert order(lines, "klass", steps=2, **options)[0] == [[3, 4, 5, 6], [0, 1, 2, 7]]


def test_klass_tops_up_what_is_ready():
    """Six steps for 24 positions: one is ready from step 1 on, and four must go in each step all the same."""
    lines = [[(0, 0.7), *((n % 5, 0.6 - i / 100) for i in range(23))] for n in range(7)]
    steps, x = order(lines, "klass", steps=6, conf_threshold=0.65, history_length=1)
    assert [len(s) for s in steps] == [4] * 6 and 12 not in x
    assert steps[0] == [0, 1, 2, 3]


def test_klass_strategies():
    def line(n):
        wobble = (0, 0.8 + 0.001 * (n % 2)), (0, 0.9 + 0.01 * (n % 2)), (0, 0.7)  # KL: little, more, none
        return [*wobble, *((n % 5, 0.99) for _ in range(4))]

    lines = [line(n) for n in range(8)]
    options = {"history_length": 2, "kl_threshold": 0.05, "conf_threshold": 0.6}
    assert order(lines, "klass", **options)[0][2] == [0, 1, 2]
    assert order(lines, "klass", **options, strategy="max_conf")[0][2:5] == [[1], [0], [2]]
    assert order(lines, "klass", **options, strategy="min_kl")[0][2:5] == [[2], [0], [1]]
    drawn = {tuple(order(lines, "klass", **options, strategy="random", seed=s)[0][2]) for s in range(30)}
    assert drawn == {(0,), (1,), (2,)}


def test_klass_history_begins_anew_in_a_block_unless_told():
    """Nothing ever moves: in blocks of 4, ready at a block's third step; watched from before, at its second."""
    lines = [sure(*[0.9 - i / 100 for i in range(8)])]
    options = {"history_length": 2, "conf_threshold": 0.5, "block_length": 4}
    assert order(lines, "klass", **options)[0] == [[0], [1], [2, 3], [4], [5], [6, 7]]
    assert order(lines, "klass", **options, across_blocks=True)[0] == [[0], [1], [2, 3], [4], [5, 6, 7]]


def test_klass_keeps_what_it_is_asked_for_and_no_more():
    states = list(samplers.stream(TinyNet(), "klass", gen_length=16, batch=3, block_length=4))
    for before, state in zip(states, states[1:]):
        assert state.last_logits.shape == (int(before.count.sum()), 12)
        asked = state.last_row >= 0
        assert torch.equal(asked, before.open)
        assert bool((state.last_logits[:, 11] == -math.inf).all()), "the mask is no candidate"
        torch.testing.assert_close(state.last_lse, torch.logsumexp(state.last_logits.double(), 1), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- credit


def test_credit_by_hand():
    """A guess that stays at 0.6 overtakes one of 0.7 that changes in every step.

    Position 0: its credit is 0.6^0.2 (1 + 0.8 + 0.64 + ...) = 0.903, 1.625, 2.203, 2.665; with odds 1.5 (1 + C)^0.7 against
    the rest its confidence is 0.702, 0.747, 0.772, 0.788 in steps 0 to 3. The others have credit p^0.2 for the token of
    the step, and their last tokens keep some: C = 0.745, 0.596, 0.477, each on (1 - p) / 11 of the mass. So
    step 0  p = 0.74: 0.819      step 1  p = 0.72: 0.797      step 2  p = 0.71: 0.783      step 3  p = 0.70: 0.770 < 0.788
    """
    others = (0.74, 0.72, 0.71, 0.70, 0.69, 0.68, 0.67, 0.66, 0.65)
    lines = [[(0, 0.6), *(((n + i) % 10 + 1, p) for i, p in enumerate(others))] for n in range(10)]
    plain = [[i] for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)]
    assert order(lines, "threshold", threshold=0.85)[0] == plain
    assert order(lines, "credit", threshold=0.85, alpha=0.0)[0] == plain
    assert order(lines, "credit", threshold=0.85)[0][:4] == [[1], [2], [3], [0]]
    assert order(lines, "credit", threshold=0.80)[0][:1] == [[1, 2]], "0.74 and 0.72 have 0.819 and 0.803 in step 0"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_credit_is_the_whole_matrix(temperature):
    """The list of ids and credits is (B, L, V) of the published rule, bit for bit, in ragged batches and blocks."""
    sampler = samplers.create("credit", threshold=0.6, decay=0.9, gamma=0.5)
    net = TinyNet()
    states = list(
        samplers.stream(
            net, sampler, prompt=[[1, 2, 3], [4]], gen_length=14, block_length=8, temperature=temperature, cfg_scale=0.0
        )
    )
    dense = torch.zeros(*states[0].x.shape, 12)
    several = False
    for before, state in zip(states, states[1:]):
        packed = torch.cat([net.predict(before.x[b : b + 1], rows=before.open[b : b + 1]) for b in range(2)])
        best = ops.masked_softmax(packed, forbid=torch.tensor([11]))
        where = before.open.nonzero()
        dense = dense * 0.9
        dense[where[:, 0], where[:, 1], best.token] += best.confidence**0.5
        listed = torch.zeros_like(dense)
        known = state.ids >= 0
        assert (state.credit[~known] == 0).all()
        row, position, _ = known.nonzero().unbind(1)
        listed[row, position, state.ids[known]] = state.credit[known]
        assert torch.equal(listed, dense)
        several |= bool((known.sum(2) > 2).any())
    assert several, "no position ever had three tokens with credit"


def test_credit_tilts_the_law_and_alpha_0_does_not():
    """Even left to right: a claim of the docstring, and why the kit tests it with alpha = 0."""
    assert p_value(TinyJoint(), "credit", block_length=1) < 1e-60, "chi-square is ten times the bound or more"
    assert p_value(TinyJoint(), "credit", block_length=1, alpha=0.0) > BOUND


# ---------------------------------------------------------------------------------------------- MaskGIT


def test_maskgit_by_hand():
    confidences = [0.05 + 0.09 * i for i in (3, 7, 0, 9, 5, 1, 8, 2, 6, 4)]
    by_rank = sorted(range(10), key=lambda i: -confidences[i])

    def steps(**kw):
        return [len(s) for s in order([sure(*confidences)], "maskgit", steps=5, **kw)[0]]

    # Masked after each step: floor(10 cos(18, 36, 54, 72, 90 degrees)) = 9, 8, 5, 3, 0.
    assert steps() == [1, 1, 3, 2, 3]
    # Guidance-MaskGIT, 10 (1 - arccos(r) / 90 degrees) at r = 0, 1/4, ..., 1: 0, 1.6, 3.3, 5.4, 10, and k + 1 at least.
    assert steps(late=True, schedule="arcsin") == [1, 1, 1, 2, 5]
    taken = order([sure(*confidences)], "maskgit", steps=5, r_temp=0.0)[0]
    assert [sorted(by_rank[a:b]) for a, b in ((0, 1), (1, 2), (2, 5), (5, 7), (7, 10))] == taken
    # The last step is greedy whatever the noise; the first is not.
    firsts = {tuple(order([sure(*confidences)], "maskgit", steps=5, r_temp=50.0, seed=s)[0][0]) for s in range(40)}
    assert len(firsts) > 6


def test_maskgit_noise_is_gumbel():
    """In the first of two steps positions are drawn without replacement from c^(1 / 2.25): k = 3 of 10 expected here."""
    confidence, rows = (0.9, 0.5, 0.3, 0.7), 20_000
    denoiser = TokenDenoiser.wrap(Script([sure(*confidence)]), vocab_size=13, mask_id=12)
    run = samplers.stream(denoiser, "maskgit", gen_length=4, steps=2, batch=rows, schedule="1-cos", temperature=0.0)
    first = list(itertools.islice(run, 2))[1].masked
    weight = [c ** (1 / (4.5 * 0.5)) for c in confidence]
    law = {}
    for a, b in itertools.permutations(range(4), 2):  # 4 - floor(4 cos 45 degrees) = 2
        key = frozenset((a, b))
        law[key] = law.get(key, 0) + weight[a] / sum(weight) * weight[b] / (sum(weight) - weight[a])
    seen = [frozenset((~row).nonzero().flatten().tolist()) for row in first]
    assert sum(law.values()) == pytest.approx(1) and sum(map(seen.count, law)) == rows
    assert fits([seen.count(s) for s in law], list(law.values())) > BOUND


def test_maskgit_late_with_one_step():
    assert order([sure(0.5, 0.6)], "maskgit", steps=1, late=True)[0] == [[0, 1]]
    assert order([sure(0.5, 0.6)], "maskgit", steps=1)[0] == [[0, 1]]
