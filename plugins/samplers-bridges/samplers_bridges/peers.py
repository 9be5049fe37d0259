"""Sampler classes made of other people's rules: what both directions back from engines share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from samplers import OptionError
from samplers.authoring import option

__all__ = ["peer_class"]

C = TypeVar("C")


def peer_class(
    base: type[C], name: str, summary: str, cite: str, options: Mapping[str, Any] | None, own: Mapping[str, Any]
) -> type[C]:
    """A frozen dataclass whose fields are `options`, with these values as defaults.

    Raises:
        OptionError: an option's default is no number, text or bool.
    """
    fields = []
    for key, value in (options or {}).items():
        if not isinstance(value, (bool, int, float, str)):
            raise OptionError(f"sampler {name!r}: the default of option {key!r} is {value!r}; a number, text or bool is needed")
        fields.append((key, type(value), option(value, "as in the rule's own configuration")))
    about = {"name": name, "summary": summary, "cite": cite, "__doc__": f"{cite}. {summary}.", "__module__": base.__module__}
    made = dataclasses.make_dataclass("".join(part.title() for part in name.split("_")), fields, bases=(base,), frozen=True, namespace={**about, **own})
    return made
