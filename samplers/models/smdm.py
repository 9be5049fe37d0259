"""Checkpoints of SMDM (Nie et al. 2410.18514): a Llama with full attention and no time, which is our Transformer.

    denoiser = samplers.models.smdm.load("mdm-1028M-1600e18.safetensors")

They were published as single safetensors files without a configuration (and as pickles, which are not opened), under the names
that lit-gpt gives. The tensors tell the whole shape but one number: how many heads share the width. The published models have
heads of 64 up to a width of 1024 and of 128 beyond, and an mlp of four times the width; the one of 75M parameters, whose mlp is
narrower, has 8 heads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..checks import integer
from ..errors import ModelError
from .denoiser import TransformerDenoiser
from .load import _File, read_tensors
from .transformer import Config, Transformer

__all__ = ["load"]

MAX_LENGTH = 2048
_INSIDE = {
    "attn.attn": ("q", "k", "v"),
    "attn.proj": ("o",),
    "mlp.swiglu.w1": ("gate",),
    "mlp.swiglu.w2": ("up",),
    "mlp.swiglu.w3": ("down",),
    "norm_1": ("norm_attention",),
    "norm_2": ("norm_mlp",),
}


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    mask_id: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> TransformerDenoiser:
    """The denoiser of one safetensors file.

    Its authors round cosines and sines of rotary positions to bfloat16; so does dtype=torch.bfloat16 here. Other dtypes leave
    them as they are.

    Args:
        path: the file.
        heads: how many; None: as the published models of this width have.
        mask_id: the mask token; None: the last id that the model embeds, 32000 in the published models, which the head does not
            have.
        dtype, device: as for samplers.models.load.

    Raises:
        ModelError: the file cannot be read or is a pickle; a tensor that is missing, of another shape, or not part of such a
            model; an mlp of another width than four times the model's, and no heads.
        OptionError: heads or mask_id is not what the model can have.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        raise ModelError(
            f"{path} is a pickle, which may run code and is never loaded; every SMDM model is also published as safetensors"
        )
    with _File(path) as file:
        shapes = {name: about[1] for name, about in file.tensors.items()}
    try:
        embeddings, width = shapes["transformer.wte.weight"]
        ids, mlp_width = shapes["lm_head.weight"][0], shapes["transformer.h.0.mlp.swiglu.w1.weight"][0]
        rows = shapes["transformer.h.0.attn.attn.weight"][0]
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} is no checkpoint of SMDM: tensor {error.args[0]!r} is missing or no matrix"
        ) from error
    if heads is None:
        if mlp_width != 4 * width:
            raise ModelError(
                f"{path}: an mlp of {mlp_width} for a width of {width}; that is no shape of which the heads are known: "
                "heads=8 for the model of 75M parameters"
            )
        heads = width // (64 if width <= 1024 else 128)
    heads = integer("heads", heads)
    head_width = width // heads
    kv_heads = (rows // head_width - heads) // 2  # queries, keys and values are one matrix
    layers = len({name.split(".")[2] for name in shapes if name.startswith("transformer.h.")})
    config = Config(
        ids, width, layers, heads, kv_heads, mlp_width=mlp_width, attention="full", embeddings=embeddings, norm_eps=1e-5,
        max_length=MAX_LENGTH,
    )  # fmt: skip

    expected = {
        "transformer.wte.weight": (embeddings, width),
        "transformer.ln_f.weight": (width,),
        "lm_head.weight": (ids, width),
    }
    inside = {
        "attn.attn": ((heads + 2 * kv_heads) * head_width, width),
        "attn.proj": (width, width),
        "mlp.swiglu.w1": (mlp_width, width),
        "mlp.swiglu.w2": (mlp_width, width),
        "mlp.swiglu.w3": (width, mlp_width),
        "norm_1": (width,),
        "norm_2": (width,),
    }
    expected |= {f"transformer.h.{i}.{name}.weight": shape for i in range(layers) for name, shape in inside.items()}
    outside = {"transformer.wte": "embed", "transformer.ln_f": "norm", "lm_head": "unembed"}
    state: dict[str, Tensor] = {}
    for name, x in read_tensors(path, dict.fromkeys(shapes, path), expected, "an SMDM model", ("inv_freq",)):
        dtype = dtype or x.dtype
        x, name = x.to(device, dtype), name.removesuffix(".weight")
        if name in outside:
            state[f"{outside[name]}.weight"] = x
            continue
        _, _, number, name = name.split(".", 3)
        ours = _INSIDE[name]
        parts: tuple[Tensor, ...] = (x,)
        if len(ours) == 3:  # a group has its queries, then its key, then its value
            groups = x.view(kv_heads, heads // kv_heads + 2, head_width, width)
            parts = tuple(g.reshape(-1, width) for g in (groups[:, :-2], groups[:, -2], groups[:, -1]))
        state |= {f"blocks.{number}.{our}.weight": part for our, part in zip(ours, parts)}
    model = Transformer(config, seed=None)
    model.load_state_dict(state, assign=True)
    return TransformerDenoiser(model, mask_id=embeddings - 1 if mask_id is None else mask_id, name=path.stem)
