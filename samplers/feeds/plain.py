"""The plain feed: the model is given the rows that are asked about, whole or up to the end of their present block.

Guidance doubles the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..canvas import Layout, rows_of_each
from ..denoiser import Counter, Previous, TokenDenoiser
from ..errors import OptionError, PluginError
from ..guard import guarded
from ..random import DRAW_BLIND
from ..sampler import Sampler
from ..state import TokenState
from . import Answer, Query, SeenQuery

__all__ = ["PlainFeed", "block", "check_needs"]

# Of a need: what a sampler does that has it, what a denoiser does not that lacks it, and which do.
NEEDS = {
    "masks": (
        "says what each line of a forward pass sees (predict.seen)",
        "takes no such masks (its masks is False)",
        "samplers.models.Transformer, models of transformers that take a mask for each row, the exact problems, and "
        "TokenDenoiser.wrap(fn, masks=True)",
    ),
    "attends": (
        "reads the model's attention (predict.attention)",
        "does not give it (its attends is False)",
        "samplers.models.Transformer, and models of transformers that are loaded with attn_implementation='eager'. Exact "
        "problems are no networks, and have no attention",
    ),
}


def check_needs(denoiser: TokenDenoiser, sampler: Sampler[Any], args: Mapping[str, Any]) -> None:
    """OptionError if the denoiser, or an argument of sample(), does not give what a sampler with Facts(needs=...) needs."""
    needs = sampler.effective_facts.needs
    for need in needs:
        does, lacks, who = NEEDS[need]
        if not getattr(denoiser, need):
            if why := getattr(denoiser, "lacks", {}).get(need, ""):
                lacks += f": {why}"
            raise OptionError(
                f"sampler {sampler.name!r} {does}, and denoiser {denoiser.name!r} {lacks}. These do: {who}"
            )
        if denoiser.self_conditioned or denoiser.time_per_position:
            kind = "self_conditioned" if denoiser.self_conditioned else "time_per_position"
            raise OptionError(f"sampler {sampler.name!r} {does}, which does not go with a denoiser that is {kind}")
        others = {"cache": "leave it out", "guide": "cfg_scale= does", "constrain": "a language needs another sampler"}
        for name, instead in others.items():
            if args[name] is not None:
                raise OptionError(f"{name}= does not go with sampler {sampler.name!r}, which {does}; {instead}")


def block(state: TokenState) -> Tensor:
    """The model is given each row up to the end of its present block, or of the last that is open: (B,) int64."""
    ends, last = state.canvas.block_end, state.block  # (B, blocks)
    if state.canvas.window is not None:
        last = torch.where(state.done, last, torch.where(state.open, state.canvas.block, -1).amax(1))
    return ends.gather(1, last.clamp(max=ends.shape[1] - 1)[:, None]).squeeze(1)


def _said(window: Callable[[TokenState], Any], state: TokenState) -> Tensor:
    """How far the rows are given at least, as a plug-in's window says, if it says that. (B,) int64"""
    batch, device = len(state.x), state.x.device
    try:
        end = guarded(window, state)
    except PluginError as error:
        raise PluginError(f"the window {getattr(window, '__qualname__', window)} raises {error}") from error
    if not (isinstance(end, Tensor) and end.shape == (batch,) and end.dtype == torch.int64 and end.device == device):
        got = f"{end.dtype} of shape {tuple(end.shape)}" if isinstance(end, Tensor) else type(end).__name__
        where = f" on {end.device}" if isinstance(end, Tensor) and end.device != device else ""
        raise PluginError(
            f"the window returned {got}{where}; how far each of {batch} rows is given is needed, (B,) int64 on {device}"
        )
    return end


