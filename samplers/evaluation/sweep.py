"""Sweeps of tasks, samplers and NFE: cells as those of samplers.bench, so that they resume, merge and are reported alike.

A cell is one (task, sampler, setting of its steps, cache, seed). A task that compares likelihoods asks no sampler, so there is
one cell of it per seed, called "nll".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..bench.cells import Cell, cells_of
from ..bench.machine import machine
from ..bench.records import Record
from ..bench.request import Request
from ..bench.sweep import Outcome, run_cells
from ..entries import DISTRIBUTION
from ..errors import OptionError
from ..problems.base import wilson
from .lm import SamplersLM
from .tasks import TaskUnit, load_tasks

__all__ = ["EvalRequest", "EvalWork", "plan", "run"]

SCORER = "nll"  # how cells of tasks that ask no sampler are called
FEWSHOT_SEED = 1234  # lm-eval's own default: which examples are in a prompt


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate.

    Attributes:
        model: a model in the box, hf:NAME, or module:attribute of a TokenDenoiser with a tokenizer.
        tasks, include: as in tasks.load_tasks.
        samplers: patterns. nfe: forward passes per answer, given to samplers as `steps`. caches, options: as in Request.
        seeds: how many seeds there are, counted from 0. limit: documents per task; None: all.
        batch: documents at a time. fewshot: examples in the prompt; None: what the task says.
        temperature: None: what the task says. gen_length: positions to fill; None: what the task says.
        block_length: positions per block.
        chat: whether prompts are written by the model's chat template. system: a system message.
        mc: masks per text, where likelihoods are bounds. check_greedy: as in SamplersLM.
        metric: what tables and plots use of a task that has it; None: its first.
    """

    model: str
    tasks: tuple[str, ...]
    samplers: tuple[str, ...] = ()
    nfe: tuple[int, ...] = (8, 16, 32)
    caches: tuple[str | None, ...] = (None,)
    options: tuple[str, ...] = ()
    seeds: int = 1
    limit: int | None = None
    batch: int = 8
    fewshot: int | None = None
    temperature: float | None = None
    gen_length: int | None = None
    block_length: int | None = None
    chat: bool = False
    system: str | None = None
    mc: int = 128
    check_greedy: bool = False
    metric: str | None = None
    include: tuple[str, ...] = ()


def plan(request: EvalRequest) -> list[Cell]:
    """The cells of a request; seed by seed and task by task.

    Raises:
        OptionError: the model has no tokenizer, a task generates and no sampler is named, an option is unknown.
        UnknownNameError: there is no such task or sampler. SamplersError: the data of a task cannot be had.
    """
    lm = SamplersLM(request.model)  # says what is wrong with the model before any task is loaded
    units = load_tasks(request.tasks, request.include)
    writing_tasks = [u.name for u in units if u.generates]
    if writing_tasks and not request.samplers:
        raise OptionError(
            f"task {writing_tasks[0]!r} generates text: say by which samplers (--samplers entropy_bound,radd)"
        )
    cells: dict[str, Cell] = {}
    for seed in range(request.seeds):
        for unit in units:
            for cell in _cells(request, unit, seed, lm):
                cells[cell.key] = cell
    if not cells:
        raise OptionError(
            f"nothing to run: no sampler of {', '.join(request.samplers)} is of the family of {request.model!r} "
            f"({lm.denoiser.family}), or they need a model that reads a sequence"
        )
    return list(cells.values())


def _cells(request: EvalRequest, unit: TaskUnit, seed: int, lm: SamplersLM) -> list[Cell]:
    from importlib.metadata import version

    about: dict[str, Any] = {
        "model": request.model,
        "task": unit.name,
        "fewshot": request.fewshot,
        "limit": request.limit,
    }
    about |= {"chat": request.chat, "system": request.system, "lm_eval": version("lm_eval")}
    about |= {"include": list(map(str, request.include))}
    facts: dict[str, Any] = {"problem": f"{request.model}: {unit.name}", "rows": unit.documents(request.limit)}
    print_of_task = unit.fingerprint(request.limit)
    if not unit.generates:
        made = lm.likelihoods
        about |= {"likelihood": made.method, "check_greedy": request.check_greedy}
        return [
            Cell(
                **facts,
                family=lm.denoiser.family,
                sampler=SCORER,
                distribution=DISTRIBUTION,
                version=registry.version(),
                code=print_of_task,
                knob="mc",
                value=request.mc if made.method != "next" else 1,
                options={},
                settings=about,
                seed=seed,
                batch=request.batch,
            )
        ]
    asked = Request(
        problems=(request.model,),
        samplers=request.samplers,
        nfe=request.nfe,
        rows=facts["rows"],
        batch=request.batch,
        temperature=request.temperature,
        block_length=request.block_length,
        gen_length=request.gen_length or unit.gen_length,
        options=request.options,
        caches=request.caches,
    )
    cells = cells_of(asked, request.model, seed)
    about["gen_length"] = request.gen_length  # None: as each task says
    codes = [hashlib.sha256(f"{c.code} {print_of_task}".encode()).hexdigest()[:12] for c in cells]
    return [dataclasses.replace(c, **facts, code=k, settings=c.settings | about) for c, k in zip(cells, codes)]


# ---------------------------------------------------------------------------------------------- running


class EvalWork:
    """Runs a cell in whatever process it is called in; the model and the tasks are loaded once per process.

    Args:
        tasks: as in EvalRequest.
        threads: threads of torch; None leaves them as they are.
    """

    def __init__(self, tasks: Sequence[str], include: Sequence[str], threads: int | None = None):
        self.tasks, self.include, self.threads = tuple(tasks), tuple(include), threads
        self._units: dict[str, TaskUnit] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # another process loads its own
        return EvalWork, (self.tasks, self.include, self.threads)

    def __call__(self, cell: Cell) -> Record:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if not self._units:
            self._units = {u.name: u for u in load_tasks(self.tasks, self.include)}
        return run_cell(cell, self._units[cell.settings["task"]])


