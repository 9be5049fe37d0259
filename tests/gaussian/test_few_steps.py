"""Few-step, flow, adaptive and analytic samplers: against exact marginals, the ODE solution, identities and peers."""

import json
import math

import pytest
import torch

import samplers
from samplers import registry
from samplers.canvas import NoiseCanvas
from samplers.errors import OptionError
from samplers.gaussian.denoiser import At
from samplers.gaussian.grid import GridState
from samplers.noise_schedules import Flow, NoiseSchedule, Point, noise_schedule
from samplers.random import Rng
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


def affine(denoiser, sampler, points, i):
    """(k, c, n): step i is x_t = k x_s + c + n z, for a denoiser that is linear: found by three rows."""
    rows = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    canvas = NoiseCanvas(denoiser, len(points), Rng.of(0, 3))
    object.__setattr__(canvas, "noise", lambda draw: torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64))
    state = GridState(canvas, rows, points=points, i=i)
    out = sampler.update(lambda x, at: denoiser.denoised(x, At(at.t, at.alpha, at.sigma)), state, *points[i : i + 2]).x[
        :, 0
    ]
    return float(out[1] - out[0]), float(out[0]), float(out[2] - out[0])


def after(denoiser, sampler, points):
    """(mean, variance) at the last point, from the exact marginal at the first."""
    mean, variance = points[0].alpha * MEAN, (points[0].alpha * STD) ** 2 + points[0].sigma ** 2
    for i in range(len(points) - 1):
        k, c, n = affine(denoiser, sampler, points, i)
        mean, variance = k * mean + c, k**2 * variance + n**2
    return mean, variance


def grid(schedule, n):
    """n steps even in half log-SNR, from -7 or t_max."""
    schedule = noise_schedule(schedule)
    first, last = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))
    lam = torch.linspace(max(first, -7.0), last, n + 1, dtype=torch.float64)
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


NEW = ("flow_euler", "flow_heun", "lcm", "tcd", "analytic_ddim", "analytic_ddpm", "bayes_ddim")


@pytest.mark.parametrize("name", NEW)
def test_a_first_step_from_pure_noise_is_finite(name):
    """alpha = 0, so lambda = -inf: the denoiser's exact answer there is the mean."""
    flow = Flow(t_max=1.0)
    assert Point.at(flow, t=1.0).lam == -math.inf
    for times in ([1.0], [1.0, 0.5], [1.0, 0.6, 0.2]):
        out = samplers.sample(gaussian(flow), name, batch=3, times=times)
        assert bool(torch.isfinite(out.x).all()) and float((out.x - MEAN).abs().max()) < 2


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_flow_solvers_run_upwards(name):
    """Up to noise and down again gives x back: at order 2 it is nearer."""
    denoiser, x = mixture("flow").denoiser("gaussian"), mixture("flow").sample_truth(8, 0)
    up = samplers.sample(denoiser, name, batch=8, start=x, t_start=1e-3, t_end=0.9, end="t_end", steps=80).x
    down = samplers.sample(
        denoiser, name, batch=8, start_noise=up / 0.9, t_start=0.9, t_end=1e-3, end="t_end", steps=80
    ).x
    assert float((down - x).abs().max()) < (0.4 if name == "flow_euler" else 0.04)
    if name == "flow_euler":
        with pytest.raises(OptionError, match="draws noise"):
            samplers.sample(denoiser, name, batch=8, start=x, t_start=1e-3, t_end=0.9, end="t_end", stochastic=True)


def test_stochastic_flow_euler_draws_anew():
    """It is x_0 at each time, noised again: lcm without scalings."""
    denoiser = mixture("flow").denoiser("gaussian")
    a = samplers.sample(denoiser, "flow_euler", batch=3, steps=6, stochastic=True)
    b = samplers.sample(denoiser, "lcm", batch=3, steps=6)
    torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- lcm and tcd


