"""ddpd, gidd and dfm_euler_uniform: laws by enumeration in float64 from the definitions, and GIDD's loop beside ours."""

import itertools
import math

import numpy as np
import pytest
import torch

import samplers
from samplers import OptionError
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyUniformJoint, TinyUniformNet

pytestmark = pytest.mark.usefixtures("one_thread")


def follows(problem, name, law, rows=15_000, **run):
    x = samplers.sample(problem, name, batch=rows, seed=1, temperature=1.0, **run).x
    return fits(torch.bincount(problem.index(x), minlength=len(law)), torch.as_tensor(law)) > BOUND


class Exact:
    """Strings and what can be said of them when some positions are noise: sums over the joint, and nothing else."""

    def __init__(self, problem):
        self.strings, self.law = [tuple(s) for s in problem.strings.tolist()], problem.law.numpy()
        self.V, self.L, self.number = problem.tokens, problem.length, {}
        self.number = {s: i for i, s in enumerate(self.strings)}

    def given_noise(self, x, which):
        """Weight of x_0 for each string, if the positions `which` of x are noise and the others are clean."""
        fits = [all(s[i] == x[i] or i in which for i in range(self.L)) for s in self.strings]
        return self.law * np.array(fits) / self.V ** len(which)

    def noise_sets(self, t):
        for size in range(self.L + 1):
            for which in itertools.combinations(range(self.L), size):
                yield which, t**size * (1 - t) ** (self.L - size)

    def posterior(self, x, t, if_noise=None):
        """(L,) P(noise); (L, V) p(x_0,i | x, i is noise), by summing over which positions are noise."""
        total, noise, token = 0.0, np.zeros(self.L), np.zeros((self.L, self.V))
        for which, chance in self.noise_sets(t):
            weight = chance * self.given_noise(x, which)
            total += weight.sum()
            for i in which:
                noise[i] += weight.sum()
                np.add.at(token[i], [s[i] for s in self.strings], weight)
        return noise / total, token / np.maximum(token.sum(1, keepdims=True), 1e-300)

    def clean(self, x, t):
        """(L, V): p(x_0,i | x) at the level t."""
        weight = sum(chance * self.given_noise(x, which) for which, chance in self.noise_sets(t))
        out = np.zeros((self.L, self.V))
        for s, w in zip(self.strings, weight):
            out[range(self.L), s] += w
        return out / out.sum(1, keepdims=True)

    def counted(self, law):
        out = np.zeros(len(self.strings))
        for x, w in law.items():
            out[self.number[x]] += w
        assert abs(out.sum() - 1) < 1e-9
        return out


# ---------------------------------------------------------------------------------------------- DDPD


def ddpd_law(exact, steps, sees, final=0.05, planner=None):
    """One planned position in each step, and all that is still noise in the last; (x, t) are the states."""
    law = {(x, 1.0): exact.V**-exact.L for x in exact.strings}
    for k in range(steps):
        after = {}
        for (x, t), weight in law.items():
            noise, _ = exact.posterior(x, t)
            noise = noise if planner is None else 1 / (1 + np.exp(-np.array(planner(x))))
            noise = np.clip(noise, 2.0**-30, 1 - 2.0**-30)
            odds = noise / (1 - noise)
            for i in range(exact.L):
                share = weight * odds[i] / odds.sum()
                drawn = {i} | {j for j in range(exact.L) if k == steps - 1 and noise[j] > final}
                level = max((noise.sum() - noise[i]) / exact.L, 2.0**-20)
                for chance, p in denoised(exact, x, t, noise, drawn, sees, k == steps - 1):
                    for values in itertools.product(range(exact.V), repeat=len(drawn)):
                        y, w = list(x), share * chance
                        for j, v in zip(sorted(drawn), values):
                            y[j], w = v, w * p[j][v]
                        if w > 0:
                            key = tuple(y), round(level, 9)
                            after[key] = after.get(key, 0.0) + w
        law = after
    out = {}
    for (x, _), w in law.items():
        out[x] = out.get(x, 0.0) + w
    return exact.counted(out)


