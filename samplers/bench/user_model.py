"""What a sweep measures samplers on: an exact problem by its name, or a model of the user.

A user's model takes the place of a problem. It is scored by a metric of the user, which is a function of the Sample. Without a
metric nothing is scored, and a sweep measures forward passes and seconds only.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from .. import problems, registry
from ..denoiser import Denoiser
from ..errors import (
    ModelError,
    OptionError,
    PluginError,
    SamplersError,
    UnknownNameError,
    did_you_mean,
    unknown_option,
)
from ..likelihood import nll
from ..models import pretrained, zoo
from ..models.denoiser import read_spec
from ..problems import Estimate, Problem, Score
from ..problems.base import mean_estimate, measured

__all__ = ["UserModel", "is_user_model", "load_denoiser", "load_prompts", "subject"]


def is_user_model(name: str) -> bool:
    """Whether a name is module:attribute, hf:NAME, a model in the box or of a plug-in, and not an exact problem."""
    return not registry.has("problems", name) and (":" in name or registry.has("denoisers", name.partition("?")[0]))


def added_metric(problem: str, metric: str | None) -> str | None:
    """`metric`, if a sweep must ask for it: on a user's model, or one that is registered and not among the problem's own."""
    if metric is None or is_user_model(problem):
        return metric
    return metric if metric not in _own_metrics(problem) and registry.has("metrics", metric) else None


@functools.lru_cache(maxsize=8)
def _own_metrics(problem: str) -> tuple[str, ...]:
    made = problems.create(problem)
    return tuple(made.score(made.sample_truth(8)))


def modules_of(problem: str, prompts: str | None, metric: str | None) -> list[str]:
    """The modules whose source decides what a sweep measures, beside the sampler's."""
    registered = (("problems", problem), ("denoisers", problem.partition("?")[0]), ("metrics", metric or ""))
    found = [spec.partition(":")[0] for spec in (problem, prompts, metric) if spec and ":" in spec]
    items = [registry.entry(name, kind) for kind, name in registered if registry.has(kind, name)]
    return found + [item.module for item in items if not item.own and item.module is not None]


def load_object(spec: str, what: str) -> Any:
    """The object that module:attribute names; modules of the current folder are found as well.

    Args:
        what: the name of the argument, for errors.

    Raises:
        OptionError: the text has another form, the module cannot be imported, or it has no such attribute.
    """
    module, sign, attribute = spec.partition(":")
    if not sign or not module or not attribute:
        raise OptionError(f"{what} {spec!r}: write module:attribute, such as my_model:denoiser")
    sys.path.insert(0, "")  # modules of the current folder, as with `python -m`
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except SamplersError:
        raise
    except Exception as error:  # somebody's module
        raise OptionError(f"{what} {spec!r}: {registry.one_line(error)}") from error
    finally:
        sys.path.remove("")
    return found


def _call_if_function(found: Any, spec: str, what: str) -> Any:
    """What a function without arguments returns; anything else as it is."""
    try:
        return found() if callable(found) else found
    except SamplersError:
        raise
    except Exception as error:
        raise OptionError(f"{what} {spec!r}: {registry.one_line(error)}") from error


@functools.lru_cache(maxsize=1)  # a model may be large, and a sweep asks for it again and again
def load_denoiser(spec: str) -> Denoiser:
    """The denoiser that a name stands for.

    Args:
        spec: module:attribute of a Denoiser, or of a function that returns one; the name of a model in the box, or of one that a
            plug-in registers ('name', 'dist:name', with arguments of its function as in 'name?size=3&noise=edm'); or hf:NAME
            for a folder of safetensors or a repository on the Hugging Face hub, with arguments of `pretrained` if need be:
            hf:NAME?attention=full&shift=1 (see read_spec).

    Raises:
        OptionError: there is no such model, or it cannot be loaded. PluginError: it comes from a plug-in that is broken.
    """
    if spec.startswith("hf:"):
        try:
            name, told = read_spec(spec.removeprefix("hf:"))
            return pretrained(name, **told)
        except ModelError as error:
            raise OptionError(f"{spec}: {error}") from error
    if registry.has("denoisers", spec.partition("?")[0]):
        return _registered(spec)
    if spec and ":" not in spec:
        try:
            return zoo.load(spec)
        except UnknownNameError as error:
            raise OptionError(
                f"{error}. A folder, or a model of the hub, is written hf:NAME; one of your own code, module:attribute"
            ) from error
    found = load_object(spec, "--denoiser")
    if not isinstance(found, Denoiser):
        found = _call_if_function(found, spec, "--denoiser")
    if not isinstance(found, Denoiser):
        raise OptionError(
            f"--denoiser {spec!r} is {type(found).__name__}, not a Denoiser or a function that returns one; "
            "samplers.TokenDenoiser.wrap makes one of a callable"
        )
    return found


