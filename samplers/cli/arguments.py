"""What several commands share: the types of arguments, and arguments that mean the same everywhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from ..family import BUILT_IN, family_names
from ..kinds import KINDS

T = TypeVar("T")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OPTION: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
STOP_RULE: dict[str, Any] = {
    "choices": ("decided", "block", "llada2"),
    "metavar": "RULE",
    "help": "when it ends: decided, as soon as the stop is decided (default); block, after its block; llada2, as in its code",
}
SAMPLER_HELP = (
    "sampler to run, with its own defaults (default: for a model of a folder or the hub, the one that `samplers show-model` "
    "shows, with the settings shown there, which -o and other arguments replace; for others {})"
)
AS_JSON: dict[str, Any] = {"action": "store_true", "help": "print JSON and nothing else"}


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        run: is called with the parsed arguments, and returns the exit code.
        help: what it does; it begins with a small letter.
    """
    made = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".")
    made.set_defaults(run=run, parser=made)
    return made


# ---------------------------------------------------------------------------------------------- types


def kind(read: Callable[[str], T], fits: Callable[[T], bool], what: str) -> Callable[[str], T]:
    """The `type` of an argument: the value that `read` makes of a text, if it `fits`.

    Whatever is wrong, argparse then says: "argument --steps: '0' is not " and `what`.
    """

    def convert(text: str) -> T:
        try:
            value = read(text)
            if fits(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return convert


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


MOST = 10**9  # above it nothing can be run, and torch's integers end some way further on
COLDEST, HOTTEST = 1e-30, 1e30  # between them logits divided by a temperature are numbers

FAMILY: dict[str, Any] = {
    "type": kind(str, lambda v: v in family_names(), "a family; `samplers list` shows those of the installed samplers"),
    "metavar": "FAMILY",
    "help": f"kind of noise: {', '.join(BUILT_IN)}, or that of a plug-in",
}

KIND: dict[str, Any] = {
    "choices": tuple(KINDS),
    "default": "samplers",
    "metavar": "KIND",
    "help": f"kind of things: {', '.join(KINDS)} (default samplers)",
}

names = kind(_split, bool, "a name, or several with commas between them")
whole = kind(int, lambda v: 1 <= v <= MOST, f"a whole number from 1 to {MOST:,}")
whole_or_0 = kind(int, lambda v: 0 <= v <= MOST, f"a whole number from 0 to {MOST:,}")
seed = kind(int, lambda v: -(2**63) <= v < 2**64, "a whole number of 64 bits")
budgets = kind(
    lambda text: sorted({int(word) for word in _split(text)}),
    lambda values: bool(values) and values[0] >= 1 and values[-1] <= MOST,
    f"a list of whole numbers from 1 to {MOST:,}, such as 2,4,8",
)
temperature = kind(
    float, lambda v: v == 0 or COLDEST <= v <= HOTTEST, f"0, or a number from {COLDEST:g} to {HOTTEST:g}"
)
not_negative = kind(float, lambda v: 0 <= v < math.inf, "a finite number of 0 or more")
share = kind(float, lambda v: 0 < v <= 1, "a number above 0 and up to 1")
interval = kind(
    lambda text: tuple(float(word) for word in _split(text)),
    lambda pair: len(pair) == 2 and 0 <= pair[0] <= pair[1] <= 1,
    "two numbers LOW,HIGH with 0 <= LOW <= HIGH <= 1",
)
text = kind(str, lambda v: bool(v.strip()), "a text that is not empty")


class Flat(argparse.Action):
    """Collects comma-separated lists over repeated options and several words."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        old = getattr(namespace, self.dest) or []
        new = [
            w for v in (values if isinstance(values, list) else [values]) for w in (v if isinstance(v, list) else [v])
        ]
        setattr(namespace, self.dest, [*old, *new])
