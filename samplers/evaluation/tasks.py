"""Tasks by name: those in the box and in the user's folders first, which takes no time, then the thousands of lm-eval."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError, SamplersError, UnknownNameError, did_you_mean
from ..registry import one_line
from .lm import LENGTHS, MAX_GEN_TOKS

__all__ = ["BOX", "TaskUnit", "load_tasks"]

BOX = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class TaskUnit:
    """What one cell is run on: a task, or a group of tasks that has a score of its own.

    Attributes:
        name: its name in lm-eval.
        loaded: what lm-eval's evaluate() takes: {"tasks", "groups", "group_map"}.
    """

    name: str
    loaded: dict[str, Any]

    @property
    def tasks(self) -> dict[str, Any]:
        return self.loaded["tasks"]

    @property
    def generates(self) -> bool:
        """Whether a sampler is asked; else the score depends on the model's likelihood alone."""
        return any(t.get_config("output_type") == "generate_until" for t in self.tasks.values())

    @property
    def gen_length(self) -> int:
        """The most positions that an answer may fill, by the tasks' generation_kwargs."""
        asked = [t.get_config("generation_kwargs") or {} for t in self.tasks.values()]
        return max(int(next((kw[k] for k in LENGTHS if k in kw), MAX_GEN_TOKS)) for kw in asked)

    def documents(self, limit: int | None) -> int:
        """How many documents are asked, with `limit` per task."""
        return sum(min(len(t.eval_docs), limit or len(t.eval_docs)) for t in self.tasks.values())

    def fingerprint(self, limit: int | None) -> str:
        """12 hex digits of the tasks' configurations and of the documents that are asked."""
        digest = hashlib.sha256()
        for name, task in sorted(self.tasks.items()):
            config = {k: v for k, v in task.dump_config().items() if k not in ("metadata", "num_fewshot")}
            digest.update(json.dumps([name, config, str(task.VERSION)], sort_keys=True, default=str).encode())
            for i, document in enumerate(task.eval_docs):
                if limit is not None and i >= limit:
                    break
                digest.update(json.dumps(document, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:12]


def load_tasks(names: Sequence[str], include: Sequence[str | Path] = ()) -> list[TaskUnit]:
    """The tasks that names stand for, each once.

    Args:
        names: tasks or groups; tags, which stand for their tasks; .yaml files; folders, which stand for all tasks in them.
        include: folders of more tasks.

    Raises:
        UnknownNameError: there is no such task; it names the nearest. OptionError: a folder or file is not there.
        SamplersError: the data of a task cannot be had.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = [Path(f) for f in include]
    wanted: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise OptionError(f"--include-path {folder}: there is no such folder")
    for name in names:
        if Path(name).is_dir() and name not in ("", "."):
            folders.append(Path(name))
            inside = TaskManager(include_defaults=False, include_path=name).all_subtasks
            if not inside:
                raise OptionError(f"--tasks {name}: the folder has no .yaml file of a task")
            wanted += inside
        elif name.endswith((".yaml", ".yml")) and not Path(name).is_file():
            raise OptionError(f"--tasks {name}: there is no such file")
        else:
            wanted.append(name)
    manager = TaskManager(include_defaults=False, include_path=[BOX, *folders])
    if any(n not in manager.all_tasks and not Path(n).is_file() for n in wanted):
        manager = TaskManager(include_path=[BOX, *folders])  # takes some seconds: there are many thousands
    units: dict[str, TaskUnit] = {}
    for name in dict.fromkeys(wanted):
        if name not in manager.all_tasks and not Path(name).is_file():
            box = TaskManager(include_defaults=False, include_path=[BOX, *folders]).all_tasks
            raise UnknownNameError(
                f"there is no task {name!r}{did_you_mean(name, manager.all_tasks)} In the box and in your folders: "
                f"{', '.join(box)}; all others: lm-eval ls tasks"
            )
        for unit in _units(manager, name):
            units.setdefault(unit.name, unit)
    return list(units.values())


def _units(manager: Any, name: str) -> list[TaskUnit]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = manager.load([name])
    except Exception as error:  # errors of many kinds: no network, a broken file, a module that is missing
        raise SamplersError(f"task {name!r} cannot be loaded, or its data cannot be had: {one_line(error)}") from error
    if name in loaded["groups"]:
        return [TaskUnit(name, loaded)]
    return [TaskUnit(n, {"tasks": {n: t}, "groups": {}, "group_map": {}}) for n, t in loaded["tasks"].items()]
