"""What several masked samplers share: the counts and times that schedules prescribe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..believe import Logits
from ..canvas import Canvas, DraftState, TokenState
from ..random import DRAW_POSITION
from ..schedule import MaskSchedule, mask_schedule

__all__ = ["DRAW_REMASK", "TimedDraft", "TimedState", "at_least", "combined", "even_plan", "timed"]

DRAW_REMASK = 9  # whether a position appears or is masked again, where that is drawn anew in every step


def even_plan(state: TokenState, ahead: int = 0) -> Tensor:
    """(B,) int64: LLaDA's count for this step: n // S of the block's n positions, one more in the first n % S steps.

    ahead: of that many steps later.
    """
    n, steps = state.block_size, state.block_steps.clamp_min(1)
    return n // steps + (state.block_step + ahead < n % steps)


def at_least(state: TokenState) -> Tensor:
    """(B,) int64: what an adaptive sampler must commit now so that the block is filled within its steps; 1 or more."""
    left = (state.block_steps - state.block_step).clamp_min(1)
    return torch.div(state.count + left - 1, left, rounding_mode="floor").clamp_min(1)


@dataclass(frozen=True, eq=False)
class TimedState(TokenState):
    """A state whose positions know when they appear.

    Attributes:
        time: (B, L) float64, uniform in [0, 1): the visible fraction at which the position appears.
        table: (S, K + 1) float64, a at point k of the grid, for each number of steps S that some block is given; 1 beyond k = S.
        which: (max S + 1,) int64, S -> its row in `table`.
    """

    time: Tensor
    table: Tensor
    which: Tensor

    def visible(self, ahead: int = 0, *, stride: int = 1) -> Tensor:
        """(B,) float64: a(k / S) at each row's step k + `ahead` of its block; `stride` grid points are one step."""
        k = (self.block_step * stride + ahead).clamp(0, self.table.shape[1] - 1)
        return self.table[self.which[self.block_steps], k]

    def level(self, visible: Tensor) -> Tensor:
        """(B,) float64: the expected share still masked over all blocks, when `visible`, (B,), of the present one is not."""
        later = self.undecided.sum(1) - self.count
        return (later + self.block_size * (1 - visible)) / self.canvas.fill.sum(1)

    @property
    def scheduled_level(self) -> Tensor:
        """(B,) float64: the expected share still masked at this step; t for time-conditioned models."""
        return self.level(self.visible())


@dataclass(frozen=True, eq=False)
class TimedDraft(DraftState, TimedState):
    """The same, of tokens that may change until they are decided."""


T = TypeVar("T", bound=TimedState)


def even_grid(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def timed(
    canvas: Canvas,
    schedule: str | MaskSchedule,
    grid: Callable[[int], Tensor] = even_grid,
    cls: type[T] = TimedState,  # type: ignore[assignment]
    **more: Any,
) -> T:
    """The first state, with an appearance time for each position.

    In any ancestral sampler of a masking process a position appears in step k with probability a_{k+1} - a_k, whatever
    the others do. One uniform a position, compared with a(k / S), is that law exactly; and the same seed then reveals in
    the same order whatever the number of steps.

    Args:
        grid: S -> (S + 1,) float64, the progress before each of S steps and after the last; k / S where not given.
        cls: the kind of state. more: its own fields.
    """
    a = mask_schedule(schedule)
    state = canvas.start()
    assert canvas.block_steps is not None
    kinds = sorted({int(s) for s in canvas.block_steps.unique()} - {0})
    most = kinds[-1]
    table = torch.ones(len(kinds), most + 1, dtype=torch.float64)
    which = torch.zeros(most + 1, dtype=torch.int64)
    for i, s in enumerate(kinds):
        table[i, : s + 1] = a(grid(s))
        which[s] = i
    device = state.x.device
    time = state.rng.positions(state.x.shape[1], torch.zeros_like(state.step), DRAW_POSITION)
    if issubclass(cls, DraftState):
        more["decided"] = torch.zeros_like(canvas.fill)
    return state.extend(cls, time=time, table=table.to(device), which=which.to(device), **more)


def combined(believe: Any, state: TokenState, now: Logits, then: Logits, weight: Tensor | float) -> Tensor:
    """(B, L) int64: tokens drawn at the positions of `now` from p_then + weight (p_now - p_then), cut off at 0.

    Args:
        weight: of each position of `now`, (N,), or of all. Where `then` lacks a position it must be 1, which is p_now.
    """
    p_now, p_then = now.value.softmax(1), then.value.softmax(1)  # (N, V), (M, V) float32
    place = then.on_canvas(torch.arange(len(then.row), device=then.row.device), torch.zeros_like(state.x))  # (B, L)
    weight = torch.as_tensor(weight, dtype=p_now.dtype, device=p_now.device).expand(len(p_now))[:, None]
    mixed = torch.lerp(p_then[place[now.row, now.position]], p_now, weight)  # (N, V), exact at 0 and 1
    return believe.read(state, dataclasses.replace(now, value=mixed.clamp_min(0.0).log())).token
