"""The driver: sample() and stream(), and everything that is the same for all samplers.

Guidance, temperature, blocks, stop rules, constraints, seeds, counting, timing and progress are here, in predictor.py and in
state.py, and nowhere else, so every sampler has all of them without a line of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import registry
from .arguments import Given, wrong_argument
from .checks import flag, shown
from .constraints.language import Language
from .denoiser import Denoiser, TokenDenoiser
from .errors import FamilyError, OptionError, PluginError, SamplersError
from .family import Run, family_of
from .info import InfoRecorder
from .predictor import FamilyPredictor, Predictor
from .result import Sample, Seconds
from .sampler import Sampler, State
from .state import TokenState

__all__ = ["Constraint", "Event", "Stream", "sample", "stream"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Stream(Iterator[State]):
    """A run that is looked at between its steps; made by stream().

    Iterating gives the state before the first step and after each one. At any time there are `state`, `steps` (taken)
    and `nfe` (forward passes so far); `result()` makes a Sample of what there is.
    """

    sampler: Sampler[Any]
    predictor: Predictor | FamilyPredictor
    predict: Any  # what the sampler gets: the predictor, or one that can do more
    state: State
    limit: int
    settings: dict[str, Any]
    constrain: Callable[[Any], Any] | None = None
    steps: int = 0
    wall: float = 0.0
    bar: _Bar | None = None
    begun: bool = False
    pooled: bool = False  # its steps are taken by a Pool
    recorder: InfoRecorder | None = None
    _handed_out: tuple[Tensor, int] | None = None  # the x that was yielded last, and how often it had been written into

    @property
    def nfe(self) -> int:
        """Forward passes so far."""
        return self.predictor.counter.nfe

    def __next__(self) -> State:
        if self.pooled:
            raise OptionError("this run belongs to a samplers.Pool, which takes its steps: iterate over the pool")
        try:
            going = self._go_on()
        except StopIteration as error:  # it would end the run in silence: a run ends when it is finished, and only then
            raise SamplersError(
                f"sampler {self.sampler.name!r} raised StopIteration in step {self.steps + 1}; a run ends when its state is "
                "finished, and in no other way"
            ) from error
        if not going:
            raise StopIteration
        self._handed_out = self.state.x, _version(self.state.x)
        return self.state

    def _go_on(self) -> bool:
        """Take a step, unless it is the beginning; False if the run is finished."""
        if not self.begun:
            self.begun = True
            return True
        if self._handed_out is not None:
            self._check_unwritten(*self._handed_out, "whoever iterates over stream()")
        if self.predictor.finished(self.state):  # type: ignore[arg-type]
            self.close()
            self.predictor.check()
            return False
        self.advance()
        if self.bar:
            self.bar.advance(self)
        return True

    def _check_unwritten(self, x: Tensor, version: int, who: str) -> None:
        """SamplersError if a state's x was written into since it had this version. Costs no device sync."""
        if _version(x) != version:
            raise SamplersError(
                f"{who} wrote into state.x in place (step {self.steps + 1}). States are values that never change, and the "
                "first one shares its tokens with the canvas: work on state.x.clone(); to decide tokens return "
                "samplers.Constraint(fix=...) from constrain="
            )

    def close(self) -> None:
        """Take the progress bar down; for a loop that is left early. Nothing else is open."""
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        """Take one step."""
        start = time.perf_counter()
        try:
            self.begin_step()
            self.take_step()
        except Exception:
            self.explain()
            raise
        self.count_step(time.perf_counter() - start)

    def explain(self) -> None:
        """Raise what explains an error of a step: an answer that is found late on a device, an id that is no token."""
        self.predictor.check()
        self._check_tokens()

    def count_step(self, seconds: float) -> None:
        """Count a step that was taken, and how long it took."""
        self.steps += 1
        self.wall += seconds
        if self.steps > self.limit:
            self.predictor.check()
            raise SamplersError(
                f"sampler {self.sampler.name!r} is not done after {self.steps} steps: a step must commit at least one "
                "position in the last of its block's steps, or move on"
            )

    def begin_step(self) -> None:
        """What comes before a step, once: the constraint is asked."""
        if self.constrain is not None:
            with torch.no_grad():
                self._apply_constraint() if isinstance(self.state, TokenState) else self._apply_hook()
            if isinstance(self.state, TokenState) and self.state.ready is not None:
                # It was made before this step's constraint was known.
                self.state = dataclasses.replace(self.state, ready=None)
        if isinstance(self.predictor, Predictor) and self.predictor.dry_run is not None:
            self.predictor.dry_run.advance()

    @torch.no_grad()
    def take_step(self) -> None:
        """The step itself, a function of the state: if it is cut short it can be begun again (see samplers.pool)."""
        memory = None
        if isinstance(self.predictor, Predictor):
            assert isinstance(self.state, TokenState)
            memory = self.predictor.feed.memory
            if memory is not None:
                memory.begin_step(self.state)
        if self.recorder is not None:
            self.recorder.begin_step()
            if isinstance(self.state, TokenState) and self.state.ready is not None:
                self.recorder.read(self.state.ready.token, self.state.ready.confidence)
        x, version = self.state.x, _version(self.state.x)
        stepped = self.sampler.step(self.predict, self.state)
        self._check_unwritten(x, version, f"sampler {self.sampler.name!r}")
        state, returned = stepped if isinstance(stepped, tuple) and len(stepped) == 2 else (stepped, {})
        self._check_step(state, returned)
        if isinstance(self.predictor, Predictor) and self.predictor.language is not None:
            state = self.predictor.language.mended(self.state, state, self.sampler.name)
        if memory is not None:
            state = memory.end_step(state)
        if self.recorder is not None:
            self.recorder.end_step(self.state, state, returned)
        self.state = state

    def events(self) -> Iterator[Event]:
        """What each step settles and what it only proposes, for programs that show or use a run while it goes on.

        Use it in place of iterating over the states, from the beginning of a run over tokens. It takes the steps. Each event
        costs one device sync.

        Raises:
            OptionError: the run is continuous, or has begun.
        """
        if self.begun or not isinstance(self.state, TokenState) or not isinstance(self.predictor, Predictor):
            raise OptionError("events() is for runs over tokens, before their first step")
        _check_grows(self.sampler, "events()")
        if self.recorder is None:
            self.recorder = self.predictor.recorder = InfoRecorder(keep=False)
        return self._events(self.recorder)

    def _events(self, recorder: InfoRecorder) -> Iterator[Event]:
        before: Any = None
        for state in self:
            if before is not None:
                assert isinstance(state, TokenState)
                yield Event.between(before, state, recorder.last, self.steps, self.nfe)
            before = state

    @functools.cached_property
    def _grows(self) -> bool:
        """Whether a step may lengthen the canvas; asked in every step, and made anew from the options by some samplers."""
        return bool(self.sampler.effective_facts.grows)

    def _check_step(self, state: Any, returned: Any) -> None:
        """SamplersError if a step returned anything but a state of this run, alone or with a dictionary of tensors."""
        who, x = f"step of sampler {self.sampler.name!r}", self.state.x
        if not isinstance(state, State) or not isinstance(returned, dict):
            got = "nothing (is a return missing?)" if state is None else f"{type(state).__name__}"
            raise SamplersError(
                f"{who} returned {got}; it must return the next state, such as state.commit(where, token), or (state, "
                "{name: tensor})"
            )
        if self._grows and isinstance(state, TokenState) and len(state.canvas.x) == len(x):
            x = state.canvas.x  # the canvas may have grown, and the tokens with it
        if state.x.shape != x.shape or (isinstance(state, TokenState) and state.x.dtype != x.dtype):
            raise SamplersError(
                f"{who} made x of shape {tuple(state.x.shape)} and {state.x.dtype}; it is {tuple(x.shape)} and {x.dtype}"
            )
        for name, value in returned.items():
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(x):
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise SamplersError(f"{who} returned {got} as {name!r}; (B, ...) tensors are needed, B = {len(x)}")

    def _check_tokens(self) -> None:
        """SamplersError if a sampler wrote what is no token. Reads x, so it is called when a run ends, or breaks."""
        if not isinstance(self.state, TokenState):
            return
        canvas, x = self.state.canvas, self.state.x
        bad = canvas.fill & ((x < 0) | (x >= canvas.vocab_size))
        if canvas.mask_id is not None:
            bad &= x != canvas.mask_id
        for i, j in bad.nonzero()[:1].tolist():
            raise SamplersError(
                f"sampler {self.sampler.name!r} wrote {int(x[i, j])} at row {i}, position {j}; tokens are 0 to "
                f"{canvas.vocab_size - 1}"
            )

    def _apply_constraint(self) -> None:
        """Ask the constraint, decide what it fixes and forbid what it forbids."""
        assert isinstance(self.predictor, Predictor) and isinstance(self.state, TokenState)
        said = self._ask_hook()
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

    def _ask_hook(self) -> Any:
        """What the constrain hook says of the state."""
        assert self.constrain is not None
        x, version = self.state.x, _version(self.state.x)
        try:
            said = self.constrain(self.state)
        except StopIteration as error:
            raise SamplersError(
                f"the constrain hook raised StopIteration in step {self.steps + 1}; a run ends when it is finished"
            ) from error
        self._check_unwritten(x, version, "the constrain hook")
        return said

    def _apply_hook(self) -> None:
        """Ask the constraint of a continuous run, which may give another x."""
        said, x = self._ask_hook(), self.state.x
        if said is None:
            return
        if not isinstance(said, Tensor) or said.shape != x.shape or not said.is_floating_point():
            got = f"{said.dtype} of shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
            raise OptionError(f"constrain returned {got}; x of shape {tuple(x.shape)}, or None, is needed")
        said = said.detach().to(x)
        if self.predictor.sync_eagerly and not bool(torch.isfinite(said).all()):
            raise OptionError(f"constrain returned a value that is not finite (before step {self.steps + 1})")
        self.state = dataclasses.replace(self.state, x=said)  # type: ignore[type-var]

    def _outcome(self) -> dict[str, Any]:
        """What the state says of itself: x, and of tokens lengths and fill; SamplersError if it does not."""
        outcome: Any = self.state.outcome()
        who, rows = f"outcome of {type(self.state).__name__}", len(self.state.x)
        if not isinstance(outcome, dict) or set(outcome) != {"x", "lengths", "fill"}:
            got = f"a dict of {', '.join(map(str, outcome))}" if isinstance(outcome, dict) else type(outcome).__name__
            raise SamplersError(
                f"{who} returned {got}; a dict of x, lengths and fill is needed, the last two None for reals"
            )
        for key, value in outcome.items():
            if (value is not None or key == "x") and not (isinstance(value, Tensor) and value.shape[:1] == (rows,)):
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise SamplersError(
                    f"{who} returned {key} of {got}; a tensor with the {rows} rows of the run is needed"
                )
        return outcome

    def result(self, trace: list[State] | None = None) -> Sample:
        """What the run has made so far, and what it has cost. A row that is not done still holds mask ids."""
        self.predictor.check()
        self._check_tokens()
        if isinstance(self.predictor, Predictor) and self.predictor.language is not None:
            self.predictor.language.check_result(self.state, self.sampler.name)
        counter, item = self.predictor.counter, registry.entry_of(type(self.sampler))
        inside = counter.seconds
        guiding = self.predictor.guiding if isinstance(self.predictor, Predictor) else None
        return Sample(
            **self._outcome(),
            nfe=counter.nfe,
            row_evals=counter.row_evals,
            token_evals=counter.token_evals,
            head_rows=counter.head_rows,
            cache_bytes=self.predictor.cache_bytes,
            nfe_rows=self.predictor.nfe_rows,
            guide_calls=0 if guiding is None else guiding.calls,
            guide_rows=0 if guiding is None else guiding.rows,
            encoder_passes=counter.encoder_passes,
            encoder_rows=self.predictor.encoder_rows if isinstance(self.predictor, Predictor) else None,
            steps=self.steps,
            seconds=Seconds(inside, max(self.wall - inside, 0.0)),
            sampler=self.sampler.name,
            options=self.sampler.values(),
            distribution=item[0],
            version=item[1],
            settings=self.settings,
            trace=tuple(trace) if trace is not None else None,
            info=None if self.recorder is None else self.recorder.stacked(),
            tokenizer=getattr(counter.denoiser, "tokenizer", None),
        )


