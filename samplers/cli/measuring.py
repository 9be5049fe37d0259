"""What `samplers bench` and `samplers tune` share: how a setting is run, where results go, how a stopped run goes on."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import OptionError
from .arguments import whole

OWN_MODEL: dict[str, Any] = {
    "metavar": "NAME|hf:NAME|MODULE:ATTRIBUTE",
    "help": "a model in the box, of a folder or the hub, or of your own; see `samplers sample --help`",
}


def measured(p: argparse.ArgumentParser, seeds: int) -> None:
    """What bench and tune share: how a setting is run, and where results go."""
    p.add_argument(
        "--metric",
        metavar="M",
        help="what to plot and to judge by: a metric of the problem; of --denoiser MODULE:FUNCTION, which is given the "
        "Sample and returns a number, or one a row",
    )
    p.add_argument("--higher", action="store_true", help="more of your own metric is better")
    p.add_argument("--prompts", metavar="MODULE:ATTRIBUTE", help="of --denoiser: lists of token ids, one a row")
    p.add_argument("--gen-length", type=whole, metavar="N", help="of --denoiser: positions to fill")
    p.add_argument("--seeds", type=whole, metavar="N", help=f"how many (default {seeds})")
    p.add_argument("--rows", type=whole, metavar="N", help="samples a run (default 512)")
    p.add_argument("--batch", type=whole, metavar="B", help="of these at a time (default 512)")
    p.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of token draws; default: 1 on a problem, the law itself; the sampler's own on a denoiser",
    )
    p.add_argument("--block-length", type=whole, metavar="N")
    p.add_argument("--threads", type=whole, metavar="N", help="of torch (default: its own choice; 1 for --demo)")
    p.add_argument("--out", metavar="DIR", help="where results go, and where an earlier run goes on (default runs/...)")
    p.add_argument("--fresh", action="store_true", help="start again; earlier runs are put aside")
    p.add_argument("--quiet", action="store_true", help="only failures, and where the results are")


def own_model(args: argparse.Namespace) -> list[str]:
    """--denoiser as a place to measure on."""
    if args.denoiser and ":" not in args.denoiser:
        raise OptionError(f"--denoiser {args.denoiser!r}: write module:attribute, such as my_model:denoiser")
    return [args.denoiser] if args.denoiser else []


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Request that bench and tune have flags for; those not given keep their defaults."""
    names = ("seeds", "rows", "batch", "temperature", "block_length", "gen_length", "prompts", "metric", "higher")
    return {k: getattr(args, k) for k in names if getattr(args, k) is not None} | {"options": tuple(args.option)}


def command_again(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run, or makes its report again."""
    again = "samplers " + shlex.join(a for a in args.argv if a != "--fresh")
    return again if args.out or getattr(args, "demo", False) else f"{again} --out {shlex.quote(str(folder))}"


def interrupted(kept: str, command: str) -> int:
    """Says what is kept of a stopped run and how to go on; the exit code."""
    Console(stderr=True).print(
        f"[yellow]interrupted[/]: {kept}; to go on:\n  {command}", highlight=False, soft_wrap=True
    )
    return 130
