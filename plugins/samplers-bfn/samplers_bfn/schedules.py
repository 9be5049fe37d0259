"""The noise of Bayesian flows as alpha(t) and sigma(t): x_t = alpha x_0 + sigma e, so that the zoo's solver mathematics applies.

A flow has a time u from 0, at which nothing is known, to 1. Solvers go from noise to data in t = 1 - u, as Xue et al. 2024
(arXiv 2404.15766) write them; t is what a schedule of the zoo calls its time, and u is what networks are told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from samplers.authoring import NoiseSchedule, OptionError

__all__ = ["ContinuousSchedule", "DiscreteSchedule", "FlowSchedule"]

FIRST = 1e-5  # the least time u of a run: at u = 0 alpha and sigma are both 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class FlowSchedule(NoiseSchedule):
    """Base of the two schedules.

    Attributes:
        t_min, t_max: 0 and 1 - 1e-5.
    """

    t_min: float = 0.0
    t_max: float = 1 - FIRST
    t_zero: ClassVar[float] = -1.0

    def slopes(self, t: float) -> tuple[float, float]:
        """The derivatives of log sigma and of lambda = log(alpha / sigma) in t."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ContinuousSchedule(FlowSchedule):
    """Real numbers (Graves et al. 2023, section 4): given x_0, the mean mu of the input distribution is itself normal, with mean
    gamma x_0 and variance gamma (1 - gamma), gamma = 1 - sigma_1^(2u).

    Attributes:
        sigma_1: standard deviation of the input distribution at u = 1, below 1.
    """

    sigma_1: float = 1e-3
    name: str = "bayesian_flow"

    def __post_init__(self) -> None:
        if not _number(self.sigma_1) or not 0 < self.sigma_1 < 1:
            raise OptionError(f"ContinuousSchedule: sigma_1 must be above 0 and below 1, not {self.sigma_1!r}")

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(-torch.expm1(2 * (1 - t) * math.log(self.sigma_1)))

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) / 2 + (1 - t) * math.log(self.sigma_1)

    def t_of(self, lam: Tensor) -> Tensor:
        return 1 + torch.logaddexp(2 * lam, torch.zeros_like(lam)) / (2 * math.log(self.sigma_1))

    def slopes(self, t: float) -> tuple[float, float]:
        rate = math.log(self.sigma_1)
        of_alpha = 2 * rate / math.expm1(-2 * (1 - t) * rate)  # 2 log sigma_1 (1 - gamma) / gamma
        of_sigma = of_alpha / 2 - rate
        return of_sigma, of_alpha - of_sigma


@dataclass(frozen=True, repr=False)
class DiscreteSchedule(FlowSchedule):
    """Tokens of K classes (Graves et al. 2023, section 6): the logits z of the input distribution have, given the token k, mean
    beta (K onehot(k) - 1) and variance K beta, with beta = beta_1 u^2. So x_0 is K onehot(k) - 1.

    Attributes:
        classes: K.
        beta_1: the accuracy at u = 1. Published networks call its root max_sqrt_beta.
    """

    classes: int
    beta_1: float
    name: str = "bayesian_flow_tokens"

    def __post_init__(self) -> None:
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 2:
            raise OptionError(f"DiscreteSchedule: classes must be an integer of 2 or more, not {self.classes!r}")
        if not _number(self.beta_1) or not 0 < self.beta_1 < math.inf:
            raise OptionError(f"DiscreteSchedule: beta_1 must be a positive number, not {self.beta_1!r}")

    def log_alpha(self, t: Tensor) -> Tensor:
        return math.log(self.beta_1) + 2 * torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.classes * self.beta_1) / 2 + torch.log1p(-t)

    def t_of(self, lam: Tensor) -> Tensor:
        return 1 - torch.exp(lam - math.log(self.beta_1 / self.classes) / 2)

    def slopes(self, t: float) -> tuple[float, float]:
        return -1 / (1 - t), -1 / (1 - t)
