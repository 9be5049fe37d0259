"""EB-Sampler's rule under uniform noise, DiffusionGemma's default: accept certain positions, draw noise for the others."""

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
class StableState(NoisyState):
    """A state that remembers the last step's likeliest tokens.

    Attributes:
        best: (B, L) int64, the likeliest token when a position was last asked about; -1: it was never asked about.
        stable: (B,) int64, for how many steps in a row these tokens have not changed.
    """

    best: Tensor
    stable: Tensor


@dataclass(frozen=True)
class EntropyBoundUniform(Sampler[StableState]):
    """Ben-Hamu et al. 2025 (EB-Sampler), arXiv 2505.24857, algorithm 1, as in DiffusionGemma's EntropyBoundScheduler.

    In each step the open positions are sorted by entropy, and the longest prefix with sum H - max H <= bound is accepted;
    the others get tokens of fresh noise. Nothing is final: all positions are asked about again in the next step. A block is
    done if for `stability` steps the likeliest tokens did not change and their mean entropy is below `stop_entropy` (it then
    takes these tokens), or after its steps. Step k of n draws at the run's temperature times anneal + (1 - anneal)(n - k) / n,
    and takes entropies at that temperature as well: 0.8 down to 0.4 in the reference. A self-conditioned model is told the
    logits divided by that temperature.

    `pace=False, final="best"` is DiffusionGemma's generate of transformers, token for token with the same random numbers, at 48
    steps for a block of 256; `pace=False, final="noise"` is diffusers' pipeline. By default `steps` is kept as in entropy_bound,
    by accepting more than the bound allows if necessary, and after the last step the drawn tokens are taken. Rows stop
    independently. With one noise level per position (0 for accepted tokens, 1 for the others) an exact model is certain of what
    was accepted, and bound = 0 without annealing is one position at a time, exact. The logits are stored, (N, V) float32, since
    each row has its own temperature.
    """

    name = "entropy_bound_uniform"
    family = "uniform"
    cite = "Ben-Hamu et al. 2025, Accelerated Sampling ... via Entropy Bounded Unmasking (EB-Sampler), arXiv 2505.24857"
    summary = "accept the certain prefix and draw noise for the rest, until stable and confident"
    default_temperature = 0.8
    facts = Facts(
        revises=True, stores_logits=True, bias="exact", sweep=("bound", (0.0, 0.1, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0))
    )
    conformance = Conformance(one_at_a_time={"bound": 0.0, "anneal": 1.0, "stop_entropy": None})

    bound: float = option(0.1, "joint dependence that a step may lose, in nats", ge=0)
    anneal: float = option(0.5, "temperature of the last step as a share of that of the first step", gt=0)
    final: str = option(
        "drawn",
        "tokens after the last step: drawn, the best, or noise where they are not accepted",
        choices=("drawn", "best", "noise"),
    )
    stability: int = option(1, "to stop early, the likeliest tokens must not have changed for this many steps", ge=0)
    pace: bool = option(True, "accept at least an even share per step, whatever the bound; false is the reference")
    stop_entropy: float | None = option(
        0.005, "mean entropy, in nats per position, below which a stable block is done; none: never", ge=0
    )

    def init(self, canvas: Layout) -> StableState:
        stable = torch.zeros(len(canvas.x), dtype=torch.int64, device=canvas.x.device)
        return StableState.begin(canvas, best=torch.full_like(canvas.x, -1), stable=stable)

    def step(self, predict: Predict, state: StableState) -> StableState:
        steps, first = state.block_steps.clamp_min(1), predict.temperature or 1.0
        last = self.anneal * first
        left = (steps - state.block_step).float() / steps
        heat = last + (first - last) * left  # (B,) float32, rounded as in the reference
        logits = predict.logits(state, temperature=heat)
        draw = predict.read(state, logits, want="entropy", temperature=1.0 if predict.temperature else 0.0)
        # Entropies come from float32 sums: below 1e-7 is certain.
        least = quota(state, state.count) if self.pace else 0
        accept = ops.select(draw.entropy, state.open, budget=self.bound + 1e-7, least=least, lowest=True).chosen
        best, stop = state.best, torch.zeros_like(state.done)
        stable = state.stable
        if self.stop_entropy is not None or self.final == "best":
            best = predict.read(state, logits, temperature=0.0).token
        if self.stop_entropy is not None:
            stable = torch.where(((best == state.best) | ~state.open).all(1), stable + 1, 0)
            # Added up in whole units, so that the sum has no order.
            total = torch.where(state.open, draw.entropy * 2.0**32, 0.0).to(torch.int64).sum(1)
            stop = (stable >= self.stability) & (total < self.stop_entropy * 2.0**32 * state.count)
        end = stop | state.last_step
        noise = state.canvas.noise(state.step, DRAW_NOISE_TOKEN)
        x = torch.where(accept | (end & (self.final == "drawn"))[:, None], draw.token, noise)
        x = torch.where((end if self.final == "best" else stop)[:, None], best, x)
        return state.renoised(x, 1 - accept.to(torch.float64), end, best=best, stable=stable)
