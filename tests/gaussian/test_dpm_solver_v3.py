"""dpm_solver_v3 and the statistics that it uses: against quadrature, known degenerate cases, and the ODE solution."""

import math

import pytest
import torch

import samplers
from samplers.errors import OptionError
from samplers.gaussian.denoiser import At
from samplers.gaussian.dpm_solver_v3 import derivative_weights, leg_of
from samplers.noise_schedules import Flow, Point
from samplers.random import Rng
from samplers.statistics import ModelStatistics, model_statistics

PROBLEM = samplers.problems.create("mixture")
DENOISER = PROBLEM.denoiser("gaussian")
LAM = [float(DENOISER.schedule.lam(t)) for t in (DENOISER.schedule.t_max, DENOISER.schedule.t_min)]
DATA = ModelStatistics.constant(*LAM, l=1.0, s=0.0, b=0.0)
NOISE = ModelStatistics.constant(*LAM, l=0.0, s=-1.0, b=0.0)


@pytest.fixture(scope="module")
def measured():
    return model_statistics(DENOISER, PROBLEM.sample_truth(500, 3), batch=500, nodes=480)


@pytest.fixture(scope="module")
def truth():
    """Where the ODE takes 32 rows from their x at t_max."""
    return PROBLEM.truth(next(iter(samplers.stream(DENOISER, "ddim", batch=32, steps=6))).x)


def wavy(n=60):
    """Statistics that vary, with kinks at their nodes."""
    lam = torch.linspace(*LAM, n + 1, dtype=torch.float64)
    return ModelStatistics(lam, 0.5 - 0.4 * torch.tanh(lam), 0.7 * torch.cos(lam), 0.3 * torch.sin(2 * lam))


def error(truth, n, **options):
    sampler = samplers.create("dpm_solver_v3", end="t_end", **options)
    return float((samplers.sample(DENOISER, sampler, batch=len(truth), steps=n).x - truth).pow(2).mean().sqrt())


# ---------------------------------------------------------------------------------------------- integrals


@pytest.mark.parametrize(("a", "b"), [(-2.0, 1.3), (1.3, -2.0), (0.1, 0.1001)])
def test_integrals_are_those_of_a_fine_quadrature(a, b):
    """dL = l, dS = s, df = s f + b, dK = e^L f, dE_k = e^{L + S} (lambda - a)^k, by scipy's DOP853."""
    from scipy.integrate import solve_ivp

    tables = wavy()

    def slope(lam, v):
        l, s, source = (float(t) for t in tables.at(torch.tensor([lam], dtype=torch.float64)))
        big_l, big_s, f = v[:3]
        both = math.exp(big_l + big_s)
        return [l, s, s * f + source, math.exp(big_l) * f, *(both * (lam - a) ** k for k in range(4))]

    exact, inside = [0.0] * 8, [v for v in tables.lam.tolist() if min(a, b) < v < max(a, b)]
    ends = [a, *(inside if b > a else inside[::-1]), b]
    for span in zip(ends, ends[1:]):  # between kinks
        exact = solve_ivp(slope, span, exact, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1].tolist()
    leg = leg_of(tables, a, b)
    found = [-float(leg.decay.log()), float(leg.growth.log()), leg.source, leg.rest, *leg.kernels]
    assert [float(v) for v in found] == pytest.approx(exact, rel=1e-8, abs=1e-9)


