"""DDPD: a planner says which tokens are noise, and the denoiser replaces one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..errors import OptionError
from ..prediction import Predict, sum_over
from ..random import DRAW_HIDE, DRAW_PLAN, gumbel
from ..sampler import Conformance, Facts, Sampler, option
from ..syncs import reading_is_free
from .gibbs import leave_own_token_out
from .levels import NoisyState

Planner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DDPD(Sampler[NoisyState]):
    """Liu et al. 2024 (DDPD), arXiv 2410.06264: plan which token is noise, then denoise it. The process is uniform noise.

    P_i = P(token i is noise | x). A step chooses a position by softmax(logit P), and draws its token given that it is noise. In
    the last step every position with P_i > `final` is drawn as well. With fewer steps than positions a step takes n // N of
    them, without replacement (one more in the first n % N), in N steps; the paper takes one. `planner` is a function of ids
    (B, L) int64 that returns logit P, (B, L) floats, row by row; its own cost is not counted. Without one, P follows from the
    denoiser at the noise level t:

        P_i = 1 - p(x_0,i = x_i | x) (1 - t) / (1 - t + t / V).

    That is exact if t is the level of every position. It is not known after planned steps: t is taken to be the mean of P over
    the block, without what was just drawn, so the distribution is not the model's.

    What the denoiser sees is `sees`: "noisy", the tokens as they are at the level t, from the same forward pass, of which the
    token itself is left out (samplers/uniform/gibbs.py), as it is noise; or
    "masked", where position j is hidden with probability P_j and the chosen one always. Uniform noise has no mask: hidden is
    level 1 and seen is level 0, so the model must take a time per position; with the planner of the denoiser that is a
    second pass in every step but the first, and N = 1 + (steps - 1) // 2.

    A token that the planner takes for clean stays, even one that forbid= keeps from being drawn: noise may have put it there.

    Differs from the reference code: the last draw is at the run's temperature (there: the best token), and the softmax over
    positions at temperature 1 whatever the run's.
    """

    name = "ddpd"
    family = "uniform"
    cite = "Liu et al. 2024, Think while You Generate: Discrete Diffusion with Planned Denoising, arXiv 2410.06264"
    summary = "a planner chooses a token that looks like noise, and the denoiser draws it anew"
    facts = Facts(revises=True, stores_logits=True)
    conformance = Conformance(exact={"leave_out": False})

    planner: Planner | None = option(  # noqa: RUF009
        None, "function of ids (B, L) that returns the logit of each being noise, (B, L); none: from the denoiser"
    )
    sees: str = option("noisy", "what the denoiser sees: all tokens, or only those kept", choices=("noisy", "masked"))
    leave_out: bool = option(
        True,
        "take the token itself out of what the denoiser says; false for one that was trained to say it given noise",
    )
    final: float = option(
        0.05, "in the last step, positions above this probability of noise are drawn anew", ge=0, le=1
    )

    @property
    def effective_facts(self) -> Facts:
        masked = self.sees == "masked"
        return dataclasses.replace(
            self.facts, time_per_position=masked, stores_logits=not masked or self.planner is None
        )

    def init(self, canvas: Layout) -> NoisyState:
        return NoisyState.begin(canvas)

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        twice = self.sees == "masked" and self.planner is None
        n = (1 + (state.block_steps - 1) // 2 if twice else state.block_steps).clamp_min(1)
        last = (state.block_step + 1 >= n)[:, None]
        count = (state.block_size // n + (state.block_step < state.block_size % n)).clamp_min(1)
        alpha = 1 - torch.where(state.open, state.level, 0.0).amax(
            1, keepdim=True
        )  # (B, 1), the same at all open positions

        # The planner.
        rows = state.open & (alpha > 0) if twice else state.open
        logits = None if self.sees == "masked" and self.planner else predict.logits(state, rows)
        if self.planner is None:
            assert logits is not None
            own = predict.read(state, logits, want="given", temperature=0.0).given  # (B, L), -inf if not asked
            vocab = state.canvas.vocab_size
            kept = own.clamp_min(0.0).double() * (alpha / (alpha + (1 - alpha) / vocab))
        else:
            kept = torch.sigmoid(-self._planned(state).double())
        noise = (1 - kept).clamp(2.0**-30, 1 - 2.0**-30)  # (B, L) P
        score = torch.logit(noise) + gumbel(state, DRAW_PLAN)
        chosen = ops.select(score, state.open, k=count).chosen

        # The denoiser.
        drawn = chosen | (state.open & last & (noise > self.final))
        if self.sees == "masked":
            u = state.rng.positions(state.x.shape[1], state.step, DRAW_HIDE)
            hidden = torch.where(last, drawn, drawn | (state.open & (u < noise)))
            token = predict(dataclasses.replace(state, level=hidden.double()), drawn).token
        else:
            assert logits is not None
            if self.leave_out:
                logits = leave_own_token_out(state, logits, alpha, alpha >= 0)
            token = predict.read(state, logits).token

        level = sum_over(noise, state.open & ~chosen) / state.count.clamp_min(1)
        level = level.clamp_min(2.0**-20)[:, None]
        return state.renoised(torch.where(drawn, token, state.x), level, last.squeeze(1))

    def _planned(self, state: NoisyState) -> Tensor:
        """What the planner says of the tokens, (B, L)."""
        assert self.planner is not None
        said = self.planner(state.x.clone())
        if not isinstance(said, Tensor) or said.shape != state.x.shape or not said.is_floating_point():
            got = f"{said.dtype} of shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
            raise OptionError(
                f"option 'planner' of sampler 'ddpd' returned {got}; floats of shape {tuple(state.x.shape)} are needed, the "
                "logit of each token being noise"
            )
        if reading_is_free(said.device) and bool(said.isnan().any()):
            raise OptionError(
                "option 'planner' of sampler 'ddpd' returned NaN; it must return the logit of each token being noise"
            )
        return said
