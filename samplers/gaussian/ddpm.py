"""DDPM: ancestral sampling by the posterior of the noising process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..prediction import GaussianPredict
from ..sampler import option
from .grid import Point
from .steps import decay, spread, weighted
from .stochastic import PathState, StochasticSampler


@dataclass(frozen=True)
class Ddpm(StochasticSampler[PathState]):
    """Ho et al. 2020, arXiv 2006.11239, eq. 7 and section 3.2, for any schedule and any steps: q(x_t | x_s, x_0 as predicted).

    x_t = (s_t / s_s) e^{-h} x_s + a_t (1 - e^{-2h}) x_0 + n z. variance "small" is the posterior's, n = s_t sqrt(1 -
    e^{-2h}); with "large" n is the noise that the noising process adds from t to s, n^2 = s_s^2 - (a_s / a_t)^2 s_t^2
    (the paper's beta). "small" is DDIM with eta = 1, of weak order 1. "large" is right for data of variance 1 only, and
    too much for any other in few steps.
    """

    name = "ddpm"
    cite = "Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv 2006.11239"
    summary = "ancestral sampling by the posterior of the noising process"

    variance: str = option("small", "the posterior's, or the noising process's", choices=("small", "large"))

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        h = t.lam - s.lam
        x0 = predict(state.x, s)
        n = (t.sigma if self.variance == "small" else s.sigma) * spread(h)
        by = [t.sigma / s.sigma * decay(h), -t.alpha * math.expm1(-2 * h), n]
        return self.advance(state, weighted([state.x, x0, self.normal(state, s, t)], by))
