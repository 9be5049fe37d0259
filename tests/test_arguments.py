"""The arguments of sample(): what is accepted, in which types, and what is said of everything else."""

import ast
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import samplers
from samplers import (
    Canvas,
    Constraint,
    DenoiserError,
    FamilyError,
    GaussianDenoiser,
    OptionError,
    SamplersError,
    TokenDenoiser,
    checks,
    registry,
)
from samplers.arguments import ALIASES, INSTEAD, driver_arguments, parse_stop
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.sampler import Facts
from samplers.testing.tiny import TinyMixture

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = [name for family in ("masked", "uniform", "gaussian") for name in registry.names("*", family)]
SEQUENTIAL = [name for name in ALL if registry.load(name).facts.sequential]
PICKY = [name for name in ALL if registry.load(name).facts.needs] + SEQUENTIAL
V, MASK = 12, 11
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def wrap(fn=None, **kw):
    fn = fn or (lambda ids: TABLE[ids] + TABLE[ids.roll(1, 1)])
    return TokenDenoiser.wrap(fn, **{"vocab_size": V, "mask_id": MASK} | kw)


def run(denoiser=None, sampler="low_confidence", **kw):
    return samplers.sample(denoiser or wrap(), sampler, **{"gen_length": 6} | kw)


def transformer(attention="full", **kw):
    config = Config(**{"vocab_size": 24, "width": 32, "layers": 1, "heads": 4, "attention": attention} | kw)
    return TransformerDenoiser(Transformer(config, seed=0), mask_id=23, predicts_next=attention == "causal")


# ---------------------------------------------------------------------------------------------- stop

SAYS = [1, 2, 3, 7, 4, 8, 5, 5]  # what this model always says


def speaker():
    logits = torch.nn.functional.one_hot(torch.tensor(SAYS), 10)[None] * 9.0
    return TokenDenoiser.wrap(lambda ids: logits[:, : ids.shape[1]].repeat(len(ids), 1, 1), vocab_size=10, mask_id=9)


@pytest.mark.parametrize(
    ("stop", "length"),
    [
        (7, 4),
        (np.int32(7), 4),
        (torch.tensor(7), 4),
        (np.array(7), 4),
        ([7, 8], 4),
        ((8, 7), 4),
        ({7, 8}, 4),
        (frozenset({8}), 6),
        (range(7, 9), 4),
        (np.array([8, 7]), 4),
        (torch.tensor([8], dtype=torch.int32), 6),
        ([np.int64(8), torch.tensor(7)], 4),
        ([[7], [8]], 4),
        ([[7, 8]], 8),
        ([[4, 8], [2, 8]], 6),
        ([torch.tensor([4, 8]), np.array([6])], 6),
        ([(4, 8)], 6),
        (torch.tensor([[4, 8], [2, 8]]), 6),
        (np.array([[4, 8]]), 6),
    ],
    ids=str,
)
def test_stop_means_any_of_these_tokens_or_any_of_these_phrases(stop, length):
    out = samplers.sample(speaker(), "low_confidence", gen_length=8, stop=stop)
    assert out.rows()[0].tolist() == SAYS[:length]
    assert json.loads(json.dumps(out.settings))["stop"] == [p.tolist() for p in parse_stop(stop, speaker())]


@pytest.mark.parametrize(
    ("stop", "says"),
    [
        (9, "9 is the mask id"),
        ([[1, 9]], "9 is the mask id"),
        (-1, "-1 is no token.* 0 to 9"),
        (10**9, "1000000000 is no token.* 0 to 9"),
        (2**70, "does not fit in 64 bits"),
        (True, "bools"),
        ([True, False], "bools"),
        (torch.tensor([True]), "torch.bool"),
        (7.0, "float"),
        ([7.5], "float"),
        (torch.tensor(7.0), "float"),
        ("7", "stop='7'.* has no tokenizer"),
        ({7: 8}, "stop={7: 8}"),
        ([[]], "must have a token"),
        ([[7], []], "must have a token"),
        ([7, [8]], "tokens beside phrases"),
        ([[[7]]], "nested too deeply"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "nested too deeply"),
        (iter([7]), "stop="),
    ],
)
def test_any_other_stop_is_an_error_that_shows_both_forms(stop, says):
    with pytest.raises(OptionError, match=says) as caught:
        samplers.sample(speaker(), "low_confidence", gen_length=8, stop=stop)
    assert "stop=[7, 8] stops a row at any of these tokens" in str(caught.value)
    assert "stop=[[13, 13], [7]] at any of these phrases" in str(caught.value)


# ---------------------------------------------------------------------------------------------- values of several types


