"""Pareto plots: quality against what it costs. Needs matplotlib (`pip install sampler-zoo[bench]`).

One drawing serves two outputs: PNG files, and SVG for the report, in which the colours of ink and paper become CSS
variables, so that a plot follows the page from light to dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .collect import Point, front, sections
from .store import write_whole

__all__ = ["COSTS", "Look", "available", "look", "styles", "svg", "write_pngs"]

COSTS: dict[str, tuple[Callable[[Point], float], str]] = {
    "nfe": (lambda p: p.nfe, "forward passes per row (NFE, mean)"),
    "seconds": (lambda p: p.seconds * 1e3, "milliseconds per sample"),
}
AXIS = {
    "tv": "total variation to the exact distribution",
    "mmd": "squared kernel distance to the exact distribution",
    "energy": "energy distance to the exact distribution",
    "bigram_tv": "total variation of neighbouring pairs",
}

# Okabe and Ito's palette without its yellow, which is too pale on white paper, and with a dark grey for their black.
# Colour-blind readers tell all seven apart (tests/bench/test_bench.py measures it). On dark paper the report takes DARK.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#4A4A4A")
DARK = ("#3F8FE0", "#F5C242", "#22B88C", "#EE7A38", "#D184BE", "#8FD8FF", "#EDEAE2")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p")
NAMED = 12  # samplers of a panel that are in colour and named, at most; the others are grey
# Stand-ins that no palette holds: svg() turns them into var(--...).
INK, SOFT, FAINT = "#1a1b1c", "#6b6c6d", "#d3d4d5"


class Look(NamedTuple):
    """How a sampler is drawn: two of one colour differ in line style and in marker."""

    colour: str
    line: Any
    marker: str


def look(i: int) -> Look:
    """The look of sampler number i of a plot; the first 63 are all different."""
    return Look(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)], MARKERS[i % len(MARKERS)])


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


Style = dict[str, Look]


def styles(made: Sequence[Point]) -> Style:
    """A look for each sampler, the same in every plot of these points.

    Looks start again for each family. Samplers that some plot names come first, so that they share as few colours as
    possible; those that are grey everywhere come last.
    """
    style = {}
    for family in sorted({p.family for p in made}):
        own = [s.points for s in sections(made) if s.family == family]
        named = {n for group in own for price, _ in COSTS.values() for n in _named(*_drawn(group, price), price)}
        for i, name in enumerate(
            sorted({p.sampler for group in own for p in group}, key=lambda n: (n not in named, n))
        ):
            style[name] = look(i)
    return style


def _drawn(made: Sequence[Point], price: Callable[[Point], float]) -> tuple[list[Point], list[Point]]:
    """The points that a panel shows, and those of its front."""
    shown = [p for p in made if math.isfinite(p.quality.value)]
    return shown, front(shown, price)


def _place(p: Point) -> tuple[bool, Any]:
    return isinstance(p.value, str), p.value if p.value is not None else 0


def _spread(wanted: list[float], gap: float, top: float) -> list[float]:
    """Places for labels in [.., top], as near to `wanted` as `gap` between them allows. In the order given."""
    order = sorted(range(len(wanted)), key=lambda i: -wanted[i])
    # Labels that touch form a block, whose middle sits on the mean of what its members want.
    blocks: list[list[Any]] = []  # [members, centre]
    for i in order:
        blocks.append([[i], wanted[i]])
        while len(blocks) > 1:
            (m1, c1), (m2, c2) = blocks[-2:]
            if c1 - c2 >= gap * (len(m1) + len(m2)) / 2:
                break
            merged = m1 + m2
            blocks[-2:] = [[merged, (c1 * len(m1) + c2 * len(m2)) / len(merged)]]
    places = [0.0] * len(wanted)
    ceiling = top
    for members, centre in blocks:
        start = min(centre + gap * (len(members) - 1) / 2, ceiling)
        for k, i in enumerate(members):
            places[i] = start - k * gap
        ceiling = places[members[-1]] - gap
    floor = 0.0  # the lowest label stays on the paper, if need be the highest above `top`
    for i in reversed(order):
        places[i] = max(places[i], floor)
        floor = places[i] + gap
    return places


def _named(made: Sequence[Point], best: Sequence[Point], price: Callable[[Point], float]) -> list[str]:
    """The samplers that stay near the front all along, those on it before others."""
    names = sorted({p.sampler for p in made})
    if len(names) <= NAMED:
        return names

    def off(name: str) -> tuple[bool, float]:
        own = [p for p in made if p.sampler == name]
        ideal = [max((b for b in best if price(b) <= price(p)), key=price).quality.value for p in own]
        gaps = [abs(p.quality.value - v) / max(abs(p.quality.value), abs(v), 1e-12) for p, v in zip(own, ideal)]
        return all(p not in best for p in own), sum(gaps) / len(gaps)

    return sorted(sorted(names, key=off)[:NAMED])


def _panel(axes: Any, made: Sequence[Point], cost: str, style: Style, title: str) -> None:
    price, label = COSTS[cost]
    made, best = _drawn(made, price)
    if not made:
        axes.set_axis_off()
        return
    truth = next((p.quality.truth for p in made if p.quality.truth is not None), None)
    values = [p.quality.value for p in made]
    lowest = min(values) if not truth else min(min(values), truth)
    log = lowest > 0 and max(values) / lowest > 6
    named = _named(made, best, price)

    _draw_samplers(axes, made, named, price, style, lowest / 4 if log else -math.inf)
    axes.set_xscale("log")
    axes.set_yscale("log" if log else "linear")
    _draw_front(axes, best, price, style)
    bottom, top = axes.get_ylim()
    if not log:
        bottom = 0.0 if lowest >= 0 else bottom
    if truth is not None:
        if log:
            bottom = min(bottom, truth / 1.5)
        axes.axhline(truth, color=INK, lw=0.9, ls=(0, (5, 4)), zorder=1.5)
        at = {"xycoords": ("axes fraction", "data"), "xytext": (0, -4), "textcoords": "offset points"}
        axes.annotate("exact samples", (0.012, truth), va="top", fontsize=8.5, color=INK, style="italic", **at)
    axes.set_ylim(bottom, top)
    _name_samplers(axes, made, named, price, style)

    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=16)
    metric, better = made[0].primary, made[0].quality.better
    at = {"xycoords": "axes fraction", "textcoords": "offset points"}
    described = f"{AXIS.get(metric, metric)} ({metric}), {better} is better"
    axes.annotate(described, (0, 1), xytext=(0, 5), fontsize=8.5, color=SOFT, **at)
    if grey := len({p.sampler for p in made}) - len(named):
        axes.annotate(f"grey: {grey} others", (1, 0), xytext=(0, -32), ha="right", fontsize=8.5, color=SOFT, **at)
    axes.set_xlabel(label, fontsize=9, color=SOFT, loc="left")
    _ticks(axes, made, cost, log)


def _draw_samplers(
    axes: Any, made: Sequence[Point], named: Sequence[str], price: Callable[[Point], float], style: Style, least: float
) -> None:
    """A line per sampler with its intervals, none of which goes below `least`; those that are not named are grey."""
    for name in sorted({p.sampler for p in made}, key=lambda name: (name in named, name)):
        own = sorted((p for p in made if p.sampler == name), key=_place)  # along the knob: a line may well turn back
        xs, ys = [price(p) for p in own], [p.quality.value for p in own]
        if name not in named:
            axes.plot(xs, ys, color=FAINT, lw=0.9, marker=".", ms=3, mec="none", zorder=1.7)
            continue
        colour, line, marker = style[name]
        bars = [(x, max(p.quality.low, least), p.quality.high) for x, p in zip(xs, own) if math.isfinite(p.quality.low)]
        if bars:
            axes.vlines(*zip(*bars), color=colour, lw=1.1, alpha=0.55, zorder=2)
        axes.plot(xs, ys, color=colour, lw=1.2, ls=line, alpha=0.85, marker=marker, ms=4.5, mec="none", zorder=3)


def _draw_front(axes: Any, best: Sequence[Point], price: Callable[[Point], float], style: Style) -> None:
    """The Pareto front as a grey stair, its points in rings."""
    xs, ys = [price(p) for p in best], [p.quality.value for p in best]
    left, right = axes.get_xlim()
    grey = {"color": SOFT, "lw": 5, "alpha": 0.18, "solid_joinstyle": "round"}
    axes.step([*xs, right], [*ys, ys[-1]], where="post", zorder=1, **grey)
    for x, y, p in zip(xs, ys, best):
        ring = {"mfc": style[p.sampler].colour, "mec": INK, "mew": 1.1}
        axes.plot(x, y, marker=style[p.sampler].marker, ms=7.5, zorder=5, ls="none", **ring)
    axes.set_xlim(left, right)


def _name_samplers(
    axes: Any, made: Sequence[Point], named: Sequence[str], price: Callable[[Point], float], style: Style
) -> None:
    """Names beside the panel, each with its line and marker near the line's end, moved apart if they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = []
    for name in named:
        last = max((p for p in made if p.sampler == name), key=price)
        ends.append(tuple(to_axes.transform((price(last), last.quality.value))))
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
    for name, end, place in zip(named, ends, _spread([y for _, y in ends], 12 / height, 1.0)):
        colour, line, marker = style[name]
        beside = {"transform": axes.transAxes, "clip_on": False, "color": colour}
        axes.plot([end[0], 1.035], [end[1], place], lw=0.6, alpha=0.4, **beside)
        axes.plot([1.035, 1.105], [place, place], lw=1.2, ls=line, **beside)
        axes.plot(1.07, place, marker=marker, ms=4.5, mec="none", **beside)
        at = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
        axes.annotate(name, xy=(1.12, place), xytext=(1.12, place), va="center", fontsize=9, color=colour, **at)


