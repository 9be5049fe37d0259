"""SEEDS-3: a three-stage solver of the reverse SDE whose noise is exact in all stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..prediction import GaussianPredict
from .grid import Point
from .seeds_2 import sde_step
from .steps import Staged, blend, moments, weighted
from .stochastic import EtaSampler, PathState, joined


@dataclass(frozen=True)
class Seeds3(Staged, EtaSampler[PathState]):
    """Gonzalez et al. 2023, SEEDS, arXiv 2305.14267, SEEDS-3, data prediction, stages at 1/3 and 2/3, with ComfyUI's eta.

    The stages are those of DPM-Solver-3 for the reverse SDE: order 1 to the first, then twice the line through x0_s and
    the latest x_0. Each stage's normals contain those of the one before. Three evaluations per step; those left over
    make a step of SEEDS-2 (phi_2) or of order 1 at the end. Order 3 for eta = 0, weak order 2 for eta = 1.
    """

    name = "seeds_3"
    cite = "Gonzalez et al. 2023, SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling, arXiv 2305.14267"
    summary = "three-stage exponential solver of the reverse SDE"
    order: ClassVar[int] = 3
    NORMALS: ClassVar[int] = 3
    PER_STEP: ClassVar[int] = 3

    def shares(self) -> tuple[float, ...]:
        return (1 / 3, 0.5, 2 / 3)

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        x, x0, h, eta = state.x, predict(state.x, s), t.lam - s.lam, self.eta
        evaluations = self.evaluations(state)
        if math.isinf(h):
            z = self.normal(state, s, t) if eta else None
            return self.advance(state, blend(predict, x0, t, lambda D: sde_step(x, D, s, t, eta, z), evaluations))
        shares = {1: (1.0,), 2: (0.5, 1.0), 3: (1 / 3, 2 / 3, 1.0)}[evaluations]
        D, z, before, value = x0, None, s, x
        for number, share in enumerate(shares):
            schedule = state.canvas.denoiser.schedule
            at = t if share == 1 else Point.at(schedule, lam=s.lam + share * h)
            if number:
                m0, m1 = moments((1 + eta) * share * h, 2)
                c = m1 / m0 * share / shares[number - 1]  # for the line through x0 and the latest, over this stage
                D = weighted([x0, predict(value, before)], [1 - c, c])
            if eta:
                new = self.normal(state, before, at, number)
                z = new if z is None else joined(z, new, s, before, at, eta)
            value, before = sde_step(x, D, s, at, eta, z), at
        return self.advance(state, value)
