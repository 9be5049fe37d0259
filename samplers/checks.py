"""Checks of single values: each returns the value in the type that the library works with, or raises an OptionError.

Everything that a caller may give in several types (numbers, token ids, rows of tokens, seeds, devices) is converted here and
nowhere else, so that Python, numpy and torch values are accepted or refused alike in all arguments.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import random
import reprlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import OptionError

if TYPE_CHECKING:
    from .denoiser import TokenDenoiser

__all__ = [
    "MOST",
    "PLAN_BYTES",
    "bool_rows",
    "check_memory",
    "check_plan",
    "check_room",
    "check_tokens",
    "device_of",
    "flag",
    "function_of",
    "guidance",
    "hook",
    "integer",
    "integers",
    "is_function",
    "memory_of",
    "name_of",
    "number",
    "optional_integer",
    "reals",
    "row_numbers",
    "seeds_of",
    "shown",
    "signed",
    "token_rows",
]

MOST = 2**53  # the largest count: float64, in which schedules are worked out, holds every integer up to it
STRONGEST = 1e6  # the largest cfg_scale: guided logits must stay finite in float32
PLAN_BYTES = 2**30  # the most that the plan of a run (its grid of times, its table of steps) may take
POSITION_BYTES = 64  # what a run keeps for a position: the tensors of the canvas, of two states and of a prediction


_REPR = reprlib.Repr()  # writes only the first elements of a long list
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxfrozenset = 12
_REPR.maxstring = _REPR.maxother = 200


def shown(value: Any, limit: int = 80) -> str:
    """repr(value) on one line, cut to `limit` characters."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"<{type(value).__name__} {tuple(value.shape)} of {value.dtype}>"
    try:
        text = " ".join(_REPR.repr(value).split())
    except ValueError:  # Python writes no integer of several thousand digits
        text = "a number that is too long to show"
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def function_of(value: Any) -> Callable[..., Any]:
    """The function that an option is given: itself, or the one that "module:function" names.

    Raises:
        OptionError: there is no such module or function.
    """
    if not isinstance(value, str):
        return value
    module, sign, name = value.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module) if sign else None
        for part in name.split(".") if sign else ():
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"write a function as package.module:name; {error}") from error
    if not callable(found):
        raise OptionError(f"write a function as package.module:name; {value!r} names none")
    return found


def is_function(value: Any) -> None:
    """OptionError if `value` names no function; for option(check=)."""
    if value is not None:
        function_of(value)


def name_of(function: Any) -> Any:
    """How results record a function: "module:name". A text or None is itself."""
    if function is None or isinstance(function, str):
        return function
    kind = type(function)
    return f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"


def _plain(value: Any) -> Any:
    """A 0-d tensor or array as the Python number in it; anything else as it is."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        return value.item()
    return value


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def integer(name: str, value: Any, low: int = 1, high: int = MOST) -> int:
    """`value` as an int: Python's, numpy's, or a 0-d tensor or array of an integer dtype.

    Raises:
        OptionError: it is no integer, or not one from `low` to `high`.
    """
    value = _plain(value)
    if _is_bool(value) or not isinstance(value, Integral) or (out := int(value)) < low:
        raise OptionError(f"{name} must be an integer of {low} or more, not {shown(value)}")
    if out > high:
        raise OptionError(f"{name} must be an integer of at most {high}, not {shown(value)}")
    return out


def guidance(scale: Any, interval: Any, low: float = 0.0) -> tuple[float, tuple[float, float]]:
    """cfg_scale, `low` or more, and cfg_interval as numbers.

    Raises:
        OptionError: the scale is below its bound, or so large that guided logits would not be finite in float32; the
            interval is not (low, high) with 0 <= low < high <= 1.
    """
    strength = number("cfg_scale", scale, low, STRONGEST)
    try:
        above, most = (number("cfg_interval", v, 0.0) for v in interval)
    except (TypeError, ValueError):
        above, most = 1.0, 0.0
    if not 0 <= above < most <= 1:
        raise OptionError(
            f"cfg_interval is {shown(interval)}; two noise levels (low, high), 0 <= low < high <= 1, are needed"
        )
    return strength, (above, most)


def hook(name: str, value: Any) -> Any:
    """A callable, or None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} takes a callable of the state, not {shown(value)}")
    return value


