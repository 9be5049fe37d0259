"""Samplers of the masked (absorbing) family, registered through the same hook that third parties use."""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_CLASSES = {
    "ancestral": "Ancestral",
    "apd": "APD",
    "autoregressive": "Autoregressive",
    "beta_energy": "BetaEnergy",
    "certainty_prior": "CertaintyPrior",
    "core": "Core",
    "credit": "Credit",
    "daedal": "Daedal",
    "dawn": "Dawn",
    "dfm_euler": "DFMEuler",
    "dilated": "Dilated",
    "entropy_bound": "EntropyBound",
    "euler_masked": "EulerMasked",
    "factor": "Factor",
    "fast_dllm_v2": "FastDLLMv2",
    "first_hitting": "FirstHitting",
    "freedave": "FreeDave",
    "hierarchy": "Hierarchy",
    "info_gain": "InfoGain",
    "klass": "Klass",
    "learned": "Learned",
    "linear_spec": "LinearSpec",
    "llada2": "LLaDA2",
    "local_leap": "LocalLeap",
    "lopa": "LoPA",
    "low_confidence": "LowConfidence",
    "maskgit": "Maskgit",
    "neg_entropy": "NegEntropy",
    "p2": "P2",
    "pc_sampler": "PCSampler",
    "prophet": "Prophet",
    "radd": "Radd",
    "random_order": "RandomOrder",
    "random_remask": "RandomRemask",
    "refusion": "Refusion",
    "remdm": "ReMDM",
    "s2d2": "S2D2",
    "saber": "Saber",
    "slow_fast": "SlowFast",
    "smc": "SMC",
    "smdm_greedy": "SmdmGreedy",
    "soar": "SOAR",
    "speculative_copies": "SpeculativeCopies",
    "starshape": "StarShape",
    "streaming": "Streaming",
    "strided": "Strided",
    "tau_leaping": "TauLeaping",
    "theta_rk2": "ThetaRK2",
    "theta_trapezoidal": "ThetaTrapezoidal",
    "threshold": "Threshold",
    "token_to_mask": "TokenToMask",
    "topk_margin": "TopkMargin",
    "wedlm": "WeDLM",
    "wino": "Wino",
}


@hookimpl
def register_samplers(register: Any) -> None:
    for name, cls in _CLASSES.items():
        register(f"{__name__}.{name}:{cls}", name=name, family="masked")
