"""The kit. Each test runs once for every registered sampler of its families (see plugin.py).

A test fails through `promise(kept, promised, seen, causes)`, so that every message says what to change.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
from samplers import Canvas, OptionError, Sampler, registry
from samplers.driver import Stream
from samplers.family import family_names
from samplers.random import DRAW_FIRST_FREE, DRAW_RANK, DRAW_TOKEN
from samplers.result import Sample
from samplers.syncs import pretend_device
from samplers.testing.fit import BOUND, fits
from samplers.testing.promises import CAUSES, Promise
from samplers.testing.sync_recorder import SyncRecorder
from samplers.testing.tiny import (
    TinyJoint,
    TinyMixture,
    TinyNet,
    TinySequential,
    TinyUniformJoint,
    TinyUniformNet,
    solve_ode,
)
from samplers.testing.watching import RecordedRng, Use, Watched, watched

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]
GEN = 12
# Of the GEN positions after each prompt, those that are given as well in `mixed`.
GIVEN = [[], [4, 5], [0, 2, 3, 7, 8, 9, 10, 11], [1, 4, 8, 9, 10, 11]]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 5},
    {"block_length": 4},
    {"block_length": 5, "steps": 7, "temperature": 1.0},
    {"temperature": 0.7, "cfg_scale": 1.5},
    {"temperature": 1.0, "steps": 40},
]
MIXED_SETTINGS: list[dict[str, Any]] = [{"steps": 4}, {"block_length": 4, "steps": 8}]

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


def net(name: str, **kw: Any) -> Any:
    """An arbitrary model of the sampler's family."""
    cls = registry.load(name)
    return fit(name, TinyUniformNet(**kw) if cls.family == "uniform" else TinyNet(visible_too=cls.facts.revises, **kw))


def joint(name: str, **kw: Any) -> Any:
    """The exact model of a distribution that can be enumerated."""
    return fit(name, TinyUniformJoint(**kw) if registry.load(name).family == "uniform" else TinyJoint(**kw))


def fit(name: str, denoiser: samplers.TokenDenoiser) -> samplers.TokenDenoiser:
    """A denoiser of tokens as the sampler needs it."""
    return TinySequential(denoiser) if registry.load(name).facts.sequential else denoiser


def suited(name: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Arguments of sample() without those that a sequential sampler does not take."""
    never = ("steps", "cfg_scale") if registry.load(name).facts.sequential else ()
    return {k: v for k, v in setting.items() if k not in never}


def create(name: str, **options: Any) -> Sampler[Any]:
    """The sampler with options for canvases of the kit's size."""
    return samplers.create(name, **{**registry.load(name).conformance.small, **options})


def sample(denoiser: Any, name: str, sampler: Sampler[Any] | None = None, **setting: Any) -> Sample:
    return samplers.sample(denoiser, sampler or create(name), **suited(name, setting))


def stream(denoiser: Any, name: str, sampler: Sampler[Any] | None = None, **setting: Any) -> Stream:
    return samplers.stream(denoiser, sampler or create(name), **suited(name, setting))


def mixed(denoiser: Any, rows: Iterable[int] = range(4)) -> Canvas:
    """Rows of different lengths, with different numbers of positions to fill, some of them between given ones."""
    rows = list(rows)
    canvas = Canvas.of(denoiser, [PROMPTS[i] for i in rows], GEN)
    x, fill = canvas.x.clone(), canvas.fill.clone()
    for i, row in enumerate(rows):
        at = torch.tensor(GIVEN[row], dtype=torch.int64) + len(PROMPTS[row])
        x[i, at], fill[i, at] = at % denoiser.tokens, False
    return dataclasses.replace(canvas, x=x, fill=fill, filled=int(fill.sum()))


def some(items: list[Any]) -> str:
    """The first few, for a message."""
    return ", ".join(map(str, items[:6])) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


def finished(run: Stream, promise: Promise) -> Sample:
    """The run to its end; a broken promise that names what is left if it does not come to one."""
    try:
        for _ in run:
            pass
    except samplers.SamplersError as error:
        if "is not done" not in str(error):
            raise
        state: Any = run.state
        what = "are not decided" if state.canvas.mask_id is None else "hold the mask id"
        raise promise.broken(
            "A run comes to an end, with a token at every position to fill.",
            f"after {run.steps} steps these (row, position) {what}: {some(state.undecided.nonzero().tolist())}",
            CAUSES["is not done after"],
        ) from error
    return run.result()


def differ(a: list[Any], b: list[Any]) -> list[int]:
    """The positions at which two lists differ."""
    return [j for j, (v, w) in enumerate(zip(a, b)) if v != w]


def global_generator_stays(promise: Promise, before: Tensor) -> None:
    promise(
        torch.equal(torch.get_rng_state(), before),
        "A run does not touch torch's global generator.",
        "its state has changed during the run",
        SEED_CAUSES,
    )


# ---------------------------------------------------------------------------------------------- what it says of itself


def test_facts(zoo_sampler: str, promise: Promise) -> None:
    """The class says what it is."""
    cls = registry.load(zoo_sampler)
    promise(issubclass(cls, Sampler), "It is a subclass of samplers.Sampler.", f"bases {cls.__bases__}", "another base")
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
        f"The family is one of {family_names()}.",
        f"family = {cls.family!r}",
        "a misspelt family",
    )
    promise(
        cls.summary, "`samplers list` shows one line about it.", "summary is empty", 'no summary = "..." in the class'
    )
    promise(
        cls.cite,
        "It names its paper.",
        "cite is empty",
        'no cite = "..." in the class; your own note or repository will do',
    )
    first = (cls.__doc__ or "").strip().splitlines()[:1]
    made_up = cls.__doc__ is None or cls.__doc__.startswith(
        f"{cls.__name__}("
    )  # what @dataclass writes if there is none
    promise(
        first and len(first[0]) > 20 and not made_up,
        "The first line of the docstring names the paper and the equation or algorithm.",
        "there is no docstring" if made_up else f"it is {first[0]!r}",
        "a docstring that is missing, or too short to name anything",
    )


