"""WINO: fill many masks at once, and mask again what the rest of the canvas now speaks against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import DraftState
from .plans import most_open


@dataclass(frozen=True, eq=False)
class WinoState(DraftState):
    """A state that knows how many positions its last step has filled.

    Attributes:
        filled: (B,) int64; 30 at the beginning of a block.
        size: S, the positions of the largest block.
    """

    filled: Tensor
    size: int


@dataclass(frozen=True)
class Wino(Sampler[WinoState]):
    """Hong et al. 2025 (WINO, "wide in, narrow out"), arXiv 2507.18578: revocable decoding with a shadow of the block.

    Each forward pass is given the canvas and, after it, a mask for every position of the present block, at the same position
    ids: the shadow. The canvas does not see the shadow. The line of the shadow at position i sees the shadow and the canvas
    but for position i. So it says p(x_i | all the rest) of a token that is filled already, in the pass that predicts the
    masks. If the model's conditionals are exact, so is this one.

    A step fills the masks of the block whose token has confidence tau1 or more: at most min(max(floor(0.7 M), 5), 20) of its M
    masks, and at least the best one. If it fills more than one, then of the tokens that were filled before, those whose
    probability in the shadow is below tau2 are masked again; of A or more, A the number that the last step filled (30 at first),
    only the A - 1 least probable. So each step leaves one mask less, on the average of a block, and the block ends.

    Costs L + S positions per row and forward pass, S the size of the largest block. The paper runs blocks of 128 positions.

    Differs from the reference code: >= in place of > at tau1; of equal ones the lower position goes first; rows count for
    themselves; `steps` is a cap, in the last step of which all masks left are filled and none is revoked; a model of
    block-causal or causal attention sees, in its shadow too, no more than that allows.
    """

    name = "wino"
    family = "masked"
    cite = (
        "Hong et al. 2025, Wide-In, Narrow-Out: Revokable Decoding for Efficient and Effective DLLMs, arXiv 2507.18578"
    )
    summary = "fill above a threshold, and revoke tokens that all the others make improbable"
    default_temperature = 0.0
    facts = Facts(bias="biased", revises=True, needs=("masks",), sweep=("tau1", (2.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))
    conformance = Conformance(one_at_a_time={"tau1": 2.0})

    tau1: float = option(0.6, "least probability of a token that is filled in; above 1: one position per step", gt=0)
    tau2: float = option(
        0.9, "a filled token whose probability given all others is below this is masked again", ge=0, le=1
    )

    def init(self, canvas: Layout) -> WinoState:
        return WinoState.begin(canvas, filled=torch.full_like(canvas.x[:, 0], 30), size=most_open(canvas))

    def step(self, predict: Predict, state: WinoState) -> WinoState:
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        masked = state.open & state.masked
        drafts = state.open & ~masked
        width = state.x.shape[1]

        # The shadow: (B, S) the positions of the block; where a row has fewer than S, `there` is False.
        here = torch.arange(width, device=masked.device)
        place = torch.where(state.open, here, width).sort(1).values[:, : state.size]
        there = place < width
        place = place.clamp(max=width - 1)
        x = torch.cat([state.x, torch.full_like(place, mask_id)], 1)
        positions = torch.cat([here.expand_as(state.x), place], 1)
        sight = predict.sight(state)[positions[:, :, None], positions[:, None]]  # (B, L + S, L + S)
        shadow = torch.arange(x.shape[1], device=x.device) >= width
        itself = positions[:, :, None] == positions[:, None]
        of_canvas = sight & ~(shadow[:, None] & itself)
        of_shadow = sight & shadow[:, None] & torch.nn.functional.pad(there, (width, 0))[:, None]
        visible = torch.where(shadow, of_shadow, of_canvas)
        asked = torch.cat([masked, drafts.gather(1, place) & there], 1)
        held = torch.where(drafts, state.x, 0)
        given = torch.cat([held, held.gather(1, place)], 1)
        said = predict.seen(state, x, positions, visible, asked, want=("confidence", "given"), given=given)
        again = torch.full((len(x), width + 1), torch.inf, dtype=torch.float32, device=x.device)
        again = again.scatter(1, torch.where(there, place, width), said.given[:, width:])[
            :, :width
        ]  # p(x_i | the rest)

        left = masked.sum(1)
        most = torch.div(7 * left, 10, rounding_mode="floor").clamp(5, 20)
        least = torch.div(left + self._steps_left(state) - 1, self._steps_left(state), rounding_mode="floor")
        count = ops.select(said.confidence[:, :width], masked, threshold=self.tau1, least=1).count.minimum(most)
        fill = ops.select(said.confidence[:, :width], masked, k=count.maximum(least)).chosen
        filled = fill.sum(1)
        doubted = drafts & (again < self.tau2) & ((filled > 1) & ~state.last_step)[:, None]
        number = doubted.sum(1)
        revoke = ops.select(-again, doubted, k=torch.where(number >= state.filled, state.filled - 1, number)).chosen
        out = torch.where(revoke, mask_id, torch.where(fill, said.token[:, :width], state.x))
        full = ~(state.open & (out == mask_id)).any(1)
        return state.revise(out, full, filled=torch.where(full, 30, filled))

    @staticmethod
    def _steps_left(state: WinoState) -> Tensor:
        return (state.block_steps - state.block_step).clamp_min(1)
