"""The theta-RK-2 method: a trial leap, and then the whole step with the rates that the trial found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_REMASK, DRAW_TOKEN
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .theta_trapezoidal import two_stages
from .times import TimedState, draw_from_mixture, even_grid


@dataclass(frozen=True)
class ThetaRK2(Sampler[TimedState]):
    """Ren et al. 2025, arXiv 2502.00234, theta-RK-2: leap over h with (1 - 1/2theta) mu + 1/2theta mu*, from its beginning.

    mu* are the rates after a trial leap over theta h, whose tokens are thrown away. For masked models, positions whose time
    falls in the step get tokens from ((1 - 1/2theta) p + 1/2theta p*)_+, where p* = p(x_i | x with trial tokens at other
    masked positions, each with the probability theta (b - a) / (1 - a) of the trial leap).

    On masked problems this method is first order; docs/solvers.md says why, has the figures, and knows no budget at which to
    prefer it. It is here so that it can be measured, and so that its users can reproduce old numbers.

    Differs from the paper as `theta_trapezoidal` does. In addition, the trial leap reveals none of the positions that then
    appear (in the paper they have rate 0 and wait for the next step), so that positions keep the schedule's times.
    """

    name = "theta_rk2"
    family = "masked"
    cite = "Ren et al. 2025, Fast Solvers for Discrete Diffusion Models, arXiv 2502.00234"
    summary = "two forward passes per step: a trial leap and the step; first order on masked models"
    facts = Facts(bias="exact", static_plan=True, whole_blocks=True, stores_logits=True)
    conformance = Conformance(one_at_a_time={"block_length": 1}, redraws=(DRAW_TOKEN,))

    theta: float = option(0.5, "length of the trial leap as a share of the step", gt=0, le=0.5)
    schedule: str = option("linear", "mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules")

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, schedule=self.schedule)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        begin, middle, end = two_stages(state, self.theta)
        appears = state.open & (state.time < end[:, None])
        uniform = state.rng.positions(state.x.shape[1], state.step, DRAW_REMASK)  # (B, L) float64
        leaps = uniform < ((middle - begin) / (1 - begin).clamp_min(1e-300))[:, None]
        trial = state.open & ~appears & leaps & appears.any(1, keepdim=True)
        then = predict.logits(state, appears | trial, t=state.level(begin))
        token = predict.read(state, then).token
        again = appears & trial.any(1, keepdim=True)
        tried = dataclasses.replace(state, x=torch.where(trial, token, state.x))
        now = predict.logits(tried, again, t=state.level(middle))
        token = torch.where(again, draw_from_mixture(predict, state, now, then, 1 / (2 * self.theta)), token)
        return state.commit(appears, token)

    def expected_nfe(self, length: int, steps: int) -> float:
        """One forward pass if something appears in a step, one more if something is also tried."""
        a = mask_schedule(self.schedule)(even_grid(steps))
        a = torch.cat([a[:-1:2], a[-1:]])  # a step's ends; an odd forward pass is the last step
        mass = torch.diff(a)
        tried = (1 - a[1:]) * self.theta * mass / (1 - a[:-1]).clamp_min(1e-300)
        none = (1 - mass) ** length
        return float((2 - 2 * none - (1 - tried) ** length + (1 - mass - tried) ** length).sum())
