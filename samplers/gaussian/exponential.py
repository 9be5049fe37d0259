"""Exponential integrators: the exact integral of a polynomial through known values. All solvers in lambda share it.

With h = lambda_t - lambda_s, the ODE from a point s to a point t is, exactly (Lu et al. 2022, arXiv 2211.01095, eq. 8, and
arXiv 2206.00927, eq. 3.4),

    in data form    x_t = (s_t / s_s) x_s + a_t int_0^h e^{u - h} x0(lambda_s + u) du,
    in noise form   x_t = (a_t / a_s) x_s - s_t int_0^h e^{h - u} e(lambda_s + u) du.

A solver puts a polynomial through known values m_j at lambda_s + o_j in the place of x0(.) or e(.). The functions here give
the weights of such integrals, in float64, and without cancellation if h is small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..noise_schedules import Point
from ..ops import combine

__all__ = [
    "exponential_weights",
    "growth_of",
    "growth_of_equal_steps",
    "integral_weights",
    "lagrange_weights",
    "noise_of",
    "polynomial_weights",
    "scaled_phi",
    "weighted_step",
]


def weighted_step(
    x: Tensor,
    x0: Tensor,
    s: Point,
    t: Point,
    latest: Tensor | None = None,
    others: Sequence[tuple[float, Tensor]] = (),
    weights: Sequence[float] = (),
) -> Tensor:
    """x_t = (s_t / s_s) x_s + a_t (1 - e^{-h}) x_0 + sum_j w_j (m_j - m_s); without others DDIM's step, exact for a constant x_0.

    Finite where an alpha is 0, so that h is not.

    Args:
        x, x0: (B, *shape), at s.
        latest: m_s, (B, *shape); if None, x0.
        others: (lambda, m_j) of each weight.
    """
    h = t.lam - s.lam
    # Going up in noise e^{-h} may overflow where alpha_t is tiny or 0; the second form loses digits at small h only.
    share = -t.alpha * math.expm1(-h) if h > -30 else t.alpha - t.sigma * s.alpha / s.sigma
    total = math.fsum(weights)
    terms: list[Any] = [x, t.sigma / s.sigma, x0, share - total if latest is None or latest is x0 else share]
    if weights and latest is not None and latest is not x0:
        terms += [latest, -total]
    for weight, (_, value) in zip(weights, others):
        terms += [value, weight]
    out = combine(*terms[:10])  # it takes five tensors
    for k in range(10, len(terms), 8):
        out = combine(out, 1.0, *terms[k : k + 8])
    return out


def noise_of(x: Tensor, x0: Tensor, s: Point) -> Tensor:
    """The noise e of x = alpha x_0 + sigma e."""
    return combine(x, 1 / s.sigma, x0, -s.alpha / s.sigma)


def exponential_weights(
    s: Point, t: Point, lams: Sequence[float], *, prediction: str = "x0", rule: str = "exact"
) -> tuple[float, list[float]]:
    """The weights of `weighted_step` from s to t.

    Args:
        lams: lambda of each m_j: distinct, finite, and other than that of s.
        prediction: "x0" or "noise": what the m_j are, and what is interpolated.
        rule: see `integral_weights`.

    Returns:
        The weight of a constant m, and the weights w_j.
    """
    # With h and all offsets negated, the integral of the noise form is the one of the data form, but for its sign.
    sign, scale = (1.0, t.alpha) if prediction == "x0" else (-1.0, t.sigma)
    h = sign * (t.lam - s.lam)
    weights = integral_weights(h, [sign * (lam - s.lam) for lam in lams], rule)
    return -scale * math.expm1(-h), [scale * w for w in weights]


def integral_weights(h: float, offsets: Sequence[float], rule: str = "exact") -> list[float]:
    """The weights w_j in int_0^h e^{u - h} m(u) du = (1 - e^{-h}) m_0 + sum_j w_j (m_j - m_0).

    m is the polynomial through m_0 at 0 and the m_j at the offsets.

    Args:
        h: the length of the step, finite, of either sign.
        rule: "exact" integrates the polynomial. If there is one offset, "midpoint" and "linear" take (1 - e^{-h}) / 2 and
            h / 2 for the integral of u / h: DPM-Solver's formula, which is UniPC's with B_2, and UniPC's with B_1. If there
            are two, "half" takes half of the second derivative, as DPM-Solver's code does and others after it.
    """
    if rule in ("midpoint", "linear") and len(offsets) == 1:
        return [(h if rule == "linear" else -math.expm1(-h)) / 2 * h / offsets[0]]
    moments = [h ** (k + 1) / (k + 1) * scaled_phi(k + 1, -h) for k in range(len(offsets) + 1)]
    weights = lagrange_weights([0.0, *offsets], moments)[1:]
    if rule == "half" and len(offsets) == 2:
        a, b = offsets
        half = (
            h**3 / 6 * scaled_phi(3, -h)
        )  # times the divided difference m_0 / ab + m_a / (a (a - b)) + m_b / (b (b - a))
        weights = [weights[0] - half / (a * (a - b)), weights[1] - half / (b * (b - a))]
    return weights


def polynomial_weights(h: float, offsets: Sequence[float]) -> list[float]:
    """The weights w_j in int_0^h m(u) du = h m_0 + sum_j w_j (m_j - m_0): Adams-Bashforth on any steps."""
    moments = [h ** (k + 1) / (k + 1) for k in range(len(offsets) + 1)]
    return lagrange_weights([0.0, *offsets], moments)[1:]


def scaled_phi(k: int, z: float) -> float:
    """k! phi_k(z) = k int_0^1 e^{(1 - u) z} u^{k - 1} du, k >= 1; at z = 0 it is 1.

    The usual recursion phi_{k+1} = (phi_k - 1 / k!) / z loses all digits at small z. Both series here have terms of one sign,
    and lose none: sum_j k! z^j / (j + k)!, and for z < 0, e^z sum_j (-z)^j k / (j! (j + k)).
    """
    if z < -40:  # the series would have many terms, and the recursion is accurate
        value = -math.expm1(z) / -z
        for j in range(1, k):
            value = (1 - value) * (j + 1) / -z
        return value
    term, total, j = 1.0, 1.0, 0
    while term > 1e-17 * total:
        j += 1
        term *= z / (j + k) if z > 0 else -z / j * (j + k - 1) / (j + k)
        total += term
    return total if z > 0 else math.exp(z) * total


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights of values at `nodes` in the integral of the polynomial through them.

    Args:
        moments: the integrals of 1, u, u^2, ...
    """
    weights = []
    for j, node in enumerate(nodes):
        c = [1.0]  # the coefficients of the polynomial that is 1 at this node and 0 at the others
        for other in (*nodes[:j], *nodes[j + 1 :]):
            scaled = [value / (node - other) for value in c]
            c = [up - other * same for up, same in zip([0.0, *scaled], [*scaled, 0.0])]
        weights.append(math.fsum(a * b for a, b in zip(c, moments)))
    return weights


def growth_of(weights: Sequence[float]) -> float:
    """How much a weighted sum of predictions enlarges errors in them: sum |w| / |sum w|."""
    return math.fsum(map(abs, weights)) / abs(math.fsum(weights))


@functools.cache
def growth_of_equal_steps(count: int, first: float = 0.0) -> float:
    """The same of the polynomial through `count` values, one step apart, in the limit of short steps: Adams' weights.

    Args:
        first: where the latest value is, in steps: 0 at the step's beginning, 1 at its end.
    """
    nodes = [first - k for k in range(count)]
    return growth_of(lagrange_weights(nodes, [1 / (k + 1) for k in range(count)]))
