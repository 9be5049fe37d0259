"""The command `samplers`: list, show, cite, sample, watch, and measure.

Every error that this library raises on purpose is one line on stderr and exit code 2; tables go to stdout, and with
`--json` nothing else does.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from .. import registry
from ..errors import SamplersError
from . import bench, catalogue, cite, env, plugins, sample, show, tune
from .output import complain

__all__ = ["main"]

COMMANDS = (catalogue, show, cite, sample, bench, tune, plugins, env)  # in the order of the help


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after `samplers`; None: those that the process was started with.

    Returns:
        The exit code: 0; 1 if something ran and failed; 2 if the command cannot be run as it was given; 130 after Ctrl-C.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    args.argv = list(sys.argv[1:] if argv is None else argv)
    python_style = warnings.formatwarning
    # On a terminal the message of a warning is what counts, not the line of this library that gave it.
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        return args.run(args)
    except SamplersError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        return 130
    except BrokenPipeError:  # `samplers list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        warnings.formatwarning = python_style


def _parser() -> argparse.ArgumentParser:
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
    for module in COMMANDS:
        module.add(commands)
    return parser
