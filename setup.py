"""Builds the extension `samplers._C`; everything else about the package is in pyproject.toml.

The extension is optional: without a compiler or without torch at build time the package installs all the same and runs on
the torch twins, its reference implementations. SAMPLERS_NATIVE=0 leaves it out on purpose, SAMPLERS_NATIVE=1 makes a
failure to build it an error. If nvcc is found the extension has CUDA kernels as well, whatever torch is installed and
whether or not there is a GPU. SAMPLERS_CUDA=0 leaves them out, SAMPLERS_CUDA=1 makes a failure to build them an error.
SAMPLERS_CUDA_ARCHS names other architectures. SAMPLERS_SANITIZE=1 builds it with address and undefined-behaviour checks,
for `make sanitize`.
"""

import concurrent.futures
import glob
import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Extension, setup

WISH = os.environ.get("SAMPLERS_NATIVE", "")
CUDA_WISH = os.environ.get("SAMPLERS_CUDA", "")
CUDA_ARCHS = os.environ.get("SAMPLERS_CUDA_ARCHS", "80;90").split(";")
SANITIZE = os.environ.get("SAMPLERS_SANITIZE", "") == "1"

SOURCES = sorted(glob.glob("csrc/*.cpp") + glob.glob("csrc/*/*.cpp"))
# A changed header must rebuild what includes it; setuptools does not look inside.
HEADERS = [
    os.path.join(folder, name)
    for folder, _, names in os.walk("csrc")
    for name in sorted(names)
    if name.endswith((".h", ".cuh"))
]


def without(reason):
    """Installs without the extension, and says why in one line."""
    if WISH == "1":
        raise SystemExit(f"sampler-zoo: SAMPLERS_NATIVE=1, but the native extension cannot be built: {reason}")
    print(f"sampler-zoo: installing without the native extension: {reason}", file=sys.stderr)
    return {}


class NoCuda(Exception):
    """Why there are no CUDA kernels in this build."""


