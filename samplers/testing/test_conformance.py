"""The kit. Each test runs once for every registered sampler of its families (see plugin.py)."""

# mypy: disable-error-code="index, attr-defined"

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import pytest
import torch

import samplers
from samplers import Canvas, OptionError, Sampler, predictor, registry
from samplers.feeds.plain import PlainFeed
from samplers.ops import divergence
from samplers.registry import FAMILIES
from samplers.syncs import pretend_device
from samplers.testing.looks import Looks
from samplers.testing.tiny import (
    TinyJoint,
    TinyMixture,
    TinyNet,
    TinySequential,
    TinyUniformJoint,
    TinyUniformNet,
    solve_ode,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 5},
    {"block_length": 4},
    {"block_length": 5, "steps": 7, "temperature": 1.0},
    {"temperature": 0.7, "cfg_scale": 1.5},
    {"temperature": 1.0, "steps": 40},
]
GEN = 12


def net(name, **kw):
    """An arbitrary model of the sampler's family."""
    cls = registry.load(name)
    return fit(name, TinyUniformNet(**kw) if cls.family == "uniform" else TinyNet(visible_too=cls.facts.revises, **kw))


def joint(name, **kw):
    """The exact model of a law that one can enumerate."""
    return fit(name, TinyUniformJoint(**kw) if registry.load(name).family == "uniform" else TinyJoint(**kw))


def fit(name, denoiser):
    """A denoiser of tokens as the sampler needs it."""
    return TinySequential(denoiser) if registry.load(name).facts.sequential else denoiser


def suited(name, setting):
    """Arguments of sample(), less those that a sequence has no use for, and options for canvases of the kit's size."""
    cls = registry.load(name)
    never = ("steps", "cfg_scale") if cls.facts.sequential else ()
    return {k: v for k, v in setting.items() if k not in never} | dict(cls.conformance.small)


def sample(denoiser, name, **setting):
    return samplers.sample(denoiser, name, **suited(name, setting))


def stream(denoiser, name, **setting):
    return samplers.stream(denoiser, name, **suited(name, setting))


# ---------------------------------------------------------------------------------------------- what it says of itself


def test_facts(zoo_sampler):
    cls = registry.load(zoo_sampler)
    assert issubclass(cls, Sampler)
    assert cls.__dataclass_params__.frozen, "a sampler is a frozen dataclass: its options never change"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name), f"name {cls.name!r}: lower_snake is the field's habit"
    assert cls.family in FAMILIES
    assert cls.summary, "a one-line summary is what `samplers list` shows"
    assert cls.cite, "say which paper, even if it is your own note"
    assert cls.__doc__ and len(cls.__doc__.splitlines()[0]) > 20, "the first docstring line names paper and equation"


def test_signature(zoo_sampler):
    cls = registry.load(zoo_sampler)
    assert list(inspect.signature(cls.init).parameters) == ["self", "canvas"]
    assert list(inspect.signature(cls.step).parameters) == ["self", "predict", "state"]
    assert list(inspect.signature(cls.expected_nfe).parameters) == ["self", "length", "steps"]


def test_options(zoo_sampler):
    cls = registry.load(zoo_sampler)
    sampler = samplers.create(zoo_sampler)
    assert samplers.create(zoo_sampler, **sampler.values()) == sampler
    with pytest.raises(OptionError, match="no_such_option"):
        samplers.create(zoo_sampler, no_such_option=1)
    for option in cls.options():
        assert option.default is not dataclasses.MISSING, f"option {option.name} needs a default"
        assert option.help, f"option {option.name} needs a line of help: field = option(default, 'help', ...)"
        assert option.name not in ("steps", "seed", "temperature", "batch", "prompt"), "that is an argument of sample()"
        assert option.parse(str(option.default)) == option.default
        below = {"ge": lambda b: b - 1, "gt": lambda b: b, "le": lambda b: b + 1, "lt": lambda b: b}
        for bound, beyond in below.items():
            if bound in option.metadata:
                with pytest.raises(OptionError, match=option.name):
                    samplers.create(zoo_sampler, **{option.name: beyond(option.metadata[bound])})
        if "choices" in option.metadata:
            with pytest.raises(OptionError, match=option.name):
                samplers.create(zoo_sampler, **{option.name: "no such choice"})


