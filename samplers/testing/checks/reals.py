"""Checks for continuous samplers: finite values, counts, the end of a run, draws of noise, and the order of convergence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import samplers

from ... import registry
from ..kit import check
from ..promises import NotApplicable, Promise
from ..tiny import TinyMixture, TinyPoint, solve_ode
from .any_family import STEPS, clashes, counted, finite, uses_of

SCHEDULES = ("vp_linear", "edm", "flow")


@check()
def values_are_finite(name: str, promise: Promise) -> None:
    """Any number of steps, one included, gives finite values of the model's shape and dtype."""
    sampler = samplers.create(name)
    for schedule in SCHEDULES:
        for steps in STEPS:
            for dtype in (torch.float64, torch.float32):
                promise.begin()
                x = promise.sample(TinyMixture(schedule=schedule, dtype=dtype), sampler, batch=3, steps=steps).x
                promise(
                    x.shape == (3, 4) and x.dtype == dtype,
                    f"Samples have the model's shape and dtype, (3, 4) {dtype} here.",
                    f"{tuple(x.shape)} {x.dtype}",
                    "a cast (.float(), .double()), or a tensor that is made without dtype=state.x.dtype",
                )
                finite(promise, x)


@check(settings=[{"steps": n} for n in STEPS])
def counted_nfe_is_the_declared(name: str, setting: dict[str, int], promise: Promise) -> None:
    """expected_nfe(0, steps) is the number of forward passes, and every row takes part in each."""
    sampler = samplers.create(name)
    for schedule in SCHEDULES:
        promise.begin()
        counted(promise, promise.sample(TinyMixture(schedule=schedule), sampler, batch=3, **setting), sampler)


@check(settings=list(SCHEDULES))
def a_sure_model_is_believed(name: str, setting: str, promise: Promise) -> None:
    """If the model knows x_0 whatever it sees, a run ends there: the time of the end, and the scale of x, are right."""
    sampler, model = samplers.create(name), TinyPoint(schedule=setting)
    for steps in (3, 8, 24):
        promise.begin()
        x = promise.sample(model, sampler, batch=6, steps=steps).x
        off = float((x - model.point).abs().max())
        promise(
            off < 0.05,
            "A run ends at the model's x_0 if that is the same at all times and wherever x is.",
            f"x is off by up to {off:.2g}",
            "x that is returned at another time than the last of the grid, with the noise that it has there; a wrong factor "
            "alpha or sigma; noise that is added in the step that ends the run (its sigma is t.sigma, not s.sigma)",
        )


@check()
def draw_numbers(name: str, promise: Promise) -> None:
    """No draw of noise is used twice in a run; draw 0 is the noise that the run starts with."""
    sampler = samplers.create(name)
    for a, b in clashes(uses_of(promise, name, sampler), sampler.conformance.redraws):
        promise(
            False,
            "Each noise(k) of a run is used once.",
            f"noise({min(a.cells & b.cells)[2]}) is used at {a.place} and at {b.place}",
            "state.canvas.noise(state.i), since noise(0) is x_T, or a constant; step i takes state.canvas.noise(state.i + 1)",
            b.place,
        )


_ENDS: dict[bytes, Tensor] = {}  # most samplers start from the same noise


def true_end(x: Tensor) -> Tensor:
    """Where the probability-flow ODE of TinyMixture takes x, from t_max to t_min."""
    problem, key = TinyMixture(), x.numpy().tobytes()
    if key not in _ENDS:
        _ENDS[key] = solve_ode(problem, x, problem.schedule.t_max, problem.schedule.t_min)
    return _ENDS[key]


@check()
def declared_order(name: str, promise: Promise) -> None:
    """The error falls with the number of steps as the declared order says."""
    cls = registry.load(name)
    sampler = samplers.create(name, **dict(cls.conformance.order))
    order = getattr(sampler, "order", None)
    if order is None:
        raise NotApplicable("no order is declared")
    problem = TinyMixture()
    x = next(iter(promise.stream(problem, sampler, batch=8, steps=6))).x
    truth = true_end(x)
    errors = []
    for steps in (144, 288, 576):
        out = promise.sample(problem, sampler, batch=8, steps=steps)
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
    slope = math.log2(errors[-2] / errors[-1])
    promise(
        abs(slope - order) < 0.15,
        f"The solver is of order {order}: twice the steps divide the error by {2**order}.",
        f"order {slope:.2f} (errors {', '.join(f'{e:.2g}' for e in errors)} with 144, 288, 576 forward passes)",
        "a wrong coefficient, often in the first or last step only; a step of lower order among them (declare the options "
        "that leave it out: Conformance(order={...})); float32 somewhere; steps counted where forward passes are meant. Compare the "
        "formula with the paper's for the first, a middle and the last step, or declare the order that was seen",
    )
