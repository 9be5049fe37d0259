"""DPM-Solver++ (2S): a second-order singlestep solver in data prediction, with two evaluations per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..canvas import NoiseCanvas
from ..prediction import GaussianPredict
from .dpm_solver import DpmState, evaluations_of_steps
from .exponential import weighted_step
from .grid import GaussianSampler, Point


@dataclass(frozen=True)
class DpmPp2S(GaussianSampler[DpmState]):
    """Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 1 with r = 1/2 (k-diffusion's `dpmpp_2s_ancestral`, eta = 0).

    x_t = (s_t / s_s) x_s - a_t (e^{-h} - 1) x0(u),  with u the step of order 1 to lambda_s + h / 2.

    A step makes two evaluations, at its beginning and in its middle. Of an odd number the last step makes one, and is of
    order 1; so is a first step from alpha = 0, which has no middle in lambda. `dpm_solver` with method "singlestep" makes
    the same steps from other points on grids other than "logsnr".
    """

    name = "dpmpp_2s"
    cite = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
    summary = "second-order singlestep solver on the denoised x_0, two evaluations per step"
    order: ClassVar[int] = 2

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        return len(evaluations_of_steps(self, canvas, 2))

    def init(self, canvas: NoiseCanvas) -> DpmState:
        points = self.times(canvas, self.solver_steps(canvas))
        return DpmState.begin(canvas, points=points, evaluations=evaluations_of_steps(self, canvas, 2))

    def update(self, predict: GaussianPredict, state: DpmState, s: Point, t: Point) -> DpmState:
        x0 = predict(state.x, s)
        if state.evaluations[state.i] == 2:
            middle = Point.at(state.canvas.denoiser.schedule, lam=(s.lam + t.lam) / 2)
            x0 = predict(weighted_step(state.x, x0, s, middle), middle)
        return self.advance(state, weighted_step(state.x, x0, s, t))
