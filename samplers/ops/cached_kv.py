"""Cached keys and values: rows appended, replaced, scattered, gathered, compacted, and batch rows selected.

A cache is two tensors, `key` and `value`, (layers, B, H, L, D), allocated once. One call works on all layers and both
tensors, in place. Its cost is that of the rows that it moves, whatever the capacity L is. (B, H, L, D), one layer, is
accepted as well. Any dtype; D must be contiguous, the other dimensions may have any strides, so a slice of layers or both
halves of one (layers, 2, B, H, L, D) tensor are accepted. Widths D of keys and values may differ. The caller keeps how
much of the cache is filled, in `lengths` (B,) int64; a crop is `lengths.clamp_(max=...)` and moves nothing.

Bytes: a call that writes n rows per batch row to B batch rows writes exactly n * B * kv_row_bytes(key, value) bytes, reads
as many, and touches nothing else.

Errors: on the CPU a call that cannot be carried out in full raises and has then written nothing. On a device that would
take a device sync. There a row whose place lies outside the cache is left out and everything else is done.

New rows and `out` must not share memory with the cache. Gradients do not pass.

The `_twin…` functions are the specification; csrc/cpu/cached_kv.cpp does the same with memmove.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from samplers.ops import _native
from samplers.ops._check import Maybe, check_inside, check_vector, explain_errors
from samplers.ops._register import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    Call = TypeVar("Call", bound=tuple[Tensor, Unpack[tuple[Tensor | int | None, ...]]])
    Pair = tuple[Tensor, Tensor]

APPEND = (
    "kv_append_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor(c!) lengths, "
    "Tensor? count) -> ()"
)
REPLACE = (
    "kv_replace_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor? start, int at, "
    "Tensor? count) -> ()"
)
SCATTER = "kv_scatter_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor index) -> ()"
GATHER = (
    "kv_gather_(Tensor(a!) out_key, Tensor(b!) out_value, Tensor key, Tensor value, Tensor index, Tensor? rows) -> ()"
)
COMPACT = "kv_compact_(Tensor(a!) key, Tensor(b!) value, Tensor keep, Tensor(c!) lengths) -> ()"
SELECT = "kv_select_rows_(Tensor(a!) key, Tensor(b!) value, Tensor source, Tensor(c!)? lengths) -> ()"


class AppendCall(NamedTuple):
    """The arguments of `kv_append_`, in the schema's order."""

    key: Tensor
    value: Tensor
    new_key: Tensor
    new_value: Tensor
    lengths: Tensor
    count: Tensor | None  # type: ignore[assignment]  # tuple.count is not needed here


class ReplaceCall(NamedTuple):
    """The arguments of `kv_replace_`, in the schema's order."""

    key: Tensor
    value: Tensor
    new_key: Tensor
    new_value: Tensor
    start: Tensor | None
    at: int
    count: Tensor | None  # type: ignore[assignment]


class ScatterCall(NamedTuple):
    """The arguments of `kv_scatter_`, in the schema's order."""

    key: Tensor
    value: Tensor
    new_key: Tensor
    new_value: Tensor
    index: Tensor  # type: ignore[assignment]


class GatherCall(NamedTuple):
    """The arguments of `kv_gather_`, in the schema's order."""

    out_key: Tensor
    out_value: Tensor
    key: Tensor
    value: Tensor
    index: Tensor  # type: ignore[assignment]
    rows: Tensor | None


class CompactCall(NamedTuple):
    """The arguments of `kv_compact_`, in the schema's order."""

    key: Tensor
    value: Tensor
    keep: Tensor
    lengths: Tensor


class SelectRowsCall(NamedTuple):
    """The arguments of `kv_select_rows_`, in the schema's order."""

    key: Tensor
    value: Tensor
    source: Tensor
    lengths: Tensor | None


def kv_row_bytes(key: Tensor, value: Tensor) -> int:
    """The bytes of one row of one batch row: all layers and heads, key and value."""
    layers = key.shape[0] if key.dim() == 5 else 1
    return layers * key.shape[-3] * (key.shape[-1] + value.shape[-1]) * key.element_size()


