"""The driver's knobs that change what may be drawn, what goes first and when guidance is on; and what a step may ask."""

import math

import numpy as np
import pytest
import torch

import samplers
from samplers import Canvas, Constraint, OptionError, TokenDenoiser, predictor, registry
from samplers.feeds.plain import PlainFeed
from samplers.state import DraftState, TokenState
from samplers.testing import SyncRecorder, pretend_device
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint, TinyNet, for_any_model

pytestmark = pytest.mark.usefixtures("one_thread")
MASKED = for_any_model()
RUN = {"prompt": [[1, 2, 3], [4], []], "gen_length": 12, "seed": 5, "temperature": 1.0}


def net(name="low_confidence", **kw):
    return TinyNet(visible_too=registry.load(name).facts.revises, **kw)


# ---------------------------------------------------------------------------------------------- forbid, demote


@pytest.mark.parametrize("name", MASKED)
def test_a_forbidden_token_is_never_drawn(name):
    free = samplers.sample(net(name), name, **RUN).x
    drawn = free[free >= 0].unique().tolist()
    barred = drawn[: len(drawn) // 2]
    out = samplers.sample(net(name), name, forbid=barred, **RUN)
    made = out.x.clone()
    for i, prompt in enumerate(RUN["prompt"]):
        assert made[i, : len(prompt)].tolist() == prompt, "a prompt may hold what must not be drawn"
        made[i, : len(prompt)] = -1
    assert not set(made.flatten().tolist()) & set(barred)


def scripted(logits):
    """The same logits (L, V) whatever x is."""
    return TokenDenoiser.wrap(lambda ids: logits.expand(len(ids), -1, -1), vocab_size=logits.shape[1], mask_id=99)


def test_a_demoted_token_is_committed_last_and_changes_no_probability():
    probability = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]])
    denoiser = scripted(probability.log())
    seen = []

    def order(**kw):
        states = list(samplers.stream(denoiser, "low_confidence", gen_length=4, **kw))
        return [int((a.x != b.x).nonzero()[0, 1]) for a, b in zip(states, states[1:])]

    assert order() == [0, 3, 2, 1]
    assert order(demote=0) == [3, 2, 0, 1], "positions 0 and 1 hold token 0: last, by position"
    assert samplers.sample(denoiser, "low_confidence", gen_length=4, demote=[0]).x.tolist() == [[0, 0, 1, 2]]
    # A threshold is met by none of the demoted, and what is not demoted keeps its confidence.
    states = list(samplers.stream(denoiser, "threshold", gen_length=4, threshold=0.55, demote=0))
    assert states[1].x.tolist() == [[99, 99, 1, 2]]
    for state in states[1:]:
        seen.append((state.x != 99).sum().item())
    assert seen == [2, 3, 4]


def test_a_demoted_token_has_the_entropy_of_a_guess():
    canvas = next(iter(samplers.stream(scripted(torch.zeros(2, 4)), "radd", gen_length=2)))
    counter = samplers.denoiser.Counter(scripted(torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0]])))
    feed = PlainFeed(counter, 1, 0.0, (0.0, 1.0))
    ask = predictor.Predictor(counter, feed, predictor.SamplingConfig(0.0, demote=(1,)))
    prediction = ask(canvas, canvas.open & torch.tensor([True, True]), want=("entropy", "margin", "confidence"))
    assert prediction.entropy[0, 1] == pytest.approx(math.log(4)) and prediction.entropy[0, 0] < 0.1
    assert (prediction.margin[0, 1], prediction.confidence[0, 1]) == (0, 0)
    assert prediction.margin[0, 0] > 0.9


# ---------------------------------------------------------------------------------------------- guidance interval


