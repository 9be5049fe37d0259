"""What some samplers need to know of a model or of its data, measured once and then reused.

    noise_norms     E |e(x_t)|^2 / d over times, for analytic_ddpm and analytic_ddim
    data_moments    mean of the data and its variance per coordinate, for sample(start_moments=...)
    model_statistics, ModelStatistics    l, s and b over half log-SNR, for dpm_solver_v3

All take data as a tensor of samples of x_0, (N, *shape), and use only `denoiser.predict`: any callable will do, and nothing is
differentiated. Noise is counter-based: the same seed gives the same numbers whatever the size of the batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .checks import integer
from .errors import OptionError
from .gaussian.denoiser import At, GaussianDenoiser
from .noise_schedules import Point
from .random import Rng

__all__ = ["data_moments", "noise_norms"]


def data_moments(data: Any, n: int = 10_000, seed: int = 0) -> tuple[Tensor, float]:
    """The mean of the data and the variance of a coordinate, as sample(start_moments=...) takes them.

    A run that starts at a time with little signal left starts best from N(alpha mean, alpha^2 variance + sigma^2), the
    isotropic Gaussian that is nearest to x_t (Analytic-Init: Zhao et al. 2024, arXiv 2406.15735).

    Args:
        data: (N, *shape) samples of x_0; or a problem, of which `n` exact samples are drawn.
        seed: of those samples.

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

    With z the noise that made x_t, E |z|^2 is known to be d, so what is averaged is the rest, in
    |e|^2 = |z|^2 + 2 <z, e - z> + |e - z|^2. The mean is the same, and the variance near pure noise is far smaller than that
    of |e|^2: the variance of x_0 given x_t that the samplers make of G is divided by alpha^2.

    Args:
        data: (N, *shape) samples of x_0. One forward pass per batch and time is spent on each.
        times: of the schedule, with alpha and sigma above 0; the middle of the run matters most.
        estimate: "norm" is the paper's G. "residual" is 1 - E |e - z|^2 / d, which is equal for an exact denoiser, and for an
            inexact one accounts for its error (Bao et al. 2022, arXiv 2206.07309: the best variance for an imperfect mean).
        batch: rows per forward pass; it changes nothing but memory and time.

    Returns:
        ((lambda, G), ...), lambda rising, numbers that json can write.

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
        total = torch.zeros((), dtype=torch.float64, device=denoiser.device)
        for x0, z in _noised(denoiser, data, seed, k, batch):
            error = _noise_of(denoiser, p.alpha * x0 + p.sigma * z, p) - z  # (A, *shape)
            square = (error**2).double().sum()
            total += -square if estimate == "residual" else square + 2 * (z * error).double().sum()
        found[p.lam] = 1 + float(total) / data.numel()
    return tuple(sorted(found.items()))


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
        return denoiser.denoised(x, At(at.t, at.alpha, at.sigma))


def _noise_of(denoiser: GaussianDenoiser, x: Tensor, at: Point) -> Tensor:
    return (x - at.alpha * _denoised(denoiser, x, at)) / at.sigma