def test_tcd_of_gamma_0_is_ddim_and_of_gamma_1_is_lcm():
    denoiser = mixture().denoiser("gaussian")

    def run(name, **options):
        return samplers.sample(denoiser, name, batch=3, steps=6, grid="time_uniform", **options).x

    torch.testing.assert_close(run("tcd", gamma=0.0), run("ddim"), rtol=0, atol=1e-12)
    # r = t_min has sigma = .0105: in each step x_0 + .0105 e is noised, in place of x_0.
    assert float((run("tcd", gamma=1.0) - run("lcm")).abs().max()) < 0.05


def test_tcd_keeps_the_marginal_where_ddim_does():
    """What is added on the way up is what the way down took: for a point mass, x_0 = m, the variance stays sigma^2."""
    denoiser, sampler = gaussian(std=1e-6), samplers.create("tcd", gamma=0.6)
    points = grid("vp_linear", 5)
    k, _, n = affine(denoiser, sampler, points, 2)
    assert n > 0.3 * points[3].sigma
    assert (k * points[2].sigma) ** 2 + n**2 == pytest.approx(points[3].sigma ** 2, rel=1e-9)


def test_lcm_scalings_are_those_of_the_paper():
    """d = .5 and 10 t: c_skip and c_out at t = .02 are .25 / (.04 + .25) and .2 / sqrt(.29)."""
    denoiser = samplers.GaussianDenoiser.wrap(
        lambda x, t: torch.ones_like(x), shape=(1,), prediction="x0", dtype=torch.float64
    )
    out = samplers.sample(denoiser, "lcm", times=[0.02], time_scale=10.0, trace=True)
    torch.testing.assert_close(out.x, 0.25 / 0.29 * out.trace[0].x + 0.2 / math.sqrt(0.29), rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------- analytic


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["analytic_ddim", "analytic_ddpm"])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_analytic_samplers_are_exact_on_a_gaussian(schedule, name, n):
    denoiser, points = gaussian(schedule), grid(schedule, n)
    exact = (points[-1].alpha * MEAN, (points[-1].alpha * STD) ** 2 + points[-1].sigma ** 2)
    norms = [(p.lam, p.sigma**2 / ((p.alpha * STD) ** 2 + p.sigma**2)) for p in grid(schedule, 4)]
    # Near pure noise 1 - G is 1e-7, and G in float64 has 1e-16 of it.
    for options, tolerance in (
        ({"data_std": STD}, 1e-12),
        ({"norms": norms}, 1e-9),
        ({"data_std": STD, "eta": 0.4}, 1e-12),
    ):
        found = after(denoiser, samplers.create(name, **options), points)
        assert found == pytest.approx(exact, rel=tolerance, abs=tolerance)
    # The same step with the variance of data that are none is wrong, so the test can fail.
    assert after(denoiser, samplers.create(name, data_std=1e-6), points)[1] < 0.95 * exact[1]


def test_analytic_ddpm_without_data_is_ddims_eta_1():
    denoiser = mixture().denoiser("gaussian")
    a = samplers.sample(denoiser, "analytic_ddpm", batch=3, steps=6, grid="time_uniform", data_std=1e-9).x
    b = samplers.sample(denoiser, "ddim", batch=3, steps=6, grid="time_uniform", eta=1.0, noise="fresh").x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("estimate", ["norm", "residual"])
def test_noise_norms_of_a_gaussian(estimate):
    """G = sigma^2 / (alpha^2 std^2 + sigma^2). 4096 samples: the bound is five standard errors of <z, e - z>."""
    denoiser = gaussian()
    data = MEAN + STD * Rng.of(7, 4096).normal((1,), 0, torch.float64)
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
    again = noise_norms(denoiser, data, times, seed=1, estimate=estimate, batch=1000)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(norms), rtol=0, atol=1e-6)


