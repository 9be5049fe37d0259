"""Exact problems: denoisers whose answer is exact, and the distance of a sample to the truth.

    problem = samplers.problems.create("sudoku4")
    denoiser = problem.denoiser("masked")
    print(problem.score(samplers.sample(denoiser, "radd", batch=1000, steps=8)))

With an exact denoiser all error left is the sampler's own. A problem is imported when it is made, not before.
"""

from __future__ import annotations

from typing import Any

from .. import registry
from .base import Estimate, Problem, Score, check_options

__all__ = ["Estimate", "Problem", "Score", "create", "list_problems"]

_SPEED = ("llm-small", "llm-8b")  # nothing is scored on these


def list_problems() -> list[str]:
    """The names of exact problems, also of plug-ins, sorted. `create` also knows the speed problems llm-small and llm-8b."""
    return [name for name in registry.names_of("problems") if name not in _SPEED]


def create(name: str, **options: Any) -> Problem:
    """The problem called `name`.

    Args:
        name: one of `list_problems()`, or a speed problem's.
        options: the problem's own; its class says which.

    Raises:
        UnknownNameError: no such problem.
        OptionError: an option that this problem does not have, or a value out of its bounds.
        PluginError: it comes from a plug-in that is broken.
    """
    item = registry.entry(name, "problems")
    cls = item.load()
    check_options(cls, options, f"problem {name!r}")
    return registry.called(item, cls, options, f"problem {name!r} of {item.origin} cannot be made:")
