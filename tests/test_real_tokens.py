"""Real-valued tokens on a masked canvas, held to the exact distribution of the digits in patches."""

import math

import pytest
import torch

import samplers
from samplers import FamilyError, OptionError, RealTokens, sample_reals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return samplers.problems.create("digits")


def test_patches_and_back(digits):
    x = torch.randn(3, 8, 8)
    for patch in (1, 2, 4, 8):
        parts = digits.to_patches(x, patch)
        assert parts.shape == (3, (8 // patch) ** 2, patch**2)
        assert torch.equal(digits.from_patches(parts), x)
    assert digits.to_patches(x, 4)[0, 1].tolist() == x[0, :4, 4:].flatten().tolist()


def test_one_position_per_step_is_exact_and_all_at_once_is_not(digits):
    """The mean NLL per pixel of exact samples is -0.98923 (problems/digits.py)."""
    model = digits.real_tokens(4)
    run = {"batch": 48, "solver_steps": 60}
    exact = sample_reals(model, "random_order", steps=4, **run)
    nll = digits.nll(digits.from_patches(exact.x))
    assert abs(float(nll.mean()) + 0.98923) < 4 * float(nll.std()) / math.sqrt(48)
    assert (exact.nfe, exact.network_rows, exact.head_nfe, exact.head_rows) == (4, 192, 240, 4 * 48 * 60)
    at_once = sample_reals(model, "random_order", steps=1, **run)
    assert float(digits.nll(digits.from_patches(at_once.x)).mean()) > 5
    assert at_once.nfe == 1


@pytest.mark.parametrize("order", ["random_order", "radd", "remdm"])
def test_a_row_is_what_it_is_alone(digits, order):
    model = digits.real_tokens(4)
    run = {"steps": 3, "solver_steps": 4, "seed": 5}
    many = sample_reals(model, order, batch=3, **run)
    assert bool(many.x.isfinite().all()) and bool((many.x != 0).all())
    for i in range(3):
        alone = sample_reals(model, order, batch=1, first_row=i, **run)
        torch.testing.assert_close(alone.x[0], many.x[i], atol=1e-9, rtol=0)


def test_known_positions_are_kept_and_seen(digits):
    """Given three quarters of an image, the rest is this image's: its NLL is that of a real one."""
    model = digits.real_tokens(4)
    start = digits.to_patches(digits.sample_truth(8, 3, "gaussian").double(), 4)
    known = torch.tensor([True, True, True, False])
    out = sample_reals(model, "random_order", start=start, known=known, batch=8, solver_steps=40)
    assert torch.equal(out.x[:, :3], start[:, :3])
    assert out.nfe == 1
    assert float(digits.nll(digits.from_patches(out.x)).mean()) < -0.8
    other = sample_reals(model, "random_order", start=start.roll(1, 0), known=known, batch=8, solver_steps=40)
    assert not torch.allclose(other.x[:, 3], out.x[:, 3], atol=0.3)


def shifted(by):
    """A head that draws N(z, 0.01) exactly, of a network that says `by` everywhere."""

    def head(x, t, z):
        schedule = samplers.noise_schedule("vp_linear")
        a, s = (f(t.double())[:, None] for f in (schedule.alpha, schedule.sigma))
        return z + a * 0.01 / (a**2 * 0.01 + s**2) * (x - a * z)

    def network(values, known):
        return torch.full((*known.shape, 1), by, dtype=torch.float64)

    return network, head


def test_guidance_moves_away_from_the_unconditional_network():
    """Both heads are Gaussian of one width: the guided mean is exactly (1 + w) 1 - w 0.25."""
    (network, head), (blind, _) = shifted(1.0), shifted(0.25)
    made = {"length": 4, "width": 1, "prediction": "x0", "dtype": torch.float64}
    model = RealTokens(network, head, unconditional=blind, **made)
    run = {"batch": 64, "steps": 2, "solver_steps": 20}
    plain, guided = sample_reals(model, **run), sample_reals(model, **run, cfg_scale=2.0)
    assert torch.allclose(plain.x, sample_reals(RealTokens(network, head, **made), **run).x)
    assert float(guided.x.mean() - plain.x.mean()) == pytest.approx(2 * 0.75, abs=0.02)
    assert guided.head_rows == 2 * plain.head_rows and guided.network_rows == 2 * plain.network_rows
    # The first of two steps begins with all positions masked, the second with half of them.
    first = sample_reals(model, **run, cfg_scale=2.0, cfg_interval=(0.6, 1.0))
    assert first.head_rows == 1.5 * plain.head_rows and first.network_rows == 1.5 * plain.network_rows
    moved = (first.x - plain.x).abs() > 0.5
    assert int(moved.sum()) == 2 * 64
    assert torch.allclose(first.x[moved], guided.x[moved])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: sample_reals(lambda x: x), OptionError, "takes a RealTokens, not function"),
        (lambda m: sample_reals(m, "dpmpp_2m"), FamilyError, "'dpmpp_2m' is of the gaussian family"),
        (lambda m: sample_reals(m, solver="radd"), FamilyError, "a sampler of the gaussian family is needed"),
        (lambda m: sample_reals(m, cfg_scale=1.0), OptionError, "no network without the condition"),
        (lambda m: sample_reals(m, start=torch.zeros(4, 16)), OptionError, "start= and known= go together"),
        (
            lambda m: sample_reals(m, start=torch.zeros(4, 3), known=[True, False, False, False]),
            OptionError,
            r"start.*\(4, 16\)",
        ),
        (lambda m: sample_reals(m, start=torch.zeros(4, 16), known=[True] * 3), OptionError, "known has 1 rows of"),
        (lambda m: sample_reals(m, start=torch.zeros(4, 16), known=[True] * 4), OptionError, "no position to fill"),
        (lambda m: sample_reals(m, treshold=1), OptionError, "treshold"),
        (
            lambda m: RealTokens(m.network, m.head_fn, length=4, width=1, dtype="float32"),
            OptionError,
            "dtype must be a float",
        ),
        (lambda m: RealTokens(None, m.head_fn, length=4, width=1), OptionError, "network must be a callable"),
        (
            lambda m: sample_reals(RealTokens(lambda v, k: v[0], m.head_fn, length=4, width=1)),
            OptionError,
            r"network returned .* reals \(B, L, D\)",
        ),
    ],
)
def test_bad_input(digits, call, error, says):
    with pytest.raises(error, match=says):
        call(digits.real_tokens(4))
