"""What a plug-in says of itself, read from its source without importing it.

Importing a plug-in may take seconds (torch), print, or fail. A list of names needs a few short texts only, and nearly
every class writes them as literals in its body: `name = "radd"`, or `name, family = "radd", "masked"`. A hook is
mostly a few calls `register("module:Class", name="radd")`, which can be read as well.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Declared", "interface", "literals", "registrations"]

LARGEST = 400_000  # bytes of source; a longer file is not read for the sake of a list
STATEMENT = "samplers_interface"  # the module attribute that says for which interface a plug-in was written


@dataclass(frozen=True)
class Declared:
    """A call of register() as it is written in a hook.

    Attributes:
        hook: the function that it is in. target: 'module:object'. place: 'file:line' of the call.
    """

    hook: str
    name: str
    target: str
    family: str | None
    summary: str | None
    place: str


def literals(target: str) -> dict[str, str]:
    """The literal texts that 'module:object' says of itself.

    Returns:
        attribute -> text, of a class; "doc" -> the first line of the docstring, if there is one, of a class or function.
        Empty if the source is not there, does not parse, or has no such object at its top level.
    """
    module, _, attribute = target.partition(":")
    head = _head(module, attribute.strip())
    if head is not None and {"name", "summary", "cite"} <= (texts := _texts(head, attribute.strip())).keys():
        return texts
    tree = _tree(module)
    return {} if tree is None else _texts(tree, attribute.strip())


def interface(module: str) -> int | None:
    """The literal `samplers_interface = N` of a module, or of the package that it is in; None if there is none."""
    parts = module.strip().split(".")
    for n in range(len(parts), 0, -1):
        tree = _tree(".".join(parts[:n]))
        for node in tree.body if tree is not None else ():
            names, values = _assigned(node)
            for name, value in zip(names, values):
                if name == STATEMENT and isinstance(value, ast.Constant) and type(value.value) is int:
                    return value.value
    return None


def registrations(module: str, hooks: Collection[str]) -> tuple[list[Declared], bool]:
    """The calls of register() in the hooks of a module.

    Args:
        hooks: the names of the hooks that there are.

    Returns:
        The calls that are written as literals; and whether they are all that the module registers, as far as its source tells.
    """
    tree = _tree(module)
    if tree is None:
        return [], False
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any(_is_hookimpl(d) for d in node.decorator_list)
    }
    # Anything else that makes or takes the name of a hook, such as an import of it, is beyond what is read here.
    others = sum(
        (isinstance(node, ast.FunctionDef) and (node.name in hooks or any(map(_is_hookimpl, node.decorator_list))))
        or (isinstance(node, ast.Name) and node.id in hooks)
        or (isinstance(node, ast.alias) and (node.name == "*" or (node.asname or node.name) in hooks))
        for node in ast.walk(tree)
    )
    whole = bool(functions) and others == len(functions) and set(functions) <= set(hooks)
    found: list[Declared] = []
    for function in functions.values():
        plain = [a.arg for a in function.args.args] == ["register"] and len(function.decorator_list) == 1
        if function.name not in hooks or not plain:  # importing it will tell
            whole = False
            continue
        for statement in function.body:
            if isinstance(statement, ast.Pass) or _is_text(statement):
                continue
            call = _call(statement, tree, module, function.name)
            whole = whole and call is not None
            found += [] if call is None else [call]
    return found, whole and len({(d.hook, d.name) for d in found}) == len(found)


def _call(statement: ast.stmt, tree: ast.Module, module: str, hook: str) -> Declared | None:
    """`register("module:Class", name="x")` or `register(Class)` of a class or function of this module; None for anything else."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register"):
        return None
    told: dict[str | None, str] = {}
    for k in call.keywords:
        if isinstance(k.value, ast.Constant) and isinstance(k.value.value, str):
            told[k.arg] = k.value.value
    if len(call.args) != 1 or len(told) != len(call.keywords) or not set(told) <= {"name", "family", "summary"}:
        return None
    (what,) = call.args
    if isinstance(what, ast.Constant) and isinstance(what.value, str) and ":" in what.value:
        target, own = what.value, None
    elif isinstance(what, ast.Name):
        target, own = f"{module}:{what.id}", _texts(tree, what.id).get("name")
        if any(isinstance(n, ast.FunctionDef) and n.name == what.id for n in tree.body):
            own = what.id
        elif not any(isinstance(n, ast.ClassDef) and n.name == what.id for n in tree.body):
            return None
    else:
        return None
    name = told.get("name", own)
    if not isinstance(name, str):
        return None
    place = f"{_source(module)}:{statement.lineno}"
    return Declared(hook, name, target, told.get("family"), told.get("summary"), place)


def _is_hookimpl(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        node = node.func
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)) == "hookimpl"


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _texts(tree: ast.Module, attribute: str) -> dict[str, str]:
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = next((n for n in tree.body if isinstance(n, kinds) and n.name == attribute), None)
    texts: dict[str, str] = {}
    if found is None:
        return texts
    for node in found.body if isinstance(found, ast.ClassDef) else ():
        for name, value in zip(*_assigned(node)):
            if name is not None and isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[name] = value.value
    if doc := ast.get_docstring(found):
        texts.setdefault("doc", doc.partition("\n")[0])
    return texts


def _assigned(node: ast.stmt) -> tuple[list[str | None], list[ast.expr]]:
    """The names and values of an assignment; a name that is none (an attribute, say) is None."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        names, values = [node.target], [node.value]
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        to, value = node.targets[0], node.value
        names, values = [to], [value]  # type: ignore[list-item]
        if isinstance(to, ast.Tuple) and isinstance(value, ast.Tuple):
            names, values = to.elts, value.elts  # type: ignore[assignment]
    else:
        return [], []
    return [name.id if isinstance(name, ast.Name) else None for name in names], values


def _tree(module: str) -> ast.Module | None:
    """The source of a module, parsed; None if it is not there or does not parse."""
    try:
        path = _source(module)
        if path is None:
            return None
        about = path.stat()
        return None if about.st_size > LARGEST else _parsed(path, about.st_mtime_ns, about.st_size)
    except Exception:  # a finder of somebody's, an unreadable file, or a syntax error: importing it will tell
        return None


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, mtime: int, size: int) -> ast.Module:
    return ast.parse(path.read_bytes())


def _head(module: str, attribute: str) -> ast.Module | None:
    """A class from its first line to its first method, parsed: a fifth of the work. None if that cannot be told apart."""
    try:
        path = _source(module)
        if path is None or path.stat().st_size > LARGEST:
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
        start = next(i for i, line in enumerate(lines) if re.match(rf"class {re.escape(attribute)}\b", line))
        ends = (i for i in range(start + 1, len(lines)) if re.match(r"    (def|async def|@)|[^\s)]", lines[i]))
        return ast.parse("\n".join(lines[start : next(ends, len(lines))]))
    except Exception:  # no such class, or a docstring that holds code: the whole file is parsed
        return None


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
