"""Other people's code, run so that it harms nobody: what it raises, prints and changes becomes a line of text.

What this cannot stop: a plug-in that ends the process itself (os._exit, a fault in compiled code), that never returns, or that
starts threads.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .errors import PluginError

__all__ = ["guarded", "one_line", "printable", "traced"]

T = TypeVar("T")


def one_line(error: BaseException, limit: int = 400) -> str:
    """'Type: message' on one line of printable characters, also for an error whose message cannot be had."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException as worse:
        if type(worse) is KeyboardInterrupt:
            raise
        text = f"(its message cannot be shown: str() raises {type(worse).__name__})"
    text = printable(text, limit)
    return f"{kind}: {text}" if text else kind


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, without what a terminal would act on, cut off at `limit`."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[:limit] + " [...]"


@contextlib.contextmanager
def traced(what: str) -> Iterator[None]:
    """With SAMPLERS_TRACE=1, print on stderr what was done, how long it took, and whether it failed."""
    began, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    except BaseException as error:
        outcome = f"failed: {one_line(error)}"
        raise
    finally:
        if os.environ.get("SAMPLERS_TRACE", "0") not in ("", "0"):
            seconds = time.perf_counter() - began
            print(f"samplers: {printable(what)}: {outcome}, {seconds:.3f} s", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------- what is printed

_swap = threading.Lock()
_quiet: list[Any] = []  # the stdout to restore, once per call that is under way
_diverted: list[int | None] = []  # the same of file descriptor 1


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """Send what is printed meanwhile to stderr, so that it does not end up in a table or in JSON.

    Not contextlib.redirect_stdout: when two threads overlap, that one leaves stdout redirected for good.
    """
    with _swap:
        _quiet.append(_quiet[0] if _quiet else sys.stdout)
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        with _swap:
            stdout = _quiet.pop()
            if not _quiet:
                sys.stdout = stdout


@contextlib.contextmanager
def _writes_to_stderr() -> Iterator[None]:
    """The same for what is written to file descriptor 1 without Python's stdout: by os.write, C code, or a child process."""
    with _swap:
        if _diverted:
            _diverted.append(_diverted[0])
        else:
            _diverted.append(_divert())
    try:
        yield
    finally:
        with _swap:
            saved = _diverted.pop()
            if saved is not None and not _diverted:
                _flush_c()
                os.dup2(saved, 1)
                os.close(saved)


def _divert() -> int | None:
    """Point file descriptor 1 to stderr; a copy of what it was, or None if one of the two is closed."""
    saved = None
    try:
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None:
                stream.flush()
        _flush_c()
        saved = os.dup(1)
        os.dup2(2, 1)
        return saved
    except (OSError, ValueError):
        if saved is not None:
            os.close(saved)
        return None


def _flush_c() -> None:
    """Write out what C code has printed so far: its buffer would otherwise be written at the end, wherever 1 points then."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).fflush(None)


# ---------------------------------------------------------------------------------------------- what is changed


class _GlobalState:
    """What a plug-in must leave alone while it is imported: paths, warnings, torch's settings, and random generators."""

    def __init__(self) -> None:
        import numpy
        import torch  # first, so that neither its time nor its own set-up is counted as the plug-in's

        self.path, self.folder = list(sys.path), _folder()
        self.filters = list(warnings.filters)
        self.random, self.numpy = random.getstate(), numpy.random.get_state()  # noqa: NPY002
        self.torch = torch.get_rng_state()
        self.settings = self._settings()

    @staticmethod
    def _settings() -> dict[str, Any]:
        import torch

        return {
            "torch's default dtype": torch.get_default_dtype(),
            "torch's default device": torch.get_default_device(),
            "torch's number of threads": torch.get_num_threads(),
            "torch's grad mode": torch.is_grad_enabled(),
            "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        }

    def put_back(self) -> list[str]:
        """Undo changes; the names of what was changed."""
        import numpy
        import torch

        changed = []
        if sys.path != self.path:
            changed.append("sys.path")
            sys.path[:] = self.path
        if self.folder is not None and _folder() != self.folder:
            changed.append("the current folder")
            os.chdir(self.folder)
        # A filter for one module or one message is the business of a library that was imported; one for all is not.
        wide = [f for f in warnings.filters if f not in self.filters and f[1] is None and f[3] is None]
        if wide:
            changed.append("the warnings filters")
            for one in wide:
                warnings.filters.remove(one)  # type: ignore[attr-defined]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        back: dict[str, Callable[[Any], Any]] = {
            "torch's default dtype": torch.set_default_dtype,
            # "cpu" would leave torch in a mode of its own
            "torch's default device": lambda v: torch.set_default_device(None if v.type == "cpu" else v),
            "torch's number of threads": torch.set_num_threads,
            "torch's grad mode": torch.set_grad_enabled,
            "torch's deterministic mode": torch.use_deterministic_algorithms,
        }
        for what, value in self._settings().items():
            if value != self.settings[what]:
                changed.append(what)
                back[what](self.settings[what])
        if not torch.equal(torch.get_rng_state(), self.torch):
            changed.append("torch's random numbers")
            torch.set_rng_state(self.torch)
        if random.getstate() != self.random:
            changed.append("Python's random numbers")
            random.setstate(self.random)
        now = numpy.random.get_state()  # noqa: NPY002
        if any(not numpy.array_equal(a, b) for a, b in zip(now, self.numpy)):
            changed.append("NumPy's random numbers")
            numpy.random.set_state(self.numpy)  # noqa: NPY002
        return changed


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


@contextlib.contextmanager
def _state_kept(changes: list[str]) -> Iterator[None]:
    before = _GlobalState()
    try:
        yield
    finally:
        changes += [what for what in before.put_back() if what not in changes]


def guarded(run: Callable[..., T], *args: Any, importing: str | None = None, changes: list[str] | None = None) -> T:
    """Call a plug-in's code. What it prints goes to stderr.

    Args:
        importing: the plug-in that `run` imports, if it does; a KeyboardInterrupt then says so, and global state that
            the import changes is put back.
        changes: a list to which the names of what was put back are added.

    Raises:
        PluginError: whatever it raised, as one line.
        KeyboardInterrupt: the user pressed Ctrl-C, or the plug-in raises it.
    """
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_prints_to_stderr())
            if importing is not None:
                stack.enter_context(_writes_to_stderr())
                stack.enter_context(_state_kept([] if changes is None else changes))
                stack.enter_context(traced(f"import of plug-in {importing}"))
            return run(*args)
    except PluginError as error:
        raise PluginError(printable(str(error))) from error
    except BaseException as error:
        # A plug-in that raises KeyboardInterrupt itself cannot be told from the user's Ctrl-C, and Ctrl-C must work:
        # that one class passes. Its subclasses, SystemExit and any other BaseException are the plug-in's doing.
        if type(error) is KeyboardInterrupt:
            if importing is None:
                raise
            raise KeyboardInterrupt(f"while plug-in {importing} was being imported") from error
        raise PluginError(one_line(error)) from error
