"""Families of models, recognised by the content of their config.json, with the defaults that each family was made for.

    family = recognise(json.loads(Path("folder/config.json").read_text()))
    family.attention, family.mask_id, family.source["mask_id"]

Nothing is opened and nothing is loaded here. What the file says comes before what the family is known for, and what a
person says (`corrected`) before both. `Family.source` says for each fact where it comes from. Facts of published models
(ids, block lengths, whether answers are shifted) are from their config.json and the code published with them; where only
other people's code could be read, `source` says so.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError, did_you_mean

__all__ = ["ATTENTIONS", "Family", "corrected", "recognise"]

ATTENTIONS = ("full", "causal", "block_causal")
ARGUMENT, CONFIG, GENERATION, TOKENIZER = "argument", "config.json", "generation_config.json", "tokenizer"
FIELDS = ("mask_id", "attention", "block_length", "shift", "stop_ids", "predicts_next", "sampler")


@dataclass(frozen=True)
class Family:
    """What is known of a model before it is loaded.

    Attributes:
        name: the family, such as "LLaDA" or "Dream"; "unknown" if the architecture is none of those below.
        mask_id: the mask token, None if nothing names one (or if the family has none: DiffusionGemma).
        attention: full, causal or block_causal: what a position's prediction may depend on.
        block_length: positions per block of block_causal attention, or of a denoiser that has blocks; else None.
        shift: whether the answer for position i is in line i - 1 of the model's output (line 0 answers position 0).
        stop_ids: the tokens that end a text.
        predicts_next: whether a token that is no mask is answered with the one after it (ReFusion).
        sampler: the sampler of this zoo that is the family's own. settings: the arguments and options that go with it.
        source: for each of the above, where it comes from.
        loader: "ours" (samplers.models.Transformer), "transformers" (from_transformers), or the module of samplers.models
            that has the function: "dit", "smdm" or "diffusion_gemma".
        plain: True: a language model that was published for prediction of the next token. If it is to denoise, a person
            must say how.
    """

    name: str
    mask_id: int | None = None
    attention: str = "full"
    block_length: int | None = None
    shift: bool = False
    stop_ids: tuple[int, ...] = ()
    predicts_next: bool = False
    sampler: str = "low_confidence"
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    loader: str = "ours"
    plain: bool = False


_LLADA2 = "dInfer's benchmarks (mask, eos), LLaDA2.X's report and diffusers' LLaDA2Pipeline (block, thresholds)"
_SDAR = "SDAR's repository: config.json of SDAR-4B-Chat and generate.py"
_PLAIN: dict[str, Any] = {"attention": "causal", "plain": True, "where": "the architecture's own code in transformers"}
# Settings are arguments of sample() and options of the sampler, as the family's own code has them by default.
_SDAR_FACTS: dict[str, Any] = {
    "attention": "block_causal",
    "mask_id": 151669,
    "block_length": 4,
    "sampler": "threshold",
    "settings": {"threshold": 0.85, "stop_rule": "block", "cache": "block", "temperature": 1.0},
}
KNOWN: dict[str, dict[str, Any]] = {
    "LLaDAModelLM": {
        "name": "LLaDA",
        "where": "LLaDA's repository (generate.py, configuration_llada.py); LLaDA-1.5 and UltraLLaDA have the same code",
        "mask_id": 126336,
        "stop_ids": (126081, 126348),
        "sampler": "low_confidence",
        "settings": {"temperature": 0.0},
    },
    "LLaDAMoEModelLM": {
        "name": "LLaDA-MoE",
        "where": "dllm's copy of its code (shapes), dInfer's benchmarks (mask, eos)",
        "mask_id": 156895,
        "stop_ids": (156892,),
        "sampler": "low_confidence",
        "settings": {"temperature": 0.0},
    },
    "LLaDA2MoeModelLM": {
        "name": "LLaDA2",
        "where": _LLADA2,
        "mask_id": 156895,
        "stop_ids": (156892,),
        "attention": "block_causal",
        "block_length": 32,
        "sampler": "llada2",
        "settings": {
            "threshold": 0.7,
            "edit_threshold": 0.5,
            "max_post_steps": 17,  # the pipeline's 16 are those after the first
            "steps_per_block": 32,
            "stop_rule": "llada2",
            "cache": "block",
        },
    },
    "DreamModel": {
        "name": "Dream",
        "where": "Dream's repository (configuration_dream.py, generation_utils.py); DiffuCoder has the same code and "
        "cannot be told from it",
        "mask_id": 151666,
        "shift": True,
        "sampler": "neg_entropy",
        "settings": {"temperature": 0.2, "top_p": 0.95},
    },
    "SDARForCausalLM": {"name": "SDAR", "where": _SDAR, **_SDAR_FACTS},
    "SDARMoeForCausalLM": {
        "name": "SDAR-MoE",
        "where": f"{_SDAR}; SGLang's table of its mask and block. Its tensors' names are taken to be Qwen3-MoE's; no "
        "published file of it could be read",
        **_SDAR_FACTS,
    },
    "Fast_dLLM_QwenForCausalLM": {
        "name": "Fast-dLLM v2",
        "where": "the model's modeling.py and README.md; no published config.json could be read, so the keys bd_size and "
        "mask_token_id are from code that reads it",
        "mask_id": 151665,
        "attention": "block_causal",
        "block_length": 32,
        "shift": True,
        "sampler": "threshold",
        "settings": {"threshold": 0.9, "cache": "block"},
    },
    "LlamaForCausalLM": {"name": "Llama", **_PLAIN},
    "Qwen2ForCausalLM": {"name": "Qwen2", **_PLAIN},
    "Qwen3ForCausalLM": {"name": "Qwen3", **_PLAIN},
    "Qwen3MoeForCausalLM": {"name": "Qwen3-MoE", **_PLAIN},
    "SamplersTransformer": {"name": "SamplersTransformer", "where": "samplers.models.save"},
    "DiffusionGemmaForBlockDiffusion": {
        "name": "DiffusionGemma",
        "where": "transformers' DiffusionGemma",
        "loader": "diffusion_gemma",
        "sampler": "entropy_bound_uniform",
        "settings": {"pace": False, "final": "best"},
    },
    "BD3LM": {
        "name": "BD3-LM",
        "where": "BD3-LM's repository",
        "loader": "dit",
        "attention": "block_causal",
        "sampler": "first_hitting",
    },
    "MDLM": {"name": "MDLM", "where": "MDLM's repository", "loader": "dit", "sampler": "ancestral"},
    "RADD": {"name": "RADD", "where": "RADD's repository", "loader": "dit", "sampler": "radd"},
    "SEDD": {"name": "SEDD", "where": "SEDD's repository", "loader": "dit", "sampler": "tau_leaping"},
    "SMDM": {"name": "SMDM", "where": "SMDM's repository", "loader": "smdm", "sampler": "smdm_greedy"},
}
# Where model_type alone tells, as in files that were written without `architectures`.
MODEL_TYPES = {
    "llada": "LLaDAModelLM",
    "lladamoe": "LLaDAMoEModelLM",
    "llada2_moe": "LLaDA2MoeModelLM",
    "llada21_moe": "LLaDA2MoeModelLM",
    "Dream": "DreamModel",
    "sdar": "SDARForCausalLM",
    "sdar_moe": "SDARMoeForCausalLM",
    "Fast_dLLM_Qwen": "Fast_dLLM_QwenForCausalLM",
    "diffusion_gemma": "DiffusionGemmaForBlockDiffusion",
    "bd3lm": "BD3LM",
    "mdlm": "MDLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
BLOCKS = ("block_length", "block_size", "bd_size", "canvas_length")  # what configurations call the length of a block


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The key of KNOWN that a configuration is of, or what it says itself; None if it says nothing."""
    stated = [str(a) for a in config.get("architectures") or ()]
    for name in stated:
        if name in KNOWN:
            return name
    if not stated and (name := MODEL_TYPES.get(str(config.get("model_type")), "")):
        return name
    model = config.get("model")
    if not stated and isinstance(model, Mapping):  # the configuration of their training; "without time" is RADD
        return {"ddit_wot": "RADD", "ddit": "SEDD"}.get(str(model.get("type")))
    return stated[0] if stated else None


