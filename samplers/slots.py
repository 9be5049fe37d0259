"""Slots: groups of neighbouring positions that a sequential sampler chooses, verifies and commits together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .canvas import Layout
from .feeds.sequence import SequenceState

__all__ = ["SlotState"]

P = TypeVar("P", bound="SlotState")


@dataclass(frozen=True, eq=False)
class SlotState(SequenceState):
    """A sequence, and the slots that its canvas is cut into.

    The positions to fill of each block are cut into slots of `slot_size` neighbours. The last slot of a block, and a slot
    before a given token, may be shorter.

    Attributes:
        cells: (B, S, slot_size) int64, the position on the canvas of each cell of each slot; -1 if the slot has no such cell.
    """

    cells: Tensor

    @classmethod
    def begin(cls: type[P], canvas: Layout, *, slot_size: int = 1, **fields: Any) -> P:
        """The state before the first step, which decides where the slots are. One device sync.

        Args:
            slot_size: the most positions per slot.
            fields: the values of the subclass's own fields.
        """
        fill, size = canvas.fill, slot_size
        position = torch.arange(fill.shape[1], device=fill.device)  # (L,)
        new_block = canvas.block != torch.nn.functional.pad(canvas.block[:, :-1], (1, 0), value=-1)
        first = torch.where(fill & new_block, position, -1).cummax(1).values  # (B, L), the block's first position
        place = (position - first) % size  # (B, L), which cell of its slot a position is
        slot = (fill & (place == 0)).cumsum(1) - 1  # (B, L)
        count = int(slot.max()) + 1
        at = torch.where(fill, slot * size + place, count * size)
        cells = torch.full((len(at), count * size + 1), -1, device=at.device)
        cells.scatter_(1, at, position.expand_as(at))
        return super().begin(canvas, **({"cells": cells[:, :-1].unflatten(1, (count, -1))} | fields))

    def by_slot(self, value: Tensor) -> Tensor:
        """(B, S, slot_size): the values at the slots' positions; any value if a slot has no such cell.

        Args:
            value: (B, L), one value per position of the canvas.
        """
        return value.gather(1, self.cells.clamp(min=0).flatten(1)).view(self.cells.shape)

    def on_canvas(self, value: Tensor, elsewhere: int = 0) -> Tensor:
        """(B, L): the slots' values at their positions, and `elsewhere` at all other positions.

        Args:
            value: (B, S, slot_size), one value per cell.
        """
        length = self.x.shape[1]
        out = value.new_full((len(value), length + 1), elsewhere)
        return out.scatter_(1, torch.where(self.cells < 0, length, self.cells).flatten(1), value.flatten(1))[:, :-1]
