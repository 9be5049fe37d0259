"""Checks of arguments that several ops make, in the words that their users read."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from samplers.syncs import reading_is_free

P = ParamSpec("P")
R = TypeVar("R")
# What a function gives back in the form in which it was given: a tensor, or one that may be None.
Maybe = TypeVar("Maybe", Tensor, Tensor | None)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Beyond these, float32 cannot hold log2(e) / temperature.
COLDEST, HOTTEST = 1e-30, 1e30


class DrawCall(Protocol):
    """The arguments of an op that draws tokens, as far as they are checked here."""

    @property
    def uniform(self) -> Tensor | None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def confidence_temperature(self) -> float: ...
    @property
    def forbid(self) -> Tensor | None: ...


def explain_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of an op: if a call fails and an argument is not even of the annotated type, the error says which.

    Only failed calls are examined, so a call that works costs nothing more.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def op(*args: P.args, **kw: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kw)
        try:
            return function(*args, **kw)
        except (AttributeError, OverflowError, RuntimeError, TypeError) as error:
            if not str(error).startswith(f"{function.__name__}: "):  # what the op says itself is better
                _check_kinds(function.__name__, signature.bind(*args, **kw).arguments, hints)
            raise

    return op


def _check_kinds(op: str, arguments: Mapping[str, object], hints: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        kinds = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
        if not isinstance(value, (*plain, int) if float in plain else plain):
            words = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in plain)
            raise TypeError(f"{op}: {name} is {repr(value)[:60]}, expected {words}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{op}: {name} is {value}, expected a number that fits in 64 bits")
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise ValueError(f"{op}: {name} is {value.layout}, expected a dense tensor")


def check_rows(op: str, x: Tensor, name: str) -> None:
    """(R, V) floats."""
    where = f"{op}: {name}"
    if x.dim() != 2:
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected two dimensions (R, V)")
    if x.dtype not in (*DTYPES, torch.float64):
        raise TypeError(f"{where} is {x.dtype}, expected float32, bfloat16, float16 or float64")


def check_temperatures(op: str, call: DrawCall, n: int, device: torch.device) -> None:
    """The temperatures of a call that draws n tokens, and its uniforms."""
    T = call.temperature
    if not (math.isfinite(T) and (T == 0 or COLDEST <= T <= HOTTEST)):
        raise ValueError(f"{op}: temperature is {T}, expected 0 or a number from {COLDEST} to {HOTTEST}")
    if not COLDEST <= call.confidence_temperature <= HOTTEST:
        raise ValueError(
            f"{op}: confidence_temperature is {call.confidence_temperature}, expected a number from {COLDEST} to "
            f"{HOTTEST}"
        )
    if T > 0:
        if call.uniform is None:
            raise ValueError(f"{op}: temperature is {T}, so uniform is needed: ({n},) float64 in [0, 1)")
        check_vector(op, call.uniform, "uniform", torch.float64, n, device)


def check_draw_values(op: str, call: DrawCall) -> None:
    """The forbidden ids and the uniforms of a call. Needs the data itself, so for CPU tensors only."""
    if call.forbid is not None and (call.forbid < 0).any():
        i = int((call.forbid < 0).nonzero()[0])
        raise IndexError(f"{op}: forbid[{i}] is {int(call.forbid[i])}, expected an id, 0 or more")
    if call.temperature > 0:
        assert call.uniform is not None  # check_temperatures has seen to that
        bad = (~((call.uniform >= 0) & (call.uniform < 1))).nonzero()
        if len(bad):
            i = int(bad[0])
            raise ValueError(f"{op}: uniform[{i}] is {float(call.uniform[i])}, expected a number in [0, 1)")


def check_vector(
    op: str, x: Tensor | None, name: str, dtype: torch.dtype, size: int | None, device: torch.device
) -> None:
    """One dimension, of this dtype, length (None: any) and device; None passes."""
    if x is None:
        return
    where = f"{op}: {name}"
    if x.dim() != 1 or (size is not None and x.shape[0] != size):
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected ({'any length' if size is None else size},)")
    if x.dtype != dtype:
        raise TypeError(f"{where} is {x.dtype}, expected {dtype}")
    if x.device != device:
        raise ValueError(f"{where} is on {x.device}, expected {device} like the rest")


def check_inside(op: str, ids: Tensor | None, bound: int, name: str, of: str) -> None:
    """Every id in [0, bound). Needs the data itself, so it is checked only if reading it is free."""
    if ids is None or not reading_is_free(ids.device):
        return
    bad = ((ids < 0) | (ids >= bound)).nonzero()
    if len(bad):
        i = int(bad[0])
        raise IndexError(f"{op}: {name}[{i}] is {int(ids[i])}, expected 0 to {bound - 1} ({of})")


def check_plane(
    op: str,
    t: object,
    name: str,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...] | None = None,
    device: torch.device | None = None,
    optional: bool = False,
) -> None:
    """(B, L), of one of these dtypes, of this shape and device (None: any); None passes if it is optional."""
    if t is None and optional:
        return
    where = f"{op}: {name}"
    if not isinstance(t, Tensor):
        raise TypeError(f"{where} is {t!r}, expected a tensor")
    if t.dim() != 2 or (shape is not None and tuple(t.shape) != shape):
        raise ValueError(f"{where} has shape {tuple(t.shape)}, expected {'(B, L)' if shape is None else shape}")
    if t.dtype not in dtypes:
        raise TypeError(f"{where} is {t.dtype}, expected {' or '.join(map(str, dtypes))}")
    if device is not None and t.device != device:
        raise ValueError(f"{where} is on {t.device}, expected {device} like the rest")


def check_written(op: str, x: Tensor | None) -> None:
    """Not an expanded tensor, whose rows or columns share memory; None passes."""
    if x is not None and x.numel() > 0 and any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride())):
        raise ValueError(f"{op}: x is written in place and must not be an expanded tensor")
