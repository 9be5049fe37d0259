"""Token to mask: LLaDA2.1 whose editing masks a doubtful token again, where LLaDA2.1 writes another one over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..sampler import option
from ..uniform.block_refinement import EditState
from .llada2 import LLaDA2

DOUBT = {"unlikely": 0.5, "other": 0.9, "moved": 0.3}


@dataclass(frozen=True, eq=False)
class DoubtState(EditState):
    """A state that remembers what has become of each token.

    Attributes:
        times: (B, L) int64, how often the position was masked again.
        said: (B, L) float32, the probability of the token that stands there, when the model was last asked about it; NaN if
            it was not asked since the token was written.
    """

    times: Tensor
    said: Tensor


@dataclass(frozen=True)
class TokenToMask(LLaDA2):
    """Yao 2026, arXiv 2604.18738 (also 2605.26436): in the editing step of LLaDA2.1 a doubtful token is masked again.

    Masks are filled in as in `llada2`. Of the tokens that stand before the step, these are doubtful:

    unlikely  p(token) < 0.5.
    other     the position draws another token, with a probability above 0.9: where LLaDA2.1 would edit.
    moved     p(token) differs by more than 0.3 from what it was in the last forward pass.

    `edit_threshold` is that number; none, the default, takes the paper's. A step masks at most `share` of the tokens that
    stand (at least one), the most doubtful first, and a position at most `most_times`. A block is done when it is full
    and nothing is doubtful, or when its steps and max_post_steps more are spent, of which the last fills in what is left.

    Differs from the reference: rows count for themselves; what is asked about of a token that was just written is not compared
    with what was said of its mask (there: the last logits, whatever stood there); the plan's least number of positions is
    at least 1 after the block's own steps.
    """

    name = "token_to_mask"
    cite = "Yao 2026, Remask, Don't Replace: Token-to-Mask Refinement, arXiv 2604.18738"
    summary = "llada2 whose editing masks doubtful tokens again instead of replacing them"

    edit_threshold: float | None = option(None, "the number of the rule `doubt`; none: 0.5, 0.9 or 0.3", ge=0)
    doubt: str = option("unlikely", "which tokens are masked again", choices=tuple(DOUBT))
    share: float = option(0.25, "most tokens that a step masks again, as a share of those that stand", ge=0, le=1)
    most_times: int = option(5, "how often a position may be masked again; the paper's evaluations use 3", ge=0)

    @property
    def extra_steps(self) -> int:
        return self.max_post_steps

    def init(self, canvas: Layout) -> DoubtState:
        zeros = torch.zeros_like(canvas.x)
        said = torch.full_like(canvas.x, torch.nan, dtype=torch.float32)
        return DoubtState.begin(canvas, post=zeros[:, 0], times=zeros, said=said)

    def step(self, predict: Predict, state: DoubtState) -> DoubtState:  # type: ignore[override]
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        masked, stands = state.open & state.masked, state.open & ~state.masked
        left = masked.sum(1)
        tempered = (predict.temperature or 1.0) if self.tempered else 1.0
        held = torch.where(stands, state.x, 0)
        prediction = predict(
            state,
            want=("confidence", "given"),
            given=held,
            confidence_temperature=tempered,
            truncated=self.tempered,
        )
        last = state.block_step + 1 >= self.steps_of(state) + self.max_post_steps
        least = torch.where(last, left, torch.maximum(self.least(state, left), (left > 0).to(torch.int64)))
        commit = ops.select(prediction.confidence, masked, threshold=self.threshold, least=least).chosen

        limit = DOUBT[self.doubt] if self.edit_threshold is None else self.edit_threshold
        moved = (prediction.given - state.said).abs()
        sure, other = prediction.confidence, prediction.token != state.x
        doubtful, score = {
            "unlikely": (prediction.given < limit, -prediction.given),
            "other": ((sure > limit) & other, sure),
            "moved": (moved > limit, moved),  # a comparison with NaN is false
        }[self.doubt]
        doubtful = doubtful & stands & (state.times < self.most_times) & ~last[:, None]
        most = torch.floor(stands.sum(1).double() * self.share + 1e-9).to(torch.int64).clamp_min(1)  # (B,)
        again = ops.select(torch.where(doubtful, score, -torch.inf), doubtful, k=most).chosen

        x = torch.where(commit, prediction.token, torch.where(again, mask_id, state.x))
        level = torch.where(commit, 0.0, torch.where(again, 1.0, state.level))
        said = torch.where(stands & ~again, prediction.given, torch.nan)
        done = last | ((left == 0) & ~again.any(1))
        return state.renoised(x, level, done, times=state.times + again, said=said)
