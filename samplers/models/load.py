"""Weights from disk: safetensors, one file or shards with an index, under the names of the model that they are of.

    model, config = samplers.models.load("path/of/a/model")          # config.json's content beside the Transformer
    samplers.models.save(model, "path/of/another")                   # in our own names, which load reads as well

Read are `LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and `Qwen3MoeForCausalLM` as transformers saves them (4.x
and 5.x configurations); `LLaDAModelLM`, `LLaDAMoEModelLM`, `LLaDA2MoeModelLM`, `DreamModel`, `SDARForCausalLM`,
`SDARMoeForCausalLM` and `Fast_dLLM_QwenForCausalLM` as their own code names parameters and configuration (compared with
published copies of that code, not with the published weights); and `SamplersTransformer`, ours. What each of them is, see
families.py. A pickle is never loaded: it may run code.

safetensors: eight bytes, the little-endian length of a JSON header {name: {dtype, shape, data_offsets}}, the header, the
tensors' bytes (https://huggingface.co/docs/safetensors). Each tensor is read for itself, straight into its memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, OptionError, did_you_mean
from .families import architecture_of, recognise
from .transformer import Config, Experts, Llama3Rope, Transformer

__all__ = ["load", "read_safetensors", "save", "write_safetensors"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes, as the reference reader has it


# ---------------------------------------------------------------------------------------------- the file format


class _File:
    """One open safetensors file, its header read and checked against the size of the file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
        try:
            self._read_header(path.stat().st_size)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _read_header(self, size: int) -> None:
        length = int.from_bytes(self.file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ModelError(
                f"{self.path} is truncated or no safetensors file: {size} bytes, a header of {length} is announced"
            )
        try:
            header = json.loads(self.file.read(length))
            header.pop("__metadata__", None)
            self.tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {
                name: _entry(**about) for name, about in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.path} is no safetensors file: its header cannot be read ({error})") from error
        self.begin = 8 + length
        for name, (dtype, shape, begin, end) in self.tensors.items():
            if begin < 0 or self.begin + end > size:
                raise ModelError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {self.begin + end}, the file has {size}"
                )
            if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
                raise ModelError(
                    f"{self.path}: tensor {name!r} is {dtype} of shape {shape}, but takes {end - begin} bytes"
                )

    def read(self, name: str) -> Tensor:
        dtype, shape, begin, end = self.tensors[name]
        if dtype not in DTYPES:
            raise ModelError(f"{self.path}: tensor {name!r} is {dtype}; {', '.join(DTYPES)} can be read")
        out = torch.empty(shape, dtype=DTYPES[dtype], device="cpu")
        if end > begin:
            self.file.seek(self.begin + begin)
            view = memoryview(out.view(-1).view(torch.uint8).numpy().data)
            while len(view):  # one call reads 2 GiB at most
                got = self.file.readinto(view)
                if not got:
                    raise ModelError(f"{self.path} is truncated: tensor {name!r} ends early")
                view = view[got:]
        return out


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[str, tuple[int, ...], int, int]:
    begin, end = data_offsets
    return str(dtype), tuple(int(n) for n in shape), int(begin), int(end)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of one file. ModelError where it is truncated, no safetensors file, or of a dtype that is none of
    F64, F32, F16 and BF16."""
    with _File(Path(path)) as file:
        return {name: file.read(name) for name in file.tensors}


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """One file of CPU or device tensors, in their order, each contiguous in it."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, at = {}, 0
    for name, x in tensors.items():
        if x.dtype not in names:
            raise ModelError(f"tensor {name!r} is {x.dtype}; {', '.join(map(str, names))} can be written")
        end = at + x.numel() * x.element_size()
        header[name] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            file.write(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def read_tensors(
    folder: Path, where: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]], who: str, spare: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model, one by one, on the CPU and in the dtype that they are stored in.

    Args:
        folder: what errors name.
        where: tensor names to the files that hold them.
        expected: names to shapes, in the order in which they come.
        who: how errors call the model.
        spare: endings of names that may be there and are not read.

    Raises:
        ModelError: a tensor is missing, not part of the model, of another shape, or cannot be read.
    """
    extra = sorted(n for n in where if n not in expected and not n.endswith(spare))
    if missing := sorted(n for n in expected if n not in where):
        raise ModelError(f"{folder}: tensor {missing[0]!r} is missing{_and_others(missing)}")
    if extra:
        raise ModelError(f"{folder}: tensor {extra[0]!r} is not part of {who}{_and_others(extra)}")
    files: dict[Path, _File] = {}
    try:
        for name, shape in expected.items():
            path = where[name]
            if path not in files:
                files[path] = _File(path)
            if name not in files[path].tensors:
                raise ModelError(f"{path} has no tensor {name!r}, which {INDEX} says it has")
            x = files[path].read(name)
            if tuple(x.shape) != shape:
                raise ModelError(f"{folder}: tensor {name!r} has shape {tuple(x.shape)}, expected {shape}")
            yield name, x
    finally:
        for file in files.values():
            file.__exit__()


# ---------------------------------------------------------------------------------------------- whose names


@dataclasses.dataclass(frozen=True)
class _Part:
    """A tensor of a file that is a parameter of ours, or goes into one, or holds one."""

    name: str  # in the file
    at: int | None = None  # it is parameter[at]; None: it is the whole parameter
    rows: tuple[int, int, int] | None = (
        None  # (begin, end, total): the parameter is rows begin to end - 1, total in all
    )


@dataclasses.dataclass(frozen=True)
class _Names:
    """How an architecture calls things: config.json's content to ours, and our parameters' names to its."""

    config: Callable[[dict[str, Any]], dict[str, Any]]
    outside: dict[str, str]  # names of parameters that are in no layer
    layer: str  # what a layer's names begin with, {} its number
    inside: dict[str, str]  # names in a layer; "qkv": q, k and v in one; experts with {} for the expert's number

    def of(self, ours: str, config: Config) -> list[_Part]:
        """The tensors of the file that our parameter is made of."""
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", ours)
        if match is None:
            return [_Part(f"{self.outside[ours.removesuffix('.weight')]}.weight")]
        layer, name, kind = self.layer.format(match[1]), match[2], match[3]
        if name in ("q", "k", "v") and "qkv" in self.inside:
            q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
            begin, end = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[name]
            return [_Part(f"{layer}.{self.inside['qkv']}.{kind}", rows=(begin, end, q + 2 * kv))]
        if kind in ("weight", "bias"):
            return [_Part(f"{layer}.{self.inside[name]}.{kind}")]
        theirs = f"{layer}.{self.inside[f'{name}.{kind}']}"  # a parameter of its own, such as experts.gate
        if "{}" not in theirs:
            return [_Part(theirs)]
        assert config.experts is not None
        return [_Part(theirs.format(i), at=i) for i in range(config.experts.number)]


def _refuse(config: Mapping[str, Any], wanted: Mapping[str, Iterable[Any]]) -> None:
    """Anything in a configuration that this decoder does not do is an error, not another model."""
    for key, allowed in wanted.items():
        allowed = tuple(allowed)
        if key in config and config[key] not in allowed:
            words = " or ".join(map(repr, allowed))
            raise ModelError(f"config.json has {key}={config[key]!r}; this decoder does {words}")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, 4 rope_theta and rope_scaling."""
    about = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = about.get("rope_type", about.get("type", "default"))
    made: dict[str, Any] = {"rope_theta": float(about.get("rope_theta", config.get("rope_theta", 10_000.0)))}
    if kind == "llama3":
        made["rope_scaling"] = Llama3Rope(
            factor=float(about["factor"]),
            low_freq_factor=float(about["low_freq_factor"]),
            high_freq_factor=float(about["high_freq_factor"]),
            original_length=int(about["original_max_position_embeddings"]),
        )
    elif kind != "default":
        raise ModelError(f"config.json has rotary positions of the kind {kind!r}; 'default' and 'llama3' can be done")
    return made


