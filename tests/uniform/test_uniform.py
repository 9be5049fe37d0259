"""The uniform family: laws against enumeration, trajectories by hand, and diffusers' schedulers beside ours."""

import dataclasses
import itertools
import math
import os
import sys

import pytest
import torch

import samplers
from samplers import Canvas, TokenDenoiser
from samplers.random import DRAW_NOISE_TOKEN, Rng
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyNet, TinyUniformJoint, TinyUniformNet

pytestmark = pytest.mark.usefixtures("one_thread")

SELECTIONS = ("random", "lowest_log_margin", "lowest_maxprob", "lowest_current_prob")


def drawn_from(x, problem, law):
    """Whether the rows of x are draws of `law` over the problem's strings."""
    return fits(torch.bincount(problem.index(x), minlength=len(law)), law) > BOUND


# ---------------------------------------------------------------------------------------------- d3pm, by enumeration


class Chain:
    """The sampler as a Markov chain over all V^L strings, in float64, from the definitions: Bayes and nothing else."""

    def __init__(self, problem):
        self.law, self.V = problem.law, problem.tokens
        self.strings = problem.strings.tolist()
        self.L = len(self.strings[0])

    def noised(self, alpha):
        """(S,): q_t(x), the law with noise."""
        return self.likelihood(alpha) @ self.law

    def likelihood(self, alpha):
        """(S, S): q(x_t | x_0)."""
        return torch.tensor(
            [
                [math.prod(alpha * (a == b) + (1 - alpha) / self.V for a, b in zip(x, s)) for s in self.strings]
                for x in self.strings
            ],
            dtype=torch.float64,
        )

    def predictor(self, now, then):
        """(S, S) from x_t to x_s: each position draws x_0 from its posterior, and x_s given both."""
        like = self.likelihood(now) * self.law
        posterior = like / like.sum(1, keepdim=True)  # (x_t, x_0)
        keep = now / then
        rows = []
        for x, p in zip(self.strings, posterior.tolist()):
            each = []  # p(x_s,i | x_t)
            for i in range(self.L):
                to = [0.0] * self.V
                for s, w in zip(self.strings, p):
                    # q(x_s | x_0) q(x_t | x_s), normalised
                    mass = [
                        (then * (j == s[i]) + (1 - then) / self.V) * (keep * (j == x[i]) + (1 - keep) / self.V)
                        for j in range(self.V)
                    ]
                    to = [t + w * m / sum(mass) for t, m in zip(to, mass)]
                each.append(to)
            rows.append([math.prod(each[i][j] for i, j in enumerate(y)) for y in self.strings])
        return torch.tensor(rows, dtype=torch.float64)

    def corrector(self, alpha, selection="random"):
        """(S, S): one position, picked by the rule with Gumbel noise, drawn from q_t(x_i | the others)."""
        q = dict(zip(map(tuple, self.strings), self.noised(alpha).tolist()))
        rows = []
        for x in self.strings:
            conditional, score = [], []
            for i in range(self.L):
                mass = [q[(*x[:i], j, *x[i + 1 :])] for j in range(self.V)]
                c = [m / sum(mass) for m in mass]
                conditional.append(c)
                other = max(c[j] for j in range(self.V) if j != x[i])
                score.append(
                    {
                        "random": 1.0,
                        "lowest_maxprob": 1 / max(c),
                        "lowest_current_prob": 1 / c[x[i]],
                        "lowest_log_margin": other / c[x[i]],
                    }[selection]
                )
            row = dict.fromkeys(q, 0.0)
            for i in range(self.L):
                for j in range(self.V):
                    row[(*x[:i], j, *x[i + 1 :])] += score[i] / sum(score) * conditional[i][j]
            rows.append(list(row.values()))
        return torch.tensor(rows, dtype=torch.float64)

    def run(self, alphas, selection="random"):
        """The law after these steps from pure noise; alpha that stays is a corrector."""
        law = torch.full((len(self.strings),), 1 / len(self.strings), dtype=torch.float64)
        for now, then in itertools.pairwise(alphas):
            law = law @ (self.corrector(now, selection) if now == then else self.predictor(now, then))
        return law


@pytest.fixture(scope="module")
def chain():
    return Chain(TinyUniformJoint())


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["linear", "1-cos"])
def test_law_of_few_steps(chain, steps, schedule):
    """Not the model's law but that of the chain, to the last step: every route has its weight."""
    problem = TinyUniformJoint()
    out = samplers.sample(problem, "d3pm_ancestral", batch=20_000, steps=steps, schedule=schedule, seed=3)
    alphas = samplers.mask_schedule(schedule)(torch.linspace(0, 1, steps + 1)).tolist()
    law = chain.run(alphas)
    assert drawn_from(out.x, problem, law)
    assert not drawn_from(out.x, problem, problem.law)
    assert out.nfe == steps and (out.nfe_rows == steps).all()


