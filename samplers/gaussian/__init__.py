"""Samplers of the gaussian family, registered through the same hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "analytic_ddim": "AnalyticDdim",
    "analytic_ddpm": "AnalyticDdpm",
    "bayes_ddim": "BayesDdim",
    "ddim": "Ddim",
    "ddpm": "Ddpm",
    "deis": "Deis",
    "dpm_2": "Dpm2",
    "dpm_2_ancestral": "Dpm2Ancestral",
    "dpm_adaptive": "DpmAdaptive",
    "dpm_solver": "DpmSolver",
    "dpm_solver_v3": "DpmSolverV3",
    "dpmpp_2m": "DpmPp2M",
    "dpmpp_2m_sde": "DpmPp2MSde",
    "dpmpp_2s": "DpmPp2S",
    "dpmpp_2s_ancestral": "DpmPp2SAncestral",
    "dpmpp_3m": "DpmPp3M",
    "dpmpp_3m_sde": "DpmPp3MSde",
    "dpmpp_sde": "DpmPpSde",
    "er_sde": "ErSde",
    "euler": "Euler",
    "euler_ancestral": "EulerAncestral",
    "flow_euler": "FlowEuler",
    "flow_heun": "FlowHeun",
    "gradient_estimation": "GradientEstimation",
    "heun": "Heun",
    "ipndm": "Ipndm",
    "lcm": "Lcm",
    "lms": "Lms",
    "res_multistep": "ResMultistep",
    "restart": "Restart",
    "sa_solver": "SaSolver",
    "seeds_2": "Seeds2",
    "seeds_3": "Seeds3",
    "tcd": "Tcd",
    "unipc": "UniPc",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="gaussian")
