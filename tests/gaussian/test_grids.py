"""Grids of times: the published ones by their numbers, and what holds for all of them."""

import math

import numpy as np
import pytest
import torch

import samplers
from samplers import OptionError, noise_schedule, problems
from samplers.canvas import NoiseCanvas
from samplers.gaussian.grid import GridState
from samplers.gaussian.grids import GRIDS, spaced
from samplers.noise_schedules import EDM, Flow, Point
from samplers.random import Rng

SCHEDULES = ["vp_linear", "vp_cosine", "edm", "flow", "flow(3)", "scaled_linear", "squared_cosine(zero_snr)"]
STRIDED = ("leading", "ddim_uniform")  # on tables these begin below the start


def run(grid, schedule, n, **changes):
    """The points of a run of n evaluations that closes, over the whole schedule."""
    schedule = noise_schedule(schedule)
    options = {"start": schedule.t_max, "end": schedule.t_min, "closing": True} | changes
    return spaced(grid, schedule, intervals=n - 1, **options)


def times(*args, **changes):
    return [p.t for p in run(*args, **changes)]


def ratios(*args, **changes):
    return np.array([p.sigma / p.alpha for p in run(*args, **changes)])


# --------------------------------------------------------------------------------- what holds for all


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid(grid, schedule):
    noise = noise_schedule(schedule)
    for n in (1, 2, 3, 4, 5, 17, 200):
        for closing in (True, False):
            points = run(grid, schedule, n, closing=closing)
            assert len(points) == n
            if not (grid in STRIDED and noise.entries and closing and n > 1):
                assert points[0].t == noise.t_max
            if not closing and n > 1:
                assert points[-1].t == noise.t_min
            lams = [p.lam for p in points]
            assert all(a < b for a, b in zip(lams, lams[1:]))
            assert all(math.isfinite(p.lam) and p.t >= noise.t_min for p in points[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_part_of_a_schedule(grid, schedule):
    """A run that starts at a given time begins there exactly, and never goes below its end."""
    noise = noise_schedule(schedule)
    start, end = 0.613 * noise.t_max, 0.123 * noise.t_max
    for n in (2, 3, 10):
        for closing in (True, False):
            points = run(grid, schedule, n, start=start, end=end, closing=closing)
            assert points[0].t == start
            assert all(a.t > b.t for a, b in zip(points, points[1:]))
            assert points[-1].t >= end and (closing or points[-1].t == end)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_inversion_is_the_same_grid_upwards(grid, schedule):
    noise = noise_schedule(schedule)
    down = run(grid, schedule, 7, closing=False)
    up = run(grid, schedule, 7, start=noise.t_min, end=noise.t_max, closing=False)
    assert up == down[::-1]


def test_more_points_than_a_table_has():
    for grid in GRIDS:
        assert len(run(grid, "scaled_linear", 1500)) == 1500


def test_all_indices_of_a_table():
    for grid in ("trailing", "simple", "leading"):
        assert times(grid, "scaled_linear", 1000) == list(range(999, -1, -1))


def test_errors():
    with pytest.raises(OptionError, match=r"unknown grid 'karas': did you mean 'karras'"):
        run("karas", "edm", 5)
    with pytest.raises(OptionError, match="start = end"):
        run("karras", "edm", 5, end=80.0)
    with pytest.raises(OptionError, match="adds noise, so it cannot close"):
        run("karras", "edm", 5, start=1.0, end=80.0)
    with pytest.raises(OptionError, match="rho must be a positive number"):
        run("karras", "edm", 5, rho=0.0)
    with pytest.raises(OptionError, match="cannot tell 50 points apart"):
        run("logsnr", "edm", 50, start=math.nextafter(1.0, 2.0), end=1.0, closing=False)


# -------------------------------------------------------------------------------------- by their equations


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "scaled_linear"])
def test_even_in_what_they_say(schedule):
    def steps(values):
        return np.diff(np.array(values))

    def level(values):
        np.testing.assert_allclose(steps(values), steps(values)[0], rtol=1e-8)

    level([p.lam for p in run("logsnr", schedule, 9)])
    level(ratios("karras", schedule, 9) ** (1 / 7))
    level(ratios("karras", schedule, 9, rho=3.0) ** (1 / 3))
    level(np.arctan(ratios("kl_optimal", schedule, 9)))
    level(times("time_uniform", schedule, 9))
    shares = 1 / (1 + 0.85 / ratios("logistic", schedule, 9))
    level([*shares, 0.0])
    level(1 / (1 + (0.85 / ratios("logistic", schedule, 9, closing=False)) ** 0.7))
    assert run("exponential", schedule, 9) == run("logsnr", schedule, 9)
    assert run("normal", schedule, 9) == run("time_uniform", schedule, 9)


