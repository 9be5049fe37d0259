"""P2: in every step a planner says which tokens stand, and the others are masked again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .times import TimedDraft, even_grid


@dataclass(frozen=True)
class P2(Sampler[TimedDraft]):
    """Peng et al. 2025 (path planning), arXiv 2502.03540: in step i the n - floor(n (1 - kappa(i / S))) tokens of a block's n
    with the best scores stand; the others are masked.

    A token is drawn at every position, masked or not, and scored alpha log p + (1 - alpha) (-H). The scores of visible
    positions are multiplied by eta: 1 has no preference, 0 never masks a visible token again (the scheduled greedy rule), and
    more than 1 masks visible tokens first. A masked position that stands takes its draw, a visible one keeps its token.
    `planner` says what p is at a visible position:

    self    The probability of the fresh draw there, as in the reference: how sure the model is, not whether it agrees.
    token   The probability of the token that stands there.

    A model that only repeats visible tokens (exact denoisers do, as long as a state is possible at all) finds no fault
    with them: docs/remasking.md says when remasking pays. The choice depends on the draw, so the distribution is biased.

    Differs from the reference code: log p is that of the logits and not of Gumbel-noised ones; exactly that many are
    masked, and of equal scores the higher positions (there: those below the next score, so that ties mask fewer); rows and
    blocks have their own counts; from the first step that masks nothing, nothing can change, and the block is done.
    """

    name = "p2"
    family = "masked"
    cite = "Peng et al. 2025, Path Planning for Masked Diffusion Model Sampling, arXiv 2502.03540"
    summary = "in every step keep the best-scored tokens of all, and mask the others again"
    facts = Facts(bias="biased", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    eta: float = option(
        1.0, "factor on the scores of visible tokens; 0 never masks them, above 1 masks them first", ge=0
    )
    alpha: float = option(
        1.0, "weight of log p in the score; the remaining weight is for the negative entropy", ge=0, le=1
    )
    kappa: str = option(
        "linear", "visible fraction after each step: a mask schedule", check=mask_schedule, kind="mask_schedules"
    )
    planner: str = option(
        "self", "judge a visible token by a fresh draw there, or by itself", choices=("self", "token")
    )

    def init(self, canvas: Layout) -> TimedDraft:
        return TimedDraft.begin(canvas, schedule=self.kappa)

    def step(self, predict: Predict, state: TimedDraft) -> TimedDraft:
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        masked = torch.floor(state.count * (1 - state.visible(1)) + 1e-9).to(torch.int64)  # (B,)
        visible = state.open & ~state.masked
        want = ["confidence"] + ["entropy"] * (self.alpha < 1) + ["given"] * (self.planner == "token")
        held = torch.where(visible, state.x, 0)  # the mask id is no token to ask for
        prediction = predict(state, want=tuple(want), t=state.scheduled_level, given=held)
        p = (
            torch.where(visible, prediction.given, prediction.confidence)
            if self.planner == "token"
            else prediction.confidence
        )
        score = self.alpha * p.clamp_min(1e-30).log()  # (B, L) float32
        if self.alpha < 1:
            score = score - (1 - self.alpha) * prediction.entropy
        # With eta = 0 a visible token must also win over a masked one that is certain.
        score = torch.where(visible, self.eta * score if self.eta else torch.inf, score)
        stands = ops.select(score, state.open, k=state.count - masked).chosen
        token = torch.where(visible, state.x, prediction.token)
        return state.revise(torch.where(stands, token, mask_id), masked == 0)

    def expected_nfe(self, length: int, steps: int) -> float:
        """The number of steps up to the first that masks nothing."""
        a = mask_schedule(self.kappa)(even_grid(steps))[1:]
        return 1 + sum(math.floor(length * (1 - float(v)) + 1e-9) > 0 for v in a)
