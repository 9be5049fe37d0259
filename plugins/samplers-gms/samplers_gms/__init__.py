"""Gaussian Mixture Solvers: reverse steps with the right mean, variance and third moment of each coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.authoring import (
    DRAW_FIRST_FREE,
    Conformance,
    Facts,
    GaussianPredict,
    Moments,
    NoiseCanvas,
    OptionError,
    PathState,
    Point,
    StochasticSampler,
    option,
)

from .fit import Pair, closed, kernel, published

__all__ = ["Gms", "Pair", "SnDdpm", "closed", "kernel", "published", "samplers_interface"]

samplers_interface = 1


@dataclass(frozen=True)
class SnDdpm(StochasticSampler[PathState]):
    """Bao et al. 2022, arXiv 2206.07309, theorem 3.1: a reverse step with the variance that each coordinate of x_0 has given x_s.

    x_t = K x_s + C E x_0 + sqrt(n^2 + C^2 Var x_0) z, with n^2 = eta^2 s_t^2 (1 - e^{-2h}), K = sqrt(s_t^2 - n^2) / s_s and
    C = a_t - K a_s. (analytic_ddpm has the mean of Var x_0 over x_s and coordinates in its place.) Mean and variance of each
    coordinate are then those of the true reverse step; for Gaussian data with independent coordinates the step is exact.

    The model must give moments of x_0: exact problems do; any other by heads, GaussianDenoiser.wrap(..., moments=...), or by
    derivatives, denoiser.with_moments(probes=...), where an evaluation counts as several forward passes and `steps` pays for
    fewer steps.

    The clips of the published code are off unless asked for. clamps="published", for data in [-1, 1]: |E x_0| <= 1,
    Var x_0 <= 1, E x_0^2 <= 1 and |E x_0^3| <= |E x_0|. `clip_pixel` bounds the noise of the last step as in analytic_ddim (2 in
    the papers for linear schedules, else 1).
    """

    name = "sn_ddpm"
    cite = (
        "Bao et al. 2022, Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models, arXiv "
        "2206.07309"
    )
    summary = "ancestral sampling with each coordinate's own variance"
    facts = Facts(stochastic=True, moments=2)
    conformance = Conformance()

    eta: float = option(1.0, "the noise that DDIM adds: 1 all of DDPM's, 0 none; that of x_0 comes on top", ge=0, le=1)
    clamps: str = option(
        "none", "bounds of the moments of x_0, for data in [-1, 1]: none, or published", choices=("none", "published")
    )
    clip_pixel: float = option(0.0, "bound of the last noise, in levels of 255 for data in [-1, 1]; 0: none", ge=0)

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        closing = self.end == "zero"
        return (canvas.steps - closing) // canvas.denoiser.moment_evals(self.facts.moments)

    def init(self, canvas: NoiseCanvas) -> PathState:
        cost = canvas.denoiser.moment_evals(self.facts.moments)
        if cost > 1 and canvas.steps > 1 and not self.solver_steps(canvas):
            raise OptionError(
                f"sampler {self.name!r}: steps={canvas.steps} pays for no step: with the moments of "
                f"{canvas.denoiser.name!r} a step counts as {cost} forward passes, and the closing one as 1. More steps, fewer "
                "probes, or heads of the model (GaussianDenoiser.wrap(..., moments=...)) are needed"
            )
        return super().init(canvas)

    def update(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> PathState:
        goal, pure = self.goal(predict, state, s, t)
        assert goal.variance is not None
        if self.clip_pixel and state.i + 2 == len(state.points):
            goal = Moments(goal.mean, goal.variance.clamp_max((2 * self.clip_pixel / 255) ** 2 * math.pi / 2))
        pair = self.fitted(goal, pure, state)
        centre = pair.first if pair.second is pair.first else self.chosen(pair, state)
        return self.advance(state, centre + pair.variance.sqrt() * self.normal(state, s, t))

    def goal(self, predict: GaussianPredict, state: PathState, s: Point, t: Point) -> tuple[Moments, float]:
        """The moments that the step is to have, and the variance of its own noise; see fit.kernel."""
        x0 = predict.moments(state.x, s, self.facts.moments)
        return kernel(state.x, clamped(x0) if self.clamps == "published" else x0, s, t, self.eta)

    def fitted(self, goal: Moments, pure: float, state: PathState) -> Pair:
        """The distribution of the step; here a single Gaussian."""
        assert goal.variance is not None
        return Pair(goal.mean, goal.mean, goal.variance)

    def chosen(self, pair: Pair, state: PathState) -> Tensor:
        """The mean of the Gaussian that is drawn from; for a pair."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gms(SnDdpm):
    """Guo et al. 2023, arXiv 2311.00941, algorithm 1: a reverse step from two Gaussians that have three moments of the true one.

    With M, V, k_3 the mean, the variance and the third central moment of x_t given x_s (samplers_gms.kernel), the Gaussians of
    weight 1/3 and 2/3 have the means M + d and M - d / 2 and the variance V - d^2 / 2, d = (4 k_3)^(1/3). That is exact if it
    leaves at least the variance `floor`; elsewhere d is made smaller, so mean and variance stay right. floor=None is n^2, the
    variance that the step has if x_0 is known; 0.1, a share of V, is the published bound, better with few evenly spaced times.
    The published code finds means and variance by 70 iterations of an optimiser, fit="published", which seldom parts the two
    means (see samplers_gms.published).

    components="coordinate" draws which Gaussian anew for each coordinate: coordinates are then independent given x_s, as they are
    in ddpm. "sample", the published code's, draws it once for a row: each coordinate has the same three moments, and two of them
    have the covariance d_i d_j / 2.

    `gaussian_steps` of the last steps have a single Gaussian: 1 in the published code, which also bounds its noise (clip_pixel).
    """

    name = "gms"
    cite = "Guo et al. 2023, Gaussian Mixture Solvers for Diffusion Models, arXiv 2311.00941"
    summary = "ancestral sampling with three right moments of each coordinate, by two Gaussians"
    facts = Facts(stochastic=True, moments=3)

    fit: str = option("closed", "how the Gaussians are found", choices=("closed", "published"))
    floor: float | None = option(
        None,
        "least variance of either Gaussian, as a share of the step's; none: that of the noise alone (for fit='closed')",
        ge=0,
        le=1,
    )
    components: str = option(
        "coordinate", "which Gaussian: drawn for each coordinate, or once for a row", choices=("coordinate", "sample")
    )
    gaussian_steps: int = option(0, "how many of the last steps have a single Gaussian", ge=0)

    def fitted(self, goal: Moments, pure: float, state: PathState) -> Pair:
        if goal.third is None or len(state.points) - 1 - state.i <= self.gaussian_steps:
            return super().fitted(goal, pure, state)
        if self.fit == "published":
            return published(goal)
        assert goal.variance is not None
        return closed(goal, pure if self.floor is None else self.floor * goal.variance)

    def chosen(self, pair: Pair, state: PathState) -> Tensor:
        rng, shape = state.canvas.rng, pair.first.shape
        number = 1 if self.components == "sample" else math.prod(shape[1:])
        u = rng.positions(number, torch.full_like(rng.row, state.i), DRAW_FIRST_FREE)  # (B, number)
        u = u.view(-1, *(1,) * (len(shape) - 1)) if number == 1 else u.view(shape)
        return torch.where(u < 1 / 3, pair.first, pair.second)


def clamped(x0: Moments) -> Moments:
    """Moments of x_0 within the published bounds for data in [-1, 1]; see SnDdpm."""
    assert x0.variance is not None
    mean, variance = x0.mean.clamp(-1, 1), x0.variance.clamp(0, 1)
    if x0.third is None:
        return Moments(mean, variance)
    raw3 = x0.third + 3 * x0.mean * x0.variance + x0.mean**3
    raw3 = torch.where(raw3.abs() <= mean.abs(), raw3, mean)
    raw2 = (mean**2 + variance).clamp(0, 1)
    return Moments(mean, variance, raw3 - 3 * mean * raw2 + 2 * mean**3)
