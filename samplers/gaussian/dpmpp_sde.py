"""DPM-Solver++ (SDE): two stages, both with noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import weighted_step
from .grid import Point
from .steps import Staged, blend
from .stochastic import AncestralSampler, PathState, joined


@dataclass(frozen=True)
class DpmPpSde(Staged, AncestralSampler):
    """k-diffusion's `dpmpp_sde` (Crowson 2022): DPM-Solver++ (2S) with ancestral noise to the middle and over the whole step.

    D = (1 - 1 / (2 r)) x_0(s) + 1 / (2 r) x_0(middle), the middle at lambda_s + r h. Two evaluations per step; an odd
    one left over makes a step of euler_ancestral at the end. The order is 2 for eta = 0, and the weak order is 2 for
    eta = 1.

    That takes noise of the whole step that contains the middle's. Here it always does, with noise="fresh" as well; with
    independent normals for the two (diffusers' singlestep `sde-dpmsolver++`) the weak order is 1.
    """

    name = "dpmpp_sde"
    cite = "Lu et al. 2022, DPM-Solver++, arXiv 2211.01095; Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion"
    summary = "two-stage solver of the reverse SDE, of weak order 2"
    order: ClassVar[int] = 2
    NORMALS: ClassVar[int] = 2

    r: float = option(0.5, "where the middle is, as a share of the step in lambda", gt=0, le=1)

    def shares(self) -> tuple[float, ...]:
        return (self.r,)

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        down, up = self.down_and_up(s, t)
        x, x0, evaluations = state.x, predict(state.x, s), self.evaluations(state)
        if evaluations == 1 or math.isinf(t.lam - s.lam):
            added = up * self.normal(state, s, t) if up else 0.0

            def step(D: Tensor) -> Tensor:
                return weighted_step(x, D, s, down) + added

            return self.advance(state, blend(predict, x0, t, step, evaluations))
        middle = Point.at(state.canvas.denoiser.schedule, lam=s.lam + self.r * (t.lam - s.lam))
        half_down, half_up = self.down_and_up(s, middle)
        half = weighted_step(x, x0, s, half_down)
        if up:
            z = self.normal(state, s, middle)
            half = half + half_up * z
            z = joined(z, self.normal(state, middle, t, 1), s, middle, t)
        D = (1 - 1 / (2 * self.r)) * x0 + 1 / (2 * self.r) * predict(half, middle)
        x = weighted_step(x, D, s, down)
        return self.advance(state, x + up * z if up else x)
