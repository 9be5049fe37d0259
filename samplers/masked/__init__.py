"""Samplers of the masked (absorbing) family, registered through the same hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "ancestral": "Ancestral",
    "autoregressive": "Autoregressive",
    "beta_energy": "BetaEnergy",
    "chain_draft": "ChainDraft",
    "credit": "Credit",
    "entropy_bound": "EntropyBound",
    "euler_masked": "EulerMasked",
    "factor": "Factor",
    "first_hitting": "FirstHitting",
    "hierarchy": "Hierarchy",
    "klass": "Klass",
    "llada2": "LLaDA2",
    "low_confidence": "LowConfidence",
    "maskgit": "Maskgit",
    "neg_entropy": "NegEntropy",
    "p2": "P2",
    "radd": "Radd",
    "random_order": "RandomOrder",
    "random_remask": "RandomRemask",
    "refusion": "Refusion",
    "remdm": "ReMDM",
    "smc": "SMC",
    "smdm_greedy": "SmdmGreedy",
    "tau_leaping": "TauLeaping",
    "theta_rk2": "ThetaRK2",
    "theta_trapezoidal": "ThetaTrapezoidal",
    "threshold": "Threshold",
    "topk_margin": "TopkMargin",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="masked")
