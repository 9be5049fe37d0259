"""Entries of the registry: a name, where it comes from, and the thing itself once loaded."""

from __future__ import annotations

import functools
import importlib
import inspect
import numbers
import re
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ._declared import STATEMENT, interface, literals
from .errors import PluginError, SamplersError
from .guard import guarded, printable
from .kinds import KINDS

__all__ = [
    "DISTRIBUTION",
    "INTERFACE",
    "Entry",
    "Report",
    "check_interface",
    "module_of",
    "resolve",
    "version",
]

DISTRIBUTION = "sampler-zoo"
INTERFACE = 1  # the version of what plug-ins may use; it is raised when a plug-in that works would no longer do so
_MISSING: Any = object()


@functools.cache  # it reads files, and every cell of a sweep asks
def version() -> str:
    """The installed version of this library; '0+source' if it is used from its source tree without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"


def resolve(target: Any) -> Any:
    """The object that an entry point or 'module:object' names; any other target as it is."""
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


def module_of(target: str) -> str:
    """The module of 'module', 'module:object' or either followed by '[extras]'."""
    return target.partition(":")[0].partition("[")[0].strip()


def _interface_trouble(stated: Any, distribution: str) -> str | None:
    """What is wrong with the interface that a plug-in says it was written for, or None."""
    if stated is None or (type(stated) is int and stated == INTERFACE):
        return None
    if type(stated) is not int or not 1 <= stated < 10**9:  # a longer one might not be printable
        return f"{STATEMENT} is {stated!r}; it is a whole number of 1 or more, now {INTERFACE}"
    what = f"written for interface {stated} of sampler-zoo, and this is interface {INTERFACE}: "
    if stated > INTERFACE:
        return what + f"upgrade sampler-zoo (this is {version()})"
    return what + f"upgrade {distribution}; the changelog of sampler-zoo says what has changed"


def check_interface(target: str, distribution: str, *, imported: bool = False) -> None:
    """PluginError if the module of 'module:object', or a package that it is in, was written for another interface.

    Args:
        imported: read the attribute of the module that was imported; otherwise the literal in its source.
    """
    module = module_of(target)
    stated: Any = None
    if imported:
        parts = module.split(".")
        for n in range(len(parts), 0, -1):
            stated = getattr(sys.modules.get(".".join(parts[:n])), STATEMENT, None)
            if stated is not None:
                break
    else:
        stated = interface(module)
    if trouble := _interface_trouble(stated, distribution):
        raise PluginError(trouble)


# ---------------------------------------------------------------------------------------------- entries


@dataclass(eq=False)
class Entry:
    """A registered name: where it comes from, and the thing once it is loaded.

    Attributes:
        target: the thing, 'module:object', or an entry point.
        declared_family, declared_summary: what it was registered with, if anything.
        kind: what it is, one of samplers.kinds.KINDS.
        registered: 'file:line' of the call of register(), if there was one.
        entry_point: the entry point through which it was found, as 'group:name'; None for the zoo's own.
        error: why it could not be loaded or is wrong, once that is known.
        changes: names of global state that its import changed, and that was put back.
    """

    name: str
    distribution: str
    version: str
    target: Any
    declared_family: str | None = None
    declared_summary: str | None = None
    kind: str = "samplers"
    registered: str | None = None
    entry_point: str | None = None
    error: str | None = None
    changes: list[str] = field(default_factory=list, repr=False)
    _object: Any = field(default=_MISSING, repr=False)
    _read: dict[str, str] | None = field(default=None, repr=False)

    @property
    def qualified(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def own(self) -> bool:
        """Whether it is the zoo's."""
        return self.distribution == DISTRIBUTION

    @property
    def target_text(self) -> str | None:
        """'module:object' of a target that is still to be imported."""
        if isinstance(self.target, metadata.EntryPoint):
            return self.target.value
        return self.target if isinstance(self.target, str) else None

    @property
    def module(self) -> str | None:
        """The module of what was registered."""
        text = self.target_text
        return module_of(text) if text is not None else getattr(self.target, "__module__", None)

    @property
    def where(self) -> str | None:
        """'file:line' of the thing once it is loaded, before that of its registration; None if neither is known."""
        found = self.target if self.target_text is None else self._object
        if found is not _MISSING:
            try:
                return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}"
            except (OSError, TypeError):
                pass
        return self.registered

    def interface_trouble(self) -> str | None:
        """What is wrong with the interface that its source says it was written for, or None; nothing is imported."""
        try:
            if not self.own and self.target_text is not None:
                check_interface(self.target_text, self.distribution)
        except PluginError as error:
            return str(error)
        return None

    def load(self) -> Any:
        """The thing: a sampler class, a function that makes a schedule, a problem class, and so on.

        Raises:
            PluginError: it cannot be imported, or is none; with the reason.
        """
        if self._object is _MISSING:
            importing = None if self.own else f"{self.name!r} of {self.origin}"
            kind = KINDS[self.kind]
            try:
                if trouble := self.interface_trouble():
                    raise PluginError(trouble)
                found = guarded(lambda: resolve(self.target), importing=importing, changes=self.changes)
                if not self.own and self.target_text is not None:
                    guarded(functools.partial(check_interface, self.target_text, self.distribution, imported=True))
                self._object = guarded(kind.check, found, self.name, self.declared_family)
            except PluginError as error:
                self.error = str(error)
                raise PluginError(
                    f"{kind.one} {self.name!r} was declared by {self.origin}, which is broken: {self.error}"
                ) from error
        return self._object

    def said(self, key: str) -> str | None:
        """The thing's `name`, `family`, `summary` or `cite`, as far as it is known without importing anything."""
        declared = {"family": self.declared_family, "summary": self.declared_summary}.get(key)
        found = self.target if self.target_text is None else self._object
        if self.kind == "samplers" and isinstance(found, type):
            value = getattr(found, key, None)
            return printable(value) if isinstance(value, str) else None
        if declared is not None:
            return printable(declared)
        if found is not _MISSING:
            value = getattr(found, key, None)
            if key == "summary" and not isinstance(value, str):
                value = (inspect.getdoc(found) or "").partition("\n")[0] or None
            return printable(value) if isinstance(value, str) else None
        if self._read is None:
            self._read = {k: printable(text) for k, text in literals(self.target_text or "").items()}
        if key == "summary" and self.kind != "samplers":
            return self._read.get(key, self._read.get("doc"))
        return self._read.get(key)

    @property
    def family(self) -> str | None:
        """Its family: of the zoo's own what is declared, of others what the class says, once it is loaded.

        None if it cannot be loaded. `said("family")` loads nothing.
        """
        if self.own and self.declared_family is not None:
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
        """Load the thing, and ask it all that the command line asks. PluginError if anything is wrong; kept in `error`."""
        if self.kind != "samplers":
            self.load()
            return
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
            the name); meddles (its import changed global state, which was put back). A duplicate or shadowed name is
            reached as 'dist:name'.
        samplers: the names of samplers that it registers.
        error: what is wrong, in one line.
        others: the names of other things that it registers, by kind.
    """

    entry_point: str
    distribution: str
    version: str
    status: str
    samplers: list[str]
    error: str | None = None
    items: list[Entry] = field(default_factory=list, repr=False)
    others: dict[str, list[str]] = field(default_factory=dict)
