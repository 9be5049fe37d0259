"""`samplers list`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import registry
from ..aliases import ALIASES
from ..errors import OptionError, PluginError, SamplersError
from ..family import family_names, family_of
from ..registry import Entry
from .arguments import AS_JSON, FAMILY, KIND, Commands, command
from .output import make_console, print_json

LENGTH, STEPS = 64, (8, 16, 32, 64)  # at which expected forward passes are shown


def facts_of(cls: Any) -> dict[str, Any]:
    """The order, the bias and the walked option of a class, for list and show."""
    tokens = family_of(cls.family).tokens
    order = None if tokens else getattr(cls(), "order", None)  # it may depend on the options
    bias = cls.facts.bias if tokens else None
    return {"order": order, "bias": bias, "sweep": cls.facts.sweep[0] if cls.facts.sweep else None}


def _row(item: Entry, check: bool) -> dict[str, Any]:
    """A line of the list: what is declared; with `check`, what it says itself, or PluginError."""
    facts: dict[str, Any] = {}
    if check:
        item.check()
    if check and item.kind == "samplers":
        facts = registry.guarded(facts_of, item.load())
        nfe = item.expected_nfe(LENGTH, 16)
        if facts["order"] is not None:
            facts["nfe"] = f"order {facts['order']}"
        elif facts["sweep"]:
            facts["nfe"] = f"by {facts['sweep']}"
        else:
            facts["nfe"] = "" if nfe is None else f"{nfe:.4g} at 16 steps"
    elif (trouble := item.interface_trouble()) is not None:
        item.error = trouble
        raise PluginError(trouble)
    said = {key: item.said(key) for key in (("family", "summary") if item.kind == "samplers" else ("summary",))}
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


def _matching(args: argparse.Namespace, patterns: list[str]) -> list[str]:
    """The names that match a pattern, as far as they are known."""
    if args.kind == "samplers":
        return registry.names(patterns, args.family, imports=args.check)
    names = (registry.names_of(args.kind, pattern, imports=args.check) for pattern in patterns)
    return sorted(set().union(*names))


def _found(args: argparse.Namespace) -> list[str]:
    """The names to list; an error if there are none."""
    patterns, one = args.pattern or ["*"], registry.KINDS[args.kind].one
    if args.family and args.kind != "samplers":
        raise OptionError(f"--family is for samplers; a {one} is listed whatever its family")
    found = _matching(args, patterns)
    if not found and args.pattern:
        for pattern in args.pattern:
            if not any(c in pattern for c in "*?[/"):
                registry.entry(pattern, args.kind)  # raises, with the nearest names; or imports what registers it
        if found := _matching(args, patterns):
            return found
        raise SamplersError(
            f"no {one} matches {' '.join(patterns)}" + (f" in family {args.family}" if args.family else "")
        )
    return found


def _list(args: argparse.Namespace) -> int:
    if args.aliases:
        return _aliases(args.json)
    kind, rows, troubles = registry.KINDS[args.kind], [], []
    found = _found(args)  # first: it may import a module of hooks
    known = registry.listed(kind.name, imports=args.check)
    for name in found:
        item = known[name]
        try:
            rows.append(_row(item, args.check) | {"name": name})
        except PluginError as error:
            about = {"name": name, "distribution": item.distribution, "version": item.version}
            troubles.append({"status": "broken", **about, "error": item.error or str(error)})
    for r in registry.plugins(check=False):
        if r.status == "broken":  # as a whole: it has no names that could match
            about = {"name": r.entry_point, "distribution": r.distribution, "version": r.version}
            troubles.append({"status": "broken", **about, "error": r.error or ""})
    more = registry.incomplete()
    if args.json:
        return print_json({kind.name: rows, "broken": troubles, "incomplete": more})
    console, sampling = make_console(), kind.name == "samplers"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    checked = ("NFE / order", "bias") if args.check and sampling else ()
    for header in ("name", *(("family",) if sampling else ()), *checked, "summary", "from"):
        table.add_column(header, no_wrap=header in ("name", "family"))
    rank = {family: i for i, family in enumerate(family_names())}
    for row in sorted(rows, key=lambda r: (rank.get(r.get("family") or "", len(rank)), r["name"])):
        cells = [Text(row["name"], style="bold")]
        if sampling:
            cells.append(Text(row["family"] or "?"))
        if checked:
            style = {"exact": "green", "asymptotic": "green", "biased": "yellow"}.get(row["bias"] or "", "")
            cells += [Text(row["nfe"]), Text(row["bias"] or "", style=style)]
        ours = row["distribution"] == registry.DISTRIBUTION
        whose = Text("built in", style="dim") if ours else Text(f"{row['distribution']} {row['version']}")
        table.add_row(*cells, Text(row["summary"] or "?"), whose)
    console.print(table)
    print_troubles(console, troubles)
    for origin in more:
        which = "" if sampling else f" --kind {kind.name}"
        console.print(
            Text(f"{origin} may register more, which its source does not tell: samplers list{which} --check", "yellow"),
            soft_wrap=True,
        )
    console.print(f"\n[dim]{_hint(args, kind.name, rows)}[/]", highlight=False)
    return 0


def _hint(args: argparse.Namespace, kind: str, rows: list[dict[str, Any]]) -> str:
    """The line below the table."""
    if kind != "samplers":
        return f"samplers show --kind {kind} NAME tells all about one"
    if args.check:
        means = "exact: one position per step draws from the model's own distribution; asymptotic: many steps do"
    else:
        unknown = any(row["family"] is None or row["summary"] is None for row in rows)
        means = f"--check imports every sampler, and adds cost and bias{' and what is ?' if unknown else ''}"
    return f"samplers show NAME tells all about one; {means}"


def add(commands: Commands) -> None:
    p = command(commands, "list", _list, "samplers that are installed, or other things that have a name")
    p.add_argument("--kind", **KIND)
    p.add_argument("pattern", nargs="*", help="names to show, such as 'dpmpp*' or 'masked/*'")
    p.add_argument("--family", **FAMILY)
    p.add_argument(
        "--check",
        action="store_true",
        help="import all of them: adds cost and bias of samplers, and shows what is broken",
    )
    p.add_argument("--aliases", action="store_true", help="names that ComfyUI, A1111 and diffusers give our samplers")
    p.add_argument("--json", **AS_JSON)