@pytest.mark.parametrize("stands", [0, 1])
def test_one_step_is_the_posterior(stands):
    """From 0.6 to 0.8 clean where the model is certain of 0: x_s by Bayes, given that x_t is that token or another."""
    certain = TokenDenoiser.wrap(lambda ids: torch.tensor([9.0, -9, -9]).mul(9).expand(*ids.shape, 3), vocab_size=3)
    run = samplers.stream(certain, "d3pm_ancestral", gen_length=4, batch=5000, steps=5, seed=1)
    for _ in range(4):
        state = next(run)
    run.state = dataclasses.replace(state, x=torch.full_like(state.x, stands))
    keep, then = 0.6 / 0.8, 0.8
    mass = [(then * (j == 0) + (1 - then) / 3) * (keep * (j == stands) + (1 - keep) / 3) for j in range(3)]
    expected = 20_000 * torch.tensor(mass) / sum(mass)
    counts = torch.bincount(next(run).x.flatten(), minlength=3)
    assert float(((counts - expected) ** 2 / expected).sum()) < 2 + 5 * 2


@pytest.mark.parametrize("selection", SELECTIONS)
def test_law_of_few_steps_with_a_corrector(chain, selection):
    """steps = 7 with two correctors: (7 - 1) // 3 = 2 predictors have them, one goes without."""
    problem = TinyUniformJoint()
    options = {"corrector_steps": 2, "corrector_selection": selection}
    out = samplers.sample(problem, "d3pm_ancestral", batch=20_000, steps=7, seed=4, **options)
    third = 1 / 3
    law = chain.run([0, third, third, third, 2 * third, 2 * third, 2 * third, 1.0], selection)
    assert drawn_from(out.x, problem, law)
    assert not drawn_from(out.x, problem, chain.run([0, third, 2 * third, 1.0]))
    assert out.nfe == 7


def test_convergence_is_first_order(chain):
    """TV to the model's law halves with twice the steps; at 128 it is far below what 12,000 draws can tell."""
    tv = [float((chain.run([k / n for k in range(n + 1)]) - chain.law).abs().sum() / 2) for n in (16, 32, 64, 128)]
    for wide, narrow in itertools.pairwise(tv):
        assert 1.8 < wide / narrow < 2.2
    assert tv[-1] < 4e-3


def test_only_the_blind_corrector_keeps_the_law(chain):
    """Gibbs sampling keeps q_t; a rule that looks at the token it replaces does not (the reference says it does)."""
    for alpha in (0.2, 0.6, 0.9):
        q = chain.noised(alpha)
        drift = {s: float((q @ chain.corrector(alpha, s) - q).abs().sum()) for s in SELECTIONS}
        assert drift.pop("random") < 1e-12
        assert all(d > 1e-3 for d in drift.values()), drift
    # And more steps do not mend it: 32 and 64 predictors with a corrector each.
    for selection, least, most in (("random", 0, 4e-3), ("lowest_maxprob", 0.03, 0.1), ("lowest_log_margin", 0.3, 0.5)):
        for n in (32, 64):
            law = chain.run([k / n for k in range(n + 1) for _ in range(1 + (0 < k < n))], selection)
            assert least <= float((law - chain.law).abs().sum()) / 2 < most


@pytest.mark.parametrize("start", ["exact", "wrong"])
def test_corrector_keeps_the_noisy_marginal_and_finds_it(chain, start):
    """40 corrector steps at level 1/2: exact samples of q_t stay that, and a point mass becomes it."""
    problem, rows = TinyUniformJoint(), 10_000
    c = 40
    run = samplers.stream(problem, "d3pm_ancestral", batch=rows, steps=c + 2, corrector_steps=c, seed=6)
    next(run)
    next(run)  # the first predictor: level 1/2
    q = chain.noised(0.5)
    if start == "exact":
        x = problem.strings[torch.multinomial(q, rows, replacement=True, generator=torch.Generator().manual_seed(0))]
    else:
        x = torch.zeros(rows, 3, dtype=torch.int64)
    run.state = dataclasses.replace(run.state, x=x)
    for _ in range(c):
        state = next(run)
        assert (state.level == 0.5).all()
    assert drawn_from(state.x, problem, q)
    assert (state.x != x).any(1).float().mean() > 0.5
    assert not drawn_from(state.x, problem, problem.law)
    assert next(run).finished


def test_corrector_counts_and_needs_the_device():
    """Forwards stay within `steps`, whatever the corrector; without one the counts are known."""
    for c, steps in ((1, 2), (1, 9), (3, 4), (3, 16), (20, 5)):
        out = samplers.sample(TinyUniformNet(), "d3pm_ancestral", gen_length=6, steps=steps, corrector_steps=c, batch=3)
        assert out.nfe == steps
    assert samplers.create("d3pm_ancestral").effective_facts.static_plan
    assert not samplers.create("d3pm_ancestral", corrector_steps=1).effective_facts.static_plan
    k = 4
    run = {"gen_length": 8, "steps": 12, "corrector_steps": 2, "corrector_k": k, "batch": 5}
    states = list(samplers.stream(TinyUniformNet(), "d3pm_ancestral", **run))
    for before, after in itertools.pairwise(states):
        if (before.level == after.level).all():
            assert int((before.x != after.x).sum(1).max()) <= k


