"""What a sampler class says of itself, read from its source without importing it.

Importing a plug-in may take seconds (torch), print, or fail. A list of samplers needs four short texts only, and nearly
every class writes them as literals in its body: `name = "radd"`, or `name, family = "radd", "masked"`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

__all__ = ["literals"]

LARGEST = 400_000  # bytes of source; a longer file is not read for the sake of a list


def literals(target: str) -> dict[str, str]:
    """The class attributes of 'module:Class' that are literal texts.

    Returns:
        attribute -> text; empty if the source is not there, does not parse, or has no such class at its top level.
    """
    module, _, attribute = target.partition(":")
    try:
        path = _source(module)
        if path is None or path.stat().st_size > LARGEST:
            return {}
        tree = ast.parse(path.read_bytes())
    except Exception:  # a finder of somebody's, an unreadable file, or a syntax error: loading the class will tell
        return {}
    body = next((n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute), [])
    found: dict[str, str] = {}
    names: list[ast.expr]
    values: list[ast.expr]
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            names, values = [node.target], [node.value]
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            to, value = node.targets[0], node.value
            names, values = [to], [value]
            if isinstance(to, ast.Tuple) and isinstance(value, ast.Tuple):
                names, values = to.elts, value.elts
        else:
            continue
        for name, value in zip(names, values):
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[name.id] = value.value
    return found


def _source(module: str) -> Path | None:
    """The file of a module. Only its top-level package is looked up: looking up `a.b` would import `a`."""
    top, *inner = module.strip().split(".")
    loaded = sys.modules.get(top)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(top)
    if spec is None:
        return None
    if not inner:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *inner)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None
