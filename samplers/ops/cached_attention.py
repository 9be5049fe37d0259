"""cached_attention: new rows attend to a KV cache and to each other, and are not stored.

`_twin` below is the specification. On the CPU the op is two calls of torch's fused attention, one over the cache where it
lies and one over the new rows, joined by their log-sum-exps; so neither the cache nor its heads are copied. On a device it
is one call over a copy of the layer's cache and the new rows, under a mask: the lengths are known to the device only, and
what lies past them may be anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.ops._check import DTYPES, check_vector, explain_errors
from samplers.ops._register import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

OP = "cached_attention"
SCHEMA = (
    "cached_attention(Tensor query, Tensor key, Tensor value, Tensor new_key, Tensor new_value, Tensor lengths, "
    "Tensor? keep, int block_length, float scale, Tensor? new_keep=None) -> Tensor"
)
KINDS = ("full", "causal", "block_causal")
# Torch's fused CPU attention that also returns the log-sum-exp; private, so a torch without it gets the twin.
_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
# One more call of it costs about what this many floating-point operations do.
CALL = 2e6


class AttendCall(NamedTuple):
    """The op's arguments, in the schema's order."""

    query: Tensor
    key: Tensor
    value: Tensor
    new_key: Tensor
    new_value: Tensor
    lengths: Tensor
    keep: Tensor | None
    block_length: int
    scale: float
    new_keep: Tensor | None = None


@explain_errors
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    *,
    lengths: Tensor,
    attention: str = "full",
    block_length: int | None = None,
    keep: Tensor | None = None,
    new_keep: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Computes softmax(q k^T * scale) v of one layer: batch row b's keys are its first lengths[b] rows of the cache and then
    the new rows. Nothing is written; `kv_append_` stores rows once they are final.

    Args:
        query: (B, Hq, n, D) float32, bfloat16 or float16; Hq a multiple of H (query head h reads head h // (Hq / H)).
        key, value: (B, H, L, D), one layer of a cache, as it lies: D contiguous, any other strides.
        new_key, new_value: (B, H, n, D).
        lengths: (B,) int64 in [0, L].
        attention: which new rows a new row sees. "full": all; "causal": itself and those before it; "block_causal":
            those of its block and the blocks before it, blocks being cut from the first new row. The cache is seen by
            all.
        block_length: positions per block, for "block_causal".
        keep: (B, L) bool; cache rows that are False are not seen. None: all are.
        new_keep: (B, n) bool; new rows that are False are padding, which only they themselves see. None: all are seen.
        scale: factor of the scores; None: 1 / sqrt(D).

    Returns:
        (B, Hq, n, D) of the query's dtype. Sums are in float32; in bfloat16 and float16 the two halves are rounded
        before they are joined, so the result may be off by two units in the last place. No gradients.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride, a device or a name is. IndexError: a length is
        outside [0, L] (checked on the CPU only; on a device taken as the nearest that is not).
    """
    if attention not in KINDS:
        raise ValueError(f"{OP}: attention is {attention!r}, expected one of {', '.join(KINDS)}")
    if (attention == "block_causal") != (block_length is not None):
        raise ValueError(f"{OP}: attention 'block_causal' and the argument block_length go together, one is missing")
    block = {"full": 0, "causal": 1}.get(attention, block_length)
    if isinstance(block, bool) or not isinstance(block, int) or (block < 1 and attention != "full"):
        raise ValueError(f"{OP}: block_length is {block_length!r}, expected an int, 1 or more")
    _check(query, key, value, new_key, new_value, lengths, keep, new_keep)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"{OP}: scale is {scale}, expected a finite number")
    args = [query, key, value, new_key, new_value]
    if any(x.requires_grad for x in args):
        args = [x.detach() for x in args]
    return _OP(*args, lengths, keep, block, scale, new_keep)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    lengths: Tensor,
    keep: Tensor | None,
    new_keep: Tensor | None,
) -> None:
    """What can be checked without the data itself."""
    for name, x in (("query", query), ("key", key), ("value", value), ("new_key", new_key), ("new_value", new_value)):
        if x.dim() != 4:
            raise ValueError(f"{OP}: {name} has shape {tuple(x.shape)}, expected four dimensions, (B, H, rows, D)")
        if x.dtype not in DTYPES:
            raise TypeError(f"{OP}: {name} is {x.dtype}, expected float32, bfloat16 or float16")
        if x.dtype != query.dtype:
            raise TypeError(f"{OP}: {name} is {x.dtype}, query is {query.dtype}; expected the same")
        if x.device != query.device:
            raise ValueError(f"{OP}: {name} is on {x.device}, query on {query.device}; expected the same")
        if x.shape[3] > 1 and x.stride(3) != 1:
            raise ValueError(f"{OP}: {name} has strides {x.stride()}, expected a contiguous last dimension (stride 1)")
    batch, heads, n, width = query.shape
    kv_heads, length = key.shape[1:3]
    if kv_heads == 0 or heads % kv_heads != 0:
        raise ValueError(f"{OP}: query has {heads} heads, key has {kv_heads}; expected a multiple of key's")
    if n == 0 or width == 0:
        raise ValueError(f"{OP}: query has shape {tuple(query.shape)}, expected at least one row and one column")
    for name, x, shape in (
        ("key", key, (batch, kv_heads, length, width)),
        ("value", value, (batch, kv_heads, length, value.shape[3])),
        ("new_key", new_key, (batch, kv_heads, n, width)),
        ("new_value", new_value, (batch, kv_heads, n, value.shape[3])),
    ):
        if tuple(x.shape) != shape:
            raise ValueError(f"{OP}: {name} has shape {tuple(x.shape)}, expected {shape}")
    check_vector(OP, lengths, "lengths", torch.int64, batch, query.device)
    for name, flags, rows in (("keep", keep, length), ("new_keep", new_keep, n)):
        if flags is None:
            continue
        if tuple(flags.shape) != (batch, rows):
            raise ValueError(f"{OP}: {name} has shape {tuple(flags.shape)}, expected {(batch, rows)}, a flag per row")
        if flags.dtype != torch.bool:
            raise TypeError(f"{OP}: {name} is {flags.dtype}, expected torch.bool")
        if flags.device != query.device:
            raise ValueError(f"{OP}: {name} is on {flags.device}, expected {query.device} like the rest")


