"""WeDLM's rule: all positions of low entropy, with a preference for those that come first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..canvas import FAR
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True)
class WeDLM(Sampler[TokenState]):
    """Liu et al. 2025 (WeDLM), arXiv 2512.22737: commit all positions with H_i + distance (i - first) <= threshold.

    H_i is the entropy of the model at position i in nats, at temperature 1, and `first` the row's first open position. If no
    position passes, the one of the lowest score is committed. The preference for early positions makes the decided beginning of
    a row grow, which is what a cache can keep: meant for a causal model under window="wedlm(16)", and a rule for any model.

    The choice does not depend on the drawn token, so threshold = -1, one position per step, gives exactly the model's
    distribution. Differs from the paper: <= in place of <; equal scores go by position; `steps` is a cap (if left out: no cap).
    """

    name = "wedlm"
    family = "masked"
    cite = (
        "Liu et al. 2025, WeDLM: Reconciling Diffusion Language Models with Standard Causal Attention, arXiv 2512.22737"
    )
    summary = "all positions of low entropy, early ones first, and always the best one"
    default_temperature = 0.0
    facts = Facts(bias="exact", sweep=("threshold", (-1.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0)))
    conformance = Conformance(one_at_a_time={"threshold": -1.0})

    threshold: float = option(0.4, "highest score of a committed position, in nats; -1: one position per step", ge=-1)
    distance: float = option(
        0.02, "nats that a position's score grows by with each position after the first open one", ge=0
    )

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="entropy")
        position = torch.arange(state.x.shape[1], device=state.x.device)
        first = torch.where(state.open, position, FAR).amin(1, keepdim=True)  # (B, 1)
        score = prediction.entropy + self.distance * (position - first).float()  # (B, L) float32
        return state.commit_best(score, prediction.token, threshold=self.threshold, least=min_count(state), lowest=True)
