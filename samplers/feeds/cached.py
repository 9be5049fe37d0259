"""KV caches as options of the driver: which positions a forward pass is given, and which keys and values are kept.

A masked diffusion model pays for every step with the whole canvas. Each scheme gives the model less, and takes the keys and
values of the other positions from a cache:

    prefix        Fast-dLLM (Wu et al. 2025, arXiv 2505.22618): a full forward pass when a block begins; then the block and
                  what comes after it, with the cache for what comes before.
    dual          the same paper: a full forward pass when a block begins; then the block alone, whose rows replace the
                  cache's.
    delayed(k)    dKV-Cache-Decode (Ma et al. 2025, arXiv 2505.15781): a full forward pass in the first two steps of a block
                  and every k-th step (8 by default); else what is undecided, or was decided since it was last given.
    block         for models that look back only (BD3-LM, SDAR, LLaDA2): what lies before the first undecided position is
                  given once more when a block begins, and kept for good; then the block alone, not kept. A prompt of more
                  than 2048 positions is given in pieces, a forward pass each.
    dsb(a,n)      DSB (arXiv 2602.05992), for windows that slide: a full forward pass after every n decided positions (0: as
                  many as the window has masks), else from max(a, last advance) positions before the window to its end. dsb is
                  dsb(24,0). DCD (arXiv 2601.02076) refreshes after 16 decided positions: dsb(0,16).

Under a window that slides (samplers.windows) a block begins, for prefix, dual and delayed, when as many positions were decided as
the window has masks. What prefix and dual call the block is what lies between the window's beginning at that time and its end
now: so no key of a mask that was decided since is left in the cache. With block nothing changes but the cost, as without a
window.

Which of them change nothing but the cost:

    attention      prefix                            dual, delayed    block
    full           no: cached rows were computed     no               not possible
                   when later ones were masked
    causal         yes                               not offered      yes
    block_causal   not offered: block is cheaper     not offered      yes

A model whose answers are shifted (TokenDenoiser.shift) is also given the position before each asked one, whose line answers.
With block, the position before the block is kept already: its line is taken from the forward pass that kept it.

"yes" is exact up to the last bits of float products, whose order may depend on how many rows are multiplied at once.
Full attention with dual and a block that is as long as the canvas is exact as well: all of it is given in every step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import registry
from ..denoiser import CacheUse, Counter, TokenDenoiser
from ..errors import OptionError, PluginError, SamplersError, UnknownNameError
from ..state import TokenState
from ..windows import Sliding
from . import Answer, Query
from .plain import PlainFeed

__all__ = ["CachedFeed", "Scheme", "View", "cache_scheme"]

REFRESH = 8  # steps between full forward passes of "delayed", if it does not say
PIECE = 2048  # most positions, but for whole blocks of the model, that "block" keeps in one forward pass


@dataclass(frozen=True, eq=False)
class View:
    """What a scheme chooses by: the A rows that share a cache, before a forward pass.

    Attributes:
        x: (A, length) int64, what the model is to see. asked: (A, length) bool, positions whose answer is needed; they are given
            whatever the scheme chooses.
        undecided: (A, length) bool, positions whose token may still change. inside: (A, length) bool, the present block.
        active: (A,) bool, rows that are asked about. begins: (A,) bool, those whose present block begins now.
        age: (A,) int64, forward passes since the present block began.
        kept: (A, length) int64, the token from which each kept row was computed; -1: nothing is kept.
        stored: (A,) int64, how many rows are kept from the front on, of schemes that keep a prefix for good.
        start: (A,) int64, the first undecided position. advance: (A,) int64, by how much that has moved since the row was last
            given to the model.
        room: how many positions the cache has. size: positions per block of the model's attention.
    """

    x: Tensor
    asked: Tensor
    undecided: Tensor
    inside: Tensor
    active: Tensor
    begins: Tensor
    age: Tensor
    kept: Tensor
    stored: Tensor
    start: Tensor
    advance: Tensor
    room: int
    size: int

    @property
    def position(self) -> Tensor:
        """(length,) int64: 0, 1, and so on."""
        return torch.arange(self.x.shape[1], device=self.x.device)


@dataclass(frozen=True)
class Scheme:
    """A caching scheme: which rows are given whole, and which positions of the others. Its fields are the numbers in its name.

    A plug-in registers a subclass by the hook register_caches. What a scheme may vary is what `choose` returns and the class
    attributes; the cache itself, guidance, rows of several lengths and models with shifted answers are the feed's affair.

    Attributes:
        name: as in cache="name", or cache="name(3)" if it has fields.
        needs: which scheme of ours a model must support (TokenDenoiser.caches): "prefix", whose cache is not written in between;
            "dual" or "delayed", whose windows write single rows; "block", which keeps a prefix for good.
        writes: whether the keys and values of given positions replace those in the cache.
        commits: whether what lies before the first undecided position is given once more when a block begins, and kept for
            good, in whole blocks of the model. Nothing else is kept then.
        slides: whether it is for windows that slide only.
        ordered: whether a forward pass is given decided positions first and the masks after them, and keeps what lies before
            the first undecided one (samplers.windows.Wedlm).
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    writes: ClassVar[bool] = False
    commits: ClassVar[bool] = False
    slides: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def __str__(self) -> str:
        numbers = dataclasses.astuple(self)
        return f"{self.name}({','.join(f'{n:g}' for n in numbers)})" if numbers else self.name

    def renewed_after(self, masks: int) -> int:
        """Decided positions after which a row begins anew, under a window of so many masks that slides."""
        return masks

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the model is given. It must not ask the device for a number in order to decide.

        Returns:
            full (A,) bool, rows that are given whole, all of whose keys and values are kept; a row of which nothing is kept is
            given whole in any case. feed (A, length) bool, positions that are given in the other rows. keep (A, room) bool,
            kept rows that a given position sees beside those that are given; None: all.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Prefix(Scheme):
    """Full when a block begins; then the block and what comes after it, with the cache for what comes before (Fast-dLLM)."""

    name = needs = "prefix"

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        start = torch.where(view.inside, view.position, view.x.shape[1]).amin(1, keepdim=True)  # (A, 1)
        keep = torch.arange(view.room, device=view.x.device) < start
        return view.begins, view.position >= start, keep


