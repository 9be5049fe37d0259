"""Copies: K copies of every row of a run, for samplers that try several continuations of a state.

    copies = predict.copies(4)
    wide = copies.spread(state)                      # a state of B K rows
    wide = wide.commit(where, token)                 # each copy goes on in its own way
    answer = copies(wide, want="confidence")         # one forward pass for all of them
    state = copies.pick(wide, which, answer)         # one copy of each row; its answer serves the next step

The copies of row b are the rows b K to b K + K - 1 of what is wide. A copy has taken a step more than the state that it was made
of, so what is drawn for it is what the next step would have drawn: no forward pass is made twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .canvas import Layout
from .errors import OptionError, SamplersError
from .feeds import Answer, Feed, Query
from .prediction import Logits, Prediction
from .predictor import Asked, Predictor, Want
from .sampler import Sampler
from .state import TokenState

if TYPE_CHECKING:
    from .constraints.language import BoundLanguage

__all__ = ["Copies"]

T = TypeVar("T", bound="TokenState")


class Copies(Predictor):
    """What the copies of a run's rows ask the model through; made by `predict.copies`. It is a Predict itself.

    Attributes:
        number: K.
        apart: whether each copy draws random numbers of its own.
        first: the number of the first copy.
    """

    def __init__(self, main: Predictor, number: int, apart: bool, first: int):
        self._rows = feed = _CountedOnce(main.feed.copies(number), main.feed, number)
        per_row: dict[str, Any] = {
            name: tuple(v for v in value for _ in range(number)) if isinstance(value, tuple) else value
            for name, value in ((n, getattr(main.config, n)) for n in ("temperature", "top_k", "top_p"))
        }
        super().__init__(main.counter, feed, dataclasses.replace(main.config, **per_row), sampler=main.sampler)
        self.main, self.number, self.apart, self.first = main, number, apart, first
        self.guiding = main.guiding
        self._alone = False  # whether copy 0 has been asked about by itself, so that caches of the others are older

    def __len__(self) -> int:
        return self.number

    # ------------------------------------------------------------------------------------------ states

    def canvas(self, canvas: Layout) -> Layout:
        """The canvas of B K rows; the same object every time."""
        return canvas.copies(self.number, self.apart, self.first)

    def spread(self, state: T) -> T:
        """K copies of every row: a state with B K rows. Their caches hold what copy 0 holds."""
        index = torch.arange(len(state.x), device=state.x.device).repeat_interleave(self.number)
        if self._alone:
            self._rows.rearrange(index * self.number)
            self._alone = False
        return state.take(index, self.canvas(state.canvas))

    def apart_of(self, x: Tensor) -> Tensor:
        """(B K, ...) as (B, K, ...)."""
        return x.view(-1, self.number, *x.shape[1:])

    def pick(self, wide: T, which: Tensor, answer: Prediction | None = None) -> T:
        """The state of one copy of each row, with which all copies of that row go on.

        Args:
            wide: a state with B K rows.
            which: (B,) int64, from 0 to K - 1.
            answer: what the model predicted for `wide`, (B K, L) tensors: it is kept as `state.ready`, and the next step need
                not ask again. None: nothing is kept.
        """
        index = torch.arange(len(which), device=which.device) * self.number + which
        self._rows.rearrange(index.repeat_interleave(self.number))
        state = wide.take(index, wide.canvas.source)
        return state if answer is None else dataclasses.replace(state, ready=answer.take(index))

    def pick_logits(self, logits: Logits, which: Tensor) -> Logits:
        """Of the logits of B K rows those of one copy of each row, as logits of the run's own rows. One device sync.

        Args:
            which: (B,) int64, from 0 to K - 1.
        """
        mine = logits.row % self.number == which[torch.div(logits.row, self.number, rounding_mode="floor")]
        return logits.folded(self.number).at(mine)

    def rearranged(self, wide: T, source: Tensor) -> T:
        """The state in which row i goes on as what row source[i] is, on its own random numbers; caches follow.

        Args:
            source: (B K,) int64, a copy of the same row: i // K = source[i] // K.
        """
        self._rows.rearrange(source)
        return wide.take(source, wide.canvas)

    def step(self, sampler: Sampler[Any], wide: T, recorder: Any = None) -> T:
        """A step of another sampler from `wide`, one of its own states with B K rows.

        Args:
            recorder: its read(token, confidence) is called with every answer, (B K, L) each; confidence is -inf at positions that
                were not asked about.
        """
        memory = self.feed.memory
        if memory is not None:
            memory.begin_step(wide)
        self._rows.inside, self.recorder = True, recorder
        try:
            stepped: Any = sampler.step(self, wide)
        finally:
            self._rows.inside, self.recorder = False, None
        stepped = stepped[0] if isinstance(stepped, tuple) and len(stepped) == 2 else stepped
        if not isinstance(stepped, TokenState) or stepped.x.shape != wide.x.shape:
            raise SamplersError(
                f"step of sampler {sampler.name!r} returned {type(stepped).__name__}; it must return the next state"
            )
        return stepped if memory is None else memory.end_step(stepped)  # type: ignore[return-value]

    def note(self, token: Tensor, confidence: Tensor) -> None:
        """Tell Sample.info of tokens that this step commits for good and copies have had for longer.

        Args:
            token: (B, L) int64, of the run's own rows.
            confidence: (B, L) float32, the probability of each when it was predicted; -inf at other positions.
        """
        if self.main.recorder is not None:
            self.main.recorder.read(token, confidence)

    # ------------------------------------------------------------------------------------------ asking

    def one(self, state: TokenState, rows: Tensor | None = None, **how: Any) -> Prediction:
        """As the run's own `predict`, for the run's state of B rows, through what copy 0 of each row has cached."""
        wide, where, how = self._first(state, rows, how)
        prediction = self(wide, where, **how)
        return prediction.take(torch.arange(len(state.x), device=state.x.device) * self.number)

    def one_logits(self, state: TokenState, rows: Tensor | None = None, **how: Any) -> Logits:
        """As the run's own `predict.logits`, likewise."""
        wide, where, how = self._first(state, rows, how)
        logits = self.logits(wide, where, **how)
        return logits.folded(self.number)

    def _first(
        self, state: TokenState, rows: Tensor | None, how: dict[str, Any]
    ) -> tuple[TokenState, Tensor, dict[str, Any]]:
        """Copies of a state, the positions to ask about, in copy 0 of each row alone, and `how`, with entries for each copy."""
        wide = self.spread(state)
        first = torch.arange(len(wide.x), device=wide.x.device) % self.number == 0
        rows = state.open if rows is None else rows
        self._alone = True
        how = {k: v.repeat_interleave(self.number, 0) if isinstance(v, Tensor) else v for k, v in how.items()}
        return wide, rows.repeat_interleave(self.number, 0) & first[:, None], how

    def queries(self, state: TokenState, rows: Tensor | None, t: Tensor | None) -> Iterable[Query]:
        if state.canvas is not self.canvas(state.canvas.source):
            raise SamplersError(
                f"copies were asked about a state of {len(state.x)} rows that they did not make: give what "
                "copies.spread(state) returns, or a state that was begun on copies.canvas(canvas)"
            )
        return super().queries(state, rows, t)

    def _wanted(self, want: Want) -> tuple[str, ...]:
        want = super()._wanted(want)
        return want if self.main.recorder is None or "confidence" in want else (*want, "confidence")

    # ------------------------------------------------------------------------------------------ what is the run's

    @property
    def constraint(self) -> Tensor | None:
        barred = self.main.constraint
        return barred if barred is None or len(barred) == 1 else barred.repeat_interleave(self.number, 0)

    @constraint.setter
    def constraint(self, value: Tensor | None) -> None:
        if value is not None:
            raise SamplersError("a constraint is set on the run, and its copies have it")

    @property
    def language(self) -> BoundLanguage | None:
        return self.main.language

    @language.setter
    def language(self, value: BoundLanguage | None) -> None:
        if value is not None:
            raise SamplersError("a language is set on the run, and its copies have it")

    def copies(self, number: int, apart: bool = False, first: int = 0) -> Copies:
        raise OptionError(f"sampler {self.sampler!r} makes copies of a run's rows, and those cannot be copied again")

    def record(self, status: Tensor, asked: Asked) -> None:
        self.main.record(status, _Folded(asked, self.number))

    def check(self) -> None:
        self.main.check()


