"""The file that remembers a sweep: one line per finished cell, on the disk before the next cell begins."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import OptionError, SamplersError
from .cells import Cell
from .records import Record, damage, json_ready

__all__ = ["ANSWERS", "CELLS", "REQUEST", "Store", "read_about", "session", "write_whole", "writing"]

CELLS, REQUEST = "cells.jsonl", "sweep.json"
ANSWERS = "answers"  # the folder of what a cell has to say row by row, if it does: a file for each


def _locked(folder: Path) -> Any:
    """An open file that no other sweep can lock: two writers would mix their lines. None if the system has no flock."""
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
    """DIR/cells.jsonl: one line per finished cell, appended and flushed to the disk.

    Args:
        folder: it is made if it is missing.
        write: False only reads, and changes nothing.
        fresh: put the cells that are there aside, as cells.jsonl.bak, cells.jsonl.bak.2 and so on.

    Attributes:
        records: the sound records by key, in the order of the file; of two lines with one key the later counts.
        notes: what the user should know of the file.

    Raises:
        OptionError: the folder cannot be made or written, is no folder, has nothing to read, or another sweep is
            writing there.
        SamplersError: a line, other than one cut off at the end, is not a cell; it names file and line.
    """

    def __init__(self, folder: str | Path, *, write: bool = True, fresh: bool = False):
        self.folder, self.path = Path(folder), Path(folder) / CELLS
        self.notes: list[str] = []
        self.records: dict[str, Record] = {}
        self._lock: Any = None  # held as long as this object lives
        try:
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self.folder)
                if fresh and self.path.exists() and self.path.stat().st_size:
                    aside = _unused(self.path.with_suffix(".jsonl.bak"))
                    self.path.replace(aside)
                    self.notes.append(f"earlier cells were put aside as {aside.name}")
                with open(self.path, "ab"):
                    pass  # it can be written: better to know now than after an hour of sampling
            self._read(self.path.read_bytes(), write)
        except OSError as error:
            self.close()
            verb = "written" if write else "read"
            raise OptionError(f"{self.path} cannot be {verb}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def _read(self, content: bytes, write: bool) -> None:
        whole = content.rfind(b"\n") + 1
        damaged: list[tuple[int, str, str]] = []
        for number, line in enumerate(content[:whole].splitlines(), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                    key = record["key"]
                except (ValueError, TypeError, KeyError) as error:
                    raise SamplersError(
                        f"{self.path}, line {number} is not a cell ({registry.one_line(error)}); "
                        "mend or delete that line, or start again with --fresh"
                    ) from error
                if wrong := damage(record):
                    damaged.append((number, key, wrong))
                else:
                    self._keep(record)
        for number, key, wrong in damaged:
            if key not in self.records:
                self.notes.append(
                    f"line {number} of {self.path} is damaged: {wrong}; it does not count, and its cell runs again"
                )
        if tail := content[whole:]:
            self._read_tail(tail, whole, write)

    def _read_tail(self, tail: bytes, whole: int, write: bool) -> None:
        """A last line without its newline: a sound record counts, anything else was cut off."""
        try:
            record = json.loads(tail)
            sound = damage(record) is None
        except ValueError:
            sound = False
        if sound:
            self._keep(record)
            if write:
                with open(self.path, "ab") as file:
                    file.write(b"\n")
            return
        self.notes.append(f"the last line of {self.path} was cut off and is dropped; its cell will run again")
        if write:
            os.truncate(self.path, whole)

    def _keep(self, record: Record) -> None:
        self.records.pop(record["key"], None)  # the order is that of the latest lines
        self.records[record["key"]] = record

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns. Its "answers", if it has any, go to answers/KEY.jsonl.

        Raises:
            SamplersError: it cannot be written, as on a full disk. Nothing of it is left in the file then.
        """
        answers, record = record.get("answers"), {k: v for k, v in record.items() if k != "answers"}
        line = (json.dumps(json_ready(record), ensure_ascii=False, allow_nan=False) + "\n").encode()
        with writing(self.folder):
            if answers is not None:
                rows = [json.dumps(json_ready(a), ensure_ascii=False, default=str) + "\n" for a in answers]
                (self.folder / ANSWERS).mkdir(exist_ok=True)
                write_whole(self.folder / ANSWERS / f"{record['key']}.jsonl", "".join(rows))
            before = self.path.stat().st_size
            try:
                with open(self.path, "ab", buffering=0) as file:
                    left = memoryview(line)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, before)
                raise
        self._keep(record)

    def close(self) -> None:
        """Let another sweep write here."""
        if self._lock is not None:
            self._lock.close()

    def done(self, cell: Cell) -> bool:
        """Whether the cell has its result; a failed one has not."""
        return self.records.get(cell.key, {}).get("status") in ("ok", "declined")

    def note_changes(self, cells: Sequence[Cell]) -> None:
        """Before `cells` are run: say which of them were measured by other code, and count that no more.

        Of one setting the record that stands last in the file is the current one (see collect.current). A cell whose
        code was changed and changed back has its old record written again, so that it is the last one.
        """
        last: dict[str, Record] = {}
        for record in self.records.values():
            last[_setting(record)] = record
        changed: dict[str, int] = {}
        for cell in cells:
            old = last.get(_setting(dataclasses.asdict(cell)))
            if old is None or old["key"] == cell.key:
                continue
            if self.done(cell):
                if old["library"] == registry.version():
                    self.add(self.records[cell.key])
            elif old["library"] != registry.version():
                what = f"sampler-zoo was {old['library']} and is {registry.version()} now"
                changed[what] = changed.get(what, 0) + 1
            else:
                now = f"{cell.sampler}: code changed since"
                if old["version"] != cell.version:
                    now = f"{cell.sampler}: {cell.distribution} was {old['version']} and is {cell.version} now"
                changed[now] = changed.get(now, 0) + 1
        self.notes += [f"{what}; {n} cell{'s' * (n > 1)} that it measured run again" for what, n in changed.items()]


