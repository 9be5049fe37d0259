"""Energies: their definitions summed over a tiny law by enumeration, closed forms, and the optimum."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import beta as beta_function

from samplers import MaskSchedule, OptionError, energy, mask_schedule

PI2 = math.pi**2
GAMMAS = ["linear", "I(0.5,0.5)", "I(0.9,0.3)", "I(0.3,0.9)", "I(1,0.2)", "I(2,3)", "u^3", "exp(4)"]

# ---------------------------------------------------------------------------------------------- from the definitions

N, V, M = 3, 2, 2  # tokens, values, and the mask as value number 2
STATES = list(itertools.product(range(V + 1), repeat=N))
STRINGS = list(itertools.product(range(V), repeat=N))
LAW = np.array([0.05, 0.21, 0.13, 0.02, 0.3, 0.09, 0.12, 0.08])


def conditional(a):
    """p(z | x1) for every state and string: (27, 8)."""
    return np.array(
        [[math.prod(a if z == x else (1 - a) * (z == M) for z, x in zip(s, w)) for w in STRINGS] for s in STATES]
    )


def conditional_rates(a, slope):
    """Q(z, x | x1): a masked token shows its own value at the rate a'/(1 - a); (27, 27, 8), z first."""
    q = np.zeros((len(STATES), len(STATES), len(STRINGS)))
    for i, z in enumerate(STATES):
        for j, x in enumerate(STATES):
            changed = [k for k in range(N) if z[k] != x[k]]
            if len(changed) == 1 and z[changed[0]] == M:
                k = changed[0]
                q[i, j] = [slope / (1 - a) * (x[k] == w[k]) for w in STRINGS]
    return q


def parts(a, slope):
    """p(z), Q(z, x), p(z | x1), Q(z, x | x1) at one time; the rates of the mixture are averaged over p(x1 | z)."""
    p_given = conditional(a)
    joint = p_given * LAW
    p = joint.sum(1)
    posterior = joint / p[:, None]
    q_given = conditional_rates(a, slope)
    return p, np.einsum("zxw,zw->zx", q_given, posterior), p_given, q_given


def densities(a, slope):
    """The three integrands, times gamma'."""
    p, q, p_given, q_given = parts(a, slope)
    kinetic = sum(
        p[i] / p[j] * q[i, j] ** 2 for i in range(len(STATES)) for j in range(len(STATES)) if i != j and q[i, j] > 0
    )
    met = (p_given > 0)[:, None] & (q_given > 0)  # jumps from a state that these data never show do not happen
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(met, p_given[:, None] / p_given[None], 0.0)
    conditional_kinetic = float(((ratio * q_given**2).sum((0, 1)) * LAW).sum())
    # y = (sqrt p(own value), sqrt p(mask)) of each token, moved by a small step of a.
    step = 1e-6 * min(a, 1 - a)
    y = [np.sqrt([a + e, 1 - a - e]) for e in (step, -step)]
    speed = ((y[0] - y[1]) / (2 * step) * slope) ** 2
    return kinetic, conditional_kinetic, 4 * N * float(speed.sum())


@pytest.mark.parametrize("a", [0.2, 0.7])
def test_the_rates_make_the_path(a):
    """The enumeration is what it says: d/dt p = inflow - outflow, for the mixture and given the data."""
    slope, step = 0.8, 1e-6
    p, q, p_given, q_given = parts(a, slope)
    moved = (conditional(a + step) - conditional(a - step)) / (2 * step) * slope
    flow = np.einsum("zw,zxw->xw", p_given, q_given) - p_given * q_given.sum(1)
    np.testing.assert_allclose(flow, moved, atol=1e-8)
    np.testing.assert_allclose(p @ q - p * q.sum(1), moved @ LAW, atol=1e-8)


@pytest.mark.parametrize(("spec", "gamma"), [("sin^2", "linear"), ("linear", "I(0.6,0.7)"), ("u^2", "I(0.8,0.5)")])
def test_energies_of_a_real_law_are_the_formulas(spec, gamma):
    a, g = mask_schedule(spec), mask_schedule(gamma)

    def at(x):
        # In logit time both ends fall off like e^(-r |x|), and the trapezoid rule converges faster than any power.
        u = 1 / (1 + math.exp(-x))
        return np.array(densities(float(a(u)), float(a.slope(u)))) / float(g.slope(u)) * u * (1 - u)

    values = [at(x) for x in np.arange(-16, 16.01, 0.25)]
    found = 0.25 * sum(values)
    for end, before in ((0, 1), (-1, -2)):
        found = found + 0.25 * values[end] / (values[before] / values[end] - 1)
    made = [
        energy.kinetic(spec, gamma, length=N, vocab=V),
        energy.conditional_kinetic(spec, gamma, length=N),
        energy.geodesic(spec, gamma, length=N),
    ]
    assert list(found) == pytest.approx(made, rel=1e-6)
    action = energy.action(spec, gamma)
    assert made == pytest.approx([N * (V + 1) ** (N - 1) * action, N * 2 ** (N - 1) * action, N * action])


