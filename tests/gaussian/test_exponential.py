"""Deterministic solvers in lambda and in sigma / alpha: coefficients, orders, identities, and the same numbers as other libraries."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch

import samplers
from samplers import GaussianDenoiser, problems
from samplers.gaussian.exponential import integral_weights, polynomial_weights, scaled_phi
from samplers.noise_schedules import Flow, Point
from samplers.testing.tiny import TinyMixture

pytestmark = pytest.mark.usefixtures("one_thread")

PROBLEM = problems.create("mixture")
NAMES = (
    "deis",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "gradient_estimation",
    "ipndm",
    "lms",
    "res_multistep",
    "unipc",
)


class Exact:
    """The exact denoiser of `mixture` at any point, whatever schedule it belongs to. It counts its calls."""

    def __init__(self):
        self.denoiser, self.calls = PROBLEM.denoiser("gaussian"), 0

    def __call__(self, x, at):
        self.calls += 1
        one = torch.ones(len(x), 1, dtype=torch.float64)
        return self.denoiser.posterior_mean(x, at.alpha * one, at.sigma * one)

    def pair(self, x, at):
        return (self(x, at),) * 2


class Guided(Exact):
    """Two answers: the guided x_0 is the exact one and half of it, and the other is exact."""

    def pair(self, x, at):
        x0 = self(x, at)
        return 1.5 * x0, x0


def points_of(rho, variance_preserving=False):
    """Points of given sigma / alpha; their times are not used."""
    alphas = [1 / math.hypot(1, r) if variance_preserving else 1.0 for r in rho]
    return tuple(Point(r, a, r * a, -math.log(r)) for r, a in zip(rho, alphas))


def begun(sampler, points, x, **fields):
    """The sampler's state at the first of the points. The schedule is `edm` if alpha is 1, else `vp_linear`."""
    schedule = "edm" if points[-1].alpha == 1 else "vp_linear"
    states = samplers.stream(PROBLEM.denoiser("gaussian", schedule=schedule), sampler, batch=len(x), steps=3)
    state = sampler.init(next(iter(states)).canvas)
    return dataclasses.replace(state, points=tuple(points), x=x, **fields)


def walk(name, points, x, predict=None, evaluations=None, close=False, **options):
    """x at the last of the points, or the x_0 that is predicted there."""
    sampler, predict = samplers.create(name, **options), predict or Exact()
    state = begun(sampler, points, x)
    if hasattr(state, "evaluations"):
        state = dataclasses.replace(state, evaluations=evaluations or (1,) * (len(points) - 1))
    for s, t in itertools.pairwise(points):
        state = sampler.update(predict, state, s, t)
    return predict(state.x, points[-1]) if close else state.x


def normal(rows, seed=0):
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- coefficients


def test_scaled_phi_at_all_sizes():
    """Against the recursion in 80 digits."""
    mp = pytest.importorskip("mpmath")
    sizes = [1e-8, 1e-4, 0.1, 1.0, 5.0, 20.0, 39.0, 41.0, 300.0]
    with mp.workdps(80):
        for z in [0.0, *sizes, *(-z for z in sizes)]:
            exact = mp.mpf(1)  # k! phi_k at 0
            if z:
                exact = mp.expm1(z) / z
            for k in range(1, 8):
                assert abs(scaled_phi(k, z) / exact - 1) < 1e-14, (k, z)
                if z:
                    exact = (exact - 1) * (k + 1) / z


