"""One compact decoder, Llama's: RMSNorm, rotary positions, grouped-query attention, SwiGLU; full, causal or block-causal.

    h = x + O attend(R(p) Q n(x), R(p) K n(x), V n(x)),    x' = h + D (silu(G n(h)) * U n(h))

(Touvron et al. 2302.13971; RoPE: Su et al. 2104.09864; grouped queries: Ainslie et al. 2305.13245; SwiGLU: Shazeer
2002.05202.) In a layer with experts the second sum is over the few of them that a router picks for each token (Shazeer et
al. 1701.06538); Experts says how it picks. A token's position is an argument and is in its key already when that is stored,
so a cache may hold rows in any order: causal means the order in which rows came, position is what the rotation says.

What a row sees is what lies in the cache and, of the rows that come with it, those that `Config.attention` allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Head, embedded, seeing
from ..errors import OptionError
from ..ops.cached_attention import KINDS, cached_attention
from .cache import Cache

__all__ = ["Config", "Experts", "Llama3Rope", "Transformer"]

SPAN = 1024  # queries under one mask, where block_causal attention has more; the mask is then (SPAN, n) and not (n, n)


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's stretching of rotary positions beyond the length of pre-training: wavelengths longer than
    original_length / low_freq_factor are slowed by `factor`, those shorter than original_length / high_freq_factor are
    left alone, and in between the two frequencies are mixed linearly in original_length / wavelength."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class Experts:
    """The mixture of experts that takes the place of the MLP.

    A router gives each token a score s_e for every expert, softmax(r) or sigmoid(r) of its products r in float32. The
    token goes to the `per_token` experts of the largest s_e (plus the expert's bias, if there are biases; they decide who
    is chosen and do not enter the weight). With groups (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) only the experts of the
    `groups_kept` best groups can be chosen, a group's score being the sum of its two largest. An expert's weight is
    scale s_e, with s_e divided by the sum over the chosen ones if `normed`.

    Args:
        number: experts in a layer. per_token: how many of them each token goes to.
        width: inner rows of an expert's SwiGLU.
        shared_width: inner rows of one more SwiGLU that every token goes through; None: there is none.
        score: softmax (Qwen3-MoE, LLaDA-MoE) or sigmoid (LLaDA2, DeepSeek-V3).
        normed, scale, groups, groups_kept, bias: as above.
        dense_layers: layers, counted from 0, that have an MLP instead.

    Raises:
        OptionError: numbers that are not positive integers or do not go together, an unknown score.
    """

    number: int
    per_token: int
    width: int
    shared_width: int | None = None
    score: str = "softmax"
    normed: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    bias: bool = False
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))  # JSON knows lists only
        for name in ("number", "per_token", "width", "groups", "groups_kept"):
            _check_whole("Experts", name, getattr(self, name))
        if self.shared_width is not None:
            _check_whole("Experts", "shared_width", self.shared_width)
        if self.score not in ("softmax", "sigmoid"):
            raise OptionError(f"Experts: score must be softmax or sigmoid, not {self.score!r}")
        size = self.number // self.groups
        if self.number % self.groups or (self.groups > 1 and size < 2):
            raise OptionError(
                f"Experts: {self.number} experts cannot be cut into {self.groups} groups of two or more experts each"
            )
        if self.groups_kept > self.groups or self.per_token > self.groups_kept * size:
            raise OptionError(
                f"Experts: per_token is {self.per_token}; {self.groups_kept} of {self.groups} groups of {size} experts "
                "do not have so many"
            )


@dataclass(frozen=True)
class Config:
    """The shape of a Transformer.

    Args:
        vocab_size: V, rows of the head.
        width: D, of the residual stream.
        layers, heads: how many.
        kv_heads: heads of keys and values; None: `heads`.
        head_width: None: width // heads.
        mlp_width: width of SwiGLU's inner rows; None: the multiple of 64 nearest to 8/3 width.
        attention: full, causal or block_causal: which of the rows that come together a row sees.
        block_length: positions per block of block_causal attention; blocks are cut from the first row, whatever the positions.
        embeddings: rows of the embedding, where that has more than V (a mask token without logits); None: V.
        tied: the head is the embedding.
        qkv_bias, o_bias, mlp_bias: biases of q, k and v (Qwen2), of o, of the MLP (Llama's attention_bias and mlp_bias).
        qk_norm: RMSNorm of each head's q and k (Qwen3).
        rope_theta, rope_scaling: base of the rotary frequencies, and how Llama 3 changes them.
        rotary_width: how many elements of a head the rotary positions turn, the first ones; None: all.
        softcap: the head's logits are softcap * tanh(logits / softcap); None: as they are.
        experts: mixtures of experts in the place of MLPs; None: none.
        norm_eps: epsilon of RMSNorm.
        max_length: positions are below it.

    Raises:
        OptionError: a number that is no positive integer, heads that do not divide, an odd head_width or rotary_width, an
            unknown attention, block_length without block_causal or the other way round.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int = None  # type: ignore[assignment]
    head_width: int = None  # type: ignore[assignment]
    mlp_width: int = None  # type: ignore[assignment]
    attention: str = "causal"
    block_length: int | None = None
    embeddings: int = None  # type: ignore[assignment]
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | None = None
    norm_eps: float = 1e-6
    max_length: int = 2**31 - 1
    o_bias: bool = False
    mlp_bias: bool = False
    rotary_width: int = None  # type: ignore[assignment]
    softcap: float | None = None
    experts: Experts | None = None

    def __post_init__(self) -> None:
        def default(name: str, value: int) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        whole = ("vocab_size", "width", "layers", "heads")
        self._check_whole(whole)
        default("kv_heads", self.heads)
        default("head_width", self.width // self.heads)
        default("mlp_width", max(64, round(self.width * 8 / 3 / 64) * 64))
        default("embeddings", self.vocab_size)
        default("rotary_width", self.head_width)
        self._check_whole(("kv_heads", "head_width", "mlp_width", "embeddings", "max_length", "rotary_width"))
        if self.heads % self.kv_heads:
            raise OptionError(f"Config: {self.heads} heads cannot share {self.kv_heads} kv_heads evenly")
        if self.head_width % 2:
            raise OptionError(f"Config: head_width is {self.head_width}; rotary positions turn pairs, so an even one")
        if self.rotary_width % 2 or self.rotary_width > self.head_width:
            raise OptionError(
                f"Config: rotary_width is {self.rotary_width}; an even number of at most head_width {self.head_width} is needed"
            )
        if self.embeddings < self.vocab_size:
            raise OptionError(f"Config: embeddings is {self.embeddings}, fewer than vocab_size {self.vocab_size}")
        if self.attention not in KINDS:
            raise OptionError(f"Config: attention must be {', '.join(KINDS)}, not {self.attention!r}")
        if (self.attention == "block_causal") != (self.block_length is not None):
            raise OptionError("Config: attention='block_causal' and block_length go together, one is missing")
        if self.block_length is not None:
            self._check_whole(("block_length",))
        for name in ("rope_theta", "norm_eps") + (() if self.softcap is None else ("softcap",)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise OptionError(f"Config: {name} must be a positive number, not {value!r}")

    def _check_whole(self, names: tuple[str, ...]) -> None:
        for name in names:
            _check_whole("Config", name, getattr(self, name))


def _check_whole(who: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{who}: {name} must be a positive integer, not {value!r}")


def rope_frequencies(config: Config, device: torch.device | str = "cpu") -> Tensor:
    """Radians a position turns each of the w / 2 pairs, w = rotary_width: theta^(-2i / w). (w / 2,) float32."""
    exponent = torch.arange(0, config.rotary_width, 2, device=device).float() / config.rotary_width
    frequency = 1.0 / (config.rope_theta**exponent)
    if config.rope_scaling is None:
        return frequency
    s = config.rope_scaling
    turns = s.original_length * frequency / (2 * math.pi)  # within the original length
    keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / s.factor


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """R(p) x: of the first w elements, i and i + w / 2 are a pair. x (B, H, n, D), cos and sin (B, 1, n, w / 2)."""
    half = cos.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # nothing to do but under autocast
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Mixture(nn.Module):
    """The experts of one layer, and who of them works on which token: see Experts.

    The experts' weights are stacked: gate and up (E, width, D), down (E, D, width).
    """

    def __init__(self, experts: Experts, width: int):
        super().__init__()
        self.experts = e = experts
        self.router = nn.Linear(width, e.number, False)
        if e.bias:
            self.choice_bias = nn.Parameter(
                torch.zeros(e.number, dtype=torch.float32, device=self.router.weight.device)
            )
        empty: Any = {"dtype": self.router.weight.dtype, "device": self.router.weight.device}
        self.gate = nn.Parameter(torch.empty(e.number, e.width, width, **empty))
        self.up = nn.Parameter(torch.empty(e.number, e.width, width, **empty))
        self.down = nn.Parameter(torch.empty(e.number, width, e.width, **empty))
        if e.shared_width:
            self.shared_gate = nn.Linear(width, e.shared_width, False)
            self.shared_up = nn.Linear(width, e.shared_width, False)
            self.shared_down = nn.Linear(e.shared_width, width, False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D) -> the chosen experts' weights (N, k), float32 at least, and their numbers (N, k) int64."""
        e = self.experts
        wide = torch.promote_types(x.dtype, torch.float32)
        if e.score == "softmax":
            scores = self.router(x).softmax(-1, dtype=wide)  # (N, E)
        else:
            scores = F.linear(x.to(wide), self.router.weight.to(wide)).sigmoid()
        choice = scores + self.choice_bias if e.bias else scores
        if e.groups > 1:
            groups = choice.unflatten(-1, (e.groups, -1))  # (N, G, E / G)
            best = groups.topk(2, -1).values.sum(-1).topk(e.groups_kept, -1).indices
            kept = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter_(-1, best, True)
            choice = groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        index = choice.topk(e.per_token, -1).indices
        weight = scores.gather(-1, index)
        if e.normed:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return weight * e.scale, index

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D). Waits for the device once: an expert's matrix product needs the number of its tokens."""
        rows = x.reshape(-1, x.shape[-1])  # (N, D)
        weight, index = self.route(rows)
        order = index.flatten().argsort(stable=True)  # (N k,), the tokens of expert 0 first
        sizes = index.flatten().bincount(minlength=self.experts.number).tolist()
        tokens = torch.div(order, index.shape[1], rounding_mode="floor").split(sizes)
        shares = weight.flatten()[order].split(sizes)
        out = torch.zeros_like(rows, dtype=weight.dtype)
        for i, (token, share) in enumerate(zip(tokens, shares)):
            if len(token):
                mine = rows[token]
                made = F.linear(F.silu(F.linear(mine, self.gate[i])) * F.linear(mine, self.up[i]), self.down[i])
                out.index_add_(0, token, made * share[:, None])  # a token goes to an expert once: no two add to one row
        if self.experts.shared_width:
            out = out + self.shared_down(F.silu(self.shared_gate(rows)) * self.shared_up(rows))
        return out.to(x.dtype).view(x.shape)


class Block(nn.Module):
    """One layer. Parameters are named after what they make: q, k, v, o; gate, up, down, or those of `experts`."""

    def __init__(self, config: Config, number: int = 0):
        super().__init__()
        self.config = c = config
        q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
        self.norm_attention = nn.RMSNorm(c.width, c.norm_eps)
        self.q = nn.Linear(c.width, q, c.qkv_bias)
        self.k = nn.Linear(c.width, kv, c.qkv_bias)
        self.v = nn.Linear(c.width, kv, c.qkv_bias)
        self.o = nn.Linear(q, c.width, c.o_bias)
        if c.qk_norm:
            self.norm_q = nn.RMSNorm(c.head_width, c.norm_eps)
            self.norm_k = nn.RMSNorm(c.head_width, c.norm_eps)
        self.norm_mlp = nn.RMSNorm(c.width, c.norm_eps)
        self.experts = None
        if c.experts is not None and number not in c.experts.dense_layers:
            self.experts = Mixture(c.experts, c.width)
        else:
            self.gate = nn.Linear(c.width, c.mlp_width, c.mlp_bias)
            self.up = nn.Linear(c.width, c.mlp_width, c.mlp_bias)
            self.down = nn.Linear(c.mlp_width, c.width, c.mlp_bias)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, D) -> q (B, Hq, n, d), k and v (B, H, n, d), q and k turned to their positions."""
        x = self.norm_attention(x)
        q, k, v = (f(x).unflatten(-1, (-1, self.config.head_width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.config.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        return _turned(q, cos, sin), _turned(k, cos, sin), v

    def rest(self, x: Tensor, seen: Tensor) -> Tensor:
        """What follows attention. x (..., D), seen (..., Hq, d) -> (..., D)."""
        x = x + self.o(seen.flatten(-2))
        y = self.norm_mlp(x)
        if self.experts is not None:
            return x + self.experts(y)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    """The decoder. `Config` says its shape; parameters are in `dtype` on `device`.

    Args:
        config: its shape.
        seed: seed of its random weights, normal: 1 wide in the embedding, 0.02 in an untied head, 1 / sqrt(columns) elsewhere
            and / sqrt(2 layers) where a residual branch ends; None leaves the parameters on the meta device, without
            memory, for a loader to assign.

    The same `seed` gives the same weights on every machine; no global generator is read or moved.
    """

    def __init__(
        self,
        config: Config,
        *,
        seed: int | None = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.embed = nn.Embedding(config.embeddings, config.width, dtype=dtype)
            self.blocks: Any = nn.ModuleList(Block(config, i).to(dtype) for i in range(config.layers))
            self.norm = nn.RMSNorm(config.width, config.norm_eps, dtype=dtype)
            if not config.tied:
                self.unembed = nn.Linear(config.width, config.vocab_size, False, dtype=dtype)
        if seed is not None:
            self.to_empty(device=device)
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                std = p.shape[-1] ** -0.5
                if name.startswith("embed"):
                    std = 1.0
                elif name.startswith("unembed"):
                    std = 0.02
                elif name.endswith(("o.weight", "down.weight", "experts.down")):
                    std /= math.sqrt(2 * self.config.layers)
                made = torch.empty(p.shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
                p.copy_(made)

    @property
    def head(self) -> Head:
        """Hidden rows to logits: (V, D)."""
        weight = self.embed.weight[: self.config.vocab_size] if self.config.tied else self.unembed.weight
        return Head(weight, softcap=self.config.softcap)

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens, in the dtype and on the device of the weights."""
        c, like = self.config, self.embed.weight
        return Cache(c.layers, batch, c.kv_heads, length, c.head_width, dtype=like.dtype, device=like.device)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: Cache | None = None,
        store: str | None = None,
        start: Tensor | int | None = None,
        index: Tensor | None = None,
        count: Tensor | None = None,
        stored: Tensor | None = None,
        keep: Tensor | None = None,
        runs: Sequence[tuple[int, int]] | None = None,
        condition: Tensor | None = None,
        extra: Tensor | None = None,
        visible: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden rows of n tokens, for `head`.

        With a cache the n tokens see its filled rows and each other, the latter as `Config.attention` says, as if they
        came after the cache. `store` says what becomes of their keys and values:
            None       nothing: a plan or a draft costs no write
            "fill"     they are the first n rows, and the cache is not looked at: a fresh start
            "append"   they go after the filled rows
            "replace"  they are rows start[b] and up, whose old keys and values are not seen; attention must be full
            "scatter"  token i is row index[b, i], the same; tokens of negative index are filling: not seen, not stored
        Each is one op for all layers, after the last ("fill" one for each layer and each of `runs`). Without a cache gradients
        pass.

        Args:
            ids: (B, n) int64, below Config.embeddings.
            positions: (B, n) int64, where the tokens stand in the text, in any order; None: counted from 0, after a
                cache's filled rows, or as stored with "replace" and "scatter".
            rows: (B, n) bool, the tokens whose hidden rows are needed; None: all.
            cache: what `Transformer.cache` made. Nothing is written into it unless `store` says so.
            start: for "replace", (B,) int64 or one int. index: for "scatter", (n,) or (B, n) int64.
            count: (B,) int64, only the first count[b] tokens are there, the others are filling. Not with "scatter".
            stored: for "append", (B,) int64, only the first stored[b] tokens are stored, those after them are fed for their
                hidden rows alone; attention must be causal. None: as `count`.
            runs: for "fill", the batch rows of the cache that the B rows are, in order, as (first, end); None: all.
            keep: (B, cache.length) bool, rows of the cache that may be seen; None: all that are filled.
            extra: (M, D), embeddings of the ids Config.embeddings to Config.embeddings + M - 1.
            visible: (B, n, n) bool, without a cache and without count: token i sees token j if visible[b, i, j], whatever
                Config.attention says, and itself if it sees nothing.
            maps: without a cache: each layer's attention is put there, the mean over its heads, (B, n, n) float32. Softmax is
                then taken of products that are stored, (B, heads, n, n) of one layer at a time.
            condition: (B, 1, C), what the layers of a subclass are told beside the tokens (dit.DiT: the noise level).

        Returns:
            (B, n, D), or (N, D) packed in the order of `rows`. With bfloat16 or float32 products a row may differ in
            its last bits from what it is in another batch or with other tokens fed: BLAS chooses the order of its sums
            by shape. What a row sees never depends on other batch rows.

        Raises:
            OptionError: arguments that do not go together. TypeError, ValueError: a wrong dtype, shape or device.
            IndexError: ids, positions or cache rows out of range (on a device nobody looks; see ops.cached_kv).
        """
        c = self.config
        filled, runs = (cache, runs) if store == "fill" else (None, None)
        cache, store = (None, None) if store == "fill" else (cache, store)
        self._check(ids, positions, rows, cache, store, start, index, count, stored, keep)
        self._check_sight(ids, visible, maps, cache, count)
        if filled is not None:
            runs = ((0, filled.batch),) if runs is None else runs
            if sum(end - first for first, end in runs) != len(ids) or ids.shape[1] > filled.length:
                raise ValueError(
                    f"transformer: ids {tuple(ids.shape)} are to fill the batch rows {runs} of a cache of {filled.batch} "
                    f"rows of {filled.length}"
                )
        here = torch.arange(ids.shape[1], device=ids.device)
        places = None  # (B, n) where in the cache the new rows will be
        if cache is not None and store == "scatter":
            assert index is not None
            places = index.expand_as(ids)
        elif cache is not None:
            first: Any = cache.lengths if store != "replace" else start
            places = (first[:, None] if isinstance(first, Tensor) else first) + here.expand_as(ids)
        if positions is None:
            positions = here.expand_as(ids) if places is None else places.clamp(min=0)
        if _looks(ids.device):
            _check_range("ids", ids, c.embeddings + (0 if extra is None else len(extra)))
            _check_range("positions", positions, c.max_length)
        attend = self._attention(ids, cache, store, places, count, keep, visible, maps)

        x = self.embed(ids) if extra is None else embedded(self.embed, ids, c.embeddings, extra)  # (B, n, D)
        angle = positions[:, None, :, None] * rope_frequencies(c, ids.device)  # (B, 1, n, w / 2) float32
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        new: list[tuple[Tensor, Tensor]] = []
        told: tuple[Tensor, ...] = () if condition is None else (condition,)
        for i, block in enumerate(self.blocks):
            q, k, v = block.qkv(x, cos, sin, *told)
            seen = attend(i, q, k, v).transpose(1, 2)  # (B, n, Hq, d)
            if filled is not None and runs is not None:
                # At once: kept until the end, the rows of all layers would take their memory twice more.
                filled.fill(k.to(filled.key.dtype)[None], v.to(filled.key.dtype)[None], runs, count, layer=i)
            elif store is not None:
                new.append((k, v))
            if rows is not None and i == c.layers - 1:
                x, seen = x[rows], seen[rows]  # the rest of the last layer is for the rows that are needed
                told = tuple(part.expand(-1, ids.shape[1], -1)[rows] for part in told)
            x = block.rest(x, seen, *told)
        if cache is not None and store is not None:
            key, value = (_stacked(part, cache) for part in zip(*new))
            if store == "append":
                cache.append(key, value, count if stored is None else stored)
            elif start is not None:
                cache.replace(key, value, start, count)
            elif index is not None:
                cache.scatter(key, value, index)
        return self.norm(x, *told)

    def _attention(
        self,
        ids: Tensor,
        cache: Cache | None,
        store: str | None,
        places: Tensor | None,
        count: Tensor | None,
        keep: Tensor | None,
        visible: Tensor | None,
        maps: list[Tensor] | None,
    ) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """What a layer's queries do with its keys and values: (layer, q, k, v) -> (B, Hq, n, d)."""
        c, n = self.config, ids.shape[1]
        here = torch.arange(n, device=ids.device)
        there = None if count is None else here < count[:, None]  # (B, n) bool
        if cache is None:
            mask = None
            if there is not None and c.attention != "causal":  # after the end, causal attention does not see them
                # A row of filling alone sees its first: a softmax over nothing would be a NaN.
                mask = (there | (here == 0))[:, None, None]  # (B, 1, 1, n) bool: the same for all queries
            if visible is not None:
                mask = seeing(visible)[:, None]  # (B, 1, n, n)
            elif c.block_length is not None:
                if n > SPAN and maps is None:
                    seen, size = mask, c.block_length
                    return lambda i, q, k, v: _attend_in_spans(q, k, v, size, seen)
                blocks = here[:, None] // c.block_length >= here // c.block_length  # (n, n) bool
                mask = blocks if mask is None else mask & blocks
            kinds: dict[str, Any] = {
                "attn_mask": mask,
                "is_causal": c.attention == "causal" and visible is None,
                "enable_gqa": c.heads != c.kv_heads,
            }
            if maps is not None:
                if kinds["is_causal"]:
                    mask = here[:, None] >= here
                return lambda i, q, k, v: _weighed(q, k, v, mask, maps)
            return lambda i, q, k, v: F.scaled_dot_product_attention(q, k, v, **kinds)

        if store in ("replace", "scatter"):
            assert places is not None
            there = places >= 0 if store == "scatter" else there
            if there is not None and _looks(ids.device) and bool(there.all()):
                there = None  # no filling, and attention is faster without a mask
            # Replaced rows are not seen in the cache. Filling points nowhere: at one column too many.
            nowhere = places if there is None else torch.where(there, places, cache.length)
            stale = torch.zeros(len(ids), cache.length + 1, dtype=torch.bool, device=ids.device)
            fresh = ~stale.scatter_(1, nowhere, True)[:, :-1]  # (B, length) bool
            keep = fresh if keep is None else keep & fresh
        elif c.attention == "causal":
            there = None
        dtype = cache.key.dtype  # under autocast q, k and v are of another
        return lambda i, q, k, v: cached_attention(
            q.to(dtype),
            cache.key[i],
            cache.value[i],
            k.to(dtype),
            v.to(dtype),
            lengths=cache.lengths,
            attention=c.attention,
            block_length=c.block_length,
            keep=keep,
            new_keep=there,
        )

    def _check_sight(
        self, ids: Tensor, visible: Tensor | None, maps: list[Tensor] | None, cache: Cache | None, count: Tensor | None
    ) -> None:
        if (visible is not None or maps is not None) and cache is not None:
            raise OptionError("transformer: visible and maps do not go with a cache")
        if visible is None:
            return
        if count is not None:
            raise OptionError("transformer: visible says what is filling as well, so it does not go with count")
        if visible.dtype != torch.bool or tuple(visible.shape) != (*ids.shape, ids.shape[1]):
            raise ValueError(
                f"transformer: visible is {tuple(visible.shape)} {visible.dtype}, expected {(*ids.shape, ids.shape[1])} bool"
            )

    def _check(
        self,
        ids: Tensor,
        positions: Tensor | None,
        rows: Tensor | None,
        cache: Cache | None,
        store: str | None,
        start: Tensor | int | None,
        index: Tensor | None,
        count: Tensor | None,
        stored: Tensor | None,
        keep: Tensor | None,
    ) -> None:
        """All that can be wrong with a call, said before anything is written."""
        c, device = self.config, self.embed.weight.device

        def check(name: str, x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            if x is None:
                return
            if not isinstance(x, Tensor) or x.dtype != dtype:
                kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"transformer: {name} is {kind}, expected a tensor of {dtype}")
            if tuple(x.shape) != shape:
                raise ValueError(f"transformer: {name} has shape {tuple(x.shape)}, expected {shape}")
            if x.device != device:
                raise ValueError(f"transformer: {name} is on {x.device}, the weights are on {device}")

        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"transformer: ids must be (B, n), n at least 1, not {getattr(ids, 'shape', ids)!r}")
        shape = tuple(ids.shape)
        check("ids", ids, shape, torch.int64)
        check("positions", positions, shape, torch.int64)
        check("rows", rows, shape, torch.bool)
        check("count", count, shape[:1], torch.int64)
        check("stored", stored, shape[:1], torch.int64)
        if store not in (None, "append", "replace", "scatter"):
            raise OptionError(f"transformer: store must be None, 'append', 'replace' or 'scatter', not {store!r}")
        if cache is None and (store is not None or keep is not None):
            raise OptionError("transformer: store and keep need a cache")
        for name, x, kind in (("start", start, "replace"), ("index", index, "scatter")):
            if (x is None) == (store == kind):
                raise OptionError(f"transformer: {name} goes with store={kind!r}, and only with it")
        if store == "scatter" and count is not None:
            raise OptionError("transformer: with store='scatter' a negative index says what is filling, not count")
        if stored is not None and (store != "append" or c.attention != "causal"):
            raise OptionError("transformer: stored goes with store='append' and causal attention, and only with them")
        if store in ("replace", "scatter") and c.attention != "full":
            raise OptionError(f"transformer: store={store!r} needs full attention, this model's is {c.attention}")
        if cache is not None:
            expected = (c.layers, shape[0], c.kv_heads, cache.length, c.head_width)
            if tuple(cache.key.shape) != expected:
                raise ValueError(f"transformer: the cache is {tuple(cache.key.shape)}, expected {expected}")
            if cache.key.device != device or cache.key.dtype != self.blocks[0].k.weight.dtype:
                raise ValueError(
                    f"transformer: the cache is {cache.key.dtype} on {cache.key.device}, the weights are "
                    f"{self.blocks[0].k.weight.dtype} on {device}"
                )
            check("keep", keep, (shape[0], cache.length), torch.bool)
            if isinstance(start, Tensor):
                check("start", start, shape[:1], torch.int64)
            check("index", index, shape if index is None or index.dim() == 2 else shape[1:], torch.int64)
            if _looks(device):
                self._check_room(shape[1], cache, store, start, index, count if stored is None else stored)

    def _check_room(
        self,
        n: int,
        cache: Cache,
        store: str | None,
        start: Tensor | int | None,
        index: Tensor | None,
        count: Tensor | None,
    ) -> None:
        """The rows that will be written lie in the cache, and blocks are whole. Looks at the data."""
        if index is not None:  # store="scatter"
            if index.numel() and int(index.max()) >= cache.length:
                raise IndexError(
                    f"transformer: index has {int(index.max())}, the cache has rows 0 to {cache.length - 1}"
                )
            return
        first = cache.lengths
        if start is not None:  # store="replace"
            first = torch.as_tensor(start, device=first.device).expand(cache.batch)
        end = first + (n if count is None else count)
        if store is not None and len(end) and (int(first.min()) < 0 or int(end.max()) > cache.length):
            raise IndexError(
                f"transformer: rows {int(first.min())} to {int(end.max()) - 1} are to be written, the cache has room for "
                f"{cache.length} (Transformer.cache(batch, length))"
            )
        block = self.config.block_length
        if block is not None and (cache.lengths % block).any():
            raise ValueError(
                f"transformer: the cache holds {cache.lengths.tolist()} rows, expected whole blocks of {block}: what a row "
                "of an unfinished block sees would depend on how it was cut"
            )


def _weighed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, maps: list[Tensor]) -> Tensor:
    """Attention step by step, (B, Hq, n, d), its weights put into `maps` as the mean over heads, (B, n, n) float32.

    Args:
        mask: bool that broadcasts to (B, 1, n, n), or None: who sees whom.
    """
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    score = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf)
    weight = score.softmax(-1)
    maps.append(weight.mean(1))
    return weight.to(v.dtype) @ v


