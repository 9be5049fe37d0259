"""Samplers of Bayesian flows against the papers' formulas, the zoo's own solvers, exact distributions, and the kit."""

import dataclasses
import math

import pytest
import torch
from samplers_bfn import DiscreteFlow, DiscreteSchedule, FlowDenoiser, checks, token_moments
from samplers_bfn.family import FlowPredictor, TinyTokens
from samplers_bfn.sampler import sde_first_order
from samplers_bfn.sde_solver import SdeSolver2

import samplers
from samplers import problems
from samplers.authoring import FamilyError, NoiseCanvas, OptionError
from samplers.random import Rng
from samplers.testing import fits

F64 = torch.float64
ALL = (
    "bfn",
    "bfn_euler",
    "bfn_euler_sde",
    "bfn_solver_1",
    "bfn_solver_2",
    "bfn_sde_solver_1",
    "bfn_sde_solver_2",
    "bfnpp_1",
    "bfnpp_2",
    "bfnpp_sde_2",
)


def trail(flow, name, steps=5, batch=3, **options):
    """All states of a run that returns x itself, and what the model answered at each."""
    sampler = samplers.create(name, end="state", **options)
    predict = FlowPredictor(flow, batch, sampler=name)
    states = [sampler.init(NoiseCanvas(flow, steps, Rng.of(7, batch)))]
    while not states[-1].finished:
        states.append(sampler.step(predict, states[-1]))
    return states, predict


# ---------------------------------------------------------------------------------------------- the papers' formulas


def published_step(name, z, p, s, t, n, K, b1, past, middle):
    """z at t from z at s, in the symbols of Xue et al. 2024: times fall from 1 (noise) to 0."""
    before = past[-1] if past else None
    solver_1 = (1 - t) / (1 - s) * z + K * b1 * (1 - t) * (t - s) * (1 / K - p)
    beta = lambda time: b1 * (1 - time) ** 2  # noqa: E731
    sde_1 = z + (beta(t) - beta(s)) * (K * p - 1) + math.sqrt(K * (beta(t) - beta(s))) * n
    if name == "bfn_solver_1":
        return solver_1
    if name == "bfn_sde_solver_1":
        return sde_1
    if name == "bfn_solver_2" and middle is not None:
        r, p_r = middle
        return solver_1 - K * b1 * (1 - t) * (t - s) ** 2 / 2 * (p_r - p) / (r - s)
    if name == "bfn_solver_2":
        return (
            solver_1
            if before is None
            else solver_1 - K * b1 * (1 - t) * (t - s) ** 2 / 2 * (p - before[1]) / (s - before[0])
        )
    if name == "bfn_sde_solver_2":
        if before is None:
            return sde_1
        return sde_1 + K * b1 * (t - s) ** 2 * (s + 2 * t - 3) / 3 * (before[1] - p) / (before[0] - s)
    f, g2 = -2 / (1 - s), 2 * K * b1 * (1 - s)
    if name == "bfn_euler":
        return z - ((f + g2 / (2 * K * beta(s))) * z - g2 / 2 * (p - 1 / K)) * (s - t)
    assert name == "bfn_euler_sde"
    return z + g2 * (p - 1 / K) * (s - t) + math.sqrt(g2 * (s - t)) * n


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in ALL[1:7]] + [("bfn_solver_2", {"method": "singlestep"})],
    ids=lambda v: v if isinstance(v, str) else "-".join(v.values()),
)
def test_steps_on_tokens_are_the_papers(name, options):
    flow = TinyTokens()
    per_step = 2 if options else 1
    states, predict = trail(flow, name, steps=5 * per_step, eta=0.02, **options)
    past = []
    for i, (state, after) in enumerate(zip(states, states[1:])):
        s, t = state.points[i], state.points[i + 1]
        assert (s.t, t.t) == (pytest.approx(0.98 * (5 - i) / 5), pytest.approx(0.98 * (4 - i) / 5))
        p = predict.probabilities(state.x, s)
        middle = None
        if options:
            r = (s.t + t.t) / 2
            z_r = published_step("bfn_solver_1", state.x, p, s.t, r, 0.0, 3, 8.0, [], None)
            middle = r, predict.probabilities(z_r, dataclasses.replace(s, t=r))
        n = state.canvas.noise(i + 1)
        expected = published_step(name, state.x, p, s.t, t.t, n, 3, flow.schedule.beta_1, past, middle)
        torch.testing.assert_close(after.x, expected, rtol=1e-10, atol=1e-10)
        past.append((s.t, p))


