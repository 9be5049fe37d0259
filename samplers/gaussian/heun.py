"""Heun's method in sigma / alpha: the deterministic and the churning sampler of Karras et al."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from .churn import ChurningSampler
from .exponential import noise_of, weighted_step
from .grid import GridState, Point
from .steps import Staged, blend, growth_option


@dataclass(frozen=True)
class Heun(Staged, ChurningSampler):
    """Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2: an Euler step, then the mean of the slopes at both its ends.

    y_t = y_s + (r_t - r_s) (e_s + e_t) / 2, with y = x / alpha, r = sigma / alpha and e the predicted noise. Two
    evaluations per step; an odd one left over makes an Euler step at the end. The closing step to sigma = 0 is Euler's,
    as in the paper. A step in which sigma / alpha falls to less than a quarter averages x_0 in place of e (`growth`).
    """

    name = "heun"
    cite = "Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364"
    summary = "second-order solver with two evaluations per step; s_churn > 0 adds noise"
    order: ClassVar[int] = 2

    growth: float | None = growth_option()

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x, s = self.churned(state, s)
        return self.advance(state, heun_step(predict, x, s, t, self.evaluations(state), self.growth))


def heun_step(
    predict: GaussianPredict, x: Tensor, s: Point, t: Point, evaluations: int, growth: float | None
) -> Tensor:
    """x at t: by Heun's step with two evaluations, by Euler's with one."""
    x0, bound = predict(x, s), math.inf if growth is None else math.log(2 + growth)
    if evaluations == 1 or math.isinf(s.lam) or t.lam - s.lam > bound:  # it enlarges errors by max(1, e^h - 1)
        return blend(predict, x0, t, lambda D: weighted_step(x, D, s, t), evaluations)
    euler = weighted_step(x, x0, s, t)
    change = noise_of(euler, predict(euler, t), t) - noise_of(x, x0, s)
    return euler - t.sigma * math.expm1(t.lam - s.lam) / 2 * change
