"""`samplers show`."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from rich.table import Table
from rich.text import Text

from .. import registry
from ..errors import PluginError
from ..family import family_of
from ..registry import Entry
from .arguments import AS_JSON, KIND, Commands, command
from .catalogue import LENGTH, STEPS, facts_of
from .output import make_console, print_json

COLUMNS = {"name": "name", "type": "type", "default": "default", "bounds": "bounds", "help": "what"}
BIAS = {
    "exact": "none: one position per step draws from the model's own distribution",
    "asymptotic": "none in the limit of many steps: the model's own distribution",
    "biased": "biased by design: the choice of position looks at the drawn token",
}


NEEDED = {
    "masks": "must take who sees whom (masks): samplers.models.Transformer, many models of transformers, exact problems",
    "attends": "must give its attention (attends): samplers.models.Transformer, models of transformers in eager attention",
}


def _source(cls: Any) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return "?"


def _about(name: str, item: Entry) -> dict[str, Any]:
    """All that a class says of itself, as JSON shows it."""
    cls = item.load()
    options = [
        {"name": o.name, "type": o.type_name, "default": o.default, "bounds": o.bounds, "help": o.help}
        for o in cls.options()
    ]
    return {
        "name": name,
        "family": cls.family,
        "summary": cls.summary,
        "cite": cls.cite,
        "doc": inspect.cleandoc(cls.__doc__) if isinstance(cls.__doc__, str) else "",
        "options": options,
        **facts_of(cls),
        "sweep": {"option": cls.facts.sweep[0], "values": list(cls.facts.sweep[1])} if cls.facts.sweep else None,
        "default_temperature": float(cls.default_temperature) if family_of(cls.family).tokens else None,
        "source": _source(cls),
        "distribution": item.distribution,
        "version": item.version,
    }


def _fact_lines(about: dict[str, Any], cls: Any, trouble: str | None) -> dict[str, str]:
    """What is shown under 'Facts': label -> text."""
    lines = {}
    if about["default_temperature"] is not None:
        lines["temperature"] = f"{about['default_temperature']:g} unless you say otherwise"
    if about["bias"]:
        under = ", ".join(f"{k}={v!r}" for k, v in cls.conformance.one_at_a_time.items())
        lines["bias"] = BIAS[about["bias"]] + (f" (one position per step: {under})" if under else "")
    if about["order"] is not None:
        lines["order"] = str(about["order"])
    known = {s: v for s, v in about["expected_nfe"].items() if v is not None}
    if trouble:
        lines["expected NFE"] = f"broken: {trouble}"
    elif known:
        at = ", ".join(f"{v:.4g} at {s} steps" for s, v in known.items())
        lines["expected NFE"] = at + (f" (L = {LENGTH})" if family_of(about["family"]).tokens else "")
    elif about["sweep"]:
        cap = "" if cls.facts.sequential else "; `steps` is a cap"
        lines["NFE"] = f"depends on the model, set by {about['sweep']['option']}{cap}"
    elif family_of(about["family"]).tokens:
        lines["NFE"] = "depends on the model" + ("" if cls.facts.sequential else "; `steps` is a cap")
    if cls.facts.copies:
        lines["rows"] = "several copies of each row share a forward pass, and count in row_evals"
    if cls.facts.revises:
        lines["tokens"] = "may be changed or masked again after they were committed"
    if cls.facts.sequential:
        lines["model"] = "must look back only, have a KV cache, and also predict the next token (predicts_next)"
    if cls.facts.needs:
        lines["model"] = " and ".join(NEEDED[need] for need in cls.facts.needs)
    if cls.facts.moments > 1:
        lines["model"] = (
            f"must give {cls.facts.moments} moments of x_0: exact problems do; else heads, or with_moments()"
        )
    return lines | {"source": about["source"], "from": f"{about['distribution']} {about['version']}"}


def _show_other(args: argparse.Namespace) -> int:
    """What is known of a thing that is no sampler."""
    item = registry.entry(args.name, args.kind)
    found = item.load()
    about = {
        "name": args.name,
        "kind": registry.KINDS[args.kind].one,
        "summary": item.said("summary"),
        "doc": inspect.getdoc(found) or "",
        "source": item.where,
        "distribution": item.distribution,
        "version": item.version,
    }
    if args.json:
        return print_json(about)
    console = make_console()
    console.print(Text(f"{about['name']}  {about['kind']}, {item.origin}", style="bold"))
    for text in (about["summary"], about["doc"], about["source"]):
        if text:
            console.print(Text(text))
    return 0


def _show(args: argparse.Namespace) -> int:
    if args.kind != "samplers":
        return _show_other(args)
    item = registry.entry(args.name)
    cls = item.load()
    about = registry.guarded(_about, args.name, item)
    trouble = None
    try:
        about["expected_nfe"] = {str(s): item.expected_nfe(LENGTH, s) for s in STEPS}
    except PluginError as error:
        trouble, about["expected_nfe"] = str(error), dict.fromkeys(map(str, STEPS))
    lines = registry.guarded(_fact_lines, about, cls, trouble)
    cells = registry.guarded(lambda: [[str(o[key]) for key in COLUMNS] for o in about["options"]])
    if args.json:
        return print_json(about)
    console = make_console()
    console.print(Text.assemble((args.name, "bold"), "  ", (about["family"], "cyan"), "  ", about["summary"]))
    ours, brought = registry.stands_for(args.name)
    if brought:
        console.print(Text(f"another name of {ours} with {', '.join(f'{k}={v!r}' for k, v in brought.items())}"))
    console.print(Text(about["cite"], style="italic"))
    console.print()
    console.print(Text(about["doc"]))
    console.print("\n[bold]Options[/]")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in COLUMNS.values():
        table.add_column(header)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table if cells else "none")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, text in lines.items():
        grid.add_row(f"[dim]{label}[/]", Text(text))
    console.print("\n[bold]Facts[/]")
    console.print(grid)
    on = f"--problem {'digits' if cls.family == 'gaussian' else 'sudoku4'} --family {cls.family}"
    more = "--steps 16"
    if cls.facts.sequential or "attends" in cls.facts.needs:
        on, more = "--denoiser my_model:denoiser", "--gen-length 64"
    console.print("\n[bold]Try[/]")
    console.print(Text(f"samplers sample {on} --sampler {args.name} {more} --watch"), soft_wrap=True)
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "show", _show, "everything about one sampler, or another thing that has a name")
    p.add_argument("name", help="its name; 'dist:name' if several packages have the name")
    p.add_argument("--kind", **KIND)
    p.add_argument("--json", **AS_JSON)
