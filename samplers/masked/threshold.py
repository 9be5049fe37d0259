"""Fast-dLLM's confidence-aware parallel decoding: all positions above a threshold, and always the best one."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count, whole_block_count, whole_block_option


@dataclass(frozen=True)
class Threshold(Sampler[TokenState]):
    """Wu et al. 2025 (Fast-dLLM), arXiv 2505.22618, section 3.3: commit all tokens with confidence >= threshold.

    The most confident open position is always committed, so every row moves in every step. Confidence is the drawn token's
    probability at temperature 1. A threshold above 1 commits one position at a time; since the choice depends on the drawn
    token, the distribution is then that of `low_confidence`, which is biased.

    With `steps_per_block` this is SDAR's low_confidence_dynamic (arXiv 2510.06303, its code): in step k at least the even count
    of a whole block. Its low_confidence_static is `low_confidence` with the same option.

    Differs from the references: rows have their own counts; `steps` is a cap (if left out: no cap). SDAR's code writes over
    tokens of the prompt if a block has fewer masks than its count; here a step takes at most the masks there are.
    """

    name = "threshold"
    family = "masked"
    cite = "Wu et al. 2025, Fast-dLLM: Training-free Acceleration of Diffusion LLM, arXiv 2505.22618"
    summary = "all positions at least this confident, and always the best one"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.9, "least probability of a committed token; above 1: one position per step", gt=0)

    steps_per_block: int | None = whole_block_option()

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        n = self.steps_per_block
        least = min_count(state) if n is None else whole_block_count(state, n).clamp_min(1)
        return state.commit_best(prediction.confidence, prediction.token, threshold=self.threshold, least=least)
