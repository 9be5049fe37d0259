"""Solvers of the reverse SDE and Runge-Kutta solvers: orders, weak orders without any sampling, identities, and peers' numbers."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch

import samplers
from samplers import problems, registry
from samplers.canvas import NoiseCanvas
from samplers.errors import OptionError
from samplers.gaussian.path import NoisePath
from samplers.gaussian.steps import moments, weights
from samplers.noise_schedules import Flow, Point, noise_schedule
from samplers.random import Rng
from samplers.testing.tiny import TinyMixture

STAGED = {
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "seeds_2": 2,
    "seeds_3": 3,
}
ALL = [
    "ddim",
    "ddpm",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "er_sde",
    "euler",
    "euler_ancestral",
    "restart",
    "sa_solver",
    *STAGED,
]
SCHEDULES = ("vp_linear", "edm", "flow")


def end(denoiser, name, steps, **options):
    options = {"batch": 8, "seed": 1, "end": "t_end", "grid": "logsnr"} | options
    return samplers.sample(denoiser, name, steps=steps, **options).x


def rms(x):
    return float(x.pow(2).mean().sqrt())


# ---------------------------------------------------------------------------------------------- orders


@functools.cache
def problem_and_truth(grid):
    problem = problems.create("mixture")
    denoiser = problem.denoiser("gaussian")
    start = next(iter(samplers.stream(denoiser, "ddim", batch=8, steps=2, seed=1, end="t_end", grid=grid))).x
    return denoiser, problem.truth(start)


@pytest.mark.parametrize("grid", ["logsnr", "karras"])
@pytest.mark.parametrize(("name", "options", "order"), [
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("restart", {"restarts": 0}, 2),
    ("dpm_2", {}, 2),
    ("euler_ancestral", {"eta": 0.0}, 1),
    ("dpm_2_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.7}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 3),
    ("dpmpp_3m_sde", {"eta": 0.0, "published": True}, 2),
    ("er_sde", {"eta": 0.0, "order": 1}, 1),
    ("er_sde", {"eta": 0.0, "order": 2}, 2),
    ("er_sde", {"eta": 0.0}, 3),
    ("er_sde", {"eta": 0.0, "published": True}, 2),
    ("seeds_2", {"eta": 0.0}, 2),
    ("seeds_2", {"eta": 0.0, "solver_type": "phi_2", "r": 0.3}, 2),
    ("seeds_3", {"eta": 0.0}, 3),
    ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 0}, 1),
    ("sa_solver", {"tau": 0.0, "predictor_order": 3, "corrector_order": 0}, 3),
    ("sa_solver", {"tau": 0.0, "corrector_order": 0, "simple_order_2": True}, 2),
    ("sa_solver", {"tau": 0.0, "corrector_order": 1}, 1),
    ("sa_solver", {"tau": 0.0, "predictor_order": 2, "corrector_order": 3}, 3),
])  # fmt: skip
def test_orders_without_noise(name, options, order, grid):
    denoiser, truth = problem_and_truth(grid)
    per_step = STAGED.get(name, 2 if name == "restart" else 1)
    errors = [rms(end(denoiser, name, per_step * n, grid=grid, **options) - truth) for n in (96, 192, 384)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(slopes[-1] - order) < 0.15, (slopes, errors)


# ---------------------------------------------------------------------------------------------- weak orders


class Line:
    """x_0 = m + d e of one coordinate, for x that is a vector of coefficients: of the constant 1 and of independent normals."""

    mean, spread = 0.7, 0.5

    def __init__(self, schedule):
        self.schedule, self.shape, self.state_dtype, self.device = schedule, (), torch.float64, torch.device("cpu")

    def law(self, point):
        return point.alpha * self.mean, point.alpha**2 * self.spread**2 + point.sigma**2

    def __call__(self, x, at):
        mean, variance = self.law(at)
        gain = at.alpha * self.spread**2 / variance
        out = gain * x
        out[0] += self.mean - gain * mean
        return out


class Coefficients(NoiseCanvas):
    """Noise as unit vectors; the first x has exactly the law that the data have there."""

    def noise(self, draw):
        number = self.__dict__.setdefault("numbers", {}).setdefault(draw, len(self.__dict__["numbers"]) + 2)
        out = torch.zeros(2500, dtype=torch.float64)
        out[number] = 1.0
        return out

    def first(self, point):
        mean, variance = self.denoiser.law(point)
        x = torch.zeros(2500, dtype=torch.float64)
        x[0], x[1] = mean, math.sqrt(variance)
        return x


def weak_errors(name, steps, schedule="edm", **options):
    """Errors of the mean and of the variance at the end of a run, without any sampling: all steps are affine."""
    line = Line(noise_schedule(schedule))
    sampler = samplers.create(name, **({"end": "t_end", "grid": "logsnr", "t_end": 0.02} | options))
    state = sampler.init(Coefficients(line, steps, Rng.of(0, 1)))
    while not state.finished:
        state = sampler.step(line, state)
    mean, variance = line.law(state.points[-1])
    return float(state.x[0]) - mean, float(state.x[1:].square().sum()) - variance


@pytest.mark.parametrize(("name", "options", "order"), [
    ("ddpm", {}, 1),
    ("ddim", {"eta": 1.0}, 1),
    ("euler_ancestral", {}, 1),
    ("euler_ancestral", {"eta": 0.6}, 1),
    ("dpm_2_ancestral", {}, 2),
    ("dpm_2_ancestral", {"eta": 0.5}, 2),
    ("dpmpp_2s_ancestral", {}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.5}, 2),
    ("dpmpp_sde", {}, 2),
    ("dpmpp_sde", {"eta": 0.3, "r": 0.7}, 2),
    ("seeds_2", {}, 2),
    ("seeds_2", {"eta": 0.5, "solver_type": "phi_2"}, 2),
    ("seeds_3", {}, 2),
    ("dpmpp_2m_sde", {}, 2),
    ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.5}, 2),
    ("dpmpp_3m_sde", {}, 2),
    ("dpmpp_3m_sde", {"published": True}, 2),
    ("er_sde", {"order": 1}, 1),
    ("er_sde", {"order": 2}, 2),
    ("er_sde", {"order": 2, "scale": "power"}, 2),
    ("er_sde", {"order": 3, "scale": "power"}, 2),
    ("sa_solver", {"predictor_order": 1, "corrector_order": 0}, 1),
    ("sa_solver", {"corrector_order": 0}, 2),
    ("sa_solver", {"predictor_order": 3, "corrector_order": 3}, 2),
])  # fmt: skip
def test_weak_orders(name, options, order):
    errors = [weak_errors(name, STAGED.get(name, 1) * n, normals="fresh", **options)[1] for n in (160, 320)]
    assert abs(math.log2(abs(errors[0] / errors[1])) - order) < 0.15, errors


def test_independent_noise_of_the_stages_would_cost_an_order(monkeypatch):
    """What joined() is for: diffusers' singlestep sde-dpmsolver++ draws the whole step's normals anew."""
    monkeypatch.setattr("samplers.gaussian.dpmpp_sde.joined", lambda first, second, *points: second)
    errors = [weak_errors("dpmpp_sde", 2 * n, normals="fresh")[1] for n in (160, 320)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.15, errors


@pytest.mark.parametrize("name", [n for n in ALL if "normals" in [o.name for o in registry.load(n).options()]])
def test_a_path_and_fresh_normals_have_one_law(name):
    """Exactly: the mean and the variance of the end, with normals that overlap in no way and with those of a path."""
    steps = 6 * STAGED.get(name, 1) + 1
    for schedule in SCHEDULES:
        more = {"t_end": None, "grid": "karras"} | ({"eta": 1.0} if name == "ddim" else {})
        path, fresh = (weak_errors(name, steps, schedule, normals=normals, **more) for normals in ("path", "fresh"))
        assert abs(path[0] - fresh[0]) < 1e-12 and abs(path[1] - fresh[1]) < 1e-12


# ---------------------------------------------------------------------------------------------- one path, more steps


@pytest.mark.parametrize(("name", "order"), [
    ("ddpm", 1), ("ddim", 1), ("euler_ancestral", 1), ("dpmpp_2m_sde", 1), ("dpmpp_3m_sde", 1), ("dpmpp_sde", 1),
    ("seeds_2", 1), ("seeds_3", 1), ("er_sde", 1), ("sa_solver", 1),
])  # fmt: skip
def test_twice_the_steps_give_nearly_the_same_samples(name, order):
    denoiser = problems.create("mixture").denoiser("gaussian")
    more = {"batch": 64, "grid": "karras", "t_end": 0.01} | ({"eta": 1.0} if name == "ddim" else {})
    runs = {n: end(denoiser, name, STAGED.get(name, 1) * n, **more) for n in (40, 80, 160, 320)}
    gaps = [rms(runs[n] - runs[2 * n]) for n in (40, 80, 160)]
    slope = math.log2(gaps[0] / gaps[-1]) / 2
    assert slope > order - 0.2, (slope, gaps)
    fresh = [end(denoiser, name, STAGED.get(name, 1) * n, normals="fresh", **more) for n in (160, 320)]
    assert rms(fresh[0] - fresh[1]) > 10 * gaps[-1]


# ---------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("a", "b"), [
    (("ddim", {}), ("euler", {})),
    (("euler", {}), ("dpm_solver", {"order": 1})),
    (("euler_ancestral", {"eta": 0.0}), ("euler", {})),
    (("euler_ancestral", {"eta": 0.0, "cfg_pp": True}), ("euler", {"cfg_pp": True})),
    (("euler", {"cfg_pp": True}), ("euler", {})),  # without guidance
    (("dpm_2_ancestral", {"eta": 0.0}), ("dpm_2", {})),
    (("dpmpp_2s_ancestral", {"eta": 0.0}), ("dpmpp_sde", {"eta": 0.0})),
    (("dpmpp_2s_ancestral", {"cfg_pp": True}), ("dpmpp_2s_ancestral", {})),
    (("dpmpp_sde", {"eta": 0.0}), ("seeds_2", {"eta": 0.0})),
    (("dpmpp_sde", {}), ("seeds_2", {})),
    (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
    (("er_sde", {"eta": 0.0, "order": 1}), ("euler", {})),
    (("er_sde", {"order": 1, "scale": "power"}), ("ddpm", {})),
    (("restart", {"restarts": 0}), ("heun", {})),
    (("ddim", {"eta": 1.0}), ("ddpm", {})),
    (("ddim", {"eta": 1.0}), ("euler_ancestral", {})),
    (("ddpm", {}), ("sa_solver", {"predictor_order": 1, "corrector_order": 0})),
    (("sa_solver", {"corrector_order": 0}), ("dpmpp_2m_sde", {"solver_type": "heun"})),
    (("sa_solver", {"predictor_order": 3, "corrector_order": 0}), ("dpmpp_3m_sde", {})),
    (("sa_solver", {"tau": 0.5, "predictor_order": 3, "corrector_order": 0}), ("dpmpp_3m_sde", {"eta": 0.25})),
])  # fmt: skip
def test_identities(a, b, schedule):
    denoiser = TinyMixture(schedule=schedule)
    x, y = (end(denoiser, name, 11, grid="logsnr", **options) for name, options in (a, b))
    torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


def test_the_seeds_3_stages_without_noise_are_those_of_dpm_solver_plus_plus():
    """DPM-Solver++ (3S), r_1 = 1/3 and r_2 = 2/3, written out."""
    denoiser, schedule = TinyMixture(), noise_schedule("vp_linear")
    s, t = (Point.at(schedule, t=v) for v in (0.8, 0.6))
    one, two = (Point.at(schedule, lam=s.lam + r * (t.lam - s.lam)) for r in (1 / 3, 2 / 3))
    x = torch.linspace(-1.5, 1.5, 4, dtype=torch.float64)[None]

    def x0(value, at):
        return denoiser.predict(value, torch.full((1,), at.t, dtype=torch.float64))

    m0, h = x0(x, s), t.lam - s.lam
    a = one.sigma / s.sigma * x - one.alpha * math.expm1(-h / 3) * m0
    D = x0(a, one) - m0
    k = -2 * h / 3
    b = two.sigma / s.sigma * x - two.alpha * math.expm1(k) * m0 + 2 * two.alpha * (math.expm1(k) / -k + 1) * D
    c = (
        t.sigma / s.sigma * x
        - t.alpha * math.expm1(-h) * m0
        + 1.5 * t.alpha * (math.expm1(-h) / h + 1) * (x0(b, two) - m0)
    )
    sampler = samplers.create("seeds_3", eta=0.0, end="t_end")
    canvas = NoiseCanvas(denoiser, 3, Rng.of(0, 1), times=(s.t, t.t))
    state = dataclasses.replace(sampler.init(canvas), x=x)
    out = sampler.step(lambda value, at: x0(value, at), state).x
    torch.testing.assert_close(out, c, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------- integrals


@pytest.mark.parametrize("x", [1e-8, 1e-4, 0.3, 0.999, 1.0, 2.5, 30.0, -0.4, -3.0])
def test_moments_against_mpmath(x):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        exact = [mpmath.quad(lambda v, k=k: x * mpmath.exp(-x * (1 - v)) * v**k, [0, 0.5, 1]) for k in range(4)]
    for got, want in zip(moments(x, 4), exact):
        assert abs(got - want) <= 1e-13 * max(1, abs(want)) and abs(got / want - 1) < 1e-11


def test_moments_of_an_infinite_step_are_the_value_at_its_end():
    assert moments(math.inf, 4) == [1, 1, 1, 1]


def test_weights_integrate_polynomials():
    nodes, integrals = [0.0, -0.7, -2.0, 1.0], moments(0.8, 4)
    by = weights(nodes, integrals)
    for k in range(4):
        assert abs(sum(w * v**k for w, v in zip(by, nodes)) - integrals[k]) < 1e-13


# ---------------------------------------------------------------------------------------------- no data at the start


class FromPureNoise(Flow):
    """Flow from t = 1, where alpha = 0 and the half log-SNR is -infinity."""

    def __init__(self):
        object.__setattr__(self, "t_max", 1.0)
        super().__init__(t_max=1.0)


@pytest.mark.parametrize("name", ALL)
def test_a_start_without_data(name):
    denoiser = TinyMixture(schedule=FromPureNoise())
    options = [{}]
    known = [o.name for o in registry.load(name).options()]
    options += [{key: 0.0} for key in ("eta", "tau") if key in known]
    options += [{"s_churn": 5.0}] if "s_churn" in known else []
    options += [{"split": "sigma"}, {"split": "sigma", "eta": 0.5}] if "split" in known else []
    options += [{"eta": 3.0}] if name == "euler_ancestral" else []
    for more in options:
        for steps in (1, 2, 3, 4, 5, 8, 30):
            for close in ("zero", "t_end"):
                run = {"grid": "time_uniform", "end": close, "batch": 16}
                out = samplers.sample(denoiser, name, steps=steps, **run, **more)
                assert torch.isfinite(out.x).all() and out.nfe == steps, (more, steps, close)
    # The marginal is right in the end: mean .08 and standard deviation 1 of the mixture.
    x = samplers.sample(denoiser, name, steps=60, batch=2000, grid="time_uniform", end="zero").x
    assert abs(float(x.mean()) - 0.08) < 0.06 and abs(float(x.std()) - 0.98) < 0.06
