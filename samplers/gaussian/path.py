"""Noise by Brownian path: the normals of a run as increments of one path for each row, whatever the number of steps.

The reverse SDE adds noise s_t e^{-l_t} (W(e^{2 l_t}) - W(e^{2 l_s})) in a step from half log-SNR l_s to l_t, W a Brownian
motion in e^{2 l}. Scaled to variance 1 everywhere, U(l) = e^{-l} W(e^{2 l}) is the stationary Ornstein-Uhlenbeck process
with covariance e^{-|l - l'|}. That is what is kept here, since its numbers neither grow nor vanish along a run, and
l = -infinity (no data at all) needs no care: there U is independent of the rest.

U is built on dyadic half log-SNRs, the nodes, which depend on no grid: U(0) first; U(1), U(2), U(4) and so on, and U(-1),
U(-2) and so on, each from the one before; every other node from its two neighbours on the next coarser level (a virtual
Brownian tree, Li et al. 2020, arXiv 2001.01328). A node has one normal, drawn under its own number, so U is a function of
(seed, row, node): every batch, device, grid and order of calls sees the same path.

A point of a run is no node. It lies in a cell of some level, 4 to 8 times smaller than its distance to the next point of
the run. There U is drawn given U at both ends of the cell, with the normal of the middle of the cell. No two points share a
cell, so the normals of a run are exactly independent and standard. A run with more steps goes down to smaller cells: it
refines the same path. A step costs some 4 normals, and a run 20 to 30 more; a tree down to single numbers, 30 a step.
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
from .steps import decay, spread, weighted

__all__ = ["FIRST_DRAW", "NoisePath", "noise_sampler"]

LEVELS = 23  # nodes are multiples of 2^-23
ONE = 1 << LEVELS
FARTHEST = 63.0  # sigma / alpha of e^63 and e^-63: beyond, nothing is left to be drawn
FIRST_DRAW = 1 << 31  # node k has draw 2^31 + 2 |k|, one more if k < 0: below 2^32, and above what a run counts


class NoisePath:
    """One path for each row of a batch.

    Args:
        draw: number of a draw -> (B, *shape) standard normals, such as NoiseCanvas.noise.
        grid: the half log-SNRs that a run asks about, parts of steps included. Any other is looked up in cells of 2^-14.

    Values of U are kept while a run that goes up in half log-SNR can still need them, some 15 at a time. It is a cache and
    nothing else: what is gone is made again.
    """

    def __init__(self, draw: Callable[[int], Tensor], grid: Sequence[float] = ()):
        self.draw = draw
        self._nodes: dict[int, Tensor] = {}
        self._points: dict[float, Tensor] = {}
        self._grid = sorted({min(max(lam, -FARTHEST), FARTHEST) for lam in grid if math.isfinite(lam)})
        steps = [math.inf, *(b - a for a, b in zip(self._grid, self._grid[1:])), math.inf]
        self._room = [
            min(pair) for pair in zip(steps, steps[1:])
        ]  # the distance of each point to its nearest neighbour
        if len(self._grid) > 1:
            # What a cell leaves open goes from one step to the next. At the ends of a run it is lost, so cells are small there.
            for end in (0, -1):
                self._room[end] *= min(self._room[end], 1.0) / 32

    def normal(self, s: float, t: float) -> Tensor:
        """(B, *shape): the increment of W from half log-SNR s to t, divided by its standard deviation.

        Normals of steps that do not overlap are independent, if all their ends are in the grid or 2^-14 apart.

        Args:
            s: may be -infinity.
            t: if it is below s, the sign is the other one.
        """
        if s > t:
            return -self.normal(t, s)
        t, level = self._placed(t)
        end = self._at(t, level)
        if math.isinf(s):
            return end
        s, level = self._placed(s)
        if s == t:
            return end
        by = 1 / spread(t - s)
        z = weighted([end, self._at(s, level)], [by, -by * decay(t - s)])
        # Later steps need no node below s: a cell of the tree with s inside it has its middle already.
        self._nodes = {k: value for k, value in self._nodes.items() if k >= s * ONE}
        self._points = {lam: value for lam, value in self._points.items() if lam >= t}
        return z

    def _placed(self, lam: float) -> tuple[float, int]:
        """The point of the grid that is meant by a half log-SNR (conversions of times round it), and the level of its cell."""
        lam = min(max(lam, -FARTHEST), FARTHEST)
        if self._grid:
            i = bisect.bisect(self._grid, lam)
            near = min(range(max(i - 1, 0), min(i + 1, len(self._grid))), key=lambda j: abs(self._grid[j] - lam))
            if abs(self._grid[near] - lam) <= 1e-9 * max(1.0, abs(lam)):
                room = min(max(self._room[near], 2.0**-LEVELS), 1.0)
                return self._grid[near], min(2 - math.floor(math.log2(room)), LEVELS - 1)
        return lam, 14

    def _at(self, lam: float, level: int) -> Tensor:
        """U at a point, from the ends of its cell of 2^-level and the normal of the cell's middle."""
        if (known := self._points.get(lam)) is None:
            width = 1 << (LEVELS - level)
            left = math.floor(lam * (1 << level)) * width
            p, q = lam - left / ONE, (left + width) / ONE - lam
            if p == 0:
                return self._node(left)
            known = self._between(left, left + width, p, q, self._z(left + width // 2))
            self._points[lam] = known
        return known

    def _node(self, k: int) -> Tensor:
        """U at node k, in units of 2^-23."""
        if (known := self._nodes.get(k)) is None:
            low = k & -k  # the lowest bit that is set
            if k == 0:
                known = self._z(0)
            elif abs(k) == low and low >= ONE:  # a power of two: from the node before it
                before = 0 if low == ONE else k // 2
                p = abs(k - before) / ONE
                known = weighted([self._node(before), self._z(k)], [decay(p), spread(p)])
            else:
                known = self._between(k - low, k + low, low / ONE, low / ONE, self._z(k))
            self._nodes[k] = known
        return known

    def _between(self, left: int, right: int, p: float, q: float, z: Tensor) -> Tensor:
        """U between two nodes, at the distances p and q from them, distributed as it is given U there; z: its normals."""
        whole = math.expm1(-2 * (p + q))
        a = math.exp(-p) * math.expm1(-2 * q) / whole
        b = math.exp(-q) * math.expm1(-2 * p) / whole
        c = math.sqrt(-math.expm1(-2 * p) * math.expm1(-2 * q) / whole)
        return weighted([self._node(left), self._node(right), z], [a, b, c])

    def _z(self, k: int) -> Tensor:
        return self.draw(FIRST_DRAW + 2 * abs(k) + (k < 0))


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
