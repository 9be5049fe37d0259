"""What a run's parallel decoding was: tokens per forward pass, when each token became final, and in which order.

    out = samplers.sample(denoiser, "threshold", batch=200, trace=True)
    tokens_per_pass(out).mean(), order_tau(out)

All but `tokens_per_pass` read Sample.trace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import OptionError, SamplersError
from .problems.base import Estimate
from .random import uniform
from .result import Sample

__all__ = ["effective_tokens", "final_stable_step", "order_tau", "tokens_per_pass"]

RESAMPLES = 2000


def _filled(sample: Sample) -> Tensor:
    """(B, L) bool: the positions that the run had to fill, within each row's own length."""
    if sample.fill is None or sample.lengths is None:
        raise OptionError(f"a run of tokens is needed; {sample.sampler!r} made reals")
    inside = torch.arange(sample.x.shape[1], device=sample.x.device) < sample.lengths[:, None]
    return sample.fill & inside


def tokens_per_pass(sample: Sample) -> Tensor:
    """Tokens that each row was filled with, per forward pass that the row took part in: (B,) float64.

    Raises:
        OptionError: the run made reals.
    """
    return _filled(sample).sum(1).to(torch.float64) / sample.nfe_rows.to(sample.x.device)


def final_stable_step(sample: Sample) -> Tensor:
    """The first step from which on each position never changes, steps counted from 1; 0 if it never changed: (B, L) int64.

    A position that is masked anew or rewritten is stable only from the last such change.

    Raises:
        OptionError: the run made reals, or positions were put in during it, so that a position's number changes.
        SamplersError: it kept no trace.
    """
    if sample.trace is None:
        raise SamplersError("this run kept no trace of its steps: use sample(..., trace=True)")
    _filled(sample)
    if any(state.x.shape != sample.x.shape for state in sample.trace):
        raise OptionError(
            f"the canvas of this run of {sample.sampler!r} grew from {sample.trace[0].x.shape[1]} to {sample.x.shape[1]} "
            "positions: what stands at a position has moved, so no step can be named from which on it never changes"
        )
    x = torch.stack([state.x for state in sample.trace])  # (steps + 1, B, L)
    changed = x[1:] != x[:-1]
    number = torch.arange(1, len(x), dtype=torch.int64, device=x.device)[:, None, None]
    return (changed * number).amax(0) if len(x) > 1 else torch.zeros_like(sample.x)


def effective_tokens(sample: Sample) -> Tensor:
    """How many of the filled positions became final in each step: (B, steps) int64.

    Each row adds up to what was filled, less the positions that never changed: under uniform noise a token may stand there from
    the beginning.

    Raises:
        As final_stable_step.
    """
    step = final_stable_step(sample)
    steps = len(sample.trace or ()) - 1
    counts = torch.zeros(len(step), steps + 1, dtype=torch.int64, device=step.device)
    return counts.scatter_add_(1, step, _filled(sample).to(torch.int64))[:, 1:]


def order_tau(sample: Sample, seed: int = 0) -> Estimate:
    """Kendall's tau_b of position against final stable step, the mean over rows: 1 is from left to right, -1 from right to left.

    tau_b = (concordant - discordant) / sqrt(pairs * (pairs - ties)); positions have no ties, steps do: all that become final in
    one step. Rows of which all is final at once have no tau_b and are left out. The interval holds 95 % of the means of
    2,000 bootstrap resamples of the rows.

    Args:
        seed: of the resamples.

    Returns:
        An Estimate, n the number of rows that have a tau_b; NaN if there is none.

    Raises:
        As final_stable_step.
    """
    step, fill = final_stable_step(sample).cpu(), _filled(sample).cpu()
    rows = max(1, (1 << 22) // step.shape[1] ** 2)
    tau = torch.cat([_tau_b(*part) for part in zip(step.split(rows), fill.split(rows))])
    tau = tau[~tau.isnan()]
    n = len(tau)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "higher")
    draw, row = torch.arange(RESAMPLES, device="cpu")[:, None], torch.arange(n, device="cpu")[None]
    means = tau[(uniform(seed, draw, row, 0, 0) * n).to(torch.int64)].mean(1)  # (RESAMPLES,)
    ends = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu"))
    return Estimate(float(tau.mean()), float(ends[0]), float(ends[1]), n, "higher")


def _tau_b(step: Tensor, fill: Tensor) -> Tensor:
    """(B,) float64, NaN without two steps: tau_b of the order of positions against `step`, over the positions of `fill`."""
    later = torch.sign(step[:, None, :] - step[:, :, None])  # (B, L, L): of the second position against the first
    pairs = (fill[:, None, :] & fill[:, :, None]).triu(1)
    agree = (later * pairs).sum((1, 2)).to(torch.float64)
    untied = ((later != 0) & pairs).sum((1, 2)).to(torch.float64)
    return agree / torch.sqrt(pairs.sum((1, 2)) * untied)
