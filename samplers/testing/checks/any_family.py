"""Checks for every family: what a sampler says of itself, seeds and rows, runs that take turns, states, counts, finite numbers.

They run on the family's small model, with arguments of sample() that every family has: batch, seed and `short_run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import random
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

import samplers

from ... import registry
from ...driver import Stream
from ...errors import OptionError
from ...family import family_names
from ...result import Sample
from ...sampler import Sampler
from ...syncs import pretend_device
from ..kit import check
from ..promises import NotApplicable, Promise
from ..subjects import create, short_run, tiny_of
from ..sync_recorder import draws_of_torch
from ..watching import RecordedRng, Use, watched

ROW_CAUSES = (
    "a number taken over the whole batch: a mean, maximum or count of all rows (state.count.float().mean()), a top-k or "
    "argsort of a flattened batch, len(state.x), state.x.shape[1] (it includes padding); torch.rand, or the row's index in "
    "the batch, in place of state.rng. Reduce over dim 1 only, (B, L) -> (B,); state.rng knows the row"
)
SEED_CAUSES = (
    "torch.rand, numpy.random, random or a torch.Generator of your own. Take random numbers from state.rng.positions(L, "
    "state.step, draw), gumbel(state) or, for reals, state.canvas.noise(state.i + 1)"
)
KEPT_CAUSES = (
    "something kept between steps outside of the state: on self (object.__setattr__, a list or dict), on the class, in the "
    "module. It belongs in a state of your own: MyState.begin(canvas, mine=...), state.commit(..., mine=...)"
)


def some(items: list[Any]) -> str:
    """The first few, for a message."""
    return ", ".join(map(str, items[:6])) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


# ---------------------------------------------------------------------------------------------- what it says of itself


@check()
def facts(name: str, promise: Promise) -> None:
    """The class says what it is."""
    cls = registry.load(name)
    promise(
        issubclass(cls, Sampler),
        "It is a subclass of samplers.Sampler.",
        f"bases {cls.__bases__}",
        "another base; write class Mine(Sampler[TokenState])",
    )
    promise(
        cls.__dataclass_params__.frozen,
        "A sampler is a frozen dataclass: its options never change.",
        f"{cls.__qualname__} can be changed",
        "the decorator is @dataclass; write @dataclass(frozen=True)",
    )
    promise(
        re.fullmatch(r"[a-z][a-z0-9_]*", cls.name),
        "The name is lower_snake.",
        f"name = {cls.name!r}",
        "capitals, hyphens or spaces. It is what users type; change it in the class and where it is registered",
    )
    promise(
        cls.family in family_names(),
        f"The family is one of {', '.join(family_names())}.",
        f"family = {cls.family!r}",
        "a misspelt family; write one of those above",
    )
    promise(
        cls.summary,
        "`samplers list` shows one line about it.",
        "summary is empty",
        'there is no summary in the class; write summary = "what it does, in one line"',
    )
    promise(
        cls.cite,
        "It names its paper.",
        "cite is empty",
        'there is no cite in the class; write cite = "Authors 2026, Title, arXiv 2601.00000". Your own note or repository '
        "will do",
    )
    first = (cls.__doc__ or "").strip().splitlines()[:1]
    made_up = cls.__doc__ is None or cls.__doc__.startswith(
        f"{cls.__name__}("
    )  # what @dataclass writes if there is none
    promise(
        first and len(first[0]) > 20 and not made_up,
        "The first line of the docstring names the paper and the equation or algorithm.",
        "there is no docstring" if made_up else f"it is {first[0]!r}",
        "a docstring that is missing, or too short to name anything; write one such as 'Author 2026, algorithm 1: what it does.'",
    )


@check()
def signature(name: str, promise: Promise) -> None:
    """init, step and expected_nfe have the arguments that they are called with."""
    cls = registry.load(name)
    for method, wanted in (
        ("init", ["self", "canvas"]),
        ("step", ["self", "predict", "state"]),
        ("expected_nfe", ["self", "length", "steps"]),
    ):
        has = list(inspect.signature(getattr(cls, method)).parameters)
        promise(
            has == wanted,
            f"The signature is {method}({', '.join(wanted)}).",
            f"{method}({', '.join(has)})",
            "arguments added or renamed; give it the names above. What a step needs besides `predict` and `state` is an option "
            "of the sampler or a field of a state of your own",
        )


@check()
def options(name: str, promise: Promise) -> None:
    """Options have a default, bounds that hold, and a line of help."""
    cls = registry.load(name)
    sampler = samplers.create(name)
    promise(
        samplers.create(name, **sampler.values()) == sampler,
        "The options that a result records make the same sampler again.",
        f"create({sampler.values()}) is another sampler",
        "a __post_init__ that changes its options",
    )
    refused(promise, name, "no_such_option", 1, "it is not an option")
    for option in cls.options():
        of = f"option {option.name!r}"
        union = typing.get_origin(option.type) in (typing.Union, types.UnionType)
        number = {int, float} & set(typing.get_args(option.type) if union else (option.type,))
        promise(
            option.help,
            "Every option has a line of help.",
            f"{of} has none",
            "a bare default; write option(default, 'what it does', ge=0)",
        )
        promise(
            not number or option.bounds or "check" in option.metadata,
            "Every option that is a number has bounds, or a check of its own.",
            f"{of} takes any {option.type_name}",
            "option(default, 'what it does') without a bound; add ge=, gt=, le=, lt=, choices= or check=",
        )
        promise(
            option.name not in inspect.signature(samplers.sample).parameters,
            "No option has the name of an argument of sample().",
            f"{of} is one",
            "a setting of the run that is declared again; leave the option out and read state.block_steps, predict.temperature "
            "and so on, or give it another name if it means something else",
        )
        promise(
            option.parse(str(option.default)) == option.default,
            "The command line can give the default.",
            f"{of}: {str(option.default)!r} is read as {option.parse(str(option.default))!r}",
            "a type annotation that does not fit the default, or a default that is no int, float, bool, text or None; make "
            "several options of a tuple, or one of text",
        )
        below = {"ge": lambda b: b - 1, "gt": lambda b: b, "le": lambda b: b + 1, "lt": lambda b: b}
        for bound, beyond in below.items():
            if bound in option.metadata:
                value = beyond(option.metadata[bound])
                refused(promise, name, option.name, value, f"it must be {option.bounds}")
        if "choices" in option.metadata:
            refused(promise, name, option.name, "no such choice", f"it must be {option.bounds}")


def refused(promise: Promise, name: str, option: str, value: Any, why: str) -> None:
    """The sampler cannot be made with this option, and the error names it."""
    try:
        samplers.create(name, **{option: value})
        said = "it was accepted"
    except OptionError as error:
        said = str(error)
        if option in said:
            return
    promise(
        False,
        f"{option}={value!r} is an OptionError that names the option, since {why}.",
        said,
        "a __init__, __post_init__ or make of your own that does not call the one of Sampler; call super().__post_init__() first",
    )


# ---------------------------------------------------------------------------------------------- seeds and rows


@check()
def seed_decides(name: str, promise: Promise) -> None:
    """One seed, one result: no generator but the run's is read or moved."""
    sampler = create(name)

    def run(seed: Any) -> Tensor:
        return promise.sample(tiny_of(name), sampler, batch=8, seed=seed, **short_run(name)).x

    before, others = torch.get_rng_state(), _other_generators()
    first = run(5)
    moved = not torch.equal(torch.get_rng_state(), before)
    promise(
        not moved,
        "A run does not touch torch's global generator.",
        "its state has changed during the run",
        SEED_CAUSES,
        "\n".join(draws_of_torch(lambda: run(5))) or None if moved else None,
    )
    touched = [who for who, state in _other_generators().items() if others.get(who, state) != state]
    promise(
        not touched,
        "A run does not touch the global generators of numpy and of Python.",
        f"that of {' and of '.join(touched)} has changed during the run",
        SEED_CAUSES,
    )
    torch.manual_seed(99)
    promise(torch.equal(run(5), first), "One seed gives one result.", "two runs of seed 5 differ", SEED_CAUSES)
    promise(bool((run(6) != first).any()), "Another seed gives another result.", "seeds 5 and 6 agree", SEED_CAUSES)
    promise(
        len({row.numpy().tobytes() for row in first}) > 1,
        "Rows of a batch differ.",
        "8 rows of one prompt are equal",
        "random numbers that are made once for all rows; state.rng gives (B, L)",
    )
    promise(
        torch.equal(run([5] * 8)[0], first[0]),
        "With one seed per row, each is row 0 of its seed.",
        "row 0 of seeds [5, 5, ...] is not row 0 of seed 5",
        SEED_CAUSES,
    )