def test_numbers_of_any_library_are_the_same():
    plain = run(prompt=[[1, 2], [3]], steps=3, temperature=0.5, block_length=3, seed=4, forbid=[5, 6], top_k=7).x
    for integer in (np.int64, np.uint8, np.array, torch.tensor):
        for real in (np.float32, np.float64, np.array, torch.tensor):
            same = {
                name: integer(value) for name, value in (("steps", 3), ("block_length", 3), ("seed", 4), ("top_k", 7))
            }
            out = run(
                wrap(vocab_size=integer(V), mask_id=integer(MASK)),
                prompt=[np.array([1, 2], np.int16), torch.tensor([3], dtype=torch.uint8)],
                gen_length=integer(6),
                temperature=real(0.5),
                forbid=np.array([5, 6]),
                **same,
            )
            assert torch.equal(out.x, plain)
            json.dumps(out.settings)
    assert TransformerDenoiser(transformer().model, mask_id=np.int64(23)).mask_id == 23
    for forbid in ({5, 6}, (5, 6), range(5, 7), torch.tensor([5, 6]), np.array([6, 5])):
        assert torch.equal(
            run(prompt=[[1, 2], [3]], steps=3, temperature=0.5, block_length=3, seed=4, forbid=forbid, top_k=7).x, plain
        )


@pytest.mark.parametrize(
    "seed",
    [5, np.int64(5), torch.tensor(5), [5, 5], (5, 6), np.array([5, 2**62]), torch.tensor([5, -6])],
    ids=str,
)
def test_settings_are_json_whatever_the_seed(seed):
    out = run(batch=2, seed=seed)
    assert json.loads(json.dumps(out.settings))["seed"] == out.settings["seed"] == checks.seeds_of(seed)
    gauss = samplers.sample(TinyMixture(), "ddim", batch=2, seed=seed, steps=np.int64(3))
    read = json.loads(json.dumps(gauss.settings))
    assert read == gauss.settings and read["seed"] == checks.seeds_of(seed) and read["steps"] == 3


LARGE = 2**64 - 7  # as torch.seed() returns them: 64 bits without a sign


@pytest.mark.parametrize("sampler", ["random_order", "ddim"])
@pytest.mark.parametrize(
    ("seed", "same"),
    [
        (LARGE, -7),
        (2**63, -(2**63)),
        (np.uint64(LARGE), -7),
        (torch.tensor(LARGE, dtype=torch.uint64), -7),
        ([LARGE, 3], [-7, 3]),
        ((np.uint64(LARGE), 2**63), [-7, -(2**63)]),
        (np.array([LARGE, 3], dtype=np.uint64), [-7, 3]),
        (torch.tensor([LARGE, 3], dtype=torch.uint64), [-7, 3]),
    ],
    ids=str,
)
def test_a_seed_without_a_sign_is_the_one_of_the_same_bits(sampler, seed, same):
    def draw(seed):
        if sampler == "ddim":
            return samplers.sample(TinyMixture(), sampler, batch=2, seed=seed, steps=3)
        return run(sampler=sampler, batch=2, seed=seed, temperature=1.0)

    out = draw(seed)
    assert torch.equal(out.x, draw(same).x)
    assert not torch.equal(out.x, draw(8).x)
    kept = json.loads(json.dumps(out.settings))["seed"]
    assert kept == ([s % 2**64 for s in same] if isinstance(same, list) else same % 2**64), "the number that was given"
    assert kept != same


