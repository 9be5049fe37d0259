"""Names -> samplers, and all other things that have a name. Plug-ins are found by entry point and never break the zoo.

There are two ways in, for each kind of things (samplers/kinds.py):
    group `samplers`, `samplers.grids`, ...
                               One thing. The entry point's name is the thing's, so nothing is imported to list it.
    group `samplers.plugins`   A module or object that implements pluggy hooks such as `register_samplers`, for packages that
                               register many. What it registers is read from its source where that can be told; it is
                               imported when a name is looked up that is not known otherwise.

pluggy's own entry-point loader stops at the first broken package and silently drops one of two equal names. Entry points
are therefore read here, each on its own, in the order of (distribution, name).

The zoo's own names are always the zoo's: they are found without looking at any plug-in, and a plug-in that registers one
of them is reached as 'dist:name'. What other libraries call our samplers (samplers/aliases.py) are not our names: a plug-in's
name comes first.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import inspect
import math
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from ._declared import registrations
from .aliases import alias
from .entries import DISTRIBUTION, INTERFACE, Entry, Report, check_interface, module_of, resolve, version
from .errors import OptionError, PluginError, SamplersError, UnknownNameError, did_you_mean
from .family import BUILT_IN, family_names
from .guard import guarded, one_line, printable, traced
from .kinds import KINDS, kind_of

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = [
    "DISTRIBUTION",
    "INTERFACE",
    "KINDS",
    "Entry",
    "Report",
    "called",
    "create",
    "entries",
    "entry",
    "entry_of",
    "find",
    "guarded",
    "has",
    "incomplete",
    "list_samplers",
    "listed",
    "load",
    "made",
    "names",
    "names_of",
    "one_line",
    "origin_of",
    "own_names",
    "plugins",
    "provenance",
    "reload",
    "remember",
    "stands_for",
    "version",
]

PLUGINS = "samplers.plugins"
GROUPS = {kind.group: kind.name for kind in KINDS.values()}
HOOKS = {kind.hook: kind.name for kind in KINDS.values()}
STATUSES = ("ok", "broken", "blocked", "duplicate", "shadowed", "meddles")
NAME = re.compile(r"[\w.+-]+")  # ':' separates the distribution, '/' the family, and '*?[]' are patterns


# ---------------------------------------------------------------------------------------------- finding


def _origin(point: metadata.EntryPoint) -> tuple[str, str]:
    """(distribution, version) of an entry point; '?' for what its metadata do not say."""
    try:
        about: Any = point.dist.metadata  # type: ignore[union-attr]
        return printable(str(about["Name"] or "")) or "?", printable(str(about["Version"] or "")) or "?"
    except Exception:  # no METADATA file
        return "?", "?"


def _points() -> tuple[list[metadata.EntryPoint], list[Report]]:
    """The entry points of our groups, and a report for each package whose entry points cannot be read."""
    groups = [*GROUPS, PLUGINS]
    try:
        every = metadata.entry_points()  # once: each call reads the files of all packages
        return [point for group in groups for point in every.select(group=group)], []
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
            points += [point for point in dist.entry_points if point.group in groups]
        except Exception as error:
            reason = f"its entry_points.txt cannot be read: {one_line(error)}"
            broken.append(Report("entry_points.txt", name, its_version, "broken", [], reason))
    return points, broken


def _canonical(distribution: str) -> str:
    """Names of packages are compared as pip does: Zoo_One and zoo-one are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _registered(plugin: Any, distribution: str, its_version: str, entry_point: str | None = None) -> list[Entry]:
    """What a plug-in's hooks register. All or nothing."""
    made: list[Entry] = []

    def register_of(kind: str) -> Any:
        what = KINDS[kind].what

        def register(
            target: Any, *, name: str | None = None, family: str | None = None, summary: str | None = None
        ) -> None:
            text = isinstance(target, str)
            if name is None and not text:
                name = getattr(target, "name", None) or getattr(target, "__name__", None)
            fits = ":" in target if text else isinstance(target, type) if kind == "samplers" else target is not None
            if not fits:
                raise PluginError(f"register({target!r}): give {what}, or 'module:{_word(kind)}' with name=...")
            if summary is not None and not isinstance(summary, str):
                raise PluginError(f"register({target!r}): summary={summary!r} is not text")
            caller = sys._getframe(1)
            place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            item = _entry(kind, name, distribution, its_version, target, family, summary)
            made.append(dataclasses.replace(item, registered=place, entry_point=entry_point))

        return register

    # A manager of its own: whatever this plug-in does cannot concern another one.
    manager = pluggy.PluginManager("samplers")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()  # raises for a hook that does not exist
    found = {hook: getattr(manager.hook, hook).get_hookimpls() for hook in HOOKS}
    bare = [hook for hook in HOOKS if not found[hook] and hasattr(plugin, hook)]
    if bare:
        raise PluginError(f"the hook {bare[0]}(register) lacks the decorator @samplers.hookimpl")
    if not any(found.values()):
        others = ", ".join(hook for hook in HOOKS if hook != "register_samplers")
        raise PluginError(f"the hook register_samplers(register) is missing, and so are {others}: one is needed")
    for hook, (implementation, *_) in ((hook, impls) for hook, impls in found.items() if impls):
        if "register" not in implementation.argnames:
            raise PluginError(f"the hook {hook} must take the argument `register`")
        with traced(f"hook {hook} of {getattr(plugin, '__name__', plugin)} ({distribution} {its_version})"):
            returned = getattr(manager.hook, hook)(register=register_of(HOOKS[hook]))
        for one in returned:
            if inspect.isgenerator(one) or inspect.iscoroutine(one):  # nothing of it has run
                one.close()
                raise PluginError(
                    f"the hook {hook} is a {type(one).__name__}: make it a plain function, without yield or async"
                )
    if distribution != DISTRIBUTION:
        families = (*family_names(), *(item.name for item in made if item.kind == "families"))
        for item in made:
            if item.declared_family not in (None, *families):
                what = f"register({item.target!r}): family={item.declared_family!r}"
                raise PluginError(f"{what} is unknown; known: {', '.join(families)}")
    return made


