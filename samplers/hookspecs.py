"""The hooks, one for each kind of thing that has a name. A plug-in implements them with `samplers.hookimpl`, and so do we.

All of them take one argument, `register`, which is called once for each thing:

    register("module:object", name="x")    # imported when somebody asks for it
    register(thing)                        # its name is thing.name, or that of the function

`summary=` gives the line that lists show; otherwise it is read from the source: an attribute `summary`, or the first line of the
docstring. What the thing must be is said by each hook, and in docs/hooks.md with an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

hookspec = pluggy.HookspecMarker("samplers")
hookimpl = pluggy.HookimplMarker("samplers")

Register: TypeAlias = Callable[..., Any]


@hookspec
def register_samplers(register: Register) -> None:
    """Register samplers: subclasses of samplers.Sampler. `family=` may be given, so that lists need not read the class."""


@hookspec
def register_families(register: Register) -> None:
    """Register kinds of noise: a samplers.authoring.Family, or a subclass that is made without arguments."""


@hookspec
def register_denoisers(register: Register) -> None:
    """Register models: functions that return a samplers.Denoiser. Their arguments are what follows '?' in a name."""


@hookspec
def register_noise_schedules(register: Register) -> None:
    """Register noise schedules: a samplers.NoiseSchedule, or a function of numbers that returns one, as in 'name(3)'."""


@hookspec
def register_mask_schedules(register: Register) -> None:
    """Register mask schedules: a samplers.MaskSchedule, or a function of numbers that returns one, as in 'name(3)'."""


@hookspec
def register_grids(register: Register) -> None:
    """Register grids of continuous runs: functions of a Span that return the times of its points, (n,) float64, falling."""


@hookspec
def register_problems(register: Register) -> None:
    """Register exact problems: subclasses of samplers.problems.Problem."""


@hookspec
def register_caches(register: Register) -> None:
    """Register schemes of the KV cache: subclasses of samplers.feeds.cached.Scheme."""


@hookspec
def register_windows(register: Register) -> None:
    """Register windows: functions of a TokenState that return how far each row is given to the model, (B,) int64."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics: functions of (problem, x, family) that return a samplers.problems.Estimate, or a dict of them."""
