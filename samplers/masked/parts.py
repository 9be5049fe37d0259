"""What several masked samplers share: the counts that plans prescribe, times of appearance, orders with chance in them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..believe import Logits
from ..canvas import Canvas, DraftState, TokenState
from ..errors import OptionError
from ..random import DRAW_POSITION
from ..sampler import Sampler, option
from ..schedule import MaskSchedule, mask_schedule

__all__ = [
    "DRAW_RANK",
    "DRAW_REMASK",
    "Planned",
    "TimedDraft",
    "TimedState",
    "at_least",
    "check_plan",
    "combined",
    "even_plan",
    "gumbel",
    "per_steps",
    "planned",
    "row_sum",
    "timed",
    "topped_up",
]

DRAW_RANK = 8  # the chance in an order of positions that is made anew in every step
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


def topped_up(state: TokenState, chosen: Tensor, score: Tensor, least: Tensor) -> Tensor:
    """(B, L) bool: the open ones of `chosen` and, where a row has fewer than its `least`, (B,), the best-scored others."""
    chosen = chosen & state.open
    count = torch.maximum(chosen.sum(1), least)  # (B,)
    return ops.select(torch.where(chosen, torch.inf, score), state.open, k=count).chosen


def row_sum(x: Tensor) -> Tensor:
    """(N,): the sum of each row of x (N, V), in an order that depends on V alone.

    torch's own sum may cut a row in pieces where there are few rows, and then rounds otherwise than in a larger batch.
    """
    while x.shape[1] > 1:
        half, odd = divmod(x.shape[1], 2)
        last = x[:, -1:]
        x = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([x, last], 1) if odd else x
    return x[:, 0]


def gumbel(state: TokenState) -> Tensor:
    """(B, L) float64: standard Gumbel noise of this step.

    The k highest of score + gumbel are k draws without replacement from softmax(score) (Kool et al. 2019, arXiv 1903.06059).
    """
    return -torch.log(-torch.log(state.rng.positions(state.x.shape[1], state.step, DRAW_RANK)))


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
    table, which = per_steps(canvas, lambda s: a(grid(s)))
    time = state.rng.positions(state.x.shape[1], torch.zeros_like(state.step), DRAW_POSITION)
    if issubclass(cls, DraftState):
        more["decided"] = torch.zeros_like(canvas.fill)
    return state.extend(cls, time=time, table=table, which=which, **more)


def per_steps(canvas: Canvas, curve: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """`curve(S)`, (S + 1,) float64 that ends in 1, for each number of steps S that some block is given.

    Returns:
        table (S, K + 1) float64, 1 beyond k = S; which (max S + 1,) int64, S -> its row in the table.
    """
    assert canvas.block_steps is not None
    kinds = sorted({int(s) for s in canvas.block_steps.unique()} - {0})
    most = kinds[-1]
    table = torch.ones(len(kinds), most + 1, dtype=torch.float64)
    which = torch.zeros(most + 1, dtype=torch.int64)
    for i, s in enumerate(kinds):
        table[i, : s + 1] = curve(s)
        which[s] = i
    return table.to(canvas.x.device), which.to(canvas.x.device)


def planned(state: TimedState, least: int = 0) -> Tensor:
    """(B,) int64: a schedule's count for this step: step k ends with round(n a((k + 1) / S)) of the block's n visible.

    With `least` = 0 steps that would commit nothing never happen, nor do their forwards; else each commits `least` or more.
    """
    have = state.block_size - state.count  # (B,)
    if least:
        total = torch.floor(state.block_size * state.visible(1) + 0.5).to(torch.int64)  # (B,)
        return (total - have).clamp_min(least)
    totals = torch.floor(state.block_size[:, None] * state.table[state.which[state.block_steps]] + 0.5)  # (B, K + 1)
    total = torch.where(totals > have[:, None], totals, torch.inf).amin(1)  # the next that differs
    return total.clamp(max=2**30).to(torch.int64) - have


def _floor_end(plan: str) -> float | None:
    """eps of 'floor(eps)'; None of another plan."""
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


def check_plan(plan: str) -> None:
    if plan != "even" and _floor_end(plan) is None:
        try:
            mask_schedule(plan)
        except OptionError as error:
            raise OptionError(f"{error}. Or a plan: even, floor(eps)") from error


@dataclass(frozen=True)
class Planned(Sampler):
    """Base of samplers that commit a planned number of positions a step. Of a block's n positions and S steps:

    even        n // S, one more in the first n % S steps: LLaDA's.
    floor(eps)  floor(m (1 - s/t)) of the m that are left, the times t > s next to each other in linspace(1, eps, S + 1),
                and in the last step all: Dream's (eps = 1e-3) and SMDM's (1e-5). With S = n the first step commits
                nothing and the last one two.
    a schedule  differences of round(n a(k / S)), steps that would commit nothing left out.

    A step that commits nothing costs no forward (in those codes it does). SMDM counts over the whole batch and Dream by its
    mean; here each row counts for itself.
    """

    plan: str = option(
        "even", "positions a step: even, floor(eps), or a mask schedule: linear, 1-cos, beta(a,b) ...", check=check_plan
    )
    least: int = option(0, "positions a step at least; 0 lets a plan have steps that commit nothing", ge=0)

    def init(self, canvas: Canvas) -> TokenState:
        scheduled = self.plan != "even" and _floor_end(self.plan) is None
        return timed(canvas, self.plan) if scheduled else canvas.start()

    def count(self, state: TokenState) -> Tensor:
        """(B,) int64: the positions to commit in this step."""
        if self.plan == "even":
            return even_plan(state).clamp_min(self.least)
        if (eps := _floor_end(self.plan)) is None:
            assert isinstance(state, TimedState)
            return planned(state, self.least)
        k, steps = state.block_step.double(), state.block_steps.clamp_min(1)
        t, s = (1 - (1 - eps) * (k + i) / steps for i in range(2))  # (B,)
        count = torch.floor(state.count * (1 - s / t) + 1e-9).to(torch.int64)  # what is whole but for its last bits is
        return torch.where(state.block_step + 1 >= steps, state.count, count).clamp_min(self.least)

    def expected_nfe(self, length: int, steps: int) -> float:
        """The number of steps that commit something."""
        eps = None if self.plan == "even" else _floor_end(self.plan)
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
