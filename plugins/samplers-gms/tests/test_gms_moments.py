"""The reverse step of GMS: its moments against integration, its Gaussians against brute force, its draws, and the kit."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from samplers_gms import Gms, Pair, SnDdpm, clamped, closed, kernel, published
from scipy.optimize import least_squares

import samplers
from samplers import GaussianDenoiser, OptionError
from samplers.authoring import Moments, Point
from samplers.testing import run_checks

F64 = torch.float64
PARTS = ((0.4, -0.8, 0.1), (0.6, 0.5, 0.15))


def mixture(parts=PARTS, schedule="vp_linear"):
    w, m, s = zip(*parts)
    return samplers.problems.create("mixture", weights=w, means=[[a] for a in m], stds=s, schedule=schedule)


def skewed(n=400):
    """Moments of every kind: variances and skewness over some orders of magnitude, (n,)."""
    k = torch.arange(n, dtype=F64)
    variance = 10.0 ** (-3 + 3 * (k % 20) / 19)
    skewness = 2 * torch.cos(1.7 * k)
    return Moments(torch.sin(k), variance, skewness * variance**1.5)


@pytest.mark.parametrize(("s", "t"), [(0.95, 0.6), (0.6, 0.5), (0.5, 0.2), (0.3, 0.001)])
def test_the_step_has_the_moments_of_the_true_reverse_step(s, t):
    """q(x_t | x_s) is proportional to p_t(x_t) N(x_s; (a_s / a_t) x_t, ...): integrated, without x_0 or its moments."""
    problem = mixture()
    s, t = (Point.at(problem.schedule, t=u) for u in (s, t))
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    goal, _ = kernel(x, problem.denoiser("gaussian").moments(x, s), s, t)
    u = np.linspace(-10, 10, 100_001)
    p_t = sum(w / v**0.5 * np.exp(-((u - t.alpha * m) ** 2) / (2 * v))
              for w, m, sd in PARTS for v in [(t.alpha * sd) ** 2 + t.sigma**2])  # fmt: skip
    ratio = s.alpha / t.alpha
    log_q = -((x.numpy() - ratio * u) ** 2) / (2 * (s.sigma**2 - ratio**2 * t.sigma**2))
    q = p_t * np.exp(log_q - log_q.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    mean = (q * u).sum(1)
    for k, got in ((1, goal.mean), (2, goal.variance), (3, goal.third)):
        expected = mean if k == 1 else (q * (u - mean[:, None]) ** k).sum(1)
        torch.testing.assert_close(got[:, 0], torch.from_numpy(expected), atol=2e-9, rtol=1e-6)


def test_the_third_moment_is_the_papers_formula():
    problem, (s, t) = mixture(), (0.7, 0.4)
    s, t = (Point.at(problem.schedule, t=u) for u in (s, t))
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    m = problem.denoiser("gaussian").moments(x, s)
    e2, e3 = m.variance + m.mean**2, m.third + 3 * m.mean * m.variance + m.mean**3
    ratio = s.alpha / t.alpha  # their a_{t|s}, from the less noisy time to the noisier one
    b = s.sigma**2 - ratio**2 * t.sigma**2
    a, c, v = ratio * t.sigma**2 / s.sigma**2, t.alpha * b / s.sigma**2, t.sigma**2 * b / s.sigma**2
    m1 = a * x + c * m.mean
    m3 = a**3 * x**3 + 3 * a**2 * c * x**2 * m.mean + 3 * a * c**2 * x * e2 + c**3 * e3 + 3 * v * m1
    goal, pure = kernel(x, m, s, t)
    assert pure == pytest.approx(v, rel=1e-12)
    torch.testing.assert_close(goal.mean, m1, atol=1e-13, rtol=0)
    torch.testing.assert_close(goal.third + 3 * goal.mean * goal.variance + goal.mean**3, m3, atol=1e-12, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_less_noise_keeps_the_marginals(eta):
    """With x_s from p_s, the mean and the variance of x_t are those of p_t for every eta."""
    problem = mixture()
    s, t = Point.at(problem.schedule, t=0.6), Point.at(problem.schedule, t=0.45)
    u = torch.linspace(-10, 10, 40_001, dtype=F64)[:, None]
    p_s = problem.denoiser("gaussian").log_density(u, s.t).exp()[:, None]
    p_s = p_s / p_s.sum()
    goal, _ = kernel(u, problem.denoiser("gaussian").moments(u, s), s, t, eta)
    mean = (p_s * goal.mean).sum()
    got = float((p_s * (goal.variance + (goal.mean - mean) ** 2)).sum())
    m = sum(w * m for w, m, _ in PARTS)
    v = sum(w * (d * d + m * m) for w, m, d in PARTS) - m * m
    assert float(mean) == pytest.approx(t.alpha * m, abs=1e-9)
    assert got == pytest.approx(t.alpha**2 * v + t.sigma**2, abs=1e-9)


def test_the_closed_form_has_all_three_moments():
    goal = skewed()
    pair = closed(goal, 0.0)
    got, fits = pair.moments(), goal.third.abs() <= 0.999 / math.sqrt(2) * goal.variance**1.5
    torch.testing.assert_close(got.mean, goal.mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(got.variance, goal.variance, atol=1e-15, rtol=1e-13)
    torch.testing.assert_close(got.third[fits], goal.third[fits], atol=1e-17, rtol=1e-11)
    assert 50 < int(fits.sum()) < 350
    assert bool((got.third[~fits].abs() < goal.third[~fits].abs()).all())
    assert bool((got.third.sign() == goal.third.sign()).all())


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_a_floor_keeps_mean_and_variance(floor):
    goal = skewed()
    least = floor * goal.variance
    pair = closed(goal, least)
    assert bool((pair.variance >= least * (1 - 1e-12)).all())
    got = pair.moments()
    torch.testing.assert_close(got.mean, goal.mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(got.variance, goal.variance, atol=1e-15, rtol=1e-13)
    cut = pair.variance <= least * (1 + 1e-9)
    assert 0 < int(cut.sum()) < len(cut)
    torch.testing.assert_close(got.third[~cut], goal.third[~cut], atol=1e-17, rtol=1e-11)


def test_the_closed_form_is_what_a_search_finds():
    """Brute force over the one free number, d: of all pairs with the right mean and variance, the nearest third moment."""
    goal = skewed(60)
    least = 0.1 * goal.variance
    pair = closed(goal, least)
    most = (2 * (goal.variance - least)).sqrt()
    d = torch.linspace(-1, 1, 20_001, dtype=F64)[:, None] * most  # every d that leaves each Gaussian its least variance
    of_d = type(pair)(goal.mean + d, goal.mean - d / 2, goal.variance - d**2 / 2).moments()
    torch.testing.assert_close(of_d.variance, goal.variance.expand_as(d), atol=1e-14, rtol=1e-12)
    best = (of_d.third - goal.third).abs().argmin(0)
    found = d.gather(0, best[None])[0]
    assert bool(((pair.first - goal.mean - found).abs() <= 1.01e-4 * most).all())


def test_the_closed_form_from_a_general_search():
    """Least squares in all three unknowns, from a start that knows nothing, where three moments can be had."""
    for mean, variance, third in ((0.2, 1.0, 0.4), (-0.5, 0.5, -0.2), (1.5, 0.8, 0.3)):
        goal = [torch.tensor([v], dtype=F64) for v in (mean, variance, third)]
        pair = closed(Moments(*goal), 0.0)

        def errors(z, goal=goal):
            m = Pair(*(torch.tensor([v], dtype=F64) for v in z)).moments()
            return [float(a - b) for a, b in zip((m.mean, m.variance, m.third), goal)]

        side = math.copysign(0.8, third)
        found = least_squares(errors, [mean + side, mean - side / 2, 0.6], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert found.cost < 1e-20
        assert found.x == pytest.approx([float(v) for v in (pair.first, pair.second, pair.variance)], abs=1e-6)


def loss_of(goal, first, second, share):
    """The published loss of each coordinate."""
    mean, variance = goal.mean, goal.variance
    u, within = ((first, 1 / 3), (second, 2 / 3)), variance * share.clamp(0.1, 1.2)
    e1 = sum(w * a for a, w in u) - mean
    e2 = sum(w * (a**2 + within) for a, w in u) - (mean**2 + variance)
    e3 = sum(w * (a**3 + 3 * a * within) for a, w in u) - (goal.third + 3 * mean * variance + mean**3)
    return e1**2 + e2**2 + e3**2


def test_the_published_fit():
    """Against Adan as its paper writes it, on torch's own gradients; and what it comes to."""
    k = torch.arange(40, dtype=F64)
    variance = 0.2 + 0.8 * torch.sin(k) ** 2
    goal = Moments(torch.cos(1.3 * k), variance, 0.6 * torch.cos(1.7 * k) * variance**1.5)
    z = [goal.mean, goal.mean - 1e-3, torch.full_like(variance, 0.998)]
    begin = loss_of(goal, *z)
    state, last = [[torch.zeros_like(a) for _ in range(3)] for a in z], None
    for i in range(1, 71):
        leaves = [a.clone().requires_grad_() for a in z]
        slopes = torch.autograd.grad(loss_of(goal, *leaves).sum(), leaves)
        for j, (g, (m, v, n)) in enumerate(zip(slopes, state)):
            change = g - last[j] if last else torch.zeros_like(g)
            m.lerp_(g, 0.1)
            v.lerp_(change, 0.08)
            n.lerp_((g + 0.92 * change) ** 2, 0.08)
            rate = 0.06 / ((n / (1 - 0.92**i)).sqrt() + 1e-8)
            z[j] = z[j] - rate * (m / (1 - 0.9**i) + 0.92 * v / (1 - 0.92**i))
        last = slopes
    pair = published(goal)
    for got, expected in ((pair.first, z[0]), (pair.second, z[1]), (pair.variance, variance * z[2].clamp(0.1, 1.2))):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
    share, exact = pair.variance / variance, closed(goal, 0.1 * variance)
    end = loss_of(goal, pair.first, pair.second, share)
    assert float(end.mean()) < 0.5 * float(begin.mean())
    assert float(loss_of(goal, exact.first, exact.second, exact.variance / variance).max()) < 1e-25
    # It goes down, but its start is next to a saddle: the means do not part, and the third moment is not had.
    assert float((pair.first - pair.second).abs().median()) < 0.01 < float((exact.first - exact.second).abs().median())
    assert float(pair.moments().third.abs().median()) < 1e-6
    few = Moments(goal.mean[3:5], goal.variance[3:5], goal.third[3:5])
    assert torch.equal(published(few).first, pair.first[3:5])


