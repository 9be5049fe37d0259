"""GIDD's self-correction: fill the canvas, then swap one token at a time for one that the model finds better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_NOISE_TOKEN, DRAW_ROUTE, DRAW_SWAP
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule, step_tables
from .d3pm_ancestral import GridState, posterior


@dataclass(frozen=True, eq=False)
class SwapState(GridState):
    """A state that knows how the correction goes.

    Attributes:
        best: (B,) int64, the most positions of the block at which the token was the model's best one, after any correction.
        idle: (B,) int64, corrections since that number last rose.
    """

    best: Tensor
    idle: Tensor


@dataclass(frozen=True)
class GIDD(Sampler[SwapState]):
    """von Ruette et al. 2025 (GIDD), arXiv 2503.04482, section 5.3: self-correction at the fixed noise level t_0.

    A block is filled in its steps, as in `d3pm_ancestral`. Then come corrections, a forward pass each, on top of `steps`: z' is
    drawn at every position at the temperature `heat`, and of the positions with z' other than the token that stands there the one
    with the largest p(z'), at that temperature, takes z'. It ends after `corrections` of them, or if for `patience` in a row
    the number of tokens that are the model's best ones has not reached a new height.

    The correction drives towards the modes of the model, so the distribution is biased. A run at temperature 0 draws the best z'.

    Differs from the reference code: it fills with the posterior of uniform noise (there: a model of masks and uniform noise, any
    sampler); each row and block is corrected by itself; the number of positions is compared and not its share.
    """

    name = "gidd"
    family = "uniform"
    cite = "von Ruette et al. 2025, Generalized Interpolating Discrete Diffusion, arXiv 2503.04482"
    summary = "fill as d3pm_ancestral does, then swap tokens one by one for better ones"
    facts = Facts(revises=True, bias="biased", stores_logits=True)
    conformance = Conformance(small={"corrections": 6, "patience": 3}, exact={"corrections": 0}, redraws=(0,))

    corrections: int = option(128, "most corrections of a block, on top of its steps; 0: fill only", ge=0)
    patience: int = option(32, "corrections in a row without a new height after which a block is done", ge=1)
    heat: float = option(0.1, "temperature at which the better tokens are drawn", gt=0, le=100)
    t_0: float = option(0.01, "the noise level that the model is told in a correction", gt=0, lt=1)
    schedule: str = option("linear", "clean share, as in d3pm_ancestral", check=mask_schedule, kind="mask_schedules")

    @property
    def extra_steps(self) -> int:
        return self.corrections

    def init(self, canvas: Layout) -> SwapState:
        table, which = step_tables(canvas.block_steps, self._alphas)
        zeros = torch.zeros_like(canvas.x[:, 0])
        return SwapState.begin(canvas, table=table, which=which, best=zeros, idle=zeros)

    def _alphas(self, steps: int) -> Tensor:
        """(steps + 1,) float64: alpha before each step and after the last."""
        alpha = mask_schedule(self.schedule)(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu"))
        return torch.cat([alpha[:-1].clamp(max=1 - 2.0**-20), alpha[-1:]])

    def step(self, predict: Predict, state: SwapState) -> SwapState:
        fills = (state.block_step < state.block_steps)[:, None]  # (B, 1): the other rows correct
        now, then = state.alpha(), state.alpha(1)
        logits = predict.logits(state)
        x0 = predict.read(state, logits).token
        best = predict.read(state, logits, temperature=0.0).token
        how: dict[str, Any] = {"temperature": self.heat if predict.temperature > 0 else 0.0}
        drawn = predict.read(state, logits, want="confidence", confidence_temperature=self.heat, draw=DRAW_SWAP, **how)

        u = state.rng.positions(state.x.shape[1], state.step, DRAW_ROUTE)
        noise = state.canvas.noise(state.step, DRAW_NOISE_TOKEN)
        filled = posterior(state, x0, noise, u, now, then)
        other = state.open & ~fills & (drawn.token != state.x)
        swaps = ops.select(drawn.confidence, other, k=1).chosen
        x = torch.where(fills, filled, torch.where(swaps, drawn.token, state.x))

        agree = (state.open & (x == best)).sum(1)
        correcting = ~fills.squeeze(1)
        higher = correcting & (agree > state.best)
        height = torch.where(correcting, torch.maximum(agree, state.best), 0)
        idle = torch.where(correcting & ~higher, state.idle + 1, 0)
        spent = state.block_step + 1 >= state.block_steps + self.corrections
        level = torch.where(fills, 1 - then, 0.0).clamp_min(self.t_0)
        return state.renoised(x, level, spent | (idle >= self.patience), best=height, idle=idle)
