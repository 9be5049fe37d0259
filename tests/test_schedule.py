"""Schedules: formulas against independent ones, inverses, the published table of expected NFE."""

import math

import pytest
import torch
from scipy import integrate, stats

from samplers import OptionError, mask_schedule, noise_schedule

SPECS = ["linear", "1-cos", "sin", "arcsin", "sin^2", "beta(0.9,0.3)", "beta(0.3,0.9)", "beta(1,0.2)"]
SPECS += ["I(0.9,0.3)", "u^2", "u^0.5", "1-(1-u)^0.5", "1-(1-u)^3", "exp(5)", "log(5)", "exp(0.01)", "log(300)"]
NOISE = ["vp_linear", "vp_cosine", "edm", "flow"]


@pytest.mark.parametrize("spec", SPECS)
def test_mask_schedule_ends_grows_inverts(spec):
    a = mask_schedule(spec)
    u = torch.linspace(0, 1, 257, dtype=torch.float64)
    v = a(u)
    assert float(v[0]) == 0.0
    assert float(v[-1]) == 1.0
    assert (torch.diff(v) >= 0).all()
    inner = u[1:-1][(v[1:-1] > 1e-9) & (v[1:-1] < 1 - 1e-9)]
    torch.testing.assert_close(a.progress(a(inner)), inner, rtol=0, atol=1e-6)
    assert abs(float(a.mass(37).sum()) - 1) < 1e-12
    assert float(a.reveal(37)[-1]) == 1.0


def test_beta_is_the_papers_formula():
    for u in (0.1, 0.35, 0.5, 0.8):
        gamma = stats.beta(0.9, 0.3).cdf(u)
        assert abs(float(mask_schedule("beta(0.9, 0.3)")(u)) - math.sin(math.pi / 2 * gamma) ** 2) < 1e-12
        assert abs(float(mask_schedule("beta(0.5,0.5)")(u)) - u) < 1e-9
        assert abs(float(mask_schedule("beta(1,1)")(u)) - math.sin(math.pi / 2 * u) ** 2) < 1e-12


# arXiv 2409.02908's formula, evaluated independently (reference table, two decimals).
@pytest.mark.parametrize(
    ("spec", "length", "steps", "nfe"),
    [
        ("linear", 128, 32, 31.45),
        ("linear", 256, 128, 110.81),
        ("linear", 1024, 1024, 647.48),
        ("1-cos", 128, 64, 49.95),
        ("1-cos", 256, 128, 99.79),
        ("1-cos", 1024, 10000, 962.22),
        ("sin", 256, 128, 99.79),
    ],
)
def test_expected_nfe_table(spec, length, steps, nfe):
    assert abs(mask_schedule(spec).expected_nfe(length, steps) - nfe) < 0.006


def test_counts_of_the_energy_paper():
    # Counts for n = 256 in 8 steps, and how many of 256 steps commit something.
    assert mask_schedule("beta(0.5,0.5)").counts(256, 8) == [32] * 8
    assert mask_schedule("beta(1,1)").counts(256, 8) == [10, 27, 42, 49, 49, 42, 27, 10]
    assert mask_schedule("beta(0.9,0.3)").counts(256, 8) == [2, 4, 9, 12, 19, 29, 47, 134]
    assert mask_schedule("beta(1,0.2)").counts(256, 8) == [2, 3, 5, 10, 15, 31, 190]  # the first of 8 commits nothing
    for (a, b), zero in {
        (0.5, 0.5): 0,
        (0.8, 0.8): 38,
        (0.9, 0.9): 46,
        (1, 1): 54,
        (0.9, 0.3): 117,
        (1, 0.2): 160,
    }.items():
        counts = mask_schedule(f"beta({a},{b})").counts(256, 256)
        assert sum(counts) == 256
        assert len(counts) == 256 - zero


# Each formula of the masked share 1 - a at t = 1 - u, as the papers write it, and the slope a'(u) by hand.
BY_HAND = {
    "u^3": (lambda t: 1 - (1 - t) ** 3, lambda u: 3 * u**2),
    "1-(1-u)^0.5": (lambda t: math.sqrt(t), lambda u: 0.5 / math.sqrt(1 - u)),
    "exp(5)": (lambda t: (1 - math.exp(-5 * t)) / (1 - math.exp(-5)), lambda u: 5 * math.exp(5 * u) / math.expm1(5)),
    "log(5)": (
        lambda t: math.log(1 + math.expm1(5) * t) / 5,
        lambda u: math.expm1(5) / 5 / (1 + math.expm1(5) * (1 - u)),
    ),
    "1-cos": (lambda t: math.cos(math.pi / 2 * (1 - t)), lambda u: math.pi / 2 * math.sin(math.pi / 2 * u)),
    "I(0.9,0.3)": (lambda t: stats.beta(0.3, 0.9).cdf(t), lambda u: stats.beta(0.9, 0.3).pdf(u)),
    "beta(0.7,0.4)": (
        lambda t: math.cos(math.pi / 2 * stats.beta(0.7, 0.4).cdf(1 - t)) ** 2,
        lambda u: math.pi / 2 * math.sin(math.pi * stats.beta(0.7, 0.4).cdf(u)) * stats.beta(0.7, 0.4).pdf(u),
    ),
}


