"""Analytic-DDPM: ancestral sampling with noise of the best variance."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import option
from .analytic_ddim import AnalyticDdim


@dataclass(frozen=True)
class AnalyticDdpm(AnalyticDdim):
    """Bao et al. 2022, arXiv 2201.06503, theorem 1, for DDPM: analytic_ddim with eta = 1; see there for the statistic.

    With Q = 1 - e^{-2h}: x_t = (s_t / s_s) e^{-h} x_s + a_t Q x_0 + sqrt(s_t^2 Q + (a_t Q)^2 C) z.
    """

    name = "analytic_ddpm"
    cite = (
        "Bao et al. 2022, Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic "
        "Models, arXiv 2201.06503"
    )
    summary = "ancestral sampling with noise of the best variance, from the mean square of the model's noise"

    eta: float = option(
        1.0, "the noise that DDPM adds: 1 all of it, 0 none; the best variance comes on top", ge=0, le=1
    )
