"""Bayesian flow networks (Graves et al. 2023, arXiv 2308.07037) for the sampler zoo, with the solvers of Xue et al. 2024.

    import samplers
    from samplers_bfn import DiscreteFlow

    model = DiscreteFlow.wrap(network, shape=256, classes=27, beta_1=0.75**2)
    out = samplers.sample(model, "bfn_sde_solver_2", steps=20, batch=8)      # out.x: (8, 256) int64

The samplers are installed under their names; `samplers list` shows them.
"""

from __future__ import annotations

from .denoisers import ContinuousFlow, DiscreteFlow, FlowDenoiser, token_moments
from .family import BayesianFlow
from .sampler import FlowSampler, FlowState, first_order
from .schedules import ContinuousSchedule, DiscreteSchedule, FlowSchedule

samplers_interface = 1  # the version of the zoo's interface that this package was written for

__all__ = [
    "BayesianFlow",
    "ContinuousFlow",
    "ContinuousSchedule",
    "DiscreteFlow",
    "DiscreteSchedule",
    "FlowDenoiser",
    "FlowSampler",
    "FlowSchedule",
    "FlowState",
    "first_order",
    "token_moments",
]
