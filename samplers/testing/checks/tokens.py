"""Checks for samplers of tokens: prompts and masks, rows, counts, device syncs, draws, time, and the distribution."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

import samplers

from ... import registry
from ...canvas import Canvas
from ...driver import Stream
from ...random import DRAW_FIRST_FREE, DRAW_RANK, DRAW_TOKEN
from ...result import Sample
from ...sampler import Sampler
from ...syncs import pretend_device
from ..fit import BOUND, fits
from ..kit import check
from ..promises import CAUSES, NotApplicable, Promise
from ..subjects import GEN, PROMPTS, create, joint, mixed, net, suited
from ..sync_recorder import SyncRecorder
from ..tiny import TinySure, TinyUniformJoint, as_asked
from ..watching import RecordedRng, Watched, watched
from .any_family import KEPT_CAUSES, ROW_CAUSES, clashes, some

SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 5},
    {"block_length": 4},
    {"block_length": 5, "steps": 7, "temperature": 1.0},
    {"temperature": 0.7, "cfg_scale": 1.5},
    {"temperature": 1.0, "steps": 40},
    {"window": "sliding(3,5)", "steps": 7, "temperature": 1.0},
]
MIXED_SETTINGS: list[dict[str, Any]] = [{"steps": 4}, {"block_length": 4, "steps": 8}]

TIME_CAUSES = (
    "a time that is taken of one row, or of the batch, for all: t=state.noise_level[0], a mean or maximum. Leave t out, or give "
    "(B,) values, one for each row: state.noise_level, or TimedState.level(...)"
)


def sample(promise: Promise, denoiser: Any, name: str, sampler: Sampler[Any] | None = None, **setting: Any) -> Sample:
    return promise.sample(denoiser, sampler or create(name), **suited(name, setting))


def stream(promise: Promise, denoiser: Any, name: str, sampler: Sampler[Any] | None = None, **setting: Any) -> Stream:
    return promise.stream(denoiser, sampler or create(name), **suited(name, setting))


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


@check(settings=SETTINGS)
def prompt_untouched_no_mask_left(name: str, setting: dict[str, Any], promise: Promise) -> None:
    """Prompts stay what they are, and every position to fill gets a token."""
    denoiser = net(name)
    out = finished(stream(promise, denoiser, name, prompt=PROMPTS, gen_length=GEN, seed=7, **setting), promise)
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


@check()
def infill_keeps_what_is_given(name: str, promise: Promise) -> None:
    """Tokens that are given between positions to fill stay."""
    denoiser = net(name)
    x = torch.arange(20).remainder(11).repeat(3, 1)
    fill = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    canvas = Canvas.infill(denoiser, x, fill)
    run = stream(promise, denoiser, name, prompt=canvas, block_length=3, temperature=1.0)
    for k, state in enumerate(run):
        moved = ((state.x != x) & ~fill).nonzero().tolist()
        promise(
            not moved,
            "Given tokens stay, also between positions to fill.",
            f"after {k} step{'s' * (k != 1)} they are changed at (row, position) {some(moved)}",
            "a write into state.x, or a rule that takes everything after the prompt for open; use state.open",
        )
    out = run.result()
    promise(
        (out.x < denoiser.tokens).all(),
        "Every position to fill holds a token in the end.",
        f"{out.x.tolist()}",
        "a rule that takes everything after the first position to fill for open; use state.open",
    )


@check(settings=SETTINGS)
def row_of_a_batch_is_the_row_alone(name: str, setting: dict[str, Any], promise: Promise) -> None:
    """Row invariance: row i of a batch has the tokens and the NFE of the row alone."""
    together = sample(promise, net(name), name, prompt=PROMPTS, gen_length=GEN, seed=3, **setting)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(promise, net(name), name, prompt=[prompt], gen_length=GEN, seed=3, first_row=i, **setting)
        same_row(promise, together, i, alone)


@check(settings=MIXED_SETTINGS)
def row_of_a_mixed_batch_is_the_row_alone(name: str, setting: dict[str, Any], promise: Promise) -> None:
    """Row invariance, with rows of different lengths, at different steps, with different numbers of open positions."""
    denoiser = net(name)
    together = sample(promise, denoiser, name, prompt=mixed(denoiser), seed=3, temperature=1.0, **setting)
    for i in range(len(PROMPTS)):
        run = {"prompt": mixed(denoiser, [i]), "seed": 3, "first_row": i, "temperature": 1.0, **setting}
        same_row(promise, together, i, sample(promise, denoiser, name, **run))


@check()
def time_of_a_row_is_its_own(name: str, promise: Promise) -> None:
    """Row invariance on a time-conditioned model, with rows at different steps: each row is given its own noise level."""
    if registry.load(name).facts.sequential:
        raise NotApplicable("what is kept must not depend on the time")
    denoiser = net(name, time_conditioned=True)
    together = sample(promise, denoiser, name, prompt=mixed(denoiser), seed=3, temperature=1.0, steps=5)
    for i in range(len(PROMPTS)):
        run: dict[str, Any] = {
            "prompt": mixed(denoiser, [i]),
            "first_row": i,
            "seed": 3,
            "temperature": 1.0,
            "steps": 5,
        }
        same_row(promise, together, i, sample(promise, denoiser, name, **run), TIME_CAUSES)


@check()
def row_of_64_is_the_row_alone(name: str, promise: Promise) -> None:
    """Row invariance in a batch of 64."""
    together = sample(promise, net(name), name, gen_length=16, batch=64, seed=11, temperature=1.0)
    for i in (0, 1, 31, 63):
        alone = sample(promise, net(name), name, gen_length=16, seed=11, first_row=i, temperature=1.0)
        same_row(promise, together, i, alone)


def same_row(promise: Promise, together: Sample, i: int, alone: Sample, causes: str = ROW_CAUSES) -> None:
    assert alone.lengths is not None
    end = int(alone.lengths[0])
    row, single = together.x[i, :end].tolist(), alone.x[0, :end].tolist()
    at = differ(row, single)
    promise(
        not at,
        "Row i of a batch is what it is alone, whatever the other rows are (row invariance).",
        lambda: (
            f"row {i} differs at positions {some(at)}: {some([row[j] for j in at])} in the batch, "
            f"{some([single[j] for j in at])} alone"
        ),
        causes,
    )
    promise(
        int(together.nfe_rows[i]) == alone.nfe,
        "A row takes part in as many forward passes in a batch as alone (row invariance).",
        lambda: f"row {i}: {int(together.nfe_rows[i])} in the batch, {alone.nfe} alone",
        causes + ". Or rows that ask although they have nothing left: ask about state.open or a part of it",
    )


@check(families=["masked"])
def committed_tokens_stay(name: str, promise: Promise) -> None:
    """A token that is committed is never changed, unless the sampler declares that it revises."""
    if registry.load(name).facts.revises:
        raise NotApplicable("it declares that it revises")
    states = list(stream(promise, net(name), name, gen_length=GEN, batch=3, temperature=1.0))
    mask_id = states[0].canvas.mask_id  # type: ignore[attr-defined]
    for k, (a, b) in enumerate(zip(states, states[1:])):
        changed = ((a.x != mask_id) & (a.x != b.x)).nonzero().tolist()
        promise(
            not changed,
            "A committed token is neither masked again nor changed.",
            f"step {k} changed (row, position) {some(changed)}",
            "a write outside of state.open. Commit with state.commit, which writes at open positions only; a sampler that masks "
            "or edits tokens again must declare Facts(revises=True)",
        )


@check(settings=[{"steps": n} for n in (1, 5, 16, 40)])
def counted_nfe_is_the_declared(name: str, setting: dict[str, int], promise: Promise) -> None:
    """`steps` (and extra_steps on top) is kept, and expected_nfe(length, steps) is the mean NFE of a row."""
    steps, length, batch = setting["steps"], 16, 1200
    sampler = samplers.create(name)
    if sampler.facts.sequential:
        raise NotApplicable("it does not take `steps`")
    cap_causes = (
        "counts that do not depend on state.block_steps. Samplers of fixed counts take even_count(state); adaptive ones "
        "commit min_count(state) or more"
    )
    run: dict[str, Any] = {"gen_length": length, "steps": steps, "temperature": 1.0}
    expected = sampler.expected_nfe(length, steps)
    if expected is None:
        out = promise.sample(net(name), sampler, batch=32, **run)
        # A sampler that revises may need more steps than there are positions.
        cap = (steps if sampler.effective_facts.revises else min(length, steps)) + sampler.extra_steps
        most = int(out.nfe_rows.max())
        promise(most <= cap, f"`steps`={steps} is a cap on NFE.", f"a row of {length} took {most} of {cap}", cap_causes)
        return
    out = promise.sample(net(name, vocab=3, reach=1), sampler, batch=batch, **run)
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


@check()
def counts_are_what_the_model_saw(name: str, promise: Promise) -> None:
    """NFE, rows, tokens and answers are counted as the model was given them."""
    denoiser = net(name)
    causes = (
        "a model that is called past `predict`, or forward passes for rows that have nothing left; ask through predict only, "
        "about state.open or a part of it"
    )
    sequential = registry.load(name).facts.sequential
    more: dict[str, Any] = {} if sequential else {"steps": 6, "cfg_scale": 1.0}
    out = sample(promise, denoiser, name, prompt=[[1, 2], [3, 4]], gen_length=GEN, **more)
    counted = {"nfe": out.nfe, "row_evals": out.row_evals, "token_evals": out.token_evals, "head_rows": out.head_rows}
    if sequential:
        rows, given, answers = (sum(n) for n in zip(*denoiser.asked))
        fine = int(out.nfe_rows.max()) <= out.nfe <= int(out.nfe_rows.sum()) <= rows
    else:
        rows, answers = (sum(n) for n in zip(*denoiser.asked))
        given = sum(denoiser.given)
        least = 2 * int(out.nfe_rows.sum())  # a guided forward pass has two rows per row
        fine = rows >= least if registry.load(name).facts.copies else rows == least
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


@check()
def static_plan_is_kept(name: str, promise: Promise) -> None:
    """With Facts(static_plan=True), what is asked does not depend on the model: a dry run can work it out."""
    if not registry.load(name).facts.static_plan:
        raise NotApplicable("its counts depend on the model")
    causes = (
        "the number or the place of the positions that a step asks about depends on prediction.* (a threshold, a "
        "confidence, a drawn token). Then leave out static_plan=True"
    )
    for setting in SETTINGS:
        if "window" in setting:  # what a window that moves holds depends on what was committed, so there is no dry run
            continue
        promise.begin()
        run: dict[str, Any] = {"prompt": PROMPTS, "gen_length": GEN, "seed": 3, **setting}
        counted = sample(promise, net(name), name, **run)
        with pretend_device():
            dry = stream(promise, net(name), name, **run)
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
            f"without the dry run NFE {counted.nfe} and {counted.head_rows} answers, with it {out.nfe} and {out.head_rows}; "
            f"tokens {'equal' if torch.equal(counted.x, out.x) else 'different'}",
            causes,
        )


@check()
def a_step_makes_no_device_sync(name: str, promise: Promise) -> None:
    """A sampler's own code never reads a value; what it asks the model through is the driver's."""
    if registry.load(name).facts.sequential:
        raise NotApplicable("a sequence grows by what is accepted: how far is read after each verification")
    recorder = SyncRecorder()

    def step(run: Any, predict: Any, state: Any) -> Any:
        with recorder:
            return run(Watched(predict, recorder.ignore), state)

    sampler = watched(create(name), step=step)
    run: dict[str, Any] = {"prompt": PROMPTS, "gen_length": GEN, "block_length": 5, "temperature": 1.0}
    with pretend_device(dry_runs=False):  # ops leave out the checks that they make on a CPU only
        sample(promise, net(name), name, sampler, **run)
    promise(
        not recorder.syncs,
        "A step makes no device sync of its own.",
        lambda: f"{len(recorder.syncs)} in one run: {', '.join(sorted(set(recorder.syncs)))}",
        ".item(), .tolist(), int(tensor), `if tensor:` (_local_scalar_dense), x[mask] and x[mask] = y (index by a mask), "
        "nonzero, masked_select, torch.equal. Decide with torch.where, and choose positions with ops.select",
        "\n".join(dict.fromkeys(filter(None, recorder.places))) or None,
    )


@check()
def logits_are_asked_for_only_if_declared(name: str, promise: Promise) -> None:
    """predict.logits is called if and only if the class declares it, Facts(stores_logits=True); as are what facts.needs names."""
    calls: list[str] = []

    def step(run: Any, predict: Any, state: Any) -> Any:
        seen = Watched(predict)
        after = run(seen, state)
        calls.extend(seen.calls)
        return after

    sample(promise, net(name), name, watched(create(name), step=step), gen_length=GEN, temperature=1.0)
    declared = registry.load(name).facts.stores_logits
    stored = sum(calls.count(call) for call in ("logits", "seen_logits", "guess"))
    promise(
        bool(stored) == declared,
        f"Facts(stores_logits={declared}) says whether a step calls predict.logits.",
        f"{stored} calls of predict.logits in one run",
        "facts that say something else than the step does. Declare Facts(stores_logits=True) if a step calls predict.logits, and "
        "leave it out if predict(state, want=...) is all that is used",
    )
    needs = registry.load(name).facts.needs
    for need, asks in (("masks", {"seen", "seen_logits"}), ("attends", {"attention"})):
        promise(
            bool(asks & set(calls)) == (need in needs),
            f"Facts(needs={needs!r}) says whether a step calls {' or '.join(f'predict.{call}' for call in sorted(asks))}.",
            f"{sum(call in asks for call in calls)} such calls in one run",
            f"a denoiser without it would end the run in the middle: declare Facts(needs=({need!r},)) if a step does so, and "
            "leave it out if none does",
        )


@check()
def draw_numbers(name: str, promise: Promise) -> None:
    """No random number of a step is used twice, and the numbers that are reserved are left to the library.

    A use is one call of state.rng.positions, .at or .normal, made by the step itself, by gumbel(state), by canvas.noise or
    by a draw of tokens in predict(...) and predict.read. Two uses in one step must not share a draw number at the same
    row, position and step counter, unless the sampler declares the number in Conformance(redraws=...). A step of another
    package uses numbers from DRAW_FIRST_FREE up, and those that the library's helpers use for it.
    """
    cls, item = registry.load(name), registry.entry(name)
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

    sampler = watched(create(name), step=step, canvas=canvas)
    sample(promise, net(name), name, sampler, prompt=PROMPTS, gen_length=GEN, block_length=5, temperature=1.0)


@check()
def stop_rule(name: str, promise: Promise) -> None:
    """A row ends after its first stop token."""
    denoiser = net(name)
    free = sample(promise, denoiser, name, gen_length=32, batch=6, seed=2, temperature=1.0)
    stop = int(free.x[0, 5])
    out = sample(promise, denoiser, name, gen_length=32, batch=6, seed=2, temperature=1.0, stop=stop)
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


@check()
def time_reaches_a_time_conditioned_model(name: str, promise: Promise) -> None:
    """A time-conditioned model is given the noise level: t is (B,), in (0, 1], and falls."""
    if registry.load(name).facts.sequential:
        raise NotApplicable("what is kept must not depend on the time")
    uniform = registry.load(name).family == "uniform"
    denoiser: Any = net(name, time_conditioned=True) if uniform else joint(name, length=4, time_conditioned=True)
    sample(promise, denoiser, name, gen_length=6 if uniform else None, batch=64, temperature=1.0)
    times = denoiser.times
    causes = (
        "t= of another scale (steps, or the visible fraction in place of the noise level), or a constant. Leave t out, or "
        "give state.noise_level, or TimedState.level(...) of the visible fraction"
    )
    # Editing a canvas on which no mask is left is asked about at level 0.
    edits = not uniform and registry.load(name).facts.revises
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


@check(families=["uniform"])
def levels_reach_a_model_that_takes_them(name: str, promise: Promise) -> None:
    """One noise level per position: given and decided tokens are clean, a block that is not begun is noise."""
    denoiser = TinyUniformJoint(length=4)
    sample(promise, denoiser, name, prompt=[1], batch=5, temperature=1.0, block_length=2)
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
    sample(promise, denoiser, name, batch=5, temperature=1.0)
    first, last = denoiser.times[0], denoiser.times[-1]
    promise(
        len(denoiser.times) == 1 or float(last.mean()) < float(first.mean()),
        "Levels fall within a block.",
        f"on average {float(first.mean()):g} in the first and {float(last.mean()):g} in the last of its forward passes",
        causes,
    )


@check(settings=["left to right", "one at a time", "left to right at temperature 0.5"])
def distribution_on_a_tiny_problem(name: str, setting: str, promise: Promise) -> None:
    """One position at a time draws from the model's own distribution, if the choice of position ignores the draw.

    A block of one position leaves no choice of position. "One at a time" leaves it to the sampler, and holds for those
    with a bias of "exact"; those that are exact in the limit of many steps take as many as they ask for. At temperature 0.5
    each token is drawn from the square of its distribution.
    """
    cls = registry.load(name)
    problem, batch = joint(name), 12_000
    options, arguments = dict(cls.conformance.exact), dict[str, Any]()
    law, temperature = problem.law, 1.0
    if setting != "one at a time":
        arguments["block_length"] = 1
        if setting != "left to right":
            temperature, law = 0.5, _squared(problem)
    elif cls.facts.bias not in ("exact", "asymptotic"):
        raise NotApplicable("the sampler declares that its distribution is biased, or does not say")
    else:
        known = {o.name for o in cls.options()}
        for key, value in cls.conformance.one_at_a_time.items():
            (options if key in known else arguments)[key] = value
    sampler = create(name, **options)
    out = sample(promise, problem, name, sampler, batch=batch, seed=1, temperature=temperature, **arguments)
    counts = torch.bincount(problem.index(out.x), minlength=len(law))
    p = fits(counts, law)
    causes = (
        "tokens that are not the model's draws: at another temperature than predict.temperature, noise that is committed, "
        "or (uniform noise) a drawn x_0 that is taken for x_s; random numbers that are used for two purposes; a "
        "write at positions of a later block, outside of state.open. Commit prediction.token, or what predict.read draws"
    )
    if temperature != 1:
        causes += (
            ". If it is right at temperature 1: a temperature that is applied twice, or taken for 1 unless it is 0"
        )
    if setting == "one at a time":
        causes += (
            '. Or, with bias="exact", positions that are chosen by the drawn token, such as its confidence: then declare '
            'bias="biased". Or more than one position per step: Conformance(one_at_a_time={...})'
        )
    promise(
        p > BOUND,
        f"With one position per step ({setting}) samples follow the model's own distribution"
        + (", each token's to the power 1 / temperature." if temperature != 1 else "."),
        lambda: (
            f"{batch} samples of {len(law)} strings: chi-square p-value {p:.2g} ({BOUND:g} or more is needed), "
            f"total variation {0.5 * float((counts / batch - law).abs().sum()):.3f}"
        ),
        causes,
    )


def _squared(problem: Any) -> Tensor:
    """(S,) the distribution of strings if each token, from left to right, is drawn at temperature 0.5."""
    law = torch.ones_like(problem.law)
    for i in range(problem.length):
        first = problem.law.view(-1, problem.tokens, problem.tokens ** (problem.length - i - 1)).sum(
            2
        )  # tokens 0 to i together
        weight = (first / first.sum(1, keepdim=True)) ** 2
        weight = weight / weight.sum(1, keepdim=True)
        law = law * weight.flatten().repeat_interleave(len(law) // weight.numel())
    return law


@check()
def tokens_of_one_step_are_independent(name: str, promise: Promise) -> None:
    """Tokens that come of one forward pass are drawn independently of each other, each from the model's distribution there."""
    if registry.load(name).facts.sequential:
        raise NotApplicable("it does not take `steps`")
    problem, batch = joint(name), 12_000
    sampler = create(name, **dict(registry.load(name).conformance.exact))
    out = sample(promise, problem, name, sampler, batch=batch, seed=1, temperature=1.0, steps=1)
    if int(out.nfe_rows.max()) > 1:
        raise NotApplicable("with steps=1 it makes more than one forward pass")
    each = problem.law.view((problem.tokens,) * problem.length)
    law = torch.ones_like(each)
    for i in range(problem.length):
        alone = each.sum([j for j in range(problem.length) if j != i])
        law = law * alone.view([-1 if j == i else 1 for j in range(problem.length)])
    counts = torch.bincount(problem.index(out.x), minlength=law.numel())
    p = fits(counts, law.flatten())
    promise(
        p > BOUND,
        "Tokens of one forward pass are independent draws, each from what the model says of its position.",
        lambda: (
            f"{batch} samples with steps=1: chi-square p-value {p:.2g} ({BOUND:g} or more is needed), total variation "
            f"{0.5 * float((counts / batch - law.flatten()).abs().sum()):.3f} from the product of the model's distributions"
        ),
        "one random number for all positions of a row: u = state.rng.positions(L, state.step, draw) is (B, L), one for each "
        "position, and must not be cut to u[:, :1]. Or tokens that are chosen among several draws: commit prediction.token, or "
        "what predict.read draws",
    )