def _word(kind: str) -> str:
    return "Class" if kind in ("samplers", "problems", "caches") else "object"


def _entry(
    kind: str,
    name: Any,
    distribution: str,
    its_version: str,
    target: Any,
    family: str | None = None,
    summary: str | None = None,
) -> Entry:
    # The zoo's own may have other names as well, such as "ays:sd15": they are found as they are, before a ':' is looked for.
    if not isinstance(name, str) or not (NAME.fullmatch(name) or distribution == DISTRIBUTION):
        raise PluginError(
            f"{getattr(target, 'value', target)!r} is registered as {name!r}; a name has letters, digits and _.+- only"
        )
    # A text of a class of the plug-in's own could answer == and hash() as it likes.
    return Entry(str.__str__(name), distribution, its_version, target, family, summary, kind)


@dataclass(eq=False)
class _Source:
    """An entry point, and what it registers.

    Attributes:
        point: a module of hooks that is not imported so far; None: there is none, or it was imported.
        whole: whether the report's items are all that it registers.
    """

    report: Report
    point: metadata.EntryPoint | None = None
    whole: bool = True
    busy: bool = False

    def take(self, items: list[Entry]) -> None:
        report = self.report
        report.items, report.samplers = items, [item.name for item in items if item.kind == "samplers"]
        report.others = {}
        for item in items:
            if item.kind != "samplers":
                report.others.setdefault(item.kind, []).append(item.name)


