"""The driver: what it promises to users, and what it says to bad input. (What every sampler promises is in the kit.)"""

import math
import os
import sys

import numpy as np
import pytest
import torch

import samplers
from samplers import (
    Canvas,
    DenoiserError,
    FamilyError,
    GaussianDenoiser,
    OptionError,
    TokenDenoiser,
    UnknownNameError,
    predictor,
    registry,
)
from samplers.feeds.plain import PlainFeed
from samplers.testing import pretend_device
from samplers.testing.tiny import TinyJoint, TinyMixture, TinyNet, for_any_model

pytestmark = pytest.mark.usefixtures("one_thread")

V, MASK = 9, 8


def wrap(fn=None, **kw):
    fn = fn or (lambda ids: torch.zeros(*ids.shape, V))
    return TokenDenoiser.wrap(fn, **{"vocab_size": V, "mask_id": MASK} | kw)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: samplers.create("low_confidnce"), UnknownNameError, "did you mean 'low_confidence'"),
        (lambda: samplers.sample(wrap(), "zzz", gen_length=3), UnknownNameError, "samplers list"),
        (
            lambda: samplers.create("threshold", treshold=0.5),
            OptionError,
            "nor an option of sampler 'threshold': did you mean 'threshold'",
        ),
        (lambda: samplers.create("threshold", threshold=0), OptionError, "'threshold' of sampler 'threshold'.*> 0"),
        (lambda: samplers.create("entropy_bound", bound=math.nan), OptionError, "NaN"),
        (lambda: samplers.create("entropy_bound", bound="much"), OptionError, "must be float, not 'much'"),
        (
            lambda: samplers.create("entropy_bound", proxy="entrpy"),
            OptionError,
            "one of 'entropy'.*did you mean 'entropy'",
        ),
        (lambda: samplers.create("dpm_solver", order=4), OptionError, "one of 1, 2, 3"),
        (lambda: samplers.create("radd", schedule="cosine"), OptionError, "two opposite schedules"),
        (lambda: samplers.create("low_confidence", steps=4), OptionError, r"argument of samplers.sample\(\)"),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, steps=0), OptionError, "steps must be an integer of 1"),
        (
            lambda: samplers.sample(wrap(), "radd", gen_length=3, steps=2.5),
            OptionError,
            "steps must be an integer of 1",
        ),
        (lambda: samplers.sample(wrap(), "radd", gen_length=0), OptionError, "gen_length must be"),
        (lambda: samplers.sample(wrap(), "radd"), OptionError, "gen_length is needed"),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, batch=0), OptionError, "batch must be"),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, temperature=-1), OptionError, "temperature must be"),
        (
            lambda: samplers.sample(wrap(), "radd", gen_length=3, temperature=math.nan),
            OptionError,
            "temperature must be",
        ),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, cfg_scale=-0.1), OptionError, "cfg_scale must be"),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, block_length=0), OptionError, "block_length must be"),
        (
            lambda: samplers.sample(wrap(), "radd", gen_length=8, block_length=2, steps=3),
            OptionError,
            "fewer than the 4 blocks",
        ),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, cache="prefix"), OptionError, "cache='prefix'.*none"),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, stop=[[]]), OptionError, "stop"),
        (
            lambda: samplers.sample(wrap(length=8), "radd", prompt=list(range(8))),
            OptionError,
            "8 tokens and the canvas .* 8 pos",
        ),
        (lambda: samplers.sample(wrap(length=8), "radd", prompt=[1, 2], gen_length=7), OptionError, "gen_length=6"),
        (
            lambda: samplers.sample(wrap(), "radd", prompt=[[1], [2, MASK]], gen_length=3),
            OptionError,
            "row 1, position 1 is the mask",
        ),
        (
            lambda: samplers.sample(wrap(), "radd", prompt=[1, 99], gen_length=3),
            OptionError,
            "position 1 is 99; .* 0 to 8",
        ),
        (lambda: samplers.sample(wrap(), "radd", prompt=[0.5], gen_length=3), OptionError, "token ids are needed"),
        (
            lambda: samplers.sample(wrap(), "radd", prompt=[[1], [2]], batch=3, gen_length=3),
            OptionError,
            "2 rows and batch=3",
        ),
        (
            lambda: samplers.sample(wrap(), "ddim", gen_length=3),
            FamilyError,
            "'ddim' is of the gaussian family.*masked",
        ),
        (
            lambda: samplers.sample(TinyMixture(), "radd"),
            FamilyError,
            "samplers of that family: analytic_ddim, analytic_ddpm",
        ),
        (
            lambda: samplers.sample(TinyMixture(), "ddim", block_length=3),
            OptionError,
            "block_length is not for samplers of the gaussian family",
        ),
        (
            lambda: samplers.sample(TinyMixture(), "ddim", cfg_scale=1.0),
            OptionError,
            "has no prediction without the condition.*unconditional=",
        ),
        (
            lambda: samplers.sample(TinyMixture(), "ddim", top_k=3),
            OptionError,
            "top_k is not for samplers of the gaussian family",
        ),
        (lambda: samplers.sample(wrap(), "radd", gen_length=3, top_k=-2), OptionError, "top_k must be"),
        (
            lambda: samplers.sample(wrap(), "radd", gen_length=3, top_p=1.5),
            OptionError,
            "top_p must be a number above 0",
        ),
        (lambda: samplers.sample(TinyMixture(), "ddim", t_end=2.0), OptionError, "t_end=2 must be below t_start=1"),
        (lambda: samplers.sample(lambda ids: ids, "radd", gen_length=3), OptionError, "TokenDenoiser.wrap"),
        (
            lambda: samplers.sample(wrap(), samplers.create("radd"), gen_length=3, schedule="sin"),
            OptionError,
            "made already",
        ),
        (lambda: samplers.sample(wrap(), 3, gen_length=3), OptionError, "sampler must be a name"),
        (lambda: samplers.list_samplers(family="maskd"), UnknownNameError, "did you mean 'masked'"),
        (lambda: wrap(vocab_size=0), OptionError, "vocab_size"),
        (lambda: wrap(mask_id=-1), OptionError, "mask_id"),
        (lambda: wrap(attention="half"), OptionError, "attention"),
        (
            lambda: GaussianDenoiser.wrap(lambda x, t: x, shape=(2,), prediction="eps"),
            OptionError,
            "unknown prediction 'eps'",
        ),
        (
            lambda: GaussianDenoiser.wrap(lambda x, t: x, shape=(2,), schedule="vp"),
            OptionError,
            "unknown noise schedule",
        ),
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says) as caught:
        call()
    assert isinstance(caught.value, samplers.SamplersError)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", [(V,), (2, 3, V + 1), (1, 3, V), (2, 4, V)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(DenoiserError, match=r"\(2, 3, 9\) are needed"):
        samplers.sample(wrap(lambda ids: torch.zeros(shape)), "radd", gen_length=3, batch=2, steps=1)


