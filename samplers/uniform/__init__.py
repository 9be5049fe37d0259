"""Samplers of the uniform family (tokens without a mask), registered through the same hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "block_refinement": "BlockRefinement",
    "d3pm_ancestral": "D3PMAncestral",
    "ddpd": "DDPD",
    "dfm_euler_uniform": "DFMEulerUniform",
    "entropy_bound_uniform": "EntropyBoundUniform",
    "gidd": "GIDD",
    "smc_uniform": "SMCUniform",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="uniform")