def test_signature(zoo_sampler: str, promise: Promise) -> None:
    """init, step and expected_nfe have the arguments that they are called with."""
    cls = registry.load(zoo_sampler)
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
            "arguments added or renamed. What a step needs besides `predict` and `state` is an option of the sampler or a "
            "field of a state of your own",
        )


def test_options(zoo_sampler: str, promise: Promise) -> None:
    """Options have a default, bounds that hold, and a line of help."""
    cls = registry.load(zoo_sampler)
    sampler = samplers.create(zoo_sampler)
    promise(
        samplers.create(zoo_sampler, **sampler.values()) == sampler,
        "The options that a result records make the same sampler again.",
        f"create({sampler.values()}) is another sampler",
        "a __post_init__ that changes its options",
    )
    refused(promise, zoo_sampler, "no_such_option", 1, "it is not an option")
    for option in cls.options():
        of = f"option {option.name!r}"
        union = typing.get_origin(option.type) in (typing.Union, types.UnionType)
        number = {int, float} & set(typing.get_args(option.type) if union else (option.type,))
        promise(
            option.help, "Every option has a line of help.", f"{of} has none", "use option(default, 'help', ge=...)"
        )
        promise(
            not number or option.bounds or "check" in option.metadata,
            "Every option that is a number has bounds, or a check of its own.",
            f"{of} takes any {option.type_name}",
            "option(default, 'help') without ge=, gt=, le=, lt=, choices= or check=",
        )
        promise(
            option.name not in inspect.signature(samplers.sample).parameters,
            "No option has the name of an argument of sample().",
            f"{of} is one",
            "a setting of the run that is declared again; read state.block_steps, predict.temperature, ...",
        )
        promise(
            option.parse(str(option.default)) == option.default,
            "The command line can give the default.",
            f"{of}: {str(option.default)!r} is read as {option.parse(str(option.default))!r}",
            "a type annotation that does not fit the default, or a default that is no int, float, bool, text or None",
        )
        below = {"ge": lambda b: b - 1, "gt": lambda b: b, "le": lambda b: b + 1, "lt": lambda b: b}
        for bound, beyond in below.items():
            if bound in option.metadata:
                value = beyond(option.metadata[bound])
                refused(promise, zoo_sampler, option.name, value, f"it must be {option.bounds}")
        if "choices" in option.metadata:
            refused(promise, zoo_sampler, option.name, "no such choice", f"it must be {option.bounds}")


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
        "a __init__, __post_init__ or make of your own that does not call the one of Sampler",
    )


# ---------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_prompt_untouched_no_mask_left(zoo_tokens: str, setting: dict[str, Any], promise: Promise) -> None:
    """Prompts stay what they are, and every position to fill gets a token."""
    denoiser = net(zoo_tokens)
    out = finished(stream(denoiser, zoo_tokens, prompt=PROMPTS, gen_length=GEN, seed=7, **setting), promise)
    promise(
        out.x.dtype == torch.int64 and out.x.shape == (4, 6 + GEN),
        f"Tokens are (4, {6 + GEN}) int64.",
        f"{tuple(out.x.shape)} {out.x.dtype}",
        "tokens that were made in another dtype, or a state whose x has another shape",
    )
    assert out.lengths is not None
    for i, prompt in enumerate(PROMPTS):
        end = len(prompt) + GEN
        row = out.x[i].tolist()
        promise(
            row[: len(prompt)] == prompt and int(out.lengths[i]) == end,
            "The prompt of a row, and its length, stay.",
            f"row {i}, prompt {prompt}: {row[: len(prompt)]}, length {int(out.lengths[i])} of {end}",
            "a write into state.x, or dataclasses.replace(state, x=...). state.commit and state.revise write at open "
            "positions only",
        )
        wrong = [j for j in range(len(prompt), end) if not 0 <= row[j] < denoiser.tokens]
        promise(
            not wrong,
            "Every position to fill holds a token in the end, never the mask id.",
            f"row {i} holds {[row[j] for j in wrong]} at positions {wrong}",
            "a mask id that is committed: prediction.token is the mask id at positions that were not asked about, and a "
            "draw of your own must leave the mask id out",
        )
        promise(
            set(row[end:]) <= {samplers.PAD}, "What is beyond a row's end is PAD.", f"row {i}: {row[end:]}", ROW_CAUSES
        )


