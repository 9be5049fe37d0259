"""What a check of the kit says when it fails: what was promised and seen, on which input, where, why, and how to rerun it."""

from __future__ import annotations

import inspect
import linecache
import shlex
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

import samplers

from ..canvas import Canvas
from ..driver import Stream
from ..result import Sample
from ..sampler import Sampler

__all__ = ["BrokenPromise", "NotApplicable", "Promise", "call_text"]

# Errors that mistakes lead to before a check can look at the result: words of the error -> its usual causes.
CAUSES = {
    "is not done after": "the mask id was committed, which leaves a position open (prediction.token is the mask id at "
    "positions that were not asked about, and a draw of your own must leave the mask id out); a rule that may choose no "
    "position for ever; a DraftState that decides nothing in its last step (state.last_step)",
    "at a position that is not masked": "`rows` contains visible positions. Ask about state.open or a part of it; if the "
    "sampler judges what stands there, declare Facts(revises=True)",
    "state.x in place": "an op in place on state.x or a view of it (x[where] = ..., masked_fill_, copy_). Use torch.where and "
    "state.commit",
    "outside the vocabulary": "a token of your own making, or a write into state.x",
    "t is the noise level": "a time of another scale (steps, or a visible fraction) was given as t=; leave t out, or use "
    "state.noise_level or TimedState.level",
    "a value that is not finite": "x was not finite when it reached the model, since the kit's models are finite everywhere: a "
    "division by steps - 1, by a step of length 0 or by sigma = 0; a multistep formula without a first step",
    "FrozenInstanceError": "a sampler and its state never change. What a step remembers belongs in a state of your own, a "
    "frozen dataclass: MyState.begin(canvas, mine=...) in `init`, state.commit(..., mine=...) in `step`",
}
OTHERWISE = "an error in the sampler's own code, at the line named above; mend that line"
# Code of these folders is not an author's; the zoo's samplers are, when the zoo itself is tested.
LIBRARY = Path(samplers.__file__).parent
ROOMS_OF_SAMPLERS = ("masked", "uniform", "gaussian")
SHARED = ("predictor.py", "denoiser.py", "grid.py")  # files of those rooms that hold what samplers share
INSTALLED = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib"))


class NotApplicable(Exception):
    """A check that has nothing to test on this sampler; the text says why."""


class BrokenPromise(AssertionError):
    """A check of the kit failed. As text it has a line for each of these.

    Attributes:
        sampler, check: the name of the sampler, and of the check with its setting.
        promised, seen: what should be, and what is.
        causes: what usually causes it, and what would be right.
        calls: the calls of the library that showed it, as one would write them; may be empty.
        where: file and line of the sampler's code.
    """

    def __init__(
        self,
        sampler: str,
        check: str,
        promised: str,
        seen: str,
        causes: str,
        calls: tuple[str, ...] = (),
        where: str = "",
    ):
        super().__init__(sampler, check, promised, seen, causes, calls, where)
        self.sampler, self.check, self.promised, self.seen, self.causes = sampler, check, promised, seen, causes
        self.calls, self.where = calls, where

    @property
    def rerun(self) -> str:
        """The command that runs this check alone."""
        return f"samplers check {shlex.quote(self.sampler)} --only {shlex.quote(self.check)}"

    def parts(self) -> list[tuple[str, str]]:
        """(heading, text) of each line."""
        rows = [("promised", self.promised), ("seen", self.seen), ("on the input", "\n".join(self.calls))]
        rows += [("where", self.where), ("usual causes", self.causes), ("rerun", self.rerun)]
        return [(heading, text) for heading, text in rows if text]

    def __str__(self) -> str:
        lines = [f"sampler {self.sampler!r} does not keep a promise: {self.check}"]
        for heading, text in self.parts():
            lines.append(f"{heading + ':':<14}" + text.replace("\n", "\n" + " " * 14))
        return "\n".join(lines)


