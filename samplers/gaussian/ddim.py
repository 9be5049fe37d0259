"""DDIM: a first-order solver, deterministic or with noise."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from ..sampler import Facts, option
from .grid import GaussianSampler, GridState, Point


@dataclass(frozen=True)
class Ddim(GaussianSampler[GridState]):
    """Song et al. 2020, arXiv 2010.02502, eq. 12: x_t = a_t x_0 + sqrt(s_t^2 - n^2) e + n z.

    The paper's n = eta s_t / s_s sqrt(1 - a_s^2 / a_t^2) is written for any alpha and sigma, through h = lambda_t - lambda_s,
    as n = eta s_t sqrt(1 - e^{-2h}); on a variance preserving schedule the two are equal. eta = 0 solves the ODE at order 1
    (it equals DPM-Solver-1, and Euler in sigma / alpha); eta = 1 is DDPM's posterior.
    """

    name = "ddim"
    cite = "Song, Meng, Ermon 2020, Denoising Diffusion Implicit Models, arXiv 2010.02502"
    summary = "first-order solver; eta > 0 adds noise"
    order: ClassVar[int] = 1

    eta: float = option(0.0, "0: deterministic; 1: DDPM's noise", ge=0, le=1)

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, stochastic=self.eta > 0)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        noise = self.eta * t.sigma * math.sqrt(-math.expm1(-2 * (t.lam - s.lam)))
        direct = math.sqrt(max(t.sigma**2 - noise**2, 0.0))
        x = t.alpha * x0 + direct / s.sigma * (state.x - s.alpha * x0)
        if noise:
            x = x + noise * state.canvas.noise(state.i + 1)  # draw 0 made x_T
        return self.advance(state, x)
