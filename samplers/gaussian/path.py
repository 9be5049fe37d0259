"""Noise by Brownian path: the normals of a run as increments of one path for each row, whatever the number of steps.

The reverse SDE adds noise s_t e^{-l_t} (W(e^{2 l_t}) - W(e^{2 l_s})) in a step from half log-SNR l_s to l_t, W a
Brownian motion in e^{2 l}. Scaled to variance 1 everywhere, U(l) = e^{-l} W(e^{2 l}) is the stationary
Ornstein-Uhlenbeck process with covariance e^{-|l - l'|}. That is what is kept here, since its numbers neither grow nor
vanish along a run, and l = -infinity (no data at all) needs no care: there U is independent of the rest.

U is built on dyadic half log-SNRs, the nodes, which depend on no grid: U(0) first; U(+-1), U(+-2), U(+-4) and so on,
each from the one before; every other node from its two neighbours on the next coarser level (a virtual Brownian tree,
Li et al. 2020, arXiv 2001.01328). A node has one normal, drawn under its own number, so U is a function of (seed, row,
node): every batch, device, grid and order of calls sees the same path.

A run's points are moved to the nearest node of a level that is 8 to 16 times finer than its steps there. An increment
between two nodes is divided by its exact standard deviation, so the normals of a run are exactly independent and
standard; a run with more steps moves its points less, so it refines the same path. This costs 3 to 5 normals per step
instead of some 25.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..random import Rng

__all__ = ["FIRST_DRAW", "NoisePath", "noise_sampler"]

LEVELS = 23  # nodes are multiples of 2^-23
ONE = 1 << LEVELS
FARTHEST = 63.0  # sigma / alpha of e^63 and e^-63: beyond, nothing is left to be drawn
FIRST_DRAW = 1 << 31  # node k has draw 2^31 + 2 |k|, one more if k < 0: below 2^32, and above what a run counts


class NoisePath:
    """One path for each row of a batch.

    Args:
        draw: number of a draw -> (B, *shape) standard normals, such as NoiseCanvas.noise.
        grid: the half log-SNRs of a run's points. A point between two of them is moved to a level four times finer
            still.
            Without a grid all points are moved to multiples of 2^-14.

    Values of U are kept while a run that goes up in half log-SNR can still need them, some 15 at a time. It is a cache
    and nothing
    else: what is gone is made again.
    """

    def __init__(self, draw: Callable[[int], Tensor], grid: Sequence[float] = ()):
        self.draw = draw
        self._values: dict[int, Tensor] = {}
        self._grid = sorted(x for x in set(grid) if math.isfinite(x))
        self._steps = [b - a for a, b in zip(self._grid, self._grid[1:])]
        self._nodes = {
            x: self._nearest(x, min(self._steps[max(i - 1, 0) : i + 1])) for i, x in enumerate(self._grid[:-1])
        }
        if self._steps:
            self._nodes[self._grid[-1]] = self._nearest(self._grid[-1], self._steps[-1])

    def normal(self, s: float, t: float) -> Tensor:
        """(B, *shape): the increment of W from half log-SNR s to t, divided by its standard deviation.

        Normals of steps that do not overlap are independent, unless two of the points are within 2^-23 of each other.

        Args:
            s: may be -infinity.
            t: below s, the result has the other sign.
        """
        if s > t:
            return -self.normal(t, s)
        b = self.node(t)
        if math.isinf(s) or (a := self.node(s)) == b:
            return self._value(b)
        h = (b - a) / ONE
        z = (self._value(b) - math.exp(-h) * self._value(a)) / math.sqrt(-math.expm1(-2 * h))
        # Whatever a step above b needs lies at b or above: a cell of the tree that b is inside of has its middle already.
        self._values = {k: value for k, value in self._values.items() if k >= a}
        return z

    def node(self, lam: float) -> int:
        """The node that stands for a half log-SNR, in units of 2^-23."""
        if (known := self._nodes.get(lam)) is not None:
            return known
        i = bisect.bisect(self._grid, lam) - 1
        inside = 0 <= i < len(self._steps)
        return self._nearest(lam, self._steps[i] / 4 if inside else 2.0**-11)

    @staticmethod
    def _nearest(lam: float, step: float) -> int:
        level = min(max(3 - math.floor(math.log2(step)), 0), LEVELS)  # 2^-level is between step / 16 and step / 8
        lam = min(max(lam, -FARTHEST), FARTHEST)
        return round(lam * (1 << level)) << (LEVELS - level)

    def _value(self, k: int) -> Tensor:
        """U at node k."""
        if (known := self._values.get(k)) is None:
            self._values[k] = known = self._made(k)
        return known

    def _made(self, k: int) -> Tensor:
        z = self.draw(FIRST_DRAW + 2 * abs(k) + (k < 0))
        if k == 0:
            return z
        low = k & -k  # the lowest bit that is set
        if abs(k) == low and low >= ONE:  # a power of two: from the node before it
            before = 0 if low == ONE else k // 2
            p = abs(k - before) / ONE
            return math.exp(-p) * self._value(before) + math.sqrt(-math.expm1(-2 * p)) * z
        p = low / ONE  # the law of U in the middle, given U at the distance p on both sides
        weight = math.exp(-p) / (1 + math.exp(-2 * p))
        spread = math.sqrt(math.tanh(p))
        return weight * (self._value(k - low) + self._value(k + low)) + spread * z


def noise_sampler(
    shape: Sequence[int],
    seed: Any = 0,
    *,
    first_row: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Callable[[Any, Any], Tensor]:
    """The paths as a function of two noise levels, in the form of k-diffusion's argument `noise_sampler`.

        sample_dpmpp_2m_sde(model, x, sigmas, noise_sampler=noise_sampler(x.shape, seed=1))

    Args:
        shape: (B, *shape) of x.
        seed, first_row: as for samplers.sample: one seed for rows first_row, first_row + 1, ..., or one seed for each
            row.

    Returns:
        f(sigma, sigma_next), standard normals (B, *shape) of `dtype`. The levels are sigma / alpha, numbers or tensors
        of one.

    Raises:
        OptionError: (by the function) a noise level that is not above 0.
    """
    rng = Rng.of(seed, shape[0], first_row, device)
    path = NoisePath(lambda number: rng.normal(tuple(shape[1:]), number, dtype))

    def normal(sigma: Any, sigma_next: Any) -> Tensor:
        levels = float(sigma), float(sigma_next)
        if not min(levels) > 0:
            raise OptionError(f"noise_sampler({levels[0]:g}, {levels[1]:g}): noise levels are above 0")
        s, t = (-math.log(level) for level in levels)
        return path.normal(s, t)

    return normal