def _other_generators() -> dict[str, str]:
    """What the global generators beside torch's hold, as text; that of numpy only if somebody imported it."""
    found = {"Python's random": repr(random.getstate())}
    if (numpy := sys.modules.get("numpy")) is not None:
        kind, keys, *rest = numpy.random.get_state()
        found["numpy.random"] = repr((kind, keys.tobytes(), *rest))
    return found


@check()
def prints_nothing(name: str, promise: Promise) -> None:
    """A run writes nothing to the standard output: programs read that of `samplers sample --json`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        promise.sample(tiny_of(name), create(name), batch=2, seed=5, **short_run(name))
    text = said.getvalue()
    promise(
        not text,
        "A run prints nothing.",
        lambda: f"it printed {text.splitlines()[0]!r}, the first of {len(text.splitlines())} lines",
        "a print that was left in. Take it out; to look at a run use samplers.stream(...)",
    )


@check()
def every_choice_runs(name: str, promise: Promise) -> None:
    """Every value that an option allows can be run: each choice, both answers to yes or no, and the least number.

    A value that a sampler refuses by an OptionError is refused in words, and that is fine. Every other one is held to row
    invariance and to its seed, and tokens to Facts(static_plan=True), as the defaults are.
    """
    for option, value in _choices(registry.load(name)):
        promise.begin()
        try:
            sampler = create(name, **{option: value})
            model = tiny_of(name)
            # The model was made by the facts of the class, which an option may change.
            if sampler.effective_facts.revises and hasattr(model, "visible_too"):
                model.visible_too = True
            out = promise.sample(model, sampler, batch=3, seed=4, **short_run(name))
        except OptionError:
            continue
        before = torch.get_rng_state()
        alone = promise.sample(model, sampler, batch=1, seed=4, first_row=1, **short_run(name))
        promise(
            torch.equal(torch.get_rng_state(), before),
            f"With {option}={value!r} a run does not touch torch's global generator.",
            "its state has changed during the run",
            SEED_CAUSES,
        )
        promise(
            torch.equal(alone.x[0], out.x[1]),
            f"With {option}={value!r} too, row i of a batch is what it is alone (row invariance).",
            lambda: f"row 1 differs by up to {_distance(alone.x[0], out.x[1])}",  # noqa: B023
            ROW_CAUSES,
        )
        if out.x.is_floating_point():
            finite(
                promise,
                out.x,
                f"With {option}={value!r} too, samples are finite.",
                "a formula that this value of the option makes divide by 0, or grow without bound; mend it, or give the option a "
                "bound that leaves the value out",
            )
        if not sampler.effective_facts.static_plan:
            continue
        with pretend_device():
            dry = promise.stream(model, sampler, batch=3, seed=4, **short_run(name))
        try:
            for _ in dry:
                pass
            same = torch.equal(dry.result().x, out.x)
        except (IndexError, RuntimeError):  # positions that the dry run did not count
            same = False
        promise(
            same,
            f"With {option}={value!r} too, Facts(static_plan=True) holds: a run with a dry run is the same run.",
            "the run that was planned beside it has other tokens, or asked for other counts",
            f"a step that, with this value of {option!r}, asks about positions that depend on prediction.*; override "
            "effective_facts to leave out static_plan for it",
        )


def _choices(cls: type[Sampler[Any]]) -> Iterator[tuple[str, Any]]:
    """(option, value) of the values that the options of a sampler name, but for their defaults.

    Names of another kind of thing, such as grids, are left out: other packages add to them.
    """
    for option in cls.options():
        if option.metadata.get("kind") is not None:
            continue
        values = list(option.metadata.get("choices", ()))
        values += [True, False] if option.type is bool else []
        values += [option.metadata["ge"]] if "ge" in option.metadata else []
        for value in values:
            if value != option.default or type(value) is not type(option.default):
                yield option.name, value


@check()
def row_of_a_batch_is_the_row_alone(name: str, promise: Promise) -> None:
    """Row invariance: row i of a batch is what it is alone, and takes part in as many forward passes."""
    sampler = create(name)
    together = promise.sample(tiny_of(name), sampler, batch=5, seed=4, **short_run(name))
    for i in range(5):
        alone = promise.sample(tiny_of(name), sampler, batch=1, seed=4, first_row=i, **short_run(name))
        same = torch.equal(alone.x[0], together.x[i])
        promise(
            same,
            "Row i of a batch is what it is alone, whatever the other rows are (row invariance).",
            "" if same else f"row {i} differs by up to {_distance(alone.x[0], together.x[i])}",
            ROW_CAUSES,
        )
        promise(
            int(together.nfe_rows[i]) == alone.nfe,
            "A row takes part in as many forward passes in a batch as alone (row invariance).",
            f"row {i}: {int(together.nfe_rows[i])} in the batch, {alone.nfe} alone",
            ROW_CAUSES,
        )


def _distance(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"their shapes, {tuple(a.shape)} and {tuple(b.shape)}"
    return f"{float((a.double() - b.double()).abs().max()):.2g}"


# ---------------------------------------------------------------------------------------------- states


@check()
def interleaved_runs_agree(name: str, promise: Promise) -> None:
    """Two runs of one sampler that take turns are what they are apart: all the state there is lives in the State."""
    sampler = create(name)
    before = _kept_on(type(sampler))
    promise.sample(tiny_of(name), sampler, batch=7, seed=0, **short_run(name))
    changed = [key for key, value in _kept_on(type(sampler)).items() if before.get(key) != value]
    promise(
        not changed,
        "A run leaves the sampler's class as it was.",
        lambda: f"{', '.join(changed)} changed during the run",
        KEPT_CAUSES,
    )

    def start(seed: int) -> Stream:
        return promise.stream(tiny_of(name), sampler, batch=3, seed=seed, **short_run(name))

    apart = [list(start(seed))[-1].x for seed in (1, 2)]
    promise.begin()
    runs, last = [start(1), start(2)], dict[int, Any]()
    alive = {0, 1}
    while alive:
        for i in sorted(alive):
            state = next(runs[i], None)
            if state is None:
                alive.remove(i)
            else:
                last[i] = state.x
    for i in (0, 1):
        promise(
            torch.equal(last[i], apart[i]),
            "Two runs of one sampler that take turns are what they are apart.",
            f"the run of seed {i + 1} differs",
            KEPT_CAUSES,
        )


def _kept_on(cls: type[Any]) -> dict[str, str]:
    """The lists, dictionaries, sets and tensors on a class and on its bases below Sampler, as text."""
    own = [base for base in cls.__mro__ if issubclass(base, Sampler) and base not in Sampler.__mro__]
    return {
        f"{base.__qualname__}.{key}": repr(value)
        for base in own
        for key, value in vars(base).items()
        if isinstance(value, (list, dict, set, Tensor)) and not key.startswith("__")
    }


@check()
def states_are_immutable(name: str, promise: Promise) -> None:
    """A step leaves its state as it was, and a state that is stepped from again leads to the same next one."""
    sampler = create(name)
    run = promise.stream(tiny_of(name), sampler, batch=2, **short_run(name))
    kept = [(state, state.x.clone()) for state in run]
    written = [k for k, (state, x) in enumerate(kept) if not torch.equal(state.x, x)]
    promise(
        not written,
        "A step never writes into the state that it was given.",
        f"state.x of states {some(written)} was changed later",
        "an op in place on state.x or a view of it (x[where] = ..., masked_fill_, copy_). Use torch.where and state.commit",
    )
    for k in () if sampler.facts.sequential else (1, len(kept) // 2):
        if k + 1 >= len(kept):
            continue
        stepped = run.sampler.step(run.predict, kept[k][0])
        after = stepped[0] if isinstance(stepped, tuple) else stepped  # a step may return its info as well
        promise(
            torch.equal(after.x, kept[k + 1][1]),
            "The same step from the same state leads to the same next state.",
            f"state {k} of {len(kept)}, stepped from again, led to other values",
            KEPT_CAUSES + ". Or a list, dict or tensor in the state that a step changes in place",
        )


# ---------------------------------------------------------------------------------------------- numbers and counts


STEPS = (1, 2, 3, 5, 8)


@check()
def values_are_finite(name: str, promise: Promise) -> None:
    """Any number of steps, one included, gives finite values, and so does every step on the way."""
    first: Any = promise.stream(tiny_of(name), create(name), **short_run(name)).state
    if not first.x.is_floating_point():
        raise NotApplicable("its values are whole numbers")
    for steps in STEPS:
        promise.begin()
        for state in promise.stream(tiny_of(name), create(name), batch=3, **short_run(name) | {"steps": steps}):
            finite(promise, state.x)


def finite(
    promise: Promise,
    x: Tensor,
    promised: str = "Samples are finite with any number of steps, one included.",
    causes: str = "a division by steps - 1, by a step of length 0 or by sigma = 0; a multistep formula without a first step",
) -> None:
    """A broken promise if x holds a number that is not finite."""
    promise(
        torch.isfinite(x).all(),
        promised,
        lambda: f"values such as {', '.join(f'{v:g}' for v in x.flatten().tolist()[:4])}",
        causes,
    )


@check(settings=[{"steps": n} for n in STEPS])
def counted_nfe_is_the_declared(name: str, setting: dict[str, int], promise: Promise) -> None:
    """expected_nfe(length, steps) is the number of forward passes, and every row takes part in each."""
    sampler = create(name)
    counted(promise, promise.sample(tiny_of(name), sampler, batch=3, **short_run(name) | setting), sampler)


def counted(promise: Promise, out: Sample, sampler: Sampler[Any]) -> None:
    """The NFE of a run of one block, in which every row is asked about in every forward pass."""
    length, steps = 0 if out.fill is None else int(out.fill[0].sum()), int(out.settings["steps"])
    expected = sampler.expected_nfe(length, steps)
    promise(
        expected is None or out.nfe == expected,
        f"expected_nfe({length}, {steps}) = {expected} is the number of forward passes.",
        f"{out.nfe} forward passes",
        "the inherited expected_nfe of a solver that makes several forward passes per step (override it, or spend "
        "`steps` forward passes in all: canvas.steps); a grid that does not depend on canvas.steps",
    )
    promise(
        bool((out.nfe_rows == out.nfe).all()) and out.row_evals == len(out.x) * out.nfe,
        "Every row takes part in every forward pass.",
        f"nfe_rows {out.nfe_rows.tolist()}, row_evals {out.row_evals}, nfe {out.nfe}",
        "predict that is called with a part of the rows",
    )


@check()
def draw_numbers(name: str, promise: Promise) -> None:
    """No random number of a run is used for two purposes."""
    sampler = create(name)
    for use, other in clashes(uses_of(promise, name, sampler), sampler.conformance.redraws):
        row, position, step = min(use.cells & other.cells)
        promise(
            False,
            "Each random number of a run has one purpose.",
            f"draw {use.draw} (row {row}, position {position}, step {step}) is used at {use.place} and at {other.place}",
            "two calls with one draw number and one step. Give each purpose a number of its own, from DRAW_FIRST_FREE up, or "
            "count the step: state.canvas.noise(state.i + 1)",
            other.place,
        )


def uses_of(promise: Promise, name: str, sampler: Sampler[Any], **arguments: Any) -> list[Use]:
    """Every use of random numbers in a short run; nothing of a family whose canvas has no `rng`."""
    recorded: list[RecordedRng] = []

    def canvas(start: Any) -> Any:
        if not hasattr(start, "rng"):
            return start
        recorded.append(RecordedRng.like(start.rng))
        return dataclasses.replace(start, rng=recorded[0])

    promise.sample(tiny_of(name), watched(sampler, canvas=canvas), batch=2, **short_run(name) | arguments)
    return recorded[0].uses if recorded else []


def clashes(uses: list[Use], redraws: Iterable[int]) -> Iterator[tuple[Use, Use]]:
    """Pairs of uses that share a random number, unless its draw number is among those that are used twice on purpose."""
    for k, b in enumerate(uses):
        for a in uses[:k]:
            if a.draw == b.draw and a.draw not in redraws and a.cells & b.cells:
                yield a, b