@pytest.mark.parametrize("name", ["low_confidence", "random_order", "radd"])
def test_guidance_only_inside_the_interval(name):
    """The rows that run are doubled at the noise levels in (low, high], and at no others."""
    denoiser = TinyNet()
    run = {"prompt": [[1, 2]], "gen_length": 16, "steps": 16, "cfg_scale": 1.3, "seed": 2, "temperature": 1.0}
    out = samplers.sample(denoiser, name, cfg_interval=(0.25, 0.75), trace=True, **run)
    levels = [float(a.noise_level) for a, b in zip(out.trace, out.trace[1:]) if (a.x != b.x).any()]
    assert [rows for rows, _ in denoiser.asked] == [2 if 0.25 < level <= 0.75 else 1 for level in levels]
    assert {rows for rows, _ in denoiser.asked} == {1, 2}
    everywhere = samplers.sample(TinyNet(), name, cfg_interval=(0.0, 1.0), **run)
    plain = samplers.sample(TinyNet(), name, **run)
    assert (everywhere.x == plain.x).all() and everywhere.row_evals == 2 * int(everywhere.nfe_rows.sum())


def test_rows_inside_and_outside_the_interval_are_what_they_are_alone():
    run = {"gen_length": 12, "cfg_scale": 2.0, "cfg_interval": (0.3, 0.8), "seed": 1, "temperature": 1.0}
    prompts = [[1, 2, 3, 4], [5, 1, 2, 9]]
    for name in ("threshold", "entropy_bound"):  # rows get ahead of each other
        together = samplers.sample(TinyNet(), name, prompt=prompts, **run)
        for i, prompt in enumerate(prompts):
            alone = samplers.sample(TinyNet(), name, prompt=[prompt], first_row=i, **run)
            assert (alone.x[0] == together.x[i]).all()
            assert alone.nfe == together.nfe_rows[i]


# ---------------------------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("name", MASKED)
def test_a_constraint_fixes_and_forbids(name):
    """Position 5 holds an 8 from the start and position 7 a 9 once half is done; of the rest every draw is even."""
    odd = torch.arange(12) % 2 == 1

    def constrain(state):
        fix = torch.full_like(state.x, -1)
        fix[:, 5] = 8
        half = state.undecided.sum(1) <= 6
        fix[:, 7] = torch.where(half & state.undecided[:, 7], 9, -1)
        return Constraint(fix=fix, forbid=odd)

    for setting in ({}, {"block_length": 4}, {"steps": 7}):
        out = samplers.sample(net(name), name, constrain=constrain, **RUN | setting)
        fresh = torch.ones_like(out.x, dtype=torch.bool)
        for i, prompt in enumerate(RUN["prompt"]):
            assert out.x[i, : len(prompt)].tolist() == prompt
            fresh[i, : len(prompt)] = False
        assert (out.x[:, 5] == 8).all()
        fresh[:, 7] = False
        made = out.x[fresh & (out.x >= 0)]
        assert (made % 2 == 0).all() and (out.x < 11).all()


def test_a_fixed_token_costs_no_forward_and_conditions_the_rest():
    problem = TinyJoint()
    pinned = torch.tensor([[-1, 2, -1]])
    out = samplers.sample(
        problem,
        "random_order",
        batch=6000,
        temperature=1.0,
        constrain=lambda state: Constraint(fix=pinned.expand(6000, -1)),
    )
    assert (out.x[:, 1] == 2).all() and (out.nfe_rows == 2).all()
    keep = problem.strings[:, 1] == 2
    counts = torch.bincount(problem.index(out.x), minlength=len(problem.law))
    assert fits(counts, problem.law * keep) > BOUND  # 0 if a string is drawn that cannot be


def test_all_fixed_at_once_asks_nothing():
    denoiser = TinyNet()
    fix = torch.arange(8)[None]
    out = samplers.sample(denoiser, "low_confidence", gen_length=8, constrain=lambda state: Constraint(fix=fix))
    assert out.x.tolist() == fix.tolist() and out.nfe == 0 and denoiser.asked == []


