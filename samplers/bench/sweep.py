"""The sweep: running cells and recording them, one at a time, so that a sweep that is stopped goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..canvas import PAD
from ..driver import Sample, Seconds, sample
from ..errors import OptionError
from ..parallel import MapLike, Shard
from ..parallel import execute as share_out
from ..problems import Problem
from ..sampler import Sampler
from .cells import Cell, plan, unavailable
from .machine import machine
from .records import Record, pack
from .request import Request
from .store import Store, session
from .user_model import is_user_model, load_prompts, subject

__all__ = ["CellWork", "Outcome", "execute", "run", "run_cell", "run_cells"]


@dataclass
class Outcome:
    """What became of a sweep.

    Attributes:
        folder: where its cells are.
        planned, reused: counts of cells. failed, declined: the records of those that have no result.
        seconds: how long it took.
        unavailable: samplers that the patterns match but that cannot be loaded, and why.
    """

    folder: Path
    planned: int
    reused: int
    failed: list[Record]
    declined: list[Record]
    seconds: float
    unavailable: dict[str, str]


def run(
    requests: Sequence[Request],
    folder: str | Path,
    *,
    fresh: bool = False,
    command: str = "",
    threads: int | None = None,
    shard: Shard | None = None,
    map: MapLike | None = None,
    started: Callable[[list[Cell], Store], None] | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> Outcome:
    """Run what is not in the folder yet.

    Args:
        command: the command that makes the same sweep; the report prints it.
        threads: threads of torch while this runs; None leaves them as they are. Records hold the number.
        shard: (i, n): only the cells i, i + n, i + 2n, ... of the plan. Each shard needs a folder of its own; bench.merge makes
            one of them.
        map: who runs the cells, as in samplers.parallel.execute; records are written here, in the order in which they come.
        started, running, finished: are called with the plan, with each cell before it runs, and with each record.

    Raises:
        SamplersError: as `plan` and `Store` raise it, before anything is run; or the disk is full. What a sampler raises is
            recorded in its cell's line: status "failed", or "declined" for an OptionError, such as for a step count that it
            does not take.
    """
    cells, lost = plan(requests), unavailable(requests)
    about = {"command": command, "requests": [dataclasses.asdict(r) for r in requests]}
    return run_cells(
        cells,
        folder,
        about,
        CellWork(threads),
        fresh=fresh,
        shard=shard,
        map=map,
        unavailable=lost,
        started=started,
        running=running,
        finished=finished,
    )


def run_cells(
    cells: list[Cell],
    folder: str | Path,
    about: dict[str, Any],
    work: Callable[[Cell], Record],
    *,
    fresh: bool = False,
    shard: Shard | None = None,
    map: MapLike | None = None,
    unavailable: dict[str, str] | None = None,
    started: Callable[[list[Cell], Store], None] | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> Outcome:
    """As `run`, for cells that are planned already.

    Args:
        about: what is written beside the cells; see `session`.
        work: makes a cell's record, in this process or wherever `map` calls it.
        unavailable: samplers that cannot be loaded, and why.
    """
    begun, lost = time.perf_counter(), unavailable or {}
    about = about | {"plan": [c.key for c in cells]}
    if shard is not None:
        about["shard"], cells = list(shard), cells[shard[0] :: shard[1]]
    with session(folder, about, fresh=fresh) as store:
        todo = [c for c in cells if not store.done(c)]
        store.note_changes(cells)
        store.notes += [f"left out: {error}" for error in lost.values()]
        if started:
            started(cells, store)
        execute(todo, store, work, map=map, running=running, finished=finished)
    ends = [store.records[c.key] for c in cells if c.key in store.records]
    return Outcome(
        store.folder,
        len(cells),
        len(cells) - len(todo),
        [r for r in ends if r["status"] == "failed"],
        [r for r in ends if r["status"] == "declined"],
        time.perf_counter() - begun,
        lost,
    )


def execute(
    todo: Sequence[Cell],
    store: Store,
    work: Callable[[Cell], Record],
    *,
    map: MapLike | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> None:
    """Run cells; each record is on the disk before the next is taken. The arguments are those of `run_cells`."""

    def cells() -> Iterator[Cell]:
        for cell in todo:
            if running:
                running(cell)
            yield cell

    before = torch.get_num_threads()
    try:
        for _, record in share_out(cells(), work, map=map):
            store.add(record)
            if finished:
                finished(record)
    finally:
        torch.set_num_threads(before)


class CellWork:
    """Runs a cell in whatever process it is called in; problems and denoisers are made once per process.

    Args:
        threads: threads of torch; None leaves them as they are.
    """

    def __init__(self, threads: int | None = None):
        self.threads = threads
        self._made: dict[tuple[Any, ...], tuple[Problem, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # another process makes its own problems and denoisers
        return CellWork, (self.threads,)

    def __call__(self, cell: Cell) -> Record:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        what = (cell.problem, cell.metric, cell.higher)
        where = (*what, cell.family)
        if where not in self._made:
            problem = next((p for key, (p, _) in self._made.items() if key[:3] == what), None)
            problem = problem or subject(*what)
            self._made[where] = (problem, problem.denoiser(cell.family))
            _warm_up(cell, *self._made[where])
        return run_cell(cell, *self._made[where])


def _warm_up(cell: Cell, problem: Problem, denoiser: Any) -> None:
    """Draw a few rows that are not measured: first calls allocate memory and load libraries."""
    with contextlib.suppress(Exception):  # the measured run will say what is wrong
        _part(cell, problem, denoiser, _sampler(cell), 0, min(8, cell.rows), steps=2)


def _sampler(cell: Cell) -> Sampler:
    return registry.load(cell.sampler).make(**cell.options)


def _part(
    cell: Cell, problem: Problem, denoiser: Any, sampler: Sampler, first: int, batch: int, **changes: Any
) -> Sample:
    """Draw `batch` rows of a cell, from number `first` on. The problem's settings apply if the cell has none."""
    settings = dict(problem.settings) | {k: v for k, v in cell.settings.items() if v is not None} | changes
    prompts = settings.pop("prompts", None)
    rows: dict[str, Any] = {"batch": batch}
    if prompts is not None:
        rows = {"prompt": load_prompts(prompts)[first : first + batch]}
    return sample(denoiser, sampler, seed=cell.seed, first_row=first, **rows, **settings)


