"""combine: a linear combination of up to five tensors in one pass, the step of most continuous solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.ops._check import explain_errors
from samplers.ops._register import register

NAME = "combine"
SCHEMA = (
    "combine(Tensor a, float ca, Tensor? b, float cb, Tensor? c, float cc, Tensor? d, float cd, Tensor? e, float ce) "
    "-> Tensor"
)


@explain_errors
def combine(
    a: Tensor,
    ca: float,
    b: Tensor | None = None,
    cb: float = 0.0,
    c: Tensor | None = None,
    cc: float = 0.0,
    d: Tensor | None = None,
    cd: float = 0.0,
    e: Tensor | None = None,
    ce: float = 0.0,
) -> Tensor:
    """ca a + cb b + ..., from left to right, each product and each sum rounded: the bits of `ca * a + cb * b + ...`.

    Where a gradient is wanted it is torch's own arithmetic.

    Args:
        a, b, c, d, e: tensors, float32 or float64, of one shape, dtype and device; those that are None come last.
        ca, cb, cc, cd, ce: their factors.

    Returns:
        A new tensor of their shape and dtype.

    Raises:
        ValueError, TypeError: several shapes, dtypes or devices, a dtype of 16 bits, a None before a tensor.
    """
    tensors = [t for t in (a, b, c, d, e) if t is not None]
    for name, t in zip("abcde", (a, b, c, d, e)[: len(tensors)]):
        if not isinstance(t, Tensor):
            raise TypeError(f"{NAME}: {name} is {type(t).__name__}, expected a tensor; those that are None come last")
        if t.dtype not in (torch.float32, torch.float64) or t.dtype != a.dtype:
            raise TypeError(f"{NAME}: {name} is {t.dtype}, expected float32 or float64, the same for all")
        if t.shape != a.shape or t.device != a.device:
            raise ValueError(
                f"{NAME}: {name} has shape {tuple(t.shape)} on {t.device}, expected {tuple(a.shape)} on {a.device}"
            )
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _twin(a, ca, b, cb, c, cc, d, cd, e, ce)
    flat = [None if t is None else t.contiguous() for t in (a, b, c, d, e)]
    return OP(flat[0], ca, flat[1], cb, flat[2], cc, flat[3], cd, flat[4], ce)


def _twin(a: Tensor, ca: float, *rest: Any) -> Tensor:
    out = a * ca
    for t, c in zip(rest[::2], rest[1::2]):
        if t is not None:
            out = out + t * c
    return out


def _fake(a: Tensor, ca: float, *rest: Any) -> Tensor:
    return torch.empty_like(a)


OP = register(SCHEMA, _twin, _fake)
