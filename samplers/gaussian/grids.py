"""Grids: where between two noise levels a continuous run asks the model."""

from __future__ import annotations

import math

import torch

from ..noise_schedules import NoiseSchedule, Point

__all__ = ["GRIDS", "spaced"]

GRIDS = ("auto", "logsnr", "time_uniform", "time_quadratic", "karras")


def spaced(
    grid: str, schedule: NoiseSchedule, start: float, end: float, intervals: int, *, closing: bool, rho: float = 7.0
) -> tuple[Point, ...]:
    """`intervals` + 1 points, the first at `start`; the last at `end`, unless intervals is 0."""
    u = torch.linspace(0, 1, intervals + 1, dtype=torch.float64, device="cpu")
    first, last = schedule.lam(start), schedule.lam(end)
    if grid in ("auto", "logsnr"):
        t = schedule.t_of(first + u * (last - first))
    elif grid == "time_uniform":
        t = start + u * (end - start)
    elif grid == "time_quadratic":
        t = (start**0.5 + u * (end**0.5 - start**0.5)) ** 2
    else:
        hi, lo = math.exp(-float(first) / rho), math.exp(-float(last) / rho)
        t = schedule.t_of(-rho * torch.log(hi + u * (lo - hi)))
    t[0] = start
    if intervals:
        t[-1] = end
    return schedule.points(t)
