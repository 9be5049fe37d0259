"""Moments of x_0 given x_t, each coordinate by itself: its mean, its variance and its third central moment.

Given x_t, the density of x_0 is p(x_0) exp(u x_0 - alpha^2 x_0^2 / 2 sigma^2) up to a factor, with u = alpha x_t / sigma^2: an
exponential family. The derivatives of the logarithm of that factor by u are the cumulants of x_0. The first is the denoised x_0,
so derivatives of that are the next ones (Tweedie's formula, carried on; the third cumulant is the third central moment):

    variance  (sigma^2 / alpha) d E[x_0 i] / d x_i             third  (sigma^2 / alpha)^2 d^2 E[x_0 i] / d x_i^2
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import DenoiserError

__all__ = ["Moments", "central", "differentiated"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of each coordinate of x_0 given x_t.

    Attributes:
        mean: (B, *shape), the denoised x_0.
        variance: (B, *shape), 0 or more; None if only the mean was asked for (order 1).
        third: (B, *shape), E (x_0 - mean)^3; None below order 3.
    """

    mean: Tensor
    variance: Tensor | None = None
    third: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Moments:
        """The same with `change` applied to each moment that there is."""
        kept = (None if m is None else change(m) for m in (self.mean, self.variance, self.third))
        return Moments(*kept)  # type: ignore[arg-type]


def central(powers: Sequence[Tensor]) -> Moments:
    """The moments of z of which E z, E z^2 and E z^3 are known, or the first one or two. A negative variance counts as 0."""
    mean = powers[0]
    variance = (powers[1] - mean**2).clamp_min(0) if len(powers) > 1 else None
    third = powers[2] - 3 * mean * powers[1] + 2 * mean**3 if len(powers) > 2 else None
    return Moments(mean, variance, third)


def differentiated(
    denoise: Callable[[Tensor], Tensor],
    x: Tensor,
    factor: Any,
    order: int,
    probes: int | None,
    signs: Callable[[int], Tensor],
) -> Moments:
    """The moments of x_0 given x, by backward passes through the denoised x_0.

    Exactly, a coordinate takes one backward pass for its variance, and one more, back through the first, for its third moment.
    A probe does it for all coordinates at once: with J the Jacobian of x_0 and u, v independent random signs, u * (J u) has the
    mean diag J (Hutchinson's estimate), and u * v * (d(J u) / dx v) has the mean d^2 x_0 i / dx_i^2. Its noise comes from the
    other coordinates: a probe is exact if they are independent.

    Args:
        denoise: x (B, *shape) -> x_0 of the same shape, through torch operations on x.
        factor: sigma^2 / alpha, a number or (B, 1, ...).
        order: 2 or 3.
        probes: how many; None: exactly.
        signs: signs(k): (B, *shape) of +1 and -1, number k of this call, for the probes.

    Raises:
        DenoiserError: x_0 does not depend on x through torch operations.
    """
    # Fused attention has no second derivative.
    plain = contextlib.nullcontext() if order < 3 else sdpa_kernel(SDPBackend.MATH)
    with torch.enable_grad(), plain:
        inside = x.detach().clone().requires_grad_()
        mean = denoise(inside)
        if not mean.requires_grad:
            raise DenoiserError(
                "x_0 does not depend on x through torch operations that keep gradients (a model under torch.no_grad, or outside "
                "of torch), so it cannot be differentiated: give its moments, GaussianDenoiser.wrap(..., moments=...)"
            )
        jacobian, second = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(x[0].numel() if probes is None else probes):
            u, v = (_unit(x, k),) * 2 if probes is None else (signs(2 * k), signs(2 * k + 1))
            slope = _slope(mean, u, inside, again=order > 2)
            jacobian += u * slope.detach()
            if order > 2:
                second += u * v * _slope(slope, v, inside, again=False)
    share = 1.0 if probes is None else 1 / probes
    variance = (factor * share * jacobian).clamp_min(0)
    return Moments(mean.detach(), variance, factor**2 * share * second if order > 2 else None)


def _slope(of: Tensor, weight: Tensor, x: Tensor, again: bool) -> Tensor:
    """The gradient of (of * weight).sum() by x. again: it can be differentiated in its turn."""
    if not of.requires_grad:  # x_0 is linear in x, so its slope is constant
        return torch.zeros_like(x)
    total = (of * weight).sum()
    (out,) = torch.autograd.grad(total, x, retain_graph=True, create_graph=again, allow_unused=True)
    return torch.zeros_like(x) if out is None else out


def _unit(x: Tensor, k: int) -> Tensor:
    """(1, *shape): 1 at coordinate k, else 0."""
    out = torch.zeros_like(x[:1])
    out.view(-1)[k] = 1
    return out