def test_quadratic_on_a_table_counts_from_one():
    """DPM-Solver's code labels entry i (i + 1) / N."""
    expected = 1000 * np.linspace(1, np.sqrt(1 / 1000), 6) ** 2 - 1
    np.testing.assert_allclose(times("time_quadratic", "ddpm_linear", 6), expected, atol=1e-9)


def test_k_diffusion():
    """get_sigmas_karras, get_sigmas_exponential and get_sigmas_polyexponential, as k-diffusion 0.1.1 defines them."""
    low, high, ramp = 0.002, 80.0, np.linspace(0, 1, 8)
    for rho in (7.0, 5.0):
        expected = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        np.testing.assert_allclose(times("karras", "edm", 8, rho=rho), expected, rtol=1e-10)
    np.testing.assert_allclose(times("exponential", "edm", 8), np.geomspace(high, low, 8), rtol=1e-12)
    expected = np.exp((1 - ramp) ** 2 * math.log(high / low) + math.log(low))
    np.testing.assert_allclose(times("polyexponential", "edm", 8, rho=2.0), expected, rtol=1e-12)
    np.testing.assert_allclose(times("polyexponential", "edm", 8), times("logsnr", "edm", 8), rtol=1e-12)


def test_edm_grid_of_flow_matching():
    """sigma from 80 to 0.002, t = sigma / (1 + sigma); the first point stays at pure noise."""
    sigma = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 6) ** 7
    np.testing.assert_allclose(times("edm_flow", "flow", 6), [1.0, *(sigma / (1 + sigma))[1:]], rtol=1e-10)
    assert run("edm_flow", "edm", 6) == run("karras", "edm", 6)


def test_grids_in_lambda_begin_inside():
    """From pure noise: the first point at alpha = 0, the others of the grid from lambda = -5.1."""
    lams = [p.lam for p in run("logsnr", "flow", 6)]
    assert lams[0] == -math.inf
    np.testing.assert_allclose(lams[1:], np.linspace(-5.1, lams[-1], 6)[1:], rtol=1e-9)


# ------------------------------------------------------------------------------ indices of other libraries


