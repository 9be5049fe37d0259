"""DEIS: a multistep exponential integrator in noise prediction, of orders 1 to 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import exponential_weights, noise_of
from .grid import GridState, Point
from .multistep import MultistepSampler


@dataclass(frozen=True)
class Deis(MultistepSampler[GridState]):
    """Zhang and Chen 2022, arXiv 2204.13902, with the polynomial in lambda (diffusers' "logrho").

    x_t = (a_t / a_s) x_s - s_t int_0^h e^{h - u} P(u) du,  P the polynomial through the last `order` values of the noise e;
    lower orders in the first steps. (The paper's tAB and rhoAB put the polynomial in t and in sigma / alpha; the second is
    `lms`.)
    """

    name = "deis"
    cite = "Zhang and Chen 2022, Fast Sampling of Diffusion Models with Exponential Integrator, arXiv 2204.13902"
    summary = "multistep exponential integrator on the noise, of orders 1 to 4"

    order: int = option(3, "number of values of the noise that a step uses", choices=(1, 2, 3, 4))

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        return exponential_weights(s, t, lams, prediction="noise")

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        noise = noise_of(state.x, x0, s)
        x = self.extrapolate(state.x, x0, s, t, noise, self.usable(state.history, s, t, self.order - 1))
        return self.advance(state, x, history=self.remember(state.history, s, noise, self.order - 1))
