"""P2: a planner says in every step which tokens stand, and the others are masked again."""

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
    """Peng et al. 2025 (path planning), arXiv 2502.03540: in step i the n - floor(n (1 - kappa(i / S))) best-scored
    of a block's n tokens stand; the others are masked.

    A token is drawn at every position, masked or not, and scored alpha log p + (1 - alpha) (-H); visible positions' scores
    are multiplied by eta, which is 1 for no preference, 0 so that no visible token is masked again (the scheduled
    greedy rule), and above 1 to mask them first. A masked position that stands takes its draw, a visible one keeps its
    token. `planner` is what p is at a visible position:

    self    the probability of the fresh draw there, as in the reference: how sure the model is, not whether it agrees.
    token   the probability of the token that stands there.

    A model that only repeats visible tokens (exact denoisers do while a state is possible at all) finds no fault
    with them: docs/remasking.md says when this pays. The choice looks at the draw, so the law is biased.

    Differs from the reference code: log p is that of the logits and not of Gumbel-noised ones; exactly that many are
    masked, of equal scores the higher positions (there: those below the next score, so that ties mask fewer); rows and
    blocks have their own counts; from the step on in which nothing is masked nothing can change, and the block is done.
    """

    name = "p2"
    family = "masked"
    cite = "Peng et al. 2025, Path Planning for Masked Diffusion Model Sampling, arXiv 2502.03540"
    summary = "keep the best-scored tokens of all in every step, mask the others again"
    facts = Facts(bias="biased", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    eta: float = option(1.0, "factor on visible tokens' scores; 0 never masks them, above 1 masks them first", ge=0)
    alpha: float = option(1.0, "weight of log p in the score; the rest is negative entropy", ge=0, le=1)
    kappa: str = option("linear", "visible fraction after each step, a mask schedule", check=mask_schedule)
    planner: str = option(
        "self", "visible tokens are judged by a fresh draw, or as they are", choices=("self", "token")
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
        # With eta = 0 a visible token must win over a masked one that is certain, too.
        score = torch.where(visible, self.eta * score if self.eta else torch.inf, score)
        stands = ops.select(score, state.open, k=state.count - masked).chosen
        token = torch.where(visible, state.x, prediction.token)
        return state.revise(torch.where(stands, token, mask_id), masked == 0)

    def expected_nfe(self, length: int, steps: int) -> float:
        """Steps up to the first that masks nothing."""
        a = mask_schedule(self.kappa)(even_grid(steps))[1:]
        return 1 + sum(math.floor(length * (1 - float(v)) + 1e-9) > 0 for v in a)
