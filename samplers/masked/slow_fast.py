"""SlowFast: explore until it is clear how far the model can see, then fill that span quickly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import fill_up_to, min_count


@dataclass(frozen=True, eq=False)
class SlowFastState(TokenState):
    """A state that remembers how far the model could see.

    Attributes:
        span_end: (B,) int64, where the span of the fast phase ends; it is over if nothing before this is open.
        explored: (B,) int64, steps of the present slow phase.
        reached: (B, history) int64, after which position the last of its steps were confident, the latest last.
    """

    span_end: Tensor
    explored: Tensor
    reached: Tensor


@dataclass(frozen=True)
class SlowFast(Sampler[SlowFastState]):
    """Wei et al. 2025 (SlowFast), arXiv 2506.10848: a slow phase finds a span, a fast phase fills it, and so on.

    A slow step commits the open positions with confidence >= threshold, or the best one if there is none. It notes the last
    open position with confidence >= `low`: how far the model sees (the first open position if there is none). The slow phase
    ends when the variance of the last `history` notes is below `variance`, or after `explore` steps; the latest note ends the
    span. A fast step commits the open positions inside the span with confidence >= threshold, or the best one there. When
    nothing in the span is open, the next slow phase begins. A new block begins with a slow phase.

    The defaults are those of the authors' code; their paper has explore=8, threshold=0.85, low=0.1. Differs from them: what
    they keep of the positions outside the span in the fast phase is a cache, which changes cost and not the rule; the
    variance is that of the population; rows count for themselves; `steps` is a cap, for which the next positions after the
    span are taken as well if necessary (if left out: no cap).
    """

    name = "slow_fast"
    family = "masked"
    cite = "Wei et al. 2025, Accelerating Diffusion LLMs with SlowFast Sampling: The Three Golden Principles, arXiv 2506.10848"
    summary = "explore until the reach of the model is stable, then fill up to there by a threshold"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.9, "least confidence of a committed token; above 1: one position per step", gt=0)
    low: float = option(0.3, "least confidence at the position that ends the span", ge=0)
    explore: int = option(6, "most steps of a slow phase", ge=1)
    history: int = option(2, "number of slow steps whose notes must agree", ge=2, le=1024)
    variance: float = option(1.0, "the notes agree if their variance is below this, in squared positions", gt=0)

    def init(self, canvas: Layout) -> SlowFastState:
        zeros = torch.zeros_like(canvas.x[:, 0])
        reached = zeros[:, None].expand(-1, self.history)
        return SlowFastState.begin(canvas, span_end=zeros, explored=zeros, reached=reached)

    def step(self, predict: Predict, state: SlowFastState) -> SlowFastState:
        position = torch.arange(state.x.shape[1], device=state.x.device)
        place, least = state.open.cumsum(1), min_count(state)  # (B, L) from 1, among the open positions; (B,)
        span = state.open & (position < state.span_end[:, None])
        fast = span.any(1)  # (B,)
        asked = state.open & (span | ~fast[:, None] | (place <= least[:, None]))
        prediction = predict(state, asked, want="confidence")
        sure = (prediction.confidence >= self.threshold) & (span | ~fast[:, None])
        chosen = fill_up_to(state, sure, prediction.confidence, least)

        seen = (prediction.confidence >= self.low) | (state.open & (place == 1))
        reach = torch.where(seen & state.open, position + 1, 0).amax(1)  # (B,)
        reached = torch.cat([state.reached[:, 1:], reach[:, None]], 1)  # (B, history)
        explored = torch.where(state.block_step == 0, 0, state.explored) + 1
        agree = (explored >= self.history) & (reached.double().var(1, correction=0) < self.variance)
        over = ~fast & (agree | (explored >= self.explore))
        return state.commit(
            chosen,
            prediction.token,
            span_end=torch.where(over, reach, state.span_end),
            explored=torch.where(fast | over, 0, explored),
            reached=torch.where(fast[:, None], state.reached, reached),
        )
