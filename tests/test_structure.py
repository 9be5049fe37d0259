"""How the library's folders import each other."""

import ast
from pathlib import Path

import samplers

ROOT = Path(samplers.__file__).parent
FAMILIES = ("masked", "uniform", "gaussian")


def imported(path):
    """The modules of this library that a file imports anywhere in it, as paths of names below `samplers`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samplers":
            yield from ((*node.module.split(".")[1:], alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("samplers."))


def test_no_circle_between_the_families():
    """A sampler's file can be read without going back and forth between folders."""
    uses = {
        family: {to[0] for path in (ROOT / family).glob("*.py") for to in imported(path) if to[0] in FAMILIES}
        - {family}
        for family in FAMILIES
    }
    assert uses["masked"] == {"uniform"}, "llada2 is block_refinement with masks"

    def reached(family, seen=()):
        return {family}.union(*(reached(to, (*seen, family)) for to in uses[family] if to not in seen))

    for family in FAMILIES:
        for to in uses[family]:
            assert family not in reached(to), f"{family} imports {to}, which imports {family}"


def test_families_do_not_import_what_runs_them():
    """Samplers know what authors know: no driver, no registry, no command line, no benchmark."""
    above = {"driver", "registry", "cli", "bench", "testing"}
    for family in FAMILIES:
        for path in (ROOT / family).glob("*.py"):
            assert not above & {to[0] for to in imported(path)}, path