def test_infill_keeps_what_is_given(zoo_tokens: str, promise: Promise) -> None:
    """Tokens that are given between positions to fill stay."""
    denoiser = net(zoo_tokens)
    x = torch.arange(20).remainder(11).repeat(3, 1)
    fill = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    canvas = Canvas.infill(denoiser, x, fill)
    out = sample(denoiser, zoo_tokens, prompt=canvas, block_length=3, temperature=1.0)
    moved = ((out.x != x) & ~fill).nonzero().tolist()
    promise(
        not moved,
        "Given tokens stay, also between positions to fill.",
        f"changed at (row, position) {some(moved)}",
        "a write into state.x, or a rule that takes everything after the prompt for open; use state.open",
    )
    promise(
        (out.x < denoiser.tokens).all(),
        "Every position to fill holds a token in the end.",
        f"{out.x.tolist()}",
        "a rule that takes everything after the first position to fill for open; use state.open",
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_row_of_a_batch_is_the_row_alone(zoo_tokens: str, setting: dict[str, Any], promise: Promise) -> None:
    """Row invariance: row i of a batch has the tokens and the NFE of the row alone."""
    together = sample(net(zoo_tokens), zoo_tokens, prompt=PROMPTS, gen_length=GEN, seed=3, **setting)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(net(zoo_tokens), zoo_tokens, prompt=[prompt], gen_length=GEN, seed=3, first_row=i, **setting)
        same_row(promise, together, i, alone, str(setting))


@pytest.mark.parametrize("setting", MIXED_SETTINGS, ids=str)
def test_row_of_a_mixed_batch_is_the_row_alone(zoo_tokens: str, setting: dict[str, Any], promise: Promise) -> None:
    """Row invariance, with rows of different lengths, at different steps, with different numbers of open positions."""
    denoiser = net(zoo_tokens)
    together = sample(denoiser, zoo_tokens, prompt=mixed(denoiser), seed=3, temperature=1.0, **setting)
    for i in range(len(PROMPTS)):
        run = {"prompt": mixed(denoiser, [i]), "seed": 3, "first_row": i, "temperature": 1.0, **setting}
        same_row(promise, together, i, sample(denoiser, zoo_tokens, **run), str(setting))


def test_row_of_64_is_the_row_alone(zoo_tokens: str, promise: Promise) -> None:
    """Row invariance in a batch of 64."""
    together = sample(net(zoo_tokens), zoo_tokens, gen_length=16, batch=64, seed=11, temperature=1.0)
    for i in (0, 1, 31, 63):
        alone = sample(net(zoo_tokens), zoo_tokens, gen_length=16, seed=11, first_row=i, temperature=1.0)
        same_row(promise, together, i, alone, "64 rows")


def same_row(promise: Promise, together: Sample, i: int, alone: Sample, setting: str) -> None:
    assert alone.lengths is not None
    end = int(alone.lengths[0])
    row, single = together.x[i, :end].tolist(), alone.x[0, :end].tolist()
    at = differ(row, single)
    promise(
        not at,
        "Row i of a batch is what it is alone, whatever the other rows are (row invariance).",
        lambda: (
            f"row {i} ({setting}) differs at positions {some(at)}: {some([row[j] for j in at])} in the batch, "
            f"{some([single[j] for j in at])} alone"
        ),
        ROW_CAUSES,
    )
    promise(
        int(together.nfe_rows[i]) == alone.nfe,
        "A row takes part in as many forward passes in a batch as alone (row invariance).",
        lambda: f"row {i} ({setting}): {int(together.nfe_rows[i])} in the batch, {alone.nfe} alone",
        ROW_CAUSES + ". Or rows that ask although they have nothing left: ask about state.open or a part of it",
    )


def test_seed_decides(zoo_tokens: str, promise: Promise) -> None:
    """One seed, one result: no generator but the run's is read or moved."""

    def run(seed: Any) -> Tensor:
        return sample(net(zoo_tokens), zoo_tokens, gen_length=24, batch=8, seed=seed, temperature=1.0).x

    before = torch.get_rng_state()
    first = run(5)
    global_generator_stays(promise, before)
    torch.manual_seed(99)
    promise(torch.equal(run(5), first), "One seed gives one result.", "two runs of seed 5 differ", SEED_CAUSES)
    promise(bool((run(6) != first).any()), "Another seed gives another result.", "seeds 5 and 6 agree", SEED_CAUSES)
    promise(
        len({tuple(row.tolist()) for row in first}) > 1,
        "Rows of a batch differ.",
        "8 rows of one prompt are equal at temperature 1",
        "random numbers that are made once for all rows; state.rng gives (B, L)",
    )
    promise(
        torch.equal(run([5] * 8)[0], first[0]),
        "With one seed per row, each is row 0 of its seed.",
        "row 0 of seeds [5, 5, ...] is not row 0 of seed 5",
        SEED_CAUSES,
    )


def test_interleaved_runs_agree(zoo_tokens: str, promise: Promise) -> None:
    """Two runs of one sampler that take turns are what they are apart: all the state there is lives in the State."""
    sampler = create(zoo_tokens)

    def start(seed: int) -> Stream:
        run = {"gen_length": GEN, "batch": 3, "seed": seed, "block_length": 5, "temperature": 1.0}
        return stream(net(zoo_tokens), zoo_tokens, sampler, **run)

    interleaved(promise, start)


def interleaved(promise: Promise, start: Any) -> None:
    apart = [list(start(seed))[-1].x for seed in (1, 2)]
    runs, last = [start(1), start(2)], [None, None]
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
            torch.equal(last[i], apart[i]),  # type: ignore[arg-type]
            "Two runs of one sampler that take turns are what they are apart.",
            f"the run of seed {i + 1} differs",
            KEPT_CAUSES,
        )


