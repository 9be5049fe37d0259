"""What a search writes: a table, a heat map, and the found pair ready to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import registry
from ..family import family_of
from . import plot
from .collect import Difference, Point
from .estimates import number
from .heatmap import write_heatmap
from .store import write_whole, writing
from .tune import Found, Pair, Search
from .user_model import is_user_model

__all__ = ["paste", "rows_of", "write"]


def rows_of(one: Found) -> list[tuple[str, Pair, Point, Difference | None]]:
    """The rows of a table: the found pair, and each reference with what the found pair is less than it."""
    others = [(name, one.named[name], one.references[name], one.differences[name]) for name in one.references]
    return [("found", one.pair, one.point, None), *others]


def paste(what: Search, one: Found) -> tuple[str, str]:
    """The found pair ready to use: a line of Python and a command."""
    request, named = what.request, ((what.x.option, one.pair[0]), (what.y.option, one.pair[1]))
    options = dict(o.partition("=")[::2] for o in request.options)
    sampler = registry.load(what.sampler)
    known = {o.name: o for o in sampler.options()}
    given = {k.rpartition(".")[2]: known[k.rpartition(".")[2]].parse(v) for k, v in options.items()} | dict(named)
    driver: dict[str, Any] = {"steps": one.steps}
    if family_of(sampler.family).tokens:
        driver |= {"block_length": request.block_length, "temperature": request.temperature}
        if request.temperature is None and not is_user_model(request.problems[0]):
            driver["temperature"] = 1.0
    driver = {k: v for k, v in driver.items() if v is not None}
    arguments = ", ".join(f"{k}={v!r}" for k, v in (driver | given).items())
    python = f"samplers.sample(denoiser, {what.sampler!r}, {arguments})"
    where = f"--{'denoiser' if is_user_model(request.problems[0]) else 'problem'} {request.problems[0]}"
    flags = [f"--{k.replace('_', '-')} {v}" for k, v in driver.items()] + [f"-o {k}={v}" for k, v in given.items()]
    return python, f"samplers sample {where} --sampler {what.sampler} {' '.join(flags)}"


def write(what: Search, found: Sequence[Found], folder: str | Path) -> tuple[list[Path], list[str]]:
    """table.md and heatmap.png beside the cells: (their paths, notes for the user)."""
    folder, notes = Path(folder), []
    x, y, metric = what.x.option, what.y.option, found[0].point.primary
    lines = [
        f"# {what.sampler} on {what.request.problems[0]}: {x} and {y} by {metric}",
        "",
        f"| steps | pair | {x} | {y} | {metric} | 95 % | NFE per row | found less this | 95 % |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        for name, pair, point, d in rows_of(one):
            q = point.quality
            less = ("", "") if d is None else (number(d.value), f"{number(d.low)} to {number(d.high)}")
            cells = [str(one.steps), name, f"{pair[0]:g}", f"{pair[1]:g}", number(q.value)]
            cells += [f"{number(q.low)} to {number(q.high)}", number(point.nfe), *less]
            lines.append("| " + " | ".join(cells) + " |")
    seeds, rows = what.request.seeds, found[0].point.records[0]["rows"]
    tried = max(len(one.tried) for one in found)
    truth = found[0].point.quality.truth
    lines += [
        "",
        f"{tried} pairs were searched on {seeds} seeds of {rows:,} rows; the numbers are of {seeds} fresh seeds. 'found less "
        "this' is the difference of losses seed by seed, below 0 if the found pair is better."
        + (f" Exact samples score {number(truth)}." if truth is not None else ""),
        "",
        *(f"    {line}" for one in found for line in (f"# {one.steps} steps", *paste(what, one))),
    ]
    paths = [folder / "table.md"]
    with writing(folder):
        write_whole(paths[0], "\n".join(lines) + "\n")
        if plot.available():
            paths.append(folder / "heatmap.png")
            title = f"{metric} of {what.sampler} on {what.request.problems[0]}"
            if truth:
                title += f": distance from exact samples' {number(truth)}"
            write_heatmap(found, x, y, title, paths[1])
        else:
            notes.append("no heat map: matplotlib is not installed (pip install sampler-zoo[bench])")
    return paths, notes
