"""What ComfyUI, A1111's web UI, k-diffusion, transformers and diffusers call our samplers.

A name such as "DPM++ 2M Karras", "uni_pc_bh2" or "DPMSolverMultistepScheduler" stands for one of our samplers with some options.
Capital letters, spaces, '_' and '-' make no difference. A name may end in that of a grid, as A1111's do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import OptionError, UnknownNameError, did_you_mean

__all__ = ["ALIASES", "alias", "of_scheduler"]

# other name -> (ours, options)
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # k-diffusion and ComfyUI
    "sample_dpm_adaptive": ("dpm_adaptive", {"prediction": "noise"}),
    "dpm_fast": ("dpm_solver", {"order": 3, "method": "singlestep", "prediction": "noise", "grid": "logsnr"}),
    "dpm_2_a": ("dpm_2_ancestral", {}),
    "dpmpp_2m_cfg_pp": ("dpmpp_2m", {"cfg_pp": True}),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2m_sde_heun_gpu": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2s_ancestral_cfg_pp": ("dpmpp_2s_ancestral", {"cfg_pp": True}),
    "dpmpp_3m_sde_gpu": ("dpmpp_3m_sde", {"published": True}),
    "dpmpp_sde_gpu": ("dpmpp_sde", {}),
    "euler_a": ("euler_ancestral", {}),
    "euler_ancestral_cfg_pp": ("euler_ancestral", {"cfg_pp": True}),
    "euler_cfg_pp": ("euler", {"cfg_pp": True}),
    "exp_heun_2_x0": ("seeds_2", {"r": 1.0, "solver_type": "phi_2", "eta": 0.0}),
    "exp_heun_2_x0_sde": ("seeds_2", {"r": 1.0, "solver_type": "phi_2"}),
    "gradient_estimation_cfg_pp": ("gradient_estimation", {"cfg_pp": True}),
    "ipndm_v": ("ipndm", {"variable": True}),
    "res_multistep_cfg_pp": ("res_multistep", {"cfg_pp": True}),
    "uni_pc": ("unipc", {"order": 3, "variant": "bh1"}),
    "uni_pc_bh2": ("unipc", {"order": 3, "variant": "bh2"}),
    # transformers
    "diffusion_gemma": ("entropy_bound_uniform", {"pace": False, "final": "best"}),
    # SGLang: the sum of the entropies before it in the order, which is the sum less the largest
    "EBSampling": ("entropy_bound", {"bound": 0.15}),
    "entropy_sum": ("entropy_bound", {"bound": 0.15}),
    # papers whose rule is that of another with other numbers
    "sched": ("prophet", {"schedule": "linear", "low": 0.0}),
    "lookum": ("info_gain", {"cost": False}),
    # A1111
    "DPM++ 2M": ("dpmpp_2m", {}),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", {}),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", {}),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", {"published": True}),
    "DPM++ SDE": ("dpmpp_sde", {}),
    "DPM2": ("dpm_2", {}),
    "DPM2 a": ("dpm_2_ancestral", {}),
    "Euler a": ("euler_ancestral", {}),
    "DDIM CFG++": ("euler", {"cfg_pp": True}),
    "PLMS": ("ipndm", {}),  # they begin with two evaluations of one step
    "UniPC": ("unipc", {"order": 3, "variant": "bh1"}),
    # diffusers
    "BlockRefinementScheduler": ("block_refinement", {"tempered": True}),
    "CosineDPMSolverMultistepScheduler": ("dpmpp_2m_sde", {"grid": "exponential"}),
    "DDIMParallelScheduler": ("ddim", {}),
    "DDIMScheduler": ("ddim", {}),
    "DDPMParallelScheduler": ("ddpm", {}),
    "DDPMScheduler": ("ddpm", {}),
    "DEISMultistepScheduler": ("deis", {"order": 2}),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", {}),
    "DPMSolverSDEScheduler": ("dpmpp_sde", {}),
    "DPMSolverSinglestepScheduler": ("dpm_solver", {"method": "singlestep"}),
    "DiscreteDDIMScheduler": ("d3pm_ancestral", {}),
    "EDMDPMSolverMultistepScheduler": ("dpmpp_2m", {"grid": "karras"}),
    "EDMEulerScheduler": ("euler", {"grid": "karras"}),
    "EntropyBoundScheduler": ("entropy_bound_uniform", {"pace": False, "final": "noise"}),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", {}),
    "EulerDiscreteScheduler": ("euler", {}),
    "FlowMatchEulerDiscreteScheduler": ("flow_euler", {}),
    "FlowMatchHeunDiscreteScheduler": ("flow_heun", {}),
    "FlowMatchLCMScheduler": ("lcm", {}),
    "HeunDiscreteScheduler": ("heun", {}),
    "IPNDMScheduler": ("ipndm", {}),
    "KDPM2AncestralDiscreteScheduler": ("dpm_2_ancestral", {}),
    "KDPM2DiscreteScheduler": ("dpm_2", {}),
    "LCMScheduler": ("lcm", {}),
    "LMSDiscreteScheduler": ("lms", {}),
    "LTXEulerAncestralRFScheduler": ("euler_ancestral", {"split": "sigma"}),
    "PNDMScheduler": ("ipndm", {}),
    "SASolverScheduler": ("sa_solver", {"simple_order_2": True}),
    "TCDScheduler": ("tcd", {}),
    "UniPCMultistepScheduler": ("unipc", {}),
}
# What a name may end in, and the grid that it means.
_GRIDS = {
    "karras": "karras",
    "exponential": "exponential",
    "polyexponential": "polyexponential",
    "sgm uniform": "sgm_uniform",
    "kl optimal": "kl_optimal",
    "linear quadratic": "linear_quadratic",
    "simple": "simple",
    "normal": "normal",
    "uniform": "time_uniform",
    "beta": "beta",
    "align your steps": "ays:sd15",
}
# Settings of diffusers' schedulers of tokens, and our options.
_TOKEN_SETTINGS = {
    "corrector_k": "corrector_k",
    "corrector_selection": "corrector_selection",
    "corrector_steps": "corrector_steps",
    "editing_threshold": "edit_threshold",
    "entropy_bound": "bound",
    "threshold": "threshold",
}
# Settings of a diffusers scheduler that choose a grid, in the order in which they count there.
_SIGMA_GRIDS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}


def _plain(name: str) -> str:
    """A name without what makes no difference."""
    return re.sub(r"[\s_-]+", "", name.lower()).replace("++", "pp").removesuffix("sampler")


_BY_PLAIN = {_plain(name): meant for name, meant in ALIASES.items()}
_GRIDS_BY_PLAIN = {_plain(name): grid for name, grid in _GRIDS.items()}


def alias(name: str, own: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """(our name, options) that another library's name stands for; None if it is no such name.

    Args:
        own: our own names, which may be written in another library's way, such as "Euler Karras".
    """
    known: dict[str, tuple[str, dict[str, Any]]] = {_plain(n): (n, {}) for n in own} | _BY_PLAIN
    plain = _plain(name)
    if plain not in known and plain.startswith("sample"):  # k-diffusion's functions
        plain = plain.removeprefix("sample")
    if plain in known:
        ours, options = known[plain]
        return (ours, dict(options)) if ours in own else None
    for ending in sorted(_GRIDS_BY_PLAIN, key=len, reverse=True):  # "polyexponential" ends in "exponential"
        meant = known.get(plain.removesuffix(ending)) if plain.endswith(ending) else None
        if meant and getattr(own.get(meant[0]), "family", None) == "gaussian":
            return meant[0], {**meant[1], "grid": _GRIDS_BY_PLAIN[ending]}
    return None


def of_scheduler(config: Mapping[str, Any], name: str | None = None) -> tuple[str, dict[str, Any]]:
    """(our name, options) of a diffusers scheduler's class and config.

    What is read: algorithm_type, solver_order, solver_type, predict_x0, stochastic_sampling, use_karras_sigmas and its kin, rho,
    timestep_spacing, final_sigmas_type; for tokens the thresholds, the bound, t_min / t_max and the corrector. Thresholding and
    clipping are arguments of sample(), not options of a sampler; so is the temperature, t_max.

    Args:
        name: the class, if config["_class_name"] does not say it.

    Raises:
        UnknownNameError: no scheduler of that name is known here.
        OptionError: an order or a type that it does not have.
    """
    name = name or str(config.get("_class_name"))
    if name not in ALIASES or not name.endswith("Scheduler"):
        known = [n for n in ALIASES if n.endswith("Scheduler")]
        raise UnknownNameError(f"no sampler is known for {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}")
    ours, options = ALIASES[name]
    options = dict(options)
    order = config.get("solver_order")
    algorithm = str(config.get("algorithm_type", ""))
    noise_form = algorithm in ("dpmsolver", "sde-dpmsolver") or config.get("predict_x0") is False
    if name == "DPMSolverMultistepScheduler" or name == "EDMDPMSolverMultistepScheduler":
        order = 2 if order is None else order
        kind = str(config.get("solver_type", "midpoint"))
        if order not in (1, 2, 3) or kind not in ("midpoint", "heun"):
            raise OptionError(
                f"{name}: solver_order is {order!r} and solver_type {kind!r}; 1 to 3, and 'midpoint' or 'heun'"
            )
        if "sde" in algorithm:
            ours = {1: "ddpm", 2: "dpmpp_2m_sde", 3: "dpmpp_3m_sde"}[order]
            options |= {"solver_type": kind} if order == 2 else {"published": True} if order == 3 else {}
        elif order == 3 and not noise_form:
            ours = "dpmpp_3m"
            options["published"] = True
        elif order == 2 and not noise_form:
            options["solver_type"] = "taylor" if kind == "heun" else kind
        else:
            ours = "dpm_solver"
            options |= {"order": order, "method": "multistep", "prediction": "noise" if noise_form else "x0"}
    elif name == "DPMSolverSinglestepScheduler":
        options |= {"order": 2 if order is None else order, "prediction": "noise" if noise_form else "x0"}
    elif name == "UniPCMultistepScheduler":
        options |= {"order": 2 if order is None else order, "variant": str(config.get("solver_type", "bh2"))}
        options["prediction"] = "noise" if noise_form else "x0"
    elif name == "DEISMultistepScheduler" and order is not None:
        options["order"] = order
    elif name in ("BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"):
        options |= {_TOKEN_SETTINGS[key]: value for key, value in config.items() if key in _TOKEN_SETTINGS}
        if config.get("t_max"):  # which is the argument temperature of sample()
            options["anneal"] = config["t_min"] / config["t_max"]
    elif name == "FlowMatchEulerDiscreteScheduler" and config.get("stochastic_sampling"):
        options["stochastic"] = True
    for key, grid in _SIGMA_GRIDS.items():
        if config.get(key):
            options["grid"] = grid
            break
    else:
        if "timestep_spacing" in config and "grid" not in options:
            options["grid"] = str(config["timestep_spacing"])
    if options.get("grid") == "karras" and config.get("rho") is not None:
        options["rho"] = float(config["rho"])
    if config.get("final_sigmas_type") == "sigma_min":
        options["end"] = "t_end"
    return ours, options