def _ticks(axes: Any, made: Sequence[Point], cost: str, log: bool) -> None:
    """Few ticks, as plain numbers; on the axis of NFE the budgets that were asked for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    def plain(v: float, _: Any = None) -> str:
        return f"{v:g}"

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if cost == "nfe" and right / left < 600:
        low, high = math.ceil(math.log2(left) - 1e-9), math.floor(math.log2(right) + 1e-9)
        asked = sorted(
            {float(p.value) for p in made if p.knob == "steps" and p.value is not None and left <= p.value <= right}
        )
        axes.set_xticks(asked if 2 < len(asked) < 8 else [2.0**k for k in range(low, high + 1)])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right / left < 60 else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    if log:
        subs = (1, 2, 5) if top / bottom < 40 else (1, 3) if top / bottom < 4000 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.tick_params(length=3, width=0.7, labelsize=8.5, color=SOFT, labelcolor=SOFT)
    axes.grid(axis="y", color=FAINT, lw=0.5, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=SOFT, lw=0.7)
    axes.tick_params(axis="y", length=0)


# Room around a panel, in inches: names go to the right.
WIDTH, HEIGHT, LEFT, RIGHT, BELOW, ABOVE = 6.2, 4.1, 0.5, 1.65, 0.55, 0.55


def figure(panels: Sequence[tuple[str, Sequence[Point]]], cost: str, style: Style) -> Any:
    """A matplotlib figure with one panel per section, two beside each other, high enough for the names of all samplers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    names = min(NAMED, max(len({p.sampler for p in made}) for _, made in panels))
    right = max(RIGHT, 0.55 + 0.075 * max(len(p.sampler) for _, made in panels for p in made))
    height = max(HEIGHT, BELOW + ABOVE + names * 12.5 / 72)
    w, h = WIDTH * columns, height * rows
    figure = Figure(figsize=(w, h))
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    for i, (title, made) in enumerate(panels):
        r, c = divmod(i, columns)
        box = (
            (c * WIDTH + LEFT) / w,
            1 - ((r + 1) * height - BELOW) / h,
            (WIDTH - LEFT - right) / w,
            (height - BELOW - ABOVE) / h,
        )
        axes = figure.add_axes(box)
        axes.patch.set_alpha(0)
        _panel(axes, made, cost, style, title)
    return figure


