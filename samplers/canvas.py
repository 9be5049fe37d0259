"""Canvas: the prompt and the positions to fill. Layout: a canvas cut into blocks, with steps, stop rules and seeds.

Both are values that never change in a run. What a run changes is in state.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import (
    POSITION_BYTES,
    bool_rows,
    check_memory,
    check_room,
    check_tokens,
    integer,
    optional_integer,
    shown,
    token_rows,
)
from .denoiser import TokenDenoiser
from .errors import OptionError
from .gaussian.denoiser import GaussianDenoiser
from .noise_schedules import Point
from .random import Rng
from .text import StopText, prompt_rows

if TYPE_CHECKING:
    from .state import NoiseState, TokenState
    from .windows import Window

__all__ = ["FAR", "PAD", "Canvas", "Layout", "NoiseCanvas", "rows_of_each"]

PAD = -1  # in a finished Sample: beyond a row's own end. Never given to a model.
FAR = 2**40  # the number of no block: later than any other
HOST: Any = {"dtype": torch.int64, "device": "cpu"}  # said wherever a tensor is made: torch's defaults may be others


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
                prompt is repeated `batch` times. A denoiser with a tokenizer also takes text: see text.prompt_rows.
            gen_length: None takes what is left of a denoiser of fixed `length`.

        Raises:
            OptionError: a prompt longer than the canvas, one that contains the mask id or an id outside the vocabulary,
                a missing or impossible gen_length, a canvas longer than the denoiser's max_length, or one that the memory
                of the denoiser's device cannot hold.
        """
        batch, gen_length = integer("batch", batch), optional_integer("gen_length", gen_length)
        prompts = [torch.zeros(0, **HOST)] if prompt is None else token_rows("prompt", prompt_rows(prompt, denoiser))
        if len(prompts) > 1 and batch not in (1, len(prompts)):
            raise OptionError(
                f"prompt has {len(prompts)} rows and batch={batch}; give one prompt, or as many prompts as rows"
            )
        if gen_length is None and denoiser.length is None:
            raise OptionError(f"gen_length is needed: denoiser {denoiser.name!r} takes a canvas of any length")
        given = [len(p) for p in prompts]
        ends = [n + gen_length if gen_length is not None else denoiser.length or 0 for n in given]
        if denoiser.length is not None:
            for i, (n, whole) in enumerate(zip(given, ends)):
                if n >= denoiser.length:
                    raise OptionError(
                        f"the prompt of row {i} has {n} tokens and the canvas of {denoiser.name!r} has "
                        f"{denoiser.length} positions: no position is left to fill; "
                        f"a prompt may have at most {denoiser.length - 1}"
                    )
                if whole != denoiser.length:
                    raise OptionError(
                        f"row {i}: a prompt of {n} and gen_length={gen_length} make {whole} positions; denoiser "
                        f"{denoiser.name!r} takes exactly {denoiser.length}: use gen_length={denoiser.length - n} or none"
                    )
        check_room("prompt and gen_length", ends, denoiser)
        rows = max(batch, len(prompts))
        _check_size(denoiser, rows, max(ends))
        position = torch.arange(max(ends), **HOST)
        before, end = (torch.tensor(n, **HOST)[:, None] for n in (given, ends))
        fill = (position >= before) & (position < end)  # (B, L)
        x = _padded(prompts, max(ends), denoiser)
        check_tokens(
            "prompt",
            x,
            denoiser,
            position < before,
            "; a prompt is made of tokens that are known. To fill positions in the middle use "
            "samplers.Canvas.infill(denoiser, x, fill)",
        )
        if len(prompts) < rows:
            x, fill, ends = x.expand(rows, -1), fill.expand(rows, -1), ends * rows
        return cls._for_denoiser(denoiser, x.contiguous(), fill.contiguous(), tuple(ends))

    @classmethod
    def infill(cls, denoiser: TokenDenoiser, x: Any, fill: Any, batch: int = 1) -> Canvas:
        """Any positions: the tokens of `x` are kept where `fill` is False, and filled in where it is True.

        Args:
            x: (L,) or (B, L) ints, or a list of B rows of any lengths; what stands at the positions to fill does not matter.
            fill: bools of the same shape, or a list of rows of the same lengths. One row is repeated `batch` times.

        Raises:
            OptionError: shapes that differ, nothing to fill in a row, the mask id or no token among the kept tokens, rows
                that the denoiser cannot take.
        """
        batch = integer("batch", batch)
        tokens, where = token_rows("infill: x", x), bool_rows("infill: fill", fill)
        lengths, asked = [len(row) for row in tokens], [len(row) for row in where]
        if lengths != asked:
            raise OptionError(
                f"infill takes x and fill of one shape, (L,) or (B, L), or as lists of rows of the same lengths; x has "
                f"{_lengths(lengths)} and fill {_lengths(asked)}"
            )
        if len(tokens) > 1 and batch not in (1, len(tokens)):
            raise OptionError(f"infill: x has {len(tokens)} rows and batch={batch}; give one row, or as many as batch")
        for i, length in enumerate(lengths):
            if not length:
                raise OptionError(f"infill: row {i} is empty: there is no position to fill in it")
            if denoiser.length is not None and length != denoiser.length:
                raise OptionError(
                    f"infill: row {i} has {length} tokens; denoiser {denoiser.name!r} takes exactly {denoiser.length}"
                )
            if not bool(where[i].any()):
                raise OptionError(f"infill: row {i} has no position to fill")
        check_room("infill", lengths, denoiser)
        rows = max(batch, len(tokens))
        _check_size(denoiser, rows, max(lengths))
        filled = torch.nn.utils.rnn.pad_sequence(where, batch_first=True, padding_value=False)  # (B, L) bool
        position, end = torch.arange(max(lengths), **HOST), torch.tensor(lengths, **HOST)[:, None]
        out = _padded(tokens, max(lengths), denoiser)
        check_tokens(
            "infill",
            out,
            denoiser,
            ~filled & (position < end),
            ", and fill is False there: set fill to True where a mask stands, or give the token",
        )
        out = torch.where(filled, _blank(denoiser), out)
        if len(tokens) < rows:
            out, filled, lengths = out.expand(rows, -1), filled.expand(rows, -1), lengths * rows
        return cls._for_denoiser(denoiser, out.contiguous(), filled.contiguous(), tuple(lengths))

    @classmethod
    def _for_denoiser(cls, denoiser: TokenDenoiser, x: Tensor, fill: Tensor, lengths: tuple[int, ...]) -> Canvas:
        device = denoiser.device
        return cls(x.to(device), fill.to(device), lengths, denoiser.mask_id, denoiser.vocab_size, int(fill.sum()))

    def check_denoiser(self, denoiser: TokenDenoiser) -> None:
        """OptionError if this canvas was made for a denoiser of another vocabulary, mask id, length or device."""
        facts: dict[str, tuple[Any, Any]] = {
            "vocab_size": (self.vocab_size, denoiser.vocab_size),
            "mask_id": (self.mask_id, denoiser.mask_id),
            "device": (
                self.x.device,
                torch.empty(0, dtype=torch.int64, device=denoiser.device).device,
            ),  # cuda is cuda:0
        }
        if denoiser.length is not None:
            facts["length"] = (max(self.lengths), denoiser.length)
        wrong = [f"{name} {mine} (the denoiser's: {its})" for name, (mine, its) in facts.items() if mine != its]
        if wrong:
            raise OptionError(
                f"prompt is a Canvas that was made for another denoiser than {denoiser.name!r}: it has {', '.join(wrong)}"
            )
        check_room("prompt", list(self.lengths), denoiser)

    def layout(
        self,
        *,
        block_length: int | Tensor | None = None,
        steps: int | None = None,
        align: bool = False,
        stop: tuple[Tensor, ...] = (),
        stop_rule: str = "decided",
        stop_text: StopText | None = None,
        curve: tuple[float, ...] | None = None,
        window: Window | None = None,
        rng: Rng,
    ) -> Layout:
        """This canvas cut into blocks, with `steps` allocated to them.

        Args:
            block_length: positions per block, (B,) int64 if rows have their own; None: one block.
            steps: steps per row; None: one per position.
            align: count blocks from position 0 of the row, not from the first position to fill.
            stop: phrases, (m,) int64 each.
            stop_rule: when a phrase ends a row; see sample().
            stop_text: strings at which rows end as well, or None.
            curve: the denoiser's entropy_curve, for a sampler that plans by it.
            window: a window that moves, in place of blocks, or None. Blocks are then its own, if it has any.
            rng: the randomness of the rows.

        Raises:
            OptionError: fewer steps than blocks, or than a window needs; a block_length below 1; a window longer than the
                canvas.
        """
        block_length = block_length if window is None else window.block_length
        fill, ends = self.fill.cpu(), torch.tensor(self.lengths, **HOST)[:, None]  # (B, L), (B, 1)
        if isinstance(block_length, Tensor):
            length = block_length.cpu()[:, None]  # (B, 1)
        else:
            most = int(fill.sum(1).max()) if block_length is None else integer("block_length", block_length)
            length = torch.full_like(ends, most)
        position = torch.arange(fill.shape[1], **HOST).expand_as(fill)  # (B, L)
        number = (position if align else fill.cumsum(1) - 1) // length
        first = torch.where(fill, number, FAR).amin(1, keepdim=True)  # (B, 1), 0 if not aligned
        number -= first
        n = int(number[fill].max()) + 1  # blocks; of infilling, some may have nothing to fill
        into = torch.where(fill, number, n)
        size = torch.zeros(len(fill), n + 1, **HOST).scatter_add_(1, into, torch.ones_like(into))[:, :n]  # (B, blocks)
        if align:
            end = (first + torch.arange(1, n + 1, **HOST)) * length
        else:  # where the next block begins
            end = torch.full((len(fill), n + 1), FAR, **HOST).scatter_reduce_(1, into, position, "amin")[:, 1:]
            end[:, -1] = FAR
        device, block_steps = self.x.device, _allocate_steps(size, steps)
        if window is not None:  # one plan for the whole row
            size, block_steps = size.sum(1, keepdim=True), block_steps.sum(1, keepdim=True)
        layout = Layout(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(Canvas)},
            block_length=block_length,
            block=torch.where(fill, number, FAR).to(device),
            block_size=size.to(device),
            block_steps=block_steps.to(device),
            block_end=torch.minimum(end, ends).to(device),
            stop=tuple(p.to(device) for p in stop),
            stop_rule=stop_rule,
            stop_text=stop_text,
            curve=curve,
            window=window,
            rng=rng,
            align=align,
        )
        if window is not None:
            window.check(layout)
            _check_window_steps(window, layout)
        return layout

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
        block_size: (B, blocks) int64, positions to fill in each block; (B, 1), in each row, under a window that moves.
        block_steps: (B, blocks) int64, steps allocated to each block; (B, 1), to each row, under a window that moves.
        block_end: (B, blocks) int64, the position after the block's last: where the next one begins, or the row's end.
        stop: phrases, (m,) int64 each; a row ends after the first that it contains.
        stop_rule: when a phrase ends a row; see sample().
        stop_text: strings that end it likewise, or None.
        curve: the denoiser's entropy_curve, for a sampler with Facts(curve=True); else None.
        rng: the randomness of the rows.
        align: whether blocks are counted from position 0 of the row.
        window: the window that moves in place of blocks, or None.
    """

    block_length: int | Tensor | None
    block: Tensor  # (B, L) int64
    block_size: Tensor  # (B, blocks) int64
    block_steps: Tensor  # (B, blocks) int64
    block_end: Tensor  # (B, blocks) int64
    stop: tuple[Tensor, ...]
    stop_rule: str
    stop_text: StopText | None
    curve: tuple[float, ...] | None
    rng: Rng
    align: bool = False
    window: Window | None = None

    def grown(self, at: Tensor, by: Tensor, added: list[int]) -> Layout:
        """The layout with more positions to fill; the canvas is as wide as its longest row needs.

        Blocks are counted anew, with the same block_length. A block keeps its steps, and has one more for each position that
        it has come to hold.

        Args:
            at, by: (B,) int64, in row i `by` positions are put in before position `at`; at its end if `at` is its length.
            added: `by`, on the host.
        """
        lengths = tuple(n + more for n, more in zip(self.lengths, added))
        new = (at, by, max(lengths))
        blank = self.mask_id or 0
        fresh = inserted(torch.zeros_like(self.fill), *new, True, False)
        canvas = Canvas(
            inserted(self.x, *new, blank, blank),
            inserted(self.fill, *new, False, False) | fresh,
            lengths,
            self.mask_id,
            self.vocab_size,
            self.filled + sum(added),
        )
        kept = ("block_length", "align", "stop", "stop_rule", "stop_text", "rng")
        layout = canvas.layout(**{name: getattr(self, name) for name in kept})
        size, blocks = layout.block_size, self.block_size.shape[1]
        before, steps = (
            torch.nn.functional.pad(b, (0, max(size.shape[1] - blocks, 0)))[:, : size.shape[1]]
            for b in (self.block_size, self.block_steps)
        )
        return dataclasses.replace(layout, block_steps=torch.maximum(steps + size - before, (size > 0).to(torch.int64)))

    def state_class(self, revises: bool) -> type[TokenState]:
        """The kind of state that a sampler without one of its own starts with; `revises` is one of its facts."""
        from .state import DraftState, TokenState

        return DraftState if revises or self.mask_id is None else TokenState

    @property
    def stops(self) -> bool:
        """Whether rows may end early."""
        return bool(self.stop) or self.stop_text is not None

    def copies(self, number: int, apart: bool = False, first: int = 0) -> Layout:
        """Each row `number` times, one after the other; the same object every time. See Predict.copies."""
        made: dict[tuple[int, bool, int], Layout] = self.__dict__.setdefault("_copies", {})
        key = (number, apart, first)
        if key not in made:
            rows, length = self.x.shape
            what = f"{number} copies of each of {rows} rows of {length} positions"
            check_memory(what, number * rows * length * POSITION_BYTES, self.x.device)
            changes: dict[str, Any] = {}
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if isinstance(value, Tensor) and len(value) == rows:
                    changes[field.name] = value.repeat_interleave(number, 0)
            lengths = tuple(n for n in self.lengths for _ in range(number))
            changes |= {"lengths": lengths, "filled": self.filled * number, "rng": self.rng.copies(*key)}
            made[key] = dataclasses.replace(self, **changes)
            made[key].__dict__["source"] = self
        return made[key]

    @functools.cached_property
    def source(self) -> Layout:
        """The canvas whose rows are copied here; itself, if it is no copy."""
        return self

    @functools.cached_property
    def rows_by_length(self) -> dict[int, list[int]]:
        """Row length -> the rows of that length, which share a forward pass unless rows of all lengths do."""
        return rows_of_each(self.lengths)

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


def _blank(denoiser: TokenDenoiser) -> int:
    """What stands at positions to fill, and beyond a row's end."""
    return denoiser.mask_id or 0


