"""What the zoo itself registers beside its samplers, through the hooks that third parties use. Nothing is imported here.

(The samplers are registered by samplers/masked, samplers/uniform and samplers/gaussian.)
"""

from __future__ import annotations

import functools
from typing import Any

from .family import BUILT_IN
from .hookspecs import hookimpl

_FAMILIES = {
    "masked": "tokens that a mask hides",
    "uniform": "tokens that noise replaces by others",
    "gaussian": "real numbers under Gaussian noise",
}
# The models in the box.
_MODELS = {
    "digits-gauss": "scikit-learn's 8 x 8 digits as reals, Gaussian noise (vp_linear)",
    "digits-mdm": "scikit-learn's 8 x 8 digits, 17 grey levels, masked",
    "text-mdm": "masked tokens, full attention, time-free; words of Python's own documentation",
    "text-refusion": "causal, trained with shuffled clean slots: one head says a mask's token and the next token",
}
_NOISE_SCHEDULES = {
    "vp_linear": ("VPLinear", "variance preserving, continuous: DDPM's"),
    "vp_cosine": ("VPCosine", "variance preserving, continuous: i-DDPM's"),
    "edm": ("edm", "sigma = t; edm(0.002,700) has these as its smallest and largest sigma"),
    "flow": ("flow", "rectified flow; flow(3) has grids of shift 3"),
}
_TABLES = {
    "ddpm_linear": "DDPM's table of 1000 entries",
    "scaled_linear": "Stable Diffusion's table of 1000 entries",
    "squared_cosine": "i-DDPM's table of 1000 entries",
}
_MASK_SCHEDULES = {
    "linear": ("linear", "a = u"),
    "1-cos": ("one_minus_cos", "a = 1 - cos(pi u/2)"),
    "sin": ("sin", "a = sin(pi u/2)"),
    "arcsin": ("arcsin", "a = 2 arcsin(u)/pi"),
    "sin^2": ("sin2", "a = sin(pi u/2)^2"),
    "beta": ("beta", "beta(a,b): a = sin^2(pi I_u(a,b)/2)"),
    "I": ("incomplete_beta", "I(a,b): a = I_u(a,b), the distribution function of Beta(a, b)"),
    "u^p": ("power", "a = u^p"),
    "1-(1-u)^p": ("masked_power", "1 - a = (1-u)^p"),
    "exp": ("exp", "exp(k): a = (e^(ku) - 1)/(e^k - 1)"),
    "log": ("log", "log(k): a = -ln(1 - (1 - e^-k) u)/k"),
}
_GRIDS = {
    "auto": ("auto", "trailing for a rectified flow that closes, otherwise logistic"),
    "logsnr": ("logsnr", "even in the half log-SNR"),
    "exponential": ("logsnr", "k-diffusion's name of logsnr"),
    "polyexponential": (
        "polyexponential",
        "log sigma falls as a power of the ramp (k-diffusion); rho = 1 is logsnr",
    ),
    "karras": ("karras", "even in (sigma / alpha)^(1 / rho), rho = 7 (Karras et al.)"),
    "edm_flow": ("edm_flow", "karras from sigma / alpha = 80 to 0.002, whatever the schedule's own ends"),
    "kl_optimal": ("kl_optimal", "even in arctan(sigma / alpha) (Align Your Steps)"),
    "time_uniform": (
        "time_uniform",
        "even in time, both ends included (DPM-Solver; linspace of diffusers' Euler)",
    ),
    "normal": ("time_uniform", "ComfyUI's name of time_uniform"),
    "time_quadratic": ("time_quadratic", "even in the square root of time (DPM-Solver)"),
    "sgm_uniform": ("sgm_uniform", "even in time, one interval short of the end (ComfyUI)"),
    "linspace": ("linspace", "sgm_uniform at whole indices (linspace of diffusers' DPM-Solver)"),
    "trailing": ("trailing", "even in time, one interval short of no noise, at whole indices (diffusers)"),
    "simple": ("simple", "trailing with indices rounded up (ComfyUI)"),
    "leading": ("leading", "multiples of a whole stride (diffusers' DDIM and Euler with steps_offset 0)"),
    "ddim_uniform": ("ddim_uniform", "leading, one index up (ComfyUI; diffusers with steps_offset 1)"),
    "beta": ("beta", "quantiles of Beta(0.6, 0.6) in time: dense at both ends"),
    "linear_quadratic": (
        "linear_quadratic",
        "sigma falls slowly in the first half of the steps (Mochi, LTX-Video)",
    ),
    "logistic": ("logistic", "even in 1 / (1 + (0.85 alpha / sigma)^rho), and short of no noise"),
    **{
        f"ays:{model}": (f"ays_{model}", f"Align Your Steps, the list for {model}, at any number of steps")
        for model in ("sd15", "sdxl", "svd")
    },
}

