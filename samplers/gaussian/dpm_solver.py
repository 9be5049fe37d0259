"""DPM-Solver: exponential integrators of the ODE in the half log-SNR, with noise prediction, of orders 1 to 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..canvas import NoiseCanvas
from ..errors import OptionError
from ..prediction import GaussianPredict
from ..sampler import Conformance, option
from .grid import GaussianSampler, GridState, Point


@dataclass(frozen=True, eq=False)
class DpmState(GridState):
    """A run whose steps may differ in order.

    Attributes:
        orders: the order of each step of the run.
    """

    orders: tuple[int, ...] = ()


@dataclass(frozen=True)
class DpmSolver(GaussianSampler[DpmState]):
    """Lu et al. 2022, arXiv 2206.00927, algorithms 1 (orders 1 and 2) and 2 (order 3), singlestep, noise prediction.

    x_t = (a_t / a_s) x_s - s_t [P1 e + P2 (h e') + ...],  h = lambda_t - lambda_s, P1 = e^h - 1, P2 = P1 / h - 1, with
    where the derivative of e is taken from evaluations at lambda_s + r h (r = 1/2; 1/3 and 2/3).

    method "fast" is the paper's DPM-Solver-fast, which spends exactly `steps` evaluations: steps of `order`, and then steps of
    lower order at the end (appendix, "3 ... 3, 2, 1"). With "fixed" every step has `order`, and `steps` must be a multiple of
    it (plus one if end = "zero"). The convergence order is measured with "fixed", grid "logsnr" and end "t_end".
    """

    name = "dpm_solver"
    cite = "Lu et al. 2022, DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, arXiv 2206.00927"
    summary = "singlestep exponential integrator in log-SNR, of orders 1 to 3"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "method": "fixed"})

    order: int = option(3, "order of a step, which is also its number of evaluations", choices=(1, 2, 3))
    method: str = option(
        "fast",
        "spend exactly `steps` evaluations, with lower orders at the end; or keep one order",
        choices=("fast", "fixed"),
    )

    def init(self, canvas: NoiseCanvas) -> DpmState:
        orders = self.orders(self.solver_steps(canvas))
        return DpmState.begin(canvas, points=self._outer(canvas, orders), orders=orders)

    def orders(self, evaluations: int) -> tuple[int, ...]:
        """The order of each step; they sum to `evaluations`.

        Raises:
            OptionError: method is "fixed" and `evaluations` is not a multiple of the order.
        """
        n, p = evaluations, self.order
        if self.method == "fixed":
            if n % p:
                plus = " + 1" if self.end == "zero" else ""
                raise OptionError(
                    f"sampler 'dpm_solver': method='fixed' of order {p} takes steps that are a multiple of {p}{plus}, "
                    f"such as {p * max(1, n // p) + (self.end == 'zero')}; method='fast' takes any"
                )
            return (p,) * (n // p)
        if p == 3 and n >= 3:
            return {0: (3,) * (n // 3 - 1) + (2, 1), 1: (3,) * (n // 3) + (1,), 2: (3,) * (n // 3) + (2,)}[n % 3]
        if p >= 2:  # order 2, or too few for one step of order 3
            return (2,) * (n // 2) + (1,) * (n % 2)
        return (1,) * n

    def _outer(self, canvas: NoiseCanvas, orders: tuple[int, ...]) -> tuple[Point, ...]:
        """The points at which steps begin and end.

        On the grid "logsnr" all steps are equal in lambda, whatever their order. On other grids the points are taken from a
        grid with one interval per evaluation, as in the paper.
        """
        if self.grid == "logsnr" or not orders:
            return self.times(canvas, len(orders))
        fine = self.times(canvas, sum(orders))
        at = [0]
        for p in orders:
            at.append(at[-1] + p)
        return tuple(fine[i] for i in at)

    def update(self, predict: GaussianPredict, state: DpmState, s: Point, t: Point) -> DpmState:
        order, x = state.orders[state.i], state.x
        h = t.lam - s.lam

        def noise(at: Point, value: Tensor) -> Tensor:
            return (value - at.alpha * predict(value, at.t)) / at.sigma

        def inner(r: float) -> Point:
            return Point.at(state.canvas.denoiser.schedule, lam=s.lam + r * h)

        def base(at: Point, e: Tensor) -> Tensor:  # the step of order 1, to `at`
            return at.alpha / s.alpha * x - at.sigma * math.expm1(at.lam - s.lam) * e

        e = noise(s, x)
        if order == 1:
            out = base(t, e)
        elif order == 2:
            mid = inner(0.5)
            e1 = noise(mid, base(mid, e))
            out = base(t, e) - t.sigma * math.expm1(h) * (e1 - e)
        else:
            p1, p2 = inner(1 / 3), inner(2 / 3)
            e1 = noise(p1, base(p1, e))
            h2 = 2 / 3 * h
            # (e1 - e) is h e' / 3, so r2 / r1 = 2 of it is (2 h / 3) e'.
            u2 = base(p2, e) - 2 * p2.sigma * (math.expm1(h2) / h2 - 1) * (e1 - e)
            e2 = noise(p2, u2)
            out = base(t, e) - 1.5 * t.sigma * (math.expm1(h) / h - 1) * (e2 - e)
        return self.advance(state, out)