NODES = ([-0.7], [1.0], [-1.0, -2.5], [1.0, -0.8], [-0.4, -1.5, -1.9], [1.0, -1.0, -2.0, -3.5])


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.3, 2.0, 8.0, -1e-4, -0.3, -3.0])
def test_weights_are_integrals_of_the_interpolating_polynomial(h):
    """Against antiderivatives in 80 digits; offsets are multiples of h."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(80):
        for ratios in NODES:
            offsets = [r * h for r in ratios]
            for j, own in enumerate(offsets):
                c = [mp.mpf(1)]  # of the Lagrange polynomial, constant first
                for other in [mp.mpf(0), *(mp.mpf(o) for i, o in enumerate(offsets) if i != j)]:
                    scale = mp.mpf(own) - other
                    c = [(a - other * b) / scale for a, b in zip([0, *c], [*c, 0])]
                plain = sum(ck * mp.mpf(h) ** (k + 1) / (k + 1) for k, ck in enumerate(c))
                got = polynomial_weights(h, offsets)
                assert abs(got[j] - plain) < 1e-12 * sum(map(abs, got)), (h, ratios)
                # int_0^h e^{u - h} u^k du = h^k - k (that of k - 1), by parts
                moments = [-mp.expm1(-mp.mpf(h))]
                for k in range(1, len(c)):
                    moments.append(mp.mpf(h) ** k - k * moments[-1])
                exact = sum(ck * m for ck, m in zip(c, moments))
                got = integral_weights(h, offsets)
                assert abs(got[j] - exact) < 1e-12 * sum(map(abs, got)), (h, ratios)


def test_weights_of_equal_steps_are_those_of_adams_and_bashforth():
    table = {1: [-1 / 2], 2: [-16 / 12, 5 / 12], 3: [-59 / 24, 37 / 24, -9 / 24]}
    for past, weights in table.items():
        assert polynomial_weights(1.0, [-1.0 - k for k in range(past)]) == pytest.approx(weights, abs=1e-14)


# ---------------------------------------------------------------------------------------------- orders

ORDERS = [
    *(("deis", {"order": p}, p) for p in (1, 2, 3, 4)),
    *(("res_multistep", {"order": p}, p) for p in (1, 2, 3, 4)),
    *(("lms", {"order": p}, p) for p in (1, 2, 3, 4)),
    ("ipndm", {"order": 2}, 2),
    ("ipndm", {"order": 4}, 2),
    ("ipndm", {"order": 3, "variable": True}, 3),
    ("gradient_estimation", {}, 1),
    ("gradient_estimation", {"gamma": 1.5}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m", {"solver_type": "taylor"}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_3m", {}, 3),
    ("dpmpp_3m", {"published": True}, 2),  # the field's formula is not of order 3
    *(
        ("dpm_solver", {"order": p, "method": m, "prediction": of, "solver_type": form}, p)
        for p in (1, 2, 3)
        for m in ("multistep", "fixed")
        for of in ("x0", "noise")
        for form in (("midpoint", "taylor") if p == 2 or m == "fixed" else ("midpoint",))
    ),
    *(
        ("unipc", {"order": p, "prediction": of, "corrector": corrector}, p + corrector)
        for p in (1, 2, 3)
        for of in ("x0", "noise")
        for corrector in (False, True)
    ),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
    ("unipc", {"order": 2, "variant": "bh1", "prediction": "noise", "corrector": False}, 2),
]


@pytest.fixture(scope="module")
def start_and_truth():
    denoiser = PROBLEM.denoiser("gaussian")
    x = next(iter(samplers.stream(denoiser, "ddim", batch=8, steps=6, seed=1, end="t_end"))).x
    return denoiser, x, PROBLEM.truth(x)


@pytest.mark.parametrize("grid", ["logsnr", "time_quadratic"])
@pytest.mark.parametrize(("name", "options", "order"), ORDERS, ids=str)
def test_order(name, options, order, grid, start_and_truth):
    if order == 4 and grid != "logsnr":
        pytest.skip("the first steps, of orders 1 to 3, have larger errors there; see test_order_of_one_step")
    denoiser, _, truth = start_and_truth
    single = name == "dpmpp_2s" or options.get("method") == "fixed"
    stages = options.get("order", 2) if single else 1
    errors = []
    for steps in (96, 192) if stages == 3 else (192, 384):
        run = {"grid": grid, "end": "t_end", "steps": stages * steps, "batch": 8, "seed": 1}
        out = samplers.sample(denoiser, name, **run, **options)
        assert out.nfe == stages * steps
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
    slope = math.log2(errors[0] / errors[1])
    published = options.get("published") and grid != "logsnr"  # two errors of opposite sign are near each other there
    assert abs(slope - order) < (0.25 if published else 0.15), f"order {slope:.2f} from errors {errors}"


MULTISTEP = [
    *(("deis", {"order": p}, p) for p in (2, 3, 4)),
    *(("lms", {"order": p}, p) for p in (2, 3, 4)),
    *(("res_multistep", {"order": p}, p) for p in (2, 3, 4)),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_3m", {}, 3),
    ("unipc", {"order": 5, "prediction": "noise"}, 5),
    ("unipc", {"order": 5}, 5),
]


@functools.cache
def exact_path(scale):
    """Uneven points, and x on one path of the ODE at each of them."""
    schedule, x = samplers.noise_schedule("vp_linear"), normal(6)
    points = [Point.at(schedule, lam=0.4 + scale * u) for u in (-3.7, -3.0, -2.1, -1.3, 0.0, 0.9)]
    begin = Point.at(schedule, lam=-2.0)
    return points, [PROBLEM.truth(x, p.t, t_start=begin.t) for p in points]


@pytest.mark.parametrize(("name", "options", "order"), MULTISTEP, ids=str)
def test_order_of_one_step(name, options, order):
    """From exact past values on uneven nodes, one step of length h has an error of h^(order + 1)."""
    sampler, predict, errors = samplers.create(name, growth=None, **options), Exact(), []
    noise = name in ("deis", "lms") or options.get("prediction") == "noise"
    for scale in (0.06, 0.03):
        points, exact = exact_path(scale)
        history = []
        for p, at in zip(points[:-2], exact):
            x0 = predict(at, p)
            history.append((p.lam, (at - p.alpha * x0) / p.sigma if noise else x0))
        s, t = points[-2:]
        out = sampler.update(predict, begun(sampler, (s, t), exact[-2], history=tuple(history)), s, t).x
        errors.append(float((out - exact[-1]).pow(2).mean().sqrt()))
    slope = math.log2(errors[0] / errors[1])
    assert abs(slope - order - 1) < 0.3, f"order {slope:.2f} from errors {errors}"


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "deis", "lms", "unipc", "dpm_solver"])
def test_inversion_has_the_order_as_well(name, start_and_truth):
    """Up in noise from the end of the ODE's path: back to where it began."""
    denoiser, x, truth = start_and_truth
    options = {} if name in ("dpmpp_2m", "dpmpp_2s") else {"order": 2}
    order = 3 if name == "unipc" else 2
    stages = 2 if name == "dpmpp_2s" else 1
    schedule, errors = denoiser.schedule, []
    for steps in (96, 192):
        run = {"end": "t_end", "t_start": schedule.t_min, "t_end": schedule.t_max, "steps": stages * steps, "batch": 8}
        out = samplers.sample(denoiser, name, start=truth, grid="logsnr", **run, **options)
        errors.append(float((out.x - x).pow(2).mean().sqrt()))
    slope = math.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.3 and errors[1] < 5e-3, f"order {slope:.2f} from errors {errors}"