def test_norms_can_be_written_to_json():
    norms = ((-3.0, 0.9), (0.0, 0.5))
    sampler = samplers.create("analytic_ddim", norms=json.loads(json.dumps(norms)))
    assert sampler.posterior_variance(0.0) == pytest.approx(
        samplers.create("analytic_ddim", norms=norms).posterior_variance(0.0)
    )
    for bad in ("x", [1.0], [(0.0, 0.5), (-1.0, 0.4)], [(0.0, -0.1)], [(math.inf, 0.5)]):
        with pytest.raises(OptionError, match="norms"):
            samplers.create("analytic_ddim", norms=bad)


def test_clips_of_the_paper():
    denoiser, points = gaussian(), grid("vp_linear", 5)

    def noise(i, **options):
        return affine(denoiser, samplers.create("analytic_ddpm", **options), points, i)[2]

    assert noise(4, clip_pixel=2.0) == pytest.approx(4 / 255 * math.sqrt(math.pi / 2))
    assert noise(4) > 2 * noise(4, clip_pixel=2.0) and noise(3) == noise(3, clip_pixel=2.0)
    assert noise(1, data_std=2.0) > 1.1 * noise(1, data_std=1.0)
    assert noise(1, data_std=2.0, max_variance=0.25) == pytest.approx(noise(1, data_std=1e9, max_variance=0.25))


def test_measured_norms_help_on_the_mixture():
    """Distance to the exact samples at 6 evaluations: the measured statistic against DDPM's posterior variance."""
    problem = mixture()
    denoiser = problem.denoiser("gaussian")
    norms = noise_norms(denoiser, problem.sample_truth(2000, 3), torch.linspace(0.02, 1, 12).tolist())
    how = {"batch": 2000, "steps": 6, "grid": "time_uniform"}
    ours = problem.score(samplers.sample(denoiser, "analytic_ddpm", norms=norms, **how))
    plain = problem.score(samplers.sample(denoiser, "ddim", eta=1.0, **how))
    assert ours["variance_error"].value < 0.6 * plain["variance_error"].value