def _among_new(n: int, groups: int, block: int, device: torch.device, new_keep: Tensor | None = None) -> Tensor:
    """(groups * n, n) bool, or with new_keep (B, 1, groups * n, n): which new rows a new row sees."""
    i = torch.arange(n, device=device)
    if block == 0:
        seen = torch.ones(n, n, dtype=torch.bool, device=device)
    else:
        seen = i[:, None] // block >= i // block
    if new_keep is not None:
        # Padding sees itself, so that it stays finite: what it holds is multiplied by a weight of 0, and 0 * NaN is NaN.
        seen = (seen & new_keep[:, None, None]) | (i[:, None] == i)
    return seen.repeat(groups, 1) if seen.dim() == 2 else seen.repeat(1, 1, groups, 1)


def _seen(key: Tensor, lengths: Tensor, keep: Tensor | None) -> Tensor:
    """(B, L) bool: which rows of the cache are seen."""
    seen = torch.arange(key.shape[2], device=key.device) < lengths[:, None]
    return seen if keep is None else seen & keep


def _stacked(query: Tensor, heads: int) -> Tensor:
    """(B, Hq, n, D) → (B, H, Hq / H * n, D): the query heads that share a head of the cache become rows of one, so
    that head is read once and never repeated in memory."""
    batch, all_heads, n, width = query.shape
    return query.reshape(batch, heads, all_heads // heads * n, width)


def _twin(*args: Unpack[AttendCall]) -> Tensor:
    """The op in torch, on any device, without asking the device for a number: one softmax, in float32, over all L rows
    of the cache, those that do not count at -inf, and the new rows."""
    query, key, value, new_key, new_value, lengths, keep, block_length, scale, new_keep = AttendCall(*args)
    batch, heads, n, _ = query.shape
    kv_heads, length = key.shape[1:3]
    q = _stacked(query, kv_heads).float()
    seen = _seen(key, lengths, keep)[:, None, None]  # (B, 1, 1, L) bool
    old = torch.matmul(q, key.float().mT) * scale  # (B, H, g n, L) float32
    new = torch.matmul(q, new_key.float().mT) * scale  # (B, H, g n, n) float32
    new = new.masked_fill(~_among_new(n, heads // kv_heads, block_length, query.device, new_keep), -math.inf)
    p = torch.cat([old.masked_fill(~seen, -math.inf), new], 3).softmax(3)
    # What is not seen may hold anything, a NaN included, and 0 * NaN is not 0.
    v = torch.where(seen.mT, value.float(), 0.0)
    out = torch.matmul(p[..., :length], v) + torch.matmul(p[..., length:], new_value.float())
    return out.view(batch, heads, n, value.shape[3]).to(query.dtype)


def _on_cpu(*args: Unpack[AttendCall]) -> Tensor:
    query, key, value, new_key, new_value, lengths, keep, block_length, scale, new_keep = AttendCall(*args)
    filled = lengths.tolist()
    for b, length in enumerate(filled):
        if not 0 <= length <= key.shape[2]:
            raise IndexError(f"{OP}: lengths[{b}] is {length}, expected 0 to {key.shape[2]}, the cache's capacity")
    if _flash is None or value.shape[3] != query.shape[3] or not filled:
        return _twin(*args)
    batch, heads, n, width = query.shape
    kv_heads = key.shape[1]
    q = _stacked(query, kv_heads)
    if block_length == 1 and heads == kv_heads and new_keep is None:
        out, lse = _flash(q, new_key, new_value, is_causal=True, scale=scale)
    else:
        mask = None
        if 0 < block_length < n or new_keep is not None:
            mask = _bias(_among_new(n, heads // kv_heads, block_length, q.device, new_keep), q.dtype)
        out, lse = _flash(q, new_key, new_value, attn_mask=mask, scale=scale)
    out = out.float()  # (B, H, g n, D), lse (B, H, g n) float32

    for begin, end, length, ragged in _spans(filled, kv_heads * q.shape[2] * 4 * width):
        if length == 0:
            continue
        here = slice(begin, end) if end - begin < batch else ...
        seen = None if keep is None else keep[here][:, :length]
        if ragged:
            within = torch.arange(length, device=lengths.device) < lengths[:, None]
            seen = within if seen is None else seen & within
        k, v = key[here][:, :, :length], value[here][:, :, :length]
        if seen is None:
            old, old_lse = _flash(q[here], k, v, scale=scale)
        else:
            seen = seen[:, None, :, None]
            mask = _bias(seen.mT, q.dtype)
            old, old_lse = _flash(q[here], k, v, attn_mask=mask, scale=scale)
            if old.sum().isnan():  # rows that are not seen may hold anything, but a mask does not hide a NaN
                k, v = (torch.where(seen, x, 0) for x in (k, v))
                old, old_lse = _flash(q[here], k, v, attn_mask=mask, scale=scale)
        share = torch.sigmoid(old_lse - lse[here])  # (b, H, g n): of the cache's rows in the softmax's sum
        if seen is not None:
            share = share * seen.any(2)
        out[here].lerp_(old.float(), share[..., None])
    return out.to(query.dtype).view(batch, heads, n, width)


def _on_device(*args: Unpack[AttendCall]) -> Tensor:
    query, key, value, new_key, new_value, lengths, keep, block_length, scale, new_keep = AttendCall(*args)
    batch, heads, n, _ = query.shape
    kv_heads = key.shape[1]
    seen = _seen(key, lengths, keep)
    k, v = (
        torch.cat([torch.where(seen[:, None, :, None], x, 0), y], 2) for x, y in ((key, new_key), (value, new_value))
    )
    new = _among_new(n, heads // kv_heads, block_length, query.device, new_keep)
    old = seen[:, None, None].expand(-1, 1, new.shape[-2], -1)
    mask = torch.cat([old, new.expand(batch, 1, -1, -1)], 3)  # (B, 1, g n, L + n) bool
    out = F.scaled_dot_product_attention(_stacked(query, kv_heads), k, v, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, n, value.shape[3])


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def _spans(lengths: list[int], operations: int) -> list[tuple[int, int, int, bool]]:
    """→ [(begin, end, length, ragged)]: slices of the batch that go in one call, of equal lengths, or all of it under a
    mask if that is cheaper. `operations` is what one row of the cache costs."""
    spans: list[tuple[int, int, int, bool]] = []
    for b, length in enumerate(lengths):
        if spans and spans[-1][2] == length:
            spans[-1] = (spans[-1][0], b + 1, length, False)
        else:
            spans.append((b, b + 1, length, False))
    longest = max(lengths, default=0)
    wasted = len(lengths) * longest - sum(lengths)
    if wasted * operations < (len(spans) - 1) * CALL:
        return [(0, len(lengths), longest, True)]
    return spans


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake(*args: Unpack[AttendCall]) -> Tensor:
    call = AttendCall(*args)
    return call.query.new_empty((*call.query.shape[:3], call.value.shape[3]))


_OP = register(SCHEMA, None, _fake, kernels={"CPU": _on_cpu, "CUDA": _on_device})
