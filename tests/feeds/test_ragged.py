"""Rows of different lengths in one forward pass: filled up on the right, and each still what it is alone."""

import functools

import pytest
import torch

import samplers
from samplers import Canvas, DenoiserError, OptionError, TokenDenoiser, nll, registry
from samplers.models import zoo
from samplers.models.denoiser import TransformerDenoiser
from samplers.models.transformer import Config, Transformer
from samplers.syncs import pretend_device

pytestmark = pytest.mark.usefixtures("one_thread")
V, REACH = 11, 3
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [], [8, 9, 10], [5], [0, 4, 0]]
KINDS = [("full", None), ("causal", None), ("block_causal", 3)]


# ---------------------------------------------------------------------------------------------- a model that is exact


@functools.cache
def table(seed):
    return torch.randn(2 * REACH + 1, V + 2, V, generator=torch.Generator().manual_seed(seed))


def neighbours(ids, mask):
    """(B, L, V): a table's sum over a window. What lies outside a row is a token of its own, whose entry counts as well.

    Sums are element by element, so a row has the same bits whatever stands beside and after it.
    """
    outside = torch.where(mask, ids, V + 1)
    padded = torch.nn.functional.pad(outside, (REACH, REACH), value=V + 1)
    return sum(table(0)[j][padded[:, j : j + ids.shape[1]]] for j in range(2 * REACH + 1))


def window(mask_id=V, **more):
    """Of `neighbours`, a denoiser that takes lengths; it keeps the shape of each forward pass in `fed`."""
    fed = []

    def fn(ids, *t, mask, positions, previous=None):
        assert torch.equal(positions, torch.arange(ids.shape[1]).expand_as(ids))
        assert mask[:, 0].all() and (mask.int().diff(dim=1) <= 0).all() and mask[:, -1].any(), (
            "the longest row is whole"
        )
        fed.append(tuple(ids.shape))
        out = neighbours(ids, mask)
        if t:
            out = out * (1 + t[0].float()[:, None, None])
        return out if previous is None else out + previous / 2

    made = TokenDenoiser.wrap(fn, vocab_size=V, mask_id=mask_id, takes_lengths=True, **more)
    made.fed = fed
    return made


def both(denoiser, sampler, **run):
    """The run in both ways, equal to the bit."""
    made = [samplers.sample(denoiser, sampler, ragged=ragged, **run) for ragged in ("groups", "pad")]
    groups, pad = made
    assert torch.equal(groups.x, pad.x) and torch.equal(groups.nfe_rows, pad.nfe_rows)
    assert groups.row_evals == pad.row_evals and groups.head_rows == pad.head_rows and groups.steps == pad.steps
    assert groups.token_evals < pad.token_evals, "the filling is counted"
    assert pad.settings["ragged"] == "pad" and groups.settings["ragged"] == "groups"
    return groups, pad


TOKEN_SAMPLERS = [
    (family, name)
    for family in ("masked", "uniform")
    for name in registry.names("*", family)
    if not (samplers.create(name).effective_facts.sequential or samplers.create(name).effective_facts.needs)
]


@pytest.mark.parametrize(("family", "name"), TOKEN_SAMPLERS)
def test_every_sampler_has_the_same_rows_in_fewer_passes(family, name):
    denoiser = window(V if family == "masked" else None)
    run = {"prompt": PROMPTS, "gen_length": 6, "block_length": 3, "seed": 5}
    groups, pad = both(denoiser, name, **run)
    assert pad.nfe < groups.nfe


def test_guidance_times_and_what_the_model_said_before():
    run = {"prompt": PROMPTS, "gen_length": 8, "temperature": 1.0, "cfg_scale": 0.7}
    for more in ({}, {"time_conditioned": True}, {"self_conditioned": True}):
        _, pad = both(window(**more), "threshold", **run)
        assert pad.row_evals == 2 * int(pad.nfe_rows.sum())
        both(window(**more), "low_confidence", cfg_interval=(0.3, 0.8), **run)
    for name in registry.names("*", "uniform"):
        both(window(None, time_conditioned=True), name, **run)