# ---------------------------------------------------------------------------------------------- identities

SIX = tuple(map(float, (40, 9, 4, 1.1, 0.4, 0.06)))


def same(*runs, **common):
    x = 40 * normal(5)
    points = points_of(SIX)
    first, *others = (walk(name, points, x, growth=None, **common, **o) for name, o in runs)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-10)


def test_the_first_order_methods_are_one():
    x = 40 * normal(5)
    points = points_of(SIX)
    ddim = walk("ddim", points, x)
    for name, options in [
        ("dpm_solver", {"order": 1}),
        ("dpm_solver", {"order": 1, "prediction": "noise"}),
        ("dpm_solver", {"order": 1, "method": "singlestep"}),
        ("deis", {"order": 1}),
        ("lms", {"order": 1}),
        ("ipndm", {"order": 1}),
        ("res_multistep", {"order": 1}),
        ("unipc", {"order": 1, "corrector": False}),
        ("unipc", {"order": 1, "corrector": False, "prediction": "noise", "variant": "bh1"}),
        ("gradient_estimation", {"gamma": 1.0}),
    ]:
        torch.testing.assert_close(walk(name, points, x, **options), ddim, rtol=0, atol=1e-10, msg=name)


def test_second_order_identities():
    noise = {"order": 2, "prediction": "noise", "solver_type": "taylor"}
    same(("deis", {"order": 2}), ("dpm_solver", noise))
    unip = {"order": 2, "corrector": False}
    same(("dpmpp_2m", {}), ("unipc", unip), ("dpm_solver", {"order": 2}))
    same(("unipc", unip | {"prediction": "noise"}), ("dpm_solver", {"order": 2, "prediction": "noise"}))
    same(("dpmpp_2m", {"solver_type": "taylor"}), ("res_multistep", {"order": 2}))


