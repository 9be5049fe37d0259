"""Frozen rates: methods that take the rate of the process from the beginning of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..schedule import mask_schedule
from .radd import Radd
from .times import TimedState, even_grid


@dataclass(frozen=True)
class FrozenRates(Radd):
    """Base of methods that take beta(u) = a'(u) / (1 - a(u)), the rate at which masked tokens appear, from a step's left end.

    Whether a position appears then does not depend on the model. So each position has one uniform time, which is compared
    with the share that has appeared so far, and a step in which nothing appears costs no forward pass, as in `radd`. (With
    beta integrated over the step that share is a(u_k), and the sampler is `radd`.) In the last step all positions that are
    left appear, without a clean-up forward pass. A time-conditioned model is given the expected share that is still masked,
    which frozen rates leave a little above 1 - a(u_k).

    A subclass has the published rule, `appears`.
    """

    def appears(self, mean: Tensor) -> Tensor:
        """The probability that a masked position appears in a step.

        Args:
            mean: (steps,) float64, h beta(u_k): the mean number of jumps in each step.
        """
        raise NotImplementedError

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, grid=self.shares)

    def shares(self, steps: int) -> Tensor:
        """(steps + 1,) float64: the expected share of positions that has appeared before each step, and after the last."""
        a, u, h = mask_schedule(self.schedule), even_grid(steps)[:-1], 1e-6
        slope = (-3 * a(u) + 4 * a(u + h) - a(u + 2 * h)) / (2 * h)  # of second order, from the right
        rate = slope.clamp_min(0.0) / (1 - a(u)).clamp_min(1e-300)  # (steps,)
        stay = (1 - self.appears(rate / steps)).cumprod(0)
        return torch.cat([a(u[:1]), 1 - stay[:-1], torch.ones_like(stay[:1])])

    def expected_nfe(self, length: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^L], r_k the shares that this method reveals."""
        return float((1 - (1 - torch.diff(self.shares(steps))) ** length).sum())
