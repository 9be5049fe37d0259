"""Models of Bayesian flows: their noise, exact ones against Bayes' rule written out, and networks called as published."""

import math
import re
from pathlib import Path

import pytest
import torch
from samplers_bfn import ContinuousFlow, ContinuousSchedule, DiscreteFlow, DiscreteSchedule, token_moments
from samplers_bfn.family import FlowPredictor, TinyTokens

import samplers
from samplers import problems
from samplers.authoring import FamilyError, OptionError, Point
from samplers.errors import DenoiserError

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("schedule", [ContinuousSchedule(), ContinuousSchedule(0.03), DiscreteSchedule(27, 0.5625)])
def test_schedules_are_the_papers(schedule):
    t = torch.linspace(0, 1 - 1e-5, 50, dtype=F64).requires_grad_()
    u = (1 - t).detach()
    if isinstance(schedule, ContinuousSchedule):
        gamma = 1 - schedule.sigma_1 ** (2 * u)
        alpha, sigma = gamma, (gamma * (1 - gamma)).sqrt()
    else:
        beta = 0.5625 * u**2
        alpha, sigma = beta, (27 * beta).sqrt()
    torch.testing.assert_close(schedule.alpha(t), alpha, rtol=1e-9, atol=0, check_dtype=False)
    torch.testing.assert_close(schedule.sigma(t), sigma, rtol=1e-9, atol=0, check_dtype=False)
    torch.testing.assert_close(schedule.t_of(schedule.lam(t.detach())), t.detach(), rtol=0, atol=1e-11)
    slopes = [torch.autograd.grad(f(t).sum(), t)[0] for f in (schedule.log_sigma, schedule.lam)]
    for i in range(50):
        assert schedule.slopes(float(t[i].detach())) == pytest.approx(
            (float(slopes[0][i]), float(slopes[1][i])), rel=1e-9
        )


def test_bad_schedules():
    for value in (0.0, 1.0, -1.0):
        with pytest.raises(OptionError, match="sigma_1"):
            ContinuousSchedule(value)
    with pytest.raises(OptionError, match="classes must be an integer of 2"):
        DiscreteSchedule(1, 1.0)
    with pytest.raises(OptionError, match="beta_1"):
        DiscreteSchedule(3, math.inf)


# ---------------------------------------------------------------------------------------------- exact models


def by_bayes(rows, weights, z, schedule, u):
    """p(x_i = v | z) from the densities of z given each row of tokens, N(beta (K onehot - 1), beta K)."""
    k, beta = schedule.classes, schedule.beta_1 * u**2
    one_hot = torch.nn.functional.one_hot(rows, k).to(F64)  # (S, L, K)
    density = torch.distributions.Normal(beta * (k * one_hot - 1), math.sqrt(beta * k)).log_prob(z).sum((1, 2))
    w = (weights.log() + density).softmax(0)
    return (w[:, None, None] * one_hot).sum(0)


@pytest.mark.parametrize("u", [0.02, 0.3, 1.0])
def test_exact_models_of_tokens(u):
    tiny, grids = TinyTokens(), problems.create("sudoku4")
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    exact = grids.denoiser("bayesian_flow", dtype=F64)
    for flow, rows, weights in (
        (tiny, pairs, tiny.joint.flatten()),
        (exact, grids.grids, torch.full((288,), 1 / 288, dtype=F64)),
    ):
        at = Point.at(flow.schedule, t=1 - u)
        for i in range(3):
            # Half of them are near a row of tokens, as in a run.
            x0 = flow.classes * torch.nn.functional.one_hot(rows[7 * i % len(rows)], flow.classes) - 1
            z = at.alpha * x0 * (i != 1) + at.sigma * normal(*flow.shape, seed=i)
            expected = by_bayes(rows, weights, z, flow.schedule, u)
            torch.testing.assert_close(flow.probabilities(z[None], at)[0], expected, rtol=1e-9, atol=1e-14)


def test_one_token_is_a_softmax():
    """With one token of prior p the exact answer is softmax(log p + z) at every time."""
    prior = torch.tensor([0.1, 0.6, 0.3], dtype=F64)
    flow = DiscreteFlow.wrap(lambda theta, u: (prior * theta).log(), shape=1, classes=3, beta_1=2.0, dtype=F64)
    z = 2 * normal(5, 1, 3)
    for u in (0.1, 0.9):
        got = flow.probabilities(z, Point.at(flow.schedule, t=1 - u))
        torch.testing.assert_close(got, (prior.log() + z).softmax(-1), rtol=1e-12, atol=0)
        expected = by_bayes(torch.arange(3)[:, None], prior, z[0], flow.schedule, u)
        torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("u", [0.01, 0.4, 1.0])
