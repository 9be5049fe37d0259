"""DPM-Solver++ (2M): a second-order multistep solver in data prediction, with one evaluation per step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..ops import combine
from ..prediction import GaussianPredict
from .grid import GaussianSampler, GridState, Point


@dataclass(frozen=True)
class DpmPp2M(GaussianSampler[GridState]):
    """Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 2 (k-diffusion's `dpmpp_2m`).

    x_t = (s_t / s_s) x_s - a_t (e^{-h} - 1) D,  D = (1 + 1 / (2 r)) x0_s - 1 / (2 r) x0_{s-1},  r = h_{s-1} / h.
    The first step has order 1. So has the closing step to sigma = 0, which returns x_0.
    """

    name = "dpmpp_2m"
    cite = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
    summary = "second-order multistep solver on the denoised x_0; the usual default"
    order: ClassVar[int] = 2

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        h = t.lam - s.lam
        x0 = predict(state.x, s)
        of_x, of_d, terms = t.sigma / s.sigma, -t.alpha * math.expm1(-h), []
        now = 1.0
        if state.history:
            lam_before, x0_before = state.history[-1]
            r = (s.lam - lam_before) / h
            now = 1 + 1 / (2 * r)
            terms = [(-of_d / (2 * r), x0_before)]
        x = combine((of_x, state.x), (of_d * now, x0), *terms)
        return self.advance(state, x, history=((s.lam, x0),))
