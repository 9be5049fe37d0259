"""The midpoint method with ancestral noise: k-diffusion's DPM2 a."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from .dpm_2 import midpoint_step, too_long
from .exponential import weighted_step
from .grid import Point
from .steps import Staged, blend, growth_option
from .stochastic import AncestralSampler, PathState


@dataclass(frozen=True)
class Dpm2Ancestral(Staged, AncestralSampler):
    """k-diffusion's `dpm_2_ancestral` (Crowson 2022): dpm_2's step below the next noise level, and noise up to it.

    Two evaluations per step; an odd one left over makes a step of euler_ancestral at the end. The order is 2 for eta =
    0, and so is the weak order with noise (on a Gaussian).
    """

    name = "dpm_2_ancestral"
    cite = "Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion"
    summary = "midpoint solver with noise put back in every step"
    order: ClassVar[int] = 2

    growth: float | None = growth_option()

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        down, up = self.down_and_up(s, t)
        added = up * self.normal(state, s, t) if up else 0.0
        x, x0, evaluations = state.x, predict(state.x, s), self.evaluations(state)

        def step(D: Tensor) -> Tensor:
            return weighted_step(x, D, s, down) + added

        if evaluations == 1 or too_long(down.lam - s.lam, self.growth):
            return self.advance(state, blend(predict, x0, t, step, evaluations))
        return self.advance(state, midpoint_step(predict, state.canvas.denoiser.schedule, x, x0, s, down) + added)
