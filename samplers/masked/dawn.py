"""DAWN: fill positions together that do not attend to each other, and those that attend to what is sure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import fill_up_to, min_count, most_open


@dataclass(frozen=True, eq=False)
class DawnState(TokenState):
    """A state that knows how sure the model was.

    Attributes:
        sure: (B, L) float32, the probability of each filled token when it was filled; 1 of given tokens, 0 of masks.
        size: positions of the largest block.
    """

    sure: Tensor
    size: int


@dataclass(frozen=True)
class Dawn(Sampler[DawnState]):
    """Luo et al. 2026 (DAWN), arXiv 2602.06953: the model's attention tells which positions depend on each other.

    Of the attention A, the mean over layers and heads, columns whose mean over the row's lines is above `sink` are left out
    (attention sinks), and so is the diagonal. Position i depends on position j if A_ij is `edge` or more. A step fills
      1. open positions of confidence `high` or more;
      2. those of `induced` or more that depend on an anchor: a given token, or one that had `high` or more when it was filled;
      3. of the others of `low` or more, which depend on none of these two, greedily by confidence, those neither of which
         depends on another;
    and always the most confident one.

    Differs from the reference code: it takes for an anchor any visible token at whose line the model's best token has 0.9 or more
    in this pass, which asks for logits of the whole canvas; the sentence of the paper, "previously committed with high
    confidence", is what is done here. It leaves out of 3 only what depends on a position that is in 1 and in 2. Of equal
    confidences the lower position goes first; rows count for themselves; `steps` is a cap. The mean of a column is of whole
    units of 2^-40, which add up to the same in every batch.
    """

    name = "dawn"
    family = "masked"
    cite = "Luo et al. 2026, DAWN: Dependency-Aware Fast Inference for Diffusion LLMs, arXiv 2602.06953"
    summary = "positions that do not attend to each other, or that attend to what is sure"
    default_temperature = 0.0
    facts = Facts(bias="biased", needs=("attends",), sweep=("low", (2.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))
    conformance = Conformance(one_at_a_time={"high": 2.0, "induced": 2.0, "low": 2.0})

    high: float = option(
        0.9, "least probability of a token that is filled whatever it attends to, and of an anchor", gt=0
    )
    induced: float = option(0.7, "least probability of a token that attends to an anchor", gt=0)
    low: float = option(0.7, "least probability of a token that attends to no other that is filled with it", gt=0)
    sink: float = option(
        0.01, "columns that get more than this of the attention, on the average, count for nothing", ge=0
    )
    edge: float = option(0.07, "a position depends on another if it gives this much of its attention to it", gt=0, le=1)

    def init(self, canvas: Layout) -> DawnState:
        sure = (canvas.prompt_mask & (canvas.x != canvas.mask_id)).float()
        return DawnState.begin(canvas, sure=sure, size=most_open(canvas))

    def step(self, predict: Predict, state: DawnState) -> DawnState:
        prediction, attention = predict.attention(state, want="confidence")
        c = prediction.confidence
        units = (attention.double() * 2.0**40).to(torch.int64).sum(1)  # (B, L)
        sinks = units > self.sink * 2.0**40 * state.canvas.length[:, None]
        itself = torch.eye(c.shape[1], dtype=torch.bool, device=c.device)
        depends = (attention >= self.edge) & ~sinks[:, None] & ~itself  # (B, L, L): i on j

        alone = state.open & (c >= self.high)
        induced = state.open & (c >= self.induced) & (depends & (state.sure >= self.high)[:, None]).any(2)
        fill = alone | induced
        rest = state.open & (c >= self.low) & ~fill & ~(depends & fill[:, None]).any(2)
        fill |= independent(rest, c, depends | depends.transpose(1, 2), state.size)
        fill = fill_up_to(state, fill, c, min_count(state))
        return state.commit(fill, prediction.token, sure=torch.where(fill, c, state.sure))


def independent(candidate: Tensor, score: Tensor, conflict: Tensor, most: int) -> Tensor:
    """(B, L) bool: greedily by score, equal ones by position, the candidates that conflict with none taken before.

    Args:
        candidate: (B, L) bool, at most `most` in a row. score: (B, L) floats.
        conflict: (B, L, L) bool, symmetric.
    """
    order = torch.where(candidate, -score, torch.inf).argsort(dim=1, stable=True)[:, :most]  # (B, most)
    free = candidate
    taken = torch.zeros_like(candidate)
    for at in order.unbind(1):  # (B,): of each row its next best
        takes = free.gather(1, at[:, None])
        taken = taken.scatter(1, at[:, None], takes | taken.gather(1, at[:, None]))
        against = conflict.gather(1, at[:, None, None].expand(-1, 1, score.shape[1])).squeeze(1)  # (B, L)
        free = free & ~(takes & against)
    return taken
