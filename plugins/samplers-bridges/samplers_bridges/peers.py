"""Sampler classes made of other people's rules: what both directions back from engines share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from samplers import OptionError
from samplers.authoring import Predict, option

__all__ = ["greedy", "peer_class"]

C = TypeVar("C")


def greedy(predict: Predict, name: str) -> None:
    """OptionError if the run has a temperature, which these rules do not know of."""
    if predict.temperature > 0:
        raise OptionError(
            f"sampler {name!r} is a rule of an engine that takes the best token: temperature={predict.temperature:g} would "
            "change nothing; leave it out, or give 0"
        )


def peer_class(
    base: type[C], name: str, summary: str, cite: str, options: Mapping[str, Any] | None, own: Mapping[str, Any]
) -> type[C]:
    """A frozen dataclass whose fields are `options`: defaults, or what samplers.option makes of defaults and bounds.

    Raises:
        OptionError: an option's default is no number, text or bool.
    """
    fields = []
    for key, given in (options or {}).items():
        made = given if isinstance(given, dataclasses.Field) else option(given, "as in the rule's own configuration")
        if not isinstance(made.default, (bool, int, float, str)):
            raise OptionError(
                f"sampler {name!r}: the default of option {key!r} is {made.default!r}; a number, text or bool is needed"
            )
        fields.append((key, type(made.default), made))
    about = {
        "name": name,
        "summary": summary,
        "cite": cite,
        "__doc__": f"{cite}. {summary}.",
        "__module__": base.__module__,
    }
    called = "".join(part.title() for part in name.split("_"))
    return dataclasses.make_dataclass(called, fields, bases=(base,), frozen=True, namespace={**about, **own})
