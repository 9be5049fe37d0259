"""The solvers beside k-diffusion and diffusers, in float64, on the same noise levels and with the same normals.

The numbers of a run of each peer are kept here, with its version, so that they are compared without it too.
"""

import math

import pytest
import torch

import samplers
from samplers.canvas import NoiseCanvas
from samplers.gaussian.stochastic import joined
from samplers.noise_schedules import Point
from samplers.random import Rng
from samplers.testing.tiny import TinyMixture

STEPS = 7  # solver steps


class Fixed(NoiseCanvas):
    """Noise that depends on no generator: made of sines, of about the right size."""

    def noise(self, draw):
        k = torch.arange(8, dtype=torch.float64).view(2, 4)
        return 1.4 * torch.sin(12.9898 * (draw + 1) + 78.233 * k + 0.37 * draw * k)


def ours(name, per_step=1, close="zero", schedule="edm", grid="karras", **options):
    """(points, x at the first, the result, the first state) of a run on fixed normals."""
    denoiser = TinyMixture(schedule=schedule)
    sampler = samplers.create(name, grid=grid, end=close, **options)
    canvas = Fixed(denoiser, STEPS * per_step + (close == "zero"), Rng.of(0, 2))
    first = state = sampler.init(canvas)
    while not state.finished:
        state = sampler.step(lambda x, at: denoiser.predict(x, torch.full((2,), at.t, dtype=torch.float64)), state)
    return first.points, first.x, state.x, first


def k_diffusion(function, points, x, first, monkeypatch, normals=1, r=0.5, **options):
    """The same run by k-diffusion, whose normals are handed to it by the step that asks for them."""
    sampling = pytest.importorskip("k_diffusion.sampling")
    denoiser = TinyMixture(schedule="edm")
    sigmas = torch.tensor([*(p.sigma for p in points), 0.0], dtype=torch.float64)
    draws = iter(range(1, 1000))
    monkeypatch.setattr(sampling.torch, "randn_like", lambda x: first.canvas.noise(next(draws)))
    schedule = denoiser.schedule

    def noise(sigma, sigma_next):
        i = min(range(len(points)), key=lambda j: abs(points[j].sigma - float(sigma)))
        if normals == 1:
            return first.canvas.noise(i + 1)
        one, two = (first.canvas.noise(1 + 2 * i + j) for j in range(2))
        s, t = points[i], points[i + 1]
        if abs(float(sigma_next) / t.sigma - 1) > 1e-9:
            return one
        return joined(one, two, s, Point.at(schedule, lam=s.lam + r * (t.lam - s.lam)), t)

    if "ancestral" in function or "sde" in function:
        options["noise_sampler"] = noise
    return getattr(sampling, function)(denoiser.predict, x, sigmas, disable=True, **options)


