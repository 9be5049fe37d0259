"""The command `samplers`: list, show, cite, sample, watch, and measure.

Every error that this library raises on purpose is one line on stderr and exit code 2; tables go to stdout, and with
`--json` nothing else does.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from .. import registry
from ..errors import SamplersError, did_you_mean
from ..guard import one_line
from .output import complain, speaks_unicode

__all__ = ["main"]

# Each command and its module, in the order of the help. A module is imported when its command is used, or for the help.
COMMANDS = {
    "list": "catalogue",
    "show": "show",
    "show-model": "show_model",
    "cite": "cite",
    "sample": "sample",
    "generate": "generate",
    "chat": "chat",
    "bench": "bench",
    "tune": "tune",
    "eval": "evaluate",
    "merge": "merge",
    "new": "new",
    "check": "check",
    "plugins": "plugins",
    "env": "env",
}
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # no place, no quota, too large, a bad disk


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after `samplers`; None: those that the process was started with.

    Returns:
        The exit code: 0; 1 if something ran and failed, or a file cannot be read or written; 2 if the command cannot be run
        as it was given; 130 after Ctrl-C.
    """
    _replace_what_stdout_cannot_show()
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is found here, not when the interpreter ends
    except BrokenPipeError:  # `samplers list | head`
        _drop_stdout()
        return 0
    except OSError as error:
        complain(_sentence(error))
        if error.errno in CANNOT_WRITE:
            _drop_stdout()
        return 1


def _replace_what_stdout_cannot_show() -> None:
    """Frames and tables have characters that not every encoding has: print '?' rather than fail."""
    if isinstance(sys.stdout, io.TextIOWrapper) and (sys.stdout.errors == "strict" or not speaks_unicode()):
        sys.stdout.reconfigure(errors="replace")


def _drop_stdout() -> None:
    """Send what stdout still holds to nowhere; otherwise the interpreter complains of it when it ends."""
    with contextlib.suppress(OSError):  # a stdout without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: OSError) -> str:
    """The file that an error is about, and the reason."""
    reason = error.strerror or one_line(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    # The commands name the files that they write themselves; what is left is stdout.
    return f"standard output cannot be written: {reason}" if error.errno in CANNOT_WRITE else one_line(error)


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(words[0] if words else None)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        complain(_what_instead(getattr(args, "parser", parser), unknown))
        return 2
    if args.command is None:
        parser.print_help()
        return 0
    args.argv = words
    if sys.stderr is None or not sys.stderr.isatty():  # bars of the libraries that fetch and load models: for terminals
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    python_style = warnings.formatwarning
    # On a terminal the message of a warning is what counts, not the line of this library that gave it.
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        return args.run(args)
    except SamplersError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt as error:
        text = Text("interrupted", style="yellow").append(f" {error}" if error.args else "", style="default")
        Console(stderr=True).print(text, soft_wrap=True)
        return 130
    finally:
        warnings.formatwarning = python_style


def _what_instead(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """A sentence about words that a command does not take, and what may have been meant."""
    from ..arguments import ALIASES  # it imports torch

    known = [option for action in parser._actions for option in action.option_strings]
    word = words[0].partition("=")[0]
    begin = f"{parser.prog} does not take {' '.join(words)!r}"
    ours = "--" + ALIASES.get(word[2:].replace("-", "_"), "").replace("_", "-")
    if word in ("--model", "--denoiser"):
        other = next((option for option in ("--model", "--denoiser") if option in known), None)
        if other:
            return f"{begin}: it calls the model {other}"
        if any(action.metavar == "MODEL" for action in parser._actions):
            return f"{begin}: the model stands without an option, {parser.prog} MODEL"
    if ours in known:
        return f"{begin}: it calls this {ours}"
    if word.startswith("-"):
        own = " An option of the sampler is written -o NAME=VALUE." if "-o" in known else ""
        return f"{begin}{did_you_mean(word, known)}{own} See {parser.prog} --help"
    model = " A model is given as --denoiser NAME." if "--denoiser" in known else ""
    return f"{begin}. Values of one option are written with commas, such as 4,8.{model} See {parser.prog} --help"


def _parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; of one alone if `command` is the name of one."""
    parser = argparse.ArgumentParser(
        prog="samplers",
        description="Samplers for diffusion models: picked by name, run against any model, measured against a truth.",
        epilog="examples: samplers sample --problem sudoku4 --sampler entropy_bound --watch | samplers bench --demo",
    )

    class Version(argparse.Action):  # read when asked for: metadata takes its time
        def __call__(self, *_: Any) -> None:
            print(f"samplers {registry.version()}")
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in [command] if command in COMMANDS else COMMANDS:
        importlib.import_module(f"{__name__}.{COMMANDS[name]}").add(commands)
    return parser
