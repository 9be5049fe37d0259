"""Exact problems: denoisers whose answer is exact, and the distance of a sample to the truth.

    problem = samplers.problems.create("sudoku4")
    denoiser = problem.denoiser("masked")
    print(problem.score(samplers.sample(denoiser, "radd", batch=1000, steps=8)))

With an exact denoiser all error left is the sampler's own. A problem is imported when it is made, not before.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UnknownNameError, did_you_mean
from .base import Estimate, Problem, Score, check_options

__all__ = ["Estimate", "Problem", "Score", "create", "list_problems"]

_PROBLEMS = {
    "digits": "digits:Digits",
    "mixture": "mixture:Mixture",
    "sudoku4": "sudoku:Sudoku4",
    "text": "text:Text",
}
_SPEED = {"llm-8b": "speed:Llm8b", "llm-small": "speed:LlmSmall"}  # nothing is scored on these


def list_problems() -> list[str]:
    """The names of exact problems, sorted. `create` also knows the speed problems llm-small and llm-8b."""
    return sorted(_PROBLEMS)


def create(name: str, **options: Any) -> Problem:
    """The problem called `name`.

    Args:
        name: one of `list_problems()`, or a speed problem's.
        options: the problem's own; its class says which.

    Raises:
        UnknownNameError: no such problem.
        OptionError: an option that this problem does not have, or a value out of its bounds.
    """
    every = _PROBLEMS | _SPEED
    if name not in every:
        known = [*list_problems(), *_SPEED]
        raise UnknownNameError(f"unknown problem {name!r}{did_you_mean(str(name), known)} Known: {', '.join(known)}")
    module, cls_name = every[name].split(":")
    cls = getattr(importlib.import_module(f".{module}", __name__), cls_name)
    check_options(cls, options, f"problem {name!r}")
    return cls(**options)