_PROBLEMS = {
    "copy": "waiting_line:Copy",
    "digits": "digits:Digits",
    "domino": "chains:Domino",
    "dyck": "whole_row:Dyck",
    "hmm": "chains:Hmm",
    "insert_random": "waiting_line:InsertRandom",
    "latin3": "latin:Latin3",
    "latin4": "latin:Latin4",
    "mirror": "whole_row:Mirror",
    "mixture": "mixture:Mixture",
    "parity": "whole_row:Parity",
    "remove_random": "waiting_line:RemoveRandom",
    "replace_random": "waiting_line:ReplaceRandom",
    "reverse": "waiting_line:Reverse",
    "shuffle": "waiting_line:Shuffle",
    "sort": "waiting_line:Sort",
    "sudoku4": "sudoku:Sudoku4",
    "text": "text:Text",
    "llm-small": "speed:LlmSmall",
    "llm-8b": "speed:Llm8b",
}


@hookimpl
def register_families(register: Any) -> None:
    for name, target in BUILT_IN.items():
        register(target, name=name, summary=_FAMILIES[name])


@hookimpl
def register_denoisers(register: Any) -> None:
    for name, summary in _MODELS.items():
        register(functools.partial(_in_the_box, name), name=name, summary=summary)


def _in_the_box(name: str) -> Any:
    from .models import zoo

    return zoo.load(name)


@hookimpl
def register_noise_schedules(register: Any) -> None:
    for name, (made_by, summary) in _NOISE_SCHEDULES.items():
        register(f"samplers.noise_schedules:{made_by}", name=name, summary=summary)
    for zero in (False, True):
        for name, summary in _TABLES.items():
            more = ("(zero_snr)", ", with zero terminal SNR") if zero else ("", "")
            register(functools.partial(_table, name, zero), name=name + more[0], summary=summary + more[1])


def _table(name: str, zero_snr: bool) -> Any:
    from .noise_schedules import VPTable

    return VPTable.named(name, zero_snr=zero_snr)


@hookimpl
def register_mask_schedules(register: Any) -> None:
    for name, (made_by, summary) in _MASK_SCHEDULES.items():
        register(f"samplers.schedule:{made_by}", name=name, summary=summary)


@hookimpl
def register_grids(register: Any) -> None:
    for name, (places, summary) in _GRIDS.items():
        register(f"samplers.gaussian.grids:{places}", name=name, summary=summary)


@hookimpl
def register_problems(register: Any) -> None:
    for name, target in _PROBLEMS.items():
        register(f"samplers.problems.{target}", name=name)


@hookimpl
def register_caches(register: Any) -> None:
    register("samplers.feeds.cached:Prefix", name="prefix")
    register("samplers.feeds.cached:Dual", name="dual")
    register("samplers.feeds.cached:Delayed", name="delayed")
    register("samplers.feeds.cached:Block", name="block")
    register("samplers.feeds.cached:Trailing", name="dsb")


@hookimpl
def register_windows(register: Any) -> None:
    register("samplers.feeds.plain:block", name="block")
    register("samplers.windows:Pipeline", name="pipeline")
    register("samplers.windows:Sliding", name="sliding")
    register("samplers.windows:Wedlm", name="wedlm")


@hookimpl
def register_metrics(register: Any) -> None:
    register("samplers.problems.base:collisions", name="collisions")
