"""Fake distributions on sys.path, as pip would leave them: for tests of plug-ins."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import samplers

SAMPLER = """
    from dataclasses import dataclass
    from samplers import Sampler, option

    @dataclass(frozen=True)
    class S(Sampler):
        '''A sampler made for a test, eq. 0.'''
        name, family, cite, summary = "{name}", "masked", "nobody", "takes everything at once"

        def step(self, predict, state):
            return state.commit(state.open, predict(state).token)
"""


def lay(folder, dist, module, code, entry_points, group="samplers", version="1.0"):
    """A distribution as pip would leave it."""
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    info = folder / f"{dist.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    lines = "\n".join(f"{name} = {target}" for name, target in entry_points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")


def python(code, folder):
    """Run code in a process of its own, in `folder`, with the distributions there installed."""
    root = str(Path(samplers.__file__).parents[1])
    path = os.pathsep.join([str(folder), root, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