def test_third_order_identities():
    """The exact integral of one parabola, whatever a method is called."""
    taylor = {"order": 3, "solver_type": "taylor"}
    for variant in ("bh1", "bh2"):
        unip = {"order": 3, "corrector": False, "variant": variant}
        x = 40 * normal(5)
        deis = walk("deis", points_of(SIX), x, growth=None, order=3)
        same(("dpmpp_3m", {}), ("res_multistep", {"order": 3}), ("dpm_solver", taylor))
        # UniP-3 begins with UniP-2, which takes half of B(h): compare from where all are of order 3.
        for prediction, name, options in (("x0", "dpmpp_3m", {}), ("noise", "deis", {"order": 3})):
            assert_same_third_step(name, options, "unipc", unip | {"prediction": prediction})
        torch.testing.assert_close(
            walk("dpm_solver", points_of(SIX), x, growth=None, prediction="noise", **taylor), deis, rtol=0, atol=1e-10
        )


def assert_same_third_step(a, options_a, b, options_b):
    points, x, predict = points_of(SIX), 40 * normal(5), Exact()
    outs = []
    for name, options in ((a, options_a), (b, options_b)):
        sampler = samplers.create(name, growth=None, **options)
        noise = name == "deis" or options.get("prediction") == "noise"
        history = []
        for p, seed in zip(points[:2], (1, 2)):
            x0 = predict(p.sigma * normal(5, seed), p)
            history.append((p.lam, (p.sigma * normal(5, seed) - x0) / p.sigma if noise else x0))
        state = begun(sampler, points[2:], x / 10, history=tuple(history))
        outs.append(sampler.update(predict, state, *points[2:4]).x)
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-10)


def test_variable_ipndm_is_lms_and_on_equal_steps_ipndm_is_too():
    same(("lms", {}), ("ipndm", {"variable": True}))
    equal = points_of([5.0, 4.0, 3.0, 2.0, 1.0, 0.5 + 1e-9][:5])
    x = 5 * normal(5)
    torch.testing.assert_close(walk("ipndm", equal, x), walk("lms", equal, x), rtol=0, atol=1e-12)


def test_singlestep_2_is_dpmpp_2s():
    run = {"batch": 4, "steps": 9, "grid": "logsnr", "end": "t_end"}
    denoiser = PROBLEM.denoiser("gaussian")
    a = samplers.sample(denoiser, "dpmpp_2s", **run).x
    b = samplers.sample(denoiser, "dpm_solver", method="singlestep", order=2, **run).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_trajectory_whatever_the_network_predicts(name):
    exact = TinyMixture()

    def wrapped(prediction):
        def network(x, t):
            a, s = exact.schedule.alpha(t)[:, None], exact.schedule.sigma(t)[:, None]
            x0 = exact.predict(x, t)
            e = (x - a * x0) / s
            return {"x0": x0, "epsilon": e, "v": a * e - s * x0, "flow": e - x0, "score": -e / s}[prediction]

        return GaussianDenoiser.wrap(network, shape=(4,), prediction=prediction, dtype=torch.float64)

    kinds = ("x0", "epsilon", "v", "flow", "score")
    first, *others = (samplers.sample(wrapped(kind), name, batch=3, steps=7, grid="logsnr").x for kind in kinds)
    for kind, other in zip(kinds[1:], others):
        torch.testing.assert_close(other, first, rtol=0, atol=1e-10, msg=kind)


# ---------------------------------------------------------------------------------------------- robustness

EVALUATIONS = [
    ({"method": "multistep", "order": 3}, 4, (1, 1, 1, 1)),
    ({"method": "singlestep", "order": 3}, 1, (1,)),
    ({"method": "singlestep", "order": 3}, 2, (2,)),
    ({"method": "singlestep", "order": 3}, 3, (2, 1)),
    ({"method": "singlestep", "order": 3}, 8, (3, 3, 2)),
    ({"method": "singlestep", "order": 3}, 9, (3, 3, 2, 1)),
    ({"method": "singlestep", "order": 3}, 10, (3, 3, 3, 1)),
    ({"method": "singlestep", "order": 2}, 6, (2, 2, 2)),
    ({"method": "singlestep", "order": 2}, 7, (2, 2, 2, 1)),
    ({"method": "fixed", "order": 3}, 9, (3, 3, 3)),
    ({"method": "fixed", "order": 3}, 10, (3, 3, 3, 1)),
    ({"method": "fixed", "order": 1}, 3, (1, 1, 1)),
]