def test_one_time_per_position():
    class Levels(TokenDenoiser):
        vocab_size, time_conditioned, time_per_position, takes_lengths, name = V, True, True, True, "levels"

        def predict(self, x, t=None, *, rows=None, cache=None, lengths=None):
            assert t.shape == x.shape
            there = (
                torch.arange(x.shape[1]) < (torch.full((len(x),), x.shape[1]) if lengths is None else lengths)[:, None]
            )
            assert not t[~there].any(), "filling has no noise"
            return (neighbours(x, there) * (2 - t[..., None].float()))[rows]

    for name in registry.names("*", "uniform"):
        both(Levels(), name, prompt=PROMPTS, gen_length=5)


def test_a_dry_run_plans_the_same():
    """Counts that are worked out beside the run, as on a device."""
    run = {"prompt": PROMPTS, "gen_length": 9, "block_length": 4, "steps": 6, "seed": 1}
    read = samplers.sample(window(), "radd", **run)
    with pretend_device():
        planned = samplers.sample(window(), "radd", **run)
    assert torch.equal(read.x, planned.x) and read.nfe == planned.nfe and read.token_evals == planned.token_evals


def test_passes_are_as_long_as_the_longest_row_that_is_left():
    denoiser = window()
    rows = [torch.zeros(n, dtype=torch.int64) for n in (12, 7, 3)]
    fill = [torch.arange(len(row)) >= len(row) - asked for row, asked in zip(rows, (2, 5, 3))]
    out = samplers.sample(denoiser, "low_confidence", prompt=Canvas.infill(denoiser, rows, fill))
    assert denoiser.fed == [(3, 12), (3, 12), (2, 7), (1, 7), (1, 7)]
    assert out.nfe == 5 and out.nfe_rows.tolist() == [2, 5, 3] and out.token_evals == 36 * 2 + 14 + 7 * 2
    for i, (row, where) in enumerate(zip(rows, fill)):
        alone = samplers.sample(denoiser, "low_confidence", prompt=Canvas.infill(denoiser, row, where), first_row=i)
        assert out.rows()[i].tolist() == alone.x[0].tolist()


def test_rows_that_stop():
    denoiser = window()
    run = {"prompt": PROMPTS, "gen_length": 16, "block_length": 4, "temperature": 1.0, "stop": [[3], [5, 1], [8]]}
    groups, pad = both(denoiser, "threshold", **run)
    assert torch.equal(groups.lengths, pad.lengths) and len({n - len(p) for n, p in zip(pad.lengths, PROMPTS)}) > 1


# ---------------------------------------------------------------------------------------------- transformers


@functools.cache
def transformer(attention, block_length=None, dtype=torch.float32, **more):
    config = Config(
        vocab_size=30, width=32, layers=2, heads=4, kv_heads=2, attention=attention, embeddings=31,
        block_length=block_length, **more,
    )  # fmt: skip
    return TransformerDenoiser(Transformer(config, seed=3, dtype=dtype), mask_id=30)


def moved(denoiser, batch):
    """The largest difference of a row's logits from those of the row alone, and the largest logit."""
    lengths = torch.tensor([len(row) for row in batch])
    x = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=denoiser.mask_id)
    together = denoiser.predict(x, lengths=lengths)
    worst = largest = 0.0
    for i, row in enumerate(batch):
        alone = denoiser.predict(row[None])[0]
        worst = max(worst, float((together[i, : len(row)] - alone).abs().max()))
        largest = max(largest, float(alone.abs().max()))
        other = x.clone()
        other[i, len(row) :] = 0
        again = denoiser.predict(other, lengths=lengths)[i, : len(row)]
        assert torch.equal(again, together[i, : len(row)]), "what the filling holds is not seen"
    return worst, largest


@pytest.mark.parametrize(("attention", "size"), KINDS)
def test_logits_move_by_rounding_alone(attention, size):
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randint(31, (n,), generator=generator) for n in (48, 33, 1, 2, 17, 40)]
    worst, largest = moved(transformer(attention, size), batch)
    assert worst < 3e-6 * largest
    worst, largest = moved(transformer(attention, size, torch.float64), batch)
    assert worst < 1e-12
    batch[1][:] = 30  # masks alone, as many rows begin
    assert moved(transformer(attention, size, torch.float64), batch)[0] < 1e-12


CACHES = {
    "full": (None, "prefix", "dual", "delayed(3)"),
    "causal": (None, "prefix", "block"),
    "block_causal": (None, "block"),
}


