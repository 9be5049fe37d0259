"""DDIM: a first-order solver, deterministic or with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import weighted_step
from .grid import Point
from .steps import weighted
from .stochastic import AncestralSampler, PathState


@dataclass(frozen=True)
class Ddim(AncestralSampler):
    """Song et al. 2020, arXiv 2010.02502, eq. 12: x_t = a_t x_0 + sqrt(s_t^2 - n^2) e + n z.

    The paper's n = eta s_t / s_s sqrt(1 - a_s^2 / a_t^2) is written for any alpha and sigma, through h = lambda_t -
    lambda_s, as n = eta s_t sqrt(1 - e^{-2h}); on a variance preserving schedule the two are equal. eta = 0 solves the
    ODE at order 1 (it equals DPM-Solver-1, and Euler in sigma / alpha); eta = 1 is DDPM's posterior, of weak order 1.
    """

    name = "ddim"
    cite = "Song, Meng, Ermon 2020, Denoising Diffusion Implicit Models, arXiv 2010.02502"
    summary = "first-order solver; eta > 0 adds noise"
    order: ClassVar[int] = 1

    eta: float = option(0.0, "0: deterministic; 1: DDPM's noise", ge=0, le=1)

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        down, up = self.down_and_up(s, t)
        x = weighted_step(state.x, predict(state.x, s), s, down)
        if up:
            x = weighted([x, self.normal(state, s, t)], [1.0, up])
        return self.advance(state, x)
