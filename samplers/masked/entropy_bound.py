"""EB-Sampler: as many positions a step as a bound on their joint dependence allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..sampler import Sampler, option
from .parts import at_least, select_top


@dataclass(frozen=True)
class EntropyBound(Sampler):
    """Ben-Hamu et al. 2025 (EB-Sampler), arXiv 2505.24857, algorithm 1.

    Open positions are sorted by an error proxy (entropy; or -confidence; or -margin), and the longest prefix is committed
    for which sum H - max H <= bound: that sum bounds the mutual information that independent draws lose. bound = 0
    commits one position at a time, and all that are certain. The choice does not look at the drawn token for
    the proxies entropy and margin, so bound = 0 gives the model's law exactly.

    Differs from the paper: `steps` is a cap, kept by committing more than the bound allows where it must
    (left out: no cap); entropies are those of softmax at temperature 1 whatever the draw's.
    """

    name = "entropy_bound"
    family = "masked"
    cite = "Ben-Hamu et al. 2025, Accelerated Sampling ... via Entropy Bounded Unmasking (EB-Sampler), arXiv 2505.24857"
    summary = "the longest prefix of certain positions with sum H - max H <= bound"
    default_temperature = 0.0
    exact_order = True
    one_at_a_time = {"bound": 0.0}
    sweep = ("bound", (0.0, 0.1, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0))

    bound: float = option(0.1, "nats of joint dependence that a step may lose", ge=0)
    proxy: str = option("entropy", "what positions are sorted by", choices=("entropy", "confidence", "margin"))

    def step(self, believe, state):
        want = ("entropy",) if self.proxy == "entropy" else ("entropy", self.proxy)
        belief = believe(state, want=want)
        score = -belief.entropy if self.proxy == "entropy" else getattr(belief, self.proxy)  # (B, L) high: certain
        order = torch.sort(score, dim=1, descending=True, stable=True).indices
        # Beyond the open positions entropies are infinite: zero there, and cut off by the count of open ones.
        entropy = torch.where(state.open, belief.entropy, 0.0).double().gather(1, order)
        lost = entropy.cumsum(1) - entropy.cummax(1).values
        # `lost` never falls, so these are a prefix. Entropies come from float32 sums: below 1e-7 is certain.
        count = torch.minimum((lost <= self.bound + 1e-7).sum(1), state.count)
        return state.commit(select_top(score, torch.maximum(count, at_least(state))), belief.token)
