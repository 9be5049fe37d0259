"""The theta-trapezoidal method: two stages per step, with extrapolated rates in the second. Second order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_TOKEN
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .times import TimedState, draw_from_mixture, even_grid


@dataclass(frozen=True)
class ThetaTrapezoidal(Sampler[TimedState]):
    """Ren et al. 2025, arXiv 2502.00234, leap over theta h, then over (1 - theta) h with alpha_1 mu* - alpha_2 mu.

    mu are the rates at the step's beginning and mu* those after the first leap; alpha_1 = 1 / (2 theta (1 - theta)),
    alpha_2 = alpha_1 - 1. For masked models mu_i(v) = beta p_i(v), and here beta is integrated exactly: in a step that
    takes the visible fraction from a to b, positions whose time is before a + theta (b - a) appear with tokens from
    p = p(x_i | x), the others with tokens from (alpha_1 p* - alpha_2 p)_+, p* = p(x_i | x with those tokens). The dependence
    that pairs lose in the first stage is restored exactly by the second, whatever the step size: two positions have their
    exact joint distribution. The error that is left is of three and more positions, second order in h until the end
    (including beta -> infinity).

    That holds while alpha_1 p* >= alpha_2 p; for theta = 1/2, while no first stage halves a probability. If tokens exclude
    each other, the difference is cut off at 0 (`_+`) and the method is first order; docs/solvers.md has figures.

    `steps` counts forward passes, two per step; an odd one is a plain last step. A stage that reveals nothing costs none, and
    after an empty first stage p* is p, without asking again (exact for models that do not depend on the time).
    Differs from the paper: rates are integrated and not frozen (frozen rates on an even grid measure order 1.8); a distribution
    that was cut off is normalised, so that positions keep the schedule's times; there is no early stopping time.
    """

    name = "theta_trapezoidal"
    family = "masked"
    cite = "Ren et al. 2025, Fast Solvers for Discrete Diffusion Models, arXiv 2502.00234"
    summary = "two forward passes per step, second order while tokens depend mildly on each other"
    facts = Facts(bias="exact", static_plan=True, whole_blocks=True, stores_logits=True)
    conformance = Conformance(one_at_a_time={"block_length": 1}, redraws=(DRAW_TOKEN,))

    theta: float = option(0.5, "place of the second forward pass in the step; robust from 0.3 to 0.5", gt=0, lt=1)
    schedule: str = option("linear", "mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules")

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, schedule=self.schedule)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        begin, middle, end = two_stages(state, self.theta)
        first = state.open & (state.time < middle[:, None])
        second = state.open & (state.time < end[:, None]) & ~first
        then = predict.logits(state, first | second, t=state.level(begin))
        token = predict.read(state, then).token
        again = second & first.any(1, keepdim=True)
        half = dataclasses.replace(state, x=torch.where(first, token, state.x))
        now = predict.logits(half, again, t=state.level(middle))
        weight = 1 / (2 * self.theta * (1 - self.theta))  # the weight of p*; that of p is 1 less
        token = torch.where(again, draw_from_mixture(predict, state, now, then, weight), token)
        return state.commit(first | second, token)

    def expected_nfe(self, length: int, steps: int) -> float:
        """One forward pass if either stage reveals something, one more if both do."""
        a = mask_schedule(self.schedule)(even_grid(steps))
        mass = torch.diff(a[::2])  # (steps // 2,)
        one = (1 - self.theta * mass) ** length + (1 - (1 - self.theta) * mass) ** length
        last = 1 - float(a[-2]) ** length if steps % 2 else 0.0
        return float((2 - one).sum()) + last


def two_stages(state: TimedState, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The visible fractions (B,) at which a step of two forward passes begins, has its second one, and ends.

    The grid k / S counts forward passes, so that a step is two of its points. A last point alone has everything in its first
    stage.
    """
    begin, end = state.visible(0, stride=2), state.visible(2, stride=2)
    alone = 2 * state.block_step + 1 >= state.block_steps
    return begin, torch.where(alone, end, begin + theta * (end - begin)), end
