"""`samplers bench`."""

from __future__ import annotations

import argparse
import functools
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import OptionError
from .arguments import FAMILY, OPTION, Commands, Flat, budgets, command, names
from .measuring import INTERRUPTED, USER_MODEL, folder_name, measured, request_fields, shared_out, swept, user_model
from .output import complain, make_console

if TYPE_CHECKING:
    from ..bench.sweep import Outcome


def _bench(args: argparse.Namespace) -> int:
    from ..bench.request import DEMO, NFE, Request
    from ..bench.store import writing
    from ..bench.sweep import run

    console = make_console()
    if args.report:
        with writing(args.report):
            report_run(console, args.report, tables=False)
        return 0
    where = args.problem or user_model(args)
    if bool(where) == args.demo or (args.problem and args.denoiser):
        raise OptionError("bench needs one of --problem NAME, --denoiser MODULE:ATTRIBUTE, --demo and --report DIR")
    if args.demo:
        requests, name = list(DEMO), "demo"
    else:
        requests = [
            Request(
                problems=tuple(where),
                samplers=tuple(args.samplers or ["*"]),
                family=args.family,
                nfe=tuple(args.nfe or NFE),
                caches=tuple(None if c == "none" else c for c in args.cache or ["none"]),
                **request_fields(args),
            )
        ]
        name = folder_name(f"{'-'.join(where)}-{datetime.now():%Y%m%d-%H%M%S}")
    threads = args.threads or (1 if args.demo else None)
    folder, outcome = swept(args, console, name, functools.partial(run, requests), threads)
    if outcome is None:
        return INTERRUPTED
    named = {pattern.rpartition("/")[2] for request in requests for pattern in request.samplers}
    broken = [error for name, error in outcome.unavailable.items() if name in named]
    failed = bool(outcome.failed or broken or _without_any(folder, outcome.declined))
    if not ended(console, outcome):
        return 1
    with writing(folder):
        report_run(console, folder, tables=not args.quiet)
    for error in broken:
        complain(error)
    return 1 if failed else 0


def ended(console: Console, outcome: Outcome) -> bool:
    """Say what became of a sweep, and whether any cell of it ended well."""
    ran, bad = outcome.planned - outcome.reused, outcome.failed + outcome.declined
    console.print(
        f"{ran} cell{'s' * (ran != 1)} run in {outcome.seconds:.0f} s, {outcome.reused} were there already"
        + (f", [red]{len(outcome.failed)} failed[/]" if outcome.failed else "")
        + (f", {len(outcome.declined)} declined by their sampler" if outcome.declined else ""),
        highlight=False,
    )
    if len(bad) < outcome.planned:
        return True
    complain(f"no cell ended well; the first said: {bad[0]['error']}" if bad else "there are more shards than cells")
    return False


def _without_any(folder: Path, declined: list[dict[str, Any]]) -> set[str]:
    """Samplers that declined everything they were asked for. That is a failure; to decline some step counts is not."""
    from ..bench.store import Store

    ran = {(r["problem"], r["sampler"]) for r in Store(folder, write=False).records.values() if r["status"] == "ok"}
    return {r["sampler"] for r in declined if (r["problem"], r["sampler"]) not in ran}


def report_run(console: Console, folder: str | Path, *, tables: bool, every: bool = False) -> None:
    """Write the report of a folder, print its tables if asked for (with `every` row), and say where it is."""
    from ..bench.collect import points, sections
    from ..bench.live import table
    from ..bench.report import plotted, write_report
    from ..bench.store import Store, read_about
    from ..bench.tables import best_rows

    page, notes = write_report(folder)
    if tables:
        about = read_about(folder)
        for section in sections(points(Store(folder, write=False).records.values(), plotted(about))):
            group = section.points
            console.print()
            console.print(
                table(group, group if every else best_rows(group), title=section.title, narrow=console.width < 120)
            )
        console.print("[dim]• on the Pareto front by NFE; all settings are in table.md[/]\n", highlight=False)
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    console.print(f"report: [bold]{page}[/]", highlight=False, soft_wrap=True)


def add(commands: Commands) -> None:
    p = command(commands, "bench", _bench, "measure samplers against the truth; a stopped run goes on where it was")
    p.add_argument(
        "--problem",
        type=names,
        action=Flat,
        metavar="P[,P2]",
        help="exact problems; or llm-small, llm-8b: random weights of a real shape, to measure speed alone",
    )
    p.add_argument(
        "--cache",
        type=names,
        metavar="C,C,...",
        help="KV caches to compare, if the model has them: none, prefix, dual, delayed, block",
    )
    p.add_argument("--denoiser", **USER_MODEL)
    p.add_argument(
        "--samplers",
        type=names,
        action=Flat,
        nargs="+",
        metavar="PATTERN",
        help="samplers to measure: names, 'masked/*', 'dpmpp*' (default: all that fit)",
    )
    p.add_argument("--family", **FAMILY)
    p.add_argument(
        "--nfe",
        type=budgets,
        metavar="N,N,...",
        help="budgets of forward passes (default 2,4,8,16); a sampler whose passes an option sets, such as entropy_bound's "
        "bound, is run at several values of that option instead, unless -o gives it one",
    )
    p.add_argument(
        "-o",
        "--option",
        help="option of all samplers that have it; or sampler.name=value",
        **OPTION,
    )
    measured(p, 3, more=", and other runs add to it")
    shared_out(p)
    p.add_argument(
        "--demo", action="store_true", help="measure sudoku, digits and a mixture in about two minutes, into runs/demo"
    )
    p.add_argument("--report", metavar="DIR", help="folder whose report is written again, without running anything")