BIG = 2**70
BAD = [
    ({"seed": "1"}, "seed is '1'; an integer is needed"),
    ({"seed": None}, "seed is None"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": True}, "seed is True"),
    ({"seed": [1.5, 2]}, "seed is of torch.float32"),
    ({"seed": [True]}, "bools"),
    ({"seed": [[1]]}, "seed has shape"),
    ({"seed": BIG}, "does not fit in 64 bits"),
    ({"seed": [BIG]}, "does not fit in 64 bits"),
    ({"seed": 2**64}, "does not fit in 64 bits"),
    ({"seed": [1, 2**64]}, "does not fit in 64 bits"),
    ({"seed": -(2**63) - 1}, "does not fit in 64 bits"),
    ({"seed": torch.tensor([[1]], dtype=torch.uint64)}, "seed has shape"),
    ({"seed": [1, 2]}, "2 seeds were given for 1 rows"),
    ({"seed": {1}}, "seed is {1}"),
    ({"seed": torch.Generator()}, "Generator.*function of .seed, row, position, step.*Give an integer"),
    ({"seed": np.random.default_rng(0)}, "Generator.*Give an integer"),
    ({"seed": random.Random(0)}, "Random.*Give an integer"),
    ({"first_row": -1}, "first_row must be an integer of 0 or more"),
    ({"first_row": 2**63}, "first_row must be an integer of at most"),
    ({"steps": 10**21}, "steps must be an integer of at most"),
    ({"steps": 10**5000}, "steps must be an integer of at most .*too long to show"),
    ({"steps": 2.0}, "steps must be an integer of 1"),
    ({"gen_length": True}, "gen_length must be an integer"),
    ({"gen_length": 10**21}, "gen_length must be an integer of at most"),
    ({"batch": "2"}, "batch must be an integer"),
    ({"block_length": np.float64(3)}, "block_length must be an integer"),
    ({"temperature": 1e308}, "temperature must be 0 or a number from 1e-30 to 1e.30"),
    ({"temperature": 10**400}, "temperature must be a number"),
    ({"temperature": "hot"}, "temperature must be a number of 0 or more, not 'hot'"),
    ({"temperature": np.bool_(True)}, "temperature must be a number"),
    ({"temperature": torch.tensor([1.0, 2.0])}, "temperature: 2 values were given for 1 rows"),
    ({"temperature": torch.tensor([[1.0]])}, "temperature must be a number"),
    ({"cfg_scale": 1e308}, "cfg_scale must be a number from 0 to 1e.06"),
    ({"top_k": -1}, "top_k must be an integer of 0 or more"),
    ({"top_p": 0}, "top_p must be a number above 0"),
    ({"trace": "yes"}, "trace must be True or False, not 'yes'"),
    ({"progress": 1}, "progress must be True or False, not 1"),
    ({"info": 0}, "info must be True or False"),
    ({"prompt": 3}, "prompt is 3, a single number; token ids are needed: one row"),
    ({"prompt": torch.tensor(3)}, "a single number"),
    ({"prompt": "text"}, "prompt is str.*tokenizer"),
    ({"prompt": {"input_ids": [[1]]}}, "give its 'input_ids'"),
    ({"prompt": [1j]}, "complex"),
    ({"prompt": torch.zeros(2, dtype=torch.complex64)}, "complex"),
    ({"prompt": [True, False]}, "bools"),
    ({"prompt": torch.ones(2, dtype=torch.bool)}, "torch.bool"),
    ({"prompt": [1, BIG]}, "does not fit in 64 bits"),
    ({"prompt": [[1], [2, BIG]]}, "row 1 holds .*does not fit in 64 bits"),
    ({"prompt": np.array([2**63], np.uint64)}, "does not fit in 64 bits"),
    ({"prompt": torch.zeros(0, 3, dtype=torch.int64)}, r"\(0, 3\): there are no rows"),
    ({"prompt": torch.zeros(1, 1, 1, dtype=torch.int64)}, r"shape \(1, 1, 1\)"),
    ({"prompt": torch.zeros(2, 2, dtype=torch.int64).to_sparse()}, "sparse"),
    ({"prompt": torch.zeros(2, dtype=torch.int64, device="meta")}, "meta device"),
    ({"prompt": [None]}, "prompt"),
    ({"prompt": [1, MASK]}, "position 1 is the mask id 11; .*Canvas.infill"),
    ({"forbid": range(V)}, "forbid= holds every token"),
    ({"forbid": [[1]]}, "nested"),
    ({"forbid": True}, "bools"),
    ({"demote": "a"}, "demote='a'"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), BAD, ids=lambda v: v if isinstance(v, str) else next(iter(v)))
def test_a_wrong_value_is_named(wrong, says):
    with pytest.raises(OptionError, match=says) as caught:
        run(**wrong)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mask_id": True}, "mask_id .* must be an integer"),
        ({"mask_id": 2.0}, "mask_id .* must be an integer"),
        ({"vocab_size": 12.0}, "vocab_size must be an integer"),
        ({"length": 0}, "length must be an integer of 1 or more"),
        ({"max_length": 0}, "max_length must be an integer of 1 or more"),
        ({"device": "gpu"}, "device='gpu': torch knows no such device"),
        ({"device": "cuda:99"}, "CUDA devices on this machine"),
        ({"device": "meta"}, "meta device have no values"),
        ({"time_conditioned": 1}, "time_conditioned must be True or False"),
        ({"head": 3}, "head must be a samplers.Head"),
        ({"fn": 3}, "takes a callable"),
    ],
    ids=str,
)
def test_a_wrong_token_denoiser_is_named(wrong, says):
    with pytest.raises(OptionError, match=says):
        wrap(**wrong) if "fn" not in wrong else wrap(wrong["fn"])


@pytest.mark.parametrize(
    "device", ["xpu", "mps", "hip", "vulkan", "xla", "privateuseone", "mtia", "opencl", 10**30, "xpu:9"]
)
def test_a_device_that_cannot_be_used_is_named_with_those_that_can(device):
    if device == getattr(torch.accelerator.current_accelerator(), "type", None):
        pytest.skip("this machine has one")
    says = f"device={device!r}.*'cpu'"
    with pytest.raises(OptionError, match=says):
        wrap(device=device)
    with pytest.raises(OptionError, match=says):
        GaussianDenoiser.wrap(lambda x, t: x, shape=(2,), device=device)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dtype": torch.int64}, "dtype must be a floating torch.dtype"),
        ({"dtype": torch.complex64}, "dtype must be a floating torch.dtype"),
        ({"dtype": "float32"}, "dtype must be a floating torch.dtype"),
        ({"shape": 4}, "shape must be the sizes"),
        ({"shape": (4, 0)}, "a size in shape must be an integer of 1"),
        ({"device": "gpu"}, "torch knows no such device"),
        ({"fn": None}, "takes a callable"),
    ],
    ids=str,
)
def test_a_wrong_gaussian_denoiser_is_named(wrong, says):
    with pytest.raises(OptionError, match=says):
        GaussianDenoiser.wrap(
            wrong.get("fn", torch.add), **{"shape": (4,)} | {k: v for k, v in wrong.items() if k != "fn"}
        )