def test_forbidding_by_position():
    """Of (1, L, V): position i may only be token i."""
    forbid = ~torch.eye(6, 12, dtype=torch.bool)[None]
    flat = TokenDenoiser.wrap(
        lambda ids: torch.zeros(*ids.shape, 4), vocab_size=12, mask_id=11, head=samplers.Head(torch.zeros(12, 4))
    )
    for denoiser in (TinyNet(), flat):
        out = samplers.sample(
            denoiser,
            "threshold",
            gen_length=6,
            batch=3,
            temperature=1.0,
            constrain=lambda state: Constraint(forbid=forbid),
        )
        assert (out.x == torch.arange(6)).all()


def test_a_hook_sees_every_step():
    steps = []

    def watch(state):
        steps.append(int(state.undecided.sum()))

    samplers.sample(TinyNet(), "low_confidence", gen_length=6, constrain=watch)
    assert steps == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"forbid": 12}, "forbid=12: token ids"),
        ({"forbid": [1, "a"]}, "forbid"),
        ({"demote": [-1]}, "demote"),
        ({"demote": 1.5}, "demote"),
        ({"cfg_interval": (0.5, 0.5)}, "cfg_interval"),
        ({"cfg_interval": 0.5}, "cfg_interval"),
        ({"cfg_interval": (0.0, 1.5)}, "cfg_interval"),
        ({"constrain": 3}, "constrain takes a callable"),
        ({"constrain": lambda state: 3}, "constrain returned int"),
        ({"constrain": lambda state: Constraint(fix=torch.zeros(2, 2))}, r"fix is \(2, 2\) torch.float32"),
        ({"constrain": lambda state: Constraint(fix=torch.full((1, 6), 11))}, r"fix\[0, 0\] is 11, which is no token"),
        ({"constrain": lambda state: Constraint(forbid=torch.zeros(5, dtype=torch.bool))}, r"\(B, L, V\) = \(1, 6, 12\)"),
        ({"constrain": lambda state: Constraint(forbid=torch.zeros(12))}, "bool that broadcasts"),
        ({"constrain": lambda state: Constraint(forbid=torch.ones(12, dtype=torch.bool))}, "no token is possible"),
        ({"forbid": list(range(11))}, "no token is possible"),
    ],
)  # fmt: skip
def test_bad_knobs(wrong, says):
    with pytest.raises(samplers.SamplersError, match=says):
        samplers.sample(TinyNet(), "low_confidence", gen_length=6, **wrong)


def test_knobs_are_for_tokens():
    denoiser = samplers.GaussianDenoiser.wrap(lambda x, t: x, shape=(2,))
    for knob in ({"forbid": 1}, {"demote": 1}, {"top_k": 3}, {"stop": 1}):
        with pytest.raises(OptionError, match="is not for samplers of the gaussian family"):
            samplers.sample(denoiser, "ddim", **knob)


# ---------------------------------------------------------------------------------------------- drafts


def prepared(length=6, block_length=3, steps=4, stop=None):
    canvas = Canvas.of(TinyNet(), None, length)
    rng = samplers.random.Rng.of(0, 1)
    return canvas.layout(
        block_length=block_length, steps=steps, stop=samplers.arguments.parse_stop(stop, TinyNet()), rng=rng
    )


def test_a_block_of_drafts_stays_until_it_is_decided():
    state = DraftState.begin(prepared())
    assert isinstance(state, DraftState)
    none = torch.zeros(1, 6, dtype=torch.bool)
    full = torch.arange(6)[None]
    state = state.revise(full, none)
    assert state.x.tolist() == [[0, 1, 2, 11, 11, 11]] and state.open.tolist() == [[True] * 3 + [False] * 3]
    assert not state.masked[0, :3].any() and state.last_step.all()
    # A mask cannot be decided: it stays open.
    state = state.revise(torch.tensor([[0, 11, 2, 5, 5, 5]]), torch.tensor([True]))
    assert state.decided.tolist() == [[True, False, True, False, False, False]]
    assert state.open.tolist() == [[False, True, False, False, False, False]]
    state = state.revise(torch.full((1, 6), 7), torch.tensor([True]))
    assert state.x.tolist() == [[0, 7, 2, 11, 11, 11]] and state.open.tolist() == [[False] * 3 + [True] * 3]
    assert state.block_step.tolist() == [0] and state.step.tolist() == [3]


