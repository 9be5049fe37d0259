"""SMDM's greedy sampler: the most confident positions on a grid of times."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import Conformance, option
from .low_confidence import LowConfidence
from .plans import parse_plan


@dataclass(frozen=True)
class SmdmGreedy(LowConfidence):
    """Nie et al. 2024 (SMDM), arXiv 2410.18514, greedy sampling: floor(m (1 - s/t)) of m masked positions, by confidence.

    This is `low_confidence` with another plan: the grid linspace(1, 1e-5, S + 1), with confidence at temperature 1. The
    reference counts and ranks over the flattened batch, so that rows compete; here each row has its own count. Its confidence
    is float64 and this one float32: confidences that differ from 1 by less than 6e-8 are 1, and go by position.

    SMDM's other sampler, "origin", reveals each position with probability 1 - s/t in a step. That is `ancestral` with
    schedule="linear", except that its grid ends at 1e-5 and not at 0, which moves a share of 1e-5 of the positions to the last
    step.
    """

    name = "smdm_greedy"
    cite = "Nie et al. 2024, Scaling up Masked Diffusion Models on Text, arXiv 2410.18514"
    summary = "SMDM: the floor(m (1 - s/t)) most confident positions per step"
    conformance = Conformance(one_at_a_time={"least": 1})

    plan: str = option(
        "floor(1e-5)", "positions per step, as in low_confidence", check=parse_plan, kind="mask_schedules"
    )
