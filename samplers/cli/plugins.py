"""samplers plugins."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from .. import registry
from .arguments import AS_JSON, Commands, command
from .output import make_console, print_json


def _plugins(args: argparse.Namespace) -> int:
    reports = registry.plugins()
    bad = any(r.status in ("broken", "duplicate") for r in reports)
    code = 1 if args.strict and bad else 0
    if args.json:
        print_json(
            [
                {k: getattr(r, k) for k in ("entry_point", "distribution", "version", "status", "samplers", "error")}
                for r in reports
            ]
        )
        return code
    console = make_console()
    if not reports:
        console.print(
            "no plug-ins are installed; a package becomes one with an entry point in the group 'samplers'",
            highlight=False,
        )
        return code
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("entry point", "distribution", "version", "status", "samplers", "error"):
        table.add_column(header)
    styles = {"ok": "green", "broken": "bold red", "blocked": "dim", "duplicate": "yellow"}
    for r in reports:
        table.add_row(
            r.entry_point,
            r.distribution,
            r.version,
            Text(r.status, style=styles.get(r.status, "")),
            ", ".join(r.samplers),
            Text(r.error or "", style="red"),
        )
    console.print(table)
    return code


def add(commands: Commands) -> None:
    p = command(commands, "plugins", _plugins, "plug-ins, and what is wrong with them")
    p.add_argument("--json", **AS_JSON)
    p.add_argument("--strict", action="store_true", help="exit 1 if any is broken or a duplicate")