@pytest.mark.parametrize("sampler", ["d3pm_ancestral", "entropy_bound_uniform"])
@pytest.mark.parametrize("given", [{1: 0}, {0: 1, 2: 1}])
def test_given_tokens_make_the_conditional_law(sampler, given):
    problem = TinyUniformJoint()
    x, fill = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    fits = torch.ones(len(problem.law))
    for i, v in given.items():
        x[i], fill[i] = v, False
        fits *= problem.strings[:, i] == v
    law = problem.law * fits / (problem.law * fits).sum()
    extra = dict(samplers.registry.load(sampler).conformance.one_at_a_time)
    canvas = Canvas.infill(problem, x, fill, batch=6000)
    out = samplers.sample(problem, sampler, prompt=canvas, temperature=1.0, seed=8, **extra)
    assert drawn_from(out.x, problem, law)
    assert (out.x[:, ~fill] == x[~fill]).all()
    assert all(float(t[:, ~fill].max()) == 0 for t in problem.times)


def test_flat_schedules_do_not_divide_by_zero():
    """beta(9, 9) stands still at both ends: alpha is 0, then 1 to the last bit, well before the last step."""
    problem = TinyUniformJoint()
    alphas = samplers.mask_schedule("beta(9,9)")(torch.linspace(0, 1, 65))
    assert float(alphas[2]) < 1e-9 and float(alphas[-3]) == 1.0
    for c in (0, 1):
        out = samplers.sample(
            problem, "d3pm_ancestral", batch=4000, steps=64, schedule="beta(9,9)", corrector_steps=c, seed=2
        )
        assert all(bool((t > 0).all()) for t in problem.times)
        # Few steps do the work, so the law is near the model's and not more.
        freq = torch.bincount(problem.index(out.x), minlength=27) / len(out.x)
        assert float((freq - problem.law).abs().sum()) / 2 < 0.05


# ---------------------------------------------------------------------------------------------- trajectories by hand

SURE, LIKELY, HALF, LOST = [1, 0, 0], [0.9, 0.1, 0], [0.5, 0.5, 0], [1 / 3] * 3  # entropies 0, 0.325, 0.693, 1.099


class Script(TokenDenoiser):
    """Answers by the book: probabilities (L, V) for each call; a row whose first token is 9 hears the second book."""

    mask_id, name = None, "script"

    def __init__(self, *books, mask_id=None):
        self.books = [torch.tensor(book, dtype=torch.float64) for book in books]
        self.length, self.mask_id = self.books[0].shape[1], mask_id
        self.vocab_size = 10 if len(books) > 1 or mask_id is not None else self.books[0].shape[2]
        self.calls, self.seen = 0, []

    def predict(self, x, t=None, *, rows=None, cache=None):
        self.seen.append(x.clone())
        out = torch.zeros(*x.shape, self.vocab_size, dtype=torch.float64)
        for i, row in enumerate(x):
            book = self.books[-1] if row[0] == 9 else self.books[0]
            page = book[min(self.calls, len(book) - 1)]
            out[i, :, : page.shape[1]] = page
        self.calls += 1
        logits = out.log().float()
        return logits if rows is None else logits[rows]


def noise_at(state):
    """What noise puts in the step that follows: floor(u V), from the counters."""
    u = state.rng.positions(state.x.shape[1], state.step, DRAW_NOISE_TOKEN)
    return (u * state.canvas.vocab_size).long()


def test_entropy_bound_by_hand():
    """bound 0.35, temperature 0: sums of entropies less the largest are 0, 0, 0.325, 1.018."""
    book = [
        [HALF, LIKELY, SURE, LOST],
        [LOST, [0, 0, 1.0], LOST, [0, 0.5, 0.5]],
        [[0, 0.9, 0.1]] * 4,
        [HALF[::-1]] * 4,
    ]
    run = {"temperature": 0.0, "bound": 0.35, "anneal": 1.0, "pace": False, "steps": 4}
    states = list(samplers.stream(Script(book), "entropy_bound_uniform", **run))
    accepted = [[1, 1, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]]  # 0 + 0.325 <= 0.35; 0, 0.693, then 1.099; twice 0.325
    tokens = [[0, 0, 0, 0], [0, 2, 0, 1], [1, 1, 1, 1]]
    for before, after, accept, token in zip(states, states[1:], accepted, tokens):
        accept = torch.tensor(accept).bool()
        assert (after.level[0] == 0).tolist() == accept.tolist()
        assert after.x[0].tolist() == torch.where(accept, torch.tensor(token), noise_at(before)[0]).tolist()
        assert not after.decided.any()
    assert states[-1].x[0].tolist() == [1] * 4 and states[-1].finished  # HALF[::-1] = [0, .5, .5], and no noise is left


