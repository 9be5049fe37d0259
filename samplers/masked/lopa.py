"""LoPA: look one step ahead along several branches, and keep the one that leaves the model most confident."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..prediction import Predict, sum_over
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .candidates import best_of, goes_on
from .plans import fill_up_to, min_count


@dataclass(frozen=True)
class LoPA(Sampler[TokenState]):
    """Xu et al. 2025 (LoPA), arXiv 2512.16229: branches of a `threshold` step, scored by what the model says after each.

    Branch 0, the anchor, is a step of `threshold`. Branch k has one more position, the k-th most confident of those that the
    anchor leaves. One forward pass answers for all branches. The branch of the highest confidence is kept (the first of
    equals), and its answer serves the next step. The confidence of a branch is the mean confidence of the masks that are left
    in the block; it is 1 if none is left.

    The published code differs from the paper: alpha=0.5, lowest=0.5 is its score, alpha c + (1 - alpha) m, where c is the
    probability of the branch's own token (1 for the anchor) and m is the mean of the lower half of the confidences.

    Differs from the reference: one block is open at a time (there several, D2F's pipeline); >= in place of >; rows have their own
    branches; `steps` is a cap, kept by the anchor.
    """

    name = "lopa"
    family = "masked"
    cite = "Xu et al. 2025, LoPA: Scaling dLLM Inference via Lookahead Parallel Decoding, arXiv 2512.16229"
    summary = "threshold with lookahead: several branches, and the one that leaves the model most confident is kept"
    default_temperature = 0.0
    facts = Facts(bias="biased", copies=True, sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0, "branches": 0})

    branches: int = option(4, "branches beside the anchor; each forward pass answers for one copy more than that", ge=0)
    threshold: float = option(0.9, "least probability of a token that the anchor commits; above 1: the best one", gt=0)
    alpha: float = option(
        0.0, "weight of the probability of a branch's own token in its score; the code has 0.5", ge=0, le=1
    )
    lowest: float = option(
        1.0, "share of the masks that are left, the least confident, whose mean counts; the code has 0.5", gt=0, le=1
    )

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        number = min(self.branches, state.x.shape[1]) + 1  # more would have no position of their own
        copies = predict.copies(number)
        now = predict(state, want="confidence") if state.ready is None else state.ready
        score = now.confidence
        first = fill_up_to(state, score >= self.threshold, score, min_count(state))  # (B, L) the anchor
        size = first.sum(1)  # (B,)
        branch = torch.arange(number, device=size.device)  # (K,)
        valid = (size[:, None] + branch <= state.count[:, None]) | (branch == 0)  # (B, K)

        before = copies.spread(state)
        token, score, fixed = (x.repeat_interleave(number, 0) for x in (now.token, score, first))  # (B K, L)
        own = branch.repeat(len(size))  # (B K,)
        left = before.open & ~fixed
        upto, short = (ops.select(score, left, k=(own - i).clamp_min(0)).chosen for i in (0, 1))
        extra = upto & ~short  # (B K, L) the branch's own position
        wide = before.commit(fixed | extra, token)
        answer = copies(wide, wide.open & valid.flatten()[:, None], want="confidence")

        sure = self.sureness(wide, answer.confidence)
        sure = torch.where(goes_on(before, wide), sure, 1.0)  # nothing is left in the block
        made = torch.where(own == 0, 1.0, sum_over(score, extra))
        sure = self.alpha * made + (1 - self.alpha) * sure
        return copies.pick(wide, best_of(sure.view(-1, number), valid), answer)

    def sureness(self, state: TokenState, confidence: Tensor) -> Tensor:
        """(B,) float64: the mean confidence of the share `lowest` of the open positions."""
        many = (state.count * self.lowest).to(torch.int64).clamp_min(1)
        least = ops.select(confidence, state.open, k=many, lowest=True).chosen if self.lowest < 1 else state.open
        return sum_over(confidence, least) / many
