"""The kinds of things that have a name: what each is called, where packages declare it, and what it must be.

A check is made when a thing is loaded, and gets what was registered. It returns the thing that is used, or raises PluginError
with what is wrong and what would be right. It imports what it needs itself, so that this module is light.

Rooms below the registry find things by name with `find`, `made` and `own_names`, which are the registry's.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import PluginError, SamplersError
from .guard import one_line

__all__ = ["KINDS", "Kind", "find", "kind_of", "made", "own_names"]


@dataclass(frozen=True)
class Kind:
    """A kind of things.

    Attributes:
        name: such as "noise_schedules". one: such as "noise schedule".
        what: what a plug-in registers, for errors.
        check: (what was registered, its name, the family that was declared) -> what is used.
        result: 'module:Class' of what a call makes, for kinds whose things are made by one; None for the others.
        trial: (what a call has made); PluginError if it does not do what it should. Only for what plug-ins make.
    """

    name: str
    one: str
    what: str
    check: Callable[[Any, str, str | None], Any]
    result: str | None = None
    trial: Callable[[Any], None] | None = None

    @property
    def group(self) -> str:
        """The group of entry points that name one thing each."""
        return "samplers" if self.name == "samplers" else f"samplers.{self.name}"

    @property
    def hook(self) -> str:
        return f"register_{self.name}"

    @property
    def key(self) -> str:
        """Its name in a record, such as "noise_schedule"."""
        return self.one.replace(" ", "_")


# ---------------------------------------------------------------------------------------------- checks


def _sampler(cls: Any, name: str, family: str | None) -> type:
    from .family import family_names
    from .sampler import Sampler

    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise PluginError(f"{cls!r} is not a subclass of samplers.Sampler")
    who = cls.__qualname__
    said = {key: getattr(cls, key, None) for key in ("name", "family", "cite", "summary")}
    if said["name"] != name:
        raise PluginError(f"{who}.name is {said['name']!r}, but it is registered as {name!r}")
    if not _is_family(said["family"]):
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
            has = (
                "no default"
                if one.default_factory is dataclasses.MISSING
                else "a default_factory, and must have a default"
            )
            raise PluginError(f"option {one.name!r} of {who} has {has}")
    try:
        cls()
    except Exception as error:
        raise PluginError(f"{who} cannot be made with its defaults: {one_line(error)}") from error
    return cls


def _is_family(name: Any) -> bool:
    from . import registry

    return registry.has("families", name)


def _named(found: Any, name: str) -> None:
    """PluginError if a thing has a name of its own, and it is another one."""
    own = getattr(found, "name", name)
    if own != name:
        who = getattr(found, "__qualname__", type(found).__name__)
        raise PluginError(f"{who}.name is {own!r}, but it is registered as {name!r}")


def _takes(found: Any, arguments: tuple[str, ...], what: str) -> None:
    """PluginError if `found` is not a function that can be called with so many positional arguments."""
    if not callable(found) or isinstance(found, type):
        raise PluginError(f"{found!r} is not {what}")
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise PluginError(f"{_who(found)} must take ({', '.join(arguments)}): {error}") from error
    except ValueError:  # a function of C code, whose signature cannot be had
        pass


def _family(found: Any, name: str, family: str | None) -> Any:
    from .family import Family

    made = found() if isinstance(found, type) and issubclass(found, Family) else found
    if not isinstance(made, Family):
        raise PluginError(f"{found!r} is not a samplers.authoring.Family, or a subclass of it")
    _named(made, name)
    default = getattr(made, "default_sampler", None)
    if not isinstance(default, str):
        raise PluginError(
            f"{type(made).__qualname__}.default_sampler is {default!r}; it is the name of the sampler that runs if none is named"
        )
    return made


def _denoiser(found: Any, name: str, family: str | None) -> Any:
    from .denoiser import Denoiser

    if isinstance(found, Denoiser) or not callable(found):
        raise PluginError(f"{found!r} is not a function that returns a samplers.Denoiser: give the function, uncalled")
    required = [
        p.name for p in _parameters(found) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        raise PluginError(f"argument {required[0]!r} of {_who(found)} has no default")
    return found


def _numbers(found: Any) -> None:
    """PluginError if `found` needs something else than numbers that a name can give it."""
    for p in _parameters(found):
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise PluginError(
                f"argument {p.name!r} of {_who(found)} cannot be given by name(numbers): give it a default"
            )


def _noise_schedule(found: Any, name: str, family: str | None) -> Any:
    from .noise_schedules import NoiseSchedule

    if isinstance(found, NoiseSchedule):
        return lambda: found
    if not callable(found):
        raise PluginError(f"{found!r} is not a samplers.NoiseSchedule, or a function of numbers that returns one")
    _numbers(found)
    return found


def _mask_schedule(found: Any, name: str, family: str | None) -> Any:
    from .schedule import MaskSchedule

    if isinstance(found, MaskSchedule):
        return lambda: found
    if not callable(found) or found is MaskSchedule:
        raise PluginError(f"{found!r} is not a samplers.MaskSchedule, or a function of numbers that returns one")
    _numbers(found)
    return found


def _curve(call: Callable[[Any], Any], at: Any, what: str) -> Any:
    """What a schedule gives at (n,) float64 numbers; PluginError unless these are n finite ones."""
    import torch

    try:
        got = call(at)
    except Exception as error:
        raise PluginError(f"{what} raises {one_line(error)}") from error
    if not isinstance(got, torch.Tensor) or got.shape != at.shape:
        shape = f"shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else type(got).__name__
        raise PluginError(f"{what} gives {shape} for {len(at)} numbers; as many float64 numbers are needed")
    if not bool(got.isfinite().all()):
        raise PluginError(f"{what} gives a number that is not finite, at {at[~got.isfinite()][0].item():g}")
    return got


def _try_noise(made: Any) -> None:
    import torch

    ends: list[Any] = [getattr(made, key, None) for key in ("t_min", "t_max")]
    if not all(isinstance(t, (int, float)) for t in ends) or not 0 <= ends[0] < ends[1] < float("inf"):
        raise PluginError(
            f"its t_min and t_max are {ends[0]!r} and {ends[1]!r}; 0 <= t_min < t_max is needed, in plain numbers"
        )
    # Inside: at an end there may be no noise, or nothing but noise.
    t = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 9, dtype=torch.float64, device="cpu")[1:-1]
    parts = {name: _curve(getattr(made, name), t, name) for name in ("log_alpha", "log_sigma")}
    lam = parts["log_alpha"] - parts["log_sigma"]
    if not bool((lam.diff() < 0).all()):
        raise PluginError("log_alpha - log_sigma must fall as t rises: there is more noise at t_max")
    back, near = _curve(made.t_of, lam, "t_of"), max(1e-3 * (ends[1] - ends[0]), 1.0 if made.entries else 0.0)
    if bool((off := (back - t).abs() > near).any()):
        raise PluginError(
            f"t_of must be the inverse of log_alpha - log_sigma; it gives {back[off][0].item():g} for the one of "
            f"{t[off][0].item():g}"
        )


def _try_mask(made: Any) -> None:
    import torch

    u = torch.linspace(0, 1, 9, dtype=torch.float64, device="cpu")[1:-1]
    visible = _curve(made.visible, u, "visible")
    if not bool(((visible > -1e-9) & (visible < 1 + 1e-9)).all()) or bool((visible.diff() < -1e-9).any()):
        raise PluginError("visible must rise from 0 to 1, and never leave these")
    _curve(made.progress, u, "progress")


def _grid(found: Any, name: str, family: str | None) -> Any:
    _takes(found, ("span",), "a function of a Span that returns times (n,) float64")
    return found


def _problem(found: Any, name: str, family: str | None) -> Any:
    from .problems.base import Problem

    if not (isinstance(found, type) and issubclass(found, Problem)):
        raise PluginError(f"{found!r} is not a subclass of samplers.problems.Problem")
    who = found.__qualname__
    _named(found, name)
    families = getattr(found, "families", None)
    if not (isinstance(families, tuple) and families and all(isinstance(f, str) for f in families)):
        raise PluginError(f'{who}.families is {families!r}; a tuple is needed, such as ("masked",)')
    if found._score is Problem._score:
        raise PluginError(f"{who} has no method _score")
    for one in families:
        if not hasattr(found, f"_{one}") and found.denoiser is Problem.denoiser:
            raise PluginError(f"{who} has no method _{one}, which returns the exact denoiser of that family")
    primary = getattr(found, "primary", None)
    if not isinstance(primary, dict) or any(f not in primary for f in families):
        raise PluginError(
            f"{who}.primary is {primary!r}; a dict is needed, with a metric for each of {', '.join(families)}"
        )
    if not isinstance(getattr(found, "summary", None), str):
        raise PluginError(f"{who}.summary is not text")
    return found


def _cache(found: Any, name: str, family: str | None) -> Any:
    from .feeds.cached import Scheme

    if not (isinstance(found, type) and issubclass(found, Scheme)):
        raise PluginError(f"{found!r} is not a subclass of samplers.feeds.cached.Scheme")
    who = found.__qualname__
    _named(found, name)
    if found.choose is Scheme.choose:
        raise PluginError(f"{who} has no method choose")
    _takes(found.choose, ("self", "view"), "a function")
    if found.needs not in ("prefix", "dual", "delayed", "block"):
        raise PluginError(
            f"{who}.needs is {found.needs!r}; 'prefix', 'dual' or 'delayed' is needed: what a model must be able to do"
        )
    try:
        found()
    except Exception as error:
        raise PluginError(f"{who} cannot be made with its defaults: {one_line(error)}") from error
    return found


def _window(found: Any, name: str, family: str | None) -> Any:
    if isinstance(found, type):
        from .windows import Window

        if issubclass(found, Window):
            return found
    _takes(found, ("state",), "a function of a TokenState that returns (B,) int64")
    return found


def _metric(found: Any, name: str, family: str | None) -> Any:
    _takes(found, ("problem", "x", "family"), "a function of (problem, x, family) that returns an Estimate")
    return found


def _parameters(found: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # C code
        return []


def _who(found: Any) -> str:
    return getattr(found, "__qualname__", repr(found))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("samplers", "sampler", "a Sampler class", _sampler),
        Kind("families", "family", "a Family", _family),
        Kind("denoisers", "denoiser", "a function that returns a Denoiser", _denoiser, "samplers.denoiser:Denoiser"),
        Kind(
            "noise_schedules",
            "noise schedule",
            "a NoiseSchedule, or a function that returns one",
            _noise_schedule,
            "samplers.noise_schedules:NoiseSchedule",
            _try_noise,
        ),
        Kind(
            "mask_schedules",
            "mask schedule",
            "a MaskSchedule, or a function that returns one",
            _mask_schedule,
            "samplers.schedule:MaskSchedule",
            _try_mask,
        ),
        Kind("grids", "grid", "a function of a Span", _grid),
        Kind("problems", "problem", "a Problem class", _problem, "samplers.problems.base:Problem"),
        Kind("caches", "cache", "a Scheme class", _cache, "samplers.feeds.cached:Scheme"),
        Kind("windows", "window", "a function of a TokenState", _window),
        Kind("metrics", "metric", "a function of (problem, x, family)", _metric),
    )
}


def kind_of(name: str) -> Kind:
    """The kind called `name`; a SamplersError names those that there are."""
    if name not in KINDS:
        raise SamplersError(f"there is no kind {name!r} of things with a name; known: {', '.join(KINDS)}")
    return KINDS[name]


# ---------------------------------------------------------------------------------------------- the registry's


def find(kind: str, name: str) -> Any:
    """As samplers.registry.find."""
    from . import registry

    return registry.find(kind, name)


def made(kind: str, text: str) -> Any:
    """As samplers.registry.made."""
    from . import registry

    return registry.made(kind, text)


def own_names(kind: str) -> tuple[str, ...]:
    """The zoo's own names of a kind, in the order in which they are registered."""
    from . import registry

    return registry.own_names(kind)
