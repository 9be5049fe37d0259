"""Builds the extension `samplers._C`; everything else about the package is in pyproject.toml.

The extension is a bonus: without a compiler or without torch at build time the package installs all the same and runs
on the torch twins. SAMPLERS_NATIVE=0 leaves it out on purpose, SAMPLERS_NATIVE=1 makes a failure to build it an error.
SAMPLERS_SANITIZE=1 builds it with address and undefined-behaviour checks, for `make sanitize`.
"""

import os
import shutil
import sys

from setuptools import Extension, setup

WISH = os.environ.get("SAMPLERS_NATIVE", "")
SANITIZE = os.environ.get("SAMPLERS_SANITIZE", "") == "1"

SOURCES = [
    "csrc/module.cpp",
    "csrc/torch/masked_softmax.cpp",
    "csrc/cpu/masked_softmax.cpp",
    "csrc/cpu/masked_softmax_avx512.cpp",
    "csrc/cpu/masked_softmax_avx2.cpp",
    "csrc/cpu/masked_softmax_portable.cpp",
    "csrc/cpu/truncate.cpp",
]
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
