"""A fingerprint of the code that a cell runs. When the code has changed, what the old code measured does not count."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, ModuleType

from ..sampler import Sampler

__all__ = ["fingerprint"]


def fingerprint(cls: type[Sampler], modules: Iterable[str] = ()) -> str:
    """12 hex digits of a sampler's source.

    Counted are the files of the class and of its bases below `Sampler`, and the files in the same folders that they use
    something of, such as a module of helpers. A class without a file counts by its own source, if Python has it.

    Args:
        modules: names of further modules that count, with what they use of their own folders: a user's model or metric.
    """
    digest = hashlib.sha256()
    queue = [sys.modules[name] for name in modules if name in sys.modules]
    for base in cls.__mro__:
        if base in Sampler.__mro__:
            continue
        module = sys.modules.get(base.__module__)
        if module is not None and _file(module):
            queue.append(module)
        else:
            digest.update(_text(base).encode())
    seen: set[Path] = set()
    while queue:
        module = queue.pop()
        path = _file(module)
        if path is None or path in seen:
            continue
        seen.add(path)
        for value in list(vars(module).values()):
            used = sys.modules.get(value.__module__) if isinstance(value, (type, FunctionType)) else value
            if isinstance(used, ModuleType) and (near := _file(used)) and near.parent == path.parent:
                queue.append(used)
    for path in sorted(seen):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _file(module: ModuleType) -> Path | None:
    """The file of a module, if there is one to read."""
    name = getattr(module, "__file__", None)
    return Path(name) if isinstance(name, str) and Path(name).is_file() else None


def _text(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""
