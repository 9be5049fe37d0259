"""Particles against enumeration: Z without bias, the tilted distribution, invariance of particle Gibbs, rows alone."""

import dataclasses
import json
import math
from itertools import permutations

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser, registry
from samplers.masked.smc import SMC
from samplers.models import zoo
from samplers.particles import ancestors, weights
from samplers.sampler import first_state
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

PROBLEM = samplers.problems.create("sudoku4")
EXACT = PROBLEM.denoiser("masked")
FIRST_ROWS = torch.tensor([list(p) for p in permutations(range(4))])  # each is the first row of 12 of the 288 grids
BASES = [name for f in ("masked", "uniform") for name in samplers.list_samplers(family=f)]
BASES = [n for n in BASES if not (registry.load(n).facts.sequential or registry.load(n).facts.copies)]
BASES = [n for n in BASES if "attends" not in registry.load(n).facts.needs]  # an exact problem has no attention


def in_place(x):
    """How many cells of the first row hold their own number; of a canvas, of those that are decided."""
    return (x[:, :4] == torch.arange(4)).sum(1)


TILT = in_place(FIRST_ROWS).double().exp()
Z, TILTED = float(TILT.mean()), TILT / TILT.sum()


def smc(**kw):
    kw = {"base": "random_order", "reward": in_place, "batch": 1000, "info": True} | kw
    return samplers.sample(kw.pop("denoiser", EXACT), "smc", **kw)


def first_rows(x):
    """How often each first row came."""
    return (x[:, None, :4] == FIRST_ROWS).all(2).sum(0).double()


def chi2(count, expected):
    """Pearson's statistic, and the bound that 1 in 10,000 exceeds (Wilson and Hilferty)."""
    df = len(count) - 1
    bound = df * (1 - 2 / (9 * df) + 3.72 * math.sqrt(2 / (9 * df))) ** 3
    return float(((count - expected * count.sum()) ** 2 / (expected * count.sum())).sum()), bound


@pytest.mark.parametrize(("potential", "scale"), [("difference", 1.0), ("max", 0.1), ("sum", 0.02)])
def test_z_has_no_bias_and_its_variance_falls_with_the_particles(potential, scale):
    # The product of the potentials is exp(scale * reward), whatever they are; large ones of max and sum have heavy tails.
    truth, spread = float((in_place(FIRST_ROWS).double() * scale).exp().mean()), []
    for number in (1, 4, 16) if potential == "difference" else (4,):
        ratio = (
            smc(potential=potential, scale=scale, particles=number, seed=number, batch=700).info["log_z"][-1].exp()
            / truth
        )
        error = ratio.std() / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 3.5 * error
        spread.append(float(ratio.var()))
    if potential == "difference":
        assert spread[0] / spread[2] > 8, "the variance of Z falls like one over the number of particles"


def test_samples_are_tilted_more_exactly_with_more_particles():
    error = [0.5 * float((first_rows(smc(particles=k, batch=500).x) / 500 - TILTED).abs().sum()) for k in (1, 4, 32)]
    assert error[0] > 0.4 > error[1] > error[2] and error[2] < 0.16
    statistic, bound = chi2(first_rows(smc(particles=128, batch=200, resample="stratified").x), TILTED)
    assert statistic < bound


