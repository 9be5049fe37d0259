"""`samplers merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import OptionError
from .arguments import Commands, command
from .output import make_console


def _merge(args: argparse.Namespace) -> int:
    from ..bench.merge import merge_lines, merge_stores

    lines = {Path(name).suffix == ".jsonl" for name in args.parts}
    if len(lines) > 1:
        raise OptionError("merge takes folders of cells or .jsonl files, not both at once")
    merged = (merge_lines if lines == {True} else merge_stores)(args.parts, args.out)
    console = make_console()
    what = "line" if lines == {True} else "cell"
    console.print(
        f"{merged.count:,} {what}{'s' * (merged.count != 1)} of {merged.parts} part{'s' * (merged.parts != 1)} "
        f"in {merged.path}",
        highlight=False,
        soft_wrap=True,
    )
    for note in merged.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True)
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "merge", _merge, "make one run of the parts that shards or machines have written")
    p.add_argument(
        "parts",
        nargs="+",
        metavar="DIR|FILE.jsonl",
        help="folders of bench and eval, or folders that hold their shards; or files of generate, or the name that they share",
    )
    p.add_argument("--out", required=True, metavar="DIR|FILE.jsonl", help="folder or file to write")
