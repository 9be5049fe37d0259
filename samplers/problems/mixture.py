"""mixture: Gaussian mixtures whose score has a closed form, and a high-precision solution of their ODE."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, SamplersError, did_you_mean
from ..gaussian.denoiser import At, GaussianDenoiser
from ..gaussian.moments import Moments
from ..schedule import NoiseSchedule, noise_schedule
from .base import (
    Z95,
    Estimate,
    Problem,
    Score,
    check_reals,
    gaussian_times,
    kernel_estimate,
    truth_normals,
    truth_uniforms,
)
from .pictures import scatter

__all__ = ["Mixture", "MixtureDenoiser"]

PRESETS = ("eight", "rings8", "two")


class MixtureDenoiser(GaussianDenoiser):
    """E[x_0 | x_t] of a mixture of isotropic Gaussians, block by block, exact and stable.

    x is cut into independent blocks of d coordinates, each of the distribution sum_k w_k N(m_k, s_k^2 I). With a, s the
    schedule's and v_k = a^2 s_k^2 + s^2, component k is responsible by r_k, proportional to w_k v_k^(-d/2) exp(-|x - a
    m_k|^2 / 2 v_k), and
        E[x_0 | x_t]  =  sum_k r_k (m_k + (a s_k^2 / v_k) (x - a m_k)).
    (Tweedie's formula; log-sum-exp for r.)

    Args:
        weights: (K,) positive. means: (K, d). stds: (K,) positive.
        blocks: how many; the shape of a sample is (blocks d,).
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        stds: Tensor,
        blocks: int = 1,
        *,
        schedule: str | NoiseSchedule = "vp_linear",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        name: str = "mixture",
    ):
        if not dtype.is_floating_point:
            raise OptionError(f"dtype must be a floating dtype, not {dtype}")
        self.schedule, self.dtype, self.device, self.name = noise_schedule(schedule), dtype, torch.device(device), name
        self.weights, self.means, self.stds = (a.to(self.device, torch.float64) for a in (weights, means, stds))
        self.blocks, self.shape = blocks, (blocks * means.shape[1],)

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log w_k N(x; a m_k, v_k) (B, blocks, K), x - a m_k (B, blocks, K, d), v_k (B, 1, K))."""
        blocks = x.to(torch.float64).unflatten(1, (self.blocks, -1))  # (B, blocks, d)
        off = blocks[:, :, None] - alpha[..., None, None] * self.means  # (B, blocks, K, d)
        variance = ((alpha * self.stds) ** 2 + sigma**2)[:, None]  # (B, 1, K)
        log_n = -(off**2).sum(-1) / (2 * variance) - self.means.shape[1] / 2 * torch.log(2 * math.pi * variance)
        return self.weights.log() + log_n, off, variance

    def log_density(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x): (B, D), t (B,) or a number -> (B,) float64. Differentiable in x: its gradient is the score."""
        alpha, sigma = gaussian_times(self.schedule, t, x)
        return torch.logsumexp(self._log_joint(x, alpha, sigma)[0], -1).sum(-1)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoised E[x_0 | x_t], exact: (B, D), t (B,) -> (B, D) of `dtype`.

        Raises:
            OptionError: a wrong shape, or an x that is not finite.
        """
        check_reals(x, self.shape, f"denoiser {self.name!r}")
        alpha, sigma = gaussian_times(self.schedule, t, x)  # (B, 1)
        return self.posterior_mean(x, alpha, sigma).to(self.dtype)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | alpha x_0 + sigma e = x], float64. x: (B, D); alpha, sigma: (B, 1)."""
        log_joint, off, variance = self._log_joint(x, alpha, sigma)
        r = torch.softmax(log_joint, -1)[..., None]  # (B, blocks, K, 1)
        gain = (alpha[..., None] * self.stds**2 / variance)[..., None]  # (B, 1, K, 1)
        return (r * (self.means + gain * off)).sum(2).flatten(1)  # (B, D) float64

    def moments(self, x: Tensor, at: Any, order: int = 3, signs: Any = None) -> Moments:
        """As GaussianDenoiser.moments, exact: given component k, x_0 is a Gaussian of variance t_k = s_k^2 sigma^2 / v_k.

        With u_k the mean of component k less E[x_0 | x_t], the variance is sum_k r_k (t_k + u_k^2) and the third moment
        sum_k r_k (u_k^3 + 3 t_k u_k).
        """
        check_reals(x, self.shape, f"denoiser {self.name!r}")
        alpha, sigma = At.of(self.schedule, at).columns(x)  # (B, 1)
        log_joint, off, variance = self._log_joint(x, alpha, sigma)
        r = torch.softmax(log_joint, -1)[..., None]  # (B, blocks, K, 1)
        gain = (alpha[..., None] * self.stds**2 / variance)[..., None]  # (B, 1, K, 1)
        left = (self.stds**2 * sigma[..., None] ** 2 / variance)[..., None]  # (B, 1, K, 1), t_k
        each = self.means + gain * off  # (B, blocks, K, d)
        mean = (r * each).sum(2, keepdim=True)
        away = each - mean
        sums = ((r * each).sum(2), (r * (left + away**2)).sum(2), (r * (away**3 + 3 * left * away)).sum(2))
        return Moments(*(m.flatten(1).to(x.dtype) for m in sums[:order]))

    # exact guidance by an energy: Lu et al. 2023, arXiv 2304.12824 (contrastive energy prediction)

    def tilted(self, c: Tensor | Sequence[float]) -> MixtureDenoiser:
        """The denoiser of p(x_0) exp(c . x_0), each block by the same c, (d,): what exact guidance by it must give.

        A Gaussian times exp(c . x) is a Gaussian: w_k exp(c . m_k + |c|^2 s_k^2 / 2) are the new weights, up to their sum, and
        m_k + s_k^2 c the means.

        Raises:
            OptionError: c has another shape.
        """
        c = self._tilt(c)
        log_w = self.weights.log() + self.means @ c + (c @ c) * self.stds**2 / 2
        means = self.means + self.stds[:, None] ** 2 * c
        how: dict[str, Any] = {"schedule": self.schedule, "dtype": self.dtype, "device": self.device}
        return MixtureDenoiser(
            torch.softmax(log_w, 0), means, self.stds, self.blocks, **how, name=f"{self.name} tilted"
        )

    def log_tilt(self, x: Tensor, t: Tensor | float, c: Tensor | Sequence[float]) -> Tensor:
        """log E[exp(c . x_0) | x_t], c . x_0 summed over blocks: -E_t of the energy E(x_0) = -c . x_0 (theorem 3.1).

        Given the component, x_0 is a Gaussian of variance s_k^2 sigma^2 / v_k around its mean, so the expectation is closed.
        Differentiable in x: the score plus its gradient is the score of `tilted(c)`.

        Args:
            x: (B, D). t: (B,) or a number. c: (d,), the same for all blocks.

        Returns:
            (B,) float64.

        Raises:
            OptionError: c has another shape.
        """
        c = self._tilt(c)
        alpha, sigma = gaussian_times(self.schedule, t, x)  # (B, 1)
        log_joint, off, variance = self._log_joint(x, alpha, sigma)
        gain = (alpha[..., None] * self.stds**2 / variance)[..., None]  # (B, 1, K, 1)
        left = self.stds**2 * sigma[..., None] ** 2 / variance  # (B, 1, K), of x_0 given x_t and k
        log_e = ((self.means + gain * off) * c).sum(-1) + (c @ c) * left / 2  # (B, blocks, K)
        return (torch.logsumexp(log_joint + log_e, -1) - torch.logsumexp(log_joint, -1)).sum(-1)

    def _tilt(self, c: Tensor | Sequence[float]) -> Tensor:
        """`c` as (d,) float64 on the device."""
        c = torch.as_tensor(c, dtype=torch.float64, device=self.device)
        if c.shape != self.means.shape[1:]:
            raise OptionError(f"denoiser {self.name!r}: c is {tuple(c.shape)}; ({self.means.shape[1]},) is needed")
        return c


