"""LLaDA2: commit above a threshold, and edit what has been committed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampler import option
from ..uniform.block_refinement import BlockRefinement, EditState
from .plans import even_count, whole_block_count, whole_block_option


@dataclass(frozen=True)
class LLaDA2(BlockRefinement):
    """inclusionAI 2026 (LLaDA2.1 technical report), joint threshold decoding: mask to token, and token to token.

    As `block_refinement`, with masks in place of noise, and LLaDA's even plan for the least number of positions per step. The
    defaults are 2.1's quality mode; edit_threshold = none is LLaDA2.0 (there with threshold 0.95), and 2.1's speed mode has
    threshold 0.5. Meant for block_length 32, in the model's own blocks (align=True, the default for its models).

    It makes the tokens of diffusers' LLaDA2Pipeline(num_inference_steps=S, max_post_steps=M) with steps_per_block=S,
    max_post_steps=M + 1 (its code takes one more than it says), stop_rule="llada2", and a prompt and gen_length that make
    whole blocks together. Without editing it takes one forward pass less per block: the pipeline looks once more at a block
    that is full. Of a last block that is not whole, the pipeline fills in what lies beyond the end as well, out of the same
    counts.

    Differs from the reference: >= in place of >; rows of a batch count for themselves and do not wait for each other; the mask
    id is never drawn; an end of text in the prompt does not switch stopping off.
    """

    name = "llada2"
    family = "masked"
    cite = "inclusionAI 2026, LLaDA2.1 technical report"
    summary = "commit above a threshold, and edit committed tokens (LLaDA2.0 and 2.1)"

    threshold: float = option(0.7, "least probability of a committed token; above 1: the plan alone", gt=0)
    edit_threshold: float | None = option(
        0.5, "least probability of a token that replaces another; none: no editing", ge=0
    )
    steps_per_block: int | None = whole_block_option()

    def steps_of(self, state: EditState) -> Tensor:
        n = self.steps_per_block
        return super().steps_of(state) if n is None else torch.full_like(state.block_steps, n)

    def least(self, state: EditState, left: Tensor) -> Tensor:
        return even_count(state) if self.steps_per_block is None else whole_block_count(state, self.steps_per_block)