@pytest.mark.parametrize("answer", [lambda x: x.to(torch.complex64), lambda x: x.long(), lambda x: None])
def test_answers_that_are_no_real_numbers(answer):
    denoiser = GaussianDenoiser.wrap(lambda x, t: answer(x), shape=(4,), prediction="x0")
    with pytest.raises(DenoiserError, match=r"real floating numbers|the same shape is needed"):
        samplers.sample(denoiser, "ddim", steps=3)


# ---------------------------------------------------------------------------------------------- which arguments there are


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("gen_lenght", "did you mean 'gen_length'"),
        ("temprature", r"did you mean 'temperature'\?"),
        ("max_new_tokens", "calls it 'gen_length'"),
        ("max_new_token", "calls it 'gen_length'"),
        ("block_size", "calls it 'block_length'"),
        ("attention_mask", "prompts of several lengths as a list of rows.*Canvas.infill"),
        ("generator", "give seed="),
        ("bownd", "did you mean 'bound'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(key, says):
    for call in (
        lambda: run(sampler="entropy_bound", **{key: 5}),
        lambda: run(sampler=samplers.create("entropy_bound"), **{key: 5}),
        lambda: samplers.create("entropy_bound", **{key: 5}),
    ):
        with pytest.raises(OptionError, match=says) as caught:
            call()
        assert "tempered" not in str(caught.value).split(" Its options")[0]


def test_names_of_other_libraries_lead_to_arguments_that_exist():
    assert set(ALIASES.values()) <= set(driver_arguments())
    assert not (set(ALIASES) | set(INSTEAD)) & set(driver_arguments())


def test_a_continuous_run_refuses_every_argument_that_it_does_not_read():
    """Which those are is worked out from what is read: each is refused if it is not its default, and only then."""
    taken = {
        "batch",
        "seed",
        "first_row",
        "steps",
        "trace",
        "info",
        "progress",
        "constrain",
        "cfg_scale",
        "cfg_interval",
    }
    taken |= {"start", "strength", "known", "start_moments", "start_noise", "times", "timesteps", "sigmas"}
    taken |= {"cfg_rescale", "x0_bound", "x0_quantile"}
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(samplers.sample).parameters.items()}
    others = [name for name in driver_arguments() if name not in taken]
    assert len(others) >= 10
    for name in others:
        for value in (torch.tensor([1.0, 2.0]), "x"):
            with pytest.raises(OptionError, match=f"{name} is not for samplers of the gaussian family"):
                samplers.sample(TinyMixture(), "ddim", **{name: value})
        samplers.sample(TinyMixture(), "ddim", steps=2, **{name: defaults[name]})


def test_a_masked_sampler_without_a_mask_id():
    with pytest.raises(FamilyError, match="say which: mask_id="):
        run(wrap(mask_id=None))


# ---------------------------------------------------------------------------------------------- canvases


def test_ragged_infilling_is_what_each_row_is_alone():
    x = [[1, 2, 0, 4], [0, 5], [3, 0, 0]]
    fill = [[False, False, True, False], [True, False], [False, True, True]]
    kw = {"seed": 3, "temperature": 1.0}
    out = samplers.sample(wrap(), "random_order", prompt=Canvas.infill(wrap(), x, fill), **kw)
    assert out.lengths.tolist() == [4, 2, 3]
    for i in range(3):
        canvas = Canvas.infill(wrap(), np.array(x[i]), torch.tensor(fill[i]))
        alone = samplers.sample(wrap(), "random_order", prompt=canvas, first_row=i, **kw)
        assert out.rows()[i].tolist() == alone.x[0].tolist()
        made = [int(t) for t, f in zip(alone.x[0], fill[i]) if f]
        assert out.generated[i].tolist() == made
        assert [int(t) for t, f in zip(out.rows()[i], fill[i]) if not f] == [t for t, f in zip(x[i], fill[i]) if not f]
    repeated = samplers.sample(wrap(), "random_order", prompt=Canvas.infill(wrap(), x[0], fill[0], batch=3), **kw)
    assert repeated.x[0].tolist() == out.rows()[0].tolist() and len(repeated.x) == 3


