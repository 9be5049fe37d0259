"""What a sweep shows while it runs: a bar and the best so far on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .cells import Cell
from .collect import Difference, Point, front, points, sections
from .estimates import Combined, number
from .records import Record
from .store import Store
from .tables import best_rows, columns, in_order
from .tune import Found
from .tune_report import rows_of

__all__ = ["Display", "SearchDisplay", "found_table", "table"]


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
        metric: what is shown of a cell's metrics; None: its primary one.
    """

    def __init__(self, console: Console, *, quiet: bool = False, metric: str | None = None):
        self.console, self.quiet, self.metric = console, quiet, metric
        self.live: Live | None = None
        self.records: list[Record] = []
        self.count = self.total = self.said = 0
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

    def say_notes(self, store: Store) -> None:
        """Print what the store has to say and has not said yet."""
        for note in store.notes[self.said :]:
            self.console.print(Text("note: ", style="yellow").append(note, style="default"), soft_wrap=True)
        self.said = len(store.notes)

    def started(self, cells: list[Cell], store: Store) -> None:
        self.say_notes(store)
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
            estimates = record["score"]["estimates"]
            shown = self.metric if self.metric in estimates else record["score"]["primary"]
            e = estimates.get(shown)
            score = f"{shown} {number(e['value'])} ({number(e['low'])} to {number(e['high'])}), " if e else ""
            spent = sum(record["seconds"].values())
            width = len(str(self.total))
            self.console.print(
                f"[{self.count:>{width}}/{self.total}] {line}: {score}NFE {number(record['nfe']['per_row'])}, "
                f"{spent:.2f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def __rich__(self) -> Group:
        parts: list[Any] = [self.bar]
        if self.cell:
            parts.append(Text(f"now {self.cell}", style="dim"))
        shown = sections(points(self.records, self.metric))
        for section in shown:
            group = section.points
            best = best_rows(group)
            sampler_best = list({p.sampler: p for p in reversed(in_order(group)) if p in best}.values())[::-1]
            rows = sampler_best[: max(3, (self.console.height - 6) // len(shown) - 4)]
            parts.append(table(group, rows, title=f"{section.title}: best so far", narrow=True))
        self.drawn = time.monotonic()
        return Group(*parts)


class SearchDisplay(Display):
    """The same for `tune.search(opened=..., stage=..., running=..., finished=...)`: one bar per stage, or one line per
    stage if there is no terminal."""

    def opened(self, store: Store) -> None:
        self.say_notes(store)

    def stage(self, name: str, cells: list[Cell], store: Store) -> None:
        self.say_notes(store)
        there = sum(map(store.done, cells))
        self.count, self.total = self.count + there, self.total + len(cells)
        settings = len({(str(c.options), c.settings["steps"]) for c in cells})
        if not self.quiet:
            done = f", {there} there already" if there else ""
            self.console.print(f"{name}: {settings} settings, {len(cells)} runs{done}", highlight=False, markup=False)
        if self.console.is_terminal and not self.quiet:
            self.task = self.bar.add_task(name, total=len(cells) - there)
            if not self.live:
                self.live = Live(self, console=self.console, refresh_per_second=4, transient=True)
                self.live.start()

    def finished(self, record: Record) -> None:
        self.count += 1
        if self.live:
            self.bar.advance(self.task)

    def __rich__(self) -> Group:
        return Group(self.bar, *([Text(f"now {self.cell}", style="dim")] if self.cell else []))


def found_table(found: Sequence[Found], x: str, y: str) -> Table:
    """A rich table of what a search found: for each number of steps the found pair and the references, on fresh seeds."""
    made = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    made.add_column("steps", justify="right", no_wrap=True, min_width=5)
    for header in ("pair", f"{x}, {y}"):
        made.add_column(header, no_wrap=True)
    for header in (found[0].point.primary, "NFE", "found less this"):
        made.add_column(header, justify="right", no_wrap=True)
    for one in found:
        for name, pair, point, d in rows_of(one):
            q, style = point.quality, "bold" if d is None else ""
            cells = [
                Text(str(one.steps) if d is None else "", style=style),
                Text(name, style=style),
                Text(f"{pair[0]:g}, {pair[1]:g}", style=style),
                _with_interval(q, style),
                Text(number(point.nfe), style=style),
            ]
            colour = "" if d is None else "green" if d.high < 0 else "red" if d.low > 0 else ""
            made.add_row(*cells, "" if d is None else _with_interval(d, colour))
    truth = found[0].point.quality.truth
    if truth is not None:
        made.add_row("", "exact", "", number(truth), style="italic dim")
    return made


def _with_interval(e: Combined | Difference, style: str) -> Text:
    text = Text(number(e.value), style=style)
    return text.append(f" [{number(e.low)}, {number(e.high)}]", style="not bold dim") if math.isfinite(e.low) else text
