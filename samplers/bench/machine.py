"""What a result was measured on: written into every cell, and shown by `samplers env`."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

__all__ = ["OPTIONAL", "cpu_model", "machine", "packages"]

# Packages that add something when they are there.
OPTIONAL = (
    "matplotlib",
    "scikit-learn",
    "transformers",
    "diffusers",
    "lm-eval",
    "ray",
    "triton",
    "pytest",
    "pytest-benchmark",
)


@functools.cache
def cpu_model() -> str:
    """The processor's own name for itself, or its architecture if there is none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """cpu, threads, system, python, torch, device, native (bool), isa (str or None), gpu (str or None)."""
    import torch

    from .. import ops

    status = ops.status()
    return {
        "cpu": cpu_model(),
        "threads": status["threads"],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": status["torch"],
        "device": "cpu",
        "native": status["native"],
        "isa": status["isa"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def packages() -> dict[str, str | None]:
    """Versions of the optional packages; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in OPTIONAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
