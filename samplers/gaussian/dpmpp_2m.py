"""DPM-Solver++ (2M): second-order multistep in data prediction; one evaluation a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from .grid import GaussianSampler, GridState


@dataclass(frozen=True)
class DpmPp2M(GaussianSampler[GridState]):
    """Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 2 (k-diffusion's `dpmpp_2m`).

    x_t = (s_t / s_s) x_s - a_t (e^{-h} - 1) D,  D = (1 + 1 / (2 r)) x0_s - 1 / (2 r) x0_{s-1},  r = h_{s-1} / h.
    The first step is of order 1; so is the closing step to sigma = 0, which returns x_0.
    """

    name = "dpmpp_2m"
    cite = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
    summary = "second-order multistep on the denoised x_0; the usual default"
    order: ClassVar[int] = 2

    def step(self, predict: GaussianPredict, state: GridState) -> GridState:
        if done := self.finish(predict, state):
            return done
        s, t = state.points[state.i], state.points[state.i + 1]
        h = t.lam - s.lam
        x0 = predict(state.x, s.t)
        target = x0
        if state.history:
            before, x0_before = state.history[-1]
            r = (s.lam - before) / h
            target = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        x = t.sigma / s.sigma * state.x - t.alpha * math.expm1(-h) * target
        return self.advance(state, x, history=((s.lam, x0),))
