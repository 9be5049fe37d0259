"""LLaDA2: commit above a threshold, and edit what has been committed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampler import option
from ..uniform.block_refinement import BlockRefinement, EditState
from .plans import even_count


@dataclass(frozen=True)
class LLaDA2(BlockRefinement):
    """inclusionAI 2026 (LLaDA2.1 technical report), joint threshold decoding: mask to token, and token to token.

    As `block_refinement`, with masks in place of noise, and LLaDA's even plan for the least number of positions per step. The
    defaults are 2.1's quality mode; edit_threshold = none is LLaDA2.0 (there with threshold 0.95), and 2.1's speed mode has
    threshold 0.5. Meant for block_length 32.

    Differs from the reference: >= in place of >; steps that only edit are part of the block's own `steps` (there they come
    on top of them, but only for a block that was filled early), are at most 16 (there 17), and are counted per row.
    """

    name = "llada2"
    family = "masked"
    cite = "inclusionAI 2026, LLaDA2.1 technical report"
    summary = "commit above a threshold, and edit committed tokens (LLaDA2.0 and 2.1)"

    threshold: float = option(0.7, "least probability of a committed token; above 1: the plan alone", gt=0)
    edit_threshold: float | None = option(
        0.5, "least probability of a token that replaces another; none: no editing", ge=0
    )

    def least(self, state: EditState, left: Tensor) -> Tensor:
        return even_count(state)