def test_a_gaussian_target_has_no_second_gaussian():
    """No skewness: GMS, the second moment and Analytic-DPM with the data's deviation are one sampler."""
    gauss = mixture(((1.0, 0.7, 0.4),)).denoiser("gaussian")
    how = {"steps": 6, "batch": 5}
    two = samplers.sample(gauss, Gms(noise="fresh"), **how).x
    assert torch.equal(two, samplers.sample(gauss, SnDdpm(noise="fresh"), **how).x)
    centred = mixture(((1.0, 0.0, 0.4),)).denoiser("gaussian")
    ours = samplers.sample(centred, SnDdpm(noise="fresh"), **how).x
    analytic = samplers.sample(centred, "analytic_ddpm", data_std=0.4, **how).x
    torch.testing.assert_close(ours, analytic, atol=1e-12, rtol=0)


class Same(GaussianDenoiser):
    """The same moments whatever x is."""

    def __init__(self, mean, variance, third, schedule="vp_linear"):
        self.shape, self.schedule, self.dtype = (len(third),), samplers.noise_schedule(schedule), F64
        self.name, self.all = "same", [torch.tensor(v, dtype=F64) for v in (mean, variance, third)]

    def predict(self, x, t):
        return self.all[0].expand_as(x)

    def moments(self, x, at, order=3, signs=None):
        return Moments(*(m.expand_as(x) for m in self.all[:order]))