# ---------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_prompt_untouched_no_mask_left(zoo_tokens, setting):
    denoiser = net(zoo_tokens)
    out = sample(denoiser, zoo_tokens, prompt=PROMPTS, gen_length=GEN, seed=7, **setting)
    assert out.x.dtype == torch.int64 and out.x.shape == (4, 6 + GEN)
    for i, prompt in enumerate(PROMPTS):
        end = len(prompt) + GEN
        assert out.x[i, : len(prompt)].tolist() == prompt
        assert int(out.lengths[i]) == end
        made = out.x[i, len(prompt) : end]
        assert bool(((made >= 0) & (made < denoiser.tokens)).all()), "a mask id, or no token, was left or drawn"
        assert (out.x[i, end:] == samplers.PAD).all()


def test_infill_keeps_what_is_given(zoo_tokens):
    denoiser = net(zoo_tokens)
    x = torch.arange(20).remainder(11).repeat(3, 1)
    fill = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    canvas = Canvas.infill(denoiser, x, fill)
    out = sample(denoiser, zoo_tokens, prompt=canvas, block_length=3, temperature=1.0)
    assert (out.x[~fill] == x[~fill]).all()
    assert (out.x < denoiser.tokens).all()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_row_of_a_batch_is_the_row_alone(zoo_tokens, setting):
    together = sample(net(zoo_tokens), zoo_tokens, prompt=PROMPTS, gen_length=GEN, seed=3, **setting)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(net(zoo_tokens), zoo_tokens, prompt=[prompt], gen_length=GEN, seed=3, first_row=i, **setting)
        assert together.x[i, : len(prompt) + GEN].tolist() == alone.x[0].tolist()
        assert int(together.nfe_rows[i]) == alone.nfe


def test_row_of_64_is_the_row_alone(zoo_tokens):
    together = sample(net(zoo_tokens), zoo_tokens, gen_length=16, batch=64, seed=11, temperature=1.0)
    for i in (0, 1, 31, 63):
        alone = sample(net(zoo_tokens), zoo_tokens, gen_length=16, seed=11, first_row=i, temperature=1.0)
        assert together.x[i].tolist() == alone.x[0].tolist()


def test_seed_decides(zoo_tokens):
    def run(seed):
        return sample(net(zoo_tokens), zoo_tokens, gen_length=24, batch=8, seed=seed, temperature=1.0).x

    before = torch.get_rng_state()
    first = run(5)
    assert (torch.get_rng_state() == before).all(), "the global generator was moved"
    torch.manual_seed(99)
    assert (run(5) == first).all()
    assert (run(6) != first).any()
    assert len({tuple(row.tolist()) for row in first}) > 1, "rows of a batch must differ"
    assert (run([5] * 8)[0] == first[0]).all(), "one seed a row: its row 0"


def test_interleaved_runs_agree(zoo_tokens):
    def open_(seed):
        return stream(net(zoo_tokens), zoo_tokens, gen_length=GEN, batch=3, seed=seed, block_length=5, temperature=1.0)

    apart = [list(open_(seed))[-1].x for seed in (1, 2)]
    runs, last = [open_(1), open_(2)], [None, None]
    alive = {0, 1}
    while alive:
        for i in sorted(alive):
            state = next(runs[i], None)
            if state is None:
                alive.remove(i)
            else:
                last[i] = state
    for i in (0, 1):
        assert (last[i].x == apart[i]).all()


def test_states_are_immutable(zoo_tokens):
    states = stream(net(zoo_tokens), zoo_tokens, gen_length=GEN, batch=2, temperature=1.0)
    kept = [(state, state.x.clone()) for state in states]
    assert all((state.x == x).all() for state, x in kept), "a step wrote into an earlier state"
    with pytest.raises(dataclasses.FrozenInstanceError):
        kept[0][0].x = kept[0][1]