def recognise(config: Mapping[str, Any]) -> Family:
    """The family of a model by the content of its config.json, and what that file and the family say of it.

    What is not known gives a Family named "unknown", to be loaded by transformers: of masked tokens and full attention if
    the class is one ForMaskedLM, else a plain one that predicts the next token.

    Args:
        config: the content of config.json. With generation_config.json's eos_token_id in it, that is what stop_ids are.
    """
    name = architecture_of(config)
    if name in KNOWN:
        facts = dict(KNOWN[name])
    else:
        masked = str(name).endswith("ForMaskedLM")
        facts = {
            "name": "masked LM" if masked else "unknown",
            "where": "the name of the class",
            "loader": "transformers",
            "attention": "full" if masked else "causal",
            "plain": not masked,
        }
    default = f"family default ({facts.pop('where')})"
    source = dict.fromkeys(FIELDS, default)
    if "sampler" not in facts:
        source["sampler"] = "LLaDA's, for every model whose code has none"

    def stated(field: str, value: Any) -> None:
        facts[field], source[field] = value, CONFIG

    mask_id = next((config[key] for key in ("mask_token_id", "mask_id") if config.get(key) is not None), None)
    if mask_id is not None:
        stated("mask_id", _id("the mask token", mask_id))
    elif name in ("MDLM", "BD3LM") and isinstance(config.get("vocab_size"), int):
        facts["mask_id"] = config["vocab_size"] - 1  # their last id
    elif name in ("RADD", "SEDD") and isinstance(config.get("tokens"), int):
        facts["mask_id"] = config["tokens"]
    if name == "SamplersTransformer":
        shape = config.get("transformer") or {}
        stated("attention", shape.get("attention", "causal"))
        if shape.get("block_length") is not None:
            stated("block_length", shape["block_length"])
        facts["predicts_next"] = facts["attention"] == "causal" and not config.get("shift")
        if facts["predicts_next"]:
            stated("sampler", "refusion")
    elif facts.get("attention") == "block_causal" or facts.get("loader") == "diffusion_gemma":
        key = next((key for key in BLOCKS if config.get(key) is not None), None)
        if key is not None:
            stated("block_length", _id(key, config[key]))
    if config.get("shift") is not None:
        stated("shift", bool(config["shift"]))
    ends = config.get("eos_token_id")
    if ends is not None:
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        ends = tuple(dict.fromkeys(_id("eos_token_id", i) for i in ends))
        more = facts.get("stop_ids", ())
        # LLaDA's file names the end of a text; the end of a turn, with which its answers end, is known from its code.
        stated("stop_ids", ends + tuple(i for i in more if i not in ends and set(ends) & set(more)))
    if facts.get("block_length") is not None and facts.get("attention") == "block_causal":
        facts["settings"] = {**facts.get("settings", {}), "block_length": facts["block_length"]}
    made = Family(**facts)
    return dataclasses.replace(
        made,
        settings=types.MappingProxyType(dict(made.settings)),
        source=types.MappingProxyType(source | {"name": CONFIG, "settings": default}),
    )