@pytest.mark.parametrize("spec", BY_HAND)
def test_formula_and_slope_by_hand(spec):
    masked, slope = BY_HAND[spec]
    schedule = mask_schedule(spec)
    for u in (0.001, 0.1, 0.37, 0.5, 0.83, 0.999):
        assert float(schedule(u)) == pytest.approx(1 - masked(1 - u), rel=1e-9)
        assert float(schedule.slope(u)) == pytest.approx(slope(u), rel=1e-9)


def test_powers_of_one_are_linear():
    u = torch.linspace(0, 1, 33, dtype=torch.float64)
    for spec in ("u^1", "1-(1-u)^1", "I(1,1)"):
        torch.testing.assert_close(mask_schedule(spec)(u), u, rtol=0, atol=1e-15)


def test_emigm_reveals():
    # Expected counts of 256 tokens in 16 iterations, from its code's probabilities 1 - g(s)/g(t) (reference table).
    exp = 256 * mask_schedule("exp(5)").mass(16)
    table = [0.6, 0.9, 1.2, 1.6, 2.2, 3, 4.2, 5.7, 7.8, 10.6, 14.5, 19.8, 27.1, 37, 50.6, 69.2]
    torch.testing.assert_close(exp, torch.tensor(table, dtype=torch.float64), rtol=0, atol=0.06)
    log = 256 * mask_schedule("log(5)").mass(16)
    assert float(log[0]) == pytest.approx(3.3, abs=0.05)
    assert float(log[-1]) == pytest.approx(119, abs=0.5)
    # Its exp ends at 1 - e^-5: the ratios, all that an ancestral step uses, are those of the normalised one.
    t = 1 - torch.linspace(0, 1, 17, dtype=torch.float64)
    g = 1 - torch.exp(-5 * t)
    torch.testing.assert_close(mask_schedule("exp(5)").reveal(16), 1 - g[1:] / g[:-1])


@pytest.mark.parametrize("spec", ["u^0", "u^-1", "u^x", "1-(1-u)^0", "exp(0)", "exp(1e4)", "log(-1)", "I(1)", "I(0,1)"])
def test_bad_numbers_in_a_formula(spec):
    with pytest.raises(OptionError, match="schedule"):
        mask_schedule(spec)


def test_poly_is_refused_with_both_meanings():
    for spec in ("poly", "poly(2)", "poly-0.5", "polynomial"):
        with pytest.raises(OptionError, match=r"two opposite.*u\^p.*1-\(1-u\)\^p"):
            mask_schedule(spec)


@pytest.mark.parametrize("spec", ["cosine", "linaer", "beta(0,1)", "beta(1)", "beta(a,b)", "beta(inf,1)", ""])
def test_bad_mask_schedule(spec):
    with pytest.raises(OptionError):
        mask_schedule(spec)


def test_cosine_is_refused_with_both_meanings():
    with pytest.raises(OptionError, match=r"1-cos.*sin"):
        mask_schedule("cosine")
    with pytest.raises(OptionError, match="did you mean 'linear'"):
        mask_schedule("linaer")


@pytest.mark.parametrize("name", NOISE)
def test_noise_schedule_inverse_and_kind(name):
    schedule = noise_schedule(name)
    t = torch.linspace(schedule.t_min, schedule.t_max, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.t_of(schedule.lam(t)), t, rtol=1e-9, atol=1e-12)
    a, s = schedule.alpha(t), schedule.sigma(t)
    if name.startswith("vp"):
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(t))
    elif name == "flow":
        torch.testing.assert_close(a + s, torch.ones_like(t))
    else:
        assert (a == 1).all()
        torch.testing.assert_close(s, t)
    assert (torch.diff(schedule.lam(t)) < 0).all()


def test_vp_linear_is_the_integral_of_beta():
    schedule = noise_schedule("vp_linear")
    for t in (0.01, 0.3, 1.0):
        area = integrate.quad(lambda u: 0.1 + u * (20 - 0.1), 0, t)[0]
        assert abs(float(schedule.alpha(t)) - math.exp(-area / 2)) < 1e-12


def test_bad_noise_schedule():
    with pytest.raises(OptionError, match="did you mean 'vp_linear'"):
        noise_schedule("vp_liner")