# ---------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("alpha", "gamma"),
    [
        ((0.9, 0.3), (0.5, 0.5)),
        ((0.5, 0.5), (0.9, 0.9)),
        ((1, 0.2), (0.9, 0.3)),
        ((0.5, 0.5), (0.98, 0.7)),
        ((3, 2), (2, 3)),
        ((0.1, 0.1), (0.15, 0.15)),
        ((5, 7), (4, 4)),
    ],
)
def test_two_betas_have_a_closed_form(alpha, gamma):
    # J = pi^2 int pdf_alpha^2 / pdf_gamma = pi^2 B(2a - c, 2b - d) B(c, d) / B(a, b)^2.
    (a, b), (c, d) = alpha, gamma
    expected = PI2 * beta_function(2 * a - c, 2 * b - d) * beta_function(c, d) / beta_function(a, b) ** 2
    assert energy.action(f"beta({a},{b})", f"I({c},{d})") == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_optimum_is_pi_squared(gamma):
    best = energy.optimal_schedule(gamma)
    assert energy.action(best, gamma) == pytest.approx(PI2, rel=1e-6)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    v = best(u)
    torch.testing.assert_close(v, torch.sin(math.pi / 2 * mask_schedule(gamma)(u)) ** 2)
    inner = (v > 1e-6) & (v < 1 - 1e-6)
    torch.testing.assert_close(best.progress(v[inner]), u[inner], rtol=0, atol=1e-8)


@pytest.mark.parametrize("spec", ["linear", "1-cos", "sin", "sin^2", "beta(0.9,0.3)", "u^2", "exp(5)", "log(5)"])
def test_every_schedule_is_optimal_for_its_own_gamma(spec):
    own = energy.interpolation(spec)
    assert energy.action(spec, own) == pytest.approx(PI2, rel=1e-6)
    v = mask_schedule(spec)(torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    torch.testing.assert_close(energy.optimal_schedule(own)(own.progress(own(v))), mask_schedule(spec)(v))


def test_names_of_the_optimum():
    u = torch.linspace(0, 1, 65, dtype=torch.float64)
    torch.testing.assert_close(energy.optimal_schedule("linear")(u), mask_schedule("sin^2")(u))
    torch.testing.assert_close(energy.optimal_schedule("I(0.9,0.3)")(u), mask_schedule("beta(0.9,0.3)")(u))
    # gamma of the linear schedule is the arcsine law.
    torch.testing.assert_close(energy.interpolation("linear")(u), mask_schedule("I(0.5,0.5)")(u))


@settings(max_examples=40, deadline=None)
@given(
    gamma=st.sampled_from(["linear", "I(0.5,0.5)", "I(0.9,0.3)", "I(0.3,0.9)", "I(2,3)"]),
    waves=st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=4).filter(lambda w: max(map(abs, w)) > 1e-3),
)
def test_every_perturbation_costs_more(gamma, waves):
    # theta = pi/2 (gamma + sum_k c_k sin(k pi gamma)): J = pi^2 (1 + sum_k (k pi c_k)^2 / 2), in any gamma's time.
    g = mask_schedule(gamma)

    def visible(u):
        t = g(u)
        return torch.sin(math.pi / 2 * (t + sum(c * torch.sin(k * math.pi * t) for k, c in enumerate(waves, 1)))) ** 2

    bent = MaskSchedule("bent", visible, lambda a: a)
    expected = PI2 * (1 + sum((k * math.pi * c) ** 2 for k, c in enumerate(waves, 1)) / 2)
    found = energy.action(bent, gamma)
    if sum(k * math.pi * abs(c) for k, c in enumerate(waves, 1)) < 1:  # theta grows: arcsin sqrt a is theta
        assert found == pytest.approx(expected, rel=1e-5)
    assert found > PI2 * (1 + 1e-7)


# ---------------------------------------------------------------------------------------------- where it is infinite


@pytest.mark.parametrize(
    ("spec", "gamma"),
    [
        ("linear", "linear"),  # logarithmically
        ("u^2", "linear"),
        ("1-(1-u)^0.5", "I(0.5,0.5)"),
        ("beta(0.9,0.3)", "linear"),
        ("beta(0.3,0.9)", "I(0.9,0.9)"),
    ],
)
def test_divergence_is_infinite(spec, gamma):
    assert energy.action(spec, gamma) == math.inf
    assert energy.geodesic(spec, gamma, length=5) == math.inf


def test_a_step_costs_infinitely_much():
    jump = MaskSchedule("step", lambda u: (u > 0.5) * 0.5 + u / 2, lambda a: a)
    flat = MaskSchedule("flat", lambda u: (2 * u).clamp(max=0.5) + (2 * u - 1.5).clamp(min=0), lambda a: a)
    assert energy.action("sin^2", flat) == math.inf
    assert energy.action(jump, "I(0.5,0.5)") > 100  # grows without bound with the grid; no grid can know


def test_constants():
    assert energy.kinetic("sin^2") == pytest.approx(PI2)
    assert energy.conditional_kinetic("sin^2") == pytest.approx(PI2)
    assert energy.geodesic("sin^2") == pytest.approx(PI2)
    assert energy.kinetic("sin^2", length=4, vocab=9) == pytest.approx(4 * 1000 * PI2)
    assert energy.conditional_kinetic("sin^2", length=4) == pytest.approx(32 * PI2)
    assert energy.kinetic("sin^2", length=10**4, vocab=10**5) == math.inf


def test_a_gamma_that_falls_is_refused():
    back = MaskSchedule("back", lambda u: u + 0.2 * torch.sin(4 * math.pi * u), lambda a: a)
    with pytest.raises(OptionError, match="gamma must grow"):
        energy.action("linear", back)
    with pytest.raises(OptionError, match="did you mean"):
        energy.action("linaer")
