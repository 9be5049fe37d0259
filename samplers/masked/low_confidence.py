"""LLaDA's rule: commit the positions of whose token the model is most confident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..prediction import Predict
from ..random import gumbel
from ..sampler import Facts, option
from ..state import TokenState
from .plans import ScheduledSampler


@dataclass(frozen=True)
class LowConfidence(ScheduledSampler):
    """Nie et al. 2025 (LLaDA), arXiv 2502.09992, algorithm 5, "low-confidence remasking"; Dream's maskgit_plus.

    A token is drawn at every open position. The n // S positions (one more in the first n % S steps) with the highest
    probability are committed, and the others are masked again. The probability is that of softmax at temperature 1, whatever
    the temperature of the draw. Since the choice depends on the drawn token, likely tokens go first and the distribution is
    biased, even one position at a time.

    Differs from the reference code: of equal confidences the lower position goes first (there: unspecified); softmax is over
    the candidates, without the mask id, in float32 (there: in the logits' dtype, so that bf16 confidences collide); a step
    that has nothing to commit costs no forward pass; `steps` need not be a multiple of the number of blocks.

    Dream (arXiv 2508.15487) is plan="floor(0.001)", tempered=True. It ranks by the distribution that it draws from: at a low
    temperature every confidence is 1, and "confident first" becomes left to right. Hence the default is tempered=False; use
    True to reproduce old numbers.
    """

    name = "low_confidence"
    family = "masked"
    cite = "Nie et al. 2025, Large Language Diffusion Models, arXiv 2502.09992"
    summary = "LLaDA: the k most confident positions per step"
    default_temperature = 0.0
    facts = Facts(bias="biased", static_plan=True)
    RANK: ClassVar[str] = "confidence"

    tempered: bool = option(
        False, "rank by the distribution that is drawn from (its temperature, top_k and top_p), as Dream's code does"
    )
    alg_temp: float = option(
        0.0, "draw positions without replacement from softmax(score / alg_temp), as Dream does; 0: take the best", ge=0
    )

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        count = self.count(state)
        temperature = predict.temperature if self.tempered and predict.temperature > 0 else 1.0
        rows = state.open & (count > 0)[:, None]
        prediction = predict(state, rows, want=self.RANK, confidence_temperature=temperature, truncated=self.tempered)
        score = getattr(prediction, self.RANK)  # (B, L) float32
        if self.RANK == "entropy":
            score = -score
        if self.alg_temp > 0:
            score = score / self.alg_temp + gumbel(state)
        return state.commit_best(score, prediction.token, k=count)