def test_particle_gibbs_keeps_the_tilted_distribution():
    rows = 800
    g = torch.Generator().manual_seed(0)
    grids = PROBLEM.sample_truth(4000, seed=3)
    grids = grids[torch.multinomial(in_place(grids).double().exp(), rows, replacement=True, generator=g)]

    def says_the_grid(ids):
        return torch.nn.functional.one_hot(grids, 5).float() * 50

    # The states by which random_order comes to these grids, in orders of its own: what a round before would have kept.
    known = TokenDenoiser.wrap(says_the_grid, vocab_size=5, mask_id=4)
    base = registry.create("random_order")
    path = list(samplers.stream(known, base, gen_length=16, batch=rows, seed=77, temperature=0.0))[1:]
    sampler = SMC(base="random_order", particles=3, reward=in_place, iterations=2)
    run = samplers.stream(EXACT, sampler, batch=rows, seed=5)
    canvas = run.state.canvas
    path = [dataclasses.replace(s, canvas=canvas, table=run.state.wide.table, which=run.state.wide.which) for s in path]
    wide = first_state(base, canvas.copies(3, True, 3))
    run.state = dataclasses.replace(run.state, wide=wide, round=1, path=tuple(path))
    *_, last = run
    moved = (last.x != grids).any(1).double().mean()
    assert moved > 0.25, "many rows must have gone on to another grid"
    statistic, bound = chi2(first_rows(last.x), TILTED)
    assert statistic < bound


def test_more_rounds_come_closer():
    error = [0.5 * float((first_rows(smc(iterations=n, batch=500).x) / 500 - TILTED).abs().sum()) for n in (1, 8)]
    assert error[1] < 0.16 < 0.2 < error[0]


def test_one_particle_and_no_reward_is_the_base_and_no_reward_leaves_the_distribution():
    for name in ("random_order", "threshold", "remdm"):
        base = samplers.sample(EXACT, name, batch=3, seed=4, temperature=0.9)
        one = samplers.sample(EXACT, "smc", base=name, particles=1, batch=3, seed=4, temperature=0.9)
        assert torch.equal(base.x, one.x) and torch.equal(base.nfe_rows, one.nfe_rows)
    drawn = smc(reward=None, particles=3, batch=3000)
    assert float(drawn.info["log_z"][-1].abs().max()) == 0
    statistic, bound = chi2(first_rows(drawn.x), torch.full((24,), 1 / 24, dtype=torch.float64))
    assert statistic < bound


START = torch.tensor([0.6, 0.3, 0.1])
MOVE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
POWERS = [torch.linalg.matrix_power(MOVE, k) for k in range(7)]


def between(ids):
    """The exact marginals of a Markov chain of six tokens, given its decided neighbours."""
    out = torch.zeros(*ids.shape, 4)
    for b, row in enumerate(ids.tolist()):
        for i in range(6):
            left = max((j for j in range(i) if row[j] < 3), default=None)
            right = min((j for j in range(i + 1, 6) if row[j] < 3), default=None)
            p = START @ POWERS[i] if left is None else POWERS[i - left][row[left]]
            out[b, i, :3] = p if right is None else p * POWERS[right - i][:, row[right]]
    return out.log()


CHAIN = TokenDenoiser.wrap(between, vocab_size=4, mask_id=3, length=6)


@pytest.mark.parametrize("when", ["step", "block"])
def test_rewards_on_a_chain_by_transfer_matrices(when):
    # The reward counts one token of the chain: Z by forward sums, with every transition into it weighted.
    weight = torch.tensor([1.0, 1.0, math.e], dtype=torch.float64)
    total = START.double() * weight
    for _ in range(5):
        total = total @ MOVE.double() * weight
    out = smc(denoiser=CHAIN, reward=lambda x: (x == 2).sum(1), particles=8, batch=150, when=when, block_length=2)
    ratio = out.info["log_z"][-1].exp() / float(total.sum())
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / math.sqrt(len(ratio))


def test_the_model_rewards_itself():
    def log_p(x):
        return START[x[:, 0]].log() + MOVE[x[:, :-1], x[:, 1:]].log().sum(1)

    more = {"denoiser": CHAIN, "reward": None, "block_length": 2, "batch": 60}
    plain, best = smc(particles=1, **more), smc(particles=8, potential="self", **more)
    assert best.info["resampled"].any() and best.nfe == plain.nfe
    # One position at a time the product of the model's probabilities is the sample's own, so the best of eight has it higher.
    assert log_p(best.x).mean() > log_p(plain.x).mean() + 1


