"""Analytic-DDIM: DDIM with noise of the best variance, from one statistic of the model."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import OptionError
from ..ops import combine
from ..prediction import GaussianPredict
from ..sampler import Conformance, Facts, option
from .grid import GaussianSampler, GridState, Point


def _check_norms(value: Sequence[Sequence[float]]) -> None:
    """OptionError unless `value` is ((lambda, norm), ...) with finite lambda that rise, and norms above 0."""
    need = "pairs (lambda, norm) are needed, lambda rising, as samplers.statistics.noise_norms makes them"
    try:
        pairs = [(float(lam), float(norm)) for lam, norm in value]
    except (TypeError, ValueError):
        raise OptionError(need) from None
    rising = all(a[0] < b[0] for a, b in zip(pairs, pairs[1:]))
    if not (rising and all(math.isfinite(lam) and norm > 0 for lam, norm in pairs)):
        raise OptionError(need)


@dataclass(frozen=True)
class AnalyticDdim(GaussianSampler[GridState]):
    """Bao et al. 2022, arXiv 2201.06503, theorem 1: the variance of a reverse step that is best in KL divergence.

    With n^2 = eta^2 s_t^2 (1 - e^{-2h}), DDIM's noise,
    x_t = a_t x_0 + sqrt(s_t^2 - n^2) e + sqrt(n^2 + (a_t - sqrt(s_t^2 - n^2) a_s / s_s)^2 C) z,
    where C is the variance per coordinate of x_0 given x_s, on average: C = (s_s / a_s)^2 (1 - G), G = E |e|^2 / d.
    eta = 1 is Analytic-DDPM. For data that are an isotropic Gaussian every step is exact, whatever its length.

    `norms` holds G, as samplers.statistics.noise_norms measures it: pairs of half log-SNR and G. Between them logit G is linear
    in lambda, and beyond them it has the slope -2: this is exact for a Gaussian, and finite at alpha = 0. Without `norms`, G
    is that of a Gaussian of standard deviation `data_std`, which is the most that C can be for data of that variance.

    The paper's clips are off unless asked for: `max_variance` bounds C (1 for data in [-1, 1]), and `clip_pixel` bounds the
    noise of the last noisy step to s with s sqrt(2 / pi) = 2 clip_pixel / 255 (2 in the paper for linear schedules, else 1).
    """

    name = "analytic_ddim"
    cite = (
        "Bao et al. 2022, Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic "
        "Models, arXiv 2201.06503"
    )
    summary = "DDIM with noise of the best variance, from the mean square of the model's noise"

    facts = Facts(stochastic=True)
    conformance = Conformance(order=GaussianSampler.conformance.order, exact={"data_std": 1e-6})

    eta: float = option(0.0, "the noise that DDIM adds: 0 none, 1 DDPM's; the best variance comes on top", ge=0, le=1)
    norms: Sequence[Sequence[float]] | None = option(
        None, "((lambda, E |e|^2 / d), ...) of the model; none: a Gaussian's", check=_check_norms
    )
    data_std: float = option(1.0, "standard deviation of the data per coordinate, if there are no norms", gt=0)
    max_variance: float | None = option(None, "bound of the variance of x_0 given x_s; none: no bound", gt=0)
    clip_pixel: float = option(0.0, "bound of the last noise, in levels of 255 for data in [-1, 1]; 0: none", ge=0)

    def posterior_variance(self, lam: float) -> float:
        """C at half log-SNR lambda: 1 / (e^{2 lambda} + p), where p = e^{2 lambda} G / (1 - G) is 1 / std^2 of a Gaussian."""
        if not self.norms:
            log_p = -2 * math.log(self.data_std)
        else:
            at = [pair[0] for pair in self.norms]
            log_ps = [2 * where + _logit(norm) for where, norm in self.norms]
            k = bisect.bisect(at, lam)
            if k in (0, len(at)):
                log_p = log_ps[min(k, len(at) - 1)]
            else:
                r = (lam - at[k - 1]) / (at[k] - at[k - 1])
                log_p = log_ps[k - 1] + r * (log_ps[k] - log_ps[k - 1])
        variance = 1 / (math.exp(2 * lam) + math.exp(log_p))
        return variance if self.max_variance is None else min(variance, self.max_variance)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        added = self.eta**2 * t.sigma**2 * -math.expm1(-2 * (t.lam - s.lam))
        direct = math.sqrt(max(t.sigma**2 - added, 0.0))
        of_x0 = t.alpha - direct / s.sigma * s.alpha
        variance = added + of_x0**2 * self.posterior_variance(s.lam)
        if self.clip_pixel and state.i + 2 == len(state.points):
            variance = min(variance, (2 * self.clip_pixel / 255) ** 2 * math.pi / 2)
        noise = state.canvas.noise(state.i + 1)  # draw 0 made x_T
        return self.advance(state, combine(x0, of_x0, state.x, direct / s.sigma, noise, math.sqrt(variance)))


def _logit(norm: float) -> float:
    """log(G / (1 - G)); an estimate of 1 or more counts as just below 1."""
    norm = min(norm, 1 - 2.0**-52)
    return math.log(norm) - math.log1p(-norm)