class _Zoo:
    """The zoo's own entries; and those of plug-ins, which are looked for when they are needed."""

    def __init__(self) -> None:
        self.own: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for module in (*(f"samplers.{family}" for family in BUILT_IN), "samplers.builtin"):
            for item in _registered(importlib.import_module(module), DISTRIBUTION, version()):
                if item.name in self.own[item.kind]:
                    raise PluginError(f"the zoo has two {item.kind} called {item.name!r}")
                self.own[item.kind][item.name] = item
        self.origins: dict[int, tuple[Any, Entry]] = {}
        self._sources: list[_Source] | None = None
        self._by_name: dict[str, dict[str, list[Entry]]] | None = None
        self._lock = threading.RLock()

    @property
    def sources(self) -> list[_Source]:
        with self._lock:
            if self._sources is None:
                self._sources = []  # first: a plug-in may look at the registry while it is imported
                try:
                    self._sources = self._search()
                    self._by_name = None
                except BaseException:  # Ctrl-C
                    self._sources = None
                    raise
            return self._sources

    def known(self, kind: str) -> dict[str, list[Entry]]:
        """Entries of plug-ins by name, as far as they are known now; nothing is imported."""
        sources = self.sources
        with self._lock:
            if self._by_name is None:
                self._by_name = {name: {} for name in KINDS}
                for item in (item for source in sources for item in source.report.items):
                    self._by_name[item.kind].setdefault(item.name, []).append(item)
            return self._by_name[kind]

    def named(self, kind: str, bare: str, dist: str = "") -> list[Entry]:
        """The plug-ins' entries of a name, from one distribution or all."""
        return [
            item
            for item in self.known(kind).get(bare, [])
            if not dist or _canonical(item.distribution) == _canonical(dist)
        ]

    def look_up(self, kind: str, bare: str, dist: str = "") -> list[Entry]:
        """The same. Modules of hooks are imported if the name is not known without, or is from one that may register more."""
        found = self.named(kind, bare, dist)
        if found and not any(self._is_open(item) for item in found):
            return found
        self.import_hooks(dist, [item for item in found if self._is_open(item)] or None)
        return self.named(kind, bare, dist)

    def _is_open(self, item: Entry) -> bool:
        return any(not source.whole and item in source.report.items for source in self.sources)

    def import_hooks(
        self, dist: str = "", of: list[Entry] | None = None, *, loaded: bool = False, every: bool = False
    ) -> None:
        """Import modules of hooks that may register more than is known.

        Args:
            dist: only those of this distribution. of: only those that register one of these.
            loaded: only those whose module is imported already. every: also those whose source tells all.
        """
        for source in self.sources:
            report, point = source.report, source.point
            if point is None or source.busy or (source.whole and not every):
                continue
            if dist and _canonical(report.distribution) != _canonical(dist):
                continue
            if of is not None and not any(item in report.items for item in of):
                continue
            if loaded and module_of(point.value) not in sys.modules:
                continue
            self._import(source, point)

    def _import(self, source: _Source, point: metadata.EntryPoint) -> None:
        report = source.report
        changes: list[str] = []
        with self._lock:
            source.busy = True
            try:
                who = f"{point.name!r} of {report.distribution} {report.version}"
                place = f"{point.group}:{point.name}"

                def imported() -> list[Entry]:
                    plugin = resolve(point)
                    check_interface(point.value, report.distribution, imported=True)
                    return _registered(plugin, report.distribution, report.version, place)

                # The hooks as well: they may import more, and what they change is put back like the rest.
                items = guarded(imported, importing=who, changes=changes)
                self._refuse_twice(items, source)
                # What was found in the source keeps its object: somebody may have it already.
                before = {(item.kind, item.name, item.target): item for item in report.items}
                source.take([before.get((i.kind, i.name, i.target_text), i) for i in items])
            except PluginError as error:
                source.take([])
                report.status, report.error = "broken", str(error)
            finally:
                source.busy = False
            if changes:
                report.status = report.status if report.status == "broken" else "meddles"
                report.error = "; ".join(filter(None, (report.error, _meddling(changes))))
            source.point, source.whole = None, True
            self._by_name = None

    def _refuse_twice(self, items: list[Entry], source: _Source | None = None) -> None:
        others = (i for s in self._sources or () if s is not source for i in s.report.items)
        there = {(item.kind, item.qualified) for item in others}
        for item in items:
            if (item.kind, item.qualified) in there:
                raise PluginError(f"{item.origin} registers {item.name!r} twice")
            there.add((item.kind, item.qualified))

    def _search(self) -> list[_Source]:
        only = os.environ.get("SAMPLERS_PLUGINS")
        words = None if only is None else {w.strip() for w in only.split(",")} - {"", "none"}
        packages = {_canonical(w) for w in words or ()}
        points, broken = _points()
        sources = self._sources = [_Source(report) for report in broken]
        origin = {id(point.dist): _origin(point) for point in {id(p.dist): p for p in points}.values()}
        found = [(*origin[id(point.dist)], point) for point in points]
        for dist, its_version, point in sorted(found, key=lambda f: (f[0], f[2].name, f[2].group)):
            report = Report(printable(point.name) or "?", dist, its_version, "ok", [])
            source = _Source(report)
            if words is not None and point.name not in words and _canonical(dist) not in packages:
                report.status = "blocked"
                sources.append(source)
                continue
            try:
                if not point.name.isprintable():
                    raise PluginError(
                        f"the name of its entry point, {point.name!r}, has characters that cannot be printed"
                    )
                if _canonical(dist) == DISTRIBUTION:
                    raise PluginError(f"its package is called {dist!r}, as the zoo itself is: give it another name")
                place = f"{point.group}:{point.name}"
                if point.group == PLUGINS:
                    check_interface(point.value, dist)
                    items, source.whole = _read(point, dist, its_version, place)
                    source.point = point
                else:
                    item = _entry(GROUPS[point.group], point.name, dist, its_version, point)
                    items = [dataclasses.replace(item, entry_point=place)]
                self._refuse_twice(items)
                source.take(items)
            except PluginError as error:
                report.status, report.error = "broken", str(error)
            sources.append(source)
        return sources

    def shown(self, item: Entry) -> str:
        """The shortest name under which `entry` finds an item."""
        own = self.own[item.kind]
        if item is own.get(item.name):
            return item.name
        clash = item.name in own or len(self.known(item.kind).get(item.name, ())) > 1
        return item.qualified if clash else item.name


