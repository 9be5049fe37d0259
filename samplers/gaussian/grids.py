"""Grids: at which times a run of n evaluations asks the model.

A grid is a function of a Span that gives the times of all points at once. `spaced` checks what it gives and makes Points.
Their names are registered in samplers/builtin.py, and by plug-ins.

A run that *closes* evaluates at every point and returns the last denoised x_0, which is a first-order step to sigma = 0. How
long that last step should be differs by grid: "karras" evaluates at `end` itself, "trailing" stops one interval short of no
noise at all. A run that does not close (convergence studies, inversion) returns x at `end`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptionError, PluginError, UnknownNameError
from ..guard import guarded
from ..kinds import find, own_names
from ..noise_schedules import Flow, NoiseSchedule, Point

__all__ = ["GRIDS", "Span", "spaced"]

# Where grids in lambda begin if x_T has hardly any signal, as in DPM-Solver's code for the cosine schedule: below it a
# model can only say the mean, and intervals there would be lost. Their first point stays at `start`.
LAM_FIRST = -5.1


@dataclass(frozen=True)
class Span:
    """What a grid is made for.

    Attributes:
        schedule: the noise schedule.
        start, end: times; the noise at start is larger.
        n: number of points, at least 2.
        closing: the run evaluates at all n points and then goes to sigma = 0; otherwise the last point is `end`.
        rho: the exponent of "karras", "edm_flow", "polyexponential" and "logistic"; None: the grid's own.
    """

    schedule: NoiseSchedule
    start: float
    end: float
    n: int
    closing: bool
    rho: float | None = None

    def ramp(self, *, reach: bool = True) -> Tensor:
        """Even numbers from 0, (n,) float64. They reach 1, or stop 1/n short of it if the run closes and not `reach`."""
        return torch.arange(self.n, dtype=torch.float64, device="cpu") / self.intervals(reach)

    def intervals(self, reach: bool) -> int:
        return self.n - 1 if reach or not self.closing else self.n

    def at(self, *times: float) -> Tensor:
        return torch.tensor(times, dtype=torch.float64, device="cpu")

    def even(self, target: float, *, reach: bool, power: float = 1.0) -> Tensor:
        """Times from start to `target`, even in u^(1/power), u the unshifted time counted from the time of no noise."""
        zero = self.schedule.t_zero
        first, last = ((u - zero) ** (1 / power) for u in self.schedule.unshifted(self.at(self.start, target)).tolist())
        # i (last - first) / intervals and not ramp (last - first): whole indices of tables come out whole.
        steps = torch.arange(self.n, dtype=torch.float64, device="cpu") * (last - first) / self.intervals(reach)
        return self.schedule.shifted((first + steps) ** power + zero)

    def towards_none(self) -> Tensor:
        """Even times that stop one interval short of the time of no noise; at `end`, if they would go below it."""
        times = self.even(self.schedule.t_zero, reach=False) if self.closing else None
        return self.even(self.end, reach=True) if times is None or float(times[-1]) < self.end else times

    def indices(self, times: Tensor, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
        """The indices of a table next to the times; the times as they are if that would make two of them equal."""
        rounded = rounding(times) if self.schedule.entries else times
        return rounded if bool((torch.diff(rounded) < 0).all()) else times

    def lams(self) -> tuple[float, float]:
        """Half log-SNR at both ends, the first one not below LAM_FIRST where the signal fades away altogether."""
        first, last = self.schedule.lam(self.at(self.start, self.end)).tolist()
        fades = float(self.schedule.alpha(self.schedule.t_max)) < 0.5
        return (max(first, min(LAM_FIRST, last - 1)) if fades else first), last

    def by_lam(self, lam: Tensor) -> Tensor:
        return self.schedule.t_of(lam)


def logsnr(span: Span) -> Tensor:
    first, last = span.lams()
    return span.by_lam(first + span.ramp() * (last - first))


def polyexponential(span: Span) -> Tensor:
    first, last = span.lams()
    return span.by_lam(last + (1 - span.ramp()) ** (span.rho or 1.0) * (first - last))


def karras(span: Span) -> Tensor:
    """Karras et al. 2022, arXiv 2206.00364, eq. 5, on sigma / alpha."""
    return _rho_even(span, *span.lams())


def edm_flow(span: Span) -> Tensor:
    first, last = span.lams()
    top, bottom = -math.log(80.0), -math.log(0.002)
    if first < top < last:
        first = top
    if first < bottom < last:
        last = bottom
    return _rho_even(span, first, last)


def _rho_even(span: Span, first: float, last: float) -> Tensor:
    rho = span.rho or 7.0
    high, low = math.exp(-first / rho), math.exp(-last / rho)
    return span.by_lam(-rho * torch.log(high + span.ramp() * (low - high)))


def kl_optimal(span: Span) -> Tensor:
    """Sabour et al. 2024, arXiv 2404.14507, eq. 15: even in arctan(sigma / alpha)."""
    ratio = torch.exp(-span.schedule.lam(span.at(span.start, span.end)))
    first, last = torch.arctan(ratio).tolist()
    return span.by_lam(-torch.log(torch.tan(first + span.ramp() * (last - first))))


def time_uniform(span: Span) -> Tensor:
    return span.even(span.end, reach=True)


def time_quadratic(span: Span) -> Tensor:
    return span.even(span.end, reach=True, power=2.0)


def sgm_uniform(span: Span) -> Tensor:
    return span.even(span.end, reach=False)


def linspace(span: Span) -> Tensor:
    return span.indices(sgm_uniform(span))


def trailing(span: Span) -> Tensor:
    # Half to even, one index up, which is how numpy rounds N - i N / n.
    return span.indices(span.towards_none(), lambda t: torch.round(t + 1) - 1)


def simple(span: Span) -> Tensor:
    return span.indices(span.towards_none(), torch.ceil)


def _strided(span: Span, offset: int) -> Tensor:
    """Multiples of a whole stride up from `end`, which is as far as DDIM's code and many configurations go."""
    stride = (span.start - span.end + 1) // span.n if span.schedule.entries else (span.start - span.end) / span.n
    if not span.closing or not stride:
        return time_uniform(span)
    up = min(offset, span.start - span.end - stride * (span.n - 1)) if span.schedule.entries else 0.0
    times = span.end + up + stride * torch.arange(span.n - 1, -1, -1, dtype=torch.float64, device="cpu")
    if not (span.schedule.entries and span.start == span.schedule.t_max):
        times[0] = span.start
    return times


