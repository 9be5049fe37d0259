"""Few-step, flow, adaptive and analytic samplers: against exact marginals, the ODE solution, identities and peers."""

import dataclasses
import json
import math

import pytest
import torch

import samplers
from samplers.errors import OptionError
from samplers.noise_schedules import Point, noise_schedule
from samplers.predictor import GaussianPredictor
from samplers.statistics import data_moments, noise_norms

SCHEDULES = ("vp_linear", "vp_cosine", "edm", "flow")
MEAN, STD = 0.3, 0.4


def mixture(schedule="vp_linear", **kw):
    return samplers.problems.create("mixture", schedule=schedule, **kw)


def gaussian(schedule="vp_linear", mean=MEAN, std=STD):
    """The denoiser of N(mean, std^2), one coordinate."""
    return mixture(schedule, weights=[1.0], means=[[mean]], stds=[std]).denoiser("gaussian")


def slopes(name, counts, schedule="vp_linear", **options):
    """The order between consecutive numbers of steps, against the solution of the ODE."""
    problem = mixture(schedule)
    denoiser = problem.denoiser("gaussian")
    sampler = samplers.create(name, end="t_end", **options)
    x = next(iter(samplers.stream(denoiser, sampler, batch=8, steps=6))).x
    truth = problem.truth(x)
    errors = [
        float((samplers.sample(denoiser, sampler, batch=8, steps=n).x - truth).pow(2).mean().sqrt()) for n in counts
    ]
    return [math.log(a / b) / math.log(m / n) for a, b, n, m in zip(errors, errors[1:], counts, counts[1:])]


class Affine:
    """A sampler's update as x_t = k x_s + c + n z, for a denoiser that is linear: found by calling it three times."""

    def __init__(self, denoiser, sampler, s, t, i=0, points=None):
        canvas = samplers.canvas.NoiseCanvas(denoiser, 4, samplers.random.Rng.of(0, 3))
        state = samplers.gaussian.grid.GridState(
            canvas, torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64), points=points or (s, t, t, t), i=i
        )
        z = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        object.__setattr__(canvas, "noise", lambda draw: z)
        predict = lambda x, at: denoiser.predict(x, torch.full((len(x),), at.t, dtype=torch.float64))
        out = sampler.update(predict, state, s, t).x[:, 0]
        self.shift = float(out[0])
        self.factor, self.noise = float(out[1]) - self.shift, float(out[2]) - self.shift


def after(denoiser, sampler, points):
    """(mean, variance) at the last point, from the exact marginal at the first."""
    mean, variance = points[0].alpha * MEAN, (points[0].alpha * STD) ** 2 + points[0].sigma ** 2
    for i, (s, t) in enumerate(zip(points, points[1:])):
        step = Affine(denoiser, sampler, s, t, i, points)
        mean, variance = step.factor * mean + step.shift, step.factor**2 * variance + step.noise**2
    return mean, variance


def grid(schedule, n):
    schedule = noise_schedule(schedule)
    lam = torch.linspace(*(float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min)), n + 1, dtype=torch.float64)
    return tuple(Point.at(schedule, lam=float(v)) for v in lam)


# ---------------------------------------------------------------------------------------------- flow


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_flow_euler_is_ddim_on_every_schedule(schedule):
    denoiser = mixture(schedule).denoiser("gaussian")
    for spacing in ("logsnr", "time_uniform"):
        a, b = (samplers.sample(denoiser, n, batch=4, steps=7, grid=spacing).x for n in ("flow_euler", "ddim"))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", ["vp_linear", "flow"])
