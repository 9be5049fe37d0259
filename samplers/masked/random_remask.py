"""LLaDA's other rule: commit positions at random."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..random import DRAW_RANK
from .random_order import RandomOrder
from .times import TimedState


@dataclass(frozen=True)
class RandomRemask(RandomOrder):
    """Nie et al. 2025 (LLaDA), arXiv 2502.09992, algorithm 4, "random remasking": the k positions of a step at random.

    As `low_confidence` with a uniform number in place of each confidence, drawn anew in every step. The subsets have the
    same distribution as those of `random_order`, which draws one order for the whole run; only the tokens of one seed differ.

    Differs from the reference code: that draws a token at every open position and masks most of them again; here the
    positions are chosen first, and the model's head is only asked about these.
    """

    name = "random_remask"
    cite = "Nie et al. 2025, Large Language Diffusion Models, arXiv 2502.09992"
    summary = "LLaDA's random remasking: planned number of positions, drawn anew in each step"

    def order(self, state: TimedState) -> Tensor:
        return state.rng.positions(state.x.shape[1], state.step, DRAW_RANK)
