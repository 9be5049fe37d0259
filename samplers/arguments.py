"""The arguments of sample(), read in one place: each is checked, converted, and named in the error if it is wrong."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from .denoiser import TokenDenoiser

__all__ = [
    "check_tokens",
    "driver_arguments",
    "interval",
    "number",
    "parse_stop",
    "positive_int",
    "prompt_rows",
    "token_ids",
    "wrong_argument",
]

# What other libraries call some of our arguments.
ALIASES = {
    "block_size": "block_length",
    "cfg": "cfg_scale",
    "guidance_scale": "cfg_scale",
    "input_ids": "prompt",
    "max_length": "gen_length",
    "max_new_tokens": "gen_length",
    "n_steps": "steps",
    "num_inference_steps": "steps",
    "num_return_sequences": "batch",
    "num_steps": "steps",
    "batch_size": "batch",
    "stop_tokens": "stop",
    "eos_token_id": "stop",
}


@functools.cache
def driver_arguments() -> tuple[str, ...]:
    """The keyword arguments of sample() that are not options of the sampler, from its signature."""
    from .driver import sample

    parameters = inspect.signature(sample).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def wrong_argument(owner: str, key: str, options: Iterable[str]) -> OptionError:
    """The error for an argument that neither sample() nor `owner`, such as "sampler 'radd'", has."""
    options, arguments = list(options), driver_arguments()
    if key in arguments:
        return OptionError(
            f"{key!r} is not an option of {owner} but an argument of samplers.sample(): sample(denoiser, ..., {key}=...)"
        )
    if key in ALIASES:
        return OptionError(f"unknown argument {key!r}: samplers.sample() calls it {ALIASES[key]!r}")
    have = f"Its options: {', '.join(options)}" if options else "It has none"
    return OptionError(
        f"{key!r} is neither an argument of samplers.sample() nor an option of {owner}"
        f"{did_you_mean(key, [*options, *arguments])} {have}"
    )


def number(name: str, value: Any, low: float) -> float:
    """`value` as a float; OptionError naming the argument if it is not a finite number of `low` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < float("inf"):
        raise OptionError(f"{name} must be a number of {low:g} or more, not {value!r}")
    return float(value)


def token_ids(name: str, value: Any, denoiser: TokenDenoiser) -> tuple[int, ...]:
    """Token ids of an int or a sequence of them; OptionError if one is not in the denoiser's vocabulary."""
    if value is None:
        return ()
    try:
        ids = [operator.index(i) for i in ([value] if isinstance(value, Integral) else value)]
    except TypeError:
        ids = [-1]
    for i in ids:
        if not 0 <= i < denoiser.vocab_size:
            raise OptionError(
                f"{name}={value!r}: token ids of {denoiser.name!r}, 0 to {denoiser.vocab_size - 1}, are needed: one or a list"
            )
    return tuple(ids)


def interval(value: Any) -> tuple[float, float]:
    """cfg_interval as (low, high); OptionError unless 0 <= low < high <= 1."""
    try:
        low, high = (number("cfg_interval", v, 0.0) for v in value)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise OptionError(f"cfg_interval is {value!r}; two noise levels (low, high), 0 <= low < high <= 1, are needed")
    return low, high


def positive_int(name: str, value: Any) -> int:
    """`value`, an integer of 1 or more; OptionError naming the argument where it is not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be an integer of 1 or more, not {value!r}")
    return value


def prompt_rows(prompt: Any, batch: int) -> list[Tensor]:
    positive_int("batch", batch)
    if prompt is None:
        return [torch.zeros(0, dtype=torch.int64)] * batch
    ragged = isinstance(prompt, Sequence) and len(prompt) > 0 and not isinstance(prompt[0], Integral)
    try:
        rows = [torch.as_tensor(p) for p in prompt] if ragged else torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"prompt: {error}; token ids are needed, (P,), (B, P) or a list of rows") from error
    if isinstance(rows, Tensor):
        rows = [rows] if rows.dim() == 1 else list(rows) if rows.dim() == 2 else [torch.zeros(0, 0)]
    for i, row in enumerate(rows):
        if row.dim() != 1 or (row.is_floating_point() and len(row)) or row.dtype == torch.bool:
            raise OptionError(
                f"prompt: row {i} is of shape {tuple(row.shape)} and {row.dtype}; token ids are needed, (P,) int64"
            )
    rows = [row.to("cpu", torch.int64) for row in rows]
    if len(rows) == 1:
        return rows * batch
    if batch not in (1, len(rows)):
        raise OptionError(f"prompt has {len(rows)} rows and batch={batch}; give one prompt, or as many as rows")
    return rows


def check_tokens(x: Tensor, denoiser: TokenDenoiser, given: Tensor) -> None:
    """OptionError for the first of the `given` positions, (B, L) bool, of x that holds the mask id or no token."""
    held = x == denoiser.mask_id if denoiser.mask_id is not None else torch.zeros_like(given)
    for i, j in (given & held).nonzero().tolist():
        raise OptionError(
            f"prompt: row {i}, position {j} is the mask id {denoiser.mask_id}; a prompt is made of "
            "tokens that are known. To fill positions in the middle use samplers.Canvas.infill(denoiser, x, fill)"
        )
    for i, j in (given & ((x < 0) | (x >= denoiser.vocab_size))).nonzero().tolist():
        raise OptionError(
            f"prompt: row {i}, position {j} is {int(x[i, j])}; tokens of {denoiser.name!r} are 0 to "
            f"{denoiser.vocab_size - 1}"
        )


def parse_stop(stop: Any) -> tuple[Tensor, ...]:
    """Stop rules as phrases: a token id; a phrase (a list of ids); or a list of phrases, any of which stops a row."""
    if stop is None:
        return ()
    if isinstance(stop, int) and not isinstance(stop, bool):
        stop = [[stop]]
    elif isinstance(stop, (Sequence, Tensor)) and len(stop) and all(isinstance(s, int) for s in stop):
        stop = [stop]
    try:
        phrases = tuple(torch.as_tensor(p, dtype=torch.int64).reshape(-1) for p in stop)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"stop={stop!r}: a token id, a phrase such as [13, 13], or a list of phrases is needed"
        ) from error
    if not phrases or any(len(p) == 0 for p in phrases):
        raise OptionError(f"stop={stop!r}: a stop phrase must have a token")
    return phrases
