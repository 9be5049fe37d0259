"""predict.seen and predict.attention: what a line sees is what its answer is given, on exact problems to the last bit."""

import dataclasses
import itertools

import pytest
import torch

import samplers
from samplers import OptionError, SamplersError, TokenDenoiser, problems
from samplers.masked.wino import Wino
from samplers.models import Transformer, TransformerDenoiser, from_transformers
from samplers.models.transformer import Config
from samplers.testing.tiny import TinyJoint, TinyNet
from samplers.testing.watching import watched

pytestmark = pytest.mark.usefixtures("one_thread")

DRAFT = torch.tensor([[0, 3, 3, 1], [2, 3, 3, 3], [1, 0, 3, 2]])  # of TinyJoint(4), whose mask is 3


def random_lines(x, own, mask_id, seed=0):
    """Random positions and sight for sequences of `own` columns of canvas and more beside them: x, positions, visible."""
    g = torch.Generator().manual_seed(seed)
    batch, n = x.shape
    beside = torch.randint(0, own, (batch, n - own), generator=g)
    positions = torch.cat([torch.arange(own).expand(batch, own), beside], 1)
    x = x.clone()
    x[:, own:] = torch.where(torch.rand(batch, n - own, generator=g) < 0.5, mask_id, x.gather(1, beside))
    return x, positions, torch.rand(batch, n, n, generator=g) < 0.5


def enumerated(law, strings, told, position, vocab):
    """p(x_0 at `position` | told), told a dictionary of tokens by position: sums over strings in plain Python."""
    p = [0.0] * vocab
    for string, weight in zip(strings, law):
        if all(string[i] == token for i, token in told.items()):
            p[string[position]] += weight
    return torch.tensor(p, dtype=torch.float64) / sum(p)


# ---------------------------------------------------------------------------------------------- what denoisers answer


def test_exact_lines_are_enumerated_conditionals():
    """Also lines beside the canvas, and those that see a token at their own position, or nothing."""
    joint, sudoku = TinyJoint(4), problems.create("sudoku4").denoiser("masked")
    grids = sudoku.support
    cases = [
        (joint, joint.law.tolist(), joint.strings.tolist(), DRAFT.repeat(1, 2)),
        (sudoku, [1.0] * 288, grids.tolist(), torch.cat([grids[[5, 100]]] * 2, 1)),
    ]
    for model, law, strings, x in cases:
        length, mask = model.length, model.mask_id
        x, positions, visible = random_lines(x, length, mask, seed=length)
        visible[0, 1] = False
        logits = model.predict(x, visible=visible, positions=positions)
        asked = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.5
        assert torch.equal(model.predict(x, rows=asked, visible=visible, positions=positions), logits[asked])
        for b, i in itertools.product(range(len(x)), range(x.shape[1])):
            told = {int(positions[b, j]): int(x[b, j]) for j in visible[b, i].nonzero()[:, 0] if x[b, j] != mask}
            if not any(all(s[p] == t for p, t in told.items()) for s in strings):
                continue
            expected = enumerated(law, strings, told, int(positions[b, i]), mask)
            assert torch.allclose(logits[b, i, :mask].double().softmax(0), expected, atol=1e-6), (b, i, told)


@pytest.mark.parametrize("name", ["text", "digits"])
def test_other_problems_answer_each_line_as_a_canvas(name):
    model = problems.create(name).denoiser("masked")
    x = problems.create(name).sample_truth(2, 1)
    length, g = x.shape[1], torch.Generator().manual_seed(0)
    visible = torch.rand(2, length, length, generator=g) < 0.3
    asked = torch.rand(2, length, generator=g) < 0.1
    positions = torch.arange(length).expand(2, length)
    out = model.predict(x, rows=asked, visible=visible, positions=positions)
    for line, (b, i) in zip(out, asked.nonzero().tolist()):
        canvas = torch.where(visible[b, i], x[b], model.mask_id)[None]
        assert torch.equal(line, model.predict(canvas)[0, i])


