"""Information gain: several candidate steps are compared by how uncertain the model is after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..prediction import Predict, sum_over
from ..random import DRAW_CANDIDATE
from ..sampler import Facts, option
from ..state import TokenState
from .candidates import best_of, goes_on
from .plans import ScheduledSampler


@dataclass(frozen=True)
class InfoGain(ScheduledSampler):
    """Yang et al. 2026, arXiv 2602.18176: commit the candidate a of the highest J(a) = -C(a) - H(a).

    A candidate is k positions of the block with their present tokens. The first is the k most confident; the others are the top
    k of c / position_temperature + Gumbel noise, c the confidence. C is the sum of the present entropies of the candidate's
    positions, and H the mean entropy of all masks that it leaves, from one forward pass over all candidates. Candidates with
    the same positions are one. Of equals the first is kept, and its answer serves the next step. If every token of the block
    has probability `sure` or more, all of them are committed and nothing is compared.

    cost=False leaves out C: the rule that the code calls lookum, after Lee et al. 2025 (LookUM), arXiv 2511.05563.

    Differs from the reference code: k comes from any plan (there 1, or a schedule); above temperature 0 the candidates share the
    token that is drawn at a position (there each draws anew, from stored logits), and `sure` asks about the drawn token; H of
    later blocks can be left out (horizon="block"), which with a cache spares their forward pass.
    """

    name = "info_gain"
    family = "masked"
    cite = "Yang et al. 2026, Improving Sampling for Masked Diffusion Models via Information Gain, arXiv 2602.18176"
    summary = "candidate steps, and the one that leaves the least entropy is taken (with cost=False: LookUM)"
    default_temperature = 0.0
    facts = Facts(bias="biased", copies=True)

    least: int = option(1, "least number of positions per step", ge=1)
    candidates: int = option(8, "candidates per row, the greedy one included; one copy of the row each", ge=1, le=4096)
    position_temperature: float = option(
        0.2, "temperature at which the positions of a candidate are drawn; 0: the greedy candidate alone", ge=0
    )
    sure: float = option(
        0.8, "a block all of whose tokens are at least this probable is filled at once; above 1: never", gt=0
    )
    cost: bool = option(
        True, "count the entropies of the tokens that are committed now against a candidate; False: LookUM"
    )
    horizon: str = option("canvas", "the masks whose entropy counts", choices=("canvas", "block"))

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        number = self.candidates if self.position_temperature > 0 else 1
        copies = predict.copies(number)
        want = ("confidence", "entropy")
        now = predict(state, want=want) if state.ready is None else state.ready
        alone = torch.minimum(self.count(state), state.count)  # (B,)
        whole = ~(state.open & (now.confidence < self.sure)).any(1) | (alone == state.count)  # (B,) nothing to compare
        size = torch.where(whole, state.count, alone)

        before = copies.spread(state)
        score = self.scores(state, now.confidence, number).flatten(0, 1)  # (B K, L)
        chosen = ops.select(score, before.open, k=size.repeat_interleave(number)).chosen
        token = now.token.repeat_interleave(number, 0)
        wide = before.commit(chosen, token)
        each = chosen.view(len(size), number, -1).float()  # (B, K, L)
        same = each @ each.transpose(1, 2) == size[:, None, None]  # (B, K, K): whole numbers, exact
        valid = ~same.tril(-1).any(2)  # (B, K): no earlier candidate has these positions
        rows = wide.masked if self.horizon == "canvas" else wide.open
        rows = rows & (valid.flatten() & ~wide.done)[:, None]
        answer = copies(wide, rows, want=want)

        left = rows if self.horizon == "canvas" else rows & goes_on(before, wide)[:, None]
        gain = -sum_over(answer.entropy, left) / left.sum(1).clamp_min(1)
        if self.cost:
            gain = gain - sum_over(now.entropy.repeat_interleave(number, 0), chosen)
        return copies.pick(wide, best_of(gain.view(-1, number), valid), answer)

    def scores(self, state: TokenState, confidence: Tensor, number: int) -> Tensor:
        """(B, K, L) float64: what the positions of each candidate are ranked by."""
        length = state.x.shape[1]
        # One uniform number for each position and candidate, whose numbering does not depend on the width of the batch.
        u = state.rng.positions(length * number, state.step, DRAW_CANDIDATE).view(-1, length, number).transpose(1, 2)
        noise = -torch.log(-torch.log(u.clamp_min(2.0**-54)))
        greedy = torch.arange(number, device=u.device)[:, None] == 0  # (K, 1)
        confidence = confidence.double()[:, None]  # (B, 1, L)
        return torch.where(greedy, confidence, confidence / (self.position_temperature or 1.0) + noise)

    def expected_nfe(self, length: int, steps: int) -> Any:
        """Not known: a block that is sure is filled at once."""
        return None
