"""What several masked samplers share: the counts and times that schedules prescribe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas, TokenState
from ..random import DRAW_POSITION
from ..schedule import MaskSchedule, mask_schedule

__all__ = ["TimedState", "at_least", "even_plan", "timed"]


def even_plan(state: TokenState) -> Tensor:
    """(B,) int64: LLaDA's count for this step: n // S of the block's n positions, one more in the first n % S steps."""
    n, steps = state.block_size, state.block_steps.clamp_min(1)
    return n // steps + (state.block_step < n % steps)


def at_least(state: TokenState) -> Tensor:
    """(B,) int64: what an adaptive sampler must commit now so that the block is filled within its steps; 1 or more."""
    left = (state.block_steps - state.block_step).clamp_min(1)
    return torch.div(state.count + left - 1, left, rounding_mode="floor").clamp_min(1)


@dataclass(frozen=True, eq=False)
class TimedState(TokenState):
    """A state whose positions know when they appear.

    Attributes:
        time: (B, L) float64, uniform in [0, 1): the visible fraction at which the position appears.
        table: (S, K + 1) float64, a(k / S) for each number of steps S that some block is given; 1 beyond k = S.
        which: (max S + 1,) int64, S -> its row in `table`.
    """

    time: Tensor
    table: Tensor
    which: Tensor

    def visible(self, ahead: int = 0) -> Tensor:
        """(B,) float64: a(k / S) at each row's step k + `ahead` of its block."""
        k = (self.block_step + ahead).clamp(0, self.table.shape[1] - 1)
        return self.table[self.which[self.block_steps], k]

    @property
    def scheduled_level(self) -> Tensor:
        """(B,) float64: the expected share still masked at this step, over all blocks; t for time-conditioned models."""
        later = self.undecided.sum(1) - self.count
        return (later + self.block_size * (1 - self.visible())) / self.canvas.fill.sum(1)


def timed(canvas: Canvas, schedule: str | MaskSchedule) -> TimedState:
    """The first state, with an appearance time for each position.

    In any ancestral sampler of a masking process a position appears in step k with probability a_{k+1} - a_k, whatever
    the others do. One uniform a position, compared with a(k / S), is that law exactly; and the same seed then reveals in
    the same order whatever the number of steps.
    """
    a = mask_schedule(schedule)
    state = canvas.start()
    assert canvas.block_steps is not None
    kinds = sorted({int(s) for s in canvas.block_steps.unique()} - {0})
    most = kinds[-1]
    table = torch.ones(len(kinds), most + 1, dtype=torch.float64)
    which = torch.zeros(most + 1, dtype=torch.int64)
    for i, s in enumerate(kinds):
        table[i, : s + 1] = a(torch.linspace(0, 1, s + 1, dtype=torch.float64))
        which[s] = i
    device = state.x.device
    time = state.rng.positions(state.x.shape[1], torch.zeros_like(state.step), DRAW_POSITION)
    return state.extend(TimedState, time=time, table=table.to(device), which=which.to(device))