def test_entropy_bound_keeps_pace():
    """Unsure everywhere, one a step is what the bound allows; with 2 steps for 4 positions pace accepts 2, then 4."""
    script = Script([[LOST] * 4])
    states = list(samplers.stream(script, "entropy_bound_uniform", bound=0.0, steps=2, batch=3))
    assert [(s.level == 0).sum(1).tolist() for s in states] == [[0] * 3, [2] * 3, [4] * 3]
    states = list(samplers.stream(script, "entropy_bound_uniform", bound=0.0, steps=3, batch=3, pace=False))
    assert [(s.level == 0).sum(1).tolist() for s in states] == [[0] * 3, [1] * 3, [1] * 3, [1] * 3]
    assert states[-1].finished


@pytest.mark.parametrize("stability", [1, 3])
def test_stable_and_confident_rows_stop_alone(stability):
    """Row 0 is sure from its second page on; row 1, whose prompt is 9, is never sure and takes all its steps."""
    sure = [[LOST] * 4, *[[SURE, [0, 1, 0], [0, 0, 1], SURE]] * 9]
    unsure = [[[0.6, 0.4, 0]] * 4]
    out = samplers.sample(
        Script(sure, unsure), "entropy_bound_uniform", prompt=[[0], [9]], steps=8, stability=stability
    )
    # Page 1 differs from page 0, so it is page 1 + stability that has been the same for as long as it takes.
    assert out.nfe_rows.tolist() == [2 + stability, 8]
    assert out.x[0].tolist() == [0, 1, 2, 0]
    likely = Script([[[0.2, 0.5, 0.3]] * 4])
    early = samplers.sample(likely, "entropy_bound_uniform", batch=50, steps=8, stability=stability, stop_entropy=2.0)
    assert early.nfe == 1 + stability and (early.x == 1).all(), "what is stable is taken, not what was drawn last"
    never = samplers.sample(
        Script(sure, unsure), "entropy_bound_uniform", prompt=[[0], [9]], steps=8, stop_entropy=None
    )
    assert never.nfe_rows.tolist() == [8, 8]


