"""Schedules: how fast tokens appear (mask schedules) and how noise falls (noise schedules).

A mask schedule is written on *progress* u, from 0 (all masked) to 1 (all visible), as the visible fraction a(u) with
a(0) = 0 and a(1) = 1, and is named by its formula. The field's word "cosine" means 1 - cos(pi u / 2) in MaskGIT, MD4 and
eMIGM (few tokens early) and sin(pi u / 2) in MDLM (many tokens early), so it is refused.

A noise schedule is a pair alpha(t), sigma(t) with x_t = alpha x_0 + sigma e, e ~ N(0, I), and lambda = log(alpha / sigma),
the half log-SNR in which DPM-Solver works. All schedule arithmetic is float64 on the CPU: in float32 exp(-h) - 1 alone
has a relative error of 1e-5 at h = 1e-3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import OptionError, did_you_mean

__all__ = ["EDM", "Flow", "MaskSchedule", "NoiseSchedule", "VPCosine", "VPLinear", "mask_schedule", "noise_schedule"]


# ---------------------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class MaskSchedule:
    """Visible fraction a(u) of progress u in [0, 1].

    Args:
        name: the formula, as `mask_schedule` reads it.
        visible: float64 tensor u -> a(u), increasing from 0 to 1.
        progress: its inverse, a -> u.
    """

    name: str
    visible: Callable[[Tensor], Tensor]
    progress: Callable[[Tensor], Tensor]

    def __call__(self, u: Tensor | float) -> Tensor:
        """a(u), float64, with the ends exact."""
        u = torch.as_tensor(u, dtype=torch.float64)
        a = self.visible(u.clamp(0.0, 1.0)).clamp(0.0, 1.0)
        return torch.where(u <= 0, 0.0, torch.where(u >= 1, 1.0, a))

    def reveal(self, steps: int) -> Tensor:
        """rho_k = (a_{k+1} - a_k) / (1 - a_k): the chance that a token still masked appears in step k. (steps,) float64.

        The last entry is exactly 1. (Any ancestral sampler of a masking process; reference: MDLM eq. 7, RADD eq. 3.)
        """
        a = self(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        rho = (a[1:] - a[:-1]) / (1 - a[:-1]).clamp_min(1e-300)
        rho[-1] = 1.0
        return rho.clamp(0.0, 1.0)

    def mass(self, steps: int) -> Tensor:
        """r_k = a_{k+1} - a_k: the chance that a token appears in step k, given nothing. (steps,) float64, sums to 1."""
        return torch.diff(self(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))

    def counts(self, n: int, steps: int) -> list[int]:
        """How many of n positions to commit in each step: differences of round(n a(k/steps)), zero-token steps dropped.

        The counts sum to n, and their number is the NFE of any sampler that follows them.
        """
        a = self(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        # Half rounds up (not to even), so that every count sequence is monotone in n at each step.
        cumulative = torch.floor(n * a + 0.5).to(torch.int64).clamp(0, n)
        cumulative[-1] = n
        return [int(c) for c in torch.diff(cumulative) if c > 0]

    def expected_nfe(self, n: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^n]: forwards of an ancestral sampler that runs the model only when a token appears.

        arXiv 2409.02908, appendix E, for one row of n masked positions; exact for any network.
        """
        return float((1 - (1 - self.mass(steps)) ** n).sum())


def _beta(a: float, b: float) -> MaskSchedule:
    # scipy is imported here because only this schedule needs it, and it is slow to import.
    from scipy.special import betainc, betaincinv

    def visible(u: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * torch.as_tensor(betainc(a, b, u.numpy()))) ** 2

    def progress(v: Tensor) -> Tensor:
        gamma = 2 / math.pi * torch.arcsin(torch.sqrt(v))
        return torch.as_tensor(betaincinv(a, b, gamma.numpy()))

    return MaskSchedule(f"beta({a:g},{b:g})", visible, progress)


_FORMULAS = {
    "linear": MaskSchedule("linear", lambda u: u, lambda a: a),
    "1-cos": MaskSchedule(
        "1-cos", lambda u: 1 - torch.cos(math.pi / 2 * u), lambda a: 2 / math.pi * torch.arccos(1 - a)
    ),
    "sin": MaskSchedule("sin", lambda u: torch.sin(math.pi / 2 * u), lambda a: 2 / math.pi * torch.arcsin(a)),
    "arcsin": MaskSchedule(  # Guidance-MaskGIT's "arccos": a = 1 - arccos(u) / (pi/2)
        "arcsin", lambda u: 2 / math.pi * torch.arcsin(u), lambda a: torch.sin(math.pi / 2 * a)
    ),
    "sin^2": MaskSchedule(
        "sin^2", lambda u: torch.sin(math.pi / 2 * u) ** 2, lambda a: 2 / math.pi * torch.arcsin(torch.sqrt(a))
    ),
}
_MEANS = "linear: a = u; 1-cos: a = 1 - cos(pi u/2); sin: a = sin(pi u/2); sin^2; beta(a,b): a = sin^2(pi I_u(a,b)/2)"


def mask_schedule(spec: str | MaskSchedule) -> MaskSchedule:
    """The mask schedule called `spec`: 'linear', '1-cos', 'sin', 'sin^2' or 'beta(a,b)'.

    beta(a,b) is the family of arXiv 2509.13866, alpha = sin^2(pi/2 I_u(a, b)), I the regularised incomplete beta function;
    beta(0.5,0.5) is linear and beta(1,1) is sin^2.

    Raises:
        OptionError: an unknown formula, 'cosine' (it names two opposite schedules), or a, b not positive.
    """
    if isinstance(spec, MaskSchedule):
        return spec
    text = str(spec).replace(" ", "").lower()
    if text in _FORMULAS:
        return _FORMULAS[text]
    if text in ("cosine", "cos"):
        raise OptionError(
            "schedule 'cosine' names two opposite schedules in this field: write '1-cos' for MaskGIT's and MD4's "
            "(few tokens early) or 'sin' for MDLM's (many tokens early)"
        )
    if match := re.fullmatch(r"beta\(([^,]+),([^,]+)\)", text):
        try:
            a, b = float(match[1]), float(match[2])
        except ValueError:
            a = b = math.nan
        if not (0 < a < math.inf and 0 < b < math.inf):
            raise OptionError(f"schedule {spec!r}: beta(a,b) takes two positive numbers, such as beta(0.9,0.3)")
        return _beta(a, b)
    hint = did_you_mean(text, [*_FORMULAS, "beta(a,b)"])
    raise OptionError(f"unknown mask schedule {spec!r}{hint} Known: {_MEANS}")


# ---------------------------------------------------------------------------------------------- noise


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
        return torch.exp(self.log_alpha(torch.as_tensor(t, dtype=torch.float64)))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.exp(self.log_sigma(torch.as_tensor(t, dtype=torch.float64)))

    def lam(self, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.log_alpha(t) - self.log_sigma(t)

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
    if spec not in _NOISE:
        hint = did_you_mean(str(spec), _NOISE)
        raise OptionError(f"unknown noise schedule {spec!r}{hint} Known: {', '.join(_NOISE)}")
    return _NOISE[spec]()
