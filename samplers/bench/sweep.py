"""The sweep: which cells a request makes, running them, and the file that remembers them.

A cell is one run: (problem, family, sampler, one setting of its knob, seed). The knob is `steps`; for a sampler whose
class has `sweep = (option, values)` it is that option, and its NFE is then measured, not asked for. Each cell that ends
is one line of DIR/cells.jsonl, on the disk before the next begins, so a sweep that is stopped goes on where it was.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..canvas import PAD
from ..driver import Sample, Seconds, sample
from ..errors import OptionError, SamplersError, UnknownNameError, did_you_mean
from ..feeds.sequence import missing_capabilities
from ..problems import Problem
from ..sampler import Sampler
from .machine import machine
from .own import is_own, load_prompts, subject

__all__ = ["DEMO", "Cell", "Outcome", "Request", "Store", "execute", "pack", "plan", "run", "session", "unpack"]

CELLS, REQUEST = "cells.jsonl", "sweep.json"
NFE = (2, 4, 8, 16)  # budgets where none are asked for

Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        problems: names of exact problems; or the user's own model, as module:attribute of a Denoiser.
        samplers: patterns such as 'masked/*', 'dpmpp*' or a full name.
        family: only this kind of noise; None: all for which the problem has a denoiser and the patterns a sampler.
        nfe: budgets, given to samplers as `steps`.
        seeds: how many; they are 0, 1, ...
        rows: samples a cell. batch: of these at a time (memory, and what seconds are measured at).
        temperature: of token draws; None: 1 on a problem, which asks for the law itself, and that is what is measured;
            on one's own model the sampler's own.
        block_length: of token samplers.
        gen_length: positions to fill, of token models of any length.
        prompts: module:attribute of lists of token ids, one a row, for one's own model; rows are at most as many.
        metric: what plots use: of a problem one of its metrics, None: its primary one; of one's own model module:function of
            a Sample, None: nothing is scored.
        higher: whether more of one's own metric is better.
        options: 'name=value' for all samplers that have the option, 'sampler.name=value' for one.
        caches: KV caches to compare, None for none; a sampler with one is called 'sampler + cache'.
    """

    problems: tuple[str, ...]
    samplers: tuple[str, ...] = ("*",)
    family: str | None = None
    nfe: tuple[int, ...] = NFE
    seeds: int = 3
    rows: int = 512
    batch: int = 512
    temperature: float | None = None
    block_length: int | None = None
    options: tuple[str, ...] = ()
    gen_length: int | None = None
    prompts: str | None = None
    metric: str | None = None
    higher: bool = False
    caches: tuple[str | None, ...] = (None,)

    def __post_init__(self) -> None:
        for name in ("seeds", "rows", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be 1 or more, not {getattr(self, name)}")
        if not self.nfe or min(self.nfe) < 1:
            raise OptionError("--nfe needs budgets of 1 or more, such as 2,4,8")
        if not all(map(is_own, self.problems)) and (self.prompts or self.gen_length or self.higher):
            raise OptionError("--prompts, --gen-length and --higher go with --denoiser; a problem says these itself")


# What `make bench` runs: about two minutes on two cores, on one thread (`run(threads=1)`). Batches this small gain
# little from a second one, and lose tenfold when another program wants that core: threads wait for each other.
SHOWN = (  # one of each kind; bench/zoo.py runs them all
    *("ancestral", "beta_energy", "entropy_bound", "first_hitting", "llada2", "low_confidence", "maskgit", "radd"),
    *("random_order", "remdm", "threshold"),
)
DEMO = (
    Request(("sudoku4",), SHOWN, nfe=(1, 2, 4, 8, 16), seeds=3, rows=1000, batch=1000),
    Request(("digits",), SHOWN, nfe=(4, 8, 16, 32, 64), seeds=1, rows=192, batch=192),
    Request(("digits",), ("gaussian/*",), nfe=(5, 10, 20, 40), seeds=3, rows=512, batch=512),
    Request(("mixture",), ("gaussian/*",), nfe=(5, 10, 20, 40), seeds=3, rows=2000, batch=2000),
)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, and what defines it. `metric` and `higher` are those of one's own model."""

    problem: str
    family: str
    sampler: str
    distribution: str
    version: str
    knob: str  # 'steps', or the option that is walked
    value: Any
    options: dict[str, Any]
    settings: dict[str, Any]  # arguments of sample(): steps, temperature, block_length
    seed: int
    rows: int
    batch: int
    metric: str | None = None
    higher: bool = False

    @property
    def key(self) -> str:
        """16 hex digits of all that defines the cell. A new version of a sampler or of this library is another cell."""
        facts = dataclasses.asdict(self) | {"library": registry.version()}
        if self.metric is None:  # a problem scores all it can, whatever is plotted
            del facts["metric"], facts["higher"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.problem} {self.family}/{called(self.sampler, self.settings)} {self.knob}={self.value} seed {self.seed}"


def called(sampler: str, settings: dict[str, Any]) -> str:
    """A sampler's name in tables: with its cache, where it has one."""
    cache = settings.get("cache")
    return sampler if cache is None else f"{sampler} + {cache}"


# ---------------------------------------------------------------------------------------------- planning


def plan(requests: Iterable[Request]) -> list[Cell]:
    """The cells of some requests, each once; seed by seed, so that a sweep that is stopped has something of everything.

    Raises:
        UnknownNameError: a pattern or problem that nothing matches. FamilyError: a problem without that family.
        OptionError: an option that no chosen sampler has, or a value out of its bounds.
    """
    cells: dict[str, Cell] = {}
    for seed, request in sorted(((s, r) for r in requests for s in range(r.seeds)), key=lambda pair: pair[0]):
        made = [c for name in request.problems for c in _cells(request, name, seed)]
        if not made:
            raise UnknownNameError(
                f"nothing to run: no sampler of {', '.join(request.samplers)} is of a family that "
                f"{', '.join(request.problems)} has ({', '.join(_families(request, request.problems[0]))}), or they need a "
                "model that reads a sequence"
            )
        cells.update((c.key, c) for c in made)
    return list(cells.values())


def _families(request: Request, name: str) -> tuple[str, ...]:
    problem = subject(name, request.metric, request.higher)
    if request.family is None:
        return tuple(problem.families)
    problem.denoiser(request.family)  # its error names the families there are
    return (request.family,)


def _cells(request: Request, problem: str, seed: int) -> list[Cell]:
    _check_patterns(request.samplers)
    families = _families(request, problem)
    chosen = [(f, n) for f in families for n in registry.names(request.samplers, f) if _runs(n, f, problem)]
    given = _options(request.options, [n for _, n in chosen])
    cells = []
    for family, name in chosen:
        cls, item = registry.load(name), registry.entry(name)
        own = given.get(name, {})
        knob, values = (
            ("steps", request.nfe) if cls.facts.sweep is None or cls.facts.sweep[0] in own else cls.facts.sweep
        )
        if cls.facts.sequential and knob == "steps":  # which it does not take
            knob, values = cls.facts.sweep[0], (own[cls.facts.sweep[0]],)
        for value, cache in itertools.product(values, request.caches):
            sampler = cls.make(**own | ({knob: value} if knob != "steps" else {}))
            settings: dict[str, Any] = {"steps": value if knob == "steps" else None}
            if family in ("masked", "uniform"):
                temperature = request.temperature
                if temperature is None and not is_own(problem):
                    temperature = 1.0
                settings |= {
                    "temperature": temperature if temperature is None else float(temperature),
                    "block_length": request.block_length,
                }
                more = {"gen_length": request.gen_length, "prompts": request.prompts}
                settings |= {k: v for k, v in more.items() if v is not None}
                if cache is not None:
                    settings["cache"] = cache
            if knob == "steps" and request.block_length is not None and family != "gaussian":
                length = request.gen_length or subject(problem).length or request.block_length
                if value < -(-length // request.block_length):
                    continue  # fewer steps than blocks cannot be
            rows = request.rows if request.prompts is None else min(request.rows, len(load_prompts(request.prompts)))
            batch = min(request.batch, rows)
            cells.append(
                Cell(
                    problem=problem,
                    family=family,
                    sampler=name,
                    distribution=item.distribution,
                    version=item.version,
                    knob=knob,
                    value=value,
                    options=sampler.values(),
                    settings=settings,
                    seed=seed,
                    rows=rows,
                    batch=batch,
                    metric=request.metric if is_own(problem) else None,
                    higher=request.higher,
                )
            )
    return cells


def _runs(name: str, family: str, problem: str) -> bool:
    """Whether the problem's denoiser is one that the sampler can be asked through."""
    return not registry.load(name).facts.sequential or not missing_capabilities(subject(problem).denoiser(family))  # type: ignore[arg-type]


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if registry.names(pattern):
            continue
        name = pattern.rpartition("/")[2]
        if not any(c in name for c in "*?["):
            registry.entry(name)  # raises, with the nearest names
        raise UnknownNameError(f"no sampler matches {pattern!r}; 'samplers list' shows them")


def _options(texts: Sequence[str], samplers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{sampler: {option: value}} of 'name=value' and 'sampler.name=value'."""
    given: dict[str, dict[str, Any]] = {}
    known = {name: {o.name: o for o in registry.load(name).options()} for name in samplers}
    for text in texts:
        left, sign, value = text.partition("=")
        who, _, option = left.strip().rpartition(".")
        if not sign or not option:
            raise OptionError(f"-o {text!r}: write name=value, or sampler.name=value")
        if who and who not in known:
            raise OptionError(f"-o {text!r}: sampler {who!r} is not in this sweep{did_you_mean(who, known)}")
        has = [n for n in ([who] if who else samplers) if option in known[n]]
        if not has:
            every = sorted({o for options in known.values() for o in options})
            raise OptionError(
                f"-o {text!r}: none of the samplers has an option {option!r}{did_you_mean(option, every)}"
            )
        for name in has:
            given.setdefault(name, {})[option] = known[name][option].parse(value.strip())
    return given


# ---------------------------------------------------------------------------------------------- the file


def _locked(folder: Path) -> Any:
    """An open file that no other sweep can lock: two writers would mix their lines. None where the system has no flock."""
    try:
        import fcntl
    except ImportError:
        return None
    file = open(folder / ".lock", "ab")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OptionError(f"another sweep is writing to {folder}: wait for it, or give another --out") from None
    return file


class Store:
    """DIR/cells.jsonl: one line a finished cell, appended and flushed to the disk.

    Args:
        folder: made where it is missing.
        write: False only reads, and changes nothing.
        fresh: put the cells that are there aside, as cells.jsonl.bak.

    Raises:
        OptionError: the folder cannot be made or written, is no folder, has nothing to read, or another sweep is
            writing there.
        SamplersError: a line, other than one cut off at the end, is not a cell; it names file and line.
    """

    def __init__(self, folder: str | Path, *, write: bool = True, fresh: bool = False):
        self.folder, self.path = Path(folder), Path(folder) / CELLS
        self.notes: list[str] = []
        self._lock: Any = None  # held as long as this object lives
        try:
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self.folder)
                if fresh and self.path.exists():
                    self.path.replace(self.path.with_suffix(".jsonl.bak"))
                    self.notes.append(f"earlier cells were put aside as {self.path.name}.bak")
                with open(self.path, "ab"):
                    pass  # it can be written: better to know now than after an hour of sampling
            content = self.path.read_bytes()
        except OSError as error:
            verb = "written" if write else "read"
            raise OptionError(f"{self.path} cannot be {verb}: {error.strerror or error}") from error
        self.records: dict[str, Record] = {}
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            if line.strip():
                self._keep(line, number)
        if whole < len(content):
            self.notes.append(f"the last line of {self.path} was cut off and is dropped; its cell will run again")
            if write:
                os.truncate(self.path, whole)

    def _keep(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            self.records[record["key"]] = record
        except (ValueError, TypeError, KeyError) as error:
            raise SamplersError(
                f"{self.path}, line {number} is not a cell ({registry.one_line(error)}); "
                "mend or delete that line, or start again with --fresh"
            ) from error

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def close(self) -> None:
        """Let another sweep write here."""
        if self._lock is not None:
            self._lock.close()

    def done(self, cell: Cell) -> bool:
        """Whether the cell has its result; a failed one has not."""
        return self.records.get(cell.key, {}).get("status") in ("ok", "declined")


# ---------------------------------------------------------------------------------------------- running


@dataclass
class Outcome:
    """What became of a sweep: counts of cells, and the records of those that failed or were declined."""

    folder: Path
    planned: int
    reused: int
    failed: list[Record]
    declined: list[Record]
    seconds: float


def run(
    requests: Sequence[Request],
    folder: str | Path,
    *,
    fresh: bool = False,
    command: str = "",
    threads: int | None = None,
    started: Callable[[list[Cell], Store], None] | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> Outcome:
    """Run what is not in the folder yet.

    Args:
        command: how to get the same again; the report prints it.
        threads: of torch, while this runs; None leaves it as it is. Cells record it.
        started, running, finished: told of the plan, of each cell before it runs, and of each record.

    Raises:
        SamplersError: as `plan` and `Store`; before anything is run. What a sampler raises is recorded in its cell's
            line (status "failed"; "declined" for an OptionError, such as a step count that it does not take).
    """
    begun = time.perf_counter()
    cells = plan(requests)
    about = {"command": command, "requests": [dataclasses.asdict(r) for r in requests]}
    with session(folder, about, fresh=fresh) as store:
        todo = [c for c in cells if not store.done(c)]
        if started:
            started(cells, store)
        execute(todo, store, threads=threads, running=running, finished=finished)
    ends = [store.records[c.key] for c in cells if c.key in store.records]
    return Outcome(
        store.folder,
        len(cells),
        len(cells) - len(todo),
        [r for r in ends if r["status"] == "failed"],
        [r for r in ends if r["status"] == "declined"],
        time.perf_counter() - begun,
    )


@contextlib.contextmanager
def session(folder: str | Path, about: dict[str, Any], *, fresh: bool = False) -> Iterator[Store]:
    """The store of a folder, locked while it is used; `about` is written beside the cells, for the report."""
    store = Store(folder, fresh=fresh)
    try:
        text = json.dumps(about | {"library": registry.version()}, indent=1, default=str) + "\n"
        (store.folder / REQUEST).write_text(text, encoding="utf-8")
        yield store
    finally:
        store.close()


def execute(
    todo: Sequence[Cell],
    store: Store,
    *,
    threads: int | None = None,
    running: Callable[[Cell], None] | None = None,
    finished: Callable[[Record], None] | None = None,
) -> None:
    """Run cells, each on the disk before the next begins. Arguments as `run`'s."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        _run_all(todo, store, running, finished)
    finally:
        torch.set_num_threads(before)


def _run_all(
    todo: Sequence[Cell],
    store: Store,
    running: Callable[[Cell], None] | None,
    finished: Callable[[Record], None] | None,
) -> None:
    made: dict[tuple[Any, ...], tuple[Problem, Any]] = {}
    for cell in todo:
        if running:
            running(cell)
        what = (cell.problem, cell.metric, cell.higher)
        where = (*what, cell.family)
        if where not in made:
            problem = next((p for key, (p, _) in made.items() if key[:3] == what), None)
            problem = problem or subject(*what)
            made[where] = (problem, problem.denoiser(cell.family))
            _warm_up(cell, *made[where])
        record = run_cell(cell, *made[where])
        store.add(record)
        if finished:
            finished(record)


def _warm_up(cell: Cell, problem: Problem, denoiser: Any) -> None:
    """A few rows that are not measured: first calls allocate, and load libraries."""
    with contextlib.suppress(Exception):  # the measured run will say what is wrong
        _part(cell, problem, denoiser, _sampler(cell), 0, min(8, cell.rows), steps=2)


def _sampler(cell: Cell) -> Sampler:
    return registry.load(cell.sampler).make(**cell.options)


def _part(
    cell: Cell, problem: Problem, denoiser: Any, sampler: Sampler, first: int, batch: int, **changes: Any
) -> Sample:
    """`batch` rows of a cell, from number `first` on. What the cell does not say the problem may."""
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
    lengths = [p.lengths for p in parts if p.lengths is not None]
    return dataclasses.replace(
        parts[0],
        x=torch.cat(narrow),
        nfe_rows=torch.cat([p.nfe_rows for p in parts]),
        lengths=torch.cat(lengths) if lengths else None,
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
        record["score"] = problem.score(made, cell.family).to_dict()
        record["x"] = pack(made.x)
    except OptionError as error:
        record |= {"status": "declined", "error": registry.one_line(error)}
    except Exception as error:  # somebody's sampler: whatever it raises must not cost the other cells
        record |= {"status": "failed", "error": registry.one_line(error)}
    return record | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def _finite(value: Any) -> Any:
    """JSON has no infinities; an option may (a threshold that nothing passes)."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def pack(x: Tensor, size: int = 2048) -> dict[str, Any]:
    """The first rows of x for pictures: 8; of points of the plane as many as `size` bytes hold."""
    kind = np.float16 if x.is_floating_point() else np.uint8 if int(x.max()) < 256 and int(x.min()) >= 0 else np.int32
    rows = 8 if x[0].numel() > 4 else size // (x[0].numel() * np.dtype(kind).itemsize)
    values = x[:rows].cpu().numpy().astype(kind)
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": np.dtype(kind).name, "shape": list(values.shape), "data": text}


def unpack(packed: dict[str, Any]) -> Tensor:
    """What `pack` packed: int64 tokens, or float32 reals."""
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=packed["dtype"]).reshape(packed["shape"])
    return torch.from_numpy(values.astype(np.float32 if packed["dtype"].startswith("float") else np.int64))