def _registered(spec: str) -> Denoiser:
    """What a registered function makes, with the arguments after '?'."""
    name, _, query = spec.partition("?")
    item = registry.entry(name, "denoisers")
    make = item.load()
    known = inspect.signature(make).parameters
    told: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, sign, value = pair.partition("=")
        if not sign or not value:
            raise OptionError(f"--denoiser {spec!r}: {key} has no value; write {key}=VALUE")
        if key not in known:
            raise unknown_option(f"denoiser {name!r}", key, list(known))
        told[key] = _value(value, known[key].default)
    denoiser = registry.called(item, make, told, f"denoiser {name!r} of {item.origin} raises")
    if not isinstance(denoiser, Denoiser):
        raise PluginError(f"denoiser {name!r} of {item.origin} is {type(denoiser).__name__}, not a samplers.Denoiser")
    return denoiser


def _value(text: str, default: Any) -> Any:
    """An argument's text as what its default is: a bool, a whole number, a number, or text."""
    try:
        if isinstance(default, bool):
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if isinstance(default, (int, float)):
            return type(default)(text)
    except (KeyError, ValueError):
        kind = "1 or 0" if isinstance(default, bool) else "a whole number" if isinstance(default, int) else "a number"
        raise OptionError(f"--denoiser: {text!r} is not {kind}") from None
    return text


@functools.lru_cache(maxsize=1)
def load_prompts(spec: str) -> list[list[int]]:
    """The prompts that module:attribute names, one per row: lists of token ids, or a function that returns them."""
    found = _call_if_function(load_object(spec, "--prompts"), spec, "--prompts")
    try:
        return [[int(v) for v in row] for row in found]
    except (TypeError, ValueError):
        raise OptionError(
            f"--prompts {spec!r} is {type(found).__name__}; a list of lists of token ids is needed, one per row"
        ) from None


class UserModel(Problem):
    """A model of the user in the place of a problem.

    Args:
        spec: its name, as `load_denoiser` takes it.
        metric: module:function, which takes a Sample and returns a number or (B,) numbers, one per row; or "nll": nats per
            token of what the run filled in, by samplers.nll of the model itself; or the name of a registered metric. None:
            nothing is scored.
        higher: whether more of the metric is better.
    """

    summary = "a model of your own"

    def __init__(self, spec: str, metric: str | None = None, higher: bool = False):
        self.name, self.made = spec, load_denoiser(spec)
        self.families = (self.made.family,)
        self.length = getattr(self.made, "length", None)
        self.registered = metric if metric != "nll" and metric and registry.has("metrics", metric) else None
        self.metric = None
        if metric and self.registered is None:
            self.metric = self._nll if metric == "nll" else load_object(metric, "--metric")
        self.metric_name = self.registered or (metric.rpartition(":")[2] if metric else None)
        self.higher = higher
        if metric and not self.registered and not callable(self.metric):
            raise OptionError(f"--metric {metric!r} is {type(self.metric).__name__}, not a function of a Sample")

    def _nll(self, sample: Any) -> torch.Tensor:
        """(B,) float64: nats per token of what was filled in, given the rest of the row; a bound, of 16 masks per row."""
        fill = [where[: len(row)] for row, where in zip(sample.rows(), sample.fill)]
        found = nll(self.made, sample.rows(), fill=fill, mc=16)  # type: ignore[arg-type]
        return found.nll / found.tokens

    def denoiser(self, family: str | None = None, **kw: Any) -> Denoiser:
        self._family(family)
        return self.made

    def score(self, sample: Any, family: str | None = None, metrics: Sequence[str] = ()) -> Score:
        """The user's metric, and registered ones. One number per row gives the mean with Student's interval,
        and a single number none."""
        family = self._family(family)
        estimates: dict[str, Estimate] = {}
        for name in dict.fromkeys(filter(None, (self.registered, *metrics))):
            estimates |= measured(self, sample.x.detach().cpu(), family, name)
        if self.metric is not None and self.metric_name is not None:
            estimates |= {self.metric_name: self._estimate(self.metric(sample), len(sample.x))}
        return Score(estimates, problem=self.name, family=family, primary=self.metric_name or "")

    def _estimate(self, said: Any, rows: int) -> Estimate:
        better: Any = "higher" if self.higher else "lower"
        try:
            values = torch.as_tensor(said, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise SamplersError(f"metric {self.metric_name!r} returned {type(said).__name__}, not numbers") from None
        if values.dim() == 0:
            return Estimate(float(values), math.nan, math.nan, rows, better)
        if values.shape != (rows,):
            raise SamplersError(
                f"metric {self.metric_name!r} returned shape {tuple(values.shape)} for {rows} rows; one number is "
                "needed, or one per row"
            )
        return mean_estimate(values, better=better)


def subject(name: str, metric: str | None = None, higher: bool = False) -> Problem:
    """What a sweep measures samplers on: the exact problem of that name, or the user's model.

    Raises:
        UnknownNameError: there is no such problem. OptionError: a module cannot be imported, or the problem has no such metric.
    """
    if is_user_model(name):
        return UserModel(name, metric, higher)
    problem = problems.create(name)
    if metric is not None and added_metric(name, metric) is None and metric not in _own_metrics(name):
        own, known = _own_metrics(name), registry.names_of("metrics")
        raise OptionError(
            f"problem {name!r} has no metric {metric!r}{did_you_mean(metric, [*own, *known])} It has: {', '.join(own)}; "
            f"and for all problems there are {', '.join(known)}"
        )
    return problem
