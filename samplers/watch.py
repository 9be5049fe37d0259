"""Watching a sampler at work: one frame per step, in place on a terminal, or one below another.

The problem renders rows as text (`render`), and a frame shows some of them side by side. What has changed since the last frame
is found by comparing the two texts character by character. Anything that renders to a fixed layout is highlighted in this way:
sudokus, digits, strings. Positions that are still noise are found in the same way; they are dim, as masks are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .driver import Sample, Stream
from .state import TokenState

__all__ = ["braille", "render_rows", "watch"]

MASK = "·"
FRESH, GONE = "bold black on bright_yellow", "bold white on red"


def braille(points: Tensor, *, width: int = 40, height: int = 20, reach: float | None = None) -> str:
    """A scatter of (n, 2) points in braille characters, 2 x 4 dots each, over [-reach, reach] squared."""
    dots = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row], Unicode's numbering
    reach = reach or float(points.abs().max()) * 1.05 + 1e-9
    cells = [[0] * width for _ in range(height)]
    at = (points.double() / reach + 1) / 2
    for x, y in at.tolist():
        if 0 <= x < 1 and 0 < y <= 1:
            column, row = int(x * width * 2), int((1 - y) * height * 4)
            cells[row // 4][column // 2] |= dots[column % 2][row % 4]
    return "\n".join("".join(chr(0x2800 + c) for c in row) for row in cells)


def render_rows(x: Tensor, render: Callable[[Tensor], str] | None, mask_id: int | None, k: int) -> list[str]:
    """The first k rows as texts: the problem's rendering, else token ids in columns of one width, or numbers."""
    x = x.detach().cpu()
    if render is None and x.is_floating_point() and x.dim() == 2 and x.shape[1] == 2:
        return [braille(x)]
    if render is not None:
        return [render(row) for row in x[:k]]
    if x.is_floating_point():
        return [
            f"mean {float(r.mean()):+.3f}, std {float(r.std()):.3f}, {float(r.min()):+.3f} to {float(r.max()):+.3f}"
            for r in x[:k]
        ]
    width = len(str(max(int(x.max()), 0)))
    texts = []
    for row in x[:k].tolist():
        words = [(MASK if v == mask_id or v < 0 else str(v)).rjust(width) for v in row]
        line = max(1, 76 // (width + 1))
        texts.append("\n".join(" ".join(words[i : i + line]) for i in range(0, len(words), line)))
    return texts


def _highlighted(text: str, seen: str, before: str | None) -> Text:
    """`text`, with what is new since `before` standing out: committed in yellow, masked again in red.

    seen, before: the text now and one step ago, with a mask in place of everything that is noise.
    """
    made = Text(text, no_wrap=False)
    if len(seen) != len(text):
        return made
    for i, c in enumerate(seen):
        if c == MASK:
            made.stylize("dim", i, i + 1)
    if before is None or len(before) != len(text):
        return made
    for i, (old, new) in enumerate(zip(before, seen)):
        if old != new:
            made.stylize(GONE if new == MASK else FRESH, i, i + 1)
    return made


def _frame(
    run: Stream, texts: list[str], seen: list[str], before: list[str] | None, title: str, width: int, tokens: bool
) -> Panel:
    state: Any = run.state
    rows = [_highlighted(t, seen[i], before[i] if before and tokens else None) for i, t in enumerate(texts)]
    widest = max((len(line) for t in texts for line in t.splitlines()), default=1)
    columns = max(1, min(len(rows), (width - 6) // (widest + 4)))
    grid = Table.grid(padding=(0, 4, 1, 0))
    for i in range(0, len(rows), columns):
        grid.add_row(*rows[i : i + columns])
    if tokens:
        total = state.canvas.filled
        done = total - state.noise
        what = f"{done:.0f}/{total} tokens" if state.canvas.mask_id is not None else f"noise {state.noise / total:.0%}"
    else:
        total, done = state.canvas.steps, run.nfe
        what = f"{done}/{total} evaluations"
    filled = round(28 * done / max(total, 1))
    foot = Text.assemble(
        ("━" * filled, "bright_yellow"),
        ("─" * (28 - filled), "dim"),
        f"  {what}",
        ("   step ", "dim"),
        str(run.steps),
        ("   nfe ", "dim"),
        str(run.nfe),
    )
    return Panel(
        Group(grid, foot),
        title=f"[bold]{title}[/]",
        title_align="left",
        border_style="dim",
        padding=(1, 2),
        expand=False,
    )


def watch(
    run: Stream,
    console: Console,
    *,
    title: str,
    render: Callable[[Tensor], str] | None = None,
    rows: int = 6,
    fps: float = 8.0,
    frames: bool = False,
) -> Sample:
    """Run to the end, and show one frame per step.

    Args:
        rows: how many rows of the batch are shown, at most.
        fps: frames per second, at most; 0 does not wait.
        frames: print all frames one below another. Without it, if there is no terminal, only the last one is printed.
    """
    start: Any = run.state
    tokens = isinstance(start, TokenState)
    if tokens or start.x.shape[1:] != (2,):
        drawn = render
    else:
        drawn = None  # points of the plane are drawn all together
    mask_id = start.canvas.mask_id if tokens else None
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not frames else None
    before: list[str] | None = None
    panel: Panel | None = None
    if live:
        live.start()
    try:
        state: Any
        for state in run:
            began = time.perf_counter()
            texts = seen = render_rows(state.x, drawn, mask_id, rows)
            if tokens and mask_id is None:  # what is more noise than not shows as a mask would
                hidden = -1 if drawn is None else start.canvas.vocab_size
                seen = render_rows(torch.where(state.levels > 0.5, hidden, state.x), drawn, mask_id, rows)
            panel = _frame(run, texts, seen, before, title, console.width, tokens)
            before = seen
            if live:
                live.update(panel, refresh=True)
                if fps > 0:
                    time.sleep(max(0.0, 1 / fps - (time.perf_counter() - began)))
            elif frames:
                console.print(panel)
    finally:
        if live:
            live.stop()
    if panel is not None and not live and not frames:
        console.print(panel)
    return run.result()
