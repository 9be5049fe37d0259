"""Particles: weights, resampling and the state of samplers that run several copies of each row (sequential Monte Carlo).

The particles of a row are its own: nothing here adds over rows, and sums over the K particles of a row are taken in their order.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import registry
from .canvas import FAR, PAD
from .errors import OptionError
from .random import DRAW_PARTICLE, DRAW_RESAMPLE
from .sampler import Sampler
from .state import DraftState, TokenState

__all__ = ["ParticleState", "ancestors", "base_of", "draw", "log_mean", "rewards", "weights", "with_first"]

Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ParticleState(DraftState):
    """A run of which each row is K particles. Its x shows one particle of each row; nothing is decided before the end.

    Attributes:
        wide: the particles: a state of the base sampler with B K rows.
        log_weight: (B, K) float64, since the last resampling.
        log_z: (B,) float64, the estimate of log Z so far, without the weights since the last resampling.
        applied: (B, K) float64, the log of all potentials that a particle and those it comes from had.
        reward: (B, K) float64, the last reward times its scale.
        memory: (B, K) float64, of the rewards so far: their maximum, or their sum.
        score: (B, K) float64, the log-probability that the model gave the particle's tokens when they were filled.
        weighed: (B, K) bool, particles that are done and have had their last weight. A constrain hook that decides the last
            positions of a particle leaves it done, and to be weighed in the next step.
        block_seen: (B,) int64, the number of the first block that a particle was in when resampling was last thought of.
        round: how many times the particles have begun again.
        path: the states of the particle of each row that was retained, one after each step; () in the first round.
        history: the states of all particles after each step of this round, and the rows that they come from.
    """

    SHARED = ("wide", "path", "history")

    wide: TokenState
    log_weight: Tensor
    log_z: Tensor
    applied: Tensor
    reward: Tensor
    memory: Tensor
    score: Tensor
    weighed: Tensor
    block_seen: Tensor
    round: int = 0
    path: tuple[TokenState, ...] = ()
    history: tuple[tuple[TokenState, Tensor], ...] = ()

    @property
    def number(self) -> int:
        """K."""
        return self.log_weight.shape[1]

    @property
    def over(self) -> Tensor:
        """(B,) bool: rows all of whose particles are done."""
        return self.grouped(self.wide.done).all(1)

    def grouped(self, x: Tensor) -> Tensor:
        """(B K, ...) as (B, K, ...)."""
        return x.view(-1, self.number, *x.shape[1:])

    def particle(self, which: Tensor) -> TokenState:
        """The state of particle which[b] of each row b. which: (B,) int64."""
        index = torch.arange(len(which), device=which.device) * self.number + which
        return self.wide.take(index, self.canvas)

    def showing(self, which: Tensor, over: Tensor, **changes: Any) -> ParticleState:
        """The state that shows particle which[b] of each row; the rows `over`, (B,) bool, are done."""
        shown = self.particle(which)
        open_, end = self.canvas.fill & ~over[:, None], torch.where(over & ~self.done, shown.end, self.end)
        zeros = torch.zeros_like(end)
        return dataclasses.replace(
            self,
            x=torch.where(self.done[:, None], self.x, shown.x),
            decided=self.canvas.fill & over[:, None],
            open=open_,
            count=open_.sum(1),
            done=over,
            block=torch.where(over, FAR, zeros),
            block_step=zeros,
            end=end,
            **changes,
        )

    def fix(self, where: Tensor, token: Tensor) -> ParticleState:
        wide = self.wide.fix(*(x.repeat_interleave(self.number, 0) for x in (where, token)))
        state = dataclasses.replace(self, wide=wide)
        return state.showing(self.log_weight.argmax(1), self.done)


def weights(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) float64, normalised; all equal if no particle has any. And their effective number, (B,) float64: 1 / sum w^2."""
    most = log_weight.amax(1, keepdim=True)
    w = torch.where(most > -torch.inf, (log_weight - most).exp(), 1.0)
    w = w / _total(w)[:, None]
    return w, 1 / _total(w * w)


def _total(x: Tensor) -> Tensor:
    """(B,): the sum over the last dimension, in its order."""
    return x.cumsum(1)[:, -1]


def log_mean(log_weight: Tensor) -> Tensor:
    """(B,) float64: the log of the mean weight; -inf if no particle has any."""
    most = log_weight.amax(1)
    mean = _total((log_weight - most.clamp_min(-1e300)[:, None]).exp()) / log_weight.shape[1]
    return torch.where(most > -torch.inf, most + mean.log(), -torch.inf)


def _places(w: Tensor, u: Tensor) -> Tensor:
    """(B, n) int64: where the numbers u (B, n) in [0, 1) fall among the cumulated weights."""
    total = w.cumsum(1)
    return torch.searchsorted(total, u * total[:, -1:], right=True).clamp(max=w.shape[1] - 1)


