"""The sampler zoo: samplers for diffusion models, picked by name, run against any model, measured against an exact truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from . import authoring, constraints, energy, guidance, models, ops, problems, registry, schedule
    from .canvas import PAD, Canvas
    from .denoiser import BlockDenoiser, Denoiser, Head, TokenDenoiser
    from .driver import Constraint, sample, stream
    from .errors import DenoiserError, FamilyError, OptionError, PluginError, SamplersError, UnknownNameError
    from .gaussian.denoiser import GaussianDenoiser
    from .likelihood import Likelihood, nll
    from .pool import AskingRun, Pool
    from .prediction import Prediction
    from .real_tokens import RealTokens, sample_reals
    from .registry import create, list_samplers
    from .result import Sample
    from .sampler import Sampler, State, option
    from .schedule import MaskSchedule, NoiseSchedule, mask_schedule, noise_schedule

# Public name -> its module ("" for a module that is itself public). Names load when they are used, so that
# `samplers list`, and a pytest run that merely has our plug-in installed, do not wait for torch.
_WHERE = {
    "authoring": "",
    "constraints": "",
    "energy": "",
    "guidance": "",
    "models": "",
    "ops": "",
    "problems": "",
    "registry": "",
    "schedule": "",
    "PAD": "canvas",
    "AskingRun": "pool",
    "BlockDenoiser": "denoiser",
    "Canvas": "canvas",
    "Denoiser": "denoiser",
    "GaussianDenoiser": "gaussian.denoiser",
    "Head": "denoiser",
    "TokenDenoiser": "denoiser",
    "Pool": "pool",
    "Prediction": "prediction",
    "RealTokens": "real_tokens",
    "sample_reals": "real_tokens",
    "Constraint": "driver",
    "Sample": "result",
    "sample": "driver",
    "stream": "driver",
    "DenoiserError": "errors",
    "FamilyError": "errors",
    "OptionError": "errors",
    "PluginError": "errors",
    "SamplersError": "errors",
    "UnknownNameError": "errors",
    "Likelihood": "likelihood",
    "nll": "likelihood",
    "Sampler": "sampler",
    "State": "sampler",
    "create": "registry",
    "list_samplers": "registry",
    "option": "sampler",
    "MaskSchedule": "schedule",
    "NoiseSchedule": "schedule",
    "mask_schedule": "schedule",
    "noise_schedule": "schedule",
}

__all__ = ["__version__", "hookimpl", *_WHERE]


def __getattr__(name: str) -> object:
    import importlib

    if name == "__version__":
        from .registry import version

        return version()
    if name not in _WHERE:
        raise AttributeError(f"module 'samplers' has no attribute {name!r}")
    module = importlib.import_module(f".{_WHERE[name] or name}", __name__)
    return getattr(module, name) if _WHERE[name] else module


def __dir__() -> list[str]:
    return sorted(__all__)
