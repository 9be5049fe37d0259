"""Sequential Monte Carlo over any other sampler: particles, weighted by a reward or by the model itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .canvas import Layout
from .checks import function_of, is_function, name_of
from .errors import OptionError
from .info import InfoRecorder
from .particles import (
    ParticleState,
    ancestors,
    base_of,
    draw,
    log_mean,
    rewards,
    weights,
    with_first,
)
from .prediction import Predict, sum_over
from .sampler import Facts, Sampler, first_state, option
from .state import TokenState


def log_probability(answers: tuple[Tensor, Tensor] | None, before: TokenState, after: TokenState) -> Tensor:
    """(B K,) float64: the log-probabilities of the tokens that are new, added up; answers: token and confidence, (B K, L)."""
    if answers is None:
        return torch.zeros(len(after.x), dtype=torch.float64, device=after.x.device)
    token, confidence = answers
    return sum_over(confidence.double().log(), (after.x != before.x) & (after.x == token) & (confidence > 0))


@dataclass(frozen=True)
class ParticleSampler(Sampler[ParticleState]):
    """Feynman-Kac steering (Singhal et al. 2025, arXiv 2501.06848) and self-rewarding SMC (2602.01849) over any other sampler.

    K particles of each row take steps of the base sampler. After a step a particle's weight is multiplied by a potential G, and
    if the weights of a row are too uneven, its particles are drawn anew by them. With r the reward, times `scale`:

    difference   G = exp(r now - r before), where r is 0 before the first step
    max          G = exp(the largest r so far)
    sum          G = exp(the sum of all r so far)
    self         G = the model's probabilities of the tokens that the step filled; there is no reward

    The last potential of a particle is divided by all that it had before, so that in each of the first three their product is
    exp(r) of the finished row: the samples have the distribution p(x) exp(r(x)) / Z as K grows, if the base sampler draws from p,
    and Z is estimated without bias, whatever K is: its logarithm is `log_z` in Sample.info, of the last step.

    With iterations > 1 it is particle Gibbs (Dang et al. 2025, arXiv 2507.08390): one particle is drawn, kept with its states,
    and run again among K - 1 new ones (conditional SMC, whose resampling is multinomial). The target distribution is invariant.

    Differs from the papers: the reward is asked about the canvas, with the mask id at what is undecided, or about the most likely
    tokens there (there: about a draw of x_0); the row is drawn by its final weights (there: the best is taken; returns="best").
    A particle that is done waits for the others of its row. The choices read numbers from the device once per step, if there is
    a reward or more than one iteration.
    """

    facts = Facts(revises=True, copies=True)
    BASE: ClassVar[str]

    base: str | Sampler | None = option(  # noqa: RUF009
        None,
        "the sampler whose steps the particles take, such as random_order or 'threshold(threshold=0.8)'; none: entropy_bound, or "
        "d3pm_ancestral of smc_uniform",
    )
    particles: int = option(4, "particles per row, K", ge=1, le=1 << 16)
    reward: Callable[..., Any] | str | None = option(  # noqa: RUF009
        None,
        "a function of tokens (N, L) that returns (N,) numbers, or 'module:function'; none: every token sequence is as good",
        check=is_function,
    )
    scale: float = option(1.0, "the reward is multiplied by this, lambda", gt=-math.inf, lt=math.inf)
    potential: str = option(
        "difference", "what a step's weight is made of", choices=("difference", "max", "sum", "self")
    )
    on: str = option(
        "canvas",
        "what the reward is asked about before the end: the canvas as it is, or the guess, the most likely tokens at what is "
        "undecided, for one more forward pass per step",
        choices=("canvas", "guess"),
    )
    resample: str = option(
        "systematic", "how particles are drawn anew", choices=("systematic", "stratified", "multinomial")
    )
    ess: float = option(0.5, "draw anew if the effective number of particles is below this share of K", ge=0, le=1)
    every: int = option(1, "steps from one reward to the next", ge=1)
    when: str | None = option(
        None,
        "draw anew after steps, or only when all particles have left a block; none: block for potential=self, else step",
        choices=("step", "block", None),
    )
    returns: str | None = option(
        None,
        "the row is a draw by the final weights, or the best particle; none: best for potential=self, else draw",
        choices=("draw", "best", None),
    )
    iterations: int = option(
        1, "runs of all particles; from the second on one particle of the last run is kept", ge=1, le=4096
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "base", base_of(self.BASE if self.base is None else self.base, self.family, self.name))
        if self.potential == "self" and self.reward is not None:
            raise OptionError(f"sampler {self.name!r}: potential='self' is weighted by the model, and takes no reward")

    @property
    def effective_facts(self) -> Facts:
        bias = self._base.effective_facts.bias if self.reward is None and self.potential != "self" else None
        base = self._base.effective_facts
        known = {name: getattr(base, name) for name in ("stores_logits", "curve", "posterior", "needs")}
        return dataclasses.replace(self.facts, bias=bias, **known)

    @property
    def extra_steps(self) -> int:
        return self._base.extra_steps + (self.iterations - 1) * (1 << 20)

    @property
    def _base(self) -> Sampler[Any]:
        assert isinstance(self.base, Sampler)
        return self.base

    def values(self) -> dict[str, Any]:
        told = super().values()
        options = ", ".join(f"{key}={value}" for key, value in self._base.values().items())
        told["base"] = f"{self._base.name}({options})" if options else self._base.name
        return told | {"reward": name_of(self.reward)}

    def init(self, canvas: Layout) -> ParticleState:
        wide = first_state(self._base, canvas.copies(self.particles, True))
        zeros = torch.zeros(len(canvas.x), self.particles, dtype=torch.float64, device=canvas.x.device)
        none = torch.full_like(canvas.x[:, 0], -1)
        state = ParticleState.begin(
            canvas,
            wide=wide,
            log_weight=zeros,
            log_z=zeros[:, 0],
            applied=zeros,
            reward=zeros,
            memory=zeros if self.potential == "sum" else zeros - torch.inf,
            score=zeros,
            weighed=torch.zeros_like(zeros, dtype=torch.bool),
            block_seen=none,
        )
        return state.showing(none + 1, state.over)

    def step(self, predict: Predict, state: ParticleState) -> tuple[ParticleState, dict[str, Tensor]]:
        number, before, moving = self.particles, state.wide, ~state.weighed.all(1)
        copies = predict.copies(number, True, state.round * number)
        filled = InfoRecorder(keep=False) if self.potential == "self" else None
        wide = copies.step(self._base, before, filled)
        if state.path:
            kept = state.path[min(len(state.history), len(state.path) - 1)]
            wide = with_first(wide, kept, number)
        state = dataclasses.replace(state, wide=wide)
        if filled is not None:
            gain = state.grouped(log_probability(filled.answers, before, wide))
            state = dataclasses.replace(
                state, score=state.score + gain, applied=state.applied + gain, log_weight=state.log_weight + gain
            )
        elif self.reward is not None:
            state = self._rewarded(copies, state)
        over = state.over  # (B,)
        w, effective = weights(state.log_weight)
        again = (effective < self.ess * number) & ~over
        if (self.when or ("block" if self.potential == "self" else "step")) == "block":
            block = state.grouped(wide.block).amin(1)
            again &= (block > state.block_seen) & (state.block_seen >= 0)
            state = dataclasses.replace(state, block_seen=block)
        ended = over & moving
        log_z = state.log_z + torch.where(again | ended, log_mean(state.log_weight), 0.0)
        state, source = self._resampled(copies, state, w, again)
        state = dataclasses.replace(state, log_z=log_z)
        best = (state.score if self.potential == "self" else state.applied).argmax(1)
        how = self.returns or ("best" if self.potential == "self" else "draw")
        # A row that waits for others draws what it drew in its last step.
        final = best if how == "best" else draw(state, w, state.step + moving - 1)
        shown = torch.where(over, final, state.log_weight.argmax(1))
        info = {"log_z": log_z, "effective": effective, "resampled": again}
        if self.iterations > 1:
            state = self._kept(state, source, final, over)
        over = state.over & (state.round + 1 == self.iterations)
        return state.showing(shown, over, step=state.step + moving), info

    def _rewarded(self, copies: Any, state: ParticleState) -> ParticleState:
        """The state with the weights after this step's rewards."""
        reward, wide, number = function_of(self.reward), state.wide, self.particles
        active = ~state.weighed
        ended = state.grouped(wide.done) & active
        due = active & (ended | (state.grouped(wide.step) % self.every == 0))
        x = wide.x
        if self.on == "guess":
            undecided = wide.undecided
            x = torch.where(undecided, copies(wide, undecided, temperature=0.0).token, x)
        r = rewards(reward, x, wide, self.scale, number)
        memory = torch.maximum(state.memory, r) if self.potential == "max" else state.memory + r
        memory = torch.where(due, memory, state.memory)
        gone = state.applied == -torch.inf  # it has no weight, and will not have any
        last = torch.where(gone, 0.0, state.reward if self.potential == "difference" else 0.0)
        gain = (r if self.potential == "difference" else memory) - last
        gain = torch.where(ended, r - torch.where(gone, 0.0, state.applied), gain)
        gain = torch.where(due, gain, 0.0)
        return dataclasses.replace(
            state,
            log_weight=state.log_weight + gain,
            applied=state.applied + gain,
            reward=torch.where(due, r, state.reward),
            memory=memory,
        )

    def _resampled(self, copies: Any, state: ParticleState, w: Tensor, again: Tensor) -> tuple[ParticleState, Tensor]:
        """The particles after those of the rows `again`, (B,) bool, are drawn anew; and the rows that they come from, (B K,)."""
        own = torch.arange(self.particles, device=w.device).expand_as(w)
        who = torch.where(again[:, None], ancestors(state, w, self.resample, bool(state.path)), own)
        source = (torch.arange(len(w), device=w.device)[:, None] * self.particles + who).flatten()
        changes = {name: getattr(state, name).gather(1, who) for name in ("applied", "reward", "memory", "score")}
        log_weight = torch.where(again[:, None], 0.0, state.log_weight)
        wide = copies.rearranged(state.wide, source)
        changes["weighed"] = state.grouped(wide.done)
        return dataclasses.replace(state, wide=wide, log_weight=log_weight, **changes), source

    def _kept(self, state: ParticleState, source: Tensor, final: Tensor, over: Tensor) -> ParticleState:
        """The state with its history; when all rows have ended, and a further round is due, with new particles."""
        state = dataclasses.replace(state, history=(*state.history, (state.wide, source)))
        if state.round + 1 == self.iterations or not bool(over.all()):
            return state
        index = torch.arange(len(final), device=final.device) * self.particles + final
        path: list[TokenState] = []
        for wide, origin in reversed(state.history):
            path.insert(0, wide.take(index, state.canvas))
            index = origin[index]
        fresh = self.init(state.canvas)
        wide = first_state(self._base, state.canvas.copies(self.particles, True, (state.round + 1) * self.particles))
        return dataclasses.replace(fresh, wide=wide, round=state.round + 1, path=tuple(path), step=state.step)
