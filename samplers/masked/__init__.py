"""Samplers of the masked (absorbing) family, registered through the hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "ancestral": "Ancestral",
    "beta_energy": "BetaEnergy",
    "entropy_bound": "EntropyBound",
    "first_hitting": "FirstHitting",
    "llada2": "LLaDA2",
    "low_confidence": "LowConfidence",
    "radd": "Radd",
    "random_order": "RandomOrder",
    "threshold": "Threshold",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="masked")
