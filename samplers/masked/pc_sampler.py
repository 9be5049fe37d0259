"""PC-Sampler: confident tokens that are rare in a corpus first, and early positions first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..canvas import Layout
from ..checks import shown
from ..errors import OptionError
from ..prediction import Predict
from ..sampler import Facts, option
from .plans import PLANNED, PlannedState, ScheduledSampler
from .times import TimedState

RARE = 1e-9  # added to every frequency, as in the authors' code: a token that the corpus lacks has -ln f = 20.7


def read_frequencies(given: Any, size: int) -> Tensor:
    """(size,) float64: the numbers of a tensor, a sequence or a file, one for each of `size` tokens, divided by their sum.

    Raises:
        OptionError: a file that cannot be read, another number of numbers, one that is negative or not finite, or all 0.
    """
    who = "option 'frequencies' of sampler 'pc_sampler'"
    if isinstance(given, str):
        who += f" ({given})"
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(f"{who}: a JSON file with a list of numbers is needed; {error}") from error
    try:
        number = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{who}: a list of numbers is needed, not {shown(given)}") from error
    if number.shape != (size,):
        raise OptionError(
            f"{who} has shape {tuple(number.shape)}; one number for each of the {size} tokens of the model is needed, "
            f"the mask included: ({size},)"
        )
    if not bool(((number >= 0) & torch.isfinite(number)).all()) or not number.sum() > 0:
        raise OptionError(f"{who}: the numbers must be finite, 0 or more, and not all 0")
    return number / number.sum()


@dataclass(frozen=True, eq=False)
class PCState(PlannedState):
    """A state with a table of the tokens.

    Attributes:
        rarity: (V,) float64, -ln of each token's frequency, at least 0.
    """

    SHARED = (*PlannedState.SHARED, "rarity")

    rarity: Tensor


@dataclass(frozen=True)
class PCSampler(ScheduledSampler):
    """Huang et al. 2025 (PC-Sampler), arXiv 2508.13021: the best exp(-lam i) min(alpha, -p ln f), the planned number per step.

    i is the position, p the probability of the token drawn there, and f the token's frequency in a corpus: a common token
    needs more confidence, and an early position less. `frequencies` are counts or shares, one for each token of the model's
    vocabulary: a tensor, a sequence, or the path of a JSON file with a list. None: all equal. The authors have lam = 0.25
    for most tasks, 0 for sudoku and 0.5 for countdown, and alpha = 10.

    Scores are ranked by their logarithm: exp(-0.25 i) is 0 in float32 from i = 416 on, and all positions there would be
    equal, as in the authors' code in a block that is that long. Differs from that code besides: of equal scores the lower
    position goes first, and rows count for themselves.
    """

    name = "pc_sampler"
    family = "masked"
    cite = "Huang et al. 2025, PC-Sampler: Position-Aware Calibration of Decoding Bias in Masked Diffusion, arXiv 2508.13021"
    summary = "planned number of positions: rare tokens that are likely, early positions first"
    default_temperature = 0.0
    facts = Facts(bias="biased", static_plan=True)

    lam: float = option(0.25, "how much earlier positions are preferred; 0: not at all", ge=0, le=1000)
    alpha: float = option(10.0, "the most that -p ln f may count, in nats", gt=0)
    frequencies: Sequence[float] | Tensor | str | None = option(  # noqa: RUF009 - a frozen field
        None, "how frequent each token is: a tensor, a sequence, or a JSON file with a list of numbers; none: all equal"
    )

    def values(self) -> dict[str, Any]:
        """The options; of frequencies that were given as numbers, only how many there are."""
        values, given = super().values(), self.frequencies
        if given is not None and not isinstance(given, str):
            values["frequencies"] = f"{len(given)} numbers"
        return values

    def init(self, canvas: Layout) -> PCState:
        size = canvas.vocab_size
        given = torch.ones(size, dtype=torch.float64, device="cpu") if self.frequencies is None else self.frequencies
        rarity = -(read_frequencies(given, size) + RARE).log().clamp(max=0.0)  # a frequency of 1 is above 1 now
        first = super().init(canvas)
        sizes = first.sizes if isinstance(first, PlannedState) else torch.zeros_like(canvas.x[:, :1, None])
        scheduled = isinstance(first, TimedState) and self.plan not in PLANNED
        schedule = self.plan if scheduled else "linear"
        return PCState.begin(canvas, schedule=schedule, sizes=sizes, rarity=rarity.to(canvas.x.device))

    def step(self, predict: Predict, state: PCState) -> PCState:
        count = self.count(state)
        prediction = predict(state, state.open & (count > 0)[:, None], want="confidence")
        token = prediction.token.clamp(
            max=len(state.rarity) - 1
        )  # where nothing is asked stands the mask, which may be beyond
        value = prediction.confidence.double().clamp_min(0) * state.rarity[token]  # (B, L)
        column = torch.arange(state.x.shape[1], device=state.x.device)
        score = value.clamp(max=self.alpha).log() - self.lam * column  # (B, L) float64
        return state.commit_best(score, prediction.token, k=count)
