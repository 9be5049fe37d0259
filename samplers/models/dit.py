"""The DiT of masked text diffusion: checkpoints of MDLM, BD3-LM, RADD and SEDD, under the names that they were published with.

    denoiser = samplers.models.dit.load(folder, config)              # config: what the folder's config.json says

A layer is that of Peebles and Xie (2212.09748) over tokens, with rotary positions (Lou et al. 2310.16834):

    h  = x + g1 * O attend(R(p) Q y, R(p) K y, V y),   y = n(x) (1 + s1) + b1
    x' = h + g2 * W2 gelu(W1 z),                       z = n(h) (1 + s2) + b2

where n is a LayerNorm with a weight, and b, s, g come from the noise level sigma by one linear map a layer. The last norm is
shifted and scaled in the same way; a linear head with a bias follows.

MDLM (Sahoo et al. 2406.07524) and BD3-LM (Arriola et al. 2503.09573) were published with sigma = 0 at all times. Their b, s and
g are then constants, which `load` multiplies into the weights beside them: what is left is RADD's layer (Ou et al. 2406.03736),
which has no time at all, with the norms' weight n(x) w (1 + s) + b. Such a denoiser is time-free, and its caches are exact
where samplers.feeds.cached says so.

What the head gives is the logits of the clean token, for all four:
    MDLM, BD3-LM  the "SUBS" rule (no probability for the mask, decided tokens stay) is what every run here does anyway.
    RADD          its published output is the log-softmax of these logits over all tokens but the mask.
    SEDD          log s = logits - log(e^sigma - 1) - log(V - 1). At a mask the score of token v is p(v) / (e^sigma - 1), p the
                  probability of the clean token (2406.03736, theorem 1), so p is the softmax of the logits over all tokens but
                  the mask: what does not depend on v cancels, and a score that is not quite of that form is normalised.
The mask is the last id. Its row is cut off the head (a slice, no copy), so that it cannot be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import integer
from ..denoiser import CacheUse, Head
from ..errors import ModelError, OptionError
from .denoiser import TransformerDenoiser
from .load import _files, _refuse, read_tensors
from .transformer import Config, Transformer, _turned

__all__ = ["DiT", "DiTDenoiser", "family", "load"]

FEATURES, PERIOD = 256, 10_000.0  # numbers that embed the noise level, and the longest wave among them over 2 pi
EPSILON = 1e-3  # the least share of tokens that is left clean, in all published noise schedules


# ---------------------------------------------------------------------------------------------- the model


class Block(nn.Module):
    """One layer, its parameters under their published names. With `told` its norms are shifted and scaled by the condition."""

    def __init__(self, config: Config, told: int | None):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, bias=told is None)
        self.attn_qkv = nn.Linear(width, 3 * width, False)
        self.attn_out = nn.Linear(width, width, False)
        self.norm2 = nn.LayerNorm(width, bias=told is None)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_width), nn.GELU("tanh"), nn.Linear(config.mlp_width, width)
        )
        if told is not None:
            self.adaLN_modulation = nn.Linear(told, 6 * width)

    @property
    def k(self) -> nn.Linear:
        """What makes the keys: Transformer looks here for their dtype."""
        return self.attn_qkv

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, n, D) -> q, k and v (B, H, n, d), q and k turned to their positions. condition: (B, 1, C)."""
        y = self.norm1(x)
        if condition is not None:
            shift, scale = self._modulation(condition, 0, 2)
            y = y * (1 + scale) + shift
        q, k, v = self.attn_qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return _turned(q, cos, sin), _turned(k, cos, sin), v

    def rest(self, x: Tensor, seen: Tensor, condition: Tensor | None = None) -> Tensor:
        """What follows attention. x (..., D), seen (..., H, d), condition (B, 1, C) or (N, C) -> (..., D)."""
        y = self.attn_out(seen.flatten(-2))
        if condition is None:
            x = x + y
            return x + self.mlp(self.norm2(x))
        gate, shift, scale, gate_mlp = self._modulation(condition, 2, 6)
        x = x + gate * y
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale) + shift)

    def _modulation(self, condition: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        """Of shift, scale and gate of attention, then those of the mlp: numbers first to end - 1, (..., D) each."""
        width = self.attn_out.out_features
        rows, made = slice(first * width, end * width), self.adaLN_modulation
        return F.linear(condition, made.weight[rows], made.bias[rows]).chunk(end - first, -1)


class FinalNorm(nn.Module):
    """The norm before the head."""

    def __init__(self, width: int, told: int | None):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, bias=told is None)
        if told is not None:
            self.adaLN_modulation = nn.Linear(told, 2 * width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = self.norm_final(x)
        if condition is None:
            return y
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return y * (1 + scale) + shift


class DiT(Transformer):
    """A Transformer with this module's layers; attention, caches and filling are as Transformer.forward has them.

    Its parameters are on the meta device, for `load` to assign.

    Args:
        config: its shape: kv_heads, qkv_bias, qk_norm, tied and rope_scaling as they are by default.
        told: C, the width of the condition, of a model that is told the noise level; None: it is not, and its norms have
            biases.
    """

    def __init__(self, config: Config, told: int | None = None):
        nn.Module.__init__(self)
        self.config, self.told = config, told
        with torch.device("meta"):
            self.embed = nn.Embedding(config.embeddings, config.width)
            self.blocks: Any = nn.ModuleList(Block(config, told) for _ in range(config.layers))
            self.norm = FinalNorm(config.width, told)  # type: ignore[assignment]
            self.unembed = nn.Linear(config.width, config.embeddings)
            if told is not None:
                self.sigma_map = nn.Sequential(nn.Linear(FEATURES, told), nn.SiLU(), nn.Linear(told, told))

    @property
    def head(self) -> Head:
        """Hidden rows to logits: (V, D) and (V,). Without the mask's row if the mask is the last id."""
        size = self.config.vocab_size
        return Head(self.unembed.weight[:size], self.unembed.bias[:size])

    def condition(self, sigma: Tensor) -> Tensor:
        """What the layers are told of the noise levels sigma, (B,): (B, 1, C)."""
        features = sigma_features(sigma).to(self.embed.weight.dtype)
        return F.silu(self.sigma_map(features))[:, None]


def sigma_features(sigma: Tensor) -> Tensor:
    """(B,) -> (B, 256) float32: cosines, then sines, of sigma * 10000^(-i / 128)."""
    half = FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=sigma.device)
    angle = sigma[:, None].float() * torch.exp(steps * (-math.log(PERIOD) / half))
    return torch.cat([angle.cos(), angle.sin()], -1)


