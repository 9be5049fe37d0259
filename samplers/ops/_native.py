"""Loads `samplers._C` if it may and can be loaded, and knows why if it is not."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import torch

ISAS = ("avx512", "avx2", "portable")


def _load() -> tuple[ModuleType | None, str]:
    """→ (module or None, why)."""
    if os.environ.get("SAMPLERS_NATIVE", "") == "0":
        return None, "SAMPLERS_NATIVE=0"
    try:
        module = importlib.import_module("samplers._C")
    except ModuleNotFoundError as error:
        if error.name != "samplers._C":
            raise
        return None, "samplers._C was not built (SAMPLERS_NATIVE=1 pip install --no-build-isolation … tells why)"
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch or another machine
        return None, f"samplers._C cannot be loaded: {error}"
    wish = os.environ.get("SAMPLERS_ISA", "")
    if wish and wish != module.isa():
        if wish not in ISAS:
            raise ValueError(f"SAMPLERS_ISA={wish!r} is not an instruction set; one of {', '.join(ISAS)} is")
        warnings.warn(f"samplers: SAMPLERS_ISA={wish} is not available here, using {module.isa()}", stacklevel=2)
    return module, "loaded"


C, REASON = _load()
_warned = False


def warn_once() -> None:
    """Warns, once per process, that ops run on their twins because there are no native kernels."""
    global _warned
    if C is None and not _warned:
        _warned = True
        warnings.warn(f"samplers: ops run on their torch twins, which are right but slow: {REASON}", stacklevel=2)


def status() -> dict[str, Any]:
    """Says what runs the ops in this process.

    Keys: `native` (bool), `reason` (str: "loaded", or why the twins run), `isa` (str, or None on the twins), `torch`
    (version), `threads` (torch's intra-op threads) and, with the extension, its build facts: `compiler`, `cxx`,
    `torch_built_with`, `cuda` (bool: CUDA kernels are in the binary), `cuda_archs` (the architectures they are for).
    """
    facts = {
        "native": C is not None,
        "reason": REASON,
        "isa": C.isa() if C else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {**facts, **(C.build_facts() if C else {})}
