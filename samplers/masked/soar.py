"""SOAR: two canvases per row while the model is unsure of the next position, one when it is sure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Predict, sum_over
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .candidates import best_of
from .plans import min_count

BEAMS = 2


@dataclass(frozen=True, eq=False)
class BeamState(TokenState):
    """A state with two canvases of each row; `x` has what they agree on, and the mask elsewhere.

    Attributes:
        beam: (B, 2, L) int64, the canvases, the better one first.
        score: (B, 2) float64, the score of each; -inf: there is one canvas only.
        probability: (B, 2, L) float32, that of each canvas's tokens when they were predicted; -inf at others.
    """

    beam: Tensor
    score: Tensor
    probability: Tensor


@dataclass(frozen=True)
class SOAR(Sampler[BeamState]):
    """Cao et al. 2026 (SOAR), arXiv 2602.10953: a search over positions, which widens where the model is unsure.

    In each canvas, if some tokens are at least `threshold` probable, the `most` surest of them are committed; else there are two
    continuations, with the most confident position and with the second. Continuations are scored by the sum of the
    log-probabilities of their tokens. If any of a row's continuations was sure, only the best continuation is kept; else the
    best two different ones. A step is one forward pass.

    Differs from the reference code: at the end of a block the better canvas is kept (there both go on, so that a block is not
    final when the next one begins; of a single block there is no difference); >= in place of >; the scores add up
    log-probabilities (there probabilities: rank="probability"); under a cap on `steps` each continuation has as many
    positions as the cap demands, and the second has the next best position in place of the last.
    """

    name = "soar"
    family = "masked"
    cite = "Cao et al. 2026, SOAR: Confidence-Switched Position Beam Search for Diffusion Language Models, arXiv 2602.10953"
    summary = "a beam of two orders of positions while the model is unsure, parallel commits when it is sure"
    default_temperature = 0.0
    facts = Facts(
        bias="biased", copies=True, whole_blocks=True, sweep=("threshold", (2.0, 0.99, 0.95, 0.9, 0.7, 0.5, 0.3))
    )
    conformance = Conformance(one_at_a_time={"threshold": 2.0})

    threshold: float = option(0.95, "a token of at least this probability is sure; above 1: none is", gt=0)
    most: int = option(5, "most sure tokens that a step commits", ge=1)
    rank: str = option("logprob", "what scores add up", choices=("logprob", "probability"))

    def init(self, canvas: Layout) -> BeamState:
        score = torch.tensor([0.0, -torch.inf], dtype=torch.float64, device=canvas.x.device).repeat(len(canvas.x), 1)
        beam = canvas.x[:, None].repeat(1, BEAMS, 1)
        return BeamState.begin(
            canvas, beam=beam, score=score, probability=torch.full_like(beam, -torch.inf, dtype=torch.float32)
        )

    def step(self, predict: Predict, state: BeamState) -> BeamState:
        batch, length = state.x.shape
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        copies = predict.copies(BEAMS)
        own = state.beam.flatten(0, 1)  # (2 B, L)
        wide = copies.spread(state).fix(own != mask_id, own)
        alive = state.score > -torch.inf  # (B, 2)
        prediction = copies(wide, wide.open & alive.flatten()[:, None], want="confidence")

        confidence, least = prediction.confidence, min_count(wide)
        first = ops.select(confidence, wide.open, threshold=self.threshold, least=least, most=self.most).chosen
        sure = (wide.open & (confidence >= self.threshold)).any(1).view(batch, BEAMS) & alive
        upto, best, short = (ops.select(confidence, wide.open, k=least + i).chosen for i in (1, 0, -1))
        second = short | (upto & ~best)
        there = (wide.count > least).view(batch, BEAMS) & alive & ~sure
        where = torch.stack([first, second], 1)  # (2 B, 2, L)
        gain = confidence.clamp_min(1e-30).log() if self.rank == "logprob" else confidence
        more = sum_over(gain.repeat_interleave(2, 0), where.flatten(0, 1)).view(batch, BEAMS, 2)
        score = (state.score[:, :, None] + more).flatten(1)  # (B, 4)
        valid = torch.stack([alive, there], 2).flatten(1)  # (B, 4)
        made = torch.where(where, prediction.token[:, None], own[:, None]).view(batch, 2 * BEAMS, length)  # (B, 4, L)
        known = torch.where(where, confidence[:, None], state.probability.flatten(0, 1)[:, None]).view_as(made)

        chosen = best_of(score, valid)[:, None]  # (B, 1)
        kept = _of(made, chosen)  # (B, 1, L)
        valid &= (made != kept).any(2)
        other = best_of(score, valid)[:, None]
        ended = (
            state.fix(kept[:, 0] != mask_id, kept[:, 0]).block != state.block
        )  # (B,) the block is full, or the row ends
        single = sure.any(1) | ended | ~valid.any(1)
        other = torch.where(single[:, None], chosen, other)
        which = torch.cat([chosen, other], 1)  # (B, 2)
        copies.rearranged(wide, (torch.arange(batch, device=which.device)[:, None] * BEAMS + which // 2).flatten())
        beam, probability, score = _of(made, which), _of(known, which), score.gather(1, which)
        score = torch.stack([score[:, 0], torch.where(single, -torch.inf, score[:, 1])], 1)
        agreed = (beam[:, 0] == beam[:, 1]) & (beam[:, 0] != mask_id)
        copies.note(beam[:, 0], torch.where(agreed & state.open, probability[:, 0], -torch.inf))
        return state.commit(agreed, beam[:, 0], beam=beam, score=score, probability=probability)


def _of(made: Tensor, which: Tensor) -> Tensor:
    """(B, n, L): the candidates `which`, (B, n) int64, of made, (B, K, L)."""
    return made.gather(1, which[:, :, None].expand(-1, -1, made.shape[2]))