# ---------------------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize("pair", ["12", "23"])
@pytest.mark.parametrize("prediction", ["x0", "noise"])
def test_adaptive_rows_are_what_they_are_alone(pair, prediction):
    denoiser = mixture(dim=5).denoiser("gaussian")
    how = {"pair": pair, "prediction": prediction, "rtol": 0.02, "end": "t_end"}
    together = samplers.sample(denoiser, "dpm_adaptive", batch=9, steps=400, info=True, **how)
    taken = together.info["accepted"].sum(0).tolist()
    assert len(set(together.info["lam"][5].tolist())) == 9  # the rows are at different times
    for i in range(9):
        alone = samplers.sample(denoiser, "dpm_adaptive", steps=400, first_row=i, info=True, **how)
        assert torch.equal(alone.x[0], together.x[i])
        assert int(alone.info["accepted"].sum()) == taken[i]
        assert alone.nfe <= together.nfe and torch.equal(
            alone.info["lam"][:, 0], together.info["lam"][: alone.steps, i]
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pair", ["12", "23"])
def test_adaptive_error_follows_the_tolerance(schedule, pair):
    problem = mixture(schedule)
    denoiser = problem.denoiser("gaussian")
    x = next(iter(samplers.stream(denoiser, "dpm_adaptive", batch=8, steps=6))).x
    truth, errors, spent = problem.truth(x), [], []
    for tol in (1e-2, 1e-3, 1e-4):
        out = samplers.sample(
            denoiser, "dpm_adaptive", batch=8, steps=20_000, pair=pair, rtol=tol, atol=tol, end="t_end"
        )
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
        spent.append(out.nfe)
    assert errors[0] < 0.05 and errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2
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
    """The ODE from there: x = sigma z + alpha mean at half log-SNR -12, to within e^-24."""
    flow, lam = Flow(t_max=1.0), torch.tensor(-12.0, dtype=torch.float64)
    problem = mixture(flow)

    class Start(registry.load("dpm_adaptive")):
        def times(self, canvas, intervals):
            return Point.at(flow, t=1.0), Point.at(flow, t=1e-3)

    out = samplers.sample(problem.denoiser("gaussian"), Start(rtol=1e-5, atol=1e-5, end="t_end"), batch=4, steps=4000)
    x = torch.sigmoid(-lam) * Rng.of(0, 4).normal((2,), 0, torch.float64) + torch.sigmoid(lam) * 0.08
    truth = problem.truth(x, t_start=float(flow.t_of(lam)), t_end=1e-3)
    assert float((out.x - truth).abs().max()) < 1e-4


def test_adaptive_knows_strength_inversion_inpainting_and_no_lists():
    problem = mixture()
    denoiser, x = problem.denoiser("gaussian"), problem.sample_truth(4, 0)
    how = {"batch": 4, "rtol": 1e-4, "atol": 1e-4, "steps": 4000}
    half = samplers.sample(denoiser, "dpm_adaptive", start=x, strength=0.5, trace=True, **how)
    first, last = (float(denoiser.schedule.lam(t)) for t in (denoiser.schedule.t_max, denoiser.schedule.t_min))
    assert half.trace[0].points[0].lam == pytest.approx((first + last) / 2, abs=0.01)
    up = samplers.sample(denoiser, "dpm_adaptive", start=x, t_start=1e-3, t_end=0.8, end="t_end", **how).x
    sigma = Point.at(denoiser.schedule, t=0.8).sigma
    down = samplers.sample(denoiser, "dpm_adaptive", start_noise=up / sigma, t_start=0.8, end="t_end", **how).x
    assert float((down - x).abs().max()) < 0.02
    known = torch.tensor([True, False])
    for end in ("zero", "t_end"):
        out = samplers.sample(denoiser, "dpm_adaptive", start=x, known=known, end=end, **how)
        assert float((out.x - x)[:, 0].abs().max()) < (1e-12 if end == "zero" else 0.05)
    with pytest.raises(OptionError, match="no list"):
        samplers.sample(denoiser, "dpm_adaptive", times=[0.9, 0.5])


# ---------------------------------------------------------------------------------------------- uncertainty


@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])
@pytest.mark.parametrize("end", ["zero", "t_end"])
def test_variance_of_a_gaussian_is_exact(schedule, end):
    """Each step x' = K x + C (x_0(x) + noise), x_0 linear in x with slope g: Var' = (K + C g)^2 Var + C^2 noise."""
    denoiser = gaussian(schedule)
    for steps in (1, 3, 5, 9):
        out = samplers.sample(
            denoiser,
            "bayes_ddim",
            batch=3,
            steps=steps,
            end=end,
            info=True,
            trace=True,
            model_variance=0.01,
            variance_of="epsilon",
        )
        assert out.nfe == steps
        points, variance = out.trace[0].points, 0.0
        ends = [*points[1:], Point(0.0, 1.0, 0.0, math.inf)] if end == "zero" else points[1:]
        for s, t in zip(points, ends):
            g = s.alpha * STD**2 / ((s.alpha * STD) ** 2 + s.sigma**2)
            keep = t.sigma / s.sigma
            take = t.alpha - keep * s.alpha
            variance = (keep + take * g) ** 2 * variance + (take * s.sigma / s.alpha) ** 2 * 0.01
        torch.testing.assert_close(
            out.info["variance"][-1], torch.full((3, 1), variance, dtype=torch.float64), rtol=1e-10, atol=0
        )


