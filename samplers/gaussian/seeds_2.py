"""SEEDS-2: a two-stage solver of the reverse SDE whose noise is exact in both stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..prediction import GaussianPredict
from ..sampler import option
from .grid import Point
from .steps import Staged, blend, decay, moments, spread, weighted
from .stochastic import EtaSampler, PathState, joined


@dataclass(frozen=True)
class Seeds2(Staged, EtaSampler[PathState]):
    """Gonzalez et al. 2023, SEEDS, arXiv 2305.14267, SEEDS-2, data prediction, with ComfyUI's eta.

    The middle at lambda_s + r h is a step of order 1 of the SDE. Then, with H = (1 + eta) h and m_k the integral of H
    e^{-H (1 - v)} v^k,
        x_t = (s_t / s_s) e^{-eta h} x_s + a_t (m_0 x0_s + c (x0_middle - x0_s) / r) + s_t sqrt(1 - e^{-2 eta h}) z,
    where c = m_1 ("phi_2", the line through both) or m_0 / 2 ("phi_1"), and z contains the middle's normals. Two
    evaluations per step; an odd one left over makes a step of order 1 at the end. Order 2 for eta = 0, weak order 2 for
    eta = 1.
    """

    name = "seeds_2"
    cite = "Gonzalez et al. 2023, SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling, arXiv 2305.14267"
    summary = "two-stage exponential solver of the reverse SDE, of weak order 2"
    order: ClassVar[int] = 2
    NORMALS: ClassVar[int] = 2

    r: float = option(0.5, "where the middle is, as a share of the step in lambda", gt=0, le=1)
    solver_type: str = option("phi_1", "weight of the change of x_0", choices=("phi_1", "phi_2"))

    def shares(self) -> tuple[float, ...]:
        return (self.r,)

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        x, x0, h, eta = state.x, predict(state.x, s), t.lam - s.lam, self.eta
        evaluations = self.evaluations(state)
        if evaluations == 1 or math.isinf(h):
            z = self.normal(state, s, t) if eta else None
            return self.advance(state, blend(predict, x0, t, lambda D: sde_step(x, D, s, t, eta, z), evaluations))
        middle = Point.at(state.canvas.denoiser.schedule, lam=s.lam + self.r * h)
        z1 = z = None
        if eta:
            z1 = self.normal(state, s, middle)
            z = joined(z1, self.normal(state, middle, t, 1), s, middle, t, eta)
        x0_middle = predict(sde_step(x, x0, s, middle, eta, z1), middle)
        m0, m1 = moments((1 + eta) * h, 2)
        c = m0 / 2 if self.solver_type == "phi_1" else m1
        # sde_step multiplies what it is given by m0.
        return self.advance(
            state, sde_step(x, weighted([x0, x0_middle], [1 - c / (m0 * self.r), c / (m0 * self.r)]), s, t, eta, z)
        )


def sde_step(x: Tensor, D: Tensor, s: Point, t: Point, eta: float, z: Tensor | None) -> Tensor:
    """The step of order 1 from s to t: exact if x_0 is D throughout. z: the step's normals, None if eta is 0."""
    h = t.lam - s.lam
    of_x, of_d = t.sigma / s.sigma * decay(h, eta), -t.alpha * math.expm1(-(1 + eta) * h)
    return weighted([x, D], [of_x, of_d]) if z is None else weighted([x, D, z], [of_x, of_d, t.sigma * spread(h, eta)])
