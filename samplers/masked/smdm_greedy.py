"""SMDM's greedy sampler: the most confident positions on a grid of times."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import Conformance, option
from .low_confidence import LowConfidence
from .plans import parse_plan


@dataclass(frozen=True)
class SmdmGreedy(LowConfidence):
    """Nie et al. 2024 (SMDM), arXiv 2410.18514, greedy sampling: floor(m (1 - s/t)) of m masked positions, by confidence.

    `low_confidence` with another plan: the grid linspace(1, 1e-5, S + 1), confidence at temperature 1. The reference counts
    and ranks over the flattened batch, so that rows compete; here each row has its own count. Its confidence is float64,
    this one float32: what differs from 1 by less than 6e-8 is 1, and goes by position.

    SMDM's other sampler, "origin", reveals each position with 1 - s/t in a step: `ancestral` with schedule="linear", but that
    its grid ends at 1e-5 and not at 0, which moves a share of 1e-5 of the positions to the last step.
    """

    name = "smdm_greedy"
    cite = "Nie et al. 2024, Scaling up Masked Diffusion Models on Text, arXiv 2410.18514"
    summary = "SMDM: floor(m (1 - s/t)) most confident positions a step"
    conformance = Conformance(one_at_a_time={"least": 1})

    plan: str = option("floor(1e-5)", "positions a step, as in low_confidence", check=parse_plan)