def ancestors(state: ParticleState, w: Tensor, scheme: str, keep_first: bool) -> Tensor:
    """(B, K) int64: the particle that each one comes from when all are drawn anew by their weights.

    Args:
        w: (B, K) float64, normalised.
        scheme: "multinomial": K independent draws. "stratified": one in each K-th of [0, 1). "systematic": the same with one
            random number for all. The expected number of offspring of a particle is K w in each.
        keep_first: particle 0 goes on as it is, and the others are independent draws (conditional SMC).
    """
    number = w.shape[1]
    u = state.rng.positions(number, state.step, DRAW_RESAMPLE)  # (B, K) float64
    if scheme != "multinomial" and not keep_first:
        k = torch.arange(number, dtype=u.dtype, device=u.device)
        u = (k + (u[:, :1] if scheme == "systematic" else u)) / number
    who = _places(w, u)
    return torch.cat([torch.zeros_like(who[:, :1]), who[:, 1:]], 1) if keep_first else who


def draw(state: ParticleState, w: Tensor, step: Tensor) -> Tensor:
    """(B,) int64: one particle of each row, drawn by its weights. step: (B,) int64, whose random number is used."""
    return _places(w, state.rng.positions(1, step, DRAW_PARTICLE)).squeeze(1)


def with_first(wide: TokenState, first: TokenState, number: int) -> TokenState:
    """The particles, of which number 0 of each row is replaced by that of `first`, which has B rows."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(wide):
        old, new = getattr(wide, field.name), getattr(first, field.name)
        if field.name == "canvas" or (old is None and new is None):
            continue
        if field.name in wide.SHARED:
            same = old is new or (isinstance(old, Tensor) and old.shape == new.shape and bool((old == new).all()))
        else:
            same = isinstance(old, Tensor) and isinstance(new, Tensor) and field.name != "previous"
            if same:
                changes[field.name] = old.clone()
                changes[field.name][::number] = new
        if not same:
            raise OptionError(
                f"iterations above 1 put a particle of the round before among the others, and {type(wide).__name__}.{field.name} "
                "of the base sampler cannot be taken over row by row; use another base"
            )
    return dataclasses.replace(wide, **changes)


# ---------------------------------------------------------------------------------------------- options


def base_of(base: Any, family: str, owner: str) -> Sampler[Any]:
    """The sampler that an option names: a Sampler, "name", or "name(option=value, ...)".

    Raises:
        OptionError: it is none, of another family, or sequential. UnknownNameError: there is no sampler of that name.
    """
    who = f"option 'base' of sampler {owner!r}"
    if isinstance(base, str):
        found = re.fullmatch(r"\s*([\w:.-]+)\s*(?:\((.*)\))?\s*", base, re.DOTALL)
        if found is None:
            raise OptionError(
                f"{who} is {base!r}; a name such as 'entropy_bound', or 'entropy_bound(bound=0.2)', is needed"
            )
        cls, told = registry.load(found[1]), {}
        known = {option.name: option for option in cls.options()}
        for pair in filter(str.strip, re.split(r",(?![^()]*\))", found[2] or "")):
            key, sign, text = (part.strip() for part in pair.partition("="))
            if not sign or key not in known:
                raise OptionError(
                    f"{who} is {base!r}: {pair.strip()!r} is no option=value of sampler {cls.name!r}, which has "
                    f"{', '.join(known) or 'none'}"
                )
            told[key] = known[key].parse(text)
        base = cls.make(**told)
    if not isinstance(base, Sampler):
        raise OptionError(
            f"{who} is {type(base).__name__}; a sampler's name, or one made by samplers.create(), is needed"
        )
    if base.family != family:
        other = {"masked": "smc_uniform", "uniform": "smc"}.get(family)
        hint = (
            f"; {other!r} is for samplers of the {base.family} family" if base.family in ("masked", "uniform") else ""
        )
        raise OptionError(f"{who} is {base.name!r}, of the {base.family} family, and {family} is needed{hint}")
    facts = base.effective_facts
    for fact, why in (
        (facts.sequential, "keeps one sequence per row"),
        (facts.copies, "makes copies of rows itself"),
        (facts.grows, "may lengthen the canvas"),
    ):
        if fact:
            raise OptionError(f"{who} is {base.name!r}, which {why} and cannot be copied; use another one")
    return base


def rewards(reward: Reward, x: Tensor, wide: TokenState, scale: float, number: int) -> Tensor:
    """(B, K) float64: what the reward says of tokens (B K, L), times `scale`.

    Raises:
        OptionError: it returns another shape, no numbers, NaN, or what times `scale` is +inf.
    """
    x = torch.where(torch.arange(x.shape[1], device=x.device) < wide.end[:, None], x, PAD)
    said: Any = reward(x)
    who = f"the reward {getattr(reward, '__qualname__', type(reward).__name__)}"
    if not isinstance(said, Tensor) or said.shape != x.shape[:1] or said.is_complex():
        got = f"{said.dtype} of shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
        raise OptionError(
            f"{who} returned {got} for tokens of shape {tuple(x.shape)}; numbers (N,) = {(len(x),)} are needed"
        )
    value = said.detach().to(device=x.device, dtype=torch.float64) * scale if scale else torch.zeros_like(said).double()
    bad = ~(value < torch.inf)
    if bool(bad.any()):
        at = int(bad.to(torch.uint8).argmax())
        raise OptionError(
            f"{who} returned {float(said[at])!r} for particle {at % number} of row {at // number} after "
            f"{int(wide.step[at])} steps; numbers are needed, or -inf (with scale={scale:g}: +inf if it is negative) for what "
            "must not happen"
        )
    return value.view(-1, number)
