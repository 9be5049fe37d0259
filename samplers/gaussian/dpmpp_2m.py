"""DPM-Solver++ (2M): a second-order multistep solver in data prediction, with one evaluation per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import exponential_weights
from .grid import GridState, Point
from .multistep import MultistepSampler


@dataclass(frozen=True)
class DpmPp2M(MultistepSampler[GridState]):
    """Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 2 (k-diffusion's `dpmpp_2m`).

    x_t = (s_t / s_s) x_s - a_t (e^{-h} - 1) D,  D = (1 + 1 / (2 r)) x0_s - 1 / (2 r) x0_{s-1},  r = h_{s-1} / h.
    The first step has order 1, and so has a step more than twice as long as the one before it (`growth`). So has the closing
    step to sigma = 0, which returns x_0. solver_type "taylor" integrates the straight line through the two x_0 exactly.

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070) as its authors' code has it: with u the x_0 without guidance,
    x_t = a_t x0_s + (s_t / s_s) (x_s - a_s u_s) - a_t (e^{-h} - 1) (x0_s - u_{s-1}) / (2 r).
    """

    name = "dpmpp_2m"
    cite = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
    summary = "second-order multistep solver on the denoised x_0; the usual default"
    order: ClassVar[int] = 2

    solver_type: str = option("midpoint", "how the second-order term is integrated", choices=("midpoint", "taylor"))
    cfg_pp: bool = option(False, "CFG++: the guided x_0, and the noise of the x_0 without guidance")

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        return exponential_weights(s, t, lams, rule="midpoint" if self.solver_type == "midpoint" else "exact")

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        guided, x0 = predict.pair(state.x, s) if self.cfg_pp else (predict(state.x, s),) * 2
        x = self.extrapolate(state.x, x0, s, t, guided, self.usable(state.history, s, t, 1))
        if self.cfg_pp:
            x = combine(x, 1.0, guided, t.alpha, x0, -t.alpha)
        return self.advance(state, x, history=((s.lam, x0),))
