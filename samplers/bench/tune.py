"""The search for two options of a sampler: a grid, rounds of finer ones about the best, and a check on fresh rows.

Nothing of the model is touched (Chen et al. 2025, arXiv 2509.13866, choose the schedule of a trained model so). Every pair is
run on the same seeds, so pairs are compared row against the same row's randomness. The best of many pairs is too good by
luck, so the found one is run again on seeds that the search has not seen, beside the references, and the differences there
are what is reported. Runs are cells of a sweep (sweep.py) and are remembered as such.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import OptionError, SamplersError
from .cells import Cell, cells_of
from .collect import Difference, Point, difference, points
from .estimates import loss
from .records import Record
from .request import Request, parse_options
from .store import Store, session
from .sweep import CellWork, execute
from .user_model import is_user_model, subject

__all__ = ["DEFAULTS", "Axis", "Found", "Pair", "Search", "axis", "grid", "search"]

Pair = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """An option and the values of it that the first grid has, increasing."""

    option: str
    values: tuple[float, ...]

    def near(self, value: float, halvings: int) -> list[float]:
        """A value and its neighbours at the grid's own distance there, halved so many times."""
        if len(self.values) < 2:
            return [value]
        i = min(range(len(self.values)), key=lambda i: abs(self.values[i] - value))
        gaps = [b - a for a, b in itertools.pairwise(self.values[max(0, i - 1) : i + 2])]
        gap = min(gaps) / 2**halvings
        return [_tidy(value + k * gap) for k in (-1, 0, 1)]


def axis(text: str) -> Axis:
    """'a=0.1:1.0:10' (ten values, evenly) or 'a=0.1,0.3,0.9'.

    Raises:
        OptionError: anything else.
    """
    option, sign, values = text.partition("=")
    if not sign or not option.strip():
        raise OptionError(f"{text!r}: write option=low:high:count or option=v,v,..., such as a=0.1:1.0:10")
    return Axis(option.strip(), grid(values))


