"""Solvers of the masked process: their laws written down, their orders measured without noise, and the samplers against both."""

import math

import numpy as np
import pytest
import torch
from laws import Chain, LeaveOneOut, mild, rows_are_what_they_are_alone, sampled_like, slopes

import samplers
from samplers.random import DRAW_TOKEN, uniform
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

SIN2 = {"a": lambda u: math.sin(math.pi * u / 2) ** 2, "slope": lambda u: math.pi / 2 * math.sin(math.pi * u)}
LINEAR = {"a": lambda u: u, "slope": lambda u: 1.0}


# ---------------------------------------------------------------------------------------------- the update formulas


def exact_times(chain, schedule, steps):
    """One forward a step, the schedule's own share of the positions."""

    def step(x, k):
        a, b = (schedule["a"](j / steps) for j in (k, k + 1))
        return chain.leap(x, 1.0 if k + 1 == steps else (b - a) / (1 - a), chain.p(x))

    return step


def frozen(chain, schedule, steps, chance):
    """One forward a step; chance of the mean number of jumps h a'(u) / (1 - a(u)) at the left end."""

    def step(x, k):
        u = k / steps
        mean = schedule["slope"](u) / (1 - schedule["a"](u)) / steps
        return chain.leap(x, 1.0 if k + 1 == steps else chance(mean), chain.p(x))

    return step


def trapezoidal(chain, schedule, theta, steps):
    """Two forwards a step of two grid points, one in a last step alone; rates integrated."""
    alpha_1 = 1 / (2 * theta * (1 - theta))
    alpha_2 = ((1 - theta) ** 2 + theta**2) / (2 * theta * (1 - theta))

    def step(x, k):
        p = chain.p(x)
        if 2 * k + 1 == steps:
            return chain.leap(x, 1.0, p)
        a, b = (schedule["a"](j / steps) for j in (2 * k, 2 * k + 2))
        middle, out = a + theta * (b - a), {}
        for y, weight in chain.leap(x, (middle - a) / (1 - a), p).items():
            q = np.maximum(alpha_1 * chain.p(y) - alpha_2 * p, 0)
            q = q / np.maximum(q.sum(1, keepdims=True), 1e-300)
            for z, chance in chain.leap(y, (b - middle) / (1 - middle), q).items():
                out[z] = out.get(z, 0.0) + weight * chance
        return out

    return step


def rk2(chain, schedule, theta, steps):
    """A position that appears is drawn from the mixture of p and p*, given trial tokens at those that do not."""

    def step(x, k):
        p, mask = chain.p(x), chain.mask
        a, b = (schedule["a"](min(j / steps, 1.0)) for j in (2 * k, 2 * k + 2))
        rho, trial = (b - a) / (1 - a), theta * (b - a) / (1 - a)
        which = chain.moves(
            {v: 1.0} if v != mask else {"here": rho, "tried": (1 - rho) * trial, "not": (1 - rho) * (1 - trial)}
            for v in x
        )
        out = {}
        for fate, weight in which.items():
            tried = [i for i, f in enumerate(fate) if f == "tried"]
            for y, chance in chain.leap(x, [float(i in tried) for i in range(chain.length)], p).items():
                q = np.maximum((1 - 0.5 / theta) * p + 0.5 / theta * chain.p(y), 0)
                here = [float(f == "here") for f in fate]
                for z, token in chain.leap(x, here, q / q.sum(1, keepdims=True)).items():
                    out[z] = out.get(z, 0.0) + weight * chance * token
        return out

    return step


