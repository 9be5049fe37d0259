"""Decoding into a sequence: what is decided is appended to one sequence a row, whatever its place on the canvas.

For models that look back only, in the order in which tokens came, and know each token's position (ReFusion, arXiv
2512.13586): keys and values of what has been decided are final, so every forward is fed new tokens only. A sampler that
says `sequential` gets a Decoding as its `believe`, and builds its state on SequenceState:

    believe(state, want=...)              the masks at `state.open`, fed behind the row's sequence and not kept
    believe.next(state, where, masks)     the next token of each row, as plain autoregression asks for it
    believe.chunk(fed, *asks)             any positions, laid out for a forward; `believe.ask(state, chunk, token)` feeds
                                          tokens there, to be kept if they are committed
    believe.branches(state, number)       copies of the sequence, one a branch, that do not see each other

Answers are (B, L) planes as always: at a mask the token that stands there, else the token that follows the one fed
before it. What was committed in the step before and is not kept yet is fed first, and kept. What the cache holds beyond
a row's sequence is overwritten: an earlier state can be stepped from again, while no row has been done since; the states
that came after it then no longer can.

The host looks at the device once a chunk, and once where branches are made; `believe(state)` has the driver's own look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .believe import Belief, Believe
from .caching import Feed
from .canvas import Canvas, TokenState
from .denoiser import TokenDenoiser
from .errors import OptionError
from .sampler import Sampler

__all__ = ["Branches", "Chunk", "Decoding", "SequenceState", "check", "lacks"]


def lacks(denoiser: TokenDenoiser) -> list[str]:
    """What a denoiser would need to be asked through a sequence, in words; empty if it has it all."""
    own_cache = type(denoiser).new_cache is not TokenDenoiser.new_cache
    wanted = {
        f"its attention is {denoiser.attention}, not causal": denoiser.attention == "causal",
        "it has no cache (new_cache)": own_cache,
        "it does not predict the next token at one that is no mask (predicts_next)": denoiser.predicts_next,
        "its answers depend on the time (time_conditioned)": not denoiser.time_conditioned,
        "its answers depend on the ones before (self_conditioned)": not denoiser.self_conditioned,
    }
    return [what for what, fine in wanted.items() if not fine]


def check(denoiser: TokenDenoiser, sampler: Sampler, args: Mapping[str, Any]) -> None:
    """OptionError where the denoiser, or an argument of sample(), does not go with a sampler that is `sequential`."""
    if missing := lacks(denoiser):
        raise OptionError(
            f"sampler {sampler.name!r} decodes into a sequence, which denoiser {denoiser.name!r} cannot: "
            + "; ".join(missing)
        )
    never = {
        "cache": "it always has one of its own, so give none",
        "cfg_scale": "guidance would need a second sequence, whose prompt is masked; use cfg_scale=0",
        "steps": "its forwards follow from its options; give none",
        "constrain": "what it fixes would not be in the sequence; forbid= bars tokens everywhere",
    }
    for name, why in never.items():
        if args[name]:
            raise OptionError(f"{name} does not go with sampler {sampler.name!r}: {why}")


@dataclass(frozen=True, eq=False)
class SequenceState(TokenState):
    """A token run that knows in which order its tokens came.

    Attributes:
        order: (B, L) int64, the canvas positions of the row's sequence: the given ones, then each as it was committed, those
            of one step by position. What lies behind `length` means nothing.
        length: (B,) int64, how long the sequence is.
    """

    order: Tensor  # (B, L) int64
    length: Tensor  # (B,) int64

    @classmethod
    def begin(cls: type[Q], canvas: Canvas, **more: Any) -> Q:
        """The state before the first step, whose sequence is what is given; `more` are a subclass's own fields."""
        given = canvas.prompt_mask
        order = (~given).to(torch.uint8).argsort(dim=1, stable=True)
        return canvas.start().extend(cls, order=order, length=given.sum(1), **more)

    def _moved(self, x: Tensor, before: Tensor, *, steps: int = 1, **changes: Any):
        new = x != self.x  # a token that came is never changed
        position = torch.arange(x.shape[1], device=x.device).expand_as(x)
        place = torch.where(new, self.length[:, None] + new.cumsum(1) - 1, x.shape[1])
        order = torch.nn.functional.pad(self.order, (0, 1)).scatter(1, place, position)[:, :-1]
        changes = {"order": order, "length": self.length + new.sum(1)} | changes
        return super()._moved(x, before, steps=steps, **changes)


