"""The driver: sample() and stream(), and everything that is the same for all samplers.

Guidance, temperature, blocks, stop rules, constraints, seeds, counting, timing and progress are here, in predictor.py and in
state.py, and nowhere else, so every sampler has all of them without a line of its own.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import registry
from .arguments import interval, number, parse_stop, positive_int, token_ids
from .canvas import PAD, Canvas, NoiseCanvas
from .denoiser import Counter, Denoiser, GaussianDenoiser, TokenDenoiser
from .dry_run import DryRun
from .errors import FamilyError, OptionError, SamplersError
from .feeds import Feed
from .feeds.cached import CachedFeed, cache_scheme
from .feeds.plain import PlainFeed
from .feeds.sequence import SequenceFeed, check_sequential
from .info import InfoRecorder
from .predictor import GaussianPredictor, Predictor, SamplingConfig, SequencePredictor
from .random import Rng
from .result import Sample, Seconds
from .sampler import Sampler, State
from .state import TokenState
from .syncs import dry_runs_pay

__all__ = ["Constraint", "Stream", "sample", "stream"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Stream(Iterator[State]):
    """A run that is looked at between its steps; made by stream().

    Iterating gives the state before the first step and after each one. At any time there are `state`, `steps` (taken)
    and `nfe` (forward passes so far); `result()` makes a Sample of what there is.
    """

    sampler: Sampler[Any]
    predictor: Predictor | GaussianPredictor
    predict: Any  # what the sampler gets: the predictor, or one that can do more
    state: State
    limit: int
    settings: dict[str, Any]
    constrain: Callable[[TokenState], Constraint | None] | None = None
    steps: int = 0
    wall: float = 0.0
    bar: _Bar | None = None
    begun: bool = False
    recorder: InfoRecorder | None = None

    @property
    def nfe(self) -> int:
        """Forward passes so far."""
        return self.predictor.counter.nfe

    def __next__(self) -> State:
        if not self.begun:
            self.begun = True
            return self.state
        if self.predictor.finished(self.state):  # type: ignore[arg-type]
            self.close()
            self.predictor.check()
            raise StopIteration
        self.advance()
        if self.bar:
            self.bar.advance(self)
        return self.state

    def close(self) -> None:
        """Take the progress bar down; for a loop that is left early. Nothing else is open."""
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        """Take one step."""
        start = time.perf_counter()
        try:
            self._step()
        except Exception:
            self.predictor.check()  # on a device, an answer that was bad is found late: it explains what came of it
            raise
        self.steps += 1
        self.wall += time.perf_counter() - start
        if self.steps > self.limit:
            self.predictor.check()
            raise SamplersError(
                f"sampler {self.sampler.name!r} is not done after {self.steps} steps: a step must commit at least one "
                "position in the last of its block's steps, or move on"
            )

    def _step(self) -> None:
        with torch.no_grad():
            if self.constrain is not None:
                self._apply_constraint()
            memory = None
            if isinstance(self.predictor, Predictor):
                assert isinstance(self.state, TokenState)
                if self.predictor.dry_run is not None:
                    self.predictor.dry_run.advance()
                memory = self.predictor.feed.memory
                if memory is not None:
                    memory.begin_step(self.state)
            stepped = self.sampler.step(self.predict, self.state)
            state, returned = stepped if isinstance(stepped, tuple) else (stepped, {})
            if memory is not None:
                state = memory.end_step(state)
            if self.recorder is not None:
                self.recorder.end_step(self.state, state, returned)
            self.state = state

    def _apply_constraint(self) -> None:
        """Ask the constraint, decide what it fixes and forbid what it forbids."""
        assert (
            self.constrain is not None and isinstance(self.predictor, Predictor) and isinstance(self.state, TokenState)
        )
        said = self.constrain(self.state)
        if said is None:
            said = Constraint()
        elif not isinstance(said, Constraint):
            raise OptionError(
                f"constrain returned {type(said).__name__}; samplers.Constraint(fix=, forbid=) or None is needed"
            )
        said.check(self.state)
        if said.fix is not None:
            self.state = self.state.fix(said.fix >= 0, said.fix)
        self.predictor.constraint = (
            None if said.forbid is None else said.forbid.view(*(1,) * (3 - said.forbid.dim()), *said.forbid.shape)
        )

    def result(self, trace: list[State] | None = None) -> Sample:
        """What the run has made so far, and what it has cost. A row that is not done still holds mask ids."""
        self.predictor.check()
        counter, item = self.predictor.counter, registry.entry_of(type(self.sampler))
        inside = counter.seconds
        x, lengths = self.state.x, None
        if isinstance(self.state, TokenState):
            lengths = self.state.end
            position = torch.arange(x.shape[1], device=x.device)
            x = torch.where(position < lengths[:, None], x, PAD)
        return Sample(
            x=x,
            nfe=counter.nfe,
            row_evals=counter.row_evals,
            token_evals=counter.token_evals,
            head_rows=counter.head_rows,
            cache_bytes=self.predictor.cache_bytes,
            nfe_rows=self.predictor.nfe_rows,
            steps=self.steps,
            seconds=Seconds(inside, max(self.wall - inside, 0.0)),
            lengths=lengths,
            sampler=self.sampler.name,
            options=self.sampler.values(),
            distribution=item[0],
            version=item[1],
            settings=self.settings,
            trace=tuple(trace) if trace is not None else None,
            info=None if self.recorder is None else self.recorder.stacked(),
        )


@dataclass(frozen=True, eq=False)
class Constraint:
    """What a `constrain` hook asks for in a step.

    Attributes:
        fix: (B, L) int64, tokens to decide now, in any block, without asking the model; -1 where there is none. Given and
            decided positions are left alone.
        forbid: bool that broadcasts to (B, L, V), such as (V,), (L, V) or (B, 1, V): tokens not to be drawn in this step.
    """

    fix: Tensor | None = None
    forbid: Tensor | None = None

    def check(self, state: TokenState) -> None:
        """OptionError where a shape or dtype is wrong, or a fixed token is no token."""
        canvas, vocab = state.canvas, state.canvas.vocab_size
        shape = (*state.x.shape, vocab)
        if self.fix is not None:
            if self.fix.shape != state.x.shape or self.fix.dtype != torch.int64:
                raise OptionError(
                    f"constrain: fix is {tuple(self.fix.shape)} {self.fix.dtype}; (B, L) = {shape[:2]} int64 is needed, "
                    "-1 where nothing is fixed"
                )
            if state.x.device.type == "cpu":
                bad = (self.fix >= vocab) | (self.fix < -1)
                bad = bad if canvas.mask_id is None else bad | (self.fix == canvas.mask_id)
                for i, j in bad.nonzero().tolist():
                    raise OptionError(f"constrain: fix[{i}, {j}] is {int(self.fix[i, j])}, which is no token")
        if self.forbid is not None:
            try:
                fits = torch.broadcast_shapes(self.forbid.shape, shape) == shape
            except RuntimeError:
                fits = False
            if not fits or self.forbid.dtype != torch.bool or self.forbid.shape[-1] != vocab:
                raise OptionError(
                    f"constrain: forbid is {tuple(self.forbid.shape)} {self.forbid.dtype}; bool that broadcasts to "
                    f"(B, L, V) = {shape} is needed"
                )


def _start_run(denoiser: Any, sampler: Any, options: dict[str, Any], args: dict[str, Any]) -> Stream:
    if isinstance(sampler, str):
        sampler = registry.load(sampler).make(**options)
    elif not isinstance(sampler, Sampler):
        raise OptionError(f"sampler must be a name or a Sampler made by samplers.create(), not {sampler!r}")
    elif options:
        raise OptionError(
            f"options {', '.join(map(repr, options))} were given beside a sampler that is made already; "
            "give them to samplers.create(), or name the sampler"
        )
    if not isinstance(denoiser, Denoiser):
        raise OptionError(
            f"denoiser is {type(denoiser).__name__}, not a Denoiser: wrap a plain callable with "
            "samplers.TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...) or samplers.GaussianDenoiser.wrap(fn, shape=...)"
        )
    if denoiser.family != sampler.family:
        others = registry.names("*", denoiser.family, imports=False)
        more = f" ... (samplers.list_samplers(family={denoiser.family!r}))" if len(others) > 6 else ""
        hint = f"; samplers of that family: {', '.join(others[:6])}{more}" if others else ""
        raise FamilyError(
            f"sampler {sampler.name!r} is of the {sampler.family} family and denoiser {denoiser.name!r} of the "
            f"{denoiser.family} family{hint}"
        )
    # numpy's integers, and whatever else is one, become Python's here; everything below may ask for int.
    args |= {k: int(v) for k, v in args.items() if isinstance(v, Integral) and not isinstance(v, (bool, int))}
    if args["steps"] is not None:
        positive_int("steps", args["steps"])
    settings = {k: v for k, v in args.items() if k not in ("prompt", "constrain")}
    if isinstance(denoiser, GaussianDenoiser):
        return _start_gaussian(denoiser, sampler, args, settings)
    if isinstance(denoiser, TokenDenoiser):
        return _start_tokens(denoiser, sampler, args, settings)
    raise FamilyError(f"denoiser {denoiser.name!r} of the {denoiser.family} family: no driver for that family yet")


def _start_tokens(denoiser: TokenDenoiser, sampler: Sampler, args: dict[str, Any], settings: dict[str, Any]) -> Stream:
    temperature = args["temperature"]
    temperature = sampler.default_temperature if temperature is None else number("temperature", temperature, 0.0)
    cfg_scale = number("cfg_scale", args["cfg_scale"], 0.0)
    top_k, top_p = args["top_k"], number("top_p", args["top_p"], 0.0)
    if top_k != 0:
        positive_int("top_k", top_k)
    if not 0 < top_p <= 1:
        raise OptionError(f"top_p must be a number above 0, up to 1 (all), not {args['top_p']!r}")
    facts = sampler.effective_facts
    if facts.sequential:
        check_sequential(denoiser, sampler, args)
    scheme = cache_scheme(args["cache"], denoiser)
    cfg_interval = interval(args["cfg_interval"])
    forbid, demote = (token_ids(name, args[name], denoiser) for name in ("forbid", "demote"))
    if args["constrain"] is not None and not callable(args["constrain"]):
        raise OptionError(f"constrain takes a callable state -> Constraint or None, not {args['constrain']!r}")
    prompt = args["prompt"]
    if isinstance(prompt, Canvas):
        if args["gen_length"] is not None:
            raise OptionError("gen_length was given beside a Canvas, which says itself what to fill")
        if args["batch"] not in (1, len(prompt.x)):
            raise OptionError(f"batch={args['batch']} was given beside a Canvas of {len(prompt.x)} rows")
        canvas = prompt
    else:
        canvas = Canvas.of(denoiser, prompt, args["gen_length"], args["batch"])
    batch = len(canvas.x)
    layout = canvas.layout(
        block_length=args["block_length"],
        steps=args["steps"],
        stop=parse_stop(args["stop"]),
        rng=Rng.of(args["seed"], batch, args["first_row"], denoiser.device),
    )
    config = SamplingConfig(temperature, cfg_scale, cfg_interval, top_k, top_p, forbid, demote)
    counter = Counter(denoiser)
    feed: Feed
    if facts.sequential:
        feed = SequenceFeed(counter, batch)
    elif scheme is not None:
        feed = CachedFeed(counter, batch, cfg_scale, cfg_interval, scheme)
    else:
        feed = PlainFeed(counter, batch, cfg_scale, cfg_interval)
    predictor = Predictor(counter, feed, config, sampler=sampler.name)
    predict = SequencePredictor(predictor, feed) if isinstance(feed, SequenceFeed) else predictor
    state = sampler.init(layout)
    if _uses_dry_run(sampler, denoiser) and not layout.stop and args["constrain"] is None:
        predictor.dry_run = DryRun(sampler, layout, predictor)
    # Every block may take its steps, and then one more per position: more than any sampler that moves can need.
    limit = int(layout.block_steps.sum(1).max()) + layout.x.shape[1] + 16
    settings |= {"batch": batch, **asdict(config)}
    return Stream(sampler, predictor, predict, state, limit, settings, args["constrain"])


def _uses_dry_run(sampler: Sampler[Any], denoiser: TokenDenoiser) -> bool:
    """Whether counts are worked out beside the run: on a CPU reading them costs nothing."""
    return sampler.effective_facts.static_plan and dry_runs_pay(denoiser.device)


def _start_gaussian(
    denoiser: GaussianDenoiser, sampler: Sampler, args: dict[str, Any], settings: dict[str, Any]
) -> Stream:
    alone = {"prompt", "gen_length", "block_length", "cache", "temperature", "stop", "forbid", "demote", "constrain"}
    for name in sorted(alone):
        if args[name] is not None:
            raise OptionError(f"{name} is for token samplers; {sampler.name!r} is of the gaussian family")
    if args["cfg_scale"]:
        raise OptionError(
            f"cfg_scale masks a prompt, and {sampler.name!r} is of the gaussian family, which has none; "
            "guide the callable that you wrap instead"
        )
    if args["top_k"] != 0 or args["top_p"] != 1 or args["cfg_interval"] != (0.0, 1.0):
        raise OptionError(
            f"top_k, top_p and cfg_interval are for token samplers; {sampler.name!r} is of the gaussian family"
        )
    batch, steps = positive_int("batch", args["batch"]), args["steps"]
    canvas = NoiseCanvas(
        denoiser,
        20 if steps is None else steps,
        Rng.of(args["seed"], batch, args["first_row"], denoiser.device),
    )
    predictor = GaussianPredictor(Counter(denoiser), batch, sampler=sampler.name)
    settings = {
        k: v for k, v in settings.items() if k not in alone | {"cfg_scale", "cfg_interval", "top_k", "top_p"}
    } | {"steps": canvas.steps}
    return Stream(sampler, predictor, predictor, sampler.init(canvas), canvas.steps + 16, settings)


def sample(
    denoiser: Denoiser,
    sampler: str | Sampler,
    *,
    prompt: Any = None,
    gen_length: int | None = None,
    batch: int = 1,
    seed: Any = 0,
    first_row: int = 0,
    steps: int | None = None,
    block_length: int | None = None,
    cache: str | None = None,
    cfg_scale: float = 0.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    forbid: int | Sequence[int] | None = None,
    demote: int | Sequence[int] | None = None,
    stop: Any = None,
    constrain: Callable[[TokenState], Constraint | None] | None = None,
    trace: bool = False,
    info: bool = False,
    progress: bool = False,
    **options: Any,
) -> Sample:
    """Run a sampler against a denoiser.

    Args:
        denoiser: a Denoiser; see TokenDenoiser.wrap and GaussianDenoiser.wrap.
        sampler: a name, with `options`; or a Sampler made by create().
        prompt: token ids: (P,), (B, P), or a list of B rows of any lengths; or a Canvas, for infilling.
        gen_length: positions to fill behind each prompt; None: what is left of a denoiser of fixed length.
        batch: rows, where the prompt does not say.
        seed: an integer, whose rows are numbered from `first_row`; or one integer a row.
            Row i of a batch is what `sample(..., batch=1, first_row=i)` gives.
        steps: forwards to spend: exact for samplers of fixed count, a cap for adaptive ones (None: one a position).
            For continuous samplers the number of function evaluations (None: 20).
        block_length: positions a block, filled from left to right; None: one block.
        cache: "prefix", "dual", "delayed", "delayed(k)" or "block": a KV cache, of a denoiser that has it; which of them
            change nothing but the cost is told in samplers.caching.
        cfg_scale: w of (1 + w) l(x | prompt) - w l(x | prompt masked), on logits; 0 is off.
        cfg_interval: (low, high], the noise levels at which rows are guided; elsewhere they are not, and not doubled.
        temperature: of the token draw; 0 takes the best token; None: the sampler's own default.
        top_k: draw from the k likeliest tokens only; 0: from all.
        top_p: and of these from the fewest that hold this share of the probability at `temperature`; 1: from all.
            Both restrict the draw alone. What samplers rank by stays the model's own distribution at temperature 1 (an option
            such as low_confidence's `tempered` asks for the other).
        forbid: token ids that are never drawn.
        demote: token ids, such as the end of a sequence, that are committed last: their confidence and margin count as 0
            and their entropy as log V, the logits stay as they are. Rules that choose positions blindly do not mind them.
        stop: a token id, a phrase, or a list of phrases. A row ends behind the first that it holds.
        constrain: called before every step with the TokenState; returns a samplers.Constraint (tokens to decide at once,
            tokens not to draw in this step) or None.
        trace: keep every state, in Sample.trace.
        info: keep what each step committed and how sure the model was of it, in Sample.info.
        progress: show a progress bar.

    Returns:
        Sample. Raises OptionError, UnknownNameError, FamilyError or DenoiserError, each saying what and where.
    """
    args = locals()
    run = stream(**args.pop("options"), **args)
    kept: list[State] | None = [] if trace else None
    try:
        for state in run:
            if kept is not None:
                kept.append(state)
    finally:
        run.close()
    return run.result(kept)


def _same_arguments(of: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """The decorated function has the signature of `of`, which it is given by keyword."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        signature = inspect.signature(of)

        @functools.wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            bound = signature.bind(*args, **keywords)
            bound.apply_defaults()
            return function(bound.arguments)

        call.__signature__ = signature.replace(return_annotation=function.__annotations__["return"])  # type: ignore[attr-defined]
        return call

    return decorate