def _padded(rows: list[Tensor], length: int, denoiser: TokenDenoiser) -> Tensor:
    """(B, length) int64: rows of any lengths up to `length`."""
    x = torch.full((len(rows), length), _blank(denoiser), **HOST)
    for i, row in enumerate(rows):
        x[i, : len(row)] = row
    return x


def inserted(x: Tensor, at: Tensor, by: Tensor, width: int, new: Any, beyond: Any) -> Tensor:
    """(B, width): x, (B, L), with `by` entries put in before position `at` of each row.

    Args:
        at, by: (B,) int64.
        new: the value of what is put in.
        beyond: the value of what lies after the last entry of x.
    """
    position = torch.arange(width, device=x.device).expand(len(x), -1)
    at, by = at[:, None], by[:, None]
    source = torch.where(position < at, position, position - by)  # (B, width)
    moved = x.gather(1, source.clamp(0, x.shape[1] - 1))
    moved = torch.where(source < x.shape[1], moved, beyond)
    return torch.where((position >= at) & (position < at + by), new, moved)


def rows_of_each(lengths: Iterable[int]) -> dict[int, list[int]]:
    """Length -> the numbers of the rows that have it, both ascending."""
    rows: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        rows.setdefault(length, []).append(i)
    return dict(sorted(rows.items()))