def test_temperature_is_annealed():
    """Logits that never change: the tokens that are kept come from the last of n steps, k = n - 1."""
    logits = torch.tensor([0.0, 1.0, 2.0])
    denoiser = TokenDenoiser.wrap(lambda ids: logits.expand(*ids.shape, 3), vocab_size=3)
    for steps, anneal, temperature in ((1, 0.5, 0.8), (4, 0.5, 0.8), (4, 0.25, 1.0)):
        out = samplers.sample(
            denoiser, "entropy_bound_uniform", gen_length=2, steps=steps, anneal=anneal, temperature=temperature,
            batch=10_000, seed=steps, stop_entropy=None,
        )  # fmt: skip
        heat = temperature * (anneal + (1 - anneal) / steps)
        expected = torch.softmax(logits / heat, 0)
        counts = torch.bincount(out.x.flatten(), minlength=3)
        assert float(((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()) < 2 + 5 * 2
    assert samplers.create("entropy_bound_uniform").default_temperature == 0.8


def test_block_refinement_by_hand():
    """S = 3 for 4 positions owe 2, 3, 4; threshold 0.8; then editing at 0.6."""
    p = {"a": [0.7, 0.2, 0.1], "b": [0.1, 0.85, 0.05], "c": [0.2, 0.3, 0.5], "d": [0.1, 0.1, 0.8]}
    book = [
        [p["a"], p["c"], p["c"], p["a"]],  # none sure: the best two, 0 and 3
        [p["b"], p["d"], p["b"], p["c"]],  # 1 (0.8) and 2 (0.85) are sure, more than is quota; 0 wants a 1 with 0.85
        [p["b"], p["d"], p["b"], p["d"]],  # 3 wants a 2 with 0.8
    ]
    run = {"temperature": 0.0, "threshold": 0.75, "steps": 3}
    states = list(samplers.stream(Script(book), "block_refinement", **run))
    level = [s.level[0].tolist() for s in states]
    assert level == [[1] * 4, [0, 1, 1, 0], [0] * 4]
    x = noise_at(states[0])[0].tolist()
    assert states[1].x[0].tolist() == [0, x[1], x[2], 0]
    assert states[2].x[0].tolist() == [0, 2, 1, 0] and states[2].finished  # a block without editing is done when full
    states = list(samplers.stream(Script(book), "block_refinement", **run, edit_threshold=0.6))
    assert [s.x[0].tolist() for s in states[2:]] == [[1, 2, 1, 0], [1, 2, 1, 2], [1, 2, 1, 2]], "until nothing changes"
    assert states[-1].finished
    states = list(samplers.stream(Script(book), "block_refinement", **run, edit_threshold=0.82))
    assert states[-1].x[0].tolist() == [1, 2, 1, 0], "0.8 is not enough to replace a token"


def test_editing_ends():
    """Full after one step of 2. Pages that change for ever end at max_post_steps; one that changes nothing ends at once."""
    restless = [[[0.9, 0.1, 0]] * 3, *[[[0.1, 0.9, 0]] * 3, [[0.9, 0.1, 0]] * 3] * 30]
    for steps, most in ((9, 0), (9, 1), (9, 4), (9, 16), (2, 4), (2, 50), (1, 4)):
        script = Script(restless)
        out = samplers.sample(
            script, "block_refinement", steps=steps, threshold=0.5, edit_threshold=0.5, max_post_steps=most
        )
        assert out.nfe == 1 + most * (steps > 1), "a block that took all of its steps is done"
        assert out.x[0].tolist() == [1 - out.nfe % 2] * 3
    calm = [[[0.9, 0.1, 0]] * 3, [[0.1, 0.9, 0]] * 3, [[0.1, 0.9, 0]] * 3, [[0.9, 0.1, 0]] * 3]
    out = samplers.sample(Script(calm), "block_refinement", steps=9, threshold=0.5, edit_threshold=0.5)
    assert out.nfe == 3 and out.x[0].tolist() == [1] * 3


def test_llada2_by_hand():
    """Masks in place of noise, LLaDA's even plan (2, 1, 1 for 4 in 3), and the same editing."""
    book = [
        [[0.7, 0.2], [0.6, 0.4], [0.55, 0.45], [0.52, 0.48]],
        [[0.2, 0.8], [0.6, 0.4], [0.55, 0.45], [0.52, 0.48]],
        [[0.2, 0.8], [0.6, 0.4], [0.05, 0.95], [0.02, 0.98]],
    ]
    script = Script(book, mask_id=5)
    states = list(samplers.stream(script, "llada2", temperature=0.0, threshold=0.9, steps=3))
    assert [s.x[0].tolist() for s in states] == [[5] * 4, [0, 0, 5, 5], [1, 0, 0, 5], [1, 0, 1, 1]]
    assert states[-1].finished
    states = list(samplers.stream(Script(book, mask_id=5), "llada2", threshold=0.9, steps=3, edit_threshold=None))
    assert [s.x[0].tolist() for s in states] == [[5] * 4, [0, 0, 5, 5], [0, 0, 0, 5], [0, 0, 0, 1]]


# ---------------------------------------------------------------------------------------------- diffusers beside ours


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def no_ties(net):
    """The net with a bias a position: where neighbours are alike, equal confidences would be anybody's choice."""
    bias = torch.randn(40, net.vocab_size, generator=torch.Generator().manual_seed(8)) * 0.3

    def fn(ids):
        return net.predict(ids).view(*ids.shape, -1) + bias[: ids.shape[1]]

    return fn, TokenDenoiser.wrap(fn, vocab_size=net.vocab_size, mask_id=net.mask_id)


@pytest.mark.parametrize(
    ("steps", "threshold", "edit"),
    [(16, 0.95, None), (5, 0.5, None), (7, 0.35, 0.3), (16, 0.35, 0.25), (23, 0.5, 0.05), (1, 0.9, 0.5)],
)
def test_block_refinement_is_the_schedulers(diffusers, monkeypatch, steps, threshold, edit):
    """Temperature 0 and the same noise: token for token in each step, at steps that divide the block and that do not."""
    fn, net = no_ties(TinyUniformNet(seed=4))
    run = samplers.stream(
        net, "block_refinement", gen_length=16, batch=4, steps=steps, temperature=0.0,
        threshold=threshold, edit_threshold=edit, max_post_steps=99,
    )  # fmt: skip
    scheduler = diffusers.BlockRefinementScheduler(threshold=threshold, editing_threshold=edit)
    scheduler.set_timesteps(steps, block_length=16)
    states = list(run)
    x, edits, early = states[0].x, 0, 0
    for i in range(steps):
        noise = (Rng.of(0, 4).positions(16, torch.full((4,), i), DRAW_NOISE_TOKEN) * 11).long()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda noise=noise, **kw: noise)
            step = scheduler.step(fn(x), i, x, mask_token_id=None, temperature=0.0)
        x = step.prev_sample
        ours = states[min(i + 1, len(states) - 1)].x
        assert torch.equal(ours, x), f"step {i}"
        assert torch.equal((states[min(i + 1, len(states) - 1)].level == 0), scheduler._committed)
        edits += int(step.editing_transfer_index.sum())
        early += int(step.transfer_index.sum(1).max()) > -(-16 // steps)
    assert edits or edit is None or steps == 1, "nothing was edited: this setting shows nothing"
    assert early or threshold > 0.4, "the threshold was never met"


@pytest.mark.parametrize(
    ("block", "steps", "threshold", "edit"),
    [(8, 8, 0.95, None), (8, 3, 0.4, None), (8, 24, 0.35, 0.3), (12, 28, 0.5, 0.2), (24, 40, 0.3, 0.25)],
)
def test_llada2_is_the_pipelines(diffusers, block, steps, threshold, edit):
    """The pipeline's loop around the scheduler, its own rules for going on (15 is its word for 16 edit-only steps)."""
    fn, net = no_ties(TinyNet(seed=5, visible_too=True))
    blocks, prompt = 24 // block, [3, 1]
    out = samplers.sample(
        net, "llada2", prompt=prompt, gen_length=24, block_length=block, steps=steps * blocks, temperature=0.0,
        threshold=threshold, edit_threshold=edit,
    )  # fmt: skip
    scheduler = diffusers.BlockRefinementScheduler(threshold=threshold, editing_threshold=edit)
    scheduler.set_timesteps(steps, block_length=block)
    x, calls, edits = torch.tensor([[*prompt, *[11] * 24]]), 0, 0
    for first in range(2, 26, block):
        here = slice(first, first + block)
        step_idx = post = 0
        go = True
        while go:
            left = bool((x[:, here] == 11).any())
            post += not left
            logits = fn(x)[:, here]
            logits[..., 11] = -math.inf  # the mask is no candidate
            step = scheduler.step(logits, step_idx, x[:, here], mask_token_id=11, temperature=0.0)
            x[:, here] = step.prev_sample
            calls, step_idx, edits = calls + 1, step_idx + left, edits + int(step.editing_transfer_index.sum())
            go = scheduler.check_block_should_continue(
                step_idx, left, edit is not None, step.editing_transfer_index, post, 15, torch.zeros(1).bool()
            )
            go = go and not (
                edit is None and not bool((x[:, here] == 11).any())
            )  # it would look once more at a full block
    assert out.x.tolist() == x.tolist()
    assert out.nfe == calls
    assert edits or edit is None, "nothing was edited: this setting shows nothing"


@pytest.mark.parametrize(("bound", "anneal"), [(0.1, 0.5), (2.0, 0.5), (6.0, 1.0), (0.0, 0.6)])
def test_entropy_bound_accepts_what_the_scheduler_does(diffusers, bound, anneal):
    (fn, net), steps = no_ties(TinyUniformNet(seed=6)), 9
    states = list(
        samplers.stream(
            net, "entropy_bound_uniform", gen_length=20, batch=6, steps=steps, bound=bound, anneal=anneal, pace=False,
            temperature=0.8,
        )
    )  # fmt: skip
    scheduler = diffusers.EntropyBoundScheduler(
        entropy_bound=bound, t_max=0.8, t_min=0.8 * anneal, num_inference_steps=steps
    )
    sizes = set()
    for k, (before, after) in enumerate(itertools.pairwise(states)):
        accepted = scheduler.step(fn(before.x), k, before.x).accepted_index
        assert torch.equal(after.level == 0, accepted), f"step {k}"
        sizes |= set(accepted.sum(1).tolist())
    assert len(states) == steps + 1 and len(sizes) >= (1 if bound == 0 else 2)


# ---------------------------------------------------------------------------------------------- self-conditioning


class Remembers(TokenDenoiser):
    """A self-conditioned model that keeps its own account of what it has said, row by row, and holds the driver to it.

    Rows are told apart by their first token, which is given. Guided calls have the blind rows behind the others. Whatever
    the sampler asks, the model is asked for a whole block, and is told its logits at the sampler's temperature.
    """

    self_conditioned, name = True, "remembers"

    def __init__(self, vocab, mask_id, scale, temperature=1.0, blocks=(8,)):
        self.vocab_size, self.mask_id = vocab, mask_id
        self.temperature, self.blocks = temperature, blocks
        self.table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(1)) * scale
        self.said, self.calls, self.guided = {}, 0, 0

    def predict(self, x, t=None, *, rows=None, cache=None, previous):
        assert len(previous.value) == int(previous.fill.sum()), "logits are kept for the positions to fill only"
        previous = previous.dense()
        assert previous.shape == (*x.shape, self.vocab_size) and previous.dtype == torch.float32
        assert set(rows.sum(1).tolist()) <= set(self.blocks), "the whole block is asked, decided positions included"
        half = len(x)
        blind = self.mask_id is not None and bool((x[:, 0] == self.mask_id).any())
        if blind or (
            self.mask_id is None and half % 2 == 0 and torch.equal(previous[: half // 2], previous[half // 2 :])
        ):
            blind = blind or self.expect_guided
        if blind:
            half //= 2
            self.guided += 1
            assert torch.equal(previous[:half], previous[half:]), "both halves of a guided call have the same memory"
            assert torch.equal(rows[:half], rows[half:])
        out = self.table[x] + self.table[x.roll(1, 1)] + 0.3 * previous  # what it says depends on what it said
        for i in range(half):
            key = int(x[i, 0])
            if key not in self.said:
                self.said[key] = torch.zeros(x.shape[1], self.vocab_size)
            assert torch.equal(previous[i], self.said[key]), f"row {key} did not get its own last logits"
            self.said[key][rows[i]] = out[i][rows[i]] / self.temperature
        self.calls += 1
        return out[rows]

    expect_guided = False


SAMPLERS = {
    "masked": ("threshold", "llada2"),
    "uniform": ("entropy_bound_uniform", "d3pm_ancestral", "block_refinement"),
}


@pytest.mark.parametrize("sampler", [s for names in SAMPLERS.values() for s in names])
@pytest.mark.parametrize("setting", [{}, {"block_length": 3}, {"cfg_scale": 0.5}, {"steps": 5, "block_length": 4}])
def test_previous_logits_are_the_rows_own(sampler, setting):
    """Ragged rows, blocks, rows that are done at different times, guidance: each row gets what it was told last."""
    mask_id = 12 if sampler in SAMPLERS["masked"] else None
    scale = 16 if sampler == "entropy_bound_uniform" else 2  # it has to be very sure to stop early
    blocks = {None: (8,), 3: (3, 2), 4: (4,)}[setting.get("block_length")]
    temperature = 0.5 if sampler == "entropy_bound_uniform" else 1.0
    denoiser = Remembers(13 if mask_id else 12, mask_id, scale, temperature, blocks)
    denoiser.expect_guided = "cfg_scale" in setting
    prompts = [[0, 5], [1], [2, 7, 4], [3], [4, 4]]
    run = {"gen_length": 8, "temperature": 1.0, "stop": 6, "seed": 3, **setting}
    if sampler == "entropy_bound_uniform":
        run = {"steps": 16, "stop_entropy": 0.5, "anneal": 1.0} | run | {"temperature": temperature}
    out = samplers.sample(denoiser, sampler, prompt=prompts, **run)
    assert denoiser.calls == out.nfe and len(denoiser.said) == 5
    assert bool(denoiser.guided) == ("cfg_scale" in setting)
    if sampler in ("threshold", "entropy_bound_uniform") and setting == {}:
        assert len(set(out.nfe_rows.tolist())) > 1
    for i, prompt in enumerate(prompts):  # and a row alone has the same memory
        alone = Remembers(denoiser.vocab_size, mask_id, scale, temperature, blocks)
        alone.expect_guided = denoiser.expect_guided
        x = samplers.sample(alone, sampler, prompt=[prompt], first_row=i, **run).x[0]
        assert x.tolist() == out.x[i, : len(x)].tolist()


def test_wrap_self_conditioned():
    """fn(ids, previous=...), zeros the first time; with a head there are no logits to hand back."""
    table, seen = torch.randn(5, 5, generator=torch.Generator().manual_seed(2)), []

    def fn(ids, previous):
        seen.append(previous.clone())
        return table[ids] + len(seen)

    denoiser = TokenDenoiser.wrap(fn, vocab_size=5, self_conditioned=True)
    samplers.sample(denoiser, "d3pm_ancestral", gen_length=4, steps=3, batch=2)
    assert float(seen[0].abs().max()) == 0
    for k, previous in enumerate(seen[1:], 1):
        assert previous.shape == (2, 4, 5) and bool((previous - k - table.mean()).abs().max() < 6)
        assert not torch.equal(previous, seen[k - 1])
    timed = TokenDenoiser.wrap(
        lambda ids, t, previous: table[ids] * t[:, None, None].float() + previous, vocab_size=5, self_conditioned=True,
        time_conditioned=True,
    )  # fmt: skip
    assert samplers.sample(timed, "d3pm_ancestral", gen_length=4, steps=3).nfe == 3
    with pytest.raises(samplers.OptionError, match="self_conditioned needs the last logits"):
        TokenDenoiser.wrap(fn, vocab_size=5, self_conditioned=True, head=samplers.Head(torch.zeros(5, 2)))


# ---------------------------------------------------------------------------------------------- what states say of noise


def test_guidance_interval_follows_the_noise():
    """d3pm in 10 steps sees 1, 0.9, ..., 0.1: guided at 0.5 and below, five times, and nothing is doubled before."""
    run = {"prompt": [1, 2], "gen_length": 6, "steps": 10, "cfg_scale": 1.0, "batch": 3}
    out = samplers.sample(TinyUniformNet(), "d3pm_ancestral", cfg_interval=(0.0, 0.5), **run)
    assert out.row_evals == 3 * (10 + 5)
    assert samplers.sample(TinyUniformNet(), "d3pm_ancestral", **run).row_evals == 3 * 20


def test_levels_and_the_mean_of_them():
    """Blocks of 2 in 5 positions after a prompt of 1: given and decided 0, the present block its own, later ones 1."""
    each, mean = [], []

    class Timed(TinyUniformNet):
        time_per_position = True

        def predict(self, x, t=None, *, rows=None, cache=None):
            each.append([round(v, 6) for v in t[0].tolist()])
            return TinyUniformNet.predict(self, x, t.amax(1), rows=rows)

    def plain(ids, t):
        mean.append(round(float(t), 6))
        return torch.zeros(*ids.shape, 11)

    run = {"prompt": [1], "gen_length": 5, "block_length": 2, "steps": 5}
    samplers.sample(Timed(time_conditioned=True), "d3pm_ancestral", **run)
    assert each == [
        [0, 1, 1, 1, 1, 1],
        [0, 0.5, 0.5, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0.5, 0.5, 1],
        [0, 0, 0, 0, 0, 1],
    ]
    samplers.sample(TokenDenoiser.wrap(plain, vocab_size=11, time_conditioned=True), "d3pm_ancestral", **run)
    assert mean == [1, 0.8, 0.6, 0.4, 0.2]


def test_noise_behind_a_stop_is_noise():
    """What was decided behind a stop phrase is a token; what never will be stays noise, for a model of levels, too."""
    net = TinyUniformNet()
    state = next(samplers.stream(net, "block_refinement", gen_length=5, stop=[[7, 7]]))
    tokens, where = torch.tensor([[7, 7, 0, 3, 0]]), torch.tensor([[True, True, False, True, False]])
    state = state.fix(where, tokens)
    assert state.finished and int(state.end) == 2
    assert state.levels.tolist() == [[0, 0, 1, 0, 1]]
    assert float(state.noise_level) == 0 and state.noise == 0


# ---------------------------------------------------------------------------------------------- the driver's knobs

ALL = ("block_refinement", "d3pm_ancestral", "entropy_bound_uniform")
VARIANTS = [
    *((name, {}) for name in ALL),
    ("block_refinement", {"edit_threshold": 0.1}),
    *(("d3pm_ancestral", {"corrector_steps": 1, "corrector_selection": s}) for s in SELECTIONS),
    ("entropy_bound_uniform", {"stop_entropy": None}),
]


@pytest.mark.parametrize(("sampler", "options"), VARIANTS, ids=str)
def test_every_variant_keeps_rows_apart(sampler, options):
    """The kit looks at defaults; here are the others: ragged rows in blocks, alone and together, prompts untouched."""
    run = {"gen_length": 7, "block_length": 4, "steps": 11, "seed": 5, "temperature": 1.0, **options}
    prompts = [[1, 2, 3], [], [4]]
    out = samplers.sample(TinyUniformNet(), sampler, prompt=prompts, **run)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(TinyUniformNet(), sampler, prompt=[prompt], first_row=i, **run)
        assert out.x[i, : len(prompt) + 7].tolist() == alone.x[0].tolist()
        assert alone.x[0, : len(prompt)].tolist() == prompt
        most = 11 + 2 * samplers.create(sampler, **options).extra_steps
        assert int(out.nfe_rows[i]) == alone.nfe <= most


@pytest.mark.parametrize(("sampler", "options"), VARIANTS, ids=str)
def test_forbidden_and_fixed_tokens(sampler, options):
    """Noise may be any token, drafts too; what is decided is never a forbidden one, and what is fixed stays."""
    fix = torch.full((6, 8), -1)
    fix[:, 3] = 7

    def hook(state):
        return samplers.Constraint(fix=fix, forbid=torch.arange(11) == 2)

    run = {"gen_length": 8, "batch": 6, "steps": 6, "temperature": 1.0, **options}
    out = samplers.sample(TinyUniformNet(), sampler, forbid=[0, 1], constrain=hook, **run)
    assert int(out.x.min()) > 2 and (out.x[:, 3] == 7).all()
    free = samplers.sample(TinyUniformNet(), sampler, **run)
    assert set(range(3)) & set(free.x.flatten().tolist())


STOPS = {"window": "block", "align": True, "stop": [[3], [1, 2]], "stop_rule": "llada2"}


@pytest.mark.parametrize(("sampler", "options"), [*VARIANTS, ("llada2", {}), ("llada2", STOPS)], ids=str)
def test_steps_never_look_at_the_device(sampler, options, monkeypatch):
    """No number is read back by a sampler's own code, nor by the states; the driver looks once a step."""
    net = TinyNet(visible_too=True) if sampler == "llada2" else TinyUniformNet()
    run = samplers.stream(net, sampler, gen_length=8, batch=3, block_length=4, **options)
    readers = []

    def counted(before):
        def look(self, *args, **kw):
            frame = sys._getframe(1)
            readers.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            return before(self, *args, **kw)

        return look

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    for _ in run:
        pass
    assert readers, "the driver's own look was not seen: this test sees nothing"
    mine = [r for r in readers if any(f"samplers{os.sep}{p}" in r for p in ("uniform", "masked", "canvas", "random"))]
    assert not mine, mine
