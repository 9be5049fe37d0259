"""EB-Sampler: as many positions per step as a bound on their joint dependence allows."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True)
class EntropyBound(Sampler[TokenState]):
    """Ben-Hamu et al. 2025 (EB-Sampler), arXiv 2505.24857, algorithm 1: the longest prefix with sum H - max H <= bound.

    Open positions are sorted by an error proxy (entropy, or -confidence, or -margin), and the longest prefix that meets the
    bound is committed: sum H - max H bounds the mutual information that independent draws lose. bound = 0 commits one
    position at a time, and all positions that are certain. With the proxies entropy and margin the choice does not depend on
    the drawn token, so bound = 0 gives exactly the model's distribution.

    bound = 0.15 is SGLang's EBSampling ("entropy_sum"), which commits while the sum of the entropies earlier in the order is at
    most gamma. In ascending order the largest of a prefix is its last, so that sum is sum H - max H: the same rule.

    Differs from the paper: `steps` is a cap, which is kept by committing more than the bound allows if necessary (if left
    out: no cap); entropies are those of softmax at temperature 1, whatever the temperature of the draw; the proxy confidence
    is that of the drawn token (in the paper of the likeliest one, which is the same at temperature 0, the paper's).
    """

    name = "entropy_bound"
    family = "masked"
    cite = "Ben-Hamu et al. 2025, Accelerated Sampling ... via Entropy Bounded Unmasking (EB-Sampler), arXiv 2505.24857"
    summary = "the longest prefix of certain positions with sum H - max H <= bound"
    default_temperature = 0.0
    facts = Facts(bias="exact", sweep=("bound", (0.0, 0.1, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0)))
    conformance = Conformance(one_at_a_time={"bound": 0.0})

    bound: float = option(0.1, "joint dependence that a step may lose, in nats", ge=0)
    proxy: str = option(
        "entropy", "the quantity that positions are sorted by", choices=("entropy", "confidence", "margin")
    )

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        # Entropies come from float32 sums: below 1e-7 is certain.
        rule = {"budget": self.bound + 1e-7, "least": min_count(state)}
        if self.proxy == "entropy":
            prediction = predict(state, want="entropy")
            return state.commit_best(prediction.entropy, prediction.token, lowest=True, **rule)
        prediction = predict(state, want=("entropy", self.proxy))
        return state.commit_best(getattr(prediction, self.proxy), prediction.token, cost=prediction.entropy, **rule)
