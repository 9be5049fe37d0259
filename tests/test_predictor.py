"""Plan, feed, read: the predictor with a feed of one's own, and what the three parts promise each other."""

import dataclasses
import importlib
import inspect

import pytest
import torch

import samplers
from samplers import Canvas
from samplers.denoiser import Counter
from samplers.feeds import Answer, Query
from samplers.feeds.cached import CachedFeed, cache_scheme
from samplers.feeds.plain import PlainFeed
from samplers.feeds.sequence import SequenceFeed
from samplers.prediction import Predict
from samplers.predictor import Predictor, SamplingConfig, SequencePredictor
from samplers.random import Rng
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = {"gen_length": 10, "steps": 6, "block_length": 5}
PROMPTS = [[1, 2, 3], [4], []]


class Candidates:
    """A third feed: every row is asked twice, as a batch of candidate canvases would be, and the first answer is taken.

    It composes the plain feed's plan with a forward pass of its own; no other feed knows of it.
    """

    memory = None
    cache_bytes = 0

    def __init__(self, counter, batch):
        self.counter, self.plain = counter, PlainFeed(counter, batch, 0.0, (0.0, 1.0))
        self.counts, self.idle, self.plan = self.plain.counts, self.plain.idle, self.plain.plan
        self.nfe_rows = self.plain.nfe_rows

    def feed(self, state, query: Query) -> Answer:
        x = query.of_canvas(state.x)
        self.nfe_rows += 1 if query.rows is None else torch.zeros_like(self.nfe_rows).index_fill(0, query.rows, 1)
        value, index = self.counter.tokens(
            torch.cat([x, x]), None, torch.cat([query.mask, query.mask]), 2 * query.count
        )
        value = value if index is None else value[index]
        assert torch.equal(value[: query.count], value[query.count :])
        return Answer(value[: query.count])


@pytest.mark.parametrize("name", ["low_confidence", "threshold", "radd", "klass", "remdm"])
def test_a_third_feed_needs_nothing_of_the_others(name):
    net = TinyNet(visible_too=samplers.create(name).effective_facts.revises)
    sampler = samplers.create(name)
    counter = Counter(net)
    predict = Predictor(counter, Candidates(counter, 3), SamplingConfig(1.0), sampler=name)
    canvas = Canvas.of(net, PROMPTS, RUN["gen_length"]).layout(
        block_length=RUN["block_length"], steps=RUN["steps"], rng=Rng.of(7, 3)
    )
    state = sampler.init(canvas)
    while not predict.finished(state):
        state = sampler.step(predict, state)
    out = samplers.sample(net, name, prompt=PROMPTS, seed=7, temperature=1.0, **RUN)
    end = out.x != samplers.PAD
    assert torch.equal(state.x[end], out.x[end])
    assert counter.nfe == out.nfe and counter.row_evals == 2 * out.row_evals
    assert torch.equal(predict.nfe_rows, out.nfe_rows)


def test_a_query_says_where_its_answers_belong():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    query = Query(4, torch.tensor([1, 3]), mask, 3)
    assert query.row.tolist() == [1, 1, 3] and query.position.tolist() == [0, 2, 2]
    assert query.on_canvas(5).tolist() == [5, 7, 17]
    canvas = torch.arange(20).view(4, 5)
    assert canvas.flatten()[query.on_canvas(5)].tolist() == [canvas[r, p] for r, p in zip(query.row, query.position)]
    assert query.of_canvas(canvas).tolist() == [[5, 6, 7], [15, 16, 17]]
    whole = Query(2, None, mask, 3, whole=True)
    assert whole.on_canvas(3).tolist() == [0, 2, 5] and whole.of_canvas(canvas[:2, :3]) is not None


