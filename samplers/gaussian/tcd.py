"""TCD: sampling of trajectory consistency models, with a share of fresh noise that the user chooses."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, GridState, Point
from .grids import GRIDS


@dataclass(frozen=True)
class Tcd(GaussianSampler[GridState]):
    """Zheng et al. 2024, arXiv 2402.19159, "strategic stochastic sampling" (algorithm 4).

    Each step goes down past the next time t to r = (1 - gamma) t, without noise, and from there up to t with fresh noise z:
    x_r = a_r x_0 + s_r e,  x_t = (a_t / a_r) x_r + s_t sqrt(1 - e^{2 (lambda_t - lambda_r)}) z. gamma = 0 is DDIM; gamma = 1
    is all but lcm: r is never below the schedule's t_min, the least noise that the model knows.
    """

    name = "tcd"
    cite = (
        "Zheng et al. 2024, Trajectory Consistency Distillation: Improved Latent Consistency Distillation by Semi-Linear "
        "Consistency Function with Trajectory Mapping, arXiv 2402.19159"
    )
    summary = "few steps of a distilled trajectory model: gamma from 0 (DDIM) to 1 (fresh noise)"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "gamma": 0.0})
    order: ClassVar[int] = 1

    grid: str = option(
        "trailing", "spacing of the times; trailing is that of the distillation", choices=GRIDS, kind="grids"
    )
    gamma: float = option(
        0.3, "how far below the next time a step goes before noise is added: 0 none, 1 all", ge=0, le=1
    )

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, stochastic=self.gamma > 0)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        schedule = state.canvas.denoiser.schedule
        x0 = predict(state.x, s)
        low = (1 - self.gamma) * t.t
        r = t if low >= t.t else Point.at(schedule, t=min(t.t, max(low, schedule.t_min)))
        up, keep = t.alpha / r.alpha, r.sigma / s.sigma
        of_x0, of_x = up * (r.alpha - keep * s.alpha), up * keep
        if r.t == t.t:
            return self.advance(state, combine(x0, of_x0, state.x, of_x))
        fresh = t.sigma * math.sqrt(-math.expm1(2 * (t.lam - r.lam)))
        noise = state.canvas.noise(state.i + 1)  # draw 0 made x_T
        return self.advance(state, combine(x0, of_x0, state.x, of_x, noise, fresh))