@pytest.mark.parametrize(("options", "steps", "evaluations"), EVALUATIONS, ids=str)
def test_what_the_steps_of_dpm_solver_cost(options, steps, evaluations):
    for grid in ("logsnr", "time_quadratic"):
        run = samplers.stream(TinyMixture(), "dpm_solver", steps=steps, end="t_end", grid=grid, **options)
        first = next(iter(run))
        assert first.evaluations == evaluations
        assert len(first.points) == len(evaluations) + 1
        for end in ("t_end", "zero"):
            out = samplers.sample(TinyMixture(), "dpm_solver", steps=steps, end=end, grid=grid, **options)
            assert out.nfe == steps and bool(torch.isfinite(out.x).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_grid_that_begins_or_ends_at_alpha_0(name, count):
    """Where lambda is infinite, a step is of order 1, and of infinite length; no past value there is extrapolated from."""
    schedule = Flow(t_max=1.0)
    times = [1.0, 0.8, 0.55, 0.3, 0.12, 0.01][: count + 1]
    for down in (True, False):
        points = schedule.points(torch.tensor(times if down else times[::-1], dtype=torch.float64))
        run = {"order": 4} if name in ("deis", "lms", "ipndm", "res_multistep") else {}
        x = walk(name, points, normal(4), **run)
        assert bool(torch.isfinite(x).all())
        if down:  # the noise is all that x_1 says, so the second step is of order 1 too
            few = walk("ddim", points[:2], normal(4))
            torch.testing.assert_close(walk(name, points[:2], normal(4), **run), few, rtol=0, atol=1e-12)


def test_singlestep_from_alpha_0_spends_what_it_is_given():
    denoiser = TinyMixture(schedule=Flow(t_max=1.0))
    times = [1.0, 0.7, 0.4, 0.2, 0.1]
    for name, options, nfe in (
        ("dpm_solver", {"method": "fixed", "order": 3}, 1 + 3 * 3 + 1),
        ("dpm_solver", {"method": "singlestep", "order": 3}, 1 + 3 + 3 + 2 + 1),
        ("dpmpp_2s", {}, 1 + 3 * 2 + 1),
    ):
        out = samplers.sample(denoiser, name, times=times, batch=2, **options)
        assert bool(torch.isfinite(out.x).all())
        assert out.nfe == nfe


def test_the_default_of_dpm_solver_is_safe_with_few_steps():
    """In noise form, three steps over the whole range leave the data; the default does not."""
    spread = {}
    for schedule in ("vp_linear", "vp_cosine", "edm", "flow"):
        denoiser = PROBLEM.denoiser("gaussian", schedule=schedule)
        exact = float(PROBLEM.sample_truth(2000, 1).std())
        for steps in (3, 4, 5):
            for options in ({}, {"method": "singlestep"}, {"solver_type": "taylor"}):
                out = samplers.sample(denoiser, "dpm_solver", batch=500, steps=steps, grid="logsnr", **options)
                assert float(out.x.std()) < 1.5 * exact, (schedule, steps, options)
        noise = {"prediction": "noise", "method": "singlestep", "order": 3, "grid": "logsnr"}
        spread[schedule] = float(samplers.sample(denoiser, "dpm_solver", batch=500, steps=3, **noise).x.std())
    assert max(spread.values()) > 5, spread


FORMS = [
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"solver_type": "taylor"}),
    ("dpmpp_3m", {}),
    ("dpmpp_3m", {"published": True}),
    ("unipc", {}),
    ("unipc", {"order": 3}),
    ("res_multistep", {"order": 4}),
    ("deis", {"order": 4}),
]


