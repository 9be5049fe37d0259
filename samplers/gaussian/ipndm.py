"""iPNDM: Adams-Bashforth in sigma / alpha with the coefficients of equal steps, of orders 1 to 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..sampler import Conformance, option
from .exponential import polynomial_weights
from .grid import GaussianSampler
from .lms import Lms


@dataclass(frozen=True)
class Ipndm(Lms):
    """Zhang and Chen 2022, arXiv 2204.13902: PNDM's formula (Liu et al. 2022) from the first step on, without Runge-Kutta.

    x_t / a_t = x_s / a_s + (rho_t - rho_s) (55 e_s - 59 e_{s-1} + 37 e_{s-2} - 9 e_{s-3}) / 24, and 1, (3, -1) / 2,
    (23, -16, 5) / 12 in the first steps. These are exact for equal steps in rho = sigma / alpha. On the usual grids the steps
    are not equal: orders 3 and 4 converge at order 2, with smaller errors.

    variable = True takes the coefficients of the steps as they are (iPNDM_v), which is `lms`. The reference code has a
    misplaced bracket in its formulas for orders 3 and 4; its order 2 is the same as here.
    """

    name = "ipndm"
    cite = "Zhang and Chen 2022, Fast Sampling of Diffusion Models with Exponential Integrator, arXiv 2204.13902"
    summary = "Adams-Bashforth with the coefficients of equal steps, of orders 1 to 4"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "order": 2}, uneven=False)

    variable: bool = option(False, "coefficients of the steps as they are, in place of equal steps")

    def weights(self, step: float, offsets: Sequence[float]) -> list[float]:
        if self.variable:
            return super().weights(step, offsets)
        return [step * w for w in polynomial_weights(1.0, [-1.0 - k for k in range(len(offsets))])]
