"""Streaming-dLLM: a threshold that falls as the block is filled."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True)
class Streaming(Sampler[TokenState]):
    """Xiao et al. 2026 (Streaming-dLLM), arXiv 2601.17917: commit confidence >= threshold (1 - alpha (1 - r)).

    r is the share of the present block that is still masked, so the bar falls from `threshold` to threshold (1 - alpha) while
    the block is filled. The most confident open position is always committed. alpha = 0 is the sampler `threshold`.

    Left out: the pruned suffix, by which the model is shown the present block, the next 32 positions and the last one only.
    That is a question of what the model sees, and no rule decides it. The early exit at the first block that holds the end
    of text is sample(stop_token=..., stop_rule="block"). Differs from the reference: rows count for themselves, and `steps`
    is a cap (if left out: no cap).
    """

    name = "streaming"
    family = "masked"
    cite = (
        "Xiao et al. 2026, Streaming-dLLM: Accelerating Diffusion LLMs via Suffix Pruning and Dynamic Decoding, "
        "arXiv 2601.17917"
    )
    summary = "all positions above a threshold that falls as the block is filled"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0, "alpha": 0.0})

    threshold: float = option(0.9, "least confidence of a committed token in a block that is all masks", gt=0)
    alpha: float = option(0.3, "by which share the threshold falls until the block is full", ge=0, le=1)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        masked = state.count.double() / state.block_size.clamp_min(1)  # (B,)
        threshold = self.threshold * (1 - self.alpha * (1 - masked))
        return state.commit_best(prediction.confidence, prediction.token, threshold=threshold, least=min_count(state))
