"""dInfer's hierarchical decoding: divide every gap at its most confident position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import fill_up_to, min_count


def leaders(score: Tensor, member: Tensor) -> Tensor:
    """(B, L) bool: the member with the highest score in each run of neighbouring members; the lowest position of equals.

    Args:
        score: (B, L) floats.
        member: (B, L) bool.
    """
    length = score.shape[1]
    starts = member & ~torch.nn.functional.pad(member[:, :-1], (1, 0))  # (B, L)
    run = starts.cumsum(1) * member  # (B, L) int64, from 1; 0 outside
    best = score.new_full((len(score), length + 1), -torch.inf).scatter_reduce(1, run, score, "amax")
    top = member & (score == best.gather(1, run))
    position = torch.arange(length, device=score.device).expand_as(run)
    first = torch.full_like(best, length, dtype=torch.int64)
    first = first.scatter_reduce(1, run, torch.where(top, position, length), "amin")
    return top & (position == first.gather(1, run))


@dataclass(frozen=True)
class Hierarchy(Sampler[TokenState]):
    """Ma et al. 2025 (dInfer), arXiv 2510.08666, hierarchical decoding: the best position of every run, above a low threshold.

    Neighbours depend on each other most. In every run of neighbouring masked positions, a step commits the most confident
    position if its confidence is above `low_threshold`; it also commits every other position above `threshold`, and always
    the best position of all. Runs halve again and again, so a block needs about log2 of its length in steps.

    Differs from the reference code: any batch (there: one row); of equal confidences the lower position goes first; `steps`
    is a cap (if left out: no cap). Runs end where the block ends.
    """

    name = "hierarchy"
    family = "masked"
    cite = "Ma et al. 2025, dInfer: An Efficient Inference Framework for Diffusion Language Models, arXiv 2510.08666"
    summary = "the most confident position of every run of masks, and all positions above a threshold"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("low_threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0, "low_threshold": 2.0})

    threshold: float = option(0.9, "every position above this confidence is committed", gt=0)
    low_threshold: float = option(0.4, "the best position of a run of masks is committed above this confidence", gt=0)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        sure = prediction.confidence > self.threshold
        sure |= leaders(prediction.confidence, state.open) & (prediction.confidence > self.low_threshold)
        chosen = fill_up_to(state, sure, prediction.confidence, min_count(state))
        return state.commit(chosen, prediction.token)
