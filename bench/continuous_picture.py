"""docs/continuous.png: error against evaluations, all continuous samplers, beside the best of diffusers and k-diffusion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from samplers.bench.plot import FAINT, INK, SOFT, _spread, look

NAMED = 10  # samplers of a panel that are in colour
MAIN = ("dpmpp_2m", "dpmpp_3m", "unipc", "deis", "ddim", "heun")  # named first
MAIN_NOISE = ("dpmpp_2m_sde", "euler_ancestral", "ddpm", "dpmpp_sde")
WIDTH, HEIGHT, LEFT, RIGHT, BELOW, ABOVE = 6.6, 4.4, 0.6, 2.2, 0.55, 0.6
FRONTS = (("diffusers", (0, (5, 2))), ("k_diffusion", (0, (1, 1.5))))


def draw(found: dict[str, Any], path: Path) -> None:
    from continuous import SCHEDULES

    panels = [("error", schedule) for schedule in SCHEDULES] + [
        ("noise", schedule) for schedule in ("ddpm_linear", "flow")
    ]
    named = {part: _named(found[part], MAIN if part == "error" else MAIN_NOISE) for part in ("error", "noise")}
    styles = {part: {name: look(i) for i, name in enumerate(names)} for part, names in named.items()}
    rows = -(-len(panels) // 2)
    w, h = 2 * WIDTH, rows * HEIGHT
    figure = Figure(figsize=(w, h))
    FigureCanvasAgg(figure)
    for i, (part, schedule) in enumerate(panels):
        r, c = divmod(i, 2)
        box = (
            (c * WIDTH + LEFT) / w,
            1 - ((r + 1) * HEIGHT - BELOW) / h,
            (WIDTH - LEFT - RIGHT) / w,
            (HEIGHT - BELOW - ABOVE) / h,
        )
        _panel(figure.add_axes(box), found[part], schedule, styles[part], found["slopes"], part)
    figure.savefig(path, dpi=100, facecolor="white")


def _named(part: dict[str, Any], main: tuple[str, ...]) -> list[str]:
    """The samplers to name: those in `main`, then those that are best somewhere, most often first."""
    from continuous import front

    wins: dict[str, int] = {}
    for schedule in part["ours"]:
        for i, n in enumerate(part["steps"]):
            if n >= 3:
                winner = front(part, schedule, i, "ours")[1]
                wins[winner] = wins.get(winner, 0) + 1
    there = [name for name in main if any(name in made for made in part["ours"].values())]
    return (there + sorted(wins.keys() - set(there) - {"", "any"}, key=lambda name: -wins[name]))[:NAMED]


def _panel(
    axes: Any, part: dict[str, Any], schedule: str, style: dict[str, Any], slopes: dict[str, Any], kind: str
) -> None:
    from continuous import front

    made, steps = part["ours"][schedule], part["steps"]
    best = [front(part, schedule, i, who)[0] for i in range(len(steps)) for who in ("ours", "diffusers", "k_diffusion")]
    lowest = min(v for v in best if not math.isnan(v) and v > 0)
    ends: list[tuple[str, float, float, Any]] = []
    for name, entry in sorted(made.items(), key=lambda item: item[0] in style):
        dots = sorted((n, v) for n, v in zip(entry["nfe"], entry["value"]) if v)
        if not dots:
            continue
        xs, ys = zip(*dots)
        if name not in style:
            axes.plot(xs, ys, color=FAINT, lw=0.9, zorder=1.5)
            continue
        colour, line, marker = style[name]
        axes.plot(xs, ys, color=colour, lw=1.3, ls=line, marker=marker, ms=4, mec="none", zorder=3)
        ends.append((name, xs[-1], ys[-1], style[name]))
    for who, line in FRONTS:
        dots = [(n, v) for i, n in enumerate(steps) if not math.isnan(v := front(part, schedule, i, who)[0])]
        if dots:
            xs, ys = zip(*dots)
            axes.plot(xs, ys, color=INK, lw=1.7, ls=line, zorder=4)
            look_of = (INK, line, "")
            ends.append((f"best of {who.replace('_', '-')}", xs[-1], ys[-1], look_of))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.95, 56)
    axes.set_ylim(lowest / 1.6, 2.0 if kind == "error" else 1.2)
    if kind == "noise":
        axes.axhline(part["floor"], color=SOFT, lw=0.8, ls=(0, (1, 2)))
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(
            "exact samples", (0.01, part["floor"]), xytext=(0, 3), fontsize=8, color=SOFT, style="italic", **at
        )
    _names(axes, ends, slopes, "weak" if kind == "noise" else "logsnr")
    what = (
        "rms distance to the ODE's solution"
        if kind == "error"
        else "energy distance (square root) to the exact distribution"
    )
    axes.set_title(f"{schedule}: {what}", loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(
        "function evaluations; in brackets the measured order; grey: other samplers", fontsize=8.5, color=SOFT
    )
    axes.set_xticks(steps)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(length=3, width=0.7, labelsize=8.5, color=SOFT, labelcolor=SOFT)
    axes.grid(axis="y", color=FAINT, lw=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _names(axes: Any, ends: list[tuple[str, float, float, Any]], slopes: dict[str, Any], kind: str) -> None:
    """Names beside the panel, each with its line, moved apart if they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for _, x, y, _ in ends]
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    for (name, x, _, (colour, line, marker)), y, place in zip(ends, wanted, _spread(wanted, 12 / height, 1.0)):
        start = float(to_axes.transform((x, 1.0))[0])
        beside = {"transform": axes.transAxes, "clip_on": False, "color": colour}
        axes.plot([start, 1.03], [min(y, 1.0), place], lw=0.6, alpha=0.4, **beside)
        axes.plot([1.03, 1.1], [place, place], lw=1.3, ls=line, **beside)
        if marker:
            axes.plot(1.065, place, marker=marker, ms=4, mec="none", **beside)
        order = slopes.get(name, {}).get(kind)
        text = name if order is None else f"{name} ({order:.1f})"
        at = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
        axes.annotate(text, xy=(1.115, place), xytext=(1.115, place), va="center", fontsize=8.5, color=colour, **at)
