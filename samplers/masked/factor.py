"""Fast-dLLM's other rule: as many positions as are confident enough together."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ops
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count


@dataclass(frozen=True)
class Factor(Sampler[TokenState]):
    """Wu et al. 2025 (Fast-dLLM), arXiv 2505.22618, by factor: the largest n with c_(n) >= 1 - factor / (n + 1).

    c_(1) >= c_(2) >= ... are the confidences, which are the drawn tokens' probabilities at temperature 1; the first token is
    always committed. The bound is that of the paper's theorem 1, under which n independent greedy choices equal the joint one
    (in the theorem, n + 1 confidences fail it together). factor = 0 commits what is certain, or one position.

    Differs from the reference code: rows have their own counts; `steps` is a cap (if left out: no cap). The code also
    commits all positions that are left if only the last of them fails; reference=True does so.
    """

    name = "factor"
    family = "masked"
    cite = "Wu et al. 2025, Fast-dLLM: Training-free Acceleration of Diffusion LLM, arXiv 2505.22618"
    summary = "the longest prefix by confidence with c_(n) >= 1 - factor / (n + 1)"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("factor", (0.0, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5)))
    conformance = Conformance(one_at_a_time={"factor": 0.0})

    factor: float = option(1.0, "how much doubt n tokens may have; larger values commit more positions per step", ge=0)
    reference: bool = option(False, "if only the last open position fails, also commit it, as the published code does")

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        chosen, count = ops.select(prediction.confidence, state.open, factor=self.factor, least=min_count(state))
        if self.reference:
            chosen = chosen | (count + 1 == state.count)[:, None]
        return state.commit(chosen, prediction.token)
