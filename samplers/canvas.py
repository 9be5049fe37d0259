"""Canvas: the prompt, the positions to fill, their blocks and where to stop; and the state of a run over it.

Written once for all token samplers: a sampler sees `state.open`, the positions that it may commit now, and hands back
what it chose with `state.commit(where, token)`. Which block comes next, which rows are done and how many steps a row has
taken are worked out here, row by row, so that a row never waits for another: row i of a batch is what it is alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import ops
from .denoiser import GaussianDenoiser, TokenDenoiser
from .errors import OptionError
from .random import DRAW_START, Rng
from .sampler import State

__all__ = ["PAD", "Canvas", "DraftState", "NoiseCanvas", "NoiseState", "TokenState", "parse_stop", "whole"]

PAD = -1  # in a finished Sample: beyond a row's own end. Never given to a model.

_FAR = 2**40  # later than any block or position

S = TypeVar("S", bound="TokenState")


@dataclass(frozen=True, eq=False)
class Canvas:
    """What a token run starts from, and what never changes in it.

    Make one with `Canvas.of` (prompts, then gen_length positions) or `Canvas.infill` (any positions) and give it to
    `sample(prompt=...)`; sample() makes it of plain prompts itself.

    Attributes:
        x: (B, L) int64, the prompt's tokens, mask_id where something is to be filled in, mask_id beyond a row's end
            (0 in both places under uniform noise, which has no mask: `start` puts noise there).
        fill: (B, L) bool, the positions to fill in.
        lengths: each row's own length; rows may be ragged, and a model never sees beyond a row's end.
        mask_id: the mask token; None under uniform noise.
        vocab_size: the width of the model's logits.
        filled: positions to fill in all rows together.
    """

    x: Tensor  # (B, L) int64
    fill: Tensor  # (B, L) bool
    lengths: tuple[int, ...]
    mask_id: int | None
    vocab_size: int
    filled: int
    # What `prepared` fills in:
    block: Tensor | None = None  # (B, L) int64, the number of a position's block; _FAR where there is nothing to fill
    block_size: Tensor | None = None  # (B, blocks) int64, positions to fill in each block
    block_steps: Tensor | None = None  # (B, blocks) int64, steps given to each block
    stop: tuple[Tensor, ...] = ()  # phrases, (m,) int64 each
    group_lengths: tuple[int, ...] = ()  # the different lengths of rows: those of one length share a forward
    group: Tensor | None = None  # (B,) int64, each row's place in group_lengths
    rng: Rng | None = None

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
            OptionError: a prompt longer than the canvas, one with the mask id or a token that is no token in it, a
                missing or impossible gen_length.
        """
        prompts = _prompts(prompt, batch)
        if gen_length is None:
            if denoiser.length is None:
                raise OptionError(f"gen_length is needed: denoiser {denoiser.name!r} takes a canvas of any length")
        else:
            whole("gen_length", gen_length)
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
        _check_tokens(x, denoiser, position < given[:, None])
        return cls._on(denoiser, x, fill, tuple(ends.tolist()))

    @classmethod
    def infill(cls, denoiser: TokenDenoiser, x: Any, fill: Any, batch: int = 1) -> Canvas:
        """Any positions: the tokens of `x` are kept where `fill` is False and filled in where it is True.

        Args:
            x: (L,) or (B, L) ints; what stands where `fill` is True does not matter.
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
        _check_tokens(tokens, denoiser, ~where)
        filled = torch.where(where, denoiser.mask_id or 0, tokens.to(torch.int64))
        return cls._on(denoiser, filled, where, (tokens.shape[1],) * len(tokens))

    @classmethod
    def _on(cls, denoiser: TokenDenoiser, x: Tensor, fill: Tensor, lengths: tuple[int, ...]) -> Canvas:
        device = denoiser.device
        return cls(x.to(device), fill.to(device), lengths, denoiser.mask_id, denoiser.vocab_size, int(fill.sum()))

    def prepared(self, *, block_length: int | None, steps: int | None, stop: tuple[Tensor, ...], rng: Rng) -> Canvas:
        """This canvas with its positions cut into blocks of `block_length` and `steps` dealt out to them."""
        n_fill = self.fill.sum(1).cpu()  # (B,)
        length = int(n_fill.max()) if block_length is None else whole("block_length", block_length)
        rank = self.fill.cumsum(1) - 1  # (B, L) number among the positions to fill
        block = torch.where(self.fill, rank // length, _FAR)
        blocks = -(-n_fill // length)  # (B,)
        starts = torch.arange(int(blocks.max())) * length  # (blocks,)
        size = (n_fill[:, None] - starts).clamp(0, length)  # (B, blocks)
        device = self.x.device
        return dataclasses.replace(
            self,
            block=block,
            block_size=size.to(device),
            block_steps=_deal(size, blocks, steps).to(device),
            stop=tuple(p.to(device) for p in stop),
            group_lengths=(kinds := tuple(sorted(set(self.lengths)))),
            group=torch.tensor([kinds.index(n) for n in self.lengths], device=device),
            rng=rng,
        )

    def start(self) -> TokenState:
        """The state before the first step; under uniform noise a DraftState, whose positions to fill hold noise."""
        if self.block is None or self.rng is None:
            raise OptionError("this canvas is not prepared: sample() and stream() do it, or Canvas.prepared()")
        zeros = torch.zeros(len(self.x), dtype=torch.int64, device=self.x.device)
        end = torch.tensor(self.lengths, device=self.x.device)
        state = TokenState(self, self.x, self.fill, zeros, zeros, zeros, zeros, zeros, zeros.bool(), end)
        before = torch.full_like(zeros, -1)
        if self.mask_id is not None:
            return state._moved(self.x, before)
        noise = self.noise(zeros, DRAW_START)
        drafts = state.extend(DraftState, decided=torch.zeros_like(self.fill))
        return drafts._moved(torch.where(self.fill, noise, self.x), before)

    def drafts(self) -> DraftState:
        """The state before the first step of a sampler that changes its mind: tokens are drafts until they are decided."""
        state = self.start()
        return state if isinstance(state, DraftState) else state.extend(DraftState, decided=torch.zeros_like(self.fill))

    def noise(self, step: Tensor, draw: int) -> Tensor:
        """(B, L) int64: tokens of uniform noise, each row's at its own step. step: (B,) int64."""
        assert self.rng is not None
        u = self.rng.positions(self.x.shape[1], step, draw)
        return (u * self.vocab_size).to(torch.int64)  # u < 1 with 53 bits: the product rounds below V for V < 2^52

    def to(self, device: torch.device | str) -> Canvas:
        """This canvas with all its tensors on `device`."""

        def moved(value: Any) -> Any:
            return (
                tuple(map(moved, value)) if isinstance(value, tuple) else getattr(value, "to", lambda _: value)(device)
            )

        return dataclasses.replace(self, **{f.name: moved(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @property
    def has_prompt(self) -> bool:
        """Whether any row has a position that is given (known without asking the device)."""
        return self.filled < sum(self.lengths)

    @functools.cached_property
    def prompt_mask(self) -> Tensor:
        """(B, L) bool: the positions that are given, which no sampler ever changes."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return ~self.fill & (position < torch.tensor(self.lengths, device=self.x.device)[:, None])


@dataclass(frozen=True, eq=False)
class TokenState(State):
    """A token run between two steps. Samplers that carry more subclass it and build theirs with `state.extend`.

    Attributes:
        canvas: what never changes.
        x: (B, L) int64, mask_id where undecided.
        open: (B, L) bool, undecided and in the row's present block: what may be committed now.
        step: (B,) int64, steps the row has taken; the counter of its randomness.
        block_step: (B,) int64, steps it has taken in the present block.
        block_size: (B,) int64, positions that the present block had to fill.
        block_steps: (B,) int64, steps that the present block is given.
        count: (B,) int64, positions in `open`.
        done: (B,) bool, rows with nothing left to do.
        end: (B,) int64, where the row ends: its length, or behind a stop phrase.
    """

    canvas: Canvas
    x: Tensor  # (B, L) int64
    open: Tensor  # (B, L) bool
    step: Tensor  # (B,) int64
    block_step: Tensor  # (B,) int64
    block_size: Tensor  # (B,) int64
    block_steps: Tensor  # (B,) int64
    count: Tensor  # (B,) int64
    done: Tensor  # (B,) bool
    end: Tensor  # (B,) int64

    @property
    def finished(self) -> bool:
        return bool(self.done.all())

    @property
    def rng(self) -> Rng:
        assert self.canvas.rng is not None
        return self.canvas.rng

    @property
    def masked(self) -> Tensor:
        """(B, L) bool: positions to fill that hold the mask, in any block."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return self.canvas.fill & (self.x == self.canvas.mask_id) & (position < self.end[:, None])

    @property
    def undecided(self) -> Tensor:
        """(B, L) bool: positions still to decide, in any block; here those that hold the mask."""
        return self.masked

    @property
    def noise_level(self) -> Tensor:
        """(B,) float64: the share of the positions to fill that is still noise; the t of time-conditioned models."""
        noisy = self.undecided if self.canvas.mask_id is None else self.masked
        return noisy.sum(1).to(torch.float64) / self.canvas.fill.sum(1)

    @property
    def noise(self) -> float:
        """How many positions to fill hold noise, in all rows together: what a progress bar waits for. Reads the device."""
        return float((self.noise_level * self.canvas.fill.sum(1)).sum())

    @property
    def levels(self) -> Tensor:
        """(B, L) float64: the noise level of each position, for models that take a time a position.

        0 where the token is given, decided or (masked family) visible; else 1: a mask, and noise that nothing is known of.
        What is behind a stop phrase and was never decided is noise, too.
        """
        noisy = self._draft if self.canvas.mask_id is None else self.x == self.canvas.mask_id
        return (self.canvas.fill & noisy).to(torch.float64)

    def extend(self, cls: type[S], **more: Any) -> S:
        """This state as a subclass with more fields."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(TokenState)}
        return cls(**shared, **more)

    def commit(self: S, where: Tensor, token: Tensor, **changes: Any) -> S:
        """The next state: `token` written at `where`, one step taken by every row that is not done.

        Args:
            where: (B, L) bool; anything outside `open` is left alone, so no sampler can touch a prompt.
            token: (B, L) int64.
            changes: new values of a subclass's own fields.
        """
        return self._moved(torch.where(where & self.open, token, self.x), self._block(self.open), **changes)

    def commit_best(self: S, score: Tensor, token: Tensor, **rule: Any) -> S:
        """The next state: `token` written at the open positions of the best scores, one step taken as by `commit`.

        Args:
            score: (B, L) floats; the higher first, equal ones by position.
            token: (B, L) int64.
            rule: how many, as in `samplers.ops.select`: k=, threshold=, factor= or budget=; least=, most=, lowest=.
        """
        x = self.x.clone()  # states are immutable
        ops.commit_(x, token, score, self.open, **rule)
        return self._moved(x, self._block(self.open))

    def fix(self: S, where: Tensor, token: Tensor) -> S:
        """The state with `token` decided at `where`, in any block; no step is taken. For constraints: see sample().

        where: (B, L) bool; what is given or decided already is left alone. token: (B, L) int64.
        """
        return self._moved(torch.where(where & self.undecided, token, self.x), self._block(self.open), steps=0)

    def _block(self, undecided: Tensor) -> Tensor:
        """(B,): each row's lowest block with an undecided position; _FAR where there is none."""
        assert self.canvas.block is not None
        return torch.where(undecided, self.canvas.block, _FAR).amin(1)

    def _moved(self: S, x: Tensor, before: Tensor, *, steps: int = 1, **changes: Any) -> S:
        """The state with tokens `x`, reached in `steps` steps from the block `before` of each row."""
        canvas = self.canvas
        assert canvas.block_size is not None and canvas.block_steps is not None
        state = dataclasses.replace(self, x=x, **changes)
        if canvas.stop:
            state = dataclasses.replace(state, end=state._stopped())
        undecided = state.undecided
        block = state._block(undecided)
        number = block.clamp(max=canvas.block_size.shape[1] - 1)[:, None]
        same, started = block == before, before >= 0
        went = started & ~self.done
        opened = undecided & (canvas.block == block[:, None])
        return dataclasses.replace(
            state,
            open=opened,
            step=self.step + went * steps,
            block_step=torch.where(same, self.block_step + steps, 0),
            block_size=canvas.block_size.gather(1, number).squeeze(1),
            block_steps=canvas.block_steps.gather(1, number).squeeze(1),
            count=opened.sum(1),
            done=block == _FAR,
        )

    @property
    def _draft(self) -> Tensor:
        """(B, L) bool: where a token may still change."""
        return torch.zeros_like(self.open)

    def _stopped(self) -> Tensor:
        """(B,): behind the earliest stop phrase that stands whole in the filled part; else the end as it was.

        Tokens are never changed once decided, so a phrase that stands will stay and what is behind it need not be
        filled in; the row is done when everything before it is decided too.
        """
        canvas, end = self.canvas, self.end
        length = self.x.shape[1]
        for phrase in canvas.stop:
            m = len(phrase)
            if m > length:
                continue
            hit = (self.x.unfold(1, m, 1) == phrase).all(2)  # (B, L - m + 1)
            hit &= (canvas.fill & ~self._draft).unfold(1, m, 1).all(2)
            behind = torch.arange(m, length + 1, device=self.x.device)
            end = torch.minimum(end, torch.where(hit, behind, _FAR).amin(1))
        return end


@dataclass(frozen=True, eq=False)
class DraftState(TokenState):
    """A token run whose tokens may change until they are decided: remasking, editing, and all of uniform noise.

    A block stays the row's present one until all of it is decided, whether or not a mask is left in it. `commit` writes
    and decides; `revise` writes drafts.

    Attributes:
        decided: (B, L) bool, positions of the canvas whose token is final.
    """

    decided: Tensor  # (B, L) bool

    @property
    def undecided(self) -> Tensor:
        """(B, L) bool: positions to fill whose token is not final, in any block."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return self.canvas.fill & ~self.decided & (position < self.end[:, None])

    @property
    def _draft(self) -> Tensor:
        return ~self.decided

    @property
    def last_step(self) -> Tensor:
        """(B,) bool: rows in the last of their block's steps; what is open must be decided now."""
        return self.block_step + 1 >= self.block_steps

    def revise(self: D, x: Tensor, decide: Tensor, **changes: Any) -> D:
        """The next state: the tokens of `x` at the open positions, as drafts; one step taken.

        Args:
            x: (B, L) int64; the mask id where a position is masked again. Outside `open` it is not looked at.
            decide: (B, L) or (B,) bool, the open positions, or rows all of whose open positions, that are final now. A
                masked one is not: give it a token first.
            changes: new values of a subclass's own fields.
        """
        decide = decide[:, None] if decide.dim() == 1 else decide
        x = torch.where(self.open, x, self.x)
        return self._moved(x, self._block(self.open), decided=self._with(decide & self.open, x), **changes)

    def commit(self: D, where: Tensor, token: Tensor, **changes: Any) -> D:
        return self.revise(torch.where(where, token, self.x), where, **changes)

    def commit_best(self: D, score: Tensor, token: Tensor, **rule: Any) -> D:
        return self.commit(ops.select(score, self.open, **rule).chosen, token)

    def fix(self: D, where: Tensor, token: Tensor) -> D:
        where = where & self.undecided
        x = torch.where(where, token, self.x)
        return self._moved(x, self._block(self.open), steps=0, decided=self._with(where, x))

    def _with(self, more: Tensor, x: Tensor) -> Tensor:
        """(B, L): what is decided when `more` is, too."""
        decided = self.decided | more
        return decided if self.canvas.mask_id is None else decided & (x != self.canvas.mask_id)


D = TypeVar("D", bound=DraftState)


@dataclass(frozen=True, eq=False)
class NoiseCanvas:
    """What a Gaussian run starts from.

    Attributes:
        denoiser: for its shape, schedule and dtype.
        steps: number of function evaluations asked for.
        rng: who the rows are.
    """

    denoiser: GaussianDenoiser
    steps: int
    rng: Rng

    def start(self) -> NoiseState:
        return NoiseState(self, self.noise(0))

    def noise(self, draw: int) -> Tensor:
        """(B, *shape) standard normals, the draw-th of this run."""
        return self.rng.normal(self.denoiser.shape, draw, self.denoiser.dtype)


@dataclass(frozen=True, eq=False)
class NoiseState(State):
    """A Gaussian run between two steps. Samplers subclass it to carry their grid and their history.

    Attributes:
        canvas: what never changes.
        x: (B, *shape)
        i: steps taken.
    """

    canvas: NoiseCanvas
    x: Tensor
    i: int = 0
    last: bool = False

    @property
    def finished(self) -> bool:
        return self.last


# ---------------------------------------------------------------------------------------------- reading arguments


def whole(name: str, value: Any) -> int:
    """`value`, an integer of 1 or more; OptionError naming the argument where it is not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be an integer of 1 or more, not {value!r}")
    return value


def _deal(size: Tensor, blocks: Tensor, steps: int | None) -> Tensor:
    """Steps for each block: one a position where `steps` is None, else one each and the rest by size. (B, blocks) int64.

    Blocks of equal size get equal steps whenever the division is even, as in LLaDA; where it is not the sum still is
    `steps`, and as many steps as positions still are one a position (the rest is dealt by size - 1 for that).
    """
    if steps is None:
        return size
    whole("steps", steps)
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


def _prompts(prompt: Any, batch: int) -> list[Tensor]:
    whole("batch", batch)
    if prompt is None:
        return [torch.zeros(0, dtype=torch.int64)] * batch
    ragged = isinstance(prompt, Sequence) and len(prompt) > 0 and not isinstance(prompt[0], Integral)
    try:
        rows = [torch.as_tensor(p) for p in prompt] if ragged else torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"prompt: {error}; token ids are needed, (P,), (B, P) or a list of rows") from error
    if isinstance(rows, Tensor):
        rows = [rows] if rows.dim() == 1 else list(rows) if rows.dim() == 2 else [torch.zeros(0, 0)]
    for i, row in enumerate(rows):
        if row.dim() != 1 or (row.is_floating_point() and len(row)) or row.dtype == torch.bool:
            raise OptionError(
                f"prompt: row {i} is of shape {tuple(row.shape)} and {row.dtype}; token ids are needed, (P,) int64"
            )
    rows = [row.to("cpu", torch.int64) for row in rows]
    if len(rows) == 1:
        return rows * batch
    if batch not in (1, len(rows)):
        raise OptionError(f"prompt has {len(rows)} rows and batch={batch}; give one prompt, or as many as rows")
    return rows


def _check_tokens(x: Tensor, denoiser: TokenDenoiser, given: Tensor) -> None:
    """OptionError for the first of the `given` positions, (B, L) bool, of x that holds the mask id or no token."""
    held = x == denoiser.mask_id if denoiser.mask_id is not None else torch.zeros_like(given)
    for i, j in (given & held).nonzero().tolist():
        raise OptionError(
            f"prompt: row {i}, position {j} is the mask id {denoiser.mask_id}; a prompt is made of "
            "tokens that are known. To fill positions in the middle use samplers.Canvas.infill(denoiser, x, fill)"
        )
    for i, j in (given & ((x < 0) | (x >= denoiser.vocab_size))).nonzero().tolist():
        raise OptionError(
            f"prompt: row {i}, position {j} is {int(x[i, j])}; tokens of {denoiser.name!r} are 0 to "
            f"{denoiser.vocab_size - 1}"
        )


def parse_stop(stop: Any) -> tuple[Tensor, ...]:
    """Stop rules as phrases: a token id; a phrase (a list of ids); or a list of phrases, any of which stops a row."""
    if stop is None:
        return ()
    if isinstance(stop, int) and not isinstance(stop, bool):
        stop = [[stop]]
    elif isinstance(stop, (Sequence, Tensor)) and len(stop) and all(isinstance(s, int) for s in stop):
        stop = [stop]
    try:
        phrases = tuple(torch.as_tensor(p, dtype=torch.int64).reshape(-1) for p in stop)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"stop={stop!r}: a token id, a phrase such as [13, 13], or a list of phrases is needed"
        ) from error
    if not phrases or any(len(p) == 0 for p in phrases):
        raise OptionError(f"stop={stop!r}: a stop phrase must have a token")
    return phrases