def _lengths(lengths: list[int]) -> str:
    return (
        f"{len(lengths)} rows of {lengths[0] if len(set(lengths)) == 1 else shown(lengths)}" if lengths else "no rows"
    )


def _check_size(denoiser: TokenDenoiser, rows: int, length: int) -> None:
    """OptionError if a canvas of `rows` rows and one forward pass over it cannot fit into the memory of the device.

    What is counted is a lower bound: POSITION_BYTES for each position, and the logits of a denoiser that stores them all.
    """
    size = rows * length * (POSITION_BYTES + denoiser.logits_bytes)
    check_memory(f"a canvas of {rows} rows of {length} positions", size, torch.device(denoiser.device))


def _allocate_steps(size: Tensor, steps: int | None) -> Tensor:
    """Steps for each block: one per position if `steps` is None, else one each and the rest by size. (B, blocks) int64.

    Blocks of equal size get equal steps whenever the division is even, as in LLaDA. If it is not, the sum still is
    `steps`, and as many steps as positions still are one per position (the rest is allocated by size - 1 for that).
    """
    if steps is None:
        return size
    steps, blocks = integer("steps", steps), (size > 0).sum(1)
    if (most := int(blocks.max())) > steps:
        row = int(blocks.argmax())
        raise OptionError(
            f"steps={steps} is fewer than the {most} blocks of row {row}: every block needs a step; "
            f"use steps={most} or more, or a larger block_length"
        )
    weight = (size - 1).clamp_min(0)
    more = (steps - blocks)[:, None].to(torch.float64) * weight.cumsum(1)  # exact: a quotient that is whole stays whole
    total = torch.floor(more / weight.sum(1, keepdim=True).clamp_min(1) + 0.5)  # (B, blocks) float64
    extra = torch.diff(total, dim=1, prepend=torch.zeros_like(total[:, :1]))
    return torch.where(size > 0, 1 + extra.to(torch.int64), 0)


