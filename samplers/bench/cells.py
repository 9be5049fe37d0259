"""The plan of a sweep: which cells a request makes.

A cell is one run: (problem, family, sampler, one setting of its knob, seed). The knob is `steps`. A sampler whose class
declares `facts = Facts(sweep=(option, values))` is walked along that option instead, and its NFE is then measured, not asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..errors import OptionError, PluginError, UnknownNameError
from ..family import BUILT_IN, family_names, family_of, has_denoiser
from ..feeds.sequence import missing_capabilities
from .request import Request, parse_options
from .source import fingerprint
from .user_model import added_metric, is_user_model, load_prompts, modules_of, subject

__all__ = ["Cell", "cells_of", "label", "plan", "unavailable"]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, and what defines it.

    Attributes:
        distribution, version: the package that registered the sampler. code: the fingerprint of its source (source.py);
            on a user's model, of the source of the model, the prompts and the metric as well.
        knob: 'steps', or the option that is walked. value: the value of the knob.
        options: all options of the sampler.
        settings: arguments of sample(): steps, temperature, block_length and so on.
        metric, higher: as in the request, for a user's model; a problem scores all it can, and a registered metric
            on request.
    """

    problem: str
    family: str
    sampler: str
    distribution: str
    version: str
    code: str
    knob: str
    value: Any
    options: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    rows: int
    batch: int
    metric: str | None = None
    higher: bool = False

    @property
    def key(self) -> str:
        """16 hex digits of all that defines the cell. Other code, of the sampler or of this library, is another cell."""
        facts = dataclasses.asdict(self) | {"library": registry.version()}
        if self.metric is None:  # a problem scores all it can, whatever is plotted
            del facts["metric"], facts["higher"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.problem} {self.family}/{label(self.sampler, self.settings)} {self.knob}={self.value} seed {self.seed}"


def label(sampler: str, settings: dict[str, Any]) -> str:
    """A sampler's name in tables: with its cache, if it has one."""
    cache = settings.get("cache")
    return sampler if cache is None else f"{sampler} + {cache}"


def plan(requests: Iterable[Request]) -> list[Cell]:
    """The cells of some requests, each once; seed by seed, so that a sweep that is stopped has something of everything.

    Raises:
        UnknownNameError: nothing matches a pattern or a problem's name. FamilyError: a problem without that family.
        OptionError: an option that no chosen sampler has, or a value out of its bounds.
        PluginError: the only samplers that match cannot be loaded.
    """
    cells: dict[str, Cell] = {}
    for seed, request in sorted(((s, r) for r in requests for s in range(r.seeds)), key=lambda pair: pair[0]):
        made = [c for name in request.problems for c in cells_of(request, name, seed)]
        if not made:
            if lost := unavailable([request]):
                raise PluginError("; ".join(lost.values()))
            raise UnknownNameError(
                f"nothing to run: no sampler of {', '.join(request.samplers)} is of a family that "
                f"{', '.join(request.problems)} has ({', '.join(_families(request, request.problems[0]))}), or they need a "
                "model that reads a sequence"
            )
        cells.update((c.key, c) for c in made)
    return list(cells.values())


def unavailable(requests: Iterable[Request]) -> dict[str, str]:
    """The samplers that patterns match but that cannot be loaded: {name: what is wrong}."""
    found: dict[str, str] = {}
    for request in requests:
        families = {f for name in request.problems for f in _families(request, name)}
        for name in registry.list_samplers(request.samplers, imports=False):
            item = registry.entry(name)
            family = item.said("family")
            if family in (None, *families):
                try:
                    item.load()
                except PluginError as error:
                    found[name] = str(error)
            elif family in family_names() and family not in BUILT_IN:
                wrong = [text for _, text in (_has(family, subject(p)) for p in request.problems) if text is not None]
                found |= dict.fromkeys([name] if wrong else [], "; ".join(wrong))
    return found


def _has(family: str, problem: Any) -> tuple[bool, str | None]:
    """Whether a plug-in's family has a denoiser for a problem, and what is wrong if it cannot be asked."""
    try:
        return has_denoiser(family, problem), None
    except PluginError as error:
        return False, str(error)


