"""Prophet and SchED: everything that is left at once, as soon as the model is sure of it on average."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops
from ..prediction import Predict, sum_over
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import even_count

MOST = 32.0  # the most that one position's gap counts: of a token that is certain it is infinite


@dataclass(frozen=True)
class Prophet(Sampler[TokenState]):
    """Li et al. 2025 (Prophet), arXiv 2508.19982, and Mohamed et al. 2025 (SchED), arXiv 2512.02892: early commitment.

    As `low_confidence`, LLaDA's even plan, until the mean gap between the best and the second-best logit reaches a bar; then
    every mask gets its token, in all blocks, and the row is done. The bar falls with progress p, the row's steps so far as a
    share of the run's. `schedule` says how:

    stages       Prophet: `high` below p = 1/3, then the middle of both, and `low` from p = 2/3 on: 7.5, 5 and 2.5.
    linear       SchED: high + (low - high) p.
    cosine       SchED: low + (high - low) (1 + cos(pi p)) / 2.
    exponential  SchED: low + (high - low) exp(-rate p).

    `sched` is another name for schedule="linear", low=0. span="block" takes the mean over the present block, and commits
    that: for models that cannot see beyond it.

    Differs from the references: the mean is over the masks that are left and not over the whole answer, since a model only
    repeats what it sees (and exact models are asked at masks only); one position counts at most 32, so that one certain
    token does not decide for all; a step for which the plan has nothing asks nothing; rows commit for themselves.
    """

    name = "prophet"
    family = "masked"
    cite = "Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding, arXiv 2508.19982"
    summary = "the k most confident positions per step, and all the rest once the logit gap is wide (Prophet, SchED)"
    default_temperature = 0.0
    facts = Facts(bias="biased", stores_logits=True)
    conformance = Conformance(one_at_a_time={"high": 1e6, "low": 1e6})

    schedule: str = option(
        "stages", "how the bar falls with progress", choices=("stages", "linear", "cosine", "exponential")
    )
    high: float = option(7.5, "the bar at the beginning, a mean gap between logits", ge=0)
    low: float = option(2.5, "the bar at the end; exponential: the bar that it tends to", ge=0)
    rate: float = option(2.0, "exponential: how fast the bar falls", ge=0, le=1000)
    span: str = option("answer", "which masks the mean is over, and are committed", choices=("answer", "block"))

    def bar(self, progress: Tensor) -> Tensor:
        """(B,) float64: the mean gap that is enough at `progress` (B,) float64, from 0 to 1."""
        if self.schedule == "stages":
            middle = (self.high + self.low) / 2
            return torch.where(progress < 1 / 3, self.high, torch.where(progress < 2 / 3, middle, self.low)).double()
        if self.schedule == "linear":
            share = 1 - progress
        elif self.schedule == "cosine":
            share = (1 + torch.cos(math.pi * progress)) / 2
        else:
            share = torch.exp(-self.rate * progress)
        return self.low + (self.high - self.low) * share

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        count = even_count(state)
        span = (state.undecided if self.span == "answer" else state.open) & (count > 0)[:, None]
        logits = predict.logits(state, span)
        # A vocabulary of one token has no second best.
        value = logits.value if logits.value.shape[1] > 1 else pad(logits.value, (0, 1), value=-torch.inf)
        best = value.topk(2, dim=1).values.double()  # (N, 2)
        gap = (best[:, 0] - best[:, 1]).clamp(max=MOST)
        gap = logits.on_canvas(gap, torch.zeros_like(state.x, dtype=torch.float64))  # (B, L)
        mean = sum_over(gap, span) / span.sum(1).clamp_min(1)  # (B,) float64
        progress = state.step.double() / state.canvas.block_steps.sum(1).clamp_min(1)
        sure = (mean >= self.bar(progress))[:, None] & span

        prediction = predict.read(state, logits, want="confidence")
        chosen = ops.select(prediction.confidence, state.open, k=count).chosen
        # fix() decides the later blocks as well; a step commits in the present one.
        return state.commit(chosen | sure, prediction.token).fix(sure, prediction.token)