def optional_integer(name: str, value: Any, low: int = 1) -> int | None:
    """None, or as `integer`."""
    return None if value is None else integer(name, value, low)


def number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a float: a real number of any type that is finite and from `low` to `high`.

    Raises:
        OptionError: it is not.
    """
    value, wanted = _plain(value), f"{name} must be a number of {low:g} or more"
    if high < math.inf:
        wanted = f"{name} must be a number from {low:g} to {high:g}"
    if _is_bool(value) or not isinstance(value, Real):
        raise OptionError(f"{wanted}, not {shown(value)}")
    try:
        out = float(value)
    except OverflowError:
        out = math.inf
    if not low <= out <= high or math.isinf(out):
        raise OptionError(f"{wanted}, not {shown(value)}")
    return out


def flag(name: str, value: Any) -> bool:
    """`value`, True or False; OptionError if it is anything else, such as 1 or "yes"."""
    if not _is_bool(value):
        raise OptionError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def device_of(name: str, value: Any) -> torch.device:
    """The device called `value`; OptionError if torch knows none of that name, or cannot make a tensor there."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise OptionError(
            f"{name}={shown(value)}: torch knows no such device; 'cpu', 'cuda' and 'cuda:0' are some that it knows"
        ) from error
    if device.type == "meta":
        raise OptionError(f"{name}='meta': tensors on the meta device have no values, so nothing can run there")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"{name}={shown(value)}: torch finds {torch.cuda.device_count()} CUDA devices on this machine; {_available()}"
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, dtype=torch.float32, device=device)
        except Exception as error:  # its type varies: this torch lacks the backend, or the machine the hardware
            raise OptionError(
                f"{name}={shown(value)}: torch can make no tensor on that device here; {_available()}"
            ) from error
    return device


