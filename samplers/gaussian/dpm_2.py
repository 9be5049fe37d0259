"""The midpoint method in sigma / alpha, with the middle in the logarithm: k-diffusion's DPM2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise_schedules import NoiseSchedule
from ..prediction import GaussianPredict
from .churn import ChurningSampler
from .grid import GridState, Point
from .steps import Staged, blend, first_order, noise_in


@dataclass(frozen=True)
class Dpm2(Staged, ChurningSampler):
    """k-diffusion's `dpm_2` (Crowson 2022): Karras et al. 2022, algorithm 2, with the midpoint rule in place of Heun's.

    y_t = y_s + (r_t - r_s) e_m, where y = x / alpha, r = sigma / alpha, and e_m is the predicted noise at the middle of
    the step in lambda, to which an Euler step leads. Two evaluations per step; an odd one left over makes an Euler step
    at the end.
    """

    name = "dpm_2"
    cite = "Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion; after Karras et al. 2022, arXiv 2206.00364"
    summary = "second-order midpoint solver with two evaluations per step; s_churn > 0 adds noise"
    order: ClassVar[int] = 2

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x, s = self.churned(state, s)
        x0 = predict(x, s)
        evaluations = self.evaluations(state)
        if evaluations == 1 or math.isinf(s.lam):
            return self.advance(state, blend(predict, x0, t, lambda D: first_order(x, D, s, t), evaluations))
        return self.advance(state, midpoint_step(predict, state.canvas.denoiser.schedule, x, x0, s, t))


def midpoint_step(
    predict: GaussianPredict, schedule: NoiseSchedule, x: Tensor, x0: Tensor, s: Point, t: Point
) -> Tensor:
    """x at t, which may be a point without a time, by the midpoint rule from s, where the prediction is x0."""
    middle = Point.at(schedule, lam=(s.lam + t.lam) / 2)
    half = first_order(x, x0, s, middle)
    change = noise_in(half, predict(half, middle), middle) - noise_in(x, x0, s)
    return first_order(x, x0, s, t) - t.sigma * math.expm1(t.lam - s.lam) * change