class Mixture(Problem):
    """A Gaussian mixture, samples of shape (dim,).

    Args:
        preset: "two": independent coordinates, each .4 N(-1, .3^2) + .6 N(.8, .5^2), smooth, for convergence orders;
            "eight" (or "rings8"): eight Gaussians of standard deviation .15 on the circle of radius 1.5, for pictures.
        dim: coordinates; any for "two" (default 2), 2 for "eight".
        weights, means, stds: a mixture of your own in place of a preset: (K,), (K, dim) and (K,).
        schedule: the default of its denoisers and of `truth`.

    Scores: `energy` (energy distance to the exact distribution; its floor is the mean of exact samples), `mean_error` and
    `variance_error` (norms over coordinates, with floors), and if the means are of one coordinate, as in "two", `ks`, the
    largest Kolmogorov-Smirnov distance of a coordinate. Plots use `energy`.
    """

    name = "mixture"
    families = ("gaussian",)
    figure_columns, figure_rows, figure_note = 4, 512, "grey: exact samples"
    summary = "Gaussian mixtures with closed-form score, and the probability-flow ODE solved to 1e-10"
    primary = {"gaussian": "energy"}

    def __init__(
        self,
        preset: str = "two",
        dim: int | None = None,
        weights: Sequence[float] | Tensor | None = None,
        means: Sequence[Sequence[float]] | Tensor | None = None,
        stds: Sequence[float] | Tensor | None = None,
        schedule: str | NoiseSchedule = "vp_linear",
    ):
        self.schedule = noise_schedule(schedule)
        self.blocks = 1
        own = [a is not None for a in (weights, means, stds)]
        if any(own):
            if not all(own):
                raise OptionError("problem 'mixture': weights, means and stds come together")
            self.preset = "own"
            w, m, s = (torch.as_tensor(a, dtype=torch.float64, device="cpu") for a in (weights, means, stds))
            if m.dim() != 2 or w.shape != m.shape[:1] or s.shape != w.shape:
                raise OptionError(
                    "problem 'mixture': weights (K,), means (K, dim) and stds (K,) are needed, not "
                    f"{tuple(w.shape)}, {tuple(m.shape)} and {tuple(s.shape)}"
                )
            if not (bool((w > 0).all()) and bool((s > 0).all()) and bool(torch.isfinite(m).all())):
                raise OptionError("problem 'mixture': weights and stds must be positive, means finite")
            if dim not in (None, m.shape[1]):
                raise OptionError(f"problem 'mixture': dim {dim} does not agree with means of {m.shape[1]}")
            self.weights, self.means, self.stds = w / w.sum(), m, s
        elif preset == "two":
            self.preset, self.blocks = "two", 2 if dim is None else dim
            if not isinstance(self.blocks, int) or self.blocks < 1:
                raise OptionError(f"problem 'mixture': dim must be a positive integer, not {dim!r}")
            self.weights = torch.tensor([0.4, 0.6], dtype=torch.float64, device="cpu")
            self.means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64, device="cpu")
            self.stds = torch.tensor([0.3, 0.5], dtype=torch.float64, device="cpu")
        elif preset in PRESETS:
            if dim not in (None, 2):
                raise OptionError(f"problem 'mixture': preset {preset!r} has dim 2, not {dim!r}")
            self.preset = "eight"
            angle = torch.arange(8, dtype=torch.float64, device="cpu") * (math.pi / 4)
            self.weights = torch.full((8,), 1 / 8, dtype=torch.float64, device="cpu")
            self.means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)  # (8, 2)
            self.stds = torch.full((8,), 0.15, dtype=torch.float64, device="cpu")
        else:
            raise OptionError(
                f"problem 'mixture': unknown preset {preset!r}{did_you_mean(str(preset), PRESETS)} "
                f"Known: {', '.join(PRESETS)}"
            )
        self.dim = self.blocks * self.means.shape[1]

    def _gaussian(
        self,
        schedule: str | NoiseSchedule | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> MixtureDenoiser:
        return MixtureDenoiser(
            self.weights,
            self.means,
            self.stds,
            self.blocks,
            schedule=self.schedule if schedule is None else schedule,
            dtype=dtype,
            device=device,
            name=f"mixture/{self.preset}",
        )

    # the truth

    def truth(
        self,
        x_T: Tensor,
        t_end: float | None = None,
        *,
        t_start: float | None = None,
        schedule: str | NoiseSchedule | None = None,
    ) -> Tensor:
        """The point to which the probability-flow ODE takes x_T: what deterministic solvers converge to.

        In y = x / alpha and lambda = log(alpha / sigma) the ODE is dy/dlambda = E[x_0 | x] - y: no schedule is left in
        it. Where alpha is 0 at the start, it begins in z = x / sigma and u = alpha / sigma: dz/du = E[x_0 | x]. Solved by
        scipy's DOP853 in float64 at two tolerances, which must agree to 1e-10.

        Args:
            x_T: (B, dim), the state at t_start.
            t_end: default the schedule's t_min. t_start: default its t_max.

        Returns:
            (B, dim) float64.

        Raises:
            OptionError: a wrong shape. SamplersError: the two solutions do not agree.
        """
        from scipy.integrate import solve_ivp

        check_reals(x_T, (self.dim,), "mixture truth")
        noise = self.schedule if schedule is None else noise_schedule(schedule)
        start = noise.t_max if t_start is None else t_start
        end = noise.t_min if t_end is None else t_end
        denoiser = self._gaussian(noise)
        first, last = float(noise.lam(start)), float(noise.lam(end))

        def mean(x: Tensor, alpha: float, sigma: float) -> Tensor:
            a, s = (torch.full((len(x), 1), v, dtype=torch.float64, device=x.device) for v in (alpha, sigma))
            return denoiser.posterior_mean(x, a, s)

        def rows(flat: np.ndarray) -> Tensor:
            return torch.from_numpy(flat).view(-1, self.dim)  # (B, dim)

        # The posterior depends on x / alpha and sigma / alpha alone: take alpha = 1, or sigma = 1.
        def slope(lam: float, flat: np.ndarray) -> np.ndarray:
            y = rows(flat)
            return (mean(y, 1.0, math.exp(-lam)) - y).flatten().numpy()

        def slope_from_noise(u: float, flat: np.ndarray) -> np.ndarray:
            return mean(rows(flat), u, 1.0).flatten().numpy()

        x0 = x_T.detach().cpu().to(torch.float64)
        ends = []
        for tolerance in (1e-12, 1e-13):

            def solved(rate: Callable[..., np.ndarray], span: tuple[float, float], value: Tensor) -> Tensor:
                flat = value.flatten().numpy()
                solution = solve_ivp(rate, span, flat, method="DOP853", rtol=tolerance, atol=tolerance)  # noqa: B023
                if not solution.success:
                    raise SamplersError(f"mixture truth: {solution.message}")
                return rows(solution.y[:, -1].copy())

            if math.isinf(first):
                u = min(0.1, math.exp(last))
                y = solved(slope_from_noise, (0.0, u), x0 / noise.sigma(start)) / u
                y = solved(slope, (math.log(u), last), y)
            else:
                y = solved(slope, (first, last), x0 / noise.alpha(start))
            ends.append(y * noise.alpha(end))
        gap = float((ends[0] - ends[1]).abs().max()) if len(x_T) else 0.0
        if gap > 1e-10:
            raise SamplersError(f"mixture truth: two solutions differ by {gap:.1e}, more than 1e-10")
        return ends[1]

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        d = self.means.shape[1]
        u = truth_uniforms(n, seed, self.blocks)  # (n, blocks)
        pick = torch.searchsorted(self.weights.cumsum(0), u, right=True).clamp_max(len(self.weights) - 1)
        z = truth_normals(n, seed, self.dim).unflatten(1, (self.blocks, d))  # (n, blocks, d)
        return (self.means[pick] + self.stds[pick][..., None] * z).flatten(1)  # (n, dim) float64

    # scores

    def _score(self, x: Tensor, family: str) -> Score:
        check_reals(x, (self.dim,), "mixture score")
        x = x.to(torch.float64)
        mean, variance = self._moments
        reference = self._reference  # (20000, dim)
        estimates = {
            "energy": self._energy(x),
            "mean_error": _norm_of_mean(x - mean, reference - mean),
            "variance_error": _norm_of_mean((x - mean) ** 2 - variance, (reference - mean) ** 2 - variance),
        }
        if self.means.shape[1] == 1:
            estimates["ks"] = self._ks(x)
        return Score(estimates, problem=self.name, family=family, primary=self.primary[family])

    @functools.cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate, (dim,) each."""
        w = self.weights[:, None]
        mean = (w * self.means).sum(0)
        variance = (w * (self.stds[:, None] ** 2 + self.means**2)).sum(0) - mean**2
        return mean.repeat(self.blocks), variance.repeat(self.blocks)

    @functools.cached_property
    def _reference(self) -> Tensor:
        """Exact samples from which the floors take their covariances."""
        return self._sample_truth(20_000, 1 << 40, "gaussian")

    def _energy(self, x: Tensor) -> Estimate:
        """2 E|x - Y| - E|x - x'| - E|Y - Y'|, the distribution's side exact (Szekely and Rizzo's energy distance)."""
        pairs = -torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # (n, n)
        to_exact = torch.cat([-self._mean_distance(part) for part in x.split(1024)])  # (n,)
        return kernel_estimate(pairs, to_exact, -self._exact_distance, 0.0)

    def _mean_distance(self, x: Tensor) -> Tensor:
        """E|x_i - Y|, (n, dim) -> (n,): see `_distance_from_transform`."""
        off = ((x.unflatten(1, (self.blocks, -1))[:, :, None] - self.means) ** 2).sum(-1)  # (n, blocks, K)
        return _distance_from_transform(self.weights, self.stds**2, off, self.means.shape[1])

    @functools.cached_property
    def _exact_distance(self) -> float:
        """E|Y - Y'|: the difference of two components is a Gaussian too."""
        weights = (self.weights[:, None] * self.weights).flatten()  # (K K,)
        variances = (self.stds[:, None] ** 2 + self.stds**2).flatten()
        off = ((self.means[:, None] - self.means) ** 2).sum(-1).flatten()  # (K K,)
        return float(_distance_from_transform(weights, variances, off.expand(1, self.blocks, -1), self.means.shape[1]))

    def _ks(self, x: Tensor) -> Estimate:
        """The largest Kolmogorov-Smirnov distance of a coordinate; the interval is the binomial's at that gap."""
        from scipy.integrate import trapezoid
        from scipy.stats import kstwobign

        n = len(x)
        ordered = x.sort(0).values  # (n, dim)
        z = (ordered[..., None] - self.means[:, 0]) / self.stds  # (n, dim, K)
        cdf = (self.weights * torch.special.ndtr(z)).sum(-1)  # (n, dim)
        above = torch.arange(1, n + 1, dtype=torch.float64, device="cpu")[:, None] / n
        gap = torch.maximum(above - cdf, cdf - above + 1 / n)  # (n, dim)
        value, at = float(gap.max()), int(gap.argmax())
        p = float(cdf.flatten()[at])
        half = Z95 * math.sqrt(max(p * (1 - p), 1 / n) / n)
        # E max of dim independent Kolmogorov variables, as the integral of 1 - F^dim.
        grid = np.linspace(1e-6, 4, 4001)
        truth = float(trapezoid(1 - kstwobign.cdf(grid) ** self.dim, grid)) / math.sqrt(n)
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), n, "lower", truth)

    # pictures

    def picture(self, x: Tensor, k: int = 8) -> list[np.ndarray]:
        """One scatter of all rows over exact samples, first two coordinates: uint8 (H, W, 3). [] without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return []
        figure = Figure(figsize=(3, 3), dpi=80)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for points, colour in ((self.sample_truth(1000, 1), "0.8"), (x.detach().cpu().to(torch.float64)[:2000], "C0")):
            ys = points[:, 1] if self.dim > 1 else torch.zeros(len(points), dtype=points.dtype, device=points.device)
            axes.scatter(points[:, 0].numpy(), ys.numpy(), s=3, c=colour, linewidths=0)
        axes.set_axis_off()
        canvas.draw()
        return [np.asarray(canvas.buffer_rgba())[..., :3].copy()]

    def figure(self, x: Tensor, truth: Tensor, k: int | None = None) -> str:
        """A scatter of all rows over exact samples, if the mixture is one of the plane."""
        return scatter(x, truth) if self.dim == 2 else super().figure(x, truth, k)

    def render(self, x_row: Tensor) -> str:
        """The coordinates, as signed numbers of three decimals."""
        return " ".join(f"{v:+.3f}" for v in x_row.tolist())


def _distance_from_transform(weights: Tensor, variances: Tensor, off: Tensor, d: int) -> Tensor:
    """E|Z| for Z of independent blocks, each a mixture of K isotropic Gaussians in d dimensions.

    |Z| = (1 / 2 sqrt(pi)) int_0^inf (1 - exp(-s |Z|^2)) s^(-3/2) ds, and the mean of the exponential is a product over
    blocks of sums over components of (1 + 2 s v_k)^(-d/2) exp(-s off_k / (1 + 2 s v_k)). In log s the integrand dies
    off exponentially at both ends, and there the trapezoid rule is exact to rounding.

    Args:
        weights, variances: (K,). off: (n, blocks, K), squared distances to the components' means.
    """
    log_s = torch.linspace(-60.0, 60.0, 601, dtype=torch.float64, device="cpu")  # (Q,), steps of 0.2
    s = log_s.exp()
    total = torch.zeros(len(off), dtype=torch.float64, device="cpu")
    for point in s:
        double = 2 * point * variances  # (K,)
        # 1 - product of transforms, each through expm1 and log1p: at small s the difference from 1 is all that counts.
        log_part = -d / 2 * torch.log1p(double) - point * off / (1 + double)  # (n, blocks, K)
        short = -(weights * torch.expm1(log_part)).sum(-1)  # (n, blocks), 1 - transform
        total += -torch.expm1(torch.log1p(-short.clamp_max(1.0)).sum(-1)) * point**-0.5  # ds = s dlog s
    return total * 0.2 / (2 * math.sqrt(math.pi))


def _norm_of_mean(values: Tensor, exact: Tensor) -> Estimate:
    """The norm of the mean of (n, dim) values whose distribution has mean 0; its floor from exact values (m, dim)."""
    n = len(values)
    mean = values.mean(0)
    value = float(mean.norm())
    # One direction matters to first order: the mean's own.
    along = values @ (mean / max(value, 1e-300))  # (n,)
    half = Z95 * float(along.std()) / math.sqrt(n) if n > 1 else math.inf
    centred = exact - exact.mean(0)
    covariance = centred.t() @ centred / len(exact)
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0)  # (dim,)
    z = truth_normals(8192, 1 << 41, len(spectrum))
    floor = float(torch.sqrt((z**2 @ spectrum) / n).mean())  # E|N(0, covariance / n)|
    return Estimate(value, max(0.0, value - half), value + half, n, "lower", floor)
