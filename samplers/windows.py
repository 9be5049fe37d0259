"""Windows that move over a row in place of fixed blocks: which undecided positions may be committed now.

A rule knows nothing of them: it reads state.open, state.count and the counts of a plan as always. Under such a window the whole
row is one block for the plan, so `steps` is what the row may take, and state.remaining is what the plan still has to commit.

    sliding(W)           the first W undecided positions of the row: DCD's window, and DSB's without a cap.
    sliding(W, C)        the same, less those that lie C or more positions after the first undecided one: DSB's with max_block.
    wedlm(W), wedlm(W, C)  the same positions, of a causal model that is given decided tokens before the masks (WeDLM).
    pipeline(b, a, f)    blocks of b. One opens when a share a of the block before it is decided (0.5), and must commit a
                         position in every step when a share f is (as a): D2F.

Sources: DSB, arXiv 2602.05992; DCD, arXiv 2601.02076; WeDLM, arXiv 2512.22737; D2F, arXiv 2508.09192.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import registry
from .errors import OptionError

if TYPE_CHECKING:
    from .canvas import Layout
    from .state import TokenState

__all__ = ["Pipeline", "Sliding", "Wedlm", "Window", "read_window"]

EPS = 1e-9  # a share that is met exactly is met, whatever the last bits of its product are


@dataclass(frozen=True)
class Window:
    """Base of the windows that move. Its fields are the numbers in its name.

    Attributes:
        name: as in window="name(32)".
        cuts: whether the model is given a row up to the end of the window only.
        ordered: whether the model is given decided tokens before masks, through a cache of its own.
        forces: whether some positions are forced apart from others, by `complete`.
    """

    name: ClassVar[str] = ""
    cuts: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    forces: ClassVar[bool] = False

    def __str__(self) -> str:
        numbers = [str(n).removesuffix(".0") for n in dataclasses.astuple(self) if n is not None]  # all of their digits
        return f"{self.name}({','.join(numbers)})"

    @property
    def block_length(self) -> int | None:
        """Positions per block, if the window is made of blocks."""
        return None

    @property
    def span(self) -> int:
        """The most positions that it has at the beginning of a row."""
        raise NotImplementedError

    def open(self, canvas: Layout, undecided: Tensor) -> Tensor:
        """(B, L) bool: the positions of `undecided`, (B, L) bool, that may be committed now."""
        raise NotImplementedError

    def passes(self, canvas: Layout, undecided: Tensor) -> Tensor:
        """(B,) int64: the fewest steps in which all of `undecided`, (B, L) bool, can be committed. No step can save more."""
        raise NotImplementedError

    def needed(self, canvas: Layout, undecided: Tensor, count: Tensor, left: Tensor) -> Tensor:
        """(B,) int64: how many positions must be committed now so that the row can be done in `left` steps, with this one.

        Args:
            undecided: (B, L) bool.
            count: (B,) int64, how many are open.
            left: (B,) int64.
        """
        return torch.where(self.passes(canvas, undecided) >= left, count, 0)

    def complete(self, state: TokenState, chosen: Tensor, score: Tensor, least: Tensor | int) -> Tensor:
        """(B, L) bool: `chosen`, and what must be committed beside it, of a window that `forces`.

        Args:
            chosen: (B, L) bool, the open positions that pass the rule's own bar.
            score: (B, L) floats, higher is better.
            least: the least number of positions in each row: int, or (B,) int64.
        """
        raise NotImplementedError

    def check(self, canvas: Layout) -> None:
        """OptionError if a row cannot hold the window."""
        most = max(canvas.fill.sum(1).tolist())
        if self.span > most:
            raise OptionError(
                f"window={str(self)!r} is longer than the canvas, whose rows have {most} positions to fill at most: use "
                f"a window of {most} or less, or none"
            )


def _whole(window: Window, name: str, value: float | None) -> int:
    """The number, which must be whole and 1 or more."""
    if value is None or value != int(value) or value < 1:
        raise OptionError(f"window {window.name!r}: {name} must be a whole number of 1 or more, not {value:g}")
    return int(value)


@dataclass(frozen=True)
class Sliding(Window):
    """The first undecided positions of each row (DCD; DSB).

    DSB's window ends `masks` + (positions filled so far) after the prompt, which holds just as many masks as DCD's. Given tokens
    in the middle (infilling) do not count as masks, and count for the cap, which is a distance.

    Attributes:
        masks: W, the most positions that are open.
        cap: C, an open position lies less than so many after the first undecided one; None: anywhere.
    """

    name = "sliding"
    masks: int
    cap: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", _whole(self, "the number of masks", self.masks))
        if self.cap is not None:
            object.__setattr__(self, "cap", _whole(self, "the cap", self.cap))
            if self.cap < self.masks:
                raise OptionError(
                    f"window={str(self)!r}: a cap of {self.cap} positions never holds {self.masks} masks: use a cap of "
                    f"{self.masks} or more, or {self.name}({self.cap})"
                )

    @property
    def span(self) -> int:
        return self.masks

    def open(self, canvas: Layout, undecided: Tensor) -> Tensor:
        opened = undecided & (undecided.cumsum(1) <= self.masks)
        if self.cap is None:
            return opened
        length = undecided.shape[1]
        position = torch.arange(length, dtype=torch.int64, device=undecided.device)
        first = torch.where(undecided, position, length).amin(1, keepdim=True)  # (B, 1)
        return opened & (position < first + self.cap)

    def needed(self, canvas: Layout, undecided: Tensor, count: Tensor, left: Tensor) -> Tensor:
        if self.cap is not None:
            return super().needed(canvas, undecided, count, left)
        return torch.minimum((undecided.sum(1) - self.masks * (left - 1).clamp_min(0)).clamp_min(0), count)

    def passes(self, canvas: Layout, undecided: Tensor) -> Tensor:
        if self.cap is None:
            return (undecided.sum(1) + self.masks - 1) // self.masks
        # Committing all that is open in every step is the fastest: so many jumps from one first position to the next.
        batch, length = undecided.shape
        position = torch.arange(length + 1, dtype=torch.int64, device=undecided.device)
        rank = torch.nn.functional.pad(
            undecided.cumsum(1) - undecided.long(), (0, 1)
        )  # (B, L + 1), undecided before it
        rank[:, -1] = undecided.sum(1)
        # (B, L + 1): the position of each undecided one by its rank; L beyond them
        place = torch.full((batch, length + 2), length, dtype=torch.int64, device=undecided.device)
        place.scatter_(1, torch.where(undecided, rank[:, :-1], length + 1), position[:-1].expand(batch, -1))
        place[:, -1] = length
        by_count = place.gather(1, (rank + self.masks).clamp(max=length + 1))  # the first that W masks leave out
        after_cap = rank.gather(1, (position + self.cap).clamp(max=length).expand(batch, -1))
        jump = torch.minimum(by_count, place.gather(1, after_cap))  # (B, L + 1), where the window begins next
        steps = (position < length).long().expand(batch, -1)
        for _ in range(length.bit_length()):  # each round doubles how far is seen
            steps, jump = steps + steps.gather(1, jump), jump.gather(1, jump)
        first = torch.where(undecided, position[:-1], length).amin(1, keepdim=True)
        return steps.gather(1, first).squeeze(1)


@dataclass(frozen=True)
class Wedlm(Sliding):
    """WeDLM's window, for causal models that predict at masks.

    In each forward pass the decided tokens of the window come first and the masks after them, each with its own position, so
    that a mask sees all tokens that are decided, on both sides. The run of decided tokens from the window's beginning is kept
    for good: its keys and values have seen nothing but what is before them, so they are exact.

    `wedlm(W)` always has W masks; `wedlm(W, W)` has W places, decided ones included.
    """

    name = "wedlm"
    ordered = True


@dataclass(frozen=True)
class Pipeline(Window):
    """Several blocks at once (D2F).

    A block opens when a share `add` of the block before it is decided. It is fully active when a share `full` of that block is:
    then at least one of its positions is committed in every step, and the least count of a rule is for fully active blocks. Of
    any other open block only positions that pass the rule's own bar are committed. The first block with undecided positions is
    always fully active. A rule that commits a given number of positions takes them from all open blocks.

    The model is given each row up to the end of its last open block: the canvas grows, as in D2F.

    Differs from D2F's code: a model of block_causal attention with cache="block" is given a finished block once more in a
    forward pass of its own (there: together with the next step of the later blocks; the tokens are the same); a confidence
    equal to a bar passes it if it does under the rule; rows of a batch count for themselves. LoPA's and Open-dLLM's code has
    0.5 for both shares, D2F's evaluation 0.7 and 0.95, SGLang's port of d3LLM 0.1 and 0.95.

    Attributes:
        block: b, positions per block.
        add: share of the last open block that must be decided for the next one to open.
        full: share that must be decided for the next block to be fully active; None: as `add`.
    """

    name = "pipeline"
    cuts = forces = True
    block: int
    add: float = 0.5
    full: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", _whole(self, "the block", self.block))
        if self.full is None:
            object.__setattr__(self, "full", self.add)
        for what, share in (("to open the next block", self.add), ("to make it fully active", self.full)):
            if not (share is not None and 0 < share <= 1):
                raise OptionError(
                    f"window={str(self)!r}: the share {what} must be above 0 and at most 1, not {share:g}"
                )

    @property
    def block_length(self) -> int | None:
        return self.block

    @property
    def span(self) -> int:
        return self.block

    def _blocks(self, canvas: Layout, undecided: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) int64, each position's block; (B, n + 1), whether it is open; whether it is fully active. The last is none."""
        n = canvas.block_end.shape[1]
        number = canvas.block.clamp(max=n)
        nothing = torch.zeros(len(number), n + 1, dtype=torch.int64, device=number.device)
        size = nothing.scatter_add(1, number, canvas.fill.long()).double()
        decided = size - nothing.scatter_add(1, number, undecided.long()).double()
        assert self.full is not None
        ready, mature = (decided >= share * size - EPS for share in (self.add, self.full))
        first = torch.ones_like(ready[:, :1])
        opened = torch.cat([first, ready[:, :-1].long().cumprod(1).bool()], 1)
        active = opened & torch.cat([first, mature[:, :-1]], 1)
        return number, opened, active

    def open(self, canvas: Layout, undecided: Tensor) -> Tensor:
        number, opened, _ = self._blocks(canvas, undecided)
        return undecided & opened.gather(1, number)

    def passes(self, canvas: Layout, undecided: Tensor) -> Tensor:
        # A step that commits all that is open opens the next block, and maybe more of which a part is decided already.
        number, opened, _ = self._blocks(canvas, undecided)
        here = torch.zeros_like(opened, dtype=torch.int64).scatter_add(1, number, undecided.long()) > 0  # (B, n + 1)
        return (here & opened).any(1).long() + (here & ~opened).sum(1)

    def complete(self, state: TokenState, chosen: Tensor, score: Tensor, least: Tensor | int) -> Tensor:
        from .ops import select  # the ops are loaded with torch, and a list of windows needs neither

        number, _, active = self._blocks(state.canvas, state.undecided)
        length = score.shape[1]
        has = torch.zeros_like(active, dtype=torch.int64).scatter_add(1, number, chosen.long()) > 0  # (B, n + 1)
        forced = state.open & active.gather(1, number)
        lacking = forced & ~has.gather(1, number)
        best = score.new_full(active.shape, -torch.inf)
        best = best.scatter_reduce(1, number, torch.where(lacking, score, -torch.inf), "amax")
        top = lacking & (score == best.gather(1, number))
        position = torch.arange(length, dtype=torch.int64, device=score.device).expand_as(number)
        first = torch.full_like(active, length, dtype=torch.int64)
        first = first.scatter_reduce(1, number, torch.where(top, position, length), "amin")
        chosen = chosen | (top & (position == first.gather(1, number)))
        for where in (forced, state.open):  # the second only if the fully active blocks have too few
            more = (least - chosen.sum(1)).clamp_min(0)
            chosen = chosen | select(score, where & ~chosen, k=more).chosen
        return chosen


def read_window(window: str) -> Any:
    """The window called `window`: a Window, or a plain function of a state.

    Raises:
        OptionError: it takes no such numbers.
        UnknownNameError, PluginError: as of registry.find.
    """
    name, bracket, rest = window.partition("(")
    found = registry.find("windows", name)
    if not (isinstance(found, type) and issubclass(found, Window)):
        if bracket:
            raise OptionError(f"window {name!r} takes no numbers, and {window!r} was given")
        return found
    fields = dataclasses.fields(found)
    least = sum(f.default is dataclasses.MISSING for f in fields)
    form = f"{name}({', '.join(f.name for f in fields)})"
    try:
        numbers = [float(part) for part in rest.removesuffix(")").split(",")] if rest.endswith(")") else []
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= len(fields) or not all(map(_is_finite, numbers)):
        raise OptionError(f"window={window!r}: {form} takes {least} to {len(fields)} numbers, such as {name}(32)")
    return found(*numbers)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
