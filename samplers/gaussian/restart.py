"""Restart: Heun's method with loops that go back up to a higher noise level and down again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..canvas import NoiseCanvas
from ..errors import OptionError
from ..prediction import GaussianPredict
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, GridState, Point
from .grids import spaced
from .heun import heun_step
from .steps import growth_option, spread, weighted


@dataclass(frozen=True, eq=False)
class RestartState(GridState):
    """A run with loops.

    Attributes:
        tops: for each step the point to which noise is added before it, or None.
        evaluations: for each step how many it has.
    """

    tops: tuple[Point | None, ...] = ()
    evaluations: tuple[int, ...] = ()


@dataclass(frozen=True)
class Restart(GaussianSampler[RestartState]):
    """Xu et al. 2023, arXiv 2306.14878, algorithm 1 with one interval: Heun's method, and loops back to s_tmax.

    Where sigma / alpha first comes down to s_tmin, noise raises it to s_tmax, and `restart_steps` steps of Heun's
    method on Karras' grid lead down again. The added noise takes out errors that the steps before have left, which an
    ODE solver alone carries on to the end.

    `steps` counts all evaluations, those of the loops too; loops take three quarters of them at most, and there are
    fewer of them if they do not fit. The interval must lie inside the run, else there are none. No loop: heun.
    """

    name = "restart"
    cite = "Xu et al. 2023, Restart Sampling for Improving Generative Processes, arXiv 2306.14878"
    summary = "Heun's method that returns to a higher noise level several times"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "restarts": 0}, limit={"restart_steps": 12})

    restarts: int = option(2, "how often the interval is gone through again", ge=0)
    restart_steps: int = option(3, "steps of Heun's method on each way down", ge=1)
    s_tmin: float = option(0.1, "sigma / alpha at the lower end of the interval", gt=0)
    s_tmax: float = option(2.0, "sigma / alpha at its upper end", gt=0)
    s_noise: float = option(1.0, "factor of the noise that is added", ge=0)
    growth: float | None = growth_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.s_tmin < self.s_tmax:
            raise OptionError(f"sampler 'restart': s_tmin={self.s_tmin:g} must be below s_tmax={self.s_tmax:g}")

    @property
    def effective_facts(self) -> Facts:
        return Facts(stochastic=self.restarts > 0)

    def loops(self, canvas: NoiseCanvas) -> int:
        """How many of the restarts fit into three quarters of the evaluations."""
        return min(self.restarts, 3 * super().solver_steps(canvas) // 4 // (2 * self.restart_steps))

    def solver_steps(self, canvas: NoiseCanvas, loops: int | None = None) -> int:
        """How many steps the way down from the first point to the last has, the loops not counted."""
        loops = self.loops(canvas) if loops is None else loops
        return -(-(super().solver_steps(canvas) - 2 * self.restart_steps * loops) // 2)

    def init(self, canvas: NoiseCanvas) -> RestartState:
        loops = self.loops(canvas)
        points = self.times(canvas, self.solver_steps(canvas))
        low = next((i for i, p in enumerate(points) if i and math.exp(-p.lam) <= self.s_tmin), 0)
        if loops and (not low or math.exp(-points[0].lam) < self.s_tmax):
            loops = 0
            points = self.times(canvas, self.solver_steps(canvas, loops))
        main = super().solver_steps(canvas) - 2 * self.restart_steps * loops
        evaluations = [min(2, main - 2 * i) for i in range(len(points) - 1)]
        tops: list[Point | None] = [None] * len(evaluations)
        if loops:
            schedule = canvas.denoiser.schedule
            top, bottom = Point.at(schedule, lam=-math.log(self.s_tmax)), points[low]
            n = self.restart_steps
            way = spaced("karras", schedule, top.t, bottom.t, n, closing=False)[1:-1]
            points = (*points[: low + 1], *((*way, bottom) * loops), *points[low + 1 :])
            tops[low:low] = (top, *(None,) * (n - 1)) * loops
            evaluations[low:low] = [2] * (n * loops)
        return RestartState.begin(canvas, points=points, tops=tuple(tops), evaluations=tuple(evaluations))

    def update(self, predict: GaussianPredict, state: RestartState, s: Point, t: Point) -> RestartState:
        x, top = state.x, state.tops[state.i]
        if top is not None:
            z = state.canvas.noise(state.i + 1)  # draw 0 made the first x
            x = weighted([x, z], [top.alpha / s.alpha, self.s_noise * top.sigma * spread(s.lam - top.lam)])
            s = top
        return self.advance(state, heun_step(predict, x, s, t, state.evaluations[state.i], self.growth))