def test_frozen_indices():
    """diffusers 0.42.0, DPMSolverMultistepScheduler (linspace, trailing) and DDIMScheduler (leading), 1000 entries."""
    assert times("linspace", "ddpm_linear", 10) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert times("linspace", "ddpm_linear", 7) == [999, 856, 714, 571, 428, 285, 143]
    assert times("trailing", "ddpm_linear", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times("trailing", "ddpm_linear", 7) == [999, 856, 713, 570, 428, 285, 142]
    assert times("leading", "ddpm_linear", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert times("leading", "ddpm_linear", 7) == [852, 710, 568, 426, 284, 142, 0]
    karras = [round(t) for t in times("karras", "ddpm_linear", 10)]
    assert karras == [999, 937, 864, 775, 663, 511, 301, 102, 18, 0]
    exponential = [int(t) for t in times("exponential", "ddpm_linear", 10)]  # theirs are cut off
    assert exponential == [999, 886, 757, 602, 409, 202, 72, 21, 4, 0]
    np.testing.assert_allclose(
        ratios("karras", "scaled_linear", 5), [14.6146, 4.79654, 1.27411, 0.247952, 0.0291675], rtol=2e-5
    )


@pytest.mark.parametrize("n", [2, 3, 4, 7, 10, 13, 16, 25, 30, 50, 333, 1000])
def test_indices_of_diffusers(n):
    diffusers = pytest.importorskip("diffusers")
    exact = {"linspace": 999 - 999 * np.arange(n) / n, "trailing": 999 - 1000 * np.arange(n) / n}
    for spacing, raw in exact.items():
        if n == 1000 and spacing == "linspace":
            continue  # theirs asks at some index twice
        scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        ours, theirs = np.array(times(spacing, "ddpm_linear", n)), scheduler.timesteps.numpy()
        half = np.abs(raw % 1 - 0.5) < 1e-9  # there the rounding errors of their arithmetic decide
        assert (ours == theirs)[~half].all() and np.abs(ours - theirs).max() <= 1
    for offset, ours in ((0, "leading"), (1, "ddim_uniform")):
        if n == 1000 and offset:
            continue  # their first index would be 1000
        scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=offset)
        scheduler.set_timesteps(n)
        assert times(ours, "ddpm_linear", n) == scheduler.timesteps.tolist()
    euler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    euler.set_timesteps(n)
    np.testing.assert_allclose(times("time_uniform", "ddpm_linear", n), euler.timesteps.numpy(), atol=1e-4)
    for switch, ours in (("karras", "karras"), ("exponential", "logsnr"), ("lu_lambdas", "logsnr")):
        key = "use_lu_lambdas" if switch == "lu_lambdas" else f"use_{switch}_sigmas"
        scheduler = diffusers.DPMSolverMultistepScheduler(**{key: True})
        scheduler.set_timesteps(n)
        np.testing.assert_allclose(ratios(ours, "ddpm_linear", n), scheduler.sigmas[:-1].numpy(), rtol=2e-4)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 10, 16, 20, 30, 50])
def test_indices_of_comfyui(n):
    """simple: entry N - 1 - int(i N / n); beta: the nearest entry to the quantile; sgm_uniform: the last of n + 1 dropped."""
    from scipy.stats import beta

    assert times("simple", "scaled_linear", n) == [999 - int(i * (1000 / n)) for i in range(n)]
    quantiles = beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6)
    assert times("beta", "scaled_linear", n) == np.rint(quantiles * 999).tolist()
    np.testing.assert_allclose(times("sgm_uniform", "scaled_linear", n), np.linspace(999, 0, n + 1)[:-1], atol=1e-9)
    assert times("ddim_uniform", "scaled_linear", n) == [1 + i * (1000 // n) for i in range(n)][::-1]


def test_linear_quadratic():
    """Frozen: diffusers 0.42.0, pipeline_mochi.linear_quadratic_schedule(6, 0.025)."""
    expected = [1.0, 0.9916666666666667, 0.9833333333333333, 0.975, 0.8611111111111112, 0.5361111111111112]
    np.testing.assert_allclose(times("linear_quadratic", "flow", 6), expected, rtol=1e-12)
    np.testing.assert_allclose(times("linear_quadratic", "edm", 6), 80 * np.array(expected), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11, 28])
def test_linear_quadratic_of_diffusers(n):
    mochi = pytest.importorskip("diffusers.pipelines.mochi.pipeline_mochi", exc_type=(ImportError, RuntimeError))
    expected = mochi.linear_quadratic_schedule(n, 0.025)
    np.testing.assert_allclose(times("linear_quadratic", "flow", n), expected, rtol=1e-12)


def test_shift_moves_the_points_that_are_even_in_time():
    for grid in ("trailing", "sgm_uniform", "time_uniform", "simple"):
        plain = np.array(times(grid, "flow", 5))[:-1]
        shifted = np.array(times(grid, Flow(3.0, t_min=1e-3), 5))[:-1]
        if grid == "time_uniform":  # its last point is the end, whose even time moves instead
            plain = np.linspace(1, 1e-3 / (3 - 2e-3), 5)[:-1]
        if grid == "sgm_uniform":
            plain = np.linspace(1, 1e-3 / (3 - 2e-3), 6)[:-2]
        np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-12)
    for grid in ("karras", "logsnr", "kl_optimal", "ays:sdxl"):
        assert run(grid, "flow(3)", 5) == run(grid, "flow", 5)


