"""Karras et al. 2022, arXiv 2206.00364, algorithm 2, lines 4 to 6: a step may first add noise ("churn")."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from ..sampler import Facts, option
from .grid import GaussianSampler, GridState, Point
from .steps import spread, weighted

__all__ = ["ChurningSampler"]


@dataclass(frozen=True)
class ChurningSampler(GaussianSampler[GridState]):
    """Base of euler, heun and dpm_2: ODE solvers that may raise the noise level before each step.

    sigma / alpha is raised by the factor 1 + gamma, gamma = min(s_churn / n, sqrt(2) - 1) in a run of n steps, the
    closing one included. It is never raised above the schedule's t_max: the model knows nothing of more noise
    (k-diffusion asks it nevertheless).
    """

    s_churn: float = option(0.0, "noise that is added over the run, in units of Karras et al.; 0: none, the ODE", ge=0)
    s_tmin: float = option(0.0, "sigma / alpha below which none is added", ge=0)
    s_tmax: float | None = option(None, "sigma / alpha above which none is added; none: no bound", gt=0)
    s_noise: float = option(1.0, "factor of the noise that is added; Karras et al. use 1.003 to 1.007", ge=0)

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, stochastic=self.s_churn > 0)

    def churned(self, state: GridState, s: Point) -> tuple[Tensor, Point]:
        """x and the point from which the step is taken."""
        n = len(state.points) - (self.end == "t_end")
        gamma = min(self.s_churn / n, math.sqrt(2) - 1)
        if not gamma or math.isinf(s.lam) or not self.s_tmin <= math.exp(-s.lam) <= (self.s_tmax or math.inf):
            return state.x, s
        schedule = state.canvas.denoiser.schedule
        lam = max(s.lam - math.log1p(gamma), float(schedule.lam(schedule.t_max)))
        if not lam < s.lam:
            return state.x, s
        hat = Point.at(schedule, lam=lam)
        z = state.canvas.noise(state.i + 1)  # draw 0 made the first x
        return weighted([state.x, z], [hat.alpha / s.alpha, self.s_noise * hat.sigma * spread(s.lam - lam)]), hat
