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
from samplers.gaussian.exponential import lagrange_weights
from samplers.gaussian.steps import moments
from samplers.noise_schedules import Point, noise_schedule
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


SIZE = 6000  # coefficients


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
        numbers = self.__dict__["numbers"]
        number = numbers.setdefault(draw, len(numbers) + 2)
        out = torch.zeros(SIZE, dtype=torch.float64)
        out[number] = 1.0
        return out

    def first(self, point):
        mean, variance = self.denoiser.law(point)
        x = torch.zeros(SIZE, dtype=torch.float64)
        x[0], x[1] = mean, math.sqrt(variance)
        return x


def coefficients(name, steps, schedule="edm", numbers=None, **options):
    """The last state of a run; numbers: the unit vector of each draw, to be shared with other runs."""
    line = Line(noise_schedule(schedule))
    sampler = samplers.create(name, **({"end": "t_end", "grid": "logsnr", "t_end": 0.02} | options))
    canvas = Coefficients(line, steps, Rng.of(0, 1))
    canvas.__dict__["numbers"] = {} if numbers is None else numbers
    state = sampler.init(canvas)
    while not state.finished:
        state = sampler.step(line, state)
    return state


def weak_errors(name, steps, schedule="edm", **options):
    """Errors of the mean and of the variance at the end of a run, without any sampling: all steps are affine."""
    state = coefficients(name, steps, schedule, **options)
    mean, variance = state.canvas.denoiser.law(state.points[-1])
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
    errors = [weak_errors(name, STAGED.get(name, 1) * n, noise="fresh", **options)[1] for n in (160, 320)]
    assert abs(math.log2(abs(errors[0] / errors[1])) - order) < 0.15, errors