@pytest.mark.parametrize("name", BASES)
def test_particles_over_any_sampler(name):
    base = registry.create(name)
    sampler = "smc" if base.family == "masked" else "smc_uniform"
    more = {"base": name, "particles": 2, "reward": in_place, "steps": 6, "temperature": 0.8, "ess": 1.0}
    both = samplers.sample(PROBLEM.denoiser(base.family), sampler, batch=2, seed=9, on="guess", **more)
    assert (both.x < 4).all() and both.row_evals > 2 * both.nfe
    one = samplers.sample(PROBLEM.denoiser(base.family), sampler, first_row=1, seed=9, on="guess", **more)
    assert torch.equal(one.x[0], both.x[1])


def test_rows_are_what_they_are_alone():
    model = zoo.load("text-mdm")
    more = {
        "base": "threshold(threshold=0.6)",
        "particles": 3,
        "reward": lambda x: -(x == 4).sum(1),
        "scale": 2.0,
        "seed": 6,
    }
    more |= {"gen_length": 10, "block_length": 5, "temperature": 1.0, "iterations": 3}
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11]]
    batch = samplers.sample(model, "smc", prompt=prompts, **more)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(model, "smc", prompt=prompt, first_row=i, **more)
        assert torch.equal(batch.x[i, : len(prompt) + 10], alone.x[0])
    pool = samplers.Pool(model)
    run = pool.add("smc", prompt=prompts[1], first_row=1, **more)
    list(pool)
    assert torch.equal(run.result().x[0], batch.x[1, :11])
    # A cache follows its particles: one block is given whole in every step, so it must not change a token.
    cached = {"block_length": 10, "iterations": 1, "batch": 2}
    plain, dual = (samplers.sample(model, "smc", cache=cache, **(more | cached)) for cache in (None, "dual"))
    assert torch.equal(plain.x, dual.x)


def test_particles_that_a_hook_ends_are_weighed():
    """The hook decides the last position of each particle, and so its reward: the weights must still be given, in each round."""

    def hook(state):
        fix = torch.full_like(state.x, -1)
        fix[:, :2] = torch.where(state.step > 0, torch.tensor([[1], [0]]), -1).T  # (B, 2)
        return samplers.Constraint(fix=fix)

    def first(x):
        return 30.0 * (x[:, 0] == 1)

    denoiser = TinyNet(vocab=6, visible_too=True)
    run = {"gen_length": 2, "batch": 20, "temperature": 1.0, "constrain": hook}
    one = samplers.sample(denoiser, "random_order", **run)
    assert bool((one.x[:, 0] != 1).any())
    for rounds in (1, 2):
        out = samplers.sample(
            denoiser,
            SMC(base="random_order", particles=32, reward=first, ess=0.0, iterations=rounds),
            info=True,
            **run,
        )
        assert bool((out.x[:, 0] == 1).all()) and bool((out.info["log_z"][-1] > 25).all())


def test_rows_of_other_lengths_do_not_change_which_particle_is_kept():
    """A row whose round has ended waits for the others, and keeps the particle that it keeps alone."""
    denoiser = TinyNet(vocab=3, visible_too=True, reach=1)
    fill = [[True] * n for n in (2, 3, 9)]
    rows = [torch.zeros(n, dtype=torch.int64) for n in (2, 3, 9)]
    for seed in range(12):
        how = {"seed": seed, "temperature": 1.0, "base": "random_order", "particles": 3, "iterations": 3, "ess": 0.0}
        how |= {"reward": in_place_of_three, "trace": True}
        whole = samplers.sample(denoiser, "smc", prompt=samplers.Canvas.infill(denoiser, rows, fill), **how)
        for i in (0, 1):
            one = samplers.Canvas.infill(denoiser, rows[i], fill[i])
            alone = samplers.sample(denoiser, "smc", prompt=one, first_row=i, **how)
            last = [
                [s.path[-1].x[j, : len(fill[i])].tolist() for s in run.trace if s.path]
                for run, j in ((alone, 0), (whole, i))
            ]
            assert last[0][0] == last[1][0] and last[0][-1] == last[1][-1]
            assert alone.x[0].tolist() == whole.x[i, : len(fill[i])].tolist()