Q = TypeVar("Q", bound=SequenceState)


@dataclass(eq=False)
class Branches:
    """Rows of a cache: the sequences of a run, or copies of them with something of their own behind.

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

    def summed(self, plane: Tensor) -> Tensor:
        """(size,) int64: how many positions of each row are in `plane`, (B, L) bool."""
        total = torch.zeros(self.size + 1, dtype=torch.int64, device=plane.device)
        return total.index_add_(0, self.number.flatten(), plane.flatten().to(torch.int64))[:-1]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Positions laid out for forwards: (A, n), a line for each row of the cache, by position, filling behind.

    Attributes:
        on: whose cache.
        fed: (B, L) bool, the positions.
        asks: (B, L) bool each, those whose tokens may be asked for; with each how many they are.
        flat, place: (T,) int64, each position's number on the canvas and in the layout.
        count: (A,) int64, positions in each line.
        width: n.
    """

    on: Branches
    fed: Tensor
    asks: tuple[tuple[Tensor, int], ...]
    flat: Tensor
    place: Tensor
    count: Tensor
    width: int

    def lay(self, plane: Tensor) -> Tensor:
        """(B, L) -> (A, n); zeros where there is filling."""
        out = plane.new_zeros(self.on.size * self.width)
        return out.index_put_((self.place,), plane.flatten()[self.flat]).view(self.on.size, self.width)


