"""Where blocks are, how far a model is given the canvas, and when a stop phrase ends a row."""

import pytest
import torch

import samplers
from samplers import Canvas, OptionError, TokenDenoiser, registry
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.random import Rng
from samplers.testing.tiny import TinyNet, TinyUniformNet

pytestmark = pytest.mark.usefixtures("one_thread")
V = MASK = 9
PROMPTS = [[1, 2, 3, 4, 5], [6], [], [7, 8, 1, 2], [3, 4, 5, 6, 7, 8, 1, 2, 3]]


class Sums(TokenDenoiser):
    """The logits at p are sums of whole numbers over the (distance, token) that p sees: exact however many are given.

    Attributes:
        given: the (rows, positions) of each call.
    """

    vocab_size, mask_id, name = V, MASK, "sums"

    def __init__(self, attention="block_causal", block=4, seed=0):
        self.attention, self.attention_block = attention, block if attention == "block_causal" else 1
        self.table = torch.randint(-999, 1000, (81, V + 1, V), generator=torch.Generator().manual_seed(seed)).double()
        self.given = []

    def predict(self, x, t=None, *, rows=None, cache=None):
        self.given.append(tuple(x.shape))
        p = torch.arange(x.shape[1])
        block = p // self.attention_block
        sees = (block[:, None] >= block) | torch.tensor(self.attention == "full")
        each = self.table[p - p[:, None] + 40, x[:, None, :]]  # (B, L, L, V): of q, as seen from p
        out = ((each * sees[..., None]).sum(2) / 500).float()
        return out if rows is None else out[rows]


# ---------------------------------------------------------------------------------------------- where blocks are


