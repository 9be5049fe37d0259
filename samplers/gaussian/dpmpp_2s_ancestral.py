"""DPM-Solver++ (2S) with ancestral noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import weighted_step
from .grid import Point
from .steps import Staged, blend
from .stochastic import AncestralSampler, PathState


@dataclass(frozen=True)
class DpmPp2SAncestral(Staged, AncestralSampler):
    """k-diffusion's `dpmpp_2s_ancestral` (Crowson 2022): DPM-Solver++ (2S), r = 1/2, below the next level, then noise.

    x_d = (s_d / s_s) x_s - a_t (e^{-h} - 1) x_0(middle), with the level d below t and h = lambda_d - lambda_s. Two
    evaluations per step; an odd one left over makes a step of euler_ancestral at the end. The order is 2 for eta = 0,
    and so is the weak order with noise (on a Gaussian).

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070): the first-order part keeps the noise that the model sees
    without the condition. ComfyUI's variant takes it from the middle for the second half of the step; here it is that
    of the beginning throughout.
    """

    name = "dpmpp_2s_ancestral"
    cite = "Lu et al. 2022, DPM-Solver++, arXiv 2211.01095; Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion"
    summary = "two-stage solver on x_0 with noise put back in every step"
    order: ClassVar[int] = 2

    cfg_pp: bool = option(False, "CFG++: the direction of noise from the unguided prediction")

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        down, up = self.down_and_up(s, t)
        added = up * self.normal(state, s, t) if up else 0.0
        x, evaluations = state.x, self.evaluations(state)
        if self.cfg_pp:
            x0, unguided = predict.pair(x, s)
            x = x + s.alpha * (x0 - unguided)  # what the guided x_0 with the unguided noise makes
        else:
            x0 = predict(x, s)

        def step(D: Tensor) -> Tensor:
            return weighted_step(x, D, s, down) + added

        if evaluations == 1 or math.isinf(down.lam - s.lam):
            return self.advance(state, blend(predict, x0, t, step, evaluations))
        middle = Point.at(state.canvas.denoiser.schedule, lam=(s.lam + down.lam) / 2)
        return self.advance(state, step(predict(weighted_step(x, x0, s, middle), middle)))