class Decoding(Believe):
    """What a sequential sampler asks the model through; see the module. Counting, draws and checks are Believe's."""

    main: Branches | None = None  # the rows' own sequences; those of rows that are done have left
    _rows: list[int]  # the batch row of each sequence
    _masks: Tensor | None = None  # (B, L) bool, of the rows that `next` asks for those that are answered by a mask
    _next: tuple[Chunk, Tensor, int, bool] | None = None  # what the forward that comes is: chunk, tokens, ask, keep

    # ------------------------------------------------------------------------------------------ for samplers

    def chunk(self, fed: Tensor, *asks: Tensor, on: Branches | None = None) -> Chunk | None:
        """The positions `fed`, (B, L) bool, laid out behind the sequences, or behind branches; None if there are none.

        Args:
            asks: (B, L) bool, subsets of `fed` that will be asked for. Only a mask may be asked for that is the first.
            on: fed are then the last positions of each branch that is fed at all; what it kept of them is forgotten.
        """
        on = self.main if on is None else on
        assert on is not None
        count = on.summed(fed)
        look = torch.stack([fed.sum(), count.max(), *(a.sum() for a in asks)]).tolist()
        if not look[0]:
            return None
        if on.begin is not None:
            on.store.crop(on.begin + on.summed(on.number < on.size) - count)
        return self._chunk(on, fed, None, asks, count, look)

    def ask(
        self,
        state: SequenceState,
        chunk: Chunk,
        token: Tensor,
        which: int | None = None,
        *,
        want: str | tuple[str, ...] = (),
        given: Tensor | None = None,
        temperature: float | None = None,
        keep: bool = True,
    ) -> Belief:
        """One forward: `token`, (B, L), at the chunk's positions, behind what each row has kept.

        Args:
            which: number of the chunk's ask that is answered; None: nothing is asked, the tokens are only to be kept.
            want, given, temperature: as when called.
            keep: their keys and values stay behind what is kept, else not.
        """
        self._next = (chunk, token, -1 if which is None else which, keep)
        asked, needed = (torch.zeros_like(chunk.fed), 0) if which is None else chunk.asks[which]
        if needed:
            return self(state, asked, want=want, given=given, temperature=temperature)
        self._forward(state, None, None, asked, 0, 0, False)
        return Belief(**self._blank(state, (want,) if isinstance(want, str) else want))

    def next(self, state: SequenceState, where: Tensor, masks: Tensor, *, want: str | tuple[str, ...] = ()) -> Belief:
        """One forward for one more token a row: fed what the row has committed last, and a mask where one is needed.

        Args:
            where: (B, L) bool, at most one position a row.
            masks: (B, L) bool, positions that are answered by a mask in their place, which is not kept. Any other must be
                the one behind the last of the sequence, whose line answers.
        """
        self._masks = masks & where
        try:
            return self(state, where, want=want)
        finally:
            self._masks = None

    def branches(self, state: SequenceState, number: Tensor) -> Branches | None:
        """Copies of the rows' sequences, one a branch, for positions that must not see those of other branches.

        Rows that have branches forget what was kept behind their sequence.

        Args:
            number: (B, L) int64, the branch of each position, counted through the batch in the order of the canvas; -1: none.

        Returns:
            None where there are none. Give it to `chunk`, and to `merge` in the end.
        """
        assert self.main is not None
        inside = number >= 0
        number = torch.where(inside, number, number.numel())
        sizes = torch.zeros(number.numel() + 1, dtype=torch.int64, device=number.device)
        sizes.index_add_(0, number.flatten(), inside.flatten().to(torch.int64))
        longest = (state.length * inside.any(1)).max()
        look = torch.stack([(sizes[:-1] > 0).sum(), longest + sizes[:-1].max(), inside.any(1).sum()])
        size, room, rows = look.tolist()
        if not size:
            return None
        number = number.clamp(max=size)
        row = torch.arange(len(number), device=number.device)[:, None].expand_as(number)
        row = torch.zeros_like(sizes[: size + 1]).scatter_(0, number.flatten(), row.flatten())[:-1]  # (K,)
        kept = torch.where(inside.any(1), state.length, number.shape[1])
        self.main.store.crop(kept[self._rows])
        store = self.main.store
        if not size == rows == self.main.size:  # else each row has one branch: no other needs its sequence
            store = store.taken(self.main.number[row, 0], room)
        return Branches(store, number, size, state.length[row])

    def merge(self, state: SequenceState, branches: Branches, token: Tensor, where: Tensor, *, again: Tensor) -> None:
        """Keep `where`, (B, L) bool, the first positions of some branches, behind the sequences of their rows.

        Args:
            token: (B, L) int64, what stands there.
            again: (B,) bool, rows whose keys and values are computed once more, by a forward over all of `where`; those of
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
            chunk.on.store.join(branches.store, chunk.lay(index), chunk.lay(inside), chunk.count)
        if chunk := self.chunk(where & again[:, None]):
            self.ask(state, chunk, token)

    # ------------------------------------------------------------------------------------------ Believe's parts

    def _fed(self, state: SequenceState, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) bool each, what the next forward is fed: what of the sequences is not kept yet, and masks behind it."""
        kept = torch.zeros_like(state.length)  # (B,)
        if self.main is not None:
            kept[torch.tensor(self._rows, device=kept.device)] = self.main.store.lengths
        masks = rows if self._masks is None else self._masks
        # Where the last token's own line answers, it is fed again if it must be (an earlier state, stepped from again).
        kept = torch.minimum(kept, state.length - (rows & ~masks).any(1).to(torch.int64))
        rank = torch.arange(rows.shape[1], device=rows.device)
        lacking = (rank >= kept[:, None]) & (rank < state.length[:, None]) & rows.any(1, keepdim=True)
        where = torch.where(lacking, state.order, rows.shape[1])
        return torch.nn.functional.pad(torch.zeros_like(rows), (0, 1)).scatter_(1, where, True)[:, :-1], masks

    def _counts(self, state: TokenState, rows: Tensor) -> Tensor:
        assert isinstance(state, SequenceState)
        return self._look(torch.logical_or(*self._fed(state, rows)), rows)

    def _look(self, fed: Tensor, rows: Tensor) -> Tensor:
        """The look that a plan needs: positions fed, the most in a row, positions asked; and which rows are asked."""
        numbers = torch.stack([fed.sum(), fed.sum(1).max(), rows.sum()])
        return torch.cat([numbers, rows.any(1).to(torch.int64)])

    def _parts(self, state, rows):
        if self._next is None:
            seen = self._seen is not None and self._seen[0] is state and rows is None
            rows = state.open if rows is None else rows
            lacking, masks = self._fed(state, rows)
            look = self._seen[1] if seen else self._look(lacking | masks, rows).tolist()  # type: ignore[index]
            if not look[0]:
                return
            self._plan(state, rows, lacking, masks, look)
        assert self._next is not None
        chunk, _, which, _ = self._next
        asked, needed = chunk.asks[which]
        yield torch.arange(len(asked), device=asked.device), asked, needed, asked.shape[1], False

    def _plan(self, state: SequenceState, rows: Tensor, lacking: Tensor, masks: Tensor, look: list[int]) -> None:
        """The next forward is for `rows`: fed what of the sequences is not kept yet, and masks behind it."""
        active = look[3:]
        if self.main is None:
            self._rows = list(range(len(active)))
            store = self.denoiser.new_cache(len(active), rows.shape[1])
            self.main = Branches(store, torch.empty(0), len(active))
        stays = [i for i, row in enumerate(self._rows) if active[row]]
        if len(stays) < len(self._rows):
            self.main.store.leave(torch.tensor(stays, device=rows.device))
            self._rows, self.main.size = [self._rows[i] for i in stays], len(stays)
        here = torch.tensor(self._rows, device=rows.device)
        number = torch.full((len(rows),), self.main.size, device=rows.device)
        self.main.number = number.index_put_((here,), torch.arange(self.main.size, device=rows.device))[
            :, None
        ].expand_as(rows)
        self.main.store.crop((state.length - lacking.sum(1))[here])
        fed, keep = lacking | masks, self._masks is not None or look[0] > look[2]
        chunk = self._chunk(self.main, fed, masks if keep else None, (rows,), self.main.summed(fed), look[:3])
        self._next = (chunk, state.x, 0, keep)

    def _chunk(self, on, fed, last, asks, count, look) -> Chunk:
        """A chunk of which all numbers are known; positions in `last`, where that is given, come behind the others."""
        total, width, *needed = look
        flat = torch.nonzero_static(fed.flatten(), size=total).squeeze(1)  # (T,)
        number = on.number.flatten()[flat]
        if last is not None:
            flat = flat[(2 * number + last.flatten()[flat]).argsort(stable=True)]
            number = on.number.flatten()[flat]
        begin = count.cumsum(0) - count
        place = torch.arange(total, device=fed.device) - begin[number] + number * width
        return Chunk(on, fed, tuple(zip(asks, needed)), flat, place, count, width)

    def _forward(self, state, t, who, asked, needed, length, guided):
        """One forward of the chunk that comes next: hidden rows or logits of what is asked, in the order of the canvas."""
        assert self._next is not None
        (chunk, token, _, keep), self._next = self._next, None
        position = torch.arange(asked.shape[1], device=asked.device).expand_as(asked)
        x, position, lines, ahead = *map(chunk.lay, (token, position, asked)), asked & ~chunk.fed
        masked = x == self.denoiser.mask_id
        # A mask is answered in its own line of the output, any other token in the line before; one that is not fed, too.
        pad = torch.nn.functional.pad
        rows = (lines & masked) | pad((lines & ~masked)[:, 1:], (0, 1)) | chunk.lay(pad(ahead[:, 1:], (0, 1)))
        stored = None
        if keep:
            there = torch.arange(chunk.width, device=x.device) < chunk.count[:, None]
            stored = (there & ~masked).sum(1)
        feed = Feed(chunk.on.store, position, count=chunk.count, write="append" if keep else None, stored=stored)
        self.nfe_rows += chunk.fed.any(1)
        if self.denoiser.head is not None:
            return self.counter.hidden(x, None, rows, needed, cache=feed), None
        logits, index = self.counter.tokens(x, None, rows, needed, cache=feed)
        return (logits if index is None else logits[index]), None

    @property
    def cache_bytes(self) -> int:
        return 0 if self.main is None else self.main.store.bytes_written
