"""From moments of x_0 to a step: the moments of the step's distribution, and two Gaussians that have them.

All of it is done coordinate by coordinate, with elementwise operations only, so a row of a batch is what it is alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.authoring import Moments, Point

# The fit of the published code: Adan (Xie et al. 2022, arXiv 2208.06677), and the bounds of the shared variance.
ITERATIONS, RATE, BETAS, EPS = 70, 0.06, (0.9, 0.92, 0.92), 1e-8
LOWEST, HIGHEST, FIRST_SHARE, FIRST_GAP = 0.1, 1.2, 0.998, 1e-3


@dataclass(frozen=True, eq=False)
class Pair:
    """Two Gaussians of weight 1/3 and 2/3, for each coordinate.

    Attributes:
        first, second: (B, *shape), their means.
        variance: (B, *shape), the variance of either.
    """

    first: Tensor
    second: Tensor
    variance: Tensor

    def moments(self) -> Moments:
        """Their mean, variance and third central moment together."""
        mean = (self.first + 2 * self.second) / 3
        a, b = self.first - mean, self.second - mean
        return Moments(mean, self.variance + (a**2 + 2 * b**2) / 3, (a**3 + 2 * b**3) / 3)


def kernel(x: Tensor, x0: Moments, s: Point, t: Point, eta: float = 1.0) -> tuple[Moments, float]:
    """The moments of x_t given x_s, and the variance n^2 that the step would have if x_0 were known.

    Given x_0 as well, x_t is a Gaussian around K x_s + C x_0: DDIM's with noise n^2 = eta^2 s_t^2 (1 - e^{-2h}), and for eta = 1
    the posterior of the noising process. So the mean is K x_s + C E x_0, the variance n^2 + C^2 Var x_0, and the third central
    moment C^3 times that of x_0. With g = sqrt(1 - eta^2 (1 - e^{-2h})): K = g s_t / s_s and C = a_t - K a_s.

    Args:
        x: (B, *shape), x_s. x0: moments of x_0 given it.
        s, t: from where to where; alpha may be 0 at s.
    """
    decay2 = math.exp(-2 * (t.lam - s.lam))
    keep = t.sigma / s.sigma * math.sqrt((1 - eta) * (1 + eta) + eta**2 * decay2)
    take = t.alpha - keep * s.alpha
    noise = (eta * t.sigma) ** 2 * (1 - decay2)
    third = None if x0.third is None else take**3 * x0.third
    assert x0.variance is not None
    return Moments(keep * x + take * x0.mean, noise + take**2 * x0.variance, third), noise


def closed(goal: Moments, least: Tensor | float) -> Pair:
    """The two Gaussians that have the three moments, in closed form: means M + d and M - d / 2, with d = (4 k_3)^(1/3).

    Their means alone have variance d^2 / 2 and third moment d^3 / 4, so what is left of the variance is that of each Gaussian.
    Where it would be less than `least`, d is made smaller until it is just that: mean and variance stay right, and the third
    moment is the nearest that can be had. (Without a bound, a skewness of up to 1 / sqrt 2 is reached.)

    Args:
        least: the least variance of a Gaussian, a number or (B, *shape), at most the variance itself.
    """
    assert goal.variance is not None and goal.third is not None
    most = (2 * (goal.variance - least)).clamp_min(0).sqrt()
    root = torch.exp(torch.log(4 * goal.third.abs()) / 3)  # torch's own powers have other bits at the end of a batch
    d = torch.minimum(root, most) * goal.third.sign()
    return Pair(goal.mean + d, goal.mean - d / 2, (goal.variance - d**2 / 2).clamp_min(0))


def published(goal: Moments) -> Pair:
    """The published fit: 70 iterations of Adan on the squared errors of the first three raw moments, for each coordinate.

    Unknowns are the two means and the share b of the variance that each Gaussian has, within [0.1, 1.2]; they start at M,
    M - 0.001 and 0.998. The published loss is a mean over the batch; here it is each coordinate's own. That leads to the same
    steps, since Adan divides by the size of the gradient, and rows do not depend on each other.

    The start is next to a saddle of the loss, where the means are equal: their gradients point the same way, and Adan moves both
    by the same amount. For most moments the means are still about 0.001 apart after 70 iterations. What comes out is then one
    Gaussian, moved from M a little to where the raw third moment is better, and the third central moment stays near 0. (At
    `closed` the same loss is 0 wherever no bound is touched.)
    """
    assert goal.variance is not None and goal.third is not None
    mean, variance = goal.mean, goal.variance
    raw2, raw3 = mean**2 + variance, goal.third + 3 * mean * variance + mean**3
    z = torch.stack([mean, mean - FIRST_GAP, torch.full_like(mean, FIRST_SHARE)])  # (3, B, *shape)
    weight = torch.tensor([1 / 3, 2 / 3], dtype=mean.dtype, device=mean.device).view(2, *(1,) * mean.dim())
    m, v, n, before = (torch.zeros_like(z) for _ in range(4))
    keep_m, keep_v, keep_n = BETAS
    for i in range(1, ITERATIONS + 1):
        u, share = z[:2], z[2].clamp(LOWEST, HIGHEST)
        within = variance * share
        e1 = (weight * u).sum(0) - mean
        e2 = (weight * (u**2 + within)).sum(0) - raw2
        e3 = (weight * (u**3 + 3 * u * within)).sum(0) - raw3
        of_means = 2 * weight * (e1 + 2 * u * e2 + 3 * (u**2 + within) * e3)
        inside = (z[2] >= LOWEST) & (z[2] <= HIGHEST)
        of_share = 2 * variance * (e2 + 3 * (weight * u).sum(0) * e3) * inside
        slope = torch.cat([of_means, of_share[None]])
        change = slope - before if i > 1 else torch.zeros_like(slope)
        m = keep_m * m + (1 - keep_m) * slope
        v = keep_v * v + (1 - keep_v) * change
        n = keep_n * n + (1 - keep_n) * (slope + keep_v * change) ** 2
        size = n.sqrt() / math.sqrt(1 - keep_n**i) + EPS
        z = z - RATE * (m / (1 - keep_m**i) + keep_v * v / (1 - keep_v**i)) / size
        before = slope
    return Pair(z[0], z[1], variance * z[2].clamp(LOWEST, HIGHEST))