def test_a_stop_phrase_among_drafts_does_not_count():
    state = DraftState.begin(prepared(block_length=6, stop=4))
    state = state.revise(torch.tensor([[1, 4, 1, 1, 1, 1]]), torch.zeros(1, 6, dtype=torch.bool))
    assert state.end.tolist() == [6]
    state = state.revise(state.x, torch.tensor([[False, True, False, False, False, False]]))
    assert state.end.tolist() == [2] and state.open.tolist() == [[True] + [False] * 5]
    state = state.revise(state.x, torch.tensor([True]))
    assert state.done.all()


def test_fixing_takes_no_step():
    for state in (TokenState.begin(prepared()), DraftState.begin(prepared())):
        fixed = state.fix(torch.tensor([[True, True, True, False, True, False]]), torch.arange(6)[None])
        assert fixed.x.tolist() == [[0, 1, 2, 11, 4, 11]]
        assert fixed.step.tolist() == [0] and fixed.open.tolist() == [[False] * 3 + [True, False, True]]
        assert fixed.fix(torch.ones(1, 6, dtype=torch.bool), torch.full((1, 6), 9)).x.tolist() == [[0, 1, 2, 9, 4, 9]]


# ---------------------------------------------------------------------------------------------- what a step asks


LOOP = {"prompt": [[1, 2], [3], []], "gen_length": 12, "block_length": 6, "seed": 1, "temperature": 1.0}


@pytest.mark.parametrize("name", MASKED)
def test_a_step_never_waits_for_a_device(name, monkeypatch):
    """Nothing in a sampler's step; in the driver one look a step, and none where counts are known."""
    cls = registry.load(name)
    table = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    denoiser = TokenDenoiser.wrap(lambda ids: table[ids] + table[: ids.shape[1]], vocab_size=12, mask_id=11)
    # As on a device: findings wait there, and counts that are known are not looked at.
    with pretend_device():
        run = samplers.stream(denoiser, name, **LOOP)
    next(run)
    foreseen = run.predictor.dry_run
    assert (foreseen is not None) == cls.facts.static_plan
    if foreseen is not None:
        # It works on the CPU, beside the run, and its syncs are not the device's: let it finish first.
        asked = []
        while not foreseen.state.finished:
            foreseen.advance()
            asked.append(foreseen._counts.copy())
            foreseen._counts.clear()
        ahead = iter([a for step in asked for a in step])
        monkeypatch.setattr(foreseen, "next_counts", lambda: next(ahead))
        monkeypatch.setattr(foreseen, "advance", lambda: None)
        monkeypatch.setattr(run.predictor, "finished", lambda state: run.steps >= len(asked))
    steps = 0
    with pretend_device(), SyncRecorder() as recorder:
        while next(run, None) is not None:
            steps += 1
        if foreseen is None:
            # One before each step; the last of them finds that nothing is left. A rule that asks for other positions than
            # the open ones costs one more, and so does each further forward pass of a step. speculative_copies reads once
            # more which answers stay, and once which token was refused.
            more = max(run.nfe - steps, 0) + 2 * steps * (name == "speculative_copies")
            assert steps <= len(recorder.syncs) - 1 <= 2 * steps + 2 + more
        else:
            assert len(recorder.syncs) == 1, "the check when the run ends"
    assert (run.result().x < 11).all()


# ---------------------------------------------------------------------------------------------- top_k and top_p are for the draw

FLAT = torch.tensor(
    [0.42, 0.28, 0.06, 0.06, 0.06, 0.06, 0.06, 1e-9]
).log()  # every position: the best 0.42, the second 0.28
CUTS = [
    {"temperature": 0.1, "top_p": 0.9},
    {"temperature": 0.0, "top_k": 1},
    {"temperature": 0.2, "top_p": 0.95, "top_k": 3},
]


