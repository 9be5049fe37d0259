"""Random order: as many positions a step as the plan says, chosen blindly."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ops
from ..canvas import Canvas
from ..sampler import Sampler
from .parts import TimedState, even_plan, timed


@dataclass(frozen=True)
class RandomOrder(Sampler):
    """Uria et al. 2014, arXiv 1310.1757: any-order autoregression in a random order, steps = positions for one at a time.

    The order is drawn once: position i's place is that of its own uniform. With fewer steps a step commits the next
    n // S (LLaDA's plan) from one forward, independently of each other: the baseline that every rule has to beat.
    Differs from `first_hitting` in the time a time-conditioned model sees: here the share still masked.
    """

    name = "random_order"
    family = "masked"
    cite = "Uria, Murray, Larochelle 2014, A Deep and Tractable Density Estimator, arXiv 1310.1757"
    summary = "equal counts a step at random positions; the baseline"
    exact_order = True
    counts_known = True

    def init(self, canvas: Canvas) -> TimedState:
        return timed(canvas, "linear")

    def step(self, believe, state: TimedState) -> TimedState:
        chosen = ops.select(state.time, state.open, k=even_plan(state), lowest=True).chosen
        return state.commit(chosen, believe(state, chosen).token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)