@pytest.mark.parametrize("spacing", ["logsnr", "time_quadratic"])
def test_flow_solvers_have_their_orders(schedule, spacing):
    for name, order in (("flow_euler", 1), ("flow_heun", 2)):
        assert slopes(name, (192, 384), schedule, grid=spacing)[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("end", ["zero", "t_end"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_flow_heun_spends_steps_exactly(end, steps):
    out = samplers.sample(mixture("flow").denoiser("gaussian"), "flow_heun", batch=2, steps=steps, end=end)
    assert out.nfe == steps and bool(torch.isfinite(out.x).all())


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun", "lcm", "tcd", "analytic_ddim", "analytic_ddpm", "bayes_ddim"])
def test_a_first_step_from_pure_noise_is_finite(name):
    """alpha = 0: lambda = -inf. The exact answer of a Gaussian's denoiser there is the mean."""
    flow = samplers.schedule.Flow(t_max=1.0)
    denoiser = gaussian(flow)
    how = {"variance_of": "x0"} if name == "bayes_ddim" else {}
    sampler = samplers.create(name, **how)
    points = tuple(Point.at(flow, t=t) for t in (1.0, 0.6, 0.2))
    assert points[0].alpha == 0 and points[0].lam == -math.inf
    canvas = samplers.canvas.NoiseCanvas(denoiser, 4, samplers.random.Rng.of(0, 2))
    if name == "bayes_ddim":
        state = samplers.gaussian.bayes_ddim.BayesState.begin(canvas, points=points, probes=(1, 1, 1))
        state = dataclasses.replace(state, variance=torch.zeros_like(state.x))
    else:
        state = samplers.gaussian.grid.GridState.begin(canvas, points=points)
    predict = GaussianPredictor(samplers.denoiser.Counter(denoiser), 2)
    state = sampler.update(predict, state, points[0], points[1])
    assert bool(torch.isfinite(state.x).all())
    state = sampler.update(predict, state, points[1], points[2])
    assert bool(torch.isfinite(state.x).all())


def test_stochastic_flow_euler_draws_anew():
    """It is x_0 at each time, noised again: lcm without scalings."""
    denoiser = mixture("flow").denoiser("gaussian")
    a = samplers.sample(denoiser, "flow_euler", batch=3, steps=6, stochastic=True)
    b = samplers.sample(denoiser, "lcm", batch=3, steps=6)
    torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-12)


def peer_run(scheduler, model, x, step=lambda s, out, t, x: s.step(out, t, x).prev_sample):
    """x after a diffusers scheduler's own loop."""
    for t in scheduler.timesteps:
        x = step(scheduler, model(x, t), t, x)
    return x


class Sigmas(samplers.authoring.GaussianSampler):
    """A mixin for runs over given times: `times` gives POINTS."""

    def times(self, canvas, intervals):
        return tuple(Point.at(canvas.denoiser.schedule, t=t) for t in self.TIMES)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_flow_solvers_against_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    flow = samplers.schedule.Flow(t_max=1.0)
    denoiser = mixture(flow).denoiser("gaussian")
    kind = {"flow_euler": "FlowMatchEulerDiscreteScheduler", "flow_heun": "FlowMatchHeunDiscreteScheduler"}[name]
    scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(6)
    sigmas = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    assert sigmas[0] == 1 and sigmas[-1] == 0
    scheduler.sigmas = scheduler.sigmas.double()

    def model(x, t):
        """The velocity at the scheduler's present sigma."""
        at = float(scheduler.sigmas[scheduler.step_index or 0]) if scheduler.step_index else 1.0
        x0 = denoiser.predict(x, torch.full((len(x),), at, dtype=torch.float64))
        return (x - x0) / at

    cls = samplers.registry.load(name)

    class Same(cls):
        TIMES = tuple(sigmas[:-1])
        times = Sigmas.times

    out = samplers.sample(denoiser, Same(), batch=3, steps=len(scheduler.timesteps))
    x = samplers.random.Rng.of(0, 3).normal((2,), 0, torch.float64)
    torch.testing.assert_close(out.x, peer_run(scheduler, model, x), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- lcm and tcd


def test_tcd_of_gamma_0_is_ddim_and_of_gamma_1_is_lcm():
    denoiser = mixture().denoiser("gaussian")
    run = lambda name, **kw: samplers.sample(denoiser, name, batch=3, steps=6, grid="time_uniform", **kw).x
    torch.testing.assert_close(run("tcd", gamma=0.0), run("ddim"), rtol=0, atol=1e-12)
    # r = t_min has sigma = .0105: in each step x_0 + .0105 e is noised, in place of x_0.
    assert float((run("tcd", gamma=1.0) - run("lcm")).abs().max()) < 0.05


def test_tcd_keeps_the_marginal_where_ddim_does():
    """What is added on the way up is what the way down took: for a point mass, x_0 = m, the variance stays sigma^2."""
    denoiser, sampler = gaussian(std=1e-6), samplers.create("tcd", gamma=0.6)
    _, variance = after(denoiser, sampler, points := grid("vp_linear", 5))
    assert variance == pytest.approx(points[-1].sigma ** 2, rel=1e-6)


def test_lcm_scalings_are_those_of_the_paper():
    """d = .5 and 10 t: c_skip and c_out at t = .02 are .25 / (.04 + .25) and .2 / sqrt(.29)."""
    denoiser = samplers.GaussianDenoiser.wrap(
        lambda x, t: torch.ones_like(x), shape=(1,), prediction="x0", dtype=torch.float64
    )
    out = samplers.sample(denoiser, "lcm", steps=1, t_start=0.02, t_end=0.01, time_scale=10.0, trace=True)
    x = out.trace[0].x
    at = 0.01  # one step closes from the last point
    u = 10 * at
    torch.testing.assert_close(out.x, 0.25 / (u**2 + 0.25) * x + u / math.sqrt(u**2 + 0.25))


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_consistency_samplers_against_diffusers(name):
    """The same model, times and normals. diffusers ends its runs at index 0; ours end with x_0."""
    diffusers = pytest.importorskip("diffusers")
    kind = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}[name]
    scheduler = getattr(diffusers, kind)(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    scheduler.alphas_cumprod = abar
    scheduler.set_timesteps(4, original_inference_steps=50)
    indices = scheduler.timesteps.tolist()

    class Table(samplers.schedule.NoiseSchedule):
        name, t_min, t_max = "table", 0.0, 999.0
        log_alpha = lambda self, t: 0.5 * abar[t.long()].log()
        log_sigma = lambda self, t: 0.5 * (1 - abar[t.long()]).log()

    table = Table()
    problem = mixture(table)
    denoiser = problem.denoiser("gaussian")

    def model(x, t):
        p = Point.at(table, t=float(t))
        x0 = denoiser.predict(x, torch.full((len(x),), p.t, dtype=torch.float64))
        return (x - p.alpha * x0) / p.sigma

    class Floor(samplers.registry.load(name)):
        """Its times are whole numbers: so is (1 - gamma) t."""

        TIMES = tuple(float(i) for i in indices)
        times = Sigmas.times

    options = {"time_scale": 10.0} if name == "lcm" else {"gamma": 0.5}
    canvas = samplers.canvas.NoiseCanvas(denoiser, 4, samplers.random.Rng.of(0, 3))
    x, theirs = canvas.noise(0), canvas.noise(0)
    state = samplers.gaussian.grid.GridState(canvas, x, points=Floor(**options).times(canvas, 3))
    predict = GaussianPredictor(samplers.denoiser.Counter(denoiser), 3)
    import diffusers.schedulers.scheduling_lcm as lcm_module
    import diffusers.schedulers.scheduling_tcd as tcd_module

    with pytest.MonkeyPatch.context() as patch:
        for module in (lcm_module, tcd_module):
            patch.setattr(module, "randn_tensor", lambda *a, **k: canvas.noise(state.i + 1))
        for t in scheduler.timesteps[:-1]:
            how = {"eta": 0.5} if name == "tcd" else {}
            theirs = scheduler.step(model(theirs, t), t, theirs, **how, return_dict=True).prev_sample
            state = Floor(**options).step(predict, state)
            torch.testing.assert_close(state.x, theirs, rtol=0, atol=1e-6)
        if name == "lcm":
            theirs = scheduler.step(model(theirs, scheduler.timesteps[-1]), scheduler.timesteps[-1], theirs).denoised
            torch.testing.assert_close(Floor(**options).step(predict, state).x, theirs, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- analytic


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["analytic_ddim", "analytic_ddpm"])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_analytic_samplers_are_exact_on_a_gaussian(schedule, name, n):
    denoiser, points = gaussian(schedule), grid(schedule, n)
    exact = (points[-1].alpha * MEAN, (points[-1].alpha * STD) ** 2 + points[-1].sigma ** 2)
    norms = [(p.lam, p.sigma**2 / ((p.alpha * STD) ** 2 + p.sigma**2)) for p in grid(schedule, 4)]
    for options in ({"data_std": STD}, {"norms": norms}, {"data_std": STD, "eta": 0.4}):
        found = after(denoiser, samplers.create(name, **options), points)
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-12)
    # The same step with the variance of data that are none is wrong, so the test can fail.
    assert after(denoiser, samplers.create(name, data_std=1e-6), points)[1] < 0.95 * exact[1]


def test_analytic_ddpm_without_data_is_ddims_eta_1():
    denoiser = mixture().denoiser("gaussian")
    a = samplers.sample(denoiser, "analytic_ddpm", batch=3, steps=6, grid="time_uniform", data_std=1e-9).x
    b = samplers.sample(denoiser, "ddim", batch=3, steps=6, grid="time_uniform", eta=1.0).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("estimate", ["norm", "residual"])
def test_noise_norms_of_a_gaussian(estimate):
    """G = sigma^2 / (alpha^2 std^2 + sigma^2). 4096 samples: the bound is five standard errors of <z, e - z>."""
    denoiser = gaussian()
    data = MEAN + STD * samplers.random.Rng.of(7, 4096).normal((1,), 0, torch.float64)
    times = (0.9, 0.5, 0.2, 0.05)
    norms = noise_norms(denoiser, data, times, seed=1, estimate=estimate)
    assert [lam for lam, _ in norms] == sorted(lam for lam, _ in norms)
    for (_, norm), t in zip(norms, times):  # lambda rises as t falls
        p = Point.at(denoiser.schedule, t=t)
        exact = p.sigma**2 / ((p.alpha * STD) ** 2 + p.sigma**2)
        assert norm == pytest.approx(exact, abs=5 * 2 * math.sqrt(1 - exact) / 64)
    # What the samplers make of it is right near pure noise as well: the variance of the data.
    found = samplers.create("analytic_ddpm", norms=norms).posterior_variance(-8.0)
    assert found == pytest.approx(STD**2, rel=0.25 if estimate == "residual" else 5)
    assert noise_norms(denoiser, data, times, seed=1, estimate=estimate, batch=1000) == pytest.approx(norms, abs=1e-12)


def test_norms_can_be_written_to_json():
    norms = ((-3.0, 0.9), (0.0, 0.5))
    sampler = samplers.create("analytic_ddim", norms=json.loads(json.dumps(norms)))
    assert sampler.posterior_variance(0.0) == pytest.approx(samplers.create("analytic_ddim", norms=norms).posterior_variance(0.0))
    for bad in ("x", [1.0], [(0.0, 0.5), (-1.0, 0.4)], [(0.0, -0.1)], [(math.inf, 0.5)]):
        with pytest.raises(OptionError, match="norms"):
            samplers.create("analytic_ddim", norms=bad)


def test_clips_of_the_paper():
    denoiser, points = gaussian(), grid("vp_linear", 5)
    last = lambda **kw: Affine(denoiser, samplers.create("analytic_ddpm", **kw), *points[-2:], i=4, points=points).noise
    assert last(clip_pixel=2.0) == pytest.approx(4 / 255 * math.sqrt(math.pi / 2))
    assert last() > 2 * last(clip_pixel=2.0)
    first = lambda **kw: Affine(denoiser, samplers.create("analytic_ddpm", **kw), *points[:2], points=points).noise
    assert first(data_std=2.0, max_variance=1.0) == pytest.approx(first(data_std=1.0), rel=1e-3)
    assert first(data_std=2.0) > 1.2 * first(data_std=1.0) or first(data_std=2.0) > first(data_std=1.0)


def test_measured_norms_help_on_the_mixture():
    """Distance to the exact samples at 6 evaluations: the measured statistic against DDPM's posterior variance."""
    problem = mixture()
    denoiser = problem.denoiser("gaussian")
    norms = noise_norms(denoiser, problem.sample_truth(2000, 3), torch.linspace(0.02, 1, 12).tolist())
    run = lambda name, **kw: samplers.sample(denoiser, name, batch=2000, steps=6, grid="time_uniform", **kw)
    ours, plain = (problem.score(run(*a, **k)) for a, k in ((("analytic_ddpm",), {"norms": norms}), (("ddim",), {"eta": 1.0})))
    assert ours["variance_error"].value < 0.6 * plain["variance_error"].value


# ---------------------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize("pair", ["12", "23"])
@pytest.mark.parametrize("prediction", ["x0", "noise"])
def test_adaptive_rows_are_what_they_are_alone(pair, prediction):
    denoiser = mixture(dim=5).denoiser("gaussian")
    how = {"pair": pair, "prediction": prediction, "rtol": 0.02, "end": "t_end"}
    together = samplers.sample(denoiser, "dpm_adaptive", batch=9, steps=400, info=True, **how)
    taken = together.info["accepted"].sum(0).tolist()
    assert len(set(taken)) > 1  # the rows differ in their steps
    for i in range(9):
        alone = samplers.sample(denoiser, "dpm_adaptive", steps=400, first_row=i, info=True, **how)
        assert torch.equal(alone.x[0], together.x[i])
        assert int(alone.info["accepted"].sum()) == taken[i]
        assert alone.nfe <= together.nfe


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pair", ["12", "23"])
def test_adaptive_error_follows_the_tolerance(schedule, pair):
    problem = mixture(schedule)
    denoiser = problem.denoiser("gaussian")
    x = next(iter(samplers.stream(denoiser, "dpm_adaptive", batch=8, steps=6))).x
    truth, errors, spent = problem.truth(x), [], []
    for tol in (1e-2, 1e-3, 1e-4):
        out = samplers.sample(denoiser, "dpm_adaptive", batch=8, steps=20_000 if pair == "12" else 4000, pair=pair, rtol=tol, atol=tol, end="t_end")
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
        spent.append(out.nfe)
    assert errors[0] < 0.05 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3
    assert spent[0] < spent[1] < spent[2]


@pytest.mark.parametrize("end", ["zero", "t_end"])
def test_adaptive_runs_stop_at_the_cap(end):
    """Never more evaluations than `steps`; one closes the run, and it is the whole run if there is one only."""
    problem = mixture()
    denoiser = problem.denoiser("gaussian")
    for steps in (1, 2, 3, 4, 5, 9):
        out = samplers.sample(denoiser, "dpm_adaptive", batch=3, steps=steps, end=end)
        assert out.nfe == 1 + 3 * ((steps - 1) // 3) and bool(torch.isfinite(out.x).all())
    one = samplers.sample(denoiser, "dpm_adaptive", batch=3, steps=1, end=end, trace=True)
    if end == "zero":
        x = one.trace[0].x
        torch.testing.assert_close(one.x, denoiser.predict(x, torch.ones(3, dtype=torch.float64)))
    else:
        torch.testing.assert_close(one.x, samplers.sample(denoiser, "ddim", batch=3, steps=1, end="t_end").x)


def test_adaptive_starts_from_pure_noise():
    flow = samplers.schedule.Flow(t_max=1.0)
    denoiser = mixture(flow).denoiser("gaussian")

    class Start(samplers.registry.load("dpm_adaptive")):
        times = lambda self, canvas, intervals: (Point.at(flow, t=1.0), Point.at(flow, t=1e-3))

    out = samplers.sample(denoiser, Start(rtol=1e-3, atol=1e-3, end="t_end"), batch=4, steps=2000)
    lam = torch.tensor(-8.0, dtype=torch.float64)
    truth = mixture(flow).truth(out.x * 0 + torch.sigmoid(-lam) * samplers.random.Rng.of(0, 4).normal((2,), 0, torch.float64),
                                t_start=float(flow.t_of(lam)), t_end=1e-3)  # fmt: skip
    assert float((out.x - truth).abs().max()) < 0.02


# k-diffusion 0.1.1.post1, sample_dpm_adaptive(order=3) on one row, and its (steps, rejected): see the parity test below.
KDIFFUSION = {
    3: ([], 0, 0),
    2: ([], 0, 0),
}


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_against_k_diffusion(order):
    """alpha = 1, the noise form, one row (k-diffusion has one step size per batch)."""
    k = pytest.importorskip("k_diffusion.sampling")
    denoiser = mixture("edm").denoiser("gaussian")
    sampler = samplers.create("dpm_adaptive", pair="23" if order == 3 else "12", prediction="noise", end="t_end", t_start=20.0, t_end=0.02)
    out = samplers.sample(denoiser, sampler, batch=1, steps=3000, info=True)
    x = 20.0 * samplers.random.Rng.of(0, 1).normal((2,), 0, torch.float64)
    with torch.no_grad():
        solver = k.DPMSolver(lambda x, sigma: denoiser.predict(x, sigma))
        start, end = (solver.t(torch.tensor(v, dtype=torch.float64)) for v in (20.0, 0.02))
        theirs, info = solver.dpm_solver_adaptive(x, start, end, order=order)
    assert out.steps == info["steps"] and int(out.info["accepted"].sum()) == info["n_accept"]
    torch.testing.assert_close(out.x, theirs, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- uncertainty


@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])
@pytest.mark.parametrize("end", ["zero", "t_end"])
def test_variance_of_a_gaussian_is_exact(schedule, end):
    """Each step x' = K x + C (x_0(x) + noise), x_0 linear in x with slope g: Var' = (K + C g)^2 Var + C^2 noise."""
    denoiser = gaussian(schedule)
    for steps in (1, 3, 5, 9):
        out = samplers.sample(denoiser, "bayes_ddim", batch=3, steps=steps, end=end, info=True, trace=True, model_variance=0.01)
        assert out.nfe == steps
        points, variance = out.trace[0].points, 0.0
        ends = [*points[1:], Point(0.0, 1.0, 0.0, math.inf)] if end == "zero" else points[1:]
        for s, t in zip(points, ends):
            g = s.alpha * STD**2 / ((s.alpha * STD) ** 2 + s.sigma**2)
            keep = t.sigma / s.sigma
            take = t.alpha - keep * s.alpha
            variance = (keep + take * g) ** 2 * variance + (take * s.sigma / s.alpha) ** 2 * 0.01
        torch.testing.assert_close(out.info["variance"][-1], torch.full((3, 1), variance, dtype=torch.float64), rtol=1e-10, atol=0)


def test_variance_is_that_of_runs_whose_model_is_random():
    """The same run 4000 times with fresh noise in every answer of the model; a mixture, whose coordinates do not mix."""
    denoiser, variance = mixture().denoiser("gaussian"), 1e-3

    def random(x, t):
        generator.manual_seed(int(t[0] * 1e6))
        p = Point.at(denoiser.schedule, t=float(t[0]))
        return denoiser.predict(x, t) - p.sigma / p.alpha * math.sqrt(variance) * torch.randn(
            x.shape, dtype=torch.float64, generator=generator
        )

    generator = torch.Generator()
    how = {"grid": "time_uniform", "end": "t_end", "t_start": 0.6, "t_end": 0.05}
    noisy = samplers.GaussianDenoiser.wrap(random, shape=(2,), prediction="x0", dtype=torch.float64)
    many = samplers.sample(noisy, "ddim", batch=4000, steps=6, seed=[5] * 4000, **how)  # one x_T
    ours = samplers.sample(denoiser, "bayes_ddim", steps=11, seed=[5], info=True, model_variance=variance, **how)
    assert len(ours.info["variance"]) == 6
    ratio = ours.info["variance"][-1][0] / many.x.var(0)
    assert bool((ratio > 0.9).all()) and bool((ratio < 1.1).all())
    blind = samplers.sample(denoiser, "bayes_ddim", steps=6, seed=[5], info=True, model_variance=variance, probes=0, **how)
    assert bool(((blind.info["variance"][-1][0] / many.x.var(0) - 1).abs() > 0.3).any())  # the covariance matters


def test_bayes_ddim_is_ddim_and_takes_a_function():
    denoiser = mixture().denoiser("gaussian")
    out = samplers.sample(denoiser, "bayes_ddim", batch=3, steps=11, info=True, model_variance=lambda x, t: 0 * x + 1e-4)
    ddim = samplers.sample(denoiser, "ddim", batch=3, steps=6, grid="logsnr")
    torch.testing.assert_close(out.x, ddim.x, rtol=0, atol=1e-12)
    same = samplers.sample(denoiser, "bayes_ddim", batch=3, steps=11, info=True, model_variance=1e-4)
    torch.testing.assert_close(out.info["variance"], same.info["variance"], rtol=0, atol=1e-15)
    for bad in (-1.0, math.inf, "x"):
        with pytest.raises(OptionError, match="model_variance"):
            samplers.create("bayes_ddim", model_variance=bad)


# ---------------------------------------------------------------------------------------------- tilted mixtures, moments


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "flow"])
@pytest.mark.parametrize(("preset", "c"), [("two", [0.7]), ("eight", [0.8, -1.5])])
def test_the_guided_score_is_that_of_the_tilted_mixture(schedule, preset, c):
    denoiser = mixture(schedule, preset=preset).denoiser("gaussian")
    tilted = denoiser.tilted(c)
    x = samplers.random.Rng.of(0, 64).normal(denoiser.shape, 0, torch.float64).requires_grad_()
    for t in (denoiser.schedule.t_min, 0.05, 0.3, denoiser.schedule.t_max):
        score, tilt, exact = (
            torch.autograd.grad(f.sum(), x)[0]
            for f in (denoiser.log_density(x, t), denoiser.log_tilt(x, t, c), tilted.log_density(x, t))
        )
        size = score.abs().amax() + 1  # at t_min scores are of size 1e5
        assert float((score + tilt - exact).abs().amax() / size) < 1e-12
        # The gradient of c . E[x_0 | x_t] is another thing, so the test can fail.
    with pytest.raises(OptionError, match="c is"):
        denoiser.tilted([1.0, 2.0, 3.0])