def test_the_original_sampler_is_bayes_rule():
    """mu and its precision, updated by a measurement y of x_0; and logits, by one of the drawn token."""
    flow = problems.create("mixture").denoiser("bayesian_flow", dtype=F64)
    states, predict = trail(flow, "bfn")
    for i, (state, after) in enumerate(zip(states, states[1:])):
        s, t = state.points[i], state.points[i + 1]
        before, then = (1e-3 ** (-2 * (1 - p.t)) for p in (s, t))  # precisions
        accuracy = then - before
        y = predict(state.x, s) + state.canvas.noise(i + 1) / math.sqrt(accuracy)
        torch.testing.assert_close(after.x, (before * state.x + accuracy * y) / then, rtol=1e-10, atol=1e-12)
    tokens = TinyTokens()
    states, _ = trail(tokens, "bfn")
    for i, (state, after) in enumerate(zip(states, states[1:])):
        accuracy = 8.0 * ((1 - state.points[i + 1].t) ** 2 - (1 - state.points[i].t) ** 2)
        signal = (after.x - state.x - math.sqrt(3 * accuracy) * state.canvas.noise(i + 1)) / accuracy  # 3 onehot - 1
        torch.testing.assert_close(signal.sort(-1).values, torch.tensor([-1.0, -1.0, 2.0], dtype=F64).expand(3, 2, 3))


