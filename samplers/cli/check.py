"""`samplers check`: the conformance kit without pytest."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .. import registry
from ..errors import OptionError, UnknownNameError
from .arguments import AS_JSON, Commands, command
from .output import make_console, print_json

if TYPE_CHECKING:
    from ..testing.kit import Case, Result


def _check(args: argparse.Namespace) -> int:
    from ..testing.kit import chosen

    plans = {name: chosen(name, args.only) for name in _names(args.names)}
    if args.report:
        try:
            Path(args.report).mkdir(parents=True, exist_ok=True)  # before the checks, which take a while
        except OSError as error:
            raise OptionError(
                f"--report {args.report} is no folder, and none can be made there: {error.strerror}"
            ) from error
    results, begun = [], time.perf_counter()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        for name, plan in plans.items():
            results += _run(bar, name, plan)
    broken = [r for r in results if r.broken]
    pages = []
    if args.report:
        from ..testing.report import write_report

        pages = [write_report(args.report, name, [r for r in results if r.sampler == name]) for name in plans]
    if args.json:
        print_json([r.to_dict() for r in results])
        return 1 if broken else 0
    console = make_console()
    for result in broken:
        console.print(_message(result), soft_wrap=True)
        console.print()
    for name in plans:
        _sum_up(console, name, [r for r in results if r.sampler == name])
    if len(plans) > 1:
        console.print(f"{len(plans)} samplers in {time.perf_counter() - begun:.0f} s", highlight=False)
    for page in pages:
        console.print(f"report: [bold]{page}[/]", highlight=False, soft_wrap=True)
    return 1 if broken else 0


def _names(patterns: list[str]) -> list[str]:
    """The samplers that names and patterns stand for."""
    found: list[str] = []
    for pattern in patterns:
        if any(c in pattern for c in "*?["):
            if not (same := registry.names(pattern)):
                raise UnknownNameError(f"no sampler matches {pattern!r}; 'samplers list' shows them")
            found += same
        else:
            registry.entry(pattern)
            found.append(pattern)
    return list(dict.fromkeys(found))


def _run(bar: Progress, name: str, plan: list[Case]) -> list[Result]:
    from ..testing.kit import run_case

    task = bar.add_task(name, total=len(plan))
    made = []
    for case in plan:
        bar.update(task, description=f"{name}: {case.name}")
        made.append(run_case(name, case))
        bar.advance(task)
    bar.remove_task(task)
    return made


def _message(result: Result) -> Table:
    """A broken promise as a table of two columns."""
    broken = result.broken
    assert broken is not None
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, title_justify="left")
    table.title = Text(f"{broken.sampler}: {broken.check}", style="bold red not italic")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in broken.parts():
        table.add_row(heading, Text(text))
    return table


def _sum_up(console: Console, name: str, results: list[Result]) -> None:
    count = {status: sum(r.status == status for r in results) for status in ("kept", "broken", "skipped")}
    line = Text(f"{name}: ", style="bold").append(
        f"{count['kept']} promise{'s' * (count['kept'] != 1)} kept", style="green not bold"
    )
    if count["broken"]:
        line.append(f", {count['broken']} broken", style="red not bold")
    if count["skipped"]:
        which = ", ".join(dict.fromkeys(r.case.name for r in results if r.status == "skipped"))
        verb = "does" if count["skipped"] == 1 else "do"
        line.append(f", {count['skipped']} {verb} not apply ({which})", style="dim not bold")
    console.print(line.append(f", in {sum(r.seconds for r in results):.1f} s", style="not bold"))


def add(commands: Commands) -> None:
    p = command(
        commands, "check", _check, "check that samplers keep what they promise: the conformance kit, without pytest"
    )
    p.add_argument(
        "names", nargs="+", metavar="NAME", help="samplers to check: names, 'dist:name', or patterns such as 'masked/*'"
    )
    p.add_argument(
        "--only",
        action="append",
        metavar="CHECK[SETTING]",
        help="run this check only, such as facts or 'prompt_untouched_no_mask_left[steps=5]'; or a pattern; may be repeated",
    )
    p.add_argument(
        "--report",
        metavar="DIR",
        help="also measure the sampler beside its nearest relatives, and write DIR/NAME/check.html: a page with its promises and "
        "its plot of quality against forward passes",
    )
    p.add_argument("--json", **AS_JSON)
