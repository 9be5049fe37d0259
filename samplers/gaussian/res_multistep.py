"""RES multistep: a multistep exponential integrator in data prediction, of orders 1 to 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import exponential_weights
from .grid import GridState, Point
from .multistep import MultistepSampler


@dataclass(frozen=True)
class ResMultistep(MultistepSampler[GridState]):
    """Zhang et al. 2023, arXiv 2308.02157: the polynomial through past values of x_0, integrated exactly.

    x_t = (s_t / s_s) x_s + a_t int_0^h e^{u - h} P(u) du,  P the polynomial through the last `order` values of x_0; lower
    orders in the first steps. Order 2 is ComfyUI's `res_multistep`, and `dpmpp_2m` with solver_type "taylor"; order 3 is
    `dpmpp_3m`.

    cfg_pp is CFG++ (Chung et al. 2024, arXiv 2406.08070): the step is made with u, the x_0 without guidance, and then x_t
    moves by a_t (x0_s - u_s). At order 1 that is the paper's DDIM. (ComfyUI moves x_s before the step in all steps but the
    first.)
    """

    name = "res_multistep"
    cite = "Zhang et al. 2023, Improved Order Analysis and Design of Exponential Integrator, arXiv 2308.02157"
    summary = "multistep exponential integrator on the denoised x_0, of orders 1 to 4"

    order: int = option(2, "number of values of x_0 that a step uses", choices=(1, 2, 3, 4))
    cfg_pp: bool = option(False, "CFG++: the guided x_0, and the noise of the x_0 without guidance")

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        return exponential_weights(s, t, lams)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        guided, x0 = predict.pair(state.x, s) if self.cfg_pp else (predict(state.x, s),) * 2
        x = self.extrapolate(state.x, x0, s, t, x0, self.usable(state.history, s, t, self.order - 1))
        if self.cfg_pp:
            x = combine(x, 1.0, guided, t.alpha, x0, -t.alpha)
        return self.advance(state, x, history=self.remember(state.history, s, x0, self.order - 1))
