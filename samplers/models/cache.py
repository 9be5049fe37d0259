"""Cache: the keys and values of all layers of a Transformer, allocated once, moved by the cached-KV ops, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops

__all__ = ["Cache"]


class Cache:
    """Preallocated keys and values, and how many rows of each batch row are filled.

    Every method moves all layers in one op (`fill` also one layer alone), in place, and writes the rows that it is about
    and nothing else; `bytes_written` counts them. Shapes of new rows are (layers, B, H, n, d), as a Transformer makes them.

    Attributes:
        key, value: (layers, B, H, length, d). Rows from `lengths` on hold anything finite.
        lengths: (B,) int64, filled rows of each batch row.

    Errors are the ops' own (samplers.ops.cached_kv): TypeError for a dtype, ValueError for a shape or device, IndexError
    for rows that would lie outside; nothing is then written. On a device such rows are left out instead.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        # Zeros: a row that attention does not see is multiplied by a weight of 0, so it must be finite.
        self.key, self.value = (
            torch.zeros(layers, batch, heads, length, width, dtype=dtype, device=device) for _ in range(2)
        )
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # (B,)
        self._known = 0  # rows written, where their number is known without a device sync
        self._counted = torch.zeros((), dtype=torch.int64, device=device)  # and where it is not

    @property
    def batch(self) -> int:
        return self.key.shape[1]

    @property
    def length(self) -> int:
        """Rows that a batch row has room for."""
        return self.key.shape[3]

    @property
    def row_bytes(self) -> int:
        """kappa: bytes of one row of one batch row, all layers and heads, key and value."""
        return ops.kv_row_bytes(self.key, self.value)

    @property
    def bytes_written(self) -> int:
        """Bytes that all calls so far have written. Waits for the device."""
        return (self._known + int(self._counted)) * self.row_bytes

    def _count(self, rows: int, count: Tensor | None) -> None:
        """`rows` a batch row, or as many as `count` says."""
        if count is None:
            self._known += rows * self.batch
        else:
            self._counted += count.sum()

    def append(self, key: Tensor, value: Tensor, count: Tensor | None = None) -> None:
        """Behind the filled rows: batch row b's first count[b] new rows (None: all of them)."""
        ops.kv_append_(self.key, self.value, key, value, self.lengths, count)
        self._count(key.shape[-2], count)

    def replace(self, key: Tensor, value: Tensor, start: Tensor | int, count: Tensor | None = None) -> None:
        """At start[b] and up: batch row b's first count[b] new rows (None: all). Lengths stay."""
        ops.kv_replace_(self.key, self.value, key, value, start, count)
        self._count(key.shape[-2], count)

    def fill(
        self, key: Tensor, value: Tensor, runs: Sequence[tuple[int, int]], count: Tensor | None = None, layer: int = -1
    ) -> None:
        """The first rows of batch rows first to end - 1, for each of `runs`; their lengths become as many, if that is more.

        Args:
            count: (B',) int64, of the new batch rows, in the order of the runs, only the first count[i] rows; None: all n.
            layer: the only layer that is written, key and value being (1, B', H, n, d); the rows are counted, and lengths set,
                with the last one. -1: all layers.
        """
        n, done = key.shape[-2], 0
        keys, values = (x if layer < 0 else x[layer : layer + 1] for x in (self.key, self.value))
        last = layer < 0 or layer == len(self.key) - 1
        for first, end in runs:
            rows, new = slice(first, end), slice(done, done + end - first)
            own = None if count is None else count[new]
            ops.kv_replace_(keys[:, rows], values[:, rows], key[:, new], value[:, new], 0, own)
            if last:
                self.lengths[rows] = self.lengths[rows].clamp(min=n if own is None else own)
            done += end - first
        if not last:
            return
        if count is None:
            self._known += n * done
        else:
            self._counted += count.sum()

    def keep_rows(self, source: Tensor) -> None:
        """Batch row i becomes what source[i] was, and those beyond are gone. source: (B',) int64, ascending."""
        rest = torch.arange(len(source), self.batch, device=source.device)
        self.select(torch.cat([source, rest]))
        self.key, self.value = self.key[:, : len(source)], self.value[:, : len(source)]
        self.lengths = self.lengths[: len(source)].clone()

    def take(self, source: Tensor) -> None:
        """Batch row i becomes a copy of what row source[i] was, of any number of rows. source: (B',) int64.

        Unlike `select` it may make more batch rows than there are; all rows are written then, and counted.
        """
        if len(source) == self.batch:
            self.select(source)
            return
        self.key, self.value = self.key[:, source], self.value[:, source]
        self.lengths = self.lengths[source]
        self._counted += self.lengths.sum()

    def scatter(self, key: Tensor, value: Tensor, index: Tensor) -> None:
        """At index[b, i] the new row i, none where that is negative. index: (n,) or (B, n). Lengths stay."""
        ops.kv_scatter_(self.key, self.value, key, value, index)
        self._count(0, (index >= 0).expand(self.batch, -1))

    def gather(self, index: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Copies of the rows index[b, i] of batch row b, or of rows[b, i]: key and value (layers, B', H, n, d).

        index, rows: (n,) or (B', n) int64; zeros where the index is negative. Rows of several batch rows can be joined
        in one, to be appended to it. Written outside the cache, so not counted here.
        """
        return ops.kv_gather(self.key, self.value, index, rows=rows)

    def append_from(self, other: Cache, index: Tensor, rows: Tensor, count: Tensor) -> None:
        """Behind the filled rows of batch row b go copies of the first count[b] of other's rows index[b, i], of its batch rows
        rows[b, i]. What `other` has written so far is counted here from now on: it has served.

        index, rows: (B, n) int64. count: (B,) int64.
        """
        self.append(*other.gather(index, rows), count)
        self._known, other._known = self._known + other._known, 0
        self._counted, other._counted = self._counted + other._counted, torch.zeros_like(other._counted)

    def compact(self, keep: Tensor) -> None:
        """Of the filled rows those that are kept move to the front, in order. keep: (B, length) bool."""
        filled = keep & (torch.arange(self.length, device=keep.device) < self.lengths[:, None])
        moved = filled & (filled.cumsum(1) <= torch.arange(self.length, device=keep.device))  # something before is gone
        ops.kv_compact_(self.key, self.value, keep, self.lengths)
        self._counted += moved.sum()

    def crop(self, length: Tensor | int) -> None:
        """At most `length` rows, one number or (B,), count as filled. Moves nothing."""
        self.lengths.copy_(torch.clamp(self.lengths, max=length))

    def select(self, source: Tensor) -> None:
        """Batch row b becomes what source[b] was. source: (B,) int64; of each only its filled rows are written."""
        before = self.lengths.clone()
        ops.kv_select_rows_(self.key, self.value, source, self.lengths)
        stays = source == torch.arange(self.batch, device=source.device)
        self._counted += torch.where(stays, 0, before[source]).sum()

    def index_select(self, source: Tensor, length: int | None = None) -> Cache:
        """A new cache whose batch row i is a copy of batch row source[i]: replicated, picked or permuted.

        Args:
            source: (B',) int64.
            length: room in the new one; None: as here. Rows beyond it are not taken.
        """
        layers, _, heads, here, width = self.key.shape
        length = here if length is None else length
        like: dict[str, Any] = {"dtype": self.key.dtype, "device": self.key.device}
        made = Cache(layers, len(source), heads, length, width, **like)
        made.lengths.copy_(self.lengths[source].clamp(max=length))
        index = torch.arange(min(here, length), device=source.device)
        filled = index < made.lengths[:, None]  # (B', n)
        rows = source[:, None].expand(-1, len(index)).contiguous()
        key, value = (x[..., : len(index), :] for x in (made.key, made.value))
        ops.kv_gather(self.key, self.value, torch.where(filled, index, -1), rows=rows, out=(key, value))
        made._counted += filled.sum()
        return made