def test_variance_is_that_of_runs_whose_model_is_random():
    """The same run 4000 times with fresh noise in every answer of the model; a mixture, whose coordinates do not mix."""
    denoiser, variance = mixture().denoiser("gaussian"), 1e-5

    def random(x, t):
        generator.manual_seed(int(t[0] * 1e6))
        p = Point.at(denoiser.schedule, t=float(t[0]))
        return denoiser.predict(x, t) - p.sigma / p.alpha * math.sqrt(variance) * torch.randn(
            x.shape, dtype=torch.float64, generator=generator
        )

    generator = torch.Generator()
    times, zero = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], {"start_moments": (0.0, 0.0)}  # x begins as noise alone
    noisy = samplers.GaussianDenoiser.wrap(random, shape=(2,), prediction="x0", dtype=torch.float64)
    many = samplers.sample(noisy, "ddim", batch=4000, seed=[5] * 4000, times=times, **zero)  # one x_T
    ours = samplers.sample(
        denoiser, "bayes_ddim", seed=[5], times=times, **zero, info=True, model_variance=variance, variance_of="epsilon"
    )
    assert len(ours.info["variance"]) == 6
    ratio = ours.info["variance"][-1][0] / many.x.var(0)
    assert bool((ratio > 0.9).all()) and bool((ratio < 1.1).all())
    blind = samplers.sample(
        denoiser,
        "bayes_ddim",
        seed=[5],
        times=times,
        **zero,
        info=True,
        model_variance=variance,
        variance_of="epsilon",
        probes=0,
    )
    assert bool(((blind.info["variance"][-1][0] / many.x.var(0) - 1).abs() > 0.3).any())  # the covariance matters


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow", "score"])
@pytest.mark.parametrize("schedule", ["vp_linear", "edm"])
def test_variance_of_each_prediction(prediction, schedule):
    """One evaluation: the variance is the square of what x_0 moves by if the model's answer moves by 1."""
    x0 = [
        samplers.sample(
            samplers.GaussianDenoiser.wrap(
                lambda x, t, add=add: x * 0 + add,
                shape=(2,),
                schedule=schedule,
                prediction=prediction,
                dtype=torch.float64,
            ),
            "bayes_ddim",
            times=[0.3],
            info=True,
            model_variance=1.0,
            variance_of=prediction,
        )
        for add in (0.0, 1.0)
    ]
    torch.testing.assert_close(x0[0].info["variance"][-1], (x0[1].x - x0[0].x) ** 2, rtol=1e-10, atol=0)


def test_the_variance_of_noise_says_nothing_at_pure_noise():
    with pytest.raises(OptionError, match="says nothing of x_0"):
        samplers.sample(gaussian(Flow(t_max=1.0)), "bayes_ddim", times=[1.0, 0.5], variance_of="epsilon")


def test_bayes_ddim_is_ddim_and_takes_a_function():
    denoiser = mixture().denoiser("gaussian")
    how = {"batch": 3, "grid": "logsnr"}
    out = samplers.sample(denoiser, "bayes_ddim", steps=11, info=True, model_variance=lambda x, t: 0 * x + 1e-4, **how)
    ddim = samplers.sample(denoiser, "ddim", steps=6, **how)
    torch.testing.assert_close(out.x, ddim.x, rtol=0, atol=1e-12)
    same = samplers.sample(denoiser, "bayes_ddim", steps=11, info=True, model_variance=1e-4, **how)
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
    x = Rng.of(0, 64).normal(denoiser.shape, 0, torch.float64).requires_grad_()
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
    assert float(denoiser.log_tilt(torch.tensor([[x]], dtype=torch.float64), t, [c])) == pytest.approx(
        expected, abs=1e-10
    )


def test_runs_with_exact_guidance_are_runs_of_the_tilted_mixture():
    denoiser, c = mixture().denoiser("gaussian"), [1.1]
    guided = denoiser.with_energy(lambda x, t: -denoiser.log_tilt(x, t, c))
    a, b = (samplers.sample(d, "dpmpp_2m", batch=16, steps=20).x for d in (guided, denoiser.tilted(c)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    plain = samplers.sample(denoiser, "dpmpp_2m", batch=16, steps=20).x
    assert float((a - plain).abs().max()) > 0.1


def test_moments_of_data_and_of_a_problem():
    mean, variance = data_moments(torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]]))
    assert mean.tolist() == [[2.0, 2.0]] and variance == 0.5 and mean.dtype == torch.float64
    mean, variance = data_moments(mixture(), n=20_000)
    torch.testing.assert_close(mean, torch.full((2,), 0.08, dtype=torch.float64), rtol=0, atol=0.03)
    assert variance == pytest.approx(0.4 * (0.09 + 1) + 0.6 * (0.25 + 0.64) - 0.08**2, rel=0.02)
    for bad in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(3, 2, dtype=torch.int64), "x"):
        with pytest.raises(OptionError, match="data must be"):
            data_moments(bad)


