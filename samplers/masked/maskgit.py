"""MaskGIT: positions by confidence, with noise that fades during the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..random import gumbel
from ..sampler import Facts, Sampler, option
from ..schedule import mask_schedule
from .plans import in_time
from .times import TimedState, even_grid


def _late_grid(steps: int) -> Tensor:
    """(S + 1,) float64: step k ends at k / (S - 1), the last at 1."""
    ends = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64, device="cpu")[-steps:]
    return torch.cat([torch.zeros_like(ends[:1]), ends])


@dataclass(frozen=True)
class Maskgit(Sampler[TimedState]):
    """Chang et al. 2022 (MaskGIT), arXiv 2202.04200, section 3.2: keep floor(n gamma((k + 1) / S)) masked after step k.

    gamma = 1 - a is the masked share of the schedule, the cosine by default. A token is drawn at every open position, and the
    positions with the highest log p(token) + r_temp (1 - (k + 1) / S) Gumbel are committed, at least one. At r_temp = 0 and
    with the same counts this is `low_confidence`; the noise makes early choices nearly random and late ones greedy.

    With `late` it does as Guidance-MaskGIT's code: step k ends with max(k + 1, floor(n a(k / (S - 1)))) visible positions and
    has noise r_temp (1 - k / (S - 1)); the default schedule there is "arcsin" (which it calls arccos). Steps that commit
    nothing cost no forward pass here. Chang's code keeps one position for the last step; here a row may be done before.
    """

    name = "maskgit"
    family = "masked"
    cite = "Chang et al. 2022, MaskGIT: Masked Generative Image Transformer, arXiv 2202.04200"
    summary = "scheduled number of positions, by log-confidence with annealed Gumbel noise"
    facts = Facts(bias="biased", static_plan=True)

    schedule: str = option(
        "1-cos", "mask schedule; 1-cos is MaskGIT's cosine", check=mask_schedule, kind="mask_schedules"
    )
    r_temp: float = option(4.5, "scale of the Gumbel noise on the log-confidence at the start; it fades to 0", ge=0)
    late: bool = option(False, "count and anneal as the code of Guidance-MaskGIT does")

    def init(self, canvas: Layout) -> TimedState:
        return TimedState.begin(canvas, schedule=self.schedule, grid=self.grid)

    @property
    def grid(self) -> Callable[[int], Tensor]:
        return _late_grid if self.late else even_grid

    def total(self, n: Tensor | int, k: Tensor, a: Tensor) -> Tensor:
        """How many of a block's n positions are visible after step k, if the schedule is at a. All of one shape, or numbers."""
        # 1e-9: a product that is a whole number except for its last bits is that number.
        if self.late:
            return torch.maximum(torch.floor(n * a + 1e-9), k + 1.0)
        return n - torch.floor(n * (1 - a) + 1e-9)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        n, k, steps = state.block_size, state.block_step, state.block_steps
        count = self.total(n, k, state.visible(1)).to(torch.int64) - (n - state.remaining)
        count = in_time(state, count).clamp_min(0 if self.late else 1)  # (B,)
        ratio = k.float() / (steps - 1).clamp_min(1) if self.late else (k + 1).float() / steps.clamp_min(1)
        prediction = predict(state, state.open & (count > 0)[:, None], want="confidence")
        noise = self.r_temp * (1 - ratio).clamp_min(0)[:, None] * gumbel(state)  # (B, L)
        return state.commit_best(prediction.confidence.double().log() + noise, prediction.token, k=count)

    def expected_nfe(self, length: int, steps: int) -> float:
        """The number of steps that commit something."""
        have, nfe = 0, 0
        for k, a in enumerate(mask_schedule(self.schedule)(self.grid(steps))[1:]):
            count = int(self.total(length, torch.tensor(k, device="cpu"), a)) - have
            count = min(max(count, 0 if self.late else 1), length - have)
            have, nfe = have + count, nfe + (count > 0)
        return nfe
