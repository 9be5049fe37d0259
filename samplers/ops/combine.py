"""combine: a linear combination of up to five tensors in one pass, the step of most continuous solvers."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from samplers.ops._check import explain_errors
from samplers.ops._register import register

NAME = "combine"
SCHEMA = "combine(Tensor a, float ca, Tensor? b, float cb, Tensor? c, float cc, Tensor? d, float cd, Tensor? e, float ce) -> Tensor"
MOST = 5

Term = tuple[float, Tensor]


@explain_errors
def combine(*terms: Term) -> Tensor:
    """c_0 a_0 + c_1 a_1 + ..., from left to right, each product and each sum rounded: the bits of `c0 * a0 + c1 * a1 + ...`.

    Where a gradient is wanted it is torch's own arithmetic.

    Args:
        terms: one to five pairs of a number and a tensor, the tensors float32 or float64, of one shape, dtype and device.

    Returns:
        A new tensor of their shape and dtype.

    Raises:
        ValueError, TypeError: no terms or more than five, several shapes, dtypes or devices, a dtype of 16 bits.
    """
    if not 1 <= len(terms) <= MOST:
        raise ValueError(f"{NAME}: {len(terms)} terms were given, expected 1 to {MOST}")
    first = terms[0][1]
    for i, (_, t) in enumerate(terms):
        if not isinstance(t, Tensor):
            raise TypeError(f"{NAME}: term {i} holds {type(t).__name__} where a tensor is expected: (number, tensor)")
        if t.dtype not in (torch.float32, torch.float64) or t.dtype != first.dtype:
            raise TypeError(f"{NAME}: tensor {i} is {t.dtype}, expected float32 or float64, the same for all")
        if t.shape != first.shape:
            raise ValueError(f"{NAME}: tensor {i} has shape {tuple(t.shape)}, expected {tuple(first.shape)}")
        if t.device != first.device:
            raise ValueError(f"{NAME}: tensor {i} is on {t.device}, expected {first.device}")
    if torch.is_grad_enabled() and any(t.requires_grad for _, t in terms):
        return functools.reduce(operator.add, (t * c for c, t in terms))
    flat: list[Tensor | float | None] = []
    for c, t in terms:
        flat += [t.contiguous(), float(c)]
    return OP(*flat, *(None, 0.0) * (MOST - len(terms)))


def _twin(a: Tensor, ca: float, *rest: Tensor | float | None) -> Tensor:
    out = a * ca
    for t, c in zip(rest[::2], rest[1::2]):
        if t is not None:
            out = out + t * c
    return out


def _fake(a: Tensor, ca: float, *rest: Tensor | float | None) -> Tensor:
    return torch.empty_like(a)


OP = register(SCHEMA, _twin, _fake)