def _read(point: metadata.EntryPoint, dist: str, its_version: str, place: str) -> tuple[list[Entry], bool]:
    """What a module of hooks registers according to its source, and whether that is all."""
    if ":" in point.value:  # an object, whose methods are the hooks
        return [], False
    declared, whole = registrations(module_of(point.value), HOOKS)
    items = []
    for one in declared:
        if not NAME.fullmatch(one.name):
            whole = False  # importing it will say what is wrong
            continue
        item = _entry(HOOKS[one.hook], one.name, dist, its_version, one.target, one.family, one.summary)
        items.append(dataclasses.replace(item, registered=one.place, entry_point=place))
    return items, whole


def _meddling(changes: list[str]) -> str:
    return f"its import changed {', '.join(changes)}; that was put back, and it must not do so"


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
    importlib.invalidate_caches()


# ---------------------------------------------------------------------------------------------- looking up


def own_names(kind: str) -> tuple[str, ...]:
    """The zoo's own names of a kind, in the order in which they are registered."""
    return tuple(_get().own[kind_of(kind).name])


def entries(kind: str = "samplers", *, imports: bool = True) -> list[Entry]:
    """Every registered name of a kind, by name; the zoo's own before a plug-in's, and these by distribution.

    Args:
        imports: modules of hooks whose source does not tell all that they register are imported. False: nothing is, and
            `incomplete()` says who may register more.
    """
    zoo, kind = _get(), kind_of(kind).name
    if imports:
        zoo.import_hooks()
    known = {name: [item] for name, item in zoo.own[kind].items()}
    for name, group in zoo.known(kind).items():
        known[name] = known.get(name, []) + group
    return [item for _, group in sorted(known.items()) for item in group]


def incomplete() -> list[str]:
    """The packages, such as 'zoo-one 1.0', that may register more than can be told without importing them."""
    found = (source.report for source in _get().sources if source.point is not None and not source.whole)
    return list(dict.fromkeys(f"{report.distribution} {report.version}" for report in found))


def _look_up(name: str, kind: str) -> tuple[Entry | None, list[Entry]]:
    """The zoo's own entry of a name, or those of plug-ins."""
    zoo = _get()
    own = zoo.own[kind].get(name)
    if own is None and _canonical(name.rpartition(":")[0]) == DISTRIBUTION:
        own = zoo.own[kind].get(name.partition(":")[2])
    if own is not None:
        return own, []  # without looking at any plug-in: none can take this name, slow it down, or break it
    dist, _, bare = name.rpartition(":")
    return None, zoo.look_up(kind, bare, dist)


def has(kind: str, name: Any) -> bool:
    """Whether somebody registered this name, or 'dist:name'."""
    if not isinstance(name, str):
        return False
    own, group = _look_up(name, kind_of(kind).name)
    return own is not None or bool(group)


def entry(name: str, kind: str = "samplers") -> Entry:
    """The entry called `name` or 'dist:name'; of samplers also by what another library calls one of ours.

    Raises:
        UnknownNameError: nobody registered it, or two plug-ins did and the name does not say which.
    """
    return _entry_and_options(name, kind)[0]


def stands_for(name: str) -> tuple[str, dict[str, Any]]:
    """The sampler that a name means, and the options that the name brings: ('prophet', {'schedule': 'linear', ...}) for 'sched'.

    Raises:
        UnknownNameError: as of `entry`.
    """
    item, options = _entry_and_options(name)
    return item.name, options


