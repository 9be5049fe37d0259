"""Settings per row, events, and runs that share forward passes: each row and run is what it is alone."""

import copy
import json

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.models import zoo
from samplers.testing import pretend_device
from samplers.testing.tiny import TinyNet, TinyUniformNet

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = {"temperature": [0.0, 0.7, 1.0, 1.3], "top_p": [1.0, 0.9, 1.0, 0.5], "top_k": [0, 0, 3, 0]}


# ---------------------------------------------------------------------------------------------- settings per row


@pytest.mark.parametrize("sampler", ["entropy_bound", "threshold", "radd", "low_confidence", "maskgit", "klass", "p2"])
@pytest.mark.parametrize("device", [False, True])
def test_each_row_draws_by_its_own_settings(sampler, device):
    net = TinyNet(visible_too=True)
    context = pretend_device() if device else torch.no_grad()
    with context:
        together = samplers.sample(net, sampler, gen_length=10, batch=4, seed=3, steps=5, **DRAWS)
    for i in range(4):
        own = {name: values[i] for name, values in DRAWS.items()}
        alone = samplers.sample(net, sampler, gen_length=10, seed=3, first_row=i, steps=5, **own)
        assert torch.equal(together.x[i], alone.x[0]), f"row {i}"
    json.dumps(together.settings)


def test_settings_per_row_with_a_head_guidance_and_logits():
    """The headless path, two forward answers per position, and samplers that read logits themselves."""
    net = zoo.load("text-mdm", dtype=torch.float64)
    run = {"prompt": net.encode("The name of"), "gen_length": 6, "batch": 3, "steps": 3, "seed": 1}
    for sampler, more in (("entropy_bound", {"cfg_scale": 0.5}), ("low_confidence", {}), ("remdm", {})):
        together = samplers.sample(net, sampler, **run, **more, temperature=[0.0, 0.8, 1.2])
        for i, temperature in enumerate((0.0, 0.8, 1.2)):
            alone = samplers.sample(net, sampler, **{**run, "batch": 1}, **more, temperature=temperature, first_row=i)
            assert torch.equal(together.x[i], alone.x[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": [1.0, 0.5]}, "temperature: 2 values were given for 3 rows; give one, or one per row"),
        ({"top_p": [1.0, 0.5, 2.0]}, "top_p must be a number above 0, up to 1"),
        ({"top_k": (1, 2, -1)}, "top_k must be an integer of 0"),
        ({"temperature": torch.tensor([1.0, 0.5, -1.0])}, "temperature must be a number of 0 or more"),
    ],
)
def test_wrong_settings_per_row(settings, says):
    with pytest.raises(OptionError, match=says):
        samplers.sample(TinyNet(visible_too=True), "radd", gen_length=4, batch=3, **settings)


def test_a_sampler_that_works_with_the_temperature_takes_one():
    with pytest.raises(OptionError, match=r"one for all rows.*samplers\.Pool"):
        samplers.sample(TinyUniformNet(), "entropy_bound_uniform", gen_length=4, batch=2, temperature=[0.5, 1.0])
    samplers.sample(TinyUniformNet(), "entropy_bound_uniform", gen_length=4, batch=2, temperature=[0.5, 0.5])


# ---------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("sampler", ["entropy_bound", "remdm", "low_confidence"])
def test_events_report_every_token_once(sampler):
    net = TinyNet(visible_too=True)
    run = {"prompt": [1, 2], "gen_length": 8, "batch": 2, "steps": 5, "seed": 4}
    whole = samplers.sample(net, sampler, **run, info=True)
    going = samplers.stream(net, sampler, **run)
    x, seen, ended = torch.full_like(whole.x, -1), torch.zeros_like(whole.x), []
    for number, event in enumerate(going.events(), 1):
        assert event.step == number == going.steps
        assert event.nfe == going.nfe
        ended += event.ended
        at = event.row[event.final], event.position[event.final]
        x[at], seen[at] = event.token[event.final], seen[at] + 1
        # A final token that the model proposed in this very step has the log-probability that Sample.info has.
        known = event.final & ~event.logprob.isnan()
        if sampler != "remdm":
            at = event.row[known], event.position[known]
            assert torch.equal(event.logprob[known], whole.at_commit("logprob")[at])
            assert bool(known[event.final].all())
        open_ = ~event.final
        assert bool((seen[event.row[open_], event.position[open_]] == 0).all()), "provisional after final"
        assert net.mask_id not in event.token
    assert torch.equal(seen, whole.fill.long())
    assert torch.equal(x[whole.fill], whole.x[whole.fill])
    assert sorted(ended) == [0, 1]
    assert torch.equal(going.result().x, whole.x)


