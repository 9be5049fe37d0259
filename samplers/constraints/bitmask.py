"""from_bitmask: a grammar engine that says which tokens may come next, such as xgrammar or llguidance, as a constrain hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..driver import Constraint
from ..errors import OptionError

if TYPE_CHECKING:
    from ..state import TokenState

__all__ = ["from_bitmask", "text_so_far"]


def from_bitmask(
    mask_of: Callable[[TokenState], Tensor], *, frontier_only: bool = False
) -> Callable[[TokenState], Constraint]:
    """What constrain= takes, of a function that says which tokens may stand at each row's first undecided position.

    A grammar engine knows what may follow a text, and nothing of positions further on. So a run must decide its positions from
    left to right, one per step: block_length=1. (samplers.constraints.Regex needs no order.) With `frontier_only` any run is
    taken, as in the diffusion plug-in of vLLM: then the first undecided position is constrained and the others are not, and
    the text need not be in the grammar.

    Args:
        mask_of: called with the state before every step; gives (B, ceil(V / 32)) int32, as xgrammar and llguidance fill it: bit
            v % 32 of word v // 32 is set if token v may come next. Rows that are done may have anything. `text_so_far` gives
            the tokens that stand there.
        frontier_only: take runs that commit several positions at once.

    Raises (in a run):
        OptionError: a mask of another shape or dtype, or a row in which more than one position may be committed.
    """

    def constrain(state: TokenState) -> Constraint:
        rows, vocab = len(state.x), state.canvas.vocab_size
        shape = (rows, (vocab + 31) // 32)
        words = mask_of(state)
        if not isinstance(words, Tensor) or tuple(words.shape) != shape or words.dtype != torch.int32:
            got = f"{tuple(words.shape)} {words.dtype}" if isinstance(words, Tensor) else type(words).__name__
            raise OptionError(
                f"from_bitmask: the mask is {got}; (B, ceil(V / 32)) = {shape} int32 is needed, a bit for each token"
            )
        if not frontier_only and bool((state.count > 1).any()):
            row = int((state.count > 1).nonzero()[0])
            raise OptionError(
                f"from_bitmask: row {row} may commit {int(state.count[row])} positions in this step, and a mask of the next "
                "token speaks of the first one only: use block_length=1, or samplers.constraints.Regex, which needs no order; "
                "frontier_only=True leaves the other positions free"
            )
        device = state.x.device
        bits = torch.arange(32, device=device, dtype=torch.int32)
        barred = (words.to(device)[:, :, None] >> bits & 1).flatten(1)[:, :vocab] == 0  # (B, V)
        undecided = state.undecided
        first = undecided & (undecided.cumsum(1) == 1)
        return Constraint(forbid=first[:, :, None] & barred[:, None])

    return constrain


def text_so_far(state: TokenState) -> list[list[int]]:
    """The tokens of each row from its first position to fill up to the first that is undecided, or to its end."""
    begins = state.canvas.fill.to(torch.uint8).argmax(1).tolist()
    position = torch.arange(state.x.shape[1], device=state.x.device)
    ends = torch.where(state.undecided, position, state.end[:, None]).amin(1).tolist()
    return [row[begin:end] for row, begin, end in zip(state.x.tolist(), begins, ends)]
