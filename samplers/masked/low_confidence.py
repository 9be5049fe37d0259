"""LLaDA's rule: commit the positions whose token the model is surest of."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampler import Sampler
from .parts import even_plan


@dataclass(frozen=True)
class LowConfidence(Sampler):
    """Nie et al. 2025 (LLaDA), arXiv 2502.09992, algorithm 5, "low-confidence remasking".

    A token is drawn at every open position; the n // S (one more in the first n % S steps) with the highest probability
    are committed, the others masked again. The probability is that of softmax at temperature 1, whatever the draw's.
    Since the choice looks at the drawn token, likely tokens go first and the law is biased, even one at a time.

    Differs from the reference code: equal confidences go to the lower position (there: unspecified); softmax is
    over the candidates, the mask id not among them, in float32 (there: in the logits' dtype, so that bf16 confidences
    collide); a step that has nothing to commit costs no forward; `steps` need not be a multiple of the blocks.
    """

    name = "low_confidence"
    family = "masked"
    cite = "Nie et al. 2025, Large Language Diffusion Models, arXiv 2502.09992"
    summary = "LLaDA: the k most confident positions a step"
    default_temperature = 0.0
    exact_order = False
    counts_known = True

    def step(self, believe, state):
        count = even_plan(state)
        belief = believe(state, state.open & (count > 0)[:, None], want="confidence")
        return state.commit_best(belief.confidence, belief.token, k=count)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)