def test_provisional_tokens_are_the_proposals_of_the_step():
    """low_confidence with two steps of two: in the first, the two it does not commit are proposals of this step."""
    net = TinyNet(visible_too=True)
    first = next(iter(samplers.stream(net, "low_confidence", prompt=[1, 2], gen_length=4, steps=2).events()))
    logits = net.predict(torch.tensor([[1, 2] + [net.mask_id] * 4])).double()[2:]  # (4, V)
    logits[:, net.mask_id :] = -torch.inf
    p = logits.softmax(1)
    assert first.position.tolist() == [2, 3, 4, 5]
    assert first.token.tolist() == p.argmax(1).tolist()
    assert torch.allclose(first.logprob.double(), p.amax(1).log(), atol=1e-6)
    assert set(first.position[first.final].tolist()) == {2 + i for i in p.amax(1).topk(2).indices.tolist()}


def test_events_are_for_runs_over_tokens_that_have_not_begun():
    going = samplers.stream(TinyNet(visible_too=True), "radd", gen_length=3)
    next(going)
    with pytest.raises(OptionError, match="before their first step"):
        going.events()


# ---------------------------------------------------------------------------------------------- shared forward passes


REQUESTS = [
    ("entropy_bound", {"prompt": [1, 2], "gen_length": 6, "seed": 1, "temperature": 0.7}),
    ("threshold", {"prompt": [3, 1], "gen_length": 6, "seed": 2, "threshold": 0.5, "batch": 2}),
    (
        "low_confidence",
        {"prompt": [0, 4], "gen_length": 6, "seed": 3, "steps": 3, "block_length": 3, "temperature": 0.0},
    ),
    ("theta_rk2", {"prompt": [2, 2], "gen_length": 6, "seed": 4, "steps": 4}),
    ("remdm", {"prompt": [2, 0], "gen_length": 6, "seed": 5, "steps": 4, "top_p": 0.8}),
    ("entropy_bound", {"prompt": [5], "gen_length": 4, "seed": 6, "bound": 1.0, "cfg_scale": 0.7}),
]


def same(shared, alone):
    assert torch.equal(shared.x, alone.x)
    assert torch.equal(shared.nfe_rows, alone.nfe_rows)
    for what in ("nfe", "row_evals", "token_evals", "head_rows", "steps", "settings", "options"):
        assert getattr(shared, what) == getattr(alone, what), what


def test_pooled_runs_are_what_they_are_alone():
    net = TinyNet(visible_too=True)
    pool = samplers.Pool(net)
    runs = [pool.add(sampler, **arguments) for sampler, arguments in REQUESTS]
    ended = list(pool)
    assert sorted(run.number for run in ended) == list(range(len(runs)))
    alone = [samplers.sample(net, sampler, **arguments) for sampler, arguments in REQUESTS]
    for run, one in zip(runs, alone):
        same(run.result(), one)
    assert pool.counter.row_evals == sum(one.row_evals for one in alone)
    # Canvases of 8 share their passes, and so do those of 5: the longest run of each length says how many there are.
    assert pool.nfe == max(one.nfe for one in alone[:5]) + alone[5].nfe


def test_runs_of_all_lengths_share_forward_passes_where_the_model_can():
    net = zoo.load("text-mdm", dtype=torch.float64)
    pool, calls = samplers.Pool(net), []
    for i, (name, length) in enumerate((("entropy_bound", 5), ("low_confidence", 9), ("radd", 7))):
        calls.append(
            (name, {"prompt": net.encode("The name of the")[: i + 1], "gen_length": length, "steps": 5, "seed": i})
        )
    runs = [pool.add(name, **arguments) for name, arguments in calls]
    list(pool)
    alone = [samplers.sample(net, name, **arguments) for name, arguments in calls]
    for run, one in zip(runs, alone):
        assert torch.equal(run.result().x, one.x)
    assert pool.nfe == max(one.nfe for one in alone)


def test_requests_come_and_go():
    net, counts = TinyNet(visible_too=True), []
    pool = samplers.Pool(net, most=3)
    waiting = list(REQUESTS)
    for _ in range(2):
        pool.add(waiting[0][0], **waiting.pop(0)[1])
    results = {}
    for run in pool:
        results[run.number] = run.result()
        counts.append(len(pool.runs))
        if waiting:
            pool.add(waiting[0][0], **waiting.pop(0)[1])
    for number, (sampler, arguments) in enumerate(REQUESTS):
        same(results[number], samplers.sample(net, sampler, **arguments))
    assert max(counts) <= 2