RUNS = {
    "euler": ("sample_euler", {}, {}),
    "euler, churn": ("sample_euler", {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}, {}),
    "heun": ("sample_heun", {}, {}),
    "heun, churn": ("sample_heun", {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}, {}),
    "dpm_2": ("sample_dpm_2", {}, {}),
    "dpm_2, churn": ("sample_dpm_2", {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}, {}),
    "euler_ancestral": ("sample_euler_ancestral", {}, {}),
    "euler_ancestral, eta": ("sample_euler_ancestral", {"eta": 0.6, "s_noise": 0.9}, {}),
    "dpm_2_ancestral": ("sample_dpm_2_ancestral", {}, {}),
    "dpm_2_ancestral, eta": ("sample_dpm_2_ancestral", {"eta": 0.5}, {}),
    "dpmpp_2s_ancestral": ("sample_dpmpp_2s_ancestral", {}, {}),
    "dpmpp_2s_ancestral, eta": ("sample_dpmpp_2s_ancestral", {"eta": 0.5, "s_noise": 1.1}, {}),
    "dpmpp_sde": ("sample_dpmpp_sde", {}, {}),
    "dpmpp_sde, eta": ("sample_dpmpp_sde", {"eta": 0.5, "s_noise": 1.1}, {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {}, {"growth": None}),
    "dpmpp_2m_sde, heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.7}, {"growth": None}),
    "dpmpp_3m_sde": ("sample_dpmpp_3m_sde", {}, {"growth": None, "published": True}),
    "dpmpp_3m_sde, eta": ("sample_dpmpp_3m_sde", {"eta": 0.0}, {"growth": None, "published": True}),
}
TWO = ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")

# What k-diffusion 0.1.1.post1 returned for the first row, to ten digits.
KEPT = {
    "euler": [0.6134919112, 0.0512348106, -0.0762321867, 0.668872846],
    "euler, churn": [1.2777728368, 0.5978675985, -0.6636403304, 0.063403941],
    "heun": [1.0242629928, 0.0436631963, -0.4386843608, 1.1105553076],
    "heun, churn": [2.7468359691, -0.0283565451, -1.4835882892, 0.8710516208],
    "dpm_2": [1.0242186056, -0.0416200303, -0.4481789823, 1.0886379017],
    "dpm_2, churn": [2.2700311877, 0.521498594, -1.3953351621, 0.6541522031],
    "euler_ancestral": [1.1492763742, 0.3225482087, -0.8759098249, 0.4916193832],
    "euler_ancestral, eta": [1.4066213027, -0.7198261837, -0.0347849254, 0.4753665557],
    "dpm_2_ancestral": [3.4739189909, -1.626120322, -1.3004283743, 1.6658747578],
    "dpm_2_ancestral, eta": [2.2584913632, -1.3202709943, 0.4400456474, 0.8902448213],
    "dpmpp_2s_ancestral": [1.4668109193, -0.4186260441, -0.9888994667, 0.6886014792],
    "dpmpp_2s_ancestral, eta": [1.8536901692, -1.0264795689, 0.2451561637, 0.6469875383],
    "dpmpp_sde": [-1.3069225357, -0.1906093094, 0.3271859672, 0.4177358632],
    "dpmpp_sde, eta": [0.8496577926, -0.305358547, 0.4218698869, 0.5260323893],
    "dpmpp_2m_sde": [1.8796765736, 0.7740746201, -1.7124456065, 0.7860962428],
    "dpmpp_2m_sde, heun": [2.7757288532, 0.0822280611, -2.4012840741, 1.1679458932],
    "dpmpp_3m_sde": [2.9429916936, 2.7845563572, -3.2173916594, 0.76638768],
    "dpmpp_3m_sde, eta": [1.2134689648, 0.0123969798, -0.5961606975, 1.300407158],
}


def both(case):
    name = case.split(",")[0]
    function, shared, own = RUNS[case]
    own = own if "churn" in function or name in ("euler", "heun", "dpm_2") else {"noise": "fresh", **own}
    return function, shared, ours(name, 2 if name in TWO else 1, **shared, **own), 2 if name == "dpmpp_sde" else 1


@pytest.mark.parametrize("case", RUNS)
def test_against_k_diffusion(case, monkeypatch):
    function, shared, (points, x, out, first), normals = both(case)
    want = k_diffusion(function, points, x, first, monkeypatch, normals, **shared)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", RUNS)
def test_against_kept_numbers_of_k_diffusion(case):
    out = both(case)[2][2]
    torch.testing.assert_close(out[0], torch.tensor(KEPT[case], dtype=torch.float64), rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------- diffusers

# What diffusers 0.42.1 returned for the first row, to ten digits.
KEPT_DIFFUSERS = {
    "sa_solver": [5.7180115181, -2.3066112556, -5.5402280839, 4.2728825756],
    "sa_solver, ODE": [1.0010872822, -0.0191863387, -0.4564647568, 1.0688643286],
    "sa_solver, 3": [2.6410456024, -0.8924995632, -1.0599418534, 1.3248463054],
    "dpmpp_2m_sde": [1.7903388777, -0.5267637836, -1.4297284615, 1.0382384379],
    "dpmpp_2m_sde, heun": [2.1948825607, -0.7076977849, -1.8823589909, 1.3362352338],
    "ddpm": [1.2455525063, -0.2135943656, -0.8015863691, 0.6827114134],
}

DIFFUSERS = {
    "sa_solver": ("SASolverScheduler", {"predictor_order": 2, "corrector_order": 2}, {"simple_order_2": True}),
    "sa_solver, ODE": ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 3}, {"tau": 0.0, "predictor_order": 3, "corrector_order": 3, "simple_order_2": True}),
    "sa_solver, 3": ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 2}, {"tau": 0.6, "predictor_order": 3, "corrector_order": 2, "simple_order_2": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"solver_type": "midpoint"}, {}),
    "dpmpp_2m_sde, heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, {"solver_type": "heun"}),
    "ddpm": ("DPMSolverMultistepScheduler", {"solver_order": 1}, {}),
}  # fmt: skip


def beside_diffusers(case):
    name = case.split(",")[0]
    own = DIFFUSERS[case][2] | ({} if name == "ddpm" else {"growth": None})
    return ours(name, 1, "t_end", "vp_linear", "logsnr", noise="fresh", **own)


def diffusers_run(case, points, x, first, monkeypatch):
    """The same run by a scheduler whose noise levels are replaced by ours, in float64."""
    diffusers = pytest.importorskip("diffusers")
    scheduler, config, own = DIFFUSERS[case]
    if scheduler == "SASolverScheduler":
        tau = own.get("tau", 1.0)
        made = diffusers.SASolverScheduler(
            prediction_type="sample", lower_order_final=False, tau_func=lambda t: tau, **config
        )
        from diffusers.schedulers import scheduling_sasolver

        monkeypatch.setattr(
            scheduling_sasolver, "randn_tensor", lambda shape, **more: first.canvas.noise(made.step_index + 1)
        )
    else:
        made = diffusers.DPMSolverMultistepScheduler(
            prediction_type="sample", algorithm_type="sde-dpmsolver++", lower_order_final=False, final_sigmas_type="sigma_min", **config
        )  # fmt: skip
    made.set_timesteps(len(points) - 1)
    made.sigmas = torch.tensor([math.exp(-p.lam) for p in points], dtype=torch.float64)
    denoiser = TinyMixture()
    for i, label in enumerate(made.timesteps):
        x0 = denoiser.predict(x, torch.full((2,), points[i].t, dtype=torch.float64))
        more = {} if scheduler == "SASolverScheduler" else {"variance_noise": first.canvas.noise(i + 1)}
        x = made.step(x0, label, x, **more).prev_sample
    return x


@pytest.mark.parametrize("case", DIFFUSERS)
def test_against_diffusers(case, monkeypatch):
    points, x, out, first = beside_diffusers(case)
    torch.testing.assert_close(out, diffusers_run(case, points, x, first, monkeypatch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", DIFFUSERS)
def test_against_kept_numbers_of_diffusers(case):
    out = beside_diffusers(case)[2]
    torch.testing.assert_close(out[0], torch.tensor(KEPT_DIFFUSERS[case], dtype=torch.float64), rtol=0, atol=1e-6)
