"""The midpoint method in sigma / alpha, with the middle in the logarithm: k-diffusion's DPM2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise_schedules import NoiseSchedule
from ..prediction import GaussianPredict
from .churn import ChurningSampler
from .exponential import noise_of, weighted_step
from .grid import GridState, Point
from .steps import Staged, blend, growth_option


@dataclass(frozen=True)
class Dpm2(Staged, ChurningSampler):
    """k-diffusion's `dpm_2` (Crowson 2022): Karras et al. 2022, algorithm 2, with the midpoint rule in place of Heun's.

    y_t = y_s + (r_t - r_s) e_m, where y = x / alpha, r = sigma / alpha, and e_m is the predicted noise at the middle of
    the step in lambda, to which an Euler step leads. Two evaluations per step; an odd one left over makes an Euler step
    at the end. A step in which sigma / alpha falls to less than a quarter averages x_0 at both its ends instead (`growth`).
    """

    name = "dpm_2"
    cite = "Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion; after Karras et al. 2022, arXiv 2206.00364"
    summary = "second-order midpoint solver with two evaluations per step; s_churn > 0 adds noise"
    order: ClassVar[int] = 2

    growth: float | None = growth_option()

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x, s = self.churned(state, s)
        x0 = predict(x, s)
        evaluations = self.evaluations(state)
        if evaluations == 1 or too_long(t.lam - s.lam, self.growth):
            return self.advance(state, blend(predict, x0, t, lambda D: weighted_step(x, D, s, t), evaluations))
        return self.advance(state, midpoint_step(predict, state.canvas.denoiser.schedule, x, x0, s, t))


def too_long(h: float, growth: float | None) -> bool:
    """Whether the midpoint rule is not for a step: an infinite one, or one that enlarges errors too much, by 2 e^{h/2} - 1."""
    return math.isinf(h) or (growth is not None and h > 2 * math.log(1 + growth / 2))


def midpoint_step(
    predict: GaussianPredict, schedule: NoiseSchedule, x: Tensor, x0: Tensor, s: Point, t: Point
) -> Tensor:
    """x at t, which may be a point without a time, by the midpoint rule from s, where the prediction is x0."""
    middle = Point.at(schedule, lam=(s.lam + t.lam) / 2)
    half = weighted_step(x, x0, s, middle)
    change = noise_of(half, predict(half, middle), middle) - noise_of(x, x0, s)
    return weighted_step(x, x0, s, t) - t.sigma * math.expm1(t.lam - s.lam) * change
