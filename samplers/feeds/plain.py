"""The plain feed: the model is given the whole canvas of the rows that are asked about. Guidance doubles the rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..canvas import Layout
from ..denoiser import Counter, Previous, TokenDenoiser
from ..random import DRAW_BLIND
from ..state import TokenState
from . import Answer, Query

__all__ = ["PlainFeed"]


class PlainFeed:
    """Plans forward passes by row length, and gives the model whole rows.

    Args:
        cfg_scale, cfg_interval: the guidance of the run; see sample().
    """

    cache_bytes = 0

    def __init__(self, counter: Counter, batch: int, cfg_scale: float, cfg_interval: tuple[float, float]):
        self.counter, self.cfg_scale, self.cfg_interval = counter, cfg_scale, cfg_interval
        self.denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=self.denoiser.device)
        self.memory: SelfConditioning | None = None
        if self.denoiser.self_conditioned:
            self.memory = SelfConditioning(self.denoiser.vocab_size)

    # ------------------------------------------------------------------------------------------ which rows run

    def _guides(self, canvas: Layout) -> bool:
        return self.cfg_scale != 0 and canvas.has_prompt

    def _inside(self, state: TokenState) -> Tensor | None:
        """(B,) bool: rows whose noise level is inside cfg_interval; None: guidance does not depend on it."""
        low, high = self.cfg_interval
        if not self._guides(state.canvas) or (low, high) == (0.0, 1.0):
            return None
        level = state.noise_level
        return (level > low) & (level <= high)

    def counts(self, state: TokenState, rows: Tensor | None) -> Tensor:
        """(B,) int64, positions asked about in each row; (B,) for each self-conditioned row those of its block as well; (B,)
        whether guidance is on, if that depends on the level."""
        parts = [state.count if rows is None else (rows & state.canvas.fill).sum(1)]
        if self.memory is not None:
            parts.append(self.memory.asked(state, rows).sum(1))
        if (inside := self._inside(state)) is not None:
            parts.append(inside)
        return torch.cat(parts)

    def idle(self, counts: list[int]) -> bool:
        return not any(counts[: len(self.nfe_rows)])

    def plan(self, state: TokenState, rows: Tensor | None, counts: list[int], t: Tensor | None) -> list[Query]:
        canvas, batch = state.canvas, len(state.x)
        rows = state.open if rows is None else rows & canvas.fill
        wide = counts[batch : 2 * batch] if self.memory is not None else counts[:batch]
        switch = counts[batch if self.memory is None else 2 * batch :]  # (B,), or empty
        always = self._guides(canvas) and not switch
        inside = self._inside(state) if switch else None
        active: Tensor | None = None
        queries = []
        for guided in (False, True) if switch else (always,):
            for length, members in canvas.rows_by_length.items():
                here = [i for i in members if counts[i] and (not switch or switch[i] == guided)]
                if not here:
                    continue
                which = None
                if len(here) < batch:
                    active = rows.any(1) if active is None else active
                    member = active
                    if len(canvas.rows_by_length) > 1:
                        member = member & (canvas.length == length)
                    if inside is not None:
                        member = member & (inside == guided)
                    which = torch.nonzero_static(member, size=len(here)).squeeze(1)  # (A,)
                mask = rows if which is None else rows[which]
                count = sum(counts[i] for i in here)
                whole = which is None and length == mask.shape[1]
                mask = mask if whole else mask[:, :length]
                more = sum(wide[i] for i in here)
                queries.append(Query(batch, which, mask, count, guided, t, tuple(here), whole, wide=more))
        return queries

    # ------------------------------------------------------------------------------------------ one forward pass

    def feed(self, state: TokenState, query: Query) -> Answer:
        if query.rows is None:
            self.nfe_rows += 1
        else:
            self.nfe_rows[query.rows] += 1
        x, time, mask, more = self._input(state, query)
        n = (1 + query.guided) * query.wide
        if self.denoiser.head is not None:
            return Answer(self.counter.hidden(x, time, mask, n))
        answer = Answer(*self.counter.tokens(x, time, mask, n, **more))
        return answer if self.memory is None else self.memory.remember(state, query, answer)

    def _input(self, state: TokenState, query: Query) -> tuple[Tensor, Tensor | None, Tensor, dict[str, Any]]:
        """What the model is given: x, t, mask, more. Of a guided query the unconditional rows come after the others."""
        canvas, denoiser = state.canvas, self.denoiser
        # (A, length); a copy of its own, since a model may write into what it is given
        x = state.x.clone() if query.whole else query.of_canvas(state.x)
        time = None
        if denoiser.time_conditioned:
            if denoiser.time_per_position:
                levels = state.levels
                time = query.of_canvas(levels if query.t is None else torch.where(state.open, query.t[:, None], levels))
            else:
                time = query.of_rows(state.noise_level if query.t is None else query.t)  # (A,)
        more, mask = {}, query.mask
        if self.memory is not None:
            more["previous"] = self.memory.seen_by(state, query)
            mask = mask | query.of_canvas(_present(state))
        if query.guided:
            # Unsupervised guidance (Nie et al. 2024, SMDM): the unconditional rows are the same with the prompt masked.
            # Uniform noise has no mask; a prompt of noise says nothing there.
            blind = canvas.mask_id
            nothing = blind if blind is not None else query.of_canvas(canvas.noise(state.step, DRAW_BLIND))
            prompt = query.of_canvas(canvas.prompt_mask)
            x = torch.cat([x, torch.where(prompt, nothing, x)])
            if time is not None and time.dim() == 2:
                time = torch.cat([time, torch.where(prompt, 1.0, time)])
            elif time is not None:
                time = torch.cat([time, time])
            mask = torch.cat([mask, mask])
            more = {name: value.doubled() for name, value in more.items()}
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
