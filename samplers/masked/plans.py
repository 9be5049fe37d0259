"""How many positions a step commits: even counts, counts from a schedule, and the minimum that a cap on steps demands."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..checks import check_plan
from ..errors import OptionError
from ..sampler import Facts, Sampler, option
from ..schedule import BOUNDS, bounded_plan, mask_schedule, optimal_plan
from ..state import TokenState
from .times import TimedState, even_grid

__all__ = [
    "ScheduledSampler",
    "even_count",
    "fill_up_to",
    "in_time",
    "min_count",
    "most_open",
    "parse_plan",
    "scheduled_count",
    "whole_block_count",
    "whole_block_option",
]


def even_count(state: TokenState, ahead: int | Tensor = 0) -> Tensor:
    """(B,) int64: LLaDA's count for this step: n // S of the block's n positions, one more in the first n % S steps.

    Args:
        ahead: give the count of the step that comes this many steps later; a tensor (K, 1) of them: (K, B) counts.
    """
    n, steps = state.block_size, state.block_steps.clamp_min(1)
    count = n // steps + (state.block_step + ahead < n % steps)
    if state.canvas.window is None:
        return count
    # A window may have held too few: the plan is then made up for.
    left = (state.block_steps - state.block_step).clamp_min(1)
    return in_time(state, torch.maximum(count, (state.remaining + left - 1) // left))


def in_time(state: TokenState, count: Tensor) -> Tensor:
    """(B,) int64: `count`, a number of positions for this step, as a window that moves allows it.

    It is at most what is open, and so much of that as the window needs in order to pass over the row within its steps.
    """
    window = state.canvas.window
    if window is None:
        return count
    left = state.block_steps - state.block_step
    needed = window.needed(state.canvas, state.undecided, state.count, left)
    return torch.maximum(torch.minimum(count, state.count), needed)


def whole_block_count(state: TokenState, steps: int) -> Tensor:
    """(B,) int64: even_count of a whole block of block_length positions in `steps` steps, however few this one has to fill.

    So LLaDA2's and SDAR's codes count in a block that begins with the end of the prompt.
    """
    length = state.canvas.block_length
    if length is None:
        n = state.block_size
    else:
        n = length if isinstance(length, Tensor) else torch.full_like(state.block_size, length)
    return n // steps + (state.block_step < n % steps)


def min_count(state: TokenState) -> Tensor:
    """(B,) int64: how many an adaptive sampler must commit now so that the block is filled within its steps; at least 1.

    Under a window that moves: the row, and never more than are open (but 1 in a row that is done).
    """
    left = (state.block_steps - state.block_step).clamp_min(1)
    count = torch.div(state.remaining + left - 1, left, rounding_mode="floor")
    return in_time(state, count).clamp_min(1)


def most_open(canvas: Layout) -> int:
    """The most positions that a row can have open: those of the largest block. A device sync, so for Sampler.init only."""
    return max(1, int(canvas.block_size.max()))


def fill_up_to(state: TokenState, chosen: Tensor, score: Tensor, least: Tensor) -> Tensor:
    """(B, L) bool: the open positions of `chosen` and, if a row has too few, the best-scored other open positions.

    Args:
        chosen: (B, L) bool.
        score: (B, L) floats, higher is better.
        least: (B,) int64, how many positions each row must have; all of its open ones if it has fewer.
    """
    chosen = chosen & state.open
    window = state.canvas.window
    if window is not None and window.forces:
        return window.complete(state, chosen, score, least)
    count = torch.maximum(chosen.sum(1), least)  # (B,)
    return ops.select(torch.where(chosen, torch.inf, score), state.open, k=count).chosen


def scheduled_count(state: TimedState, least: int = 0) -> Tensor:
    """(B,) int64: a schedule's count for this step: step k ends with round(n a((k + 1) / S)) of the block's n visible.

    With `least` = 0, steps that would commit nothing are left out, together with their forward passes. Otherwise each step
    commits at least `least` positions.
    """
    have = state.block_size - state.remaining  # (B,)
    if least:
        total = torch.floor(state.block_size * state.visible(1) + 0.5).to(torch.int64)  # (B,)
        return in_time(state, total - have).clamp_min(least)
    totals = torch.floor(state.block_size[:, None] * state.table[state.which[state.block_steps]] + 0.5)  # (B, K + 1)
    total = torch.where(totals > have[:, None], totals, torch.inf).amin(1)  # the next total that differs
    return in_time(state, total.clamp(max=2**30).to(torch.int64) - have)


def whole_block_option() -> Any:
    """The option steps_per_block, the same wherever it is."""
    return option(
        None,
        "steps of a whole block, whose even counts hold in every block, however little of it is to be filled: the plan of "
        "LLaDA2's and SDAR's code; none: each block has its share of `steps`",
        ge=1,
    )


def _floor_end(plan: str) -> float | None:
    """eps of 'floor(eps)'; None for another plan."""
    found = re.fullmatch(r"floor\((.+)\)", plan.replace(" ", ""))
    if found is None:
        return None
    try:
        eps = float(found[1])
    except ValueError:
        eps = math.nan
    if not 0 <= eps < 1:
        raise OptionError("floor(eps) takes a number from 0 up to 1, such as floor(0.001)")
    return eps


def parse_plan(plan: str) -> None:
    """OptionError if `plan` is neither a plan nor a mask schedule."""
    if plan not in ("even", *PLANNED) and _floor_end(plan) is None:
        try:
            mask_schedule(plan)
        except OptionError as error:
            raise OptionError(f"{error}. Or a plan: even, floor(eps), {', '.join(PLANNED)}") from error


PLANNED = ("optimal", *BOUNDS)  # plans whose group sizes are worked out before the run


@dataclass(frozen=True, eq=False)
class PlannedState(TimedState):
    """A state that knows the group sizes of every block.

    Attributes:
        sizes: (B, blocks, K) int64, the positions to commit in each step of a block; 0 after its last group.
    """

    sizes: Tensor

    @property
    def size(self) -> Tensor:
        """(B,) int64: the size of this step's group; all that is open in the last step of a block, or what a window needs."""
        row = torch.arange(len(self.x), device=self.x.device)
        block = self.block.clamp(max=self.sizes.shape[1] - 1)
        step = self.block_step.clamp(max=self.sizes.shape[2] - 1)
        if self.canvas.window is None:
            size = self.sizes[row, block, step]
        else:  # a window may have held too few: the plan is then made up for
            total = self.sizes.cumsum(2)[row, block, step]  # (B,) after this step
            size = in_time(self, (total - self.block_size + self.remaining).clamp_min(0))
        return torch.where(self.block_step + 1 >= self.block_steps, self.count, size)