@contextlib.contextmanager
def session(folder: str | Path, about: dict[str, Any], *, fresh: bool = False) -> Iterator[Store]:
    """The store of a folder, locked while it is used.

    Args:
        about: what is written beside the cells, for the report. Its command is added to those of earlier runs.
    """
    store = Store(folder, fresh=fresh)
    try:
        earlier = [] if fresh else read_about(folder).get("commands", [])
        commands = [c for c in dict.fromkeys([*earlier, about["command"]]) if c]
        text = json.dumps(about | {"commands": commands, "library": registry.version()}, indent=1, default=str) + "\n"
        with writing(store.folder):
            write_whole(store.folder / REQUEST, text)
        yield store
    finally:
        store.close()


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `session` wrote beside the cells; empty if it is not there or cannot be read."""
    try:
        about = json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into a sentence that says what is safe.

    Raises:
        SamplersError: with the folder, the reason, and how many cells are in it.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone, as in `samplers bench | head`
        raise
    except OSError as error:
        try:
            safe = (Path(folder) / CELLS).read_bytes().count(b"\n")
        except OSError:
            safe = 0
        where = f" ({error.filename})" if error.filename else ""
        raise SamplersError(
            f"{folder} cannot be written: {error.strerror or error}{where}. {safe:,} finished "
            f"cell{'s are' if safe != 1 else ' is'} safe in {CELLS} there; make room, and the same command with --out goes on"
        ) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that there is the old one or the whole new one, whatever happens."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _unused(path: Path) -> Path:
    """`path`, or `path`.2 and so on if there is such a file."""
    numbered = itertools.chain([path], (path.with_name(f"{path.name}.{k}") for k in itertools.count(2)))
    return next(p for p in numbered if not p.exists())


def _setting(record: Record) -> str:
    """What a record or a cell measures, whatever code does it."""
    names = [f.name for f in dataclasses.fields(Cell) if f.name not in ("version", "code")]
    return json.dumps(json_ready({name: record.get(name) for name in names}), sort_keys=True, default=str)
