"""Samplers of the gaussian family, registered through the same hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "analytic_ddim": "AnalyticDdim",
    "analytic_ddpm": "AnalyticDdpm",
    "bayes_ddim": "BayesDdim",
    "ddim": "Ddim",
    "dpm_adaptive": "DpmAdaptive",
    "dpm_solver": "DpmSolver",
    "dpm_solver_v3": "DpmSolverV3",
    "dpmpp_2m": "DpmPp2M",
    "flow_euler": "FlowEuler",
    "flow_heun": "FlowHeun",
    "lcm": "Lcm",
    "tcd": "Tcd",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="gaussian")