def _rotary_factor(config: Mapping[str, Any], default: float) -> float:
    """partial_rotary_factor, which transformers 5 writes into rope_parameters."""
    about = config.get("rope_parameters") or {}
    return float(about.get("partial_rotary_factor", config.get("partial_rotary_factor", default)))


def _rotary_width(config: Mapping[str, Any], default: float) -> int:
    """How many elements of a head are turned."""
    factor = _rotary_factor(config, default)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if not 0 < factor <= 1:
        raise ModelError(f"config.json has partial_rotary_factor={factor!r}; a number above 0, at most 1, is needed")
    return int(head * factor)


def _transformers_config(config: dict[str, Any]) -> dict[str, Any]:
    _refuse(
        config,
        {
            "hidden_act": ("silu",),
            "use_sliding_window": (False,),
            "quantization_config": (None,),
        },
    )
    if bad := set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ModelError(f"config.json has layers of {', '.join(sorted(bad))}; this decoder does 'full_attention'")
    return {
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "head_width": config.get("head_dim"),
        "mlp_width": config["intermediate_size"],
        "tied": bool(config.get("tie_word_embeddings", False)),
        "softcap": config.get("final_logit_softcapping"),
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "max_length": config.get("max_position_embeddings", Config.max_length),
        **_rope(config),
    }


