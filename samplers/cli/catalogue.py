"""`samplers list`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import registry
from ..aliases import ALIASES
from ..errors import PluginError, SamplersError
from ..family import family_names, family_of
from ..registry import Entry
from .arguments import AS_JSON, FAMILY, Commands, command
from .output import make_console, print_json

LENGTH, STEPS = 64, (8, 16, 32, 64)  # at which expected forward passes are shown


def facts_of(cls: Any) -> dict[str, Any]:
    """The order, the bias and the walked option of a class, for list and show."""
    order = None if family_of(cls.family).tokens else getattr(cls(), "order", None)  # it may depend on the options
    bias = cls.facts.bias if family_of(cls.family).tokens else None
    return {"order": order, "bias": bias, "sweep": cls.facts.sweep[0] if cls.facts.sweep else None}


def _row(item: Entry, check: bool) -> dict[str, Any]:
    """A line of the list: what is declared; with `check`, what the class says, or PluginError."""
    facts: dict[str, Any] = {}
    if check:
        item.check()
        facts = registry.guarded(facts_of, item.load())
        nfe = item.expected_nfe(LENGTH, 16)
        if facts["order"] is not None:
            facts["nfe"] = f"order {facts['order']}"
        elif facts["sweep"]:
            facts["nfe"] = f"by {facts['sweep']}"
        else:
            facts["nfe"] = "" if nfe is None else f"{nfe:.4g} at 16 steps"
    said = {key: item.said(key) for key in ("family", "summary")}
    return {"name": item.name, **said, "distribution": item.distribution, "version": item.version, **facts}


def print_troubles(console: Console, troubles: list[dict[str, str]]) -> None:
    """One line per plug-in that has something wrong."""
    for t in troubles:
        line = Text(t["status"], style="red" if t["status"] == "broken" else "yellow")
        line.append(f"  {t['name']} ({t['distribution']} {t['version']}): {t['error']}", style="not bold default")
        console.print(line, soft_wrap=True)


def _aliases(as_json: bool) -> int:
    """What other libraries call our samplers."""
    rows = [{"name": other, "sampler": ours, "options": options} for other, (ours, options) in ALIASES.items()]
    if as_json:
        return print_json({"aliases": rows})
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("name elsewhere", "sampler", "options"):
        table.add_column(header)
    for other, (ours, options) in ALIASES.items():
        table.add_row(Text(other), Text(ours, style="bold"), Text(", ".join(f"{k}={v}" for k, v in options.items())))
    console = make_console()
    console.print(table)
    console.print("\n[dim]A name may end in that of a grid: 'DPM++ 2M Karras'[/]", highlight=False)
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.aliases:
        return _aliases(args.json)
    patterns = args.pattern or ["*"]
    found = registry.names(patterns, args.family, imports=args.check)
    rows, troubles = [], []
    for name in found:
        item = registry.entry(name)
        try:
            rows.append(_row(item, args.check) | {"name": name})
        except PluginError as error:
            about = {"name": name, "distribution": item.distribution, "version": item.version}
            troubles.append({"status": "broken", **about, "error": item.error or str(error)})
    for r in registry.plugins(check=False):
        if r.status == "broken":  # as a whole: it has no names that could match
            about = {"name": r.entry_point, "distribution": r.distribution, "version": r.version}
            troubles.append({"status": "broken", **about, "error": r.error or ""})
    if not found and args.pattern:
        for pattern in args.pattern:
            if not any(c in pattern for c in "*?[/"):
                registry.entry(pattern)  # raises, with the nearest names
        raise SamplersError(
            f"no sampler matches {' '.join(patterns)}" + (f" in family {args.family}" if args.family else "")
        )
    if args.json:
        return print_json({"samplers": rows, "broken": troubles})
    console = make_console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("name", "family", *(("NFE / order", "bias") if args.check else ()), "summary", "from"):
        table.add_column(header, no_wrap=header in ("name", "family"))
    rank = {family: i for i, family in enumerate(family_names())}
    for row in sorted(rows, key=lambda r: (rank.get(r["family"], len(rank)), r["name"])):
        ours = row["distribution"] == registry.DISTRIBUTION
        checked: tuple[Text, ...] = ()
        if args.check:
            style = {"exact": "green", "asymptotic": "green", "biased": "yellow"}.get(row["bias"] or "", "")
            checked = (Text(row["nfe"]), Text(row["bias"] or "", style=style))
        table.add_row(
            Text(row["name"], style="bold"),
            Text(row["family"] or "?"),
            *checked,
            Text(row["summary"] or "?"),
            Text("built in", style="dim") if ours else Text(f"{row['distribution']} {row['version']}"),
        )
    console.print(table)
    print_troubles(console, troubles)
    unknown = any(row["family"] is None or row["summary"] is None for row in rows)
    console.print(
        "\n[dim]samplers show NAME tells all about one; "
        + (
            "exact: one position per step draws from the model's own distribution; asymptotic: many steps do[/]"
            if args.check
            else f"--check imports every sampler, and adds cost and bias{' and what is ?' if unknown else ''}[/]"
        ),
        highlight=False,
    )
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "list", _list, "samplers that are installed")
    p.add_argument("pattern", nargs="*", help="names to show, such as 'dpmpp*' or 'masked/*'")
    p.add_argument("--family", **FAMILY)
    p.add_argument(
        "--check", action="store_true", help="import every sampler: adds cost and bias, and shows what is broken"
    )
    p.add_argument("--aliases", action="store_true", help="names that ComfyUI, A1111 and diffusers give our samplers")
    p.add_argument("--json", **AS_JSON)
