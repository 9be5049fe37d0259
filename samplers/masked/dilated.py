"""DUS: every n-th position of a block, then those between, in a number of rounds that grows like the logarithm of the block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..prediction import Predict
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState


@dataclass(frozen=True)
class Dilated(Sampler[TokenState]):
    """Luxembourg et al. 2025 (DUS), arXiv 2506.19037: round t commits the positions 0, s, 2 s, ... of the block, s = B // base^t.

    Positions of the block are numbered from 0. What an earlier round has committed is left out, and the last round commits
    what is left. Of a block of B = base^n positions, that is n rounds: of 8 positions {0, 4}, {2, 6}, {1, 3, 5, 7}. The
    order is blind: it depends on nothing that the model says, and neighbours, which depend on each other most, are committed
    in different rounds. `steps` is a cap: with fewer steps than rounds, the last rounds are made, which are the dense ones.

    Positions of one round are drawn independently, so only blocks of one position are exact. Differs from the reference code:
    a last round that is smaller than the one before stays a round of its own (there it is merged with it, as of 5 positions);
    tokens of a round with a confidence below 0.3 are not masked again (there they are, and never looked at again).
    """

    name = "dilated"
    family = "masked"
    cite = (
        "Luxembourg, Permuter, Nachmani 2025, Plan for Speed: Dilated Scheduling for Masked Diffusion, arXiv 2506.19037"
    )
    summary = "every n-th position of the block, then those between: a blind order in logarithmically many rounds"
    facts = Facts(bias="exact", static_plan=True, whole_blocks=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    base: int = option(
        2, "by which factor the distance of a round's positions falls from round to round", ge=2, le=1024
    )

    def rounds(self, size: Tensor, most: int) -> Tensor:
        """(B,) int64: the rounds of blocks of `size` (B,) int64 positions, at most `most`."""
        powers = [self.base**t for t in range(1, most.bit_length() + 1) if self.base**t <= most]
        whole = torch.zeros_like(size)  # how many strides are at least 1
        stride = size
        for power in powers:
            whole = whole + (size >= power)
            stride = torch.where(size >= power, size // power, stride)
        return (whole + (stride > 1)).clamp_min(1)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        canvas, size = state.canvas, state.block_size
        block = canvas.fill & (canvas.block == state.block[:, None])  # (B, L) the present block, open or not
        number = block.cumsum(1) - 1  # (B, L)
        rounds = self.rounds(size, state.x.shape[1])
        left_out = (rounds - state.block_steps).clamp_min(0)
        this = left_out + state.block_step + 1  # (B,) from 1 to rounds
        stride = (size // self.base ** this.clamp(max=rounds)).clamp_min(1)
        chosen = state.open & ((number % stride[:, None] == 0) | (this >= rounds)[:, None])
        return state.commit(chosen, predict(state, chosen).token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(steps, int(self.rounds(torch.tensor([length], dtype=torch.int64, device="cpu"), length)))
