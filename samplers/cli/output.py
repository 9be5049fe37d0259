"""What commands print: errors as one line on stderr, tables without folding in a pipe, JSON without NaN."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.text import Text


def complain(message: str) -> None:
    """Print an error on stderr, as one line however long it is."""
    text = Text("samplers: error:", style="bold red").append(f" {message}", style="red not bold")
    with contextlib.suppress(OSError):  # a stderr that cannot be written: the exit code says it
        Console(stderr=True).print(text, soft_wrap=True)


def speaks_unicode() -> bool:
    """Whether the encoding of stdout has every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def make_console() -> Console:
    """A console on stdout; 160 columns or more if that is no terminal, so that tables are not folded in a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


def print_json(value: Any) -> int:
    """Print a value as JSON, with null for numbers that are not finite. Returns 0, the exit code."""

    def plain(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {k: plain(w) for k, w in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(w) for w in v]
        return v

    print(json.dumps(plain(value), indent=2, ensure_ascii=not speaks_unicode(), default=str, allow_nan=False))
    return 0
