"""One block of one request: what the bridges to engines share.

An engine that decodes block by block knows of a request the block that is being filled, where it begins, and the logits of its
positions. So a block is a run of its own, an infilling run whose earlier positions are given: the block beginning at position s
becomes what `samplers.sample(model, sampler, prompt=first s tokens, gen_length=n, seed=seed, first_row=row)` makes of it. Draws
are a function of (seed, row, position, step of the block). Hence nothing of an engine's schedule changes a token: which other
requests share a forward pass, whether a request was put aside between two blocks, which machine goes on with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers import AskingRun, Canvas, FamilyError, OptionError, Sampler, TokenDenoiser, create

__all__ = ["Block", "Rule", "open_windows", "row_of"]

SETTINGS = ("temperature", "top_k", "top_p", "forbid", "demote")  # arguments of sample() that a rule takes
MOST_ROWS = 2**53  # row numbers are below it; see samplers.sample(first_row=)


def row_of(request: str) -> int:
    """The number of a request's row under the seed, from its id: the same in every process and batch."""
    digest = hashlib.blake2b(request.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % MOST_ROWS


@dataclass(frozen=True)
class Rule:
    """A masked sampler and how it is run, checked once, when an engine starts.

    Attributes:
        sampler: the sampler, made with its options.
        steps: steps per block; None: one per position.
        seed: the one seed; each request has a row of its own under it.
        settings: temperature, top_k, top_p, forbid and demote, as sample() takes them.
    """

    sampler: Sampler[Any]
    steps: int | None
    seed: int
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, who: str, config: Mapping[str, Any]) -> Rule:
        """A rule from a configuration: sampler, options (a mapping), steps, seed, and what SETTINGS names.

        Args:
            who: what the configuration is of, for errors.

        Raises:
            OptionError: a key or a value is wrong. UnknownNameError: there is no sampler of that name. FamilyError: it is
                for another noise than masks.
        """
        known = ("sampler", "options", "steps", "seed", *SETTINGS)
        for key in config:
            if key not in known:
                raise OptionError(f"{who} has no setting {key!r}; it has {', '.join(known)}")
        name, options = config.get("sampler"), config.get("options") or {}
        if not isinstance(name, str):
            raise OptionError(
                f"{who}: sampler is {name!r}; the name of a masked sampler is needed, such as entropy_bound"
            )
        if not isinstance(options, Mapping):
            raise OptionError(f"{who}: options is {options!r}; a mapping is needed, such as {{bound: 0.3}}")
        sampler = create(name, **options)
        if sampler.family != "masked":
            raise FamilyError(f"{who}: sampler {name!r} is of the {sampler.family} family; a masked one is needed")
        settings = {key: config[key] for key in SETTINGS if config.get(key) is not None}
        rule = cls(sampler, config.get("steps"), config.get("seed", 0), settings)
        rule.begin(
            torch.tensor([1], device="cpu"), 0, row=0, vocab_size=2, mask_id=1
        )  # says now what a request would say
        return rule

    def begin(
        self,
        ids: Tensor,
        start: int,
        *,
        row: int,
        vocab_size: int,
        mask_id: int,
        settings: Mapping[str, Any] | None = None,
    ) -> Block:
        """Begin a block.

        Args:
            ids: (n,) int64, what stands in it: the mask id at positions to fill, of which there is at least one.
            start: the position of its first token in the request.
            row: the number of the request's row.
            settings: in place of the rule's own, for one request.
        """
        device = ids.device
        x = torch.full(
            (1, start + len(ids)), int(mask_id == 0), dtype=torch.int64, device=device
        )  # any token but the mask
        x[0, start:] = ids
        fill = x == mask_id
        facts = {"vocab_size": vocab_size, "mask_id": mask_id, "device": device}
        canvas = Canvas.infill(TokenDenoiser.wrap(_no_model, **facts), x, fill)
        run = AskingRun(
            self.sampler,
            **facts,
            prompt=canvas,
            seed=self.seed,
            first_row=row,
            steps=self.steps,
            stop=[],  # where a text ends is the engine's business
            **(self.settings if settings is None else settings),
        )
        return Block(run, start)


def _no_model(ids: Tensor) -> Tensor:
    raise NotImplementedError("the engine runs the model")


class Block:
    """A block that is being filled.

    Attributes:
        run: the run, whose canvas ends with the block.
        start: the position of the block's first token.
    """

    def __init__(self, run: AskingRun, start: int):
        self.run, self.start = run, start

    @property
    def done(self) -> bool:
        """Whether all of it is filled, for good."""
        return self.run.question is None

    @property
    def ids(self) -> Tensor:
        """(n,) int64: what the model is to be given next; at the end the block's tokens."""
        x = self.run.state.x if self.run.question is None else self.run.question
        return x[0, self.start :]

    def answer(self, logits: Tensor) -> None:
        """Go on with the logits of `ids`, (n, V) floats."""
        assert self.run.needed is not None
        self.run.answer(logits[self.run.needed[0, self.start :]])


def open_windows(state: Any, size: int, who: str) -> tuple[Tensor, Tensor]:
    """The blocks that a step fills, as an engine with blocks of `size` positions sees them: those that end with the row's block.

    Args:
        state: a TokenState. who: the sampler, for errors.

    Returns:
        (B, size) int64, the positions, negative before the row's first; and (B, size) int64, the tokens there, before the row's
        first position any token but the mask.

    Raises:
        OptionError: a block is longer than `size`.
    """
    canvas = state.canvas
    present = state.block.clamp(max=canvas.block_end.shape[1] - 1)[:, None]
    end = canvas.block_end.gather(1, present)  # (B, 1)
    position = end - size + torch.arange(size, device=end.device)  # (B, size)
    first = torch.where(state.open, torch.arange(state.x.shape[1], device=end.device), end)
    longest = int((end - first.amin(1, keepdim=True)).max())
    if longest > size:
        raise OptionError(
            f"{who} fills blocks of at most {size} positions, not {longest}: give block_length={size} or less"
        )
    there = state.x.gather(1, position.clamp_min(0))
    return position, torch.where(position >= 0, there, int(canvas.mask_id == 0))
