"""Errors that a user can act on, each named after what was wrong. Each is also the built-in error that one would expect."""

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
    """An option or argument is unknown, of the wrong type, or out of its bounds."""


class UnknownNameError(SamplersError, KeyError):
    """There is no sampler, problem, model or family of that name, or several packages have one."""

    def __str__(self) -> str:  # KeyError would show the message quoted, as if it were a key
        return str(self.args[0]) if self.args else ""


class FamilyError(SamplersError, TypeError):
    """The sampler is of one family and the denoiser of another."""


class DenoiserError(SamplersError, ValueError):
    """The denoiser returned something unusable: a wrong shape, NaN, or a position without any candidate token."""


class ModelError(SamplersError, ValueError):
    """A model folder cannot be loaded: a file, a tensor or an option in it is missing, broken or not supported."""


class PluginError(SamplersError, ImportError):
    """A sampler that was asked for comes from a plug-in that is broken."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence whose last word is wrong.

    Args:
        word: the wrong word.
        known: the names that there are.

    Returns:
        ": did you mean 'x'?" with one or two similar names; "." if there is none.
    """
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=2, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, word, c).ratio() for c in close]
    close = [c for c, r in zip(close, likeness) if r > likeness[0] - 0.1]  # a poor second guess would only distract
    return f": did you mean {' or '.join(repr(c) for c in close)}?" if close else "."


def unknown_option(who: str, option: str, known: Sequence[str]) -> OptionError:
    """The error for an option that `who` does not have. It names the most similar one, and all that there are."""
    have = f"Its options: {', '.join(known)}" if known else "It has none"
    return OptionError(f"{who} has no option {option!r}{did_you_mean(option, known)} {have}")
