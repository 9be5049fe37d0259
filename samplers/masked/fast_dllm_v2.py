"""Fast-dLLM v2: sub-blocks of a block one after the other, each by a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import fill_up_to, min_count


@dataclass(frozen=True)
class FastDLLMv2(Sampler[TokenState]):
    """Wu et al. 2025 (Fast-dLLM v2), arXiv 2509.26328: `threshold` in each sub-block, from left to right inside the block.

    A block's positions are cut into sub-blocks of `sub_block`. A step commits the tokens with confidence > threshold in the
    first sub-block that has a mask, and always its best one. The model sees the whole block, masks included; meant for
    block_length 32, the model's own. With full attention and no cache it therefore makes the tokens of `threshold` with
    block_length = sub_block (but for > in place of >=); what differs is what a cache may keep.

    Left out: the cache inside the block. The reference keeps the keys and values of the block's other sub-blocks while one is
    decoded, which changes its cost and, slightly, its answers; here the whole block is read in every step
    (sample(cache="block") keeps what comes before the block). Differs from the reference: rows count for themselves;
    confidence is the model's probability at temperature 1, over all tokens (there: of a draw at top_p = 0.95); `steps` is
    a cap, for which the next positions after the sub-block are taken as well if necessary (if left out: no cap).
    """

    name = "fast_dllm_v2"
    family = "masked"
    cite = "Wu et al. 2025, Fast-dLLM v2: Efficient Block-Diffusion LLM, arXiv 2509.26328"
    summary = "sub-blocks of the block from left to right, each by a threshold on confidence"
    default_temperature = 0.0
    facts = Facts(bias="biased", sweep=("threshold", (2.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)))
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.9, "tokens above this confidence are committed; above 1: one position per step", gt=0)
    sub_block: int = option(8, "positions per sub-block", ge=1)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        canvas, least = state.canvas, min_count(state)
        block = canvas.fill & (canvas.block == state.block[:, None])  # (B, L) the present block, open or not
        number = (block.cumsum(1) - 1) // self.sub_block  # (B, L) the sub-block of each position
        place = state.open.cumsum(1)  # (B, L) from 1, among the open positions
        first = (number * (state.open & (place == 1))).sum(1, keepdim=True)  # (B, 1) the first one with a mask
        asked = state.open & ((number == first) | (place <= least[:, None]))
        prediction = predict(state, asked, want="confidence")
        sure = (prediction.confidence > self.threshold) & (number == first)
        return state.commit(fill_up_to(state, sure, prediction.confidence, least), prediction.token)
