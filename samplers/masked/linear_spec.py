"""LinearSpec: a drafted run stands as far as it is what the model, from left to right, would have said itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..canvas import Layout
from ..prediction import Predict
from ..random import DRAW_TOKEN
from ..sampler import Conformance, Facts, Sampler, option
from .speculation import SpanState, first_run, stands_until, verification


@dataclass(frozen=True)
class LinearSpec(Sampler[SpanState]):
    """LinearSpec, the linear self-speculation of NVIDIA's Nemotron-Labs-Diffusion: draft in both directions, verify causally.

    A step drafts the next `width` masks in one forward pass. A second pass says, for each of them and for the one after them,
    what the model at block size 1 draws there if the draft to its left stands (samplers.masked.speculation). The longest run of
    positions at which the two are the same token stands, and so does the second one's token after it, with which the next draft
    begins. So a step of two passes commits 1 to width + 1 tokens; if one mask is left in the block, it is a step of one pass.

    Every token that is committed was drawn by the model at block size 1 after what stands to its left, so the samples have its
    distribution, at any temperature; at temperature 0 they are its tokens. Draft and verification draw with the same
    random numbers, which makes them agree more often, and no less exact: a position's number does not depend on the others.
    `s2d2` compares probabilities in place of tokens, accepts more, and must store the logits, which this does not.

    Differs from the reference code (SGLang): there the verification reads each token one line before it, as models that predict
    the next token allow, and keeps its keys; here a mask in the token's own place is asked, so that any model with masks will do,
    without a cache. Rows count for themselves. `steps` below the number of positions is a cap on passes, for which drafted tokens
    are filled from left to right, and then the distribution is another one.
    """

    name = "linear_spec"
    family = "masked"
    cite = "NVIDIA 2026, Nemotron-Labs-Diffusion, LinearSpec (dllm algorithm of SGLang)"
    summary = "a drafted run, kept as far as the model at block size 1 draws the same tokens"
    default_temperature = 0.0
    facts = Facts(bias="exact", needs=("masks",), sweep=("width", (1, 2, 4, 8, 16, 32)))
    conformance = Conformance(one_at_a_time={"block_length": 1}, redraws=(DRAW_TOKEN,))

    width: int = option(32, "masks that are drafted in a step", ge=1)

    def init(self, canvas: Layout) -> SpanState:
        return SpanState.of(canvas)

    def step(self, predict: Predict, state: SpanState) -> SpanState:
        least = state.least[:, None]
        run, number = first_run(state.open), state.open.cumsum(1)
        drafted = state.open & (number <= least.clamp(min=self.width)) & (state.count > 1)[:, None]
        draft = predict(state, drafted).token
        judged = run & (number <= self.width + 1) & state.verifies[:, None]
        lines = verification(predict, state, draft, drafted & run, judged, state.size)
        said = lines.on_canvas(predict.seen(state, *lines.arguments(), draw=DRAW_TOKEN))
        stands, after = stands_until(~drafted | (said != draft), judged)
        exact = stands | after
        passes = state.with_passes(drafted, judged)
        return state.commit(exact | (state.open & (number <= least)), torch.where(exact, said, draft), passes=passes)