def test_a_pool_of_self_conditioned_and_headless_models():
    table = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))

    def fn(ids, previous):
        return table[ids] + 0.5 * previous.roll(1, 1)

    wrapped = TokenDenoiser.wrap(fn, vocab_size=8, mask_id=8, self_conditioned=True)
    text = zoo.load("text-mdm", dtype=torch.float64)
    for net, prompt in ((wrapped, [1, 2, 3]), (text, text.encode("The name").tolist())):
        pool = samplers.Pool(net)
        calls = [("entropy_bound", {"bound": 0.5}), ("radd", {"steps": 4}), ("threshold", {"temperature": 0.0})]
        runs = [pool.add(name, prompt=prompt, gen_length=5, seed=7, **more) for name, more in calls]
        list(pool)
        for run, (name, more) in zip(runs, calls):
            assert torch.equal(
                run.result().x, samplers.sample(net, name, prompt=prompt, gen_length=5, seed=7, **more).x
            )


def test_embeddings_are_the_denoiser_s_and_not_a_run_s():
    text = zoo.load("text-mdm", dtype=torch.float64)
    embeds = torch.randn(2, text.embedding[1], generator=torch.Generator().manual_seed(0))
    run = {"gen_length": 4, "steps": 2, "seed": 1}
    with pytest.raises(OptionError, match=r"prompt_embeds does not go with Pool.*with_embeddings"):
        samplers.Pool(text).add("radd", prompt_embeds=embeds, **run)
    knows, (ids,) = text.with_embeddings([embeds])
    pool = samplers.Pool(knows)
    pooled = [pool.add("radd", prompt=prompt, **run) for prompt in (ids, text.encode("The name"))]
    list(pool)
    assert torch.equal(pooled[0].result().x, samplers.sample(text, "radd", prompt_embeds=embeds, **run).x)


def test_a_failing_run_does_not_harm_the_others():
    net = TinyNet(visible_too=True)

    def asks_too_much(state):
        if int(state.step[0]) == 2:
            raise ValueError("my own hook")

    pool = samplers.Pool(net)
    bad = pool.add("radd", gen_length=6, constrain=asks_too_much)
    good = pool.add("radd", gen_length=6, seed=2)
    assert {run.number for run in pool} == {0, 1}
    with pytest.raises(ValueError, match="my own hook"):
        bad.result()
    same(good.result(), samplers.sample(net, "radd", gen_length=6, seed=2))


def test_a_constraint_is_asked_once_a_step():
    asked = []
    pool = samplers.Pool(TinyNet(visible_too=True))
    pool.add("theta_rk2", gen_length=6, steps=4, constrain=lambda state: asked.append(int(state.step[0])))
    list(pool)
    assert asked == sorted(set(asked))


def test_the_steps_of_a_pooled_run_are_the_pools():
    run = samplers.Pool(TinyNet(visible_too=True)).add("radd", gen_length=4).run
    for going in (run, run.events()):
        with pytest.raises(OptionError, match=r"belongs to a samplers\.Pool.*iterate over the pool"):
            next(iter(going))


def test_what_a_pool_refuses():
    net = zoo.load("text-refusion")
    pool = samplers.Pool(net)
    with pytest.raises(OptionError, match="cache does not go with Pool"):
        pool.add("threshold", gen_length=4, cache="prefix")
    with pytest.raises(OptionError, match="'refusion' does not go with Pool"):
        pool.add("refusion", gen_length=16)
    with pytest.raises(OptionError, match="Pool takes a TokenDenoiser"):
        samplers.Pool(lambda ids: ids)
    assert not pool.runs


@pytest.mark.parametrize("sampler", ["low_confidence", "theta_trapezoidal"])
def test_a_pool_takes_a_model_that_writes_into_one_buffer(sampler):
    """As one does that runs as a CUDA graph. Runs of two lengths need two forward passes per round."""

    class Reuses(TinyNet):
        buffer = torch.empty(64, 12)

        def predict(self, x, t=None, *, rows=None, cache=None):
            said = super().predict(x, t, rows=rows, cache=cache)
            return self.buffer[: len(said)].copy_(said)

    runs = [{"prompt": [[1, 2]], "gen_length": 8, "seed": 1}, {"prompt": [[3]], "gen_length": 5, "seed": 2}]
    pool = samplers.Pool(Reuses(visible_too=True))
    assert not pool.denoiser.takes_lengths
    shared = [pool.add(sampler, steps=4, temperature=1.0, **how) for how in runs]
    for _ in pool:
        pass
    for run, how in zip(shared, runs):
        alone = samplers.sample(TinyNet(visible_too=True), sampler, steps=4, temperature=1.0, **how)
        assert torch.equal(run.result().x, alone.x)


