"""Checks for continuous samplers: finite values, counts, the end of a run, draws of noise, and the order of convergence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import samplers

from ... import registry
from ...gaussian.grid import GaussianSampler
from ..fit import BOUND
from ..kit import check
from ..promises import NotApplicable, Promise, line_of
from ..tiny import TinyMixture, TinyPoint, solve_ode
from .any_family import STEPS, clashes, counted, finite, uses_of

SCHEDULES = ("vp_linear", "edm", "flow")
AT_A_LIMIT = (
    "a division by t.alpha or t.sigma, or log(alpha / sigma), at the end of the grid, where either may be 0. Write the step "
    "without it, as x_t = (t.sigma / s.sigma) x_s + (t.alpha - t.sigma / s.sigma * s.alpha) x_0 is, or make that step of order 1"
)


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


# Runs of a flow (t = 1 is noise alone, t = 0 data alone) -> options, and where x begins if it does not begin as noise.
LIMITS: dict[str, tuple[dict[str, Any], float | None]] = {
    "to_sigma_0": ({"t_end": 0.0, "end": "t_end"}, None),
    "back_to_alpha_0": ({"t_start": 0.01, "t_end": 1.0, "end": "t_end"}, 0.5),
}


@check(settings=list(LIMITS))
def limits_are_finite(name: str, setting: str, promise: Promise) -> None:
    """A run may end at sigma = 0 and, without noise in its steps, run backwards to alpha = 0: values stay finite."""
    cls, model = registry.load(name), TinyMixture(schedule="flow")
    if not any(option.name == "end" for option in cls.options()):
        raise NotApplicable("it cannot end elsewhere than at x_0")
    options, begin = LIMITS[setting]
    sampler = samplers.create(name, **options)
    if begin is not None and sampler.effective_facts.stochastic:
        raise NotApplicable("noise in its steps cannot be followed backwards")
    start = {} if begin is None else {"start": torch.full(model.shape, begin, dtype=torch.float64)}
    for steps in range(1, 9):
        promise.begin()
        try:
            x = promise.sample(model, sampler, steps=steps, **start).x
        except samplers.OptionError as error:  # a sampler may say that it cannot
            raise NotApplicable(str(error)) from error
        except (ArithmeticError, ValueError) as error:
            raise promise.broken(
                "Values are finite.",
                f"{type(error).__name__}: {error}",
                AT_A_LIMIT,
                line_of(error.__traceback__) or None,
            ) from error
        finite(promise, x, "Values are finite.", AT_A_LIMIT)


@check(settings=[{"steps": n} for n in STEPS])
def counted_nfe_is_the_declared(name: str, setting: dict[str, int], promise: Promise) -> None:
    """expected_nfe(0, steps) is the number of forward passes, and every row takes part in each."""
    sampler = samplers.create(name)
    for schedule in SCHEDULES:
        promise.begin()
        counted(promise, promise.sample(TinyMixture(schedule=schedule), sampler, batch=3, **setting), sampler)


@check(settings=list(SCHEDULES))
def a_sure_model_is_followed(name: str, setting: str, promise: Promise) -> None:
    """If the model knows x_0 whatever it sees, x ends at alpha x_0 + sigma e, with the alpha and sigma of the last time.

    Any number of steps gives that, since x_0 is the same at all times: e is the noise that the run started with, or fresh
    noise of the same variance. A run that can only return x_0 is held to x_0.
    """
    cls, model = registry.load(name), TinyPoint(schedule=setting)
    noisy = any(option.name == "end" for option in cls.options())
    sampler = samplers.create(name, **dict(cls.conformance.exact), **({"end": "t_end"} if noisy else {}))
    end = model.schedule.t_min
    alpha, sigma = (float(at(end)) for at in (model.schedule.alpha, model.schedule.sigma))
    for steps in (4, 8, 24):
        promise.begin()
        x = promise.sample(model, sampler, batch=64, steps=steps).x
        off = (x - (alpha if noisy else 1) * model.point) / sigma  # (64, 3)
        mean, std = float(off.mean()), float(off.std())
        promise(
            abs(mean) < 0.4 and (0.75 < std < 1.3 if noisy else std < 1.3),
            "If the model always says the same x_0, x ends at alpha x_0 + sigma e, e standard normal."
            if noisy
            else "If the model always says the same x_0, a run ends there.",
            f"x less {'alpha x_0' if noisy else 'x_0'} has mean {mean:.3g} and standard deviation {std:.3g}, in units of sigma "
            f"at the end, {sigma:.3g}",
            "x that is returned at another time than the last of the grid; a wrong factor alpha or sigma (the step to t ends "
            "with t.alpha x_0 and with noise of t.sigma in all); noise whose variance is not what the step took away. A sampler "
            "that must be told of the data names the options for data of one point in Conformance(exact={...})",
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


@check()
def noise_is_declared(name: str, promise: Promise) -> None:
    """A solver that draws noise in its steps says so, since such a run cannot be followed backwards."""
    sampler = samplers.create(name)
    declared = sampler.effective_facts.stochastic
    if not declared and getattr(sampler, "order", None) is not None:
        raise NotApplicable("its order is declared, which noise in a step would change")
    fresh = [use for use in uses_of(promise, name, sampler, steps=40) if min(use.cells)[2] > 0]
    promise(
        declared or not fresh,
        "With Facts(stochastic=False), the default, a step draws no noise.",
        lambda: f"{len(fresh)} draws of noise in one run",
        "noise in a step of a sampler that does not say so; declare Facts(stochastic=True), or if an option turns the noise on "
        "and off, override effective_facts",
        fresh[0].place if fresh else None,
    )
    promise(
        fresh or not declared,
        "With Facts(stochastic=True) a step draws noise from the run's own numbers, which its seed decides.",
        "no draw of noise in one run",
        "noise that is made in another way, from the row's number or a generator of your own: take "
        "state.canvas.noise(state.i + 1). Or a fact that is not so: leave out stochastic=True, or if an option turns the noise "
        "on and off, override effective_facts",
    )


@check()
def samples_follow_the_model(name: str, promise: Promise) -> None:
    """With many steps on an exact model the samples have its distribution."""
    from scipy.stats import kstest, norm

    cls = registry.load(name)
    if cls.facts.bias == "biased":
        raise NotApplicable("it declares that its distribution is biased")
    model = TinyMixture()
    x = promise.sample(model, samplers.create(name, **dict(cls.conformance.limit)), batch=500, steps=100, seed=3).x
    parts = list(zip(model.weight.tolist(), model.mean.tolist(), model.std.tolist()))
    p = float(kstest(x.flatten().numpy(), lambda v: sum(w * norm.cdf(v, m, s) for w, m, s in parts)).pvalue)
    mean, std = model.moments_of_data()
    promise(
        p > BOUND,
        f"With 100 steps on an exact model the samples have its distribution: p-value above {BOUND:g}.",
        f"p-value {p:.2g} of {x.numel()} numbers; mean {float(x.mean()):.3f} where {mean:.3f} is right, standard deviation "
        f"{float(x.std()):.3f} where {std:.3f} is right",
        "a wrong weight of x_0 in a part of the steps; noise whose variance is not what the step took away (a step that keeps "
        "the share c of the old noise adds sqrt(1 - c^2) of new). Compare the formula with the paper's. A sampler that is for "
        'other models than exact ones, or is wrong by design, declares Facts(bias="biased"); one that needs other options for '
        "it names them in Conformance(limit={...})",
    )


_ENDS: dict[tuple[str, bytes], Tensor] = {}  # most samplers start from the same noise


def true_end(x: Tensor, problem: TinyMixture | None = None) -> Tensor:
    """Where the probability-flow ODE of TinyMixture takes x, from t_max to t_min."""
    problem = problem or TinyMixture()
    key = repr(problem), x.numpy().tobytes()
    if key not in _ENDS:
        _ENDS[key] = solve_ode(problem, x, problem.schedule.t_max, problem.schedule.t_min)
    return _ENDS[key]


def orders_of(name: str) -> list[dict[str, int]]:
    """The options for each order that is declared: {} alone, unless `order` is an option with choices that the kit may vary."""
    cls = registry.load(name)
    choices = next((option.choices for option in cls.options() if option.name == "order"), None)
    return [{"order": order} for order in choices] if choices and "order" not in cls.conformance.order else [{}]


@check()
def declared_order(name: str, promise: Promise) -> None:
    """The error falls with the number of steps as the declared order says; if `order` is an option, at each of its choices."""
    cls, problem = registry.load(name), TinyMixture()
    for options in orders_of(name):
        sampler = samplers.create(name, **(dict(cls.conformance.order) | options))
        order = getattr(sampler, "order", None)
        if order is None:
            raise NotApplicable("no order is declared")
        promise.begin()
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
            "that leave it out: Conformance(order={...})); float32 somewhere; steps counted where forward passes are meant. "
            "Compare the formula with the paper's for the first, a middle and the last step, or declare the order that was seen",
        )


@check()
def declared_order_on_uneven_steps(name: str, promise: Promise) -> None:
    """The declared order holds on steps of different lengths too, and without alpha^2 + sigma^2 = 1."""
    cls = registry.load(name)
    options = {key: value for key, value in cls.conformance.order.items() if key not in ("grid", "end")}
    sampler = samplers.create(name, **options)
    order = getattr(sampler, "order", None)
    if order is None or not cls.conformance.uneven:
        raise NotApplicable("no order is declared, or only on steps of slowly changing length")
    if not isinstance(sampler, GaussianSampler):
        raise NotApplicable("it takes no list of times")
    problem, errors = TinyMixture(schedule="edm"), []
    for steps in (96, 192):
        run = promise.stream(problem, sampler, batch=4, times=_uneven(problem, steps))
        x = run.state.x
        for _ in run:
            pass
        end = torch.full((len(x),), problem.schedule.t_min, dtype=torch.float64, device="cpu")
        truth = problem.predict(true_end(x, problem), end)
        errors.append(float((run.result().x - truth).pow(2).mean().sqrt()))
    promise.calls[:] = [f"samplers.sample({problem!r}, {name!r}, batch=4, times=_uneven(96))"]
    slope = math.log2(errors[0] / errors[1])
    promise(
        slope > order - 0.5,
        f"The solver is of order {order} on steps whose lengths change too: twice the steps divide the error by {2**order}.",
        f"order {slope:.2f} (errors {errors[0]:.2g}, {errors[1]:.2g} with 96, 192 steps of lengths 1, 1.25, 1.4 in turn in the "
        "half log-SNR, on the schedule 'edm')",
        "a multistep formula with the coefficients of equal steps, or with the lengths of two steps mixed up: take both from "
        "the points, r = (s.lam - before) / h; a formula that takes alpha^2 + sigma^2 = 1 for granted: use s.alpha and "
        "s.sigma as they are. A solver that is meant for equal steps says so: Conformance(uneven=False)",
    )


def _uneven(problem: TinyMixture, steps: int) -> list[float]:
    """Times from t_max to t_min whose steps in the half log-SNR have the lengths 1, 1.25 and 1.4 in turn."""
    schedule = problem.schedule
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64, device="cpu")
    first, last = schedule.lam(ends).tolist()
    length = torch.tensor([(1.0, 1.25, 1.4)[k % 3] for k in range(steps)], dtype=torch.float64, device="cpu")
    inner = schedule.t_of(first + (last - first) * length.cumsum(0)[:-1] / length.sum())
    return [schedule.t_max, *inner.tolist(), schedule.t_min]
