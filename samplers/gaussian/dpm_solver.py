"""DPM-Solver and DPM-Solver++: exponential integrators of the ODE in the half log-SNR, of orders 1 to 3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..canvas import NoiseCanvas
from ..prediction import GaussianPredict
from ..sampler import option
from .exponential import exponential_weights, noise_of, weighted_step
from .grid import GaussianSampler, GridState, Point
from .multistep import History, MultistepSampler


@dataclass(frozen=True, eq=False)
class DpmState(GridState):
    """A run whose steps may differ in what they cost.

    Attributes:
        evaluations: how many each step of the run makes. In a singlestep method it is the step's order.
    """

    evaluations: tuple[int, ...] = ()


def evaluations_of_steps(
    sampler: GaussianSampler[Any], canvas: NoiseCanvas, most: int, fast: bool = False
) -> tuple[int, ...]:
    """How many evaluations each step of a singlestep method makes, together all that are paid for.

    Each makes `most`, and a last one what is left. fast: a last step of three is two steps, of two and one. A step that
    begins or ends at alpha = 0 makes one, since it has no middle in lambda.
    """
    if canvas.times is not None:
        lams = [float(canvas.denoiser.schedule.lam(t)) for t in (canvas.times[0], canvas.times[-1])]
    else:
        points = sampler.times(canvas, 1)
        lams = [points[0].lam, points[-1].lam]
    n = canvas.steps - (sampler.end == "zero")
    first = int(math.isinf(lams[0]) and n > 0)
    last = int(math.isinf(lams[1]) and n > first)
    full, rest = divmod(n - first - last, most)
    if fast and most == 3 and full and not rest:
        middle = (3,) * (full - 1) + (2, 1)
    else:
        middle = (most,) * full + (rest,) * bool(rest)
    return (1,) * first + middle + (1,) * last


@dataclass(frozen=True)
class DpmSolver(MultistepSampler[DpmState]):
    """Lu et al. 2022, arXiv 2206.00927 (prediction "noise") and arXiv 2211.01095 (DPM-Solver++, prediction "x0").

    A step from s to t puts a polynomial in lambda through `order` predictions and integrates it exactly (exponential.py).

    method "multistep": past predictions are used, so a step has one evaluation. "fixed" and "singlestep": a step of order p
    makes p evaluations of its own, at lambda_s + r h with r = 0, 1/2 or r = 0, 1/3, 2/3 (algorithms 1 and 2 of the first
    paper). "fixed" makes steps of `order`, and a last one with the evaluations that are left; "singlestep" is the paper's
    DPM-Solver-fast, which for a multiple of three evaluations makes "3 ... 3, 2, 1". On the grid "logsnr" all steps are
    equally long; on others they begin and end at points of a grid of all evaluations.

    solver_type: at order 2, "midpoint" integrates the correction as the papers do, and "taylor" exactly. A singlestep method
    of order 3 uses its last inner evaluation ("midpoint") or both. The first steps of a multistep method have lower orders.

    The default is safe in long steps. Noise prediction with a singlestep method is not: on `mixture`, whose standard deviation
    is 1, three evaluations on "logsnr" (one step over the whole range) give 60 on vp_linear and 91 on edm.
    """

    name = "dpm_solver"
    cite = "Lu et al. 2022, DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, arXiv 2206.00927"
    summary = "exponential integrator in log-SNR, multistep or singlestep, on x_0 or on the noise, of orders 1 to 3"

    order: int = option(2, "order of a step", choices=(1, 2, 3))
    method: str = option(
        "multistep",
        "use past evaluations; or several per step: with lower orders at the end, or of one order as long as possible",
        choices=("multistep", "singlestep", "fixed"),
    )
    prediction: str = option("x0", "what the polynomial goes through", choices=("x0", "noise"))
    solver_type: str = option("midpoint", "form of the correction", choices=("midpoint", "taylor"))

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        return len(self._evaluations(canvas))

    def init(self, canvas: NoiseCanvas) -> DpmState:
        evaluations = self._evaluations(canvas)
        points = self.times(canvas, len(evaluations))
        if self.method != "multistep" and self.grid != "logsnr" and canvas.times is None:
            # The paper's choice: the ends of the steps, out of a grid of all evaluations.
            fine = self.times(canvas, sum(evaluations))
            points = tuple(fine[i] for i in itertools.accumulate(evaluations, initial=0))
        return DpmState.begin(canvas, points=points, evaluations=evaluations)

    def _evaluations(self, canvas: NoiseCanvas) -> tuple[int, ...]:
        if self.method == "multistep":
            return (1,) * super().solver_steps(canvas)
        return evaluations_of_steps(self, canvas, self.order, fast=self.method == "singlestep")

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        rule = "midpoint" if self.solver_type == "midpoint" else "exact"
        return exponential_weights(s, t, lams, prediction=self.prediction, rule=rule)

    def update(self, predict: GaussianPredict, state: DpmState, s: Point, t: Point) -> DpmState:
        x, x0 = state.x, predict(state.x, s)
        latest = self._value(x, x0, s)
        if self.method == "multistep":
            past = self.usable(state.history, s, t, self.order - 1)
            out = self.extrapolate(x, x0, s, t, latest, past)
            return self.advance(state, out, history=self.remember(state.history, s, latest, self.order - 1))

        def exact(to: Point, others: History) -> Tensor:
            weights = exponential_weights(s, to, [lam for lam, _ in others], prediction=self.prediction)[1]
            return weighted_step(x, x0, s, to, latest, others, weights)

        def ask(r: float, others: History = ()) -> History:
            at = Point.at(state.canvas.denoiser.schedule, lam=s.lam + r * (t.lam - s.lam))
            inner = exact(at, others)
            return ((at.lam, self._value(inner, predict(inner, at), at)),)

        evaluations = state.evaluations[state.i]
        if evaluations < 3:
            middle = ask(1 / 2) if evaluations == 2 else ()
            return self.advance(state, self.extrapolate(x, x0, s, t, latest, middle))
        first = ask(1 / 3)
        second = ask(2 / 3, first)
        return self.advance(state, exact(t, second if self.solver_type == "midpoint" else second + first))

    def _value(self, x: Tensor, x0: Tensor, at: Point) -> Tensor:
        """What the polynomial goes through."""
        return x0 if self.prediction == "x0" else noise_of(x, x0, at)
