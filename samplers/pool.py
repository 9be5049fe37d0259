"""Pool: runs that share their forward passes, each with a sampler, options and settings of its own.

    pool = samplers.Pool(denoiser)
    pool.add("entropy_bound", prompt=first, gen_length=64, temperature=0.7, seed=1)
    pool.add("threshold", prompt=second, gen_length=64, threshold=0.9)
    for run in pool:                      # as they end; more may be added in between
        print(run.number, run.result())

What a server and a loop of reinforcement learning need: requests come and go at any time, and one forward pass serves all that
wait. A step of a sampler is a pure function of an immutable state. So it is begun, cut short where it asks the model, and begun
again when the answer is there: no threads, and every sampler works as it is. AskingRun is one such run whose caller has the
model: what an engine needs that owns its forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checks import device_of, integer, optional_integer
from .denoiser import Counter, Previous, TokenDenoiser
from .driver import Stream, stream
from .errors import DenoiserError, OptionError, SamplersError
from .feeds import Answer, Query
from .feeds.plain import PlainFeed
from .guidance import Guiding
from .predictor import Predictor
from .result import Sample
from .state import TokenState

__all__ = ["AskingRun", "Pool", "PooledRun"]


class Waiting(BaseException):
    """A step asks the model. (No Exception, so that no sampler can catch it by accident.)

    Attributes:
        x: (A, length) int64, what the model is to be given. time, mask, more: as PlainFeed makes them.
        needed: how many positions are asked about.
    """

    def __init__(self, x: Tensor, time: Tensor | None, mask: Tensor, needed: int, more: dict[str, Any]):
        super().__init__(x, time, mask, needed, more)  # its arguments, so that a run that waits can be copied
        self.x, self.time, self.mask, self.needed, self.more = x, time, mask, needed, more

    def __str__(self) -> str:
        return "a step waits for a forward pass; Pool catches this"


@dataclass(eq=False)
class Had:
    """The answers that the present step of a run has had, and how many of them this attempt at the step has read."""

    answers: list[Answer] = field(default_factory=list)
    read: int = 0


class SharedFeed:
    """A plain feed whose forward passes somebody else runs: it gives the answers that there are, and then raises Waiting."""

    cache_bytes = 0

    def __init__(self, plain: PlainFeed, had: Had | None = None):
        self.plain = plain
        self.memory, self.nfe_rows = plain.memory, plain.nfe_rows
        self.counts, self.idle, self.plan, self.plan_seen = plain.counts, plain.idle, plain.plan, plain.plan_seen
        self.had = Had() if had is None else had
        self.rearrange = plain.rearrange

    def copies(self, number: int) -> SharedFeed:
        return SharedFeed(self.plain.copies(number), self.had)

    def feed(self, state: TokenState, query: Query) -> Answer:
        had = self.had
        if had.read == len(had.answers) or self.memory is not None:  # the memory notes that the model is asked
            x, time, mask, more = self.plain._input(state, query)
        if had.read == len(had.answers):
            raise Waiting(x, time, mask, (1 + query.guided) * query.wide, more)
        if had.read == len(had.answers) - 1:  # the first time that this answer is read
            self.nfe_rows[slice(None) if query.rows is None else query.rows] += 1
        answer = had.answers[had.read]
        had.read += 1
        return answer if self.memory is None else self.memory.remember(state, query, answer)


@dataclass(eq=False)
class PooledRun:
    """A run of a Pool.

    Attributes:
        number: from 0, in the order in which runs were added.
        run: its Stream: `run.state`, `run.steps` and `run.nfe` say how far it is.
        error: what it failed with; None if it did not.
        finished: whether it has ended, well or not.
    """

    number: int
    run: Stream
    feed: SharedFeed
    error: Exception | None = None
    finished: bool = False
    question: Waiting | None = field(default=None, repr=False)
    begun: bool = field(default=False, repr=False)  # the present step
    seconds: float = field(default=0.0, repr=False)  # that its attempts have taken

    @property
    def guiding(self) -> Guiding | None:
        """What guides the run, which is asked once in a step, however often the step is begun."""
        return self.run.predictor.guiding if isinstance(self.run.predictor, Predictor) else None

    def result(self) -> Sample:
        """What the run has made so far; its error, if it failed."""
        if self.error is not None:
            raise self.error
        return self.run.result()

    def advance(self) -> None:
        """Take steps until the model is asked, or the run ends."""
        start = time.perf_counter()
        try:
            self._advance()
        except Waiting as question:
            self.question = question
            if (
                self.feed.had.answers
            ):  # they are read once more when the step is begun again, and the model may reuse its buffer
                last = self.feed.had.answers.pop()
                self.feed.had.answers.append(Answer(last.value.clone(), last.index))
        except Exception as error:
            self._fail(error)
        self.seconds += time.perf_counter() - start

    def _advance(self) -> None:
        run = self.run
        while not run.predictor.finished(run.state):  # type: ignore[arg-type]
            if not self.begun:
                run.begin_step()
                self.begun = True
            self.feed.had.read = 0
            if self.guiding is not None:
                self.guiding.read = 0
            run.take_step()
            self.feed.had.answers.clear()
            if self.guiding is not None:
                self.guiding.had = []
            self.begun = False
            run.count_step(self.seconds)
            self.seconds = 0.0
        run.predictor.check()
        self.finished = True

    def _fail(self, error: Exception) -> None:
        try:
            self.run.explain()
        except SamplersError as cause:
            error = cause
        self.error, self.finished = error, True

    def answered(self, answer: Answer) -> None:
        """The answer to its question has come."""
        assert self.question is not None
        self.run.predictor.counter.took_part(self.question.x, self.question.needed)
        self.feed.had.answers.append(answer)
        self.question = None


def _begin(number: int, who: str, denoiser: TokenDenoiser, sampler: Any, arguments: dict[str, Any]) -> PooledRun:
    """A run whose steps are cut short where they ask the model; OptionError if it cannot be one. who: the public class."""
    for name in ("cache", "trace", "progress"):
        if arguments.get(name):
            raise OptionError(f"{name} does not go with {who}: its forward passes are plain, its steps begun again")
    run = stream(denoiser, sampler, **arguments)
    if not isinstance(run.predictor, Predictor) or not isinstance(run.predictor.feed, PlainFeed):
        raise OptionError(
            f"sampler {run.sampler.name!r} does not go with {who}: it feeds the model through a cache of its own"
        )
    if "attends" in run.sampler.effective_facts.needs:
        raise OptionError(
            f"sampler {run.sampler.name!r} does not go with {who}, whose answers have no attention beside them: use sample()"
        )
    run.pooled = True
    run.predictor.dry_run = None  # a step that is begun again would have to be planned again
    feed = SharedFeed(run.predictor.feed)
    run.predictor.feed = feed
    if run.predictor.guiding is not None:
        run.predictor.guiding.had = []
    return PooledRun(number, run, feed)


class _Elsewhere(TokenDenoiser):
    """The facts of a model that somebody else runs."""

    time_conditioned = True  # so that a question says the time, for models that need it
    takes_lengths = masks = attends = True

    def predict(self, x: Tensor, t: Tensor | None = None, **more: Any) -> Tensor:
        raise SamplersError("the model of an AskingRun is run by its caller, who gives the logits to answer()")


class AskingRun:
    """A run that asks its caller for logits: for engines and loops that run the model themselves.

        run = samplers.AskingRun("entropy_bound", vocab_size=V, mask_id=M, prompt=ids, gen_length=32)
        while run.question is not None:
            run.answer(model(run.question))     # (A, length) int64 in, (A, length, V) out
        run.result().x

    A step that asks twice asks at two different inputs, and the second one is just another question. So every sampler that
    a Pool takes can be run, with the tokens and the count of forward passes that sample() has with a model that answers so.

    Attributes:
        question: (A, length) int64, what the model is to be given next: the rows of the batch that take part, the mask id at
            undecided positions. None: the run has ended.
        needed: (A, length) bool, the positions whose logits will be read.
        time: (A,) float64, the noise level of each row, for models that are told it.
        lengths: (A,) int64, where each row ends if they end at different positions, else None: no position may see what stands
            after that.
        visible, positions: (A, length, length) bool and (A, length) int64, of a sampler that says what each line sees (wino): see
            TokenDenoiser.masks. Else None: the model attends as it always does, to a canvas.
    """

    question: Tensor | None
    needed: Tensor | None
    time: Tensor | None
    lengths: Tensor | None
    visible: Tensor | None
    positions: Tensor | None

    def __init__(
        self,
        sampler: Any,
        *,
        vocab_size: int,
        mask_id: int | None,
        device: torch.device | str = "cpu",
        **arguments: Any,
    ):
        """Begin a run, which goes on to its first question.

        Args:
            sampler: as of sample().
            vocab_size, mask_id: of the model; see TokenDenoiser.wrap.
            device: where questions are, and answers must be.
            arguments: what sample() takes beside these, and options of the sampler; not cache, trace, progress and
                prompt_embeds.

        Raises:
            OptionError: as of sample(); a sampler or an argument that such a run cannot have.
        """
        if arguments.get("prompt_embeds") is not None:
            raise OptionError("prompt_embeds does not go with AskingRun: its caller has the model, and what it embeds")
        denoiser = _Elsewhere()
        denoiser.vocab_size, denoiser.device = integer("vocab_size", vocab_size), device_of("device", device)
        denoiser.mask_id = optional_integer("mask_id", mask_id, 0)
        denoiser.name = "the caller's model"
        self._run = _begin(0, "AskingRun", denoiser, sampler, arguments)
        self._go_on()

    @property
    def state(self) -> TokenState:
        """The state after the last step that is complete."""
        state = self._run.run.state
        assert isinstance(state, TokenState)
        return state

    @property
    def nfe(self) -> int:
        """Forward passes so far: answers that were given."""
        return self._run.run.nfe

    @torch.no_grad()
    def answer(self, logits: Tensor) -> None:
        """Give the logits of the question; the run goes on to its next one, or to its end.

        Args:
            logits: (A, length, V) floats for all of `question`, or (N, V) for its positions in `needed`, in row-major order.
                They may be written over when this returns, as an engine does that has one buffer for all of its answers.

        Raises:
            SamplersError: there is no question.
            DenoiserError: the logits have another shape or are on another device, or no token is possible where one is needed.
                A run that has failed asks no more, and gives the same error again.
        """
        asked = self._run.question
        if asked is None:
            if self._run.error is not None:
                raise self._run.error
            raise SamplersError("answer(): the run has ended, and asks no more; its tokens are in result()")
        whole, packed = (*asked.x.shape, self.vocab_size), (asked.needed, self.vocab_size)
        if (
            not isinstance(logits, Tensor)
            or tuple(logits.shape) not in (whole, packed)
            or not logits.is_floating_point()
        ):
            got = (
                f"{logits.dtype} of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else type(logits).__name__
            )
            raise DenoiserError(
                f"answer() was given {got}; floats (A, length, V) = {whole}, or (N, V) = {packed} for the positions in "
                "`needed`, are needed"
            )
        if logits.device != asked.x.device:
            raise DenoiserError(
                f"answer() was given logits on {logits.device}, and the run is on {asked.x.device}: "
                "move them there, or begin it with device="
            )
        if tuple(logits.shape) == whole:
            index = torch.nonzero_static(asked.mask.flatten(), size=asked.needed).squeeze(1)
            given = Answer(logits.flatten(0, 1), index)
        else:
            given = Answer(logits)
        self._run.answered(given)
        self._go_on()

    def result(self) -> Sample:
        """What the run has made so far, as sample() returns it, and what it has cost."""
        return self._run.result()

    @property
    def vocab_size(self) -> int:
        """V, the width of the logits."""
        return self.state.canvas.vocab_size

    def _go_on(self) -> None:
        self.question, self.needed, self.time, self.lengths = None, None, None, None
        self.visible = self.positions = None
        self._run.advance()
        if self._run.error is not None:
            raise self._run.error
        asked = self._run.question
        if asked is not None:
            self.question, self.needed, self.time = asked.x, asked.mask, asked.time
            self.lengths = asked.more.get("lengths")
            self.visible, self.positions = asked.more.get("visible"), asked.more.get("positions")


class Pool:
    """Runs over one denoiser that share its forward passes.

    A run's tokens are those that it has alone, up to the order in which a larger batch adds its products. All runs share a
    forward pass if the denoiser takes rows of different lengths (`takes_lengths`), else those whose canvases have one
    length. Every argument of sample() may be given to `add`, and is its run's own, but for `prompt_embeds`, `cache`, `trace`
    and `progress`. Sequential samplers (autoregressive, refusion) have caches of their own and cannot take part.

    Args:
        denoiser: a token denoiser.
        most: the most rows per forward pass; those that came first go first. None: no bound.

    Attributes:
        runs: that have not ended, in the order in which they were added.
        counter: forward passes, rows and seconds of all runs together.
    """

    def __init__(self, denoiser: TokenDenoiser, *, most: int | None = None):
        if not isinstance(denoiser, TokenDenoiser):
            raise OptionError(f"Pool takes a TokenDenoiser, not {type(denoiser).__name__}")
        self.denoiser, self.most = denoiser, optional_integer("most", most)
        self.runs: list[PooledRun] = []
        self.counter = Counter(denoiser)
        self._added = 0

    @property
    def nfe(self) -> int:
        """Forward passes of all runs together, so far."""
        return self.counter.nfe

    def add(self, sampler: Any, **arguments: Any) -> PooledRun:
        """Begin a run, with the arguments of sample(). It takes part from the next `step` on.

        Raises:
            OptionError: as of sample(); an argument that a shared run cannot have.
        """
        if arguments.get("prompt_embeds") is not None:
            raise OptionError(
                "prompt_embeds does not go with Pool, whose runs share one denoiser: denoiser.with_embeddings(rows) gives one "
                "that knows them all, for Pool(...), and the ids under which they go into prompts"
            )
        pooled = _begin(self._added, "Pool", self.denoiser, sampler, arguments)
        self._added += 1
        self.runs.append(pooled)
        return pooled

    def step(self) -> list[PooledRun]:
        """One round: every run goes on until it asks the model, and then all that wait are answered.

        Returns:
            The runs that have ended in this round; they are no longer part of the pool.
        """
        for run in self.runs:
            if run.question is None:
                run.advance()
        ended = [run for run in self.runs if run.finished]
        self.runs = [run for run in self.runs if not run.finished]
        shares = self._shares()
        for members in shares:
            self._answer(members, keep=len(shares) > 1)
        return ended

    def __iter__(self) -> Iterator[PooledRun]:
        """The runs as they end. More may be added in between."""
        while self.runs:
            yield from self.step()

    def _shares(self) -> list[list[PooledRun]]:
        """The runs that wait, in groups that share a forward pass."""
        groups: dict[Any, list[PooledRun]] = {}
        for run in self.runs:
            if run.question is not None:
                seen = "visible" in run.question.more
                length = 0 if self.denoiser.takes_lengths and not seen else run.question.x.shape[1]
                groups.setdefault((seen, length), []).append(run)
        shares: list[list[PooledRun]] = []
        for members in groups.values():
            rows = 0
            for run in members:
                assert run.question is not None
                size = len(run.question.x)
                if rows == 0 or (self.most is not None and rows + size > self.most):
                    shares.append([])
                    rows = 0
                shares[-1].append(run)
                rows += size
        return shares

    @torch.no_grad()
    def _answer(self, members: list[PooledRun], keep: bool) -> None:
        """One forward pass for all of them. keep: copy what the model says, since another pass comes before it is read."""
        asked = [run.question for run in members if run.question is not None]
        width = max(q.x.shape[1] for q in asked)
        x = _padded([q.x for q in asked], width, self.denoiser.mask_id or 0)
        mask = _padded([q.mask for q in asked], width, False)
        time = None if asked[0].time is None else _padded([q.time for q in asked if q.time is not None], width, 0.0)
        more: dict[str, Any] = {}
        if any("lengths" in q.more or q.x.shape[1] < width for q in asked):  # never of questions that say who sees what
            ends = [q.more.get("lengths", torch.full_like(q.x[:, 0], q.x.shape[1])) for q in asked]
            more["lengths"] = torch.cat(ends)
        for name in ("visible", "positions"):
            if name in asked[0].more:
                more[name] = torch.cat([q.more[name] for q in asked])
        if "previous" in asked[0].more:
            said: list[Previous] = [q.more["previous"] for q in asked]
            more["previous"] = Previous(
                _padded([p.fill for p in said], width, False), torch.cat([p.value for p in said])
            )
        needed = [q.needed for q in asked]
        if self.denoiser.head is not None:
            hidden = self.counter.hidden(x, time, mask, sum(needed), **more)
            answers = [Answer(value) for value in (hidden.clone() if keep else hidden).split(needed)]
        else:
            logits, index = self.counter.tokens(x, time, mask, sum(needed), **more)
            logits = logits.clone() if keep else logits
            index = torch.arange(len(logits), device=logits.device) if index is None else index
            answers = [Answer(logits, part) for part in index.split(needed)]
        for run, answer in zip(members, answers):
            run.answered(answer)


def _padded(parts: list[Tensor], width: int, filling: Any) -> Tensor:
    """Rows of several runs one after the other, (A, n) each filled up to `width` on the right, or (A,)."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=filling) for p in parts])
