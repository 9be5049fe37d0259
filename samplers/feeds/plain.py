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
    """Plans forward passes, and gives the model whole rows.

    Args:
        cfg_scale, cfg_interval: the guidance of the run; see sample().
        pad: rows of all lengths share a forward pass, which is as long as the longest of those that take part; a shorter
            one is followed by filling, as on the canvas. False: rows of one length do.
    """

    cache_bytes = 0

    def __init__(
        self, counter: Counter, batch: int, cfg_scale: float, cfg_interval: tuple[float, float], pad: bool = False
    ):
        self.counter, self.cfg_scale, self.cfg_interval, self.pad = counter, cfg_scale, cfg_interval, pad
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
        """(B,) int64, positions asked about in each row; then, if guidance depends on the level, (B,) whether it is on."""
        count = state.count if rows is None else (rows & state.canvas.fill).sum(1)
        inside = self._inside(state)
        return count if inside is None else torch.cat([count, inside])

    def idle(self, counts: list[int]) -> bool:
        return not any(counts[: len(self.nfe_rows)])

    def plan(self, state: TokenState, rows: Tensor | None, counts: list[int], t: Tensor | None) -> list[Query]:
        canvas, batch = state.canvas, len(state.x)
        rows = state.open if rows is None else rows & canvas.fill
        always = self._guides(canvas) and len(counts) == batch
        inside = self._inside(state) if len(counts) > batch else None
        active: Tensor | None = None
        groups = [list(range(batch))] if self.pad else list(canvas.rows_by_length.values())
        queries = []
        for guided in (False, True) if len(counts) > batch else (always,):
            for members in groups:
                here = [i for i in members if counts[i] and (len(counts) == batch or counts[batch + i] == guided)]
                if not here:
                    continue
                length = max(canvas.lengths[i] for i in here)
                which = None
                if len(here) < batch:
                    active = rows.any(1) if active is None else active
                    member = active
                    if len(groups) > 1:
                        member = member & (canvas.length == length)
                    if inside is not None:
                        member = member & (inside == guided)
                    which = torch.nonzero_static(member, size=len(here)).squeeze(1)  # (A,)
                mask = rows if which is None else rows[which]
                count = sum(counts[i] for i in here)
                whole = which is None and length == mask.shape[1]
                mask = mask if whole else mask[:, :length]
                lengths = None
                if any(canvas.lengths[i] < length for i in here):
                    lengths = canvas.length if which is None else canvas.length[which]
                queries.append(Query(batch, which, mask, count, guided, t, tuple(here), whole, lengths))
        return queries

    # ------------------------------------------------------------------------------------------ one forward pass

    def feed(self, state: TokenState, query: Query) -> Answer:
        if query.rows is None:
            self.nfe_rows += 1
        else:
            self.nfe_rows[query.rows] += 1
        x, time, mask, more = self._input(state, query)
        n = (1 + query.guided) * query.count
        ends = {} if query.lengths is None else {"lengths": query.lengths.repeat(1 + query.guided)}
        if self.denoiser.head is not None:
            return Answer(self.counter.hidden(x, time, mask, n, **ends))
        answer = Answer(*self.counter.tokens(x, time, mask, n, **more, **ends))
        if self.memory is not None:
            self.memory.remember(state, query, answer)
        return answer

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
        more = {}
        if self.memory is not None:
            more["previous"] = self.memory.seen_by(state, query)
        mask = query.mask
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


class SelfConditioning:
    """The last logits of a self-conditioned denoiser, between the beginning and the end of a step: state.previous."""

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

    def remember(self, state: TokenState, query: Query, answer: Answer) -> None:
        """Keep the (conditional) logits of the asked positions for the next forward pass."""
        assert self._previous is not None
        index = state.canvas.fill_number.flatten()[query.on_canvas(state.x.shape[1])]
        if not self._written:  # states are immutable: one copy per step
            self._previous, self._written = self._previous.clone(), True
        self._previous.index_copy_(0, index, answer.packed()[: query.count].float())
