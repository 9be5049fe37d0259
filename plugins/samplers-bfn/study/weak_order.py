"""The weak orders of SDE-BFN-Solver 1 and 2 on one token of two classes, where the network is no linear function, without draws.

    python study/weak_order.py           # some two minutes of one core

Only the difference d of the two logits matters. The expectation of a function of the final d, given d and the d before it, is
carried back step by step, by splines over d and Gauss-Hermite quadrature of the step's normal. The truth is the same
expectation under the exact mixture of two normals.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit

PRIOR, BETA_1, ETA, K = 0.3, 4.0, 0.05, 2
GRID = np.linspace(-45, 45, 361)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
LOG_ODDS = math.log(PRIOR / (1 - PRIOR))


def spread(d: np.ndarray) -> np.ndarray:
    """p_1 - p_2, the exact answer."""
    return 2 * expit(d + LOG_ODDS) - 1


def scored(d: np.ndarray) -> np.ndarray:
    """The function whose mean is compared."""
    return expit(d + LOG_ODDS) ** 2


def exact_mean(beta: float, of: Callable[[np.ndarray], np.ndarray]) -> float:
    """Under the exact distribution of d at accuracy beta: normals of means +-K beta and variance 2 K beta."""
    d, variance = np.linspace(-60, 60, 200_001), 2 * K * beta
    density = sum(
        p * np.exp(-((d - sign * K * beta) ** 2) / (2 * variance)) for p, sign in ((PRIOR, 1), (1 - PRIOR, -1))
    )
    return float(np.trapezoid(density * of(d), d) / math.sqrt(2 * math.pi * variance))


def solver_mean(steps: int, order: int) -> float:
    """Of the solver's final d, from the exact distribution at time ETA on."""
    times = (1 - ETA) * (1 - np.arange(steps + 1) / steps)
    betas = BETA_1 * (1 - times) ** 2
    value = np.repeat(scored(GRID)[:, None], len(GRID), 1)  # of (d, the d before)
    for i in range(steps - 1, -1, -1):
        s, t, gain = times[i], times[i + 1], betas[i + 1] - betas[i]
        line = order == 2 and i > 0
        bend = K * BETA_1 * (t - s) ** 2 * (s + 2 * t - 3) / (3 * (times[i - 1] - s)) if line else 0.0
        before = np.empty_like(value)
        for k, d in enumerate(GRID):
            past = spread(GRID) if line else spread(GRID[k : k + 1])
            mean = d + gain * K * spread(d) + bend * (past - spread(d))
            ends = np.clip(mean[:, None] + math.sqrt(2 * K * gain) * NODES, GRID[0], GRID[-1])
            before[k] = CubicSpline(GRID, value[:, k])(ends) @ WEIGHTS / WEIGHTS.sum()
        value = before
    first = CubicSpline(GRID, value[:, 0])
    return exact_mean(float(betas[0]), lambda d: first(np.clip(d, GRID[0], GRID[-1])))


def main() -> None:
    truth = exact_mean(BETA_1, scored)
    for order in (1, 2):
        errors = [abs(solver_mean(steps, order) - truth) for steps in (8, 16, 32, 64)]
        slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
        print(f"SDE-BFN-Solver{order}: errors", *(f"{e:.2e}" for e in errors), "orders", *(f"{o:.2f}" for o in slopes))


if __name__ == "__main__":
    main()