class PlainFeed:
    """Plans forward passes by how far rows are given, and gives the model whole rows or what ends with their present block.

    Args:
        cfg_scale, cfg_interval: the guidance of the run; see sample().
        pad: rows of all lengths share a forward pass, which is as long as the longest of those that take part; a shorter
            one is followed by filling. False: rows of one length do.
        window: how far rows are given at least, a function of the state: (B,) int64. None: to their ends.
        second: what the second half of a guided forward pass is given, a function of the state: x (B, L) int64, and the positions
            (B, L) bool that hold no information there. None: the same x, its prompt without information.
        always: guide without a prompt as well.
    """

    cache_bytes = 0

    def __init__(
        self,
        counter: Counter,
        batch: int,
        cfg_scale: float,
        cfg_interval: tuple[float, float],
        pad: bool = False,
        *,
        window: Callable[[TokenState], Tensor] | None = None,
        second: Callable[[TokenState], tuple[Tensor, Tensor]] | None = None,
        always: bool = False,
    ):
        self.second, self.always = second, always
        self.counter, self.cfg_scale, self.cfg_interval = counter, cfg_scale, cfg_interval
        self.pad, self.window = pad, window
        self.denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=self.denoiser.device)
        self.memory: SelfConditioning | None = None
        if self.denoiser.self_conditioned:
            self.memory = SelfConditioning(self.denoiser.vocab_size)

    # ------------------------------------------------------------------------------------------ which rows run

    def _guides(self, canvas: Layout) -> bool:
        return self.cfg_scale != 0 and (canvas.has_prompt or self.always)

    def _inside(self, state: TokenState) -> Tensor | None:
        """(B,) bool: rows whose noise level is inside cfg_interval; None: guidance does not depend on it."""
        low, high = self.cfg_interval
        if not self._guides(state.canvas) or (low, high) == (0.0, 1.0):
            return None
        level = state.noise_level
        return (level > low) & (level <= high)

    def _ends(self, state: TokenState, rows: Tensor | None) -> Tensor | None:
        """(B,) int64: how far each row is given; None: to its own end."""
        if self.window is None:
            return None
        canvas, end = state.canvas, block(state)
        if self.window is not block:  # a plug-in's, which may give more than the block, and not less
            end = torch.maximum(end, _said(self.window, state))
        if rows is not None:  # a sampler may ask beyond the block
            after = torch.arange(1, rows.shape[1] + 1, device=rows.device)
            end = torch.maximum(end, torch.where(rows & canvas.fill, after, 0).amax(1))
        size = self.denoiser.attention_block  # the model's own block is given whole: its positions see each other
        return torch.minimum(torch.div(end + size - 1, size, rounding_mode="floor") * size, canvas.length)

    def counts(self, state: TokenState, rows: Tensor | None) -> Tensor:
        """(B,) int64, positions asked about in each row. Then, (B,) each: of a self-conditioned model those of the row's block as
        well; whether guidance is on, if that depends on the level; where the window ends, if there is one.
        """
        parts = [state.count if rows is None else (rows & state.canvas.fill).sum(1)]
        if self.memory is not None:
            parts.append(self.memory.asked(state, rows).sum(1))
        parts += [m.to(torch.int64) for m in (self._inside(state), self._ends(state, rows)) if m is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def idle(self, counts: list[int]) -> bool:
        return not any(counts[: len(self.nfe_rows)])

    def plan(self, state: TokenState, rows: Tensor | None, counts: list[int], t: Tensor | None) -> list[Query]:
        canvas, batch = state.canvas, len(state.x)
        inside, ends = self._inside(state), self._ends(state, rows)
        rows = state.open if rows is None else rows & canvas.fill
        parts = iter(counts[i : i + batch] for i in range(0, len(counts), batch))  # as `counts` has them
        asked = next(parts)
        wide = asked if self.memory is None else next(parts)
        switch = None if inside is None else next(parts)
        given, ends_of = (canvas.lengths, canvas.length) if ends is None else (next(parts), ends)
        of_length = canvas.rows_by_length if ends is None else rows_of_each(given)
        groups = [list(range(batch))] if self.pad else list(of_length.values())
        always = self._guides(canvas) and switch is None
        active: Tensor | None = None
        queries = []
        for guided in (False, True) if switch is not None else (always,):
            for members in groups:
                here = [i for i in members if asked[i] and (switch is None or switch[i] == guided)]
                if not here:
                    continue
                length = max(given[i] for i in here)
                which = None
                if len(here) < batch:
                    active = rows.any(1) if active is None else active
                    member = active
                    if len(groups) > 1:
                        member = member & (ends_of == length)
                    if inside is not None:
                        member = member & (inside == guided)
                    which = torch.nonzero_static(member, size=len(here)).squeeze(1)  # (A,)
                mask = rows if which is None else rows[which]
                count = sum(asked[i] for i in here)
                whole = which is None and length == mask.shape[1]
                mask = mask if whole else mask[:, :length]
                more = count if wide is asked else sum(wide[i] for i in here)
                lengths = None
                if self.pad and any(given[i] < length for i in here):  # else all of a group are given as far
                    lengths = ends_of if which is None else ends_of[which]
                queries.append(Query(batch, which, mask, count, guided, t, tuple(here), whole, None, more, lengths))
        return queries

    def plan_seen(
        self, state: TokenState, x: Tensor, places: Tensor, visible: Tensor, asked: Tensor, t: Tensor | None
    ) -> list[SeenQuery]:
        """The forward passes that answer for the lines `asked`; see Predict.seen. One device sync.

        Rows of all lengths share a forward pass: no line sees what stands after its row's end, or after its window.
        """
        canvas, batch, width = state.canvas, len(x), state.x.shape[1]
        asked = asked & (places < canvas.length[:, None])
        end = canvas.length
        if self.window is not None:
            on_canvas = torch.zeros(batch, width + 1, dtype=torch.bool, device=x.device)
            on_canvas.scatter_(1, torch.where(asked, places, width), True)
            end = self._ends(state, on_canvas[:, :-1])  # type: ignore[assignment]
        visible = visible & (places < end[:, None])[:, None]
        inside, always = self._inside(state), self._guides(canvas)
        counts = torch.stack([asked[:, :width].sum(1), asked[:, width:].sum(1)])
        if inside is not None:
            counts = torch.cat([counts, inside[None]])
        own, more, *switch = counts.tolist()
        queries = []
        for guided in (False, True) if switch else (always,):
            here = [i for i in range(batch) if own[i] + more[i] and (not switch or switch[0][i] == guided)]
            if not here:
                continue
            which = None
            if len(here) < batch:
                member = asked.any(1) if inside is None else asked.any(1) & (inside == guided)
                which = torch.nonzero_static(member, size=len(here)).squeeze(1)
            parts = [part if which is None else part[which] for part in (asked, x, places, visible)]
            known = sum(own[i] for i in here)
            count = known + sum(more[i] for i in here)
            members = tuple(here)
            queries.append(
                SeenQuery(
                    batch,
                    which,
                    parts[0],
                    count,
                    guided,
                    t,
                    members,
                    wide=count,
                    sequence=parts[1:],
                    width=width,
                    own=known,
                )
            )
        return queries

    def copies(self, number: int) -> PlainFeed:
        return PlainFeed(
            self.counter,
            len(self.nfe_rows) * number,
            self.cfg_scale,
            self.cfg_interval,
            self.pad,
            window=self.window,
            second=self.second,
            always=self.always,
        )

    def rearrange(self, source: Tensor) -> None:
        """Nothing is kept from one forward pass to the next."""

    # ------------------------------------------------------------------------------------------ one forward pass

    def feed(self, state: TokenState, query: Query) -> Answer:
        if query.rows is None:
            self.nfe_rows += 1
        else:
            self.nfe_rows[query.rows] += 1
        x, time, mask, more = self._input(state, query)
        n = (1 + query.guided) * query.wide
        if query.maps is not None:
            value, maps = self.counter.attended(x, time, mask, n, **more)
            query.maps.append(maps[: len(query.mask)])
            return Answer(value)
        if self.denoiser.head is not None:
            return Answer(self.counter.hidden(x, time, mask, n, **more))
        answer = Answer(*self.counter.tokens(x, time, mask, n, **more))
        return answer if self.memory is None else self.memory.remember(state, query, answer)

    def _input(self, state: TokenState, query: Query) -> tuple[Tensor, Tensor | None, Tensor, dict[str, Any]]:
        """What the model is given: x, t, mask, more. Of a guided query the unconditional rows come after the others."""
        canvas, denoiser = state.canvas, self.denoiser
        # (A, length); a copy of its own, since a model may write into what it is given
        if isinstance(query, SeenQuery):
            x = query.x.clone()
        else:
            x = state.x.clone() if query.whole else query.of_canvas(state.x)
        time = None
        if denoiser.time_conditioned:
            if denoiser.time_per_position:
                levels = state.levels
                time = query.of_canvas(levels if query.t is None else torch.where(state.open, query.t[:, None], levels))
            else:
                time = query.of_rows(state.noise_level if query.t is None else query.t)  # (A,)
        more: dict[str, Any] = {}
        mask = query.mask
        if isinstance(query, SeenQuery):
            more = {"visible": query.visible, "positions": query.places}
        if self.memory is not None:
            more["previous"] = self.memory.seen_by(state, query)
            mask = mask | query.of_canvas(_present(state))
        if query.guided:
            # Unsupervised guidance (Nie et al. 2024, SMDM): the unconditional rows are the same with the prompt masked.
            # Uniform noise has no mask; a prompt of noise says nothing there.
            blind = canvas.mask_id
            nothing = blind if blind is not None else query.of_canvas(canvas.noise(state.step, DRAW_BLIND))
            other, prompt = (state.x, canvas.prompt_mask) if self.second is None else self.second(state)
            if isinstance(query, SeenQuery):  # guided by cfg_scale alone: see check_needs
                prompt, other = query.of_rows(prompt).gather(1, query.places), query.x
            else:
                prompt, other = query.of_canvas(prompt), query.of_canvas(other)
            x = torch.cat([x, torch.where(prompt, nothing, other)])
            if time is not None and time.dim() == 2:
                time = torch.cat([time, torch.where(prompt, 1.0, time)])
            elif time is not None:
                time = torch.cat([time, time])
            mask = torch.cat([mask, mask])
            more = {n: torch.cat([v] * 2) if isinstance(v, Tensor) else v.doubled() for n, v in more.items()}
        if query.lengths is not None:
            more["lengths"] = query.lengths.repeat(1 + query.guided)
        return x, time, mask, more


def _present(state: TokenState) -> Tensor:
    """(B, L) bool: the positions to fill of the rows' present blocks, decided ones included."""
    return state.canvas.fill & (state.canvas.block == state.block[:, None])


class SelfConditioning:
    """The last logits of a self-conditioned denoiser, between the beginning and the end of a step: state.previous.

    Whatever a sampler asks about, the denoiser is asked about the whole present block: so no logits that it is told are older
    than the others of the block.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._previous: Tensor | None = None
        self._written = False  # whether it is a tensor of this step, and may be written into

    def begin_step(self, state: TokenState) -> None:
        self._previous, self._written = state.previous, False

    def end_step(self, state: TokenState) -> TokenState:
        if self._previous is state.previous:
            return state
        return dataclasses.replace(state, previous=self._previous)

    def asked(self, state: TokenState, rows: Tensor | None) -> Tensor:
        """(B, L) bool: what the denoiser is asked for if the sampler asks about `rows`."""
        here = _present(state)
        return here if rows is None else here | (rows & state.canvas.fill)

    def seen_by(self, state: TokenState, query: Query) -> Previous:
        """The last logits of the rows that take part, at the positions to fill."""
        canvas = state.canvas
        fill = query.of_canvas(canvas.fill)
        if self._previous is None:
            self._previous = torch.zeros(canvas.filled, self.vocab_size, dtype=torch.float32, device=fill.device)
            self._written = True
        if query.rows is None:
            return Previous(fill, self._previous)
        size = sum(canvas.fill_counts[i] for i in query.members)
        here = torch.nonzero_static(fill.flatten(), size=size).squeeze(1)
        return Previous(fill, self._previous[query.of_canvas(canvas.fill_number).flatten()[here]])

    def remember(self, state: TokenState, query: Query, answer: Answer) -> Answer:
        """Keep the (conditional) logits for the next forward pass; returns the answer at the positions of the query."""
        assert self._previous is not None
        whole = query if query.wide == query.count else self._widened(state, query)
        index = state.canvas.fill_number.flatten()[whole.on_canvas(state.x.shape[1])]
        if not self._written:  # states are immutable: one copy per step
            self._previous, self._written = self._previous.clone(), True
        rows = slice(None, query.wide) if answer.index is None else answer.index[: query.wide]
        kept = answer.value[rows].float()
        if query.temperature is not None:
            kept = kept / query.temperature[whole.row][:, None]
        self._previous.index_copy_(0, index, kept)
        if whole is query:
            return answer
        asked = torch.nonzero_static(query.mask.flatten()[whole.flat], size=query.count).squeeze(1)
        if query.guided:
            asked = torch.cat([asked, asked + query.wide])
        return Answer(answer.value, asked if answer.index is None else answer.index[asked])

    def _widened(self, state: TokenState, query: Query) -> Query:
        """The query about all that the denoiser was asked for."""
        return dataclasses.replace(query, mask=query.mask | query.of_canvas(_present(state)), count=query.wide)
