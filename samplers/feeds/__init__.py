"""Feeds: the ways in which a forward pass is given to the model.

The predictor plans what to ask (a list of Query), hands each Query to a Feed, and reads the answer. A Feed knows what the
model is given and nothing of what becomes of the answer:

    plain       the whole canvas of the rows that are asked about; guidance doubles the rows
    cached      a part of the canvas, the rest from a KV cache (the driver's cache= argument)
    sequence    decided tokens appended to one sequence per row, for samplers with Facts(sequential=True)
    encoded     the open block, of a BlockDenoiser, which has read what is before it
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..state import TokenState

__all__ = ["Answer", "Feed", "Memory", "Query", "SeenQuery"]


@dataclass(frozen=True, eq=False)
class Query:
    """One forward pass: which rows of the batch take part, and at which positions an answer is needed.

    Attributes:
        batch: B.
        rows: (A,) int64, the rows of the batch, ascending; None: all of them, A = B.
        mask: (A, length) bool, the positions that are asked about.
        count: number of True entries in `mask`, known on the host.
        guided: whether guidance needs a second, unconditional answer for each position.
        t: (B,) float64, the noise level that the sampler gave, or None.
        members: the same rows as `rows`, on the host.
        whole: whether all rows take part with all their positions, so that mask is (B, L).
        temperature: (B,) float32, what the logits are divided by before a self-conditioned denoiser is told of them in the
            next step; None: nothing.
        wide: how many positions a self-conditioned denoiser is asked for: those of `mask` and the rest of the present blocks.
        lengths: (A,) int64, where each row ends, if they end at different positions: the model must not see what stands
            after it. None: all rows have `length` positions.
        maps: where the attention of the forward pass is put, (A, length, length) float32; None: it is not asked for.
    """

    batch: int
    rows: Tensor | None
    mask: Tensor
    count: int
    guided: bool = False
    t: Tensor | None = None
    members: tuple[int, ...] = ()
    whole: bool = False
    temperature: Tensor | None = None
    wide: int = 0
    lengths: Tensor | None = None
    maps: list[Tensor] | None = None

    @property
    def length(self) -> int:
        """Positions of each row that the model is given."""
        return self.mask.shape[1]

    @functools.cached_property
    def flat(self) -> Tensor:
        """(count,) int64: the asked positions as indices of mask.flatten()."""
        return torch.nonzero_static(self.mask.flatten(), size=self.count).squeeze(1)  # known size: no device sync

    @functools.cached_property
    def row(self) -> Tensor:
        """(count,) int64: the batch row of each asked position."""
        row = torch.div(self.flat, self.length, rounding_mode="floor")
        return row if self.rows is None else self.rows[row]

    @functools.cached_property
    def position(self) -> Tensor:
        """(count,) int64: where each asked position is on the canvas."""
        return self.flat % self.length

    def on_canvas(self, width: int) -> Tensor:
        """(count,) int64: the asked positions as indices of a flattened canvas of `width` positions per row."""
        return self.flat if self.whole else self.row * width + self.position

    def of_rows(self, x: Tensor) -> Tensor:
        """The rows of x, (B, ...), that take part: (A, ...)."""
        return x if self.rows is None else x[self.rows]

    def of_canvas(self, x: Tensor) -> Tensor:
        """The part of x, (B, L), that the model is given: (A, length)."""
        return x if self.whole else self.of_rows(x)[:, : self.length]


@dataclass(frozen=True, eq=False)
class SeenQuery(Query):
    """A forward pass whose sequence, and what each of its lines sees, the sampler says: Predict.seen.

    Attributes:
        sequence: x (A, length) int64, the tokens; places (A, length) int64, where on the canvas each stands; visible (A, length,
            length) bool, which columns each line sees.
        width: columns of the canvas itself, which come first; those from there on are the sampler's own.
        own: how many of the asked lines are below `width`.
    """

    sequence: list[Tensor] = dataclasses.field(kw_only=True)
    width: int = dataclasses.field(kw_only=True)
    own: int = dataclasses.field(kw_only=True)

    @property
    def x(self) -> Tensor:
        return self.sequence[0]

    @property
    def places(self) -> Tensor:
        return self.sequence[1]

    @property
    def visible(self) -> Tensor:
        return self.sequence[2]

    @functools.cached_property
    def column(self) -> Tensor:
        """(count,) int64: where each asked line is in the sequence."""
        return self.flat % self.length

    @functools.cached_property
    def position(self) -> Tensor:
        """(count,) int64: where each asked line is on the canvas."""
        return self.places.flatten()[self.flat]

    @functools.cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Of the numbers of the asked lines, (own,) int64 and (count - own,): those of the canvas, and the others."""
        outside = self.column >= self.width
        sizes = ((~outside, self.own), (outside, self.count - self.own))
        return tuple(torch.nonzero_static(part, size=n).squeeze(1) for part, n in sizes)  # type: ignore[return-value]

    def on_canvas(self, width: int) -> Tensor:
        """(count,) int64: the asked lines as indices of a flattened batch of sequences of `width` columns."""
        return self.row * width + self.column


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said in one forward pass.

    Attributes:
        value: (R, D) hidden rows if the denoiser exposes its head, else (R, V) logits.
        index: (n,) int64, the rows of `value` that were asked for, in the order of the canvas; None: all, R = n. If the
            query is guided n = 2 count, and the second half is the unconditional answer; else n = count.
    """

    value: Tensor
    index: Tensor | None = None

    def packed(self) -> Tensor:
        """(n, D) or (n, V): the rows that were asked for."""
        return self.value if self.index is None else self.value[self.index]


class Memory(Protocol):
    """What must be told when a step begins and ends, since a part of the state is made while the model is asked."""

    def begin_step(self, state: TokenState) -> None:
        """A step from `state` begins."""
        ...

    def end_step(self, state: TokenState) -> TokenState:
        """The step has led to `state`; returns it with what the next step must remember of this one."""
        ...


class Feed(Protocol):
    """What gives queries to the model. One object serves one run.

    Attributes:
        nfe_rows: (B,) int64, forward passes that each row took part in so far.
    """

    nfe_rows: Tensor

    @property
    def memory(self) -> Memory | None:
        """What the model remembers from one step to the next; None if it remembers nothing."""
        ...

    def counts(self, state: TokenState, rows: Tensor | None) -> Tensor:
        """(n,) int64: what `plan` must know on the host, for the positions `rows` (None: state.open). No device sync."""
        ...

    def idle(self, counts: list[int]) -> bool:
        """Whether these counts, made with rows=None, say that no row has anything left to do."""
        ...

    def plan(self, state: TokenState, rows: Tensor | None, counts: list[int], t: Tensor | None) -> Sequence[Query]:
        """The forward passes that answer for `rows`, (B, L) bool (None: state.open). No device sync."""
        ...

    def feed(self, state: TokenState, query: Query) -> Answer:
        """Run one forward pass."""
        ...

    def copies(self, number: int) -> Feed:
        """A feed of the same kind for `number` copies of every row; OptionError if rows cannot be copied."""
        ...

    def rearrange(self, source: Tensor) -> None:
        """What is kept of row i becomes what was kept of row source[i], (B,) int64. One device sync if anything is kept."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values written to caches so far."""
        ...