def _families(request: Request, name: str) -> tuple[str, ...]:
    problem = subject(name, request.metric, request.higher)
    if request.family is None:
        # A plug-in's family costs its import, so it is asked only if a sampler of its is wanted.
        others = [f for f in family_names() if f not in BUILT_IN and registry.names(request.samplers, f, imports=False)]
        return (*problem.families, *(f for f in others if _has(f, problem)[0]))
    problem.denoiser(request.family)  # its error names the families there are
    return (request.family,)


def cells_of(request: Request, problem: str, seed: int) -> list[Cell]:
    _check_patterns(request.samplers)
    families = _families(request, problem)
    if is_user_model(problem):
        _check_length(request, problem, families)
    chosen = [(f, n) for f in families for n in registry.names(request.samplers, f) if _runs(n, f, problem)]
    given = parse_options(request.options, [n for _, n in chosen])
    modules, metric = modules_of(problem, request.prompts, request.metric), added_metric(problem, request.metric)
    cells = []
    for family, name in chosen:
        cls, item = registry.load(name), registry.entry(name)
        own, code = given.get(name, {}), fingerprint(cls, modules)
        sweep = cls.facts.sweep
        knob, values = ("steps", request.nfe) if sweep is None or sweep[0] in own else sweep
        if cls.facts.sequential and knob == "steps":  # which it does not take
            # One that has nothing to walk along either, such as autoregressive, runs once.
            knob, values = (sweep[0], (own[sweep[0]],)) if sweep is not None else ("steps", (None,))
        for value, cache in itertools.product(values, request.caches):
            sampler = cls.make(**own | ({knob: value} if knob != "steps" else {}))
            settings: dict[str, Any] = {"steps": value if knob == "steps" else None}
            if family_of(family).tokens:
                temperature = request.temperature
                if temperature is None and not is_user_model(problem):
                    temperature = 1.0
                settings |= {
                    "temperature": temperature if temperature is None else float(temperature),
                    "block_length": request.block_length,
                }
                more = {"gen_length": request.gen_length, "prompts": request.prompts}
                settings |= {k: v for k, v in more.items() if v is not None}
                if cache is not None:
                    settings["cache"] = cache
            if knob == "steps" and value is not None and request.block_length is not None and family_of(family).tokens:
                length = request.gen_length or subject(problem).length or request.block_length
                if value < -(-length // request.block_length):
                    continue  # fewer steps than blocks cannot be
            rows = request.rows if request.prompts is None else min(request.rows, len(load_prompts(request.prompts)))
            batch = min(request.batch, rows)
            cells.append(
                Cell(
                    problem=problem,
                    family=family,
                    sampler=name,
                    distribution=item.distribution,
                    version=item.version,
                    code=code,
                    knob=knob,
                    value=value,
                    options=sampler.values(),
                    settings=settings,
                    seed=seed,
                    rows=rows,
                    batch=batch,
                    metric=metric,
                    higher=request.higher,
                )
            )
    return cells


def _check_length(request: Request, model: str, families: Sequence[str]) -> None:
    """OptionError if nobody says how long the texts of a user's model are."""
    if all(family_of(f).tokens for f in families) and request.gen_length is None and subject(model).length is None:
        raise OptionError(f"--gen-length is needed: {model!r} takes a canvas of any length")


def _runs(name: str, family: str, problem: str) -> bool:
    """Whether the problem's denoiser is one that the sampler can be asked through."""
    facts = registry.load(name).facts
    if not facts.sequential and not facts.needs:
        return True
    denoiser: Any = subject(problem).denoiser(family)
    return all(getattr(denoiser, need) for need in facts.needs) and not (
        facts.sequential and missing_capabilities(denoiser)
    )


def _check_name(name: str) -> None:
    """OptionError if a name brings options, which a sweep would not give."""
    ours, brought = registry.stands_for(name)
    if brought:
        said = " ".join(f"-o {ours}.{option}={value}" for option, value in brought.items())
        raise OptionError(f"{name!r} is {ours!r} with options; a sweep is told them: --samplers {ours} {said}")


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if registry.names(pattern, imports=False) or registry.names(pattern):
            if not any(c in pattern for c in "*?[/"):
                _check_name(pattern)
            continue
        name = pattern.rpartition("/")[2]
        if not any(c in name for c in "*?["):
            registry.entry(name).load()  # raises: with the nearest names, or with what is wrong with a plug-in
        raise UnknownNameError(f"no sampler matches {pattern!r}; 'samplers list' shows them")
