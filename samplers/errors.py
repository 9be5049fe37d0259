"""Errors a user can act on, each named for what was wrong. All are also the builtin error that one would expect."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "DenoiserError",
    "FamilyError",
    "ModelError",
    "OptionError",
    "PluginError",
    "SamplersError",
    "UnknownNameError",
    "did_you_mean",
]


class SamplersError(Exception):
    """Any error that this library raises on purpose."""


class OptionError(SamplersError, ValueError):
    """An option or argument that is unknown, of the wrong type, or out of its bounds."""


class UnknownNameError(SamplersError, KeyError):
    """A sampler, problem or family that nobody registered."""

    def __str__(self) -> str:  # KeyError would show the message quoted, as if it were a key
        return str(self.args[0]) if self.args else ""


class FamilyError(SamplersError, TypeError):
    """A sampler of one family run on a denoiser of another."""


class DenoiserError(SamplersError, ValueError):
    """A denoiser that returned something unusable: a wrong shape, NaN, or a position without any candidate token."""


class ModelError(SamplersError, ValueError):
    """A model folder that cannot be loaded: a file, a tensor or an option in it is missing, broken or not supported."""


class PluginError(SamplersError, ImportError):
    """A plug-in that was asked for and is broken."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ends a sentence whose last word is quoted and wrong: ": did you mean 'x'?" with the closest known names, or "."."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f": did you mean {' or '.join(repr(c) for c in close)}?" if close else "."


def unknown_option(who: str, option: str, known: Sequence[str]) -> OptionError:
    """The error for an option that `who` does not have, with the nearest that it has, and all of them."""
    have = f"Its options: {', '.join(known)}" if known else "It has none"
    return OptionError(f"{who} has no option {option!r}{did_you_mean(option, known)} {have}")