@pytest.mark.parametrize(
    ("x", "fill", "says"),
    [
        ([1, MASK], [True, False], r"position 1 is the mask id 11, and fill is False there: set fill to True"),
        ([1, 99], [True, False], "position 1 is 99"),
        ([1, 2], [False, False], "row 0 has no position to fill"),
        ([[], [1]], [[], [True]], "infill: row 0 is empty"),
        ([[1], []], [[True], []], "infill: row 1 is empty"),
        ([], [], "infill: row 0 is empty"),
        ([1, 2], [1, 0], "bools are needed"),
        ([1, 2], [True], "of the same lengths"),
        ([[1, 2], [1]], [[True, True], [True, True]], "of the same lengths"),
        ([1.5, 2], [True, False], "token ids are needed"),
        ([[1, 2], [1, 2]], [True, False], "of the same lengths"),
    ],
    ids=str,
)
def test_wrong_infilling_is_named(x, fill, says):
    with pytest.raises(OptionError, match=says) as caught:
        Canvas.infill(wrap(), x, fill)
    assert "use samplers.Canvas.infill" not in str(caught.value)


def test_text_longer_than_the_model_is_refused_before_the_run():
    model = transformer(max_length=16)
    assert samplers.sample(model, "threshold", prompt=[1] * 10, gen_length=6).x.shape == (1, 16)
    for call in (
        lambda: samplers.sample(model, "threshold", prompt=[[1], [1] * 10], gen_length=7),
        lambda: Canvas.of(model, [[1], [1] * 10], 7),
        lambda: Canvas.infill(model, [[1, 2], [1] * 17], [[True, False], [True] * 17]),
        lambda: samplers.nll(model, [[1, 2], [1] * 17]),
        lambda: samplers.sample(model, "threshold", prompt=Canvas.of(transformer(), [[1], [1] * 10], 7)),
    ):
        with pytest.raises(OptionError, match=r"row 1 has 17 positions.*at most 16"):
            call()
    assert wrap(max_length=np.int64(4)).max_length == 4


@pytest.mark.parametrize("fact", [{"vocab_size": V + 1}, {"mask_id": 3}, {"length": 4}])
def test_a_canvas_of_another_denoiser_is_refused(fact):
    canvas = Canvas.of(wrap(lambda ids: torch.zeros(*ids.shape, V + 1), **fact), [1, 2], 4 - 2 * ("length" in fact))
    other = wrap() if "length" not in fact else wrap(length=5)
    with pytest.raises(OptionError, match=f"another denoiser.*{next(iter(fact))}"):
        samplers.sample(other, "radd", prompt=canvas)


# ---------------------------------------------------------------------------------------------- what the model answers


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sampler", ["threshold", "random_order", "theta_rk2"])
def test_logits_of_any_dtype_and_strides(sampler, batch):
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(3)) * 2

    def sample(answer):
        out = run(wrap(lambda ids: answer(logits.repeat(len(ids), 1, 1))), sampler, batch=batch, temperature=0.7)
        return out.x

    plain = sample(lambda z: z)
    assert torch.equal(sample(lambda z: z.double()), plain)
    assert torch.equal(sample(lambda z: z.transpose(1, 2).contiguous().transpose(1, 2)), plain)
    assert torch.equal(sample(lambda z: z.transpose(0, 1).contiguous().transpose(0, 1)), plain)
    assert torch.equal(sample(lambda z: z.repeat(1, 1, 2)[..., :V]), plain)
    assert torch.equal(sample(lambda z: z.double().repeat_interleave(2, 2)[..., ::2]), plain)