# ---------------------------------------------------------------------------------------------- the caller's own model


@pytest.mark.parametrize("sampler", ["low_confidence", "entropy_bound", "random_order", "remdm", "theta_trapezoidal"])
def test_an_asking_run_is_what_sample_makes_of_the_same_answers(sampler):
    """Two rows in two blocks, with guidance; logits are given whole and packed in turn. theta_trapezoidal asks twice a step."""
    net = TinyNet(visible_too=True)
    how = {"prompt": [[1, 2], [2, 1]], "gen_length": 8, "block_length": 4, "steps": 6, "seed": 3, "cfg_scale": 0.5}
    wanted = samplers.sample(net, sampler, **how)
    run = samplers.AskingRun(sampler, vocab_size=net.vocab_size, mask_id=net.mask_id, **how)
    answers = 0
    while run.question is not None:
        rows = run.needed if answers % 2 else torch.ones_like(run.question, dtype=torch.bool)
        logits = net.predict(run.question, rows=rows)
        run.answer(logits if answers % 2 else logits.view(*run.question.shape, -1))
        answers += 1
    assert torch.equal(run.result().x, wanted.x)
    assert run.nfe == answers == wanted.nfe


@pytest.mark.parametrize("sampler", ["theta_rk2", "theta_trapezoidal", "low_confidence"])
def test_an_asking_run_may_be_answered_from_one_buffer(sampler):
    """An engine writes every answer into the same memory; a step that asks twice reads its first answer twice."""
    net, how = TinyNet(visible_too=True), {"gen_length": 6, "batch": 2, "seed": 3, "temperature": 1.0}
    run = samplers.AskingRun(sampler, vocab_size=net.vocab_size, mask_id=net.mask_id, **how)
    buffer = torch.empty(2, 6, net.vocab_size)
    while run.question is not None:
        rows = torch.ones_like(run.question, dtype=torch.bool)
        said = net.predict(run.question, rows=rows).view(*run.question.shape, -1)
        run.answer(buffer[: len(said)].copy_(said))
    assert torch.equal(run.result().x, samplers.sample(net, sampler, **how).x)


def test_an_asking_run_that_has_failed_asks_no_more():
    facts = {"vocab_size": 12, "mask_id": 11, "gen_length": 4}
    run = samplers.AskingRun("threshold", **facts)
    with pytest.raises(samplers.DenoiserError, match="NaN"):
        run.answer(torch.full((4, 12), torch.nan))
    assert run.question is None and run.needed is None, "a loop over its questions ends"
    with pytest.raises(samplers.DenoiserError, match="NaN"):
        run.answer(torch.zeros(4, 12))
    with pytest.raises(samplers.DenoiserError, match="logits on meta, and the run is on cpu"):
        samplers.AskingRun("threshold", **facts).answer(torch.zeros(4, 12, device="meta"))


def test_an_asking_run_can_be_copied_while_it_waits():
    run = samplers.AskingRun("threshold", vocab_size=12, mask_id=11, gen_length=4, threshold=0.01)
    other = copy.deepcopy(run)
    for one in (run, other):
        one.answer(torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(run.result().x, other.result().x)


def test_an_asking_run_says_what_it_cannot_use():
    facts = {"vocab_size": 12, "mask_id": 11, "gen_length": 4}
    run = samplers.AskingRun("threshold", **facts)
    with pytest.raises(
        samplers.DenoiserError, match=r"\(3, 12\).*\(A, length, V\) = \(1, 4, 12\), or \(N, V\) = \(4, 12\)"
    ):
        run.answer(torch.zeros(3, 12))
    with pytest.raises(samplers.DenoiserError, match="NaN"):
        run.answer(torch.full((4, 12), torch.nan))
    with pytest.raises(OptionError, match="cache does not go with AskingRun"):
        samplers.AskingRun("threshold", **facts, cache="prefix")
    done = samplers.AskingRun("threshold", **facts, threshold=0.01)
    done.answer(torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0)))
    assert done.question is None
    with pytest.raises(samplers.SamplersError, match="asks no more"):
        done.answer(torch.zeros(4, 12))
