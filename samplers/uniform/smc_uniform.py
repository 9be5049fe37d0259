"""Sequential Monte Carlo over samplers of uniform noise."""

from __future__ import annotations

from dataclasses import dataclass

from ..smc import ParticleSampler


@dataclass(frozen=True)
class SMCUniform(ParticleSampler):
    """`smc` over a sampler of uniform noise; see there for its options. (Singhal et al. 2025, arXiv 2501.06848.)

    The canvas that the reward is asked about before the end holds noise at what is undecided, so on="guess" says more.
    """

    name = "smc_uniform"
    family = "uniform"
    cite = "Singhal et al. 2025, Inference-time Scaling and Steering of Diffusion Models, arXiv 2501.06848"
    summary = "particles over any sampler of uniform noise, weighted by a reward or by the model itself"
    BASE = "d3pm_ancestral"