def in_place_of_three(x):
    return (x == 1).sum(1).double()


def test_resampling_has_the_expected_number_of_offspring():
    state = samplers.stream(EXACT, SMC(particles=5), batch=4000).state
    log_weight = torch.tensor([0.0, -1.0, 1.0, -torch.inf, 0.5]).double().expand(4000, 5)
    w, effective = weights(log_weight)
    assert torch.allclose(w[0], log_weight[0].softmax(0)) and torch.allclose(effective, 1 / (w * w).sum(1))
    for scheme in ("multinomial", "stratified", "systematic"):
        who = ancestors(state, w, scheme, False)
        mean = torch.stack([(who == k).sum(1).double().mean() for k in range(5)])
        assert torch.allclose(mean, 5 * w[0], atol=0.06)
        if scheme == "systematic":
            for k in range(5):
                assert ((who == k).sum(1) - 5 * w[0, k]).abs().max() < 1
    kept = ancestors(state, w, "systematic", True)
    assert (kept[:, 0] == 0).all() and not (kept == 3).any()
    none, _ = weights(torch.full((2, 4), -torch.inf).double())
    assert torch.equal(none, torch.full((2, 4), 0.25).double())


BAD = [
    ({"reward": lambda x: x}, r"returned torch.int64 of shape \(8, 16\).*\(N,\) = \(8,\)"),
    ({"reward": lambda x: 1.0}, "returned float"),
    ({"reward": lambda x: torch.full((len(x),), torch.nan)}, "returned nan for particle 0 of row 0 after 1 steps"),
    ({"reward": lambda x: torch.where(torch.arange(len(x)) == 5, torch.inf, 0.0)}, "inf for particle 1 of row 1"),
    ({"reward": "nowhere:at_all"}, "No module named 'nowhere'"),
    ({"reward": "math:tau"}, "'math:tau' names none"),
    ({"base": "threshold(confidence=0.8)"}, "no option=value of sampler 'threshold', which has threshold"),
    ({"base": "refusion"}, "keeps one sequence per row"),
    ({"base": "smc"}, "'smc', which makes copies of rows itself"),
    ({"base": "soar"}, "'soar', which makes copies of rows itself"),
    ({"base": "daedal(eos=3)"}, "'daedal', which may lengthen the canvas"),
    ({"particles": 1 << 16, "batch": 1 << 16}, "65536 copies of each of 65536 rows of 16 positions cannot fit"),
    ({"base": "d3pm_ancestral"}, "'smc_uniform' is for samplers of the uniform family"),
    ({"base": "no such thing"}, "a name such as"),
    ({"particles": 0}, "must be >= 1"),
    ({"potential": "self"}, "takes no reward"),
]


@pytest.mark.parametrize(("how", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(how, message):
    with pytest.raises(OptionError, match=message):
        smc(**({"batch": 2} | how))


def test_a_reward_may_rule_out_and_options_are_recorded():
    def never_a_one_first(x):
        return torch.where(x[:, 0] == 1, -torch.inf, 0.0)

    out = smc(reward=never_a_one_first, particles=6, batch=300)
    assert not (out.x[:, 0] == 1).any()
    assert abs(float(out.info["log_z"][-1].exp().mean()) - 0.75) < 0.05
    told = json.loads(json.dumps(out.options))
    assert told["reward"].endswith("never_a_one_first") and told["base"].startswith("random_order(")
    assert SMC(base="threshold(threshold=0.8)").base.threshold == 0.8
    told = SMC(base="low_confidence(plan=beta(2,3), least=1)").values()["base"]
    assert told.startswith("low_confidence(plan=beta(2,3), least=1, ") and SMC(base=told).values()["base"] == told