def test_a_plan_covers_every_asked_position_once():
    """Ragged rows, guidance inside an interval of noise: queries partition what is asked, whatever the groups."""
    net = TinyNet()
    counter = Counter(net)
    feed = PlainFeed(counter, 3, 2.0, (0.0, 0.7))
    canvas = Canvas.of(net, PROMPTS, 8).layout(rng=Rng.of(0, 3))
    state = samplers.create("low_confidence").init(canvas)
    half = state.commit(
        torch.arange(state.x.shape[1])[None] < torch.tensor([[11], [0], [3]]), torch.zeros_like(state.x)
    )
    for s in (state, half):
        queries = feed.plan(s, None, feed.counts(s, None).tolist(), None)
        hit = torch.zeros_like(s.x)
        for query in queries:
            hit[query.row, query.position] += 1
            assert query.count == int(query.mask.sum()) == len(query.row)
        assert torch.equal(hit.bool(), s.open) and int(hit.max()) == 1
    assert {q.guided for q in queries} == {False, True}, "rows inside the interval are guided, the others are not"


@pytest.mark.parametrize("cls", [Predictor, SequencePredictor, importlib.import_module("samplers.dry_run").DryRun])
def test_what_a_sampler_may_call_is_the_protocol(cls):
    for name in ("temperature", "__call__"):
        assert hasattr(cls, name)
    for name in ("__call__", "logits", "read"):
        wanted = inspect.signature(getattr(Predict, name)).parameters
        if cls is Predictor:
            assert list(inspect.signature(getattr(cls, name)).parameters) == list(wanted)


def test_layouts_have_no_field_that_is_filled_in_later():
    layout = Canvas.of(TinyNet(), PROMPTS, 4).layout(rng=Rng.of(0, 3))
    given = {f.name for f in dataclasses.fields(layout) if getattr(layout, f.name) is None}
    assert given <= {"block_length", "stop_text", "curve", "window"}, (
        "these are None if they were not given; nothing else is missing"
    )


def test_each_way_of_feeding_has_its_feed():
    net = TinyNet()
    run = samplers.stream(net, "radd", gen_length=3)
    assert type(run.predictor.feed) is PlainFeed and run.predict is run.predictor
    from samplers.models import Config, Transformer, TransformerDenoiser

    config = Config(vocab_size=12, width=16, layers=1, heads=2, attention="causal", max_length=16)
    model = TransformerDenoiser(Transformer(config, seed=0), mask_id=11, predicts_next=True)
    cached = samplers.stream(model, "radd", gen_length=3, cache="prefix")
    assert type(cached.predictor.feed) is CachedFeed and cache_scheme("prefix", model).name == "prefix"
    run = samplers.stream(model, "autoregressive", gen_length=3)
    assert type(run.predictor.feed) is SequenceFeed and type(run.predict) is SequencePredictor


class Asks(samplers.Sampler):
    """A sampler that asks in a wrong way; for the errors."""

    name, family = "asks", "masked"
    HOW: dict = {}

    def step(self, predict, state):
        return state.commit(state.open, predict(state, **self.HOW).token)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"want": "confidance"}, "want='confidance' is nothing that a prediction has: did you mean 'confidence'"),
        ({"want": ("entropy", "logits")}, "want='logits' is nothing"),
        ({"want": "given"}, r"probability of the mask id 11.* need a token in given="),
    ],
)
def test_wrong_questions_are_explained(how, says):
    with pytest.raises(samplers.SamplersError, match=says):
        samplers.sample(TinyNet(), type("Wrong", (Asks,), {"HOW": how})(), gen_length=3)


def test_a_sampler_that_revises_starts_with_drafts():
    class Revises(samplers.Sampler):
        name, family = "revises", "masked"
        facts = samplers.authoring.Facts(revises=True)

        def step(self, predict, state):
            return state.revise(predict(state).token, self.decide(state))

        def decide(self, state):
            return state.last_step

    out = samplers.sample(TinyNet(visible_too=True), Revises(), gen_length=4, steps=3)
    assert out.nfe == 3 and (out.x < 11).all()

    class Flag(Revises):
        def decide(self, state):
            return True

    with pytest.raises(samplers.SamplersError, match=r"decide is a bool tensor, \(B, L\) or \(B,\), not True"):
        samplers.sample(TinyNet(visible_too=True), Flag(), gen_length=4)