def leading(span: Span) -> Tensor:
    return _strided(span, 0)


def ddim_uniform(span: Span) -> Tensor:
    return _strided(span, 1)


def beta(span: Span) -> Tensor:
    """Lee et al. 2024, arXiv 2407.12173: quantiles of Beta(0.6, 0.6) in time."""
    # scipy is imported here because only this grid needs it, and it is slow to import.
    from scipy.special import betaincinv

    u = torch.from_numpy(betaincinv(0.6, 0.6, 1 - span.ramp(reach=False).numpy()))
    first, last = span.schedule.unshifted(span.at(span.start, span.end)).tolist()
    return span.indices(span.schedule.shifted(last + u * (first - last)))


def linear_quadratic(span: Span) -> Tensor:
    """Mochi's: sigma falls by 0.025 of its range in the first half of the steps, and then ever faster, as a parabola."""
    i = torch.arange(span.n, dtype=torch.float64, device="cpu")

    def gone(steps: int, few: float = 0.025) -> Tensor:  # the share of the range from the first point to each
        half = steps // 2
        # The parabola continues the line with its slope, and reaches 1 at the last step.
        slope, rest = few / max(half, 1), steps - half
        curve = (1 - few - slope * rest) / rest**2
        return torch.where(i <= half, slope * i, few + slope * (i - half) + curve * (i - half) ** 2)

    first, last = span.schedule.sigma_of_time(span.at(span.start, span.end)).tolist()
    first = math.exp(-LAM_FIRST) if math.isinf(first) else first
    sigma = first * (1 - gone(span.n))
    if not span.closing or float(sigma[-1]) < last:
        sigma = first - gone(span.n - 1) * (first - last)
    return span.schedule.time_of_sigma(sigma)


def logistic(span: Span) -> Tensor:
    """Even in 1 / (1 + (0.85 alpha / sigma)^rho) of the unshifted time; rho = 1 if the run closes, otherwise 0.7.

    With rho = 1 this is the time of a rectified flow of shift 0.85, to which any schedule can be mapped. It is ours; the
    published list ays:sdxl lies close to such a curve. Why these numbers: docs/continuous_grids.md.
    """
    schedule, rho, middle = span.schedule, span.rho or (1.0 if span.closing else 0.7), math.log(0.85)
    lam = schedule.lam(schedule.unshifted(span.at(span.start, span.end)))
    first, last = torch.sigmoid(-rho * (lam + middle)).tolist()
    reach = not span.closing or first / span.n < last
    share = first + span.ramp(reach=reach) * ((last if reach else 0.0) - first)
    return schedule.shifted(span.by_lam(-torch.logit(share) / rho - middle))