def planned_sizes(plan: str, canvas: Layout) -> Tensor:
    """(B, blocks, K) int64, on the canvas's device: the group sizes of one of PLANNED, for every block of every row.

    "optimal" takes the part of the curve that a block covers: from as many known positions as there are before it, prompt
    included. The curve is stretched if the canvas has another length. It is exact for a canvas of the curve's length that
    begins empty and is one block: the curve is about random sets of known positions, and a prompt is none.
    """
    sizes, steps = canvas.block_size.tolist(), canvas.block_steps.tolist()
    most = max(map(max, steps))
    check_plan(f"steps={most} per block", len(sizes) * len(sizes[0]) * most * 8)
    table = torch.zeros(len(sizes), len(sizes[0]), most, dtype=torch.int64, device="cpu")
    made: dict[tuple[int, int, int, int], list[int]] = {}
    for i, (length, of_row) in enumerate(zip(canvas.lengths, sizes)):
        known = length - sum(of_row)
        for b, n in enumerate(of_row):
            if n:
                case = (length, known, n, steps[i][b])
                if case not in made:
                    made[case] = _group_sizes(plan, canvas.curve, *case)
                table[i, b, : len(made[case])] = torch.tensor(made[case], dtype=torch.int64, device="cpu")
            known += n
    return table.to(canvas.x.device)


@functools.lru_cache(maxsize=64)  # a long row takes seconds
def _group_sizes(plan: str, curve: tuple[float, ...] | None, length: int, known: int, n: int, steps: int) -> list[int]:
    if plan != "optimal":
        return bounded_plan(n, steps, plan)[0]
    assert curve is not None
    if len(curve) == length:
        return optimal_plan(curve[known : known + n], steps)
    at, grid = (np.arange(known, known + n) + 0.5) / length, (np.arange(len(curve)) + 0.5) / len(curve)
    return optimal_plan(np.interp(at, grid, curve).tolist(), steps)


