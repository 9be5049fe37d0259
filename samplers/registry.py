"""Names -> samplers. Plug-ins are found by entry point and never break the zoo.

There are two ways in:
    group `samplers`           One sampler. The entry point's name is the sampler's, so nothing is imported to list it.
    group `samplers.plugins`   A module or object that implements the pluggy hook `register_samplers`, for packages that
                               register many. It is imported when names are looked up that are not the zoo's own.

pluggy's own entry-point loader stops at the first broken package and silently drops one of two equal names. Entry points
are therefore read here, each on its own, in the order of (distribution, name).

The zoo's own names are always the zoo's: they are found without looking at any plug-in, and a plug-in that registers one
of them is reached as 'dist:name'.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .aliases import alias
from .entries import DISTRIBUTION, Entry, Report, guarded, one_line, printable, resolve, version
from .errors import PluginError, UnknownNameError, did_you_mean
from .family import BUILT_IN, family_names
from .family import forget as forget_families

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = [
    "Entry",
    "Report",
    "create",
    "entries",
    "entry",
    "entry_of",
    "guarded",
    "list_samplers",
    "load",
    "names",
    "plugins",
    "reload",
    "version",
]

GROUPS = ("samplers", "samplers.plugins")
STATUSES = ("ok", "broken", "blocked", "duplicate", "shadowed")
NAME = re.compile(r"[\w.+-]+")  # ':' separates the distribution, '/' the family, and '*?[]' are patterns


# ---------------------------------------------------------------------------------------------- finding


def _origin(point: metadata.EntryPoint) -> tuple[str, str]:
    """(distribution, version) of an entry point; '?' for what its metadata do not say."""
    try:
        dist: Any = point.dist
        return printable(str(dist.name or "")) or "?", printable(str(dist.version or "")) or "?"
    except Exception:  # no METADATA file, or no such line in it
        return "?", "?"


def _points() -> tuple[list[metadata.EntryPoint], list[Report]]:
    """The entry points of our groups, and a report for each package whose entry points cannot be read."""
    try:
        return [point for group in GROUPS for point in metadata.entry_points(group=group)], []
    except Exception:  # one unreadable entry_points.txt anywhere hides all of them: read package by package
        pass
    points: list[metadata.EntryPoint] = []
    broken: list[Report] = []
    seen = set()
    for dist in metadata.distributions():
        try:
            name, its_version = (printable(str(dist.metadata[key] or "")) or "?" for key in ("Name", "Version"))
        except Exception:
            name, its_version = "?", "?"
        if name != "?" and _canonical(name) in seen:
            continue
        seen.add(_canonical(name))
        try:
            points += [point for point in dist.entry_points if point.group in GROUPS]
        except Exception as error:
            reason = f"its entry_points.txt cannot be read: {one_line(error)}"
            broken.append(Report("entry_points.txt", name, its_version, "broken", [], reason))
    return points, broken


def _canonical(distribution: str) -> str:
    """Names of packages are compared as pip does: Zoo_One and zoo-one are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _registered(plugin: Any, distribution: str, its_version: str) -> list[Entry]:
    """What a plug-in's hook registers. All or nothing."""
    made: list[Entry] = []

    def register(
        target: Any, *, name: str | None = None, family: str | None = None, summary: str | None = None
    ) -> None:
        name = name or getattr(target, "name", None)
        if not isinstance(target, type) and not (isinstance(target, str) and ":" in target):
            raise PluginError(f"register({target!r}): give a Sampler class, or 'module:Class' with name=...")
        if family is not None and family not in family_names():
            raise PluginError(f"register({target!r}): family={family!r} is unknown; known: {', '.join(family_names())}")
        if summary is not None and not isinstance(summary, str):
            raise PluginError(f"register({target!r}): summary={summary!r} is not text")
        made.append(_entry(name, distribution, its_version, target, family, summary))

    # A manager of its own: whatever this plug-in does cannot concern another one.
    manager = pluggy.PluginManager("samplers")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()  # raises for a hook that does not exist
    hook = manager.hook.register_samplers
    if not hook.get_hookimpls():
        lacks = "lacks the decorator @samplers.hookimpl" if hasattr(plugin, "register_samplers") else "is missing"
        raise PluginError(f"the hook register_samplers(register) {lacks}")
    if "register" not in hook.get_hookimpls()[0].argnames:
        raise PluginError("the hook register_samplers must take the argument `register`")
    hook(register=register)
    return made


def _entry(
    name: Any, distribution: str, its_version: str, target: Any, family: str | None = None, summary: str | None = None
) -> Entry:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(
            f"{getattr(target, 'value', target)!r} is registered as {name!r}; a name has letters, digits and _.+- only"
        )
    return Entry(name, distribution, its_version, target, family, summary)