def same_everywhere(logits=FLAT):
    def body(ids):
        return logits.expand(*ids.shape, 8).contiguous()

    return TokenDenoiser.wrap(body, vocab_size=8, mask_id=7, name="flat")


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("name", ["threshold", "factor", "entropy_bound", "credit", "hierarchy", "klass"])
def test_truncation_does_not_make_a_model_sure(name, cut):
    """A model that is 0.42 sure of every position is never 0.9 sure, whatever is cut off before the draw."""
    free = samplers.sample(same_everywhere(), name, gen_length=16, temperature=cut["temperature"])
    out = samplers.sample(same_everywhere(), name, gen_length=16, **cut)
    assert out.nfe == free.nfe and torch.equal(out.nfe_rows, free.nfe_rows)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(
    ("name", "what"), [("low_confidence", "confidence"), ("neg_entropy", "entropy"), ("topk_margin", "margin")]
)
def test_ranking_by_a_truncated_distribution_is_an_option(name, what, cut):
    """Later positions are surer: that order holds under truncation, and `tempered` gives Dream's own order back."""

    def body(ids):
        sure = torch.linspace(0.5, 1.5, ids.shape[1])[:, None] * FLAT
        return sure.expand(len(ids), -1, -1).contiguous()

    denoiser = TokenDenoiser.wrap(body, vocab_size=8, mask_id=7)
    out = samplers.sample(denoiser, name, gen_length=8, info=True, **cut)
    if name != "low_confidence" or cut["temperature"] == 0:  # else the drawn token's own probability decides
        assert out.step_map()[0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0], "the surest position goes first"
    old = samplers.sample(denoiser, name, gen_length=8, info=True, tempered=True, **(cut | {"top_k": 1}))
    assert old.step_map()[0].tolist() == list(range(8)), "one token is left at every position: all are equally sure"


def test_a_prediction_says_both():
    run = samplers.stream(same_everywhere(), "threshold", gen_length=3, temperature=0.1, top_p=0.9)
    state = next(run)
    want = ("confidence", "margin", "entropy")
    own, cut = (run.predict(state, want=want, truncated=t, confidence_temperature=1.0) for t in (False, True))
    p = FLAT[:7].softmax(0).double()
    assert own.confidence[0, 0] == pytest.approx(0.42, abs=1e-6) and own.margin[0, 0] == pytest.approx(0.14, abs=1e-6)
    assert own.entropy[0, 0] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)
    # At temperature 0.1 the nucleus of 0.9 is the best token alone.
    assert cut.confidence[0, 0] == 1.0 and cut.entropy[0, 0] == 0.0
    assert torch.equal(own.token, cut.token)


def test_a_constraint_takes_lists_and_arrays():
    fix, forbid = [[3, -1, -1]], [True] * 5 + [False] * 7
    made = [
        samplers.sample(TinyNet(), "threshold", gen_length=3, constrain=lambda s, c=c: c)
        for c in (Constraint(torch.tensor(fix), torch.tensor(forbid)), Constraint(fix, forbid))
    ]
    made.append(
        samplers.sample(
            TinyNet(), "threshold", gen_length=3, constrain=lambda s: Constraint(np.array(fix, dtype=np.int32))
        )
    )
    assert (
        torch.equal(made[0].x, made[1].x) and made[0].x[0, 0] == made[2].x[0, 0] == 3 and (made[0].x[0, 1:] >= 5).all()
    )
    for wrong, says in (
        ({"fix": [[0.5, 1, 1]]}, "fix is .1, 3. torch.float"),
        ({"forbid": {1}}, "a tensor, array or list"),
    ):
        with pytest.raises(OptionError, match=says):
            samplers.sample(TinyNet(), "threshold", gen_length=3, constrain=lambda s, w=wrong: Constraint(**w))