def _llada_config(config: dict[str, Any]) -> dict[str, Any]:
    _refuse(
        config,
        {
            "block_type": ("llama",),
            "block_group_size": (1,),
            "layer_norm_type": ("rms",),
            "activation_type": ("silu",),
            "rope": (True,),
            "alibi": (False,),
            "attention_layer_norm": (False,),
            "input_emb_norm": (False,),
            "scale_logits": (False,),
            "include_bias": (False,),
        },
    )
    heads = config["n_heads"]
    return {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "width": config["d_model"],
        "layers": config["n_layers"],
        "heads": heads,
        "kv_heads": config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads),
        "mlp_width": config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        "tied": bool(config.get("weight_tying", True)),
        "qkv_bias": bool(config.get("include_qkv_bias", False)),
        "rope_theta": float(config.get("rope_theta", 10_000.0)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-5)),
        "max_length": config.get("max_sequence_length", Config.max_length),
    }


def _our_config(config: dict[str, Any]) -> dict[str, Any]:
    made = dict(config["transformer"])
    if made.get("rope_scaling"):
        made["rope_scaling"] = Llama3Rope(**made["rope_scaling"])
    if made.get("experts"):
        made["experts"] = Experts(**made["experts"])
    known = [field.name for field in dataclasses.fields(Config)]
    for key in made:
        if key not in known:
            raise ModelError(f"config.json has {key!r} in 'transformer'{did_you_mean(key, known)}")
    return made


def _biases(config: dict[str, Any]) -> dict[str, Any]:
    """Llama's and Qwen3's attention_bias is of q, k, v and o; mlp_bias is Llama's."""
    attention = bool(config.get("attention_bias", False))
    return {"qkv_bias": attention, "o_bias": attention, "mlp_bias": bool(config.get("mlp_bias", False))}