class _Zoo:
    """The zoo's own entries; and those of plug-ins, which are looked for when they are needed."""

    def __init__(self) -> None:
        self.own: dict[str, Entry] = {}
        for family in BUILT_IN:
            for item in _registered(importlib.import_module(f"samplers.{family}"), DISTRIBUTION, version()):
                if item.name in self.own:
                    raise PluginError(f"the zoo has two samplers called {item.name!r}")
                self.own[item.name] = item
        self._by_name: dict[str, list[Entry]] = {}
        self._reports: list[Report] = []
        self._searched = False
        self._lock = threading.RLock()

    @property
    def by_name(self) -> dict[str, list[Entry]]:
        """Entries of plug-ins by name."""
        self._find()
        return self._by_name

    @property
    def reports(self) -> list[Report]:
        """What became of each plug-in while names were looked up."""
        self._find()
        return self._reports

    def _find(self) -> None:
        with self._lock:
            if not self._searched:
                self._searched = True  # first: a plug-in may look at the registry while it is imported
                try:
                    self._search()
                except BaseException:  # Ctrl-C
                    self._searched, self._by_name, self._reports = False, {}, []
                    raise

    def _search(self) -> None:
        only = os.environ.get("SAMPLERS_PLUGINS")
        allowed = None if only is None else {w.strip() for w in only.split(",") if w.strip() and w.strip() != "none"}
        points, self._reports = _points()
        found = [(*_origin(point), point) for point in points]
        for dist, its_version, point in sorted(found, key=lambda f: (f[0], f[2].name, f[2].group)):
            report = Report(printable(point.name) or "?", dist, its_version, "ok", [])
            self._reports.append(report)
            if allowed is not None and not allowed & {dist, point.name}:
                report.status = "blocked"
                continue
            try:
                if not point.name.isprintable():
                    raise PluginError(
                        f"the name of its entry point, {point.name!r}, has characters that cannot be printed"
                    )
                if point.group == "samplers":
                    made = [_entry(point.name, dist, its_version, point)]
                else:
                    made = guarded(
                        lambda p=point, d=dist, v=its_version: _registered(resolve(p), d, v),
                        importing=f"{point.name!r} of {dist} {its_version}",
                    )
                self._add(made)
            except PluginError as error:
                report.status, report.error = "broken", str(error)
            else:
                report.items, report.samplers = made, [item.name for item in made]

    def _add(self, made: list[Entry]) -> None:
        there = {e.qualified for group in self._by_name.values() for e in group}
        for item in made:
            if item.qualified in there:
                raise PluginError(f"{item.origin} registers {item.name!r} twice")
            there.add(item.qualified)
        for item in made:
            self._by_name.setdefault(item.name, []).append(item)

    def shown(self, item: Entry) -> str:
        """The shortest name under which `entry` finds an item."""
        if item is self.own.get(item.name):
            return item.name
        clash = item.name in self.own or len(self.by_name.get(item.name, ())) > 1
        return item.qualified if clash else item.name


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
    version.cache_clear()
    forget_families()
    importlib.invalidate_caches()


# ---------------------------------------------------------------------------------------------- looking up


def entries() -> list[Entry]:
    """Every registered name, by name; the zoo's own before a plug-in's, and these by distribution."""
    zoo = _get()
    known = {name: [item] for name, item in zoo.own.items()}
    for name, group in zoo.by_name.items():
        known[name] = known.get(name, []) + group
    return [item for _, group in sorted(known.items()) for item in group]


def entry(name: str) -> Entry:
    """The entry called `name` or 'dist:name'.

    Raises:
        UnknownNameError: nobody registered it, or two plug-ins did and the name does not say which.
    """
    if not isinstance(name, str):
        raise UnknownNameError(f"a sampler's name is a text such as 'radd', not {name!r}")
    zoo = _get()
    dist, _, bare = name.rpartition(":")
    own = zoo.own.get(bare)
    if own is None and (meant := alias(name, zoo.own)) is not None:
        return zoo.own[meant[0]]
    if own is not None and (not dist or _canonical(dist) == DISTRIBUTION):
        return own  # without looking at any plug-in: none can take this name, slow it down, or break it
    group = [e for e in zoo.by_name.get(bare, []) if not dist or _canonical(e.distribution) == _canonical(dist)]
    if len(group) > 1:
        origins = " and ".join(e.origin for e in group)
        choice = " or ".join(repr(e.qualified) for e in group)
        raise UnknownNameError(f"two packages register a sampler {name!r}: {origins}. Say which: {choice}")
    if group:
        return group[0]
    broken = [r for r in zoo.reports if r.status == "broken"]
    note = "".join(f" (plug-in {r.distribution} {r.version} is broken and left out: {r.error})" for r in broken[:1])
    if len(broken) > 1:
        note += f" ({len(broken) - 1} more are broken: see 'samplers plugins')"
    known = [zoo.shown(e) for e in entries()]
    raise UnknownNameError(
        f"unknown sampler {name[:80]!r}{did_you_mean(bare, known)} There are {len(known)}; 'samplers list' shows them{note}"
    )


