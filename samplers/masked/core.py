"""CORE: confident positions first, and now and then the least certain tokens are judged without each other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..checks import check_plan
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import DraftState


@dataclass(frozen=True, eq=False)
class CoreState(DraftState):
    """A state that knows how its forward passes are shared out.

    Attributes:
        fills: (max S + 1,) int64, how many steps there are in a block of S forward passes: the others judge.
    """

    SHARED: ClassVar[tuple[str, ...]] = ("fills",)

    fills: Tensor


@dataclass(frozen=True)
class Core(Sampler[CoreState]):
    """Zhai et al. 2026 (CORE), arXiv 2602.04096: context-robust remasking on top of LLaDA's confident positions.

    A block has n positions and N steps, of which step i fills n // N (one more in the first n % N), the most confident. If
    N/4 <= i < 3N/4 and `every` divides i, the step looks back: of the filled tokens the `candidates` with the smallest
    margin p_1 - p_2 are masked together, in a second forward pass. A token is replaced if the pass finds another one best,
    with a probability of at least `least`: the `revise` tokens (no more than the step fills) with the smallest probability.
    The new token is the best one of that pass. The last `protect` positions of a block are not judged.

    `steps` counts forward passes, those that look back included: N is the largest for which they fit into the block's
    steps. (In the reference they come on top, and its `steps` is N.)

    Differs from the reference: rows count for themselves; a step that fills nothing, or finds nothing to judge, costs no pass
    for it; 0, the first step, never looks back, since nothing is filled; under blocks the plan holds in each block, as there.
    """

    name = "core"
    family = "masked"
    cite = (
        "Zhai et al. 2026, CORE: Context-Robust Remasking for Diffusion Language Models, arXiv 2602.04096 (ICML 2026)"
    )
    summary = "LLaDA's rule; at times the least certain tokens are masked together and replaced if they fail"
    default_temperature = 0.0
    facts = Facts(bias="biased", revises=True)
    conformance = Conformance(small={"protect": 0, "every": 1}, one_at_a_time={"every": 1 << 20})

    every: int = option(8, "look back in every such step of the middle half; a pass each", ge=1)
    candidates: int = option(32, "number of filled tokens that are masked together to be judged", ge=1)
    revise: int = option(1, "most tokens that are replaced at a time", ge=0)
    least: float = option(0.3, "least probability of a token that replaces another", ge=0, le=1)
    protect: int = option(16, "the last positions of a block, which are not judged", ge=0)

    def init(self, canvas: Layout) -> CoreState:
        most = int(canvas.block_steps.max())
        check_plan(f"steps={most} per block", 2 * (most + 1) * 8)
        steps = torch.arange(most + 1, device=canvas.x.device)
        need = steps + self._looks(steps)  # never falls
        return CoreState.begin(canvas, fills=torch.searchsorted(need, steps, right=True) - 1)

    def _looks(self, fills: Tensor) -> Tensor:
        """How many of the steps 0 to `fills` - 1 look back."""
        first, end = (
            torch.div(fills, 4, rounding_mode="floor").clamp_min(1),
            torch.div(3 * fills, 4, rounding_mode="floor"),
        )
        below = [torch.div(k + self.every - 1, self.every, rounding_mode="floor") for k in (first, end)]
        return (below[1] - below[0]).clamp_min(0)

    def step(self, predict: Predict, state: CoreState) -> CoreState:
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        k, n = state.block_step, state.fills[state.block_steps].clamp_min(1)  # (B,) each
        last = k + 1 >= n
        masked = state.masked & state.open
        count = state.block_size // n + (k < state.block_size % n)
        count = torch.where(last, masked.sum(1), count)
        looks = (k % self.every == 0) & (k >= (n // 4).clamp_min(1)) & (k < 3 * n // 4) & (count > 0)

        block = state.canvas.fill & (state.canvas.block == state.block[:, None])
        left = state.block_size[:, None] - block.cumsum(1)  # (B, L) positions of the block after this one
        judged = state.open & ~masked & (left >= self.protect) & looks[:, None]
        rows = (masked & (count > 0)[:, None]) | judged
        now = predict(state, rows, want=("confidence", "margin"))
        chosen = ops.select(now.confidence, masked, k=count).chosen

        hidden = ops.select(now.margin, judged, k=self.candidates, lowest=True).chosen
        trial = dataclasses.replace(state, x=torch.where(hidden, mask_id, state.x))
        then = predict(trial, hidden, want=("confidence", "given"), given=state.x, temperature=0.0)
        fails = hidden & (then.token != state.x) & (then.confidence >= self.least)
        replaced = ops.select(then.given, fails, k=count.clamp(max=self.revise), lowest=True).chosen

        x = torch.where(replaced, then.token, torch.where(chosen, now.token, state.x))
        return state.revise(x, last | ~(state.open & (x == mask_id)).any(1))
