"""Names -> samplers. Plug-ins are found by entry point and never break the zoo.

Two ways in, both through the pluggy hook `register_samplers`:
    group `samplers`           one sampler: the entry point's name is the sampler's, so listing imports nothing
    group `samplers.plugins`   a module or object with hook implementations, for packages that register many

pluggy's own entry-point loader stops at the first broken package and drops one of two equal names silently, so entry
points are read here, each on its own, in the order of (distribution, name).
"""

from __future__ import annotations

import fnmatch
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from . import hookspecs
from .errors import PluginError, UnknownNameError, did_you_mean

__all__ = ["FAMILIES", "Entry", "Report", "entries", "entry", "load", "names", "plugins", "reload"]

DISTRIBUTION = "sampler-zoo"
FAMILIES = ("masked", "uniform", "gaussian", "bayesian_flow")


def version() -> str:
    """The installed version of this library, or its source tree's where it is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"


@dataclass
class Entry:
    """A registered name: where it comes from, and its class once loaded."""

    name: str
    distribution: str
    version: str
    target: Any  # a Sampler subclass, 'module:Class', or an entry point
    declared_family: str | None = None
    error: str | None = None
    _cls: type | None = field(default=None, repr=False)

    @property
    def qualified(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"

    def load(self) -> type:
        """The class. PluginError with the reason where it cannot be had."""
        if self._cls is None:
            try:
                self._cls = _checked(_resolve(self.target), self.name)
            except Exception as error:
                self.error = one_line(error)
                raise PluginError(
                    f"sampler {self.name!r} was declared by {self.origin}, which is broken: {self.error}"
                ) from error
        return self._cls

    @property
    def family(self) -> str | None:
        """masked, uniform, ...; loads the class where it was not declared; None where that fails."""
        if self.declared_family is None:
            try:
                self.declared_family = self.load().family  # type: ignore[attr-defined]
            except PluginError:
                return None
        return self.declared_family


@dataclass
class Report:
    """What became of one plug-in."""

    entry_point: str
    distribution: str
    version: str
    status: str  # ok | broken | blocked | duplicate
    samplers: list[str]
    error: str | None = None


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _resolve(target: Any) -> Any:
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if isinstance(target, metadata.EntryPoint):
        return target.load()
    return target


def _checked(cls: Any, name: str) -> type:
    from .sampler import Sampler

    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise TypeError(f"{cls!r} is not a subclass of samplers.Sampler")
    if getattr(cls, "name", None) != name:
        raise TypeError(f"{cls.__qualname__}.name is {getattr(cls, 'name', None)!r}, but it is registered as {name!r}")
    if getattr(cls, "family", None) not in FAMILIES:
        raise TypeError(f"{cls.__qualname__}.family is {getattr(cls, 'family', None)!r}; known: {', '.join(FAMILIES)}")
    if "__dataclass_fields__" not in vars(cls):
        raise TypeError(f"{cls.__qualname__} needs the decorator @dataclass(frozen=True)")
    return cls


class _EntryPointPlugin:
    """An entry point of the group `samplers`, as a pluggy plug-in that registers its one name."""

    def __init__(self, point: metadata.EntryPoint):
        self._point = point

    @hookspecs.hookimpl
    def register_samplers(self, register: Any) -> None:
        register(self._point, name=self._point.name)


class _Zoo:
    def __init__(self) -> None:
        self.by_name: dict[str, list[Entry]] = {}
        self.reports: list[Report] = []
        self.manager = pluggy.PluginManager("samplers")
        self.manager.add_hookspecs(hookspecs)
        for family in ("masked", "uniform", "gaussian"):
            self._add(
                importlib.import_module(f"samplers.{family}"), f"{DISTRIBUTION}:{family}", DISTRIBUTION, version()
            )
        self._entry_points()

    def _add(self, plugin: Any, plugin_name: str, distribution: str, its_version: str) -> list[str]:
        """Register one plug-in and call its hook alone, so that the culprit of an error is known. All or nothing."""
        made: list[Entry] = []

        def register(target: Any, *, name: str | None = None, family: str | None = None) -> None:
            name = name or getattr(target, "name", None)
            if not isinstance(name, str) or not name:
                raise TypeError(f"register({target!r}): a sampler needs a name")
            made.append(Entry(name, distribution, its_version, target, family))

        self.manager.register(plugin, plugin_name)
        try:
            self.manager.check_pending()
            others = [p for p in self.manager.get_plugins() if p is not plugin]
            self.manager.subset_hook_caller("register_samplers", others)(register=register)
        except BaseException:
            self.manager.unregister(plugin)
            raise
        for item in made:
            self.by_name.setdefault(item.name, []).append(item)
        return [item.name for item in made]

    def _entry_points(self) -> None:
        only = os.environ.get("SAMPLERS_PLUGINS")
        allowed = None if only is None else {w.strip() for w in only.split(",") if w.strip() and w.strip() != "none"}
        found = [
            (point.dist.name if point.dist else "?", point.dist.version if point.dist else "?", group, point)
            for group in ("samplers", "samplers.plugins")
            for point in metadata.entry_points(group=group)
        ]
        for dist, its_version, group, point in sorted(found, key=lambda f: (f[0], f[3].name, f[2])):
            report = Report(point.name, dist, its_version, "ok", [])
            self.reports.append(report)
            if allowed is not None and not allowed & {dist, point.name}:
                report.status = "blocked"
                continue
            try:
                plugin = _EntryPointPlugin(point) if group == "samplers" else point.load()
                report.samplers = self._add(plugin, f"{dist}:{point.name}", dist, its_version)
            except Exception as error:
                report.status, report.error = "broken", one_line(error)


_zoo: _Zoo | None = None


def _get() -> _Zoo:
    global _zoo
    if _zoo is None:
        _zoo = _Zoo()
    return _zoo


def reload() -> None:
    """Forget everything; the next look-up reads the entry points again. For tests and for long-lived programs."""
    global _zoo
    _zoo = None
    importlib.invalidate_caches()


def entries() -> list[Entry]:
    """Every registered name, by name and then by distribution."""
    return [e for _, group in sorted(_get().by_name.items()) for e in group]


def entry(name: str) -> Entry:
    """The entry called `name` or 'dist:name'. UnknownNameError where there is none, or where two packages have it."""
    zoo = _get()
    dist, _, bare = name.rpartition(":")
    group = [e for e in zoo.by_name.get(bare, []) if not dist or e.distribution == dist]
    if len(group) > 1:
        origins = " and ".join(e.origin for e in group)
        choice = " or ".join(repr(e.qualified) for e in group)
        raise UnknownNameError(f"two packages register a sampler {name!r}: {origins}. Say which: {choice}")
    if group:
        return group[0]
    broken = [r for r in zoo.reports if r.status == "broken"]
    note = "".join(f" (plug-in {r.distribution} {r.version} is broken and left out: {r.error})" for r in broken)
    known = [e.name for e in entries()]
    raise UnknownNameError(
        f"unknown sampler {name!r}{did_you_mean(bare, known)} "
        f"There are {len(set(known))}; 'samplers list' shows them{note}"
    )


def entry_of(cls: type) -> tuple[str, str]:
    """(distribution, version) that registered a sampler class; ('unregistered', '') for a class made on the spot."""
    for item in _get().by_name.get(getattr(cls, "name", ""), []):
        try:
            if item.load() is cls:
                return item.distribution, item.version
        except PluginError:
            continue
    return "unregistered", ""


def load(name: str) -> type[Any]:
    """The sampler class called `name`."""
    return entry(name).load()


def names(pattern: str | Iterable[str] = "*", family: str | None = None) -> list[str]:
    """Names that match: 'dpmpp*', 'masked/*', or several patterns. A name that two packages have is shown as 'dist:name'."""
    if family is not None and family not in FAMILIES:
        raise UnknownNameError(
            f"unknown family {family!r}{did_you_mean(family, FAMILIES)} Known: {', '.join(FAMILIES)}"
        )
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found = set()
    for item in entries():
        shown = item.name if len(_get().by_name[item.name]) == 1 else item.qualified
        for one in patterns:
            wanted, _, rest = one.rpartition("/")
            if not (fnmatch.fnmatchcase(item.name, rest) or fnmatch.fnmatchcase(item.qualified, rest)):
                continue
            if wanted and not fnmatch.fnmatchcase(item.family or "", wanted):
                continue
            if family is None or item.family == family:
                found.add(shown)
    return sorted(found)


def plugins(check: bool = True) -> list[Report]:
    """What became of each third-party plug-in. With `check`, lazily declared samplers are loaded, to know."""
    zoo = _get()
    for report in zoo.reports:
        for name in report.samplers:
            group = zoo.by_name[name]
            item = next(e for e in group if e.distribution == report.distribution)
            if check and report.status in ("ok", "duplicate"):
                try:
                    item.load()
                except PluginError:
                    report.status, report.error = "broken", item.error
            if len(group) > 1 and report.status == "ok":
                others = ", ".join(e.origin for e in group if e is not item)
                report.status, report.error = "duplicate", f"{name!r} is also registered by {others}"
    return zoo.reports
