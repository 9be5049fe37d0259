"""The encoded feed: a BlockDenoiser reads what is decided once a block, and is given the open block alone.

Rows whose open blocks are of one length share a forward pass, whatever step they are at and wherever their blocks begin, if
the denoiser `mixes`; else their blocks must begin at the same position, and a row that is a block ahead of another has forward
passes of its own until the other follows. What the denoiser has read of the rows of a forward pass is one context; it is taken
apart and put together as rows part and meet, and a row that is done is left out of it.

Forward passes that read are counted in nfe and nfe_rows as the others are, and beside them in Sample.encoder_passes (of all)
and Sample.encoder_rows (of each row).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..canvas import FAR, Canvas, Layout
from ..denoiser import BlockDenoiser, Counter
from ..errors import OptionError, SamplersError
from ..state import TokenState
from . import Answer, Query

__all__ = ["EncodedFeed", "block_arguments"]


def block_arguments(
    denoiser: BlockDenoiser, canvas: Canvas, cfg_scale: float, steps: int | None, block_length: int | None
) -> tuple[int | None, int]:
    """steps and block_length of a run, as the denoiser has them if they are None.

    Raises:
        OptionError: guidance; a block that is too long; given tokens after positions to fill; no steps, where the denoiser
            says how many a block has and the rows have different numbers of blocks.
    """
    name, most = denoiser.name, denoiser.canvas_length
    if cfg_scale:
        raise OptionError(
            f"cfg_scale={cfg_scale:g}: denoiser {name!r} reads the prompt apart from the block, so there is no answer with the "
            "prompt masked to guide by; leave cfg_scale out"
        )
    length = most if block_length is None else block_length
    if length > most:
        raise OptionError(f"block_length={length}: denoiser {name!r} takes blocks of {most} positions or fewer")
    fill = canvas.fill.cpu()
    for i, end in enumerate(canvas.lengths):
        if bool((fill[i, : end - 1] & ~fill[i, 1:end]).any()):
            raise OptionError(
                f"row {i} has given tokens after positions to fill, and denoiser {name!r} reads from left to right: give a "
                "prompt and gen_length"
            )
    if steps is None and denoiser.block_steps is not None:
        blocks = {-(-n // length) for n in fill.sum(1).tolist()}
        if len(blocks) > 1:
            raise OptionError(f"steps is needed: the rows have {min(blocks)} to {max(blocks)} blocks")
        steps = denoiser.block_steps * blocks.pop()
    return steps, length


@dataclass(frozen=True, eq=False)
class BlockQuery(Query):
    """A query about positions of one block per row. `length` is where the last of them ends.

    Attributes:
        starts: where the block of each row begins.
        size: positions in each of them.
    """

    starts: tuple[int, ...] = ()
    size: int = 0

    def cut(self, x: Tensor) -> Tensor:
        """Of x, (A, L or more), the part that is the blocks: (A, size), a copy."""
        if len(set(self.starts)) == 1:
            return x[:, self.starts[0] : self.starts[0] + self.size].clone()
        first = torch.tensor(self.starts, dtype=torch.int64, device=x.device)[:, None]
        return x.gather(1, first + torch.arange(self.size, dtype=torch.int64, device=x.device))


@dataclass(eq=False)
class Group:
    """Rows that share forward passes, and what the denoiser was told of them.

    Attributes:
        rows: of the batch, ascending.
        read: how many tokens of each the denoiser has read.
        starts: where the block of each begins.
        told: whether each had a step before in this block.
        previous: (A, n, V) float32, the logits of that step, 0 if there was none; None: no row had one, or nobody asks.
        context: what the denoiser made of what it has read; None if that is nothing.
    """

    rows: tuple[int, ...]
    read: tuple[int, ...]
    starts: tuple[int, ...]
    told: tuple[bool, ...]
    previous: Tensor | None = None
    context: Any = None

    def enter(self, places: Mapping[int, int]) -> None:
        """Forget the logits of other blocks. places: row -> where its block begins."""
        starts = tuple(places[i] for i in self.rows)
        same = [old == new for old, new in zip(self.starts, starts)]
        self.starts, self.told = starts, tuple(t and s for t, s in zip(self.told, same))
        if self.previous is not None and not all(same):
            if any(self.told):
                keep = torch.tensor(self.told, dtype=torch.bool, device=self.previous.device)
                self.previous = torch.where(keep[:, None, None], self.previous, 0.0)
            else:
                self.previous = None


class EncodedFeed:
    """Plans forward passes by the place of the open block, and gives the denoiser that block.

    Attributes:
        encoder_rows: (B,) int64, of nfe_rows the forward passes that read.
    """

    cache_bytes = 0
    memory = None  # the last logits are kept here, for the open block alone

    def __init__(self, counter: Counter, batch: int):
        self.counter = counter
        self.denoiser: BlockDenoiser = counter.denoiser  # type: ignore[assignment]
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=self.denoiser.device)
        self.encoder_rows = torch.zeros_like(self.nfe_rows)
        self._groups: list[Group] = []
        self._places: list[list[tuple[int, int]]] | None = None

    # ------------------------------------------------------------------------------------------ which rows run

    def counts(self, state: TokenState, rows: Tensor | None) -> Tensor:
        """(2 B + 1,) int64: positions of the open block asked about, and the block, for each row; others asked about."""
        asked, here = _asked(state, rows)
        return torch.cat([(asked & here).sum(1), state.block, (asked & ~here).sum()[None]])

    def idle(self, counts: list[int]) -> bool:
        return not any(counts[: len(self.nfe_rows)])

    def plan(self, state: TokenState, rows: Tensor | None, counts: list[int], t: Tensor | None) -> Sequence[BlockQuery]:
        batch = len(state.x)
        if counts[2 * batch]:
            raise SamplersError(
                f"the sampler asks about {counts[2 * batch]} positions outside of the rows' present blocks; denoiser "
                f"{self.denoiser.name!r} is given the present block alone"
            )
        asked, here = _asked(state, rows)
        asked = asked & here
        places: dict[tuple[int, int], list[int]] = {}
        begins = {}
        for i, (count, block) in enumerate(zip(counts[:batch], counts[batch : 2 * batch])):
            if count:
                begins[i], size = self._place(state.canvas, i, block)
                apart = min(begins[i], 1) if self.denoiser.mixes else begins[i]  # None is no context to be joined
                places.setdefault((size, apart), []).append(i)
        done = {i for i, block in enumerate(counts[batch : 2 * batch]) if block == FAR}
        self._groups = [self._part(group, [i for i in group.rows if i not in done]) for group in self._groups]
        self._groups = [group for group in self._groups if group.rows]
        queries = []
        for (size, _), members in places.items():
            which = None if len(members) == batch else torch.tensor(members, dtype=torch.int64, device=state.x.device)
            starts = tuple(begins[i] for i in members)
            mask = (asked if which is None else asked[which])[:, : max(starts) + size]
            count = sum(counts[i] for i in members)
            queries.append(BlockQuery(batch, which, mask, count, False, t, tuple(members), starts=starts, size=size))
        return queries

    def _place(self, canvas: Layout, row: int, block: int) -> tuple[int, int]:
        """Where a block of a row begins, and its size. One device sync per run."""
        if self._places is None:
            self._places = []
            for sizes, end, fill in zip(canvas.block_size.tolist(), canvas.lengths, canvas.fill_counts):
                starts = [end - fill + sum(sizes[:k]) for k in range(len(sizes))]
                self._places.append(list(zip(starts, sizes)))
        return self._places[row][block]

    def copies(self, number: int) -> EncodedFeed:
        return EncodedFeed(self.counter, len(self.nfe_rows) * number)

    def rearrange(self, source: Tensor) -> None:
        whose = source.tolist()
        for i, group in enumerate(self._groups):
            place = {row: k for k, row in enumerate(group.rows)}
            rows = [new for new, old in enumerate(whose) if old in place]
            self._groups[i] = self._taken(group, rows, [place[whose[new]] for new in rows])
        self._groups = [group for group in self._groups if group.rows]

    # ------------------------------------------------------------------------------------------ one forward pass

    def feed(self, state: TokenState, query: Query) -> Answer:
        assert isinstance(query, BlockQuery)
        group, denoiser = self._gathered(state, query), self.denoiser
        block = query.cut(query.of_rows(state.x))  # (A, n)
        more = {}
        if denoiser.self_conditioned:
            told = None
            if group.previous is not None and not all(group.told):
                told = torch.tensor(group.told, dtype=torch.bool, device=block.device)
            more = {"previous": group.previous, "told": told}
        logits = self.counter.block(block, group.context, self._time(state, query), **more)
        self._count(self.nfe_rows, group.rows)
        if denoiser.self_conditioned:
            group.previous, group.told = logits.to(torch.float32, copy=query.temperature is None), (True,) * len(block)
            if query.temperature is not None:
                group.previous = group.previous / query.of_rows(query.temperature)[:, None, None]
        if query.count == block.numel():
            return Answer(logits.flatten(0, 1))
        asked = torch.nonzero_static(query.cut(query.mask).flatten(), size=query.count).squeeze(1)
        return Answer(logits.flatten(0, 1), asked)

    def _count(self, passes: Tensor, rows: tuple[int, ...]) -> None:
        passes[slice(None) if len(rows) == len(passes) else list(rows)] += 1

    def _time(self, state: TokenState, query: BlockQuery) -> Tensor | None:
        """The noise level of the block: what the sampler says, or the mean of the levels of its positions."""
        if not self.denoiser.time_conditioned:
            return None
        if query.t is not None and not self.denoiser.time_per_position:
            return query.of_rows(query.t)
        levels = state.levels if query.t is None else torch.where(state.open, query.t[:, None], state.levels)
        levels = query.cut(query.of_rows(levels))  # (A, n)
        return levels if self.denoiser.time_per_position else levels.mean(1)

    def _gathered(self, state: TokenState, query: BlockQuery) -> Group:
        """The group of the query's rows, which has read all that is before their blocks."""
        wanted, pieces, others = dict(zip(query.members, query.starts)), [], []
        for group in self._groups:
            inside = [i for i in group.rows if i in wanted]
            if inside:
                pieces.append(self._part(group, inside))
            if len(inside) < len(group.rows):
                others.append(self._part(group, [i for i in group.rows if i not in wanted]))
        known = {i for piece in pieces for i in piece.rows}
        if fresh := tuple(i for i in query.members if i not in known):
            none = (0,) * len(fresh)
            pieces.append(Group(fresh, none, tuple(wanted[i] for i in fresh), (False,) * len(fresh)))
        ready: list[Group] = []
        behind: dict[tuple[int, int], list[Group]] = {}
        for piece in pieces:
            piece.enter(wanted)
            rows: dict[tuple[int, int], list[int]] = {}
            for i, read, start in zip(piece.rows, piece.read, piece.starts):
                rows.setdefault((read, start) if read < start else (start, start), []).append(i)
            late = {place: self._part(piece, which) for place, which in rows.items() if place[0] < place[1]}
            if done := sorted(i for (read, start), which in rows.items() if read == start for i in which):
                ready.append(self._part(piece, done))
            for place, part in late.items():
                behind.setdefault(place, []).append(part)
        ready += [self._read_on(state, self._joined(same), *place) for place, same in behind.items()]
        group = self._joined(ready)
        self._groups = [*others, group]
        return group

    def _read_on(self, state: TokenState, group: Group, read: int, start: int) -> Group:
        """Read what is between what the rows of a group have read and the beginning of their blocks."""
        x = state.x if len(group.rows) == len(state.x) else state.x[list(group.rows)]
        group.context = self.counter.read(x[:, read:start].clone(), group.context)
        group.read = group.starts
        if self.denoiser.counts_reads:
            self._count(self.nfe_rows, group.rows)
            self._count(self.encoder_rows, group.rows)
        return group

    def _part(self, group: Group, rows: list[int]) -> Group:
        """These rows of a group, in this order."""
        return self._taken(group, rows, [group.rows.index(i) for i in rows])

    def _taken(self, group: Group, rows: list[int], at: list[int]) -> Group:
        """A group whose rows are called `rows`, and are copies of the rows with the numbers `at` in this one."""
        if tuple(rows) == group.rows and at == list(range(len(at))):
            return group
        index = torch.tensor(at, dtype=torch.int64, device=self.nfe_rows.device)
        return Group(
            tuple(rows),
            tuple(group.read[k] for k in at),
            tuple(group.starts[k] for k in at),
            tuple(group.told[k] for k in at),
            previous=None if group.previous is None else group.previous[index],
            context=None if group.context is None or not rows else self.denoiser.rows_of(group.context, index),
        )

    def _joined(self, groups: list[Group]) -> Group:
        """One group, in ascending order, of several in blocks of one length; without `mixes` they have read as much."""
        if len(groups) == 1:
            return groups[0]
        previous = None
        if any(group.previous is not None for group in groups):
            like = next(group.previous for group in groups if group.previous is not None)
            previous = torch.cat(
                [
                    like.new_zeros(len(group.rows), *like.shape[1:]) if group.previous is None else group.previous
                    for group in groups
                ]
            )
        contexts = [group.context for group in groups]
        whole = Group(
            tuple(i for group in groups for i in group.rows),
            tuple(n for group in groups for n in group.read),
            tuple(start for group in groups for start in group.starts),
            tuple(told for group in groups for told in group.told),
            previous=previous,
            context=None if contexts[0] is None else self.denoiser.joined(contexts),
        )
        return self._part(whole, sorted(whole.rows))


def _asked(state: TokenState, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, L) bool each: the positions asked about, and those of the rows' present blocks."""
    here = state.canvas.block == state.block[:, None]
    here &= state.canvas.fill  # a row that is done has none: FAR stands at given positions as well
    return (state.open if rows is None else rows & state.canvas.fill), here
