"""`samplers plugins`."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from .. import registry
from .arguments import AS_JSON, Commands, command
from .catalogue import print_troubles
from .output import make_console, print_json

STYLES = {
    "ok": "green",
    "broken": "bold red",
    "blocked": "dim",
    "duplicate": "yellow",
    "shadowed": "yellow",
    "meddles": "yellow",
}


def _places(report: registry.Report) -> dict[str, str | None]:
    """'file:line' of each thing that a plug-in registers, as far as it is known."""
    return {item.name if item.kind == "samplers" else f"{item.kind}: {item.name}": item.where for item in report.items}


def _plugins(args: argparse.Namespace) -> int:
    reports = registry.plugins()
    code = 1 if args.strict and any(r.status not in ("ok", "blocked") for r in reports) else 0
    if args.json:
        keys = ("entry_point", "distribution", "version", "status", "samplers", "others", "error")
        found = [{key: getattr(r, key) for key in keys} | {"where": _places(r)} for r in reports]
        print_json(found)
        return code
    console = make_console()
    if not reports:
        console.print(
            "no plug-ins are installed; a package becomes one with an entry point in the group 'samplers'",
            highlight=False,
        )
        return code
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("entry point", "distribution", "version", "status", "registers"):
        table.add_column(header)
    for r in reports:
        style = STYLES.get(r.status, "")
        registers = [", ".join(r.samplers), *(f"{kind}: {', '.join(names)}" for kind, names in r.others.items())]
        cells = (
            r.entry_point,
            r.distribution,
            r.version,
            Text(r.status, style=style),
            "; ".join(filter(None, registers)),
        )
        table.add_row(*(c if isinstance(c, Text) else Text(c) for c in cells))
    console.print(table)
    troubled = [r for r in reports if r.error]
    if troubled:
        console.print()
    print_troubles(
        console,
        [
            {
                "status": r.status,
                "name": r.entry_point,
                "distribution": r.distribution,
                "version": r.version,
                "error": r.error or "",
            }
            for r in troubled
        ],
    )
    return code


def add(commands: Commands) -> None:
    p = command(commands, "plugins", _plugins, "plug-ins that are installed, and what is wrong with them")
    p.add_argument("--json", **AS_JSON)
    p.add_argument("--strict", action="store_true", help="exit code 1 if any has something wrong: see the status")