def _entry_and_options(name: str, kind: str = "samplers") -> tuple[Entry, dict[str, Any]]:
    """The same, and the options that the name stands for, if it is another library's."""
    one = kind_of(kind).one
    if not isinstance(name, str):
        example = next(iter(_get().own[kind]), "name") if kind != "samplers" else "radd"
        raise UnknownNameError(f"a {one}'s name is a text such as {example!r}, not {name!r}")
    own, group = _look_up(name, kind)
    if own is not None:
        return own, {}
    if len(group) > 1:
        origins = " and ".join(e.origin for e in group)
        choice = " or ".join(repr(e.qualified) for e in group)
        raise UnknownNameError(f"two packages register a {one} {name!r}: {origins}. Say which: {choice}")
    if group:
        return group[0], {}
    if kind == "samplers" and (meant := alias(name, _get().own[kind])) is not None:
        return _get().own[kind][meant[0]], meant[1]
    raise _unknown(name, kind)


def _unknown(name: str, kind: str) -> UnknownNameError:
    zoo, one = _get(), KINDS[kind].one
    broken = [s.report for s in zoo.sources if s.report.status == "broken"]
    note = "".join(f" (plug-in {r.distribution} {r.version} is broken and left out: {r.error})" for r in broken[:1])
    if len(broken) > 1:
        note += f" ({len(broken) - 1} more are broken: see 'samplers plugins')"
    if any(s.report.status == "blocked" for s in zoo.sources):
        note += f" (SAMPLERS_PLUGINS={os.environ.get('SAMPLERS_PLUGINS', '')!r} leaves plug-ins out)"
    known = [zoo.shown(e) for e in entries(kind)]
    hint = did_you_mean(name.rpartition(":")[2] if kind == "samplers" else name, known)
    if kind == "samplers":
        return UnknownNameError(
            f"unknown sampler {name[:80]!r}{hint} There are {len(known)}; 'samplers list' shows them{note}"
        )
    order = [*zoo.own[kind], *(n for n in known if n not in zoo.own[kind])]
    return UnknownNameError(f"unknown {one} {name[:80]!r}{hint} Known: {', '.join(order)}{note}")


def find(kind: str, name: str) -> Any:
    """The thing of a kind that is called `name` or 'dist:name', loaded.

    Args:
        kind: samplers, families, denoisers, noise_schedules, mask_schedules, grids, problems, caches, windows or metrics.

    Raises:
        UnknownNameError: nobody registered it; the message has the nearest names.
        PluginError: it comes from a plug-in that is broken.
    """
    if type(name) is str and (own := _get().own.get(kind, {}).get(name)) is not None:  # what nearly every run asks
        return own.load()
    return entry(name, kind).load()


def listed(kind: str, *, imports: bool = True) -> dict[str, Entry]:
    """The entries of a kind by the shortest name that finds each, sorted; `imports` as of `entries`."""
    zoo = _get()
    found = {zoo.shown(item): item for item in entries(kind, imports=imports)}
    return {name: found[name] for name in sorted(found)}


def names_of(kind: str, pattern: str = "*", *, imports: bool = True) -> list[str]:
    """The names of a kind that match a shell pattern, sorted. A name that several have is listed as 'dist:name'.

    Args:
        imports: as of `entries`.
    """
    found = listed(kind, imports=imports)
    return [n for n, item in found.items() if any(fnmatch.fnmatchcase(c, pattern) for c in (n, item.qualified))]


def made(kind: str, text: str) -> Any:
    """What the thing called `text` makes: 'name', or 'name(3)' with numbers for its arguments. The same text gives one object.

    Raises:
        UnknownNameError: nobody registered the name.
        OptionError: it takes no such numbers.
        PluginError: it comes from a plug-in that is broken, or that makes something else than it should.
    """
    item, numbers = _parsed(kind, text)
    return _made(item, numbers)