def published(chain, theta, steps, method):
    """The two theta methods as they are published, linear schedule, rates frozen at both ends of the first stage."""
    weights = {"trapezoidal": (1 / (2 * theta * (1 - theta)),) * 2, "rk2": (0.5 / theta,) * 2}[method][0]

    def step(x, k):
        p, u, h = chain.p(x), k / steps, 1 / steps
        if k + 1 == steps:
            return chain.leap(x, 1.0, p)
        now, later, out = 1 / (1 - u), 1 / (1 - u - theta * h), {}
        for y, weight in chain.leap(x, 1 - math.exp(-now * theta * h), p).items():
            still = np.array([[float(v == chain.mask)] for v in y])  # what the first leap revealed has rate 0
            rate = weights * later * chain.p(y) * still - (weights - 1) * now * p
            rate = np.maximum(rate, 0) * (h if method == "rk2" else (1 - theta) * h)
            total = rate.sum(1)
            q = rate / np.maximum(total[:, None], 1e-300)
            for z, chance in chain.leap(x if method == "rk2" else y, 1 - np.exp(-total), q).items():
                out[z] = out.get(z, 0.0) + weight * chance
        return out

    return step


FORMULAS = {
    "ancestral": lambda c, n: (exact_times(c, LINEAR, n), n),
    "radd(sin^2)": lambda c, n: (exact_times(c, SIN2, n), n),
    "tau_leaping": lambda c, n: (frozen(c, LINEAR, n, lambda m: 1 - math.exp(-m)), n),
    "tau_leaping(one)": lambda c, n: (frozen(c, LINEAR, n, lambda m: m * math.exp(-m)), n),
    "tau_leaping(sin^2)": lambda c, n: (frozen(c, SIN2, n, lambda m: 1 - math.exp(-m)), n),
    "euler_masked": lambda c, n: (frozen(c, LINEAR, n, lambda m: min(m, 1.0)), n),
    "euler_masked(sin^2)": lambda c, n: (frozen(c, SIN2, n, lambda m: min(m, 1.0)), n),
    "theta_trapezoidal": lambda c, n: (trapezoidal(c, LINEAR, 0.5, n), -(-n // 2)),
    "theta_trapezoidal(0.3)": lambda c, n: (trapezoidal(c, SIN2, 0.3, n), -(-n // 2)),
    "theta_rk2": lambda c, n: (rk2(c, LINEAR, 0.5, n), -(-n // 2)),
    "theta_rk2(0.3)": lambda c, n: (rk2(c, SIN2, 0.3, n), -(-n // 2)),
}
OPTIONS = {
    "radd(sin^2)": {"schedule": "sin^2"},
    "tau_leaping(one)": {"jumps": "one"},
    "tau_leaping(sin^2)": {"schedule": "sin^2"},
    "euler_masked(sin^2)": {"schedule": "sin^2"},
    "theta_trapezoidal(0.3)": {"schedule": "sin^2", "theta": 0.3},
    "theta_rk2(0.3)": {"schedule": "sin^2", "theta": 0.3},
}


def law(chain, formula, steps):
    step, count = FORMULAS[formula](chain, steps)
    return chain.run(step, count)


# ---------------------------------------------------------------------------------------------- the samplers are the formulas


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_sampler_is_its_formula(formula, steps):
    problem = TinyJoint(3, 2, skew=1.5)
    chain = Chain(problem)
    expected = law(chain, formula, steps)
    name, options = formula.split("(")[0], OPTIONS.get(formula, {})
    assert sampled_like(problem, name, expected, steps=steps, **options)
    # And the test would see it if it were not: the true law is further off than 20,000 samples forgive.
    assert not sampled_like(problem, name, chain.law, steps=steps, **options)


@pytest.mark.parametrize("formula", ["theta_trapezoidal", "theta_rk2", "tau_leaping"])
def test_blocks_are_processes_of_their_own(formula):
    """Two blocks of two positions and two forwards: the formula runs in each, given what the first made."""
    problem = TinyJoint(4, 2, seed=3)
    chain = Chain(problem)
    step, count = FORMULAS[formula](chain, 2)

    def in_blocks(x, k):
        chain.inside = range(2) if k < count else range(2, 4)
        return step(x, k % count)

    assert sampled_like(problem, formula, chain.run(in_blocks, 2 * count), steps=4, block_length=2)


def test_one_seed_one_order():
    """Where the probabilities of appearing are the same, so are the tokens: euler_masked is radd under the linear schedule."""
    run = {"gen_length": 24, "batch": 6, "steps": 10, "seed": 4}
    radd = samplers.sample(TinyNet(), "radd", **run)
    euler = samplers.sample(TinyNet(), "euler_masked", **run)
    assert (euler.x == radd.x).all() and euler.nfe == radd.nfe
    assert (samplers.sample(TinyNet(), "tau_leaping", **run).x != radd.x).any()


# ---------------------------------------------------------------------------------------------- orders, without noise

DOUBLED = (8, 16, 32, 64)


@pytest.fixture(scope="module")
def chain():
    """Three positions that depend on each other so mildly that no reveal takes two fifths off a probability."""
    made = Chain(mild(3, 2, 0.25))
    ratios = []
    for y in made.strings:
        for i in range(3):
            ratios.append(made.p((*y[:i], 2, *y[i + 1 :]))[i] / made.p(made.start())[i])
    assert np.min(ratios) > 0.6
    return made


@pytest.mark.parametrize("formula", [f for f in FORMULAS if not f.startswith("theta")])
def test_one_forward_a_step_is_first_order(chain, formula):
    measured = slopes([chain.tv(law(chain, formula, n)) for n in DOUBLED])
    assert abs(measured[-1] - 1) < 0.08 and max(measured) < 1.15, measured


@pytest.mark.parametrize("formula", ["theta_trapezoidal", "theta_trapezoidal(0.3)"])
def test_theta_trapezoidal_is_second_order(chain, formula):
    """In the number of steps, and so of forwards, with no correction at the end of the grid."""
    errors = [chain.tv(law(chain, formula, n)) for n in DOUBLED]
    assert abs(slopes(errors)[-1] - 2) < 0.02 and min(slopes(errors)) > 1.9, (errors, slopes(errors))
    # Odd counts end in a plain step, which costs no order.
    odd = slopes([chain.tv(law(chain, formula, n + 1)) for n in DOUBLED])
    assert odd[-1] > 1.85, odd
    ancestral = [chain.tv(law(chain, "ancestral", n)) for n in DOUBLED]
    assert all(e < 0.3 * a for e, a in zip(errors, ancestral)), "and it is worth its forwards"


def test_two_positions_are_exact():
    """What two positions lose to the first stage the second gives back: no error at all, at two forwards."""
    for theta, spread in ((0.5, 0.34), (0.3, 0.26)):
        problem = mild(2, 3, spread)
        chain = Chain(problem)
        for steps in (2, 4, 8):
            assert chain.tv(chain.run(trapezoidal(chain, LINEAR, theta, steps), steps // 2)) < 1e-14
    problem = mild(2, 3, 0.34)
    assert sampled_like(problem, "theta_trapezoidal", problem.law, steps=2, rows=100_000)
    assert not sampled_like(problem, "ancestral", problem.law, steps=2, rows=100_000)


def test_theta_rk2_is_first_order(chain):
    """As its docstring says, in our form and in the published one: pairs of one step know nothing of each other."""
    for theta in (0.3, 0.5):
        ours = slopes([chain.tv(chain.run(rk2(chain, LINEAR, theta, n), -(-n // 2))) for n in DOUBLED])
        theirs = slopes([chain.tv(chain.run(published(chain, theta, n, "rk2"), n)) for n in DOUBLED])
        assert abs(ours[-1] - 1) < 0.05 and abs(theirs[-1] - 1) < 0.05, (ours, theirs)
        assert max(ours + theirs) < 1.1


def test_frozen_rates_cost_the_trapezoidal_method_a_part_of_its_order(chain):
    """The published form on the even grid: 1/(1 - u) is steep at the end, and log(steps)/steps^2 looks like order 1.8."""
    errors = [chain.tv(chain.run(published(chain, 0.5, n, "trapezoidal"), n)) for n in DOUBLED]
    assert all(1.65 < s < 1.85 for s in slopes(errors)), slopes(errors)
    ours = [chain.tv(law(chain, "theta_trapezoidal", 2 * n)) for n in DOUBLED]
    assert all(o < 0.1 * e for o, e in zip(ours, errors))


def test_where_tokens_forbid_each_other_the_trapezoidal_method_is_first_order():
    """Cut-off rates: still less error than ancestral sampling with as many forwards."""
    chain = Chain(TinyJoint(3, 2, skew=1.5))
    errors = [chain.tv(law(chain, "theta_trapezoidal", n)) for n in DOUBLED]
    assert all(abs(s - 1) < 0.1 for s in slopes(errors)), slopes(errors)
    assert all(e < 0.6 * chain.tv(law(chain, "ancestral", n)) for e, n in zip(errors, DOUBLED))


# ---------------------------------------------------------------------------------------------- what a model sees, and costs


def test_times_of_the_stages():
    """A time-conditioned model sees the expected share still masked: at a step's beginning, and theta of its mass later."""
    for theta in (0.5, 0.25):
        for name in ("theta_trapezoidal", "theta_rk2"):
            denoiser = TinyNet(time_conditioned=True)
            samplers.sample(denoiser, name, theta=theta, gen_length=200, steps=5, batch=2, schedule="sin^2")
            a = [SIN2["a"](k / 5) for k in range(6)]
            expected = [
                1 - a[0],
                1 - a[0] - theta * (a[2] - a[0]),
                1 - a[2],
                1 - a[2] - theta * (a[4] - a[2]),
                1 - a[4],
            ]
            assert [round(float(t[0]), 9) for t in denoiser.times] == [round(e, 9) for e in expected]


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tau_leaping", {"jumps": "one", "schedule": "sin^2"}),
        ("euler_masked", {"schedule": "1-cos"}),
        ("theta_trapezoidal", {"theta": 0.3, "schedule": "1-cos"}),
        ("theta_rk2", {"theta": 0.2, "schedule": "sin^2"}),
    ],
)
def test_expected_forwards(name, options, steps):
    """The kit holds the defaults to it; here the options."""
    sampler = samplers.create(name, **options)
    out = samplers.sample(TinyNet(vocab=3, reach=1), sampler, gen_length=20, batch=1500, steps=steps)
    counted = out.nfe_rows.double()
    assert (
        abs(float(counted.mean()) - sampler.expected_nfe(20, steps)) < 4 * float(counted.std()) / math.sqrt(1500) + 1e-9
    )
    assert out.nfe <= steps


# ---------------------------------------------------------------------------------------------- first hitting


def extrapolated(problem):
    """The law of four positions in two groups of two, the second group's later token from the line.

    Its place is 1/2: one of the two positions between the predictions' own is visible.
    """
    import itertools

    chain = Chain(problem)
    orders, final = list(itertools.permutations(range(4))), np.zeros(len(chain.strings))
    for order in orders:
        then = chain.p(chain.start())
        for x, weight in chain.leap(chain.start(), [float(i in order[:2]) for i in range(4)], then).items():
            now, (third, fourth) = chain.p(x), order[2:]
            line = np.maximum(now[fourth] + 0.5 * (now[fourth] - then[fourth]), 0)
            for y, chance in chain.leap(x, 1.0, {third: now[third], fourth: line / line.sum()}).items():
                final[chain.strings.index(y)] += weight * chance / len(orders)
    return final


def grouped(problem):
    """The same with both tokens of a group from one prediction."""
    chain, final = Chain(problem), 0.0
    for first in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):

        def step(x, k, first=first):
            return chain.leap(x, [float(k or i in first) for i in range(4)], chain.p(x))

        final = final + chain.run(step, 2) / 6
    return final


@pytest.mark.parametrize("problem", [mild(4, 2, 0.5), TinyJoint(4, 2, skew=1.0)], ids=["mild", "strong"])
def test_extrapolation_is_the_line_and_has_less_error(problem):
    parallel, line, chain = grouped(problem), extrapolated(problem), Chain(problem)
    assert chain.tv(line) < 0.8 * chain.tv(parallel)
    assert sampled_like(problem, "first_hitting", parallel, steps=2)
    assert sampled_like(problem, "first_hitting", line, steps=2, method="extrapolation")
    assert not sampled_like(problem, "first_hitting", parallel, steps=2, method="extrapolation", rows=100_000)


class Pair(TinyJoint):
    """Positions 0 and 1 are two dependent bits, all others fair coins.

    Args:
        repeats: whether it says of a visible token that it stands there, or what it would say if it were masked.
    """

    def __init__(self, length, repeats=True):
        super().__init__(2, 2)
        self.length, self.repeats = length, repeats
        self.joint = torch.tensor([[0.36, 0.14], [0.14, 0.36]], dtype=torch.float64)
        self.product = self.joint.sum(1, keepdim=True) * self.joint.sum(0)

    def predict(self, x, t=None, *, rows=None, cache=None):
        p = torch.full((*x.shape, 3), 0.5, dtype=torch.float64)
        p[..., 2] = 0.0
        for i, j, joint in ((0, 1, self.joint), (1, 0, self.joint.T)):
            given = torch.cat(
                [joint / joint.sum(0), joint.sum(1, keepdim=True)], 1
            )  # the last column: the other is masked
            p[:, i, :2] = given[:, x[:, j]].T
        if self.repeats:
            seen = torch.nn.functional.one_hot(x, 3).double()
            p = torch.where((x == self.mask_id)[..., None], p, seen)
        return p.log().float()[rows]

    def missed(self, method, steps, rows=60_000):
        """The share e of J - P that samples of (1 - e) J + e P lack, and its standard error."""
        x = samplers.sample(self, "first_hitting", batch=rows, seed=2, temperature=1.0, steps=steps, method=method).x
        seen = torch.bincount(x[:, 0] * 2 + x[:, 1], minlength=4).double().view(2, 2) / rows
        off = self.joint - self.product
        return 1 - float(((seen - self.product) * off).sum() / (off**2).sum()), 0.25 / float(off.max()) / math.sqrt(
            rows
        )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_extrapolation_is_second_order_in_the_number_of_groups(steps):
    """The closed forms of docs/solvers.md: N groups of m miss (m - 1) / (n - 1) of a pair's dependence; by the line, that / N."""
    n = 16
    m = n // steps
    missed, error = Pair(n).missed("parallel", steps)
    assert abs(missed - (m - 1) / (n - 1)) < 4 * error
    missed, error = Pair(n).missed("extrapolation", steps)
    assert abs(missed - (m - 1) / (n - 1) / steps) < 4 * error


@pytest.mark.parametrize("steps", [2, 4])
def test_the_corrector_gives_back_most_of_what_a_group_misses(steps):
    """Two bits of a group at the places a and b of their line: each takes the other's draft with probability 2 a d and 2 b d.

    d is how much one tells of the other. That gives back a + b - 4 d a b of the dependence, on average about (m - 1) / m of it,
    in every group but the last. With a model that repeats visible tokens nothing changes.
    """
    n, d = 16, 0.22
    m = n // steps
    places = [(a / m, b / m) for b in range(m) for a in range(b)]
    back = sum(a + b - 4 * d * a * b for a, b in places) / len(places)
    missed, error = Pair(n, repeats=False).missed("predictor_corrector", steps)
    assert abs(missed - (m - 1) / (n - 1) * (1 - back * (steps - 1) / steps)) < 4 * error
    assert missed < 0.7 * (m - 1) / (n - 1)
    missed, error = Pair(n).missed("predictor_corrector", steps)
    assert abs(missed - (m - 1) / (n - 1)) < 4 * error


def test_extrapolation_has_less_error_where_all_tokens_depend_on_each_other():
    problem = TinyJoint(6, 2, skew=1.0, seed=1)
    tv = {}
    for method in ("parallel", "extrapolation"):
        x = samplers.sample(problem, "first_hitting", batch=20_000, steps=3, seed=2, method=method).x
        seen = torch.bincount(problem.index(x), minlength=64).double() / len(x)
        tv[method] = 0.5 * float((seen - problem.law).abs().sum())
    assert tv["extrapolation"] < 0.75 * tv["parallel"], tv


@pytest.mark.parametrize("method", ["extrapolation", "predictor_corrector"])
def test_methods_of_first_hitting_agree_one_at_a_time(method):
    problem = LeaveOneOut(4, 2)
    run = {"batch": 400, "seed": 5}
    plain = samplers.sample(problem, "first_hitting", **run)
    other = samplers.sample(problem, "first_hitting", method=method, **run)
    assert (plain.x == other.x).all() and plain.nfe == other.nfe == 4


def test_the_corrector_changes_nothing_that_a_model_repeats():
    problem = TinyJoint(6, 3, skew=1.0)
    run = {"batch": 300, "seed": 5, "steps": 3}
    plain = samplers.sample(problem, "first_hitting", **run)
    corrected = samplers.sample(problem, "first_hitting", method="predictor_corrector", **run)
    assert (plain.x == corrected.x).all() and plain.nfe == corrected.nfe == 3


def test_the_corrector_draws_the_last_group_again_from_the_line():
    """By hand: the old uniform, in the CDF of the line at the token's own place, half way between the two predictions."""
    problem, rows, seed = LeaveOneOut(4, 3, skew=1.5), 200, 9
    out = samplers.sample(
        problem, "first_hitting", batch=rows, steps=2, seed=seed, method="predictor_corrector", trace=True
    )
    first, end = out.trace[1], out.trace[-1]
    chain, changed = Chain(problem), 0
    for r in range(rows):
        draft, times = tuple(first.x[r].tolist()), first.time[r].numpy()
        order = np.argsort(times)
        group, second = sorted(order[:2].tolist()), order[1]
        assert [i for i in range(4) if draft[i] != 3] == group
        then, now = chain.p(chain.start()), chain.p(draft)
        for i in group:
            place = 0.5 * (i == second)
            cdf = np.cumsum((1 - place) * then[i] + place * now[i])
            u = float(uniform(seed, r, i, 0, DRAW_TOKEN))
            assert int(end.x[r, i]) == int(np.searchsorted(cdf, u * cdf[-1], side="right"))
            changed += int(end.x[r, i]) != draft[i]
    assert changed > 3, "the case is of interest"


OTHERS = [
    ("tau_leaping", {"jumps": "one"}),
    ("euler_masked", {"schedule": "1-cos"}),
    ("theta_trapezoidal", {"theta": 0.3, "schedule": "beta(0.9,0.3)"}),
    ("theta_rk2", {"theta": 0.25, "schedule": "1-cos"}),
    ("first_hitting", {"method": "extrapolation"}),
    ("first_hitting", {"method": "predictor_corrector"}),
]


@pytest.mark.parametrize(("name", "options"), OTHERS, ids=str)
@pytest.mark.parametrize(
    "setting", [{"steps": 5}, {"block_length": 5, "steps": 7}, {"cfg_scale": 1.5, "steps": 40}], ids=str
)
def test_options_keep_what_the_kit_asks_of_defaults(name, options, setting):
    denoiser = TinyNet(visible_too=options.get("method") == "predictor_corrector")
    rows_are_what_they_are_alone(denoiser, name, **options, **setting)


if (
    __name__ == "__main__"
):  # the table of docs/solvers.md: total variation at 8, 16, 32, 64 forwards, and the last slope
    for label, problem in (("mild", mild(3, 2, 0.25)), ("strong", TinyJoint(3, 2, skew=1.5))):
        for formula in FORMULAS:
            errors = [Chain(problem).tv(law(Chain(problem), formula, n)) for n in DOUBLED]
            print(f"{label:7} {formula:24}", *(f"{e:9.2e}" for e in errors), f"{slopes(errors)[-1]:6.2f}")
