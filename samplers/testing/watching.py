"""Watching a run from outside, through what a sampler is given: `predict`, its canvas, and its own step.

An example, which prints what each step asks:

    def step(run, predict, state):
        seen = Watched(predict)
        after = run(seen, state)
        print(seen.calls)
        return after

    samplers.sample(denoiser, watched(samplers.create("radd"), step=step), gen_length=8)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..random import DRAW_NOISE, Rng
from ..sampler import Sampler

__all__ = ["RecordedRng", "Use", "Watched", "watched"]

Step = Callable[[Callable[[Any, Any], Any], Any, Any], Any]


class Watched:
    """What a sampler gets as `predict`, handed on with a record of every call.

    Attributes:
        calls: the names of what was called, in order: "__call__" for predict(...), "logits", "read", and for sequential
            samplers "next", "ask", "chunk", "branches", "merge". What is asked through copies is recorded as well.

    Args:
        predict: what the driver gave to the sampler.
        wrap: put around each method before it is called, such as SyncRecorder.ignore.
    """

    def __init__(self, predict: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda method: method):
        self.calls: list[str] = []
        self._predict, self._wrap = predict, wrap

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self._recorded("__call__", self._predict)(*args, **kw)

    def __len__(self) -> int:  # how many copies
        return len(self._predict)

    def copies(self, *args: Any, **kw: Any) -> Watched:
        """What copies of rows are asked through, watched as well."""
        made = Watched(self._predict.copies(*args, **kw), self._wrap)
        made.calls = self.calls
        return made

    def step(self, sampler: Any, wide: Any, recorder: Any = None) -> Any:
        """A step of another sampler over copies, which is watched too."""
        return self._predict.step(_Through(sampler, self), wide, recorder)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._predict, name)
        return self._recorded(name, value) if callable(value) else value

    def _recorded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            self.calls.append(name)
            return self._wrap(method)(*args, **kw)

        return call


class _Through:
    """A sampler that is given something else to ask through."""

    def __init__(self, sampler: Any, predict: Any):
        self.name, self._sampler, self._predict = sampler.name, sampler, predict

    def step(self, predict: Any, state: Any) -> Any:
        return self._sampler.step(self._predict, state)


def watched(
    sampler: Sampler[Any], *, step: Step | None = None, canvas: Callable[[Any], Any] | None = None
) -> Sampler[Any]:
    """A copy of a sampler that is watched while it runs.

    Args:
        sampler: the sampler, with its options.
        step: called as step(run, predict, state) in place of the sampler's step, which is run(predict, state).
        canvas: makes the canvas that the sampler begins with of the one that the driver gives it.
    """

    class Watching(type(sampler)):  # type: ignore[misc]
        def init(self, start: Any) -> Any:
            return super().init(start if canvas is None else canvas(start))

        def step(self, predict: Any, state: Any) -> Any:
            inner = super().step

            def run(predict: Any, state: Any) -> Any:  # a frame of this module, at which _caller stops
                return inner(predict, state)

            return run(predict, state) if step is None else step(run, predict, state)

    return Watching(**sampler.values())


@dataclass(frozen=True)
class Use:
    """One use of a run's randomness.

    Attributes:
        draw: the number that says what the draw is for.
        cells: the (row, position, step) of each random number; the step of normals is their number in the run.
        place: file and line that asked for it, outside of the library if there is such a line.
        by_library: whether the library's own code asked for it.
    """

    draw: int
    cells: frozenset[tuple[int, int, int]]
    place: str
    by_library: bool


@dataclass(frozen=True)
class RecordedRng(Rng):
    """The randomness of a batch, with a record of every use of it.

    Attributes:
        uses: in order; clear it whenever you like.
    """

    uses: list[Use] = field(default_factory=list)

    @classmethod
    def like(cls, rng: Rng) -> RecordedRng:
        """The same rows, recorded."""
        return cls(rng.seed, rng.row)

    def copies(self, number: int, apart: bool, first: int = 0) -> RecordedRng:
        made = super().copies(number, apart, first)
        return RecordedRng(made.seed, made.row, self.uses)

    def positions(self, length: int, step: Tensor, draw: int) -> Tensor:
        rows = torch.arange(len(self.row)).repeat_interleave(length)
        self._record(draw, rows, torch.arange(length).repeat(len(self.row)), step[rows])
        return super().positions(length, step, draw)

    def at(self, rows: Tensor, position: Tensor, step: Tensor, draw: int) -> Tensor:
        self._record(draw, rows, position, step[rows])
        return super().at(rows, position, step, draw)

    def normal(self, shape: Sequence[int], step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        length, batch = math.prod(shape), len(self.row)
        rows, position = torch.arange(batch).repeat_interleave(length), torch.arange(length).repeat(batch)
        self._record(DRAW_NOISE, rows, position, torch.full_like(rows, step))
        return super().normal(shape, step, dtype)

    def _record(self, draw: int, rows: Tensor, position: Tensor, step: Tensor) -> None:
        place, by_library = _caller()
        rows = self.row[rows]  # copies of a row that draw its numbers have its number
        self.uses.append(Use(draw, frozenset(zip(rows.tolist(), position.tolist(), step.tolist())), place, by_library))


def _caller() -> tuple[str, bool]:
    """Who asked for a random number: the line, of the author's code or of the step, and whether it was the library."""
    frame: FrameType | None = sys._getframe(2)
    asking = shown = None
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == __name__:
            if asking is not None:
                break  # the kit, which called the step
        elif name not in ("samplers.random", "samplers.canvas"):
            asking, shown = asking or frame, frame
            if not name.startswith("samplers."):
                break
        frame = frame.f_back
    place = "an unknown place" if shown is None else f"{shown.f_code.co_filename}:{shown.f_lineno}"
    return place, asking is not None and asking.f_globals.get("__name__", "").startswith("samplers.")