def _check_window_steps(window: Window, layout: Layout) -> None:
    """OptionError if a row's steps are fewer than the window needs."""
    needed, steps = window.passes(layout, layout.fill).tolist(), layout.block_steps.squeeze(1).tolist()
    for row, (least, given) in enumerate(zip(needed, steps)):
        if given < least:
            raise OptionError(
                f"steps={given} is fewer than the {least} steps that window={str(window)!r} needs for the positions to fill of "
                f"row {row}: use steps={least} or more, or a longer window"
            )


@dataclass(frozen=True, eq=False)
class NoiseCanvas:
    """What a Gaussian run starts from.

    Attributes:
        denoiser: for its shape and schedule.
        steps: number of function evaluations asked for.
        rng: the randomness of the rows.
        start: (B, *shape), the x_0 that the run starts from, or None.
        known: (B, *shape) bool, where `start` is kept as it is, or None.
        moments: mean of x_0, (B, *shape), and its variance per coordinate, from which the first x is drawn, or None.
        strength: the share of the noise levels that the run goes through, from `start` on.
        first_noise: (B, *shape), the normals of the first x, if they are not `rng`'s or are needed often.
        times: the schedule's times of the run's points, the first first, if the caller gave them.
    """

    denoiser: GaussianDenoiser
    steps: int
    rng: Rng
    start: Tensor | None = None
    known: Tensor | None = None
    moments: tuple[Tensor, float] | None = None
    strength: float = 1.0
    first_noise: Tensor | None = None
    times: tuple[float, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of x in a run: float64 if the denoiser's is, else float32."""
        return self.denoiser.state_dtype

    def state_class(self, revises: bool) -> type[NoiseState]:
        """The kind of state that a sampler without one of its own starts with."""
        from .state import NoiseState

        return NoiseState

    def noise(self, draw: int) -> Tensor:
        """(B, *shape) standard normals, number `draw` of this run. Number 0 is that of the first x."""
        if draw == 0 and self.first_noise is not None:
            return self.first_noise
        return self.rng.normal(self.denoiser.shape, draw, self.dtype)

    def first(self, point: Point) -> Tensor:
        """(B, *shape), x at the first point of a run: alpha x_0 + sigma e.

        Without a `start` or moments the data's own part is left out: at the schedule's t_max it is small. With moments, x
        has the mean and the mean variance of the true distribution there (Analytic-Init, Zhao et al. 2024, arXiv 2406.15735).
        """
        noise = self.noise(0)
        if self.start is not None:
            return point.alpha * self.start + point.sigma * noise
        if self.moments is not None:
            mean, variance = self.moments
            return point.alpha * mean + math.sqrt(point.sigma**2 + point.alpha**2 * variance) * noise
        return point.sigma * noise

    def with_known(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """x with the known part of `start` put in at a noise level, with the noise that the run began with."""
        assert self.start is not None and self.known is not None
        return torch.where(self.known, alpha * self.start + sigma * self.noise(0), x)