def entry_of(cls: type) -> tuple[str, str]:
    """(distribution, version) that registered a sampler class; ('unregistered', '') for a class made on the spot."""
    zoo = _get()
    name = getattr(cls, "name", "")
    own = zoo.own.get(name)
    for item in [own] if own is not None and cls.__module__.startswith("samplers.") else zoo.by_name.get(name, []):
        target = item.target_text
        # A class that exists was imported; one whose module was not is another class, and stays unloaded.
        if target is not None and target.partition(":")[0].strip() not in sys.modules:
            continue
        try:
            if item.load() is cls:
                return item.distribution, item.version
        except PluginError:
            continue
    return "unregistered", ""


def load(name: str) -> type[Any]:
    """The sampler class called `name`. Raises as `create` does."""
    return entry(name).load()


def create(name: str, **options: Any) -> Sampler:
    """The sampler called `name` with these options.

    Args:
        name: such as 'radd'; or 'dist:name', for a plug-in whose name another package or the zoo has as well; or what
            another library calls one of ours (samplers.aliases), such as 'DPM++ 2M Karras', whose options come first.

    Raises:
        UnknownNameError: nobody registered it; the message has the nearest names.
        OptionError: an option is unknown, or its value is out of bounds.
        PluginError: it comes from a plug-in that is broken.
    """
    cls = load(name)
    meant = alias(name, _get().own) if name not in _get().own else None
    return cls.make(**{**(meant[1] if meant else {}), **options})


def list_samplers(pattern: str | Iterable[str] = "*", family: str | None = None, *, imports: bool = True) -> list[str]:
    """The names that match a shell pattern ('dpmpp*', 'masked/*') or one of several, sorted.

    A sampler whose name another package or the zoo has as well is listed as 'dist:name'.

    Args:
        family: only samplers of this family.
        imports: if a family is asked for, plug-ins are imported, and those that are broken are left out. False: nothing is
            imported, and the family is what their source or registration says.

    Raises:
        UnknownNameError: there is no such family.
    """
    if family is not None and family not in (known := family_names()):
        raise UnknownNameError(f"unknown family {family!r}{did_you_mean(family, known)} Known: {', '.join(known)}")
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found, zoo = set(), _get()

    def is_of(item: Entry, wanted: str) -> bool:
        return fnmatch.fnmatchcase((item.family if imports else item.said("family")) or "", wanted)

    for item in entries():
        shown = zoo.shown(item)
        # A plug-in's 'threshold' is not what the zoo's name asks for.
        called = {shown, item.qualified} | ({item.name} if item.name not in zoo.own else set())
        for one in patterns:
            wanted, _, rest = one.rpartition("/")
            if (
                any(fnmatch.fnmatchcase(c, rest) for c in called)
                and (not wanted or is_of(item, wanted))
                and (family is None or is_of(item, family))
            ):
                found.add(shown)
    for one in patterns:
        if (meant := alias(one, zoo.own)) and (family is None or zoo.own[meant[0]].said("family") == family):
            found.add(meant[0])
    return sorted(found)


names = list_samplers  # what the rest of the library calls it


def plugins(check: bool = True) -> list[Report]:
    """What became of each third-party plug-in.

    Args:
        check: also load every sampler of theirs, which is the only way to know whether it works. Without it, 'ok' says
            that it is registered.
    """
    zoo = _get()
    made = []
    for report in zoo.reports:
        troubles: dict[str, list[str]] = {"broken": [], "duplicate": [], "shadowed": []}
        for item in report.items:
            if check:
                try:
                    item.check()
                except PluginError:
                    which = f"{item.name!r}: " if len(report.items) > 1 else ""
                    troubles["broken"].append(f"{which}{item.error}")
            others = ", ".join(e.origin for e in zoo.by_name[item.name] if e is not item)
            if item.name in zoo.own:
                troubles["shadowed"].append(f"shadowed by the zoo's own {item.name!r}; use {item.qualified!r}")
            elif others:
                troubles["duplicate"].append(f"{item.name!r} is also registered by {others}; use {item.qualified!r}")
        found = [(status, text) for status, texts in troubles.items() for text in texts]
        if found:
            report = dataclasses.replace(report, status=found[0][0], error="; ".join(text for _, text in found))
        made.append(report)
    return made
