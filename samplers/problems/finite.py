"""The denoiser of a finite support under Gaussian noise, for distributions on a dyadic grid: one-hot boards and grey levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..gaussian.denoiser import At, GaussianDenoiser
from ..gaussian.moments import Moments, central
from ..schedule import NoiseSchedule, noise_schedule
from .base import check_reals, exact_matmul, gaussian_times

__all__ = ["FiniteGaussian"]


class FiniteGaussian(GaussianDenoiser):
    """E[x_0 | x_t] when x_0 is one of n centres, all equally likely, plus Gaussian noise of deviation `width`.

    With a, s the schedule's alpha and sigma and v = a^2 width^2 + s^2,
        w_n  proportional to  exp(-|x - a c_n|^2 / 2 v),
        E[x_0 | x]  =  sum_n w_n c_n  +  (a width^2 / v) (x - a sum_n w_n c_n).
    Both sums over n or over coordinates are exact (see base), so a row has the same bits in every batch, in float64
    too.

    Args:
        centres: (n, D) float64, multiples of `unit` in [-1, 1].
        shape: the shape of one sample; its product is D.
        unit: a power of two.
        width: standard deviation of each centre's own noise; 0 for the bare points.
        dtype: the dtype of x and of the answer; the sums are float64 inside.
    """

    def __init__(
        self,
        centres: Tensor,
        shape: Sequence[int],
        *,
        unit: float,
        width: float = 0.0,
        schedule: str | NoiseSchedule = "vp_linear",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str = "finite",
    ):
        if not dtype.is_floating_point:
            raise OptionError(f"dtype must be a floating dtype, not {dtype}")
        self.shape, self.schedule, self.dtype = tuple(shape), noise_schedule(schedule), dtype
        self.device, self.name, self.width, self.unit = torch.device(device), name, width, unit
        self.centres = centres.to(self.device)  # (n, D)
        self.centres_t = self.centres.t().contiguous()  # (D, n)
        self.norms = (centres**2).sum(1).to(self.device)  # (n,), exact: multiples of unit^2

    def log_weights(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log w_n of the centres, not normalised, the largest 0: (B, n) float64. x: (B, *shape), t: (B,)."""
        return self._log_weights(x, *gaussian_times(self.schedule, t, x))

    def _log_weights(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        flat = x.to(torch.float64).flatten(1)  # (B, D)
        dots = exact_matmul(flat, self.centres_t, slices=2, unit=self.unit)  # (B, n)
        variance = (alpha * self.width) ** 2 + sigma**2
        # |x|^2 is the same for every centre and is left out; the rest keeps its digits when sigma is small.
        log_w = (alpha * dots - alpha**2 * self.norms / 2) / variance  # (B, n)
        return log_w - log_w.amax(1, keepdim=True)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoised E[x_0 | x_t], exact: (B, *shape), t (B,) -> (B, *shape) of `dtype`.

        Raises:
            OptionError: a wrong shape, or an x that is not finite.
        """
        check_reals(x, self.shape, f"denoiser {self.name!r}")
        alpha, sigma = gaussian_times(self.schedule, t, x)
        (mean,) = self._powers(x, alpha, sigma, 1)
        if self.width:
            shrink = alpha * self.width**2 / ((alpha * self.width) ** 2 + sigma**2)  # (B, 1)
            mean = mean + shrink * (x.to(torch.float64).flatten(1) - alpha * mean)
        return mean.reshape(x.shape).to(self.dtype)

    def _powers(self, x: Tensor, alpha: Tensor, sigma: Tensor, order: int) -> list[Tensor]:
        """sum_n w_n c_n, then of c_n^2 and c_n^3: `order` of them, (B, D) float64 each."""
        w = torch.exp(self._log_weights(x, alpha, sigma))  # (B, n), the largest 1
        ones = torch.ones(len(self.centres), 1, dtype=torch.float64, device=w.device)
        # The last column makes the normaliser, just as exactly.
        table = torch.cat([*(self.centres**k for k in range(1, order + 1)), ones], 1)  # (n, order D + 1)
        sums = exact_matmul(w, table, slices=2, unit=self.unit**order)  # (B, order D + 1)
        return list((sums[:, :-1] / sums[:, -1:]).chunk(order, 1))

    def moments(self, x: Tensor, at: Any, order: int = 3, signs: Any = None) -> Moments:
        """As GaussianDenoiser.moments, exact: given centre n, x_0 is a Gaussian of variance width^2 sigma^2 / v around its mean,
        (sigma^2 c_n + a width^2 x) / v, so its central moments are those of the centres times (sigma^2 / v)^k, and that variance.
        """
        check_reals(x, self.shape, f"denoiser {self.name!r}")
        alpha, sigma = At.of(self.schedule, at).columns(x)  # (B, 1)
        of_centres = central(self._powers(x, alpha, sigma, order))
        variance = (alpha * self.width) ** 2 + sigma**2  # (B, 1)
        keep = sigma**2 / variance
        mean = keep * of_centres.mean + alpha * self.width**2 / variance * x.to(torch.float64).flatten(1)
        own = self.width**2 * keep
        out = Moments(
            mean,
            None if of_centres.variance is None else own + keep**2 * of_centres.variance,
            None if of_centres.third is None else keep**3 * of_centres.third,
        )
        return out.map(lambda m: m.reshape(x.shape).to(x.dtype))
