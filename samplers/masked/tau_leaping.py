"""Tau-leaping: the rates of the process, frozen at the beginning of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..sampler import option
from ..schedule import mask_schedule
from .radd import Radd
from .times import TimedState, even_grid


@dataclass(frozen=True)
class FrozenRates(Radd):
    """Base of methods that take beta(u) = a'(u) / (1 - a(u)), at which masked tokens appear, from the left end of a step.

    Whether a position appears then does not depend on the model. So each has one uniform time, compared with the share
    that has appeared so far, and a step in which nothing appears costs no forward, as in `radd`. (With beta integrated
    over the step that share is a(u_k), and the sampler is `radd`.) In the last step all that is left appears, with no
    clean-up forward. A time-conditioned model sees the expected share still masked, which frozen rates leave a little
    above 1 - a(u_k).
    """

    def appears(self, mean: Tensor) -> Tensor:
        """The chance that a masked position appears in a step, of mean = h beta(u_k)."""
        raise NotImplementedError

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, grid=self.shares)

    def shares(self, steps: int) -> Tensor:
        """(steps + 1,) float64: the expected share of positions that has appeared before each step, and after the last."""
        a, u, h = mask_schedule(self.schedule), even_grid(steps)[:-1], 1e-6
        slope = (-3 * a(u) + 4 * a(u + h) - a(u + 2 * h)) / (2 * h)  # of second order, from the right
        rate = slope.clamp_min(0.0) / (1 - a(u)).clamp_min(1e-300)  # (steps,)
        stay = (1 - self.appears(rate / steps)).cumprod(0)
        return torch.cat([a(u[:1]), 1 - stay[:-1], torch.ones(1)])

    def expected_nfe(self, length: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^L], r_k the shares that this method reveals."""
        return float((1 - (1 - torch.diff(self.shares(steps))) ** length).sum())


@dataclass(frozen=True)
class TauLeaping(FrozenRates):
    """Campbell et al. 2022, arXiv 2205.14987, section 4.3: Poisson numbers of jumps at the rates mu_i(v) = beta(u) p_i(v).

    Over a step h a masked token jumps a Poisson number of times, with mean lambda = h beta(u_k). `jumps` says what counts:

    any     it appears if it jumps at all, with probability 1 - e^-lambda. First order in h.
    one     only if it jumps exactly once, lambda e^-lambda; more are rejected. So do the codes for masked models
            (Guidance-MaskGIT). It peaks at 1/e and falls for longer steps, which leaves too much to the last one.

    Differs from the reference: one token is drawn from p_i in place of a number for each v (the law of a first jump
    is the same); what is left at the end is drawn and not the argmax, from the last step's own forward.
    """

    name = "tau_leaping"
    cite = "Campbell et al. 2022, A Continuous Time Framework for Discrete Denoising Models, arXiv 2205.14987"
    summary = "Poisson jumps at rates frozen for a step, one token a position"

    jumps: str = option("any", "what reveals a token: any jump, or exactly one (the reference)", choices=("any", "one"))

    def appears(self, mean: Tensor) -> Tensor:
        return mean * torch.exp(-mean) if self.jumps == "one" else -torch.expm1(-mean)