def test_integrals_of_many_coordinates_are_those_of_each(monkeypatch):
    """In blocks of a few cells as well."""
    lam = torch.linspace(-3, 3, 31, dtype=torch.float64)
    tables = [torch.rand(31, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    whole = leg_of(ModelStatistics(lam, *tables), -2.2, 2.9)
    monkeypatch.setattr(samplers.gaussian.dpm_solver_v3, "CHUNK", 100)
    blocks = leg_of(ModelStatistics(lam, *tables), -2.2, 2.9)
    one = leg_of(ModelStatistics(lam, *(t[:, 1, 2] for t in tables)), -2.2, 2.9)
    for name in ("l", "decay", "growth", "source", "rest"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name), rtol=1e-12, atol=0)
        torch.testing.assert_close(getattr(one, name), getattr(whole, name)[1, 2], rtol=1e-12, atol=0)
    for k in range(4):
        torch.testing.assert_close(blocks.kernels[k], whole.kernels[k], rtol=1e-12, atol=0)


def test_derivatives_of_a_polynomial():
    """g = 2 + 3 u - u^2 + 4 u^3: exact from its values; divided differences are those of Newton's form."""
    at = [-0.4, -0.9, 0.5]
    g = [3 * u - u**2 + 4 * u**3 for u in at]
    assert [sum(w * v for w, v in zip(row, g)) for row in derivative_weights(at, False)] == pytest.approx([3, -1, 4])
    u0, u1, _ = at
    pseudo = [sum(w * v for w, v in zip(row, g)) for row in derivative_weights(at, True)]
    first = g[0] / u0
    assert pseudo == pytest.approx([first, ((g[1] - g[0]) / (u1 - u0) - first) / u1, 4])


# ---------------------------------------------------------------------------------------------- degenerate statistics


def taylor(x, points, order, noise):
    """The multistep exact-Taylor solver in x_0 or in noise, with the second derivative in full (written anew from the formulas)."""
    past = []
    for s, t in zip(points, points[1:]):
        h = t.lam - s.lam
        x0 = DENOISER.denoised(x, At(s.t, s.alpha, s.sigma))
        past = [(s.lam, (x - s.alpha * x0) / s.sigma if noise else x0), *past][:order]
        z = h if noise else -h
        p1 = math.expm1(z)
        p2 = p1 / z - 1
        p3 = p2 / z - 0.5
        keep, scale = (t.alpha / s.alpha, t.sigma) if noise else (t.sigma / s.sigma, t.alpha)
        lams, m = [p[0] for p in past], [p[1] for p in past]
        d1 = d2 = 0 * x
        if len(past) > 1:
            d1 = (m[0] - m[1]) / (lams[0] - lams[1])
        if len(past) > 2:
            second = (d1 - (m[1] - m[2]) / (lams[1] - lams[2])) / (lams[0] - lams[2])
            d1, d2 = d1 + (lams[0] - lams[1]) * second, 2 * second
        x = keep * x - scale * (p1 * m[0] + p2 * h * d1 + p3 * h**2 * d2)
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid", ["logsnr", "time_quadratic"])
def test_degenerate_statistics_are_dpm_solver(order, grid):
    how = {"order": order, "grid": grid, "corrector": False, "end": "t_end"}
    for noise, tables in ((False, DATA), (False, None), (True, NOISE)):
        out = samplers.sample(DENOISER, "dpm_solver_v3", batch=4, steps=12, trace=True, statistics=tables, **how)
        expected = taylor(out.trace[0].x, out.trace[0].points, order, noise)
        torch.testing.assert_close(out.x, expected, rtol=0, atol=1e-10 * float(expected.abs().max() + 1))


def test_order_1_in_x0_is_ddim():
    how = {"batch": 4, "steps": 9, "grid": "logsnr"}
    a = samplers.sample(DENOISER, "dpm_solver_v3", order=1, corrector=False, **how).x
    torch.testing.assert_close(a, samplers.sample(DENOISER, "ddim", **how).x, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- orders


CASES = [(t, g) for t in ("data", "noise") for g in ("logsnr", "time_quadratic")] + [("measured", "logsnr")]


@pytest.mark.parametrize(("tables", "grid"), CASES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [False, True])
def test_orders(tables, grid, order, corrector, truth, measured):
    """order, and one more with the corrector."""
    how = {"grid": grid, "order": order, "corrector": corrector}
    how["statistics"] = {"data": DATA, "noise": NOISE, "measured": measured}[tables]
    full = order + corrector
    # More steps of order 4 would meet the kinks between the nodes of the statistics.
    counts = (32, 64) if tables == "measured" and full == 4 else (96, 192)
    a, b = (error(truth, n, **how) for n in counts)
    about = 0.2 if tables == "measured" else 0.15
    low, high = (3.5, 4.2) if full == 4 else (full - about, full + about)  # order 4 is reached late
    assert low < math.log2(a / b) < high


# ---------------------------------------------------------------------------------------------- measured statistics


@pytest.mark.parametrize("n", [5, 6, 8, 10])
def test_measured_statistics_beat_dpmpp_2m(n, measured, truth):
    how = {"batch": 32, "steps": n, "grid": "logsnr"}
    ours, two = (
        float((samplers.sample(DENOISER, name, **how, **o).x - truth).pow(2).mean().sqrt())
        for name, o in (("dpm_solver_v3", {"statistics": measured}), ("dpmpp_2m", {}))
    )
    assert ours < 0.7 * two


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_are_finite(steps, measured):
    for order in (1, 2, 3):
        for end in ("zero", "t_end"):
            out = samplers.sample(DENOISER, "dpm_solver_v3", steps=steps, order=order, end=end, statistics=measured)
            assert out.nfe == steps and bool(torch.isfinite(out.x).all())


def test_statistics_of_a_gaussian_solve_it_in_one_step():
    """x_0 is linear in x: f is a function of lambda alone, and b carries it. l = 1 - alpha x_0's slope."""
    problem = samplers.problems.create("mixture", weights=[1.0], means=[[0.3, -0.2]], stds=[0.4])
    denoiser = problem.denoiser("gaussian")
    tables = model_statistics(denoiser, problem.sample_truth(50, 0), nodes=240, batch=50)
    p = [Point.at(denoiser.schedule, lam=float(v)) for v in tables.lam]
    slope = torch.tensor([q.alpha**2 * 0.16 / (q.alpha**2 * 0.16 + q.sigma**2) for q in p], dtype=torch.float64)
    torch.testing.assert_close(tables.l, (1 - slope)[:, None].expand(-1, 2), rtol=0, atol=1e-7)
    x = next(iter(samplers.stream(denoiser, "ddim", batch=4, steps=2))).x
    truth = problem.truth(x)
    how = {"batch": 4, "steps": 1, "end": "t_end"}
    ours = samplers.sample(denoiser, "dpm_solver_v3", statistics=tables, **how).x
    plain = samplers.sample(denoiser, "dpm_solver_v3", **how).x
    assert float((ours - truth).abs().max()) < 2e-3
    assert float((plain - truth).abs().max()) > 0.1


def test_statistics_are_least_squares():
    """l by its own definition at one node; f' less s f + b has no covariance with f and mean 0, by an ODE step in float64."""
    x0 = PROBLEM.sample_truth(3000, 5)
    tables = model_statistics(DENOISER, x0, nodes=40, seed=2, batch=3000)
    k = 24
    p = Point.at(DENOISER.schedule, lam=float(tables.lam[k]))
    x = p.alpha * x0 + p.sigma * Rng.of(2, 3000).normal((2,), 0, torch.float64)  # the same samples
    inside = x.clone().requires_grad_()
    slope = torch.autograd.grad(DENOISER.posterior_mean(inside, *scales(p, x)).sum(), inside)[0]
    torch.testing.assert_close(tables.l[k], 1 - p.alpha * slope.mean(0), rtol=0, atol=1e-4)

    def f(lam, value):
        q = Point.at(DENOISER.schedule, lam=lam)
        l = tables.at(torch.tensor([lam], dtype=torch.float64))[0][0]
        m = DENOISER.posterior_mean(q.alpha * value, *scales(q, value))
        return (1 - l) * value - m, m - value

    y, d = x / p.alpha, 1e-3
    here, velocity = f(p.lam, y)
    sides = []
    for h in (d, -d):
        middle = f(p.lam + h / 2, y + h / 2 * velocity)[1]
        sides.append(f(p.lam + h, y + h * middle)[0])
    rest = (sides[0] - sides[1]) / (2 * d) - tables.s[k] * here - tables.b[k]
    away = here - here.mean(0)
    assert float(rest.mean(0).abs().max()) < 2e-3
    assert float(((rest * away).mean(0) / away.pow(2).mean(0)).abs().max()) < 0.02


def scales(p, x):
    return (torch.full((len(x), 1), v, dtype=torch.float64) for v in (p.alpha, p.sigma))


def test_statistics_are_saved_and_resumed(tmp_path):
    data, how = PROBLEM.sample_truth(40, 1), {"nodes": 12}
    seen = []
    whole = model_statistics(DENOISER, data, progress=lambda done, of: seen.append((done, of)), **how)
    assert seen == [(k, 13) for k in range(1, 14)]
    whole.save(tmp_path / "a.npz")
    again = ModelStatistics.load(tmp_path / "a.npz")
    assert all(torch.equal(getattr(again, k), getattr(whole, k)) for k in ("lam", "l", "s", "b"))

    def stop(done, of):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_statistics(DENOISER, data, progress=stop, resume=tmp_path / "work.npz", **how)
    later = []
    rest = model_statistics(
        DENOISER, data, progress=lambda done, of: later.append(done), resume=tmp_path / "work.npz", **how
    )
    assert later == list(range(6, 14))
    assert all(torch.equal(getattr(rest, k), getattr(whole, k)) for k in ("lam", "l", "s", "b"))
    with pytest.raises(OptionError, match="another model, data"):
        model_statistics(DENOISER, data, seed=1, resume=tmp_path / "work.npz", **how)
    with pytest.raises(OptionError, match="no statistics"):
        ModelStatistics.load(tmp_path / "work.npz")


def test_float32_models_have_statistics_too():
    denoiser = PROBLEM.denoiser("gaussian", dtype=torch.float32)
    data = PROBLEM.sample_truth(500, 3)
    single, double = (model_statistics(d, data, nodes=30, batch=500) for d in (denoiser, DENOISER))
    torch.testing.assert_close(single.l, double.l, rtol=0, atol=0.05)  # other normals
    out = samplers.sample(denoiser, "dpm_solver_v3", steps=8, statistics=single)
    assert out.x.dtype == torch.float32 and bool(torch.isfinite(out.x).all())


def test_runs_from_pure_noise_and_up(measured):
    flow = Flow(t_max=1.0)
    out = samplers.sample(
        samplers.problems.create("mixture", schedule=flow).denoiser("gaussian"), "dpm_solver_v3", times=[1.0, 0.7, 0.3]
    )
    assert bool(torch.isfinite(out.x).all())
    x = PROBLEM.sample_truth(8, 0)
    how = {"batch": 8, "end": "t_end", "statistics": measured, "steps": 60}
    up = samplers.sample(DENOISER, "dpm_solver_v3", start=x, t_start=1e-3, t_end=0.9, **how).x
    down = samplers.sample(
        DENOISER, "dpm_solver_v3", start_noise=up / Point.at(DENOISER.schedule, t=0.9).sigma, t_start=0.9, **how
    ).x
    assert float((down - x).abs().max()) < 0.02


def test_what_does_not_fit_is_an_error():
    short = ModelStatistics.constant(-1.0, 1.0)
    with pytest.raises(OptionError, match="half log-SNR"):
        samplers.sample(DENOISER, "dpm_solver_v3", statistics=short)
    lam = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    with pytest.raises(OptionError, match="shape"):
        samplers.sample(DENOISER, "dpm_solver_v3", statistics=ModelStatistics(lam, *(torch.zeros(2, 3).double(),) * 3))
    for tables in (
        (lam.flip(0), lam, lam, lam),
        (lam, lam[:1], lam, lam),
        (lam, lam * math.nan, lam, lam),
        (lam.float(), lam, lam, lam),
    ):
        with pytest.raises(OptionError, match="ModelStatistics"):
            ModelStatistics(*tables)
    with pytest.raises(OptionError, match="statistics"):
        samplers.create("dpm_solver_v3", statistics="x.npz")
