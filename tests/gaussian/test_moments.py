"""Moments of x_0 given x_t: exact problems against plain integration, heads, derivatives, and what a run makes of them."""

import numpy as np
import pytest
import torch

import samplers
from samplers import GaussianDenoiser, OptionError
from samplers.authoring import GaussianSampler, GridState, Point
from samplers.errors import DenoiserError
from samplers.gaussian.moments import central
from samplers.problems.finite import FiniteGaussian
from samplers.random import Rng
from samplers.testing.tiny import TinyMixture

F64 = torch.float64
TIMES = (0.05, 0.3, 0.6, 0.9)


def tensors(moments):
    return moments.mean, moments.variance, moments.third


def by_integration(density, x, at):
    """Mean, variance and third central moment of a number x_0 given x, by sums over a fine grid. x: (n,)."""
    u = np.linspace(-6, 6, 48_001)
    weight = density(u) * np.exp(-((x[:, None] - at.alpha * u) ** 2) / (2 * at.sigma**2))
    weight /= weight.sum(1, keepdims=True)
    mean = (weight * u).sum(1)
    away = u - mean[:, None]
    return mean, (weight * away**2).sum(1), (weight * away**3).sum(1)


def close(got, expected, atol):
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, torch.as_tensor(b, dtype=F64).reshape(a.shape), atol=atol, rtol=1e-7)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("kind", ["problem", "tiny"])
def test_a_mixture_against_integration(kind, t):
    def density(u):
        parts = ((0.4, -1.0, 0.3), (0.6, 0.8, 0.5))
        return sum(w / s * np.exp(-((u - m) ** 2) / (2 * s * s)) for w, m, s in parts)

    denoiser = TinyMixture(4) if kind == "tiny" else samplers.problems.create("mixture", dim=4).denoiser("gaussian")
    at = Point.at(denoiser.schedule, t=t)
    x = torch.linspace(-2.5, 2.5, 20, dtype=F64).view(5, 4)
    expected = by_integration(density, x.flatten().numpy(), at)
    close(tensors(denoiser.moments(x, at)), expected, 1e-9)
    assert denoiser.moments(x, t, order=2).third is None and denoiser.moments(x, t, order=1).variance is None
    rows = torch.full((5,), t, dtype=F64)  # a time for each row
    for a, b in zip(tensors(denoiser.moments(x, rows)), tensors(denoiser.moments(x, at))):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(
        denoiser.moments(x, at).mean, denoiser.denoised(x, samplers.gaussian.denoiser.At.of(denoiser.schedule, at))
    )


def test_a_mixture_in_the_plane_against_integration():
    """Coordinates that depend on each other: the marginal moments of the posterior in the plane."""
    problem = samplers.problems.create("mixture", preset="eight")
    denoiser, at = problem.denoiser("gaussian"), Point.at(problem.schedule, t=0.45)
    axis = np.linspace(-2.6, 2.6, 521)
    u = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = sum(np.exp(-((u - m) ** 2).sum(1) / (2 * 0.15**2)) for m in problem.means.numpy())
    x = torch.tensor([[0.4, 0.3], [-0.9, 0.1]], dtype=F64)
    for row, got in zip(x.numpy(), zip(*tensors(denoiser.moments(x, at)))):
        weight = density * np.exp(-((row - at.alpha * u) ** 2).sum(1) / (2 * at.sigma**2))
        weight /= weight.sum()
        mean = (weight[:, None] * u).sum(0)
        expected = (mean, *((weight[:, None] * (u - mean) ** k).sum(0) for k in (2, 3)))
        close(got, expected, 1e-9)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", ["sudoku4", "digits"])