def test_aligned_blocks_are_counted_from_position_0():
    """Ragged prompts and infilling: what is open lies in one block of the row, the first with anything undecided."""
    net = TinyNet()
    fill = torch.tensor(
        [[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0], [1] * 16]
    ).bool()  # of one row, block 1 is given
    for prompt, more in ((PROMPTS, {"gen_length": 11}), (Canvas.infill(net, torch.zeros(2, 16).long(), fill), {})):
        states = list(
            samplers.stream(net, "threshold", prompt=prompt, block_length=4, align=True, threshold=0.3, **more)
        )
        for state in states:
            for row, is_open in zip(state.masked.tolist(), state.open.tolist()):
                left = [p // 4 for p, masked in enumerate(row) if masked]
                assert [p // 4 for p, o in enumerate(is_open) if o] == [b for b in left if b == left[0]]
        for i in range(len(states[-1].x)):
            first, lengths = states[0].canvas, states[0].canvas.lengths
            alone = prompt[i : i + 1] if isinstance(prompt, list) else Canvas.infill(net, prompt.x[i], fill[i])
            out = samplers.sample(
                net, "threshold", prompt=alone, block_length=4, align=True, threshold=0.3, first_row=i, **more
            )
            assert out.x[0].tolist() == states[-1].x[i, : lengths[i]].tolist()
            sizes = [s for s in first.block_size[i].tolist() if s]
            assert (
                sum(sizes) == int(first.fill[i].sum()) and first.block_steps[i].tolist() == first.block_size[i].tolist()
            )


def test_steps_of_aligned_blocks():
    """A first block that is mostly prompt has the smaller share; blocks of which all is given have none."""
    layout = Canvas.of(TinyNet(), [[1, 2, 3], [1, 2, 3, 4]], 9).layout(
        block_length=4, steps=5, align=True, rng=Rng.of(0, 2)
    )
    assert layout.block_size.tolist() == [[1, 4, 4], [4, 4, 1]]
    assert layout.block_steps.tolist() == [[1, 2, 2], [2, 2, 1]]
    assert layout.block_end.tolist() == [[4, 8, 12], [8, 12, 13]]
    with pytest.raises(OptionError, match="steps=2 is fewer than the 3 blocks of row 0"):
        samplers.sample(TinyNet(), "radd", prompt=[1, 2, 3], gen_length=9, block_length=4, align=True, steps=2)


@pytest.mark.parametrize("name", registry.names("*", "masked") + registry.names("*", "uniform"))
def test_at_whole_blocks_of_prompt_it_makes_no_difference(name):
    cls = registry.load(name)
    if cls.facts.sequential:
        pytest.skip("its model is causal and has no blocks")
    net = TinyUniformNet() if cls.family == "uniform" else TinyNet(visible_too=True)
    run = {"prompt": [list(range(8)), [3] * 4], "gen_length": 10, "block_length": 4, "temperature": 1.0, "steps": 8}
    plain, aligned = (samplers.sample(net, name, align=align, **run) for align in (None, True))
    assert plain.x.tolist() == aligned.x.tolist() and plain.nfe == aligned.nfe
    run["prompt"] = [1] * 6
    aligned = samplers.sample(net, name, align=True, **run)
    assert aligned.x[0, :6].tolist() == [1] * 6 and 11 not in aligned.x[0].tolist()


def test_the_default_is_the_models():
    model = Sums()
    run = {"prompt": PROMPTS, "gen_length": 10}
    out = samplers.sample(model, "low_confidence", **run)
    assert (out.settings["align"], out.settings["block_length"]) == (True, 4)
    assert torch.equal(out.x, samplers.sample(model, "low_confidence", block_length=4, align=True, **run).x)
    assert not torch.equal(out.x, samplers.sample(model, "low_confidence", align=False, **run).x)
    for full in (Sums("full"), Sums("causal")):
        out = samplers.sample(full, "low_confidence", **run)
        assert (out.settings["align"], out.settings["block_length"]) == (False, None)


# ---------------------------------------------------------------------------------------------- the window


@pytest.mark.parametrize("block", [3, 4])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("low_confidence", {"cfg_scale": 0.5}),
        ("threshold", {"cfg_scale": 1.0, "cfg_interval": (0.3, 0.8), "threshold": 0.5}),
        ("llada2", {"threshold": 0.4, "edit_threshold": 0.3, "stop": [[3], [1, 2]]}),
        ("first_hitting", {"method": "predictor_corrector", "steps": 6}),
        ("remdm", {"steps": 8, "temperature": 1.0}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_block_causal_model_answers_the_same_for_less(name, more, align, block):
    """Ragged rows, blocks of ours that are and are not the model's own; a pass is as wide as the blocks that it is for."""
    run = {"prompt": PROMPTS, "gen_length": 13, "block_length": block, "align": align, "temperature": 0.0, **more}
    whole, window = Sums(), Sums()
    a = samplers.sample(whole, name, **run)
    b = samplers.sample(window, name, window="block", **run)
    assert torch.equal(a.x, b.x) and a.nfe_rows.tolist() == b.nfe_rows.tolist()
    assert b.token_evals == sum(n * width for n, width in window.given) < 0.85 * a.token_evals
    assert max(width for _, width in window.given) <= a.x.shape[1]


def test_full_attention_with_a_window_is_one_block_after_another():
    """Each block as a run of its own, after what the others made; so later masks are not seen."""
    model, differs = Sums("full"), 0
    for prompt, align in ((PROMPTS[0], True), (PROMPTS[0], False), (PROMPTS[3], True)):
        run = {"block_length": 3, "align": align, "steps": None}
        out = samplers.sample(model, "low_confidence", prompt=prompt, gen_length=8, window="block", **run)
        x, end = list(prompt), len(prompt) + 8
        while len(x) < end:
            n = 3 - len(x) % 3 if align else 3
            n = min(n, end - len(x))
            x = samplers.sample(model, "low_confidence", prompt=x, gen_length=n).x[0].tolist()
        assert out.x[0].tolist() == x
        differs += x != samplers.sample(model, "low_confidence", prompt=prompt, gen_length=8, **run).x[0].tolist()
    assert differs, "what comes later was never seen"


def test_a_sampler_that_asks_beyond_its_block_is_given_that():
    class Curious(samplers.authoring.Sampler):
        name, family = "curious", "masked"

        def step(self, predict, state):
            seen = predict(state, state.masked, want="confidence")
            assert bool((seen.confidence[state.masked] > 0).all())
            return state.commit_best(seen.confidence, seen.token, k=1)

    model = Sums("full")
    out = samplers.sample(model, Curious(), prompt=[1], gen_length=8, block_length=3, window="block")
    assert model.given == [(1, 9)] * 8 and out.nfe == 8


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        ("align=True counts blocks from position 0, .* give block_length=", {"align": True}),
        ("align must be True or False", {"align": 2, "block_length": 3}),
        ('window must be "block", .*or None', {"window": 4}),
        ("stop_rule must be one of 'decided', 'block', 'llada2'", {"stop_rule": "eos"}),
        ("window='block' does not go with cache='dual'.*use one of the two", {"window": "block", "cache": "dual"}),
    ],
)
def test_bad_blocks(says, wrong):
    config = Config(vocab_size=12, width=32, layers=1, heads=2, attention="full")
    net = TransformerDenoiser(Transformer(config, seed=0), mask_id=11)
    with pytest.raises(OptionError, match=says):
        samplers.sample(net, "radd", gen_length=6, **wrong)


def test_what_does_not_go_with_a_window():
    def fn(ids, **previous):
        return torch.zeros(*ids.shape, V)

    fixed = TokenDenoiser.wrap(fn, vocab_size=V, mask_id=MASK, length=6)
    with pytest.raises(OptionError, match="takes exactly 6 positions; use window=None"):
        samplers.sample(fixed, "radd", window="block")
    conditioned = TokenDenoiser.wrap(fn, vocab_size=V, mask_id=MASK, self_conditioned=True)
    with pytest.raises(OptionError, match=r"is self_conditioned.*use window=None"):
        samplers.sample(conditioned, "radd", gen_length=6, window="block")
    with pytest.raises(OptionError, match="has no mask; use 'decided' or 'block'"):
        samplers.sample(TinyUniformNet(), "block_refinement", gen_length=4, stop_rule="llada2")
    config = Config(vocab_size=12, width=32, layers=1, heads=2, attention="causal")
    causal = TransformerDenoiser(Transformer(config, seed=0), mask_id=11, predicts_next=True)
    for wrong in ({"window": "block"}, {"stop_rule": "block"}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))} does not go with sampler 'autoregressive'"):
            samplers.sample(causal, "autoregressive", gen_length=4, **wrong)
    with pytest.raises(OptionError, match=r"steps=8 and steps_per_block=2: .* give one of the two"):
        samplers.sample(TinyNet(), "threshold", gen_length=8, steps=8, steps_per_block=2)
    with pytest.raises(OptionError, match="steps_per_block is the even plan of a whole block"):
        samplers.create("low_confidence", plan="linear", steps_per_block=4)
    for wrong in ({"attention": "block_causal"}, {"attention_block": 3}):
        with pytest.raises(OptionError, match="attention='block_causal' and attention_block go together"):
            TokenDenoiser.wrap(fn, vocab_size=V, mask_id=MASK, **wrong)


