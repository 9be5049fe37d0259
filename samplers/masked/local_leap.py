"""LocalLeap: near a confident position a lower confidence is enough."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool1d

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import fill_up_to, min_count


def near(where: Tensor, radius: int) -> Tensor:
    """(B, L) bool: positions at most `radius` away from a position in `where`, (B, L) bool."""
    radius = min(radius, where.shape[1])  # all of the row is near then
    return max_pool1d(where[:, None].float(), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


@dataclass(frozen=True)
class LocalLeap(Sampler[TokenState]):
    """Kong et al. 2025 (LocalLeap), arXiv 2510.07081: confident positions, and their neighbours above a lower bar.

    An anchor is an open position whose token has at least the confidence `threshold`. A step commits the anchors, and the
    open positions at most `radius` away from an anchor whose confidence is at least `relaxed_threshold`. The most confident
    open position is always committed. A relaxed threshold equal to the other one is `threshold`. (As in the code, a relaxed
    threshold that is the higher one holds for the anchors as well.)

    Written from the rule as DAWN's code has it for comparison. Differs from it: rows count for themselves, and `steps` is a
    cap (if left out: no cap).
    """

    name = "local_leap"
    family = "masked"
    cite = "Kong et al. 2025, Accelerating Diffusion LLM Inference via Local Determinism Propagation, arXiv 2510.07081"
    summary = "confident positions, and those near them above a lower confidence"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("relaxed_threshold", (2.0, 0.95, 0.9, 0.75, 0.6, 0.45, 0.3, 0.15)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.9, "least confidence of an anchor; above 1: one position per step", gt=0)
    relaxed_threshold: float = option(0.75, "least confidence of a position near an anchor", gt=0)
    radius: int = option(4, "how many positions away from an anchor is near", ge=0)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        close = near(prediction.confidence >= self.threshold, self.radius)
        sure = (prediction.confidence >= self.relaxed_threshold) & close
        return state.commit(
            fill_up_to(state, sure, prediction.confidence, min_count(state)),
            prediction.token,
        )