def test_a_run_of_a_gaussian_may_start_anywhere_from_its_moments():
    """At t = .3, where a start from pure noise would lose the mean and 40 % of the variance."""
    denoiser, data = gaussian(), MEAN + STD * Rng.of(9, 20_000).normal((1,), 0, torch.float64)
    out = samplers.sample(
        denoiser,
        "analytic_ddpm",
        batch=20_000,
        steps=3,
        end="t_end",
        t_start=0.3,
        data_std=STD,
        start_moments=data_moments(data),
    )
    assert float(out.x.mean()) == pytest.approx(MEAN, abs=0.02) and float(out.x.std()) == pytest.approx(STD, abs=0.02)


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
        noise_norms(mixture(Flow(t_max=1.0)).denoiser("gaussian"), torch.zeros(4, 2), [1.0])


# ---------------------------------------------------------------------------------------------- beside other libraries

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
# diffusers' sigmas for shift 3 and 6 steps, in float32.
SHIFTED = [1.0, 0.9233425259590149, 0.8189233541488647, 0.6683266758918762, 0.4322250783443451, 0.008928571827709675]


class Table(NoiseSchedule):
    """The discrete times 0 to 999 of DDPM's linear betas, and no others."""

    name, t_min, t_max = "table", 0.0, 999.0

    def log_alpha(self, t):
        return 0.5 * ABAR[t.long()].log()

    def log_sigma(self, t):
        return 0.5 * (1 - ABAR[t.long()]).log()


# name of the run -> its sampler, denoiser's schedule and arguments; three rows, or one of k-diffusion's adaptive solver.
RUNS = {
    "FlowMatchEulerDiscreteScheduler": ("flow_euler", Flow(t_max=1.0), {"times": SHIFTED}),
    "FlowMatchHeunDiscreteScheduler": ("flow_heun", Flow(t_max=1.0), {"times": SHIFTED}),
    "LCMScheduler": ("lcm", Table(), {"times": [999.0, 759.0, 499.0, 259.0], "time_scale": 10.0}),
    "TCDScheduler": ("tcd", Table(), {"times": [999.0, 749.0, 499.0, 249.0], "gamma": 0.5}),
    "dpm_adaptive 2": ("dpm_adaptive", "edm", {"pair": "12", "h_max": None}),
    "dpm_adaptive 3": ("dpm_adaptive", "edm", {"pair": "23", "h_max": None}),
}
# What diffusers 0.42.0 and k-diffusion 0.1.1.post1 gave, in float64: the two coordinates of the last row (TCD: of its last x
# before the closing step, since diffusers ends at index 0); and of the adaptive solvers trials and accepted ones.
FROZEN = {
    "FlowMatchEulerDiscreteScheduler": ([-0.281343138, -0.972554326], ()),
    "FlowMatchHeunDiscreteScheduler": ([-0.422462668, -1.235251464], ()),
    "LCMScheduler": ([-0.41767359, -0.690742873], ()),
    "TCDScheduler": ([-0.092766018, -0.455677992], ()),
    "dpm_adaptive 2": ([0.30715987, 1.258145641], (16, 13)),
    "dpm_adaptive 3": ([0.313589327, 1.254040726], (9, 8)),
}


def normal(rng, shape, step, dtype=torch.float64):
    """Numbers that any machine has, in place of the run's normals: the frozen numbers are of solvers, not of a generator."""
    place = torch.arange(math.prod(shape), dtype=torch.float64)
    return (1.5 * torch.sin(1.7 * rng.row[:, None] + 0.9 * place + 2.3 * step)).to(dtype).view(-1, *shape)


