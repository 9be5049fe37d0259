"""What some samplers need to know of a model or of its data, measured once and then reused.

    noise_norms     E |e(x_t)|^2 / d over times, for analytic_ddpm and analytic_ddim
    data_moments    mean of the data and its variance per coordinate, for sample(start_moments=...)
    model_statistics    a ModelStatistics: l, s and b over half log-SNR, for dpm_solver_v3

All take data as a tensor of samples of x_0, (N, *shape), and use only `denoiser.predict`: any callable will do, and nothing is
differentiated. Noise is counter-based: the same seed gives the same numbers whatever the size of the batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import integer
from .errors import OptionError
from .gaussian.denoiser import At, GaussianDenoiser
from .noise_schedules import Point
from .random import Rng

__all__ = ["ModelStatistics", "data_moments", "model_statistics", "noise_norms"]

LEAST = 1e-9  # an estimate of a positive number, if chance made it less


def data_moments(data: Any, n: int = 10_000, seed: int = 0) -> tuple[Tensor, float]:
    """The mean of the data and the variance of a coordinate, as sample(start_moments=...) takes them.

    A run that starts at a time with little signal left starts best from N(alpha mean, alpha^2 variance + sigma^2), the
    isotropic Gaussian that is nearest to x_t (Analytic-Init: Zhao et al. 2024, arXiv 2406.15735).

    Args:
        data: (N, *shape) samples of x_0; or a problem, of which `n` exact samples are drawn.
        seed: the seed of those samples.

    Returns:
        (mean, variance): (*shape) float64 on the data's device, and the mean square distance from it per coordinate.

    Raises:
        OptionError: data is neither, or is empty.
    """
    if hasattr(data, "sample_truth"):
        data = data.sample_truth(n, seed, "gaussian")
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.dim() < 2 or not len(data):
        raise OptionError("data must be a tensor of samples, (N, *shape) of a floating dtype with N >= 1, or a problem")
    data = data.double()
    mean = data.mean(0)
    return mean, float(((data - mean) ** 2).mean())


def noise_norms(
    denoiser: GaussianDenoiser,
    data: Tensor,
    times: Iterable[float],
    *,
    seed: int = 0,
    estimate: str = "norm",
    batch: int = 256,
) -> tuple[tuple[float, float], ...]:
    """G(t) = E |e(x_t, t)|^2 / d, e the model's noise (x_t - alpha x_0) / sigma: the option `norms` of analytic_ddpm.

    With z the noise that made x_t, E |z|^2 is known to be d: what of |e|^2 varies with |z|^2 over the samples is taken out (a
    control variate). Near pure noise e is nearly z, and the samplers divide 1 - G by alpha^2, so this matters there.

    Args:
        data: (N, *shape) samples of x_0. One forward pass per batch and time is spent on each.
        times: of the schedule, with alpha and sigma above 0; the middle of the run matters most.
        estimate: "norm" is the paper's G. "residual" is 1 - E |e - z|^2 / d, which is equal for an exact denoiser, and for an
            inexact one accounts for its error (Bao et al. 2022, arXiv 2206.07309: the best variance for an imperfect mean).
        batch: rows per forward pass; it changes nothing but memory and time.

    Returns:
        ((lambda, G), ...), lambda rising, G at least 1e-9: numbers that json can write.

    Raises:
        OptionError: wrong data, an unknown estimate, or a time at which there is no noise or no signal.
    """
    if estimate not in ("norm", "residual"):
        raise OptionError(f"estimate must be 'norm' or 'residual', not {estimate!r}")
    _check_data(denoiser, data)
    found = {}
    for k, t in enumerate(times):
        p = Point.at(denoiser.schedule, t=float(t))
        if not (p.alpha > 0 and p.sigma > 0):
            raise OptionError(f"times: at t={p.t:g} of {denoiser.schedule!r} there is no noise or no signal")
        squares, known = [], []  # (A,) each, per coordinate
        for x0, z in _noised(denoiser, data, seed, k, batch):
            x = p.alpha * x0 + p.sigma * z
            e = (x - p.alpha * _denoised(denoiser, x, p)) / p.sigma
            squares.append(_mean_square(e - z if estimate == "residual" else e))
            known.append(_mean_square(z))
        square, extra = torch.cat(squares), torch.cat(known) - 1
        away = extra - extra.mean()
        share = (away * square).mean() / away.square().mean() if len(data) > 1 else 1.0
        mean = float(square.mean() - share * extra.mean())
        found[p.lam] = max(1 - mean if estimate == "residual" else mean, LEAST)
    return tuple(sorted(found.items()))


def _mean_square(x: Tensor) -> Tensor:
    """(A, *shape) -> (A,) float64."""
    return x.flatten(1).double().square().mean(1)


def _check_data(denoiser: GaussianDenoiser, data: Any) -> None:
    if not isinstance(denoiser, GaussianDenoiser):
        raise OptionError(f"denoiser must be a GaussianDenoiser, not {type(denoiser).__name__}")
    shape = tuple(denoiser.shape)
    if not isinstance(data, Tensor) or not data.is_floating_point() or not len(data) or data.shape[1:] != shape:
        got = f"{tuple(data.shape)} {data.dtype}" if isinstance(data, Tensor) else type(data).__name__
        raise OptionError(
            f"data must be samples of x_0, (N, {', '.join(map(str, shape))}) of a floating dtype, not {got}"
        )


def _noised(
    denoiser: GaussianDenoiser, data: Tensor, seed: int, draw: int, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the data with their noise, (A, *shape) each, in the dtype of a run's state, on the denoiser's device."""
    batch = integer("batch", batch)
    for first in range(0, len(data), batch):
        x0 = data[first : first + batch].to(denoiser.device, denoiser.state_dtype)
        rng = Rng.of(seed, len(x0), first, denoiser.device)
        yield x0, rng.normal(denoiser.shape, draw, denoiser.state_dtype)


