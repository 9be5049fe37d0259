"""LMS: Adams-Bashforth in sigma / alpha, of orders 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import noise_of, polynomial_weights
from .grid import GridState, Point
from .multistep import MultistepSampler


@dataclass(frozen=True)
class Lms(MultistepSampler[GridState]):
    """Crowson's linear multistep method (k-diffusion's `sample_lms`), which is DEIS's rhoAB (Zhang and Chen 2022).

    With y = x / alpha and rho = sigma / alpha the ODE is dy / drho = e. A step integrates the polynomial in rho through the
    last `order` values of e: Adams-Bashforth on uneven steps. The first steps have lower orders.
    """

    name = "lms"
    cite = "Zhang and Chen 2022, Fast Sampling of Diffusion Models with Exponential Integrator, arXiv 2204.13902"
    summary = "Adams-Bashforth in sigma / alpha on the noise, of orders 1 to 4"

    order: int = option(4, "number of values of the noise that a step uses", choices=(1, 2, 3, 4))

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        rho, step = math.exp(-s.lam), math.exp(-t.lam) - math.exp(-s.lam)
        return t.alpha * step, [t.alpha * w for w in self.weights(step, [math.exp(-lam) - rho for lam in lams])]

    def weights(self, step: float, offsets: Sequence[float]) -> list[float]:
        """The weights of e_j - e_s in the integral over a step in rho, with e_j at rho_s + offset."""
        return polynomial_weights(step, offsets)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        noise = noise_of(state.x, x0, s)
        x = self.extrapolate(state.x, x0, s, t, noise, self.usable(state.history, s, t, self.order - 1))
        return self.advance(state, x, history=self.remember(state.history, s, noise, self.order - 1))
