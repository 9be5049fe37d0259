"""KLASS: commit what the model is sure of and no longer changes its mind about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Canvas, TokenState
from ..sampler import Sampler, option
from .parts import DRAW_RANK, at_least, even_plan, row_sum, topped_up


def log_softmax(value: Tensor) -> Tensor:
    """(N, V) -> (N, V), -200 for what is impossible: e^-200 is 0, and 0 x -200 adds nothing to a sum, as -inf would."""
    value = value - value.amax(1, keepdim=True)
    return (value - row_sum(value.exp()).log()[:, None]).clamp_min_(-200.0)


@dataclass(frozen=True, eq=False)
class KlassState(TokenState):
    """What the model said in the last step.

    Attributes:
        said: (N, V) float32, log-probabilities of the N positions asked about in the last step: 4 N V bytes.
        place: (B, L) int64, where a position is among those; -1: it was not asked about.
        stable: (B, L) int64, for how many steps in a row its prediction has moved less than the threshold.
    """

    said: Tensor
    place: Tensor
    stable: Tensor


@dataclass(frozen=True)
class Klass(Sampler):
    """Kim et al. 2025 (KLASS), arXiv 2511.05664, algorithm 1: commit where KL(p_t || p_{t+1}) stays low and confidence is high.

    p_t is a position's prediction in this step and p_{t+1} that of the step before. Ready are the open positions whose KL
    was below `kl_threshold` in the last `history_length` steps and whose token's probability is above `conf_threshold`. A
    step commits the ready ones, or, where a row has none, LLaDA's count of the most confident.

    Differs from the reference code: a ready set smaller than the plan cannot leave masks behind, it is topped up by
    confidence where the block would not be done in its steps; the history begins anew in each block, for which a step
    or so more is paid, and only open positions are asked about (the code watches all masked ones, in every block:
    across_blocks=True does, at the price of their logits); above temperature 0 tokens are drawn from softmax(l / T), not
    from a softmax of exponentials.
    """

    name = "klass"
    family = "masked"
    cite = "Kim et al. 2025, KLASS: KL-Guided Fast Inference in Masked Diffusion Models, arXiv 2511.05664"
    summary = "positions whose prediction is confident and has stopped moving"
    default_temperature = 0.0
    exact_order = False
    one_at_a_time = {"conf_threshold": 2.0}
    stores_logits = True
    sweep = ("conf_threshold", (2.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3))

    kl_threshold: float = option(0.01, "nats; a prediction that moves less in a step is stable", ge=0)
    conf_threshold: float = option(0.9, "least probability of a token, not included; above 1: none is ready", gt=0)
    history_length: int = option(2, "steps for which a prediction must have been stable", ge=1)
    strategy: str = option("all", "which of the ready", choices=("all", "max_conf", "min_kl", "random"))
    across_blocks: bool = option(False, "watch positions of later blocks too, as the reference code does")

    def init(self, canvas: Canvas) -> KlassState:
        state = canvas.start()
        never = torch.full_like(state.x, -1)
        nothing = torch.zeros(1, canvas.vocab_size, device=state.x.device)
        return state.extend(KlassState, said=nothing, place=never, stable=torch.zeros_like(never))

    def step(self, believe, state: KlassState) -> KlassState:
        logits = believe.logits(state, state.masked if self.across_blocks else state.open)
        belief = believe.read(state, logits, want="confidence")
        now = log_softmax(logits.value)  # (N, V)
        place = state.place[logits.row, logits.position]  # (N,)
        moved = row_sum(now.exp() * (now - state.said[place.clamp_min(0)]))  # (N,)
        kl = logits.on_canvas(
            torch.where(place < 0, torch.inf, moved), torch.full(state.x.shape, torch.inf, device=now.device)
        )
        stable = torch.where(kl < self.kl_threshold, state.stable + 1, 0)  # (B, L)

        ready = state.open & (stable >= self.history_length) & (belief.confidence > self.conf_threshold)
        ready &= (state.block_step >= self.history_length - 1)[:, None]
        any_ready = ready.any(1)  # (B,)
        if self.strategy != "all":
            score = {"max_conf": belief.confidence, "min_kl": -kl}.get(self.strategy)
            if score is None:
                score = state.rng.positions(state.x.shape[1], state.step, DRAW_RANK)
            ready = ops.select(score, ready, k=1).chosen
        least = torch.maximum(at_least(state), torch.where(any_ready, 0, even_plan(state)))
        chosen = topped_up(state, ready, belief.confidence, least)
        here = logits.on_canvas(torch.arange(len(now), device=now.device), torch.full_like(state.x, -1))
        return state.commit(chosen, belief.token, said=now, place=here, stable=stable)
