"""LCM: multistep sampling of consistency models, which predict x_0 and add fresh noise."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import Facts, option
from .grid import GaussianSampler, GridState, Point
from .grids import GRIDS


@dataclass(frozen=True)
class Lcm(GaussianSampler[GridState]):
    """Luo et al. 2023, arXiv 2310.04378, algorithm 3 (Song et al. 2023, arXiv 2303.01469, algorithm 1): x_t = a_t f + s_t z.

    f = c_skip x + c_out x_0 is the consistency function at the present point and z is fresh noise; the run returns the last f.
    With `time_scale` k > 0, and u = k t for the schedule's time t,
    c_skip = d^2 / (u^2 + d^2) and c_out = u / sqrt(u^2 + d^2), d = `sigma_data`: the boundary condition that the model was
    distilled with. Latent consistency models have k = 10 for times that count 1000 training steps, so 10000 for times from
    0 to 1. With k = 0 they are left out: f = x_0.

    It is for distilled models. With any other denoiser f is the mean of what x could be, and samples lose variance.
    """

    name = "lcm"
    cite = (
        "Luo et al. 2023, Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference, "
        "arXiv 2310.04378"
    )
    summary = "few steps of a distilled consistency model: denoise, then add fresh noise"
    facts = Facts(stochastic=True, bias="biased")

    grid: str = option(
        "trailing", "spacing of the times; trailing is that of the distillation", choices=GRIDS, kind="grids"
    )
    time_scale: float = option(0.0, "k in the boundary scalings c_skip and c_out of k t; 0: no scalings", ge=0)
    sigma_data: float = option(0.5, "d in the boundary scalings", gt=0)

    def step(self, predict: GaussianPredict, state: GridState) -> GridState:
        after = super().step(predict, state)
        if self.end == "zero" and after.last:  # the closing step returned x_0
            after = dataclasses.replace(after, x=self._consistent(state.x, after.x, state.points[-1]))
        return after

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        f = self._consistent(state.x, predict(state.x, s), s)
        return self.advance(state, combine(f, t.alpha, state.canvas.noise(state.i + 1), t.sigma))  # draw 0 made x_T

    def _consistent(self, x: Tensor, x0: Tensor, at: Point) -> Tensor:
        """f, from x at a point and its x_0."""
        if not self.time_scale:
            return x0
        u, d = self.time_scale * at.t, self.sigma_data
        return combine(x, d**2 / (u**2 + d**2), x0, u / math.hypot(u, d))
