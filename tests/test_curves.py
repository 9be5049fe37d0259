"""Entropy curves against their definition, plans against all plans, predicted KL against the sampler's own distribution."""

import itertools
import math

import pytest
import torch
from laws import sampled_like

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.schedule import BOUNDS, EntropyCurve, bounded_plan, entropy_curve, exact_curve, optimal_plan
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")


def conditionals(p, known):
    """From {string: probability}: for each setting of the `known` positions its probability and the strings' shares given it."""
    parts = {}
    for string, w in p.items():
        parts.setdefault(tuple(string[i] for i in known), {})[string] = w
    for strings in parts.values():
        total = sum(strings.values())
        yield total, {s: w / total for s, w in strings.items()}


def marginal(shares, i):
    out = {}
    for string, w in shares.items():
        out[string[i]] = out.get(string[i], 0.0) + w
    return out


def by_definition(p):
    """[h(0), ..., h(L - 1)]: the mean over sets of k positions and over one position more of the conditional entropy."""
    length = len(next(iter(p)))
    curve = []
    for k in range(length):
        every = []
        for known in itertools.combinations(range(length), k):
            for i in set(range(length)) - set(known):
                h = 0.0
                for total, shares in conditionals(p, known):
                    h -= total * sum(w * math.log(w) for w in marginal(shares, i).values())
                every.append(h)
        curve.append(sum(every) / len(every))
    return curve


def table(strings, weight=None):
    strings = [tuple(s) for s in strings]
    weight = [1.0] * len(strings) if weight is None else weight
    return {s: w / sum(weight) for s, w in zip(strings, weight)}


def as_table(joint):
    return table(joint.strings.tolist(), joint.law.tolist())


BITS = list(itertools.product(range(2), repeat=5))
TABLES = {
    "parity": table(s for s in BITS if sum(s) % 2 == 0),
    "mirror": table((a, b, b, a) for a in range(3) for b in range(3)),
    "shuffle": table(itertools.permutations(range(4))),
    "any": as_table(TinyJoint(length=4, vocab=2, seed=3)),
}
KNOWN = {  # nats, from the definition of each by hand
    "parity": [math.log(2)] * 4 + [0.0],
    "mirror": [math.log(3), math.log(3) * 2 / 3, math.log(3) / 3, 0.0],
    "shuffle": [math.log(4), math.log(3), math.log(2), 0.0],
}


def curve_of(p):
    return exact_curve(torch.tensor(list(p)), torch.tensor(list(p.values()), dtype=torch.float64))


@pytest.mark.parametrize("what", TABLES)
def test_the_exact_curve_is_the_definition(what):
    p = TABLES[what]
    curve = curve_of(p)
    assert curve.nats.tolist() == pytest.approx(by_definition(p), abs=1e-12)
    if what in KNOWN:
        assert curve.nats.tolist() == pytest.approx(KNOWN[what], abs=1e-12)
    entropy = -sum(w * math.log(w) for w in p.values())
    assert curve.total == pytest.approx(entropy, abs=1e-12)
    length = len(curve.nats)
    apart = sum(-sum(w * math.log(w) for w in marginal(p, i).values()) for i in range(length))
    assert curve.tc == pytest.approx(apart - entropy, abs=1e-12)


@pytest.fixture(scope="module")
def sudoku():
    problem = samplers.problems.create("sudoku4")
    denoiser = problem.denoiser()
    denoiser.entropy_curve  # noqa: B018 - kept by the denoiser
    return problem, denoiser, EntropyCurve(denoiser.entropy_curve[None])