def test_drawn_tokens_make_the_first_solver_the_original_sampler():
    runs = [
        samplers.sample(TinyTokens(), n, batch=50, steps=6, **o).x
        for n, o in (("bfn", {}), ("bfn_sde_solver_1", {"draw": True}))
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("bfnpp_1", "ddim", {}),
        ("bfnpp_1", "dpm_solver", {"order": 1}),
        ("bfnpp_2", "dpmpp_2m", {}),
        ("bfnpp_sde_2", "dpmpp_2m_sde", {"noise": "fresh", "growth": None}),
        ("bfn", "ddim", {"eta": 1.0, "noise": "fresh"}),
    ],
)
@pytest.mark.parametrize("problem", ["mixture", "sudoku4"])
def test_plus_plus_is_dpm_solver_on_the_flows_schedule(name, ours, options, problem):
    problem = problems.create(problem)
    flow = problem.denoiser("bayesian_flow", kind="continuous", dtype=F64)
    gaussian = problem.denoiser("gaussian", schedule=flow.schedule, dtype=F64)
    run = samplers.sample(flow, name, batch=4, steps=12, seed=5, grid="time", trace=True)
    times = [p.t for p in run.trace[0].points]
    assert len(times) == 12 and times == pytest.approx([(1 - 1e-5) * (12 - i) / 12 for i in range(12)])
    expected = samplers.sample(gaussian, ours, times=times, batch=4, seed=5, **options)
    assert (run.nfe, expected.nfe) == (12, 12)
    torch.testing.assert_close(run.x, expected.x, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- distributions


def test_one_token_is_exact_at_any_number_of_steps():
    """With one token the original sampler has the model's distribution after two evaluations; without draws it is off."""
    prior = torch.tensor([0.5, 0.05, 0.3, 0.15], dtype=F64)
    flow = DiscreteFlow.wrap(lambda theta, u: (prior * theta).log(), shape=1, classes=4, beta_1=3.0, dtype=F64)

    def p_value(name, **options):
        x = samplers.sample(flow, name, batch=20_000, steps=2, read="draw", end="final", **options).x[:, 0]
        return fits(torch.bincount(x, minlength=4), prior)

    assert p_value("bfn") > 1e-3
    assert p_value("bfn_sde_solver_1") < 1e-6
    assert p_value("bfn", eta=0.3) < 1e-6  # there the first x lacks the data's part of its mean


def test_optimal_start_has_the_moments_of_the_data():
    flow = TinyTokens()
    times = (flow.joint * 24).round().to(torch.int64).flatten()
    x = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat_interleave(
        times, 0
    )  # each pair as often as it is likely
    mean, variance = token_moments(x, 3)
    run = samplers.sample(
        flow, "bfn_solver_2", batch=20_000, steps=2, eta=0.5, start_moments=(mean, variance), trace=True
    )
    first, at = run.trace[0].x, run.trace[0].points[0]
    assert at.alpha == pytest.approx(8.0 * 0.25)
    torch.testing.assert_close(first.mean(0), at.alpha * (3 * mean - 1), rtol=0, atol=0.1)
    assert float(first.var(0).mean()) == pytest.approx(at.sigma**2 + at.alpha**2 * 9 * variance, rel=0.02)
    assert run.settings["start_moments"] == "given"


# ---------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("end", ["drop", "final", "state"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_spent_exactly(end, steps):
    seen = []

    def network(theta, u):
        seen.append(float(u[0]))
        return theta.log()

    flow = DiscreteFlow.wrap(network, shape=2, classes=3, beta_1=1.0, dtype=F64)
    for options in ({}, {"method": "singlestep"}):
        seen.clear()
        out = samplers.sample(flow, "bfn_solver_2", steps=steps, end=end, **options)
        assert out.nfe == len(seen) == steps
        assert out.x.shape == (1, 2) and out.x.dtype == torch.int64 and out.lengths.tolist() == [2]
        assert seen == sorted(seen) and seen[0] == pytest.approx(1e-5)
        if end == "final" and steps > 1:
            assert seen[-1] == 1.0
        if end == "drop" and not options:
            assert seen == pytest.approx([1e-5 + (1 - 1e-5) * i / steps for i in range(steps)])


def test_rows_are_alone_and_a_run_may_stop_early():
    """Discrete runs on the exact models: the batch decides nothing; what there is of a run is tokens as well."""
    flow = problems.create("digits").denoiser("bayesian_flow")
    out = samplers.sample(flow, "bfn", batch=3, steps=4)
    for i in range(3):
        assert torch.equal(samplers.sample(flow, "bfn", steps=4, first_row=i).x[0], out.x[i])
    run = samplers.stream(flow, "bfn_sde_solver_2", steps=4)
    next(run), next(run)
    assert run.result().x.shape == (1, 64) and run.result().x.dtype == torch.int64


def test_all_samplers_take_both_kinds_and_land_on_valid_grids():
    problem = problems.create("sudoku4")
    for name in ALL:
        for kind in ("discrete", "continuous"):
            out = samplers.sample(problem.denoiser("bayesian_flow", kind=kind), name, batch=64, steps=10, seed=1)
            score = problem.score(out)
            assert score["invalid"].value == 0, (name, kind)
            assert score.extras["grids_seen"] > 40, (name, kind)  # 64 exact draws have 57 in the mean


def test_clipped_data():
    flow = problems.create("mixture", dim=2).denoiser("bayesian_flow", dtype=F64)
    assert float(samplers.sample(flow, "bfnpp_2", batch=50, steps=8, x0_bound=0.9).x.abs().max()) == 0.9


def test_what_is_wrong_is_named():
    flow, reals = TinyTokens(), problems.create("mixture").denoiser("bayesian_flow")
    for arguments, says in (
        ({"prompt": [1]}, "prompt is not for samplers of the bayesian_flow family"),
        ({"temperature": 0.5}, "temperature is not for samplers of the bayesian_flow family"),
        ({"eta": 0.0}, "option 'eta'"),
        ({"end": "zero"}, "option 'end'"),
        ({"x0_bound": 1.0}, "x0_bound is for real numbers"),
        ({"start_moments": 3}, "not int"),
        ({"start_moments": (torch.zeros(3), 1.0)}, r"not a mean \(3,\) and the variance 1"),
        ({"start_moments": (0.3, -1.0)}, "the variance -1"),
    ):
        with pytest.raises(OptionError, match=says):
            samplers.sample(flow, "bfn", **arguments)
    with pytest.raises(OptionError, match="read='draw' is for tokens"):
        samplers.sample(reals, "bfn", read="draw")
    with pytest.raises(OptionError, match="x0_bound must be a positive number"):
        samplers.sample(reals, "bfn", x0_bound=-1.0)
    with pytest.raises(OptionError, match=r"draws tokens, and denoiser .* has real numbers"):
        samplers.sample(reals, "bfn_sde_solver_1", draw=True)
    with pytest.raises(FamilyError, match="'bfn' is of the bayesian_flow family"):
        samplers.sample(problems.create("mixture").denoiser("gaussian"), "bfn")

    class Other(samplers.Denoiser):
        family, name = "bayesian_flow", "other"

    with pytest.raises(FamilyError, match="neither a ContinuousFlow nor a DiscreteFlow"):
        samplers.sample(Other(), "bfn")


# ---------------------------------------------------------------------------------------------- the kit


@pytest.mark.parametrize("name", ["bfn_sde_solver_2", "bfnpp_2"])
def test_kit(name):
    """One of each kind; the zoo's own suite runs the kit on every sampler that is installed."""
    from samplers.testing import run_checks

    run_checks(name)


@dataclasses.dataclass(frozen=True)
class WrongSign(SdeSolver2):
    """SDE-BFN-Solver2 with the slope of the wrong sign."""

    def update(self, predict, state, s, t):
        right = super().update(predict, state, s, t)
        first = sde_first_order(state, predict(state.x, s), s, t)
        return dataclasses.replace(right, x=2 * first - right.x)


@dataclasses.dataclass(frozen=True)
class LittleNoise(SdeSolver2):
    """SDE-BFN-Solver2 with one part in ten less of noise."""

    def update(self, predict, state, s, t):
        right = super().update(predict, state, s, t)
        new = math.sqrt(-math.expm1(2 * (s.lam - t.lam)))
        return dataclasses.replace(right, x=right.x - 0.1 * t.sigma * new * state.canvas.noise(state.i + 1))


@pytest.mark.parametrize(("cls", "slope"), [(SdeSolver2, 2.0), (WrongSign, 1.0), (LittleNoise, 0.0)])
def test_the_order_check_sees_mistakes(cls, slope):
    sampler = cls(**dict(cls.conformance.order))
    errors = [checks._moments_error(sampler, "discrete", n) for n in (96, 192)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(slope, abs=0.15)


def test_moments_are_propagated_exactly():
    """What the check of weak orders does without draws agrees with 20000 runs."""
    sampler = samplers.create("bfn_sde_solver_1", end="state", eta=0.01)
    flow = FlowDenoiser()
    flow.kind, flow.dtype, flow.shape = "discrete", F64, (1, 2)
    flow.schedule = DiscreteSchedule(2, 8.0)
    canvas = NoiseCanvas(flow, 6, Rng.of(0, 20_000), moments=(torch.full((1, 2), 0.7, dtype=F64), 0.25))
    first, last = checks._run(sampler, checks._Linear(flow, 20_000, sampler="check"), canvas)
    t = first.points[-1]
    seen = abs(float(last.x.mean()) - 0.7 * t.alpha) / t.alpha, float(last.x.var()) - 0.25 * t.alpha**2 - t.sigma**2
    exact = checks._moments_error(sampler, "discrete", 6)
    assert seen[0] + abs(seen[1]) / t.alpha**2 == pytest.approx(exact, abs=0.02)
    assert exact > 0.04
