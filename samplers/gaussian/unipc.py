"""UniPC: a multistep predictor with a corrector that costs no evaluation, of any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..canvas import NoiseCanvas
from ..prediction import GaussianPredict
from ..sampler import Conformance, option
from .exponential import exponential_weights, noise_of
from .grid import GaussianSampler, GridState, Point
from .multistep import History, MultistepSampler


@dataclass(frozen=True, eq=False)
class UniPcState(GridState):
    """A run that remembers how its last step was made, so that the step can be made again with one more value.

    Attributes:
        begun: (x, x_0) from which the last step was made; none if there was none, or if it will not be corrected.
        used: (lambda, prediction) at that point, and of the past values that the step used.
    """

    begun: tuple[Tensor, Tensor] | None = None
    used: History = ()


@dataclass(frozen=True)
class UniPc(MultistepSampler[UniPcState]):
    """Zhao et al. 2023, arXiv 2302.04867, algorithms 5 to 8: UniPC with one evaluation per step.

    The predictor UniP-p integrates the polynomial through the last p predictions, which has order p. The model is asked at
    the predicted point. The corrector UniC-p makes the step again with this prediction as one more node, which has order
    p + 1, and the next step starts from the corrected x; the model is not asked again. The last step is not corrected.

    variant is the paper's B(h), h or e^h - 1 (with -h in data form). Only UniP-2 and UniC-1 depend on it, where the paper
    takes B(h) / 2; at other orders its equations have one solution, the exact integral.
    """

    name = "unipc"
    cite = "Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework for Fast Sampling, arXiv 2302.04867"
    summary = "multistep predictor with a corrector that costs no evaluation, of any order"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "corrector": False})

    order: int = option(2, "order of the predictor; the corrector adds one", ge=1)
    variant: str = option("bh2", "B(h): h (bh1) or e^h - 1 (bh2)", choices=("bh1", "bh2"))
    corrector: bool = option(True, "correct each step with the prediction at its end")
    disable_corrector: int = option(0, "number of steps at the beginning that are not corrected", ge=0)
    prediction: str = option("x0", "what the polynomial goes through", choices=("x0", "noise"))

    def init(self, canvas: NoiseCanvas) -> UniPcState:
        return UniPcState.begin(canvas, points=self.times(canvas, self.solver_steps(canvas)))

    def weigh(self, s: Point, t: Point, lams: Sequence[float]) -> tuple[float, list[float]]:
        rule = "linear" if self.variant == "bh1" else "midpoint"
        return exponential_weights(s, t, lams, prediction=self.prediction, rule=rule)

    def update(self, predict: GaussianPredict, state: UniPcState, s: Point, t: Point) -> UniPcState:
        x, x0 = state.x, predict(state.x, s)
        latest = x0 if self.prediction == "x0" else noise_of(x, x0, s)
        if state.begun is not None:
            first, others = state.used[0][1], ((s.lam, latest), *state.used[1:])
            x = self.extrapolate(*state.begun, state.points[state.i - 1], s, first, others)
            if self.prediction == "noise":
                x0 = x0 + (x - state.x) / s.alpha  # what the corrected x is made of, with this noise
        past = self.usable(state.history, s, t, self.order - 1)
        corrected = self.corrector and state.i >= self.disable_corrector and math.isfinite(t.lam - s.lam)
        return self.advance(
            state,
            self.extrapolate(x, x0, s, t, latest, past),
            history=self.remember(state.history, s, latest, self.order - 1),
            begun=(x, x0) if corrected else None,
            used=((s.lam, latest), *past) if corrected else (),
        )
