"""The sequence feed: decided tokens are appended to one sequence per row, in the order in which they came.

For models that look back only, in the order in which tokens came, and know each token's position (ReFusion, arXiv
2512.13586): keys and values of what has been decided are final, so every forward pass is given new tokens only. A sampler
with Facts(sequential=True) gets a SequencePredictor (samplers.predictor) as its `predict`, which asks through this feed, and
builds its state on SequenceState.

Answers are (B, L) tensors as always: at a mask the token that stands there, else the token that follows the one given
before it. What was committed in the step before and is not kept yet is given first, and kept. What the cache holds after
a row's sequence is overwritten. An earlier state can be stepped from again while no row has been done since; the states
that came after it then no longer can.

There is one device sync per chunk, and one when branches are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..canvas import Layout
from ..denoiser import CacheUse, Counter, TokenDenoiser
from ..errors import OptionError
from ..sampler import Sampler
from ..state import TokenState
from . import Answer, Query

__all__ = [
    "Branches",
    "Chunk",
    "ChunkQuery",
    "SequenceFeed",
    "SequenceState",
    "check_sequential",
    "missing_capabilities",
]

Q = TypeVar("Q", bound="SequenceState")


def missing_capabilities(denoiser: TokenDenoiser) -> list[str]:
    """What a denoiser lacks to be asked through a sequence, in words; empty if it lacks nothing."""
    own_cache = type(denoiser).new_cache is not TokenDenoiser.new_cache
    wanted = {
        f"its attention is {denoiser.attention}, not causal": denoiser.attention == "causal",
        "it has no cache (new_cache)": own_cache,
        "it does not predict the next token at one that is no mask (predicts_next)": denoiser.predicts_next,
        "its answers depend on the time (time_conditioned)": not denoiser.time_conditioned,
        "its answers depend on the ones before (self_conditioned)": not denoiser.self_conditioned,
    }
    return [what for what, fine in wanted.items() if not fine]


def check_sequential(denoiser: TokenDenoiser, sampler: Sampler, args: Mapping[str, Any]) -> None:
    """OptionError if the denoiser, or an argument of sample(), does not go with a sequential sampler."""
    if missing := missing_capabilities(denoiser):
        raise OptionError(
            f"sampler {sampler.name!r} decodes into a sequence, which denoiser {denoiser.name!r} cannot: "
            + "; ".join(missing)
        )
    never = {
        "cache": "it always has one of its own, so give none",
        "ragged": "rows of all lengths share its forward passes anyway, so give none",
        "cfg_scale": "guidance would need a second sequence, whose prompt is masked; use cfg_scale=0",
        "steps": "its forward passes follow from its options; give none",
        "constrain": "what it fixes would not be in the sequence; forbid= bars tokens everywhere",
        "window": "it gives the model decided tokens and the masks of the present block, never the canvas",
        "stop_rule": "it ends a row at the first stop token of its sequence; leave it out",
    }
    for name, why in never.items():
        if args[name]:
            raise OptionError(f"{name} does not go with sampler {sampler.name!r}: {why}")


@dataclass(frozen=True, eq=False)
class SequenceState(TokenState):
    """A token run that knows in which order its tokens came.

    Attributes:
        order: (B, L) int64, the canvas positions of the row's sequence: the given ones, then each as it was committed, those
            of one step by position. What lies after `length` means nothing.
        length: (B,) int64, how long the sequence is.
    """

    order: Tensor  # (B, L) int64
    length: Tensor  # (B,) int64

    @classmethod
    def begin(cls: type[Q], canvas: Layout, **fields: Any) -> Q:
        """The state before the first step, whose sequence is what is given. fields: a subclass's own fields."""
        given = canvas.prompt_mask
        order = (~given).to(torch.uint8).argsort(dim=1, stable=True)
        return super().begin(canvas, **({"order": order, "length": given.sum(1)} | fields))

    def _advance(self: Q, x: Tensor, *, steps: int = 1, **changes: Any) -> Q:
        new = x != self.x  # a token that came is never changed
        position = torch.arange(x.shape[1], device=x.device).expand_as(x)
        place = torch.where(new, self.length[:, None] + new.cumsum(1) - 1, x.shape[1])
        order = torch.nn.functional.pad(self.order, (0, 1)).scatter(1, place, position)[:, :-1]
        changes = {"order": order, "length": self.length + new.sum(1)} | changes
        return super()._advance(x, steps=steps, **changes)