@functools.cache
def longest_last(schedule):
    run = {"batch": 16, "steps": 6, "grid": "time_uniform", "end": "t_end", "seed": 1}
    denoiser = PROBLEM.denoiser("gaussian", schedule=schedule)
    return denoiser, PROBLEM.truth(next(iter(samplers.stream(denoiser, "ddim", **run))).x, schedule=schedule)


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_a_step_much_longer_than_the_last_is_of_lower_order(name, options):
    """`time_uniform` ends in a step 4 to 6 times longer in lambda than the one before; at full order that ruins the run."""
    errors = {1.0: [], None: []}
    for schedule, steps, growth in itertools.product(("vp_linear", "vp_cosine", "flow"), (6, 10, 20), errors):
        denoiser, truth = longest_last(schedule)
        run = {"batch": 16, "steps": steps, "grid": "time_uniform", "end": "t_end", "seed": 1}
        out = samplers.sample(denoiser, name, growth=growth, **run, **options).x
        errors[growth].append(float((out - truth).pow(2).mean().sqrt()))
    assert max(errors[1.0]) < 0.3
    gain = [a / b for a, b in zip(errors[None], errors[1.0])]
    assert math.prod(gain) ** (1 / len(gain)) > 2, gain


def test_growth_of_the_midpoint_form():
    """(1 + 1 / 2r) + 1 / 2r = 1 + h / h_before against 2 for equal steps: up to twice as long is order 2 by default."""
    x = normal(4)
    for ratio, lower in ((1.99, False), (2.01, True)):
        points = points_of([math.exp(-lam) for lam in (0.0, 0.2, 0.2 + 0.2 * ratio)])
        got = walk("dpmpp_2m", points, x)
        first = walk("ddim", points, x)
        assert torch.allclose(got, first, rtol=0, atol=1e-13) == lower
        assert not torch.allclose(walk("dpmpp_2m", points, x, growth=None), first, rtol=0, atol=1e-9)


def test_more_orders_than_steps_and_a_long_history(start_and_truth):
    denoiser = PROBLEM.denoiser("gaussian")
    for order in (6, 9):
        few = samplers.sample(denoiser, "unipc", order=order, steps=4, batch=4, grid="logsnr")
        assert bool(torch.isfinite(few.x).all())
    run = {"steps": 240, "batch": 8, "grid": "logsnr", "end": "t_end", "seed": 1}
    _, _, truth = start_and_truth
    assert float((samplers.sample(denoiser, "unipc", order=6, **run).x - truth).abs().max()) < 1e-6


# ---------------------------------------------------------------------------------------------- CFG++


@pytest.mark.parametrize("name", ["dpmpp_2m", "res_multistep", "gradient_estimation"])
def test_cfg_pp(name):
    points, x, predict = points_of([9.0, 4.0, 1.5], variance_preserving=True), 9 * normal(4), Guided()
    s, t, last = points
    guided, u = predict.pair(x, s)
    ddim = t.alpha * guided + t.sigma * (x - s.alpha * u) / s.sigma  # the paper's
    one = walk(name, points[:2], x, predict, cfg_pp=True)
    torch.testing.assert_close(one, ddim, rtol=0, atol=1e-12)
    two = walk(name, points, x, predict, cfg_pp=True)
    guided_2, u_2 = predict.pair(one, t)
    h, before = last.lam - t.lam, t.lam - s.lam
    base = last.alpha * guided_2 + last.sigma * (one - t.alpha * u_2) / t.sigma
    if name == "dpmpp_2m":
        expected = base - last.alpha * math.expm1(-h) * h / (2 * before) * (guided_2 - u)
    elif name == "gradient_estimation":
        turn = (one - t.alpha * u_2) / t.sigma - (x - s.alpha * u) / s.sigma
        expected = base + last.alpha * (last.sigma / last.alpha - t.sigma / t.alpha) * turn
    else:
        expected = base + last.alpha * (math.expm1(-h) + h) / before * (u_2 - u)
    torch.testing.assert_close(two, expected, rtol=0, atol=1e-12)
    without = walk(name, points, x, Exact(), cfg_pp=True)
    torch.testing.assert_close(without, walk(name, points, x, Exact()), rtol=0, atol=1e-12)


def test_cfg_pp_in_a_guided_run():
    """With cfg_scale the driver's pair of answers is used; a forward pass is one whatever the option."""
    wrapped = GaussianDenoiser.wrap(
        lambda x, t: 0.2 * x + 0.5,
        shape=(3,),
        prediction="x0",
        dtype=torch.float64,
        unconditional=lambda x, t: 0.2 * x,
    )
    for name in ("dpmpp_2m", "res_multistep", "gradient_estimation"):
        run = {"steps": 6, "batch": 2, "cfg_scale": 0.5}
        a, b = (samplers.sample(wrapped, name, cfg_pp=on, **run) for on in (False, True))
        assert a.nfe == b.nfe == 6
        assert float((a.x - b.x).abs().max()) > 1e-3


