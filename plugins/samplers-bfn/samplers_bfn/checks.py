"""Checks of the kit for samplers of Bayesian flows: the form of a result, the order, and the distribution of the samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import samplers
from samplers import registry
from samplers.authoring import NoiseCanvas, Point, family_of
from samplers.problems import create
from samplers.random import Rng
from samplers.testing import NotApplicable, Promise, check, fits

from .denoisers import FlowDenoiser
from .family import FlowPredictor, TinyTokens
from .schedules import ContinuousSchedule, DiscreteSchedule

STEPS = (48, 96, 192)
ENOUGH = 1e-3  # a p-value above it; seeds are fixed, so a check that has passed once passes again
CAUSES = (
    "a wrong coefficient, often in the first or last step only; a step of lower order among them (declare the options that leave "
    "it out: Conformance(order={...})); float32 somewhere; noise whose variance is not the step's. Compare the formula with the "
    "paper's for the first, a middle and the last step, or declare the order that was seen"
)


@check()
def results_are_data(name: str, promise: Promise) -> None:
    """A run returns tokens (B, L) int64 of the K classes, or real numbers (B, *shape) in the dtype of the state."""
    flow = _tiny(name)
    for end in [{"end": e} for e in ("final", "drop", "state")] if _has(name, "end") else [{}]:
        for steps in (1, 2, 5):
            promise.begin()
            x = promise.sample(flow, samplers.create(name, **end), batch=4, steps=steps).x
            if flow.kind == "discrete":
                fine = x.shape == (4, flow.shape[0]) and x.dtype == torch.int64
                fine = fine and int(x.min()) >= 0 and int(x.max()) < flow.shape[1]
                form = f"tokens {(4, flow.shape[0])} int64 from 0 to {flow.shape[1] - 1}"
            else:
                fine = x.shape == (4, *flow.shape) and x.dtype == flow.state_dtype
                form = f"real numbers {(4, *flow.shape)} {flow.state_dtype}"
            promise(
                fine,
                f"The result is {form}.",
                f"{tuple(x.shape)} {x.dtype}",
                "a state that is not a FlowState, whose outcome() makes tokens of logits; a cast",
            )


@check()
def declared_order(name: str, promise: Promise) -> None:
    """The error falls with the number of steps as the declared order says.

    It is the error of x, or, of a sampler that draws noise, of the mean and variance of x.
    """
    sampler = samplers.create(name, **dict(registry.load(name).conformance.order))
    order = getattr(sampler, "order", None)
    if order is None:
        raise NotApplicable("no order is declared")
    noisy = sampler.effective_facts.stochastic
    for kind in ("discrete", "continuous"):
        try:
            errors = [(_moments_error if noisy else _error)(sampler, kind, n) for n in STEPS]
        except _Draws:
            continue  # the distribution of its samples is checked below
        slope = math.log2(errors[-2] / errors[-1])
        promise(
            abs(slope - order) < 0.15,
            f"The solver is of {'weak ' if noisy else ''}order {order}: twice the steps divide the error by {2**order}.",
            f"order {slope:.2f} on {kind} data (errors {', '.join(f'{e:.2g}' for e in errors)} with {STEPS} forward passes)",
            CAUSES,
        )


@check()
def samples_follow_the_model(name: str, promise: Promise) -> None:
    """With many steps on a small exact model, the samples have the model's distribution."""
    flow = _tiny(name)
    for end in [{"end": e} for e in ("drop", "final", "state")] if _has(name, "end") else [{}]:
        promise.begin()
        if flow.kind == "discrete":
            more = {"read": "draw"} if _has(name, "read") else {}
            x = promise.sample(flow, samplers.create(name, **more, **end), batch=4000, steps=64, seed=3).x
            assert isinstance(flow, TinyTokens)
            p = fits(torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9), flow.joint.flatten())
        else:
            x = promise.sample(flow, samplers.create(name, **end), batch=2000, steps=64, seed=3).x
            p = min(_mixture_p_value(column) for column in x.t())
        promise(
            p > ENOUGH,
            f"With 64 steps on a small exact model the samples have its distribution (p above {ENOUGH:g}), however a run ends.",
            f"p = {p:.2g}",
            CAUSES,
        )


# ---------------------------------------------------------------------------------------------- what they are made of


def _tiny(name: str) -> Any:
    return family_of("bayesian_flow").tiny(registry.load(name), exact=True)


def _has(name: str, option: str) -> bool:
    return any(one.name == option for one in registry.load(name).options())


