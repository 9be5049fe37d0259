"""Discrete flow matching by Euler's method under uniform noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_NOISE_TOKEN, DRAW_ROUTE
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import jump_rates, mask_schedule, step_tables
from .d3pm_ancestral import GridState


@dataclass(frozen=True, eq=False)
class RateState(GridState):
    """A state on a grid of times, with the rates of its steps.

    Attributes:
        rates: (2, S, K) float64, for each number of steps S that a block is given and each step: the mean number of jumps to
            x_1, and of draws anew from the noise.
    """

    SHARED: ClassVar[tuple[str, ...]] = (*GridState.SHARED, "rates")

    rates: Tensor


@dataclass(frozen=True)
class DFMEulerUniform(Sampler[RateState]):
    """Gat et al. 2024 (discrete flow matching), arXiv 2407.15595, Euler's method with a divergence-free term, uniform source.

    The path is p_t(v) = (1 - k) / V + k [v = x_1]. A position jumps to v at the rate

        u(v) = k'/(1 - k) [v = x_1] + eta k'/(k (1 - k)) ((1 - k)/V + k [v = x_1]),   v other than the present token,

    with x_1 drawn from the model. The second term draws anew from p_t, which moves none of its mass. Over a step h it jumps with
    probability 1 - e^(-h sum u), to v in proportion to u(v). The last step takes x_1 everywhere. With eta = 0 each token
    becomes x_1 or stays: the plain Euler step. The distribution is the model's in the limit of many steps.

    Differs from the library of Meta (facebookresearch/flow_matching), whose equations these are: eta is a constant, and the first
    step, at which k is 0, has no such term; models are told 1 - k, their noise level, at most 1 - 2^-20 before the end.
    """

    name = "dfm_euler_uniform"
    family = "uniform"
    cite = "Gat et al. 2024, Discrete Flow Matching, arXiv 2407.15595"
    summary = "discrete flow matching by Euler's method under uniform noise, with a divergence-free term"
    facts = Facts(bias="asymptotic", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"steps": 192})

    eta: float = option(0.0, "weight of the divergence-free term; 0: the plain Euler step", ge=0, le=1e6)
    schedule: str = option(
        "linear", "kappa, a mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules"
    )

    def init(self, canvas: Layout) -> RateState:
        table, which = step_tables(canvas.block_steps, self._kappa)
        rates = torch.stack([step_tables(canvas.block_steps, functools.partial(self._rates, i))[0] for i in range(2)])
        return RateState.begin(canvas, table=table, which=which, rates=rates)

    def _kappa(self, steps: int) -> Tensor:
        """(steps + 1,) float64: kappa before each step and after the last."""
        k = mask_schedule(self.schedule)(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu"))
        return torch.cat([k[:-1].clamp(max=1 - 2.0**-20), k[-1:]])

    def _rates(self, which: int, steps: int) -> Tensor:
        return torch.nn.functional.pad(jump_rates(self.schedule, self.eta, steps)[which], (0, 1))

    def step(self, predict: Predict, state: RateState) -> RateState:
        k = state.block_step.clamp(max=state.table.shape[1] - 1)
        to_data, to_noise = state.rates[:, state.which[state.block_steps], k][:, :, None]  # (B, 1) each
        length, vocab = state.x.shape[1], state.canvas.vocab_size
        target = predict(state).token  # (B, L) x_1
        data = to_data * (target != state.x)  # (B, L) the present token is no target
        noise = to_noise * (1 - 1 / vocab)
        total = data + noise
        jumps = -torch.expm1(-total)
        u = state.rng.positions(length, state.step, DRAW_ROUTE)
        v = state.rng.positions(length, state.step, DRAW_NOISE_TOKEN)
        other = (
            state.x + 1 + (v * (vocab - 1)).to(torch.int64)
        ) % vocab  # uniform over the tokens that do not stand there
        x = torch.where(u < jumps * data / total.clamp_min(1e-300), target, other)
        x = torch.where(u < jumps, x, state.x)
        last = state.last_step[:, None]
        return state.renoised(torch.where(last, target, x), 1 - state.alpha(1), state.last_step)

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps
