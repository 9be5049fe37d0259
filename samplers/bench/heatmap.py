"""The picture of a search: a sampler's metric over two of its options. Needs matplotlib."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .collect import difference
from .plot import INK, SOFT
from .store import write_whole

if TYPE_CHECKING:
    from .tune import Found

__all__ = ["write_heatmap"]


def write_heatmap(found: Sequence[Found], x: str, y: str, title: str, path: Path) -> None:
    """Draw a search's metric, or its distance from what exact samples score, over two options; one panel per number of steps.

    Cells are the first grid, small squares what was tried beside it; a ring marks the found pair, and a dot the pairs of the
    grid that the search's own seeds do not tell apart from it.

    found: what tune.search found, one per number of steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = 3.6
    figure = Figure(figsize=(wide * len(found), 3.75), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10.5, color=INK, x=0.01, ha="left")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found):
        finite = {pair: p.quality for pair, p in one.tried.items() if math.isfinite(p.quality.value)}
        values = {pair: q.value if q.truth is None else abs(q.value - q.truth) for pair, q in finite.items()}
        better = "lower" if one.point.quality.truth is not None else one.point.quality.better
        grid_x, grid_y = one.grid
        colours: dict[str, Any] = {"cmap": "viridis" if better == "higher" else "viridis_r"}
        colours |= {"vmin": min(values.values()), "vmax": max(values.values())}
        cells = [[values.get((a, b), math.nan) for a in grid_x] for b in grid_y]
        mesh = axes.pcolormesh(_edges(grid_x), _edges(grid_y), cells, **colours)
        others = [pair for pair in values if not (pair[0] in grid_x and pair[1] in grid_y)]
        if others:
            at = list(zip(*others))
            axes.scatter(*at, c=[values[p] for p in others], marker="s", s=17, ec="white", lw=0.6, zorder=3, **colours)
        best = one.tried[one.pair]
        level = [
            p
            for p in values
            if p[0] in grid_x and p[1] in grid_y and p != one.pair and difference(best, one.tried[p]).high >= 0
        ]
        if level:
            axes.plot(*zip(*level), ls="none", marker=".", ms=3, color=INK, alpha=0.75, zorder=4)
        axes.plot(*one.pair, marker="o", ms=11, mfc="none", mec="#D81B60", mew=2.2, zorder=6)
        for (name, pair), marker in zip(one.named.items(), ("D", "^", "v", "P")):
            axes.plot(
                *pair,
                ls="none",
                marker=marker,
                ms=6.5,
                mfc="white",
                mec=INK,
                mew=1,
                zorder=5,
                label=f"{name} ({pair[0]:g}, {pair[1]:g})",
            )
        axes.plot([], [], ls="none", marker="o", ms=8, mfc="none", mec="#D81B60", mew=2, label="found")
        if level:
            axes.plot([], [], ls="none", marker=".", ms=4, color=INK, label="not told apart")
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28)
        bar.ax.tick_params(length=2, labelsize=7.5, color=SOFT, labelcolor=SOFT)
        bar.outline.set_visible(False)
        a, b = one.pair
        axes.set_title(f"{one.steps} steps: {x} {a:g}, {y} {b:g}", loc="left", fontsize=9, color=INK)
        axes.set_xlabel(x, fontsize=9, color=SOFT)
        axes.set_ylabel(y, fontsize=9, color=SOFT, rotation=0, labelpad=8)
        axes.tick_params(length=2.5, width=0.7, labelsize=8, color=SOFT, labelcolor=SOFT)
        for side in axes.spines.values():
            side.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=len(labels), fontsize=8, frameon=False, labelcolor=INK
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, facecolor="white")
    write_whole(path, drawn.getvalue())


def _edges(values: Sequence[float]) -> list[float]:
    """The borders between cells around the values."""
    if len(values) < 2:
        return [values[0] - 0.5, values[0] + 0.5]
    inner = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    return [2 * values[0] - inner[0], *inner, 2 * values[-1] - inner[-1]]
