"""Prompts as embeddings: given the embeddings of tokens, everything is as with the tokens themselves."""

import pytest
import torch

import samplers
from samplers import OptionError, nll
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

V, MASK, D = 30, 30, 32
TOKENS = [[3, 1, 4, 1, 5], [9, 2, 6]]


def ours(attention="full", shift=False, **more):
    config = Config(
        V, D, 2, 4, embeddings=V + 1, attention=attention, block_length=4 if attention == "block_causal" else None
    )
    model = Transformer(config, seed=3)
    return TransformerDenoiser(model, mask_id=MASK, shift=shift, **more)


def live():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=V + 1, hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, mask_token_id=MASK,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).double().eval()
    return samplers.models.from_transformers(model, mask_id=MASK)


def table(denoiser):
    model = denoiser.model
    return model.embed if isinstance(model, Transformer) else model.get_input_embeddings()


@pytest.mark.parametrize(
    ("make", "run"),
    [
        (ours, {}),
        (ours, {"cache": "prefix", "block_length": 4}),
        (ours, {"cache": "dual", "block_length": 4, "ragged": "groups"}),
        (ours, {"cfg_scale": 0.7}),
        (lambda: ours(shift=True), {"cache": "delayed(2)"}),
        (lambda: ours("block_causal"), {"cache": "block"}),
        (lambda: ours("causal"), {"cache": "prefix"}),
        (live, {}),
    ],
)
def test_embeddings_of_tokens_are_the_tokens(make, run):
    denoiser = make()
    run = {"gen_length": 9, "steps": 5, "seed": 2, "info": True, **run}
    embeds, last = [table(denoiser)(torch.tensor(row[:-1])) for row in TOKENS], [row[-1:] for row in TOKENS]
    by_ids = samplers.sample(denoiser, "entropy_bound", prompt=TOKENS, **run)
    by_embeds = samplers.sample(denoiser, "entropy_bound", prompt=last, prompt_embeds=embeds, **run)
    for ids, same in zip(by_ids.generated, by_embeds.generated):
        assert torch.equal(ids, same)
    assert (by_ids.nfe, by_ids.cache_bytes) == (by_embeds.nfe, by_embeds.cache_bytes)
    other = samplers.sample(
        denoiser, "entropy_bound", prompt=last, prompt_embeds=[4 * e.roll(1, 0) for e in embeds], **run
    )
    sure, same, unlike = (out.info["confidence"][0].nan_to_num() for out in (by_ids, by_embeds, other))
    torch.testing.assert_close(sure, same, atol=1e-6, rtol=0)
    assert not torch.allclose(sure, unlike, atol=1e-5)


def test_one_prompt_of_embeddings_for_all_rows_and_none_of_tokens():
    denoiser = ours()
    embeds = table(denoiser)(torch.tensor(TOKENS[0]))
    alone = samplers.sample(denoiser, "radd", prompt_embeds=embeds, gen_length=6)
    assert alone.x[0, :5].tolist() == [31, 32, 33, 34, 35]  # the ids from denoiser.embedding[0] on
    assert torch.equal(
        alone.generated[0], samplers.sample(denoiser, "radd", prompt=TOKENS[0], gen_length=6).generated[0]
    )
    batch = samplers.sample(denoiser, "radd", prompt_embeds=embeds[None].expand(3, -1, -1), gen_length=6)
    assert batch.x.shape == (3, 11)
    shared = samplers.sample(denoiser, "radd", prompt_embeds=embeds, prompt=[[1], [2]], gen_length=6)
    assert shared.x.shape == (2, 12)


def test_ids_of_embeddings_anywhere_in_a_prompt():
    """An image between two texts, in sampling, infilling and scoring; embeddings can be added twice."""
    denoiser = ours()
    image = table(denoiser)(torch.tensor([7, 8]))
    made, (first,) = denoiser.with_embeddings([image[:1]])
    made, (second,) = made.with_embeddings([image[1:]])
    assert (first.tolist(), second.tolist()) == ([31], [32])
    mixed, plain = [3, 31, 32, 4], [3, 7, 8, 4]
    run = {"gen_length": 6, "seed": 1}
    assert torch.equal(
        samplers.sample(made, "radd", prompt=mixed, **run).generated[0],
        samplers.sample(denoiser, "radd", prompt=plain, **run).generated[0],
    )
    fill = [False, False, True, False, True, True]
    canvas = samplers.Canvas.infill(made, [3, 31, 0, 32, 0, 0], fill)
    other = samplers.Canvas.infill(denoiser, [3, 7, 0, 8, 0, 0], fill)
    assert torch.equal(
        samplers.sample(made, "radd", prompt=canvas).generated[0],
        samplers.sample(denoiser, "radd", prompt=other).generated[0],
    )
    scored = nll(made, [[*mixed, 5, 6]], prompt=4, mc=16), nll(denoiser, [[*plain, 5, 6]], prompt=4, mc=16)
    assert torch.allclose(scored[0].nll, scored[1].nll)


@pytest.mark.parametrize("sampler", ["refusion", "entropy_bound"])
def test_a_text_after_embeddings_is_that_after_the_tokens(sampler):
    denoiser = samplers.models.zoo.load("text-refusion" if sampler == "refusion" else "text-mdm")
    ids = denoiser.encode("Return the")
    run = {"gen_length": 16, "block_length": 16, "stop": ["."]}
    by_text = samplers.sample(denoiser, sampler, prompt="Return the", **run)
    by_embeds = samplers.sample(denoiser, sampler, prompt_embeds=table(denoiser)(ids), **run)
    assert by_text.texts == by_embeds.texts and by_text.finish_reasons == by_embeds.finish_reasons
    assert denoiser.decode(by_embeds.x[0]) == denoiser.decode(by_text.generated[0])


def test_a_denoiser_says_what_it_is():
    assert repr(ours()) == (
        "<TransformerDenoiser 'transformer': 30 tokens, mask 30, full attention, caches prefix dual delayed>"
    )
    wrapped = samplers.TokenDenoiser.wrap(lambda ids: ids, vocab_size=12, mask_id=11, name="plain")
    assert repr(wrapped).endswith(" 'plain': 12 tokens, mask 11, full attention>")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: samplers.sample(TinyNet(), "radd", prompt_embeds=torch.zeros(2, 4), gen_length=3), "takes token ids only"),
        (lambda m: samplers.sample(m, "radd", prompt_embeds=torch.zeros(2, 4), gen_length=3), r"row 0 is .*\(2, 4\).* D = 32"),
        (lambda m: samplers.sample(m, "radd", prompt_embeds="x", gen_length=3), r"\(P, D\), \(B, P, D\) or a list"),
        (
            lambda m: samplers.sample(m, "radd", prompt_embeds=torch.zeros(2, 1, D), prompt=[[1], [2], [3]], gen_length=3),
            "prompt_embeds has 2 rows and prompt 3",
        ),
        (lambda m: samplers.sample(m, "radd", prompt=[1, 31], gen_length=3), "position 1 is 31; tokens of .* are 0 to 29"),
        (lambda m: nll(m.with_embeddings([torch.zeros(1, D)])[0], [[1, 31]], prompt=1), "row 0, position 1 .* 31, .*embedding, .* cannot be scored"),
        (
            lambda m: samplers.sample(
                m, "radd", prompt=samplers.Canvas.of(m, [1], 3), prompt_embeds=torch.zeros(1, D)
            ),
            "does not go with a Canvas",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, says):
    with pytest.raises(OptionError, match=says):
        call(ours())