def _denoised(denoiser: GaussianDenoiser, x: Tensor, at: Point) -> Tensor:
    with torch.no_grad():
        return denoiser.denoised(x, At.of(denoiser.schedule, at))


# ---------------------------------------------------------------------------------------------- for DPM-Solver-v3

LOWEST = -8.0  # half log-SNR of the first node, if the schedule begins at pure noise
SUMS = ("y", "m", "dm", "yy", "ym", "mm", "ydm", "mdm", "jacobian")
STEP, NUDGE = 0.02, 0.01  # finite differences: in half log-SNR; in units of sigma
AUTOSAVE = 60.0  # seconds between two savings of unfinished work


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """What dpm_solver_v3 knows of a model at nodes of the half log-SNR lambda; between them it is linear.

    With y = x / alpha, f = (1 - l) y - x_0 is what is left of the ODE dy/dlambda = -l y - f when its linear part is taken out,
    and s f + b is the best linear guess of df/dlambda along the ODE (Zheng et al. 2023, arXiv 2310.13268, section 3.2).

    Attributes:
        lam: (n,) float64, rising, n >= 2.
        l, s, b: (n, *shape) float64, for each coordinate; or (n, 1, ...) for all.
    """

    lam: Tensor
    l: Tensor
    s: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        tables = (self.l, self.s, self.b)
        fits = self.lam.dim() == 1 and len(self.lam) >= 2 and all(t.shape == self.l.shape for t in tables)
        fits = fits and len(self.l) == len(self.lam) and all(t.dtype == torch.float64 for t in (self.lam, *tables))
        if not (fits and bool((self.lam.diff() > 0).all()) and all(bool(torch.isfinite(t).all()) for t in tables)):
            raise OptionError(
                "ModelStatistics: lam (n,), rising, and l, s, b (n, *shape) of finite float64 are needed, n 2 or more"
            )

    @staticmethod
    def constant(low: float, high: float, l: float = 1.0, s: float = 0.0, b: float = 0.0) -> ModelStatistics:
        """The same l, s and b from `low` to `high`, for any shape: (1, 0, 0) takes x_0 as constant, (0, -1, 0) the noise."""
        lam = torch.linspace(low, high, 2 + int(20 * (high - low)), dtype=torch.float64, device="cpu")
        return ModelStatistics(lam, *(torch.full_like(lam, v) for v in (l, s, b)))

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """l, s and b at lam (k,), (k, *shape) each; the first and last values beyond the nodes."""
        right = torch.searchsorted(self.lam, lam).clamp(1, len(self.lam) - 1)
        left = right - 1
        share = ((lam - self.lam[left]) / (self.lam[right] - self.lam[left])).clamp(0, 1)
        share = share.view(-1, *(1,) * (self.l.dim() - 1))
        return tuple(t[left] + share * (t[right] - t[left]) for t in (self.l, self.s, self.b))  # type: ignore[return-value]

    def save(self, path: str | Path) -> None:
        """Write a .npz file with the arrays lam, l, s and b."""
        np.savez(path, lam=self.lam.numpy(), l=self.l.numpy(), s=self.s.numpy(), b=self.b.numpy())

    @staticmethod
    def load(path: str | Path) -> ModelStatistics:
        """What `save` wrote.

        Raises:
            OptionError: the file is none of these.
        """
        with np.load(path) as file:
            if missing := {"lam", "l", "s", "b"} - set(file.files):
                raise OptionError(f"{path} holds no statistics of a model: {', '.join(sorted(missing))} is missing")
            return ModelStatistics(*(torch.from_numpy(file[k].astype(np.float64)) for k in ("lam", "l", "s", "b")))