def test_wrong_kind_is_named():
    with pytest.raises(DenoiserError, match=r"lambda ids: model\(ids\).logits"):
        samplers.sample(wrap(lambda ids: (torch.zeros(1),)), "radd", gen_length=3)
    with pytest.raises(DenoiserError, match="floating dtype"):
        samplers.sample(wrap(lambda ids: torch.zeros(*ids.shape, V).long()), "radd", gen_length=3)
    bad = GaussianDenoiser.wrap(lambda x, t: x[:1], shape=(2,))
    with pytest.raises(DenoiserError, match="same shape"):
        samplers.sample(bad, "ddim", batch=3)


@pytest.mark.parametrize(
    ("value", "says"), [(math.nan, "a NaN or"), (math.inf, r"\+inf among"), (-math.inf, "no token is possible")]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bad_logits_name_row_and_position(value, says, temperature):
    def fn(ids):
        logits = torch.zeros(*ids.shape, V)
        if ids.shape[0] > 2:
            logits[2, 4] = value
        return logits

    with pytest.raises(DenoiserError, match=rf"row 2, position 4 .*{says}"):
        samplers.sample(wrap(fn), "low_confidence", gen_length=6, batch=4, temperature=temperature)


def test_only_the_mask_id_left_is_no_candidate():
    logits = torch.full((V,), -math.inf)
    logits[MASK] = 3.0
    with pytest.raises(DenoiserError, match="no token is possible"):
        samplers.sample(wrap(lambda ids: logits.expand(*ids.shape, V)), "radd", gen_length=2)


def test_gaussian_nan_names_the_row():
    def fn(x, t):
        out = x.clone()
        out[1] = math.nan
        return out

    with pytest.raises(DenoiserError, match="row 1"):
        samplers.sample(GaussianDenoiser.wrap(fn, shape=(2,)), "ddim", batch=3)


def test_a_sampler_that_never_commits_is_stopped():
    class Idle(samplers.Sampler):
        name, family = "idle", "masked"

        def step(self, predict, state):
            return state.commit(torch.zeros_like(state.open), state.x)

    with pytest.raises(samplers.SamplersError, match="'idle' is not done after"):
        samplers.sample(wrap(), Idle(), gen_length=3)


def test_a_prediction_that_was_not_asked_for():
    denoiser = wrap()
    state = next(iter(samplers.stream(denoiser, "radd", gen_length=3)))
    counter = samplers.denoiser.Counter(denoiser)
    ask = predictor.Predictor(counter, PlainFeed(counter, 1, 0.0, (0.0, 1.0)), predictor.SamplingConfig(0.0))
    prediction = ask(state, want="margin")
    assert prediction.margin.shape == (1, 3)
    with pytest.raises(samplers.SamplersError, match="want='entropy'"):
        _ = prediction.entropy


# ---------------------------------------------------------------------------------------------- guidance, blocks, stops


def test_guidance_is_the_formula():
    net, w = TinyNet(vocab=6), 1.7
    prompt, length = [1, 4, 2], 5
    x = torch.tensor([[*prompt, *[6] * length]])
    blind = torch.full_like(x, 6)

    def logits(ids):
        return net.predict(ids, rows=torch.ones_like(ids, dtype=torch.bool) & (ids == 6))

    conditional, unconditional = logits(x), logits(blind)[3:]
    guided = (1 + w) * conditional - w * unconditional
    guided[:, 6] = -math.inf
    out = samplers.sample(net, "low_confidence", prompt=prompt, gen_length=length, cfg_scale=w, steps=1)
    assert out.x[0, 3:].tolist() == guided.argmax(1).tolist()
    assert out.nfe == 1
    assert out.row_evals == 2


def test_guidance_without_a_prompt_is_refused():
    """It would change nothing, and who asks for it expects that it does."""
    with pytest.raises(OptionError, match="guides by a prompt, and none was given"):
        samplers.sample(TinyNet(), "radd", gen_length=8, cfg_scale=2.0)


def test_guidance_by_an_empty_prompt_costs_nothing():
    """Rows with and without a prompt may share a batch, so an empty one is allowed: its row is guided by nothing."""
    run = {"gen_length": 8, "steps": 8, "seed": 1, "temperature": 1.0}
    plain = samplers.sample(TinyNet(), "radd", first_row=1, **run)
    canvas = Canvas.infill(TinyNet(), [0] * 8, [True] * 8)
    for prompt in ([], [[]], canvas):
        out = samplers.sample(
            TinyNet(),
            "radd",
            prompt=prompt,
            cfg_scale=2.0,
            first_row=1,
            **run | ({"gen_length": None} if prompt is canvas else {}),
        )
        assert torch.equal(out.x, plain.x) and out.row_evals == plain.row_evals
    together = samplers.sample(TinyNet(), "radd", prompt=[[1, 2], []], cfg_scale=2.0, **run)
    assert torch.equal(together.rows()[1], plain.x[0])


@pytest.mark.parametrize("block_length", [1, 3, 4, 12, 50])
def test_blocks_go_left_to_right(block_length):
    states = list(samplers.stream(TinyNet(), "random_order", prompt=[1, 2], gen_length=12, block_length=block_length))
    for state in states:
        masked = state.x[0, 2:] == 11
        blocks = masked.nonzero().flatten() // block_length
        if len(blocks):
            first = int(blocks.min())
            before = masked[: first * block_length]
            assert not before.any()
            after = masked[(first + 1) * block_length :]
            assert after.all(), "a later block was opened too early"
    assert len(states) == 13


@pytest.mark.parametrize(
    ("steps", "block_length", "deal"), [(12, 4, [4, 4, 4]), (6, 4, [2, 2, 2]), (7, 5, [3, 3, 1]), (3, 4, [1, 1, 1])]
)
def test_steps_are_dealt_to_blocks(steps, block_length, deal):
    canvas = Canvas.of(TinyNet(), None, 12)
    from samplers.random import Rng

    ready = canvas.layout(block_length=block_length, steps=steps, stop=(), rng=Rng.of(0, 1))
    assert ready.block_steps[0].tolist() == deal
    assert sum(deal) == steps
    free = canvas.layout(block_length=block_length, steps=None, stop=(), rng=Rng.of(0, 1))
    assert free.block_steps[0].tolist() == free.block_size[0].tolist()
    same = canvas.layout(block_length=block_length, steps=12, stop=(), rng=Rng.of(0, 1))
    assert same.block_steps[0].tolist() == free.block_size[0].tolist()


def test_low_confidence_plan_is_lladas():
    # n = 10 positions in 4 steps: 3, 3, 2, 2; in 16 steps: ten of one.
    for steps, plan in ((4, [3, 3, 2, 2]), (16, [1] * 10), (10, [1] * 10), (1, [10])):
        states = list(samplers.stream(TinyNet(), "low_confidence", gen_length=10, steps=steps))
        left = [int(s.masked.sum()) for s in states]
        assert [a - b for a, b in zip(left, left[1:])] == plan


def test_entropy_bound_steps_are_a_cap():
    free = samplers.sample(TinyNet(), "entropy_bound", gen_length=20, bound=0.0)
    assert free.nfe == 20
    capped = samplers.sample(TinyNet(), "entropy_bound", gen_length=20, bound=0.0, steps=6)
    assert capped.nfe == 6
    assert samplers.sample(TinyNet(), "entropy_bound", gen_length=20, bound=1e9).nfe == 1


def test_threshold_extremes():
    assert samplers.sample(TinyNet(), "threshold", gen_length=20, threshold=2.0).nfe == 20
    assert samplers.sample(TinyNet(), "threshold", gen_length=20, threshold=1e-9).nfe == 1


@pytest.mark.parametrize(
    "rule", [{"k": torch.tensor([2, 0, 9])}, {"threshold": 0.6, "least": 1}, {"k": 1, "lowest": True}]
)
def test_commit_best_is_select_and_commit(rule):
    states = []

    class Keeps(samplers.Sampler):
        name, family = "keeps", "masked"

        def step(self, predict, state):
            states.append(state)
            return state.commit(state.open, predict(state).token)

    samplers.sample(TinyNet(), Keeps(), prompt=[1, 2], gen_length=6, batch=3, block_length=3, temperature=1.0)
    state = states[0]
    before = state.x.clone()
    score, token = torch.rand(3, 8), torch.zeros(3, 8, dtype=torch.int64)
    best = state.commit_best(score, token, **rule)
    chosen = samplers.ops.select(score, state.open, **rule).chosen
    assert torch.equal(state.x, before), "states are immutable"
    for name in ("x", "open", "step", "block_step", "count", "done"):
        assert torch.equal(getattr(best, name), getattr(state.commit(chosen, token), name)), name
    assert torch.equal(best.x[:, :2], before[:, :2])


def test_stop_phrase_and_padding():
    # A model that writes 0 1 2 3 4 5 6 7 0 1 ... by position; the phrase 3 4 stops a row behind position 4.
    def fn(ids):
        return torch.nn.functional.one_hot(torch.arange(ids.shape[1]) % 8, V).float().mul(20).expand(len(ids), -1, -1)

    for sampler in ("low_confidence", "random_order"):
        out = samplers.sample(wrap(fn), sampler, gen_length=16, stop=[[3, 4]])
        assert out.x[0].tolist() == [0, 1, 2, 3, 4] + [samplers.PAD] * 11
        assert int(out.lengths[0]) == 5
    several = samplers.sample(wrap(fn), "low_confidence", gen_length=16, stop=[[6], [3, 4]])
    assert int(several.lengths[0]) == 5
    in_prompt = samplers.sample(wrap(fn), "low_confidence", prompt=[3, 4], gen_length=2, stop=[[3, 4]])
    assert int(in_prompt.lengths[0]) == 4, "a phrase in the prompt does not stop a row"


def test_rows_that_are_done_stop_costing():
    def fn(ids):
        sure = torch.zeros(*ids.shape, V)
        sure[..., 1] = 9.0
        sure[ids[:, 0] == 2] = 0.0  # rows whose prompt is 2 are unsure everywhere
        return sure

    out = samplers.sample(wrap(fn), "threshold", prompt=[[1], [2]], gen_length=8, temperature=1.0)
    assert out.nfe_rows.tolist() == [1, 8]
    assert out.row_evals == 9
    assert out.nfe == 8


def test_stream_yields_each_state_and_checks_at_once():
    with pytest.raises(OptionError):
        samplers.stream(wrap(), "radd", gen_length=3, steps=0)
    states = list(samplers.stream(TinyNet(), "low_confidence", gen_length=6))
    assert len(states) == 7
    assert int(states[0].masked.sum()) == 6
    assert states[-1].finished
    out = samplers.sample(TinyNet(), "low_confidence", gen_length=6, trace=True)
    assert [s.x.tolist() for s in out.trace] == [s.x.tolist() for s in states]


def test_sample_records_what_made_it():
    out = samplers.sample(TinyNet(), "radd", gen_length=6, steps=3, seed=9, schedule="sin")
    assert out.sampler == "radd"
    assert out.options == {"schedule": "sin"}
    assert out.distribution == "sampler-zoo"
    assert out.settings["seed"] == 9
    assert out.settings["steps"] == 3
    assert out.seconds.total > 0


def test_denoiser_may_keep_the_mask_out_of_its_logits():
    fn = lambda ids: torch.zeros(*ids.shape, 4)  # noqa: E731
    out = samplers.sample(TokenDenoiser.wrap(fn, vocab_size=4, mask_id=4), "radd", gen_length=50, batch=4)
    assert set(out.x.flatten().tolist()) == {0, 1, 2, 3}


def test_progress_bar_runs(capsys):
    samplers.sample(TinyNet(), "radd", gen_length=6, progress=True)
    samplers.sample(TinyMixture(), "ddim", steps=4, progress=True)
    assert "radd" in capsys.readouterr().out


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow", "score"])
@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "flow"])
def test_predictions_are_one_denoiser(prediction, schedule):
    if schedule == "flow" and prediction in ("epsilon", "score"):
        schedule = samplers.schedule.Flow(t_max=0.999)  # at t = 1 the noise says nothing of x_0
    truth = TinyMixture(schedule=schedule)

    def fn(x, t):
        x0 = truth.predict(x, t)
        a, s = truth.schedule.alpha(t)[:, None], truth.schedule.sigma(t)[:, None]
        e = (x - a * x0) / s
        return {"epsilon": e, "x0": x0, "v": a * e - s * x0, "flow": e - x0, "score": -e / s}[prediction]

    wrapped = GaussianDenoiser.wrap(fn, shape=(4,), schedule=schedule, prediction=prediction, dtype=torch.float64)
    a = samplers.sample(truth, "dpmpp_2m", batch=3, steps=12).x
    b = samplers.sample(wrapped, "dpmpp_2m", batch=3, steps=12).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_one_prompt_many_rows_differ():
    out = samplers.sample(TinyNet(), "radd", prompt=[1, 2, 3], batch=5, gen_length=10, temperature=1.0)
    assert out.x.shape == (5, 13)
    assert (out.x[:, :3] == torch.tensor([1, 2, 3])).all()
    assert len({tuple(r) for r in out.x.tolist()}) == 5