def _id(name: str, value: Any) -> int:
    """A number of config.json or generation_config.json."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"config.json: {name} is {value!r}; an integer is needed")
    return value


def corrected(
    family: Family,
    *,
    mask_id: int | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    tokenizer: Any = None,
    who: str = "the model",
) -> Family:
    """The family with what a person says in the place of what was recognised.

    Args:
        mask_id, shift, attention, block_length: as in `pretrained`; None: as recognised. attention="causal" without a word
            on shift means a model that also predicts the next token (ReFusion).
        tokenizer: a TextTokenizer; its mask token and ends count where neither a person nor config.json names any.
        who: how errors call the model.

    Raises:
        ModelError: an unknown attention; block_causal without a length, or a length without block_causal; a plain model
            that has a mask token, where nobody has said how it denoises.
    """
    facts: dict[str, Any] = {}
    source = dict(family.source)

    def said(field: str, value: Any, where: str = ARGUMENT) -> None:
        facts[field], source[field] = value, where

    if mask_id is not None:
        said("mask_id", mask_id)
    elif (
        tokenizer is not None
        and tokenizer.mask_id is not None
        and not (
            source.get("mask_id") == CONFIG
            or family.loader == "diffusion_gemma"  # that has none, whatever its tokenizer has
        )
    ):
        said("mask_id", tokenizer.mask_id, TOKENIZER)
    if tokenizer is not None and source.get("stop_ids") not in (CONFIG, GENERATION) and tokenizer.eos_ids:
        said("stop_ids", tuple(tokenizer.eos_ids), TOKENIZER)
    if shift is not None:
        said("shift", shift)
    if attention is not None and attention not in ATTENTIONS:
        raise ModelError(
            f"{who}: attention={attention!r}{did_you_mean(str(attention), ATTENTIONS)} "
            f"It is one of {', '.join(ATTENTIONS)}"
        )
    if attention is not None:
        said("attention", attention)
        if family.plain or family.name == "SamplersTransformer" or attention != family.attention:
            next_token = attention == "causal" and shift is None
            said("predicts_next", next_token)
            if next_token or family.sampler == "refusion":
                said("sampler", "refusion" if next_token else Family.sampler)
            if attention != family.attention:  # what the family is set to for its own attention
                source["settings"] = ARGUMENT
                facts["settings"] = types.MappingProxyType({})
    elif shift and family.predicts_next:
        said("predicts_next", False)
        said("sampler", Family.sampler)
    seen = attention or family.attention
    if block_length is not None:
        said("block_length", block_length)
        if isinstance(block_length, bool) or not isinstance(block_length, int) or block_length < 1:
            raise ModelError(f"{who}: block_length is an integer of 1 or more, not {block_length!r}")
        if seen != "block_causal" and family.loader != "diffusion_gemma":
            raise ModelError(
                f"{who}: block_length={block_length!r} goes with attention='block_causal' only; its attention is {seen!r}"
            )
    elif attention is not None and attention != "block_causal":
        facts["block_length"] = None
    family = dataclasses.replace(family, **facts, source=types.MappingProxyType(source))
    if family.attention == "block_causal" and family.block_length is None and family.loader == "ours":
        raise ModelError(
            f"{who}: attention='block_causal' needs block_length=, the length of the blocks that it was trained with"
        )
    if family.plain and attention is None and family.mask_id is not None:
        raise ModelError(
            f"{who} is a {family.name} model, which by its class predicts the next token, and it has a mask token "
            f"({family.mask_id}, named by the {source['mask_id']}): how it denoises must be told. attention='full': it was "
            "trained on as a masked model (with shift=True if it answers for a position in the line before it, as Dream "
            "does). attention='block_causal' with block_length=: block diffusion, as SDAR. attention='causal': ReFusion, "
            "which also predicts the next token. On the command line: hf:NAME?attention=full"
        )
    if family.settings.get("block_length") not in (None, family.block_length):
        family = dataclasses.replace(
            family, settings=types.MappingProxyType({**family.settings, "block_length": family.block_length})
        )
    return family


def no_mask(who: str, family: Family) -> ModelError:
    """The error for a model of masked tokens whose mask token nobody names."""
    return ModelError(
        f"{who}: neither config.json (mask_token_id) nor a tokenizer names a mask token, and none is known of "
        f"{family.name} models. If it has one, name it: mask_id=, or hf:NAME?mask_id= on the command line. "
        "(ReFusion's is 151670, with attention='causal')"
    )
