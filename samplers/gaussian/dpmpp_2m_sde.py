"""DPM-Solver++ (2M) SDE: a second-order multistep solver of the reverse SDE, with one evaluation per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from ..sampler import option
from .grid import Point
from .steps import decay, fitted, history_nodes, moments
from .stochastic import EtaSampler, MultistepSdeSampler, PathState


@dataclass(frozen=True)
class DpmPp2MSde(MultistepSdeSampler[PathState], EtaSampler[PathState]):
    """Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, SDE-DPM-Solver++ (2M), with k-diffusion's eta (`dpmpp_2m_sde`).

    x_t = (s_t / s_s) e^{-eta h} x_s + a_t (m_0 x0_s + c (x0_s - x0_{s-1}) / r) + s_t sqrt(1 - e^{-2 eta h}) z, with r =
    h_{s-1} / h and m_0 = 1 - e^{-(1 + eta) h}. solver_type "midpoint": c = m_0 / 2; "heun": the exact integral of the
    line, c = 1 - m_0 / ((1 + eta) h). The first step has order 1. Weak order 2, and order 2 for eta = 0, where
    "midpoint" is dpmpp_2m.
    """

    name = "dpmpp_2m_sde"
    cite = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv 2211.01095"
    summary = "second-order multistep solver of the reverse SDE; the usual choice with noise"
    order: ClassVar[int] = 2

    solver_type: str = option("midpoint", "weight of the change of x_0", choices=("midpoint", "heun"))

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        h = t.lam - s.lam
        x0 = predict(state.x, s)
        m = moments((1 + self.eta) * h, 2)
        if self.solver_type == "midpoint":
            m[1] = m[0] / 2
        nodes, past = history_nodes(state, s, h, 1)
        by = fitted([0.0, *nodes], lambda count: m[:count], self.growth)
        values, factors = [state.x, x0, *past], [t.sigma / s.sigma * decay(h, self.eta), *(t.alpha * w for w in by)]
        return self.advance(state, self.with_noise(state, values, factors, s, t), history=((s.lam, x0),))
