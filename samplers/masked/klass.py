"""KLASS: commit what the model is sure of and no longer changes its mind about."""

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


def row_sum(x: Tensor) -> Tensor:
    """(N,): the sum of each row of x (N, V), in an order that depends on V alone.

    torch's own sum may cut a row in pieces where there are few rows, and then rounds otherwise than in a larger batch.
    """
    while x.shape[1] > 1:
        half, odd = divmod(x.shape[1], 2)
        last = x[:, -1:]
        x = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([x, last], 1) if odd else x
    return x[:, 0]


# Logits that are worked on together, in float64: on a CPU little enough for its caches, elsewhere for its memory.
CHUNK_CPU, CHUNK_DEVICE = 1 << 19, 1 << 25


def divergence(now: Tensor, then: Tensor, lse: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """KL(softmax(now_i) || softmax(then_place_i)) in nats, inf where place is below 0; and log sum exp of now_i.

    now: (N, V) float32. then: (M, V) float32, M > 0, and lse: (M,) float64, its log sum exp. place: (N,) int64.
    Returns two (N,) float64. Rows do not depend on each other, bit for bit.
    """
    rows = max(1, (CHUNK_CPU if now.device.type == "cpu" else CHUNK_DEVICE) // now.shape[1])
    parts = [(lse[:0], lse[:0])]
    for at in range(0, len(now), rows):
        l, from_ = now[at : at + rows].double(), place[at : at + rows].clamp_min(0)
        most = l.amax(1)  # (rows,)
        weight = (l - most[:, None]).exp_()  # (rows, V)
        total = row_sum(weight)
        here = most + total.log()
        # 0 times inf, or inf - inf: a token that is impossible now adds nothing. One that no longer is: inf.
        gap = weight.mul_(l.sub_(then[from_])).nan_to_num_(0.0, torch.inf)
        parts.append((row_sum(gap) / total - here + lse[from_], here))
    kl, now_lse = (torch.cat(p) for p in zip(*parts))
    return torch.where(place < 0, torch.inf, kl), now_lse


@dataclass(frozen=True, eq=False)
class KlassState(TokenState):
    """What the model said in the last step.

    Attributes:
        said: (N, V) float32, the logits of the N positions asked about in the last step: 4 N V bytes.
        lse: (N,) float64, their log sum exp.
        place: (B, L) int64, where a position is among those; -1: it was not asked about.
        stable: (B, L) int64, for how many steps in a row its prediction has moved less than the threshold.
    """

    said: Tensor
    lse: Tensor
    place: Tensor
    stable: Tensor


@dataclass(frozen=True)
class Klass(Sampler[KlassState]):
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
    facts = Facts(
        bias="biased", stores_logits=True, sweep=("conf_threshold", (2.0, 0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3))
    )
    conformance = Conformance(one_at_a_time={"conf_threshold": 2.0})

    kl_threshold: float = option(0.01, "nats; a prediction that moves less in a step is stable", ge=0)
    conf_threshold: float = option(0.9, "least probability of a token, not included; above 1: none is ready", gt=0)
    history_length: int = option(2, "steps for which a prediction must have been stable", ge=1)
    strategy: str = option("all", "which of the ready", choices=("all", "max_conf", "min_kl", "random"))
    across_blocks: bool = option(False, "watch positions of later blocks too, as the reference code does")

    def init(self, canvas: Layout) -> KlassState:
        never = torch.full_like(canvas.x, -1)
        nothing = torch.zeros(1, canvas.vocab_size, device=canvas.x.device)
        lse = torch.zeros(1, dtype=torch.float64, device=canvas.x.device)
        return KlassState.begin(canvas, said=nothing, lse=lse, place=never, stable=torch.zeros_like(never))

    def step(self, predict: Predict, state: KlassState) -> KlassState:
        logits = predict.logits(state, state.masked if self.across_blocks else state.open)
        prediction = predict.read(state, logits, want="confidence")
        place = state.place[logits.row, logits.position]  # (N,)
        moved, lse = divergence(logits.value, state.said, state.lse, place)  # (N,)
        kl = logits.on_canvas(moved, torch.full_like(prediction.confidence, torch.inf, dtype=torch.float64))  # (B, L)
        stable = torch.where(kl < self.kl_threshold, state.stable + 1, 0)  # (B, L)

        ready = state.open & (stable >= self.history_length) & (prediction.confidence > self.conf_threshold)
        ready &= (state.block_step >= self.history_length - 1)[:, None]
        any_ready = ready.any(1)  # (B,)
        if self.strategy != "all":
            score = {"max_conf": prediction.confidence, "min_kl": -kl}.get(self.strategy)
            if score is None:
                score = state.rng.positions(state.x.shape[1], state.step, DRAW_RANK)
            ready = ops.select(score, ready, k=1).chosen
        least = torch.maximum(min_count(state), torch.where(any_ready, 0, even_count(state)))
        chosen = fill_up_to(state, ready, prediction.confidence, least)
        here = logits.on_canvas(torch.arange(len(moved), device=moved.device), torch.full_like(state.x, -1))
        return state.commit(chosen, prediction.token, said=logits.value, lse=lse, place=here, stable=stable)
