"""Discrete flow matching, Euler's method: positions jump at rates frozen for a step, back to the mask as well if wanted."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_REMASK
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import jump_rates, mask_schedule, step_tables
from .times import TimedDraft


@dataclass(frozen=True, eq=False)
class JumpState(TimedDraft):
    """A state with the chances of a jump; `table` is the expected visible share.

    Attributes:
        chances: (2, S, K) float64, for each number of steps S that a block is given and each step: the probability that a mask
            appears, and the probability that a visible token is masked.
    """

    SHARED: ClassVar[tuple[str, ...]] = (*TimedDraft.SHARED, "chances")

    chances: Tensor


@dataclass(frozen=True)
class DFMEuler(Sampler[JumpState]):
    """Gat et al. 2024 (discrete flow matching), arXiv 2407.15595, Euler's method with a divergence-free term, masks as source.

    The path is p_t = (1 - k) [mask] + k [x_1]. Its velocity k'/(1 - k) ([x_1] - [x]) is that of the paper; to it comes a term
    that moves no mass of p_t, eta k' / (k (1 - k)) times a draw anew from p_t itself. Together, with x_1 drawn from the model, a
    masked position appears at the rate (1 + eta) k' / (1 - k) and a visible one is masked at the rate eta k' / k. Over a step h
    it jumps with probability 1 - e^(-h rate). In the last step every mask takes its x_1. With eta = 0 this is the plain Euler
    step, in distribution `tau_leaping`.

    The rates are frozen for a step, so the visible share is kappa in the limit of many steps only; `shares` is what it is.
    A time-conditioned model is told that share. Whether a position jumps is decided before the model is asked, so a step in
    which nothing appears costs no forward pass.

    Differs from the library of Meta (facebookresearch/flow_matching), whose equations these are: eta is a constant; the first
    step, at which k is 0, has no such term; visible tokens stay in the last step.
    """

    name = "dfm_euler"
    family = "masked"
    cite = "Gat et al. 2024, Discrete Flow Matching, arXiv 2407.15595"
    summary = "discrete flow matching by Euler's method, with a divergence-free term that masks again"
    facts = Facts(bias="exact", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    eta: float = option(0.0, "weight of the divergence-free term; 0: the plain Euler step", ge=0, le=1e6)
    schedule: str = option(
        "linear", "kappa, a mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules"
    )

    def init(self, canvas: Layout) -> JumpState:
        chances = [step_tables(canvas.block_steps, functools.partial(self._chance, i))[0] for i in range(2)]
        return JumpState.begin(canvas, grid=self.shares, chances=torch.stack(chances))

    def _chances(self, steps: int) -> tuple[Tensor, Tensor]:
        """(steps + 1,) float64 each: whether a mask appears, and whether a token is masked; 1 and 0 in the last step."""
        appears, hides = (-torch.expm1(-rate) for rate in jump_rates(self.schedule, self.eta, steps))
        appears[-1], hides[-1] = 1.0, 0.0
        return torch.nn.functional.pad(appears, (0, 1), value=1.0), torch.nn.functional.pad(hides, (0, 1))

    def _chance(self, which: int, steps: int) -> Tensor:
        return self._chances(steps)[which]

    def shares(self, steps: int) -> Tensor:
        """(steps + 1,) float64: the expected share of visible positions before each step, and after the last."""
        share = [0.0]
        for appears, hides in zip(*(c[:-1].tolist() for c in self._chances(steps))):
            share.append(share[-1] * (1 - hides) + (1 - share[-1]) * appears)
        return torch.tensor(share, dtype=torch.float64, device="cpu")

    def step(self, predict: Predict, state: JumpState) -> JumpState:
        k = state.block_step.clamp(max=state.table.shape[1] - 1)
        appear, hide = state.chances[:, state.which[state.block_steps], k][:, :, None]  # (B, 1) each
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        u = state.rng.positions(state.x.shape[1], state.step, DRAW_REMASK)  # (B, L)
        appears = state.masked & state.open & ((u < appear) | state.last_step[:, None])
        token = predict(state, appears, t=state.scheduled_level).token
        x = torch.where(~state.masked & (u < hide), mask_id, state.x)
        return state.revise(torch.where(appears, token, x), state.last_step)

    def expected_nfe(self, length: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^L], r_k the share that appears in step k."""
        r = (1 - self.shares(steps)[:-1]) * self._chances(steps)[0][:-1]
        return float((1 - (1 - r) ** length).sum())
