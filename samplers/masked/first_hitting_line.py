"""Two further methods of first_hitting, which draw from the line through two predictions. Ours; see docs/solvers.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..canvas import FAR, Layout
from ..prediction import Logits, Predict
from .plans import even_count
from .times import TimedDraft, TimedState, draw_from_mixture

__all__ = ["LineState", "extrapolation", "next_group", "predictor_corrector"]

L = TypeVar("L", bound="LineState")


@dataclass(frozen=True, eq=False)
class LineState(TimedDraft):
    """A state that remembers the last prediction.

    Attributes:
        order: (B, L) int64, how many positions of the row appear before this one.
        last: the last prediction; None before the first.
        last_order: (B,) int64, how many positions were visible when it was made.
    """

    order: Tensor
    last: Logits | None
    last_order: Tensor

    @classmethod
    def begin(cls: type[L], canvas: Layout, **fields: Any) -> L:
        """The state before the first step. fields: the schedule, and the values of a subclass's own fields."""
        zeros = torch.zeros_like(canvas.x)
        state = super().begin(canvas, **({"order": zeros, "last": None, "last_order": zeros[:, 0]} | fields))
        key = torch.where(canvas.fill, canvas.block + state.time, torch.inf)  # blocks in order, then by time
        return dataclasses.replace(state, order=key.argsort(dim=1, stable=True).argsort(dim=1, stable=True))


def next_group(state: TimedState, more: Tensor | int = 0) -> tuple[Tensor, Tensor]:
    """The positions of this step: (B, L) bool; and the noise level at the first of them, (B,) float64.

    Args:
        more: how many positions to take besides the step's own, int or (B,) int64.
    """
    group = ops.select(state.time, state.masked & state.open, k=even_count(state) + more, lowest=True).chosen
    # `time` is a visible fraction: at the hit, 1 - time of the block's positions are expected to be masked.
    return group, state.level(torch.where(group, state.time, 1.0).amin(1))


def extrapolation(predict: Predict, state: LineState) -> LineState:
    """Draw the group from the line through the last prediction and this one, each position at its own place."""
    group, level = next_group(state)
    # The next group is asked as well, since its line goes through this prediction. One position needs no line.
    following = even_count(state, 1)
    ahead, _ = next_group(state, torch.where(following > 1, following, 0))
    now = predict.logits(state, ahead & group.any(1, keepdim=True), t=level)
    last, place, known, kept = _line(state, now, group)
    place = torch.where(known, place, 1.0)
    token = draw_from_mixture(predict, state, now, last, place[now.row, now.position])
    return state.commit(group, token, **kept)


def predictor_corrector(predict: Predict, state: LineState) -> LineState:
    """Draw the group from this prediction, and the group before once more: between the last prediction and this one."""
    group, level = next_group(state)
    drafts = state.open & ~state.masked & group.any(1, keepdim=True)  # the group before: older ones are decided
    now = predict.logits(state, group | drafts, t=level)
    last, place, known, kept = _line(state, now, group)
    token = predict.read(state, now).token
    before = dataclasses.replace(state, step=state.step - 1)  # the uniform numbers that the drafts were drawn with
    place = torch.where(known, place, 1.0)
    again = draw_from_mixture(predict, before, now, last, place[now.row, now.position])
    x = torch.where(group, token, torch.where(drafts & known, again, state.x))
    filled = ~(state.masked & state.open & ~group).any(1, keepdim=True)
    return state.revise(x, drafts | filled, **kept)


def _line(state: LineState, now: Logits, group: Tensor) -> tuple[Logits, Tensor, Tensor, dict[str, Any]]:
    """What the line from the last prediction to this one, `now`, is made of.

    Returns:
        The last prediction (this one if there is none); the place of each position on the line, (B, L) float64, 0 at
        the last prediction and 1 at this one; which positions the last prediction has, (B, L) bool; and the new values of
        the state's fields.
    """
    order = torch.where(group, state.order, FAR).amin(1)  # (B,)
    last = now if state.last is None or not len(state.last.row) else state.last
    known = last.on_canvas(torch.ones_like(last.row), torch.zeros_like(state.x)).bool()
    size = (order - state.last_order).clamp_min(1).double()  # (B,), of the group before
    place = (state.order - state.last_order[:, None]) / size[:, None]
    asked = group.any(1)
    kept = {
        "last": now if len(now.row) else state.last,
        "last_order": torch.where(asked, order, state.last_order),
    }
    return last, place, known, kept