@dataclass(frozen=True)
class Dual(Scheme):
    """Full when a block begins; then the block alone, whose rows replace the cache's (Fast-dLLM)."""

    name = needs = "dual"
    writes = True

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        return view.begins, view.inside, None


@dataclass(frozen=True)
class Delayed(Scheme):
    """Full in a block's first two steps and every k-th; else what is undecided or was decided since it was given (dKV-Cache).

    Attributes:
        refresh: k, steps between full forward passes.
    """

    name = needs = "delayed"
    writes = True
    refresh: int = REFRESH

    def __post_init__(self) -> None:
        if self.refresh != int(self.refresh) or self.refresh < 1:
            raise OptionError(f"refresh must be a whole number of 1 or more, not {self.refresh:g}")
        object.__setattr__(self, "refresh", int(self.refresh))  # of "delayed(4)" it is a float

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        full = view.active & ((view.age < 2) | (view.age % self.refresh == 0))
        return full, view.undecided | (view.x != view.kept), None


@dataclass(frozen=True)
class Block(Scheme):
    """For models that look back only: what is before the block is kept for good; then the block alone is given, not kept."""

    name = needs = "block"
    commits = True

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        position = view.position
        end = torch.where(view.inside | view.asked, position + 1, 0).amax(1, keepdim=True)
        feed = (position >= view.stored[:, None]) & (position < -(-end // view.size) * view.size)
        return torch.zeros_like(view.active), feed, None


@dataclass(frozen=True)
class Trailing(Scheme):
    """DSB's: full after every so many decided positions; else the window and a few positions before it (see the module).

    Attributes:
        before: positions before the window that are given as well; more if the window has moved by more since.
        refresh: decided positions between full forward passes; 0: as many as the window has masks.
    """

    name, needs = "dsb", "dual"
    writes = slides = True
    before: int = 24
    refresh: int = 0

    def __post_init__(self) -> None:
        for what in ("before", "refresh"):
            value = getattr(self, what)
            if value != int(value) or value < 0:
                raise OptionError(f"{what} must be a whole number of 0 or more, not {value:g}")
            object.__setattr__(self, what, int(value))

    def renewed_after(self, masks: int) -> int:
        return self.refresh or masks

    def choose(self, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
        begin = view.start - view.advance.clamp_min(self.before)  # (A,)
        end = torch.where(view.inside, view.position + 1, 0).amax(1)
        return view.begins, (view.position >= begin[:, None]) & (view.position < end[:, None]), None


@dataclass(frozen=True)
class Ordered(Block):
    """What WeDLM's window does with its cache; no name of its own, since the window brings it."""

    ordered = True


def cache_scheme(spec: Any, denoiser: TokenDenoiser) -> Scheme | None:
    """The scheme that `sample(cache=...)` names, if this denoiser can do it.

    Raises:
        OptionError: an unknown scheme, one that the denoiser does not support, a refresh interval below 1; a denoiser
            that is given more of a position than its token.
        PluginError: it comes from a plug-in that is broken.
    """
    if spec is None:
        return None
    try:
        scheme: Scheme = registry.made("caches", spec if isinstance(spec, str) else "")
    except (UnknownNameError, OptionError) as error:
        others = [name for name in registry.names_of("caches") if name not in registry.own_names("caches")]
        why = f" ({error})" if isinstance(spec, str) and spec.partition("(")[0] in (*others, "dsb") else ""
        names = "".join(f", {name}" for name in others)
        raise OptionError(
            f"cache={spec!r}: prefix, dual, delayed, delayed(k) with k >= 1, dsb, dsb(a,n), block{names} or None is needed{why}"
        ) from None
    if scheme.needs not in denoiser.caches:
        have = ", ".join(denoiser.caches) or "none"
        why = "; block needs causal or block_causal attention" if scheme.needs == "block" and denoiser.caches else ""
        like = "" if scheme.needs == scheme.name else f", and {scheme.name} is for those that support {scheme.needs}"
        raise OptionError(f"cache={spec!r}: denoiser {denoiser.name!r} supports {have}{like}{why}; use cache=None")
    for fact, what in (("self_conditioned", "its last logits"), ("time_per_position", "a time for each position")):
        if getattr(denoiser, fact):
            raise OptionError(
                f"cache={spec!r}: denoiser {denoiser.name!r} is {fact}: it is given {what} beside the tokens, which no "
                "cache passes on; use cache=None"
            )
    return scheme


class CachedFeed:
    """Plans as the plain feed does, and gives the model a part of the canvas, the rest from caches of the run.

    Rows of one length share a cache, or with `pad` all rows. With guidance the rows whose prompt is masked have a cache of
    their own.
    """

    memory = None  # self-conditioned models have no cache

    def __init__(
        self,
        counter: Counter,
        batch: int,
        cfg_scale: float,
        cfg_interval: tuple[float, float],
        scheme: Scheme,
        pad: bool = False,
    ):
        self.denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
        self.counter, self.scheme = counter, scheme
        self._plain = PlainFeed(counter, batch, cfg_scale, cfg_interval, pad)
        self.counts, self.idle, self.plan = self._plain.counts, self._plain.idle, self._plain.plan
        self.nfe_rows = self._plain.nfe_rows
        self._caches: dict[tuple[int, bool], RunCache] = {}  # by the first row and whether the prompt is masked

    def feed(self, state: TokenState, query: Query) -> Answer:
        canvas, rows = state.canvas, torch.zeros_like(state.open)
        rows[slice(None) if query.rows is None else query.rows, : query.length] = query.mask
        members = list(range(len(rows))) if self._plain.pad else canvas.rows_by_length[query.length]
        t = (state.noise_level if query.t is None else query.t) if self.denoiser.time_conditioned else None
        answers = []
        for blind in (False, True)[: 1 + query.guided]:
            if (members[0], blind) not in self._caches:
                lengths = [canvas.lengths[i] for i in members]
                self._caches[members[0], blind] = RunCache(self.denoiser, self.scheme, members, lengths)
            x = torch.where(canvas.prompt_mask, canvas.mask_id or 0, state.x) if blind else state.x
            answer, cost = self._caches[members[0], blind].answer(state, x, t, rows, query.count, self.counter)
            answers.append(answer)
            if not blind:
                self.nfe_rows += cost
        return Answer(torch.cat(answers))

    def copies(self, number: int) -> CachedFeed:
        plain = self._plain
        batch = len(self.nfe_rows) * number
        return CachedFeed(self.counter, batch, plain.cfg_scale, plain.cfg_interval, self.scheme, plain.pad)

    def rearrange(self, source: Tensor) -> None:
        if self._caches:
            rows = source.tolist()
            for cache in self._caches.values():
                cache.rearrange(rows)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.store.bytes_written for cache in self._caches.values())


PER_ROW = ("end", "block", "age", "start", "begin", "left")  # what a RunCache knows of each of its rows, (A,) each


class RunCache:
    """The cache of rows of a run, and what is in it.

    Rows that are done are dropped, once: those after them move up. A row that is not asked about in a step keeps its
    place, is given to the model as filling, and is not written.

    Args:
        rows: the batch rows, ascending.
        lengths: the length of each of them.
    """

    def __init__(self, denoiser: TokenDenoiser, scheme: Scheme, rows: list[int], lengths: list[int]):
        self.denoiser, self.scheme = denoiser, scheme
        self.rows, self.lengths = rows, lengths
        self.end = torch.tensor(lengths, dtype=torch.int64, device=denoiser.device)  # (A,) the same, on the device
        self.length = self.room = length = max(lengths)  # what the longest row left has, and what the store has
        self.store = denoiser.new_cache(len(rows), length)
        device = denoiser.device
        # (A, length) the token that made each kept row
        self.cached_token = torch.full((len(rows), length), -1, dtype=torch.int64, device=device)
        # (A,) the block that the row was in when it was last given, and the forward passes since that block began
        self.block = torch.full((len(rows),), -1, dtype=torch.int64, device=device)
        self.age = torch.zeros(len(rows), dtype=torch.int64, device=device)
        # (A, D) or (A, V), shift and block only: the answer for the position after what is kept; None until there is one
        self.next_answer: Tensor | None = None
        # (A,) the first undecided position when the row was last given; that, and the number of undecided positions, when it
        # last began anew under a window that slides
        self.start, self.begin, self.left = (torch.zeros_like(self.age) for _ in range(3))

    def answer(
        self, state: TokenState, x: Tensor, t: Tensor | None, asked: Tensor, needed: int, counter: Counter
    ) -> tuple[Tensor, Tensor]:
        """Hidden rows or logits of the `asked` positions, packed, and how often each batch row was given to the model.

        Args:
            x: (B, L) int64, what the model is to see. asked: (B, L) bool. needed: how many are asked in these rows.
            t: (B,) noise levels, or None.

        Returns:
            (needed, D) or (needed, V); (B,) int64, the forward passes that each batch row took part in.
        """
        self._drop_finished_rows(state)
        who = torch.tensor(self.rows, device=x.device)  # (A,)
        x, asked, t = x[who, : self.length], asked[who, : self.length], None if t is None else t[who]
        block = state.block[who]  # (A,)
        active = asked.any(1)
        begins = active & (block != self.block)
        undecided = state.undecided[who, : self.length]
        position = torch.arange(self.length, device=x.device)
        start = torch.where(undecided, position, self.length).amin(1)  # (A,)
        if isinstance(state.canvas.window, Sliding):
            left = undecided.sum(1)
            begins |= active & (self.left - left >= self.scheme.renewed_after(state.canvas.window.masks))
            self.left, self.begin = torch.where(begins, left, self.left), torch.where(begins, start, self.begin)
        advance = torch.where(self.age > 0, start - self.start, 0)
        self.start = torch.where(active, start, self.start)
        self.age = torch.where(begins, 0, self.age)
        cost = torch.zeros(len(state.x), dtype=torch.int64, device=x.device)

        if self.scheme.ordered:
            cost[who] += self._commit_final_prefix(
                state, who, x, t, active & (start - self.store.lengths > PIECE), counter
            )
            self.block = torch.where(active, block, self.block)
            return self._ordered(state, who, x, t, asked, start, needed, counter), cost.index_add(0, who, active.long())
        parts = []
        if self.scheme.commits:
            cost[who] += self._commit_final_prefix(state, who, x, t, begins, counter)
        full, feed, keep = self._choose_positions(state, who, x, asked, block, active, begins, start, advance)
        known = torch.zeros_like(asked)  # (A, length) asked positions whose answer is there already
        if self.next_answer is not None:
            after = torch.arange(self.length, device=x.device) == self.store.lengths[:, None]
            known = asked & after & (self.store.lengths > 0)[:, None]
        windowed = (asked & ~known).any(1) & ~full  # (A,) rows that are given a part of the canvas
        feed = feed & windowed[:, None]
        counts = [full.sum(), (asked & full[:, None]).sum(), feed.sum(1).amax(), known.sum()]
        n_full, needed_full, width, n_known = torch.stack(counts).tolist()
        if n_full:
            parts.append((asked & full[:, None], self._fill(x, t, asked, full, n_full, needed_full, counter)))
        if n_known:
            assert self.next_answer is not None
            index = torch.nonzero_static(known.any(1), size=n_known).squeeze(1)
            parts.append((known, self.next_answer[index]))
        if width:
            rest = asked & ~known & ~full[:, None]
            left = needed - needed_full - n_known
            parts.append((rest, self._window(x, t, rest, feed, keep, width, left, counter)))
        self.cached_token = torch.where(full[:, None] | (feed if self.scheme.writes else False), x, self.cached_token)
        self.block, self.age = torch.where(active, block, self.block), self.age + active
        cost[who] += full | windowed
        if len(parts) == 1:
            return parts[0][1], cost
        # Answers of several kinds in one step: put them in the order of the asked positions.
        number = (asked.flatten().cumsum(0) - 1).view_as(asked)  # (A, length)
        out = parts[0][1].new_empty(needed, parts[0][1].shape[1])
        for where, answer in parts:
            flat = torch.nonzero_static(where.flatten(), size=len(answer)).squeeze(1)
            out[number.flatten()[flat]] = answer
        return out, cost

    def _drop_finished_rows(self, state: TokenState) -> None:
        """Rows that are done are dropped from the cache."""
        done = state.done.tolist()
        stays = [i for i, row in enumerate(self.rows) if not done[row]]
        if len(stays) == len(self.rows) or not stays:
            return
        source = torch.tensor(stays, device=self.cached_token.device)
        self.store.keep_rows(source)
        self.rows, self.lengths = ([of[i] for i in stays] for of in (self.rows, self.lengths))
        self.length = max(self.lengths)
        self.cached_token = self.cached_token[source, : self.length]
        for name in PER_ROW:
            setattr(self, name, getattr(self, name)[source])
        if self.next_answer is not None:
            self.next_answer = self.next_answer[source]

    def rearrange(self, source: list[int]) -> None:
        """What is kept of batch row i becomes what was kept of row source[i], which has the same length."""
        place = {row: i for i, row in enumerate(self.rows)}
        rows = [i for i, row in enumerate(source) if row in place]
        at = [place[source[i]] for i in rows]
        if rows == self.rows and at == list(range(len(at))):
            return
        if not hasattr(self.store, "take"):
            raise OptionError(
                f"this sampler makes copies of rows, and what denoiser {self.denoiser.name!r} keeps in its cache "
                f"({type(self.store).__name__}) has no take(source), which copies rows; use cache=None"
            )
        index = torch.tensor(at, dtype=torch.int64, device=self.cached_token.device)  # there may be none
        self.store.take(index)
        self.rows, self.lengths = rows, [self.lengths[k] for k in at]
        self.length = max(self.lengths, default=self.length)
        self.cached_token = self.cached_token[index, : self.length]
        for name in PER_ROW:
            setattr(self, name, getattr(self, name)[index])
        if self.next_answer is not None:
            self.next_answer = self.next_answer[index]

    def _choose_positions(
        self,
        state: TokenState,
        who: Tensor,
        x: Tensor,
        asked: Tensor,
        block: Tensor,
        active: Tensor,
        begins: Tensor,
        start: Tensor,
        advance: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows that get a full forward pass (A,), positions given (A, length) in the others, rows of the cache that are seen."""
        position = torch.arange(self.length, device=x.device)
        number = state.canvas.block[who, : self.length]
        inside = number == block[:, None]  # (A, length) the present block
        if state.canvas.window is not None:
            last = torch.where(state.open[who, : self.length], position, -1).amax(1, keepdim=True)
            first = self.begin if isinstance(state.canvas.window, Sliding) else start
            inside = (position >= first[:, None]) & (position <= last)
        undecided, size = state.undecided[who, : self.length], self.denoiser.attention_block
        kept, stored = self.cached_token, self.store.lengths
        view = View(
            x, asked, undecided, inside, active, begins, self.age, kept, stored, start, advance, self.room, size
        )
        if registry.origin_of(self.scheme) is not None:
            full, feed, keep = _chosen(self.scheme, view)
        else:
            full, feed, keep = self.scheme.choose(view)
        feed = feed | asked
        if self.denoiser.shift and not self.scheme.commits:
            feed = feed | torch.nn.functional.pad(asked[:, 1:], (0, 1))  # the line before a position answers for it
            if keep is not None:
                first = torch.where(feed, position, self.length).amin(1, keepdim=True)  # (A, 1)
                keep = keep & (torch.arange(keep.shape[1], device=x.device) < first)
        there = position < self.end[:, None]  # (A, length)
        return full, feed & there & (active & ~full)[:, None], keep

    def _fill(
        self, x: Tensor, t: Tensor | None, asked: Tensor, full: Tensor, n: int, needed: int, counter: Counter
    ) -> Tensor:
        """A forward pass over whole rows; all their keys and values are kept."""
        index = torch.nonzero_static(full, size=n).squeeze(1)  # (n,)
        rows = None if n == len(self.rows) else _runs(index.tolist())
        lengths = self.lengths
        if rows is not None:
            lengths = [length for first, end in rows for length in self.lengths[first:end]]
        width = max(lengths)
        count = self.end[index] if min(lengths) < width else None
        position = torch.arange(width, device=x.device).expand(n, -1)
        feed = CacheUse(self.store, position, count=count, write="fill", rows=rows)
        x, asked = x[index, :width], asked[index, :width]
        return self._ask(x, None if t is None else t[index], asked, needed, counter, feed)

    def _window(
        self,
        x: Tensor,
        t: Tensor | None,
        asked: Tensor,
        feed: Tensor,
        keep: Tensor | None,
        width: int,
        needed: int,
        counter: Counter,
    ) -> Tensor:
        """A forward pass over the `feed` positions of all rows, in the order of the canvas, with the cache for the others."""
        position = torch.arange(self.length, device=x.device)
        # (A, width), filling after them; of a long row a small part is wanted, so it is not sorted as a whole
        places = torch.where(feed, position, self.length).topk(width, largest=False, sorted=True).values
        at = places.clamp(max=self.length - 1)
        asked = asked.gather(1, at) & (places < self.length)
        write = "scatter" if self.scheme.writes else None
        told = CacheUse(self.store, at, count=feed.sum(1), write=write, keep=keep)
        return self._ask(x.gather(1, at), t, asked, needed, counter, told)

    def _ordered(
        self,
        state: TokenState,
        who: Tensor,
        x: Tensor,
        t: Tensor | None,
        asked: Tensor,
        start: Tensor,
        needed: int,
        counter: Counter,
    ) -> Tensor:
        """A forward pass over the window and what comes before it and is not kept: decided positions first, then masks.

        The decided ones before the first undecided position, `start` (A,), are the first of them, and are kept for good.
        """
        position = torch.arange(self.length, device=x.device)
        active, masked = asked.any(1), state.undecided[who, : self.length]
        wanted = asked | state.open[who, : self.length]
        end = torch.where(wanted, position + 1, 0).amax(1, keepdim=True)  # (A, 1)
        feed = (position >= self.store.lengths[:, None]) & (position < end) & (wanted | ~masked) & active[:, None]
        order = torch.where(feed, position + masked * self.length, 2 * self.length)
        width, gone = torch.stack([feed.sum(1).amax(), (asked & ~feed).sum()]).tolist()
        if gone:
            raise SamplersError(
                f"the sampler asks about {gone} positions whose keys are kept for good: under this window ask about positions "
                "from the first undecided one on"
            )
        places = order.topk(width, largest=False, sorted=True).values  # (A, width), filling after them
        at = torch.where(places < 2 * self.length, places % self.length, self.length - 1)
        here = asked.gather(1, at) & (places < 2 * self.length)
        kept = torch.where(active, start - self.store.lengths, 0)
        told = CacheUse(self.store, at, count=feed.sum(1), write="append", stored=kept)
        answer = self._ask(x.gather(1, at), t, here, needed, counter, told)
        # A sampler may ask about decided positions as well, whose lines come first: back to the order of the canvas.
        line = (torch.arange(len(at), device=x.device)[:, None] * self.length + at).flatten()
        line = line[torch.nonzero_static(here.flatten(), size=needed).squeeze(1)]
        return answer[line.argsort()]

    def _commit_final_prefix(
        self, state: TokenState, who: Tensor, x: Tensor, t: Tensor | None, begins: Tensor, counter: Counter
    ) -> Tensor:
        """Keep what lies before the first undecided position, in whole blocks of the model; (A,) forward passes it took.

        A long prompt is given in pieces, one after the other, so that a forward pass does not grow with it.
        """
        size, stored = self.denoiser.attention_block, self.store.lengths
        position = torch.arange(self.length, device=x.device)
        first = torch.where(state.undecided[who, : self.length], position, self.length).amin(1)  # (A,)
        count = torch.where(begins, first // size * size - stored, 0).clamp_min(0)  # (A,)
        counts, cost = count.tolist(), torch.zeros_like(stored)
        piece = -(-PIECE // size) * size
        for begin in range(0, max(counts), piece):
            width = min(piece, max(counts) - begin)
            here = (count - begin).clamp(0, width)  # (A,) of each row in this piece
            # With shift each row's last line answers for the position after it, which is asked about in a column of filling.
            # (A,) rows whose last line is in this piece
            ends = (here > 0) & (count - begin <= width) & self.denoiser.shift
            n = sum(begin < c <= begin + width for c in counts) if self.denoiser.shift else 0
            column = torch.arange(width + 1 if self.denoiser.shift else width, device=x.device)
            at = (self.store.lengths[:, None] + column).clamp(max=self.length - 1)  # (A, width)
            asked = (column == here[:, None]) & ends[:, None]
            told = CacheUse(self.store, at, count=here, write="append")
            answer = self._ask(x.gather(1, at), t, asked, n, counter, told)
            if n:
                if self.next_answer is None:
                    self.next_answer = answer.new_zeros(len(ends), answer.shape[1])
                self.next_answer[torch.nonzero_static(ends, size=n).squeeze(1)] = answer
            cost += here > 0
        return cost

    def _ask(self, x: Tensor, t: Tensor | None, asked: Tensor, needed: int, counter: Counter, feed: CacheUse) -> Tensor:
        if self.denoiser.head is not None:
            return counter.hidden(x, t, asked, needed, cache=feed)
        logits, index = counter.tokens(x, t, asked, needed, cache=feed)
        return logits if index is None else logits[index]


def _chosen(scheme: Scheme, view: View) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a plug-in's scheme chooses, if it has the right shapes; rows of which nothing is kept are given whole."""
    try:
        said: Any = registry.guarded(scheme.choose, view)
    except PluginError as error:
        raise PluginError(f"cache {str(scheme)!r}: choose raises {error}") from error
    if not isinstance(said, tuple) or len(said) != 3:
        got = f"a tuple of {len(said)}" if isinstance(said, tuple) else type(said).__name__
        raise PluginError(
            f"cache {str(scheme)!r}: choose returned {got}; (full, feed, keep) is needed, keep None for all"
        )
    full, feed, keep = said
    rows, length = view.x.shape
    shapes = {"full": (full, (rows,)), "feed": (feed, (rows, length)), "keep": (keep, (rows, view.room))}
    for what, (value, shape) in shapes.items():
        if what == "keep" and value is None:
            continue
        if not (isinstance(value, Tensor) and tuple(value.shape) == shape and value.dtype == torch.bool):
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(
                f"cache {str(scheme)!r}: choose returned {what} of {got}; bool of shape {shape} is needed"
            )
    if scheme.commits:
        return full & view.active, feed, keep
    return view.active & (full | (view.kept[:, 0] < 0)), feed, keep


def _runs(index: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as runs (first, end): 0 1 2 5 6 -> (0, 3), (5, 7)."""
    runs: list[tuple[int, int]] = []
    for i in index:
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return tuple(runs)