@pytest.mark.parametrize("steps", [1, 5, 16, 40])
def test_counted_nfe_is_the_declared(zoo_tokens, steps):
    length, batch = 16, 1200
    sampler = samplers.create(zoo_tokens)
    if sampler.facts.sequential:
        pytest.skip("it does not take `steps`")
    expected = sampler.expected_nfe(length, steps)
    if expected is None:
        out = samplers.sample(net(zoo_tokens), sampler, gen_length=length, batch=32, steps=steps, temperature=1.0)
        # Who changes its mind may need more steps than there are positions.
        cap = steps if sampler.effective_facts.revises else min(length, steps)
        assert int(out.nfe_rows.max()) <= cap, "`steps` is a cap for samplers of adaptive count"
        return
    out = samplers.sample(
        net(zoo_tokens, vocab=3, reach=1), sampler, gen_length=length, batch=batch, steps=steps, temperature=1.0
    )
    counted = out.nfe_rows.double()
    error = float(counted.std()) / math.sqrt(batch)
    assert abs(float(counted.mean()) - expected) <= 4 * error + 1e-9
    assert out.nfe <= steps, "a batch must not cost more forwards than steps"
    assert out.nfe >= int(counted.max())


def test_counts_are_what_the_model_saw(zoo_tokens):
    denoiser = net(zoo_tokens)
    if registry.load(zoo_tokens).facts.sequential:
        out = sample(denoiser, zoo_tokens, prompt=[[1, 2], [3, 4]], gen_length=GEN)
        rows, fed, answers = (sum(n) for n in zip(*denoiser.asked))
        assert (out.nfe, out.row_evals, out.token_evals) == (len(denoiser.asked), rows, fed)
        assert out.head_rows == answers
        assert int(out.nfe_rows.max()) <= out.nfe <= int(out.nfe_rows.sum()) <= rows
        return
    out = sample(denoiser, zoo_tokens, prompt=[[1, 2], [3, 4]], gen_length=GEN, steps=6, cfg_scale=1.0)
    assert out.nfe == len(denoiser.asked)
    assert out.row_evals == sum(rows for rows, _ in denoiser.asked)
    assert out.head_rows == sum(needed for _, needed in denoiser.asked)
    assert out.token_evals == out.row_evals * (2 + GEN)
    assert out.row_evals == 2 * int(out.nfe_rows.sum()), "a guided step is one forward of two rows a row"


def test_counts_are_foreseen(zoo_tokens, monkeypatch):
    """Where a sampler says that its counts are known, a run that never looks at them is the same run."""
    cls = registry.load(zoo_tokens)
    if not cls.facts.static_plan:
        pytest.skip("its counts depend on the model")
    for setting in SETTINGS:
        run: Any = {"prompt": PROMPTS, "gen_length": GEN, "seed": 3, **setting}
        looked = sample(net(zoo_tokens), zoo_tokens, **run)
        with monkeypatch.context() as patch, pretend_device():
            patch.setattr(PlainFeed, "counts", _refuse_the_run(PlainFeed.counts))
            foreseen = sample(net(zoo_tokens), zoo_tokens, **run)
        assert (looked.x == foreseen.x).all()
        assert (looked.nfe, looked.head_rows) == (foreseen.nfe, foreseen.head_rows)
        assert (looked.nfe_rows == foreseen.nfe_rows).all()


def _refuse_the_run(count):
    """Counting is for the dry run alone, which has a canvas of its own."""
    first = []

    def counted(self, state, rows):
        first.append(state.canvas)
        assert state.canvas is first[0], "the run itself was counted"
        return count(self, state, rows)

    return counted


