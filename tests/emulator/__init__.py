"""Kernel bodies of csrc/cuda on the CPU: `emulated("masked_softmax")` is tests/emulator/masked_softmax.cpp as a module.

Such a file includes the unmodified `.cuh`, and offers its launcher to Python through pybind11 (`PYBIND11_MODULE(
SAMPLERS_EMULATED, m)`); pointers travel as integers, `tensor.data_ptr()`. The module is built by the system's compiler
into the temporary folder, once for each state of its sources.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
FLAGS = (
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Werror=return-type",
)


@functools.cache
def emulated(family):
    """The module of one family; skips the test if a tool to build it is missing."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"the block emulator needs a C++ compiler; {compiler} is not found")
    include = _pybind11()
    if include is None:
        pytest.skip("the block emulator needs pybind11's headers")
    source = HERE / f"{family}.cpp"
    texts = [source, HERE / "emulator.h", *sorted(CSRC.glob("*.h")), *sorted(CSRC.glob("cuda/*.*h"))]
    state = hashlib.sha256(b"\0".join(path.read_bytes() for path in texts) + repr(FLAGS).encode()).hexdigest()[:16]
    name = f"emulated_{family}"
    folder = Path(tempfile.gettempdir()) / f"samplers-emulator-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / state / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        half = built.with_suffix(f".{os.getpid()}")
        command = [
            *(compiler, *FLAGS, f"-DSAMPLERS_EMULATED={name}"),
            *(f"-I{path}" for path in (HERE, CSRC / "cuda", CSRC, *include)),
            *("-o", str(half), str(source)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{source.name} does not compile for the emulator:\n{done.stderr}"
        half.replace(built)  # another process may have been building the same
    spec = importlib.util.spec_from_file_location(name, built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pybind11():
    """Include folders, or None: pybind11's own package, or the copy among torch's headers."""
    python = sysconfig.get_paths()["include"]
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return [pybind11.get_include(), python]
    import torch

    headers = Path(torch.__path__[0]) / "include"
    return [str(headers), python] if (headers / "pybind11").is_dir() else None
