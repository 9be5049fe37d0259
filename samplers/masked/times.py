"""States whose positions know when they appear, and draws from a mixture of two predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Logits, Predict
from ..random import DRAW_POSITION
from ..schedule import MaskSchedule, mask_schedule, step_tables
from ..state import DraftState, TokenState

__all__ = ["TimedDraft", "TimedState", "draw_from_mixture", "even_grid"]

T = TypeVar("T", bound="TimedState")


def even_grid(steps: int) -> Tensor:
    """(steps + 1,) float64: k / steps."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class TimedState(TokenState):
    """A state in which each position has a time at which it appears.

    Attributes:
        time: (B, L) float64, uniform in [0, 1): the visible fraction at which the position appears.
        table: (S, K + 1) float64, a at point k of the grid, for each number of steps S that some block is given; 1 after k = S.
        which: (max S + 1,) int64, the number of steps S -> its row in `table`.
    """

    SHARED: ClassVar[tuple[str, ...]] = ("table", "which")

    time: Tensor
    table: Tensor
    which: Tensor

    @classmethod
    def begin(
        cls: type[T],
        canvas: Layout,
        *,
        schedule: str | MaskSchedule = "linear",
        grid: Callable[[int], Tensor] = even_grid,
        **fields: Any,
    ) -> T:
        """The state before the first step, with an appearance time for each position.

        In any ancestral sampler of a masking process a position appears in step k with probability a_{k+1} - a_k, whatever
        the others do. One uniform number per position, compared with a(k / S), gives exactly that distribution; and the
        same seed then reveals positions in the same order whatever the number of steps.

        Args:
            schedule: the mask schedule a(u).
            grid: S -> (S + 1,) float64, the progress u before each of S steps and after the last; k / S by default.
            fields: the values of the subclass's own fields.
        """
        a = mask_schedule(schedule)
        table, which = step_tables(canvas.block_steps, lambda s: a(grid(s)))
        zeros = torch.zeros(len(canvas.x), dtype=torch.int64, device=canvas.x.device)
        time = canvas.rng.positions(canvas.x.shape[1], zeros, DRAW_POSITION)
        return super().begin(canvas, time=time, table=table, which=which, **fields)

    def visible(self, ahead: int = 0, *, stride: int = 1) -> Tensor:
        """(B,) float64: the visible fraction a(k / S) at each row's step k of its block.

        Args:
            ahead: how many grid points later.
            stride: how many grid points are one step.
        """
        k = (self.block_step * stride + ahead).clamp(0, self.table.shape[1] - 1)
        return self.table[self.which[self.block_steps], k]

    def level(self, visible: Tensor) -> Tensor:
        """(B,) float64: the expected share of all positions to fill that is still masked.

        Args:
            visible: (B,) float64, the visible fraction of the row's present block.
        """
        later = self.undecided.sum(1) - self.remaining
        return (later + self.block_size * (1 - visible)) / self.canvas.fill_count

    @property
    def scheduled_level(self) -> Tensor:
        """(B,) float64: the expected share still masked at this step; t for time-conditioned models."""
        return self.level(self.visible())


@dataclass(frozen=True, eq=False)
class TimedDraft(DraftState, TimedState):
    """A TimedState whose tokens may change until they are decided."""


def draw_from_mixture(predict: Predict, state: TokenState, now: Logits, then: Logits, weight: Tensor | float) -> Tensor:
    """(B, L) int64: tokens drawn at the positions of `now` from p_then + weight (p_now - p_then), cut off at 0.

    Args:
        now, then: two predictions; the positions of `now` are drawn.
        weight: for each position of `now`, (N,), or for all. If `then` lacks a position, it must be 1, which is p_now.
    """
    p_now, p_then = now.value.softmax(1), then.value.softmax(1)  # (N, V), (M, V) float32
    place = then.on_canvas(torch.arange(len(then.row), device=then.row.device), torch.zeros_like(state.x))  # (B, L)
    if not isinstance(weight, Tensor):
        weight = p_now.new_full((), weight)  # a number that came from the host's memory would be waited for
    weight = weight.to(p_now.dtype).expand(len(p_now))[:, None]
    mixed = torch.lerp(p_then[place[now.row, now.position]], p_now, weight)  # (N, V), exact at 0 and 1
    return predict.read(state, dataclasses.replace(now, value=mixed.clamp_min(0.0).log())).token
