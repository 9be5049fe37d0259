"""`samplers tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from .. import registry
from ..errors import OptionError
from .arguments import OPTION, Commands, budgets, command, whole_or_0
from .measuring import USER_MODEL, folder_name, interrupted, measured, request_fields, resume_command, user_model
from .output import make_console


def _tune(args: argparse.Namespace) -> int:
    from ..bench import tune, tune_report
    from ..bench.live import SearchDisplay, found_table
    from ..bench.request import Request
    from ..bench.store import writing
    from ..bench.user_model import subject
    from ..models import zoo

    (where,) = user_model(args) or [args.problem]
    if args.denoiser in zoo.list_models() and args.metric is None and subject(where).families == ("masked",):
        args.metric = "nll"  # any other model is judged by what its owner says
    names = tune.DEFAULTS.get(args.sampler)
    if not names and not (args.x and args.y):
        raise OptionError(
            f"which two options of {args.sampler!r}? Say --x option=low:high:count and --y option=low:high:count"
        )
    both = args.grid or "0.1:1.0:10"
    x, y = (tune.axis(given or f"{names[i]}={both}") for i, given in enumerate((args.x, args.y)))  # type: ignore[index]
    references = dict(names[2]) if names and (x.option, y.option) == names[:2] else _defaults(args.sampler, x, y)
    steps = args.steps
    if not steps:
        length = args.gen_length or subject(where, args.metric, args.higher).length
        if length is None:
            raise OptionError(
                "--steps is needed: this model takes a canvas of any length, and --gen-length was not given"
            )
        steps = sorted({max(1, length // k) for k in (8, 4, 2)})
    request = Request(
        problems=(where,), samplers=(args.sampler,), nfe=tuple(steps), **{"seeds": 4, **request_fields(args)}
    )
    what = tune.Search(request, args.sampler, x, y, references, args.refine)
    folder = Path(args.out or Path("runs") / folder_name(f"tune-{args.sampler}-{where}"))
    command, console = resume_command(args, folder), make_console()
    display = SearchDisplay(console, quiet=args.quiet)
    try:
        with writing(folder), display:
            found = tune.search(
                what,
                folder,
                fresh=args.fresh,
                command=command,
                threads=args.threads,
                opened=display.opened,
                stage=display.stage,
                running=display.running,
                finished=display.finished,
            )
    except KeyboardInterrupt:
        return interrupted(f"{display.count} runs are in {folder}", command)
    paths, notes = tune_report.write(what, found, folder)
    console.print()
    console.print(found_table(found, x.option, y.option))
    console.print(
        f"[dim]{max(len(f.tried) for f in found)} pairs searched; the numbers are of fresh seeds, the same for every pair; "
        "below 0: the found pair is better[/]\n",
        highlight=False,
    )
    for one in found:
        expected = "" if one.expected_nfe is None else f", {one.expected_nfe:.4g} forward passes expected"
        console.print(f"[bold]{one.steps} steps[/]{expected}", highlight=False)
        for line in tune_report.paste(what, one):
            console.print(Text(f"  {line}"), soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for path in paths:
        console.print(f"written: [bold]{path}[/]", highlight=False, soft_wrap=True)
    return 0


def _defaults(sampler: str, x: Any, y: Any) -> dict[str, tuple[float, float]]:
    """The default values of the two options as a reference; none if they are not two numbers."""
    default = {o.name: o.default for o in registry.load(sampler).options()}
    pair = tuple(default.get(a.option) for a in (x, y))
    return {"default": pair} if all(isinstance(v, (int, float)) for v in pair) else {}  # type: ignore[dict-item]


def add(commands: Commands) -> None:
    p = command(
        commands,
        "tune",
        _tune,
        "search for two options of a sampler; a stopped run goes on where it was",
    )
    p.add_argument("sampler", metavar="NAME", help="sampler with two numeric options, such as beta_energy")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--problem", help="exact problem, such as digits, sudoku4, text or latin4")
    what.add_argument("--denoiser", **USER_MODEL)
    p.add_argument("--x", metavar="OPTION=LOW:HIGH:COUNT", help="first option; values may also be listed, a=0.1,0.5")
    p.add_argument("--y", metavar="OPTION=LOW:HIGH:COUNT", help="second option (default for beta_energy: a and b)")
    p.add_argument("--grid", metavar="LOW:HIGH:COUNT", help="grid of beta_energy's two options (default 0.1:1.0:10)")
    p.add_argument(
        "--steps",
        type=budgets,
        metavar="N,N,...",
        help="numbers of steps, each with its own search (default L/8, L/4, L/2)",
    )
    p.add_argument(
        "--refine", type=whole_or_0, default=2, metavar="K", help="rounds of refinement around the best (default 2)"
    )
    p.add_argument("-o", "--option", help="option that stays as it is", **OPTION)
    measured(p, 4)