def _qwen_experts(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-MoE's: softmax, no bias, no groups, nothing shared; some layers may be dense."""
    number = config.get("num_local_experts") or config["num_experts"]  # transformers 5 and 4
    step = config.get("decoder_sparse_step", 1)
    layers = range(config["num_hidden_layers"])
    dense = [i for i in layers if i in (config.get("mlp_only_layers") or ()) or (i + 1) % step]
    made = Experts(
        number=number,
        per_token=config["num_experts_per_tok"],
        width=config["moe_intermediate_size"],
        normed=bool(config.get("norm_topk_prob", False)),
        dense_layers=tuple(dense),
    )
    return {"experts": made, "qk_norm": True, **_biases(config)}


def _llada_moe_config(config: dict[str, Any]) -> dict[str, Any]:
    """Softmax over the experts whose chosen shares are not divided by their sum; moe_layer_freq[i] is 0 in dense layers."""
    _refuse(
        config,
        {
            "moe_router_enable_expert_bias": (False, None),
            "moe_router_score_function": ("softmax", None),
            "clip_qkv": (None,),
            "routed_scaling_factor": (1, None),
        },
    )
    dense = tuple(i for i, there in enumerate(config.get("moe_layer_freq") or ()) if not there)
    made = Experts(
        number=config["num_experts"],
        per_token=config["num_experts_per_tok"],
        width=config["expert_intermediate_size"],
        shared_width=config.get("shared_expert_intermediate_size"),
        dense_layers=dense,
    )
    whole = {"intermediate_size": config.get("dense_intermediate_size") or config["expert_intermediate_size"]}
    return {
        **_transformers_config({**config, **whole}),
        **_biases(config),
        "qk_norm": bool(config.get("qk_layernorm")),
        "rotary_width": _rotary_width(config, 1.0),
        "experts": made,
    }


def _llada2_config(config: dict[str, Any]) -> dict[str, Any]:
    """Sigmoid scores, groups of experts, a bias for the choice, shared experts, the first layers dense."""
    _refuse(
        config,
        {"norm_head": (False,), "score_function": ("sigmoid", None), "moe_router_enable_expert_bias": (True, None)},
    )
    per_token, shared = config["num_experts_per_tok"], config.get("num_shared_experts")
    made = None
    if config.get("num_experts") is not None:
        made = Experts(
            number=config["num_experts"],
            per_token=per_token,
            width=config["moe_intermediate_size"],
            shared_width=config["moe_intermediate_size"] * shared if shared else None,
            score="sigmoid",
            normed=per_token > 1,
            scale=float(config.get("routed_scaling_factor", 2.5)),
            groups=config.get("n_group", 8),
            groups_kept=config.get("topk_group", 4),
            bias=True,
            dense_layers=tuple(range(config.get("first_k_dense_replace", 0))),
        )
    whole = {"intermediate_size": config.get("intermediate_size") or config["moe_intermediate_size"]}
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return {
        **_transformers_config({**config, **whole}),
        "kv_heads": heads,
        "qkv_bias": bool(config.get("use_qkv_bias", False)),
        "o_bias": bool(config.get("use_bias", True)),
        "qk_norm": bool(config.get("use_qk_norm", True)),
        "rotary_width": _rotary_width(config, 0.5),
        "norm_eps": float(config.get("rms_norm_eps", 1e-5)),
        "experts": made,
    }


_HF_OUTSIDE = {"embed": "model.embed_tokens", "norm": "model.norm", "unembed": "lm_head"}
_MLP = ("gate", "up", "down")
_HF_INSIDE = {
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"mlp.{name}_proj" for name in _MLP},
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
    "experts.router": "mlp.gate",
    **{f"experts.{name}": f"mlp.experts.{{}}.{name}_proj.weight" for name in _MLP},
}


def _transformers(more: Callable[[dict[str, Any]], dict[str, Any]]) -> _Names:
    def config(raw: dict[str, Any]) -> dict[str, Any]:
        if (factor := _rotary_factor(raw, 1.0)) != 1.0:
            raise ModelError(f"config.json has partial_rotary_factor={factor}; a model of this class turns whole heads")
        return _transformers_config(raw) | more(raw)

    return _Names(config, _HF_OUTSIDE, "model.layers.{}", _HF_INSIDE)


