"""What `samplers bench` and `samplers tune` share: how a setting is run, where results go, how a stopped run goes on."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from .arguments import temperature, whole
from .tokens import TEXT, text_default

USER_MODEL: dict[str, Any] = {
    "metavar": "NAME|hf:NAME|MODULE:ATTRIBUTE",
    "help": "model in the box, of a folder or the hub, or of your own; see `samplers sample --help`",
}


def measured(p: argparse.ArgumentParser, seeds: int) -> None:
    """Add the arguments that say how a setting is run and where results go.

    Args:
        seeds: the default number of seeds, for the help.
    """
    p.add_argument(
        "--metric",
        metavar="M",
        help="metric to plot and to judge by: one of the problem's; with --denoiser MODULE:FUNCTION, which is given the "
        "Sample and returns a number, or one per row; or nll, of masked models: nats per token that the model itself finds "
        "in what was written, few where a text repeats itself (what `tune` takes on a masked model in the box)",
    )
    p.add_argument("--higher", action="store_true", help="say that more of your own metric is better")
    p.add_argument("--prompts", metavar="MODULE:ATTRIBUTE", help="lists of token ids, one per row; with --denoiser")
    p.add_argument(
        "--gen-length",
        type=whole,
        metavar="N",
        help=f"positions to fill; with --denoiser (default on the text models in the box: {TEXT['gen_length']})",
    )
    p.add_argument("--seeds", type=whole, metavar="N", help=f"number of seeds (default {seeds})")
    p.add_argument("--rows", type=whole, metavar="N", help="samples per run (default 512)")
    p.add_argument("--batch", type=whole, metavar="B", help="samples at a time (default 512)")
    p.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="sampling temperature of tokens (default: 1 on a problem, so that the model's own distribution is drawn; the "
        "sampler's own on a denoiser)",
    )
    p.add_argument("--block-length", type=whole, metavar="N", help="positions per block, from left to right")
    p.add_argument(
        "--threads", type=whole, metavar="N", help="threads of torch (default: its own choice; 1 for --demo)"
    )
    p.add_argument(
        "--out", metavar="DIR", help="folder for results; a run that was stopped goes on there (default runs/...)"
    )
    p.add_argument("--fresh", action="store_true", help="start again; earlier results are put aside")
    p.add_argument("--quiet", action="store_true", help="print failures and the place of the results only")


def user_model(args: argparse.Namespace) -> list[str]:
    """The name of --denoiser as a list, empty if it was not given.

    Raises:
        OptionError: it is neither module:attribute, nor hf:NAME, nor the name of a model in the box.
    """
    from ..bench.user_model import load_denoiser

    if args.denoiser and ":" not in args.denoiser:
        # Its error knows the names of the models in the box.
        args.gen_length = text_default(load_denoiser(args.denoiser), "gen_length", args.gen_length)
    return [args.denoiser] if args.denoiser else []


def request_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Request that bench and tune have flags for; those not given keep their defaults."""
    names = ("seeds", "rows", "batch", "temperature", "block_length", "gen_length", "prompts", "metric", "higher")
    return {k: getattr(args, k) for k in names if getattr(args, k) is not None} | {"options": tuple(args.option)}


def resume_command(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run, or makes its report again."""
    again = "samplers " + shlex.join(a for a in args.argv if a != "--fresh")
    return again if args.out or getattr(args, "demo", False) else f"{again} --out {shlex.quote(str(folder))}"


def interrupted(kept: str, command: str) -> int:
    """Say what is kept of a stopped run and how to go on; returns the exit code."""
    Console(stderr=True).print(
        f"[yellow]interrupted[/]: {kept}; to go on:\n  {command}", highlight=False, soft_wrap=True
    )
    return 130