@pytest.mark.parametrize(("attention", "size", "cache"), [(*kind, c) for kind in KINDS for c in CACHES[kind[0]]])
def test_rows_of_a_transformer_are_what_they_are_alone(attention, size, cache):
    denoiser, prompts = transformer(attention, size), [p or [11] for p in PROMPTS]
    for name, more in (
        ("low_confidence", {"temperature": 0.0, "steps": 6}),
        ("threshold", {"temperature": 1.0, "threshold": 0.2}),
        ("radd", {"temperature": 0.7, "cfg_scale": 0.5, "cfg_interval": (0.2, 0.9)}),
        ("threshold", {"temperature": 1.0, "stop": [[i] for i in range(0, 30, 5)]}),
    ):
        run = {"gen_length": 12, "block_length": 4, "seed": 4, "cache": cache, **more}
        together = samplers.sample(denoiser, name, prompt=prompts, **run)
        assert together.settings["ragged"] == "pad"
        groups = samplers.sample(denoiser, name, prompt=prompts, ragged="groups", **run)
        assert torch.equal(groups.x, together.x) and torch.equal(groups.nfe_rows, together.nfe_rows)
        assert together.nfe < groups.nfe
        if name != "low_confidence":  # rows are done at different times, and those after them move up in the cache
            assert together.cache_bytes >= groups.cache_bytes
            continue
        assert together.cache_bytes == groups.cache_bytes
        for i, prompt in enumerate(prompts):
            alone = samplers.sample(denoiser, name, prompt=[prompt], first_row=i, **run)
            assert together.rows()[i].tolist() == alone.rows()[0].tolist()
            assert int(together.nfe_rows[i]) == int(alone.nfe_rows[0])


@functools.cache
def text_model():
    return zoo.load("text-mdm")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_model(temperature):
    denoiser = text_model()
    ids = denoiser.tokenizer.encode("the list of names is sorted by the key that was given, and the value is returned")
    prompts = [ids[:n] for n in (14, 3, 9, 5)]
    run = {"gen_length": 12, "steps": 6, "temperature": temperature, "seed": 2, "stop": denoiser.eos_id}
    together = samplers.sample(denoiser, "low_confidence", prompt=prompts, **run)
    assert together.nfe == 6 and together.settings["ragged"] == "pad"
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(denoiser, "low_confidence", prompt=prompt, first_row=i, **run)
        assert together.rows()[i].tolist() == alone.rows()[0].tolist()
    worst, largest = moved(denoiser, [torch.cat([p, torch.full((12,), denoiser.mask_id)]) for p in prompts])
    assert worst < 1e-5 * largest


@pytest.mark.parametrize("cache", [None, "dual"])
def test_sixteen_lengths_are_as_many_passes_as_one(cache):
    denoiser = transformer("full")
    prompts = [[1 + i % 7] * n for i, n in enumerate(range(3, 19))]
    run = {"gen_length": 8, "block_length": 4, "cache": cache}
    ragged = samplers.sample(denoiser, "low_confidence", prompt=prompts, **run)
    equal = samplers.sample(denoiser, "low_confidence", prompt=[p[:3] for p in prompts], **run)
    assert ragged.nfe == equal.nfe == 8 and ragged.row_evals == equal.row_evals == 16 * 8
    assert samplers.sample(denoiser, "low_confidence", prompt=prompts, ragged="groups", **run).nfe == 16 * 8


def test_ragged_infilling():
    denoiser = transformer("full")
    x = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 9], [3, 4, 5, 6, 7]]
    fill = [[i % 2 == 1 for i in range(8)], [True, False], [False, True, True, False, True]]
    out = samplers.sample(denoiser, "low_confidence", prompt=Canvas.infill(denoiser, x, fill), temperature=1.0)
    assert out.nfe == 4 and out.lengths.tolist() == [8, 2, 5]
    for i in range(3):
        alone = samplers.sample(
            denoiser, "low_confidence", prompt=Canvas.infill(denoiser, x[i], fill[i]), temperature=1.0, first_row=i
        )
        assert out.rows()[i].tolist() == alone.x[0].tolist()


