"""The conformance kit: the checks that a sampler must pass, found by its family, and run one by one without pytest.

A check is a plain function with the decorator `check`. It takes the name of a sampler and a Promise, which it runs the sampler
with and fails with; or, if the decorator lists settings, the name, one setting and a Promise.

    @check(families=("masked",), settings=[{}, {"steps": 5}])
    def committed_tokens_stay(name, setting, promise):
        \"\"\"A token that is committed is never changed.\"\"\"
        out = promise.sample(denoiser, name, **setting)
        promise(fine, "what was promised", "what was seen", "what usually causes it, and what would be right")

The checks for every family are in checks/any_family.py. A family names modules with more of them (Family.checks); one of the same
name as a check for every family stands in its place.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .. import registry
from ..errors import PluginError, UnknownNameError, did_you_mean
from ..family import family_of
from .promises import BrokenPromise, NotApplicable, Promise, place_of

__all__ = ["BrokenPromises", "Case", "Result", "cases", "check", "run", "run_case", "run_checks"]

EVERY_FAMILY = "samplers.testing.checks.any_family"
F = TypeVar("F", bound=Callable[..., None])


# ---------------------------------------------------------------------------------------------- checks


def check(families: Sequence[str] | None = None, settings: Sequence[Any] = ()) -> Callable[[F], F]:
    """Make a function a check of the kit. Its docstring says what it promises.

    Args:
        families: the families that it is for; None: all that its module is read for.
        settings: dictionaries, or words; the check runs once with each. Without any it runs once, and is given none.
    """

    def mark(function: F) -> F:
        wanted = ["name", "setting", "promise"] if settings else ["name", "promise"]
        has = list(inspect.signature(function).parameters)
        if has != wanted:
            raise TypeError(f"check {function.__name__} takes ({', '.join(has)}); it must take ({', '.join(wanted)})")
        if not function.__doc__:
            raise TypeError(f"check {function.__name__} needs a docstring, which says what it promises")
        function.kit_settings = tuple(settings)  # type: ignore[attr-defined]
        function.kit_families = None if families is None else tuple(families)  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Case:
    """A check with one of its settings.

    Attributes:
        id: the name of the check, with the setting in brackets: 'facts', 'committed_tokens_stay[steps=5]'.
        about: what it promises, in a sentence or two.
    """

    check: Callable[..., None]
    setting: Any = None

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def id(self) -> str:
        if self.setting is None:
            return self.name
        if isinstance(self.setting, dict):
            words = ",".join(f"{key}={value}" for key, value in self.setting.items()) or "defaults"
        else:
            words = str(self.setting)
        return f"{self.name}[{re.sub(r'[^-+.,=A-Za-z0-9_]+', '_', words)}]"

    @property
    def about(self) -> str:
        return " ".join((self.check.__doc__ or "").split("\n\n")[0].split())


# Words of an error of loading -> its usual causes.
TROUBLES = {
    "needs the decorator": "a class without a decorator of its own; write @dataclass(frozen=True) above it, also if its base "
    "has one",
    "has a default_factory": "a list or dictionary as a default, which a run would fill; options are numbers, texts, bools "
    "or None, and what a run remembers belongs in a state of your own",
    "has no default": "an option that is only annotated; write width: int = option(8, 'what it does', ge=1)",
    "cannot be made with its defaults": "a default that is out of the bounds of its own option, or of another type; change the "
    "default or the bound",
    "; known: ": "a misspelt family, or one of a package that is not installed; write one of the known families",
    "but it is registered": "two different names or families; make the class and its entry point in pyproject.toml say the same",
    "has no step method": "a misspelt method; write def step(self, predict, state)",
    "must take (self, predict, state)": "arguments added or renamed; write def step(self, predict, state)",
    "mutable default": "a list or dictionary as a default, which all runs would share; options are numbers, texts, bools or None",
    "is neither an option": "a class attribute that is misspelt, or has no annotation; the error says what may stand in a class",
    "is not a subclass": "an entry point that names something else; write my_package.module:MySampler",
    "ModuleNotFoundError": "a package that is not installed, or an entry point that names another module; install it, or correct "
    "the entry point in pyproject.toml and install your package again",
    "AttributeError": "an entry point that names no class of the module; correct it in pyproject.toml and install again",
}


def loads(name: str, promise: Promise) -> None:
    """The sampler can be loaded and made with its default options."""
    try:
        registry.load(name)
    except PluginError as error:
        item = registry.entry(name)
        reason = item.error or str(error)
        raise promise.broken(
            "The sampler can be loaded, and made with its default options.",
            reason,
            next((why for words, why in TROUBLES.items() if words in reason), "an error while it is imported; mend it"),
            f"{item.target_text or item.target!r}, as {item.origin} registers it",
        ) from error


def cases(name: str) -> list[Case]:
    """The checks of the sampler called `name`, in order; of one that cannot be loaded, the check that says so.

    Raises:
        UnknownNameError: there is no such sampler.
        PluginError: the family's modules of checks cannot be imported.
    """
    try:
        family = registry.entry(name).load().family
    except PluginError:
        return [Case(loads)]
    found: dict[str, Callable[..., None]] = {loads.__name__: loads}
    for module in (EVERY_FAMILY, *family_of(family).checks):
        found |= _checks_in(module)
    chosen = [one for one in found.values() if family in (getattr(one, "kit_families", None) or (family,))]
    return [Case(one, setting) for one in chosen for setting in getattr(one, "kit_settings", ()) or (None,)]


def _checks_in(module: str) -> dict[str, Callable[..., None]]:
    """The checks that a module makes or imports, by name."""
    try:
        made = importlib.import_module(module)
    except ImportError as error:
        raise PluginError(f"the module of checks {module!r} cannot be imported: {error}") from error
    return {name: one for name, one in vars(made).items() if hasattr(one, "kit_settings")}


# ---------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Result:
    """What became of a check.

    Attributes:
        sampler, case: what was checked.
        status: kept, broken or skipped.
        seconds: how long it took.
        broken: the error, if the promise is broken.
        reason: why it was skipped.
    """

    sampler: str
    case: Case
    status: str
    seconds: float
    broken: BrokenPromise | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Texts, lists and numbers, ready for JSON."""
        said: dict[str, Any] = {"sampler": self.sampler, "check": self.case.id, "about": self.case.about}
        said |= {"status": self.status, "seconds": round(self.seconds, 4)}
        if self.reason:
            said["reason"] = self.reason
        if self.broken is not None:
            named = ("promised", "seen", "calls", "where", "causes", "rerun")
            said |= {key: getattr(self.broken, key) for key in named}
        return said


