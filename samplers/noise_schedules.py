"""Noise schedules: how much noise x_t has at each time, and what a model calls that time.

A noise schedule is a pair alpha(t), sigma(t) with x_t = alpha x_0 + sigma e, e ~ N(0, I), and lambda = log(alpha / sigma),
the half log-SNR in which DPM-Solver works. All schedule arithmetic is float64 on the CPU: in float32 exp(-h) - 1 alone
has a relative error of 1e-5 at h = 1e-3. At t_max a schedule may have alpha = 0, and then lambda = -inf: rectified flow,
and tables with zero terminal SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import registry
from .checks import shown
from .errors import OptionError, UnknownNameError, did_you_mean

__all__ = ["EDM", "Flow", "NoiseSchedule", "Point", "VPCosine", "VPLinear", "VPTable", "float64", "noise_schedule"]


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

    Attributes:
        t_zero: the time at which there would be no noise; grids that walk towards it stop before they reach it.
        entries: for a table, the number of its entries, whose times are 0 to entries - 1; None otherwise.
        time_scale: what the model is given is t times this, unless the schedule has a rule of its own.
    """

    name: str
    t_min: float
    t_max: float
    t_zero: ClassVar[float] = 0.0
    entries: int | None = None
    time_scale: float = 1.0

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

    def points(self, t: Tensor) -> tuple[Point, ...]:
        """The points at the times t, (n,) float64."""
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        columns = (t, torch.exp(log_alpha), torch.exp(log_sigma), log_alpha - log_sigma)
        return tuple(map(Point, *(c.tolist() for c in columns)))

    # what others call a time

    def model_time(self, t: Tensor) -> Tensor:
        """What the model is given as its time: t, (B,) float64, times `time_scale`. The same shape."""
        return t if self.time_scale == 1 else t * self.time_scale

    def time_of_model(self, timesteps: Tensor | Sequence[float]) -> Tensor:
        """The inverse of `model_time`: the times, float64, of what a model or another library calls timesteps."""
        return _numbers("timesteps", timesteps) / self.time_scale

    def sigma_of_time(self, t: Tensor) -> Tensor:
        """What k-diffusion and diffusers call sigma at the times t: sigma(t) / alpha(t), and for rectified flow t itself."""
        return torch.exp(-self.lam(t))

    def time_of_sigma(self, sigmas: Tensor | Sequence[float]) -> Tensor:
        """The inverse of `sigma_of_time`: the times, float64, of a list of sigmas.

        Published lists are rounded, so a sigma up to 0.1 % above the schedule's largest counts as the largest.

        Raises:
            OptionError: a sigma that is negative, above the schedule's largest, or (of a table) below its smallest; a
                closing 0 is no time of a table.
        """
        sigmas = _numbers("sigmas", sigmas)
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device="cpu")
        least, most = self.sigma_of_time(ends).tolist()
        if self.entries is None:
            least = 0.0
        off = (sigmas < least * (1 - 1e-3)) | (sigmas > most * (1 + 1e-3))
        if bool(off.any()):
            raise OptionError(
                f"sigma {sigmas[off][0].item():g} is outside of {self!r}: its sigmas are from {most:g} to {least:g}"
            )
        return self._time_of_sigma(sigmas.clamp(least, most))

    def _time_of_sigma(self, sigmas: Tensor) -> Tensor:
        return self.t_of(-torch.log(sigmas))

    # what grids that are uniform in time do with a time

    def shifted(self, u: Tensor) -> Tensor:
        """The time at which a grid that is uniform in time puts a point of even spacing u. See Flow's `shift`."""
        return u

    def unshifted(self, t: Tensor) -> Tensor:
        """The inverse of `shifted`."""
        return t

    def __repr__(self) -> str:
        return f"<noise schedule {self.name}, t from {self.t_max:g} to {self.t_min:g}>"