def _parsed(kind: str, text: str) -> tuple[Entry, tuple[float, ...]]:
    """The entry of 'name' or 'name(numbers)', and the numbers."""
    own = _get().own[kind]
    match = re.fullmatch(r"(.+?)\(([^()]*)\)", text)
    if match is None or text in own:
        return entry(text, kind), ()
    if match[1] not in own and not has(kind, match[1]):
        raise _unknown(text, kind)
    item = entry(match[1], kind)
    try:
        numbers = tuple(float(part) for part in match[2].split(","))
    except ValueError:
        numbers = (math.nan,)
    call = item.load()
    try:
        signature = inspect.signature(call)
    except ValueError:  # C code: making it will tell
        return item, numbers
    parameters = [
        p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(numbers) != len(parameters) or any(map(math.isnan, numbers)):
        count, form = len(parameters), f"{item.name}({','.join(parameters)})"
        takes = f"{form} takes {count} number{'s' * (count > 1)}" if count else f"{item.name!r} takes no numbers"
        raise OptionError(f"{KINDS[kind].one} {text[:80]!r}: {takes}")
    return item, numbers


@functools.lru_cache(maxsize=64)  # one name is one object: tables are compared by identity
def _made(item: Entry, numbers: tuple[float, ...]) -> Any:
    kind = KINDS[item.kind]
    call, text = item.load(), f"{item.name}({','.join(f'{n:g}' for n in numbers)})" if numbers else item.name
    assert kind.result is not None, f"{kind.name} are not made by a call"
    if item.own:
        value = call(*numbers)
    else:
        try:
            inspect.signature(call).bind(*numbers)
        except TypeError as error:
            raise OptionError(
                f"{kind.one} {text!r} of {item.origin}: {error}; write {item.name}(number, ...)"
            ) from None
        except ValueError:  # C code
            pass
        try:
            value = guarded(call, *numbers)
        except PluginError as error:
            if isinstance(error.__cause__, OptionError):  # its author says which numbers would do
                raise OptionError(f"{kind.one} {text!r}: {error.__cause__}") from error
            raise PluginError(f"{kind.one} {text!r} of {item.origin} raises {error}") from error
    if not isinstance(value, resolve(kind.result)):
        wanted = kind.result.partition(":")[2]
        raise PluginError(f"{kind.one} {text!r} of {item.origin} is {type(value).__name__}, not a {wanted}")
    if kind.trial is not None and not item.own:
        try:
            guarded(kind.trial, value)
        except PluginError as error:
            raise PluginError(f"{kind.one} {text!r} of {item.origin}: {error}") from error
    remember(value, item)
    return value


def called(item: Entry, make: Callable[..., Any], options: Mapping[str, Any], trouble: str) -> Any:
    """What a function of an entry makes with these options; of a plug-in it is remembered where it came from.

    Args:
        trouble: how the error begins if a plug-in's function raises something, such as "problem 'x' cannot be made:".

    Raises:
        SamplersError: the plug-in's own words about an option. PluginError: it raised something else.
    """
    if item.own:
        return make(**options)
    try:
        value = guarded(functools.partial(make, **options))
    except PluginError as error:
        if isinstance(error.__cause__, SamplersError):
            raise error.__cause__ from None
        raise PluginError(f"{trouble} {error}") from error
    remember(value, item)
    return value


# ---------------------------------------------------------------------------------------------- where things are from


def remember(thing: Any, item: Entry | None) -> None:
    """Say that a plug-in's entry made this object, so that results can name it. Objects of the zoo's own need no record."""
    if item is None or item.own:
        return
    origins = _get().origins
    key = id(thing)
    try:
        held: Any = weakref.ref(thing, lambda _: origins.pop(key, None))
    except TypeError:
        return
    origins[key] = (held, item)


def origin_of(thing: Any) -> Entry | None:
    """The plug-in's entry that made this object; None for anything else."""
    held, item = _get().origins.get(id(thing), (None, None))
    return item if held is not None and held() is thing else None


def provenance(named: Iterable[tuple[str, Any]], things: Iterable[Any] = ()) -> dict[str, str]:
    """What of a run came from plug-ins: {"grid": "dist:name version"}. Nothing is imported to tell.

    Args:
        named: (kind, text) of what was named. things: objects that `remember` may know.
    """
    zoo, found = _get(), []
    for kind, text in named:
        if not isinstance(text, str) or text in zoo.own[kind]:
            continue
        dist, _, bare = text.rpartition(":")
        found += zoo.named(kind, bare, dist) or zoo.named(kind, bare.partition("(")[0], dist)
    found += [item for item in map(origin_of, things) if item is not None]
    return {KINDS[item.kind].key: f"{item.qualified} {item.version}" for item in found}


def entry_of(cls: type) -> tuple[str, str]:
    """(distribution, version) that registered a sampler class; ('unregistered', '') for a class made on the spot."""
    zoo = _get()
    name = getattr(cls, "name", "")
    own = zoo.own["samplers"].get(name)
    if own is not None and cls.__module__.startswith("samplers."):
        candidates = [own]
    else:
        zoo.import_hooks(loaded=True)
        candidates = zoo.known("samplers").get(name, [])
    for item in candidates:
        target = item.target_text
        # A class that exists was imported; one whose module was not is another class, and stays unloaded.
        if target is not None and module_of(target) not in sys.modules:
            continue
        try:
            if item.load() is cls:
                return item.distribution, item.version
        except PluginError:
            continue
    return "unregistered", ""


# ---------------------------------------------------------------------------------------------- samplers


def load(name: str) -> type[Any]:
    """The sampler class called `name`. Raises as `create` does."""
    return find("samplers", name)


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
    item, meant = _entry_and_options(name)
    return item.load().make(**{**meant, **options})


def list_samplers(pattern: str | Iterable[str] = "*", family: str | None = None, *, imports: bool = True) -> list[str]:
    """The names that match a shell pattern ('dpmpp*', 'masked/*') or one of several, sorted.

    A sampler whose name another package or the zoo has as well is listed as 'dist:name'.

    Args:
        family: only samplers of this family.
        imports: if a family is asked for, plug-ins are imported, and those that are broken are left out; so are modules of
            hooks whose source does not tell what they register. False: nothing is imported, and the names and families are
            those that sources and registrations say.

    Raises:
        UnknownNameError: there is no such family.
    """
    if family is not None and not has("families", family):
        known = family_names()
        raise UnknownNameError(f"unknown family {family!r}{did_you_mean(family, known)} Known: {', '.join(known)}")
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found, zoo = set(), _get()
    own = zoo.own["samplers"]

    def is_of(item: Entry, wanted: str) -> bool:
        return fnmatch.fnmatchcase((item.family if imports else item.said("family")) or "", wanted)

    for item in entries(imports=imports):
        shown = zoo.shown(item)
        # A plug-in's 'threshold' is not what the zoo's name asks for.
        called = {shown, item.qualified} | ({item.name} if item.name not in own else set())
        for one in patterns:
            wanted, _, rest = one.rpartition("/")
            if (
                any(fnmatch.fnmatchcase(c, rest) for c in called)
                and (not wanted or is_of(item, wanted))
                and (family is None or is_of(item, family))
            ):
                found.add(shown)
    for one in patterns:
        if zoo.named("samplers", one):
            continue  # a plug-in's own name
        if (meant := alias(one, own)) and (family is None or own[meant[0]].said("family") == family):
            found.add(meant[0])
    return sorted(found)


names = list_samplers  # what the rest of the library calls it


def plugins(check: bool = True) -> list[Report]:
    """What became of each third-party plug-in.

    Args:
        check: also import every plug-in and load all that it registers, which is the only way to know whether it works.
            Without it nothing is imported, and 'ok' says that nothing is known to be wrong.
    """
    zoo = _get()
    if check:
        zoo.import_hooks(every=True)
    made = []
    for report in (source.report for source in zoo.sources):
        troubles: dict[str, list[str]] = {status: [] for status in STATUSES[1:]}
        if report.error and report.status in troubles:
            troubles[report.status].append(report.error)
        for item in report.items:
            which = f"{item.name!r}: " if len(report.items) > 1 else ""
            if check:
                try:
                    item.check()
                except PluginError:
                    troubles["broken"].append(f"{which}{item.error}")
            if item.changes:
                troubles["meddles"].append(f"{which}{_meddling(item.changes)}")
            others = ", ".join(e.origin for e in zoo.known(item.kind)[item.name] if e is not item)
            if item.name in zoo.own[item.kind]:
                troubles["shadowed"].append(f"shadowed by the zoo's own {item.name!r}; use {item.qualified!r}")
            elif others:
                troubles["duplicate"].append(f"{item.name!r} is also registered by {others}; use {item.qualified!r}")
        found = [(status, text) for status, texts in troubles.items() for text in texts]
        if found:
            report = dataclasses.replace(report, status=found[0][0], error="; ".join(text for _, text in found))
        made.append(report)
    return made
