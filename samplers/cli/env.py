"""`samplers env`."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from .. import registry
from ..registry import STATUSES
from .arguments import AS_JSON, Commands, command
from .output import make_console, print_json


def _env(args: argparse.Namespace) -> int:
    from .. import ops
    from ..bench.machine import machine, packages

    reports = registry.plugins()
    about = {
        "sampler-zoo": registry.version(),
        **machine(),
        "ops": ops.status(),
        "packages": packages(),
        "samplers": len(registry.entries()),
        "plugins": {s: sum(r.status == s for r in reports) for s in STATUSES},
    }
    if args.json:
        return print_json(about)
    status = about["ops"]
    grid = Table.grid(padding=(0, 3, 0, 0))
    plugs = ", ".join(f"{n} {s}" for s, n in about["plugins"].items() if n) or "none"
    lines = {
        "sampler-zoo": f"{about['sampler-zoo']}, {about['samplers']} samplers, plug-ins: {plugs}",
        "python": f"{about['python']} on {about['system']}",
        "torch": about["torch"],
        "ops": f"native kernels, {status['isa']}" if status["native"] else f"torch twins: {status['reason']}",
        "processor": f"{about['cpu']}, torch uses {about['threads']} threads",
        "gpu": about["gpu"] or "none that torch can use",
        "packages": ", ".join(f"{k} {v}" for k, v in about["packages"].items() if v) or "none",
        "not installed": ", ".join(k for k, v in about["packages"].items() if not v) or "nothing",
    }
    if status["native"]:
        lines["built with"] = ", ".join(
            f"{k} {v}" for k, v in status.items() if k in ("compiler", "cxx", "torch_built_with", "cuda")
        )
    for key, value in lines.items():
        grid.add_row(f"[dim]{key}[/]", Text(str(value)))
    make_console().print(grid)
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "env", _env, "versions, the machine, and which kernels run")
    p.add_argument("--json", **AS_JSON)