def test_log_tilt_is_the_expectation():
    """By quadrature over x_0 of a posterior that is proportional to p(x_0) N(x; alpha x_0, sigma^2)."""
    denoiser, t, x, c = mixture(dim=1).denoiser("gaussian"), 0.3, 0.4, 1.3
    p = Point.at(denoiser.schedule, t=t)
    x0 = torch.linspace(-4, 5, 20001, dtype=torch.float64)
    prior = sum(w * torch.exp(-((x0 - m) ** 2) / (2 * s**2)) / s for w, m, s in ((0.4, -1.0, 0.3), (0.6, 0.8, 0.5)))
    joint = prior * torch.exp(-((x - p.alpha * x0) ** 2) / (2 * p.sigma**2))
    expected = float(torch.log((joint * torch.exp(c * x0)).sum() / joint.sum()))
    assert float(denoiser.log_tilt(torch.tensor([[x]], dtype=torch.float64), t, [c])) == pytest.approx(expected, abs=1e-10)


def test_runs_with_exact_guidance_are_runs_of_the_tilted_mixture():
    denoiser, c = mixture().denoiser("gaussian"), [1.1]

    def guided(x, t):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            gradient = torch.autograd.grad(denoiser.log_tilt(y, t, c).sum(), y)[0]
        p = Point.at(denoiser.schedule, t=float(t[0]))
        return denoiser.predict(x, t) + p.sigma**2 / p.alpha * gradient

    wrapped = samplers.GaussianDenoiser.wrap(guided, shape=(2,), prediction="x0", dtype=torch.float64)
    a, b = (samplers.sample(d, "dpmpp_2m", batch=16, steps=20).x for d in (wrapped, denoiser.tilted(c)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_moments_of_data_and_of_a_problem():
    data = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]])
    mean, variance = data_moments(data)
    assert mean.tolist() == [[2.0, 2.0]] and variance.tolist() == [[1.0, 0.0]] and mean.dtype == torch.float64
    mean, variance = data_moments(mixture(), n=20_000)
    exact = 0.4 * (0.09 + 1) + 0.6 * (0.25 + 0.64) - 0.08**2
    torch.testing.assert_close(mean, torch.full((2,), 0.08, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(variance, torch.full((2,), exact, dtype=torch.float64), rtol=0.03, atol=0)
    for bad in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(3, 2, dtype=torch.int64), "x"):
        with pytest.raises(OptionError, match="data must be"):
            data_moments(bad)


def test_statistics_refuse_what_is_wrong():
    denoiser = mixture().denoiser("gaussian")
    for arguments, words in (
        ((denoiser, torch.zeros(4, 3), [0.5]), "data must be samples"),
        (("x", torch.zeros(4, 2), [0.5]), "denoiser must be"),
    ):
        with pytest.raises(OptionError, match=words):
            noise_norms(*arguments)
    with pytest.raises(OptionError, match="estimate"):
        noise_norms(denoiser, torch.zeros(4, 2), [0.5], estimate="x")
    with pytest.raises(OptionError, match="no signal"):
        noise_norms(mixture(samplers.schedule.Flow(t_max=1.0)).denoiser("gaussian"), torch.zeros(4, 2), [1.0])