def _attend_in_spans(q: Tensor, k: Tensor, v: Tensor, block_length: int, seen: Tensor | None) -> Tensor:
    """Block-causal attention without a mask (n, n): a span of queries at a time, each under a mask of its own.

    Args:
        q, k, v: (B, Hq, n, d), and (B, H, n, d) each.
        seen: (B, 1, 1, n) bool, the keys that are there; None: all.

    Returns:
        (B, Hq, n, d).
    """
    n, parts = q.shape[2], []
    here = torch.arange(n, device=q.device)
    span = -(-SPAN // block_length) * block_length  # whole blocks: no query of a span sees beyond its end
    for begin in range(0, n, span):
        end = min(begin + span, n)
        mask = here[begin:end, None] // block_length >= here[:end] // block_length  # (span, end)
        if seen is not None:
            mask = mask & seen[..., :end]
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, begin:end], k[:, :, :end], v[:, :, :end], attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(parts, 2)


def _stacked(parts: Sequence[Tensor], cache: Cache) -> Tensor:
    """(layers, B, H, n, d): new keys or values of all layers, in the cache's dtype, from which they differ under autocast."""
    return torch.stack(list(parts)).to(cache.key.dtype)


def _looks(device: torch.device) -> bool:
    """Whether numbers may be looked at: not on a device, where a look is a wait."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def _check_range(name: str, x: Tensor, bound: int) -> None:
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < bound:
        raise IndexError(f"transformer: {name} go from {int(x.min())} to {int(x.max())}, expected 0 to {bound - 1}")
