"""Heun's method for rectified flows: second order, two evaluations per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from .grid import GaussianSampler, GridState, Point
from .steps import Staged, blend


@dataclass(frozen=True)
class FlowHeun(Staged, GaussianSampler[GridState]):
    """Heun's rule for dx/dt = u, u = e - x_0 (Liu et al. 2022, arXiv 2209.03003), on the path x_t = (1 - t) x_0 + t e.

    x_t = x_s + (t - s) (u(x_s, s) + u(x', t)) / 2, where x' is Euler's x_t. As in flow_euler, every schedule is brought to
    this path: x / (alpha + sigma) is at flow time sigma / (alpha + sigma), and alpha = 0 (t = 1) is included. On a flow
    schedule this is diffusers' FlowMatchHeunDiscreteScheduler.

    A step costs two evaluations. `steps` is spent exactly: where one evaluation remains, the last step is Euler's.
    A last step to sigma = 0, where u is not defined, averages x_0 and not u.
    """

    name = "flow_heun"
    cite = (
        "Liu, Gong, Liu 2022, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, "
        "arXiv 2209.03003"
    )
    summary = "Heun's method for flow models, two evaluations per step"
    order: ClassVar[int] = 2

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        keep = t.sigma / s.sigma
        x = combine(x0, t.alpha - keep * s.alpha, state.x, keep)
        if self.evaluations(state) == 2 and not t.sigma:  # u = (x - (alpha + sigma) x_0) / sigma is not defined at t
            x = blend(predict, x0, t, lambda D: combine(D, t.alpha, state.x, 0.0), 2)
        elif self.evaluations(state) == 2:
            half = (t.alpha + t.sigma) / 2 * (t.sigma / (t.alpha + t.sigma) - s.sigma / (s.alpha + s.sigma))
            # half (u(x, t) - u(x_s, s)), where u = e - x_0 = x / sigma - (alpha / sigma + 1) x_0
            end, begin = half / t.sigma, half / s.sigma
            of_end, of_begin = -end * (t.alpha + t.sigma), begin * (s.alpha + s.sigma)
            x = combine(x, 1 + end, predict(x, t), of_end, state.x, -begin, x0, of_begin)
        return self.advance(state, x)