def grid(text: str) -> tuple[float, ...]:
    """The values of 'low:high:count' or 'v,v,...', increasing."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            n, a, b = int(count), float(low), float(high)
            values = [a + (b - a) * i / max(n - 1, 1) for i in range(n)]
        else:
            values = [float(w) for w in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)) or len(values) > 1000:
        raise OptionError(f"grid {text!r}: write low:high:count or v,v,..., such as 0.1:1.0:10")
    return tuple(sorted({_tidy(v) for v in values}))


def _tidy(value: float) -> float:
    return round(value, 6)  # 0.30000000000000004 would be a pair of its own


# The two options that a sampler is searched over if none are given, and pairs that are known by a name.
DEFAULTS: Mapping[str, tuple[str, str, Mapping[str, Pair]]] = {
    "beta_energy": ("a", "b", {"linear": (0.5, 0.5), "sin^2": (1.0, 1.0)}),
}


@dataclass(frozen=True)
class Search:
    """What to look for.

    Attributes:
        request: what is measured, and how: `nfe` are the numbers of steps, `seeds` are per pair, options stay as they are.
        sampler: its name.
        x, y: the two options, and the values of the first grid.
        references: pairs to compare with, by name; the first is what the found pair is measured against.
        refine: rounds about the best; each halves the distances.
    """

    request: Request
    sampler: str
    x: Axis
    y: Axis
    references: Mapping[str, Pair] = field(default_factory=dict)
    refine: int = 2

    def __post_init__(self) -> None:
        if self.x.option == self.y.option:
            raise OptionError(f"the two options of a search are different ones, not {self.x.option!r} twice")
        if self.refine < 0:
            raise OptionError(f"--refine must be 0 or more, not {self.refine}")
        if self.request.seeds < 2:
            raise OptionError("a search needs --seeds of 2 or more: their spread is what differences are judged by")


@dataclass(frozen=True)
class Found:
    """What a search found for one number of steps.

    Attributes:
        steps: as asked for.
        grid: the values of the first grid, of x and of y. named: the references' pairs.
        pair: the best one.
        tried: every pair that was run in the search, as points of all its seeds.
        point: the found pair on fresh seeds. references: the others on those seeds, by name.
        differences: found less reference on those seeds, by name.
        expected_nfe: what the sampler itself expects to spend, or None.
    """

    steps: int
    grid: tuple[tuple[float, ...], tuple[float, ...]]
    named: Mapping[str, Pair]
    pair: Pair
    tried: dict[Pair, Point]
    point: Point
    references: dict[str, Point]
    differences: dict[str, Difference]
    expected_nfe: float | None


def search(
    what: Search,
    folder: str | Path,
    *,
    fresh: bool = False,
    command: str = "",
    threads: int | None = None,
    opened: Callable[[Store], None] | None = None,
    stage: Callable[[str, list[Cell], Store], None] | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> list[Found]:
    """Search, one number of steps after the other refined from one grid; what is in the folder is not run again.

    Args:
        command: how to get the same again.
        opened, stage, running, finished: told of the store, of each stage (its name and all its cells), cell and record.

    Raises:
        SamplersError: as `sweep.plan` and `Store`, before anything is run; or a run failed, with its error.
    """
    cells, work = _Cells(what), CellWork(threads)
    asked = {k: v for k, v in dataclasses.asdict(what).items() if k != "request"}
    about = {"command": command, "requests": [dataclasses.asdict(what.request)], "search": asked}
    steps, seeds = what.request.nfe, range(what.request.seeds)
    references = list(what.references.values())
    coarse = [(x, y) for x in what.x.values for y in what.y.values]
    tried: dict[int, list[Pair]] = {s: list(dict.fromkeys([*coarse, *references])) for s in steps}
    for pair in tried[steps[0]]:
        cells.options(pair)  # a pair that cannot be is said before anything is run
    with session(folder, about, fresh=fresh) as store:
        if opened:
            opened(store)

        def done(name: str, wanted: Sequence[Cell]) -> None:
            store.note_changes(wanted)
            if stage:
                stage(name, list(wanted), store)
            execute([c for c in wanted if not store.done(c)], store, work, running=running, finished=finished)
            for c in wanted:
                if store.records[c.key]["status"] != "ok":
                    raise SamplersError(f"{c}: {store.records[c.key]['error']}")

        def of(step: int, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[Pair, Point]:
            """Points of pairs, in their order."""
            made = {}
            for pair in pairs:
                records = [store.records[cells.cell(step, pair, s).key] for s in seeds]
                made[pair] = points(records, what.request.metric)[0]
            return made

        # Seeds outermost: a search that is stopped has something of every pair.
        done("grid", [cells.cell(s, p, seed) for seed in seeds for s in steps for p in tried[s]])
        for k in range(1, what.refine + 1):
            fresh_pairs: dict[int, list[Pair]] = {}
            for s in steps:
                centre = _best(of(s, tried[s], seeds))
                around = itertools.product(what.x.near(centre[0], k), what.y.near(centre[1], k))
                fresh_pairs[s] = [p for p in around if p not in tried[s] and cells.possible(p)]
                tried[s] += fresh_pairs[s]
            done(f"round {k}", [cells.cell(s, p, seed) for seed in seeds for s in steps for p in fresh_pairs[s]])
        found_pairs = {s: _best(of(s, tried[s], seeds)) for s in steps}
        unseen = range(len(seeds), 2 * len(seeds))
        check = {s: list(dict.fromkeys([found_pairs[s], *references])) for s in steps}
        done("check", [cells.cell(s, p, seed) for seed in unseen for s in steps for p in check[s]])
        found = []
        for s in steps:
            held = of(s, check[s], unseen)
            best = held[found_pairs[s]]
            others = {name: held[pair] for name, pair in what.references.items()}
            found.append(
                Found(
                    steps=s,
                    grid=(what.x.values, what.y.values),
                    named=what.references,
                    pair=found_pairs[s],
                    tried=of(s, tried[s], seeds),
                    point=best,
                    references=others,
                    differences={name: difference(best, other) for name, other in others.items()},
                    expected_nfe=cells.expected_nfe(s, found_pairs[s]),
                )
            )
        return found


class _Cells:
    """The cells of a search, made from one a number of steps: planning is for sweeps of many samplers, and slow."""

    def __init__(self, what: Search):
        cls = registry.load(what.sampler)
        known = {o.name: o for o in cls.options()}
        numeric = [o.name for o in known.values() if type(o.default) in (int, float)]
        for one in (what.x, what.y):
            if one.option not in numeric:
                raise OptionError(
                    f"sampler {what.sampler!r} has no numeric option {one.option!r}; "
                    f"it has {', '.join(numeric) or 'none'}"
                )
        given = parse_options(what.request.options, [what.sampler]).get(what.sampler, {})
        if clash := [o for o in (what.x.option, what.y.option) if o in given]:
            raise OptionError(f"-o {clash[0]}=...: that option is searched over")
        # An option that a benchmark would walk stays as it is, unless it is searched over: `steps` is the knob here.
        self.own = ({cls.facts.sweep[0]: known[cls.facts.sweep[0]].default} if cls.facts.sweep else {}) | given
        self.what, self.cls, self.whole = what, cls, {o.name for o in known.values() if type(o.default) is int}
        if len(what.request.problems) != 1:
            raise OptionError("a search is on one problem or model at a time")
        name = what.request.problems[0]
        problem = subject(name, what.request.metric, what.request.higher)
        if is_user_model(name) and what.request.metric is None:
            raise OptionError(
                "a search on a model needs --metric MODULE:FUNCTION to judge by; or --metric nll, if it is a masked model"
            )
        fixed = tuple(f"{k}={v}" for k, v in self.own.items())
        request = dataclasses.replace(what.request, samplers=(what.sampler,), options=fixed, family=cls.family)
        self.templates = {c.settings["steps"]: c for c in cells_of(request, name, 0)}
        for s in what.request.nfe:
            if s not in self.templates:
                raise OptionError(f"{s} steps are too few for blocks of {what.request.block_length}")
        self.length = what.request.gen_length or problem.length

    def options(self, pair: Pair) -> dict[str, Any]:
        """All options of the sampler with these two; OptionError if the pair is out of bounds."""
        named = zip((self.what.x.option, self.what.y.option), pair)
        chosen = {k: int(v) if k in self.whole and v == int(v) else v for k, v in named}
        return self.cls.make(**self.own | chosen).values()

    def possible(self, pair: Pair) -> bool:
        try:
            self.options(pair)
        except OptionError:
            return False
        return True

    def cell(self, steps: int, pair: Pair, seed: int) -> Cell:
        return dataclasses.replace(self.templates[steps], options=self.options(pair), seed=seed)

    def expected_nfe(self, steps: int, pair: Pair) -> float | None:
        if self.length is None or self.what.request.block_length is not None:
            return None
        return self.cls.make(**self.options(pair)).expected_nfe(self.length, steps)


def _best(tried: Mapping[Pair, Point]) -> Pair:
    """The pair of the least loss; of equals the one with fewer forward passes, and then the first."""

    def rank(pair: Pair) -> tuple[bool, float, float]:
        q = tried[pair].quality
        its_loss = loss(q.value, q.truth, q.better)
        return (not math.isfinite(its_loss), its_loss, tried[pair].nfe)

    return min(tried, key=rank)
