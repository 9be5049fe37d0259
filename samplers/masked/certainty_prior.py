"""Certainty prior: positions with many decided neighbours first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prediction import Predict
from ..sampler import Facts, option
from ..state import TokenState
from .plans import ScheduledSampler


def density(state: TokenState, sigma: float) -> Tensor:
    """(B, L) float64, 0 to 1: the share of known tokens around each position, weighted by a Gaussian of width `sigma`.

    Given and decided tokens are known. What lies before position 0 counts as known, and what lies after a row's end is as its
    last position is. Weights are whole units of 2^-32, so that every sum of them is exact in float64 and does not depend on
    the order of its terms: a row has the same bits in every batch. At `reach` the weight is less than one unit.
    """
    reach = math.ceil(sigma * math.sqrt(64 * math.log(2)))
    column = torch.arange(state.x.shape[1], device=state.x.device)  # (L,)
    end, mask_id = state.canvas.length[:, None], state.canvas.mask_id  # (B, 1)
    assert mask_id is not None
    known = state.x != mask_id  # (B, L)
    last = known.gather(1, end - 1)  # (B, 1)
    known = torch.where(column < end, known, last)
    wide = torch.cat([torch.ones_like(last).expand(-1, reach), known, last.expand(-1, reach)], 1)  # (B, L + 2 reach)
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64, device=column.device)
    weight = torch.floor(torch.exp(-(distance**2) / (2 * sigma**2)) * 2.0**32) * 2.0**-32  # (2 reach + 1,)
    return wide.double().unfold(1, len(weight), 1) @ weight / weight.sum()


@dataclass(frozen=True)
class CertaintyPrior(ScheduledSampler):
    """Jiang et al. 2025 (d2Cache), arXiv 2509.23094, certainty prior: the best confidence times density of known tokens.

    The density of a position is the share of known tokens around it, weighted by a Gaussian with standard deviation `sigma`
    (see `density`). A step commits the planned number of positions with the highest product: near to left to right if sigma
    is small, `low_confidence` if it is large.

    Differs from the reference code: the prompt is part of the row (there the row begins after it and everything before
    counts as known, which is the same for prompts of one piece); sums are exact and not by FFT; rows count for themselves.
    """

    name = "certainty_prior"
    family = "masked"
    cite = "Jiang et al. 2025, d2Cache: Accelerating Diffusion-Based LLMs via Dual Adaptive Caching, arXiv 2509.23094"
    summary = "planned number of positions, by confidence times the density of known tokens around them"
    default_temperature = 0.0
    facts = Facts(bias="biased", static_plan=True)

    sigma: float = option(10.0, "standard deviation of the Gaussian, in positions", gt=0, le=256)

    def step(self, predict: Predict, state: Any) -> Any:
        count = self.count(state)
        prediction = predict(state, state.open & (count > 0)[:, None], want="confidence")
        score = prediction.confidence.double().clamp_min(0) * density(state, self.sigma)  # (B, L)
        return state.commit_best(score, prediction.token, k=count)
