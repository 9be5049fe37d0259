"""The families of tokens: masked and uniform noise. They differ in their denoisers and samplers; their runs begin alike."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .arguments import Given, read_tokens, with_prompt_embeds
from .denoiser import BlockDenoiser, Counter, Denoiser, TokenDenoiser
from .dry_run import DryRun
from .errors import FamilyError, OptionError
from .family import Family, Run
from .feeds import Feed
from .feeds.cached import CachedFeed
from .feeds.encoded import EncodedFeed
from .feeds.plain import PlainFeed
from .feeds.sequence import SequenceFeed
from .predictor import Predictor, SequencePredictor
from .sampler import Sampler, first_state
from .syncs import dry_runs_pay

if TYPE_CHECKING:
    pass

__all__ = ["MASKED", "UNIFORM", "TokenFamily"]


class TokenFamily(Family):
    """Masked or uniform noise."""

    tokens = True
    checks = ("samplers.testing.checks.tokens",)

    def __init__(self, name: str, summary: str, default_sampler: str):
        self.name, self.summary, self.default_sampler = name, summary, default_sampler

    def start(self, denoiser: Denoiser, sampler: Sampler[Any], given: Given) -> Run:
        if not isinstance(denoiser, TokenDenoiser):
            raise FamilyError(
                f"denoiser {denoiser.name!r} says that it is of the {self.name} family, and is no samplers.TokenDenoiser"
            )
        denoiser = with_prompt_embeds(denoiser, given)
        read = read_tokens(denoiser, sampler, given)
        config, batch = read.config, len(read.canvas.x)
        layout = read.canvas.layout(
            block_length=read.block_length,
            steps=read.steps,
            align=read.align,
            stop=read.stop,
            stop_rule=read.stop_rule,
            stop_text=read.stop_text,
            curve=_curve(denoiser, sampler),
            window=read.moving,
            rng=read.rng,
        )
        counter = Counter(denoiser)
        feed: Feed
        guiding = None
        if read.guide is not None:

            def plain(of: Counter, scale: float) -> PlainFeed:
                return PlainFeed(of, batch, scale, config.cfg_interval, window=read.window)

            posterior = sampler.effective_facts.posterior
            guiding = read.guide.begin(denoiser, layout, posterior, plain)
            if guiding.fused:  # then it is what cfg_scale does, with another second half
                config = dataclasses.replace(config, cfg_scale=guiding.scale)
        if sampler.effective_facts.sequential:
            feed = SequenceFeed(counter, batch)
        elif isinstance(denoiser, BlockDenoiser):
            feed = EncodedFeed(counter, batch)
        elif read.scheme is not None:
            feed = CachedFeed(counter, batch, config.cfg_scale, config.cfg_interval, read.scheme, read.pad)
        else:
            feed = PlainFeed(counter, batch, config.cfg_scale, config.cfg_interval, read.pad, window=read.window)
        if guiding is not None and isinstance(feed, PlainFeed):
            feed.cfg_scale, feed.second, feed.always = guiding.scale, guiding.second, guiding.always
        predictor = Predictor(counter, feed, config, sampler=sampler.name)
        predict = SequencePredictor(predictor, feed) if isinstance(feed, SequenceFeed) else predictor
        predictor.guiding = guiding
        state = first_state(sampler, layout)
        if read.language is not None:
            never = (*config.forbid, *(() if denoiser.mask_id is None else (denoiser.mask_id,)))
            predictor.language = read.language.bind(denoiser, layout, never)
        free = guiding is None and read.constrain is None and read.language is None
        still = read.moving is None  # what a window that moves holds may depend on which positions were committed
        if free and still and not layout.stops and _uses_dry_run(sampler, denoiser):
            predictor.dry_run = DryRun(sampler, layout, predictor)
        # Every block may take its steps, and then one more per position: more than any sampler that moves can need.
        extra = sampler.extra_steps * layout.block_size.shape[1]
        limit = int(layout.block_steps.sum(1).max()) + layout.x.shape[1] + extra + 16
        return Run(sampler, predictor, state, limit, read.settings, predict, read.constrain)

    def tiny(self, cls: type[Sampler[Any]], exact: bool = False) -> Denoiser:
        from .testing.tiny import of_tokens

        return of_tokens(cls, exact)


def _curve(denoiser: TokenDenoiser, sampler: Sampler[Any]) -> tuple[float, ...] | None:
    """The denoiser's entropy curve, if the sampler plans by it; OptionError if the denoiser does not know it."""
    if not sampler.effective_facts.curve:
        return None
    curve = denoiser.entropy_curve
    if curve is None:
        raise OptionError(
            f"plan='optimal' of sampler {sampler.name!r} needs the entropy curve of denoiser {denoiser.name!r}, which does "
            "not know it: measure it once, denoiser.entropy_curve = samplers.schedule.entropy_curve(denoiser, data).nats, with a "
            "problem or rows of tokens (n, L) for data; the plans tc, dtc and tc+dtc need none"
        )
    if not isinstance(curve, Tensor) or curve.dim() != 1 or not len(curve) or not bool(torch.isfinite(curve).all()):
        got = type(curve).__name__
        if isinstance(curve, Tensor):
            got = f"shape {tuple(curve.shape)}" if curve.dim() != 1 or not len(curve) else "numbers that are not finite"
        raise OptionError(
            f"entropy_curve of denoiser {denoiser.name!r} must be a tensor (L,) of finite numbers, such as "
            f"samplers.schedule.entropy_curve(denoiser, data).nats, not {got}"
        )
    return tuple(curve.tolist())


def _uses_dry_run(sampler: Sampler[Any], denoiser: TokenDenoiser) -> bool:
    """Whether counts are worked out beside the run: on a CPU reading them costs nothing."""
    return sampler.effective_facts.static_plan and dry_runs_pay(denoiser.device)


MASKED = TokenFamily("masked", "tokens that a mask hides", "entropy_bound")
UNIFORM = TokenFamily("uniform", "tokens that noise replaces by others", "d3pm_ancestral")