# Align Your Steps (Sabour et al. 2024, arXiv 2404.14507): the sigmas that its authors publish for ten steps.
_AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _ays(model: str) -> Callable[[Span], Tensor]:
    curve = -torch.tensor(_AYS[model], dtype=torch.float64, device="cpu").log()  # lambda, rising

    def place(span: Span) -> Tensor:
        # The places of both ends on the curve, which is linear in lambda between its entries. The lists are rounded: an end
        # within 1 % of the list's own is the list's own.
        lams = span.schedule.lam(span.at(span.start, span.end)).clamp(curve[0], curve[-1])
        ends = curve[[0, -1]]
        lams = torch.where((lams - ends).abs() < 0.01, ends, lams)
        k = (torch.searchsorted(curve, lams, right=True) - 1).clamp(0, len(curve) - 2)
        first, last = (k + (lams - curve[k]) / (curve[k + 1] - curve[k])).tolist()
        at = first + span.ramp(reach=False) * (last - first)
        k = at.floor().clamp_max(len(curve) - 2).to(torch.int64)
        return span.by_lam(curve[k] + (at - k) * (curve[k + 1] - curve[k]))

    return place


def auto(span: Span) -> Tensor:
    """Trailing for a rectified flow that closes, so that its shift counts as its makers mean it; otherwise logistic."""
    if span.closing and isinstance(span.schedule, Flow):
        return trailing(span)
    return logistic(span)


ays_sd15, ays_sdxl, ays_svd = (_ays(model) for model in ("sd15", "sdxl", "svd"))

# The zoo's own names. A plug-in adds others by the hook register_grids.
GRIDS = own_names("grids")


def _placed(place: Callable[[Span], Tensor], grid: str, span: Span) -> Tensor:
    """What a plug-in's grid gives, if it is (n,) finite numbers."""
    try:
        times = guarded(place, span)
    except PluginError as error:
        raise PluginError(f"grid {grid!r} raises {error} for {span}") from error
    if not isinstance(times, Tensor) or times.shape != (span.n,) or not bool(torch.isfinite(times).all()):
        got = f"shape {tuple(times.shape)}" if isinstance(times, Tensor) else type(times).__name__
        if isinstance(times, Tensor) and times.shape == (span.n,):
            got = "values that are not finite"
        raise PluginError(f"grid {grid!r} gives {got}; {span.n} finite times are needed, (n,) float64")
    return times.detach().to("cpu", torch.float64, copy=True)


def place_of(grid: str) -> Callable[[Span], Tensor]:
    """The function of a grid, by name."""
    try:
        return find("grids", grid)
    except UnknownNameError as error:
        raise OptionError(str(error)) from None


def spaced(
    grid: str,
    schedule: NoiseSchedule,
    start: float,
    end: float,
    intervals: int,
    *,
    closing: bool,
    rho: float | None = None,
    place: Callable[[Span], Tensor] | None = None,
) -> tuple[Point, ...]:
    """`intervals` + 1 points of the grid called `grid`, the first at `start`.

    If `end` has more noise than `start` (inversion), they are those from `end` to `start` in reverse order. The grids
    "leading" and "ddim_uniform" of a whole table begin where their stride does, below `start`, as they are published.

    Args:
        grid: a name in GRIDS, or that of a plug-in's grid.
        start, end: times of `schedule`.
        closing: the points are those of a run of `intervals` + 1 evaluations that then goes to sigma = 0, and where the
            last one lies is the grid's affair; otherwise the last one is `end`. Of intervals = 0 the one point is `start`.
        rho: the exponent of "karras" and "edm_flow" (None: 7), "polyexponential" (None: 1) and "logistic".
        place: what `place_of` gives for `grid`, if that is known already.

    Raises:
        PluginError: the grid comes from a plug-in that is broken, or that gives no n finite numbers.
        OptionError: an unknown grid, start equal to end, a closing run that goes up in noise, or more points than
            float64 can tell apart.
    """
    place = place_of(grid) if place is None else place
    if not intervals:
        return schedule.points(torch.tensor([start], dtype=torch.float64, device="cpu"))
    if start == end:
        raise OptionError(f"a grid of {intervals} intervals needs two times, not start = end = {start:g}")
    if rho is not None and not 0 < rho < math.inf:
        raise OptionError(f"grid {grid!r}: rho must be a positive number, not {rho!r}")
    up = end > start
    if up and closing:
        raise OptionError(
            f"a run from t={start:g} up to t={end:g} adds noise, so it cannot close with a step to sigma = 0; "
            "let it end at its last time"
        )
    span = Span(schedule, max(start, end), min(start, end), intervals + 1, closing, rho)
    times = place(span) if grid in GRIDS else _placed(place, grid, span)
    if not closing or float(times[0]) > span.start or grid not in ("leading", "ddim_uniform"):
        times[0] = span.start
    # A grid that reaches the end does so but for rounding.
    if not closing or abs(float(times[-1]) - span.end) < 1e-12 * span.start:
        times[-1] = span.end
    if not bool((torch.diff(times) < 0).all()):
        raise OptionError(
            f"grid {grid!r} cannot tell {intervals + 1} points apart between t={start:g} and t={end:g} of {schedule!r}; "
            "take fewer steps or another grid"
        )
    return schedule.points(times.flip(0) if up else times)