@_same_arguments(sample)
def stream(args: dict[str, Any]) -> Stream:
    """As `sample`, yielding the state before the first step and after each one: live views, early exit.

    Arguments are checked when it is called, not at the first step. Stop iterating whenever you like: nothing is left
    open. `trace` is accepted for the sake of one signature: the states that it would keep are those that are yielded.
    `stream(...).result()` is the Sample.
    """
    denoiser, sampler, options = (args.pop(name) for name in ("denoiser", "sampler", "options"))
    args.pop("trace")
    info = args.pop("info")
    progress = args.pop("progress")
    run = _start_run(denoiser, sampler, options, args)
    if info:
        run.recorder = InfoRecorder()
        if isinstance(run.predictor, Predictor):
            run.predictor.recorder = run.recorder
    run.bar = _Bar(run) if progress else None
    return run


class _Bar:
    """A rich progress bar over committed positions or evaluations."""

    def __init__(self, run: Stream):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        start = run.state
        self.total = start.canvas.filled if isinstance(start, TokenState) else run.settings["steps"]
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("positions" if isinstance(start, TokenState) else "evaluations"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task(run.sampler.name, total=self.total)
        self.progress.start()

    def advance(self, run: Stream) -> None:
        state = run.state
        done = self.total - state.noise if isinstance(state, TokenState) else run.nfe
        self.progress.update(self.task, completed=done)

    def stop(self) -> None:
        self.progress.stop()