# ---------------------------------------------------------------------------------------------- when a row ends


def test_stop_rules_by_hand():
    """The model writes 0 1 2 3 4 5 6 7, surest of 3, then of 5, 1, 7, 2, 0, 6, 4; the phrase 1 2 stands after five steps."""
    order = [3, 5, 1, 7, 2, 0, 6, 4]

    def fn(ids):
        sure = torch.tensor([8.0 - order.index(i) for i in range(8)])
        return (torch.eye(8, V) * sure[:, None]).expand(len(ids), -1, -1)[:, : ids.shape[1]]

    model = TokenDenoiser.wrap(fn, vocab_size=V, mask_id=MASK)

    def nfe_and_row(stop, rule, **more):
        run = samplers.stream(model, "low_confidence", gen_length=8, stop=stop, stop_rule=rule, **more)
        for _ in run:
            pass
        return run.nfe, run.result().rows()[0].tolist(), run.state.x[0].tolist()

    _ = MASK
    assert nfe_and_row([[1, 2]], "decided") == (6, [0, 1, 2], [0, 1, 2, 3, _, 5, _, 7])
    assert nfe_and_row([[1, 2]], "block") == (8, [0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7])
    assert nfe_and_row([[1, 2]], "block", block_length=4) == (4, [0, 1, 2], [0, 1, 2, 3, _, _, _, _])
    # 0 is written after 1 2, so no step that writes into the phrase leaves no mask before its end: all is filled, then cut.
    assert nfe_and_row([[1, 2]], "llada2") == (8, [0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7])
    assert nfe_and_row([[0, 1]], "llada2") == (6, [0, 1], [0, 1, 2, 3, _, 5, _, 7])
    # 6 is written when 4 is still a mask; 4 ends it.
    assert nfe_and_row([6, 4], "llada2") == (8, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7])
    assert nfe_and_row([7], "llada2") == (8, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7])
