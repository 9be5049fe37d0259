"""Tau-leaping: Poisson numbers of jumps at rates that are frozen for a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampler import option
from .frozen_rates import FrozenRates


@dataclass(frozen=True)
class TauLeaping(FrozenRates):
    """Campbell et al. 2022, arXiv 2205.14987, section 4.3: Poisson numbers of jumps at the rates mu_i(v) = beta(u) p_i(v).

    Over a step h a masked token jumps a Poisson number of times, with mean lambda = h beta(u_k). `jumps` says what counts:

    any     The token appears if it jumps at all, with probability 1 - e^-lambda. First order in h.
    one     The token appears only if it jumps exactly once, with probability lambda e^-lambda; more jumps are rejected. The
            codes for masked models (Guidance-MaskGIT) do this. The probability peaks at 1/e and falls for longer steps, which
            leaves too many tokens to the last step.

    Differs from the reference: one token is drawn from p_i in place of one number for each v (the distribution of a first
    jump is the same); what is left at the end is drawn and is not the argmax, from the last step's own forward pass.
    """

    name = "tau_leaping"
    cite = "Campbell et al. 2022, A Continuous Time Framework for Discrete Denoising Models, arXiv 2205.14987"
    summary = "Poisson jumps at rates frozen for each step, one token per position"

    jumps: str = option("any", "what reveals a token: any jump, or exactly one (the reference)", choices=("any", "one"))

    def appears(self, mean: Tensor) -> Tensor:
        return mean * torch.exp(-mean) if self.jumps == "one" else -torch.expm1(-mean)
