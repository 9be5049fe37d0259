"""Ancestral sampling of a masked diffusion: the reverse process on a grid of times, with a forward pass in every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .times import TimedState


@dataclass(frozen=True)
class Ancestral(Sampler[TimedState]):
    """Sahoo et al. 2024 (MDLM), arXiv 2406.07524, eq. 7: a masked token appears with probability (a_{k+1} - a_k) / (1 - a_k).

    Each step draws tokens for the positions that appear in it, independently, from p(x_0 | x_t). The grid is k / steps in
    progress u, and a(u) is the visible fraction. In the last step all positions that are left appear, so no extra clean-up
    forward pass is needed (MDLM and SEDD spend one; D3PM's own rule is this one).

    Differs from the reference codes: whether a position appears is decided by one uniform number for the whole run and not
    by one per step (the distribution is the same), and the mask id is never among the candidates.
    """

    name = "ancestral"
    family = "masked"
    cite = "Sahoo et al. 2024, Simple and Effective Masked Diffusion Language Models, arXiv 2406.07524"
    summary = "reverse process on a time grid, one forward pass per step"
    facts = Facts(bias="exact", static_plan=True, whole_blocks=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    schedule: str = option(
        "linear",
        "mask schedule: linear, 1-cos, sin, sin^2, beta(a,b), u^p, 1-(1-u)^p, exp(k), log(k)",
        check=mask_schedule,
        kind="mask_schedules",
    )

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, schedule=self.schedule)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        prediction = predict(state, state.open, t=state.scheduled_level)
        return state.commit(state.time < state.visible(1)[:, None], prediction.token)

    def expected_nfe(self, length: int, steps: int) -> float:
        """Sum_k (1 - a_k^L): a row is evaluated until its last token has appeared."""
        a = mask_schedule(self.schedule)(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu"))[:-1]
        return float((1 - a**length).sum())