def test_finite_supports_against_all_their_points(name, t):
    """x_0 is a centre plus noise of deviation w: its three moments are those of the centres, and w's given x, added up."""
    denoiser = samplers.problems.create(name).denoiser("gaussian", dtype=F64)
    at, x0 = Point.at(denoiser.schedule, t=t), samplers.problems.create(name).sample_truth(3, 7, "gaussian").double()
    x = at.alpha * x0 + at.sigma * Rng.of(1, 3).normal(denoiser.shape, 0, F64)
    flat, c, w = x.flatten(1).numpy(), denoiser.centres.numpy(), denoiser.width
    v = (at.alpha * w) ** 2 + at.sigma**2
    log_p = -((flat[:, None] - at.alpha * c) ** 2).sum(-1) / (2 * v)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[..., None]
    each = c + at.alpha * w * w / v * (flat[:, None] - at.alpha * c)  # mean of x_0 given x and the centre
    mean, own = (p * each).sum(1), w * w * at.sigma**2 / v
    away = each - mean[:, None]
    close(
        tensors(denoiser.moments(x, at)),
        (mean, (p * away**2).sum(1) + own, (p * (away**3 + 3 * own * away)).sum(1)),
        1e-11,
    )
    one = denoiser.moments(x[1:2], at)
    assert all(torch.equal(a[1:2], b) for a, b in zip(tensors(denoiser.moments(x, at)), tensors(one)))


def test_a_finite_support_with_a_width_against_integration():
    centres = torch.tensor([[-1.0], [-0.25], [0.5]], dtype=F64)
    denoiser = FiniteGaussian(centres, (1,), unit=0.25, width=0.125, dtype=F64)
    at, x = Point.at(denoiser.schedule, t=0.25), torch.linspace(-1.5, 1.5, 9, dtype=F64)[:, None]

    def density(u):
        return sum(np.exp(-((u - c) ** 2) / (2 * 0.125**2)) for c in (-1.0, -0.25, 0.5))

    close(tensors(denoiser.moments(x, at)), by_integration(density, x[:, 0].numpy(), at), 1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "score", "x0"])
def test_heads_of_any_prediction_give_the_exact_moments(prediction):
    """Powers of what the model predicts, made from the exact moments of x_0, lead back to these."""
    exact = samplers.problems.create("mixture").denoiser("gaussian")

    def linear(t, x):
        a, s = (c for c in samplers.gaussian.denoiser.At.of(exact.schedule, t).columns(x))
        r = a**2 + s**2  # z = p x + q x_0
        return {"epsilon": (1 / s, -a / s), "x0": (0, 1), "v": (a / s, -r / s), "flow": (1 / s, -(a + s) / s), "score": (-1 / s**2, a / s**2)}[prediction]  # fmt: skip

    def heads(x, t):
        p, q = linear(t, x)
        m = exact.moments(x, t)
        z, variance, third = p * x + q * m.mean, q**2 * m.variance, q**3 * m.third
        return z, variance + z**2, third + 3 * z * variance + z**3

    model = GaussianDenoiser.wrap(
        lambda x, t: heads(x, t)[0], shape=(2,), prediction=prediction, moments=heads, moment_evals=3, dtype=F64
    )
    x = torch.linspace(-2, 2, 8, dtype=F64).view(4, 2)
    for t in (0.1, 0.5):
        close(tensors(model.moments(x, t)), tensors(exact.moments(x, t)), 1e-8)
    assert model.gives_moments and model.moment_evals() == 3


@pytest.mark.parametrize("t", TIMES)
def test_derivatives_are_the_exact_moments(t):
    x = torch.linspace(-2, 2, 12, dtype=F64).view(3, 4)
    two = samplers.problems.create("mixture", dim=4).denoiser("gaussian")
    close(tensors(two.with_moments().moments(x, t)), tensors(two.moments(x, t)), 1e-8)
    # Independent coordinates: a single probe is exact.
    close(tensors(two.with_moments(probes=1).moments(x, t)), tensors(two.moments(x, t)), 1e-8)
    rows = torch.tensor([t, t / 2, t / 3], dtype=F64)
    close(tensors(two.with_moments().moments(x, rows)), tensors(two.moments(x, rows)), 1e-8)