@check()
def a_run_of_a_pool_is_the_run_alone(name: str, promise: Promise) -> None:
    """A step may be cut short where it asks the model, and begun again when the answer is there, as Pool and AskingRun do."""
    if registry.load(name).facts.sequential:
        raise NotApplicable("its sequence has a cache of its own, which a pool does not share")
    if "attends" in registry.load(name).facts.needs:
        raise NotApplicable("a pool has no attention beside its answers")
    denoiser, sampler = net(name), create(name)
    run: dict[str, Any] = {"prompt": [[1, 2], [3, 4]], "gen_length": GEN, "seed": 3, "temperature": 1.0}
    alone = sample(promise, denoiser, name, sampler, **run)
    pool = samplers.Pool(denoiser)
    pooled = pool.add(sampler, **run)
    for _ in pool:
        pass
    out = pooled.result()
    promise(
        torch.equal(out.x, alone.x) and out.nfe == alone.nfe,
        "A run of a Pool is the run alone: a step that is cut short at its question changes nothing.",
        f"tokens {'equal' if torch.equal(out.x, alone.x) else 'different'}, NFE {out.nfe} in the pool and {alone.nfe} alone",
        "an `except:` or `except BaseException:` around predict, which catches what cuts the step short: name the errors that "
        "are meant, or catch Exception. Or something that a step keeps outside of the state before it asks: "
        + KEPT_CAUSES,
    )


@check()
def greedy_takes_the_best(name: str, promise: Promise) -> None:
    """At temperature 0 the best token is taken, and of equal ones the one with the lowest id."""
    mask = registry.load(name).family != "uniform"
    for scale in (9.0, 0.8):
        promise.begin()
        denoiser = TinySure(scale, mask=mask)
        options = dict(registry.load(name).conformance.exact)
        out = sample(
            promise, as_asked(registry.load(name), denoiser), name, create(name, **options), batch=3, temperature=0.0
        )
        promise(
            bool((out.x == denoiser.best).all()),
            "At temperature 0 each position gets its best token, the lowest id of equals.",
            f"a model whose best tokens are {denoiser.best.tolist()} whatever it sees gave {out.x.tolist()}",
            "a draw of your own that ignores predict.temperature, or an argmax that takes the last of equals; use "
            "prediction.token or predict.read",
        )
