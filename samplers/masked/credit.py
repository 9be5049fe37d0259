"""CreditDecoding: a token that was the best guess in earlier steps needs less confidence now."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True, eq=False)
class CreditState(TokenState):
    """A state with the credit of tokens. Only tokens that were the best guess in some step have any, so K of V are kept.

    That takes 12 L K bytes per row.

    Attributes:
        ids: (B, L, K) int64, where K is the most steps that a block is given; -1: no token yet.
        credit: (B, L, K) float32, the credit of each of these tokens.
    """

    ids: Tensor
    credit: Tensor


@dataclass(frozen=True)
class Credit(Sampler[CreditState]):
    """Wang et al. 2025 (CreditDecoding), arXiv 2510.06133, as in dInfer: a threshold on softmax(l + alpha log(1 + C)).

    C is a number for each position and token. In every step it is multiplied by `decay`; then the best token of each open
    position gains p^gamma, where p is its probability. A guess that stays the same gathers credit and passes the threshold
    sooner. Tokens are drawn from the changed logits at any temperature, so `alpha` biases the distribution even if one
    position is committed at a time.

    The matrix C is not stored: credit is only ever added at the best tokens, one per step, and a list of these gives the same
    numbers. Differs from dInfer's code: rows have their own counts; `steps` is a cap (if left out: no cap); and positions
    within 1e-5 of the best one are not committed together with it.
    """

    name = "credit"
    family = "masked"
    cite = "Wang et al. 2025, CreditDecoding: Accelerating Parallel Decoding ... with Trace Credits, arXiv 2510.06133"
    summary = "threshold on confidence, with credit for tokens that were the best guess before"
    default_temperature = 0.0
    facts = Facts(bias="biased", stores_logits=True, sweep=("threshold", (2.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0}, exact={"alpha": 0.0})

    threshold: float = option(0.9, "least probability of a committed token; above 1: one position per step", gt=0)
    alpha: float = option(0.7, "weight of log(1 + credit) in the logits", ge=0)
    decay: float = option(0.8, "share of a credit that is left after a step", ge=0, le=1)
    gamma: float = option(0.2, "the best token gains its probability to this power", ge=0)

    def init(self, canvas: Layout) -> CreditState:
        # A step commits one position or more, so a block takes no more steps than it has positions.
        most = torch.minimum(canvas.block_steps, canvas.block_size).max()
        ids = torch.full((*canvas.x.shape, int(most)), -1, device=canvas.x.device)
        return CreditState.begin(canvas, ids=ids, credit=torch.zeros_like(ids, dtype=torch.float32))

    def step(self, predict: Predict, state: CreditState) -> CreditState:
        logits = predict.logits(state)
        best = predict.read(state, logits, want="confidence", temperature=0.0)
        known = state.ids == best.token[:, :, None]  # (B, L, K)
        slot = torch.arange(state.ids.shape[2], device=state.x.device) == state.block_step[:, None, None]  # (B, 1, K)
        gains = state.open[:, :, None] & torch.where(known.any(2, keepdim=True), known, slot)  # (B, L, K), one of K
        ids = torch.where(gains, best.token[:, :, None], state.ids)
        gain = best.confidence.clamp_min(0) ** self.gamma  # (B, L)
        credit = state.credit * self.decay + gains * gain[:, :, None]

        at = (logits.row, logits.position)
        more = self.alpha * torch.log1p(credit[at])  # (N, K), 0 if there is no id
        logits.value.scatter_add_(1, ids[at].clamp_min(0), more)
        prediction = predict.read(state, logits, want="confidence")
        state = state.commit_best(
            prediction.confidence, prediction.token, threshold=self.threshold, least=min_count(state)
        )
        return replace(state, ids=ids, credit=credit)
