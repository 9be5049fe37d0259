"""D3PM under uniform noise: the reverse process on a grid of times, and a Gibbs corrector between its steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_NOISE_TOKEN, DRAW_PICK, DRAW_ROUTE
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule, step_tables
from .levels import NoisyState


@dataclass(frozen=True, eq=False)
class GridState(NoisyState):
    """A state on a grid of times.

    Attributes:
        table: (S, K + 1) float64, the share alpha of clean tokens before each step; equal before and after a corrector's.
        which: (max S + 1,) int64, steps that a block is given -> its row in `table`.
    """

    table: Tensor
    which: Tensor

    def alpha(self, ahead: int = 0) -> Tensor:
        """(B, 1) float64: at each row's step of its block, or the steps `ahead`."""
        k = (self.block_step + ahead).clamp(0, self.table.shape[1] - 1)
        return self.table[self.which[self.block_steps], k][:, None]


@dataclass(frozen=True)
class D3PMAncestral(Sampler[GridState]):
    """Austin et al. 2021 (D3PM), arXiv 2107.03006, eq. 3 with the uniform kernel: x_0 ~ p(x_0 | x_t), x_s ~ q(x_s | x_t, x_0).

    With a = alpha_t / alpha_s and b = alpha_s, q(x_s = j | x_t, x_0) is proportional to (a [j = x_t] + (1 - a) / V)
    (b [j = x_0] + (1 - b) / V). Multiplied out these are three routes: the clean token, b (1 - a) + V a b [x_t = x_0];
    the present one, a (1 - b); noise, (1 - a)(1 - b). alpha is the schedule's visible fraction. Positions are drawn
    independently: the law is the model's in the limit of many steps.

    The corrector (Gourevitch et al. 2026, arXiv 2605.22765) moves x at its level alpha. As p(x_0,i | x_t) is proportional to
    p(x_0,i | x_t,-i) q(x_t,i | x_0,i), and q is 1 + V alpha / (1 - alpha) times larger where the token was kept, that much is
    taken from the logit of x_t,i for the prediction that leaves it out; k positions are then drawn anew from p(x_t,i | x_t,-i)
    = alpha p(x_0,i | x_t,-i) + (1 - alpha) / V. Gibbs sampling, and so p(x_t) stays what it is, where the position is
    picked blindly and k = 1. The reference says so of its other rules, too; but they look at the token that they replace,
    and drive the law to its modes: on the kit's joint law, 128 predictors and as many correctors end 0.0003 from it in total
    variation with random and 0.38 with lowest_log_margin. Where all that is possible is equally likely this does not
    show, and lowest_log_margin is the best of them. `steps` counts all forwards: the first (steps - 1) // (1 + c) predictors
    have c correctors each.

    Differs from the reference: random is the default (there lowest_log_margin); levels before the end are 2^-20 or more.
    """

    name = "d3pm_ancestral"
    family = "uniform"
    cite = "Austin et al. 2021, Structured Denoising Diffusion Models in Discrete State-Spaces, arXiv 2107.03006"
    summary = "exact posterior of uniform noise on a time grid; Gibbs corrector"
    facts = Facts(revises=True, bias="asymptotic", static_plan=True)
    conformance = Conformance(one_at_a_time={"steps": 128})

    schedule: str = option("linear", "clean share: linear, 1-cos, sin, sin^2, beta(a,b)", check=mask_schedule)
    corrector_steps: int = option(0, "Gibbs steps after each predictor step", ge=0)
    corrector_k: int = option(1, "positions that a corrector step draws anew; exact for 1", ge=1)
    corrector_selection: str = option(
        "random",
        "how they are picked; exact for random",
        choices=("random", "lowest_log_margin", "lowest_maxprob", "lowest_current_prob"),
    )

    @property
    def effective_facts(self) -> Facts:
        # A corrector takes the logits, which a dry run does not have.
        return dataclasses.replace(self.facts, static_plan=self.corrector_steps == 0)

    def init(self, canvas: Layout) -> GridState:
        table, which = step_tables(canvas.block_steps, self._alphas)
        return GridState.begin(canvas, table=table, which=which)

    def _alphas(self, steps: int) -> Tensor:
        """(steps + 1,) float64: alpha before each step and after the last."""
        c = self.corrector_steps
        corrected = (steps - 1) // (1 + c)
        predictors = steps - corrected * c
        k = torch.arange(steps + 1)
        done = torch.where(k <= corrected * (1 + c), (k + c) // (1 + c), k - corrected * c)  # predictor steps before k
        alpha = mask_schedule(self.schedule)(done / predictors)
        return torch.where(k < steps, alpha.clamp(max=1 - 2.0**-20), alpha)

    def step(self, predict: Predict, state: GridState) -> GridState:
        now, then = state.alpha(), state.alpha(1)  # (B, 1)
        u = state.rng.positions(state.x.shape[1], state.step, DRAW_ROUTE)  # (B, L)
        noise = state.canvas.noise(state.step, DRAW_NOISE_TOKEN)  # (B, L)
        if not self.corrector_steps:
            x = _posterior(state, predict(state).token, noise, u, now, then)
            return state.renoised(x, 1 - then, state.last_step)
        logits, correct = predict.logits(state), now == then
        # A corrector needs the prediction that leaves x_t,i out, a predictor the whole one.
        less = torch.where(correct, torch.log1p(state.canvas.vocab_size * now / (1 - now)), 0.0)  # (B, 1)
        stands = state.x[logits.row, logits.position][:, None]
        value = logits.value.scatter_add(1, stands, -less[logits.row].float())
        logits = dataclasses.replace(logits, value=value)
        x0 = predict.read(state, logits).token
        picked = ops.select(self._scores(predict, state, logits, now), state.open, k=self.corrector_k).chosen
        gibbs = torch.where(picked, torch.where(u < now, x0, noise), state.x)
        x = torch.where(correct, gibbs, _posterior(state, x0, noise, u, now, then))
        return state.renoised(x, 1 - then, state.last_step)

    def _scores(self, predict, state: GridState, logits, alpha: Tensor) -> Tensor:
        """(B, L) float64: the highest are drawn anew, with Gumbel noise as in the reference."""
        u = state.rng.positions(state.x.shape[1], state.step, DRAW_PICK)
        gumbel = -torch.log(-torch.log(u.clamp_min(2.0**-54)))
        if self.corrector_selection == "random":
            return gumbel
        best = predict.read(state, logits, want=("confidence", "margin", "given"), temperature=0.0)
        other = torch.where(best.token == state.x, best.confidence - best.margin, best.confidence)  # the best but x_t

        def surprise(p: Tensor) -> Tensor:
            p = alpha * torch.where(state.open, p, 1.0) + (1 - alpha) / state.canvas.vocab_size
            return -torch.log(p)

        rules = {"lowest_maxprob": best.confidence, "lowest_current_prob": best.given}
        if self.corrector_selection in rules:
            return surprise(rules[self.corrector_selection]) + gumbel
        return surprise(best.given) - surprise(other) + gumbel

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps


def _posterior(state: GridState, x0: Tensor, noise: Tensor, u: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """x_s ~ q(x_s | x_t, x_0) by one uniform a position: (B, L) int64."""
    kept = now / then.clamp_min(2.0**-60)  # alpha_t / alpha_s; a flat start of a schedule is 0 / 0
    clean = then - now + state.canvas.vocab_size * now * (state.x == x0)
    stay, other = kept * (1 - then), (1 - kept) * (1 - then)
    at = u * (clean + stay + other)
    return torch.where(at < clean, x0, torch.where(at < clean + stay, state.x, noise))
