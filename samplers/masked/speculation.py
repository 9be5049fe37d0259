"""What samplers share that draft several tokens and let the model judge them from left to right: s2d2, linear_spec, apd, strided.

The judge is the same model at block size 1. It sees what is known outside the present block as it always does, and of the
present block only what stands to the left. Of a drafted run all such answers come from one forward pass (predict.seen): after
the canvas, whose masks are filled by the draft, stands one more mask for each drafted position, which sees what is known and
the draft to its left, and itself. A token of the block sees what is known, what is to its left, and itself, so what the judge
knows of it is what it will know in later steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict, Prediction
from ..state import TokenState
from .plans import most_open

S = TypeVar("S", bound="SpanState")


@dataclass(frozen=True, eq=False)
class SpanState(TokenState):
    """A state that knows how long a drafted run can be, and how many forward passes the block has taken.

    A step of a draft and a verification is two passes. If a block is given fewer steps than it has positions, they are a cap on
    passes: a step then commits its share of what is left, and if a single pass is left there is no verification. Otherwise
    there is no cap, each step commits one position at least, and a block of n positions takes 2n - 1 passes at most.

    Attributes:
        size: S, the positions of the largest block.
        passes: (B,) int64, passes of the present block so far; of an earlier block if the present one has not begun.
    """

    size: int
    passes: Tensor

    @classmethod
    def of(cls: type[S], canvas: Layout, **fields: Any) -> S:
        """The state before the first step. fields: a subclass's own fields."""
        return cls.begin(canvas, size=most_open(canvas), passes=torch.zeros_like(canvas.x[:, 0]), **fields)

    @property
    def _left(self) -> tuple[Tensor, Tensor]:
        """Whether the block has no cap, (B,) bool, and how many passes are left of it, (B,) int64."""
        taken = torch.where(self.block_step == 0, 0, self.passes)
        return self.block_steps >= self.block_size, self.block_steps - taken

    @property
    def verifies(self) -> Tensor:
        """(B,) bool: rows that have two passes left, or need one only, since one position is left."""
        free, left = self._left
        return free | (left > 1) | (self.count == 1)

    @property
    def least(self) -> Tensor:
        """(B,) int64: how many positions must be committed now so that the block is filled within its passes."""
        free, left = self._left
        steps = torch.div(left, 2, rounding_mode="floor").clamp_min(1)
        share = torch.div(self.count + steps - 1, steps, rounding_mode="floor")
        return torch.where(free, 1, share)

    def with_passes(self, *asked: Tensor) -> Tensor:
        """(B,) int64: `passes` after this step, which has asked about these positions, (B, L) bool each, in a pass each."""
        made = torch.stack([a.any(1) for a in asked]).sum(0)
        return torch.where(self.block_step == 0, 0, self.passes) + made


def first_run(open: Tensor) -> Tensor:
    """(B, L) bool: of the open positions the first, and those that follow it without a gap."""
    begun = open.cumsum(1) > 0
    return open & ((begun & ~open).cumsum(1) == 0)


@dataclass(frozen=True, eq=False)
class Lines:
    """The sequences of a verification, as predict.seen takes them.

    Attributes:
        x, positions, visible, asked: (B, L + S), (B, L + S), (B, L + S, L + S), (B, L + S).
        width: L.
    """

    x: Tensor
    positions: Tensor
    visible: Tensor
    asked: Tensor
    width: int

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.positions, self.visible, self.asked

    def on_canvas(self, said: Prediction) -> Tensor:
        """(B, L) int64: the tokens of the asked lines, each at its position."""
        place = torch.where(self.asked, self.positions, self.width)[:, self.width :]
        out = torch.zeros_like(self.x[:, : self.width + 1])
        return out.scatter(1, place, said.token[:, self.width :])[:, : self.width]


def verification(
    predict: Predict, state: TokenState, draft: Tensor, drafted: Tensor, judged: Tensor, size: int
) -> Lines:
    """The sequences in which the model at block size 1 answers for `judged`, given the draft to the left of each position.

    Args:
        draft: (B, L) int64. drafted: (B, L) bool, open positions that hold the draft.
        judged: (B, L) bool, at most `size` positions in a row.
    """
    mask_id = state.canvas.mask_id
    assert mask_id is not None
    width = state.x.shape[1]
    here = torch.arange(width, device=state.x.device)
    place = torch.where(judged, here, width).sort(1).values[:, :size]  # (B, S)
    there = place < width
    place = place.clamp(max=width - 1)
    filled = torch.where(drafted & state.open, draft, state.x)
    x = torch.cat([filled, torch.full_like(place, mask_id)], 1)
    positions = torch.cat([here.expand_as(state.x), place], 1)

    block = state.canvas.fill & (state.canvas.block == state.block[:, None])  # (B, L)
    known = torch.cat([filled != mask_id, torch.zeros_like(there)], 1)
    inside = torch.cat([block, torch.ones_like(there)], 1)
    sight = predict.sight(state)[positions[:, :, None], positions[:, None]]  # (B, L + S, L + S)
    left = positions[:, None] < positions[:, :, None]
    visible = sight & known[:, None] & (~inside[:, None] | (inside[:, :, None] & left))
    visible = visible | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    asked = torch.cat([torch.zeros_like(judged), there], 1)
    return Lines(x, positions, visible, asked, width)


def draw_from(weight: Tensor, uniform: Tensor) -> Tensor:
    """(N,) int64: a token each, in proportion to `weight`, (N, V) float32 and not all 0. uniform: (N,) float64."""
    token = ops.masked_softmax(weight.log(), uniform=uniform, temperature=1.0).token
    return token.clamp(min=0)  # -1 of numbers that are none, which are reported before a result is handed out


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(N, V) float32: max(p - q, 0), what a refused token is replaced by; p if rounding leaves nothing of it."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.amax(1, keepdim=True) > 0, rest, p)


def stands_until(refused: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Of a span, (B, L) bool, what stands before the first refused position, and that position; (B, L) bool each."""
    refused = refused & span
    number = refused.cumsum(1)
    return span & (number == 0), refused & (number == 1)
