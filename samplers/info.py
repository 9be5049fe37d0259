"""Sample.info: what every step committed, how sure the model was of it, and what the sampler itself returned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import SamplersError
from .sampler import State
from .state import TokenState

__all__ = ["InfoRecorder", "at_commit", "step_map"]


class InfoRecorder:
    """Notes one dictionary of tensors per step; `sample(info=True)` makes one for the run.

    Args:
        keep: whether the notes of all steps are kept, for `stacked`.

    Attributes:
        last: token and confidence of the last step's predictions, (B, L) each, confidence -inf at positions that were not asked
            about; None if the model was not asked.
        answers: the same of this step, so far.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.last: tuple[Tensor, Tensor] | None = None
        self._steps: list[dict[str, Tensor]] = []
        self.answers: tuple[Tensor, Tensor] | None = None

    def begin_step(self) -> None:
        """A step begins, perhaps once more, if it had to wait for an answer (see samplers.pool)."""
        self.answers = None

    def read(self, token: Tensor, confidence: Tensor) -> None:
        """Take note of an answer: (B, L) each, confidence -inf at positions that were not asked about."""
        if self.answers is not None:  # a second forward pass of the same step
            asked = confidence != -torch.inf
            token, confidence = (torch.where(asked, new, old) for new, old in zip((token, confidence), self.answers))
        self.answers = token.clone(), confidence.clone()  # the originals may be written into

    def end_step(self, before: State, after: State, returned: Mapping[str, Tensor]) -> None:
        """Take note of a step that led from `before` to `after`, for which the sampler returned more."""
        noted: dict[str, Tensor] = {}
        if isinstance(before, TokenState) and isinstance(after, TokenState):
            committed = after.x != before.x
            if after.canvas.mask_id is not None:
                committed &= after.x != after.canvas.mask_id
            confidence = torch.full(committed.shape, torch.nan, dtype=torch.float32, device=committed.device)
            if self.answers is not None:
                token, p = self.answers
                confidence = torch.where(committed & (token == after.x) & (p != -torch.inf), p, confidence)
            noted = {"committed": committed, "confidence": confidence, "logprob": confidence.log()}
        self.last = self.answers
        if clash := noted.keys() & returned.keys():
            raise SamplersError(
                f"a step returned {', '.join(sorted(clash))}, which is a name that the driver uses in Sample.info"
            )
        if self.keep:
            self._steps.append(noted | dict(returned))

    def stacked(self) -> dict[str, Tensor]:
        """Name -> (steps, B, ...). SamplersError if the steps returned different names."""
        names = [sorted(step) for step in self._steps]
        if any(n != names[0] for n in names):
            other = next(n for n in names if n != names[0])
            raise SamplersError(f"every step must return the same names: one returned {names[0]}, another {other}")
        return {name: torch.stack([step[name] for step in self._steps]) for name in (names[0] if names else ())}


def step_map(committed: Tensor) -> Tensor:
    """(B, L) int64: the step in which each position was last written, from 0; -1 if it never was. committed: (steps, B, L)."""
    number = torch.arange(1, len(committed) + 1, device=committed.device)[:, None, None]
    return (committed * number).amax(0) - 1


def at_commit(committed: Tensor, value: Tensor) -> Tensor:
    """(B, L): of `value`, (steps, B, L), the one of the step in which each position was last written; NaN if it never was."""
    last = step_map(committed)
    return torch.where(last >= 0, value.gather(0, last.clamp_min(0)[None])[0], torch.nan)
