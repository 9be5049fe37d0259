"""Gradient estimation: Euler's method with a direction that is extrapolated from the last two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import noise_of, weighted_step
from .grid import GaussianSampler, GridState, Point


@dataclass(frozen=True)
class GradientEstimation(GaussianSampler[GridState]):
    """Permenter and Yuan 2023, arXiv 2306.04848, algorithm 2: diffusion as descent on the distance to the data.

    With y = x / alpha and rho = sigma / alpha: y_t = y_s + (rho_t - rho_s) (gamma e_s + (1 - gamma) e_{s-1}).
    gamma = 1 is DDIM. On steps of nearly equal length gamma = 3/2 would be Adams-Bashforth of order 2; the paper's 2 goes
    further, and is of order 1.

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070): e_s is that of the x_0 without guidance, and the guided x_0 is
    the data.
    """

    name = "gradient_estimation"
    cite = (
        "Permenter and Yuan 2023, Interpreting and Improving Diffusion Models from an Optimization Perspective, "
        "arXiv 2306.04848"
    )
    summary = "Euler's method along a direction extrapolated from the last two"
    order: ClassVar[int] = 1

    gamma: float = option(2.0, "how far the direction is extrapolated; 1: not at all", ge=1)
    cfg_pp: bool = option(False, "CFG++: the guided x_0, and the noise of the x_0 without guidance")

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        guided, x0 = predict.pair(state.x, s) if self.cfg_pp else (predict(state.x, s),) * 2
        noise = noise_of(state.x, x0, s)
        x = weighted_step(state.x, x0, s, t)
        if self.cfg_pp:
            x = combine(x, 1.0, guided, t.alpha, x0, -t.alpha)
        for _, before in state.history:
            reach = (self.gamma - 1) * (t.sigma - t.alpha * s.sigma / s.alpha)  # (gamma - 1) a_t (rho_t - rho_s)
            x = combine(x, 1.0, noise, reach, before, -reach)
        return self.advance(state, x, history=((s.lam, noise),))
