"""Energies of a mask schedule (Chen et al. 2025, arXiv 2509.13866): how far its path is from the shortest one.

Two increasing functions of progress u, from 0 to 1: the visible fraction a(u), and an interpolation gamma(u) that says how
the path's length is to be spread over time. With n tokens and the path p(z | x) that shows each token with probability a,
rates Q of single unmaskings z -> x, and y = sqrt(p) per token, a point of the unit sphere:

    kinetic              integral of 1/gamma' sum over z, x of  p_t(z)/p_t(x) Q_t(z, x)^2
    conditional kinetic  the same with p_t(. | x_1) and Q_t(. , . | x_1), averaged over the data x_1
    geodesic             integral of 4/gamma' sum over tokens of  |y'|^2

All three are a constant times one number, the action  J(a, gamma) = integral of a'^2 / (gamma' a (1 - a)), and the constant
knows neither a nor gamma: n (V + 1)^(n-1), n 2^(n-1) and n for n tokens of V values (the first for a distribution under
which every string is possible; else count, over all states that can be met, the masks in them). With the angle
theta = arcsin sqrt(a) the action is the integral of 4 theta'^2 / gamma', at least pi^2 by Cauchy and Schwarz, and pi^2 only
where theta runs as gamma does:

    a(u) = sin^2(pi/2 gamma(u))        `optimal_schedule`        gamma(u) = 2/pi arcsin sqrt(a(u))        `interpolation`

So every schedule is optimal for some gamma; the theory is a system of coordinates, and which gamma serves a model is for a
search to find (`samplers tune beta_energy`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import OptionError
from .schedule import MaskSchedule, mask_schedule, sin2_of

__all__ = ["action", "conditional_kinetic", "geodesic", "interpolation", "kinetic", "optimal_schedule"]

# The grid is even in logit(u), where both ends look alike: contributions fall off like e^{-r |logit u|}.
LOWEST, HIGHEST, CELLS = -80.0, 23.0, 8  # 23: 1 - u is 1e-10 there, float64's rounding of u a millionth of it
NEAR = 1e-13  # where a, gamma or what they lack of 1 is less, an end is left to extrapolation
SLOWEST = 1e-4  # a slower fall-off than this r counts as none: the integral diverges


def optimal_schedule(gamma: str | MaskSchedule) -> MaskSchedule:
    """a(u) = sin^2(pi/2 gamma(u)), which minimises all three energies for this gamma (condition 3.4).

    gamma: any increasing function from 0 to 1 that `mask_schedule` reads: 'linear' is gamma = u (and gives sin^2),
    'I(a,b)' the Beta distribution's CDF (and gives beta(a,b)).
    """
    gamma = mask_schedule(gamma)
    return sin2_of(gamma, f"sin^2(pi/2 {gamma.name})")


def interpolation(schedule: str | MaskSchedule) -> MaskSchedule:
    """gamma(u) = 2/pi arcsin sqrt(a(u)): the interpolation for which `schedule` is optimal."""
    schedule = mask_schedule(schedule)
    return MaskSchedule(
        f"2/pi arcsin sqrt({schedule.name})",
        lambda u: 2 / math.pi * torch.arcsin(torch.sqrt(schedule(u))),
        lambda g: schedule.progress(torch.sin(math.pi / 2 * g) ** 2),
    )


def action(schedule: str | MaskSchedule, gamma: str | MaskSchedule = "linear") -> float:
    """J(a, gamma) = integral of a'^2 / (gamma' a (1 - a)) over progress, inf if it diverges; at least pi^2.

    On any grid, sum (2 dtheta)^2 / dgamma is at most J, and is pi^2 on every grid where a is optimal: no slope is needed and
    the integrable singularities at the ends do no harm. Grids of three widths are extrapolated to none; what is beyond the
    last cell at each end is a geometric series. Relative error against closed forms: 1e-8 or less for most, 4e-6 at worst,
    where an end falls off slowly; one slower than u^1e-4 counts as divergent.

    Raises:
        OptionError: an unknown formula, or a gamma that falls or a schedule that is not a number somewhere.
    """
    a, g = mask_schedule(schedule), mask_schedule(gamma)
    coarse, middle, fine = (_cells(a, g, CELLS * k) for k in (1, 2, 4))
    # The error of a width h is a series in h^2: two rounds of Richardson's extrapolation, cell by cell.
    middle, fine = (part.unflatten(0, (len(coarse), -1)).sum(1) for part in (middle, fine))
    first, second = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
    cells = (16 * second - first) / 15  # (cells of the coarse grid,)
    u = torch.sigmoid(_logits(CELLS))
    inside = [(f >= NEAR) & (1 - f >= NEAR) for f in (a(u), g(u))]
    known = (inside[0] & inside[1]).nonzero().flatten()  # grid points
    kept = cells[int(known[0]) : int(known[-1])]
    if not bool(torch.isfinite(kept).all()):
        return math.inf
    return float(kept.sum()) + _tail(kept) + _tail(kept.flip(0))


def kinetic(
    schedule: str | MaskSchedule, gamma: str | MaskSchedule = "linear", *, length: int = 1, vocab: int = 1
) -> float:
    """The kinetic energy of `length` tokens of `vocab` values, of a distribution under which every string is possible."""
    return _times(length * (vocab + 1) ** (length - 1), action(schedule, gamma))


def conditional_kinetic(
    schedule: str | MaskSchedule, gamma: str | MaskSchedule = "linear", *, length: int = 1
) -> float:
    """The conditional kinetic energy of `length` tokens, of any distribution."""
    return _times(length * 2 ** (length - 1), action(schedule, gamma))


def geodesic(schedule: str | MaskSchedule, gamma: str | MaskSchedule = "linear", *, length: int = 1) -> float:
    """The geodesic energy of `length` tokens, of any distribution."""
    return _times(length, action(schedule, gamma))


def _times(constant: int, value: float) -> float:
    try:
        return constant * value
    except OverflowError:  # a whole number beyond float64
        return math.inf


def _logits(per_unit: int) -> Tensor:
    return torch.linspace(LOWEST, HIGHEST, round((HIGHEST - LOWEST) * per_unit) + 1, dtype=torch.float64, device="cpu")


def _cells(a: MaskSchedule, g: MaskSchedule, per_unit: int) -> Tensor:
    """(2 dtheta)^2 / dgamma of each cell of the grid, (cells,) float64; inf where theta moves and gamma does not."""
    u = torch.sigmoid(_logits(per_unit))
    visible, gamma = a(u), g(u)
    theta = torch.atan2(torch.sqrt(visible), torch.sqrt(1 - visible))  # as exact at a = 1 as at a = 0
    moved, time = 2 * torch.diff(theta), torch.diff(gamma)
    if not bool((time >= 0).all()) or not bool(torch.isfinite(moved).all()):
        raise OptionError(
            f"energy of {a.name!r} with gamma {g.name!r}: gamma must grow from 0 to 1, and both must be numbers"
        )
    return torch.where(moved == 0, 0.0, moved**2 / time)


def _tail(cells: Tensor) -> float:
    """What lies before the first of `cells`: they grow like r^k from the end on, so the rest is c_0 / (r - 1)."""
    apart = min(2 * CELLS, len(cells) - 1)
    if float(cells[0]) <= 1e-13 * float(cells.sum()):
        return 0.0
    rate = math.log(float(cells[apart] / cells[0])) / apart  # a cell
    return math.inf if rate * CELLS < SLOWEST else float(cells[0]) / math.expm1(rate)
