"""What all samplers of Bayesian flows share: the state, the grid of times, and how a run ends."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from samplers.authoring import (
    DRAW_FIRST_FREE,
    Conformance,
    GridState,
    NoiseCanvas,
    OptionError,
    Point,
    Sampler,
    ops,
    option,
)

from .denoisers import FlowDenoiser
from .schedules import DiscreteSchedule

if TYPE_CHECKING:
    from .family import FlowPredictor

__all__ = ["FlowSampler", "FlowState", "draw_tokens", "first_order", "sde_first_order"]


@dataclass(frozen=True, eq=False)
class FlowState(GridState):
    """A run: x is the mean of the input distribution, (B, *shape), or its logits, (B, L, K).

    Attributes:
        tokens: (B, L) int64, what a finished run over tokens returns.
    """

    tokens: Tensor | None = None

    @property
    def flow(self) -> FlowDenoiser:
        """The model."""
        return cast(FlowDenoiser, self.canvas.denoiser)

    def outcome(self) -> dict[str, Any]:
        out = super().outcome()
        if self.flow.kind == "discrete":
            x = self.x.argmax(-1) if self.tokens is None else self.tokens
            full = torch.full((len(x),), x.shape[1], dtype=torch.int64, device=x.device)
            out = {"x": x, "lengths": full, "fill": torch.ones_like(x, dtype=torch.bool)}
        return out


@dataclass(frozen=True)
class FlowSampler(Sampler[FlowState]):
    """Base of the samplers. A solver has one method, `update`: the step from a point s to the next point t.

    `steps` evaluations are spent, exactly. `end` says on what: "drop": the last step is left out, and the answer at its
    beginning is the result (published as last_drop; better at few steps). "final": all but one on solver steps down to t = 0,
    and one there, whose answer is the result (addi_step). "state": all on solver steps, and x itself is the result.

    Every solver runs on both kinds of data: a formula in alpha, sigma and lambda is the same for both, even if the paper has it
    for one.

    Class attributes:
        KIND: the kind of data that the paper has it for, or the first of both.
    """

    family = "bayesian_flow"
    KIND: ClassVar[str] = "discrete"
    conformance = Conformance(order={"end": "state", "grid": "logsnr", "eta": 1e-2})

    eta: float = option(1e-5, "time at which a run starts, between 0, where nothing is known, and 1", ge=1e-9, lt=1)
    grid: str = option(
        "auto",
        "points evenly spaced in time, as published, or in the half log-SNR; auto: time for tokens, half log-SNR for reals",
        choices=("auto", "time", "logsnr"),
    )
    end: str = option(
        "drop",
        "what the last evaluation is for: the result a step before the end of time, the result there, or one more step",
        choices=("drop", "final", "state"),
    )
    read: str = option(
        "best",
        "how tokens are taken from their probabilities at the end: the best, or a draw",
        choices=("best", "draw"),
    )

    @property
    def per_step(self) -> int:
        """Evaluations of a full solver step."""
        return 1

    def init(self, canvas: NoiseCanvas) -> FlowState:
        state = FlowState.begin(canvas, points=self.times(canvas))
        if self.read != "best" and state.flow.kind != "discrete":
            raise OptionError(
                f"sampler {self.name!r}: read={self.read!r} is for tokens, and denoiser {state.flow.name!r} has real numbers"
            )
        return state

    def solver_evaluations(self, canvas: NoiseCanvas) -> int:
        """How many evaluations are spent on solver steps."""
        return canvas.steps - (self.end != "state")

    def evaluations(self, state: FlowState) -> int:
        """How many evaluations the present step has: those of a full step, or what is left."""
        return min(self.per_step, self.solver_evaluations(state.canvas) - self.per_step * state.i)

    def times(self, canvas: NoiseCanvas) -> tuple[Point, ...]:
        """The points of the solver steps, from t = 1 - eta on."""
        schedule = canvas.denoiser.schedule
        steps = -(-self.solver_evaluations(canvas) // self.per_step)
        intervals = max(steps + (self.end == "drop"), 1)
        even_in_time = self.grid == "time" or (self.grid == "auto" and isinstance(schedule, DiscreteSchedule))
        start = torch.tensor([1 - self.eta, 0.0], dtype=torch.float64, device="cpu")
        first, last = (start if even_in_time else schedule.lam(start)).tolist()
        share = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / intervals
        even = first + share * (last - first)
        return schedule.points(even if even_in_time else schedule.t_of(even).clamp_min(0.0))

    def step(self, predict: FlowPredictor, state: FlowState) -> FlowState:
        """The solver's update to the next point; when there is none, the result."""
        s = state.points[state.i]
        if state.i + 1 < len(state.points):
            out = self.update(predict, state, s, state.points[state.i + 1])
            done = self.end == "state" and out.i + 1 >= len(state.points)
            return self._read(out, out.x.to(torch.float64).softmax(-1)) if done else out
        if state.flow.kind == "discrete":
            return self._read(dataclasses.replace(state, i=state.i + 1), predict.probabilities(state.x, s))
        return dataclasses.replace(state, x=predict(state.x, s), i=state.i + 1, last=True)

    def _read(self, state: FlowState, p: Tensor) -> FlowState:
        """The finished state, its tokens taken from the probabilities p (B, L, K)."""
        if state.flow.kind != "discrete":
            return dataclasses.replace(state, last=True)
        tokens = p.argmax(-1) if self.read == "best" else draw_tokens(state, p)
        return dataclasses.replace(state, tokens=tokens, last=True)

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        """The state at the point t, from the state at the point s: `return self.advance(state, x)`."""
        raise NotImplementedError(f"sampler {self.name!r} has no update")

    def advance(self, state: FlowState, x: Tensor, **changes: Any) -> FlowState:
        """The state one step on. changes: new values of other fields, such as `history`."""
        return dataclasses.replace(state, x=x, i=state.i + 1, **changes)

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps


def draw_tokens(state: FlowState, p: Tensor) -> Tensor:
    """(B, L) int64: tokens drawn from probabilities p (B, L, K) float64, with the uniform numbers of this step."""
    number = torch.full_like(state.canvas.rng.row, state.i)
    u = state.canvas.rng.positions(p.shape[1], number, DRAW_FIRST_FREE)  # (B, L) float64
    cdf = p.cumsum(-1)
    return (u[..., None] * cdf[..., -1:] >= cdf).sum(-1).clamp_max(p.shape[-1] - 1)


def first_order(x: Tensor, x0: Tensor, s: Point, t: Point) -> Tensor:
    """The exact step of the ODE if x_0 is the same throughout: DDIM."""
    return ops.combine(x, t.sigma / s.sigma, x0, -t.alpha * math.expm1(s.lam - t.lam))


def sde_first_order(state: FlowState, x0: Tensor, s: Point, t: Point) -> Tensor:
    """The exact step of the reverse SDE if x_0 is the same throughout.

    Of tokens it is z + (beta_t - beta_s) x_0 + sqrt(K (beta_t - beta_s)) n, and of reals the Bayesian update of mu by a
    measurement of x_0 of accuracy beta_t - beta_s.
    """
    h = t.lam - s.lam
    new = -math.expm1(-2 * h)
    noise = state.canvas.noise(state.i + 1)  # number 0 made the first x
    return ops.combine(state.x, t.sigma / s.sigma * math.exp(-h), x0, t.alpha * new, noise, t.sigma * math.sqrt(new))