@pytest.mark.parametrize("components", ["coordinate", "sample"])
def test_draws_have_the_moments(components):
    """200,000 rows from one x: three moments of each coordinate, and the covariance that `components` says."""
    n = 200_000
    model = Same([0.1, -0.2], [0.5, 0.3], [0.2, -0.07])
    start = torch.tensor([0.3, -1.0], dtype=F64)
    run = samplers.stream(model, Gms(components=components, end="t_end"), steps=1, batch=n, start_noise=start)
    first = next(run)
    x = next(run).x  # one step, over the whole schedule
    s, t = first.points[:2]
    goal, _ = kernel(first.x[:1], model.moments(first.x[:1], s), s, t)
    pair = closed(goal, 0.0)
    torch.testing.assert_close(pair.moments().third, goal.third)  # no floor is touched
    scale = goal.variance.sqrt()
    away = x - goal.mean
    assert float((away.mean(0) / scale).abs().max()) < 5 / math.sqrt(n)
    assert float(((away**2).mean(0) / goal.variance - 1).abs().max()) < 5 * math.sqrt(2.5 / n)
    assert float(((away**3).mean(0) - goal.third).div(scale**3).abs().max()) < 5 * math.sqrt(15 / n)
    assert float((goal.third / scale**3).abs().min()) > 20 * math.sqrt(15 / n)  # which a Gaussian would not have
    d = (pair.first - goal.mean)[0]
    expected = 0.5 * d[0] * d[1] if components == "sample" else 0.0
    assert float((away[:, 0] * away[:, 1]).mean() - expected) == pytest.approx(
        0, abs=5 * float(scale.prod()) / math.sqrt(n)
    )
    assert abs(0.5 * float(d[0] * d[1])) > 10 * float(scale.prod()) / math.sqrt(n)