def test_a_step_waits_for_nothing(zoo_tokens, monkeypatch):
    """What a sampler does itself, on a CPU, where every op is seen; what it asks the model through is the driver's."""
    if registry.load(zoo_tokens).facts.sequential:
        pytest.skip("a sequence grows by what is accepted: how far is read after each verification")
    looks = Looks(monkeypatch)
    for name in ("__call__", "logits", "read"):
        monkeypatch.setattr(predictor.Predictor, name, looks.unseen(getattr(predictor.Predictor, name)))
    # An op's check of what an index holds is for CPU tensors only; it never reads a device.
    monkeypatch.setattr("samplers.ops.divergence.check_inside", looks.unseen(divergence.check_inside))
    sampler = registry.load(zoo_tokens)
    step = sampler.step

    def watched(self, predict, state):
        with looks:
            return step(self, predict, state)

    monkeypatch.setattr(sampler, "step", watched)
    samplers.sample(net(zoo_tokens), zoo_tokens, prompt=PROMPTS, gen_length=GEN, block_length=5, temperature=1.0)
    assert not looks.found, f"a step reads the device: {', '.join(sorted(set(looks.found)))}"


def test_logits_are_stored_where_it_says_so(zoo_tokens, monkeypatch):
    stored = []
    logits = predictor.Predictor.logits

    def watched(self, *args, **kw):
        stored.append(1)
        return logits(self, *args, **kw)

    monkeypatch.setattr(predictor.Predictor, "logits", watched)
    sample(net(zoo_tokens), zoo_tokens, gen_length=GEN, temperature=1.0)
    assert bool(stored) == registry.load(zoo_tokens).facts.stores_logits


def test_stop_rule(zoo_tokens):
    denoiser = net(zoo_tokens)
    free = sample(denoiser, zoo_tokens, gen_length=32, batch=6, seed=2, temperature=1.0)
    stop = int(free.x[0, 5])
    out = sample(denoiser, zoo_tokens, gen_length=32, batch=6, seed=2, temperature=1.0, stop=stop)
    for i, row in enumerate(out.x.tolist()):
        end = int(out.lengths[i])
        assert stop not in row[: end - 1], "a row ends behind its first stop token"
        assert row[end - 1] == stop or end == 32
        assert max(row) < denoiser.tokens and set(row[end:]) <= {samplers.PAD}


def test_time_reaches_a_time_conditioned_model(zoo_tokens):
    if registry.load(zoo_tokens).facts.sequential:
        pytest.skip("what is kept must not depend on the time")
    if registry.load(zoo_tokens).family == "uniform":  # this model looks at t itself: (B,), in (0, 1]
        samplers.sample(net(zoo_tokens, time_conditioned=True), zoo_tokens, gen_length=6, batch=5, block_length=4)
        return
    denoiser = TinyJoint(length=4, time_conditioned=True)
    samplers.sample(denoiser, zoo_tokens, batch=5, temperature=1.0)
    for t in denoiser.times:
        assert t.dim() == 1 and bool(((t > 0) & (t <= 1)).all()), "t is the noise level, in (0, 1]"
    assert float(denoiser.times[0].max()) > float(denoiser.times[-1].min()) or len(denoiser.times) == 1


def test_levels_reach_a_model_that_takes_them(zoo_uniform):
    """A noise level a position: a prompt is clean, and so is what is decided; a block that is not begun is noise."""
    denoiser = TinyUniformJoint(length=4)
    samplers.sample(denoiser, zoo_uniform, prompt=[1], batch=5, temperature=1.0, block_length=2)
    first, last = denoiser.times[0], denoiser.times[-1]
    assert (first == torch.tensor([0.0, 1, 1, 1])).all()
    assert (last[:, :3] == 0).all() and (last[:, 3] > 0).all()
    assert all(bool(((t >= 0) & (t <= 1)).all()) for t in denoiser.times)


