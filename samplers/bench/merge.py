"""Parts of a run made one: the stores of a sweep's shards, and the lines of text that the shards of `samplers generate` wrote.

What is in several parts must be the same in all of them, apart from when, where and how fast it was made; then it counts once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError, SamplersError
from ..parallel import Shard, shard_path, sharded
from .records import json_ready
from .store import ANSWERS, CELLS, REQUEST, Store, read_about, write_whole, writing

__all__ = ["Merged", "merge_lines", "merge_stores"]

# What may differ between two records of one cell, or two lines of one prompt.
VOLATILE = ("seconds", "time", "machine", "host", "file")


@dataclass
class Merged:
    """What merging gave.

    Attributes:
        path: the file that was written. count: cells or lines in it. parts: how many parts they come from.
        notes: what the user should know, such as cells of the plan that no part has.
    """

    path: Path
    count: int
    parts: int
    notes: list[str] = dataclasses.field(default_factory=list)


def merge_stores(folders: Sequence[str | Path], out: str | Path) -> Merged:
    """Write one folder of cells from several, in the order of the plan; a sweep, or its report, goes on from there.

    Args:
        folders: folders with a cells.jsonl; or with folders shard-0-of-n and so on in them.
        out: the folder to write. Cells that are there already count as those of a part.

    Raises:
        OptionError: a folder has no cells, or a shard is missing; it is named.
        SamplersError: two parts have different results for one cell, or a file is damaged.
    """
    parts = [part for folder in folders for part in _stores(Path(folder))]
    abouts = [read_about(part) for part in parts]
    said = [tuple(a["shard"]) if "shard" in a else None for a in abouts]
    _check_shards([(s, part) for s, part in zip(said, parts) if s is not None])
    with writing(out):
        target = Store(out)
    try:
        found: dict[str, tuple[dict[str, Any], Path]] = {k: (r, target.path) for k, r in target.records.items()}
        for part in parts:
            if part.resolve() == Path(out).resolve():
                continue
            store = Store(part, write=False)
            for key, record in store.records.items():
                _keep(found, key, record, store.path, _cell_name(record))
        keys = list(dict.fromkeys([k for a in abouts for k in a.get("plan", [])]))
        missing = [k for k in keys if k not in found]
        records = [found[k][0] for k in dict.fromkeys([*keys, *found]) if k in found]
        lines = [json.dumps(json_ready(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records]
        about = {k: v for k, v in abouts[0].items() if k != "shard"}
        with writing(out):
            for key, (_, where) in found.items():
                answers = where.parent / ANSWERS / f"{key}.jsonl"
                if where != target.path and answers.is_file():
                    (target.folder / ANSWERS).mkdir(exist_ok=True)
                    write_whole(target.folder / ANSWERS / answers.name, answers.read_bytes())
            write_whole(target.path, "".join(lines))
            write_whole(target.folder / REQUEST, json.dumps(about, indent=1) + "\n")
    finally:
        target.close()
    notes = (
        [f"{len(missing)} of the {len(keys)} cells of the plan are in no part: one was stopped early"]
        if missing
        else []
    )
    return Merged(target.path, len(records), len(parts), notes)


def _stores(folder: Path) -> list[Path]:
    """The folder, if it has cells; else the folders of its shards."""
    shards = sorted(
        (p for p in folder.glob("shard-*-of-*") if (p / CELLS).is_file()), key=lambda p: sharded(p) or (0, 0)
    )
    if shards or (folder / CELLS).is_file():
        return shards or [folder]
    raise OptionError(f"{folder} has no {CELLS}, and no folder such as {shard_path(folder, (0, 4)).name} with one")


def _cell_name(record: dict[str, Any]) -> str:
    what = record["settings"].get("task", record["problem"])
    return f"cell {record['key']} ({what} {record['sampler']} {record['knob']}={record['value']} seed {record['seed']})"


def merge_lines(files: Sequence[str | Path], out: str | Path) -> Merged:
    """Write one .jsonl file of several, in the order of the lines' "index".

    Args:
        files: files of lines with "index"; or the name without shard-i-of-n, which stands for all of its shards.
        out: the file to write.

    Raises:
        OptionError: a file is missing or has another form, or a shard is missing; it is named.
        SamplersError: two files have different lines of one index.
    """
    parts = [part for file in files for part in _files(Path(file))]
    _check_shards([(s, part) for part in parts if (s := sharded(part)) is not None])
    found: dict[int, tuple[dict[str, Any], Path]] = {}
    for part in parts:
        for number, line in _lines(part):
            try:
                record = json.loads(line)
                index = int(record["index"])
            except (ValueError, TypeError, KeyError) as error:
                raise OptionError(f"{part}, line {number}: an object with an index is needed ({error!r})") from error
            first, where = next(iter(found.values()), (record, part))
            if first.get("key") != record.get("key"):
                raise OptionError(
                    f"{where} and {part} were written with other settings: their lines differ in key (model, sampler, options, "
                    "seed, version)"
                )
            _keep(found, index, record, part, f"index {index}")
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    lines = [json.dumps(found[i][0], ensure_ascii=False) + "\n" for i in sorted(found)]
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, "".join(lines))
    except OSError as error:
        raise OptionError(f"--out {out} cannot be written: {error.strerror or error}") from error
    shown = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
    return Merged(out, len(lines), len(parts), [f"no part has the lines of index {shown}"] if missing else [])


def _files(path: Path) -> list[Path]:
    shards = path.parent.glob(f"{path.stem}.shard-*-of-*{path.suffix}") if sharded(path) is None else ()
    found = sorted(shards, key=lambda p: sharded(p) or (0, 0))
    if not found and not path.is_file():
        raise OptionError(f"{path} is not there, and no shard of it, such as {shard_path(path, (0, 4)).name}")
    return found or [path]


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """The whole lines of a file: the last one may be cut off if its run was stopped."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    whole = text[: text.rfind("\n") + 1]
    # Not splitlines(), which also ends lines at characters that a text may hold, such as U+2028.
    return [(i, line) for i, line in enumerate(whole.split("\n"), 1) if line.strip()]


def _check_shards(given: Sequence[tuple[Shard, Path]]) -> None:
    """OptionError if the parts are shards of different numbers, or one of them is missing."""
    counts = {n: part for (_, n), part in given}
    if len(counts) > 1:
        some = "; ".join(f"{part} is one of {n}" for n, part in sorted(counts.items()))
        raise OptionError(f"these are shards of different numbers: {some}")
    for n in counts:
        if missing := sorted(set(range(n)) - {i for (i, _), _ in given}):
            raise OptionError(f"shard {', '.join(f'{i}/{n}' for i in missing)} is missing; give all {n} of them")


def _keep(found: dict[Any, Any], key: Any, record: dict[str, Any], part: Path, name: str) -> None:
    """Take a record, unless there is one of its key, which must be the same; a failed one gives way."""
    if key not in found or found[key][0].get("status") == "failed":
        found[key] = record, part
        return
    old, where = found[key]
    if record.get("status") == "failed":
        return
    differ = [k for k in dict.fromkeys([*old, *record]) if k not in VOLATILE and old.get(k) != record.get(k)]
    if differ:
        raise SamplersError(
            f"{name} has two results that differ in {', '.join(differ)}: in {where} and in {part}. Delete one of them"
        )
