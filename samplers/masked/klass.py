"""KLASS: commit positions whose prediction is confident and no longer changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_RANK
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import even_count, fill_up_to, min_count


@dataclass(frozen=True, eq=False)
class KlassState(TokenState):
    """A state that remembers the last step's logits.

    Attributes:
        last_logits: (N, V) float32, the logits at the N positions that the last step asked about: 4 N V bytes.
        last_lse: (N,) float64, their log sum exp.
        last_row: (B, L) int64, which of those N rows belongs to a position; -1: the last step did not ask about it.
        stable_steps: (B, L) int64, for how many steps in a row its prediction has moved less than the threshold.
    """

    SHARED = ("last_logits", "last_lse")

    last_logits: Tensor
    last_lse: Tensor
    last_row: Tensor
    stable_steps: Tensor


@dataclass(frozen=True)
class Klass(Sampler[KlassState]):
    """Kim et al. 2025 (KLASS), arXiv 2511.05664, algorithm 1: commit if KL(p_t || p_{t+1}) stays low and confidence is high.

    p_t is a position's prediction in this step and p_{t+1} its prediction in the step before. An open position is ready if
    its KL was below `kl_threshold` in the last `history_length` steps and its token's probability is above
    `conf_threshold`. A step commits the ready positions; in a row without any, it commits LLaDA's count of the most
    confident positions.

    Differs from the reference code: if the ready positions are too few for the block to be done in its steps, the most
    confident others are added, so no masks are left over. The history begins anew in each block, which costs about one more
    step, and only open positions are asked about (the code watches all masked positions of all blocks; across_blocks=True
    does so, at the price of their logits). Above temperature 0 tokens are drawn from softmax(l / T), not from a softmax of
    exponentials.
    """

    name = "klass"
    family = "masked"
    cite = "Kim et al. 2025, KLASS: KL-Guided Fast Inference in Masked Diffusion Models, arXiv 2511.05664"
    summary = "positions whose prediction is confident and has stopped moving"
    default_temperature = 0.0
    facts = Facts(
        bias="biased", stores_logits=True, sweep=("conf_threshold", (2.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3))
    )
    conformance = Conformance(one_at_a_time={"conf_threshold": 2.0})

    kl_threshold: float = option(0.01, "nats; a prediction that moves less than this in a step is stable", ge=0)
    conf_threshold: float = option(
        0.9, "a ready token's probability is above this; above 1: no position is ready", gt=0
    )
    history_length: int = option(2, "number of steps for which a prediction must have been stable", ge=1)
    strategy: str = option(
        "all", "which of the ready positions to commit", choices=("all", "max_conf", "min_kl", "random")
    )
    across_blocks: bool = option(False, "also watch positions of later blocks, as the reference code does")

    def init(self, canvas: Layout) -> KlassState:
        never = torch.full_like(canvas.x, -1)
        return KlassState.begin(
            canvas,
            last_logits=torch.zeros(1, canvas.vocab_size, dtype=torch.float32, device=never.device),
            last_lse=torch.zeros(1, dtype=torch.float64, device=never.device),
            last_row=never,
            stable_steps=torch.zeros_like(never),
        )

    def step(self, predict: Predict, state: KlassState) -> KlassState:
        logits = predict.logits(state, state.masked if self.across_blocks else state.open)
        prediction = predict.read(state, logits, want="confidence")
        last_row = state.last_row[logits.row, logits.position]  # (N,)
        moved, lse = ops.kl_divergence(logits.value, state.last_logits, state.last_lse, last_row)  # (N,)
        kl = logits.on_canvas(moved, torch.full_like(prediction.confidence, torch.inf, dtype=torch.float64))  # (B, L)
        stable_steps = torch.where(kl < self.kl_threshold, state.stable_steps + 1, 0)  # (B, L)

        ready = state.open & (stable_steps >= self.history_length) & (prediction.confidence > self.conf_threshold)
        ready &= (state.block_step >= self.history_length - 1)[:, None]
        any_ready = ready.any(1)  # (B,)
        if self.strategy != "all":
            score = {"max_conf": prediction.confidence, "min_kl": -kl}.get(self.strategy)
            if score is None:
                score = state.rng.positions(state.x.shape[1], state.step, DRAW_RANK)
            ready = ops.select(score, ready, k=1).chosen
        least = torch.maximum(min_count(state), torch.where(any_ready, 0, even_count(state)))
        chosen = fill_up_to(state, ready, prediction.confidence, least)
        rows = logits.on_canvas(torch.arange(len(moved), device=moved.device), torch.full_like(state.x, -1))
        return state.commit(
            chosen,
            prediction.token,
            last_logits=logits.value,
            last_lse=lse,
            last_row=rows,
            stable_steps=stable_steps,
        )
