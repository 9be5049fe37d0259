"""samplers show."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from rich.table import Table
from rich.text import Text

from .. import registry
from ..errors import SamplersError
from .arguments import AS_JSON, Commands, command
from .catalogue import LENGTH, STEPS, cost, facts_of
from .output import make_console, print_json


def _where(cls: Any) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return "?"


def _show(args: argparse.Namespace) -> int:
    item = registry.entry(args.name)
    cls: Any = item.load()
    facts = facts_of(cls)
    doc = inspect.cleandoc(cls.__doc__ or "")
    try:
        costs = {str(s): cost(cls, s) for s in STEPS}
    except SamplersError:
        costs = {str(s): None for s in STEPS}
    options = [
        {"name": o.name, "type": o.type_name, "default": o.default, "bounds": o.bounds, "help": o.help}
        for o in cls.options()
    ]
    about = {
        "name": args.name,
        "family": cls.family,
        "summary": cls.summary,
        "cite": cls.cite,
        "doc": doc,
        "options": options,
        **facts,
        "sweep": {"option": cls.sweep[0], "values": list(cls.sweep[1])} if cls.sweep else None,
        "default_temperature": cls.default_temperature if cls.family in ("masked", "uniform") else None,
        "expected_nfe": costs,
        "source": _where(cls),
        "distribution": item.distribution,
        "version": item.version,
    }
    if args.json:
        return print_json(about)
    console = make_console()
    console.print(Text.assemble((args.name, "bold"), "  ", (cls.family, "cyan"), "  ", cls.summary))
    console.print(Text(cls.cite, style="italic"))
    console.print()
    console.print(Text("\n\n".join(doc.split("\n\n")[:2])))
    console.print()
    if options:
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            header_style="dim",
            title="Options",
            title_justify="left",
            title_style="bold",
        )
        for header in ("name", "type", "default", "bounds", "what"):
            table.add_column(header)
        for o in options:
            table.add_row(*(Text(str(o[k])) for k in ("name", "type", "default", "bounds", "help")))
        console.print(table)
    else:
        console.print("[bold]Options[/]\nnone")
    grid = Table.grid(padding=(0, 2, 0, 0))
    if about["default_temperature"] is not None:
        grid.add_row("[dim]temperature[/]", f"{about['default_temperature']:g} unless you say otherwise")
    if facts["law"]:
        laws = {
            "exact": "exact: one position at a time gives the model's own law"
            if "steps" not in cls.one_at_a_time
            else "exact: the model's own law in the limit of many steps",
            "biased": "biased by design: the choice of position looks at the token",
        }
        grid.add_row("[dim]law[/]", laws[facts["law"]])
    if facts["order"] is not None:
        grid.add_row("[dim]order[/]", str(facts["order"]))
    known = {s: v for s, v in costs.items() if v is not None}
    if known:
        at = ", ".join(f"{v:.4g} at {s} steps" for s, v in known.items())
        grid.add_row("[dim]expected NFE[/]", at + ("" if cls.family == "gaussian" else f" (L = {LENGTH})"))
    elif facts["sweep"]:
        cap = "" if cls.sequential else "; `steps` is a cap"
        grid.add_row("[dim]NFE[/]", f"depends on the model, set by {facts['sweep']}{cap}")
    if cls.sequential:
        grid.add_row(
            "[dim]model[/]", "must look back only, have a KV cache and predict the next token, too (predicts_next)"
        )
    grid.add_row("[dim]source[/]", Text(about["source"]))
    grid.add_row("[dim]from[/]", f"{item.distribution} {item.version}")
    console.print("\n[bold]Facts[/]")
    console.print(grid)
    on = f"--problem {'digits' if cls.family == 'gaussian' else 'sudoku4'} --family {cls.family}"
    more = "--steps 16"
    if cls.sequential:
        on, more = "--denoiser my_model:denoiser", "--gen-length 64"
    console.print(
        f"\n[bold]Try[/]\nsamplers sample {on} --sampler {args.name} {more} --watch",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "show", _show, "all about one sampler")
    p.add_argument("name")
    p.add_argument("--json", **AS_JSON)
