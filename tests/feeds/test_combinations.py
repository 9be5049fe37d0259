"""Options of sample() drawn together at random: each row of a batch is what it is alone, however the model is given it."""

import functools
import random

import pytest
import torch
from test_caching import Glass

import samplers
from samplers import OptionError
from samplers.models.denoiser import TransformerDenoiser
from samplers.models.transformer import Config, Transformer

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = {"causal": ("prefix", "block"), "block_causal": ("block",), "full": ()}
SAMPLERS = {
    "low_confidence": [{}, {"steps": 6}, {"steps_per_block": 2}],
    "threshold": [{"threshold": 0.2}, {"threshold": 0.1, "steps": 7}],
    "entropy_bound": [{"bound": 1.5}],
    "radd": [{"steps": 6}],
    "remdm": [{"steps": 8, "eta": 0.3}, {"strategy": "conf"}],
    "llada2": [{"threshold": 0.2, "edit_threshold": 0.1}, {"threshold": 0.3, "steps_per_block": 2}],
}


@functools.cache
def transformer(attention, size, shift):
    config = Config(
        vocab_size=9, width=32, layers=2, heads=4, kv_heads=2, attention=attention, embeddings=10,
        block_length=size if attention == "block_causal" else None,
    )  # fmt: skip
    model = Transformer(config, seed=5)
    with torch.no_grad():
        model.unembed.weight.mul_(6)  # as it is made, all logits are nearly equal
    return TransformerDenoiser(model, mask_id=9, shift=shift)


def drawn(number):
    """A model, a sampler and the arguments of a run. Every number is drawn for all cases alike, so they go on their own."""
    draw = random.Random(number)
    attention, size, shift = (*draw.choice([("full", 1), ("causal", 1), ("block_causal", 3)]), draw.random() < 0.3)
    glass = number % 5 == 0  # exact, but slow
    model = Glass(attention, size, shift=shift) if glass else transformer(attention, size, shift)
    name = list(SAMPLERS)[number % len(SAMPLERS)]
    rows = draw.sample(range(1, 6), 3)  # lengths of the prompts
    generate = 6 if glass else 11
    run = {
        "prompt": [[(3 * i + 5 * j + number) % 9 for i in range(n)] for j, n in enumerate(rows)],
        "gen_length": generate,
        "seed": number,
        "block_length": draw.choice([2, 3, 4, 6] if attention == "block_causal" else [3, 4, 6, None]),
        "align": draw.choice([None, True, False]),
        "cache": draw.choice([None, None, *model.caches]),
        "cfg_scale": draw.choice([0.0, 0.0, 0.6]),
        "stop": draw.choice([None, [[1], [4, 2]], [[i] for i in range(0, 9, 3)]]),
        "stop_rule": draw.choice(["decided", "block", "llada2"]),
        "temperature": draw.choice([0.0, 1.0, [0.0, 1.0, 0.7]]),
        "top_p": draw.choice([1.0, 1.0, 0.8]),
        **draw.choice(SAMPLERS[name]),
    }
    run["window"] = draw.choice([None, "block"]) if run["cache"] is None else None
    if run["block_length"] is None and attention != "block_causal":
        run["align"] = None  # there are no blocks to count
    if run["cfg_scale"] and draw.random() < 0.5:
        run["cfg_interval"] = (0.3, 0.9)
    return model, name, run


def alone(run, i):
    own = {k: [run[k][i]] if k == "temperature" and isinstance(run[k], list) else run[k] for k in run}
    return own | {"prompt": [run["prompt"][i]], "first_row": i}


def same(one, other, i, j):
    assert one.rows()[i].tolist() == other.rows()[j].tolist()
    assert int(one.lengths[i]) == int(other.lengths[j])


@pytest.mark.parametrize("number", range(60))
def test_a_row_is_what_it_is_alone(number):
    model, name, run = drawn(number)
    pad, groups = (samplers.sample(model, name, ragged=ragged, **run) for ragged in ("pad", "groups"))
    for i in range(3):
        same(pad, groups, i, i)
        single = samplers.sample(model, name, **alone(run, i))
        same(pad, single, i, 0)
        assert int(pad.nfe_rows[i]) == int(groups.nfe_rows[i]) == int(single.nfe_rows[0])
    assert pad.nfe <= groups.nfe
    whole = {k: v for k, v in run.items() if k not in ("cache", "window")}
    if run["cache"] in EXACT[model.attention] or (run["window"] and model.attention != "full"):
        plain = samplers.sample(model, name, **whole)
        for i in range(3):
            same(pad, plain, i, i)
        assert pad.token_evals <= plain.token_evals or run["cache"]  # a cache is filled by passes of its own


def test_what_is_drawn():
    """The cases hold every value of every option, with every attention."""
    every = [drawn(number) for number in range(60)]
    for attention in EXACT:
        mine = [run for model, _, run in every if model.attention == attention]
        assert {run["window"] for run in mine} == {None, "block"}
        assert {run["align"] for run in mine} == {None, True, False}
        assert {run["stop_rule"] for run in mine} == {"decided", "block", "llada2"}
        caches = {run["cache"] for run in mine}
        assert caches == {None, *next(m for m, _, _ in every if m.attention == attention).caches}
    assert {name for _, name, _ in every} == set(SAMPLERS)
    assert any(isinstance(run["temperature"], list) and run["cfg_scale"] for _, _, run in every)
    with pytest.raises(OptionError, match="does not go with cache"):
        samplers.sample(transformer("causal", 1, False), "radd", gen_length=4, cache="block", window="block")