@pytest.mark.parametrize("mode", ["left to right", "one at a time"])
def test_law_on_a_tiny_problem(zoo_tokens, mode):
    """One position at a time draws from the exact law, whatever the rule, where the order cannot look at the draw.

    A block of one position leaves no choice of position. "One at a time" leaves it to the sampler, and holds for
    those that say a bias of "exact"; of those that are exact as steps go to infinity it takes as many as they ask for.
    """
    sampler_class = registry.load(zoo_tokens)
    problem, batch = joint(zoo_tokens), 12_000
    extra = dict(sampler_class.conformance.exact)
    if mode == "left to right":
        out = sample(problem, zoo_tokens, batch=batch, seed=1, temperature=1.0, block_length=1, **extra)
    elif sampler_class.facts.bias not in ("exact", "asymptotic"):
        pytest.skip("the sampler says that its law is biased, or does not say")
    else:
        extra |= dict(sampler_class.conformance.one_at_a_time)
        out = sample(problem, zoo_tokens, batch=batch, seed=1, temperature=1.0, **extra)
    counts = torch.bincount(problem.index(out.x), minlength=len(problem.law)).double()
    expected = problem.law * batch
    # Cells that expect few draws are pooled, as the chi-square approximation wants; 5 sigma of its own distribution.
    rare = expected < 8
    if bool(rare.any()):
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    chi2, df = float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1
    assert chi2 < df + 5 * math.sqrt(2 * df), f"chi-square {chi2:.1f} for {df} degrees of freedom"


def test_greedy_takes_the_best(zoo_tokens):
    """At temperature 0 nothing is random but the order: a model that is certain is copied."""
    target = torch.tensor([3, 1, 2, 0, 3, 2])

    def certain(ids):
        return torch.nn.functional.one_hot(target, 5).float().mul(9).expand(len(ids), -1, -1)

    mask_id = None if registry.load(zoo_tokens).family == "uniform" else 4
    denoiser = fit(zoo_tokens, samplers.TokenDenoiser.wrap(certain, vocab_size=5, mask_id=mask_id, length=6))
    out = sample(denoiser, zoo_tokens, batch=3, temperature=0.0)
    assert (out.x == target).all()


# ---------------------------------------------------------------------------------------------- reals


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_reals_finite_and_counted(zoo_gaussian, steps):
    for schedule in ("vp_linear", "edm", "flow"):
        out = samplers.sample(TinyMixture(schedule=schedule), zoo_gaussian, batch=3, steps=steps)
        assert out.x.shape == (3, 4) and out.x.dtype == torch.float64
        assert bool(torch.isfinite(out.x).all())
        expected = samplers.create(zoo_gaussian).expected_nfe(0, steps)
        if expected is not None:
            assert out.nfe == expected
        assert (out.nfe_rows == out.nfe).all() and out.row_evals == 3 * out.nfe


def test_reals_row_alone_and_seed(zoo_gaussian):
    before = torch.get_rng_state()
    together = samplers.sample(TinyMixture(), zoo_gaussian, batch=5, steps=6, seed=4).x
    assert (torch.get_rng_state() == before).all(), "the global generator was moved"
    for i in range(5):
        alone = samplers.sample(TinyMixture(), zoo_gaussian, batch=1, steps=6, seed=4, first_row=i).x
        assert (alone[0] == together[i]).all()
    assert (samplers.sample(TinyMixture(), zoo_gaussian, batch=5, steps=6, seed=5).x != together).all()


def test_reals_interleaved(zoo_gaussian):
    apart = [list(samplers.stream(TinyMixture(), zoo_gaussian, batch=2, steps=7, seed=s))[-1].x for s in (1, 2)]
    pairs = list(zip(*(samplers.stream(TinyMixture(), zoo_gaussian, batch=2, steps=7, seed=s) for s in (1, 2))))
    for i in (0, 1):
        assert (pairs[-1][i].x == apart[i]).all()


def test_declared_order(zoo_gaussian):
    cls = registry.load(zoo_gaussian)
    sampler = samplers.create(zoo_gaussian, **dict(cls.conformance.order))
    order = getattr(sampler, "order", None)
    if order is None:
        pytest.skip("no order is declared")
    problem = TinyMixture()
    x = next(iter(samplers.stream(problem, sampler, batch=8, steps=6))).x
    truth = solve_ode(problem, x, problem.schedule.t_max, problem.schedule.t_min)
    errors = []
    for steps in (144, 288, 576):
        out = samplers.sample(problem, sampler, batch=8, steps=steps)
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
    slope = math.log2(errors[-2] / errors[-1])
    assert abs(slope - order) < 0.15, f"order {order} is declared, {slope:.2f} measured (errors {errors})"