@explain_errors
def kv_append_(
    key: Tensor, value: Tensor, new_key: Tensor, new_value: Tensor, lengths: Tensor, count: Tensor | None = None
) -> None:
    """Writes batch row b's first count[b] new rows from lengths[b] on, and advances lengths[b] by count[b].

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        new_key, new_value: (layers, B, H, n, D) or (B, H, n, D), of the cache's dtype.
        lengths: (B,) int64 in [0, L], advanced in place.
        count: (B,) int64 in [0, n]; None: n everywhere.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride or a device is. IndexError: rows would lie past the
        end of the cache, or a number in `lengths` or `count` is out of its range. On a device the rows past the end
        are left out, and lengths stops at L.
    """
    _run(_APPEND, _check_append, (key, value, _no_grad(new_key), _no_grad(new_value), lengths, count))


@explain_errors
def kv_replace_(
    key: Tensor, value: Tensor, new_key: Tensor, new_value: Tensor, start: Tensor | int, count: Tensor | None = None
) -> None:
    """Writes batch row b's first count[b] new rows from start[b] on.

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        new_key, new_value: (layers, B, H, n, D) or (B, H, n, D), of the cache's dtype.
        start: (B,) int64, or one int for all.
        count: (B,) int64 in [0, n]; None: n everywhere.

    Raises:
        As `kv_append_`.
    """
    if torch.compiler.is_compiling() and not isinstance(start, Tensor):
        start = torch.full(key.shape[-4:-3], start, device=key.device)  # so that one graph serves all numbers
    places, at = (start, 0) if isinstance(start, Tensor) else (None, start)
    call = (key, value, _no_grad(new_key), _no_grad(new_value), places, at, count)
    _run(_REPLACE, _check_replace, call)


@explain_errors
def kv_scatter_(key: Tensor, value: Tensor, new_key: Tensor, new_value: Tensor, index: Tensor) -> None:
    """Writes batch row b's new row i at index[b, i]; a negative index skips it. Of equal indices the last one wins.

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        new_key, new_value: (layers, B, H, n, D) or (B, H, n, D), of the cache's dtype.
        index: (n,) or (B, n) int64, below L. Consecutive indices are moved in one piece.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride or a device is. IndexError: an index is L or more
        (on a device: skipped).
    """
    _run(_SCATTER, _check_scatter, (key, value, _no_grad(new_key), _no_grad(new_value), _packed(index)))