STEPS = {
    "no return": (lambda s: None, "returned nothing .is a return missing"),
    "a number": (lambda s: 3, "returned int; it must return the next state"),
    "three values": (lambda s: (s, {}, 3), "returned tuple"),
    "a number in info": (lambda s: (s, {"a": 3}), r"returned int as 'a'; \(B, ...\) tensors are needed, B = 2"),
    "a scalar in info": (lambda s: (s, {"a": torch.zeros(1)}), r"returned a tensor of shape \(1,\) as 'a'"),
    "no token": (
        lambda s: s.commit(s.open, torch.full_like(s.x, 99)),
        "wrote 99 at row 0, position 1; tokens are 0 to 11",
    ),
    "padding": (lambda s: s.commit(s.open, torch.full_like(s.x, -1)), "wrote -1 at row 0, position 1"),
    "floats": (lambda s: s.commit(s.open, torch.zeros(s.x.shape)), "made x of shape .2, 4. and torch.float32"),
}


@pytest.mark.parametrize("what", STEPS)
def test_what_a_step_may_return(what):
    result, says = STEPS[what]
    wrong = type("Wrong", (Asks,), {"step": lambda self, predict, state: result(state)})
    with pytest.raises(samplers.SamplersError, match=says):
        samplers.sample(TinyNet(), wrong(), prompt=[[1], [2]], gen_length=3, info=True)


@dataclasses.dataclass(frozen=True, eq=False)
class More(samplers.authoring.TokenState):
    """A state with a field."""

    mine: torch.Tensor


@pytest.mark.parametrize(
    ("init", "says"),
    [
        (lambda c: None, "init of sampler 'asks' returned NoneType"),
        (lambda c: c, "returned Layout; it must return a state"),
        (lambda c: More.begin(c), "lacks mine; its fields are mine"),
        (lambda c: More.begin(c, mine=c.x, other=1), "has no field other to be given"),
        (lambda c: More.begin(c, mine=c.x, step=c.x), "has no field step to be given"),
        (lambda c: More.begin(3, mine=c.x), "canvas is int; give what Sampler.init is called with"),
        (lambda c: samplers.authoring.GridState.begin(c), "needs the points of the grid"),
    ],
)
def test_what_init_may_return(init, says):
    with pytest.raises(samplers.SamplersError, match=says):
        samplers.sample(TinyNet(), type("Wrong", (Asks,), {"init": lambda self, canvas: init(canvas)})(), gen_length=3)


def test_a_model_may_write_into_what_it_is_given():
    table = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))

    def writes(ids):
        out = table[ids]
        ids.fill_(3)
        return out

    models = [samplers.TokenDenoiser.wrap(f, vocab_size=12, mask_id=11) for f in (writes, lambda ids: table[ids])]
    a, b = (samplers.sample(m, "threshold", prompt=[1, 2], gen_length=5) for m in models)
    assert torch.equal(a.x, b.x)
    models = [samplers.GaussianDenoiser.wrap(f, shape=(2,)) for f in (lambda x, t: x.mul_(0.5), lambda x, t: x * 0.5)]
    a, b = (samplers.sample(m, "dpmpp_2m", steps=5) for m in models)
    assert torch.equal(a.x, b.x)


def test_rows_of_a_wrong_kind():
    for rows, says in ((lambda s: s.x, "int64"), (lambda s: s.open[:, 1:], r"\(1, 2\)")):
        wrong = type("Wrong", (Asks,), {"step": lambda self, p, s, r=rows: s.commit(s.open, p(s, r(s)).token)})
        with pytest.raises(samplers.SamplersError, match=rf"rows is .*{says}.* bool is needed"):
            samplers.sample(TinyNet(), wrong(), gen_length=3)