def denoised(exact, x, t, noise, drawn, sees, last):
    """(probability, (L, V) what tokens are drawn from): once for tokens as they are, else for each set that is hidden."""
    if sees == "noisy":
        yield 1.0, exact.posterior(x, t)[1]
        return
    others = [j for j in range(exact.L) if j not in drawn]
    for more in itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(len(others) + 1)):
        if last and more:
            continue
        chance = 1.0 if last else math.prod(noise[j] if j in more else 1 - noise[j] for j in others)
        weight = exact.given_noise(x, drawn | set(more))
        p = np.zeros((exact.L, exact.V))
        for s, w in zip(exact.strings, weight):
            p[range(exact.L), s] += w
        yield chance, p / np.maximum(p.sum(1, keepdims=True), 1e-300)


@pytest.mark.parametrize(
    ("sees", "steps", "passes"), [("noisy", 2, 2), ("noisy", 4, 4), ("masked", 2, 3), ("masked", 3, 5)]
)
def test_ddpd_is_its_rule(sees, steps, passes):
    problem = TinyUniformJoint(2, 3)
    exact = Exact(problem)
    law = ddpd_law(exact, steps, sees)
    assert follows(problem, "ddpd", law, steps=passes, sees=sees)
    out = samplers.sample(problem, "ddpd", batch=3, steps=passes, sees=sees)
    assert out.nfe == passes
    assert not follows(problem, "ddpd", np.roll(law, 1), steps=passes, sees=sees)


def test_ddpd_with_a_planner_of_ones_own():
    problem = TinyUniformJoint(2, 3)

    def planner(ids):
        return ids.double() - 0.5

    law = ddpd_law(Exact(problem), 3, "masked", planner=lambda x: [v - 0.5 for v in x])
    assert follows(problem, "ddpd", law, steps=3, sees="masked", planner=planner)
    with pytest.raises(OptionError, match=r"'planner' .* shape \(2,\); floats of shape \(1, 2\) are needed"):
        samplers.sample(problem, "ddpd", planner=lambda ids: torch.zeros(2))
    with pytest.raises(OptionError, match="needs a model that takes a noise level for each position"):
        samplers.sample(TinyUniformNet(), "ddpd", gen_length=4, sees="masked")


# ---------------------------------------------------------------------------------------------- DFM Euler


def flow_law(exact, steps, eta):
    """Jump rates u(v) of the uniform path with a linear kappa, as they are written in the docstring."""
    law = dict.fromkeys(exact.strings, exact.V**-exact.L)
    for k in range(steps):
        kappa, h, after = k / steps, 1 / steps, {}
        for x, weight in law.items():
            p = exact.clean(x, min(1 - kappa, 1.0))
            each = []
            for i in range(exact.L):
                to = np.zeros(exact.V)
                for x1 in range(exact.V):
                    u = np.zeros(exact.V)
                    u[x1] += 1 / (1 - kappa)
                    if k:
                        path = np.full(exact.V, (1 - kappa) / exact.V)
                        path[x1] += kappa
                        u += eta / (kappa * (1 - kappa)) * path
                    u[x[i]] = 0.0
                    jump = 1 - math.exp(-h * u.sum())
                    moved = jump * u / max(u.sum(), 1e-300)
                    moved[x[i]] += 1 - jump
                    if k == steps - 1:
                        moved = np.eye(exact.V)[x1]
                    to += p[i][x1] * moved
                each.append(to)
            for y in exact.strings:
                after[y] = after.get(y, 0.0) + weight * math.prod(each[i][y[i]] for i in range(exact.L))
        law = after
    return exact.counted(law)


