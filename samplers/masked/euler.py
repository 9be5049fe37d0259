"""Euler: a token appears with probability step times rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .tau_leaping import FrozenRates


@dataclass(frozen=True)
class Euler(FrozenRates):
    """Lou et al. 2023 (SEDD), arXiv 2310.16834, section 4.1: x_{t-h} ~ delta(x_t) + h Q for the reverse rates Q.

    A masked token appears with probability min(1, h beta(u_k)), drawn from p_i. With the linear schedule that is `radd`
    token for token, since h / (1 - u_k) is its probability too; with others it is first order, and a schedule whose rate
    is infinite at 0 reveals all at once.

    Flow matching's Euler step (Gat et al. 2024, arXiv 2407.15595), 1 - e^{-h beta(u_k)}, is `tau_leaping`. That code draws
    at visible positions as well, and in its last step at all of them, so a prompt is not safe; here what is visible
    stays. Its divergence-free term, which masks tokens again, is left out: on a grid it does not keep the schedule's
    marginals. `remdm` is that idea in a form that does.
    """

    name = "euler"
    cite = "Lou, Meng, Ermon 2023, Discrete Diffusion Modeling by Estimating the Ratios (SEDD), arXiv 2310.16834"
    summary = "reveal probability min(1, step x rate), the rate of the step's beginning"

    def appears(self, mean: Tensor) -> Tensor:
        return mean.clamp(max=1.0)
