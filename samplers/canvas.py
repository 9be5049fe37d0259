"""Canvas: the prompt and the positions to fill. Layout: a canvas cut into blocks, with steps, stop rules and seeds.

Both are values that never change in a run. What a run changes is in state.py.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .arguments import check_tokens, positive_int, prompt_rows
from .denoiser import GaussianDenoiser, TokenDenoiser
from .errors import OptionError
from .random import Rng

if TYPE_CHECKING:
    from .state import NoiseState, TokenState

__all__ = ["FAR", "PAD", "Canvas", "Layout", "NoiseCanvas"]

PAD = -1  # in a finished Sample: beyond a row's own end. Never given to a model.
FAR = 2**40  # the number of no block: later than any other


@dataclass(frozen=True, eq=False)
class Canvas:
    """What a token run starts from.

    Make one with `Canvas.of` (prompts, then gen_length positions) or `Canvas.infill` (any positions) and give it to
    `sample(prompt=...)`; sample() makes it of plain prompts itself.

    Attributes:
        x: (B, L) int64, the prompt's tokens, mask_id at the positions to fill and beyond a row's end (0 in both places
            under uniform noise, which has no mask: the first state puts noise there).
        fill: (B, L) bool, the positions to fill.
        lengths: each row's own length. Rows may be ragged, and a model never sees beyond a row's end.
        mask_id: the mask token; None under uniform noise.
        vocab_size: the width of the model's logits.
        filled: number of positions to fill in all rows together.
    """

    x: Tensor  # (B, L) int64
    fill: Tensor  # (B, L) bool
    lengths: tuple[int, ...]
    mask_id: int | None
    vocab_size: int
    filled: int

    @classmethod
    def of(
        cls,
        denoiser: TokenDenoiser,
        prompt: Any = None,
        gen_length: int | None = None,
        batch: int = 1,
    ) -> Canvas:
        """Prompts, each followed by `gen_length` positions to fill.

        Args:
            prompt: None; (P,) or (B, P) ints as a tensor, array or list; or a list of B prompts of any lengths. One
                prompt is repeated `batch` times.
            gen_length: None takes what is left of a denoiser of fixed `length`.

        Raises:
            OptionError: a prompt longer than the canvas, one that contains the mask id or an id outside the vocabulary,
                a missing or impossible gen_length.
        """
        prompts = prompt_rows(prompt, batch)
        if gen_length is None:
            if denoiser.length is None:
                raise OptionError(f"gen_length is needed: denoiser {denoiser.name!r} takes a canvas of any length")
        else:
            positive_int("gen_length", gen_length)
        given = torch.tensor([len(p) for p in prompts])  # (B,)
        ends = given + gen_length if gen_length is not None else torch.full_like(given, denoiser.length or 0)
        if denoiser.length is not None:
            for i in (given >= denoiser.length).nonzero().flatten().tolist():
                raise OptionError(
                    f"the prompt of row {i} has {given[i]} tokens and the canvas of {denoiser.name!r} has "
                    f"{denoiser.length} positions: no position is left to fill; "
                    f"a prompt may have at most {denoiser.length - 1}"
                )
            for i in (ends != denoiser.length).nonzero().flatten().tolist():
                raise OptionError(
                    f"row {i}: a prompt of {given[i]} and gen_length={gen_length} make {ends[i]} positions; denoiser "
                    f"{denoiser.name!r} takes exactly {denoiser.length}: "
                    f"use gen_length={denoiser.length - int(given[i])} or none"
                )
        position = torch.arange(int(ends.max()))
        fill = (position >= given[:, None]) & (position < ends[:, None])  # (B, L)
        blank = denoiser.mask_id or 0
        x = torch.full(fill.shape, blank)
        x[:, : int(given.max())] = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=blank)
        check_tokens(x, denoiser, position < given[:, None])
        return cls._for_denoiser(denoiser, x, fill, tuple(ends.tolist()))

    @classmethod
    def infill(cls, denoiser: TokenDenoiser, x: Any, fill: Any, batch: int = 1) -> Canvas:
        """Any positions: the tokens of `x` are kept where `fill` is False, and filled in where it is True.

        Args:
            x: (L,) or (B, L) ints; what stands at the positions to fill does not matter.
            fill: (L,) or (B, L) bools. One row is repeated `batch` times.

        Raises:
            OptionError: shapes that differ, nothing to fill in a row, the mask id among the kept tokens.
        """
        tokens, where = torch.as_tensor(x), torch.as_tensor(fill)
        if tokens.shape != where.shape or tokens.dim() not in (1, 2) or where.dtype != torch.bool:
            raise OptionError(
                f"infill takes x and fill of one shape (L,) or (B, L), fill of bools; got x {tuple(tokens.shape)} and fill "
                f"{tuple(where.shape)} of {where.dtype}"
            )
        if tokens.dim() == 1:
            tokens, where = tokens.expand(batch, -1), where.expand(batch, -1)
        if denoiser.length is not None and tokens.shape[1] != denoiser.length:
            raise OptionError(
                f"infill: rows of {tokens.shape[1]} tokens; denoiser {denoiser.name!r} takes exactly {denoiser.length}"
            )
        for i in (~where.any(1)).nonzero().flatten().tolist():
            raise OptionError(f"infill: row {i} has no position to fill")
        check_tokens(tokens, denoiser, ~where)
        filled = torch.where(where, denoiser.mask_id or 0, tokens.to(torch.int64))
        return cls._for_denoiser(denoiser, filled, where, (tokens.shape[1],) * len(tokens))

    @classmethod
    def _for_denoiser(cls, denoiser: TokenDenoiser, x: Tensor, fill: Tensor, lengths: tuple[int, ...]) -> Canvas:
        device = denoiser.device
        return cls(x.to(device), fill.to(device), lengths, denoiser.mask_id, denoiser.vocab_size, int(fill.sum()))

    def layout(
        self,
        *,
        block_length: int | Tensor | None = None,
        steps: int | None = None,
        stop: tuple[Tensor, ...] = (),
        rng: Rng,
    ) -> Layout:
        """This canvas cut into blocks, with `steps` allocated to them.

        Args:
            block_length: positions per block, (B,) int64 if rows have their own; None: one block.
            steps: steps per row; None: one per position.
            stop: phrases, (m,) int64 each.
            rng: the randomness of the rows.

        Raises:
            OptionError: fewer steps than blocks, a block_length below 1.
        """
        n_fill = self.fill.sum(1).cpu()  # (B,)
        if isinstance(block_length, Tensor):
            length = block_length.cpu()  # (B,)
        else:
            most = int(n_fill.max()) if block_length is None else positive_int("block_length", block_length)
            length = torch.full_like(n_fill, most)
        device = self.x.device
        rank = self.fill.cumsum(1) - 1  # (B, L) number among the positions to fill
        blocks = -(-n_fill // length)  # (B,)
        starts = torch.arange(int(blocks.max())) * length[:, None]  # (B, blocks)
        size = torch.minimum((n_fill[:, None] - starts).clamp(min=0), length[:, None])  # (B, blocks)
        return Layout(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(Canvas)},
            block_length=block_length,
            block=torch.where(self.fill, rank // length.to(device)[:, None], FAR),
            block_size=size.to(device),
            block_steps=_allocate_steps(size, blocks, steps).to(device),
            stop=tuple(p.to(device) for p in stop),
            rng=rng,
        )

    def to(self, device: torch.device | str) -> Any:
        """The same with all tensors on `device`."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return value.to(device) if isinstance(value, (Tensor, Rng)) else value

        return dataclasses.replace(self, **{f.name: moved(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @property
    def has_prompt(self) -> bool:
        """Whether any row has a position that is given (known without a device sync)."""
        return self.filled < sum(self.lengths)

    @functools.cached_property
    def prompt_mask(self) -> Tensor:
        """(B, L) bool: the positions that are given, which no sampler ever changes."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return ~self.fill & (position < torch.tensor(self.lengths, device=self.x.device)[:, None])


@dataclass(frozen=True, eq=False)
class Layout(Canvas):
    """A canvas that a run can start on; `Canvas.layout` makes it. Samplers see it as `state.canvas`.

    Attributes (besides the canvas's own):
        block_length: as it was given.
        block: (B, L) int64, the number of each position's block; FAR if there is nothing to fill.
        block_size: (B, blocks) int64, positions to fill in each block.
        block_steps: (B, blocks) int64, steps allocated to each block.
        stop: phrases, (m,) int64 each; a row ends after the first that it contains.
        rng: the randomness of the rows.
    """

    block_length: int | Tensor | None
    block: Tensor  # (B, L) int64
    block_size: Tensor  # (B, blocks) int64
    block_steps: Tensor  # (B, blocks) int64
    stop: tuple[Tensor, ...]
    rng: Rng

    @property
    def state_class(self) -> type[TokenState]:
        """The kind of state that a sampler without one of its own starts with."""
        from .state import DraftState, TokenState

        return TokenState if self.mask_id is not None else DraftState

    @functools.cached_property
    def rows_by_length(self) -> dict[int, list[int]]:
        """Row length -> the rows of that length. Rows of one length share a forward pass."""
        rows: dict[int, list[int]] = {}
        for i, length in enumerate(self.lengths):
            rows.setdefault(length, []).append(i)
        return dict(sorted(rows.items()))

    @functools.cached_property
    def length(self) -> Tensor:
        """(B,) int64: `lengths`, on the device."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.x.device)

    @functools.cached_property
    def fill_count(self) -> Tensor:
        """(B,) int64: positions to fill in each row."""
        return self.fill.sum(1)

    @functools.cached_property
    def fill_counts(self) -> list[int]:
        """`fill_count`, on the host. One device sync per run."""
        return self.fill_count.tolist()

    @functools.cached_property
    def fill_number(self) -> Tensor:
        """(B, L) int64: the number of each position to fill among those of the batch, in row-major order."""
        return (self.fill.flatten().cumsum(0) - 1).view_as(self.fill)

    def noise(self, step: Tensor, draw: int) -> Tensor:
        """(B, L) int64: tokens of uniform noise, each row's at its own step. step: (B,) int64."""
        u = self.rng.positions(self.x.shape[1], step, draw)
        return (u * self.vocab_size).to(torch.int64)  # u < 1 with 53 bits: the product rounds below V for V < 2^52


def _allocate_steps(size: Tensor, blocks: Tensor, steps: int | None) -> Tensor:
    """Steps for each block: one per position if `steps` is None, else one each and the rest by size. (B, blocks) int64.

    Blocks of equal size get equal steps whenever the division is even, as in LLaDA. If it is not, the sum still is
    `steps`, and as many steps as positions still are one per position (the rest is allocated by size - 1 for that).
    """
    if steps is None:
        return size
    positive_int("steps", steps)
    if (most := int(blocks.max())) > steps:
        row = int(blocks.argmax())
        raise OptionError(
            f"steps={steps} is fewer than the {most} blocks of row {row}: every block needs a step; "
            f"use steps={most} or more, or a larger block_length"
        )
    weight = (size - 1).clamp_min(0)
    cumulative = (steps - blocks)[:, None] * weight.cumsum(1) / weight.sum(1, keepdim=True).clamp_min(1)
    extra = torch.diff(torch.floor(cumulative + 0.5), dim=1, prepend=torch.zeros(len(size), 1))
    return torch.where(size > 0, 1 + extra.to(torch.int64), 0)


@dataclass(frozen=True, eq=False)
class NoiseCanvas:
    """What a Gaussian run starts from.

    Attributes:
        denoiser: for its shape, schedule and dtype.
        steps: number of function evaluations asked for.
        rng: the randomness of the rows.
    """

    denoiser: GaussianDenoiser
    steps: int
    rng: Rng

    @property
    def state_class(self) -> type[NoiseState]:
        """The kind of state that a sampler without one of its own starts with."""
        from .state import NoiseState

        return NoiseState

    def noise(self, draw: int) -> Tensor:
        """(B, *shape) standard normals, number `draw` of this run."""
        return self.rng.normal(self.denoiser.shape, draw, self.denoiser.dtype)