def test_independent_noise_of_the_stages_would_cost_an_order(monkeypatch):
    """What joined() is for: diffusers' singlestep sde-dpmsolver++ draws the whole step's normals anew."""
    monkeypatch.setattr("samplers.gaussian.dpmpp_sde.joined", lambda first, second, *points: second)
    errors = [weak_errors("dpmpp_sde", 2 * n, noise="fresh")[1] for n in (160, 320)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.15, errors


@pytest.mark.parametrize("name", [n for n in ALL if "noise" in [o.name for o in registry.load(n).options()]])
def test_a_path_and_fresh_normals_have_one_law(name):
    """Exactly: the mean and the variance of the end, with normals that overlap in no way and with those of a path."""
    steps = 6 * STAGED.get(name, 1) + 1
    for schedule in SCHEDULES:
        more = {"t_end": None, "grid": "karras"} | ({"eta": 1.0} if name == "ddim" else {})
        path, fresh = (weak_errors(name, steps, schedule, noise=noise, **more) for noise in ("path", "fresh"))
        assert abs(path[0] - fresh[0]) < 1e-12 and abs(path[1] - fresh[1]) < 1e-12


# ---------------------------------------------------------------------------------------------- one path, more steps


@pytest.mark.parametrize(("name", "options", "order"), [
    ("ddpm", {}, 1), ("ddim", {"eta": 1.0}, 1), ("euler_ancestral", {}, 1), ("euler_ancestral", {"eta": 0.5}, 1),
    ("dpmpp_2m_sde", {}, 1), ("dpmpp_3m_sde", {}, 1), ("dpmpp_sde", {}, 1), ("dpm_2_ancestral", {}, 1),
    ("dpmpp_2s_ancestral", {}, 1), ("seeds_2", {}, 1), ("seeds_3", {}, 1), ("er_sde", {}, 1), ("sa_solver", {}, 1),
])  # fmt: skip
def test_twice_the_steps_follow_the_same_path(name, options, order):
    """The root mean square difference of x between runs of n and 2 n steps on one path, exactly: from the coefficients."""
    gaps = []
    for n in (40, 80, 160):
        numbers = {}
        runs = [
            coefficients(name, STAGED.get(name, 1) * k, numbers=numbers, grid="karras", **options) for k in (n, 2 * n)
        ]
        gaps.append(float((runs[0].x - runs[1].x)[1:].norm()))
    slope = math.log2(gaps[-2] / gaps[-1])
    assert slope > order - 0.15, (slope, gaps)
    assert gaps[-1] < 0.03


def test_two_mode_samples_come_close_with_twice_the_steps():
    denoiser = problems.create("mixture").denoiser("gaussian")
    for name in ("euler_ancestral", "dpmpp_2m_sde", "er_sde"):
        runs = {
            k: [end(denoiser, name, n, batch=64, grid="karras", noise=k) for n in (40, 80)] for k in ("path", "fresh")
        }
        path, fresh = (float((a - b).abs().median()) for a, b in runs.values())
        assert path < 0.2 * fresh, name


# ---------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("a", "b"), [
    (("ddim", {}), ("euler", {})),
    (("euler_ancestral", {"eta": 0.0}), ("euler", {})),
    (("euler_ancestral", {"eta": 0.0, "cfg_pp": True}), ("euler", {"cfg_pp": True})),
    (("euler", {"cfg_pp": True}), ("euler", {})),  # without guidance
    (("dpm_2_ancestral", {"eta": 0.0}), ("dpm_2", {})),
    (("dpmpp_2s_ancestral", {"eta": 0.0}), ("dpmpp_sde", {"eta": 0.0})),
    (("dpmpp_2s_ancestral", {"cfg_pp": True}), ("dpmpp_2s_ancestral", {})),
    (("dpmpp_sde", {"eta": 0.0}), ("seeds_2", {"eta": 0.0})),
    (("dpmpp_sde", {}), ("seeds_2", {})),
    (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
    (("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}), ("dpmpp_2m", {"solver_type": "taylor"})),
    (("dpmpp_3m_sde", {"eta": 0.0}), ("dpmpp_3m", {})),
    (("dpmpp_3m_sde", {"eta": 0.0, "published": True}), ("dpmpp_3m", {"published": True})),
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


@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])  # from alpha = 0 the two begin otherwise
def test_dpmpp_2s_ancestral_without_noise_is_dpmpp_2s(schedule):
    denoiser = TinyMixture(schedule=schedule)
    x, y = end(denoiser, "dpmpp_2s", 11), end(denoiser, "dpmpp_2s_ancestral", 11, eta=0.0)
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
    by = lagrange_weights(nodes, integrals)
    for k in range(4):
        assert abs(sum(w * v**k for w, v in zip(by, nodes)) - integrals[k]) < 1e-13


# ---------------------------------------------------------------------------------------------- no data at the start


@pytest.mark.parametrize("name", ALL)
def test_a_start_without_data(name):
    denoiser = TinyMixture(schedule="flow")
    assert denoiser.schedule.t_max == 1  # alpha = 0, and the half log-SNR is -infinity
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
    # The marginal is right in the end: the mixture has the mean .08 and the standard deviation .988.
    x = samplers.sample(denoiser, name, steps=60, batch=2000, grid="time_uniform").x
    assert abs(float(x.mean()) - 0.08) < 0.06 and abs(float(x.std()) - 0.988) < 0.08


# ---------------------------------------------------------------------------------------------- rules written out


class Guided:
    """A predictor whose guided and unguided answers differ."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def pair(self, x, at):
        unguided = self.denoiser.predict(x, torch.full((len(x),), at.t, dtype=torch.float64))
        return unguided + 0.3 * torch.tanh(x) + 0.1, unguided

    def __call__(self, x, at):
        return self.pair(x, at)[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cfg_pp_takes_the_noise_of_the_unguided_prediction(schedule):
    predict = Guided(TinyMixture(schedule=schedule))
    s, t = (Point.at(predict.denoiser.schedule, t=v * predict.denoiser.schedule.t_max) for v in (0.6, 0.5))
    for name in ("euler", "euler_ancestral", "dpmpp_2s_ancestral"):
        sampler = samplers.create(name, cfg_pp=True, end="t_end")
        state = sampler.init(NoiseCanvas(predict.denoiser, STAGED.get(name, 1), Rng.of(3, 2), times=(s.t, t.t)))
        out = sampler.step(predict, state).x
        x0, u = predict.pair(state.x, s)
        down, up, z = t.sigma, 0.0, 0.0
        if name != "euler":
            h = t.lam - s.lam
            up = t.sigma * math.sqrt(1 - math.exp(-2 * h))
            down, z = math.sqrt(t.sigma**2 - up**2), state.path.normal(s.lam, t.lam)
        if name == "dpmpp_2s_ancestral":  # in the scale of k-diffusion, y = x / alpha and r = sigma / alpha
            y, r, r_down = state.x / s.alpha + x0 - u, s.sigma / s.alpha, down / t.alpha
            middle = Point.at(predict.denoiser.schedule, lam=-math.log(r * r_down) / 2)
            r_middle = middle.sigma / middle.alpha
            half = r_middle / r * y + (1 - r_middle / r) * x0
            want = t.alpha * (r_down / r * y + (1 - r_down / r) * predict(middle.alpha * half, middle)) + up * z
        else:
            want = t.alpha * x0 + down * (state.x - s.alpha * u) / s.sigma + up * z
        torch.testing.assert_close(out, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_split_by_sigma_is_the_rule_for_flow(eta):
    """ComfyUI's euler_ancestral of rectified flow, written out: down to sigma_d, then up with the scale of alpha kept."""
    predict = Guided(TinyMixture(schedule="flow"))
    s, t = (Point.at(predict.denoiser.schedule, t=v) for v in (0.7, 0.55))
    sampler = samplers.create("euler_ancestral", split="sigma", eta=eta, end="t_end")
    state = sampler.init(NoiseCanvas(predict.denoiser, 1, Rng.of(3, 2), times=(s.t, t.t)))
    sigma_d = t.t * (1 + (t.t / s.t - 1) * eta)
    x0 = predict(state.x, s)
    x_d = sigma_d / s.t * state.x + (1 - sigma_d / s.t) * x0
    factor = (1 - t.t) / (1 - sigma_d)
    want = factor * x_d + math.sqrt(t.t**2 - (sigma_d * factor) ** 2) * state.path.normal(s.lam, t.lam)
    torch.testing.assert_close(sampler.step(predict, state).x, want, rtol=0, atol=1e-11)


def test_ddpm_variances_are_the_paper_s():
    """Ho et al. 2020, eq. 7: beta and beta tilde of a step between two levels of a variance preserving schedule."""
    denoiser = TinyMixture()
    s, t = (Point.at(denoiser.schedule, t=v) for v in (0.6, 0.5))
    beta = 1 - s.alpha**2 / t.alpha**2
    tilde = t.sigma**2 / s.sigma**2 * beta
    for variance, n2 in (("small", tilde), ("large", beta)):
        sampler = samplers.create("ddpm", variance=variance, end="t_end")
        state = sampler.init(NoiseCanvas(denoiser, 1, Rng.of(3, 2), times=(s.t, t.t)))
        x0 = denoiser.predict(state.x, torch.full((2,), s.t, dtype=torch.float64))
        ratio = s.alpha / t.alpha
        mean = t.alpha * beta / s.sigma**2 * x0 + ratio * t.sigma**2 / s.sigma**2 * state.x
        want = mean + math.sqrt(n2) * state.path.normal(s.lam, t.lam)
        out = sampler.step(lambda x, at: denoiser.predict(x, torch.full((2,), at.t, dtype=torch.float64)), state).x
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_er_sde_integrals_against_mpmath():
    """The weights of the powers of r in a step, by high-order quadrature of the exact solution."""
    mpmath = pytest.importorskip("mpmath")
    s, h = Point(0.5, 0.6, 0.8, math.log(0.6 / 0.8)), 0.7
    r_s, r_t = math.exp(-s.lam), math.exp(-s.lam - h)
    phi = {
        "power": lambda r: r**2,
        "er": lambda r: r * (mpmath.exp(r ** mpmath.mpf("0.3")) + 10),
    }
    for scale, f in phi.items():
        for k, got in enumerate(samplers.create("er_sde", scale=scale)._higher(s, h, 3), start=1):
            want = f(r_t) * mpmath.quad(
                lambda r, k=k, f=f: ((r - r_s) / (r_t - r_s)) ** k * mpmath.diff(f, r) / f(r) ** 2, [r_t, r_s]
            )
            assert abs(got - float(want)) < 1e-10, (scale, k)


# ---------------------------------------------------------------------------------------------- options


def test_options_that_cannot_be():
    denoiser = TinyMixture()
    with pytest.raises(OptionError, match="split='snr'"):
        samplers.sample(denoiser, "euler_ancestral", steps=3, split="sigma")
    with pytest.raises(OptionError, match="s_tmin=3 must be below s_tmax=2"):
        samplers.create("restart", s_tmin=3.0)
    for name, options in (
        ("dpmpp_2m_sde", {}),
        ("euler", {"s_churn": 1.0}),
        ("sa_solver", {}),
        ("restart", {}),
        ("ddpm", {}),
    ):
        start = torch.zeros(1, 4, dtype=torch.float64)
        with pytest.raises(OptionError, match="draws noise"):
            samplers.sample(denoiser, name, start=start, t_start=1e-3, t_end=1.0, end="t_end", steps=3, **options)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "ddim"])