def loglinear(t: Tensor) -> Tensor:
    """sigma = -log(1 - (1 - 0.001) t), of t in [0, 1]: the schedule of MDLM and SEDD."""
    return -torch.log1p(-(1 - EPSILON) * t)


def loglinear_capped(t: Tensor) -> Tensor:
    """sigma = -log(1 - t), at most -log(0.001): what BD3-LM makes of the chance t that a token is masked."""
    return (-torch.log1p(-t)).clamp(max=-math.log(EPSILON))


class DiTDenoiser(TransformerDenoiser):
    """A DiT that denoises masked tokens, its head taken off.

    Args:
        model: with weights; they say dtype and device.
        mask_id: the mask token, an id that the embedding has.
        name: how reports call it.
        sigma: what a model that is told the noise level is told for t, (B,) -> (B,); None: it is not told. t is the share of
            the positions to fill that is still masked, and sigma says the same: a token is masked with the chance
            1 - e^(-sigma).

    A model that is told the noise level has no cache. Keys and values depend on sigma there, so kept ones would be those of
    an earlier sigma; BD3-LM's own cache keeps a block as it is at the sigma of its last step, which is exact only for models
    that were trained with sigma = 0, as all published ones were.
    """

    model: DiT

    def __init__(self, model: DiT, *, mask_id: int, name: str = "dit", sigma: Callable[[Tensor], Tensor] | None = None):
        super().__init__(model, mask_id=mask_id, name=name)
        if (model.told is None) != (sigma is None):
            raise OptionError("DiTDenoiser: sigma goes with a model that is told the noise level, and only with one")
        self.sigma = sigma
        self.time_conditioned = sigma is not None
        if self.time_conditioned:
            self.caches = ()

    def _told(self, x: Tensor, t: Tensor | None, cache: CacheUse | None, lengths: Tensor | None) -> dict[str, Any]:
        """Of a model that is told the noise level the condition as well; OptionError if t is None."""
        told = super()._told(x, t, cache, lengths)
        if self.sigma is None:
            return told
        if t is None:
            raise OptionError(f"denoiser {self.name!r} is time-conditioned: t, (B,) noise levels, is needed")
        return told | {"condition": self.model.condition(self.sigma(t))}


