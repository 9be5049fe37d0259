"""GaussianPredictor: what a continuous sampler asks the model through."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..canvas import NoiseCanvas
from ..errors import OptionError
from ..noise_schedules import Point
from ..predictor import FamilyPredictor
from .arguments import GaussianConfig
from .denoiser import At
from .moments import Moments

__all__ = ["GaussianPredictor"]


class GaussianPredictor(FamilyPredictor):
    """What a Gaussian sampler asks the model through: `predict(x, at)` gives the denoised x_0, (B, *shape).

    Guidance, thresholding and what is known of x_0 are here, so that every solver has them.
    """

    def __init__(self, canvas: NoiseCanvas, config: GaussianConfig, *, sampler: str = ""):
        super().__init__(canvas.denoiser, len(canvas.rng.row), sampler=sampler)
        self.canvas, self.config, self.denoiser = canvas, config, canvas.denoiser

    def __call__(self, x: Tensor, at: Point | float | Tensor) -> Tensor:
        """The denoised x_0 of every row at a point of the schedule, at its time, or at (B,) times, one for each row."""
        return self.pair(x, at)[0]

    def pair(self, x: Tensor, at: Point | float | Tensor) -> tuple[Tensor, Tensor]:
        """The denoised x_0 as a call gives it, and the one without the condition; without guidance they are the same."""
        where = At.of(self.denoiser.schedule, at)
        if self.canvas.known is not None:
            x = self.canvas.with_known(x, *where.scales(x))
        outs = self._asked(x, where)
        self.check_finite(outs[0])
        outs = tuple(self._bounded(out) for out in outs)
        if self.canvas.known is not None:
            assert self.canvas.start is not None
            outs = tuple(torch.where(self.canvas.known, self.canvas.start, out) for out in outs)
        return outs[0], outs[-1]

    def moments(self, x: Tensor, at: Point | float | Tensor, order: int = 3) -> Moments:
        """The moments of x_0 at every coordinate; see GaussianPredict.moments."""
        denoiser, rng, before = self.denoiser, self.canvas.rng, self.counter.nfe
        where = At.of(denoiser.schedule, at)
        if self._guides(where):
            raise OptionError(
                f"sampler {self.sampler!r} takes moments of x_0, and those of a guided x_0 are not known: leave out cfg_scale"
            )
        if self.canvas.known is not None:
            x = self.canvas.with_known(x, *where.scales(x))

        def signs(k: int) -> Tensor:
            return rng.signs(denoiser.shape, before, k, x.dtype)

        out = self.ask(
            lambda: denoiser.moments(x, where, order, signs),
            positions=math.prod(denoiser.shape),
            passes=denoiser.rows_per_eval,
            evaluations=denoiser.moment_evals(order),
        )
        for moment in (out.mean, out.variance, out.third):
            if moment is not None:
                self.check_finite(moment)
        out = replace(out, mean=self._bounded(out.mean))
        if self.canvas.known is not None:
            known, start = self.canvas.known, self.canvas.start
            assert start is not None
            out = replace(out.map(lambda m: torch.where(known, 0.0, m)), mean=torch.where(known, start, out.mean))
        return out

    def _asked(self, x: Tensor, at: At) -> tuple[Tensor, ...]:
        """(x_0,), or (guided x_0, unconditional x_0): one forward pass."""
        config, denoiser, passes = self.config, self.denoiser, self.denoiser.rows_per_eval
        positions = math.prod(denoiser.shape)
        if not self._guides(at):
            return (self.ask(lambda: denoiser.denoised(x, at), positions=positions, passes=passes),)

        def call() -> tuple[Tensor, Tensor]:
            return denoiser.guided(x, at, config.cfg_scale, config.cfg_rescale)

        return self.ask(call, positions=positions, passes=2 * passes)

    def _guides(self, at: At) -> bool:
        """Whether rows are guided at this noise level."""
        low, high = self.config.cfg_interval
        if not self.config.cfg_scale or (low, high) == (0.0, 1.0):
            return bool(self.config.cfg_scale)
        if isinstance(at.alpha, Tensor):
            raise OptionError(
                f"cfg_interval: sampler {self.sampler!r} has a noise level for each row, and guides all rows or none"
            )
        level = at.sigma**2 / (at.alpha**2 + at.sigma**2)
        return bool(low < level <= high or (level == 0 and low == 0))

    def _bounded(self, x0: Tensor) -> Tensor:
        """x_0 within the threshold.

        Static: clipped at the bound c. Dynamic (Saharia et al. 2022, arXiv 2205.11487, section 2.3): with s the quantile of
        |x_0| over a sample, and at least c, x_0 is clipped at s and multiplied by c / s.
        """
        bound, quantile = self.config.x0_bound, self.config.x0_quantile
        if bound is None:
            return x0
        if quantile is None:
            return x0.clamp(-bound, bound)
        flat = x0.abs().flatten(1)
        place = quantile * (flat.shape[1] - 1)  # between two order statistics; torch.quantile refuses long rows
        below = int(place)
        low = flat.kthvalue(below + 1, 1).values
        high = flat.kthvalue(min(below + 2, flat.shape[1]), 1).values
        limit = (low + (place - below) * (high - low)).clamp_min(bound).view(-1, *(1,) * (x0.dim() - 1))
        return torch.minimum(torch.maximum(x0, -limit), limit) * (bound / limit)
