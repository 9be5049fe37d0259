"""What several commands share: the types of arguments, and arguments that mean the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

from ..registry import FAMILIES

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

FAMILY: dict[str, Any] = {
    "choices": FAMILIES,
    "metavar": "FAMILY",
    "help": f"kind of noise: {', '.join(FAMILIES)}",
}
OPTION: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
AS_JSON: dict[str, Any] = {"action": "store_true", "help": "print JSON and nothing else"}


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".")
    made.set_defaults(run=run)
    return made


def names(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def interval(text: str) -> tuple[float, ...]:
    return tuple(float(w) for w in names(text))  # sample() says what is wrong with the numbers


def budgets(text: str) -> list[int]:
    return sorted({whole(w) for w in names(text)})


class Flat(argparse.Action):
    """Collects comma-separated lists over repeated options and several words."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        old = getattr(namespace, self.dest) or []
        new = [
            w for v in (values if isinstance(values, list) else [values]) for w in (v if isinstance(v, list) else [v])
        ]
        setattr(namespace, self.dest, [*old, *new])
