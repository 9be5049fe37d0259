"""State: what a run is between two steps.

Written once for all token samplers: a sampler sees `state.open`, the positions that it may commit now, and hands back
what it chose with `state.commit(where, token)`. Which block comes next, which rows are done and how many steps a row has
taken are worked out here, row by row, so that a row never waits for another: row i of a batch is what it is alone.

A sampler that carries more than its base class makes a subclass, a frozen dataclass, and begins it with
`MyState.begin(canvas, **fields)`, where `fields` are its own fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from . import ops
from .canvas import FAR, PAD, Layout, NoiseCanvas, inserted
from .errors import SamplersError
from .prediction import Logits, Prediction, packed_rows
from .random import DRAW_START, Rng
from .sampler import State

__all__ = ["DraftState", "NoiseState", "TokenState"]

T = TypeVar("T", bound="TokenState")
D = TypeVar("D", bound="DraftState")
N = TypeVar("N", bound="NoiseState")


def _check_fields(cls: type[State], base: type[State], canvas: Any, kind: type, fields: dict[str, Any]) -> None:
    """SamplersError if `begin` was not given a canvas and just the fields that the subclass adds to `base`."""
    who = f"{cls.__name__}.begin(canvas, ...)"
    if not isinstance(canvas, kind):
        raise SamplersError(f"{who}: canvas is {type(canvas).__name__}; give what Sampler.init is called with")
    own = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    made = {f.name for f in dataclasses.fields(TokenState)} if base is TokenState else {"canvas"}
    needed = {
        n for n, f in own.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    needed -= made | {"x"}
    have = ", ".join(sorted(own.keys() - made)) or "none"
    if missing := needed - fields.keys():
        raise SamplersError(f"{who} lacks {', '.join(sorted(missing))}; its fields are {have}")
    if unknown := fields.keys() - (own.keys() - made):
        raise SamplersError(f"{who} has no field {', '.join(sorted(unknown))} to be given; its fields are {have}")


@dataclass(frozen=True, eq=False)
class TokenState(State):
    """A token run between two steps.

    Attributes:
        canvas: what never changes.
        x: (B, L) int64, mask_id at undecided positions.
        open: (B, L) bool, undecided and in the row's present block, or window: what may be committed now.
        step: (B,) int64, steps that the row has taken; the counter of its randomness.
        block: (B,) int64, the number of the present block; canvas.FAR if the row is done.
        block_step: (B,) int64, steps that the row has taken in the present block.
        block_size: (B,) int64, positions that the present block had to fill.
        block_steps: (B,) int64, steps that the present block is given.
        count: (B,) int64, positions in `open`.
        done: (B,) bool, rows with nothing left to do.
        end: (B,) int64, where the row ends: its length, or after a stop phrase.
        previous: (filled, V) float32, for a self-conditioned denoiser its last logits at the positions to fill, in
            row-major order; None before the first forward pass.
        ready: the prediction for this very state, if the step that led to it has asked already (see samplers.copies), so that
            the next step needs no forward pass; else None.

    SHARED names the fields of a subclass that are tensors with no entry for each row of the batch, such as a table.
    """

    SHARED: ClassVar[tuple[str, ...]] = ()

    canvas: Layout
    x: Tensor  # (B, L) int64
    open: Tensor  # (B, L) bool
    step: Tensor  # (B,) int64
    block: Tensor  # (B,) int64
    block_step: Tensor  # (B,) int64
    block_size: Tensor  # (B,) int64
    block_steps: Tensor  # (B,) int64
    count: Tensor  # (B,) int64
    done: Tensor  # (B,) bool
    end: Tensor  # (B,) int64
    previous: Tensor | None = dataclasses.field(default=None, kw_only=True)
    ready: Prediction | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def begin(cls: type[T], canvas: Layout, **fields: Any) -> T:
        """The state before the first step.

        Args:
            fields: the values of the subclass's own fields.
        """
        _check_fields(cls, TokenState, canvas, Layout, fields)
        device = canvas.x.device
        zeros = torch.zeros(len(canvas.x), dtype=torch.int64, device=device)
        x = canvas.x
        if canvas.mask_id is None:
            x = torch.where(canvas.fill, canvas.noise(zeros, DRAW_START), x)
        state = cls(
            canvas=canvas,
            x=x,
            open=canvas.fill,
            step=zeros,
            block=torch.full_like(zeros, -1),
            block_step=zeros,
            block_size=canvas.block_size[:, 0],
            block_steps=canvas.block_steps[:, 0],
            count=zeros,
            done=zeros.bool(),
            end=canvas.length,
            **fields,
        )
        return state._advance(x, steps=0)

    @property
    def finished(self) -> bool:
        return bool(self.done.all())

    def outcome(self) -> dict[str, Any]:
        position = torch.arange(self.x.shape[1], device=self.x.device)
        x = torch.where(position < self.end[:, None], self.x, PAD)
        return {"x": x, "lengths": self.end, "fill": self.canvas.fill}

    @property
    def rng(self) -> Rng:
        return self.canvas.rng

    @property
    def masked(self) -> Tensor:
        """(B, L) bool: positions to fill that hold the mask, in any block."""
        return self._before_end(self.canvas.fill & (self.x == self.canvas.mask_id))

    @property
    def undecided(self) -> Tensor:
        """(B, L) bool: positions still to decide, in any block; here those that hold the mask."""
        return self.masked

    @property
    def remaining(self) -> Tensor:
        """(B,) int64: positions of the present block that are undecided: `count`. Under a window that moves the block is the
        whole row, of which `count` positions are open.
        """
        return self.count if self.canvas.window is None else self.undecided.sum(1)

    @property
    def settled(self) -> Tensor:
        """(B, L) bool: positions that the run had to fill and whose token is final; none after a row's end."""
        return self._before_end(self._final)

    def _before_end(self, where: Tensor) -> Tensor:
        """`where`, (B, L) bool, without what lies after a stop phrase. (Nothing to fill lies beyond a row's length.)"""
        if not self.canvas.stops:
            return where
        return where & (torch.arange(where.shape[1], device=where.device) < self.end[:, None])

    @property
    def noise_level(self) -> Tensor:
        """(B,) float64: the share of the positions to fill that is still noise; the t of time-conditioned models."""
        noisy = self.undecided if self.canvas.mask_id is None else self.masked
        return noisy.sum(1).to(torch.float64) / self.canvas.fill_count

    @property
    def noise(self) -> float:
        """Positions to fill that hold noise, in all rows together: what a progress bar shows. Costs a device sync."""
        return float((self.noise_level * self.canvas.fill_count).sum())

    @property
    def levels(self) -> Tensor:
        """(B, L) float64: the noise level of each position, for models that take one time per position.

        It is 0 if the token is given, decided or (masked family) visible; else 1: a mask, or noise of which nothing is
        known. What lies after a stop phrase and was never decided counts as noise.
        """
        noisy = self._draft if self.canvas.mask_id is None else self.x == self.canvas.mask_id
        return (self.canvas.fill & noisy).to(torch.float64)

    def commit(self: T, where: Tensor, token: Tensor, **changes: Any) -> T:
        """The next state: `token` written at `where`, one step taken by every row that is not done.

        Args:
            where: (B, L) bool. Positions outside `open` are left alone, so that no sampler can touch a prompt.
            token: (B, L) int64.
            changes: new values of a subclass's own fields.
        """
        return self._advance(torch.where(where & self.open, token, self.x), **changes)

    def commit_best(self: T, score: Tensor, token: Tensor, **rule: Any) -> T:
        """The next state: `token` written at the open positions of the best scores, one step taken as by `commit`.

        Args:
            score: (B, L) floats. Higher scores go first, equal ones by position.
            token: (B, L) int64.
            rule: how many, as in `samplers.ops.select`: k=, threshold=, factor= or budget=; least=, most=, lowest=.
        """
        window = self.canvas.window
        if window is not None and window.forces and "k" not in rule:
            chosen = ops.select(score, self.open, **(rule | {"least": 0})).chosen
            best = -score if rule.get("lowest") else score
            return self._advance(torch.where(window.complete(self, chosen, best, rule.get("least", 0)), token, self.x))
        x = self.x.clone()  # states are immutable
        ops.commit_(x, token, score, self.open, **rule)
        return self._advance(x)

    def fix(self: T, where: Tensor, token: Tensor) -> T:
        """The state with `token` decided at `where`, in any block. No step is taken. For constraints: see sample().

        Args:
            where: (B, L) bool; what is given or decided already is left alone.
            token: (B, L) int64.
        """
        return self._advance(torch.where(where & self.undecided, token, self.x), steps=0)

    def grown(self: T, at: Tensor, by: Tensor, **new: Any) -> T:
        """The state on a canvas with more positions to fill, which hold the mask. It takes no step, and costs one device sync.

        What stands at or after `at` moves to the right, in each row by its own number. Rows that do not grow stay as they are, so
        row i of a batch is the row alone. Random numbers belong to positions: a token that has moved draws, from the next
        step on, those of its new position, and no number is used twice, as each step has its own. Each new position brings its
        block a step, and each growth one more to the present block, for the step that may have committed nothing.

        Args:
            at, by: (B,) int64, `by` positions are put in before position `at` of the row; at its end if `at` is its length.
            new: for each field of the subclass that has an entry per position, its value at the new ones.

        Raises:
            SamplersError: a row that is done grows, or the value of a field is missing.
        """
        added = torch.where(self.done, -by.abs(), by).tolist()
        if not any(added):
            return self
        if min(added) < 0:
            raise SamplersError(f"grown(at, by): by is {by.tolist()}; 0 or more is needed, and 0 in rows that are done")
        new = {"decided": False} | new
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        wide = {
            name: value
            for name, value in fields.items()
            if isinstance(value, Tensor) and value.shape == self.x.shape and name not in ("x", "open", *self.SHARED)
        }
        if missing := wide.keys() - new.keys():
            raise SamplersError(
                f"grown(at, by, ...) lacks the value of {', '.join(sorted(missing))} at the new positions"
            )
        canvas = self.canvas.grown(at, by, added)
        width, blank = canvas.x.shape[1], canvas.mask_id or 0
        changes: dict[str, Any] = {
            n: inserted(v, at, by, width, torch.full_like(v[:1, :1], new[n]), v[:1, :1]) for n, v in wide.items()
        }
        x = inserted(self.x, at, by, width, blank, blank)
        here = self.block.clamp(max=canvas.block_size.shape[1] - 1)[:, None]
        more = canvas.block_steps.scatter_add(1, here, (by > 0).to(torch.int64)[:, None])  # for the step that grows
        canvas = dataclasses.replace(canvas, block_steps=more)
        size, steps = (b.gather(1, here).squeeze(1) for b in (canvas.block_size, canvas.block_steps))
        grown = dataclasses.replace(
            self, canvas=canvas, x=x, open=canvas.fill, end=self.end + by, block_size=size, block_steps=steps, **changes
        )
        return grown._advance(x, steps=0)

    def take(self: T, index: Tensor, canvas: Layout) -> T:
        """The state whose row i is row index[i] of this one, on a canvas of as many rows.

        A field of a subclass follows if it is a tensor with an entry for each row, a Prediction or Logits. Those in SHARED, and
        anything else, are kept as they are.

        Args:
            index: (n,) int64, rows of this state.
            canvas: a layout with n rows, whose row i is cut as row index[i] is here.
        """
        changes: dict[str, Any] = {"canvas": canvas}
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if name == "previous" and value is not None:
                changes[name] = value[packed_rows(self.canvas.fill_count, index)[0]]
            elif name not in self.SHARED and isinstance(value, (Tensor, Prediction)):
                changes[name] = value.take(index) if isinstance(value, Prediction) else value[index]
            elif isinstance(value, Logits):
                changes[name] = value.take(index, len(self.x))
        return dataclasses.replace(self, **changes)

    def _advance(self: T, x: Tensor, *, steps: int = 1, **changes: Any) -> T:
        """The state with tokens `x`, reached from this one in `steps` steps. Blocks, counts and ends follow from x."""
        canvas = self.canvas
        state = dataclasses.replace(self, **({"x": x, "ready": None} | changes))
        new = state.__dict__  # of a state that nobody has seen yet: what follows from x is filled in
        if canvas.stops:
            new.update(state._stopped(self))
        undecided = state.undecided
        if canvas.window is not None:
            opened = canvas.window.open(canvas, undecided)
            count = opened.sum(1)
            block = torch.where(undecided, canvas.block, FAR).amin(1)
            done = block == FAR
        elif canvas.block_size.shape[1] == 1:
            opened, count = undecided, undecided.sum(1)
            done = count == 0
            block = torch.where(done, FAR, 0)
        else:
            block = torch.where(undecided, canvas.block, FAR).amin(1)
            opened = undecided & (canvas.block == block[:, None])
            count = opened.sum(1)
            done = block == FAR
            number = block.clamp(max=canvas.block_size.shape[1] - 1)[:, None]
            new["block_size"] = canvas.block_size.gather(1, number).squeeze(1)
            new["block_steps"] = canvas.block_steps.gather(1, number).squeeze(1)
        if steps:
            new["step"] = self.step + (~self.done if steps == 1 else ~self.done * steps)
        same = block == self.block if canvas.window is None else ~done  # a window's plan is the row's
        new["block_step"] = torch.where(same, self.block_step + steps, 0)
        new.update(open=opened, block=block, count=count, done=done)
        return state

    @property
    def _draft(self) -> Tensor:
        """(B, L) bool: positions whose token may still change."""
        return torch.zeros_like(self.open)

    @property
    def _final(self) -> Tensor:
        """(B, L) bool: positions to fill whose token will not change any more."""
        final = self.canvas.fill & ~self._draft
        return final if self.canvas.mask_id is None else final & (self.x != self.canvas.mask_id)

    def _stopped(self, before: TokenState) -> dict[str, Tensor]:
        """What follows from the stop phrases and strings: "end", (B,) int64, just after the earliest that counts, else as it was.

        Tokens are never changed once decided, so a phrase that stands will stay, and what lies after it need not be
        filled in. The row is done when everything before it is decided as well.

        Args:
            before: the state that this one was reached from.
        """
        canvas, rule = self.canvas, self.canvas.stop_rule
        if rule == "llada2":
            stands = canvas.fill & ~self.masked  # drafts count as well
        else:
            stands = canvas.fill & ~self._draft
        if rule == "block":
            # A window has no end at which a block is done: what lies before the first undecided position is.
            number = canvas.block if canvas.window is None else torch.arange(self.x.shape[1], device=self.x.device)
            present = torch.where(self.undecided, number, FAR).amin(1, keepdim=True)
            stands &= number < present
        # Whether a phrase was written into is asked by one rule only, and costs more than finding it.
        end, wrote = self._first_phrase(stands, self.x != before.x if rule == "llada2" else None)
        if canvas.stop_text is not None:
            whole, phrase_end = stands if canvas.mask_id is None else stands & (self.x != canvas.mask_id), end
            fresh = whole & ~before._final if rule == "decided" else whole
            end = canvas.stop_text.ends(self.x, canvas.fill, whole, fresh, end)
            wrote = None if wrote is None else wrote | (end < phrase_end)
        if wrote is None:
            return {"end": end}
        position = torch.arange(self.x.shape[1], device=self.x.device)
        full = ~(self.masked & (position < end[:, None])).any(1)
        return self._ended(end, full & (wrote | ~self.undecided.any(1)))

    def _ended(self, end: Tensor, over: Tensor) -> dict[str, Tensor]:
        """What follows if the rows `over`, (B,) bool, end at `end`, (B,) int64, whether or not a token was to be edited."""
        return {"end": torch.where(over, end, self.end)}

    def _first_phrase(self, stands: Tensor, written: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B,) int64: just after the earliest phrase, at most `end`; (B,) bool: whether any phrase has a written position.

        Args:
            stands: (B, L) bool, positions of which a phrase may be made.
            written: (B, L) bool, positions that the last step wrote; None: it is not asked, and not answered.
        """
        end, length = self.end, self.x.shape[1]
        wrote = None if written is None else torch.zeros_like(stands[:, 0])
        for phrase in self.canvas.stop:
            m = len(phrase)
            if m > length:
                continue
            if m == 1:  # as below, in a third of the operations; most models have such phrases only
                hit = stands & (self.x == phrase)
            else:
                hit = (self.x.unfold(1, m, 1) == phrase).all(2)  # (B, L - m + 1)
                hit &= stands.unfold(1, m, 1).all(2)
            after = torch.arange(m, length + 1, device=self.x.device)
            end = torch.minimum(end, torch.where(hit, after, FAR).amin(1))
            if wrote is not None and written is not None:
                wrote |= (hit & written.unfold(1, m, 1).any(2)).any(1)
        return end, wrote


@dataclass(frozen=True, eq=False)
class DraftState(TokenState):
    """A token run whose tokens may change until they are decided: remasking, editing, and all of uniform noise.

    A block stays the row's present one until all of it is decided, whether or not a mask is left in it. `commit` writes
    and decides; `revise` writes drafts.

    Attributes:
        decided: (B, L) bool, positions of the canvas whose token is final.
    """

    decided: Tensor  # (B, L) bool

    @classmethod
    def begin(cls: type[D], canvas: Layout, **fields: Any) -> D:
        """The state before the first step: nothing is decided. fields: the values of the subclass's own fields."""
        return super().begin(canvas, **({"decided": torch.zeros_like(canvas.fill)} | fields))

    @property
    def undecided(self) -> Tensor:
        """(B, L) bool: positions to fill whose token is not final, in any block."""
        return self._before_end(self.canvas.fill & ~self.decided)

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
            x: (B, L) int64; the mask id at positions that are masked again. Outside `open` it is not read.
            decide: (B, L) or (B,) bool, the open positions, or rows all of whose open positions, that are final now. A
                masked one is not: give it a token first.
            changes: new values of a subclass's own fields.
        """
        if not isinstance(decide, Tensor):
            raise SamplersError(f"revise(x, decide): decide is a bool tensor, (B, L) or (B,), not {decide!r}")
        decide = decide[:, None] if decide.dim() == 1 else decide
        x = torch.where(self.open, x, self.x)
        return self._advance(x, decided=self._decided_with(decide & self.open, x), **changes)

    def commit(self: D, where: Tensor, token: Tensor, **changes: Any) -> D:
        return self.revise(torch.where(where, token, self.x), where, **changes)

    def commit_best(self: D, score: Tensor, token: Tensor, **rule: Any) -> D:
        return self.commit(ops.select(score, self.open, **rule).chosen, token)

    def fix(self: D, where: Tensor, token: Tensor) -> D:
        where = where & self.undecided
        x = torch.where(where, token, self.x)
        return self._advance(x, steps=0, decided=self._decided_with(where, x))

    def _ended(self, end: Tensor, over: Tensor) -> dict[str, Tensor]:
        decided = self._decided_with(over[:, None] & self.canvas.fill, self.x)
        return super()._ended(end, over) | {"decided": decided}

    def _decided_with(self, more: Tensor, x: Tensor) -> Tensor:
        """(B, L): what is decided when `more` is decided as well."""
        decided = self.decided | more
        return decided if self.canvas.mask_id is None else decided & (x != self.canvas.mask_id)


@dataclass(frozen=True, eq=False)
class NoiseState(State):
    """A Gaussian run between two steps. Samplers subclass it to carry their grid and their history.

    Attributes:
        canvas: what never changes.
        x: (B, *shape)
        i: steps taken.
        last: whether the run is finished.
    """

    canvas: NoiseCanvas
    x: Tensor
    i: int = 0
    last: bool = False

    @classmethod
    def begin(cls: type[N], canvas: NoiseCanvas, **fields: Any) -> N:
        """The state before the first step: standard normals. fields: values of fields, such as an `x` of another scale."""
        _check_fields(cls, NoiseState, canvas, NoiseCanvas, fields)
        if "x" not in fields:
            fields["x"] = canvas.noise(0)
        return cls(canvas=canvas, **fields)

    @property
    def finished(self) -> bool:
        return self.last
