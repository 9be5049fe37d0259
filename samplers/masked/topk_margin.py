"""Commit the positions at which the best token is furthest ahead of the second best."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import Facts
from .low_confidence import LowConfidence


@dataclass(frozen=True)
class TopkMargin(LowConfidence):
    """Kim et al. 2025, arXiv 2502.06768, "top-K probability margin"; Dream's topk_margin: p_(1) - p_(2), highest first.

    As `low_confidence` except for the score, which does not depend on the drawn token: one position at a time, the
    distribution is the model's. Plans and options are the same; Dream's numbers are plan="floor(0.001)", tempered=True.
    """

    name = "topk_margin"
    cite = "Kim et al. 2025, Train for the Worst, Plan for the Best, arXiv 2502.06768"
    summary = "the k positions of the largest margin p1 - p2 per step"
    facts = Facts(bias="exact", static_plan=True)
    RANK = "margin"