@dataclass(frozen=True, eq=False)
class Event:
    """What a step has done; n tokens on the CPU, in the order of rows and positions.

    Attributes:
        step: the number of the step, from 1. nfe: forward passes of the run so far.
        row, position, token: (n,) int64. Positions count from the row's first token, prompt included.
        logprob: (n,) float32, what the model gave the token in this step, at temperature 1 unless the sampler asked otherwise;
            NaN if it was not asked about this token.
        final: (n,) bool. True: the token is committed for good, and each is reported once. False: it is provisional, a draft
            that may still change, or the present proposal at a position that stays masked.
        ended: the rows that have ended in this step.
    """

    step: int
    nfe: int
    row: Tensor  # (n,) int64
    position: Tensor  # (n,) int64
    token: Tensor  # (n,) int64
    logprob: Tensor  # (n,) float32
    final: Tensor  # (n,) bool
    ended: tuple[int, ...]

    @classmethod
    def between(
        cls, before: TokenState, after: TokenState, read: tuple[Tensor, Tensor] | None, step: int, nfe: int
    ) -> Event:
        """Of a step from `before` to `after`, in which the model answered `read`: token and confidence, (B, L) each."""
        token, logprob = after.x, torch.full(after.x.shape, torch.nan, dtype=torch.float32, device=after.x.device)
        noise = after.x == after.canvas.mask_id if after.canvas.mask_id is not None else torch.zeros_like(after.open)
        proposed = torch.zeros_like(after.open)
        if read is not None:
            guess, confidence = read
            asked = confidence > -torch.inf
            proposed = asked & after.undecided
            token = torch.where(proposed & noise, guess, token)
            logprob = torch.where(asked & (guess == token), confidence.log(), logprob)
        final = after.settled & ~before.settled
        row, position = (final | proposed).nonzero().unbind(1)
        ended = (after.done & ~before.done).nonzero().squeeze(1)
        at = row, position
        token, logprob, final = token[at].cpu(), logprob[at].cpu(), final[at].cpu()
        return cls(step, nfe, row.cpu(), position.cpu(), token, logprob, final, tuple(ended.tolist()))