class BrokenPromises(AssertionError):
    """Some checks of the kit failed; the text lists them all.

    Attributes:
        results: those that are broken.
    """

    def __init__(self, results: Sequence[Result]):
        self.results = list(results)
        super().__init__("\n\n".join(str(r.broken) for r in self.results))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: models as small as the kit's lose more time by waiting for a second one than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judge(name: str, case: Case) -> None:
    """Run one check of a sampler.

    Raises:
        BrokenPromise: it failed. NotApplicable: there is nothing to check.
    """
    where = ""
    if case.check is not loads:
        where = place_of(registry.load(name), "update", "step")
    promise = Promise(name, case.id, case.about, where)
    try:
        with one_thread():
            case.check(name, promise) if case.setting is None else case.check(name, case.setting, promise)
    except (BrokenPromise, NotApplicable):
        raise
    except Exception as error:
        raise promise.explained(error) from error


def run_case(name: str, case: Case) -> Result:
    """Run one check of a sampler and say what became of it."""
    begun = time.perf_counter()
    broken, reason, status = None, "", "kept"
    try:
        judge(name, case)
    except BrokenPromise as error:
        status, broken = "broken", error
    except NotApplicable as why:
        status, reason = "skipped", str(why)
    return Result(name, case, status, time.perf_counter() - begun, broken, reason)


def chosen(name: str, only: str | Iterable[str] | None = None) -> list[Case]:
    """The checks of a sampler that `only` names.

    Args:
        only: names of checks, names with a setting such as 'committed_tokens_stay[steps=5]', or shell patterns; None: all.

    Raises:
        UnknownNameError: a name that no check of this sampler has.
    """
    every = cases(name)
    if only is None:
        return every
    wanted = [only] if isinstance(only, str) else list(only)
    found: list[Case] = []
    for word in wanted:
        same = [c for c in every if word in (c.name, c.id) or ("[" not in word and fnmatch.fnmatchcase(c.name, word))]
        if not same:
            known = dict.fromkeys(known for c in every for known in (c.name, c.id))
            raise UnknownNameError(
                f"sampler {name!r} has no check {word!r}{did_you_mean(word, known)} Its checks: "
                f"{', '.join(dict.fromkeys(c.name for c in every))}"
            )
        found += same
    return [c for c in every if c in found]


def run(name: str, only: str | Iterable[str] | None = None) -> Iterator[Result]:
    """Run the checks of a sampler, one at a time.

    Args:
        name: the name that the sampler is registered under.
        only: as in `chosen`.
    """
    for case in chosen(name, only):
        yield run_case(name, case)


def run_checks(name: str, only: str | Iterable[str] | None = None) -> None:
    """Run the checks of a sampler; the one line of an author's test.

    Args:
        name: the name that the sampler is registered under.
        only: the checks to run, such as "seed_decides", "committed_tokens_stay[steps=5]" or a shell pattern; None: all.

    Raises:
        BrokenPromises: some checks failed; it has the message of each.
        UnknownNameError: there is no such sampler, or no such check.
    """
    broken = [result for result in run(name, only) if result.broken]
    if broken:
        raise BrokenPromises(broken)
