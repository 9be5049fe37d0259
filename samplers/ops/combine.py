"""combine: a linear combination of up to five tensors in one pass, the step of most continuous solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.ops._register import register

NAME = "combine"
SCHEMA = (
    "combine(Tensor a, float ca, Tensor? b, float cb, Tensor? c, float cc, Tensor? d, float cd, Tensor? e, float ce) "
    "-> Tensor"
)


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
    try:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (a, b, c, d, e)):
            return _twin(a, ca, b, cb, c, cc, d, cd, e, ce)
        # A step of a small run takes as long as a few checks in Python: the op has its own, and their words come when it fails.
        return OP(_row(a), ca, _row(b), cb, _row(c), cc, _row(d), cd, _row(e), ce)
    except (AttributeError, RuntimeError, TypeError):
        _check((a, b, c, d, e), (ca, cb, cc, cd, ce))
        raise


def _row(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.contiguous()


def _check(tensors: tuple[Any, ...], factors: tuple[Any, ...]) -> None:
    """ValueError or TypeError that names the first argument that is wrong."""
    first, last = tensors[0], max((i for i, t in enumerate(tensors) if t is not None), default=0)
    for name, t, factor in list(zip("abcde", tensors, factors))[: last + 1]:
        if not isinstance(t, Tensor):
            raise TypeError(f"{NAME}: {name} is {type(t).__name__}, expected a tensor; those that are None come last")
        if not isinstance(factor, (int, float)):
            raise TypeError(f"{NAME}: c{name} is {type(factor).__name__}, expected a number")
        if t.dtype not in (torch.float32, torch.float64) or t.dtype != first.dtype:
            raise TypeError(f"{NAME}: {name} is {t.dtype}, expected float32 or float64, the same for all")
        if t.shape != first.shape or t.device != first.device:
            raise ValueError(
                f"{NAME}: {name} has shape {tuple(t.shape)} on {t.device}, expected {tuple(first.shape)} on {first.device}"
            )


def _twin(a: Tensor, ca: float, *rest: Any) -> Tensor:
    _check((a, *rest[::2]), (ca, *rest[1::2]))
    out = a * ca
    for t, c in zip(rest[::2], rest[1::2]):
        if t is not None:
            out = out + t * c
    return out


def _fake(a: Tensor, ca: float, *rest: Any) -> Tensor:
    return torch.empty_like(a)


OP = register(SCHEMA, _twin, _fake)