# ---------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("method", ["any_order", "t_dce"])
def test_likelihood_of_ragged_rows(method):
    denoiser, how = transformer("full"), {"method": method, "mc": 16, "batch": 24, "seed": 3}
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 4], [7, 8, 9, 10], [1], [2, 9]]
    fill = [[True] * 7 + [False, True], [True, True], [False, True, True, True], [True], [True, False]]
    pad = nll(denoiser, rows, fill=fill, **how)
    groups = nll(denoiser, rows, fill=fill, ragged="groups", **how)
    assert pad.nfe == -(-5 * 16 // 24) < groups.nfe and pad.row_evals == groups.row_evals == 5 * 16
    for i, row in enumerate(rows):
        alone = nll(denoiser, [row], fill=[fill[i]], first_row=i, **how)
        assert abs(float(alone.nll[0] - pad.nll[i])) < 1e-6 * max(1, float(alone.nll[0]))
        assert abs(float(alone.stderr[0] - pad.stderr[i])) < 1e-6
    exact = window(time_conditioned=True)
    rows = [[token % V for token in row] for row in rows]
    made = [nll(exact, rows, prompt=[1, 0, 2, 0, 0], ragged=ragged, **how) for ragged in ("groups", "pad")]
    assert torch.equal(made[0].nll, made[1].nll) and torch.equal(made[0].stderr, made[1].stderr)
    with pytest.raises(OptionError, match="ragged must be None, 'groups' or 'pad'"):
        nll(exact, rows, ragged="none", **how)


# ---------------------------------------------------------------------------------------------- what is refused


def test_bad_arguments():
    plain = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, V), vocab_size=V, mask_id=V, name="plain")
    with pytest.raises(OptionError, match=r"'plain' does not take rows of different lengths .* takes_lengths=True"):
        samplers.sample(plain, "radd", gen_length=3, ragged="pad")
    with pytest.raises(OptionError, match="ragged must be None, 'groups' or 'pad', not True"):
        samplers.sample(window(), "radd", gen_length=3, ragged=True)
    assert samplers.sample(plain, "radd", prompt=[[1], [2, 3]], gen_length=2).settings["ragged"] == "groups"
    causal = TransformerDenoiser(transformer("causal").model, mask_id=30, predicts_next=True)
    with pytest.raises(OptionError, match="rows of all lengths share its forward passes anyway"):
        samplers.sample(causal, "refusion", gen_length=3, ragged="pad")
    assert samplers.sample(causal, "autoregressive", gen_length=3).settings["ragged"] is None


def test_a_canvas_that_is_too_long():
    """Said before the run wherever the limit is known, with row, length and limit; else what the model said, and what to do."""
    small = transformer("full", max_length=16)
    says = r"row 1 has 18 positions; denoiser 'transformer' takes at most 16 \(its max_length\)"
    long = [[1] * 8, [1] * 18]
    for call in (
        lambda: samplers.sample(small, "radd", prompt=[[1], [1] * 12], gen_length=6),
        lambda: samplers.sample(small, "radd", prompt=Canvas.of(transformer("full"), [[1], [1] * 12], 6), cache="dual"),
        lambda: Canvas.infill(small, long, [[True] * 8, [True] * 18]),
        lambda: nll(small, long),
    ):
        with pytest.raises(OptionError, match=says):
            call()
    for call in (small.predict, small.hidden):
        with pytest.raises(OptionError, match="row 0 has 17 positions; denoiser 'transformer' takes at most 16"):
            call(torch.zeros(1, 17, dtype=torch.int64))


def test_bert():
    """A real model of the transformers package: its own padding, and its limit, told and not told."""
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**size, intermediate_size=64, max_position_embeddings=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # as they are made, all logits are nearly equal

    def fn(ids, mask, positions):
        return model(ids, attention_mask=mask, position_ids=positions).logits

    facts = {"vocab_size": 40, "mask_id": 39, "name": "bert", "takes_lengths": True}
    denoiser = TokenDenoiser.wrap(fn, **facts)
    run = {"gen_length": 10, "temperature": 1.0}
    prompts = [[5, 6, 7, 8, 9], [], [4, 4]]
    together = samplers.sample(denoiser, "low_confidence", prompt=prompts, **run)
    assert together.nfe == 10
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(denoiser, "low_confidence", prompt=[prompt], first_row=i, **run)
        assert together.rows()[i].tolist() == alone.x[0].tolist()
    with pytest.raises(DenoiserError, match=r"'bert' raised RuntimeError for 1 rows of 25 positions .* max_length="):
        samplers.sample(denoiser, "radd", prompt=[1], gen_length=24)
    told = TokenDenoiser.wrap(fn, max_length=24, **facts)
    with pytest.raises(OptionError, match="row 0 has 25 positions; denoiser 'bert' takes at most 24"):
        samplers.sample(told, "radd", prompt=[1], gen_length=24)