# ---------------------------------------------------------------------------------------------- from disk


@dataclass(frozen=True)
class _Shape:
    """What a configuration says."""

    config: Config
    told: int | None  # width of the condition in the checkpoint; None: it has none
    prefix: str = ""  # what the names of its tensors begin with
    sigma: Callable[[Tensor], Tensor] | None = None  # None: the noise level is 0 at all times


def family(config: Mapping[str, Any]) -> str | None:
    """Which of mdlm, bd3lm, radd and sedd a config.json's content describes; None if none of them.

    MDLM and BD3-LM say so in `architectures` or `model_type`. RADD and SEDD have the content of their training configuration
    there, whose model.type is ddit_wot ("without time") or ddit.
    """
    names = {"MDLM": "mdlm", "BD3LM": "bd3lm", "mdlm": "mdlm", "bd3lm": "bd3lm"}
    for stated in [*(config.get("architectures") or ()), config.get("model_type")]:
        if stated in names:
            return names[stated]
    model = config.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    return {"ddit_wot": "radd", "ddit": "sedd"}.get(str(kind))


def load(
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    mask_id: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> DiTDenoiser:
    """The denoiser of a folder with model.safetensors, one file or shards, of MDLM, BD3-LM, RADD or SEDD (absorbing).

    Args:
        folder: where the weights are.
        config: the content of its config.json.
        mask_id: the mask token; None: what the configuration says (mask_token_id, mask_id or mask_index), else the last id.
        dtype, device: as for samplers.models.load.

    Returns:
        A denoiser of as many ids as the model embeds, less the mask if that is the last. It is time-free, unless the
        configuration says time_conditioning or the model is SEDD.

    Raises:
        ModelError: a configuration of another model, or one that says something that is not done here; no safetensors (a
            pickle is not opened); a tensor that is missing, of another shape, or not part of the model. It says which.
    """
    folder = Path(folder)
    kind = family(config)
    if kind is None:
        raise ModelError(
            f"{folder}: config.json describes none of MDLM, BD3-LM, RADD and SEDD (architectures: "
            f"{config.get('architectures')!r}, model_type: {config.get('model_type')!r})"
        )
    stated = (config[key] for key in ("mask_token_id", "mask_id", "mask_index") if config.get(key) is not None)
    mask_id = next(stated, None) if mask_id is None else mask_id
    mask_id = None if mask_id is None else integer("mask_id", mask_id, 0)
    try:
        shape = {"mdlm": _mdlm, "bd3lm": _bd3lm, "radd": _radd, "sedd": _sedd}[kind](config, mask_id)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder}: config.json of a {kind} model cannot be read: {error!r}") from error

    model = DiT(shape.config, shape.told)
    published = {shape.prefix + _published(name): name for name, _ in model.named_parameters()}
    expected = {shape.prefix + _published(name): tuple(p.shape) for name, p in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for name, x in read_tensors(folder, _files(folder), expected, kind, _SPARE):
        dtype = dtype or x.dtype
        state[published[name]] = x
    if shape.told is not None and shape.sigma is None:
        _at_zero(state, shape.config)
        model = DiT(shape.config)
    model.load_state_dict({name: x.to(device, dtype) for name, x in state.items()}, assign=True)
    if mask_id is None:
        mask_id = shape.config.embeddings - 1
    return DiTDenoiser(model, mask_id=mask_id, name=str(folder), sigma=shape.sigma)


# Of these the code that trained the models kept copies in its checkpoints: rotary frequencies, bounds of BD3-LM's training.
_SPARE = ("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")


def _published(name: str) -> str:
    """The published name of a parameter of a DiT."""
    for ours, theirs in (
        ("embed.weight", "vocab_embed.embedding"),
        ("norm.", "output_layer."),
        ("unembed.", "output_layer.linear."),
        ("sigma_map.", "sigma_map.mlp."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _config(mask_id: int | None, *, ids: int, width: int, layers: int, heads: int, length: int, **more: Any) -> Config:
    if width % heads:
        raise ModelError(f"config.json has {heads} heads for a width of {width}, which they cannot share evenly")
    return Config(
        vocab_size=ids - 1 if mask_id in (None, ids - 1) else ids,
        embeddings=ids,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=4 * width,
        max_length=length,
        **{"attention": "full"} | more,
    )


def _hugging_face(config: Mapping[str, Any], mask_id: int | None, **more: Any) -> dict[str, Any]:
    """MDLM's and BD3-LM's configurations, as transformers writes them."""
    shape = _config(
        mask_id,
        ids=config["vocab_size"],
        width=config["hidden_dim"],
        layers=config["n_blocks"],
        heads=config["n_heads"],
        length=config["model_length"],
        **more,
    )
    return {"config": shape, "told": config["cond_dim"], "prefix": "backbone."}


def _mdlm(config: Mapping[str, Any], mask_id: int | None) -> _Shape:
    told = config.get("time_conditioning", False)
    return _Shape(**_hugging_face(config, mask_id), sigma=loglinear if told else None)


def _bd3lm(config: Mapping[str, Any], mask_id: int | None) -> _Shape:
    _refuse(config, {"adaln": (True,), "causal": (False,)})
    blocks = {"attention": "block_causal", "block_length": config["block_size"]}
    # Without what its code calls cross attention it was trained on whole rows, and sees them.
    shape = _hugging_face(config, mask_id, **(blocks if config.get("cross_attn", True) else {}))
    return _Shape(**shape, sigma=loglinear_capped if config.get("time_conditioning", False) else None)


def _hydra(config: Mapping[str, Any], mask_id: int | None) -> Config:
    """RADD's and SEDD's configurations: `tokens` without the mask, and the shape in `model`."""
    model = config["model"]
    return _config(
        mask_id,
        ids=config["tokens"] + 1,
        width=model["hidden_size"],
        layers=model["n_blocks"],
        heads=model["n_heads"],
        length=model["length"],
    )


def _radd(config: Mapping[str, Any], mask_id: int | None) -> _Shape:
    return _Shape(_hydra(config, mask_id), None)


def _sedd(config: Mapping[str, Any], mask_id: int | None) -> _Shape:
    for part, allowed in (("graph", "absorb"), ("noise", "loglinear")):
        kind = config[part]["type"]
        if kind != allowed:
            raise ModelError(f"config.json has {part}.type={kind!r}; of SEDD's models this one does {allowed!r}")
    return _Shape(_hydra(config, mask_id), config["model"]["cond_dim"], sigma=loglinear)


@torch.no_grad()
def _at_zero(state: dict[str, Tensor], config: Config) -> None:
    """Make a time-free model of the parameters of one that is told the noise level, which is 0. Products are in float64."""

    def take(name: str) -> Tensor:
        return state.pop(name).double()

    condition = sigma_features(torch.zeros(1, dtype=torch.float64, device="cpu"))[0].double()
    for i in (0, 2):
        condition = F.silu(F.linear(condition, take(f"sigma_map.{i}.weight"), take(f"sigma_map.{i}.bias")))  # (C,)

    def parts(where: str, count: int) -> tuple[Tensor, ...]:
        weight, bias = (take(f"{where}.adaLN_modulation.{part}") for part in ("weight", "bias"))
        return F.linear(condition, weight, bias).chunk(count)

    def norm(where: str, shift: Tensor, scale: Tensor) -> None:
        state[f"{where}.weight"] = take(f"{where}.weight") * (1 + scale)
        state[f"{where}.bias"] = shift

    for i in range(config.layers):
        at = f"blocks.{i}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts(at, 6)
        norm(f"{at}.norm1", shift, scale)
        norm(f"{at}.norm2", shift_mlp, scale_mlp)
        state[f"{at}.attn_out.weight"] = take(f"{at}.attn_out.weight") * gate[:, None]
        state[f"{at}.mlp.2.weight"] = take(f"{at}.mlp.2.weight") * gate_mlp[:, None]
        state[f"{at}.mlp.2.bias"] = take(f"{at}.mlp.2.bias") * gate_mlp
    norm("norm.norm_final", *parts("norm", 2))
