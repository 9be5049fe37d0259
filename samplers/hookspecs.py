"""The hooks. A plug-in implements them with `samplers.hookimpl`; the zoo's own samplers use the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("samplers")
hookimpl = pluggy.HookimplMarker("samplers")


@hookspec
def register_samplers(register: Callable[..., Any]) -> None:
    """Register the samplers of a package.

    Args:
        register: call it with a Sampler class, `register(MySampler)`; or, so that the class is imported only when it is
            used, with its place and name: `register("module:Class", name="my_sampler")`. `family=` and `summary=` may be
            given; a list of samplers otherwise reads them from the source of the class.
    """
