"""Noise schedules: how much noise x_t has at each time.

A noise schedule is a pair alpha(t), sigma(t) with x_t = alpha x_0 + sigma e, e ~ N(0, I), and lambda = log(alpha / sigma),
the half log-SNR in which DPM-Solver works. All schedule arithmetic is float64 on the CPU: in float32 exp(-h) - 1 alone
has a relative error of 1e-5 at h = 1e-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import shown
from .errors import OptionError, did_you_mean

__all__ = ["EDM", "Flow", "NoiseSchedule", "Point", "VPCosine", "VPLinear", "float64", "noise_schedule"]


def float64(value: Tensor | float) -> Tensor:
    """A tensor as it is but in float64; a number on the CPU, whatever torch's default device is."""
    return (
        value.to(torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
    )


@dataclass(frozen=True)
class Point:
    """A time of a noise schedule, in Python floats: coefficients made of them are float64 and cost no device sync.

    Attributes:
        t: the time.
        alpha, sigma: x_t = alpha x_0 + sigma e.
        lam: the half log-SNR, lambda = log(alpha / sigma).
    """

    t: float
    alpha: float
    sigma: float
    lam: float

    @classmethod
    def at(cls, schedule: NoiseSchedule, *, t: float | None = None, lam: float | None = None) -> Point:
        """The point at time t, or at half log-SNR lam: give one of the two."""
        if t is None:
            t = float(schedule.t_of(torch.tensor(lam, dtype=torch.float64, device="cpu")))
        return schedule.points(torch.tensor([t], dtype=torch.float64, device="cpu"))[0]


class NoiseSchedule:
    """alpha(t), sigma(t) of a Gaussian process; t falls from `t_max` (noise) to `t_min` (data).

    Subclasses give `log_alpha` and `log_sigma` of a float64 tensor, and the inverse `t_of`.
    """

    name: str
    t_min: float
    t_max: float

    def log_alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def log_sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def t_of(self, lam: Tensor) -> Tensor:
        """The time at which the half log-SNR is `lam`."""
        raise NotImplementedError

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(self.log_alpha(float64(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.exp(self.log_sigma(float64(t)))

    def lam(self, t: Tensor | float) -> Tensor:
        t = float64(t)
        return self.log_alpha(t) - self.log_sigma(t)

    def model_time(self, t: Tensor) -> Tensor:
        """The times t, (B,) float64, as the model takes them: floating numbers, or integers."""
        return t

    def points(self, t: Tensor) -> tuple[Point, ...]:
        """The points at the times t, (n,) float64."""
        columns = (t, self.alpha(t), self.sigma(t), self.lam(t))
        return tuple(Point(*values) for values in zip(*(c.tolist() for c in columns)))

    def __repr__(self) -> str:
        return f"<noise schedule {self.name}, t from {self.t_max:g} to {self.t_min:g}>"


@dataclass(frozen=True, repr=False)
class VPLinear(NoiseSchedule):
    """Variance preserving, beta(t) linear from beta_0 to beta_1: log alpha = -t^2 (b1 - b0)/4 - t b0/2. t in [1e-3, 1]."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp_linear"

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(t**2) * (self.beta_1 - self.beta_0) / 4 - t * self.beta_0 / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def t_of(self, lam: Tensor) -> Tensor:
        # -2 log alpha = log(1 + e^{-2 lam}); solved for t in the form that loses no digits at small t.
        u = torch.logaddexp(-2 * lam, torch.zeros_like(lam))
        return 2 * u / (torch.sqrt(self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * u) + self.beta_0)


@dataclass(frozen=True, repr=False)
class VPCosine(NoiseSchedule):
    """Variance preserving, alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), s = 0.008 (iDDPM). t in [1e-3, 0.9946]."""

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    name: str = "vp_cosine"

    def log_alpha(self, t: Tensor) -> Tensor:
        start = math.log(math.cos(math.pi / 2 * self.s / (1 + self.s)))
        return torch.log(torch.cos(math.pi / 2 * (t + self.s) / (1 + self.s))) - start

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def t_of(self, lam: Tensor) -> Tensor:
        start = math.log(math.cos(math.pi / 2 * self.s / (1 + self.s)))
        log_alpha = -0.5 * torch.logaddexp(-2 * lam, torch.zeros_like(lam))
        return 2 * (1 + self.s) / math.pi * torch.arccos(torch.exp(log_alpha + start)) - self.s


@dataclass(frozen=True, repr=False)
class EDM(NoiseSchedule):
    """Variance exploding with t = sigma (Karras et al. 2022): alpha = 1. t in [0.002, 80]."""

    t_min: float = 0.002
    t_max: float = 80.0
    name: str = "edm"

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def t_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True, repr=False)
class Flow(NoiseSchedule):
    """Rectified flow: alpha = 1 - t, sigma = t. t in [1e-3, 1 - 1e-3] (at t = 1 the half log-SNR is not finite)."""

    t_min: float = 1e-3
    t_max: float = 1 - 1e-3
    name: str = "flow"

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def t_of(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


_NOISE: dict[str, type[NoiseSchedule]] = {"vp_linear": VPLinear, "vp_cosine": VPCosine, "edm": EDM, "flow": Flow}


def noise_schedule(spec: str | NoiseSchedule) -> NoiseSchedule:
    """The noise schedule called `spec`: 'vp_linear', 'vp_cosine', 'edm' or 'flow'; a NoiseSchedule is returned as it is."""
    if isinstance(spec, NoiseSchedule):
        return spec
    if not isinstance(spec, str):
        raise OptionError(f"a noise schedule is a name ({', '.join(_NOISE)}) or a NoiseSchedule, not {shown(spec)}")
    if spec not in _NOISE:
        hint = did_you_mean(str(spec), _NOISE)
        raise OptionError(f"unknown noise schedule {spec!r}{hint} Known: {', '.join(_NOISE)}")
    return _NOISE[spec]()
