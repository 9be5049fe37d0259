"""digits: scikit-learn's 1797 handwritten digits (8 x 8, 17 grey levels), smoothed: every state has a posterior."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..real_tokens import RealTokens
from ..schedule import NoiseSchedule, noise_schedule
from .base import (
    ExactTokens,
    Problem,
    Score,
    check_reals,
    check_tokens,
    entropy_of_tokens,
    kernel_estimate,
    mean_estimate,
    on_grid,
    per_position,
    truth_normals,
    truth_uniforms,
)
from .finite import FiniteGaussian

__all__ = ["Digits", "KernelTokens", "digit_images", "grey_kernel", "make_data"]

GREYS = 17
DATA = Path(__file__).parent / "data" / "digits.npz"

# Entropy of the distribution per pixel in nats, and its standard error: what `estimate_entropy(100_000)` returns for the
# default options. Other options have theirs estimated when they are first scored.
_ENTROPY = {"tokens": (0.6204428831242437, 0.00031634), "gaussian": (-0.9892349945387442, 0.00027893)}


def make_data(path: str | Path = DATA) -> None:
    """Write the data file from scikit-learn's copy; tests compare the two. (How data/digits.npz was made.)"""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez_compressed(path, images=digits.data.astype(np.uint8), labels=digits.target.astype(np.uint8))


@functools.lru_cache(maxsize=1)
def digit_images() -> Tensor:
    """The images: (1797, 64) int64 in 0..16, 16 is ink."""
    with np.load(DATA) as data:
        return torch.from_numpy(data["images"].astype(np.int64))


def grey_kernel(width: float, floor: float) -> Tensor:
    """What a pixel of grey level g becomes, row g of (17, 17) float64: Gaussian, `floor` of it uniform."""
    level = torch.arange(GREYS, dtype=torch.float64, device="cpu")
    k = torch.exp(-((level[:, None] - level[None]) ** 2) / (2 * width**2))
    k = k / k.sum(1, keepdim=True)
    return (1 - floor) * k + floor / GREYS


