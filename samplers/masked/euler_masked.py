"""Euler: a token appears with probability step times rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .frozen_rates import FrozenRates


@dataclass(frozen=True)
class EulerMasked(FrozenRates):
    """Lou et al. 2023 (SEDD), arXiv 2310.16834, section 4.1: x_{t-h} ~ delta(x_t) + h Q, where Q are the reverse rates.

    A masked token appears with probability min(1, h beta(u_k)) and is drawn from p_i. With the linear schedule this gives the
    tokens of `radd`, since h / (1 - u_k) is its probability as well. With other schedules the method is first order, and a
    schedule whose rate is infinite at 0 reveals everything at once.

    Flow matching's Euler step (Gat et al. 2024, arXiv 2407.15595), 1 - e^{-h beta(u_k)}, is `tau_leaping`. That code also draws
    at visible positions, and in its last step at all of them, so a prompt is not safe; here visible tokens stay. Its
    divergence-free term, which masks tokens again, is left out: on a grid it does not keep the schedule's marginals.
    `remdm` is that idea in a form that does.
    """

    name = "euler_masked"
    cite = "Lou, Meng, Ermon 2023, Discrete Diffusion Modeling by Estimating the Ratios (SEDD), arXiv 2310.16834"
    summary = "reveal with probability min(1, step x rate), with the rate at the step's beginning"

    def appears(self, mean: Tensor) -> Tensor:
        return mean.clamp(max=1.0)