# ---------------------------------------------------------------------------------------------- other libraries

# Peers on `mixture` from X_T in float64: k-diffusion at RHO (alpha = 1), diffusers at SIGMAS (scaled_linear).
X_T = torch.tensor([[1.0, -0.5], [0.25, 0.75]], dtype=torch.float64)
RHO = (80.0, 31.0, 11.0, 3.5, 1.2, 0.4, 0.1, 0.02)
SIGMAS = (14.6, 8.0, 4.3, 2.5, 1.5, 0.9, 0.5, 0.2, 0.05)


def k_diffusion(name, **options):
    """What k-diffusion's function gives at RHO; its lists of sigmas end in 0, where x_0 is returned."""
    sampling = pytest.importorskip("k_diffusion.sampling", exc_type=ImportError)
    exact = Exact()

    def model(x, sigma):
        return exact(x, Point(0.0, 1.0, float(sigma[0]), 0.0))

    sigmas = torch.tensor(RHO if name == "sample_lms" else (*RHO, 0.0), dtype=torch.float64)
    return getattr(sampling, name)(model, RHO[0] * X_T, sigmas, disable=True, **options)


def diffusers_scheduler(name, **options):
    """What a scheduler of diffusers gives at SIGMAS, to the last of them, or to the x_0 that closes the run."""
    diffusers = pytest.importorskip("diffusers")
    closing = options.get("final_sigmas_type", "zero") == "zero" and not name.startswith("DEIS")
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, name)(**config, **options)
    points = points_of(SIGMAS, variance_preserving=True)
    calls = len(SIGMAS) - 1 + closing
    scheduler.set_timesteps(calls)
    scheduler.sigmas = torch.tensor((*SIGMAS, 0.0) if closing else SIGMAS, dtype=torch.float64)
    x, exact = X_T.clone(), Exact()
    for t, p in zip(scheduler.timesteps, points):
        noise = (x - p.alpha * exact(x, p)) / p.sigma
        x = scheduler.step(noise, t, x).prev_sample
    return x


NO_NOISE = {"eta": 0.0, "noise_sampler": lambda a, b: torch.zeros_like(X_T)}
LAST = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
MULTI, UNI, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
# (peer's name, its options, our name, our options)
PEERS = [
    ("sample_dpmpp_2m", {}, "dpmpp_2m", {}),
    ("sample_dpmpp_2m_sde", {**NO_NOISE, "solver_type": "heun"}, "dpmpp_2m", {"solver_type": "taylor"}),
    ("sample_dpmpp_3m_sde", NO_NOISE, "dpmpp_3m", {"published": True}),
    ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp_2s", {}),
    ("sample_lms", {}, "lms", {}),
    (MULTI, {}, "dpmpp_2m", {}),
    (MULTI, {"solver_type": "heun"}, "dpmpp_2m", {"solver_type": "taylor"}),
    (MULTI, {"solver_order": 3, "solver_type": "heun", "lower_order_final": False}, "dpmpp_3m", {"published": True}),
    (MULTI, {"algorithm_type": "dpmsolver", **LAST}, "dpm_solver", {"prediction": "noise"}),
    (UNI, {}, "unipc", {}),
    (UNI, {"disable_corrector": [0, 1, 2]}, "unipc", {"disable_corrector": 3}),
    *(
        (UNI, {"solver_order": p, "solver_type": b, "predict_x0": of == "x0", **LAST}, "unipc", ours)
        for p, b, of in itertools.product((1, 2, 3), ("bh1", "bh2"), ("x0", "noise"))
        for ours in ({"order": p, "variant": b, "prediction": of},)
    ),
    *((DEIS, {"solver_order": p, "lower_order_final": False}, "deis", {"order": p}) for p in (1, 2, 3)),
]
# What k-diffusion 0.1.1.post1 and diffusers 0.42.0 gave, by the place in PEERS.
FROZEN = {
    0: (1.228596154, -0.862491553, 0.659661771, 1.057985492),
    1: (1.326244013, -0.968116672, 0.723649874, 1.145148540),
    2: (1.250680364, -1.046959507, 0.764534511, 1.094710153),
    3: (1.074268511, -0.720723511, 0.552762772, 0.923279112),
    4: (1.002721733, -0.616967430, 0.515432467, 0.857175862),
    5: (1.182853322, -0.907539322, 0.666871779, 1.027258462),
    6: (1.218461457, -0.957412830, 0.699148724, 1.059925555),
    7: (1.051026393, -0.835729283, 0.596767540, 0.885257918),
    8: (1.120054054, -0.811667659, 0.599762969, 0.963778181),
    9: (1.180074051, -0.918023362, 0.673194679, 1.025029847),
    10: (1.174480062, -0.913971677, 0.670815678, 1.020501569),
    11: (1.071348783, -0.730228716, 0.559277273, 0.923627371),
    12: (1.113703145, -0.790374693, 0.585972126, 0.958201475),
    13: (1.054856730, -0.709059272, 0.547748276, 0.908730308),
    14: (1.150623101, -0.829463089, 0.604023456, 0.987630426),
    15: (1.291109616, -1.088233209, 0.785267178, 1.126492265),
    16: (1.124021413, -0.798448398, 0.585953145, 0.963010107),
    17: (1.182397717, -0.914658367, 0.671088304, 1.025998448),
    18: (1.130761552, -0.783638739, 0.572246778, 0.963486579),
    19: (0.953649976, -0.756149571, 0.534817164, 0.778914873),
    20: (1.122584815, -0.715971517, 0.526354145, 0.951386095),
    21: (0.953290893, -0.756147746, 0.534776296, 0.778679587),
    22: (1.124469664, -0.716531491, 0.526611817, 0.952649207),
    23: (1.005972434, -0.644420434, 0.512611853, 0.863717472),
    24: (1.105871767, -0.793017713, 0.590947733, 0.952521216),
    25: (1.109552432, -0.784527079, 0.572631159, 0.944926996),
}


