"""Sequential Monte Carlo over samplers of masked tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..smc import ParticleSampler


@dataclass(frozen=True)
class SMC(ParticleSampler):
    __doc__ = ParticleSampler.__doc__

    name = "smc"
    family = "masked"
    cite = "Singhal et al. 2025, Inference-time Scaling and Steering of Diffusion Models, arXiv 2501.06848"
    summary = "particles over any other sampler, weighted by a reward or by the model itself"
    BASE = "entropy_bound"
