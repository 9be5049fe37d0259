"""DAEDAL: a canvas that grows, first as a whole and then at places where the model is lost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..errors import OptionError
from ..prediction import Predict, sum_over
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True, eq=False)
class GrowingState(TokenState):
    """A state that knows which rows have found their first length.

    Attributes:
        sized: (B,) bool.
    """

    sized: Tensor


@dataclass(frozen=True)
class Daedal(Sampler[GrowingState]):
    """Li et al. 2025 (DAEDAL), arXiv 2508.00819: the length follows from how sure the model is of the end of the text.

    The sureness of the end is the sum of p(eos) over the last `trailing` positions that predict eos, divided by `trailing`.

    1. While it is below `enough`, a row grows by `by` masks at its end. gen_length is what it starts from: 64 in the paper.
    2. Then positions are committed as in `threshold`. If the sureness is below `complete`, the least confident open position
       below `lost` becomes `by` masks, so that the row grows by `by` - 1; it is not committed in that step (by = 1: none does).

    A row has at most `maximum` positions to fill, and then `threshold` goes on alone. Without `eos` nothing grows. With
    stop=eos a row ends at the first eos that is decided; without, what comes after it stays as the model fills it in.

    A step costs a device sync, for how far each row grows. A canvas that grows goes with neither caches nor windows,
    info=True or events(). Rows grow on their own, and blocks stay block_length long: what no longer fits into one moves on.

    Differs from the reference code: the step that finds a row long enough commits as well (there: the same canvas is given to
    the model once more); a decided eos counts as sure (there: what the model says at the position), and above temperature 0
    eos is predicted if it is drawn; `steps` is a cap for the positions there are, and each new one, and each
    growth, brings a step.
    """

    name = "daedal"
    family = "masked"
    cite = "Li et al. 2025, Beyond Fixed: Training-Free Variable-Length Denoising, arXiv 2508.00819 (ICLR 2026)"
    summary = "threshold on a canvas that grows until the model is sure of the end of the text"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    eos: int | None = option(None, "the id of the end of the text; none: the canvas keeps its length", ge=0)
    threshold: float = option(0.9, "least probability of a committed token; above 1: one position per step", gt=0)
    maximum: int = option(2048, "most positions to fill of a row", ge=1)
    by: int = option(8, "positions that a row grows by at its end; masks that a lost position becomes", ge=1)
    enough: float = option(0.5, "sureness of the end at which a row is long enough to begin", ge=0, le=1)
    complete: float = option(0.9, "sureness of the end below which lost positions grow", ge=0, le=1)
    lost: float = option(0.1, "a position is lost below this confidence; 0: none ever is", ge=0, le=1)
    trailing: int = option(32, "number of predicted ends that the sureness is taken over", ge=1)

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(self.facts, grows=0 if self.eos is None else self.maximum)

    @property
    def extra_steps(self) -> int:
        return 0 if self.eos is None else 2 * self.maximum

    def init(self, canvas: Layout) -> GrowingState:
        if self.eos is not None and (self.eos >= canvas.vocab_size or self.eos == canvas.mask_id):
            what = "the mask" if self.eos == canvas.mask_id else f"no token; they are 0 to {canvas.vocab_size - 1}"
            raise OptionError(f"option 'eos' of sampler {self.name!r} is {self.eos}, which is {what}")
        return GrowingState.begin(canvas, sized=torch.zeros_like(canvas.x[:, 0], dtype=torch.bool))

    def step(self, predict: Predict, state: GrowingState) -> GrowingState:
        if self.eos is None:
            prediction = predict(state, want="confidence")
            return state.commit_best(
                prediction.confidence, prediction.token, threshold=self.threshold, least=min_count(state)
            )
        canvas, eos = state.canvas, torch.full_like(state.x, self.eos)
        prediction = predict(state, state.masked, want=("confidence", "given"), given=eos)
        sure = self._sureness(state, prediction.token, prediction.given)
        room = (self.maximum - canvas.fill_count).clamp_min(0) * ~state.done  # (B,)
        short = ~state.sized & (sure < self.enough) & (room > 0)

        bar = self.lost if self.by > 1 else -1.0  # one mask in place of another would not bring the row on
        may = ~short & (sure < self.complete) & (room > 0)  # (B,)
        lost = state.open & (prediction.confidence < bar) & may[:, None]
        place = ops.select(prediction.confidence, lost, k=1, lowest=True).chosen  # (B, L), at most one per row
        chosen = ops.select(prediction.confidence, state.open, threshold=self.threshold, least=min_count(state)).chosen
        new = state.commit(chosen & ~place & ~short[:, None], prediction.token, sized=state.sized | ~short)

        after = (place * torch.arange(1, place.shape[1] + 1, device=place.device)).sum(1)
        at = torch.where(short, canvas.length, after)
        more = torch.where(short, self.by, (self.by - 1) * place.any(1))
        return new.grown(at, torch.minimum(more, room) * ~new.done)  # a stop may have ended the row

    def _sureness(self, state: GrowingState, token: Tensor, p: Tensor) -> Tensor:
        """(B,) float64. token, p: (B, L), the drawn token and p(eos) at the masked positions."""
        decided = state.canvas.fill & ~state.masked & (state.x == self.eos)
        ends = (state.masked & (token == self.eos)) | decided
        number = ends.flip(1).cumsum(1).flip(1)  # counted from the right
        counted = ends & (number <= self.trailing)
        value = torch.where(decided, 1.0, p.clamp_min(0.0).double())
        return sum_over(value, counted) / self.trailing