def test_flux_shift_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        scheduler.set_timesteps(mu=mu, sigmas=np.linspace(1, 1 / 8, 8))  # as the FLUX pipeline does it
        ours = times("trailing", Flow.for_tokens(tokens), 8)
        np.testing.assert_allclose(ours, scheduler.sigmas[:-1].numpy(), rtol=3e-7)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_align_your_steps(model):
    """Ten evaluations are the published list; twenty have it at every second point."""
    published = {
        "sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152],
        "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113],
    }[model]
    np.testing.assert_allclose(ratios(f"ays:{model}", "scaled_linear", 10), published, rtol=1e-4)
    twenty = ratios(f"ays:{model}", "scaled_linear", 20)
    np.testing.assert_allclose(twenty[::2], published, rtol=1e-4)
    np.testing.assert_allclose(twenty[1:-1:2] ** 2, twenty[:-2:2] * twenty[2::2], rtol=1e-4)


def test_align_your_steps_of_svd():
    published = [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034]
    np.testing.assert_allclose(times("ays:svd", "edm(0.002,700)", 10), published, rtol=1e-9)


# ----------------------------------------------------------------------------------------------- auto


def test_auto_of_a_flow_is_trailing_and_else_logistic():
    assert run("auto", "flow(3)", 6) == run("trailing", "flow(3)", 6)
    assert run("auto", "edm", 6) == run("logistic", "edm", 6)
    assert run("auto", "flow", 6, closing=False) == run("logistic", "flow", 6, closing=False)


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "flow", "scaled_linear"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddim"])
def test_auto_is_good(schedule, solver):
    """On the exact mixture, from x_T to the ODE's solution: what bench/grids.py measures, at 8 and 20 evaluations."""
    noise, problem = noise_schedule(schedule), problems.create("mixture")
    denoiser, rng = problem.denoiser(schedule=noise), Rng.of(0, 64)
    first = Point.at(noise, t=noise.t_max)
    x_T = first.sigma * rng.normal(denoiser.shape, 0, torch.float64)
    if first.alpha:  # in the coordinates of EDM, since a table ends above sigma = 0
        truth = problem.truth(x_T / first.alpha, 1e-5, t_start=first.sigma / first.alpha, schedule=EDM())
    else:
        truth = problem.truth(x_T, 1e-5, schedule=noise)

    def predict(x, at):
        return denoiser.predict(x, torch.full((len(x),), getattr(at, "t", at), dtype=torch.float64))

    def error(grid, n):
        sampler = samplers.create(solver, end="zero")
        state = GridState.begin(NoiseCanvas(denoiser, n, rng), points=run(grid, noise, n), x=x_T)
        while not state.last:
            state = sampler.step(predict, state)
        return float((state.x - truth).pow(2).mean().sqrt())

    for n in (8, 20):
        assert error("auto", n) < 0.97 * min(error(grid, n) for grid in ("logsnr", "karras", "time_uniform"))


class Growing(samplers.noise_schedules.NoiseSchedule):
    """vp_linear up to a time that may change, as no schedule of ours does."""

    name, t_min, t_max = "growing", 0.001, 0.5

    def __init__(self):
        self.inner = noise_schedule("vp_linear")

    def log_alpha(self, t):
        return self.inner.log_alpha(t)

    def log_sigma(self, t):
        return self.inner.log_sigma(t)

    def t_of(self, lam):
        return self.inner.t_of(lam)


def test_grids_are_remembered_only_of_schedules_that_cannot_change():
    sampler = samplers.create("ddim", grid="logsnr")
    canvas = NoiseCanvas(problems.create("mixture").denoiser(schedule="edm"), 5, Rng.of(0, 1))
    assert sampler.times(canvas, 4) is not sampler.times(canvas, 3)
    assert sampler.times(canvas, 4)[0] is sampler.times(canvas, 4)[0]
    schedule = Growing()
    canvas = NoiseCanvas(problems.create("mixture").denoiser(schedule=schedule), 5, Rng.of(0, 1))
    assert sampler.times(canvas, 4)[0].t == 0.5
    schedule.t_max = 1.0
    assert sampler.times(canvas, 4)[0].t == 1.0
