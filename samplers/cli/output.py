"""What commands print: errors as one line on stderr, tables without folding in a pipe, JSON without NaN."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.text import Text


def complain(message: str) -> None:
    text = Text("samplers: error:", style="bold red").append(f" {message}", style="red not bold")
    Console(stderr=True).print(text, soft_wrap=True)


def make_console() -> Console:
    console = Console()
    # A pipe has no width: tables must not be folded to 80 columns there.
    return console if console.is_terminal else Console(width=max(console.width, 160))


def print_json(value: Any) -> int:
    def plain(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {k: plain(w) for k, w in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(w) for w in v]
        return v

    print(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))
    return 0