def test_sudoku_by_enumeration_and_by_monte_carlo(sudoku):
    problem, denoiser, curve = sudoku
    assert curve.total == pytest.approx(math.log(288), abs=1e-9)
    assert curve.nats[0] == pytest.approx(math.log(4)) and float(curve.nats[-1]) < 1e-12
    p = table(problem.grids.tolist())
    pairs = [
        -sum(t * w * math.log(w) for t, c in conditionals(p, (j,)) for w in marginal(c, i).values())
        for i, j in itertools.permutations(range(0, 16, 5), 2)
    ]
    some = exact_curve(problem.grids[:, ::5].unique(dim=0), problem.grids[:, ::5].unique(dim=0, return_counts=True)[1])
    assert float(some.nats[1]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    for loss in (False, True):
        guess = entropy_curve(denoiser, problem, samples=60, seed=1, loss=loss)
        off = (guess.nats - curve.nats).abs()
        assert bool((off[:8] < 4 * guess.stderr[:8] + 1e-3).all()), (off, guess.stderr)
        predicted, stderr = guess.kl([4, 4, 8])
        assert abs(predicted - curve.kl([4, 4, 8])[0]) < 4 * stderr


def test_a_model_is_measured_against_data():
    """Loss and entropy of a model that is not exact differ; the loss of rows is the model's -log p, position by position."""
    net, rows = TinyNet(visible_too=True), torch.randint(0, 11, (6, 4), generator=torch.Generator().manual_seed(0))
    curve = entropy_curve(net, rows, samples=6, loss=True)
    rank = samplers.random.uniform(0, torch.arange(6)[:, None], torch.arange(4)[None], 0, 8).argsort(1).argsort(1)
    for k in range(4):
        hidden = rank >= k
        logits = net.predict(rows.masked_fill(hidden, 11)).view(6, 4, 12)[:, :, :11].double()
        each = -logits.log_softmax(2).gather(2, rows[..., None]).squeeze(2)
        assert torch.allclose(curve.values[:, k], (each * hidden).sum(1) / hidden.sum(1), atol=1e-9)
    assert not torch.allclose(curve.nats, entropy_curve(net, rows, samples=6).nats, atol=0.05)


# ---------------------------------------------------------------------------------------------- plans


def compositions(n, m):
    for cut in itertools.combinations(range(1, n), m - 1):
        yield [b - a for a, b in itertools.pairwise([0, *cut, n])]


@pytest.mark.parametrize("seed", range(3))
def test_the_optimal_plan_is_the_best_of_all(seed):
    h = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for values in (h, h.sort(descending=True).values):  # an estimated curve need not decrease
        curve = EntropyCurve(values[None])
        for m in range(1, 10):
            plan = optimal_plan(curve, m)
            assert len(plan) == m and sum(plan) == 9 and min(plan) > 0
            assert curve.kl(plan)[0] == pytest.approx(min(curve.kl(c)[0] for c in compositions(9, m)), abs=1e-12)
    assert optimal_plan(curve, 100) == [1] * 9


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounded_plans_keep_their_bound_on_any_curve(bound):
    g = torch.Generator().manual_seed(1)
    for n in (1, 2, 7, 16, 100):
        before = math.inf
        for steps in (1, 2, 3, 5, 10, 20, 50, 128):
            plan, c = bounded_plan(n, steps, bound)
            assert sum(plan) == n and min(plan) > 0 and len(plan) <= steps and c <= before
            before = c
            if steps >= n:
                assert plan == [1] * n and c == 0
            elif steps > 2 * math.log2(n):
                assert c <= 4 * (1 + math.log(n)) / steps, "of the order log(n) / steps"
            jump = torch.eye(n, dtype=torch.float64).cumsum(0)  # row i: 1 up to position i, then 0
            curves = [
                *jump,
                *(torch.rand(n, generator=g, dtype=torch.float64).sort(descending=True).values for _ in range(5)),
            ]
            for h in curves:
                curve = EntropyCurve(h[None])
                most = {"tc": curve.tc, "dtc": curve.dtc, "tc+dtc": min(curve.tc, curve.dtc)}[bound]
                assert curve.kl(plan)[0] <= c * most + 1e-9


# ---------------------------------------------------------------------------------------------- predicted and measured


def of_order(p, order, sizes):
    """{string: probability}: the samples if positions are committed in this order, in groups of these sizes."""
    cuts = [0, *itertools.accumulate(sizes)]
    out = dict.fromkeys(itertools.product(*(range(1 + max(s[i] for s in p)) for i in range(len(order)))), 1.0)
    given = {}
    for start, end in itertools.pairwise(cuts):
        known = order[:start]
        for i in order[start:end]:
            for string in out:
                key = (known, tuple(string[j] for j in known), i)
                if key not in given:
                    fits = {s: w for s, w in p.items() if all(s[j] == string[j] for j in known)}
                    total = sum(fits.values())
                    given[key] = {v: w / total for v, w in marginal(fits, i).items()} if total else {}
                out[string] *= given[key].get(string[i], 0.0)
    return out


def mean_kl(p, sizes):
    """(mean over orders of KL(p || q_order), the mean of q_order)."""
    kl, mixed, orders = 0.0, {}, list(itertools.permutations(range(len(next(iter(p))))))
    for order in orders:
        q = of_order(p, order, sizes)
        kl += sum(w * math.log(w / q[s]) for s, w in p.items()) / len(orders)
        for s, w in q.items():
            mixed[s] = mixed.get(s, 0.0) + w / len(orders)
    return kl, mixed


@pytest.mark.parametrize("what", ["mirror", "shuffle", "any"])
def test_predicted_kl_is_the_mean_kl_of_the_orders(what):
    p = TABLES[what]
    curve = curve_of(p)
    for m in range(1, 5):
        plan, even = optimal_plan(curve, m), [4 // m + (k < 4 % m) for k in range(m)]
        kl, mixed = mean_kl(p, plan)
        assert curve.kl(plan)[0] == pytest.approx(kl, abs=1e-12) and kl <= mean_kl(p, even)[0] + 1e-12
        assert sum(w * math.log(w / mixed[s]) for s, w in p.items()) <= kl + 1e-12, "all orders together are no farther"


@pytest.mark.parametrize(("plan", "steps"), [("optimal", 2), ("optimal", 3), ("tc", 2), ("dtc", 3)])
def test_random_order_has_the_distribution_of_its_plan(plan, steps):
    joint = TinyJoint(length=4, vocab=2, seed=3)
    sizes = optimal_plan(joint.entropy_curve, steps) if plan == "optimal" else bounded_plan(4, steps, plan)[0]
    mixed = torch.tensor(list(mean_kl(as_table(joint), sizes)[1].values()), dtype=torch.float64)
    assert sampled_like(joint, "random_order", mixed, steps=steps, plan=plan)
    assert not sampled_like(joint, "random_order", joint.law, steps=steps, plan=plan)


def test_predicted_kl_is_measured_on_sudoku(sudoku):
    """Exact grids are scored along the orders that runs of the sampler took: E [log p(x) - log q_order(x)]."""
    problem, denoiser, curve = sudoku
    found = {}
    for plan in ("even", "optimal"):
        out = samplers.sample(denoiser, "random_order", plan=plan, steps=4, batch=600, seed=5, info=True)
        step = out.step_map()  # (600, 16): in which step a position was committed
        sizes = torch.stack([(step == k).sum(1) for k in range(int(step.max()) + 1)], 1)
        sizes = sizes[:, sizes.sum(0) > 0]
        assert bool((sizes == sizes[0]).all()) and sizes.shape[1] == 4
        x, log_q = problem.sample_truth(600, 9), torch.zeros(600, dtype=torch.float64)
        for k in sorted(set(step.flatten().tolist())):
            log_p = denoiser.predict(x.masked_fill(step >= k, 4)).double()
            log_q += (log_p.gather(2, x[..., None]).squeeze(2) * (step == k)).sum(1)
        each = -math.log(288) - log_q
        predicted = curve.kl(sizes[0].tolist())[0]
        assert abs(float(each.mean()) - predicted) < 4 * float(each.std()) / math.sqrt(600)
        found[plan] = predicted, problem.score(out)["invalid"].value
    assert found["optimal"][0] < found["even"][0] and found["optimal"][1] < found["even"][1]


@pytest.mark.parametrize("plan", ["optimal", *BOUNDS])
@pytest.mark.parametrize("name", ["random_order", "low_confidence"])
def test_plans_in_blocks_with_prompts(plan, name):
    """Row by row, also if the canvas is no longer the one that the curve is of; no step is in vain."""
    net = TinyNet()
    net.entropy_curve = torch.tensor([2.0, 1.5, 1.2, 0.4, 0.3, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
    prompts, run = (
        [[1, 2, 3], [4], []],
        {"gen_length": 9, "steps": 6, "block_length": 5, "temperature": 1.0, "plan": plan},
    )
    together = samplers.sample(net, name, prompt=prompts, **run)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(net, name, prompt=[prompt], first_row=i, **run)
        assert together.rows()[i].tolist() == alone.rows()[0].tolist() and int(together.nfe_rows[i]) == alone.nfe <= 6
    alone = samplers.sample(net, name, gen_length=9, steps=4, plan=plan)
    assert alone.nfe == samplers.create(name, plan=plan).expected_nfe(9, 4)


def test_a_stopped_or_constrained_block_is_filled(sudoku):
    denoiser = sudoku[1]

    def first_row(state):
        fix = torch.full_like(state.x, -1)
        fix[:, :4] = torch.arange(4)
        return samplers.Constraint(fix=fix) if int(state.step.max()) == 0 else None

    out = samplers.sample(denoiser, "random_order", plan="optimal", steps=4, batch=4, constrain=first_row)
    assert bool((out.x[:, :4] == torch.arange(4)).all()) and bool((out.x < 4).all()) and out.nfe <= 4


def test_errors_say_how_to_get_a_curve():
    net = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 5), vocab_size=5, mask_id=4)
    with pytest.raises(
        OptionError, match=r"plan='optimal' of sampler 'random_order' needs.*schedule.entropy_curve\(denoiser, data\)"
    ):
        samplers.sample(net, "random_order", gen_length=4, plan="optimal")
    with pytest.raises(OptionError, match=r"Or a plan: even, floor.eps., optimal, tc"):
        samplers.create("random_order", plan="optimum")
    with pytest.raises(OptionError, match="sum 3 are needed"):
        EntropyCurve(torch.zeros(1, 3, dtype=torch.float64)).kl([1, 1])
    with pytest.raises(OptionError, match="too many subsets"):
        exact_curve(torch.zeros(1, 40, dtype=torch.int64))
    with pytest.raises(OptionError, match="n >= samples = 64"):
        entropy_curve(net, torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(OptionError, match="bound must be one of 'tc'"):
        bounded_plan(4, 2, "best")


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("curve", [[], [1.0, math.nan], [math.inf, 0.0], torch.ones(2, 3), "abc"])
def test_a_plan_needs_a_curve(curve):
    with pytest.raises(OptionError, match="optimal_plan: a curve is"):
        optimal_plan(curve, 2)


def test_as_many_steps_as_positions_are_planned_at_once():
    assert optimal_plan(torch.ones(20_000), 20_000) == [1] * 20_000


@pytest.mark.parametrize(
    ("support", "p", "says"),
    [
        (torch.zeros(0, 3, dtype=torch.int64), None, "strings .n, L. int64 of tokens from 0"),
        (torch.rand(3, 3), None, "strings .n, L. int64 of tokens from 0"),
        (torch.tensor([[-1, 0], [0, 1]]), None, "strings .n, L. int64 of tokens from 0"),
        (torch.tensor([[0, 1], [0, 1]]), None, "a string is there twice"),
        (torch.tensor([[0, 1], [1, 1]]), torch.ones(3), "a probability, 0 or more, for each of the 2 strings"),
        (
            torch.tensor([[0, 1], [1, 1]]),
            torch.tensor([-1.0, 2.0]),
            "a probability, 0 or more, for each of the 2 strings",
        ),
        (torch.tensor([[0, 1], [1, 1]]), torch.tensor([math.nan, 2.0]), "a probability, 0 or more, for each of the 2"),
    ],
)
def test_a_support_that_is_none(support, p, says):
    with pytest.raises(OptionError, match=f"exact_curve: {says}"):
        exact_curve(support, p)


def test_models_and_data_that_have_no_curve():
    rows = torch.tensor([[0, 1, 2], [2, 1, 0]])
    net = {"vocab_size": 3, "mask_id": 3}
    nan = samplers.TokenDenoiser.wrap(lambda x: torch.full((*x.shape, 3), torch.nan), **net)
    with pytest.raises(samplers.DenoiserError, match="entropy_curve: denoiser '<lambda>' gave a NaN"):
        entropy_curve(nan, rows, samples=2)
    even = samplers.TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 3), **net)
    for bad in (3, -1, 7):
        with pytest.raises(OptionError, match=f"entropy_curve: data hold {bad} at row 0, position 1"):
            entropy_curve(even, torch.tensor([[0, bad, 2], [2, 1, 0]]), samples=2)
    told = samplers.TokenDenoiser.wrap(lambda x, previous: previous, self_conditioned=True, **net)
    with pytest.raises(OptionError, match="depends on its last logits"):
        entropy_curve(told, rows, samples=2)
    with pytest.raises(OptionError, match="a TokenDenoiser, not MixtureDenoiser"):
        entropy_curve(samplers.problems.create("mixture").denoiser(), rows, samples=2)
    curve = entropy_curve(even, rows, samples=2)
    for wrong in (curve, [1.0, 1.0], torch.ones(0)):  # the curve itself is not its tensor
        even.entropy_curve = wrong
        with pytest.raises(OptionError, match=r"must be a tensor \(L,\) of finite numbers, such as .*nats, not"):
            samplers.sample(even, "random_order", plan="optimal", gen_length=3)
