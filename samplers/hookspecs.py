"""The hooks. A plug-in implements them with `samplers.hookimpl`; the built-in samplers use the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("samplers")
hookimpl = pluggy.HookimplMarker("samplers")


@hookspec
def register_samplers(register: Callable[..., Any]) -> None:
    """Register samplers: call `register(SamplerClass)`, or `register("module:Class", name=..., family=...)` to load it later."""