@pytest.mark.parametrize(("steps", "eta"), [(3, 0.0), (4, 0.7), (5, 3.0)])
def test_dfm_euler_is_its_equations(steps, eta):
    problem = TinyUniformJoint(2, 3)
    exact = Exact(problem)
    law = flow_law(exact, steps, eta)
    assert follows(problem, "dfm_euler_uniform", law, steps=steps, eta=eta)
    if eta == 3.0:
        assert not follows(problem, "dfm_euler_uniform", law, steps=steps, eta=0.0)
    tv = {n: 0.5 * np.abs(flow_law(exact, n, eta) - exact.law).sum() for n in (8, 32)}
    assert tv[32] < 0.7 * tv[8]


@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_dfm_euler_follows_the_exact_path(eta):
    """Of a model with independent positions every state in between has the path's marginal, up to the error of a step."""
    problem, steps, rows = TinyUniformJoint(2, 3), 64, 8_000
    alone = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    problem.law = (alone[:, None] * alone).flatten()
    out = samplers.sample(problem, "dfm_euler_uniform", steps=steps, eta=eta, batch=rows, temperature=1.0, trace=True)
    assert len(out.trace) == steps + 1
    for k in (0, 16, 32, 48, 64):
        share = torch.bincount(out.trace[k].x.flatten(), minlength=3).double() / (2 * rows)
        path = k / steps * alone + (1 - k / steps) / 3
        assert float((share - path).abs().max()) < 4.5 * math.sqrt(0.25 / (2 * rows)) + 0.5 * (1 + eta) / steps
    if not eta:
        assert fits(torch.bincount(problem.index(out.x), minlength=9), problem.law) > BOUND


# ---------------------------------------------------------------------------------------------- GIDD


def gidd(net, x, corrections, patience, heat):
    """The published correction of one row, at temperature 0: z' is the best token."""
    states, height, idle = [], 0, 0
    for _ in range(corrections):
        logits = net.predict(torch.tensor([x])).view(len(x), -1).double().numpy()
        best = logits.argmax(1)
        p = np.exp(logits / heat - (logits / heat).max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True))[range(len(x)), best]
        score = [(best[i] != x[i]) * p[i] for i in range(len(x))]
        i = max(range(len(x)), key=lambda j: (score[j], -j))
        x = [int(best[i]) if j == i else v for j, v in enumerate(x)]
        states.append(x)
        agree = sum(a == b for a, b in zip(x, best))
        height, idle = max(agree, height), 0 if agree > height else idle + 1
        if idle >= patience:
            break
    return states


@pytest.mark.parametrize(("corrections", "patience"), [(30, 4), (5, 32), (40, 8)])
def test_gidd_is_the_published_correction(corrections, patience):
    swaps = 0
    for seed in range(4):
        net, steps = TinyUniformNet(seed=seed), 4
        rule = {"corrections": corrections, "patience": patience, "heat": 0.7}
        out = samplers.sample(net, "gidd", gen_length=14, steps=steps, temperature=0.0, trace=True, **rule)
        states = [s.x[0].tolist() for s in out.trace]
        published = gidd(net, states[steps], corrections, patience, 0.7)
        assert states[steps + 1 :] == published and out.nfe == steps + len(published)
        swaps += sum(a != b for a, b in itertools.pairwise([states[steps], *published]))
    assert swaps > 5


def test_gidd_draws_what_it_swaps():
    """One position, one correction: z' is drawn from the model at the level t_0 and the temperature `heat`."""
    problem = TinyUniformJoint(1, 3)
    exact, t, heat = Exact(problem), 0.3, 0.8
    law = np.zeros(3)
    for v in range(3):
        p = exact.clean((v,), t)[0] ** (1 / heat)
        law += problem.law.numpy()[v] * p / p.sum()
    assert follows(problem, "gidd", law, steps=1, corrections=1, t_0=t, heat=heat)
    assert follows(problem, "gidd", problem.law, steps=1, corrections=0)
