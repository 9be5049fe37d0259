"""The shape of the package: no circle of imports, and no file too long to read in one sitting."""

import ast
from pathlib import Path

import pytest

import samplers

ROOT = Path(samplers.__file__).parent
LONGEST = 350  # lines of a module of the bench


def modules():
    """{dotted name: path} of every module of the package but the kit, which may import all of it."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if not name.startswith("samplers.testing")}


def imports(name, path, known, lazy):
    """The package's own modules that one imports; `lazy`: inside functions as well. What only type checkers read never counts."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()

    def add(target):
        while target and target not in known:
            target = target.rpartition(".")[0]
        if target and target != name:
            found.add(target)

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    add(alias.name)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    up = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*up, *([child.module] if child.module else [])])
                for alias in child.names:
                    # `from . import plot` is an import of the module, not of the folder that it is in.
                    add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def circles(graph):
    """The groups of modules that import each other, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def graph_of(keep, lazy):
    known = modules()
    graph = {name: imports(name, path, known, lazy) for name, path in known.items() if keep(name)}
    return {name: {other for other in others if other in graph} for name, others in graph.items()}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_module_is_in_a_circle():
    graph = graph_of(lambda name: name != "samplers", lazy=False)  # its __init__ imports all public names
    assert len(graph) > 80
    assert "samplers.bench.collect" in graph["samplers.bench.plot"]
    assert circles(graph) == []


def test_no_module_of_the_bench_or_the_command_line_is_in_a_circle_not_even_through_a_function():
    graph = graph_of(
        lambda name: name.startswith(("samplers.bench.", "samplers.problems.", "samplers.cli.")), lazy=True
    )
    assert "samplers.bench.live" in graph["samplers.cli.bench"]  # inside a function
    assert circles(graph) == []


def test_the_families_import_each_other_one_way():
    """masked builds on uniform once (llada2); nothing of uniform or gaussian may build on another family."""
    graph = graph_of(lambda name: True, lazy=True)
    families = ("masked", "uniform", "gaussian")
    used = {a: {b for b in families for name in graph if name.startswith(f"samplers.{a}")
                for other in graph[name] if a != b and other.startswith(f"samplers.{b}")} for a in families}  # fmt: skip
    assert used == {"masked": {"uniform"}, "uniform": set(), "gaussian": set()}


def test_families_do_not_import_what_runs_them():
    """Samplers know what authors know: no driver, no registry, no command line, no benchmark, no kit."""
    graph, above = graph_of(lambda name: True, lazy=True), ("driver", "registry", "cli", "bench", "testing")
    for name, used in graph.items():
        if name.startswith(("samplers.masked", "samplers.uniform", "samplers.gaussian")):
            assert not [other for other in used if other.split(".")[1:2] and other.split(".")[1] in above], name


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.name)
def test_files_of_the_bench_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
