"""What a sweep shows while it runs: a bar and the best so far on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .collect import Combined, Point, front, groups, points
from .report import best_rows, columns, in_order, number
from .sweep import Cell, Record, Store

__all__ = ["Display", "table"]


def table(group: list[Point], rows: list[Point], *, title: str = "", narrow: bool = False) -> Table:
    """A rich table of points; a dot on the Pareto front. `narrow` leaves out all metrics but the plotted one."""
    on = {id(p) for p in front(group, lambda p: p.nfe)}
    cols = [c for c in columns(group) if not (narrow and c[1] == "metric" and c[0] != group[0].primary)]
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), header_style="dim")
    made.add_column("")
    for header, kind, _ in cols:
        made.add_column(header, justify="left" if kind == "text" else "right", no_wrap=True)
    for p in rows:
        cells: list[Any] = ["[cyan]•[/]" if id(p) in on else ""]
        for header, _, value in cols:
            v = value(p)
            if isinstance(v, Combined):
                text = Text(number(v.value), style="bold" if header == p.primary else "")
                if header == p.primary and math.isfinite(v.low):
                    text.append(f" [{number(v.low)}, {number(v.high)}]", style="not bold dim")
                cells.append(text)
            else:
                cells.append(v if isinstance(v, str) else number(v))
        made.add_row(*cells)
    truth = group[0].quality.truth
    if truth is not None:
        cells = ["", "exact samples", *("" for _ in cols[1:])]
        cells[1 + next(i for i, c in enumerate(cols) if c[0] == group[0].primary)] = number(truth)
        made.add_row(*cells, style="italic dim")
    return made


class Display:
    """Pass its methods to `run(started=..., running=..., finished=...)`; a context manager.

    Args:
        quiet: show nothing but notes and failures.
    """

    def __init__(self, console: Console, *, quiet: bool = False):
        self.console, self.quiet = console, quiet
        self.live: Live | None = None
        self.records: list[Record] = []
        self.count = self.total = 0
        self.cell: Cell | None = None
        self.drawn = 0.0
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, cells: list[Cell], store: Store) -> None:
        for note in store.notes:
            self.console.print(f"[yellow]note:[/] {note}")
        done = [store.records[c.key] for c in cells if store.done(c)]
        self.records, self.count, self.total = done, len(done), len(cells)
        if done:
            self.console.print(f"{len(done)} of {len(cells)} cells are in {store.path} already")
        if self.console.is_terminal and not self.quiet:
            # The bar's speed is that of this run: cells of an earlier one took it no time.
            self.task = self.bar.add_task("cells", total=len(cells) - len(done))
            self.live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def running(self, cell: Cell) -> None:
        self.cell = cell

    def finished(self, record: Record) -> None:
        self.count += 1
        self.records.append(record)
        if self.live:
            self.bar.advance(self.task)
        what, knob = f"{record['family']}/{record['sampler']}", f"{record['knob']}={record['value']}"
        line = f"{record['problem']} {what} {knob} seed {record['seed']}"
        if record["status"] != "ok":
            self.console.print(f"[red]{record['status']}[/] {line}: {record['error']}", highlight=False, soft_wrap=True)
        elif not self.live and not self.quiet:
            primary = record["score"]["primary"]
            e = record["score"]["estimates"][primary]
            spent = sum(record["seconds"].values())
            width = len(str(self.total))
            self.console.print(
                f"[{self.count:>{width}}/{self.total}] {line}: {primary} {number(e['value'])} "
                f"({number(e['low'])} to {number(e['high'])}), NFE {number(record['nfe']['per_row'])}, {spent:.2f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def __rich__(self) -> Group:
        parts: list[Any] = [self.bar]
        if self.cell:
            parts.append(Text(f"now {self.cell}", style="dim"))
        made = points(self.records)
        for (problem, family), group in groups(made).items():
            best = best_rows(group)
            sampler_best = list({p.sampler: p for p in reversed(in_order(group)) if p in best}.values())[::-1]
            rows = sampler_best[: max(3, (self.console.height - 6) // len(groups(made)) - 4)]
            parts.append(table(group, rows, title=f"{problem}, {family}: best so far", narrow=True))
        self.drawn = time.monotonic()
        return Group(*parts)
