"""Euler's method with ancestral noise: a step below the next noise level, and noise up to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import noise_of, weighted_step
from .grid import Point
from .steps import weighted
from .stochastic import AncestralSampler, PathState


@dataclass(frozen=True)
class EulerAncestral(AncestralSampler):
    """k-diffusion's `euler_ancestral`: x_t = a_t x_0 + d e + n z, d^2 + n^2 = s_t^2, n = eta s_t sqrt(1 - e^{-2h}).

    It is DDIM with noise by default (split "snr"), of weak order 1; eta above 1 is cut off where d = 0. split "sigma"
    is ComfyUI's `euler_ancestral` for rectified flow.

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070): the guided x_0, with the noise e that the model sees without
    the condition.
    """

    name = "euler_ancestral"
    cite = "Crowson 2022, k-diffusion, github.com/crowsonkb/k-diffusion"
    summary = "first-order solver with noise put back in every step"
    order: ClassVar[int] = 1

    cfg_pp: bool = option(False, "CFG++: the direction of noise from the unguided prediction")

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        down, up = self.down_and_up(s, t)
        if self.cfg_pp:
            x0, unguided = predict.pair(state.x, s)
            x = weighted([x0, noise_of(state.x, unguided, s)], [down.alpha, down.sigma])
        else:
            x = weighted_step(state.x, predict(state.x, s), s, down)
        if up:
            x = weighted([x, self.normal(state, s, t)], [1.0, up])
        return self.advance(state, x)