def test_numpy_is_welcome():
    plain = samplers.sample(TinyNet(), "radd", prompt=[1, 2], gen_length=8, batch=3, steps=4, seed=5).x
    n = np.int64
    same = {"gen_length": n(8), "batch": n(3), "steps": n(4), "seed": n(5)}
    for prompt in (np.array([1, 2]), [n(1), n(2)], [np.array([1, 2])] * 3, torch.tensor([1, 2])):
        assert (samplers.sample(TinyNet(), "radd", prompt=prompt, **same).x == plain).all()
    with pytest.raises(OptionError, match="steps"):
        samplers.sample(TinyNet(), "radd", gen_length=3, steps=True)


def test_tiny_joint_is_a_law():
    problem = TinyJoint()
    x = torch.full((1, 3), problem.mask_id)
    marginal = torch.softmax(problem.predict(x)[0], -1)[:, :3].double()
    by_hand = torch.zeros(3, 3, dtype=torch.float64)
    for string, p in zip(problem.strings, problem.law):
        for i, v in enumerate(string):
            by_hand[i, v] += p
    torch.testing.assert_close(marginal, by_hand, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------- a denoiser with a head

_g = torch.Generator().manual_seed(3)
EMBED = torch.randint(-2, 3, (V, 16), generator=_g).float()
HEAD = samplers.Head(
    torch.randint(-2, 3, (V, 16), generator=_g).float() / 8, bias=torch.arange(V) / 8.0, softcap=4.0
)  # eighths: no product rounds, so logits are the same whatever is multiplied together


def body(ids):
    """(B, L) -> (B, L, 16): a position sees its neighbours and the row's first token."""
    e = EMBED[ids] + torch.arange(ids.shape[1])[:, None] % 3
    return e + EMBED[ids].roll(1, 1) - EMBED[ids].roll(-1, 1) + EMBED[ids[:, :1]]


class WithHead(TokenDenoiser):
    vocab_size, mask_id, head, name = V, MASK, HEAD, "with_head"

    def __init__(self):
        self.asked = []

    def hidden(self, x, t=None, *, rows=None, cache=None):
        self.asked.append(None if rows is None else int(rows.sum()))
        out = body(x)
        return out.flatten(0, 1) if rows is None else out[rows]


def test_predict_of_a_head_is_its_logits():
    ids = torch.tensor([[0, 8, 8, 3], [8, 8, 1, 2]])
    expected = 4.0 * torch.tanh((body(ids) @ HEAD.weight.T + HEAD.bias) / 4.0)
    rows = ids == MASK
    for denoiser in (WithHead(), wrap(body, head=HEAD)):
        assert torch.allclose(denoiser.predict(ids), expected)
        assert torch.allclose(denoiser.predict(ids, rows=rows), expected[rows])


@pytest.mark.parametrize("sampler", for_any_model())
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_a_head_changes_nothing_but_memory(sampler, cfg_scale, monkeypatch):
    kw = {"prompt": [[1, 2], [3]], "gen_length": 6, "steps": 4, "temperature": 0.0, "cfg_scale": cfg_scale, "seed": 5}
    with_logits = samplers.sample(wrap(lambda ids: HEAD.logits(body(ids))), sampler, **kw)

    def no_logits(*args, **kw):
        raise AssertionError("logits were stored")

    if not registry.load(sampler).facts.stores_logits:
        monkeypatch.setattr(samplers.Head, "logits", no_logits)
        monkeypatch.setattr(samplers.ops, "masked_softmax", no_logits)
    denoiser = WithHead()
    for d in (denoiser, wrap(body, head=HEAD)):
        with_head = samplers.sample(d, sampler, **kw)
        assert torch.equal(with_head.x, with_logits.x)
        for fact in ("nfe", "row_evals", "token_evals", "head_rows", "steps"):
            assert getattr(with_head, fact) == getattr(with_logits, fact), fact
        assert torch.equal(with_head.nfe_rows, with_logits.nfe_rows)
    assert sum(denoiser.asked) == with_logits.head_rows


def test_a_head_draws_the_same_rows_in_any_batch():
    kw = {"gen_length": 6, "steps": 3, "temperature": 1.0, "seed": 1}
    together = samplers.sample(WithHead(), "low_confidence", batch=5, **kw)
    assert len({tuple(r) for r in together.x.tolist()}) > 1
    for i in range(5):
        alone = samplers.sample(WithHead(), "low_confidence", first_row=i, **kw)
        assert torch.equal(alone.x[0], together.x[i])


def test_top_k_and_top_p_cut_the_draw():
    kw = {"gen_length": 6, "steps": 6, "batch": 40, "seed": 2}
    plain = wrap(lambda ids: HEAD.logits(body(ids)))
    free = samplers.sample(plain, "random_order", temperature=1.0, **kw)
    best = samplers.sample(plain, "random_order", temperature=0.0, **kw)
    for cut in ({"top_k": 1}, {"top_p": 1e-6}):
        one = samplers.sample(plain, "random_order", temperature=1.0, **cut, **kw)
        assert torch.equal(one.x, best.x) and not torch.equal(one.x, free.x)
    # A model that says the same whatever it sees: at each position exactly the best three, or the fewest that hold 0.6.
    table = torch.randn(6, V, generator=torch.Generator().manual_seed(1))
    probability, ranked = table[:, : V - 1].softmax(1).sort(1, descending=True)  # without the mask, the last id
    fewest = (probability.cumsum(1) < 0.6).sum(1) + 1
    assert set(fewest.tolist()) == {2, 3, 4}
    for cut, sizes in (({"top_k": 3}, [3] * 6), ({"top_p": 0.6}, fewest.tolist())):
        stored = samplers.sample(plain, "random_order", temperature=1.0, **cut, **kw)
        headed = samplers.sample(
            WithHead(), "random_order", temperature=1.0, **cut, **kw
        )  # then it stores them as well
        assert torch.equal(stored.x, headed.x) and stored.settings["top_k"] == cut.get("top_k", 0)
        fixed = wrap(lambda ids: table.expand(len(ids), -1, -1))
        x = samplers.sample(fixed, "random_order", temperature=1.0, **cut, **kw | {"batch": 400}).x
        assert [set(x[:, i].tolist()) for i in range(6)] == [set(r[:n].tolist()) for r, n in zip(ranked, sizes)]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("w", [0.0, 1.5])
def test_logits_and_read_are_a_call_in_two_parts(head, w):
    """The same tokens and numbers; the mask and what is forbidden at -inf; and the model's own tensor is left alone.

    (A head's draws are its own, so there at temperature 0; and its numbers round otherwise.)
    """
    seen = []
    near = {"rtol": 1e-6, "atol": 1e-7} if head else {"rtol": 0, "atol": 0}

    class InParts(samplers.Sampler):
        name, family = "in_parts", "masked"

        def step(self, predict, state):
            want = ("confidence", "margin", "entropy")
            logits = predict.logits(state, state.open)
            seen.append(logits.value)
            prediction, direct = predict.read(state, logits, want=want), predict(state, want=want)
            for field in ("token", *want):
                torch.testing.assert_close(getattr(prediction, field), getattr(direct, field), **near)
            return state.commit_best(prediction.confidence, prediction.token, k=2)

    fixed = torch.linspace(-1, 1, 6 * V).view(6, V)
    plain = TokenDenoiser.wrap(lambda ids: fixed.expand(len(ids), -1, -1), vocab_size=V, mask_id=MASK)
    denoiser = WithHead() if head else plain
    run = {"prompt": [[1], [2]], "gen_length": 5, "temperature": 0.0 if head else 0.8}
    samplers.sample(denoiser, InParts(), cfg_scale=w, forbid=[0, 3], **run)
    assert all(bool((value[:, [0, 3, MASK]] == -math.inf).all()) for value in seen)
    assert all(bool(value[:, [1, 2, 4]].isfinite().all()) for value in seen)
    assert bool(fixed.isfinite().all())


def test_bad_heads():
    denoiser = WithHead()
    denoiser.hidden = lambda x, t, rows, cache: body(x)[0]
    with pytest.raises(DenoiserError, match=r"hidden rows of shape \(6, 16\) for 2 needed"):
        samplers.sample(denoiser, "radd", prompt=[1, 2, 3, 4], gen_length=2)
    with pytest.raises(DenoiserError, match=r"hidden rows \(B, L, D\) = \(1, 2, 16\) are needed"):
        samplers.sample(wrap(lambda ids: torch.zeros(*ids.shape, V), head=HEAD), "radd", gen_length=2)
    with pytest.raises(DenoiserError, match="vocab_size 12 and a head of 9 ids"):
        samplers.sample(wrap(body, vocab_size=12, head=HEAD), "radd", gen_length=2)
    with pytest.raises(NotImplementedError, match="neither predict"):
        TokenDenoiser().predict(torch.zeros(1, 2, dtype=torch.long))
    for wrong, says in (
        ({"weight": torch.zeros(3)}, r"weight is \(V, D\)"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"bias is \(V,\) = \(3,\)"),
        ({"weight": torch.zeros(3, 2), "softcap": 0.0}, "softcap is a finite number above 0"),
    ):
        with pytest.raises(OptionError, match=says):
            samplers.Head(**wrong)


# ---------------------------------------------------------------------------------------------- found late

# On a device nothing is looked at when it comes. The same path, on the CPU:


@pytest.fixture
def late():
    with pretend_device(dry_runs=False):
        yield


def spoilt_from(forward, head=False):
    """A denoiser whose row that begins with a 2 is NaN from this forward on; it refuses ids that are none."""
    seen = []

    def fn(ids):
        assert ids.min() >= 0 and ids.max() <= MASK, "a token that is none reached the model"
        spoilt = ids[:, 0] == 2
        seen.append(bool(spoilt.any()) and len(seen) + 1 >= forward)
        out = body(ids) if head else HEAD.logits(body(ids))
        return torch.where(spoilt[:, None, None] & seen[-1], math.nan, out)

    return wrap(fn, head=HEAD if head else None), seen


PROMPT = [[0], [1], [2], [3]]


@pytest.mark.parametrize("head", [False, True], ids=["logits", "head"])
@pytest.mark.parametrize("sampler", for_any_model())
def test_found_late_names_row_position_and_forward(late, sampler, head):
    denoiser, seen = spoilt_from(1, head)
    with pytest.raises(DenoiserError, match=r"row 2, position \d a NaN or \+inf among its logits") as caught:
        samplers.sample(denoiser, sampler, prompt=PROMPT, gen_length=6, steps=4, temperature=0.7)
    assert f"(forward pass {seen.index(True) + 1}, sampler {sampler!r})" in str(caught.value)
    # Further forward passes of the same step: those of a solver of second order, and of copies.
    in_the_step = 1 if sampler.startswith("theta_") or registry.load(sampler).facts.copies else 0
    assert seen.index(True) >= len(seen) - 1 - in_the_step, (
        "the next step looks at the device anyway: it must not go on"
    )


def test_found_late_in_the_last_forward(late):
    denoiser, _ = spoilt_from(3)
    run = samplers.stream(denoiser, "random_order", prompt=PROMPT, gen_length=6, steps=3)
    least = (int(state.x.min()) for state in run)  # states are not waited for; no token in them is none
    with pytest.raises(DenoiserError, match=r"row 2, position \d .*forward pass 3"):
        assert all(token >= 0 for token in least)
    with pytest.raises(DenoiserError, match="forward pass 3"):
        run.result()


def test_found_late_before_a_run_that_never_ends(late):
    class Stuck(samplers.Sampler):
        name, family = "stuck", "masked"

        def step(self, predict, state):
            if not bool(predict.nfe_rows.any()):
                predict(state)
            return state.commit(torch.zeros_like(state.open), state.x)

    with pytest.raises(DenoiserError, match="row 2, position 1"):
        samplers.sample(spoilt_from(1)[0], Stuck(), prompt=PROMPT, gen_length=6)


def test_found_late_costs_no_look_a_step(monkeypatch):
    """What is not looked at at once is not looked at in another way each step. (Ops look at values on a CPU only.)"""
    looks = []

    def counted(before):
        def look(self, *args, **kw):
            looks.append(sys._getframe(1).f_code.co_filename)
            return before(self, *args, **kw)

        return look

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))

    def looks_of_a_step():
        counts = []
        for steps in (4, 6):
            looks.clear()
            assert samplers.sample(WithHead(), "random_order", gen_length=6, batch=4, steps=steps).nfe == steps
            counts.append(sum(os.path.join("samplers", "ops") not in name and name != __file__ for name in looks))
        return (counts[1] - counts[0]) / 2

    at_once = looks_of_a_step()
    with pretend_device(dry_runs=False):
        assert looks_of_a_step() == at_once - 1


def test_gaussian_found_late(late):
    def fn(x, t):
        calls.append(1)
        out = x.clone()
        if len(calls) >= 3:
            out[1] = math.nan
        return out

    calls = []
    with pytest.raises(DenoiserError, match=r"row 1 a value that is not finite \(forward pass 3,"):
        samplers.sample(GaussianDenoiser.wrap(fn, shape=(2,)), "ddim", batch=3, steps=6)


def test_the_name_of_a_model_is_no_model():
    with pytest.raises(OptionError, match=r"samplers\.models\.zoo\.load\(name\).*samplers\.models\.pretrained\(name\)"):
        samplers.sample("text-mdm", "radd", gen_length=4)
    for name in ("hf:no-such-folder", "no-such-folder?attention=full"):  # as the command line has it
        with pytest.raises(samplers.errors.ModelError, match=r"and here pretrained\(NAME, attention='full'\)"):
            samplers.models.pretrained(name)
