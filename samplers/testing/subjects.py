"""What the checks run a sampler on: small models of its family, small canvases, and the arguments of a short run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

import samplers

from .. import registry
from ..canvas import Canvas
from ..family import family_of
from ..sampler import Sampler
from .tiny import of_tokens

__all__ = ["GEN", "PROMPTS", "create", "joint", "mixed", "net", "short_run", "suited", "tiny_of"]

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]
GEN = 12
# Of the GEN positions after each prompt, those that are given as well in `mixed`.
GIVEN = [[], [4, 5], [0, 2, 3, 7, 8, 9, 10, 11], [1, 4, 8, 9, 10, 11]]


def tiny_of(name: str) -> Any:
    """A small model that the sampler called `name` runs on, whatever its family."""
    cls = registry.load(name)
    return family_of(cls.family).tiny(cls)


def short_run(name: str) -> dict[str, Any]:
    """The arguments of sample(), beside batch and seed, of a run that is short and not trivial."""
    family = registry.load(name).family
    if family in ("masked", "uniform"):
        return suited(name, {"gen_length": 2 * GEN, "block_length": 5, "temperature": 1.0})
    any_length = family_of(family).tokens and tiny_of(name).length is None
    return {"steps": 7} | ({"gen_length": GEN} if any_length else {})


def net(name: str, **kw: Any) -> Any:
    """An arbitrary model of tokens, of the sampler's family."""
    return of_tokens(registry.load(name), **kw)


def joint(name: str, **kw: Any) -> Any:
    """The exact model of a distribution of tokens that can be enumerated."""
    return of_tokens(registry.load(name), exact=True, **kw)


def suited(name: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Arguments of sample() without those that a sequential sampler, or one that needs blocks, does not take."""
    cls = registry.load(name)
    never: tuple[str, ...] = ("steps", "cfg_scale") if cls.facts.sequential else ()
    if cls.family != "masked" or cls.facts.sequential or cls.facts.revises or cls.facts.whole_blocks:
        never += ("window",)
    return {k: v for k, v in setting.items() if k not in never}


def create(name: str, **options: Any) -> Sampler[Any]:
    """The sampler with options for canvases of the kit's size."""
    return samplers.create(name, **{**registry.load(name).conformance.small, **options})


def mixed(denoiser: Any, rows: Iterable[int] = range(4)) -> Canvas:
    """Rows of different lengths, with different numbers of positions to fill, some of them between given ones."""
    rows = list(rows)
    canvas = Canvas.of(denoiser, [PROMPTS[i] for i in rows], GEN)
    x, fill = canvas.x.clone(), canvas.fill.clone()
    for i, row in enumerate(rows):
        at = torch.tensor(GIVEN[row], dtype=torch.int64, device="cpu") + len(PROMPTS[row])
        x[i, at], fill[i, at] = at % denoiser.tokens, False
    return dataclasses.replace(canvas, x=x, fill=fill, filled=int(fill.sum()))