def find_cuda():
    """→ (nvcc, folder of the static runtime)."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [shutil.which("nvcc"), *(os.path.join(home, "bin", "nvcc") for home in homes if home)]
    nvccs = [path for path in found if path and os.path.isfile(path)]
    if not nvccs:
        raise NoCuda("nvcc is not found (PATH, CUDA_HOME, /usr/local/cuda)")
    homes += [os.path.dirname(os.path.dirname(os.path.realpath(path))) for path in nvccs]
    for home in filter(None, homes):
        for pattern in ("lib64", "lib", "targets/*/lib"):
            for folder in glob.glob(os.path.join(home, pattern)):
                if os.path.isfile(os.path.join(folder, "libcudart_static.a")):
                    return nvccs[0], folder
    raise NoCuda("libcudart_static.a is not found beside nvcc")


def compile_cuda(folder):
    """Objects of csrc/cuda/*.cu, compiled by nvcc itself: torch's CUDAExtension refuses to work with a torch without
    CUDA, and these files include no torch header. → (objects, folder of the static runtime)."""
    nvcc, runtime = find_cuda()
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS]
    archs.append(f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}")  # for what comes after
    flags = ["-std=c++17", "-O3", "-fmad=false", "--threads=2", "--ptxas-options=-v", *archs]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
    folder = os.path.join(folder, "cuda-" + "-".join(CUDA_ARCHS))
    os.makedirs(folder, exist_ok=True)
    newest = max(map(os.path.getmtime, ["setup.py", *HEADERS]))

    def one(source):
        target = os.path.join(folder, os.path.basename(source)[:-3] + ".o")
        if os.path.exists(target) and os.path.getmtime(target) > max(newest, os.path.getmtime(source)):
            return target
        # Under another name first: what a broken run leaves behind is not taken for an object.
        done = subprocess.run([nvcc, *flags, "-c", source, "-o", target + ".part"], capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stdout + done.stderr, file=sys.stderr)
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise NoCuda(f"nvcc failed on {source}: {(errors or ['no message'])[0]}")
        with open(target[:-2] + ".txt", "w") as f:  # registers and spills: tests/ops/test_cuda_build.py reads them
            f.write(done.stdout + done.stderr)
        os.replace(target + ".part", target)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(one, sorted(glob.glob("csrc/cuda/*.cu")))), runtime


def with_extension():
    if WISH == "0":
        return without("SAMPLERS_NATIVE=0")
    try:
        import torch
        from torch.utils import cpp_extension
    except Exception as error:  # an import of torch can fail in more ways than ImportError
        return without(f"torch cannot be imported here ({error}); it is needed at build time, "
                       "so install torch first and use `pip install --no-build-isolation`")  # fmt: skip
    if torch.torch_version.TorchVersion(torch.__version__) < "2.10":
        return without(f"torch {torch.__version__} has no stable ABI for ops; 2.10 or newer does")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if sys.platform != "win32" and not shutil.which(compiler):
        return without(f"there is no C++ compiler ({compiler} is not found; CXX names another)")

    class Build(cpp_extension.BuildExtension):
        """torch's build step, with failure turned into an installation without the extension."""

        def run(self):
            try:
                super().run()
            except (Exception, SystemExit) as error:
                if WISH == "1":
                    raise
                lines = str(error).strip().splitlines() or [type(error).__name__]
                without(f"building it failed ({lines[0]}); SAMPLERS_NATIVE=1 shows the whole error")
                self.extensions = self.distribution.ext_modules = []

        def build_extensions(self):
            try:
                if CUDA_WISH == "0":
                    raise NoCuda("SAMPLERS_CUDA=0")
                if sys.platform != "linux":
                    raise NoCuda(f"they are for Linux, this is {sys.platform}")
                objects, runtime = compile_cuda(self.build_temp)
                extension.extra_objects += objects
                extension.library_dirs.append(runtime)
                extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
                extension.extra_link_args += ["-Wl,--exclude-libs,ALL"]
                archs = " ".join(f"sm_{arch}" for arch in CUDA_ARCHS) + f" compute_{CUDA_ARCHS[-1]}"
                extension.define_macros += [("SAMPLERS_CUDA", "1"), ("SAMPLERS_BUILD_CUDA_ARCHS", f'"{archs}"')]
            except NoCuda as error:
                if CUDA_WISH == "1":
                    raise SystemExit(f"SAMPLERS_CUDA=1, but there can be no CUDA kernels: {error}") from error
                print(f"sampler-zoo: building without CUDA kernels: {error}", file=sys.stderr)
            # setuptools compares times only: an extension that is new but was built with other settings is not this one.
            settings = repr((extension.define_macros, extension.extra_objects, extension.extra_compile_args))
            stamp = pathlib.Path(self.build_temp, "settings.txt")
            self.force = self.force or not stamp.exists() or stamp.read_text() != settings
            super().build_extensions()
            stamp.write_text(settings)

    windows = sys.platform == "win32"
    flags = ["/O2", "/std:c++20"] if windows else [
        "-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-fno-math-errno",
        # An FMA happens where it is written: the arithmetic is a specification (csrc/softmax_math.h).
        "-ffp-contract=off",
        "-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # the latter two: gcc 12, of its own intrinsics
    ]  # fmt: skip
    checks = []
    if SANITIZE:
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        # The last -O and -g win; Python's own flags have -fwrapv, under which no overflow is a fault.
        flags += [*checks, "-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv"]
    extension = Extension(
        "samplers._C",
        SOURCES,
        include_dirs=cpp_extension.include_paths(),  # pybind11's headers come with torch's
        library_dirs=cpp_extension.library_paths(),
        # Only the C shims; libtorch_python would tie the module to one torch version.
        libraries=["torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", "0x020a000000000000"),
            ("SAMPLERS_BUILD_TORCH", f'"{torch.__version__}"'),
        ],
        extra_compile_args=flags,
        extra_link_args=checks,
        depends=HEADERS,
        language="c++",
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


setup(**with_extension())