def model_statistics(
    denoiser: GaussianDenoiser,
    data: Tensor,
    *,
    nodes: int = 120,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int, int], Any] | None = None,
    resume: str | Path | None = None,
) -> ModelStatistics:
    """l, s and b of a model (Zheng et al. 2023, arXiv 2310.13268, section 3.2), from noised samples of the data.

    At each node: l = 1 - alpha E[d x_0 / d x], each coordinate's own derivative; then s and b are the least squares of f' against
    f, over the samples. Derivatives are central differences: along x with random signs, and along the ODE by steps of order 1.
    Five forward passes per node and batch of data.

    Args:
        data: (N, *shape) samples of x_0; some thousands, or some hundreds for images.
        nodes: equal steps of the half log-SNR from t_start to t_end, by default the schedule's ends.
        seed: the seed of the noise. batch: rows per forward pass.
        progress: called after each node with (nodes done, nodes in all).
        resume: a file for unfinished work, .npz: it is written if the function is interrupted, and every minute; if it exists
            the work goes on from there, and it is kept at the end.

    Raises:
        OptionError: wrong data; or `resume` is the work of other nodes, data or seed.
    """
    _check_data(denoiser, data)
    nodes, schedule = integer("nodes", nodes), denoiser.schedule
    ends = [float(schedule.lam(t)) for t in (t_start or schedule.t_max, t_end or schedule.t_min)]
    lams = torch.linspace(max(ends[0], LOWEST), ends[1], nodes + 1, dtype=torch.float64, device="cpu")
    about = np.array([seed, len(data), float(data.double().sum())])
    sums = torch.zeros(len(lams), len(SUMS), *denoiser.shape, dtype=torch.float64, device="cpu")
    done = 0
    file = None if resume is None else Path(resume)
    if file is not None and file.exists():
        with np.load(file) as old:
            same = np.array_equal(old["lam"], lams.numpy()) and np.array_equal(old["about"], about)
            if not same or old["sums"].shape != tuple(sums.shape):
                raise OptionError(f"resume: {file} is the work of another model, data, seed or number of nodes")
            sums, done = torch.from_numpy(old["sums"]), int(old["done"])

    def save() -> None:
        if file is not None:
            np.savez(file, lam=lams.numpy(), about=about, sums=sums.numpy(), done=done)

    saved = time.monotonic()
    try:
        while done < len(lams):
            sums[done] = _sums_at(denoiser, data, float(lams[done]), (float(lams[0]), ends[1]), seed, batch)
            done += 1
            if progress is not None:
                progress(done, len(lams))
            if time.monotonic() - saved > AUTOSAVE:
                save()
                saved = time.monotonic()
    finally:
        save()
    mean = dict(zip(SUMS, (sums / len(data)).unbind(1)))
    alpha = schedule.alpha(schedule.t_of(lams)).view(-1, *(1,) * len(denoiser.shape))
    l = 1 - alpha * mean["jacobian"]
    slope = torch.gradient(l, spacing=(lams,), dim=0, edge_order=2)[0]
    # f = p y - m and f' = q y + p m - m', where m is x_0, p = 1 - l and q = -p - l', since dy/dlambda = m - y.
    p, q = 1 - l, l - 1 - slope

    def covariance(a: str, b: str, product: str) -> Tensor:
        return mean[product] - mean[a] * mean[b]

    yy, ym, mm = covariance("y", "y", "yy"), covariance("y", "m", "ym"), covariance("m", "m", "mm")
    both = q * (p * yy - ym) + p * (p * ym - mm) - (p * covariance("y", "dm", "ydm") - covariance("m", "dm", "mdm"))
    variance = p**2 * yy - 2 * p * ym + mm
    f, df = p * mean["y"] - mean["m"], q * mean["y"] + p * mean["m"] - mean["dm"]
    # A Gaussian's f does not vary at all; what is left is rounding.
    s = torch.where(variance > 1e-10 * (f**2 + mm + p**2 * yy), both / variance, 0.0)
    return ModelStatistics(lams, l, s, df - s * f)