def ours_at_peers_points(peer, theirs, name, options):
    if name != "dpmpp_2s":
        options = {"growth": None, **options}  # the peers never lower the order
    if peer.startswith("sample_"):
        twos = (2,) * (len(RHO) - 1)
        return walk(name, points_of(RHO), RHO[0] * X_T, evaluations=twos, close=peer != "sample_lms", **options)
    closing = peer != DEIS and theirs.get("final_sigmas_type") != "sigma_min"
    return walk(name, points_of(SIGMAS, variance_preserving=True), X_T, close=closing, **options)


@pytest.mark.parametrize("case", range(len(PEERS)))
def test_as_peers_that_are_installed(case):
    peer, theirs, name, options = PEERS[case]
    run = k_diffusion if peer.startswith("sample_") else diffusers_scheduler
    ours = ours_at_peers_points(peer, theirs, name, options)
    torch.testing.assert_close(ours, run(peer, **theirs), rtol=0, atol=1e-6)  # diffusers' DPM steps are in float32


@pytest.mark.parametrize("case", FROZEN)
def test_as_peers_were(case):
    expected = torch.tensor(FROZEN[case], dtype=torch.float64).view(2, 2)
    torch.testing.assert_close(ours_at_peers_points(*PEERS[case]), expected, rtol=0, atol=1e-6)


def test_ipndm_and_gradient_estimation_by_their_equations():
    """In x / alpha and sigma / alpha, written out: diff-sampler's and ComfyUI's loops."""
    adams = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    exact, points = Exact(), points_of(RHO)
    for order in (1, 2, 3, 4):
        x, noises = RHO[0] * X_T, []
        for s, t in itertools.pairwise(points):
            noises = [(x - exact(x, s)) / s.sigma, *noises]
            x = x + (t.sigma - s.sigma) * sum(c * e for c, e in zip(adams[min(order, len(noises)) - 1], noises))
        torch.testing.assert_close(walk("ipndm", points, RHO[0] * X_T, order=order), x, rtol=0, atol=1e-10)
    x, before = RHO[0] * X_T, None
    for s, t in itertools.pairwise(points):
        noise = (x - exact(x, s)) / s.sigma
        x = x + (t.sigma - s.sigma) * (noise if before is None else 2 * noise - before)
        before = noise
    torch.testing.assert_close(walk("gradient_estimation", points, RHO[0] * X_T), x, rtol=0, atol=1e-10)