@dataclass(frozen=True)
class ScheduledSampler(Sampler[Any]):
    """Base of samplers that commit a planned number of positions per step. Of a block's n positions in S steps:

    even        n // S, one more in the first n % S steps: LLaDA's plan.
    floor(eps)  floor(m (1 - s/t)) of the m that are left, where t > s are neighbours in linspace(1, eps, S + 1), and all in
                the last step: Dream's plan (eps = 1e-3) and SMDM's (1e-5). With S = n the first step commits nothing and
                the last one commits two.
    a schedule  The differences of round(n a(k / S)); steps that would commit nothing are left out.
    optimal     The sizes with the least KL of a random order, by the denoiser's entropy_curve (arXiv 2510.25544, 2511.04647).
    tc, dtc, tc+dtc  Sizes for an unknown distribution, with KL at most c times its total correlation, the dual one, or the
                lesser of both (after arXiv 2602.20126; samplers.schedule.bounded_plan gives c).
    What is said of KL is proven for random_order; other samplers may use the sizes, without the proof.

    A step that commits nothing costs no forward pass (in those codes it does). SMDM counts over the whole batch, and Dream by
    the batch's mean; here each row counts for itself.
    """

    plan: str = option(
        "even",
        "positions per step: even, floor(eps), optimal, tc, dtc, tc+dtc, or a mask schedule: linear, 1-cos, beta(a,b) ...",
        check=parse_plan,
        kind="mask_schedules",
    )
    least: int = option(0, "least number of positions per step; with 0 a plan may have steps that commit nothing", ge=0)
    steps_per_block: int | None = whole_block_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_block is not None and self.plan != "even":
            raise OptionError(
                f"sampler {self.name!r}: steps_per_block is the even plan of a whole block; it does not go with "
                f"plan={self.plan!r}"
            )

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, curve=self.plan == "optimal")

    def init(self, canvas: Layout) -> TokenState:
        if self.plan in PLANNED:
            return PlannedState.begin(canvas, sizes=planned_sizes(self.plan, canvas))
        scheduled = self.plan != "even" and _floor_end(self.plan) is None
        return TimedState.begin(canvas, schedule=self.plan) if scheduled else TokenState.begin(canvas)

    def count(self, state: TokenState) -> Tensor:
        """(B,) int64: the positions to commit in this step."""
        if self.steps_per_block is not None:
            return whole_block_count(state, self.steps_per_block).clamp_min(self.least)
        if self.plan == "even":
            return even_count(state).clamp_min(self.least)
        if self.plan in PLANNED:
            assert isinstance(state, PlannedState)
            return state.size.clamp_min(self.least)
        if (eps := _floor_end(self.plan)) is None:
            assert isinstance(state, TimedState)
            return scheduled_count(state, self.least)
        k, steps = state.block_step.double(), state.block_steps.clamp_min(1)
        t, s = (1 - (1 - eps) * (k + i) / steps for i in range(2))  # (B,)
        # 1e-9: a product that is a whole number except for its last bits is that number.
        count = torch.floor(state.remaining * (1 - s / t) + 1e-9).to(torch.int64)
        return in_time(state, torch.where(state.block_step + 1 >= steps, state.count, count)).clamp_min(self.least)

    def expected_nfe(self, length: int, steps: int) -> float:
        """The number of steps that commit something."""
        if self.plan in PLANNED:
            return min(steps, length) if self.plan == "optimal" else len(bounded_plan(length, steps, self.plan)[0])
        eps = None if self.plan == "even" else _floor_end(self.plan)
        steps = self.steps_per_block or steps
        a = mask_schedule("linear" if self.plan == "even" or eps is not None else self.plan)(even_grid(steps))
        left, nfe = length, 0
        for k in range(steps):
            if self.plan == "even":
                count = length // steps + (k < length % steps)
            elif eps is None:
                count = math.floor(length * float(a[k + 1]) + 0.5) - (length - left)
            else:
                t, s = (1 - (1 - eps) * (k + i) / steps for i in range(2))
                count = math.floor(left * (1 - s / t) + 1e-9) if k + 1 < steps else left
            count = min(max(count, self.least), left)
            left, nfe = left - count, nfe + (count > 0)
        return nfe
