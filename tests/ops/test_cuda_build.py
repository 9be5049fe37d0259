"""What nvcc makes of the kernels, where it is found: they compile for every architecture, and the softmax kernels keep
what they work on in registers."""

import concurrent.futures
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from samplers.ops import _native

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = (80, 90)
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not found")
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compile_one(source, folder):
    """→ (return code, what nvcc printed); of the build that is there, if it is of these sources."""
    newest = max(path.stat().st_mtime for path in [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.*")])
    for text in ROOT.glob(f"build/temp*/cuda-{'-'.join(map(str, ARCHS))}/{source.stem}.txt"):
        if text.stat().st_mtime > newest:
            return 0, text.read_text()
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
    command = [NVCC, "-std=c++17", "-O3", "-fmad=false", "--threads=2", *archs, "--ptxas-options=-v", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(folder / f"{source.stem}.o")], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Every kernel of every file: name, architecture, registers, spilled bytes."""
    folder = tmp_path_factory.mktemp("cuda")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = dict(zip(SOURCES, pool.map(lambda source: compile_one(source, folder), SOURCES)))
    found = []
    for source, (code, text) in results.items():
        assert code == 0, f"{source.name}:\n{text}"
        assert "error" not in text and "warning" not in text, f"{source.name}:\n{text}"
        found += [(source.stem, {k: v if k == "name" else int(v) for k, v in m.groupdict().items()})
                  for m in KERNEL.finditer(text)]  # fmt: skip
    return found


@needs_nvcc
def test_softmax_kernels_stay_in_registers(kernels):
    softmax = [kernel for family, kernel in kernels if family.startswith("masked_softmax")]
    for kind in ("whole_rows", "parts_of_rows", "finalize_rows", "truncate_rows"):
        for arch in ARCHS:
            assert sum(kind in k["name"] and k["arch"] == arch for k in softmax) >= 3, (kind, arch)  # one a format
    for k in softmax:
        assert (k["stack"], k["stores"], k["loads"]) == (0, 0, 0), k
        # Two blocks of 256 threads share 65,536 registers; guided and cut rows have a multiprocessor's to themselves.
        careful = re.search(r"Lb[01]ELb1E", k["name"])
        assert k["registers"] <= (255 if careful else 128), k


@needs_nvcc
def test_the_module_has_them():
    if _native.C is None:
        pytest.skip(f"no native extension: {_native.REASON}")
    if os.environ.get("SAMPLERS_CUDA") == "0":
        pytest.skip("SAMPLERS_CUDA=0")
    facts = _native.C.build_facts()
    assert facts["cuda"] is True, "nvcc is here, yet the module has no CUDA; SAMPLERS_CUDA=0 says that it was meant"
    assert {f"sm_{a}" for a in ARCHS} <= set(facts["cuda_archs"].split()) or os.environ.get("SAMPLERS_CUDA_ARCHS")
    assert any(word.startswith("compute_") for word in facts["cuda_archs"].split())


def test_without_cuda_the_facts_say_so():
    if _native.C is None or _native.C.build_facts()["cuda"]:
        pytest.skip("this build has CUDA kernels, or none at all")
    assert _native.C.build_facts()["cuda_archs"] == ""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not found")
def test_the_demo_does_not_wait_for_cuda(tmp_path):
    """`make bench` builds for the CPU only, `make test` everything, and neither takes the other's build for its own."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for name in ("csrc", ".venv"):
        (tmp_path / name).mkdir()
    venv, source, now = tmp_path / ".venv", tmp_path / "csrc" / "a.h", time.time()

    def touch(path, seconds):
        path.touch()
        os.utime(path, (now + seconds, now + seconds))

    def builds(target):
        """Which builds `make target` would make."""
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if "setup.py" in line and "build_ext" in line]
        return ["cpu" if "SAMPLERS_CUDA=0" in line else "all" for line in lines]

    touch(source, 0)
    touch(venv / ".ready", 1)
    assert (builds("bench"), builds("test")) == (["cpu"], ["all"])
    touch(venv / ".native-cpu", 2)  # after `make bench`
    assert (builds("bench"), builds("test")) == ([], ["all"])
    touch(venv / ".native-cpu", 3)  # after `make test`
    touch(venv / ".native", 3)
    assert (builds("bench"), builds("test")) == ([], [])
    touch(source, 4)
    assert (builds("bench"), builds("test")) == (["cpu"], ["all"])
    touch(venv / ".native-cpu", 5)
    assert (builds("bench"), builds("test")) == ([], ["all"])
    assert (
        "touch .venv/.native .venv/.native-cpu"
        in subprocess.run(["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True).stdout
    )  # so that a full build is the demo's as well


def test_the_sources_travel():
    """A source distribution has what the build needs."""
    text = (ROOT / "MANIFEST.in").read_text()
    assert {path.suffix for path in (ROOT / "csrc").rglob("*.*")} <= {s[1:] for s in text.split() if s.startswith("*.")}