def test_exact_models_of_reals(u):
    """A mixture by its formula; grids and digits by the sum over their points."""
    mixture = problems.create("mixture", dim=1).denoiser("bayesian_flow", dtype=F64)
    gamma = 1 - 1e-3 ** (2 * u)
    mu, mean, spread = normal(6, 1), torch.tensor([-1.0, 0.8], dtype=F64), torch.tensor([0.3, 0.5], dtype=F64)
    variance = gamma**2 * spread**2 + gamma * (1 - gamma)
    w = (
        torch.tensor([0.4, 0.6], dtype=F64).log()
        + torch.distributions.Normal(gamma * mean, variance.sqrt()).log_prob(mu)
    ).softmax(1)
    expected = (w * (mean + gamma * spread**2 / variance * (mu - gamma * mean))).sum(1, keepdim=True)
    times = torch.full((6,), u, dtype=F64)
    torch.testing.assert_close(mixture.predict(mu, times), expected, rtol=1e-9, atol=1e-12)

    problem = problems.create("sudoku4")
    flow = problem.denoiser("bayesian_flow", kind="continuous", dtype=F64)
    points = problem.to_reals(problem.grids).flatten(1)
    x = gamma * points[:6] + math.sqrt(gamma * (1 - gamma)) * normal(6, 64)
    w = (-((x[:, None] - gamma * points) ** 2).sum(2) / (2 * gamma * (1 - gamma))).softmax(1)
    torch.testing.assert_close(flow.predict(x.view(6, 16, 4), times).flatten(1), w @ points, rtol=1e-8, atol=1e-10)


def test_which_problems_have_which_kind():
    assert problems.create("text").denoiser("bayesian_flow").kind == "discrete"
    assert problems.create("digits").denoiser("bayesian_flow", kind="continuous").shape == (8, 8)
    with pytest.raises(FamilyError, match="no continuous denoiser for problem 'text'"):
        problems.create("text").denoiser("bayesian_flow", kind="continuous")
    with pytest.raises(FamilyError, match="no discrete denoiser for problem 'mixture'"):
        problems.create("mixture").denoiser("bayesian_flow", kind="discrete")
    with pytest.raises(OptionError, match="kind must be"):
        problems.create("text").denoiser("bayesian_flow", kind="reals")


# ---------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("classes", [2, 3])
def test_published_networks_of_tokens_are_called_as_in_their_code(classes):
    """The same model in both conventions gives the same samples, bit for bit."""
    prior = torch.arange(1.0, classes + 1, dtype=F64)
    seen = {}

    def plain(theta, u):
        assert theta.shape == (4, 2, 3, classes) and u.shape == (4,)
        return (theta * prior).log() + 0 * u[:, None, None, None]

    def published(x, u):
        assert u.shape == (4, 2, 3) and bool((u == u[0, 0, 0]).all())
        seen.setdefault("u", float(u[0, 0, 0]))
        if classes == 3:
            assert x.shape == (4, 2, 3, 3) and torch.allclose(x.sum(-1), torch.ones(4, 2, 3, dtype=F64))
            return (x * prior).log().reshape(4, 6, 3)
        assert x.shape == (4, 2, 3)
        first = (x + 1) / 2
        return ((1 - first) * prior[1] / (first * prior[0])).log().reshape(4, 6, 1, 1)  # the logit of token 1

    make = {"shape": (2, 3), "classes": classes, "beta_1": 2.0, "dtype": F64}
    runs = [
        samplers.sample(
            DiscreteFlow.wrap(fn, published=fn is published, **make), "bfn_sde_solver_2", batch=4, steps=6, trace=True
        )
        for fn in (plain, published)
    ]
    assert runs[0].x.shape == (4, 6) and torch.equal(runs[0].x, runs[1].x)
    torch.testing.assert_close(runs[0].trace[-2].x, runs[1].trace[-2].x, rtol=1e-9, atol=1e-9)
    assert seen["u"] == pytest.approx(1e-5)  # a run begins at u = eta: the time of a network counts from noise to data


def test_networks_of_reals():
    seen = []

    def plain(mu, u):
        seen.append(float(u[0]))
        assert u.shape == (3,) and mu.dtype == torch.float32
        return 0.5 * mu

    def published(mu, u):
        assert u.shape == (3, 2, 2)
        return (0.5 * mu).reshape(3, 2, 2, 1)

    flows = [
        ContinuousFlow.wrap(fn, shape=(2, 2), sigma_1=0.1, clip=None, published=fn is published)
        for fn in (plain, published)
    ]
    x, at = normal(3, 2, 2).float(), Point.at(flows[0].schedule, t=0.7)
    gamma = 1 - 0.1**0.6
    expected = x / gamma - math.sqrt((1 - gamma) / gamma) * 0.5 * x
    for flow in flows:
        torch.testing.assert_close(flow.answer(x, at), expected, rtol=1e-5, atol=1e-6)
    assert seen == [pytest.approx(0.3)]
    clipped = ContinuousFlow.wrap(plain, shape=(2, 2), sigma_1=0.1)
    torch.testing.assert_close(clipped.answer(x, at), expected.clamp(-1, 1), rtol=1e-5, atol=1e-6)
    direct = ContinuousFlow.wrap(plain, shape=(2, 2), sigma_1=0.1, prediction="x0", clip=None)
    assert torch.equal(direct.answer(x, at), 0.5 * x)