def test_float64_logits_have_a_likelihood():
    a, b = (
        samplers.nll(wrap(lambda ids, d=d: TABLE[ids].to(d)), [[1, 2, 3]], mc=32)
        for d in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(a.nll, b.nll, rtol=1e-6, atol=0)


@pytest.mark.parametrize("cache", [None, "prefix", "dual", "delayed(2)", "block"])
def test_autocast_goes_with_every_cache(cache):
    model = transformer("causal" if cache == "block" else "full")
    kw = {"prompt": [[1, 2], [3]], "gen_length": 6, "block_length": 3, "cache": cache}
    plain = samplers.sample(model, "low_confidence", **kw)
    with torch.autocast("cpu", torch.bfloat16):
        cast = samplers.sample(model, "low_confidence", **kw)
    assert cast.nfe == plain.nfe and cast.cache_bytes == plain.cache_bytes
    # bfloat16 products may turn a choice that is nearly even, and then all that follows from it.
    assert (cast.x == plain.x).float().mean() > 0.5


# ---------------------------------------------------------------------------------------------- whose fault it is


def only(token):
    """A model that finds one token possible and no other."""
    logits = torch.full((V,), -math.inf)
    logits[token] = 0.0
    return logits


@pytest.mark.parametrize("kind", ["logits", "head"])
@pytest.mark.parametrize("sampler", ["low_confidence", "theta_rk2"])
def test_what_the_caller_forbids_is_not_blamed_on_the_model(kind, sampler):
    if kind == "logits":
        denoiser = wrap(lambda ids: only(2).expand(*ids.shape, V))
    else:
        head = samplers.Head(torch.zeros(V, 3), bias=only(2))
        denoiser = wrap(lambda ids: torch.zeros(*ids.shape, 3), head=head)
    forbid = torch.zeros(6, V, dtype=torch.bool)
    forbid[4] = True
    everything = {"constrain": lambda state: Constraint(forbid=forbid)}
    for wrong, who, position in (
        (everything, "constrain=", 4),
        ({"forbid": 2}, "forbid=", r"\d"),
        (everything | {"forbid": 1}, "forbid= and constrain=", 4),
    ):
        with pytest.raises(OptionError, match=f"what {who} forbids leaves row 0, position {position} without"):
            run(denoiser, sampler, prompt=[], **wrong)
    # The model's own fault stays its own.
    nothing = wrap(lambda ids: torch.full((*ids.shape, V), -math.inf))
    harmless = {"constrain": lambda state: Constraint(forbid=torch.arange(V) == 0), "forbid": 1}
    if sampler == "low_confidence":
        with pytest.raises(DenoiserError, match="no token is possible"):
            run(nothing, sampler, **harmless)


def test_a_run_ends_by_being_finished_and_in_no_other_way():
    def stop(*args):
        raise StopIteration

    class Broken(samplers.Sampler):
        name, family = "broken", "masked"

        def step(self, predict, state):
            raise StopIteration

    class BrokenAtOnce(Broken):
        name = "at_once"
        init = stop

    late = iter([None] * 3)
    for call, error, who in (
        (lambda: run(wrap(stop)), DenoiserError, "denoiser 'stop' raised StopIteration in forward pass 1"),
        (lambda: run(wrap(lambda ids: next(late) or TABLE[ids])), DenoiserError, "forward pass 4"),
        (lambda: run(constrain=stop), SamplersError, "the constrain hook raised StopIteration in step 1"),
        (lambda: run(sampler=Broken()), SamplersError, "sampler 'broken' raised StopIteration in step 1"),
        (lambda: run(sampler=BrokenAtOnce()), SamplersError, "'at_once' raised StopIteration in init"),
        (lambda: samplers.nll(wrap(stop), [[1]]), DenoiserError, "raised StopIteration"),
        (lambda: list(samplers.stream(wrap(stop), "radd", gen_length=3)), DenoiserError, "raised StopIteration"),
        (
            lambda: samplers.sample(GaussianDenoiser.wrap(stop, shape=(2,)), "ddim"),
            DenoiserError,
            "raised StopIteration in forward pass 1",
        ),
    ):
        with pytest.raises(error, match=who):
            call()


def test_whoever_writes_into_a_state_is_named():
    def hook(state):
        state.x[:, 0] = 3

    class Writes(samplers.Sampler):
        name, family = "writes", "masked"

        def step(self, predict, state):
            state.x.copy_(predict(state).token)
            return state.commit(state.open, state.x)

    with pytest.raises(SamplersError, match=r"the constrain hook wrote into state.x in place \(step 1\)"):
        run(prompt=[1], constrain=hook)
    with pytest.raises(SamplersError, match=r"sampler 'writes' wrote into state.x"):
        run(prompt=[1], sampler=Writes())
    for begin in (0, 2):
        steps = samplers.stream(wrap(), "low_confidence", prompt=[1], gen_length=6)
        state = [next(steps) for _ in range(begin + 1)][-1]
        state.x[0, 0] += 1
        with pytest.raises(SamplersError, match=rf"over stream\(\) wrote into state.x in place \(step {begin + 1}\)"):
            next(steps)
    with torch.inference_mode():  # whose tensors do not count writes: it still runs
        assert torch.equal(run(constrain=lambda state: None).x, run().x)


# ---------------------------------------------------------------------------------------------- what cannot fit


def test_a_canvas_that_cannot_fit_is_refused_with_its_bytes(monkeypatch):
    monkeypatch.setattr(checks, "_host_memory", lambda: 2**34)
    with pytest.raises(
        OptionError, match=r"1 rows of 1000000000 positions cannot fit: 88,000,000,000 bytes \(82.0 GiB\)"
    ):
        run(gen_length=10**9)
    with pytest.raises(OptionError, match="1000000000 rows of 6 positions cannot fit"):
        run(batch=10**9)
    with pytest.raises(OptionError, match="10000000000 rows of 3 positions cannot fit"):
        Canvas.infill(wrap(), [1, 2, 3], [True] * 3, batch=10**10)
    with pytest.raises(OptionError, match="batch=1000000000 cannot fit: 64,000,000,000 bytes"):
        samplers.sample(TinyMixture(), "ddim", batch=10**9)
    # The rule: 64 bytes per position, two bytes per logit of a callable that gives them all, against all memory there is.
    per_position = 64 + 2 * V
    monkeypatch.setattr(checks, "_host_memory", lambda: 6 * per_position)
    assert run().x.shape == (1, 6)
    with pytest.raises(
        OptionError, match=f"{7 * per_position} bytes .* are needed at least, and cpu has {6 * per_position}"
    ):
        run(gen_length=7)


def test_memory_of_this_machine():
    assert 2**28 < checks.memory_of(torch.device("cpu")) < 2**50


def test_a_plan_that_is_too_long_is_refused_with_its_bytes():
    for name in registry.names("*", "gaussian"):
        with pytest.raises(OptionError, match="steps=10000000 makes a plan of 3,200,000,000 bytes"):
            samplers.sample(TinyMixture(), name, steps=10**7)
    # Of the others whoever makes a table is stopped before it, and for the rest a cap on steps costs nothing.
    said = [refusal(name) for name in ALL if registry.load(name).family != "gaussian" and name not in PICKY]
    assert sum(text is not None for text in said) >= 8
    assert {text for text in said if text} == {"steps=1000000000 per block makes a plan of 16,000,000,016 bytes"}


def refusal(name):
    """What is said of 10^9 steps, its first words; None if the sampler runs."""
    denoiser = wrap() if registry.load(name).family == "masked" else wrap(lambda ids: TABLE[ids], mask_id=None)
    try:
        next(samplers.stream(denoiser, name, gen_length=6, steps=10**9))
    except OptionError as error:
        return str(error).split(" (")[0]
    return None


def test_times_beyond_the_schedule():
    with pytest.raises(OptionError, match="t_start=2 is above t_max=1"):
        samplers.sample(TinyMixture(), "ddim", t_start=2.0)
    with pytest.raises(OptionError, match=r"t_start=81 is above t_max=80.*EDM"):
        samplers.sample(TinyMixture(schedule="edm"), "ddim", t_start=81.0)
    hot = TinyMixture(schedule=samplers.schedule.EDM(t_max=160.0))
    assert samplers.sample(hot, "ddim", t_start=120.0, start=torch.zeros(4)).x.isfinite().all()


# ---------------------------------------------------------------------------------------------- torch's defaults


@pytest.fixture(params=["bfloat16", "float64", "meta"])
def defaults(request):
    """torch's default dtype or device is another inside."""

    def other():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield other
    torch.set_default_device(None)  # "cpu" would leave torch in a mode of its own
    torch.set_default_dtype(torch.float32)


MODELS = {attention: transformer(attention) for attention in ("full", "causal")}


def every_way(name):
    """What a sampler makes in several settings, as a list of tensors."""
    cls = registry.load(name)
    if cls.family == "gaussian":
        denoiser = GaussianDenoiser.wrap(
            lambda x, t: x * t.to(x)[:, None], shape=(4,), moments=lambda x, t: (x / 2, x**2 / 4 + 1, x**3 / 8 + x)
        )
        grids = [o for o in cls.options() if o.name == "grid"]
        return [
            samplers.sample(denoiser, name, batch=3, steps=6, seed=2, grid=grid).x
            for grid in (grids[0].metadata["choices"] if grids else ())
        ]
    if cls.facts.sequential:
        kw = {"prompt": [[1, 2], [3]], "gen_length": 32, "temperature": 1.0, **cls.conformance.small}
        return [samplers.sample(MODELS["causal"], name, **kw).x]
    small = TABLE if cls.family == "masked" else TABLE[:MASK, :MASK]
    kw = {"vocab_size": V, "mask_id": MASK} if cls.family == "masked" else {"vocab_size": MASK}
    out = []
    for setting in (
        {"temperature": 1.0},
        {"temperature": 0.5, "block_length": 4, "cfg_scale": 0.5, "steps": 5, "prompt": [[1, 2], [3]]},
        *({"steps": 5, o.name: choice} for o in cls.options() for choice in o.metadata.get("choices", ())),
    ):
        own = {o.name: setting[o.name] for o in cls.options() if o.name in setting}
        each = samplers.create(name, **own).effective_facts.time_per_position  # needed by some choices
        for times in (True,) if each else (False, True):
            denoiser = TokenDenoiser.wrap(
                lambda ids, *t: small[ids] + small[ids.roll(1, 1)], **kw, time_conditioned=times
            )
            denoiser.time_per_position = each
            denoiser = MODELS["full"] if cls.facts.needs else denoiser
            made = samplers.sample(denoiser, name, gen_length=8, batch=2, seed=3, info=True, **setting)
            out += [made.x, made.info["confidence"]]
    return out


@pytest.mark.parametrize("name", ALL)
def test_a_sampler_is_the_same_under_any_default_dtype_and_device(name, defaults):
    expected = every_way(name)
    defaults()
    found = every_way(name)
    assert expected and len(found) == len(expected)
    for a, b in zip(expected, found):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_the_rest_of_the_library_is_the_same_under_any_default(defaults):
    def everything():
        model = transformer(qk_norm=True)
        network = samplers.models.mlp.MLP(4, 8, 2)
        out = [p for m in (model.model, network) for p in m.parameters()]
        out.append(network(TABLE[:3, :4], TABLE[:3, 0]))
        out += [samplers.nll(wrap(), [[1, 2, 3], [4]], method=m, mc=32).nll for m in samplers.likelihood.METHODS]
        out += [
            samplers.sample(model, "low_confidence", gen_length=6, block_length=3, cache=c).x
            for c in ("prefix", "dual")
        ]
        out += [samplers.random.uniform(5, 1, 2, 3, 4)]
        out += [samplers.mask_schedule(s)(0.3) for s in ("linear", "beta(0.9,0.3)", "exp(5)")]
        out += [samplers.noise_schedule(s).lam(0.3) for s in ("vp_linear", "vp_cosine", "edm", "flow")]
        canvas = Canvas.infill(wrap(), [[1, 0], [2, 0, 3]], [[False, True], [False, True, False]])
        return [*out, canvas.x, canvas.fill, run(seed=[1, 2], batch=2, stop=[1, 2], forbid={3}).x]

    expected = everything()
    defaults()
    for a, b in zip(expected, everything(), strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


MAKERS = (
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randn",
    "randint",
    "tensor",
    "zeros",
)
PACKAGE = Path(samplers.__file__).parent


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if not {"testing", "bench", "cli"} & set(p.parts)],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_every_tensor_that_is_made_says_its_device_and_dtype(path):
    for call in ast.walk(ast.parse(path.read_text())):
        made = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if not made or not isinstance(call.func.value, ast.Name) or call.func.value.id != "torch":
            continue
        said = {k.arg for k in call.keywords}
        if call.func.attr in MAKERS and None not in said:
            assert "device" in said, f"{path.name}:{call.lineno}: torch.{call.func.attr} without device="
            if call.func.attr in ("empty", "eye", "linspace", "ones", "rand", "randn", "zeros"):
                assert "dtype" in said, f"{path.name}:{call.lineno}: torch.{call.func.attr} without dtype="


# ---------------------------------------------------------------------------------------------- what comes back


def test_rows_generated_and_how_a_sample_reads():
    out = samplers.sample(speaker(), "low_confidence", prompt=[[6], [6, 6, 6]], gen_length=5, stop=7)
    assert [row.tolist() for row in out.rows()] == [[6, 2, 3, 7], [6, 6, 6, 7]]
    assert [row.tolist() for row in out.generated] == [[2, 3, 7], [7]]
    assert repr(out).startswith("<Sample: 2 rows of 4 tokens by 'low_confidence'; ")
    ragged = samplers.sample(speaker(), "low_confidence", prompt=[[6], [6, 6, 6]], gen_length=2)
    assert "2 rows of 3 to 5 tokens" in repr(ragged) and [len(row) for row in ragged.rows()] == [3, 5]
    reals = samplers.sample(TinyMixture(), "ddim", batch=3, steps=2)
    assert torch.equal(torch.stack(reals.rows()), reals.x) and torch.equal(torch.stack(reals.generated), reals.x)
    assert "<Sample: 3 rows of shape (4,) by 'ddim'; 2 forward passes in 2 steps, 2 forward passes per row;" in repr(
        reals
    )


def test_every_public_name_resolves_after_import():
    code = "import samplers; [getattr(samplers, n) for n in samplers.__all__]; print(samplers.models.Cache.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert out.stdout.strip() == "Cache", out.stderr
    alone = subprocess.run(
        [sys.executable, "-c", "import samplers; samplers.models"], capture_output=True, cwd=PACKAGE.parent, check=False
    )
    assert alone.returncode == 0, alone.stderr


# ---------------------------------------------------------------------------------------------- class facts


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"exact_oder": True}, "exact_oder is neither an option .annotate it. nor a known class attribute"),
        ({"revise": True}, "revise is neither.*did you mean 'revises'"),
        ({"facts": {"revises": True}}, r"facts must be samplers.authoring.Facts\(...\)"),
        ({"conformance": {}}, r"conformance must be samplers.authoring.Conformance\(...\)"),
        ({"limit": 3}, "limit is neither.*constants are written in capitals"),
    ],
    ids=str,
)
def test_a_misspelt_class_fact_is_refused(facts, says):
    with pytest.raises(TypeError, match=says):
        type("Mine", (samplers.Sampler,), {"name": "mine", "family": "masked", "__module__": __name__, **facts})


def test_misspelt_facts_are_refused():
    with pytest.raises(TypeError, match="revise"):
        Facts(revise=True)
    with pytest.raises(OptionError, match="'exact', 'asymptotic', 'biased'"):
        Facts(bias="exactly")
    type(
        "Fine", (samplers.Sampler,), {"name": "fine", "family": "masked", "LIMIT": 3, "_own": 4, "__module__": __name__}
    )


def test_options_take_numpys_numbers():
    made = samplers.create("threshold", threshold=np.float32(0.5))
    assert made.threshold == 0.5 and type(made.threshold) is float
    assert type(samplers.create("refusion", slot_size=np.int64(4)).slot_size) is int
    with pytest.raises(OptionError, match="slot_size"):
        samplers.create("refusion", slot_size=np.float64(4.0))
    with pytest.raises(OptionError, match="threshold"):
        samplers.create("threshold", threshold=np.bool_(True))