def test_inversion_and_back(name):
    denoiser = TinyMixture()
    x = samplers.sample(denoiser, "heun", batch=4, steps=200, end="t_end").x
    run = {"batch": 4, "steps": 400, "end": "t_end", "grid": "logsnr"}
    up = samplers.sample(denoiser, name, start=x, t_start=1e-3, t_end=1.0, **run).x
    back = samplers.sample(denoiser, name, start_noise=up / float(denoiser.schedule.sigma(1.0)), **run).x
    assert float((back - x).abs().max()) < (0.2 if name in ("euler", "ddim") else 2e-2)


def test_churn_adds_noise_inside_its_bounds_only():
    denoiser = TinyMixture(schedule="edm")
    run = {"batch": 3, "steps": 12, "grid": "logsnr"}
    for name in ("euler", "heun", "dpm_2"):
        plain = samplers.sample(denoiser, name, **run).x
        assert torch.equal(samplers.sample(denoiser, name, s_churn=8.0, s_tmin=1e3, **run).x, plain)
        assert torch.equal(samplers.sample(denoiser, name, s_churn=8.0, s_tmax=1e-3, **run).x, plain)
        assert not torch.equal(samplers.sample(denoiser, name, s_churn=8.0, **run).x, plain)
        asked = []
        watching = samplers.GaussianDenoiser.wrap(
            lambda x, t, seen=asked: (seen.append(float(t.max())), x * 0)[1],
            shape=(2,),
            schedule="edm",
            prediction="x0",
        )
        samplers.sample(watching, name, s_churn=8.0, **run)
        assert max(asked) <= 80.0 * (1 + 1e-12), "the model is never asked beyond t_max"


def test_restart_goes_back_up():
    denoiser = TinyMixture(schedule="edm")
    states = list(samplers.stream(denoiser, "restart", batch=2, steps=31, grid="karras", restarts=2, restart_steps=3))
    tops = [top for top in states[0].tops if top is not None]
    assert [round(math.exp(-top.lam), 12) for top in tops] == [2.0, 2.0]
    assert sum(states[0].evaluations) == 30
    few = next(iter(samplers.stream(denoiser, "restart", batch=2, steps=5)))
    assert not any(few.tops)


def test_growth_keeps_long_last_steps_from_extrapolating():
    """On flow in uniform times the last step is four times as long as the one before it."""
    problem = problems.create("mixture")
    denoiser = problem.denoiser("gaussian", schedule="flow")
    for name in ("dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"):
        score = {
            growth: float(problem.score(
                samplers.sample(denoiser, name, batch=2000, steps=10, grid="time_uniform", growth=growth).x
            )["energy"].value)
            for growth in (1.5, None)
        }  # fmt: skip
        assert score[1.5] < 0.02 < score[None], (name, score)
