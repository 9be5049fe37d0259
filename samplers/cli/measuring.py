"""What commands that measure share: how a setting is run, on which machines, where results go, how a stopped run goes on."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import OptionError
from ..parallel import RayMap, Shard, parse_shard, shard_path
from .arguments import temperature, whole
from .tokens import TEXT, text_default

if TYPE_CHECKING:
    from ..bench.sweep import Outcome

INTERRUPTED = 130  # the exit code after Ctrl-C

USER_MODEL: dict[str, Any] = {
    "metavar": "NAME|hf:NAME|MODULE:ATTRIBUTE",
    "help": "model in the box, of a folder or the hub, or of your own; see `samplers sample --help`",
}


def folder_name(text: str) -> str:
    """A text such as hf:/a/model?shift=1 as the name of one folder."""
    return re.sub(r"[^\w.+-]+", ".", text)


def measured(p: argparse.ArgumentParser, seeds: int, more: str = "") -> None:
    """Add the arguments that say how a setting is run and where results go.

    Args:
        seeds: the default number of seeds, for the help.
        more: what else the help says of the folder of the results.
    """
    p.add_argument(
        "--metric",
        metavar="M",
        help="metric to plot and to judge by: one of the problem's, or one of `samplers list --kind metrics`; with --denoiser "
        "also MODULE:FUNCTION, which is given the "
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
    kept(p, "runs/...", more)


def kept(p: argparse.ArgumentParser, folder: str, more: str = "") -> None:
    """Add the arguments that say where results go.

    Args:
        folder: the default, for the help.
        more: what else the help says of the folder.
    """
    about = f"folder for results; a run that was stopped goes on there{more} (default {folder})"
    p.add_argument("--out", metavar="DIR", help=about)
    p.add_argument("--fresh", action="store_true", help="start again; earlier results are put aside")
    p.add_argument("--quiet", action="store_true", help="print failures and the place of the results only")


def shared_out(p: argparse.ArgumentParser) -> None:
    """Add the arguments that share work out over processes and machines."""
    p.add_argument(
        "--shard",
        metavar="I/N|auto",
        help="run part I of N only, counted from 0, into a place of its own under --out; auto: as torchrun, srun or mpirun "
        "says in the environment; `samplers merge` makes one of the parts",
    )
    p.add_argument(
        "--ray",
        metavar="auto|local|HOST:PORT",
        help="share the work out over a Ray cluster: that of this machine if there is one, one that is started here, or the one "
        "at an address",
    )
    p.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="processes on the Ray cluster, each with a model of its own (default: one per GPU, or per core if there is none)",
    )


def shard_of(args: argparse.Namespace, out: Path) -> tuple[Shard | None, Path]:
    """The shard that --shard asks for, and where its results go.

    Raises:
        OptionError: it is no shard, or its place is not known to the other shards, since there is no --out.
    """
    if args.shard is None:
        return None, out
    if args.out is None:
        raise OptionError("--shard needs --out, the same for all shards: each writes to a place of its own under it")
    shard = parse_shard(args.shard)
    return shard, shard_path(out, shard)


def ray_map(args: argparse.Namespace) -> contextlib.AbstractContextManager[RayMap | None]:
    """The map over the cluster that --ray asks for, or None: this process.

    Raises:
        OptionError: --workers without --ray; Ray is not installed, or (when entered) does not answer.
    """
    if args.ray is None:
        if args.workers is not None:
            raise OptionError("--workers goes with --ray")
        return contextlib.nullcontext()
    return RayMap(args.ray, workers=args.workers)


def swept(
    args: argparse.Namespace, console: Console, name: str, run: Callable[..., Outcome], threads: int | None
) -> tuple[Path, Outcome | None]:
    """Run a sweep as the command says, and show it.

    Args:
        name: of the folder under runs/, if there is no --out.
        run: samplers.bench.sweep.run or another function of a folder with its arguments, the requests given.

    Returns:
        The folder; and what became of the sweep, None if it was interrupted, which the user is then told.
    """
    from ..bench.live import Display
    from ..bench.store import writing

    shard, folder = shard_of(args, Path(args.out or Path("runs") / name))
    command = resume_command(args, folder)
    display = Display(console, quiet=args.quiet, metric=args.metric)
    try:
        with ray_map(args) as spread, writing(folder), display:
            outcome = run(
                folder,
                fresh=args.fresh,
                command=command,
                threads=threads,
                shard=shard,
                map=spread,
                started=display.started,
                running=display.running,
                finished=display.finished,
            )
    except KeyboardInterrupt:
        interrupted(f"{display.count} of {display.total} cells are in {folder}", command)
        return folder, None
    return folder, outcome


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
    return INTERRUPTED
