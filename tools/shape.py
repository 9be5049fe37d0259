"""The shape of the house in numbers: how far one step travels, how long files are, how much is typed.

    python tools/shape.py                     # this checkout
    python tools/shape.py --against aac8a37   # two columns: that commit, and this checkout

A step is traced with a model of 48 tokens: the files of the package in which a function of it is called, and how often
control passes from one file to another (the folder ops counts as one file: its twins run here in place of
kernels). Functions without types are those with an argument or a result that has no
annotation, in samplers/.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRACE = """
import json, os, sys, torch, samplers
root = os.path.dirname(samplers.__file__)
logits = torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(0))
model = samplers.TokenDenoiser.wrap(lambda ids: logits.expand(len(ids), -1, -1), vocab_size=48, mask_id=47)
out = {}
for name in ("threshold", "radd"):
    run = samplers.stream(model, name, gen_length=16, steps=8)
    for _ in range(3):
        next(run)
    calls = []
    def watch(frame, event, arg):
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(root):
            path = os.path.relpath(path, root)
            calls.append("ops" if path.startswith("ops") else path)
    sys.setprofile(watch)
    next(run)
    sys.setprofile(None)
    changes = sum(a != b for a, b in zip(calls, calls[1:]))
    out[name] = {"files": len(set(calls)), "calls": len(calls), "changes": changes}
print(json.dumps(out))
"""


def untyped(tree: ast.AST) -> int:
    """Functions and methods with an argument (but self and cls) or a result without annotation."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            lacks = [x for x in given if x.annotation is None and x.arg not in ("self", "cls")]
            count += bool(lacks or (node.returns is None and node.name != "__init__"))
    return count


def measure(root: Path) -> dict[str, object]:
    """The numbers of one checkout."""
    files = sorted((root / "samplers").rglob("*.py"))
    lines = {str(f.relative_to(root)): len(f.read_text().splitlines()) for f in files}
    trees = [ast.parse(f.read_text()) for f in files]
    functions = sum(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) for t in trees for n in ast.walk(t))
    env = os.environ | {"PYTHONPATH": str(root), "SAMPLERS_NATIVE": "0", "SAMPLERS_PLUGINS": "none"}
    traced = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", TRACE],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "trace": json.loads(traced.stdout),
        "largest": sorted(lines.items(), key=lambda item: -item[1])[:10],
        "functions": functions,
        "untyped": sum(map(untyped, trees)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", metavar="REV", help="a commit to show beside this checkout")
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    columns = {"now": measure(here)}
    if args.against:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                ["git", "worktree", "add", "--quiet", "--detach", folder, args.against], cwd=here, check=True
            )
            try:
                columns = {args.against: measure(Path(folder))} | columns
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=here, check=True)
    names = list(columns)
    rows: list[list[object]] = []
    for sampler in ("threshold", "radd"):
        for key, what in (("files", "files touched"), ("changes", "changes of file"), ("calls", "calls")):
            rows.append([f"one step of {sampler}: {what}", *(columns[n]["trace"][sampler][key] for n in names)])  # type: ignore[index]
    for i in range(10):
        rows.append([f"file {i + 1} by length", *("{1} {0}".format(*columns[n]["largest"][i]) for n in names)])  # type: ignore[index]
    rows.append(["functions without types", *(f"{columns[n]['untyped']} of {columns[n]['functions']}" for n in names)])
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