def write_pngs(made: Sequence[Point], folder: Path) -> list[Path]:
    """Write pareto_nfe.png and pareto_seconds.png, one panel per section; returns their paths."""
    style = styles(made)
    panels = [(section.title, section.points) for section in sections(made)]
    paths = []
    for cost in COSTS:
        path = folder / f"pareto_{cost}.png"
        drawn = io.BytesIO()
        figure(panels, cost, style).savefig(drawn, dpi=160, facecolor="white")
        write_whole(path, drawn.getvalue())
        paths.append(path)
    return paths


def svg(group: Sequence[Point], cost: str, style: Style, prefix: str, title: str) -> str:
    """One panel as an <svg> element to put into a page that has --ink, --soft, --faint, --c0 ... and --sans."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure([(title, group)], cost, style).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet is for "*" and would rule the whole page; the report has the same for plots alone.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{prefix}-", text)  # ids of several plots in one page must differ
    for colour, name in ((INK, "ink"), (SOFT, "soft"), (FAINT, "faint")):
        text = text.replace(colour, f"var(--{name})")
    for i, colour in enumerate(COLOURS):  # and the series: brighter on dark paper
        text = text.replace(colour.lower(), f"var(--c{i})").replace(colour, f"var(--c{i})")
    text = re.sub(r"font: ((?:italic )?[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", text)
    # The size is the page's business.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}: quality against {cost}"', 1)