@explain_errors
def kv_gather(
    key: Tensor,
    value: Tensor,
    index: Tensor,
    *,
    rows: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Reads rows: row i of the result's batch row b is row index[b, i] of the cache's batch row rows[b, i], or zeros if the
    index is negative.

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        index: (n,) or (B', n) int64, below L, in any order, repeats allowed.
        rows: (n,) or (B', n) int64 in [0, B): from which batch row; None: b, and B' = B. So rows of several batch rows
            can be joined into one.
        out: key and value to write, (layers, B', H, n, D) or (B', H, n, D), of any strides; None: new ones.

    Returns:
        key and value, (layers, B', H, n, D) or (B', H, n, D).

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride or a device is. IndexError: an index is L or more, or
        rows is outside the batch (on a device: zeros).
    """
    index, rows = _packed(index), _packed(rows)
    if out is None:
        batch = key.shape[-4] if key.dim() >= 4 else 0
        for x in (index, rows):
            if x is not None and x.dim() == 2:
                batch = x.shape[0]
            elif rows is not None and index.dim() == rows.dim() == 1:
                batch = 1
        shape = (*key.shape[:-4], batch, *key.shape[-3:-2], *index.shape[-1:])
        out = key.new_empty((*shape, *key.shape[-1:])), value.new_empty((*shape, *value.shape[-1:]))
    _run(_GATHER, _check_gather, (*out, key, value, index, rows))
    return out


@explain_errors
def kv_compact_(key: Tensor, value: Tensor, keep: Tensor, lengths: Tensor) -> None:
    """Moves those of batch row b's first lengths[b] rows that are kept to the front, in order; lengths[b] becomes their
    number. Rows from there on hold what they held.

    For another order than the cache's, `kv_gather` the rows and `kv_replace_` them at 0.

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        keep: (B, L) bool; what it says of rows from lengths[b] on does not matter.
        lengths: (B,) int64 in [0, L], written in place.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride or a device is. IndexError: a length is outside
        [0, L] (on a device: taken as the nearest that is not).
    """
    _run(_COMPACT, _check_compact, (key, value, _packed(keep), lengths))


@explain_errors
def kv_select_rows_(key: Tensor, value: Tensor, source: Tensor, lengths: Tensor | None = None) -> None:
    """Makes batch row b what batch row source[b] was, its length included: copies, swaps and any other map.

    Args:
        key, value: the cache, (layers, B, H, L, D) or (B, H, L, D).
        source: (B,) int64 in [0, B).
        lengths: (B,) int64 in [0, L], written in place: only a row's first lengths[source[b]] rows are copied, the rest
            of it stays. None: all L rows are copied.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride or a device is. IndexError: source or a length is out
        of its range (on a device: such a row stays as it is, a length is taken as the nearest that is not).
    """
    _run(_SELECT_ROWS, _check_select_rows, (key, value, source, lengths))


def _no_grad(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x


def _packed(x: Maybe) -> Maybe:
    return x if x is None or x.is_contiguous() else x.contiguous()


def _run(op: torch._ops.OpOverload, check: Callable[[Call, bool], None], call: Call) -> None:
    """Calls the op with the arguments `call`, which are in the schema's order. The native CPU kernel checks everything
    itself, before it writes, so the checks follow only its refusal; elsewhere they come first."""
    if _native.C is not None and call[0].is_cpu and not torch.compiler.is_compiling():
        try:
            return op(*call)
        except RuntimeError:
            check(call, True)
            raise
    check(call, not torch.compiler.is_compiling())
    return op(*call)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _sizes(x: Tensor) -> tuple[int, ...]:
    """(layers, B, H, L) of a cache of either form."""
    return (1, *x.shape[:3]) if x.dim() == 4 else tuple(x.shape[:4])


def _check_cache(
    op: str, key: Tensor, value: Tensor, names: tuple[str, str] = ("key", "value"), written: bool = True
) -> None:
    """Two tensors that can be a cache."""
    for name, x in zip(names, (key, value)):
        if x.dim() not in (4, 5):
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)}, expected (layers, B, H, L, D) or, for one layer, (B, H, L, D)"
            )
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{op}: {name} has strides {tuple(x.stride())}, expected a contiguous last dimension (stride 1)"
            )
        if written and x.requires_grad:
            raise ValueError(f"{op}: {name} requires grad, expected a plain buffer: it is written in place")
        if written and any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride())):
            raise ValueError(f"{op}: {name} is expanded (strides {tuple(x.stride())}), expected memory of its own")
    first, other = names
    if value.dtype != key.dtype:
        raise TypeError(f"{op}: {other} is {value.dtype}, {first} is {key.dtype}; expected the same")
    if value.device != key.device:
        raise ValueError(f"{op}: {other} is on {value.device}, {first} on {key.device}; expected the same")
    if value.dim() != key.dim() or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"{op}: {other} has shape {tuple(value.shape)}, {first} has {tuple(key.shape)}; "
            "expected the same but for the last dimension"
        )


def _check_rows(op: str, new: Pair, cache: Pair, names: tuple[str, str], batch: int | None = None) -> None:
    """New rows, or a gather's result: like the cache in everything but the number of rows (and of batch rows)."""
    for name, x, c in zip(names, new, cache):
        expected: list[int | str] = [*c.shape[:-2], "n", c.shape[-1]]
        if batch is not None:
            expected[-4] = batch
        same = x.dim() == c.dim() and all(a == b for a, b in zip(x.shape, expected) if b != "n")
        if not same:
            words = ", ".join(map(str, expected))
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({words}) to go with the cache")
        if x.dtype != c.dtype:
            raise TypeError(f"{op}: {name} is {x.dtype}, the cache is {c.dtype}; expected the same")
        if x.device != c.device:
            raise ValueError(f"{op}: {name} is on {x.device}, the cache on {c.device}; expected the same")


def _check_between(op: str, x: Tensor, low: int, high: int, name: str) -> None:
    """Every entry in [low, high]. Needs the data itself."""
    bad = ((x < low) | (x > high)).nonzero()
    if len(bad):
        at = tuple(bad[0].tolist())
        place = ", ".join(map(str, at))
        raise IndexError(f"{op}: {name}[{place}] is {int(x[at])}, expected {low} to {high}")


def _check_vector(op: str, x: Tensor | None, name: str, cache: Tensor) -> None:
    check_vector(op, x, name, torch.int64, _sizes(cache)[1], cache.device)
    if x is not None and not x.is_contiguous():
        raise ValueError(f"{op}: {name} has strides {tuple(x.stride())}, expected a contiguous tensor")


def _check_index(op: str, index: Tensor, n: int | None, batch: int | None, name: str, device: torch.device) -> None:
    """(n,) or (B, n) int64."""
    if index.dim() not in (1, 2) or (n is not None and index.shape[-1] != n):
        raise ValueError(
            f"{op}: {name} has shape {tuple(index.shape)}, expected "
            + ("(n,) or (B, n)" if n is None else f"({n},) or (B, {n}), an entry per row")
        )
    if index.dim() == 2 and batch is not None and index.shape[0] != batch:
        raise ValueError(f"{op}: {name} has shape {tuple(index.shape)}, expected {batch} batch rows")
    if index.dtype != torch.int64:
        raise TypeError(f"{op}: {name} is {index.dtype}, expected torch.int64")
    if index.device != device:
        raise ValueError(f"{op}: {name} is on {index.device}, expected {device} like the rest")


def _seen(values: bool, key: Tensor) -> bool:
    """Whether numbers may be checked: not on a device, where that takes a device sync."""
    return values and key.device.type == "cpu"


def _check_ranges(op: str, cache: Tensor, n: int, start: Tensor, name: str, count: Tensor | None) -> None:
    """Rows start[b] up to start[b] + count[b] lie in the cache. Needs the data itself."""
    length = _sizes(cache)[3]
    if count is not None:
        _check_between(op, count, 0, n, "count")
    _check_between(op, start, 0, length, name)
    end = start + (n if count is None else count)
    bad = (end > length).nonzero()
    if len(bad):
        b = int(bad[0])
        raise IndexError(
            f"{op}: batch row {b} would get rows {int(start[b])} to {int(end[b]) - 1}, "
            f"expected rows below {length}, the capacity of the cache"
        )


def _check_append(call: tuple[Unpack[AppendCall]], values: bool = True) -> None:
    op = "kv_append_"
    key, value, new_key, new_value, lengths, count = call
    _check_cache(op, key, value)
    _check_cache(op, new_key, new_value, ("new_key", "new_value"), written=False)
    _check_rows(op, (new_key, new_value), (key, value), ("new_key", "new_value"))
    _check_vector(op, lengths, "lengths", key)
    _check_vector(op, count, "count", key)
    if _seen(values, key):
        _check_ranges(op, key, new_key.shape[-2], lengths, "lengths", count)


def _check_replace(call: tuple[Unpack[ReplaceCall]], values: bool = True) -> None:
    op = "kv_replace_"
    key, value, new_key, new_value, start, at, count = call
    _check_cache(op, key, value)
    _check_cache(op, new_key, new_value, ("new_key", "new_value"), written=False)
    _check_rows(op, (new_key, new_value), (key, value), ("new_key", "new_value"))
    _check_vector(op, start, "start", key)
    _check_vector(op, count, "count", key)
    if start is None and (isinstance(at, bool) or not isinstance(at, int)):
        raise TypeError(f"{op}: start is {at!r}, expected an int or a (B,) int64 tensor")
    if _seen(values, key):
        begin = torch.full(key.shape[-4:-3], at, device=key.device) if start is None else start
        _check_ranges(op, key, new_key.shape[-2], begin, "start", count)


def _check_scatter(call: tuple[Unpack[ScatterCall]], values: bool = True) -> None:
    op = "kv_scatter_"
    key, value, new_key, new_value, index = call
    _check_cache(op, key, value)
    _check_cache(op, new_key, new_value, ("new_key", "new_value"), written=False)
    _check_rows(op, (new_key, new_value), (key, value), ("new_key", "new_value"))
    _check_index(op, index, new_key.shape[-2], _sizes(key)[1], "index", key.device)
    if _seen(values, key):
        _check_between(op, index.clamp(min=0), 0, _sizes(key)[3] - 1, "index")


def _check_gather(call: tuple[Unpack[GatherCall]], values: bool = True) -> None:
    op = "kv_gather"
    out_key, out_value, key, value, index, rows = call
    _check_cache(op, key, value, written=False)
    _check_index(op, index, None, None, "index", key.device)
    _check_cache(op, out_key, out_value, ("out[0]", "out[1]"))
    batch, n = _sizes(out_key)[1], index.shape[-1]
    if rows is not None:
        _check_index(op, rows, n, batch, "rows", key.device)
    elif batch != _sizes(key)[1]:
        raise ValueError(f"{op}: the result has {batch} batch rows, the cache has {_sizes(key)[1]}; rows says which")
    _check_rows(op, (out_key, out_value), (key, value), ("out[0]", "out[1]"), batch)
    _check_index(op, index, out_key.shape[-2], batch, "index", key.device)
    if _seen(values, key):
        _check_between(op, index.clamp(min=-1), -1, _sizes(key)[3] - 1, "index")
        if rows is not None:
            _check_between(op, rows, 0, _sizes(key)[1] - 1, "rows")


def _check_compact(call: tuple[Unpack[CompactCall]], values: bool = True) -> None:
    op = "kv_compact_"
    key, value, keep, lengths = call
    _check_cache(op, key, value)
    _, batch, _, length = _sizes(key)
    if tuple(keep.shape) != (batch, length):
        raise ValueError(f"{op}: keep has shape {tuple(keep.shape)}, expected ({batch}, {length}), a flag per row")
    if keep.dtype != torch.bool:
        raise TypeError(f"{op}: keep is {keep.dtype}, expected torch.bool")
    if keep.device != key.device:
        raise ValueError(f"{op}: keep is on {keep.device}, expected {key.device} like the rest")
    _check_vector(op, lengths, "lengths", key)
    if _seen(values, key):
        _check_between(op, lengths, 0, length, "lengths")


def _check_select_rows(call: tuple[Unpack[SelectRowsCall]], values: bool = True) -> None:
    op = "kv_select_rows_"
    key, value, source, lengths = call
    _check_cache(op, key, value)
    _check_vector(op, source, "source", key)
    _check_vector(op, lengths, "lengths", key)
    if _seen(values, key):
        check_inside(op, source, _sizes(key)[1], "source", "batch rows")
        if lengths is not None:
            _check_between(op, lengths, 0, _sizes(key)[3], "lengths")


# ---- the twins -------------------------------------------------------------------------------------------------------


def _bits(x: Tensor) -> Tensor:
    """(layers, B, H, L, D) integers over the same memory: no dtype's arithmetic has a say in what is only moved."""
    x = x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    return x[None] if x.dim() == 4 else x


def _take(x: Tensor, batch: Tensor, row: Tensor) -> Tensor:
    """x[:, batch, :, row], (B', n, layers, H, D), batch and row broadcast to (B', n)."""
    return x.permute(1, 3, 0, 2, 4)[batch, row]


def _put(pairs: Sequence[Pair], place: Tensor, valid: Tensor) -> None:
    """Row i of batch row b goes to place[b, i] if that is valid and inside; the last of several there wins.

    Every write, also one that is skipped, is given what its place holds in the end, so the order in which a device
    carries them out does not matter.
    """
    (cache, new), *_ = pairs
    (_, batch, _, length, _), n = cache.shape, new.shape[3]
    if n == 0 or length == 0:
        return
    rows = torch.arange(batch, device=cache.device)[:, None]
    i = torch.arange(n, device=cache.device)
    valid = valid & (place >= 0) & (place < length)  # (B, n) bool
    place = place.clamp(0, length - 1)  # (B, n) int64
    winner = torch.full((batch, length), -1, device=cache.device)  # (B, L) int64: the row that a place gets
    winner.scatter_reduce_(1, place, torch.where(valid, i, -1), "amax")
    i = winner.gather(1, place)  # (B, n) int64
    for cache, new in pairs:
        moved = torch.where(
            (i >= 0)[..., None, None, None], _take(new, rows, i.clamp(min=0)), _take(cache, rows, place)
        )
        cache.permute(1, 3, 0, 2, 4).index_put_((rows, place), moved)


def _pairs(key: Tensor, value: Tensor, new_key: Tensor, new_value: Tensor) -> tuple[Pair, Pair]:
    return (_bits(key), _bits(new_key)), (_bits(value), _bits(new_value))


def _twin_replace(*args: Unpack[ReplaceCall]) -> None:
    key, value, new_key, new_value, start, at, count = ReplaceCall(*args)
    pairs = _pairs(key, value, new_key, new_value)
    i = torch.arange(new_key.shape[-2], device=key.device)
    if start is None:
        start = torch.full(key.shape[-4:-3], at, device=key.device)
    valid = torch.ones((), dtype=torch.bool, device=key.device) if count is None else i < count[:, None]
    _put(pairs, start[:, None] + i, valid)


def _twin_append(*args: Unpack[AppendCall]) -> None:
    key, value, new_key, new_value, lengths, count = AppendCall(*args)
    _twin_replace(key, value, new_key, new_value, lengths, 0, count)
    n = new_key.shape[-2]
    lengths.add_(n if count is None else count.clamp(0, n)).clamp_(0, key.shape[-2])


def _twin_scatter(*args: Unpack[ScatterCall]) -> None:
    key, value, new_key, new_value, index = ScatterCall(*args)
    place = index.expand(key.shape[-4], index.shape[-1])
    _put(_pairs(key, value, new_key, new_value), place, torch.ones((), dtype=torch.bool, device=key.device))


def _twin_gather(*args: Unpack[GatherCall]) -> None:
    out_key, out_value, key, value, index, rows = GatherCall(*args)
    batch, length, to = key.shape[-4], key.shape[-2], out_key.shape[-4]
    index = index.expand(to, index.shape[-1])
    rows = torch.arange(to, device=key.device)[:, None] if rows is None else rows.expand(to, rows.shape[-1])
    valid = (index >= 0) & (index < length) & (rows >= 0) & (rows < batch)  # (B', n) bool
    if length == 0 or batch == 0:
        out_key.zero_(), out_value.zero_()
        return
    index, rows = index.clamp(0, length - 1), rows.clamp(0, batch - 1)
    for out, cache in _pairs(out_key, out_value, key, value):
        moved = _take(cache, rows, index)
        out.permute(1, 3, 0, 2, 4).copy_(torch.where(valid[..., None, None, None], moved, 0))


def _twin_compact(*args: Unpack[CompactCall]) -> None:
    key, value, keep, lengths = CompactCall(*args)
    length = key.shape[-2]
    i = torch.arange(length, device=key.device)
    keep = keep & (i < lengths[:, None])  # (B, L) bool
    order = (~keep).long().argsort(dim=1, stable=True)  # (B, L) int64
    kept = keep.sum(1)  # (B,) int64
    rows = torch.arange(key.shape[-4], device=key.device)[:, None]
    for cache in (_bits(key), _bits(value)):
        by_row = cache.permute(1, 3, 0, 2, 4)  # (B, L, layers, H, D)
        by_row.copy_(torch.where((i < kept[:, None])[..., None, None, None], by_row[rows, order], by_row))
    lengths.copy_(kept)


def _twin_select_rows(*args: Unpack[SelectRowsCall]) -> None:
    key, value, source, lengths = SelectRowsCall(*args)
    batch, length = key.shape[-4], key.shape[-2]
    stay = torch.arange(batch, device=key.device)
    source = torch.where((source >= 0) & (source < batch), source, stay)
    i = torch.arange(length, device=key.device)
    new = torch.full_like(source, length) if lengths is None else lengths.clamp(0, length)[source]  # (B,) int64
    for cache in (_bits(key), _bits(value)):
        by_row = cache.permute(1, 3, 0, 2, 4)  # (B, L, layers, H, D)
        by_row.copy_(torch.where((i < new[:, None])[..., None, None, None], by_row[source], by_row))
    if lengths is not None:
        lengths.copy_(new)


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake(check: Callable[[Call, bool], None], call: Callable[..., Call]) -> Callable[..., None]:
    """Nothing is returned, all results are written in place; but a call with wrong shapes is found out."""
    return lambda *args: check(call(*args), False)


_APPEND = register(APPEND, _twin_append, _fake(_check_append, AppendCall))
_REPLACE = register(REPLACE, _twin_replace, _fake(_check_replace, ReplaceCall))
_SCATTER = register(SCATTER, _twin_scatter, _fake(_check_scatter, ScatterCall))
_GATHER = register(GATHER, _twin_gather, _fake(_check_gather, GatherCall))
_COMPACT = register(COMPACT, _twin_compact, _fake(_check_compact, CompactCall))
_SELECT_ROWS = register(SELECT, _twin_select_rows, _fake(_check_select_rows, SelectRowsCall))
