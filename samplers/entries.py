"""Entries of the registry: a name, where it comes from, and its class once loaded. Other people's code runs here, guarded.

What a plug-in prints, raises or gets wrong becomes one line of text in a PluginError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import numbers
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

from ._declared import literals
from .errors import PluginError, SamplersError
from .family import family_names

__all__ = ["DISTRIBUTION", "Entry", "Report", "guarded", "one_line", "printable", "resolve", "version"]

DISTRIBUTION = "sampler-zoo"

T = TypeVar("T")


@functools.cache  # it reads files, and every cell of a sweep asks
def version() -> str:
    """The installed version of this library; '0+source' if it is used from its source tree without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"


def one_line(error: BaseException, limit: int = 400) -> str:
    """'Type: message' on one line of printable characters, also for an error whose message cannot be had."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException as worse:
        if type(worse) is KeyboardInterrupt:
            raise
        text = f"(its message cannot be shown: str() raises {type(worse).__name__})"
    text = printable(text, limit)
    return f"{kind}: {text}" if text else kind


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, without what a terminal would act on, cut off at `limit`."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[:limit] + " [...]"


# ---------------------------------------------------------------------------------------------- other people's code

_swap = threading.Lock()
_quiet: list[Any] = []  # the stdout to restore, once per call that is under way


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """Send what is printed meanwhile to stderr, so that it does not end up in a table or in JSON.

    Not contextlib.redirect_stdout: when two threads overlap, that one leaves stdout redirected for good.
    """
    with _swap:
        _quiet.append(_quiet[0] if _quiet else sys.stdout)
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        with _swap:
            stdout = _quiet.pop()
            if not _quiet:
                sys.stdout = stdout


def guarded(run: Callable[..., T], *args: Any, importing: str | None = None) -> T:
    """Call a plug-in's code. What it prints goes to stderr.

    Args:
        importing: the plug-in that `run` imports, if it does; a KeyboardInterrupt then says so.

    Raises:
        PluginError: whatever it raised, as one line.
        KeyboardInterrupt: the user pressed Ctrl-C, or the plug-in raises it.
    """
    try:
        with _prints_to_stderr():
            return run(*args)
    except PluginError as error:
        raise PluginError(printable(str(error))) from error
    except BaseException as error:
        # A plug-in that raises KeyboardInterrupt itself cannot be told from the user's Ctrl-C, and Ctrl-C must work:
        # that one class passes. Its subclasses, SystemExit and any other BaseException are the plug-in's doing.
        if type(error) is KeyboardInterrupt:
            if importing is None:
                raise
            raise KeyboardInterrupt(f"while plug-in {importing} was being imported") from error
        raise PluginError(one_line(error)) from error


def resolve(target: Any) -> Any:
    """The object that an entry point or 'module:Class' names; any other target as it is."""
    if isinstance(target, metadata.EntryPoint):
        target = target.value
    if not isinstance(target, str):
        return target
    if not (found := re.fullmatch(r"\s*([\w.]+)\s*(?::\s*([\w.]+)\s*)?(?:\[.*\]\s*)?", target)):
        raise PluginError(f"{target!r} is not written module:Class")
    value: Any = importlib.import_module(found[1])
    for part in (found[2] or "").split(".") if found[2] else ():
        value = getattr(value, part)
    return value


def _checked(cls: Any, name: str, family: str | None) -> type:
    """`cls`, if it is a sampler that can be run under `name`; PluginError with the reason if it is not."""
    from .sampler import Sampler

    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise PluginError(f"{cls!r} is not a subclass of samplers.Sampler")
    who = cls.__qualname__
    said = {key: getattr(cls, key, None) for key in ("name", "family", "cite", "summary")}
    if said["name"] != name:
        raise PluginError(f"{who}.name is {said['name']!r}, but it is registered as {name!r}")
    if said["family"] not in family_names():
        raise PluginError(f"{who}.family is {said['family']!r}; known: {', '.join(family_names())}")
    if family is not None and said["family"] != family:
        raise PluginError(f"{who}.family is {said['family']!r}, but it is registered with family={family!r}")
    for key in ("cite", "summary"):
        if not isinstance(said[key], str):
            raise PluginError(f"{who}.{key} is {said[key]!r}, not text")
    if "__dataclass_fields__" not in vars(cls):
        raise PluginError(f"{who} needs the decorator @dataclass(frozen=True)")
    if cls.step is Sampler.step:
        raise PluginError(f"{who} has no step method")
    try:
        inspect.signature(cls.step).bind(None, None, None)
    except TypeError as error:
        raise PluginError(f"{who}.step must take (self, predict, state): {error}") from error
    for one in dataclasses.fields(cls):
        if one.default is dataclasses.MISSING:
            raise PluginError(f"option {one.name!r} of {who} has no default")
    try:
        cls()
    except Exception as error:
        raise PluginError(f"{who} cannot be made with its defaults: {one_line(error)}") from error
    return cls


# ---------------------------------------------------------------------------------------------- entries


@dataclass
class Entry:
    """A registered name: where it comes from, and its class once it is loaded.

    Attributes:
        target: a Sampler subclass, 'module:Class', or an entry point.
        declared_family, declared_summary: what it was registered with, if anything.
        error: why the class could not be loaded or is wrong, once that is known.
    """

    name: str
    distribution: str
    version: str
    target: Any
    declared_family: str | None = None
    declared_summary: str | None = None
    error: str | None = None
    _cls: type | None = field(default=None, repr=False)
    _read: dict[str, str] | None = field(default=None, repr=False)

    @property
    def qualified(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def target_text(self) -> str | None:
        """'module:Class' of a target that is still to be imported."""
        if isinstance(self.target, metadata.EntryPoint):
            return self.target.value
        return self.target if isinstance(self.target, str) else None

    def load(self) -> type[Any]:
        """The class.

        Raises:
            PluginError: it cannot be imported, or is no sampler; with the reason.
        """
        if self._cls is None:
            try:
                self._cls = guarded(
                    lambda: _checked(resolve(self.target), self.name, self.declared_family),
                    importing=None if self.distribution == DISTRIBUTION else f"{self.name!r} of {self.origin}",
                )
            except PluginError as error:
                self.error = str(error)
                raise PluginError(
                    f"sampler {self.name!r} was declared by {self.origin}, which is broken: {self.error}"
                ) from error
        return self._cls

    def said(self, key: str) -> str | None:
        """The class's `name`, `family`, `summary` or `cite`, as far as it is known without importing anything."""
        cls = self._cls or (self.target if isinstance(self.target, type) else None)
        if cls is not None:
            value = getattr(cls, key, None)
            return printable(value) if isinstance(value, str) else None
        declared = {"family": self.declared_family, "summary": self.declared_summary}.get(key)
        if declared is not None:
            return printable(declared)
        if self._read is None:
            self._read = {k: printable(text) for k, text in literals(self.target_text or "").items()}
        return self._read.get(key)

    @property
    def family(self) -> str | None:
        """Its family: of the zoo's own what is declared, of others what the class says, once it is loaded.

        None if it cannot be loaded. `said("family")` loads nothing.
        """
        if self.distribution == DISTRIBUTION and self.declared_family is not None:
            return self.declared_family
        try:
            return self.load().family
        except PluginError:
            return None

    def expected_nfe(self, length: int, steps: int) -> float | None:
        """The class's own expectation with default options; None if it has none, or declines these numbers.

        Raises:
            PluginError: it raised something else, or returned what is no number.
        """
        cls = self.load()
        call = f"{cls.__qualname__}.expected_nfe({length}, {steps})"

        def ask() -> Any:
            try:
                return cls().expected_nfe(length, steps)
            except SamplersError:
                return None

        try:
            value = guarded(ask)
        except PluginError as error:
            raise PluginError(f"{call} raises {error}") from error
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise PluginError(f"{call} returns {value!r}, not a number or None")
        return float(value)

    def check(self) -> None:
        """Load the class, and ask it all that the command line asks. PluginError if anything is wrong; kept in `error`."""
        try:
            self.expected_nfe(64, 16)
        except PluginError as error:
            self.error = self.error or str(error)
            raise


@dataclass
class Report:
    """What became of one plug-in.

    Attributes:
        status: ok; broken; blocked (by SAMPLERS_PLUGINS); duplicate (another package has the name); shadowed (the zoo has
            the name). A duplicate or shadowed sampler is reached as 'dist:name'.
        samplers: the names that it registers.
        error: what is wrong, in one line.
    """

    entry_point: str
    distribution: str
    version: str
    status: str
    samplers: list[str]
    error: str | None = None
    items: list[Entry] = field(default_factory=list, repr=False)
