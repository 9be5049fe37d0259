"""kl_divergence: how far rows of logits have moved from other rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.ops._check import check_inside, check_rows, check_vector, explain_errors

OP = "kl_divergence"
# Logits that are worked on together, in float64: on a CPU few enough for its caches, elsewhere for its memory.
CHUNK_CPU, CHUNK_DEVICE = 1 << 19, 1 << 25


@explain_errors
def kl_divergence(logits: Tensor, other: Tensor, other_lse: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """KL(softmax(logits_i) || softmax(other_j)) in nats for each row i, j = index[i], and log sum exp of logits_i.

    The arithmetic is float64, a few rows at a time, so no (N, V) float64 tensor is made. Rows do not depend on each other,
    bit for bit. A token that is impossible now adds nothing to the sum; one that is possible now and was impossible before
    makes it inf.

    Args:
        logits: (N, V) float32, bfloat16, float16 or float64.
        other: (M, V), the logits to compare with, M > 0, on the same device.
        other_lse: (M,) float64, log sum exp of each row of `other`: what an earlier call returned for these rows.
        index: (N,) int64 below M, the row of `other` for each row of `logits`; below 0: none, its divergence is inf.

    Returns:
        The divergences, (N,) float64, and log sum exp of each row of `logits`, (N,) float64.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape or a device is. IndexError: an index is M or more (on a device, where
        that would take a sync: taken as M - 1).
    """
    _check(logits, other, other_lse, index)
    vocab = logits.shape[1]
    rows = max(1, (CHUNK_CPU if logits.device.type == "cpu" else CHUNK_DEVICE) // vocab)
    parts = [(other_lse[:0], other_lse[:0])]
    for begin in range(0, len(logits), rows):
        l = logits[begin : begin + rows].to(torch.float64, copy=True)  # (rows, V): worked on in place
        from_ = index[begin : begin + rows].clamp(0, len(other) - 1)
        most = l.amax(1)  # (rows,)
        weight = (l - most[:, None]).exp_()  # (rows, V)
        total = row_sum(weight)
        here = most + total.log()
        # 0 times inf, or inf - inf: a token that is impossible now adds nothing. One that no longer is: inf.
        gap = weight.mul_(l.sub_(other[from_])).nan_to_num_(0.0, torch.inf)
        parts.append((row_sum(gap) / total - here + other_lse[from_], here))
    divergence, lse = (torch.cat(p) for p in zip(*parts))
    return torch.where(index < 0, torch.inf, divergence), lse


def row_sum(x: Tensor) -> Tensor:
    """The sum of each row of x (N, V), (N,): in an order that depends on V alone.

    torch's own sum may cut a row in pieces if there are few rows, and then rounds differently than in a larger batch.
    """
    while x.shape[1] > 1:
        half, odd = divmod(x.shape[1], 2)
        last = x[:, -1:]
        x = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([x, last], 1) if odd else x
    return x[:, 0]


def _check(logits: Tensor, other: Tensor, other_lse: Tensor, index: Tensor) -> None:
    check_rows(OP, logits, "logits")
    check_rows(OP, other, "other")
    device = logits.device
    if logits.shape[1] == 0:
        raise ValueError(f"{OP}: logits have no columns: shape {tuple(logits.shape)}, expected (N, V) with V >= 1")
    if other.shape[1] != logits.shape[1] or len(other) == 0:
        raise ValueError(f"{OP}: other has shape {tuple(other.shape)}, expected (M, {logits.shape[1]}) with M >= 1")
    if other.device != device:
        raise ValueError(f"{OP}: other is on {other.device}, logits on {device}; expected the same")
    check_vector(OP, other_lse, "other_lse", torch.float64, len(other), device)
    check_vector(OP, index, "index", torch.int64, len(logits), device)
    if device.type == "cpu":
        check_inside(OP, index.clamp(min=0), len(other), "index", "rows of other")