def test_our_transformer_and_the_class_of_transformers_agree():
    """Tokens in another order, of which several stand at one position: the answers of a plain float64 softmax, twice."""
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 20,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(**shape, num_key_value_heads=2, attn_implementation="eager", pad_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        live = transformers.LlamaForCausalLM(config)
    ours = Transformer(Config(20, 32, 2, 4, kv_heads=2, mlp_width=48, attention="full", norm_eps=config.rms_norm_eps))
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    names |= {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
    state = {"embed.weight": live.model.embed_tokens.weight, "unembed.weight": live.lm_head.weight}
    state["norm.weight"] = live.model.norm.weight
    for i, layer in enumerate(live.model.layers):
        state |= {f"blocks.{i}.{a}.weight": layer.get_submodule(b).weight for a, b in names.items()}
    ours.load_state_dict(state)
    a = TransformerDenoiser(ours, mask_id=19)
    b = from_transformers(live, mask_id=19, attention="full")
    assert a.masks and a.attends and b.masks and b.attends and b.lacks == {}
    x, positions, visible = random_lines(torch.randint(0, 19, (2, 14)), 9, 19)
    visible[0, 3] = False  # such a line sees itself
    x, order = x.clone(), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    first, second = (m.predict(x, visible=visible, positions=positions) for m in (a, b))
    assert (first - second).abs().max() < 1e-5 and first.std() > 0.01
    turned = a.predict(x[:, order], visible=visible[:, order][:, :, order], positions=positions[:, order])
    assert (turned - first[:, order]).abs().max() < 1e-5
    rows = torch.rand(2, 14) < 0.5
    lengths = torch.tensor([14, 9])
    rows[1, 9:] = False
    (h, maps), (g, others) = (m.attended(x, rows=rows, lengths=lengths) for m in (a, b))
    assert (h - g).abs().max() < 1e-4 and (maps - others)[0].abs().max() < 1e-6
    assert (maps - others)[1, :9].abs().max() < 1e-6 and torch.allclose(maps[:, :9].sum(2), torch.ones(2, 9))
    assert (maps[1, :, 9:] == 0).all() and (a.hidden(x, rows=rows, lengths=lengths) - h).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral", "Bert", "EuroBert"])
def test_classes_that_take_masks(kind):
    """A line that sees three tokens says what it says in a row of these three, at the same positions."""
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 20,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"sliding_window": None} if kind == "Mistral" else {}
    shape |= {} if kind == "Bert" else {"num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**shape, max_position_embeddings=32, pad_token_id=0)
    ending = "MaskedLM" if "Bert" in kind else "CausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        denoiser = from_transformers(getattr(transformers, f"{kind}For{ending}")(config), mask_id=19, attention="full")
    assert denoiser.masks, denoiser.lacks
    assert "eager" in denoiser.lacks["attends"]  # it was loaded as usual
    x, positions = torch.randint(1, 19, (1, 7), generator=torch.Generator().manual_seed(0)), torch.arange(7)[None]
    few = torch.tensor([1, 4, 5])
    visible = torch.eye(7, dtype=torch.bool)[None].clone()
    visible[0, few[:, None], few] = True
    all_seen = torch.ones(1, 3, 3, dtype=torch.bool)
    wide = denoiser.predict(x, visible=visible, positions=positions)[:, few]
    alone = denoiser.predict(x[:, few], visible=all_seen, positions=positions[:, few])
    assert (wide - alone).abs().max() < 1e-5
    assert (wide - denoiser.predict(x)[:, few]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------- the call


class AsACall(samplers.Sampler):
    """Low confidence, asked by `predict.seen` of the canvas alone, under the model's own sight."""

    name, family = "as_a_call", "masked"
    facts = samplers.sampler.Facts(needs=("masks",))

    def step(self, predict, state):
        place = torch.arange(state.x.shape[1]).expand_as(state.x)
        visible = predict.sight(state).expand(len(state.x), -1, -1)
        said = predict.seen(state, state.x, place, visible, state.open, want="confidence")
        return state.commit_best(said.confidence, said.token, k=samplers.masked.plans.even_count(state))


SETTINGS = [
    {},
    {"cfg_scale": 1.5, "prompt": [[1, 2, 3], [4, 5, 6]]},
    {"cfg_scale": 0.7, "cfg_interval": (0.3, 0.8), "prompt": [[1, 2, 3], [4, 5, 6]]},
    {"forbid": [2, 3], "demote": 1, "temperature": [0.0, 0.5], "top_k": 4},
    {"block_length": 3, "constrain": lambda state: samplers.Constraint(forbid=torch.arange(12) == 4)},
    {"prompt": [[1, 2], [3, 4, 5, 6]], "ragged": "groups"},
]


@pytest.mark.parametrize("more", SETTINGS, ids=lambda more: "-".join(more) or "plain")
def test_with_the_usual_sight_it_is_a_call(more):
    run = {"gen_length": 9, "batch": 2, "temperature": 1.0, "seed": 3, "steps": 4, **more}
    run |= {"batch": 1} if "prompt" in more else {}
    for model in (TinyNet(), TinyNet(time_conditioned=True)):
        seen, usual = (samplers.sample(model, s, **run) for s in (AsACall(), "low_confidence"))
        assert torch.equal(seen.x, usual.x)
        assert (seen.nfe_rows.tolist(), seen.head_rows) == (usual.nfe_rows.tolist(), usual.head_rows)
        # Rows of all lengths share a forward pass here.
        assert seen.nfe <= usual.nfe and (seen.row_evals == usual.row_evals)


def test_sight_is_that_of_the_model():
    """A block-causal transformer, and one row of a window: later blocks are seen in neither."""
    model = TransformerDenoiser(Transformer(Config(12, 16, 2, 2, attention="block_causal", block_length=4)), mask_id=11)
    full = TransformerDenoiser(Transformer(Config(12, 16, 2, 2, attention="full")), mask_id=11)
    run = {"prompt": [[1, 2], [3, 4, 5, 6, 7]], "gen_length": 9, "temperature": 0.0}
    for denoiser, more in ((model, {}), (full, {"window": "block", "block_length": 4}), (full, {})):
        assert torch.equal(*(samplers.sample(denoiser, s, **run, **more).x for s in (AsACall(), "low_confidence")))


def test_lines_beside_the_canvas_draw_by_themselves():
    """Two lines at one position that see the same: tokens of one distribution, with independent random numbers."""
    batch, both = 4000, []

    class Twice(AsACall):
        name = "twice"

        def step(self, predict, state):
            x, place = state.x.repeat(1, 2), torch.arange(state.x.shape[1]).repeat(len(state.x), 2)
            visible = torch.ones(len(x), x.shape[1], x.shape[1], dtype=torch.bool)
            said = predict.seen(state, x, place, visible, state.open.repeat(1, 2))
            both.append(said.token)
            return state.commit(state.open, said.token[:, : state.x.shape[1]])

    joint = TinyJoint(2)
    out = samplers.sample(joint, Twice(), batch=batch, seed=1)
    assert out.nfe == 1 and out.token_evals == batch * 4 and out.head_rows == batch * 4
    own, beside = both[0].split(2, 1)
    plain = samplers.sample(joint, "radd", batch=batch, seed=1, steps=1)
    assert torch.equal(out.x, plain.x), "lines of the canvas draw what a call draws"
    law = joint.law.view(3, 3).sum(1)
    counts = torch.bincount(own[:, 0] * 3 + beside[:, 0], minlength=9).double()
    expected = batch * torch.outer(law, law).flatten()
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 8 degrees of freedom: p > 0.0005


def test_row_of_a_batch_is_the_row_alone_beside_longer_rows():
    net = TinyNet(visible_too=True)
    run = {"gen_length": 10, "block_length": 5, "temperature": 1.0, "seed": 2, "tau1": 0.2, "tau2": 0.8}
    prompts = [[1], [2, 3, 4, 5, 6], []]
    together = samplers.sample(net, "wino", prompt=prompts, **run)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(net, "wino", prompt=[prompt], first_row=i, **run)
        assert torch.equal(together.x[i, : len(prompt) + 10], alone.x[0])
        assert int(together.nfe_rows[i]) == alone.nfe


# ---------------------------------------------------------------------------------------------- wino's shadow


def keeping(said):
    """A step that notes every call of predict.seen: the canvas, the positions, what was asked, and `given`."""

    class Kept:
        def __init__(self, predict):
            self.predict = predict

        def __getattr__(self, name):
            return getattr(self.predict, name)

        def seen(self, state, x, positions, visible, asked, **how):
            out = self.predict.seen(state, x, positions, visible, asked, **how)
            said.append((state.x, positions, asked, out.given))
            return out

    return lambda run, predict, state: run(Kept(predict), state)


def test_the_shadow_is_the_exact_leave_one_out_probability():
    """On sudoku4 and on a joint of 81 strings: p(x_i | all other filled tokens), counted by enumeration."""
    found = 0
    joint = TinyJoint(4, seed=2)
    sudoku = problems.create("sudoku4").denoiser("masked")
    for model, law, strings in (
        (joint, joint.law.tolist(), joint.strings.tolist()),
        (sudoku, [1.0] * 288, sudoku.support.tolist()),
    ):
        said = []
        samplers.sample(model, watched(Wino(tau1=0.2), step=keeping(said)), batch=3, temperature=1.0, seed=4)
        length = model.length
        for x, positions, asked, given in said:
            for b, k in asked[:, length:].nonzero().tolist():
                i = int(positions[b, length + k])
                told = {j: int(x[b, j]) for j in range(length) if j != i and x[b, j] != model.mask_id}
                if not any(all(s[p] == t for p, t in told.items()) for s in strings):
                    continue  # no grid is left: what the problem then says is its own affair
                p = enumerated(law, strings, told, i, model.mask_id)[x[b, i]]
                assert abs(float(given[b, length + k]) - float(p)) < 1e-5
                found += 1
    assert found > 60


def test_revoking_mends_what_a_low_threshold_breaks():
    """sudoku4, each grid 16 masks: invalid grids with tau1 = 0.25, with revoking (tau2 = 0.9) and without (tau2 = 0)."""
    problem = problems.create("sudoku4")
    run = {"batch": 200, "temperature": 1.0, "seed": 1, "tau1": 0.25}
    without, revoking = (samplers.sample(problem.denoiser("masked"), "wino", **run, tau2=tau2) for tau2 in (0.0, 0.9))
    bad = [problem.score(out)["invalid"].value for out in (without, revoking)]
    assert bad[0] > 0.5 and bad[1] < bad[0] / 2, bad
    assert without.nfe < revoking.nfe <= 16


# ---------------------------------------------------------------------------------------------- shared passes, and errors


def test_asking_runs_and_pools_say_who_sees_what():
    net, how = (
        TinyNet(visible_too=True),
        {"prompt": [[1, 2], [3, 4, 5]], "gen_length": 8, "seed": 3, "temperature": 1.0},
    )
    alone = samplers.sample(net, "wino", **how, tau1=0.3)
    run = samplers.AskingRun("wino", vocab_size=net.vocab_size, mask_id=net.mask_id, **how, tau1=0.3)
    while run.question is not None:
        assert run.visible.shape == (*run.question.shape, run.question.shape[1]) and run.lengths is None
        run.answer(net.predict(run.question, rows=run.needed, visible=run.visible, positions=run.positions))
    assert torch.equal(run.result().x, alone.x) and run.visible is None
    pool, others = samplers.Pool(net), [{"seed": 3}, {"seed": 4}, {"seed": 5, "gen_length": 6}]
    pooled = [pool.add("wino", **{**how, **more}, tau1=0.3) for more in others]
    plain = pool.add("threshold", **how)
    for _ in pool:
        pass
    for made, more in zip(pooled, others):
        assert torch.equal(made.result().x, samplers.sample(net, "wino", **{**how, **more}, tau1=0.3).x)
    assert torch.equal(plain.result().x, samplers.sample(net, "threshold", **how).x)
    assert pool.nfe < sum(made.result().nfe for made in [*pooled, plain])
    for call in (samplers.Pool(net).add, lambda *a, **k: samplers.AskingRun(*a, vocab_size=12, mask_id=11, **k)):
        with pytest.raises(
            OptionError, match=r"sampler 'dawn' does not go with (Pool|AskingRun), whose answers have no attention"
        ):
            call("dawn", gen_length=4)


def test_what_cannot_be_is_said_before_the_first_pass():
    calls = []
    plain = TokenDenoiser.wrap(lambda ids: calls.append(ids), vocab_size=5, mask_id=4, name="mine")
    with pytest.raises(
        OptionError, match=r"sampler 'wino' says what each line .* denoiser 'mine' takes no such masks .*exact prob"
    ):
        samplers.sample(plain, "wino", gen_length=4)
    with pytest.raises(
        OptionError, match=r"'dawn' reads the model's attention .*'sudoku4/masked' does not give it .*no networks"
    ):
        samplers.sample(problems.create("sudoku4").denoiser("masked"), "dawn")
    with pytest.raises(OptionError, match="cache= does not go with sampler 'wino'"):
        samplers.sample(TinyNet(), "wino", gen_length=4, cache="prefix")
    with pytest.raises(
        OptionError, match=r"guide= does not go with sampler 'wino', which says what .*; cfg_scale= does"
    ):
        samplers.sample(TinyNet(), "wino", prompt=[1], gen_length=4, guide=samplers.guidance.Adaptive(1.0))
    shifted = TransformerDenoiser(Transformer(Config(12, 16, 1, 2, attention="full")), mask_id=11, shift=True)
    with pytest.raises(OptionError, match="takes no such masks"):
        samplers.sample(shifted, "wino", gen_length=4)
    with pytest.raises(OptionError, match=r"Facts\(needs=\('mask',\)\): mask is nothing that can be needed"):
        samplers.sampler.Facts(needs=("mask",))
    assert calls == []


def test_a_wrong_question_is_named():
    def asking(**wrong):
        class Asks(AsACall):
            name = "asks"

            def step(self, predict, state):
                n = state.x.shape[1]
                right = {"x": state.x, "positions": torch.arange(n).expand_as(state.x), "asked": state.open}
                right["visible"] = torch.ones(len(state.x), n, n, dtype=torch.bool)
                return state.commit(state.open, predict.seen(state, **right | wrong).token)

        return Asks()

    for wrong, says in (
        ({"visible": torch.ones(1, 3, 4, dtype=torch.bool)}, r"visible is \(1, 3, 4\) torch.bool"),
        ({"positions": torch.zeros(1, 3)}, r"positions is \(1, 3\) torch.float32"),
        ({"positions": torch.tensor([[0, 1, 3]])}, "positions go from 0 to 3; those of the canvas are 0 to 2"),
        ({"given": torch.full((1, 3), 11), "want": "given"}, "the probability of the mask id"),
    ):
        with pytest.raises(SamplersError, match=says):
            samplers.sample(TinyNet(), asking(**wrong), gen_length=3)

    @dataclasses.dataclass(frozen=True)
    class Unsaid(AsACall):
        name, facts = "unsaid", samplers.sampler.Facts()

    wrapped = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 12), vocab_size=12, mask_id=11)
    with pytest.raises(
        SamplersError, match=r"sampler 'unsaid' calls predict.seen.*declare Facts\(needs=\('masks',\)\)"
    ):
        samplers.sample(wrapped, Unsaid(), gen_length=3)


def test_a_callable_is_told_who_sees_whom():
    """Of both kinds at once: `mask` and `positions` in a usual call, `visible` and `positions` in a call of seen."""
    net, told = TinyNet(visible_too=True), []

    def fn(ids, mask=None, positions=None, visible=None):
        told.append(visible is not None)
        if visible is None:
            return net.predict(ids).view(*ids.shape, -1)
        assert visible.any(2).all() and (mask is None or mask.all())
        return net.predict(ids, visible=visible, positions=positions).view(*ids.shape, -1)

    for takes in (False, True):
        model = TokenDenoiser.wrap(fn, vocab_size=12, mask_id=11, masks=True, takes_lengths=takes)
        run = {"prompt": [[1, 2, 3], [4]], "gen_length": 6, "temperature": 1.0, "tau1": 0.3}
        assert torch.equal(samplers.sample(model, "wino", **run).x, samplers.sample(net, "wino", **run).x)
    assert all(told)


def test_attention_of_shorter_rows_ends_with_them():
    """In a batch of several lengths, padded or not, each row's attention is what it is alone, and 0 elsewhere."""
    found = []

    class Looks(AsACall):
        name, facts = "looks", samplers.sampler.Facts(needs=("attends",))

        def step(self, predict, state):
            said, maps = predict.attention(state)
            found.append(maps)
            return state.commit(state.open, said.token)

    padded = TransformerDenoiser(Transformer(Config(12, 16, 2, 2, attention="full")), mask_id=11)
    for model in (padded, TinyNet()):
        together = samplers.sample(model, Looks(), prompt=[[1, 2, 3], [4]], gen_length=3)
        for i, prompt in enumerate([[1, 2, 3], [4]]):
            alone = samplers.sample(model, Looks(), prompt=prompt, gen_length=3, first_row=i)
            n = len(prompt) + 3
            whole, single = found[0][i].clone(), found[-1][0]
            assert torch.equal(alone.x[0], together.x[i, :n]) and single.shape == (n, n)
            assert (whole[:n, :n] - single).abs().max() < 1e-6 and single.std() > 0.01
            whole[:n, :n] = 0
            assert (whole == 0).all()
        found.clear()
