"""DryRun: what a run will ask the model, worked out ahead without the device, if it does not depend on the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .canvas import Layout
from .prediction import FILL, Logits, Prediction
from .sampler import Sampler
from .state import TokenState

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ["DryRun"]


class DryRun:
    """The sampler runs a second time on the CPU, on a canvas of its own, with a model that always answers the same.

    Its random draws are those of the run itself (they are counters, not a generator), so its counts are the run's; its
    tokens mean nothing. For samplers with Facts(static_plan=True). Implements samplers.prediction.Predict.
    """

    def __init__(self, sampler: Sampler[Any], canvas: Layout, predictor: Predictor):
        self.sampler: Sampler[Any] = sampler
        self.state: TokenState = sampler.init(canvas.to("cpu"))
        self.predictor = predictor
        self._counts: list[list[int]] = []

    def advance(self) -> None:
        """Take the step that the run will take."""
        assert not self._counts, "a step of the run asked for less than its dry run did"
        stepped = self.sampler.step(self, self.state)
        self.state = stepped[0] if isinstance(stepped, tuple) else stepped

    def next_counts(self) -> list[int]:
        """The counts that the run's next call needs, as Feed.counts gives them."""
        return self._counts.pop(0)

    @property
    def temperature(self) -> float:
        return self.predictor.temperature

    @property
    def steers(self) -> bool:
        return self.predictor.steers

    def __call__(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: str | tuple[str, ...] = (),
        **how: Any,
    ) -> Prediction:
        return self._answer(state, self._ask(state, rows), want)

    def logits(self, state: TokenState, rows: Tensor | None = None, **how: Any) -> Logits:
        """One number per position in place of V: what is made of them has no bearing on what is asked next."""
        row, position = self._ask(state, rows).nonzero().unbind(1)
        return Logits(row, position, torch.zeros(len(row), 1, dtype=torch.float32, device="cpu"))

    def read(self, state: TokenState, logits: Logits, *, want: str | tuple[str, ...] = (), **how: Any) -> Prediction:
        asked = torch.zeros_like(state.open).index_put((logits.row, logits.position), torch.tensor(True, device="cpu"))
        return self._answer(state, asked, want)

    def _ask(self, state: TokenState, rows: Tensor | None) -> Tensor:
        self._counts.append(self.predictor.feed.counts(state, rows).tolist())
        return state.open if rows is None else rows & state.canvas.fill

    def _answer(self, state: TokenState, rows: Tensor, want: str | tuple[str, ...]) -> Prediction:
        want = (want,) if isinstance(want, str) else want
        # Any token but the mask will do.
        token = torch.where(rows, 1 if state.canvas.mask_id == 0 else 0, self.predictor.fill_values(state, ())["token"])
        return Prediction(token, **{name: torch.where(rows, 0.5, FILL[name]).float() for name in want})