def _sums_at(
    denoiser: GaussianDenoiser, data: Tensor, lam: float, ends: tuple[float, float], seed: int, batch: int
) -> Tensor:
    """(len(SUMS), *shape): sums over the data at one node; see model_statistics.

    All nodes take the same noise, so that errors of sampling are smooth in lambda, as a solver's polynomials want them.
    """
    at = Point.at(denoiser.schedule, lam=lam)
    # x_0 at three times along the ODE, the ends of the range on one side. The errors of the steps of order 1 cancel.
    low, high = lam - STEP < ends[0], lam + STEP > ends[1]
    near = [Point.at(denoiser.schedule, lam=lam + k * STEP) for k in ((1, 2) if low else (-1, -2) if high else (-1, 1))]
    a, b = (p.lam - at.lam for p in near)
    of_a, of_b = b / (a * (b - a)), a / (b * (a - b))
    total = torch.zeros(len(SUMS), *denoiser.shape, dtype=torch.float64, device=denoiser.device)
    for (x0, z), (_, signs) in zip(_noised(denoiser, data, seed, 0, batch), _noised(denoiser, data, seed, 1, batch)):
        x = at.alpha * x0 + at.sigma * z
        m = _denoised(denoiser, x, at)
        beside = [
            _denoised(denoiser, p.sigma / at.sigma * x - p.alpha * math.expm1(at.lam - p.lam) * m, p) for p in near
        ]
        move = torch.where(signs < 0, -1.0, 1.0).to(x) * (NUDGE * at.sigma)
        moved = [_denoised(denoiser, x + side * move, at) for side in (1, -1)]
        y, m64 = x.double() / at.alpha, m.double()
        dm = of_a * (beside[0].double() - m64) + of_b * (beside[1].double() - m64)
        jacobian = (moved[0].double() - moved[1].double()) / (2 * move.double())
        values = (y, m64, dm, y * y, y * m64, m64 * m64, y * dm, m64 * dm, jacobian)
        total += torch.stack([v.sum(0) for v in values])
    return total.cpu()
