"""The arguments of sample() that continuous samplers read, checked and converted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..canvas import NoiseCanvas
from ..checks import (
    check_plan,
    guidance,
    number,
    optional_integer,
    reals,
    shown,
)
from ..errors import OptionError
from ..sampler import Sampler
from .denoiser import GaussianDenoiser

if TYPE_CHECKING:
    from ..arguments import Given

__all__ = ["GaussianArguments", "GaussianConfig", "read_gaussian"]

ADAPTIVE_STEPS = 1000  # the most, if a tolerance decides: a run that stops early returns the mean of what x could be
GAUSSIAN_STEPS = 20  # function evaluations of a continuous sampler that is told no number
POINT_BYTES = 320  # a point of a continuous grid: a Python object of four floats


@dataclass(frozen=True, eq=False)
class GaussianConfig:
    """How the answers of a Gaussian denoiser are read: the driver's arguments that the predictor keeps.

    Attributes:
        cfg_scale: w of the guided answer, (1 + w) of the conditional one less w of the unconditional one.
        cfg_interval: (low, high): guided where the noise's share of the variance, sigma^2 / (alpha^2 + sigma^2), is above low
            and at most high.
        cfg_rescale: see GaussianDenoiser.guided.
        x0_bound: the bound of x_0; None: none.
        x0_quantile: the quantile for dynamic thresholding; None: x_0 is clipped at the bound.
    """

    cfg_scale: float = 0.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_rescale: float = 0.0
    x0_bound: float | None = None
    x0_quantile: float | None = None


@dataclass(frozen=True, eq=False)
class GaussianArguments:
    """The arguments of a continuous run, checked and converted.

    Attributes:
        canvas: what the run starts from; its `steps` are those of the caller, or the default.
        config: how answers are read.
        closing: with canvas.times, whether they end in sigma = 0, so that the last evaluation's x_0 is returned.
        constrain: the hook, or None.
        settings: as in TokenArguments.
    """

    canvas: NoiseCanvas
    config: GaussianConfig
    closing: bool
    constrain: Callable[[Any], Tensor | None] | None
    settings: dict[str, Any]


def read_gaussian(denoiser: GaussianDenoiser, sampler: Sampler[Any], given: Given) -> GaussianArguments:
    """The arguments of a continuous run, checked and converted.

    Raises:
        OptionError: one of them is wrong.
    """
    rng, settings = given.rows(denoiser, denoiser.row_bytes)
    batch, steps = settings["batch"], optional_integer("steps", given("steps"))
    config = _read_gaussian_config(denoiser, given)
    constrain = given.constrain()
    rows: dict[str, Tensor | None] = {}
    for name, dtype in (("start", denoiser.state_dtype), ("start_noise", denoiser.state_dtype), ("known", torch.bool)):
        value = given(name)
        rows[name] = None if value is None else reals(name, value, denoiser.shape, batch, dtype, denoiser.device)
    _check_moments(denoiser, sampler, config)
    moments = _read_moments(denoiser, given("start_moments"), batch)
    strength = number("strength", given("strength"), 0.0, 1.0)
    times, closing = _read_times(denoiser, given)
    given.refuse_the_rest(sampler)
    if rows["start"] is None:
        for name, is_given in (("known", rows["known"] is not None), ("strength", strength != 1.0)):
            if is_given:
                raise OptionError(f"{name} is for a run from a given x_0: give start= as well, (B, *shape)")
    elif moments is not None:
        raise OptionError("start_moments is for a run without a given x_0: leave out start= or start_moments=")
    if strength == 0:
        raise OptionError("strength=0 leaves start= as it is; a number above 0 and up to 1 is needed")
    if times is not None:
        if steps is not None and steps != len(times):
            raise OptionError(
                f"steps={steps} and a list of {len(times)} times: the list says how many, so leave out steps="
            )
        if strength != 1.0:
            raise OptionError("strength and a list of times: the list says where to start, so leave out strength=")
        steps = len(times)
    if steps is None:
        steps = GAUSSIAN_STEPS if sampler.expected_nfe(0, GAUSSIAN_STEPS) is not None else ADAPTIVE_STEPS
    check_plan(f"steps={steps}", steps * POINT_BYTES)
    noise = rows["start_noise"]
    if rows["known"] is not None and noise is None:  # it is put in again in every step
        noise = rng.normal(denoiser.shape, 0, denoiser.state_dtype)
    canvas = NoiseCanvas(denoiser, steps, rng, rows["start"], rows["known"], moments, strength, noise, times)
    settings |= {"steps": steps, "strength": strength, "times": None if times is None else list(times)}
    settings |= {name: None if value is None else "given" for name, value in rows.items()}
    settings |= {"start_moments": None if moments is None else "given"}
    settings |= {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
    return GaussianArguments(canvas, config, closing, constrain, settings)


def _read_gaussian_config(denoiser: GaussianDenoiser, given: Given) -> GaussianConfig:
    scale, interval = guidance(given("cfg_scale"), given("cfg_interval"), low=-1.0)  # CFG++ takes w from -1 to 0
    rescale = number("cfg_rescale", given("cfg_rescale"), 0.0, 1.0)
    if scale and not denoiser.can_guide:
        raise OptionError(
            f"cfg_scale={scale:g}: denoiser {denoiser.name!r} has no prediction without the condition. Say what it is: "
            "GaussianDenoiser.wrap(fn, ..., unconditional=fn_u), or wrap(fn, ..., condition=c, unconditional=u)"
        )
    if rescale and not scale:
        raise OptionError("cfg_rescale rescales guided answers: give cfg_scale= above 0 as well")
    x0_bound, quantile = given("x0_bound"), given("x0_quantile")
    x0_bound = None if x0_bound is None else number("x0_bound", x0_bound, 0.0)
    quantile = None if quantile is None else number("x0_quantile", quantile, 0.0, 1.0)
    if x0_bound == 0:
        raise OptionError("x0_bound must be above 0: the largest |x_0| that is let through")
    if quantile is not None and x0_bound is None:
        raise OptionError("x0_quantile is for dynamic thresholding: give the bound as well, such as x0_bound=1.0")
    return GaussianConfig(scale, interval, rescale, x0_bound, quantile)


def _check_moments(denoiser: GaussianDenoiser, sampler: Sampler[Any], config: GaussianConfig) -> None:
    """OptionError if the sampler needs moments of x_0 that this run has not."""
    if sampler.effective_facts.moments == 1:
        return
    who = f"sampler {sampler.name!r} needs {sampler.effective_facts.moments} moments of x_0"
    if not denoiser.gives_moments:
        raise OptionError(
            f"{who}, and denoiser {denoiser.name!r} gives the mean only. Moments come from heads of the model, "
            "GaussianDenoiser.wrap(..., moments=heads), or from derivatives of its answer, denoiser.with_moments(probes=...)"
        )
    if config.cfg_scale:
        raise OptionError(f"{who}, and those of a guided x_0 are not known: leave out cfg_scale")


def _read_moments(denoiser: GaussianDenoiser, value: Any, batch: int) -> tuple[Tensor, float] | None:
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise OptionError(
            f"start_moments is (mean of x_0, its variance per coordinate): a tensor (*shape) and a number, not {shown(value)}"
        )
    mean = value[0]
    if not isinstance(mean, Tensor) or mean.dim() == 0:  # one number for all coordinates
        mean = torch.full(
            denoiser.shape, number("start_moments: the mean", mean, -math.inf), dtype=torch.float64, device="cpu"
        )
    mean = reals("start_moments: the mean", mean, denoiser.shape, batch, denoiser.state_dtype, denoiser.device)
    return mean, number("start_moments: the variance", value[1], 0.0)


def _read_times(denoiser: GaussianDenoiser, given: Given) -> tuple[tuple[float, ...] | None, bool]:
    """The times of `times=`, `timesteps=` or `sigmas=`, and whether they end in sigma = 0, which is left out."""
    lists = {name: given(name) for name in ("times", "timesteps", "sigmas")}
    named = [name for name, value in lists.items() if value is not None]
    if not named:
        return None, False
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)}: give one list of times")
    name, schedule = named[0], denoiser.schedule
    try:
        values = torch.as_tensor(lists[name], dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name} is {shown(lists[name])}; a list of numbers is needed, the noisiest first") from error
    closing = True
    if name == "sigmas":
        closing = bool(len(values)) and float(values[-1]) == 0
        values = schedule.time_of_sigma(values[: len(values) - closing])
    elif name == "timesteps":
        values = schedule.time_of_model(values)
    out = tuple(values.tolist())
    if not out or not all(map(math.isfinite, out)):
        raise OptionError(f"{name} is {shown(lists[name])}; finite numbers are needed, at least one")
    if len(out) == 1 and not closing:
        raise OptionError(f"{name} is one number: end the list in 0, after which the denoised x_0 is returned")
    least, most = schedule.t_min if schedule.entries else schedule.t_zero, schedule.t_max
    for t in out:
        if not least <= t <= most * (1 + 1e-3):  # published lists are rounded
            raise OptionError(f"{name}: {t:g} is no time of {schedule!r}; its times are from {most:g} to {least:g}")
    out = tuple(min(t, most) for t in out)
    for a, b in zip(out, out[1:]):
        if (b < a) != (out[1] < out[0]) or a == b:
            raise OptionError(f"{name} must fall all the way, or for inversion rise; there is {shown(lists[name])}")
    return out, closing and out[0] >= out[-1]  # a run up in noise ends at its last time
