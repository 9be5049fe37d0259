"""Automaton: a language given by its automaton over token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import integer
from ..errors import OptionError
from .language import Language

if TYPE_CHECKING:
    from ..denoiser import TokenDenoiser

__all__ = ["Automaton"]


class Automaton(Language):
    """The token strings that a finite automaton accepts.

    A text ends where the row's positions do. If it may be shorter, let the end-of-text token lead to an accepting state that it
    does not leave, and every other token from there to -1.

    Args:
        next_state: (Q, V) int64, the state after token v in state q; -1: no string goes on so. V may be less than the model's
            vocabulary: ids from there on are in no string.
        accepting: (Q,) bool, or a list of states, in which a string may end.
        start: the state before the first token.
        given: as of Language.

    Raises:
        OptionError: a shape or dtype is wrong, or a state is none of the Q.
    """

    def __init__(self, next_state: Any, accepting: Any, start: int = 0, *, given: bool = False):
        move = torch.as_tensor(next_state, device="cpu")
        if move.dim() != 2 or move.dtype.is_floating_point or move.dtype.is_complex or move.dtype == torch.bool:
            raise OptionError(f"Automaton: next_state is {tuple(move.shape)} {move.dtype}; (Q, V) int64 is needed")
        states, self.move, self.given = len(move), move.to(torch.int64), given
        bad = (self.move < -1) | (self.move >= states)
        for q, v in bad.nonzero()[:1].tolist():
            raise OptionError(
                f"Automaton: next_state[{q}, {v}] is {int(self.move[q, v])}; a state from 0 to {states - 1} is needed, or -1"
            )
        ends = torch.as_tensor(accepting, device="cpu")
        if ends.dtype != torch.bool and ends.dim() == 1 and not ends.dtype.is_floating_point:
            if bool(((ends < 0) | (ends >= states)).any()):
                raise OptionError(f"Automaton: accepting is {ends.tolist()}; states from 0 to {states - 1} are needed")
            ends = torch.zeros(states, dtype=torch.bool, device="cpu").index_fill_(0, ends.to(torch.int64), True)
        if tuple(ends.shape) != (states,) or ends.dtype != torch.bool:
            raise OptionError(
                f"Automaton: accepting is {tuple(ends.shape)} {ends.dtype}; (Q,) = ({states},) bool or a list of states is needed"
            )
        self.accepting, self.start = ends, integer("start", start, 0)
        if self.start >= states:
            raise OptionError(f"Automaton: start is {start}; a state from 0 to {states - 1} is needed")

    def __repr__(self) -> str:
        return f"Automaton of {len(self.move)} states"

    def automaton(self, denoiser: TokenDenoiser) -> tuple[Tensor, Tensor, Tensor, int]:
        vocab = self.move.shape[1]
        if vocab > denoiser.vocab_size:
            raise OptionError(
                f"constrain: the automaton has {vocab} tokens, and denoiser {denoiser.name!r} has {denoiser.vocab_size}"
            )
        columns, kind = torch.unique(self.move, dim=1, return_inverse=True)
        kind = torch.nn.functional.pad(kind, (0, denoiser.vocab_size - vocab), value=-1)
        return kind, columns, self.accepting, self.start
