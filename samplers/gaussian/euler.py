"""Euler's method in sigma / alpha, with churn or CFG++ if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from ..sampler import option
from .churn import ChurningSampler
from .exponential import noise_of, weighted_step
from .grid import GridState, Point
from .steps import weighted


@dataclass(frozen=True)
class Euler(ChurningSampler):
    """Karras et al. 2022, arXiv 2206.00364, algorithm 2 without lines 9 to 11: y_t = y_s + (r_t - r_s) (y_s - x_0) / r_s.

    Here y = x / alpha and r = sigma / alpha, in which the ODE is dy / dr = e for every schedule. Without churn it is
    DDIM, and Euler's method in sigma on variance exploding and on flow schedules.

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070): x_t = a_t x_0 + s_t e, the guided x_0 with the noise e that
    the model sees without the condition. It wants small guidance scales, 0 to 1 in that paper's count.
    """

    name = "euler"
    cite = "Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364"
    summary = "first-order solver in sigma / alpha; s_churn > 0 adds noise"
    order: ClassVar[int] = 1

    cfg_pp: bool = option(False, "CFG++: the direction of noise from the unguided prediction")

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x, s = self.churned(state, s)
        if self.cfg_pp:
            x0, unguided = predict.pair(x, s)
            return self.advance(state, weighted([x0, noise_of(x, unguided, s)], [t.alpha, t.sigma]))
        return self.advance(state, weighted_step(x, predict(x, s), s, t))