_LLADA = "model.transformer"
_OUR_NAMES = (*"qkvo", *_MLP, "norm_q", "norm_k", "norm_attention", "norm_mlp")
_OUR_EXPERTS = ("router", "choice_bias", *_MLP, *(f"shared_{name}" for name in _MLP))
_QWEN2 = _transformers(lambda raw: {"qkv_bias": True})  # the code of these has no option for it
_QWEN3 = _transformers(lambda raw: {"qk_norm": True, **_biases(raw)})
_QWEN3_MOE = _transformers(_qwen_experts)
ARCHITECTURES = {
    "LlamaForCausalLM": _transformers(_biases),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "DreamModel": _QWEN2,
    "Fast_dLLM_QwenForCausalLM": _QWEN2,
    "SDARForCausalLM": _QWEN3,
    "SDARMoeForCausalLM": _QWEN3_MOE,
    "LLaDAModelLM": _Names(
        _llada_config,
        {"embed": f"{_LLADA}.wte", "norm": f"{_LLADA}.ln_f", "unembed": f"{_LLADA}.ff_out"},
        f"{_LLADA}.blocks.{{}}",
        {
            "q": "q_proj",
            "k": "k_proj",
            "v": "v_proj",
            "o": "attn_out",
            "gate": "ff_proj",
            "up": "up_proj",
            "down": "ff_out",
            "norm_attention": "attn_norm",
            "norm_mlp": "ff_norm",
        },
    ),
    "LLaDAMoEModelLM": _Names(
        _llada_moe_config,
        _HF_OUTSIDE,
        "model.layers.{}",
        _HF_INSIDE | {f"experts.shared_{name}": f"shared_expert.{name}_proj" for name in _MLP},
    ),
    "LLaDA2MoeModelLM": _Names(
        _llada2_config,
        _HF_OUTSIDE | {"embed": "model.word_embeddings"},
        "model.layers.{}",
        _HF_INSIDE
        | {
            "qkv": "attention.query_key_value",
            "o": "attention.dense",
            "norm_q": "attention.query_layernorm",
            "norm_k": "attention.key_layernorm",
            "experts.choice_bias": "mlp.gate.expert_bias",
        }
        | {f"experts.shared_{name}": f"mlp.shared_experts.{name}_proj" for name in _MLP},
    ),
    "SamplersTransformer": _Names(
        _our_config,
        {"embed": "embed", "norm": "norm", "unembed": "unembed"},
        "blocks.{}",
        {name: name for name in (*_OUR_NAMES, *(f"experts.{name}" for name in _OUR_EXPERTS))},
    ),
}


# ---------------------------------------------------------------------------------------------- load and save


def load(
    path: str | Path,
    *,
    attention: str | None = None,
    block_length: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Transformer, dict[str, Any]]:
    """The model in the folder `path`, and the content of its config.json (where mask and end ids are, if it has them).

    Args:
        attention, block_length: what the model's rows see, where it is not what is known of the architecture
            (families.recognise: causal for Llama and Qwen, full for LLaDA): a causal model that was trained on as a
            masked one is loaded with attention="full".
        dtype: dtype of the parameters; None: as they are stored (the embedding's, if they differ).
        device: where they go, tensor by tensor.

    Raises:
        ModelError: no config.json; an architecture, option or dtype that is not done here; no safetensors (a folder of
            .bin or .pt files is a pickle, which is not opened); an index that names a missing shard; a truncated file; a
            tensor that is missing, of the wrong shape, or not part of the model. It says which.
    """
    folder = Path(path)
    raw = _read_json(folder / "config.json")
    names, config = _shape(folder, raw, attention, block_length)
    model = Transformer(config, seed=None)

    where, shapes = _files(folder), {ours: tuple(p.shape) for ours, p in model.named_parameters()}
    expected: dict[str, tuple[int, ...]] = {}
    takers: dict[str, list[tuple[str, _Part]]] = {}  # of each tensor of the file, the parameters that it goes into
    for ours, whole in shapes.items():
        for part in names.of(ours, config):
            shape = whole if part.at is None else whole[1:]
            expected[part.name] = shape if part.rows is None else (part.rows[2], *shape[1:])
            takers.setdefault(part.name, []).append((ours, part))
    spare = names.outside["unembed"] + ".weight"
    if config.tied and spare in where:  # some files have the tied head once more
        expected[spare] = shapes["embed.weight"]

    state: dict[str, Tensor] = {}
    for name, x in read_tensors(folder, where, expected, str(architecture_of(raw)), ("rotary_emb.inv_freq",)):
        dtype = dtype or x.dtype
        for ours, part in takers.get(name, ()):
            piece = x if part.rows is None else x[part.rows[0] : part.rows[1]].clone()
            if part.at is None:
                # A bias of the choice of experts stays as exact as it is stored.
                state[ours] = piece.to(device, x.dtype if ours.endswith("choice_bias") else dtype)
            else:
                if ours not in state:
                    state[ours] = torch.empty(shapes[ours], dtype=dtype, device=device)
                state[ours][part.at] = piece
        if name not in takers and not torch.equal(x.to(device, dtype), state["embed.weight"]):
            raise ModelError(f"{folder}: {spare!r} differs from the embedding, but config.json says that they are tied")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False), raw


