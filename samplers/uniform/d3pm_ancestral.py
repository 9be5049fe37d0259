"""D3PM under uniform noise: the reverse process on a grid of times, with a Gibbs corrector between its steps if wanted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Logits, Predict
from ..random import DRAW_NOISE_TOKEN, DRAW_ROUTE
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule, step_tables
from .gibbs import SELECTIONS, leave_own_token_out, redraw, selection_score
from .levels import NoisyState


@dataclass(frozen=True, eq=False)
class GridState(NoisyState):
    """A state on a grid of times.

    Attributes:
        table: (S, K + 1) float64, for each number of steps S that some block is given, the share alpha of clean tokens
            before each step; equal before and after a corrector's step.
        which: (max S + 1,) int64, the number of steps that a block is given -> its row in `table`.
    """

    SHARED: ClassVar[tuple[str, ...]] = ("table", "which")

    table: Tensor
    which: Tensor

    def alpha(self, ahead: int = 0) -> Tensor:
        """(B, 1) float64: alpha at each row's step of its block, or `ahead` steps later."""
        k = (self.block_step + ahead).clamp(0, self.table.shape[1] - 1)
        return self.table[self.which[self.block_steps], k][:, None]


@dataclass(frozen=True)
class D3PMAncestral(Sampler[GridState]):
    """Austin et al. 2021 (D3PM), arXiv 2107.03006, eq. 3 with the uniform kernel: x_0 ~ p(x_0 | x_t), x_s ~ q(x_s | x_t, x_0).

    With a = alpha_t / alpha_s and b = alpha_s, q(x_s = j | x_t, x_0) is proportional to (a [j = x_t] + (1 - a) / V)
    (b [j = x_0] + (1 - b) / V). Multiplied out, these are three routes: the clean token, b (1 - a) + V a b [x_t = x_0];
    the present token, a (1 - b); noise, (1 - a)(1 - b). alpha is the schedule's visible fraction. Positions are drawn
    independently, so the distribution is the model's in the limit of many steps.

    With `corrector_steps` = c, each predictor step but the last ones is followed by c Gibbs steps (Gourevitch et al. 2026,
    arXiv 2605.22765; samplers/uniform/gibbs.py), each of which draws corrector_k positions anew at the level alpha. That
    keeps p(x_t) as it is if the positions are picked at random and k = 1; the other selections bias the distribution towards
    its modes (docs/solvers.md). `steps` counts all forward passes: the first (steps - 1) // (1 + c) predictors have c
    correctors each.

    Differs from the reference: random is the default (there: lowest_log_margin); noise levels before the end are 2^-20 or more.
    """

    name = "d3pm_ancestral"
    family = "uniform"
    cite = "Austin et al. 2021, Structured Denoising Diffusion Models in Discrete State-Spaces, arXiv 2107.03006"
    summary = "exact posterior of uniform noise on a time grid; Gibbs corrector"
    facts = Facts(revises=True, bias="asymptotic", static_plan=True, posterior=True)
    conformance = Conformance(one_at_a_time={"steps": 128})

    schedule: str = option(
        "linear", "clean share: linear, 1-cos, sin, sin^2, beta(a,b)", check=mask_schedule, kind="mask_schedules"
    )
    corrector_steps: int = option(0, "Gibbs steps after each predictor step", ge=0)
    corrector_k: int = option(1, "number of positions that a corrector step draws anew; exact for 1", ge=1)
    corrector_selection: str = option("random", "how these positions are picked; exact for random", choices=SELECTIONS)

    @property
    def effective_facts(self) -> Facts:
        # A corrector takes the logits, which a dry run does not have, and draws from another distribution than the posterior.
        plain = self.corrector_steps == 0
        return dataclasses.replace(self.facts, static_plan=plain, posterior=plain)

    def init(self, canvas: Layout) -> GridState:
        table, which = step_tables(canvas.block_steps, self._alphas)
        return GridState.begin(canvas, table=table, which=which)

    def _alphas(self, steps: int) -> Tensor:
        """(steps + 1,) float64: alpha before each step and after the last."""
        c = self.corrector_steps
        corrected = (steps - 1) // (1 + c)
        predictors = steps - corrected * c
        k = torch.arange(steps + 1, device="cpu")
        done = torch.where(k <= corrected * (1 + c), (k + c) // (1 + c), k - corrected * c)  # predictor steps before k
        alpha = mask_schedule(self.schedule)(done.double() / predictors)
        return torch.where(k < steps, alpha.clamp(max=1 - 2.0**-20), alpha)

    def step(self, predict: Predict, state: GridState) -> GridState:
        now, then = state.alpha(), state.alpha(1)  # (B, 1)
        u = state.rng.positions(state.x.shape[1], state.step, DRAW_ROUTE)  # (B, L)
        noise = state.canvas.noise(state.step, DRAW_NOISE_TOKEN)  # (B, L)
        if predict.steers:
            after = predict.steered(state, lambda x0: log_posterior(state, x0, now, then), 1 - now, 1 - then)
            x = predict.read(state, after, temperature=1.0).token
        elif not self.corrector_steps:
            x = posterior(state, predict(state).token, noise, u, now, then)
        else:
            corrects = now == then  # (B, 1): rows whose step is a corrector's; the others are at a predictor step
            logits = leave_own_token_out(state, predict.logits(state), now, corrects)
            x0 = predict.read(state, logits).token
            score = selection_score(predict, state, logits, now, self.corrector_selection)
            picked = ops.select(score, state.open, k=self.corrector_k).chosen
            corrected = redraw(state, picked, x0, noise, u, now)
            x = torch.where(corrects, corrected, posterior(state, x0, noise, u, now, then))
        return state.renoised(x, 1 - then, state.last_step)

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps


def posterior(state: GridState, x0: Tensor, noise: Tensor, u: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """(B, L) int64: x_s ~ q(x_s | x_t, x_0), by one uniform number per position.

    Args:
        x0, noise: (B, L) int64, the clean tokens and the tokens that noise would put there.
        u: (B, L) float64.
        now, then: (B, 1) float64, alpha_t and alpha_s.
    """
    stay, other = routes(now, then)
    clean = then - now + state.canvas.vocab_size * now * (state.x == x0)
    at = u * (clean + stay + other)
    return torch.where(at < clean, x0, torch.where(at < clean + stay, state.x, noise))


def routes(now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the present token and of noise in q(x_s | x_t, x_0), of the shape of alpha_t and alpha_s."""
    kept = now / then.clamp_min(2.0**-60)  # alpha_t / alpha_s; a flat start of a schedule is 0 / 0
    return kept * (1 - then), (1 - kept) * (1 - then)


def log_posterior(state: GridState, x0: Logits, now: Tensor, then: Tensor) -> Logits:
    """log q(x_s = v | x_t), the mean of q(x_s | x_t, x_0) over the predicted x_0: what guidance acts on.

    Args:
        x0: the logits of the clean tokens, (N, V).
        now, then: (B, 1) float64, alpha_t and alpha_s.
    """
    now, then = now[x0.row], then[x0.row]  # (N, 1)
    own = state.x[x0.row, x0.position][:, None]
    stay, other = routes(now, then)
    p, vocab = x0.value.double().softmax(1), x0.value.shape[1]
    same = torch.zeros_like(p).scatter(1, own, vocab * now)  # V alpha_t at the present token
    share = p / (1 - now + same)  # each x_0's three weights sum to that
    after = share * (then - now + same) + share.sum(1, keepdim=True) * other / vocab
    after = after.scatter_add(1, own, share.sum(1, keepdim=True) * stay)
    return dataclasses.replace(x0, value=after.log().float())
