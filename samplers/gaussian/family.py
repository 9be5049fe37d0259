"""The family of Gaussian noise: real numbers, x_t = alpha x_0 + sigma e."""

from __future__ import annotations

from typing import Any

from ..arguments import Given
from ..denoiser import Denoiser
from ..errors import FamilyError
from ..family import Family, Run
from ..sampler import Sampler, first_state
from .arguments import read_gaussian
from .denoiser import GaussianDenoiser
from .grid import over_times
from .predictor import GaussianPredictor

__all__ = ["GAUSSIAN", "GaussianFamily"]


class GaussianFamily(Family):
    """Gaussian noise. Another family whose denoisers are GaussianDenoisers may begin its runs by this one's `start`."""

    name = "gaussian"
    summary = "real numbers under Gaussian noise"
    default_sampler = "dpmpp_2m"
    checks = ("samplers.testing.checks.reals",)

    def start(self, denoiser: Denoiser, sampler: Sampler[Any], given: Given) -> Run:
        if not isinstance(denoiser, GaussianDenoiser):
            raise FamilyError(
                f"denoiser {denoiser.name!r} says that it is of the {denoiser.family} family, and is no "
                "samplers.GaussianDenoiser"
            )
        read = read_gaussian(denoiser, sampler, given)
        canvas = read.canvas
        if canvas.times is not None:
            sampler, canvas = over_times(sampler, canvas, read.closing)
        predictor = GaussianPredictor(canvas, read.config, sampler=sampler.name)
        state = first_state(sampler, canvas)
        return Run(sampler, predictor, state, canvas.steps + 16, read.settings, constrain=read.constrain)

    def tiny(self, cls: type[Sampler[Any]], exact: bool = False) -> Denoiser:
        from ..testing.tiny import TinyMixture

        return TinyMixture()


GAUSSIAN = GaussianFamily()
