"""samplers list."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table
from rich.text import Text

from .. import registry
from ..errors import PluginError, SamplersError
from ..registry import FAMILIES
from .arguments import AS_JSON, FAMILY, Commands, command
from .output import make_console, print_json

LENGTH, STEPS = 64, (8, 16, 32, 64)  # at which `show` says what a sampler is expected to cost


def cost(cls: Any, steps: int) -> float | None:
    return cls().expected_nfe(LENGTH, steps)


def facts_of(cls: Any) -> dict[str, Any]:
    """What a class says of itself, for list and show."""
    order = getattr(cls, "order", None)
    if not isinstance(order, int):  # an option of that name says it per instance
        order = next((o.default for o in cls.options() if o.name == "order"), None)
    law = {True: "exact", False: "biased"}.get(cls.exact_order) if cls.family in ("masked", "uniform") else None
    return {"order": order, "law": law, "sweep": cls.sweep[0] if cls.sweep else None}


def _count(facts: dict[str, Any], cls: Any) -> str:
    """The fact that one wants to see in a list: what a sampler's NFE is, or a solver's order."""
    if facts["order"] is not None:
        return f"order {facts['order']}"
    if facts["sweep"]:
        return f"by {facts['sweep']}"
    try:
        nfe = cost(cls, 16)
    except SamplersError:
        return ""
    return "" if nfe is None else f"{nfe:.4g} at 16 steps"


def _list(args: argparse.Namespace) -> int:
    patterns = args.pattern or ["*"]
    rows, broken = [], []
    for name in registry.names(patterns, args.family):
        item = registry.entry(name)
        try:
            cls: Any = item.load()
            facts = facts_of(cls)
            row = {"name": name, "family": cls.family, "nfe": _count(facts, cls), **facts}
            rows.append(row | {"summary": cls.summary, "distribution": item.distribution, "version": item.version})
        except PluginError:
            broken.append(
                {"name": name, "distribution": item.distribution, "version": item.version, "error": item.error}
            )
    reports = [r for r in registry.plugins(check=False) if r.status == "broken" and not r.samplers]
    broken += [
        {"name": r.entry_point, "distribution": r.distribution, "version": r.version, "error": r.error} for r in reports
    ]
    if not rows and args.pattern:
        for pattern in args.pattern:
            if not any(c in pattern for c in "*?[/"):
                registry.entry(pattern)  # raises, with the nearest names
        raise SamplersError(
            f"no sampler matches {' '.join(patterns)}" + (f" in family {args.family}" if args.family else "")
        )
    if args.json:
        return print_json({"samplers": rows, "broken": broken})
    console = make_console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("name", "family", "NFE / order", "law", "summary", "from"):
        table.add_column(header, no_wrap=header in ("name", "family"))
    for row in sorted(rows, key=lambda r: (FAMILIES.index(r["family"]), r["name"])):
        origin = "" if row["distribution"] == registry.DISTRIBUTION else f"{row['distribution']} {row['version']}"
        style = {"exact": "green", "biased": "yellow"}.get(row["law"] or "", "")
        table.add_row(
            Text(row["name"], style="bold"),
            row["family"],
            row["nfe"],
            Text(row["law"] or "", style=style),
            Text(row["summary"]),
            Text(origin or "built in", style="dim" if not origin else ""),
        )
    console.print(table)
    for bad in broken:
        console.print(
            f"[red]broken[/]  {bad['name']} ({bad['distribution']} {bad['version']}): {bad['error']}",
            highlight=False,
        )
    console.print(
        "\n[dim]samplers show NAME says more; 'exact' draws the model's own law one position at a time, or in many steps[/]"
    )
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "list", _list, "the samplers there are")
    p.add_argument("pattern", nargs="*", help="such as 'dpmpp*' or 'masked/*'")
    p.add_argument("--family", **FAMILY)
    p.add_argument("--json", **AS_JSON)
