"""One table over many problems: the share of valid rows by what joins the positions, and the area under accuracy and parallelism.

A problem's `kind` says what joins its positions: a waiting line (lists), a puzzle, a chain, or a rule on the whole row.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence

from .. import problems
from ..errors import OptionError
from .collect import Point
from .estimates import number

__all__ = ["aup", "by_kind_md", "valid_within"]

KINDS = ("waiting line", "puzzle", "chain", "global")
BUDGETS = {"L/4": 4, "L/2": 2, "L": 1}


def aup(parallelism: Sequence[float], accuracy: Sequence[float], best: float, alpha: float = 3.0) -> float:
    """Accuracy under parallelism, as d3LLM defines it (Qian et al. 2026): a weighted area under accuracy against tokens per pass.

    With the pairs (r_i, y_i) in the order of r, those with y_i below y_1 - 5 left out, and
    W(y) = min(exp(-alpha (1 - y / best)), 1):
        r_1 y_1 + sum_{i > 1} (r_i - r_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2.

    Args:
        parallelism: r, tokens per forward pass, above 0.
        accuracy: y, percent, 0 to 100.
        best: the highest accuracy that any method reaches on the task, percent, above 0.

    Raises:
        OptionError: no pairs, two lists of different lengths, or a number out of its bounds.
    """
    if not parallelism or len(parallelism) != len(accuracy):
        raise OptionError(
            f"aup takes as many accuracies as parallelisms, one or more; these are {len(parallelism)} and {len(accuracy)}"
        )
    if not (best > 0 and all(r > 0 for r in parallelism) and all(0 <= y <= 100 for y in accuracy)):
        raise OptionError(
            "aup takes parallelisms above 0, accuracies from 0 to 100 percent, and a best accuracy above 0"
        )
    pairs = sorted(zip(parallelism, accuracy))
    pairs = [(r, y) for r, y in pairs if y >= pairs[0][1] - 5]
    weighted = [y * min(math.exp(-alpha * (1 - y / best)), 1.0) for _, y in pairs]
    area = pairs[0][0] * pairs[0][1]
    for i in range(1, len(pairs)):
        area += (pairs[i][0] - pairs[i - 1][0]) * (weighted[i] + weighted[i - 1]) / 2
    return area


@functools.lru_cache(maxsize=256)
def _about(problem: str) -> tuple[str, int]:
    """The kind of a problem, and how many positions there are to fill; ("", 0) if it is none of the kinds."""
    if problem not in problems.list_problems():
        return "", 0
    made = problems.create(problem)
    return made.kind, (made.length or 0) - len(made.settings.get("prompt", ()))


def valid_within(made: Iterable[Point], budget: int) -> tuple[float, float] | None:
    """The largest share of valid rows of one sampler's points that take at most `budget` forward passes per row, and half of
    its interval's width; None if no point is so cheap."""
    found = [p.metrics["invalid"] for p in made if p.nfe <= budget + 1e-9]
    best = min(found, key=lambda e: e.value, default=None)
    return None if best is None else (1 - best.value, (best.high - best.low) / 2)


def by_kind_md(made: Sequence[Point]) -> list[str]:
    """A Markdown section for each set of runs under the same conditions that holds two or more problems of some kind.

    A cell has the share of valid rows in percent, within L/4, L/2 and L forward passes per row (rounded up, L the positions to
    fill), the best setting of each; the mean over the problems of the kind, and half the width of its 95 % interval. If one of
    the problems has no setting that is so cheap there is none. The last column is the mean of `aup`.
    """
    groups: dict[str, list[Point]] = {}
    for p in made:
        if _about(p.problem)[0] and "invalid" in p.metrics:
            groups.setdefault(repr((p.family, p.conditions)), []).append(p)
    return [_section(group) for group in groups.values() if len({p.problem for p in group}) > 1]


def _section(group: Sequence[Point]) -> str:
    names = list(dict.fromkeys(p.problem for p in group))
    kinds = {k: here for k in KINDS if (here := [n for n in names if _about(n)[0] == k])}
    columns = kinds | {"all": names}
    best = {n: max(100 * (1 - p.metrics["invalid"].value) for p in group if p.problem == n) for n in names}
    lines = []
    for sampler in dict.fromkeys(p.sampler for p in group):
        own = {n: [p for p in group if (p.sampler, p.problem) == (sampler, n)] for n in names}
        cells = [[_mean([valid_within(own[n], -(-_about(n)[1] // part)) for n in where]) for part in BUDGETS.values()]
                 for where in columns.values()]  # fmt: skip
        area = math.nan
        if all(own[n] and best[n] > 0 for n in names):
            area = statistics.fmean(_area(own[n], best[n]) for n in names)
        rank = [-1.0 if share is None else share[0] for share in cells[-1]]
        text = [" / ".join(map(_percent, cell)) for cell in cells]
        lines.append((rank[1], rank[0], rank[2], "| " + " | ".join([sampler, *text, number(area)]) + " |"))
    header = [f"{k}: {', '.join(where)}" if k != "all" else "all" for k, where in columns.items()]
    return "\n".join(
        [
            f"## By kind of dependence, {group[0].family}\n",
            f"Valid rows, percent, within {', '.join(BUDGETS)} forward passes per row\n",
            "| sampler | " + " | ".join(header) + " | AUP |",
            "|---|" + "---|" * len(columns) + "--:|",
            *(line for *_, line in sorted(lines, reverse=True)),
            "",
        ]
    )


def _area(made: Sequence[Point], best: float) -> float:
    fill = _about(made[0].problem)[1]
    return aup([fill / p.nfe for p in made], [100 * (1 - p.metrics["invalid"].value) for p in made], best)


def _mean(shares: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The mean of shares, and half the width of its interval: halves are added as errors of independent runs are."""
    known = [s for s in shares if s is not None]
    if len(known) < len(shares):
        return None
    return statistics.fmean(v for v, _ in known), math.sqrt(sum(h**2 for _, h in known)) / len(known)


def _percent(share: tuple[float, float] | None) -> str:
    return "–" if share is None else f"{100 * share[0]:.1f} ± {100 * share[1]:.1f}"