def run_cell(cell: Cell, unit: TaskUnit) -> Record:
    """Run a cell and return its record, with what each document was answered as "answers"."""
    record: Record = {"key": cell.key, "status": "ok", **dataclasses.asdict(cell)}
    record |= {"library": registry.version(), "machine": machine()}
    try:
        record |= _result(cell, unit)
    except OptionError as error:
        record |= {"status": "declined", "error": registry.one_line(error)}
    except Exception as error:  # somebody's sampler or task: whatever it raises must not cost the other cells
        record |= {"status": "failed", "error": registry.one_line(error)}
    return record | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}


# What a cell's settings say beside the arguments of sample().
ABOUT = ("model", "task", "fewshot", "limit", "chat", "system", "lm_eval", "include", "likelihood", "check_greedy")


def _result(cell: Cell, unit: TaskUnit) -> dict[str, Any]:
    # evaluate() itself: simple_evaluate() also asks pip, git and the processor for their versions, which takes longer than
    # many a cell.
    from lm_eval.evaluator import evaluate

    said = cell.settings
    settings = {k: v for k, v in said.items() if k not in ABOUT and v is not None}
    sampler = None
    if cell.sampler != SCORER:
        sampler = registry.load(cell.sampler).make(**cell.options)
    else:
        settings |= {"mc": cell.value, "check_greedy": said["check_greedy"]}
        settings["likelihood"] = "next" if said["likelihood"] == "next" else "bound"
    lm = SamplersLM(said["model"], sampler, seed=cell.seed, batch_size=cell.batch, **settings)
    lm.progress = False
    for task in unit.tasks.values():
        if said["fewshot"] is not None and task.get_config("num_fewshot") != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=said["fewshot"])
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _quiet():
        results = evaluate(
            lm,
            unit.loaded,
            limit=said["limit"],
            apply_chat_template=said["chat"],
            system_instruction=said["system"],
            fewshot_as_multiturn=said["chat"],
            bootstrap_iters=1000,
        )
    if results is None:
        raise OptionError("under torch.distributed only the first process has results; run samplers eval --shard auto")
    answers = [a | {"task": name} for name, many in results["samples"].items() for a in many]
    return {"score": _score(results, unit), "answers": answers, **_cost(lm, cell.rows)}


@contextlib.contextmanager
def _quiet() -> Any:
    """Without lm-eval's own account of what it does."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _cost(lm: SamplersLM, documents: int) -> dict[str, Any]:
    c, k = lm.cost, lm.likelihoods
    passes = c.passes + k.row_evals
    out: dict[str, Any] = {
        "nfe": {
            "forwards": c.nfe + k.nfe,
            "row_evals": c.row_evals + k.row_evals,
            "token_evals": c.token_evals + k.token_evals,
            "cache_bytes": c.cache_bytes,
            "per_row": passes / max(1, c.rows + len(k.nll)),
        },
        "seconds": {"denoiser": c.denoiser + k.seconds, "sampler": c.sampler},
        "cut": c.cut + k.cut,
    }
    if c.rows:
        out["tokens"] = {"generated": c.tokens, "per_pass": c.tokens / max(1, c.passes)}
    if k.nll:
        out["likelihood"] = k.summary()
    return out


def _score(results: Any, unit: TaskUnit) -> dict[str, Any]:
    """lm-eval's metrics as estimates: value, stderr, and a 95 % interval, Wilson's for a share."""
    found = results["results"].get(unit.name) or results.get("groups", {}).get(unit.name) or {}
    n = sum(results["n-samples"][t]["effective"] for t in unit.tasks)
    higher = results["higher_is_better"].get(unit.name, {})
    estimates: dict[str, Any] = {}
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or isinstance(value, (str, bool)) or value is None:
            continue
        name = metric if chosen == "none" else f"{metric}, {chosen}"
        stderr = found.get(f"{metric}_stderr,{chosen}")
        stderr = float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None
        each = [a.get(metric) for t in unit.tasks for a in results["samples"][t] if a.get("filter", chosen) == chosen]
        low: float | None = None
        high: float | None = None
        mean = sum(each) / len(each) if each and all(v in (0, 1) for v in each) else None
        if mean is not None and abs(mean - value) < 1e-9:  # a share, of a task or of all documents of a group
            share = wilson(int(sum(each)), len(each))
            low, high = share.low, share.high
        elif stderr is not None:
            low, high = value - 1.96 * stderr, value + 1.96 * stderr
        better = "lower" if higher.get(metric) is False else "higher"
        estimates[name] = {
            "value": float(value), "low": low, "high": high, "n": n, "better": better, "truth": None, "stderr": stderr
        }  # fmt: skip
    return {"primary": next(iter(estimates), ""), "estimates": estimates}


def run(
    request: EvalRequest, folder: str | Path, *, command: str = "", threads: int | None = None, **how: Any
) -> Outcome:
    """Run what is not in the folder yet. Arguments (how: fresh, shard, map, the callbacks) and Outcome as of samplers.bench.run.

    Raises:
        SamplersError: as `plan` raises it, before anything is run. What goes wrong in a cell is in its record.
    """
    about = {"command": command, "requests": [dataclasses.asdict(request)]}
    return run_cells(plan(request), folder, about, EvalWork(request.tasks, request.include, threads), **how)