def _mixture_p_value(x: Tensor) -> float:
    """Of Kolmogorov and Smirnov's test that x (n,) is of the mixture .4 N(-1, .3^2) + .6 N(.8, .5^2)."""
    from scipy.stats import kstest, norm

    return float(kstest(x.numpy(), lambda v: 0.4 * norm.cdf(v, -1.0, 0.3) + 0.6 * norm.cdf(v, 0.8, 0.5)).pvalue)


def _run(sampler: Any, predict: FlowPredictor, canvas: NoiseCanvas) -> Any:
    """The first state and the last one."""
    first = state = sampler.init(canvas)
    while not state.finished:
        state = sampler.step(predict, state)
    return first, state


def _error(sampler: Any, kind: str, steps: int) -> float:
    """Of the final x of a solver of the ODE, on an exact model."""
    tokens = kind == "discrete"
    flow: Any = TinyTokens() if tokens else create("mixture", dim=2).denoiser("bayesian_flow", dtype=torch.float64)
    predict = FlowPredictor(flow, 4, sampler=sampler.name)
    first, last = _run(sampler, predict, NoiseCanvas(flow, steps, Rng.of(1, 4)))

    truth = _true_end(predict, first.x, first.points[0], first.points[-1])
    return float((last.x - truth).pow(2).mean().sqrt())


_ENDS: dict[tuple[Any, ...], Tensor] = {}  # most samplers start from the same noise


def _true_end(predict: FlowPredictor, x: Tensor, s: Point, t: Point) -> Tensor:
    """Where the ODE takes x from the point s to the point t, by scipy at a tolerance of 1e-12."""
    from scipy.integrate import solve_ivp

    key = (predict.flow.kind, x.numpy().tobytes(), s, t)
    if key not in _ENDS:

        def slope(lam: float, y: Any) -> Any:
            """Of y = x / sigma in lambda: e^lambda x_0."""
            at = Point.at(predict.flow.schedule, lam=lam)
            return (math.exp(lam) * predict(at.sigma * torch.from_numpy(y).view(x.shape), at)).flatten().numpy()

        start = (x / s.sigma).flatten().numpy()
        solved = solve_ivp(slope, (s.lam, t.lam), start, method="DOP853", rtol=1e-12, atol=1e-12)
        _ENDS[key] = t.sigma * torch.from_numpy(solved.y[:, -1]).view(x.shape)
    return _ENDS[key]


class _Draws(Exception):
    """The sampler draws tokens in its steps, which no linear model has."""


class _Linear(FlowPredictor):
    """The exact answer for x_0 of a normal distribution, which is linear in x."""

    MEAN, VARIANCE = 0.7, 0.25

    def __call__(self, x: Tensor, at: Point) -> Tensor:
        gain = at.alpha * self.VARIANCE / (at.alpha**2 * self.VARIANCE + at.sigma**2)
        return self.MEAN + gain * (x - at.alpha * self.MEAN)

    def probabilities(self, x: Tensor, at: Point) -> Tensor:
        raise _Draws


class _Impulses(NoiseCanvas):
    """A canvas whose draw k is 1 in row k + 1 and 0 elsewhere."""

    def noise(self, draw: int) -> Tensor:
        rows = torch.arange(len(self.rng.row), device=self.rng.row.device) == draw + 1
        return rows.to(self.dtype).view(-1, *(1,) * len(self.denoiser.shape)).expand(-1, *self.denoiser.shape).clone()


def _moments_error(sampler: Any, kind: str, steps: int) -> float:
    """The error of mean and variance of the final x, for x_0 ~ N(0.7, 0.25): without any draw, since all is linear.

    Row 0 of the run has no noise, and so is the mean; row k + 1 has noise 1 in draw k, and its distance to row 0 is what that
    draw's normal is multiplied by. The variance is the sum of the squares.
    """
    flow = FlowDenoiser()
    flow.kind, flow.dtype = kind, torch.float64
    flow.schedule, flow.shape = (
        (DiscreteSchedule(2, 8.0), (1, 2)) if kind == "discrete" else (ContinuousSchedule(), (1,))
    )
    rows = steps + 2
    moments = torch.full(flow.shape, _Linear.MEAN, dtype=torch.float64, device="cpu"), _Linear.VARIANCE
    canvas = _Impulses(flow, steps, Rng.of(0, rows), moments=moments)  # type: ignore[arg-type]
    first, last = _run(sampler, _Linear(flow, rows, sampler=sampler.name), canvas)
    x, t = last.x.flatten(1)[:, 0], first.points[-1]
    mean, variance = float(x[0]), float((x[1:] - x[0]).pow(2).sum())
    exact = t.alpha * _Linear.MEAN, t.alpha**2 * _Linear.VARIANCE + t.sigma**2
    return abs(mean - exact[0]) / t.alpha + abs(variance - exact[1]) / t.alpha**2