def _version(x: Tensor) -> int:
    """How often a tensor was written into; tensors made in inference mode do not count it."""
    return 0 if x.is_inference() else x._version


@dataclass(frozen=True, eq=False)
class Constraint:
    """What a `constrain` hook asks for in a step.

    Attributes:
        fix: (B, L) int64, tokens to decide now, in any block, without asking the model; -1 at other positions. Given and
            decided positions are left alone.
        forbid: bool that broadcasts to (B, L, V), such as (V,), (L, V) or (B, 1, V): tokens not to be drawn in this step.
    """

    fix: Tensor | None = None
    forbid: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("fix", "forbid"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                try:
                    made = torch.as_tensor(value, device="cpu")
                except (TypeError, ValueError, RuntimeError) as error:
                    raise OptionError(f"Constraint({name}=...): a tensor, array or list is needed ({error})") from error
                whole = not (made.is_floating_point() or made.is_complex() or made.dtype == torch.bool)
                object.__setattr__(self, name, made.to(torch.int64) if name == "fix" and whole else made)

    def check(self, state: TokenState) -> None:
        """OptionError if a shape or dtype is wrong, or a fixed token is no token."""
        canvas, vocab = state.canvas, state.canvas.vocab_size
        shape = (*state.x.shape, vocab)
        if self.fix is not None:
            if self.fix.shape != state.x.shape or self.fix.dtype != torch.int64:
                raise OptionError(
                    f"constrain: fix is {tuple(self.fix.shape)} {self.fix.dtype}; (B, L) = {shape[:2]} int64 is needed, "
                    "-1 at positions that are not fixed"
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


def _start_run(denoiser: Any, sampler: Any, options: dict[str, Any], arguments: dict[str, Any]) -> Stream:
    if isinstance(sampler, str):
        sampler = registry.create(sampler, **options)
    elif not isinstance(sampler, Sampler):
        raise OptionError(f"sampler must be a name or a Sampler made by samplers.create(), not {shown(sampler)}")
    elif options:
        own = [o.name for o in sampler.options()]
        for key in options:
            if key not in own:
                raise wrong_argument(f"sampler {sampler.name!r}", key, own)
        raise OptionError(
            f"options {', '.join(map(repr, options))} were given beside a sampler that is made already; "
            "give them to samplers.create(), or name the sampler"
        )
    if not isinstance(denoiser, Denoiser):
        if isinstance(denoiser, str):
            raise OptionError(
                f"denoiser is the text {denoiser!r}: load the model first, samplers.models.zoo.load(name) for one in the box, "
                "samplers.models.pretrained(name) for a folder or one of the hub"
            )
        raise OptionError(
            f"denoiser is {type(denoiser).__name__}, not a Denoiser: wrap a plain callable with "
            "samplers.TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...) or samplers.GaussianDenoiser.wrap(fn, shape=...)"
        )
    if denoiser.family != sampler.family:
        raise _other_family(denoiser, sampler)
    given = Given(arguments)
    _, info, progress = (flag(name, given(name)) for name in ("trace", "info", "progress"))
    begun = family_of(denoiser.family).start(denoiser, sampler, given)
    _check_run(begun, denoiser.family)
    if used := _from_plugins(denoiser, begun.sampler, begun.settings):
        begun.settings["plugins"] = used
    predict = begun.predictor if begun.predict is None else begun.predict
    parts = begun.sampler, begun.predictor, predict, begun.state, begun.limit, begun.settings, begun.constrain
    run = Stream(*parts)
    if info:
        _check_grows(begun.sampler, "info=True")
        run.recorder = InfoRecorder()
        if isinstance(run.predictor, Predictor):
            run.predictor.recorder = run.recorder
    run.bar = _Bar(run) if progress else None
    return run


def _check_grows(sampler: Sampler[Any], what: str) -> None:
    """OptionError if a sampler puts in positions during a run, for what has one entry per position and step."""
    if sampler.effective_facts.grows:
        raise OptionError(
            f"{what} follows each position through the run, and sampler {sampler.name!r} puts in positions during it; "
            "trace=True keeps the states"
        )


_PARTS: dict[str, tuple[type, ...]] = {
    "sampler": (Sampler,),
    "predictor": (FamilyPredictor, Predictor),
    "state": (State,),
    "limit": (int,),
    "settings": (dict,),
}


def _check_run(begun: Any, family: str) -> None:
    """PluginError if what a family's `start` returned is no run."""
    who = f"start of family {family!r} returned"
    if not isinstance(begun, Run):
        raise PluginError(f"{who} {type(begun).__name__}; a samplers.authoring.Run is needed")
    for part, kinds in _PARTS.items():
        value = getattr(begun, part)
        if not isinstance(value, kinds):
            raise PluginError(f"{who} a Run with {part}={shown(value)}; {kinds[0].__name__} is needed")
    if "steps" not in begun.settings:
        raise PluginError(f"{who} a Run whose settings have no 'steps'")


def _from_plugins(denoiser: Denoiser, sampler: Sampler[Any], settings: dict[str, Any]) -> dict[str, str]:
    """What of a run, beside its sampler, came from plug-ins: {"grid": "dist:name version"}."""
    named = [(o.metadata["kind"], getattr(sampler, o.name)) for o in sampler.options() if "kind" in o.metadata]
    named += [("families", sampler.family), ("caches", settings.get("cache")), ("windows", settings.get("window"))]
    return registry.provenance(named, [denoiser, getattr(denoiser, "schedule", None)])


def _other_family(denoiser: Denoiser, sampler: Sampler[Any]) -> FamilyError:
    others = registry.names("*", denoiser.family, imports=False)
    rest = len(others) - 6
    more = f" and {rest} more (samplers.list_samplers(family={denoiser.family!r}))" if rest > 0 else ""
    hint = f"; samplers of that family: {', '.join(others[:6])}{more}" if others else ""
    if sampler.family == "masked" and isinstance(denoiser, TokenDenoiser) and denoiser.mask_id is None:
        hint += ". If the model has a mask token, say which: mask_id=, as in TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...)"
    return FamilyError(
        f"sampler {sampler.name!r} is of the {sampler.family} family and denoiser {denoiser.name!r} of the "
        f"{denoiser.family} family{hint}"
    )


def sample(
    denoiser: Denoiser,
    sampler: str | Sampler,
    *,
    prompt: Any = None,
    prompt_embeds: Any = None,
    gen_length: int | None = None,
    batch: int = 1,
    seed: Any = 0,
    first_row: Any = 0,
    steps: int | None = None,
    block_length: int | None = None,
    align: bool | None = None,
    window: str | None = None,
    cache: str | None = None,
    ragged: str | None = None,
    cfg_scale: float = 0.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    guide: Any = None,
    temperature: float | Sequence[float | None] | None = None,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    forbid: int | Sequence[int] | None = None,
    demote: int | Sequence[int] | None = None,
    stop: Any = None,
    stop_rule: str = "decided",
    constrain: Callable[[Any], Any] | Language | None = None,
    start: Any = None,
    strength: float = 1.0,
    known: Any = None,
    start_moments: Any = None,
    start_noise: Any = None,
    times: Any = None,
    timesteps: Any = None,
    sigmas: Any = None,
    cfg_rescale: float = 0.0,
    x0_bound: float | None = None,
    x0_quantile: float | None = None,
    trace: bool = False,
    info: bool = False,
    progress: bool = False,
    **options: Any,
) -> Sample:
    """Run a sampler against a denoiser.

    Numbers may be Python's, numpy's, or 0-d tensors. Arguments that are for token samplers only must keep their defaults if
    the sampler is of the gaussian family, and those for continuous samplers (from `start` to `x0_quantile`) if it is not.

    Args:
        denoiser: the model. See TokenDenoiser.wrap and GaussianDenoiser.wrap for models that are plain callables.
        sampler: the name of a sampler, whose options are given as `options`; or a Sampler made by create().
        prompt: token ids: one row (P,), rows of one length (B, P), or a list of B rows of any lengths. For infilling it is a
            Canvas made by Canvas.infill. None: the rows begin empty. If the denoiser has a tokenizer, a row may also be a
            text, or a conversation, [{"role": "user", "content": ...}], which is written by the chat template: one of
            them, or a list of B.
        prompt_embeds: embeddings that stand before the prompt, such as those of an image (LLaDA-V): (P, D), (B, P, D), or a list
            of B of any lengths, in the model's own width. In the Sample they are ids from denoiser.embedding[0] on. To mix them
            with tokens in another order: TokenDenoiser.with_embeddings.
        gen_length: the number of positions to fill after each prompt. None: what is left of a denoiser of fixed length.
        batch: the number of rows, if the prompt does not say it. One prompt is repeated.
        seed: an integer, whose rows are numbered from `first_row`; or one integer per row. Row i of a batch is what
            `sample(..., batch=1, first_row=i)` gives.
        first_row: the number of the batch's first row under its seed; or the number of each row, so that a part of a larger
            run may hold any of its rows.
        steps: the number of steps to spend. It is exact for samplers of fixed count and a cap for adaptive ones (steps of
            llada2 and block_refinement that only edit come on top, and their max_post_steps is a cap on those); None: one
            step per position. For continuous samplers it is the number of function evaluations; None: 20, or 1000 at
            most if a tolerance decides.
        block_length: positions per block. Blocks are filled from left to right. None: the blocks of a model of block_causal
            attention, or a BlockDenoiser's own; one block for any other model.
        align: where blocks are counted from. True: from position 0 of each row, so that the first block to fill is what is
            left of the prompt's last one. False: from the first position to fill. None: True for models of block_causal
            attention, whose own blocks are counted so (LLaDA2, SDAR, BD3-LM); else False.
        window: "block": the model is given each row up to the end of its present block only. A model of causal or
            block_causal attention answers the same for less; one of full attention no longer sees the masks of later
            blocks, which changes its answers. Rows whose blocks end at different positions do not share a forward pass.
            Windows that move take the place of blocks: "sliding(W)" or "sliding(W,C)": the first W undecided positions of a row
            are open, less those C or more after the first. "pipeline(b)", "pipeline(b,add)" or "pipeline(b,add,full)": blocks
            of b, the next of which opens when a share `add` (0.5) of the last one is decided. "wedlm(W)" or "wedlm(W,C)": as
            sliding, for causal models, which are given decided tokens before masks through a cache. See samplers.windows. For
            samplers that do not change committed tokens. `steps` is then what a row may take. None: the whole canvas.
        cache: "prefix", "dual", "delayed", "delayed(k)" or "block": a KV cache, if the denoiser has one. Under a window that
            slides also "dsb" or "dsb(a,n)".
            samplers.feeds.cached says which of them change nothing but the cost. None: no cache.
        ragged: how rows of different lengths are given to the model. "pad": all in one forward pass, which is as long as the
            longest row that is not done; shorter ones are filled up on the right with what the model does not see.
            "groups": those of one length share a forward pass. None: "pad" if the denoiser can (takes_lengths), else
            "groups". Row i of a batch is what it is alone in both; but float products may round otherwise in a forward
            pass of another shape, and then two tokens whose scores are equal but for the last bits may change places.
            Only "groups", with a denoiser whose answer for a row does not depend on the rows beside it, is exact to the
            bit.
        cfg_scale: w of the guided logits (1 + w) l(x | prompt) - w l(x | prompt masked). 0: no guidance. It needs
            a prompt; a row whose prompt is empty is not changed by it. Of a continuous denoiser, likewise with its answer and
            the one without the condition, which GaussianDenoiser.wrap is told of. Other libraries' guidance scale is 1 + w.
        cfg_interval: (low, high): rows are guided while their noise level is above low and at most high. Outside they are not
            guided, and cost one row and not two. The level of a continuous run is sigma^2 / (alpha^2 + sigma^2).
        guide: guidance of tokens by something else than the prompt: samplers.guidance.Unconditional (the form gamma; a negative
            prompt, another model), Adaptive (A-CFG) or Classifier. It takes the place of cfg_scale; cfg_interval holds for it.
        temperature: the temperature of the token draw. 0 takes the best token. None: the sampler's own default.
        top_k: draw from the k most likely tokens only. 0: from all.
        top_p: draw, among those, from the fewest tokens that hold this share of the probability at `temperature`. 1: from all.
            Both restrict the draw alone. Samplers choose positions by the model's own distribution at temperature 1, unless an
            option such as low_confidence's `tempered` asks for the other. Each of these three may be a list of one value per
            row, at the cost of a device sync per forward pass; for other settings per row see Pool.
        forbid: a token id, or a flat collection of them, that is never drawn.
        demote: a token id, or a flat collection of them, such as the end of a text, that is committed last: its confidence and
            margin count as 0 and its entropy as log V, while the logits stay as they are. It has no effect on samplers that
            choose positions without the model's confidence.
        stop: where rows end. An integer, or a flat collection of integers, stops a row after any of these tokens:
            stop=[7, 8]. A list of lists stops it after any of these phrases: stop=[[13, 13], [7]]. If the denoiser has a
            tokenizer, a string, or strings beside tokens or phrases, stop=["\\n\\n", 7], stop it after the token that
            completes one of them in the text of what is filled in and decided; Sample.texts end before the string. On a
            device a string costs a device sync per step. None: after the denoiser's `stop_ids`, if it has any. []: nowhere.
        stop_rule: when that is. "decided": as soon as a phrase is decided; nothing after it is filled in, and what is
            undecided before it is. "block": when a phrase stands in a block that is filled and done, as in SDAR's code.
            "llada2": as in LLaDA2's and diffusers' code: after a step that writes into a phrase, if no mask stands before
            the first one's end; what could still be edited stays as it is. If that never happens, all blocks are filled,
            and the row is cut after its first phrase.
        constrain: a language of samplers.constraints, such as Regex(pattern, denoiser.tokenizer), to which the text of every row
            will belong, with any token sampler; tokens are drawn from the product of the model's marginals conditioned on it.
            Or a function that is called before every step with the state. For tokens it returns a samplers.Constraint
            (tokens to decide at once, tokens not to draw in this step) or None; for continuous samplers another x, or None.
        start: x_0 to start from, (B, *shape) or (*shape): it is noised to the run's first noise level, exactly (SDEdit, image to
            image). Say with `strength`, or with the option t_start, how far up that is. If t_end is above t_start (inversion) it
            is x at t_start, and no noise is added.
        strength: the share of the noise levels that a run from `start` goes through: the run takes the last `steps` evaluations
            of a grid of steps / strength.
        known: (B, *shape) or (*shape) bool, the part of `start` that is kept: inpainting. The result is exactly `start` there.
            A size may be 1, as in a mask (1, H, W) for all channels.
        start_moments: (mean of x_0, its variance per coordinate), a tensor (*shape) or a number, and a number: the first x is
            drawn with the first two moments of the true distribution at t_start, which may then be below t_max (Analytic-Init).
        start_noise: (B, *shape) or (*shape), the standard normals of the first x, in place of those of the seed.
        times, timesteps, sigmas: a list of the times of all evaluations, the noisiest first: in the schedule's time, in the
            time that the model gets, or as noise scales, sigma / alpha (flow: sigma). Sigmas may end in 0: then the x_0 of
            the last evaluation is returned, as for the other two lists; if not, x at the last sigma.
        cfg_rescale: phi of guidance rescale (Lin et al. 2023, arXiv 2305.08891), from 0 to 1.
        x0_bound: x_0 is clipped to this absolute value in every evaluation (static thresholding).
        x0_quantile: dynamic thresholding instead: with s the quantile of |x_0| over a sample, and at least `x0_bound`,
            x_0 is clipped at s and multiplied by x0_bound / s.
        trace: keep every state, in Sample.trace.
        info: keep what each step committed and how sure the model was of it, in Sample.info.
        progress: show a progress bar.
        options: the options of the sampler; `samplers show NAME` lists them.

    Returns:
        A Sample: the tokens or numbers, and what they cost.

    Raises:
        OptionError: an argument or option is unknown, of the wrong type or out of bounds, or the run cannot fit into memory.
        UnknownNameError: there is no sampler of that name.
        FamilyError: the sampler is of one family and the denoiser of another.
        DenoiserError: the denoiser returned something that cannot be used.
        SamplersError: the sampler or the constrain hook broke a rule of the driver.
    """
    args = locals()
    run = _opened(args)
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
    return _opened(args)


def _opened(args: dict[str, Any]) -> Stream:
    """The run of sample()'s arguments, each by its name, and those that are left over as "options"."""
    denoiser, sampler, options = (args.pop(name) for name in ("denoiser", "sampler", "options"))
    return _start_run(denoiser, sampler, options, args)


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
        if isinstance(state, TokenState) and state.canvas.filled != self.total:
            self.total = state.canvas.filled  # the canvas has grown
            self.progress.update(self.task, total=self.total)
        done = self.total - state.noise if isinstance(state, TokenState) else run.nfe
        self.progress.update(self.task, completed=done)

    def stop(self) -> None:
        self.progress.stop()