def _available() -> str:
    """The devices of this machine that torch can use."""
    kinds = ["'cpu'", *(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        kinds.append("'mps'")
    if torch.xpu.is_available():
        kinds.append("'xpu'")
    return f"available here: {', '.join(kinds)}"


# ---------------------------------------------------------------------------------------------- integers and tokens


def integers(name: str, value: Any, needed: str) -> Tensor:
    """`value` as an int64 tensor on the CPU, of whatever shape it has.

    Args:
        name: what it is, for errors, such as "prompt: row 2".
        value: a tensor or array of an integer dtype, a number, or a (nested) sequence.
        needed: what would be right, the end of the error.

    Raises:
        OptionError: another dtype (bool, floats, complex numbers), a sparse or meta tensor, rows of several lengths,
            something that is no number, an integer beyond 64 bits.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            kind = "on the meta device, where tensors have no values" if value.is_meta else f"a {value.layout} tensor"
            raise OptionError(f"{name} is {kind}; {needed}")
        out = value.detach()
    elif _has_bools(value):
        raise OptionError(f"{name} holds bools; {needed}")
    else:
        try:
            out = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            if (large := _beyond_64_bits(value)) is not None:
                raise OptionError(f"{name} holds {shown(large)}, which does not fit in 64 bits; {needed}") from error
            raise OptionError(f"{name} is {shown(value)}; {needed}") from error
        if out.numel() == 0 and isinstance(value, (list, tuple, range, AbstractSet)):
            out = out.to(torch.int64)  # torch makes floats when there is nothing
    if out.dtype == torch.bool or out.is_floating_point() or out.is_complex():
        raise OptionError(f"{name} is of {out.dtype}; {needed}")
    if out.dtype == torch.uint64 and bool((out.to(torch.int64) < 0).any()):
        raise OptionError(f"{name} holds a number that does not fit in 64 bits with a sign; {needed}")
    return out.to("cpu", torch.int64)


def _has_bools(value: Any) -> bool:
    """Whether a bool is among the elements: torch would make 0 and 1 of them."""
    return _is_bool(value) or (isinstance(value, (list, tuple)) and any(map(_has_bools, value)))


def _beyond_64_bits(value: Any) -> int | None:
    """The first integer in a (nested) sequence that does not fit in 64 bits."""
    if isinstance(value, (list, tuple)):
        return next((large for v in value if (large := _beyond_64_bits(v)) is not None), None)
    return int(value) if isinstance(value, Integral) and not _fits(int(value)) else None


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (Real, np.bool_)) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0)


PROMPT_FORMS = "token ids are needed: one row (P,), rows of one length (B, P), or a list of rows of any lengths"


def token_rows(name: str, value: Any) -> list[Tensor]:
    """Rows of token ids, (length_i,) int64 each on the CPU: of (P,), of (B, P), or of a list of rows of any lengths.

    Raises:
        OptionError: see `integers`; no rows; something of no or three dimensions.
    """
    if hasattr(value, "keys") or isinstance(value, (str, bytes)):
        hint = "give its 'input_ids'" if hasattr(value, "keys") else "encode the text with the model's tokenizer"
        raise OptionError(f"{name} is {type(value).__name__}, not token ids: {hint}")
    if isinstance(value, (list, tuple)) and value and not any(map(_is_scalar, value)):
        rows = [integers(f"{name}: row {i}", row, PROMPT_FORMS) for i, row in enumerate(value)]
        for i, row in enumerate(rows):
            if row.dim() != 1:
                raise OptionError(
                    f"{name}: row {i} has shape {tuple(row.shape)}, and a row has one dimension; {PROMPT_FORMS}"
                )
        return rows
    tensor = integers(name, value, PROMPT_FORMS)
    if tensor.dim() not in (1, 2):
        what = f"is {shown(value)}, a single number" if tensor.dim() == 0 else f"has shape {tuple(tensor.shape)}"
        raise OptionError(f"{name} {what}; {PROMPT_FORMS}")
    if tensor.dim() == 2 and not len(tensor):
        raise OptionError(f"{name} has shape {tuple(tensor.shape)}: there are no rows in it; {PROMPT_FORMS}")
    return [tensor] if tensor.dim() == 1 else list(tensor)


def bool_rows(name: str, value: Any) -> list[Tensor]:
    """Rows of bools, (length_i,) bool each on the CPU: of (L,), of (B, L), or of a list of rows of any lengths.

    Raises:
        OptionError: another dtype, such as 0 and 1; something of no or three dimensions.
    """
    needed = "bools are needed, True at the positions that are meant: (L,), (B, L) or a list of rows of any lengths"
    nested = isinstance(value, (list, tuple)) and bool(value) and not any(map(_is_scalar, value))
    rows: list[Tensor] = []
    for i, part in enumerate(value if nested else [value]):
        what = f"{name}: row {i}" if nested else name
        try:
            made = part if isinstance(part, Tensor) else torch.as_tensor(part, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"{what} is {shown(part)}; {needed}") from error
        if made.numel() == 0 and isinstance(part, (list, tuple)):
            made = made.to(torch.bool)  # torch makes floats when there is nothing
        if made.dtype != torch.bool or made.is_meta or made.layout != torch.strided:
            raise OptionError(f"{what} is {shown(made)}; {needed}")
        if made.dim() != 1 and (nested or made.dim() != 2):
            raise OptionError(f"{what} has shape {tuple(made.shape)}; {needed}")
        rows += [made.cpu()] if made.dim() == 1 else list(made.cpu())
    return rows


def check_tokens(name: str, x: Tensor, denoiser: TokenDenoiser, given: Tensor, instead: str) -> None:
    """OptionError for the first of the `given` positions, (B, L) bool, of x that holds the mask id or no token.

    Args:
        name: what x is.
        instead: what to do if it holds the mask id.
    """
    held = x == denoiser.mask_id if denoiser.mask_id is not None else torch.zeros_like(given)
    for i, j in (given & held).nonzero().tolist():
        raise OptionError(f"{name}: row {i}, position {j} is the mask id {denoiser.mask_id}{instead}")
    extra = denoiser.extra_ids
    wrong = (x < 0) | ((x >= denoiser.vocab_size) & ((x < extra.start) | (x >= extra.stop)))
    for i, j in (given & wrong).nonzero().tolist():
        raise OptionError(
            f"{name}: row {i}, position {j} is {int(x[i, j])}; tokens of {denoiser.name!r} are 0 to "
            f"{denoiser.vocab_size - 1}"
        )


def check_room(name: str, lengths: list[int], denoiser: TokenDenoiser) -> None:
    """OptionError for the first row that is longer than the model can take."""
    if denoiser.max_length is None:
        return
    for i, length in enumerate(lengths):
        if length > denoiser.max_length:
            raise OptionError(
                f"{name}: row {i} has {length} positions; denoiser {denoiser.name!r} takes at most {denoiser.max_length} "
                "(its max_length): shorten the prompt or the part to fill"
            )


def pads(ragged: Any, denoiser: TokenDenoiser) -> bool:
    """Whether rows of different lengths share forward passes, by the argument ragged= of sample() and nll().

    Raises:
        OptionError: it is not None, "groups" or "pad"; "pad" for a denoiser that does not take lengths.
    """
    if ragged not in (None, "groups", "pad"):
        raise OptionError(f"ragged must be None, 'groups' or 'pad', not {shown(ragged)}")
    if ragged == "pad" and not denoiser.takes_lengths:
        raise OptionError(
            f"ragged='pad': denoiser {denoiser.name!r} does not take rows of different lengths in one forward pass "
            "(takes_lengths). If the model can be told what is padding: samplers.TokenDenoiser.wrap(fn, ..., "
            "takes_lengths=True), where fn(ids, mask=, positions=); else use ragged='groups', or leave it out"
        )
    return denoiser.takes_lengths if ragged is None else ragged == "pad"


def reals(name: str, value: Any, shape: tuple[int, ...], rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`value` as (rows, *shape) of `dtype` on `device`: of that shape, or of `shape` for all rows.

    Bools may have the size 1 in place of any other, such as a mask (1, H, W) for all channels.

    Args:
        dtype: a floating dtype, or torch.bool, for which bools are needed.

    Raises:
        OptionError: another shape or another kind of numbers, a number that is not finite.
    """
    full = (rows, *shape)
    kind = "bools" if dtype == torch.bool else "finite real numbers"
    needed = f"{kind} of shape {full} are needed, or of {shape} for all rows"
    try:
        made = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name} is {shown(value)}; {needed}") from error
    if made.is_meta or made.layout != torch.strided or made.is_complex():
        raise OptionError(f"{name} is {shown(made)}; {needed}")
    if (made.dtype == torch.bool) != (dtype == torch.bool):
        raise OptionError(f"{name} is of {made.dtype}; {needed}")
    wide = made.dim() in (len(shape), len(full)) and dtype == torch.bool
    ones = wide and all(n in (1, want) for n, want in zip(reversed(made.shape), reversed(full)))
    if not ones and tuple(made.shape) not in (full, shape, (1, *shape)):
        more = ""
        if tuple(made.shape[1:]) == shape:
            more = f": give batch={len(made)}, or {rows} row{'s' if rows != 1 else ''}"
        raise OptionError(f"{name} has shape {tuple(made.shape)}; {needed}{more}")
    made = made.to(device, dtype)
    if dtype != torch.bool and not bool(torch.isfinite(made).all()):
        raise OptionError(f"{name} holds a number that is not finite; {needed}")
    return made.expand(full).contiguous()


# ---------------------------------------------------------------------------------------------- seeds


def row_numbers(value: Any) -> int | list[int]:
    """first_row: the number of a batch's first row, 0 or more; or one number per row, as a list.

    Raises:
        OptionError: it is neither.
    """
    if _is_scalar(value) or isinstance(value, (str, bytes)) or value is None:
        return integer("first_row", value, 0)
    needed = "an integer of 0 or more is needed, or one per row"
    rows = integers("first_row", value, needed)
    if rows.dim() != 1 or bool((rows < 0).any()):
        raise OptionError(f"first_row is {shown(value)}; {needed}")
    return rows.tolist()


def seeds_of(seed: Any) -> int | list[int]:
    """A seed as an int, or seeds, one per row, as a list of ints: the numbers that were given, from -2**63 to 2**64 - 1.

    `signed` makes int64 of them. torch.seed() returns numbers of 2**63 and more.

    Raises:
        OptionError: it is no integer of 64 bits and no flat collection of them.
    """
    if isinstance(seed, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
        raise OptionError(
            f"seed is a {type(seed).__name__}, and draws here are a function of (seed, row, position, step), so that a row does "
            "not depend on its batch: a generator, which moves with every draw, cannot give that. Give an integer"
        )
    needed = "an integer is needed, or one integer per row"
    if seed is None or isinstance(seed, (str, bytes, AbstractSet)) or hasattr(seed, "keys"):
        raise OptionError(f"seed is {shown(seed)}; {needed}")
    if _is_scalar(seed):
        value = _plain(seed)
        if _is_bool(value) or not isinstance(value, Integral):
            raise OptionError(f"seed is {shown(seed)}; {needed}")
        if not _fits(signed(int(value))):
            raise OptionError(f"seed {shown(value)} does not fit in 64 bits; {needed}")
        return int(value)
    if isinstance(seed, (Tensor, np.ndarray)) and seed.dtype in (torch.uint64, np.uint64):
        seed = seed.tolist()
    given = [_plain(v) for v in seed] if isinstance(seed, (list, tuple, range)) else None
    tensor = integers("seed", seed if given is None else [_signed_if_integer(v) for v in given], needed)
    if tensor.dim() != 1:
        raise OptionError(f"seed has shape {tuple(tensor.shape)}; {needed}")
    return tensor.tolist() if given is None else [int(v) for v in given]


def signed(seed: int) -> int:
    """The number of 64 bits with a sign that has the same bits: 2**63 to 2**64 - 1 become negative."""
    return seed - 2**64 if 2**63 <= seed < 2**64 else seed


def _signed_if_integer(value: Any) -> Any:
    return signed(int(value)) if isinstance(value, Integral) and not _is_bool(value) else value


# ---------------------------------------------------------------------------------------------- memory


@functools.cache
def _host_memory() -> int:
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return min(sizes, default=2**63)


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has, used or not: of this machine (or what its container may have), or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return _host_memory() if device.type == "cpu" else 2**63


def check_memory(what: str, size: int, device: torch.device) -> None:
    """OptionError if `what` needs `size` bytes at least, and the device has fewer: it is said before anything is made."""
    if size > (have := memory_of(device)):
        raise OptionError(
            f"{what} cannot fit: {size:,} bytes ({size / 2**30:,.1f} GiB) are needed at least, and {device} has {have:,} "
            f"({have / 2**30:,.1f} GiB)"
        )


def check_plan(what: str, size: int) -> None:
    """OptionError if the plan of a run needs `size` bytes and that is more than PLAN_BYTES."""
    if size > PLAN_BYTES:
        raise OptionError(
            f"{what} makes a plan of {size:,} bytes ({size / 2**30:,.1f} GiB), one entry per step; at most {PLAN_BYTES:,} are "
            "allowed: use fewer steps"
        )
