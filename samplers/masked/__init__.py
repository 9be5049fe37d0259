"""Samplers of the masked (absorbing) family, registered through the hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "ancestral": "Ancestral",
    "beta_energy": "BetaEnergy",
    "entropy_bound": "EntropyBound",
    "euler": "Euler",
    "first_hitting": "FirstHitting",
    "low_confidence": "LowConfidence",
    "p2": "P2",
    "radd": "Radd",
    "random_order": "RandomOrder",
    "remdm": "ReMDM",
    "tau_leaping": "TauLeaping",
    "theta_rk2": "ThetaRK2",
    "theta_trapezoidal": "ThetaTrapezoidal",
    "threshold": "Threshold",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="masked")