class KernelTokens(ExactTokens):
    """Posteriors of a distribution of tokens: one of n equally likely centres, each position then changed by a kernel.

    With K[g, v] the chance that a centre's g shows as v, centre n weighs w_n = prod_i K[c_ni, x_i] over visible i, and
        p(x_0,i = v | x)  =  sum_g S_i(g) K[g, v],   S_i(g) = sum over n with c_ni = g of w_n / sum_n w_n,
    at masked i; a visible token is what it is. Uniform noise of level t at a position, L[v, x] = (1 - t) [v = x] + t/V,
    makes K_t = K L of the weights there, and p(x_0,i = v | x) = L[v, x_i] sum_g S_i(g) K[g, v] / K_t[g, x_i].
    log w and S are two matrix products with the centres' one-hot, whose sums are exact (see base).

    Args:
        centres: (n, L) int64, tokens below V.
        kernel: (V, V) float64, positive, rows summing to 1.
        family: masked or uniform.
    """

    def __init__(
        self,
        centres: Tensor,
        kernel: Tensor,
        family: str,
        *,
        device: torch.device | str = "cpu",
        name: str = "kernel",
    ):
        if not bool((kernel > 0).all()):
            raise OptionError("the kernel must be positive everywhere: every state needs a posterior")
        self.tokens, self.length = len(kernel), centres.shape[1]
        self._noised(family)
        self.device, self.name = torch.device(device), name
        self.kernel = kernel.to(self.device)  # (V, V)
        one_hot = F.one_hot(centres, self.tokens).flatten(1)  # (n, L V)
        # A (position, token) that no centre has is a zero column, and is left out: a fifth of the digits'.
        used = one_hot.any(0).nonzero().squeeze(1)
        self.used = used.to(self.device)  # (J,) int64, numbers position * V + token
        self.used_position = self.used // self.tokens  # (J,)
        self.points = one_hot[:, used].to(self.device, torch.float64)  # (n, J)
        self.points_t = self.points.t().contiguous()  # (J, n)
        # K_t >= min(K, 1/V), so L logs are below 2^magnitude in sum, and on this grid any sum of them is exact.
        magnitude = math.ceil(math.log2(self.length * max(1.0, -math.log(float(kernel.min())))))
        self.log_bits = 52 - magnitude

    def log_weights(self, x: Tensor, t: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """log prod_i table[c_ni, x_i] over the positions that are not masked: (B, n) float64.

        table: (V, V), at least as large as the kernel's least; default K. With t, (B,) or (B, L), it is K_t.
        """
        if t is None:
            logs = on_grid((self.kernel if table is None else table).log(), self.log_bits).t()  # (V of x, V of centres)
            evidence = torch.cat([logs, torch.zeros_like(logs[:1])])[x]  # (B, L, V): a mask says nothing
        else:
            evidence = on_grid(self._noisy_kernel(x, per_position(t, x)).log(), self.log_bits)
        return evidence.flatten(1)[:, self.used] @ self.points_t  # (B, n), exact

    def posterior(self, x: Tensor, t: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(self.length, device=x.device)
        share = self._centre_shares(self.log_weights(x, t), positions)  # (B, P, V of centres)
        seen = x[:, positions]  # (B, P)
        if t is not None:
            level = per_position(t, x)[:, positions]  # (B, P)
            share = share / self._noisy_kernel(seen, level)
        p = self._shown(share)  # (B, P, V)
        if t is not None:
            keep = F.one_hot(seen, self.tokens)  # (B, P, V)
            return p * ((1 - level[..., None]) * keep + level[..., None] / self.tokens)
        known = F.one_hot(seen, self.tokens + 1)[..., : self.tokens].to(p.dtype)
        return torch.where(seen[..., None] == self.tokens, p, known)

    def _posterior_given(self, evidence: Tensor) -> Tensor:
        likelihood = evidence.exp()  # (B, L, V), the largest at each position 1
        # What a centre's grey says of the evidence. The largest likelihood is 1, so it is at least the kernel's least entry.
        of_centre = likelihood[..., :1] * self.kernel[:, 0]  # (B, L, V of centres)
        for v in range(1, self.tokens):
            of_centre = of_centre + likelihood[..., v : v + 1] * self.kernel[:, v]
        log_w = on_grid(of_centre.log(), self.log_bits).flatten(1)[:, self.used] @ self.points_t  # (B, n), exact
        share = self._centre_shares(log_w, torch.arange(self.length, device=evidence.device))
        return self._shown(share / of_centre) * likelihood

    def _centre_shares(self, log_w: Tensor, positions: Tensor) -> Tensor:
        """S_i(g) of centres of log weights (B, n), which need not be normalised: (B, P, V of centres)."""
        w = torch.exp(log_w - log_w.amax(1, keepdim=True))  # (B, n), the largest 1
        # A coarse grid makes the sum exact, so that dividing by it is the same in every batch; then the sum is 1 but
        # for that coarseness, so a grid of 2^-52 keeps all further sums exact.
        coarse = on_grid(w, 52 - math.ceil(math.log2(w.shape[1])))
        w = on_grid(w / coarse.sum(1, keepdim=True), 52)
        return self._shares(w, positions) / w.sum(1)[:, None, None]

    def _shown(self, share: Tensor) -> Tensor:
        """sum_g share[g] K[g, v]: (B, P, V of centres) -> (B, P, V)."""
        p = share[..., :1] * self.kernel[0]
        for g in range(1, self.tokens):  # one term after the other: the order of a matrix product is not ours to choose
            p = p + share[..., g : g + 1] * self.kernel[g]
        return p

    def _shares(self, w: Tensor, positions: Tensor) -> Tensor:
        """S_i(g): (B, n) -> (B, P, V). Exact sums, so leaving out zeros and positions changes no bit."""
        full = torch.zeros(len(w), self.length * self.tokens, dtype=w.dtype, device=w.device)  # (B, L V)
        alive = w.any(0).nonzero().squeeze(1)
        # Few visible pixels rule out most centres: their weight is 0 on the grid.
        if 2 * len(alive) < w.shape[1]:
            full[:, self.used] = w[:, alive] @ self.points[alive]
        elif 2 * len(positions) < self.length:
            columns = torch.isin(self.used_position, positions).nonzero().squeeze(1)  # (j,)
            full[:, self.used[columns]] = w @ self.points_t[columns].t()
        else:
            full[:, self.used] = w @ self.points
        return full.unflatten(1, (self.length, self.tokens))[:, positions]

    def _noisy_kernel(self, x: Tensor, t: Tensor) -> Tensor:
        """K_t[g, x] = (1 - t) K[g, x] + t / V for all g, at each position's x and t (B, P): (B, P, V)."""
        return (1 - t[..., None]) * self.kernel.t()[x] + t[..., None] / self.tokens

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of clean tokens under this distribution, exact: (B, L) int64 -> (B,) float64, nats."""
        return torch.logsumexp(self.log_weights(x, table=self.kernel), 1) - math.log(self.points.shape[0])


class Digits(Problem):
    """Handwritten digits. L = 64 tokens of 17 grey levels (the mask is 17), or reals (8, 8) scaled to [-1, 1].

    The distribution of the tokens is the empirical one, each pixel moved on its own by a kernel over grey levels: a narrow
    Gaussian that is discretised, and a small uniform part that gives every state a posterior and every sample an exact
    likelihood. The distribution of the reals is the mixture of 1797 Gaussians around the images.

    Args:
        grey_width: standard deviation of the kernel in grey levels.
        floor: weight of its uniform part, 1e-6 at least. At 0.001 one image in 17 has a pixel from it.
        width: standard deviation of the reals around an image; a grey level is 0.125.

    Scores: `mmd` (squared kernel distance to the exact distribution, Gaussian kernel of bandwidth 2 in [-1, 1] pixels, in units
    of the distribution's own E k(Y, Y'); its floor is the mean of exact samples), `nll` (nats per pixel; a sampler that returns
    only likely images is below the truth, which is the distribution's entropy), and `entropy` of the tokens' frequencies. Plots
    use `mmd`.
    """

    name = "digits"
    families = ("masked", "uniform", "gaussian")
    figure_columns = 4
    summary = "scikit-learn's 8 x 8 handwritten digits as tokens or reals, with exact likelihoods"
    length = 64
    tokens = GREYS
    primary = {"masked": "mmd", "uniform": "mmd", "gaussian": "mmd"}
    bandwidth = 2.0

    def __init__(self, grey_width: float = 0.5, floor: float = 1e-3, width: float = 0.08):
        for option, value in (("grey_width", grey_width), ("width", width)):
            if not 0 < value < math.inf:
                raise OptionError(f"problem 'digits': {option} must be positive, not {value!r}")
        if not 1e-6 <= floor <= 1:
            raise OptionError(f"problem 'digits': floor must be in [1e-6, 1], not {floor!r}")
        self.grey_width, self.floor, self.width = grey_width, floor, width
        self.images = digit_images()  # (1797, 64) int64
        self.kernel = grey_kernel(grey_width, floor)  # (17, 17)
        self._exact_kernel: dict[str, float] = {}
        self._entropies: dict[str, float] = {}
        self._tokens: KernelTokens | None = None

    # denoisers

    def _masked(self, device: torch.device | str = "cpu") -> KernelTokens:
        return KernelTokens(self.images, self.kernel, "masked", device=device, name="digits/masked")

    def _uniform(self, device: torch.device | str = "cpu") -> KernelTokens:
        return KernelTokens(self.images, self.kernel, "uniform", device=device, name="digits/uniform")

    def _gaussian(
        self,
        schedule: str | NoiseSchedule = "vp_linear",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> FiniteGaussian:
        return FiniteGaussian(
            self.to_reals(self.images).flatten(1),
            (8, 8),
            unit=0.125,
            width=self.width,
            schedule=schedule,
            dtype=dtype,
            device=device,
            name="digits/gaussian",
        )

    def real_tokens(self, patch: int = 2) -> RealTokens:
        """The exact model of the reals as (8 / patch)^2 tokens, each a square of patch^2 pixels, for sample_reals.

        Given what is known, image n weighs w_n in proportion to the product of N(x_i; c_ni, width^2) over known i. A further
        position is the mixture of the Gaussians around its part of each image; the head is the exact mean of that mixture under
        noise.

        Args:
            patch: 1, 2, 4 or 8 pixels.
        """
        if patch not in (1, 2, 4, 8):
            raise OptionError(f"patch must be 1, 2, 4 or 8, which divide the 8 pixels of a side, not {patch!r}")
        parts = self.to_patches(self.to_reals(self.images), patch)  # (n, L, d) float64
        length, width, variance = parts.shape[1], parts.shape[2], self.width**2
        schedule = noise_schedule("vp_linear")

        flat = parts.flatten(1)  # (n, 64)

        def network(values: Tensor, known: Tensor) -> Tensor:
            seen = known[..., None].expand(values.shape).flatten(1).to(torch.float64)  # (B, 64)
            x = values.to(torch.float64).flatten(1) * seen
            squares = (x**2).sum(1, keepdim=True) - 2 * x @ flat.t() + seen @ (flat**2).t()  # (B, n)
            log_w = -squares / (2 * variance)
            number = torch.arange(length, dtype=torch.float64, device="cpu")
            each = log_w[:, None].expand(-1, length, -1)  # (B, L, n)
            return torch.cat([each, number[None, :, None].expand(len(values), -1, 1)], 2)

        def head(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
            alpha, sigma = (f(t.to(torch.float64))[:, None] for f in (schedule.alpha, schedule.sigma))
            spread, position = alpha**2 * variance + sigma**2, z[:, -1]  # (N, 1), (N,)
            mean = torch.empty(x.shape, dtype=torch.float64, device="cpu")
            for p in position.unique().tolist():
                here, centres = position == p, parts[:, int(p)]  # (N,) bool, (n, d)
                a = alpha[here]
                fit = (a * (x[here].to(torch.float64) @ centres.t()) - a**2 * (centres**2).sum(1) / 2) / spread[here]
                mean[here] = (z[here, :-1] + fit).softmax(1) @ centres
            return (mean + alpha * variance / spread * (x - alpha * mean)).to(x.dtype)

        return RealTokens(
            network,
            head,
            length=length,
            width=width,
            schedule=schedule,
            prediction="x0",
            dtype=torch.float64,
            name=f"digits in patches of {patch}",
        )

    @staticmethod
    def to_patches(x: Tensor, patch: int) -> Tensor:
        """Pictures (n, 8, 8) as tokens (n, (8 / patch)^2, patch^2), row by row; `from_patches` is the way back."""
        parts = x.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # (n, rows, patch, columns, patch)
        return parts.transpose(2, 3).flatten(3).flatten(1, 2)

    @staticmethod
    def from_patches(x: Tensor) -> Tensor:
        """Tokens (n, (8 / patch)^2, patch^2) as pictures (n, 8, 8)."""
        side, patch = math.isqrt(x.shape[1]), math.isqrt(x.shape[2])
        return x.unflatten(2, (patch, patch)).unflatten(1, (side, side)).transpose(2, 3).flatten(3).flatten(1, 2)

    @staticmethod
    def to_reals(x: Tensor) -> Tensor:
        """Grey levels (n, 64) as reals in [-1, 1]: (n, 8, 8) float64."""
        return (x.to(torch.float64) / 8 - 1).unflatten(1, (8, 8))

    @staticmethod
    def decode(x: Tensor) -> Tensor:
        """Reals (n, 8, 8) to the nearest grey levels (n, 64) int64; tokens are left alone."""
        if not x.is_floating_point():
            return x
        return ((x.flatten(1) + 1) * 8).round().clamp(0, GREYS - 1).to(torch.int64)

    # the distribution

    def token_denoiser(self) -> KernelTokens:
        """The denoiser that scores use, made once."""
        if self._tokens is None:
            self._tokens = self._masked()
        return self._tokens

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) / 64, exact: tokens (n, 64) int64, or reals (n, 8, 8) -> (n,) float64, nats per pixel."""
        if not x.is_floating_point():
            return torch.cat([-self.token_denoiser().log_prob(part) for part in x.split(512)]) / 64
        squares = self._squared_distances(x, self.images)  # (n, 1797)
        log_p = torch.logsumexp(-squares / (2 * self.width**2), 1) - math.log(len(self.images))
        return -(log_p - 32 * math.log(2 * math.pi * self.width**2)) / 64

    def estimate_entropy(self, n: int = 100_000, seed: int = 1, family: str = "masked") -> tuple[float, float]:
        """The distribution's entropy per pixel in nats, as the mean NLL of n exact samples, and its standard error."""
        values = torch.cat([self.nll(x) for x in self.sample_truth(n, seed, family).split(4096)])
        return float(values.mean()), float(values.std()) / math.sqrt(n)

    def _entropy(self, family: str) -> float:
        kind = "gaussian" if family == "gaussian" else "tokens"
        if kind not in self._entropies:
            default = (self.width,) == (0.08,) if kind == "gaussian" else (self.grey_width, self.floor) == (0.5, 1e-3)
            known = _ENTROPY.get(kind) if default else None
            self._entropies[kind] = (known or self.estimate_entropy(8192, family=family))[0]
        return self._entropies[kind]

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        pick = (truth_uniforms(n, seed, 1, step=1)[:, 0] * len(self.images)).to(torch.int64)  # (n,)
        centres = self.images[pick]  # (n, 64)
        if family == "gaussian":
            noise = truth_normals(n, seed, 64).unflatten(1, (8, 8))
            return (self.to_reals(centres) + self.width * noise).to(torch.float32)  # (n, 8, 8)
        cdf = self.kernel.cumsum(1)  # (17, 17)
        u = truth_uniforms(n, seed, 64)  # (n, 64)
        return torch.searchsorted(cdf[centres], u[..., None], right=True).squeeze(-1).clamp_max(GREYS - 1)

    # scores

    def _score(self, x: Tensor, family: str) -> Score:
        if family == "gaussian":
            check_reals(x, (8, 8), "digits score")
            x = x.to(torch.float64)
            pairs, to_exact, exact = self._real_kernel(x)
        else:
            check_tokens(x, 64, GREYS, None, "digits score")
            pairs, to_exact, exact = self._token_kernel(x)
        estimates = {
            "mmd": kernel_estimate(pairs, to_exact, exact, 1.0, scale=exact),
            "nll": mean_estimate(self.nll(x), truth=self._entropy(family)),
        }
        if family != "gaussian":
            freq = (
                F.one_hot(self.images, GREYS).to(torch.float64).mean((0, 1)) @ self.kernel
            )  # (17,), the distribution's own
            estimates["entropy"] = entropy_of_tokens(x, GREYS, float(-(freq * freq.log()).sum()))
        return Score(estimates, problem=self.name, family=family, primary=self.primary[family])

    def _token_kernel(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """k(x_i, x_j), E k(x_i, Y) and E k(Y, Y') for k = exp(-|x - y|^2 / 2 h^2): closed forms, pixel by pixel."""
        level = torch.arange(GREYS, dtype=torch.float64, device="cpu")
        k = torch.exp(-(((level[:, None] - level[None]) / 8) ** 2) / (2 * self.bandwidth**2))  # (17, 17)
        denoiser, n = self.token_denoiser(), len(self.images)
        to_exact = torch.cat(
            [torch.logsumexp(denoiser.log_weights(part, table=self.kernel @ k), 1) for part in x.split(512)]
        )  # (n,)
        if "tokens" not in self._exact_kernel:
            both = self.kernel @ k @ self.kernel.t()
            self._exact_kernel["tokens"] = (
                sum(float(denoiser.log_weights(part, table=both).exp().sum()) for part in self.images.split(512)) / n**2
            )
        return self._pairs(self.to_reals(x)), (to_exact - math.log(n)).exp(), self._exact_kernel["tokens"]

    def _real_kernel(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """The same for Gaussians around the centres: a kernel of bandwidth h meets noise of width s at h^2 + s^2."""
        h2, s2 = self.bandwidth**2, self.width**2
        squares = self._squared_distances(x, self.images)
        to_exact = (h2 / (h2 + s2)) ** 32 * torch.exp(-squares / (2 * (h2 + s2))).mean(1)  # (n,)
        if "gaussian" not in self._exact_kernel:
            squares = self._squared_distances(self.to_reals(self.images), self.images)
            self._exact_kernel["gaussian"] = (h2 / (h2 + 2 * s2)) ** 32 * float(
                torch.exp(-squares / (2 * (h2 + 2 * s2))).mean()
            )
        return self._pairs(x), to_exact, self._exact_kernel["gaussian"]

    def _pairs(self, reals: Tensor) -> Tensor:
        flat = reals.flatten(1)  # (n, 64)
        norms = (flat**2).sum(1)
        squares = norms[:, None] + norms[None] - 2 * flat @ flat.t()
        return torch.exp(-squares.clamp_min(0) / (2 * self.bandwidth**2))  # (n, n)

    def _squared_distances(self, x: Tensor, images: Tensor) -> Tensor:
        flat, centres = x.to(torch.float64).flatten(1), self.to_reals(images).flatten(1)
        squares = (flat**2).sum(1)[:, None] + (centres**2).sum(1)[None] - 2 * flat @ centres.t()
        return squares.clamp_min(0)  # (n, 1797)

    # pictures

    def picture(self, x: Tensor, k: int = 8) -> list[np.ndarray]:
        """The first k images, ink on white, each pixel 4 x 4 screen pixels: uint8 (32, 32, 3); masked pixels are blue."""
        x = x.detach().cpu()[:k]
        pictures = []
        for row in x:
            if row.is_floating_point():
                ink = ((row.reshape(8, 8).to(torch.float64) + 1) / 2).clamp(0, 1)
            else:
                ink = row.reshape(8, 8).to(torch.float64).clamp(0, 16) / 16
            image = (255 * (1 - ink)).round().to(torch.uint8)[..., None].repeat(1, 1, 3).numpy()  # (8, 8, 3)
            if not row.is_floating_point():
                image[(row.reshape(8, 8) >= GREYS).numpy()] = (170, 200, 235)
            pictures.append(image.repeat(4, 0).repeat(4, 1))
        return pictures

    @staticmethod
    def render(x_row: Tensor) -> str:
        """Eight lines of sixteen characters, darker for more ink, '··' at masks."""
        row = Digits.decode(x_row.detach().cpu()[None])[0].tolist()
        shades = " .:-=+*#%@"
        marks = ["··" if v >= GREYS else 2 * shades[v * len(shades) // GREYS] for v in row]
        return "\n".join("".join(marks[8 * r : 8 * r + 8]) for r in range(8))