@pytest.fixture
def known_noise(monkeypatch):
    monkeypatch.setattr(Rng, "normal", normal)


def ours(run):
    """(x, Sample) of a run."""
    name, schedule, how = RUNS[run]
    rows = 1 if name == "dpm_adaptive" else 3
    if name == "dpm_adaptive":
        z = Rng.of(0, 1).normal((2,), 0, torch.float64)
        how = how | {
            "prediction": "noise",
            "end": "t_end",
            "t_start": 20.0,
            "t_end": 0.02,
            "start_noise": z,
            "steps": 3000,
        }
    out = samplers.sample(mixture(schedule).denoiser("gaussian"), name, batch=rows, info=True, trace=True, **how)
    return (out.trace[3].x if name == "tcd" else out.x), out


def theirs(run):
    """x, and (trials, accepted) of an adaptive run."""
    name, schedule, how = RUNS[run]
    denoiser, rng = mixture(schedule).denoiser("gaussian"), Rng.of(0, 3)
    if name == "dpm_adaptive":
        k = pytest.importorskip("k_diffusion.sampling")
        x = 20.0 * Rng.of(0, 1).normal((2,), 0, torch.float64)
        with torch.no_grad():
            solver = k.DPMSolver(lambda x, sigma: denoiser.predict(x, sigma))
            start, end = (solver.t(torch.tensor(v, dtype=torch.float64)) for v in (20.0, 0.02))
            x, info = solver.dpm_solver_adaptive(x, start, end, order=int(how["pair"][1]))
        return x, (info["steps"], info["n_accept"])
    diffusers = pytest.importorskip("diffusers")
    x = rng.normal((2,), 0, torch.float64)

    def x0(x, t):
        p = Point.at(denoiser.schedule, t=float(t))
        return denoiser.denoised(x, At(p.t, p.alpha, p.sigma))

    if name.startswith("flow"):
        scheduler = getattr(diffusers, run)(num_train_timesteps=1000, shift=3.0)
        scheduler.set_timesteps(6)
        scheduler.sigmas = scheduler.sigmas.double()
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
            x = scheduler.step((x - x0(x, sigma)) / sigma, t, x, return_dict=False)[0]
        return x, ()
    beta = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = getattr(diffusers, run)(**beta, clip_sample=False, prediction_type="sample")
    scheduler.alphas_cumprod = ABAR
    scheduler.set_timesteps(4, original_inference_steps=50)
    assert scheduler.timesteps.tolist() == how["times"]
    x = Point.at(denoiser.schedule, t=how["times"][0]).sigma * x
    module = __import__(f"diffusers.schedulers.scheduling_{name}", fromlist=["randn_tensor"])
    with pytest.MonkeyPatch.context() as patch:
        for i, t in enumerate(how["times"][: 3 if name == "tcd" else 4]):
            patch.setattr(module, "randn_tensor", lambda *a, i=i, **k: rng.normal((2,), i + 1, torch.float64))
            x = scheduler.step(x0(x, t), int(t), x, **({"eta": 0.5} if name == "tcd" else {})).prev_sample
    return x, ()


def seen(run):
    x, out = ours(run)
    counts = (out.steps, int(out.info["accepted"].sum())) if "accepted" in out.info else ()
    return x, counts


@pytest.mark.usefixtures("known_noise")
@pytest.mark.parametrize("run", RUNS)
def test_runs_are_what_other_libraries_gave(run):
    (x, counts), (last, frozen) = seen(run), FROZEN[run]
    torch.testing.assert_close(x[-1], torch.tensor(last, dtype=torch.float64), rtol=0, atol=1e-6)
    assert counts == frozen


@pytest.mark.usefixtures("known_noise")
@pytest.mark.parametrize("run", RUNS)
def test_runs_are_what_other_libraries_give(run):
    (x, counts), (expected, other) = seen(run), theirs(run)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert counts == other