def _shape(
    folder: Path, raw: dict[str, Any], attention: str | None = None, block_length: int | None = None
) -> tuple[_Names, Config]:
    """How the tensors of a folder are called, and the shape of its model; arguments as those of `load`."""
    name = architecture_of(raw)
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{folder}: unsupported architecture {name!r}{did_you_mean(str(name), ARCHITECTURES)} "
            f"Known: {', '.join(ARCHITECTURES)}. samplers.models.pretrained(folder) takes more"
        )
    family = recognise(raw)
    if attention is None:
        attention, block_length = family.attention, block_length or family.block_length
    elif attention == "block_causal":
        block_length = block_length or family.block_length
    try:
        shape = ARCHITECTURES[name].config(raw)
        return ARCHITECTURES[name], Config(**shape | {"attention": attention, "block_length": block_length})
    except KeyError as error:
        raise ModelError(f"{folder}: config.json has no {error.args[0]!r}, which {name} needs") from error
    except OptionError as error:
        raise ModelError(f"{folder}: config.json describes a model that this decoder cannot be: {error}") from error


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: a JSON object is needed, not {type(found).__name__}")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Tensor names to the files that hold them."""
    if (folder / INDEX).exists():
        table = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict):
            raise ModelError(f"{folder / INDEX} has no 'weight_map'")
        for shard in sorted(set(table.values())):
            if Path(shard).name != shard:
                raise ModelError(f"{folder / INDEX} names {shard!r}; a shard is a file in the same folder")
            if not (folder / shard).is_file():
                raise ModelError(f"{folder / INDEX} names the shard {shard!r}, which is not there")
        return {name: folder / shard for name, shard in table.items()}
    if (folder / SINGLE).exists():
        with _File(folder / SINGLE) as file:
            return dict.fromkeys(file.tensors, folder / SINGLE)
    pickles = sorted(p.name for ending in ("bin", "pt", "pth") for p in folder.glob(f"*.{ending}"))
    if pickles:
        raise ModelError(
            f"{folder} has weights as pickles only ({pickles[0]}); a pickle may run code and is never loaded: "
            "save them as safetensors, as transformers' save_pretrained does"
        )
    raise ModelError(
        f"{folder} has neither {SINGLE} nor {INDEX}: the weights are elsewhere; name the folder that has them beside config.json"
    )


def headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each tensor's dtype, as the file calls it, and its shape; only the headers are read, of a folder or of one file.

    Raises:
        ModelError: as `load`, for a folder without safetensors and for files that cannot be read.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in [folder] if folder.is_file() else sorted(set(_files(folder).values())):
        with _File(path) as file:
            found |= {name: about[:2] for name, about in file.tensors.items()}
    return found


def save(model: Transformer, path: str | Path, **facts: Any) -> None:
    """Write `model` as model.safetensors and config.json, in our names; `facts` go into config.json beside its shape.

    The folder is made if it is not there. `load` gives the same model back, to the bit.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(dict(model.named_parameters()), folder / SINGLE)
    about = {"architectures": ["SamplersTransformer"], "transformer": dataclasses.asdict(model.config), **facts}
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