def _joined(parts: Sequence[Sample]) -> Sample:
    """Parts of a run as one Sample: rows in order, costs added."""
    if len(parts) == 1:
        return parts[0]
    wide = max(p.x.shape[1] for p in parts)
    narrow = [
        torch.nn.functional.pad(p.x, (0, wide - p.x.shape[1]), value=PAD) if p.x.dim() == 2 else p.x for p in parts
    ]
    fills = [torch.nn.functional.pad(p.fill, (0, wide - p.fill.shape[1])) for p in parts if p.fill is not None]
    lengths = [p.lengths for p in parts if p.lengths is not None]
    return dataclasses.replace(
        parts[0],
        x=torch.cat(narrow),
        nfe_rows=torch.cat([p.nfe_rows for p in parts]),
        lengths=torch.cat(lengths) if lengths else None,
        fill=torch.cat(fills) if fills else None,
        seconds=Seconds(sum(p.seconds.denoiser for p in parts), sum(p.seconds.sampler for p in parts)),
        **{
            k: sum(getattr(p, k) for p in parts)
            for k in ("nfe", "row_evals", "token_evals", "head_rows", "cache_bytes", "steps")
        },
    )


def run_cell(cell: Cell, problem: Problem, denoiser: Any) -> Record:
    """Run a cell and return its record. Rows are drawn in batches; row i is the same in any of them."""
    record: Record = {"key": cell.key, "status": "ok", **dataclasses.asdict(cell)}
    record |= {"library": registry.version(), "machine": machine()}
    try:
        sampler = _sampler(cell)
        firsts = range(0, cell.rows, cell.batch)
        made = _joined([_part(cell, problem, denoiser, sampler, f, min(cell.batch, cell.rows - f)) for f in firsts])
        record["nfe"] = {
            "forwards": made.nfe,
            "row_evals": made.row_evals,
            "token_evals": made.token_evals,
            "cache_bytes": made.cache_bytes,
            "per_row": float(made.nfe_rows.double().mean()),
        }
        record["seconds"] = {"denoiser": made.seconds.denoiser, "sampler": made.seconds.sampler}
        added = () if cell.metric is None or is_user_model(cell.problem) else (cell.metric,)
        record["score"] = problem.score(made, cell.family, added).to_dict()
        if used := made.settings.get("plugins", {}) | registry.provenance([("metrics", cell.metric)]):
            record["plugins"] = used
        record["x"] = pack(made.x)
    except OptionError as error:
        record |= {"status": "declined", "error": registry.one_line(error)}
    except Exception as error:  # somebody's sampler: whatever it raises must not cost the other cells
        record |= {"status": "failed", "error": registry.one_line(error)}
    return record | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