def test_states_are_immutable(zoo_tokens: str, promise: Promise) -> None:
    """A step leaves its state as it was, and a state that is stepped from again leads to the same next one."""
    sampler = create(zoo_tokens)
    run = stream(net(zoo_tokens), zoo_tokens, sampler, gen_length=GEN, batch=2, temperature=1.0)
    states_stay(promise, run, again=not sampler.facts.sequential)


def states_stay(promise: Promise, run: Stream, again: bool) -> None:
    kept = [(state, state.x.clone()) for state in run]
    written = [k for k, (state, x) in enumerate(kept) if not torch.equal(state.x, x)]
    promise(
        not written,
        "A step never writes into the state that it was given.",
        f"state.x of states {some(written)} was changed later",
        "an op in place on state.x or a view of it (x[where] = ..., masked_fill_, copy_). Use torch.where and state.commit",
    )
    for k in (1, len(kept) // 2) if again else ():
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


def test_committed_tokens_stay(zoo_masked: str, promise: Promise) -> None:
    """A token that is committed is never changed, unless the sampler declares that it revises."""
    if registry.load(zoo_masked).facts.revises:
        pytest.skip("it declares that it revises")
    states = list(stream(net(zoo_masked), zoo_masked, gen_length=GEN, batch=3, temperature=1.0))
    mask_id = states[0].canvas.mask_id  # type: ignore[attr-defined]
    for k, (a, b) in enumerate(zip(states, states[1:])):
        changed = ((a.x != mask_id) & (a.x != b.x)).nonzero().tolist()
        promise(
            not changed,
            "A committed token is neither masked again nor changed.",
            f"step {k} changed (row, position) {some(changed)}",
            "a sampler that remasks or edits, and does not declare Facts(revises=True)",
        )


@pytest.mark.parametrize("steps", [1, 5, 16, 40])
def test_counted_nfe_is_the_declared(zoo_tokens: str, steps: int, promise: Promise) -> None:
    """`steps` (and extra_steps on top) is kept, and expected_nfe(length, steps) is the mean NFE of a row."""
    length, batch = 16, 1200
    sampler = samplers.create(zoo_tokens)
    if sampler.facts.sequential:
        pytest.skip("it does not take `steps`")
    cap_causes = (
        "counts that do not depend on state.block_steps. Samplers of fixed counts take even_count(state); adaptive ones "
        "commit min_count(state) or more"
    )
    run: dict[str, Any] = {"gen_length": length, "steps": steps, "temperature": 1.0}
    expected = sampler.expected_nfe(length, steps)
    if expected is None:
        out = samplers.sample(net(zoo_tokens), sampler, batch=32, **run)
        # A sampler that revises may need more steps than there are positions.
        cap = (steps if sampler.effective_facts.revises else min(length, steps)) + sampler.extra_steps
        most = int(out.nfe_rows.max())
        promise(most <= cap, f"`steps`={steps} is a cap on NFE.", f"a row of {length} took {most} of {cap}", cap_causes)
        return
    out = samplers.sample(net(zoo_tokens, vocab=3, reach=1), sampler, batch=batch, **run)
    counted = out.nfe_rows.double()
    mean, error = float(counted.mean()), float(counted.std()) / math.sqrt(batch)
    promise(
        abs(mean - expected) <= 4 * error + 1e-9,
        f"expected_nfe({length}, {steps}) = {expected:g} is the mean number of forward passes of a row.",
        f"{mean:g} over {batch} rows (standard error {error:.2g})",
        "a formula that counts steps, while a step may make two forward passes or (if it asks about no position) none; a "
        "formula for another plan. Return None if it depends on the model",
    )
    promise(
        int(counted.max()) <= out.nfe <= steps,
        f"A batch makes at most `steps`={steps} forward passes.",
        f"{out.nfe} for the batch, {int(counted.max())} for its slowest row",
        cap_causes,
    )


def test_counts_are_what_the_model_saw(zoo_tokens: str, promise: Promise) -> None:
    """NFE, rows, tokens and answers are counted as the model was given them."""
    denoiser = net(zoo_tokens)
    causes = "a model that is called past `predict`, or forward passes for rows that have nothing left"
    sequential = registry.load(zoo_tokens).facts.sequential
    more: dict[str, Any] = {} if sequential else {"steps": 6, "cfg_scale": 1.0}
    out = sample(denoiser, zoo_tokens, prompt=[[1, 2], [3, 4]], gen_length=GEN, **more)
    counted = {"nfe": out.nfe, "row_evals": out.row_evals, "token_evals": out.token_evals, "head_rows": out.head_rows}
    if sequential:
        rows, given, answers = (sum(n) for n in zip(*denoiser.asked))
        fine = int(out.nfe_rows.max()) <= out.nfe <= int(out.nfe_rows.sum()) <= rows
    else:
        rows, answers = (sum(n) for n in zip(*denoiser.asked))
        given = rows * (2 + GEN)
        fine = rows == 2 * int(out.nfe_rows.sum())  # a guided forward pass has two rows per row
    saw = {"nfe": len(denoiser.asked), "row_evals": rows, "token_evals": given, "head_rows": answers}
    promise(counted == saw, "Counts are what the model saw.", f"counted {counted}, seen by the model {saw}", causes)
    promise(fine, "NFE per row adds up to the rows.", f"nfe_rows {out.nfe_rows.tolist()}, rows {rows}", causes)


class _NotCounted:
    """A feed that refuses to count positions of the run's own canvas: a dry run has a canvas of its own."""

    def __init__(self, feed: Any, canvas: Any, promise: Promise):
        self._feed, self._canvas, self._promise = feed, canvas, promise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def counts(self, state: Any, rows: Any) -> Tensor:
        self._promise(
            state.canvas is not self._canvas,
            "With Facts(static_plan=True) the run itself is never counted.",
            "the run was counted although there was a dry run",
            "a step that asks in another way in a dry run than in the run",
        )
        return self._feed.counts(state, rows)


def test_static_plan_is_kept(zoo_tokens: str, promise: Promise) -> None:
    """With Facts(static_plan=True), what is asked does not depend on the model: a dry run can work it out."""
    if not registry.load(zoo_tokens).facts.static_plan:
        pytest.skip("its counts depend on the model")
    causes = (
        "the number or the place of the positions that a step asks about depends on prediction.* (a threshold, a "
        "confidence, a drawn token). Then Facts(static_plan=False), the default, is right"
    )
    for setting in SETTINGS:
        run: dict[str, Any] = {"prompt": PROMPTS, "gen_length": GEN, "seed": 3, **setting}
        counted = sample(net(zoo_tokens), zoo_tokens, **run)
        with pretend_device():
            dry = stream(net(zoo_tokens), zoo_tokens, **run)
        promise(
            dry.predictor.dry_run is not None,  # type: ignore[union-attr]
            "With Facts(static_plan=True) a run on a device has a dry run.",
            "there is none",
            "effective_facts says otherwise than facts",
        )
        feed = _NotCounted(dry.predictor.feed, dry.state.canvas, promise)  # type: ignore[union-attr, attr-defined]
        dry.predictor.feed = feed  # type: ignore[union-attr]
        promised = "With Facts(static_plan=True) a run whose counts come from a dry run is the same run."
        try:
            for _ in dry:
                pass
        except (AssertionError, IndexError, RuntimeError) as error:
            if isinstance(error, AssertionError) and "promised:" in str(error):
                raise
            raise promise.broken(
                promised,
                f"the dry run and the run asked for different counts ({type(error).__name__}: {error})",
                causes,
            ) from error
        out = dry.result()
        same = torch.equal(counted.x, out.x) and torch.equal(counted.nfe_rows, out.nfe_rows)
        promise(
            same and (counted.nfe, counted.head_rows) == (out.nfe, out.head_rows),
            promised,
            f"{setting}: NFE {counted.nfe} and {out.nfe}, answers {counted.head_rows} and {out.head_rows}, "
            f"tokens {'equal' if torch.equal(counted.x, out.x) else 'different'}",
            causes,
        )


def test_a_step_makes_no_device_sync(zoo_tokens: str, promise: Promise) -> None:
    """A sampler's own code never reads a value; what it asks the model through is the driver's."""
    if registry.load(zoo_tokens).facts.sequential:
        pytest.skip("a sequence grows by what is accepted: how far is read after each verification")
    recorder = SyncRecorder()

    def step(run: Any, predict: Any, state: Any) -> Any:
        with recorder:
            return run(Watched(predict, recorder.ignore), state)

    sampler = watched(create(zoo_tokens), step=step)
    run: dict[str, Any] = {"prompt": PROMPTS, "gen_length": GEN, "block_length": 5, "temperature": 1.0}
    with pretend_device(dry_runs=False):  # ops leave out the checks that they make on a CPU only
        sample(net(zoo_tokens), zoo_tokens, sampler, **run)
    promise(
        not recorder.syncs,
        "A step makes no device sync of its own.",
        f"{len(recorder.syncs)} in one run: {', '.join(sorted(set(recorder.syncs)))}",
        ".item(), .tolist(), int(tensor), `if tensor:` (_local_scalar_dense), x[mask] and x[mask] = y (index by a mask), "
        "nonzero, masked_select, torch.equal. Decide with torch.where, and choose positions with ops.select",
    )


def test_logits_are_asked_for_only_if_declared(zoo_tokens: str, promise: Promise) -> None:
    """predict.logits is called if and only if the class declares Facts(stores_logits=True)."""
    calls: list[str] = []

    def step(run: Any, predict: Any, state: Any) -> Any:
        seen = Watched(predict)
        after = run(seen, state)
        calls.extend(seen.calls)
        return after

    sample(net(zoo_tokens), zoo_tokens, watched(create(zoo_tokens), step=step), gen_length=GEN, temperature=1.0)
    declared = registry.load(zoo_tokens).facts.stores_logits
    promise(
        ("logits" in calls) == declared,
        f"Facts(stores_logits={declared}) says whether a step calls predict.logits.",
        f"{calls.count('logits')} calls of predict.logits in one run",
        "facts that do not say stores_logits=True, or say it although predict(state, want=...) is all that is used",
    )


def test_draw_numbers(zoo_tokens: str, promise: Promise) -> None:
    """No random number of a step is used twice, and the numbers that are reserved are left to the library.

    A use is one call of state.rng.positions, .at or .normal, made by the step itself, by gumbel(state), by canvas.noise or
    by a draw of tokens in predict(...) and predict.read. Two uses in one step must not share a draw number at the same
    row, position and step counter, unless the sampler declares the number in Conformance(redraws=...). A step of another
    package uses numbers from DRAW_FIRST_FREE up, and those that the library's helpers use for it.
    """
    cls, item = registry.load(zoo_tokens), registry.entry(zoo_tokens)
    own = item.distribution == registry.DISTRIBUTION
    rng: list[RecordedRng] = []

    def canvas(start: Any) -> Any:
        rng[:] = [RecordedRng.like(start.rng)]
        return dataclasses.replace(start, rng=rng[0])

    def step(run: Any, predict: Any, state: Any) -> Any:
        rng[0].uses.clear()
        after = run(predict, state)
        for a, b in clashes(rng[0].uses, cls.conformance.redraws):
            row, position, at = min(a.cells & b.cells)
            promise(
                False,
                "Within a step each random number has one purpose: two uses with one draw number are the same number.",
                f"draw {a.draw} (row {row}, position {position}, step {at}) is used at {a.place} and at {b.place}",
                "two calls with one draw number, gumbel(state) beside positions(L, state.step, 8), or two reads of tokens "
                "without draw=. Give each purpose a number of its own, from DRAW_FIRST_FREE up; if the same numbers are "
                "wanted (a token that is drawn again in place of the first), declare Conformance(redraws=(number,))",
            )
        if not own:
            for use in rng[0].uses:
                promise(
                    use.by_library or use.draw >= DRAW_FIRST_FREE or use.draw in (DRAW_TOKEN, DRAW_RANK),
                    f"Draw numbers below DRAW_FIRST_FREE = {DRAW_FIRST_FREE} are reserved for the library.",
                    f"draw {use.draw} is used at {use.place}",
                    "a number that was taken from samplers.random or made up; count yours from DRAW_FIRST_FREE",
                )
        return after

    sampler = watched(create(zoo_tokens), step=step, canvas=canvas)
    sample(net(zoo_tokens), zoo_tokens, sampler, prompt=PROMPTS, gen_length=GEN, block_length=5, temperature=1.0)


def clashes(uses: list[Use], redraws: Iterable[int]) -> Iterator[tuple[Use, Use]]:
    """Pairs of uses that share a random number, unless its draw number is among those that are used twice on purpose."""
    for k, b in enumerate(uses):
        for a in uses[:k]:
            if a.draw == b.draw and a.draw not in redraws and a.cells & b.cells:
                yield a, b


def test_stop_rule(zoo_tokens: str, promise: Promise) -> None:
    """A row ends after its first stop token."""
    denoiser = net(zoo_tokens)
    free = sample(denoiser, zoo_tokens, gen_length=32, batch=6, seed=2, temperature=1.0)
    stop = int(free.x[0, 5])
    out = sample(denoiser, zoo_tokens, gen_length=32, batch=6, seed=2, temperature=1.0, stop=stop)
    assert out.lengths is not None
    for i, row in enumerate(out.x.tolist()):
        end = int(out.lengths[i])
        fine = stop not in row[: end - 1] and (row[end - 1] == stop or end == 32)
        promise(
            fine and max(row) < denoiser.tokens and set(row[end:]) <= {samplers.PAD},
            "A row ends after its first stop token; everything before is filled in, and the rest is PAD.",
            f"row {i} of length {end}, stop={stop}: {row}",
            "a state of your own whose `masked` or `undecided` leaves positions out, or dataclasses.replace(state, x=...)",
        )


def test_time_reaches_a_time_conditioned_model(zoo_tokens: str, promise: Promise) -> None:
    """A time-conditioned model is given the noise level: t is (B,), in (0, 1], and falls."""
    if registry.load(zoo_tokens).facts.sequential:
        pytest.skip("what is kept must not depend on the time")
    uniform = registry.load(zoo_tokens).family == "uniform"
    denoiser: Any = net(zoo_tokens, time_conditioned=True) if uniform else TinyJoint(length=4, time_conditioned=True)
    sample(denoiser, zoo_tokens, gen_length=6 if uniform else None, batch=64, temperature=1.0)
    times = denoiser.times
    causes = (
        "t= of another scale (steps, or the visible fraction in place of the noise level), or a constant. Leave t out, or "
        "give state.noise_level, or TimedState.level(...) of the visible fraction"
    )
    # Editing a canvas on which no mask is left is asked about at level 0.
    edits = not uniform and registry.load(zoo_tokens).facts.revises
    for k, t in enumerate(times):
        promise(
            t.dim() == 1 and bool((((t > 0) | ((t == 0) & edits)) & (t <= 1)).all()),
            "t is the noise level of each row: (B,), above 0 and up to 1.",
            f"forward pass {k}: {tuple(t.shape)}, from {float(t.min()):g} to {float(t.max()):g}",
            causes,
        )
    first, last = float(times[0].mean()), float(times[-1].mean())
    promise(
        len(times) == 1 or first > last,
        "The noise level falls from the first forward pass to the last.",
        f"on average {first:g} in the first and {last:g} in the last of {len(times)}",
        causes,
    )


def test_levels_reach_a_model_that_takes_them(zoo_uniform: str, promise: Promise) -> None:
    """One noise level per position: given and decided tokens are clean, a block that is not begun is noise."""
    denoiser = TinyUniformJoint(length=4)
    sample(denoiser, zoo_uniform, prompt=[1], batch=5, temperature=1.0, block_length=2)
    first, last = denoiser.times[0], denoiser.times[-1]
    causes = (
        "a draft that is written without its level: subclass NoisyState and use state.renoised(x, level, decide), where "
        "level is 1 for fresh noise and 0 for what is taken for clean"
    )
    promise(
        bool((first == torch.tensor([0.0, 1, 1, 1])).all()),
        "In the first forward pass the prompt has level 0 and all else level 1.",
        f"{first[0].tolist()}",
        causes,
    )
    promise(
        bool((last[:, :3] == 0).all() and (last[:, 3] > 0).all()),
        "In the last forward pass everything but the last block has level 0.",
        f"{last[0].tolist()}",
        causes,
    )
    promise(
        all(bool(((t >= 0) & (t <= 1)).all()) for t in denoiser.times),
        "Levels are in [0, 1].",
        f"{min(float(t.min()) for t in denoiser.times):g} to {max(float(t.max()) for t in denoiser.times):g}",
        causes,
    )
    denoiser = TinyUniformJoint(length=4)
    sample(denoiser, zoo_uniform, batch=5, temperature=1.0)
    first, last = denoiser.times[0], denoiser.times[-1]
    promise(
        len(denoiser.times) == 1 or float(last.mean()) < float(first.mean()),
        "Levels fall within a block.",
        f"on average {float(first.mean()):g} in the first and {float(last.mean()):g} in the last of its forward passes",
        causes,
    )


@pytest.mark.parametrize("mode", ["left to right", "one at a time"])
def test_distribution_on_a_tiny_problem(zoo_tokens: str, mode: str, promise: Promise) -> None:
    """One position at a time draws from the model's own distribution, if the choice of position ignores the draw.

    A block of one position leaves no choice of position. "One at a time" leaves it to the sampler, and holds for those
    with a bias of "exact"; those that are exact in the limit of many steps take as many as they ask for.
    """
    cls = registry.load(zoo_tokens)
    problem, batch = joint(zoo_tokens), 12_000
    options, arguments = dict(cls.conformance.exact), dict[str, Any]()
    if mode == "left to right":
        arguments["block_length"] = 1
    elif cls.facts.bias not in ("exact", "asymptotic"):
        pytest.skip("the sampler declares that its distribution is biased, or does not say")
    else:
        known = {o.name for o in cls.options()}
        for key, value in cls.conformance.one_at_a_time.items():
            (options if key in known else arguments)[key] = value
    sampler = create(zoo_tokens, **options)
    out = sample(problem, zoo_tokens, sampler, batch=batch, seed=1, temperature=1.0, **arguments)
    counts = torch.bincount(problem.index(out.x), minlength=len(problem.law))
    p = fits(counts, problem.law)
    causes = (
        "tokens that are not the model's draws: at another temperature than predict.temperature, noise that is committed, "
        "or (uniform noise) a drawn x_0 that is taken for x_s; random numbers that are used for two purposes"
    )
    if mode == "one at a time":
        causes += (
            '. Or, with bias="exact", positions that are chosen by the drawn token, such as its confidence: then declare '
            'bias="biased". Or more than one position per step: Conformance(one_at_a_time={...})'
        )
    promise(
        p > BOUND,
        f"With one position per step ({mode}) samples follow the model's own distribution.",
        lambda: (
            f"{batch} samples of {len(problem.law)} strings: chi-square p-value {p:.2g} ({BOUND:g} or more is needed), "
            f"total variation {0.5 * float((counts / batch - problem.law).abs().sum()):.3f}"
        ),
        causes,
    )


def test_greedy_takes_the_best(zoo_tokens: str, promise: Promise) -> None:
    """At temperature 0 the best token is taken, and of equal ones the one with the lowest id."""
    target = torch.tensor([3, 1, 2, 0, 3, 2])
    logits = torch.nn.functional.one_hot(target, 5).float()
    logits[1:4] += torch.nn.functional.one_hot(torch.tensor([2, 3, 3]), 5)  # as good, and of a higher id

    mask_id = None if registry.load(zoo_tokens).family == "uniform" else 4
    for scale in (9.0, 0.8):
        denoiser = samplers.TokenDenoiser.wrap(
            lambda ids, scale=scale: (scale * logits).expand(len(ids), -1, -1), vocab_size=5, mask_id=mask_id, length=6
        )
        options = dict(registry.load(zoo_tokens).conformance.exact)
        out = sample(fit(zoo_tokens, denoiser), zoo_tokens, create(zoo_tokens, **options), batch=3, temperature=0.0)
        promise(
            bool((out.x == target).all()),
            "At temperature 0 each position gets its best token, the lowest id of equals.",
            f"a model whose best tokens are {target.tolist()} whatever it sees gave {out.x.tolist()}",
            "a draw of your own that ignores predict.temperature, or an argmax that takes the last of equals; use "
            "prediction.token or predict.read",
        )


# ---------------------------------------------------------------------------------------------- reals


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_reals_finite_and_counted(zoo_gaussian: str, steps: int, promise: Promise) -> None:
    """Any number of steps gives finite values of the model's dtype, at the declared NFE."""
    for schedule in ("vp_linear", "edm", "flow"):
        out = samplers.sample(TinyMixture(schedule=schedule), zoo_gaussian, batch=3, steps=steps)
        promise(
            out.x.shape == (3, 4) and out.x.dtype == torch.float64,
            "Samples have the model's shape and dtype, (3, 4) float64 here.",
            f"{tuple(out.x.shape)} {out.x.dtype}",
            "a cast (.float()), or a tensor that is made without dtype=state.x.dtype",
        )
        promise(
            bool(torch.isfinite(out.x).all()),
            "Samples are finite with any number of steps, one included.",
            f"{schedule}, steps={steps}: {out.x.flatten().tolist()[:4]} ...",
            "a division by steps - 1, by a step of length 0 or by sigma = 0; a multistep formula without a first step",
        )
        expected = samplers.create(zoo_gaussian).expected_nfe(0, steps)
        promise(
            expected is None or out.nfe == expected,
            f"expected_nfe(0, {steps}) = {expected} is the number of forward passes.",
            f"{schedule}: {out.nfe}",
            "the inherited expected_nfe of a solver that makes several forward passes per step (override it, or spend "
            "`steps` forward passes in all: canvas.steps); a grid that does not depend on canvas.steps",
        )
        promise(
            bool((out.nfe_rows == out.nfe).all()) and out.row_evals == 3 * out.nfe,
            "Every row takes part in every forward pass.",
            f"nfe_rows {out.nfe_rows.tolist()}, row_evals {out.row_evals}, nfe {out.nfe}",
            "predict that is called with a part of the rows",
        )


def test_reals_row_alone_and_seed(zoo_gaussian: str, promise: Promise) -> None:
    """Row i of a batch is the row alone, and one seed gives one result."""

    def run(batch: int, seed: int = 4, first_row: int = 0) -> Tensor:
        return samplers.sample(TinyMixture(), zoo_gaussian, batch=batch, steps=6, seed=seed, first_row=first_row).x

    before = torch.get_rng_state()
    together = run(5)
    global_generator_stays(promise, before)
    for i in range(5):
        alone = run(1, first_row=i)[0]
        promise(
            torch.equal(alone, together[i]),
            "Row i of a batch is what it is alone, whatever the other rows are (row invariance).",
            f"row {i} differs by up to {float((alone - together[i]).abs().max()):.2g}",
            ROW_CAUSES,
        )
    promise(
        bool((run(5, seed=5) != together).all()),
        "Another seed gives another result.",
        "seeds 4 and 5 agree",
        SEED_CAUSES,
    )


def test_reals_interleaved(zoo_gaussian: str, promise: Promise) -> None:
    """Two runs of one sampler that take turns are what they are apart."""
    sampler = samplers.create(zoo_gaussian)
    interleaved(promise, lambda seed: samplers.stream(TinyMixture(), sampler, batch=2, steps=7, seed=seed))


def test_reals_states_are_immutable(zoo_gaussian: str, promise: Promise) -> None:
    """A step leaves its state as it was, and a state that is stepped from again leads to the same next one."""
    run = samplers.stream(TinyMixture(), zoo_gaussian, batch=2, steps=8)
    states_stay(promise, run, again=True)


def test_reals_draw_numbers(zoo_gaussian: str, promise: Promise) -> None:
    """No draw of noise is used twice in a run; draw 0 is the noise that the run starts with."""
    rng: list[RecordedRng] = []

    def canvas(start: Any) -> Any:
        rng[:] = [RecordedRng.like(start.rng)]
        return dataclasses.replace(start, rng=rng[0])

    sampler = samplers.create(zoo_gaussian)
    samplers.sample(TinyMixture(), watched(sampler, canvas=canvas), batch=2, steps=6)
    for a, b in clashes(rng[0].uses, sampler.conformance.redraws):
        promise(
            False,
            "Each noise(k) of a run is used once.",
            f"noise({min(a.cells & b.cells)[2]}) is used at {a.place} and at {b.place}",
            "state.canvas.noise(state.i), since noise(0) is x_T, or a constant; step i takes state.canvas.noise(state.i + 1)",
        )


_ENDS: dict[bytes, Tensor] = {}  # most samplers start from the same noise


def true_end(x: Tensor) -> Tensor:
    """Where the probability-flow ODE of TinyMixture takes x, from t_max to t_min."""
    problem, key = TinyMixture(), x.numpy().tobytes()
    if key not in _ENDS:
        _ENDS[key] = solve_ode(problem, x, problem.schedule.t_max, problem.schedule.t_min)
    return _ENDS[key]


def test_declared_order(zoo_gaussian: str, promise: Promise) -> None:
    """The error falls with the number of steps as the declared order says."""
    cls = registry.load(zoo_gaussian)
    sampler = samplers.create(zoo_gaussian, **dict(cls.conformance.order))
    order = getattr(sampler, "order", None)
    if order is None:
        pytest.skip("no order is declared")
    problem = TinyMixture()
    x = next(iter(samplers.stream(problem, sampler, batch=8, steps=6))).x
    truth = true_end(x)
    errors = []
    for steps in (144, 288, 576):
        out = samplers.sample(problem, sampler, batch=8, steps=steps)
        errors.append(float((out.x - truth).pow(2).mean().sqrt()))
    slope = math.log2(errors[-2] / errors[-1])
    promise(
        abs(slope - order) < 0.15,
        f"The solver is of order {order}: twice the steps divide the error by {2**order}.",
        f"order {slope:.2f} (errors {', '.join(f'{e:.2g}' for e in errors)} with 144, 288, 576 forward passes)",
        "a wrong coefficient, often in the first or last step only; a step of lower order among them (declare the options "
        "that leave it out: Conformance(order={...})); float32 somewhere; steps counted where forward passes are meant",
    )