def test_options_of_the_published_code():
    problem = mixture()
    model = problem.denoiser("gaussian")
    how = {"steps": 6, "batch": 4}
    plain = samplers.sample(model, Gms(), **how).x
    # All steps with a single Gaussian: the second moment alone.
    assert torch.equal(
        samplers.sample(model, Gms(gaussian_steps=5), **how).x, samplers.sample(model, SnDdpm(), **how).x
    )
    for other in (Gms(gaussian_steps=1), Gms(fit="published"), Gms(floor=0.5), Gms(eta=0.3), Gms(clip_pixel=2.0)):
        x = samplers.sample(model, other, **how).x
        assert bool(torch.isfinite(x).all()) and not torch.equal(x, plain)
    # The last noise is bounded: at the end of the grid x is within some sigma of the mean.
    states = list(samplers.stream(model, SnDdpm(clip_pixel=2.0), steps=6, batch=4000))
    s, t = states[-2].points[-2:]
    goal, _ = kernel(states[-3].x, model.moments(states[-3].x, s), s, t)
    rms = float((states[-2].x - goal.mean).square().mean().sqrt())
    assert rms == pytest.approx(4 / 255 * math.sqrt(math.pi / 2), rel=0.05)


def test_published_clamps():
    m = Moments(
        *(torch.tensor(v, dtype=F64) for v in ([0.5, 1.4, 0.8, 0.2], [0.2, 0.3, 2.0, 0.3], [0.05, 0.1, 0.3, 0.9]))
    )
    got = clamped(m)
    assert [float(a) for a in (got.mean[0], got.variance[0])] == [0.5, 0.2]  # within the bounds
    assert float(got.third[0]) == pytest.approx(0.05)
    assert got.mean.tolist() == [0.5, 1.0, 0.8, 0.2] and got.variance.tolist() == [0.2, 0.3, 1.0, 0.3]
    raw2 = (got.variance + got.mean**2).clamp(max=1)
    raw3 = got.third + 3 * got.mean * raw2 - 2 * got.mean**3
    assert bool((raw3.abs() <= got.mean.abs() + 1e-12).all())


def test_steps_pay_for_derivatives():
    two = samplers.problems.create("mixture").denoiser("gaussian")
    exact = samplers.sample(two, "gms", steps=4, batch=3)
    slow = samplers.sample(
        two.with_moments(), "gms", steps=22, batch=3
    )  # 3 steps of 1 + 3 * 2 each, and the closing one
    assert slow.nfe == 22
    torch.testing.assert_close(slow.x, exact.x, atol=1e-6, rtol=0)
    assert samplers.sample(two.with_moments(), "sn_ddpm", steps=10).nfe == 10  # 3 steps of 1 + 2
    with pytest.raises(OptionError, match=r"steps=7 pays for no step: .* a step counts as 7 forward passes"):
        samplers.sample(two.with_moments(), "gms", steps=7)
    plain = GaussianDenoiser.wrap(lambda x, t: 0.1 * x, shape=(2,))
    with pytest.raises(
        OptionError,
        match=r"'gms' needs 3 moments of x_0, and denoiser .* gives the mean only\. .*moments=heads.*with_moments",
    ):
        samplers.sample(plain, "gms", steps=5)


def test_better_than_its_baselines_in_five_evaluations():
    """A bimodal target over times that are evenly spaced: KS distances near 0.34, 0.20 and 0.13."""
    model = (problem := mixture(schedule="ddpm_linear")).denoiser("gaussian")
    ks = {}
    for name in ("ddpm", "sn_ddpm", "gms"):
        x = samplers.sample(model, name, timesteps=[999, 749, 499, 250, 0], batch=1500, seed=3).x
        ks[name] = problem.score(x)["ks"]
    assert ks["gms"].high < ks["sn_ddpm"].low and ks["sn_ddpm"].high < ks["ddpm"].low, ks


@pytest.mark.parametrize("name", ["gms", "sn_ddpm"])
def test_the_kit(name):
    run_checks(name)


def test_the_blocks_of_the_readme_run():
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks, names = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M), {}
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
