"""Euler's rule for the equations of Bayesian flows: the baselines that BFN-Solvers are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from samplers.authoring import Facts, Point, ops, option

from .sampler import FlowSampler, FlowState

if TYPE_CHECKING:
    from .family import FlowPredictor


@dataclass(frozen=True)
class Euler(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, sections 4 and 5: Euler's rule in time for the probability-flow ODE.

    dx / dt = (log sigma)' x + alpha lambda' x_0. Of tokens that is -z / (1 - t) - beta_1 (1 - t) (K p - 1), p the network's
    probabilities. The default of `eta` is larger than that of the solvers: near the start of real numbers the first term is
    1 / (2 eta), and a step of 1 / steps much longer than eta blows x up.
    """

    name, family = "bfn_euler", "bayesian_flow"
    cite = "Xue et al. 2024, Unifying Bayesian Flow Networks and Diffusion Models through SDEs, arXiv 2404.15766"
    summary = "Euler's rule for the ODE of a Bayesian flow; a baseline"
    order: ClassVar[int] = 1

    eta: float = option(1e-2, "time at which a run starts, between 0, where nothing is known, and 1", ge=1e-9, lt=1)

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0, step = predict(state.x, s), t.t - s.t
        of_sigma, of_lam = state.flow.schedule.slopes(s.t)
        x = ops.combine(state.x, 1 + of_sigma * step, x0, s.alpha * of_lam * step)
        return self.advance(state, x)


@dataclass(frozen=True)
class EulerSde(FlowSampler):
    """Xue et al. 2024, arXiv 2404.15766, sections 4 and 5: Euler and Maruyama's rule in time for the reverse SDE.

    dx = ((log sigma)' - lambda') x dt + 2 alpha lambda' x_0 dt + sigma sqrt(-2 lambda') dw. Of tokens the first term is 0.
    """

    name, family = "bfn_euler_sde", "bayesian_flow"
    cite = Euler.cite
    summary = "Euler and Maruyama's rule for the SDE of a Bayesian flow; a baseline"
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 1

    eta: float = option(1e-2, "time at which a run starts, between 0, where nothing is known, and 1", ge=1e-9, lt=1)

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        x0, step = predict(state.x, s), t.t - s.t
        of_sigma, of_lam = state.flow.schedule.slopes(s.t)
        gain = of_lam * step  # what lambda grows by
        noise = state.canvas.noise(state.i + 1)  # number 0 made the first x
        of_x = 1 + of_sigma * step - gain
        x = ops.combine(state.x, of_x, x0, 2 * s.alpha * gain, noise, s.sigma * math.sqrt(2 * gain))
        return self.advance(state, x)
