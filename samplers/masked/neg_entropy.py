"""Commit the positions of the lowest entropy."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import Facts
from .low_confidence import LowConfidence


@dataclass(frozen=True)
class NegEntropy(LowConfidence):
    """Ye et al. 2025 (Dream), arXiv 2508.15487, the "entropy" rule: sum_v p(v) log p(v), highest first.

    As `low_confidence` except for the score, which does not depend on the drawn token: one position at a time, the
    distribution is the model's. Plans and options are the same; Dream's numbers are plan="floor(0.001)", tempered=True.
    """

    name = "neg_entropy"
    cite = "Ye et al. 2025, Dream 7B: Diffusion Large Language Models, arXiv 2508.15487"
    summary = "the k positions of the lowest entropy per step"
    facts = Facts(bias="exact", static_plan=True)
    RANK = "entropy"