def _numbers(what: str, values: Tensor | Sequence[float]) -> Tensor:
    """float64 on the CPU, at least one-dimensional.

    Raises:
        OptionError: something that is no number. Infinity is one: sigma / alpha where alpha is 0.
    """
    try:
        out = torch.atleast_1d(torch.as_tensor(values, dtype=torch.float64, device="cpu"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{what} must be a list of numbers, not {shown(values)}") from error
    if bool(torch.isnan(out).any()):
        raise OptionError(f"{what} must be numbers, and one of them is NaN")
    return out


@dataclass(frozen=True, repr=False)
class VPLinear(NoiseSchedule):
    """Variance preserving, beta(t) linear from beta_0 to beta_1: log alpha = -t^2 (b1 - b0)/4 - t b0/2. t in [1e-3, 1].

    k-diffusion's VP schedule (get_sigmas_vp, beta_d = 19.9, beta_min = 0.1) is this schedule on the grid "time_uniform".
    Models of Song et al. 2021 (arXiv 2011.13456) are given 999 t: time_scale=999.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp_linear"
    time_scale: float = 1.0

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
    time_scale: float = 1.0

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
    """Variance exploding with t = sigma (Karras et al. 2022, arXiv 2206.00364): alpha = 1. t in [0.002, 80].

    Attributes:
        time: what the model is given: "sigma", or "c_noise", which is ln(sigma) / 4 (their table 1).
    """

    t_min: float = 0.002
    t_max: float = 80.0
    name: str = "edm"
    time: str = "sigma"

    def __post_init__(self) -> None:
        _check_range(self)
        _check_time(self.name, self.time, ("sigma", "c_noise"))

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def t_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    def sigma_of_time(self, t: Tensor) -> Tensor:
        return float64(t)

    def _time_of_sigma(self, sigmas: Tensor) -> Tensor:
        return sigmas

    def model_time(self, t: Tensor) -> Tensor:
        """t, (B,) float64, or ln(t) / 4. The same shape."""
        return t if self.time == "sigma" else torch.log(t) / 4

    def time_of_model(self, timesteps: Tensor | Sequence[float]) -> Tensor:
        values = _numbers("timesteps", timesteps)
        return values if self.time == "sigma" else torch.exp(4 * values)


@dataclass(frozen=True, repr=False)
class Flow(NoiseSchedule):
    """Rectified flow: alpha = 1 - t, sigma = t. t in [1e-3, 1]; at t = 1 alpha is 0, and the half log-SNR is -inf.

    The shift k of SD3 (Esser et al. 2024, arXiv 2403.03206, eq. 23) is a property of the grid and not of alpha(t) and
    sigma(t): grids that are uniform in time put their points at k u / (1 + (k - 1) u) for even u, which multiplies
    sigma / alpha by k. Grids in lambda or sigma do not use it.

    Attributes:
        shift: k. SD3 has 3; `for_tokens` gives that of FLUX.
        time_scale: the model is given t times this: 1, or 1000 for the models of diffusers.
    """

    shift: float = 1.0
    time_scale: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "flow"

    def __post_init__(self) -> None:
        _check_range(self, most=1.0)
        for what, value in (("shift", self.shift), ("time_scale", self.time_scale)):
            if not 0 < value < math.inf:
                raise OptionError(f"noise schedule 'flow': {what} must be a positive number, not {value!r}")

    @classmethod
    def for_tokens(
        cls,
        tokens: int,
        *,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_tokens: int = 256,
        max_tokens: int = 4096,
        **options: Any,
    ) -> Flow:
        """The schedule for an image of so many tokens: shift = e^mu, mu a line through (base_tokens, base_shift) and
        (max_tokens, max_shift). The defaults are those of FLUX, whose tokens are the image's patches of 16 by 16 pixels.
        """
        slope = (max_shift - base_shift) / (max_tokens - base_tokens)
        return cls(shift=math.exp(base_shift + (tokens - base_tokens) * slope), **options)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def t_of(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)

    def sigma_of_time(self, t: Tensor) -> Tensor:
        return float64(t)

    def _time_of_sigma(self, sigmas: Tensor) -> Tensor:
        return sigmas

    def shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def unshifted(self, t: Tensor) -> Tensor:
        return t / (self.shift - (self.shift - 1) * t)


@dataclass(frozen=True, repr=False, eq=False)
class VPTable(NoiseSchedule):
    """Variance preserving, from the table with which a model was trained. The time is the index: t in [0, N - 1].

    Between entries log alpha is linear in t (DPM-Solver, arXiv 2206.00927, appendix D), so whole times are the entries
    exactly, and `timesteps` of other libraries are times as they are. If the last entry is 0 (zero terminal SNR), alpha
    itself is linear in the last interval, and lambda(N - 1) = -inf; diffusers puts 2^-24 in its place.

    Attributes:
        alphas_cumprod: (N,) alpha^2 by index, float64 on the CPU, falling, from below 1 at the data's end.
        time: what the model is given: "continuous", the index as a float; "integer", the nearest index, int64; or
            "scaled", time_scale t / N, as DPM-Solver's code does it.
    """

    alphas_cumprod: Tensor
    time: str = "continuous"
    time_scale: float = 1000.0
    name: str = "table"
    t_min: float = 0.0
    t_max: float = field(init=False)
    entries: int = field(init=False)
    _log_alpha: Tensor = field(init=False)
    t_zero: ClassVar[float] = -1.0

    def __post_init__(self) -> None:
        _check_time(self.name, self.time, ("continuous", "integer", "scaled"))
        table = _numbers("alphas_cumprod", self.alphas_cumprod).detach()
        if table.dim() != 1 or len(table) < 2:
            raise OptionError(f"alphas_cumprod must be (N,) with N >= 2, not {tuple(table.shape)}")
        if not bool((torch.diff(table) < 0).all()) or not 0 <= float(table[-1]) < float(table[0]) < 1:
            raise OptionError(
                "alphas_cumprod must fall with the index, from below 1 (index 0, nearly data) to 0 or more (noise); "
                f"it goes from {float(table[0]):g} to {float(table[-1]):g}"
                + (". Turn it around" if float(table[0]) < float(table[-1]) else "")
            )
        n = len(table)
        made = {"alphas_cumprod": table, "t_max": n - 1.0, "entries": n, "_log_alpha": torch.log(table) / 2}
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_betas(cls, betas: Tensor | Sequence[float], *, zero_snr: bool = False, **options: Any) -> VPTable:
        """The table with alpha_i^2 = (1 - beta_0) ... (1 - beta_i).

        Args:
            betas: (N,), each in (0, 1), or 1 for the last.
            zero_snr: rescale alpha so that the last is 0 and the first stays (Lin et al. 2023, arXiv 2305.08891,
                algorithm 1).
            options: VPTable's own: time, time_scale, name.
        """
        betas = _numbers("betas", betas)
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise OptionError(f"betas must be above 0 and at most 1; they go from {betas.min():g} to {betas.max():g}")
        alpha = torch.exp(torch.log1p(-betas).cumsum(0) / 2)
        if zero_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        return cls(alpha**2, **options)

    @classmethod
    def named(cls, name: str, n: int = 1000, *, zero_snr: bool = False, **options: Any) -> VPTable:
        """A table of the field: "ddpm_linear", "scaled_linear" or "squared_cosine", with n entries.

        Args:
            options: beta_0 and beta_1 of the two linear ones; VPTable's own: time, time_scale.
        """
        if name not in _BETAS:
            raise OptionError(
                f"unknown table {shown(name)}{did_you_mean(str(name), _BETAS)} Known: {', '.join(_BETAS)}"
            )
        ends = {key: options.pop(key) for key in ("beta_0", "beta_1") if key in options}
        betas = _BETAS[name](n, **ends)
        return cls.of_betas(betas, zero_snr=zero_snr, **({"name": name + "(zero_snr)" * zero_snr} | options))

    def log_alpha(self, t: Tensor) -> Tensor:
        last = self.entries - 2
        table = self._log_alpha.to(t.device)
        t = t.clamp(0, last + 1)
        k = t.detach().floor().clamp_max(last).to(torch.int64)
        w = t - k
        if float(self.alphas_cumprod[-1]) > 0:
            return table[k] + w * (table[k + 1] - table[k])
        end = k == last
        inner = table[k] + w * (table[(k + 1).clamp_max(last)] - table[k])
        return torch.where(end, table[last] + torch.log1p(-torch.where(end, w, 0.0)), inner)

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def t_of(self, lam: Tensor) -> Tensor:
        """The time at which the half log-SNR is `lam`; beyond the table its first or last index."""
        last = self.entries - 2
        table = self._log_alpha.to(lam.device)
        log_alpha = -0.5 * torch.logaddexp(-2 * lam, torch.zeros_like(lam))
        k = (torch.searchsorted(-table, -log_alpha, right=True) - 1).clamp(0, last)
        w = (log_alpha - table[k]) / (table[k + 1] - table[k])
        if float(self.alphas_cumprod[-1]) == 0:
            w = torch.where(k == last, -torch.expm1(log_alpha - table[last]), w)
        return k + w.clamp(0, 1)

    def model_time(self, t: Tensor) -> Tensor:
        """The index of each of t, (B,) float64, in the form that `time` says. (B,), int64 if that is "integer"."""
        if self.time == "integer":
            return t.round().to(torch.int64)
        return t if self.time == "continuous" else t / self.entries * self.time_scale

    def time_of_model(self, timesteps: Tensor | Sequence[float]) -> Tensor:
        """The inverse of `model_time`.

        Raises:
            OptionError: a time outside of the table.
        """
        t = _numbers("timesteps", timesteps)
        if self.time == "scaled":
            t = t / self.time_scale * self.entries
        off = (t < 0) | (t > self.t_max)
        if bool(off.any()):
            raise OptionError(
                f"timestep {t[off][0].item():g} is outside of {self!r}: its indices are 0 to {self.entries - 1}"
            )
        return t


def _linear_betas(n: int, beta_0: float = 1e-4, beta_1: float = 0.02) -> Tensor:
    """Ho et al. 2020, arXiv 2006.11239."""
    return torch.linspace(beta_0, beta_1, n, dtype=torch.float64, device="cpu")


def _scaled_betas(n: int, beta_0: float = 0.00085, beta_1: float = 0.012) -> Tensor:
    """Rombach et al. 2021, arXiv 2112.10752: linear in the square root. Stable Diffusion's."""
    return torch.linspace(beta_0**0.5, beta_1**0.5, n, dtype=torch.float64, device="cpu") ** 2


def _cosine_betas(n: int) -> Tensor:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17: alpha^2 = cos^2 of `VPCosine`, each beta at most 0.999."""
    t = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
    alpha = torch.cos(math.pi / 2 * (t + 0.008) / 1.008)
    return (1 - (alpha[1:] / alpha[:-1]) ** 2).clamp_max(0.999)


_BETAS: dict[str, Callable[..., Tensor]] = {
    "ddpm_linear": _linear_betas,
    "scaled_linear": _scaled_betas,
    "squared_cosine": _cosine_betas,
}


def _check_range(schedule: NoiseSchedule, most: float = math.inf) -> None:
    low, high = schedule.t_min, schedule.t_max
    if not 0 < low < high < math.inf or high > most:
        limit = f" <= {most:g}" if most < math.inf else ""
        raise OptionError(
            f"noise schedule {schedule.name!r}: 0 < t_min < t_max{limit} is needed, not {low!r} and {high!r}"
        )


def _check_time(who: str, time: str, known: tuple[str, ...]) -> None:
    if time not in known:
        hint = did_you_mean(str(time), known)
        raise OptionError(f"noise schedule {who!r}: time={time!r} is unknown{hint} Known: {', '.join(known)}")


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> EDM:
    """What the name 'edm(sigma_min,sigma_max)' stands for."""
    return EDM(sigma_min, sigma_max)


def flow(shift: float = 1.0) -> Flow:
    """What the name 'flow(shift)' stands for."""
    return Flow(shift)


# What others call a schedule, where that name is not ours.
_ELSEWHERE = {
    "linear": "'vp_linear' (continuous) or 'ddpm_linear' (a table of 1000 entries)",
    "cosine": "'vp_cosine' (continuous) or 'squared_cosine' (a table of 1000 entries)",
    "squaredcos_cap_v2": "'squared_cosine'",
    "ve": "'edm'",
    "rectified_flow": "'flow'",
}


def noise_schedule(spec: str | NoiseSchedule) -> NoiseSchedule:
    """The noise schedule called `spec`; a NoiseSchedule is returned as it is.

    vp_linear, vp_cosine    variance preserving, continuous: VPLinear, VPCosine
    edm, edm(0.002,700)     sigma = t: EDM; with its smallest and largest sigma
    flow, flow(3)           rectified flow: Flow; with the shift of its grids
    ddpm_linear, scaled_linear, squared_cosine
                            tables of 1000 entries: DDPM's, Stable Diffusion's, i-DDPM's (VPTable.named); each also with
                            zero terminal SNR, as in scaled_linear(zero_snr)

    And those of plug-ins (the hook register_noise_schedules): 'name', 'name(3)' with numbers, 'dist:name'.

    Raises:
        PluginError: it comes from a plug-in that is broken.
        OptionError: an unknown name, numbers that do not fit, or something that is neither a name nor a NoiseSchedule.
    """
    if isinstance(spec, NoiseSchedule):
        return spec
    if not isinstance(spec, str):
        raise OptionError(
            "a noise schedule is a name such as 'vp_linear', or a NoiseSchedule such as samplers.schedule.EDM() or (a table of "
            f"alpha^2 by index) samplers.schedule.VPTable(alphas_cumprod), not {shown(spec)}"
        )
    return _by_name(spec)


def _by_name(spec: str) -> NoiseSchedule:
    text = spec.replace(" ", "")
    if (lower := text.lower()).partition("(")[0] in registry.own_names("noise_schedules"):
        text = lower
    try:
        return registry.made("noise_schedules", text)
    except UnknownNameError as error:
        if (word := lower.partition("(")[0]) in _ELSEWHERE:
            raise OptionError(f"unknown noise schedule {shown(spec)}: here it is {_ELSEWHERE[word]}") from None
        raise OptionError(str(error)) from None