class Promise:
    """What a check is given to run samplers with and to fail with.

    `promise.sample(...)` and `promise.stream(...)` are those of the library, and remember the call for a message.
    `promise(kept, "Rows differ ...", seen, causes)` does nothing if `kept` is true.

    Args:
        sampler: the name that the sampler is registered under.
        check: the name of the check, with its setting.
        about: what the check is about, for errors that come before it has seen anything.
        where: file and line of the sampler, for messages that know no better place.

    Attributes:
        calls: the calls that were made since `begin`, as text.
    """

    def __init__(self, sampler: str, check: str, about: str = "", where: str = ""):
        self.sampler, self.check, self.about, self.where = sampler, check, about, where
        self.calls: list[str] = []

    def begin(self) -> None:
        """Forget the calls so far: what comes is about other input."""
        self.calls.clear()

    def sample(self, denoiser: Any, sampler: Sampler[Any] | str, **arguments: Any) -> Sample:
        """samplers.sample."""
        self.calls.append(call_text("sample", denoiser, self.sampler, sampler, arguments))
        return samplers.sample(denoiser, sampler, **arguments)

    def stream(self, denoiser: Any, sampler: Sampler[Any] | str, **arguments: Any) -> Stream:
        """samplers.stream."""
        self.calls.append(call_text("stream", denoiser, self.sampler, sampler, arguments))
        return samplers.stream(denoiser, sampler, **arguments)

    def __call__(
        self, kept: object, promised: str, seen: str | Callable[[], str], causes: str, where: str | None = None
    ) -> None:
        """BrokenPromise unless `kept`.

        Args:
            kept: a truth value; a tensor of one element will do.
            promised: a sentence.
            seen: what was seen in its place; a callable is only called if it is needed.
            causes: what usually causes it, and what would be right.
            where: file and line, if they are known better than by the class.
        """
        if not kept:
            raise self.broken(promised, seen if isinstance(seen, str) else seen(), causes, where)

    def broken(self, promised: str, seen: str, causes: str, where: str | None = None) -> BrokenPromise:
        """The error, for a check that raises it itself. Of the calls it shows the first and the last."""
        calls = dict.fromkeys((*self.calls[:1], *self.calls[-1:]))
        return BrokenPromise(
            self.sampler, self.check, promised, seen, causes, tuple(calls), self.where if where is None else where
        )

    def explained(self, error: BaseException) -> BrokenPromise:
        """The same of an error that was raised before the check had seen anything."""
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        causes = next((why for words, why in CAUSES.items() if words in text), OTHERWISE)
        return self.broken(self.about, text, causes, line_of(error.__traceback__) or None)


def line_of(trace: TracebackType | None) -> str:
    """'file:line in function: code' of the innermost line of an author's code in a traceback, or ''."""
    lines = []
    while trace is not None:
        lines.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return _innermost(lines[::-1])


def authors_line() -> str:
    """'file:line in function: code' of the innermost line of an author's code that is being run, or ''."""
    lines = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        lines.append((frame, frame.f_lineno))
        frame = frame.f_back
    return _innermost(lines)


def _innermost(lines: list[tuple[FrameType, int]]) -> str:
    """The first of these lines, from the innermost out, that is an author's; else the first of a sampler of the zoo."""
    ours = ""
    for frame, number in lines:
        file = frame.f_code.co_filename
        room = _room(file)
        if room == "author" or (room == "sampler" and not ours):
            code = linecache.getline(file, number).strip()
            shown = f"{file}:{number} in {frame.f_code.co_name}" + (f": {code}" if code else "")
            if room == "author":
                return shown
            ours = shown
        elif room == "kit" and frame.f_code.co_name == "judge":
            break  # what called the kit is no sampler
    return ours


def _room(file: str) -> str:
    """Whose a file is: "author", "sampler" of the zoo, "kit", or "" for others: this library, torch, Python."""
    path = Path(file)
    if path.is_relative_to(LIBRARY):
        room = path.relative_to(LIBRARY).parts[0]
        if room == "testing":
            return "kit"
        return "sampler" if room in ROOMS_OF_SAMPLERS and path.name not in SHARED else ""
    if file.startswith("<") or not {"torch", "pluggy", "_pytest"}.isdisjoint(path.parts):
        return ""
    installed = {"site-packages", "dist-packages"}.isdisjoint(path.parts) and file.startswith(INSTALLED)
    return "" if installed else "author"


def place_of(cls: type[Any], *methods: str) -> str:
    """'file:line, class Name' of a class; of the first of the methods that the class itself has, 'method name of class Name'."""
    method = next((m for m in methods if m in vars(cls)), None)
    try:
        found = getattr(cls, method) if method else cls
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (OSError, TypeError):
        return f"class {cls.__module__}.{cls.__qualname__}"
    return f"{file}:{line}, " + (f"method {method} of " if method else "") + f"class {cls.__qualname__}"


# ---------------------------------------------------------------------------------------------- calls as text


def call_text(function: str, denoiser: Any, name: str, sampler: Sampler[Any] | str, arguments: dict[str, Any]) -> str:
    """A call as one would write it; a canvas is shown by its rows, with _ at the positions to fill."""
    words = [_denoiser_text(denoiser), _sampler_text(name, sampler)]
    words += [f"{key}={_value_text(value)}" for key, value in arguments.items()]
    return f"samplers.{function}({', '.join(words)})"


def _value_text(value: Any) -> str:
    if isinstance(value, Canvas):
        return _canvas_text(value)
    return f"torch.{value!r}" if isinstance(value, Tensor) else repr(value)


def _denoiser_text(denoiser: Any) -> str:
    return repr(denoiser) if type(denoiser).__repr__ is not object.__repr__ else f"<{denoiser.name}>"


def _sampler_text(name: str, sampler: Sampler[Any] | str) -> str:
    if isinstance(sampler, str):
        return repr(name)
    given = {o.name: getattr(sampler, o.name) for o in sampler.options() if getattr(sampler, o.name) != o.default}
    options = "".join(f", {key}={value!r}" for key, value in given.items())
    return f"samplers.create({name!r}{options})" if given else repr(name)


def _canvas_text(canvas: Canvas) -> str:
    rows = zip(canvas.x.tolist(), canvas.fill.tolist(), canvas.lengths)
    shown = ("[" + " ".join("_" if f else str(v) for v, f in zip(x[:n], fill)) + "]" for x, fill, n in rows)
    return f"<Canvas of rows {' '.join(shown)}>"