def test_discretised_data():
    """The mean over 4 bins of a Gaussian of x_0, against the masses written out."""
    z = normal(5, 3, 2, seed=4)
    flow = ContinuousFlow.wrap(lambda mu, u: z, shape=3, sigma_1=0.2, prediction="bins", bins=4, clip=None, dtype=F64)
    mu, u = normal(5, 3), 0.35
    gamma = 1 - 0.2 ** (2 * u)
    root = math.sqrt((1 - gamma) / gamma)
    gauss = torch.distributions.Normal(mu / gamma - root * z[..., 0], root * z[..., 1].exp())
    below = [
        torch.zeros(5, 3, dtype=F64),
        *(gauss.cdf(torch.tensor(e, dtype=F64)) for e in (-0.5, 0.0, 0.5)),
        torch.ones(5, 3, dtype=F64),
    ]
    expected = sum(c * (b - a) for c, a, b in zip((-0.75, -0.25, 0.25, 0.75), below, below[1:]))
    torch.testing.assert_close(flow.answer(mu, Point.at(flow.schedule, t=1 - u)), expected, rtol=1e-9, atol=1e-12)


def test_bad_networks():
    with pytest.raises(OptionError, match="unknown prediction 'noise'"):
        ContinuousFlow.wrap(torch.sin, shape=3, prediction="noise")
    with pytest.raises(OptionError, match="only prediction='bins' takes bins="):
        ContinuousFlow.wrap(torch.sin, shape=3, bins=16)
    with pytest.raises(OptionError, match="clip must be"):
        ContinuousFlow.wrap(torch.sin, shape=3, clip=0.0)
    with pytest.raises(OptionError, match="shape must be the sizes"):
        DiscreteFlow.wrap(torch.sin, shape=(), classes=3, beta_1=1.0)
    with pytest.raises(OptionError, match=r"DiscreteFlow.wrap takes a callable"):
        DiscreteFlow.wrap(3, shape=2, classes=3, beta_1=1.0)
    with pytest.raises(OptionError, match=r"floating torch\.dtype"):
        DiscreteFlow.wrap(torch.sin, shape=2, classes=3, beta_1=1.0, dtype=torch.int64)
    flow = DiscreteFlow.wrap(lambda theta, u: theta[:, :1], shape=2, classes=3, beta_1=1.0, name="short")
    with pytest.raises(DenoiserError, match=r"'short' returned shape \(1, 1, 3\); \(1, 2, 3\) is needed"):
        samplers.sample(flow, "bfn", steps=3)
    flow = ContinuousFlow.wrap(lambda mu, u: (mu,), shape=2)
    with pytest.raises(DenoiserError, match="returned tuple"):
        samplers.sample(flow, "bfn", steps=3)
    flow = ContinuousFlow.wrap(lambda mu, u: mu * math.nan, shape=2, clip=None)
    with pytest.raises(DenoiserError, match=r"row 0 a value that is not finite \(forward pass 1"):
        samplers.sample(flow, "bfn", steps=3)


def test_moments_of_tokens():
    x = torch.tensor([[0, 2], [0, 1], [1, 2], [0, 2]])
    mean, variance = token_moments(x, 3)
    assert torch.equal(mean, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]], dtype=F64))
    assert variance == pytest.approx(4 * 0.1875 / 6)
    with pytest.raises(OptionError, match="from 0 to classes - 1 = 1"):
        token_moments(x, 2)


def test_predictor_refuses_tokens_of_reals():
    flow = problems.create("mixture").denoiser("bayesian_flow")
    with pytest.raises(OptionError, match="'mine' draws tokens"):
        FlowPredictor(flow, 1, sampler="mine").probabilities(torch.zeros(1, 2), Point.at(flow.schedule, t=0.5))


def test_the_readme_runs():
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiscreteFlow.wrap(len, shape=3, classes=2.5, beta_1=3.0), "classes must be an integer of 2 or more"),
        (lambda: DiscreteFlow.wrap(len, shape=3, classes=3, beta_1="3"), "beta_1 must be a positive number"),
        (lambda: DiscreteFlow.wrap(len, shape=True, classes=3, beta_1=3.0), "the sizes of one sample"),
        (lambda: ContinuousFlow.wrap(len, shape=2.5), "the sizes of one sample"),
        (lambda: ContinuousFlow.wrap(len, shape=2, sigma_1="x"), "sigma_1 must be above 0"),
        (lambda: ContinuousFlow.wrap(len, shape=2, clip="x"), "clip must be a positive number"),
        (lambda: ContinuousFlow.wrap(len, shape=2, prediction="bins", bins=2.5), "an integer of 2 or more"),
        (lambda: ContinuousFlow.wrap(len, shape=2, device="moon"), "torch knows no such device"),
        (lambda: token_moments([[1, 2]], 3), "takes tokens"),
    ],
    ids=["classes", "beta", "true", "half_a_size", "sigma", "clip", "bins", "device", "list"],
)
def test_what_a_network_cannot_have_is_refused_in_words(make, words):
    with pytest.raises(samplers.OptionError, match=words):
        make()