def test_derivatives_of_coordinates_that_depend_on_each_other():
    sudoku = samplers.problems.create("sudoku4").denoiser("gaussian", dtype=F64)
    at = Point.at(sudoku.schedule, t=0.35)
    x0 = samplers.problems.create("sudoku4").sample_truth(24, 3, "gaussian").double()
    x = at.alpha * x0 + at.sigma * Rng.of(5, 24).normal(sudoku.shape, 0, F64)
    exact = tensors(sudoku.moments(x, at))
    close(tensors(sudoku.with_moments().moments(x, at)), exact, 1e-8)  # 64 coordinates, 128 backward passes
    # Probes have the right mean: 16 times as many make a quarter of the error, for the variance and for the third moment.
    errors = [[rms(a - b) for a, b in zip(tensors(sudoku.with_moments(probes=n).moments(x, at)), exact)] for n in (20, 320)]  # fmt: skip
    for few, many in list(zip(*errors))[1:]:
        assert 2.5 < few / many < 6, errors


def test_derivatives_of_a_transformer():
    """Fused attention has no second derivative; the plain form of it has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, dtype=F64)
    model = GaussianDenoiser.wrap(lambda x, t: 0.5 * x + layer(x), shape=(3, 8), dtype=F64).with_moments()
    x, at = Rng.of(0, 2).normal((3, 8), 1, F64), Point.at(model.schedule, t=0.4)
    got, step = model.moments(x, at), 1e-4

    def moved(by):
        """x_0 of coordinate [1, 2] with that coordinate moved."""
        y = x.clone()
        y[:, 1, 2] += by
        return model.denoised(y, samplers.gaussian.denoiser.At.of(model.schedule, at)).detach()[:, 1, 2]

    high, low, factor = moved(step), moved(-step), at.sigma**2 / at.alpha
    variance = (factor * (high - low) / (2 * step)).clamp_min(0)
    torch.testing.assert_close(got.variance[:, 1, 2], variance, atol=1e-6, rtol=1e-6)
    third = factor**2 * (high - 2 * moved(0) + low) / step**2
    torch.testing.assert_close(got.third[:, 1, 2], third, atol=1e-5, rtol=1e-4)


def rms(x):
    return float(x.square().mean().sqrt())


def test_signs_are_the_rows_own_random_numbers():
    a, b = Rng.of(3, 5).signs((40, 5), 2, 0), Rng.of(3, 5).signs((40, 5), 2, 1)
    assert torch.equal(a[3:4], Rng.of(3, 1, 3).signs((40, 5), 2, 0))
    assert set(a.unique().tolist()) == {-1.0, 1.0} and abs(float(a.mean())) < 0.15 and abs(float((a * b).mean())) < 0.15


def test_central_moments_of_powers():
    z = Rng.of(0, 6).normal((500,), 1, F64)
    z = z + 0.3 * z**2
    m = central([(z**k).mean(1) for k in (1, 2, 3)])
    torch.testing.assert_close(m.third, ((z - z.mean(1, keepdim=True)) ** 3).mean(1))
    torch.testing.assert_close(m.variance, z.var(1, correction=0))


class Keep(GaussianSampler[GridState]):
    """Asks for moments in every step and keeps them."""

    name, cite, summary = "keep_moments", "a test", "moments of every step"

    def update(self, predict, state, s, t):
        self.SEEN.append((s, state.x, predict.moments(state.x, s)))
        return self.advance(state, t.alpha * self.SEEN[-1][2].mean)

    SEEN = []


def run(denoiser, steps=3, **how):
    Keep.SEEN.clear()
    return samplers.sample(denoiser, Keep(), steps=steps, batch=2, **how), list(Keep.SEEN)


def test_a_run_counts_what_moments_cost():
    two = samplers.problems.create("mixture").denoiser("gaussian")
    out, seen = run(two)
    assert out.nfe == 3 and out.row_evals == 6
    for s, x, m in seen:
        assert all(torch.equal(a, b) for a, b in zip(tensors(m), tensors(two.moments(x, s))))
    assert run(two.with_moments())[0].nfe == 2 * (1 + 3 * 2) + 1
    assert run(two.with_moments(probes=1))[0].nfe == 2 * 4 + 1
    assert [two.with_moments().moment_evals(k) for k in (1, 2, 3)] == [1, 3, 7]


def test_a_run_gives_probes_of_its_own_to_every_row_and_step():
    sudoku = samplers.problems.create("sudoku4").denoiser("gaussian", dtype=F64).with_moments(probes=1)
    seen = run(sudoku, seed=4)[1]
    again = run(sudoku, seed=4)[1]
    other = run(sudoku, seed=5)[1]
    assert torch.equal(seen[1][2].third, again[1][2].third) and not torch.equal(seen[1][2].third, other[1][2].third)


def test_a_run_keeps_what_is_known_and_its_bound():
    two = samplers.problems.create("mixture").denoiser("gaussian")
    start, known = torch.tensor([0.25, 9.0], dtype=F64), torch.tensor([True, False])
    for _, _, m in run(two, start=start, known=known)[1]:
        assert m.mean[:, 0].tolist() == [0.25] * 2 and not m.variance[:, 0].any() and not m.third[:, 0].any()
        assert bool((m.variance[:, 1] > 0).all())
    assert all(float(m.mean.abs().max()) <= 0.1 for _, _, m in run(two, x0_bound=0.1)[1])


def test_what_is_wrong_is_said():
    x = torch.zeros(2, 3)
    plain = GaussianDenoiser.wrap(lambda x, t: 0.5 * x, shape=(3,), name="plain")
    assert not plain.gives_moments
    with pytest.raises(OptionError, match=r"'plain' gives the mean of x_0 only.*moments=heads.*with_moments"):
        plain.moments(x, 0.5)
    with pytest.raises(OptionError, match=r"'plain' gives the mean of x_0 only"):
        run(plain)
    with pytest.raises(OptionError, match=r"moments= is a callable of x and t that returns .*not 3"):
        GaussianDenoiser.wrap(lambda x, t: x, shape=(3,), moments=3)
    two = GaussianDenoiser.wrap(lambda x, t: x, shape=(3,), moments=lambda x, t: (x, x * x))
    assert two.moments(x, 0.5, order=2).third is None
    with pytest.raises(DenoiserError, match=r"moments=, returned 2 tensors; 3 are needed .*E z\^3"):
        two.moments(x, 0.5)
    wrong = GaussianDenoiser.wrap(lambda x, t: x, shape=(3,), moments=lambda x, t: (x, x[:1], x))
    with pytest.raises(DenoiserError, match=r"returned shape \(1, 3\) for x of shape \(2, 3\)"):
        wrong.moments(x, 0.5)
    still = GaussianDenoiser.wrap(lambda x, t: torch.ones(2, 3), shape=(3,), prediction="x0").with_moments()
    with pytest.raises(DenoiserError, match="does not depend on x through torch operations"):
        still.moments(x, 0.5)
    with pytest.raises(OptionError, match="where alpha is 0, x says nothing of x_0"):
        samplers.problems.create("mixture", schedule="flow").denoiser("gaussian").with_moments().moments(
            torch.zeros(2, 2), samplers.gaussian.denoiser.At(1.0, 0.0, 1.0)
        )
    with pytest.raises(OptionError, match="probes"):
        plain.with_moments(probes=0)
    guided = GaussianDenoiser.wrap(lambda x, t: x, shape=(3,), unconditional=lambda x, t: x).with_moments()
    with pytest.raises(OptionError, match="those of a guided x_0 are not known: leave out cfg_scale"):
        run(guided, cfg_scale=1.0)
