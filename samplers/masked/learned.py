"""Learned selectors: a network, or any function, says from the confidences which positions to commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import function_of, is_function, name_of, shown
from ..errors import OptionError
from ..prediction import Predict
from ..random import DRAW_SELECT
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from ..syncs import reading_is_free
from .plans import even_count, fill_up_to


def nothing(confidence: Tensor, open: Tensor) -> Tensor:
    """The selector that leaves all to the plan."""
    return torch.zeros_like(open)


@dataclass(frozen=True)
class Learned(Sampler[TokenState]):
    """Bao et al. 2025 (Learn2PD), arXiv 2509.25188, and Jazbec et al. 2025 (Apple), arXiv 2512.09106: a policy on confidences.

    select(confidence, open) is called in every step with two tensors: (B, L) float32, the probability of the token drawn at
    each open position, 0 elsewhere; and (B, L) bool, the open positions. It returns (B, L): bools, the positions to commit;
    or floats, the probability that a position's token is final. Then those above `threshold` are committed (Learn2PD's
    filter, sigmoid > threshold), or with draw=True each with its probability (Apple's policy). The planned number of the most
    confident positions, at least one, is always committed: LLaDA's even plan. What `select` says of others than open positions
    is not read. A torch module is such a function. Without one, this is `low_confidence`.

    A row is what it is alone only if `select` treats the rows alike and apart, and does not depend on L, which in a batch is
    the length of the longest row.

    Differs from the references: Learn2PD cuts the canvas at the most confident predicted end of text, which is a matter of
    stopping: use sample(stop=...). Apple's policy also sees the step and which tokens are masked; `open` says the
    latter, and a module that needs the former can count.
    """

    name = "learned"
    family = "masked"
    cite = "Bao et al. 2025, Learning to Parallel: Accelerating Diffusion LLMs via Learnable Parallel Decoding, arXiv 2509.25188"
    summary = "positions that a function of the confidences chooses, and always the planned best"
    default_temperature = 0.0
    facts = Facts(bias="biased")
    conformance = Conformance(one_at_a_time={"select": None})

    select: Callable[[Tensor, Tensor], Tensor] | str | None = option(  # noqa: RUF009 - a frozen field
        None,
        "function of (confidences, open), or its name, module:name; none: the plan alone",
        check=is_function,
    )
    threshold: float = option(0.5, "positions with a higher probability of being final are committed", ge=0)
    draw: bool = option(False, "commit each position with its probability, in place of a threshold")

    def values(self) -> dict[str, Any]:
        """The options; of a function its name, which results can record."""
        return super().values() | {"select": name_of(self.select)}

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        select = nothing if self.select is None else function_of(self.select)
        prediction = predict(state, want="confidence")
        said = select(prediction.confidence.clamp_min(0), state.open.clone())  # it may write into both
        if not isinstance(said, Tensor) or said.shape != state.open.shape:
            what = f"shape {tuple(said.shape)}" if isinstance(said, Tensor) else shown(said)
            raise OptionError(
                f"option 'select' of sampler 'learned' returned {what}; it must return a tensor of shape "
                f"{tuple(state.open.shape)}, the shape of the confidences"
            )
        if said.is_complex() or (reading_is_free(said.device) and bool(said.isnan().any())):
            what = f"{said.dtype}" if said.is_complex() else "NaN"
            raise OptionError(
                f"option 'select' of sampler 'learned' returned {what}; bools or probabilities are needed"
            )
        if self.draw and said.dtype != torch.bool:
            said = state.rng.positions(said.shape[1], state.step, DRAW_SELECT) < said
        elif said.dtype != torch.bool:
            said = said > self.threshold
        least = even_count(state).clamp_min(1)
        return state.commit(fill_up_to(state, said, prediction.confidence, least), prediction.token)
