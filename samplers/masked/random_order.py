"""Random order: as many positions per step as the plan says, chosen at random."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Facts
from .plans import ScheduledSampler
from .times import TimedState


@dataclass(frozen=True)
class RandomOrder(ScheduledSampler):
    """Uria et al. 2014, arXiv 1310.1757: any-order autoregression in a random order, one at a time if steps = positions.

    The order is drawn once: a position's place in it is that of its own uniform number. With fewer steps, a step commits the
    next n // S positions (LLaDA's plan) from one forward pass, independently of each other: the baseline that every rule has
    to beat. Differs from `first_hitting` in the time that a time-conditioned model is given: here the share still masked.

    With a mask schedule for `plan` and least=1 this is eMIGM's rule (arXiv 2503.07197): all rows reveal the same number of
    positions, at least one, each at positions of its own. eMIGM draws that number from a binomial, once for the batch. Here
    it is what the binomial expects, rounded, since a row must not depend on its batch.
    """

    name = "random_order"
    family = "masked"
    cite = "Uria, Murray, Larochelle 2014, A Deep and Tractable Density Estimator, arXiv 1310.1757"
    summary = "planned number of positions per step, chosen at random; the baseline"
    facts = Facts(bias="exact", static_plan=True)

    def init(self, canvas: Layout) -> TimedState:
        state = super().init(canvas)
        return state if isinstance(state, TimedState) else TimedState.begin(canvas)

    def order(self, state: TimedState) -> Tensor:
        """(B, L) float64: the positions with the lowest values go first."""
        return state.time

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        chosen = ops.select(self.order(state), state.open, k=self.count(state), lowest=True).chosen
        return state.commit(chosen, predict(state, chosen).token)
