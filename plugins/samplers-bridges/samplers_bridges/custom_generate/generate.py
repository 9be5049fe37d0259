"""Any masked sampler of the sampler zoo as the decoding of a transformers model:

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, sampler="entropy_bound", max_new_tokens=64, steps=32)

FOLDER is what holds the folder custom_generate in which this file is. transformers hands over everything that generate() was
called with. What it calls max_new_tokens, do_sample, temperature and so on is read as it reads it; every other keyword is an
argument of samplers.sample() or an option of the sampler: steps, block_length, cache, cfg_scale, bound ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from samplers import OptionError, models, sample

# Settings that would change the tokens and that no sampler follows, and the values that ask for nothing.
REFUSED = (
    "assistant_early_exit", "bad_words_ids", "begin_suppress_tokens", "constraints", "diversity_penalty", "dola_layers",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "force_words_ids", "guidance_scale",
    "max_time", "min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "penalty_alpha", "prompt_lookup_num_tokens",
    "repetition_penalty", "sequence_bias", "token_healing", "top_h", "typical_p", "watermarking_config",
)  # fmt: skip
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1)
INSTEAD = {"guidance_scale": "cfg_scale=, which is guidance_scale - 1", "bad_words_ids": "forbid= for single tokens"}


@dataclass
class DiffusionOutput(GenerateDecoderOnlyOutput):
    """What generate(return_dict_in_generate=True) returns.

    Attributes:
        sequences: (B, P + G) int64, as generate() returns them.
        nfe: forward passes of the model.
    """

    nfe: int | None = None


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    sampler: str | None = None,
    seed: int | None = None,
    tokenizer: Any = None,
    mask_id: int | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    prefix_allowed_tokens_fn: Any = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: Any = None,
    negative_prompt_attention_mask: Any = None,
    token_type_ids: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | DiffusionOutput:
    """Fill what follows the prompts with a sampler.

    Args:
        input_ids (or inputs): (B, P) int64, the prompts; shorter ones padded on the left, which attention_mask says.
        attention_mask: (B, P), 0 at the padding. The model never sees the padding: positions count from a row's first token.
        sampler: the name of a sampler. None: what the model's own code runs, if the zoo knows it; else low_confidence.
        seed: of the draws. None: taken from torch's generator, so that torch.manual_seed decides, as in generate().
        tokenizer, mask_id, shift, attention: as in samplers.models.from_transformers, for models of which the zoo does not know
            them.
        kwargs: settings of GenerationConfig (max_new_tokens or max_length, do_sample, temperature, top_k, top_p, eos_token_id,
            stop_strings, suppress_tokens, pad_token_id, num_return_sequences, return_dict_in_generate), arguments of
            samplers.sample() and options of the sampler. do_sample=False is temperature 0, and do_sample=True temperature 1
            unless it is given. If neither is said, the sampler's own default holds.

    Returns:
        (B, P + G) int64, the prompts as they were given and what follows; after a row's end pad_token_id, or else its end token.
        As in generate(), G is that of the longest row. A DiffusionOutput if return_dict_in_generate is set.

    Raises:
        OptionError: a setting is missing, wrong, or one that no sampler follows. ModelError: the model cannot be used so.
    """
    for name, value in {
        "logits_processor": logits_processor,
        "stopping_criteria": stopping_criteria,
        "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
        "assistant_model": assistant_model,
        "streamer": streamer,
        "negative_prompt_ids": negative_prompt_ids,
        "negative_prompt_attention_mask": negative_prompt_attention_mask,
        "synced_gpus": synced_gpus,
    }.items():
        if value is not None and value is not False and not (isinstance(value, list) and not value):
            hint = (
                "; samplers.sample(constrain=) forbids and fixes tokens" if name == "prefix_allowed_tokens_fn" else ""
            )
            raise OptionError(f"{name} is for decoding from left to right, and samplers do not follow it{hint}")
    if token_type_ids is not None and bool(token_type_ids.any()):
        raise OptionError("token_type_ids other than 0: the denoiser of a transformers model is given ids alone")
    ids = input_ids if input_ids is not None else inputs
    if ids is None or ids.dim() != 2:
        got = "none" if ids is None else f"a tensor {tuple(ids.shape)}"
        raise OptionError(f"input_ids: {got}; (B, P) token ids are needed")
    said, rest = _settings(model, generation_config, kwargs)
    denoiser = _denoiser(model, tokenizer, mask_id, shift, attention)
    rows = _rows(ids, attention_mask)
    copies = said("num_return_sequences") or 1
    rows = [row for row in rows for _ in range(copies)]
    default: tuple[str, dict[str, Any]] = denoiser.recipe or ("low_confidence", {})
    name, recipe = default if sampler is None else (sampler, {})
    stop = _stop(said)
    result = sample(
        denoiser,
        name,
        prompt=rows,
        gen_length=_new_tokens(said, ids.shape[1]),
        seed=int(torch.randint(2**62, (), device="cpu")) if seed is None else seed,
        **{**recipe, **_draw(said), **({} if stop is None else {"stop": stop}), **rest},
    )
    end = said("eos_token_id") if said("eos_token_id") is not None else (*denoiser.stop_ids, 0)
    end = end[0] if isinstance(end, (list, tuple)) else end
    pad = end if said("pad_token_id") is None else said("pad_token_id")
    begun = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=result.x.device)
    assert result.lengths is not None
    width = int((result.lengths - begun).max())
    column = begun[:, None] + torch.arange(width, device=result.x.device)  # (B, G)
    made = result.x.gather(1, column.clamp(max=result.x.shape[1] - 1))
    made = torch.where(column < result.lengths[:, None], made, int(pad))
    sequences = torch.cat([ids.repeat_interleave(copies, 0).to(made), made], 1)
    return (
        DiffusionOutput(sequences=cast(Any, sequences), nfe=result.nfe)
        if said("return_dict_in_generate")
        else sequences
    )


def _settings(model: Any, config: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a setting of GenerationConfig is: as this call says, or its config, or the model's; and the keywords that are none.

    Raises:
        OptionError: a setting that no sampler follows asks for something.
    """
    sources = [config, model.generation_config]
    known = vars(type(model.generation_config)())

    def said(name: str) -> Any:
        if kwargs.get(name) is not None:
            return kwargs[name]
        return next((v for source in sources if (v := getattr(source, name, None)) is not None), None)

    for name in REFUSED:
        value = said(name)
        if not any(value is v or (not isinstance(value, (list, dict)) and value == v) for v in NEUTRAL):
            hint = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
            raise OptionError(f"{name}={value!r}: samplers do not follow it{hint}")
    return said, {key: value for key, value in kwargs.items() if key not in known}