class _Folded:
    """Where answers belong in the run's own rows."""

    def __init__(self, asked: Asked, number: int):
        self.position = asked.position
        self.row = torch.div(asked.row, number, rounding_mode="floor")


class _CountedOnce:
    """A feed of B K rows whose forward passes count once for each row of the run that takes part."""

    def __init__(self, inner: Feed, main: Feed, number: int):
        self.inner, self.main, self.number = inner, main, number
        self.counts, self.idle, self.plan = inner.counts, inner.idle, inner.plan
        self.plan_seen = getattr(inner, "plan_seen", None)
        self.memory, self.nfe_rows = inner.memory, inner.nfe_rows
        self.inside = False  # a step of another sampler, between whose beginning and end the memory is right

    @property
    def cache_bytes(self) -> int:
        return self.inner.cache_bytes

    def copies(self, number: int) -> Feed:
        raise NotImplementedError

    def rearrange(self, source: Tensor) -> None:
        self.inner.rearrange(source)

    def feed(self, state: TokenState, query: Query) -> Answer:
        if self.memory is not None and not self.inside:
            raise OptionError(
                "this sampler asks about copies of rows, and the denoiser is self_conditioned: it would have to be told what it "
                "said of a copy that is gone; use another sampler"
            )
        before = [count.clone() for count in self._passes(self.inner)]
        answer = self.inner.feed(state, query)
        for total, then, now in zip(self._passes(self.main), before, self._passes(self.inner)):
            total += (now - then).view(-1, self.number).amax(1)
        return answer

    @staticmethod
    def _passes(feed: Feed) -> list[Tensor]:
        encoder = getattr(feed, "encoder_rows", None)
        return [feed.nfe_rows] if encoder is None else [feed.nfe_rows, encoder]
