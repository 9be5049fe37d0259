"""DPM-Solver-v3: a multistep solver in coordinates that statistics of the model have chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..canvas import NoiseCanvas
from ..errors import OptionError
from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import Conformance, option
from ..statistics import ModelStatistics
from .grid import GaussianSampler, GridState, Point

NODES, WEIGHTS = ((1 + np.polynomial.legendre.leggauss(4)[0]) / 2, np.polynomial.legendre.leggauss(4)[1] / 2)
CHUNK = 1 << 22  # numbers in one block of the integration


@dataclass(frozen=True, eq=False)
class Leg:
    """The integrals of a step from s to t, each (*shape) or a number's shape, relative to s.

    Attributes:
        l: l at s.
        decay: e^{-L}, L the integral of l.
        growth, source: f at s becomes growth f + source at t, if f' = s f + b.
        kernels: k -> the integral of e^{L + S} (lambda - lambda_s)^k.
        rest: the integral of e^L times the source's part of f.
    """

    l: Tensor
    decay: Tensor
    growth: Tensor
    source: Tensor
    kernels: tuple[Tensor, ...]
    rest: Tensor


@dataclass(frozen=True, eq=False)
class V3State(GridState):
    """A run with the integrals of its steps.

    Attributes:
        legs: one per step; None of a step from or to pure noise, alpha = 0.
        before: (B, *shape), y = x / alpha at the point before, corrected; None in the first step.
        history: (lambda, f) of the last points, the latest last, f carried to the point before by f' = s f + b.
    """

    legs: tuple[Leg | None, ...] = ()
    before: Tensor | None = None


@dataclass(frozen=True)
class DpmSolverV3(GaussianSampler[V3State]):
    """Zheng et al. 2023, arXiv 2310.13268, algorithm 1 (multistep, with pseudo-orders and corrector).

    With y = x / alpha the ODE is y' = -l y - f, f = (1 - l) y - x_0, for any l(lambda). f changes nearly as f' = s f + b, so that
    g = e^{-S} f less the part that b makes is nearly constant. Each step takes g as the polynomial of degree order - 1
    through its last values, and the integrals over l, s and b exactly: from s to t
        y_t = e^{-L} (y_s - int e^{L + S} g - int e^L f_b),   L, S the integrals of l and s from lambda_s.
    `statistics` holds l, s and b (samplers.statistics.model_statistics measures them). Without it l = 1, s = b = 0: this is
    DPM-Solver++ with exact Taylor terms. l = 0, s = -1, b = 0 is DPM-Solver in noise.

    corrector: when the model has been asked at t, y_t is made again with that value among the others, at one order more; the
    answer itself is kept, so it costs nothing (as UniC). pseudo: divided differences take the place of derivatives, without
    the terms that make a polynomial of them; the order is lower and few steps may gain.
    """

    name = "dpm_solver_v3"
    cite = "Zheng et al. 2023, DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, arXiv 2310.13268"
    summary = "multistep solver that uses statistics of the model, with corrector"
    conformance = Conformance(order={**GaussianSampler.conformance.order, "corrector": False})

    order: int = option(2, "order of the predictor; the corrector has one more", choices=(1, 2, 3))
    statistics: ModelStatistics | None = option(  # noqa: RUF009
        None, "l, s and b of the model; none: 1, 0 and 0"
    )
    corrector: bool = option(True, "whether x is made again when the model has answered")
    predictor_pseudo: bool = option(False, "whether the predictor takes divided differences for derivatives")
    corrector_pseudo: bool = option(False, "whether the corrector does")

    def init(self, canvas: NoiseCanvas) -> V3State:
        points = self.times(canvas, self.solver_steps(canvas))
        finite = [p.lam for p in points if p.alpha and p.sigma]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        tables = self.statistics or ModelStatistics.constant(low - 1, high + 1)
        first, last = float(tables.lam[0]), float(tables.lam[-1])
        if not first - 1e-3 <= low <= high <= last + 1e-3:
            raise OptionError(
                f"sampler {self.name!r}: the run goes from half log-SNR {low:.4g} to {high:.4g}, and statistics are given from "
                f"{first:.4g} to {last:.4g}: measure them over the times of the run, or set t_start and t_end"
            )
        shape = tuple(tables.l.shape[1:])
        if len(shape) > len(canvas.denoiser.shape) or any(
            n not in (1, m) for n, m in zip(shape[::-1], canvas.denoiser.shape[::-1])
        ):
            raise OptionError(
                f"sampler {self.name!r}: the statistics are of shape {shape}, and samples of shape {canvas.denoiser.shape}"
            )
        legs = []
        for s, t in zip(points, points[1:]):
            leg = leg_of(tables, s.lam, t.lam) if s.alpha and t.alpha and t.sigma else None
            legs.append(leg and _moved(leg, canvas))
        return V3State.begin(canvas, points=points, legs=tuple(legs))

    def update(self, predict: GaussianPredict, state: V3State, s: Point, t: Point) -> V3State:
        leg, x0 = state.legs[state.i], predict(state.x, s)
        if leg is None:  # a step of order 1
            keep = t.sigma / s.sigma
            return self.advance(state, combine(state.x, keep, x0, t.alpha - keep * s.alpha))
        y = state.x / s.alpha
        f = (1 - leg.l) * y - x0
        history: tuple[tuple[float, Tensor], ...] = ()
        if state.before is not None:
            back = state.legs[state.i - 1]
            assert back is not None
            if self.corrector:
                here = (s.lam, (f - back.source) / back.growth)
                values = (state.history[-1], here, *state.history[-2::-1])
                y = _stepped(back, state.before, values, self.corrector_pseudo)
            history = tuple((lam, back.growth * g + back.source) for lam, g in state.history)
        history = (*history, (s.lam, f))[-self.order :]
        out = _stepped(leg, y, history[::-1], self.predictor_pseudo)
        return self.advance(state, t.alpha * out, history=history, before=y)


def _stepped(leg: Leg, y: Tensor, values: Sequence[tuple[float, Tensor]], pseudo: bool) -> Tensor:
    """y at the end of a leg. values: (lambda, g), the first at its beginning."""
    lam, g = values[0]
    out = y - leg.rest - leg.kernels[0] * g
    weights = derivative_weights([other - lam for other, _ in values[1:]], pseudo)
    for i, (_, other) in enumerate(values[1:]):
        kernel = weights[0][i] * leg.kernels[1]
        for k in range(1, len(weights)):
            kernel = kernel + weights[k][i] * leg.kernels[k + 1]
        out = out - kernel * (other - g)
    return leg.decay * out


def derivative_weights(at: Sequence[float], pseudo: bool) -> list[list[float]]:
    """W with sum_i W[k - 1][i] (g(at_i) - g(0)) = g^(k)(0) / k! for the polynomial g through all these values.

    pseudo: the divided difference of g over 0, at_0, ..., at_{k - 1} in its place.
    """
    n = len(at)
    if not pseudo:
        return np.linalg.inv(np.array([[d ** (k + 1) for k in range(n)] for d in at])).tolist() if n else []
    weights = [[0.0] * n for _ in range(n)]
    for k in range(n):
        for i in range(k + 1):
            weights[k][i] = 1 / (at[i] * math.prod(at[i] - at[j] for j in range(k + 1) if j != i))
    return weights


def leg_of(tables: ModelStatistics, start: float, end: float) -> Leg:
    """The integrals from half log-SNR `start` to `end`, float64. l, s and b are linear between nodes: Gauss's rule in cells."""
    inside = tables.lam[(tables.lam > min(start, end)) & (tables.lam < max(start, end))]
    inside = inside if end > start else inside.flip(0)
    lam = torch.cat([inside.new_tensor([start]), inside, inside.new_tensor([end])])
    shape = tables.l.shape[1:]
    zero = torch.zeros(shape, dtype=torch.float64, device="cpu")
    big_l, big_s, source, rest, kernels = zero, zero, zero, zero, [zero] * 4
    size = max(1, CHUNK // (len(NODES) * max(1, math.prod(shape))))
    for first in range(0, len(lam) - 1, size):
        part = lam[first : first + size + 1]
        cell = _Cells(tables, part, shape)
        log_l, log_s = big_l + cell.l, big_s + cell.s
        # f from 0 at the start by f' = s f + b is e^S J, J the integral of e^-S b.
        driven = torch.exp(-log_s) * cell.b
        whole = cell.sum(driven)
        j = source + (whole.cumsum(0) - whole)[:, None] + cell.inner(driven)
        both = torch.exp(log_l + log_s)
        away = cell.lam - start
        kernels = [v + cell.sum(both * away**k).sum(0) for k, v in enumerate(kernels)]
        rest = rest + cell.sum(both * j).sum(0)
        big_l, big_s, source = big_l + cell.whole_l, big_s + cell.whole_s, source + whole.sum(0)
    growth = torch.exp(big_s)
    l = tables.at(lam[:1])[0][0]
    return Leg(l, torch.exp(-big_l), growth, growth * source, tuple(kernels), rest)


class _Cells:
    """Gauss's nodes in the cells between `lam` (c + 1,): values (c, 4, *shape); l and s as integrals from lam[0]."""

    def __init__(self, tables: ModelStatistics, lam: Tensor, shape: torch.Size):
        like = (1,) * len(shape)
        xi = torch.from_numpy(NODES).view(1, -1, *like)
        self.width = lam.diff().view(-1, *like)
        self.lam = (lam[:-1, None] + lam.diff()[:, None] * torch.from_numpy(NODES)).view(-1, len(NODES), *like)
        (self.l, self.whole_l), (self.s, self.whole_s) = (self._integral(v, xi) for v in tables.at(lam)[:2])
        b = tables.at(lam)[2]
        self.b = b[:-1, None] + xi * (b[1:] - b[:-1])[:, None]

    def _integral(self, v: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
        a, b = v[:-1], v[1:]
        whole = self.width * (a + b) / 2
        before = (whole.cumsum(0) - whole)[:, None]
        return before + self.width[:, None] * (a[:, None] * xi + (b - a)[:, None] * xi**2 / 2), whole.sum(0)

    def sum(self, value: Tensor) -> Tensor:
        """(c, *shape): the integral over each cell."""
        return self.width * torch.einsum("cq...,q->c...", value, torch.from_numpy(WEIGHTS))

    def inner(self, value: Tensor) -> Tensor:
        """(c, 4, *shape): the integral from each cell's beginning to its nodes, of the polynomial through its values."""
        return self.width[:, None] * torch.einsum("cq...,rq->cr...", value, INNER)


def _inner_weights() -> Tensor:
    """(4, 4): [r, q] is the integral of the q-th Lagrange polynomial on NODES from 0 to node r."""
    powers = np.vander(NODES, increasing=True)  # [r, k] = node_r^k
    integrals = powers * NODES[:, None] / np.arange(1, len(NODES) + 1)
    return torch.from_numpy(integrals @ np.linalg.inv(powers))


INNER = _inner_weights()


def _moved(leg: Leg, canvas: NoiseCanvas) -> Leg:
    """The leg in the dtype and on the device of a run."""
    how: dict[str, Any] = {"dtype": canvas.dtype, "device": canvas.denoiser.device}
    single = {f: getattr(leg, f).to(**how) for f in ("l", "decay", "growth", "source", "rest")}
    return Leg(**single, kernels=tuple(k.to(**how) for k in leg.kernels))
