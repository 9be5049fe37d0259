"""The file that remembers a sweep: one line per finished cell, on the disk before the next cell begins."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..errors import OptionError, SamplersError
from .cells import Cell

__all__ = ["CELLS", "REQUEST", "Record", "Store", "pack", "session", "unpack"]

CELLS, REQUEST = "cells.jsonl", "sweep.json"

Record = dict[str, Any]


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