@dataclass(eq=False)
class Branches:
    """Rows of a cache: the sequences of a run, or copies of them with something of their own after them.

    Attributes:
        store: what the denoiser's `new_cache` made.
        number: (B, L) int64, which of its rows a position belongs to, ascending along the canvas; `size`: to none.
        size: how many rows it has.
        begin: (size,) int64, how long the sequence was that a branch began with; None for the sequences themselves.
    """

    store: Any
    number: Tensor
    size: int
    begin: Tensor | None = None

    def row_counts(self, plane: Tensor) -> Tensor:
        """(size,) int64: how many positions of each row are in `plane`, (B, L) bool."""
        total = torch.zeros(self.size + 1, dtype=torch.int64, device=plane.device)
        return total.index_add_(0, self.number.flatten(), plane.flatten().to(torch.int64))[:-1]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Positions laid out for a forward pass: (A, n), a line for each row of the cache, by position, filling after them.

    Attributes:
        on: whose cache.
        fed: (B, L) bool, the positions.
        query_masks: (B, L) bool each, those whose tokens may be asked for; with each how many they are.
        flat, place: (T,) int64, each position's number on the canvas and in the layout.
        count: (A,) int64, positions in each line.
        width: n.
    """

    on: Branches
    fed: Tensor
    query_masks: tuple[tuple[Tensor, int], ...]
    flat: Tensor
    place: Tensor
    count: Tensor
    width: int

    def gather_to_batch(self, plane: Tensor) -> Tensor:
        """(B, L) -> (A, n); zeros at filling."""
        out = plane.new_zeros(self.on.size * self.width)
        return out.index_put_((self.place,), plane.flatten()[self.flat]).view(self.on.size, self.width)

    def query(self, token: Tensor, which: int | None = None, *, keep: bool = True) -> ChunkQuery:
        """The forward pass that gives `token`, (B, L), at the chunk's positions.

        Args:
            which: number of the query mask that is answered; None: nothing is asked, the tokens are only to be kept.
            keep: their keys and values stay after what is kept, else not.
        """
        mask, count = (torch.zeros_like(self.fed), 0) if which is None else self.query_masks[which]
        return ChunkQuery(len(mask), None, mask, count, whole=True, chunk=self, token=token, keep=keep)


@dataclass(frozen=True, eq=False)
class ChunkQuery(Query):
    """A forward pass over a chunk.

    Attributes:
        chunk: its positions.
        token: (B, L) int64, what is given at them.
        keep: whether keys and values of tokens (not of masks) are kept.
    """

    chunk: Chunk = None  # type: ignore[assignment]  # a field after those with defaults needs one
    token: Tensor = None  # type: ignore[assignment]
    keep: bool = True


class SequenceFeed:
    """Gives the model what of each row's sequence it has not seen, and masks after it; see the module."""

    memory = None

    def __init__(self, counter: Counter, batch: int):
        self.counter = counter
        self.denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=self.denoiser.device)
        self.main: Branches | None = None  # the rows' own sequences; those of rows that are done have left
        self._rows: list[int] = []  # the batch row of each sequence

    @property
    def cache_bytes(self) -> int:
        return 0 if self.main is None else self.main.store.bytes_written

    # ------------------------------------------------------------------------------------------ plan and feed

    def copies(self, number: int) -> SequenceFeed:
        raise OptionError(
            "this sampler makes copies of rows, and a sequential sampler (autoregressive, refusion) keeps one sequence per row: "
            "use another one in its place"
        )

    def rearrange(self, source: Tensor) -> None:
        raise NotImplementedError

    def counts(
        self, state: TokenState, rows: Tensor | None, masks: Tensor | None = None, guesses: Tensor | None = None
    ) -> Tensor:
        """(3 + B,) int64: positions given, the most in a row, positions asked about; and which rows are asked.

        Args:
            masks: (B, L) bool, of `rows` those that are answered by a mask; None: all.
            guesses: (B, L) bool, tokens of state.x that are tried after the sequence; None: none.
        """
        assert isinstance(state, SequenceState)
        rows = state.open if rows is None else rows
        fed = torch.logical_or(*self._fed(state, rows, masks, again=guesses is not None))
        fed = fed if guesses is None else fed | guesses
        return torch.cat([torch.stack([fed.sum(), fed.sum(1).max(), rows.sum()]), rows.any(1).to(torch.int64)])

    def idle(self, counts: list[int]) -> bool:
        return not any(counts[3:])

    def plan(
        self,
        state: TokenState,
        rows: Tensor | None,
        counts: list[int],
        t: Tensor | None = None,
        masks: Tensor | None = None,
        guesses: Tensor | None = None,
    ) -> Sequence[ChunkQuery]:
        """One forward pass for `rows`, given what of the sequences is not kept yet, guesses after it, and masks after these."""
        assert isinstance(state, SequenceState)
        if not counts[0]:
            return ()
        rows, asked_rows = state.open if rows is None else rows, counts[3:]
        lacking, masked = self._fed(state, rows, masks, again=guesses is not None)
        if self.main is None:
            self._rows = list(range(len(asked_rows)))
            store = self.denoiser.new_cache(len(asked_rows), rows.shape[1])
            self.main = Branches(store, torch.empty(0, dtype=torch.int64, device="cpu"), len(asked_rows))
        stays = [i for i, row in enumerate(self._rows) if asked_rows[row]]
        if len(stays) < len(self._rows):
            self.main.store.keep_rows(torch.tensor(stays, device=rows.device))
            self._rows, self.main.size = [self._rows[i] for i in stays], len(stays)
        here = torch.tensor(self._rows, device=rows.device)
        number = torch.full((len(rows),), self.main.size, device=rows.device)
        number = number.index_put_((here,), torch.arange(self.main.size, device=rows.device))
        self.main.number = number[:, None].expand_as(rows)
        self.main.store.crop((state.length - lacking.sum(1))[here])
        fed, keep = lacking | masked, masks is not None or counts[0] > counts[2]
        fed = (
            fed if guesses is None else fed | guesses
        )  # they stand after the last token of the sequence, so come after it
        last = masked if keep else None
        chunk = self._chunk(self.main, fed, last, (rows,), self.main.row_counts(fed), counts[:3])
        return (chunk.query(state.x, 0, keep=keep),)

    def feed(self, state: TokenState, query: Query) -> Answer:
        assert isinstance(query, ChunkQuery)
        chunk, asked = query.chunk, query.mask
        position = torch.arange(asked.shape[1], device=asked.device).expand_as(asked)
        x, position, lines = map(chunk.gather_to_batch, (query.token, position, asked))
        ahead = asked & ~chunk.fed
        masked = x == self.denoiser.mask_id
        # A mask is answered in its own line of the output, any other token in the line before; so is one that is not given.
        pad = torch.nn.functional.pad
        rows = (lines & masked) | pad((lines & ~masked)[:, 1:], (0, 1))
        rows = rows | chunk.gather_to_batch(pad(ahead[:, 1:], (0, 1)))
        stored = None
        if query.keep:
            there = torch.arange(chunk.width, device=x.device) < chunk.count[:, None]
            stored = (there & ~masked).sum(1)
        write = "append" if query.keep else None
        use = CacheUse(chunk.on.store, position, count=chunk.count, write=write, stored=stored)
        self.nfe_rows += chunk.fed.any(1)
        if self.denoiser.head is not None:
            return Answer(self.counter.hidden(x, None, rows, query.count, cache=use))
        return Answer(*self.counter.tokens(x, None, rows, query.count, cache=use))

    def _fed(
        self, state: SequenceState, rows: Tensor, masks: Tensor | None, again: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(B, L) bool each, what the next forward pass is given: what of the sequences is not kept yet, and masks after it.

        again: the last token of each sequence is given in any case; what is kept of a refused guess in its place is forgotten.
        """
        kept = torch.zeros_like(state.length)  # (B,)
        if self.main is not None:
            kept[torch.tensor(self._rows, device=kept.device)] = self.main.store.lengths
        masks = rows if masks is None else masks
        # Where the last token's own line answers, it is fed again if it must be (an earlier state, stepped from again).
        last = torch.ones_like(kept) if again else (rows & ~masks).any(1).to(torch.int64)
        kept = torch.minimum(kept, state.length - last)
        rank = torch.arange(rows.shape[1], device=rows.device)
        lacking = (rank >= kept[:, None]) & (rank < state.length[:, None]) & rows.any(1, keepdim=True)
        where = torch.where(lacking, state.order, rows.shape[1])
        return torch.nn.functional.pad(torch.zeros_like(rows), (0, 1)).scatter_(1, where, True)[:, :-1], masks

    # ------------------------------------------------------------------------------------------ chunks and branches

    def chunk(self, fed: Tensor, *asks: Tensor, on: Branches | None = None) -> Chunk | None:
        """The positions `fed`, (B, L) bool, laid out after the sequences, or after branches; None if there are none.

        Args:
            asks: (B, L) bool, subsets of `fed` that will be asked for. The first position of a row may be asked for only if
                it is a mask.
            on: the branches; `fed` are then the last positions of each branch that is given anything, and what it kept of
                them is forgotten.
        """
        on = self.main if on is None else on
        assert on is not None
        count = on.row_counts(fed)
        counts = torch.stack([fed.sum(), count.max(), *(a.sum() for a in asks)]).tolist()
        if not counts[0]:
            return None
        if on.begin is not None:
            on.store.crop(on.begin + on.row_counts(on.number < on.size) - count)
        return self._chunk(on, fed, None, asks, count, counts)

    def _chunk(
        self,
        on: Branches,
        fed: Tensor,
        last: Tensor | None,
        asks: tuple[Tensor, ...],
        count: Tensor,
        counts: list[int],
    ) -> Chunk:
        """A chunk of which all numbers are known; positions in `last`, if that is given, come after the others."""
        total, width, *needed = counts
        flat = torch.nonzero_static(fed.flatten(), size=total).squeeze(1)  # (T,)
        number = on.number.flatten()[flat]
        if last is not None:
            flat = flat[(2 * number + last.flatten()[flat]).argsort(stable=True)]
            number = on.number.flatten()[flat]
        begin = count.cumsum(0) - count
        place = torch.arange(total, device=fed.device) - begin[number] + number * width
        return Chunk(on, fed, tuple(zip(asks, needed)), flat, place, count, width)

    def branches(self, state: SequenceState, number: Tensor) -> Branches | None:
        """Copies of the rows' sequences, one per branch, for positions that must not see those of other branches.

        Rows that have branches forget what was kept after their sequence.

        Args:
            number: (B, L) int64, the branch of each position, counted through the batch in the order of the canvas; -1: none.

        Returns:
            None if there are none. Give it to `chunk`, and to `merge` in the end.
        """
        assert self.main is not None
        inside = number >= 0
        number = torch.where(inside, number, number.numel())
        sizes = torch.zeros(number.numel() + 1, dtype=torch.int64, device=number.device)
        sizes.index_add_(0, number.flatten(), inside.flatten().to(torch.int64))
        longest = (state.length * inside.any(1)).max()
        counts = torch.stack([(sizes[:-1] > 0).sum(), longest + sizes[:-1].max(), inside.any(1).sum()])
        size, room, rows = counts.tolist()
        if not size:
            return None
        number = number.clamp(max=size)
        row = torch.arange(len(number), device=number.device)[:, None].expand_as(number)
        row = torch.zeros_like(sizes[: size + 1]).scatter_(0, number.flatten(), row.flatten())[:-1]  # (K,)
        kept = torch.where(inside.any(1), state.length, number.shape[1])
        self.main.store.crop(kept[self._rows])
        store = self.main.store
        if not size == rows == self.main.size:  # else each row has one branch: no other needs its sequence
            store = store.index_select(self.main.number[row, 0], room)
        return Branches(store, number, size, state.length[row])

    def merge(self, state: SequenceState, branches: Branches, token: Tensor, where: Tensor, *, again: Tensor) -> None:
        """Keep `where`, (B, L) bool, the first positions of some branches, after the sequences of their rows.

        Args:
            token: (B, L) int64, what stands there.
            again: (B,) bool, rows whose keys and values are computed once more, by a forward pass over all of `where`; those of
                the others are the branches' own, which have not seen each other.
        """
        assert branches.begin is not None and self.main is not None
        if branches.store is self.main.store:
            return
        rank = (branches.number < branches.size).cumsum(1)  # (B, L), counted from 1
        first = torch.full((branches.size + 1,), rank.shape[1], device=rank.device)
        first.scatter_reduce_(0, branches.number.flatten(), rank.flatten(), "amin")
        if chunk := self.chunk(where & ~again[:, None]):
            inside = branches.number.clamp(max=branches.size - 1)
            index = branches.begin[inside] + rank - first[inside]
            chunk.on.store.append_from(
                branches.store, chunk.gather_to_batch(index), chunk.gather_to_batch(inside), chunk.count
            )
        if chunk := self.chunk(where & again[:, None]):
            self.feed(state, chunk.query(token))
