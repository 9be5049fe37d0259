"""LLaDA2's rule: commit confident tokens, at least as many as the plan demands, and edit committed tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_NOISE_TOKEN
from ..sampler import Conformance, Facts, Sampler, option
from .levels import NoisyState, quota


@dataclass(frozen=True, eq=False)
class EditState(NoisyState):
    """A state whose committed tokens may be edited; `level` is 0 at committed tokens and 1 at the others.

    Attributes:
        post: (B,) int64, how many steps the present block has had for editing only.
    """

    post: Tensor


@dataclass(frozen=True)
class BlockRefinement(Sampler[EditState]):
    """inclusionAI 2026 (LLaDA2.1 technical report), joint threshold decoding, in the form of diffusers' BlockRefinementScheduler.

    A token is drawn at every open position. Those with a probability of at least `threshold` are committed, and at least
    as many of the best as the plan demands: after step k of S, ceil((k + 1) n / S) of a block's n positions. The others get
    tokens of fresh noise. With `edit_threshold`, a committed token is replaced if its position draws another token with at
    least that probability. A block whose tokens are all committed before the last of its steps goes on editing until a step
    changes nothing, for at most `max_post_steps` steps, which come on top of `steps`.

    Differs from the reference: rows count for themselves; without editing, a block is done when everything is committed
    (there: it runs all steps). An edit_threshold of 0 edits whatever the probability, as in SGLang (diffusers: off).
    """

    name = "block_refinement"
    family = "uniform"
    cite = "inclusionAI 2026, LLaDA2.1 technical report; diffusers, BlockRefinementScheduler"
    summary = "commit above a threshold, at least as many as planned; edit committed tokens"
    default_temperature = 0.0
    facts = Facts(revises=True, bias="biased", sweep=("threshold", (2.0, 0.99, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.95, "least probability of a committed token; above 1: the plan alone", gt=0)
    edit_threshold: float | None = option(
        None, "least probability of a token that replaces another; none: no editing", ge=0
    )
    max_post_steps: int = option(
        16, "most steps for editing only, after a block is committed; on top of its steps", ge=0
    )
    tempered: bool = option(
        False,
        "probabilities of what is drawn from, as diffusers has them: at its temperature, of what top_k and top_p leave",
    )

    def init(self, canvas: Layout) -> EditState:
        return EditState.begin(canvas, post=torch.zeros(len(canvas.x), dtype=torch.int64, device=canvas.x.device))

    @property
    def extra_steps(self) -> int:
        return 0 if self.edit_threshold is None else self.max_post_steps

    def steps_of(self, state: EditState) -> Tensor:
        """(B,) int64: the steps in which the present block is to be committed."""
        return state.block_steps

    def least(self, state: EditState, left: Tensor) -> Tensor:
        """(B,) int64: how many of the `left` (B,) uncommitted positions must be committed in this step."""
        return quota(state, left)

    def step(self, predict: Predict, state: EditState) -> EditState:
        fresh = state.open & (state.level > 0)
        left = fresh.sum(1)
        prediction = predict(
            state,
            fresh if self.edit_threshold is None else state.open,
            want="confidence",
            confidence_temperature=(predict.temperature or 1.0) if self.tempered else 1.0,
            truncated=self.tempered,
        )
        least = self.least(state, left)
        commit = ops.select(prediction.confidence, fresh, threshold=self.threshold, least=least).chosen
        blank = state.canvas.mask_id
        rest = state.canvas.noise(state.step, DRAW_NOISE_TOKEN) if blank is None else blank
        x = torch.where(commit, prediction.token, torch.where(fresh, rest, state.x))
        level = torch.where(commit, 0.0, state.level)
        if self.edit_threshold is None:
            return state.renoised(x, level, commit)
        edit = state.open & ~fresh & (prediction.token != state.x) & (prediction.confidence >= self.edit_threshold)
        post = torch.where(left == 0, state.post + 1, 0)
        idle = (left == 0) & ~edit.any(1)
        tired = ~(fresh & ~commit).any(1) & (post >= self.max_post_steps)
        late = (left > 0) & (state.block_step + 1 >= self.steps_of(state))
        return state.renoised(torch.where(edit, prediction.token, x), level, late | idle | tired, post=post)
