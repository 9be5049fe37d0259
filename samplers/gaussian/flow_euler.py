"""Euler's method for rectified flows, deterministic or with fresh noise in every step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, GridState, Point


@dataclass(frozen=True)
class FlowEuler(GaussianSampler[GridState]):
    """Liu et al. 2022, arXiv 2209.03003: dx/dt = u, u = e - x_0, on the path x_t = (1 - t) x_0 + t e.

    Every schedule becomes such a path by a change of scale: x / (alpha + sigma) is at flow time sigma / (alpha + sigma). Euler
    is taken there, so the sampler works on all schedules, the end alpha = 0 (t = 1) included:
    x_t = alpha_t x_0 + sigma_t e, which is DDIM's step. On a flow schedule this is diffusers' FlowMatchEulerDiscreteScheduler,
    and with `stochastic` its `stochastic_sampling`: e is drawn anew instead of being taken from the present x.
    """

    name = "flow_euler"
    cite = (
        "Liu, Gong, Liu 2022, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, "
        "arXiv 2209.03003"
    )
    summary = "Euler's method for flow models, with optional fresh noise per step"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "stochastic": False})
    order: ClassVar[int] = 1

    stochastic: bool = option(False, "whether each step takes fresh noise in place of the noise that x holds")

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, stochastic=self.stochastic)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        if self.stochastic:
            return self.advance(state, combine(x0, t.alpha, state.canvas.noise(state.i + 1), t.sigma))
        keep = t.sigma / s.sigma  # e = (x - alpha x_0) / sigma
        return self.advance(state, combine(x0, t.alpha - keep * s.alpha, state.x, keep))