def _denoiser(model: Any, tokenizer: Any, mask_id: int | None, shift: bool | None, attention: str | None) -> Any:
    made = vars(model).setdefault(
        "_samplers_denoisers", {}
    )  # a wrap measures the model, so it is kept as long as the model
    key = (id(tokenizer), mask_id, shift, attention)
    if key not in made:
        how = {"mask_id": mask_id, "shift": shift, "attention": attention}
        made[key] = models.from_transformers(model, tokenizer, **how)
    return made[key]


def _rows(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The prompts without their padding."""
    if mask is None:
        return list(ids)
    if mask.shape != ids.shape:
        raise OptionError(f"attention_mask is {tuple(mask.shape)}; (B, P) = {tuple(ids.shape)} is needed")
    seen = mask.bool()
    if bool((seen[:, :-1] & ~seen[:, 1:]).any()) or (ids.shape[1] and not bool(seen[:, -1].all())):
        raise OptionError(
            "attention_mask has a 0 after a 1: pad on the left (tokenizer.padding_side = 'left'), since what is written follows "
            "the last position"
        )
    return [row[here] for row, here in zip(ids, seen)]


def _new_tokens(said: Any, prompt: int) -> int:
    if said("max_new_tokens") is not None:
        return said("max_new_tokens")
    if said("max_length") is None:
        raise OptionError("max_new_tokens is needed: a diffusion model fills a canvas whose length is known before")
    if said("max_length") <= prompt:
        raise OptionError(f"max_length={said('max_length')} leaves no position after {prompt} of the prompts; raise it")
    return said("max_length") - prompt


def _draw(said: Any) -> dict[str, Any]:
    """How tokens are drawn, as arguments of sample()."""
    if said("do_sample") is False:
        draw: dict[str, Any] = {"temperature": 0.0}
    else:
        draw = {name: said(name) for name in ("temperature", "top_k", "top_p") if said(name) is not None}
        if said("do_sample"):
            draw.setdefault("temperature", 1.0)
    if said("suppress_tokens"):
        draw["forbid"] = said("suppress_tokens")
    return draw


def _stop(said: Any) -> list[Any] | None:
    """Where rows end; None: where the model's denoiser says."""
    ends, strings = said("eos_token_id"), said("stop_strings")
    if ends is None and strings is None:
        return None
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return [*ends, *([strings] if isinstance(strings, str) else strings or [])]
