"""S2D2: the model drafts a run of masks at once, and verifies it from left to right as it would at block size 1."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..prediction import Logits, Predict, sum_over
from ..random import DRAW_ACCEPT, DRAW_RESIDUAL
from ..sampler import Conformance, Facts, Sampler, option
from .plans import fill_up_to
from .speculation import SpanState, draw_from, first_run, residual, stands_until, verification


@dataclass(frozen=True, eq=False)
class JudgedState(SpanState):
    """A state that may remember what its last verification said.

    Attributes:
        judged: the logits of the positions that the last step verified; None: they are not kept.
    """

    judged: Logits | None


@dataclass(frozen=True)
class S2D2(Sampler[JudgedState]):
    """Han et al. 2026 (S2D2, self-speculation), arXiv 2603.25702: a draft of all masks, verified by the model at block size 1.

    A step drafts all masks of the block in one forward pass, with probabilities q. A second pass over the canvas and one more
    mask for each position of the first run of masks gives p: what the model says there if of the block it sees the draft to the
    left alone (samplers.masked.speculation). From left to right the token of position i is accepted with probability
    min(1, (p_i / q_i)^gamma). The first refused one is drawn anew from max(p - q, 0), normalised. p and q are taken at the run's
    temperature, top_k and top_p; at temperature 0 a token is accepted if it is the best one of p.

    With gamma = 1 and the other options left alone, this is speculative sampling (Leviathan et al. 2023, arXiv 2211.17192), so
    the tokens have the distribution of the model at block size 1, whatever q is: at temperature 0 they are its tokens.

    tau          also fill every other mask of the block whose drafted token has this probability in q.
    least_span   verify only runs at least this long. Without verification tokens of confidence tau are filled, at least the best.
    cost         verify only if the expected number of accepted tokens, sum_k prod_{j<=k} exp(-beta H_j / ln V), H_j the
                 entropy of q_j, exceeds cost times the number of masks that tau would fill.

    reuse        what the verification said to the right of the refused token drafts the next step, which is then one pass.
                 Derived, not in the paper: those answers were given after a token that does not stand, so they are a worse
                 draft; but any draft will do whose probabilities are known and which nothing that stands depends on.

    A block of which one mask is left needs no draft, since p gives its token: that step is one pass, every other one two.

    Differs from the reference code: a given token to the right, in the block, is seen by both passes; hysteresis and bandit
    routing are left out; of equal confidences the lower position goes first; rows count for themselves. `steps` below the number
    of positions is a cap on passes, for which drafted tokens are filled by confidence, and then the distribution is another one.
    """

    name = "s2d2"
    family = "masked"
    cite = (
        "Han et al. 2026, S2D2: Fast Decoding for Diffusion LLMs via Training-Free Self-Speculation, arXiv 2603.25702"
    )
    summary = "a drafted run, accepted from left to right by the model at block size 1"
    facts = Facts(
        bias="exact", stores_logits=True, needs=("masks",), sweep=("gamma", (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.0))
    )
    conformance = Conformance(one_at_a_time={"block_length": 1})

    gamma: float = option(1.0, "power of p / q in the acceptance; 1: exact, 0: everything is accepted", ge=0, le=1)
    tau: float | None = option(None, "also fill other masks of this confidence; none: no others", gt=0)
    least_span: int = option(1, "verify runs of at least this many masks", ge=1)
    cost: float | None = option(
        None, "verify if more tokens are expected to stand than this for each mask that tau fills; none: always", ge=0
    )
    reuse: bool = option(False, "draft by the answers of the last verification, if there are any, and save a pass")
    beta: float = option(1.0, "how fast entropy lowers the expected number of accepted tokens, with cost", ge=0)

    @property
    def effective_facts(self) -> Facts:
        plain = self.gamma == 1 and self.tau is None and self.least_span == 1 and self.cost is None
        return self.facts if plain else dataclasses.replace(self.facts, bias="biased")

    def init(self, canvas: Layout) -> JudgedState:
        return JudgedState.of(canvas, judged=None)

    def step(self, predict: Predict, state: JudgedState) -> JudgedState:
        span = first_run(state.open)
        alone = (state.count == 1) & (self.least_span == 1)  # it is verified, and needs no draft
        drafted = state.open & ~alone[:, None]
        draft, asked = self._draft(predict, state, drafted)
        said = predict.read(state, draft, want=("confidence", "entropy"))
        verified = span & (state.verifies & self._routed(state, span, said.confidence, said.entropy))[:, None]
        lines = verification(predict, state, said.token, verified & drafted, verified, state.size)
        judged = predict.seen_logits(state, *lines.arguments())
        stands, anew, token = self._verdict(predict, state, draft, said.token, judged, verified)

        more = torch.zeros_like(span) if self.tau is None else drafted & (said.confidence >= self.tau)
        chosen = fill_up_to(state, stands | anew | more, said.confidence, state.least)
        changes = {"passes": state.with_passes(asked, verified), "judged": judged if self.reuse else None}
        return state.commit(chosen, torch.where(anew, token[:, None], said.token), **changes)

    def _draft(self, predict: Predict, state: JudgedState, drafted: Tensor) -> tuple[Logits, Tensor]:
        """The logits of the draft, of the model or of the last verification; and what the model was asked, (B, L) bool."""
        last = state.judged
        if last is None:
            return predict.logits(state, drafted), drafted
        known = last.on_canvas(torch.ones_like(last.row), torch.zeros_like(drafted))
        asked = drafted & (drafted & ~known).any(1, keepdim=True)  # rows that open a block, or were not verified
        last = last.at((drafted & ~asked)[last.row, last.position])  # a device sync: how many are left is not known
        fresh = predict.logits(state, asked)
        row, position, value = (
            torch.cat([getattr(on, n) for on in (last, fresh)]) for n in ("row", "position", "value")
        )
        return Logits(row, position, value), asked

    def _verdict(
        self, predict: Predict, state: JudgedState, draft: Logits, token: Tensor, judged: Logits, span: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What stands of the span, (B, L) bool; the position that is drawn anew, (B, L) bool; and its token, (B,) int64."""
        p, q = predict.probabilities(judged), predict.probabilities(draft)  # (N, V), (M, V)
        of_p, of_q = (_of_token(on, weight, token) for on, weight in ((judged, p), (draft, q)))  # (B, L) float64
        uniform = state.rng.positions(span.shape[1], state.step, DRAW_ACCEPT)
        accepted = (of_q > 0) & (uniform * of_q**self.gamma < of_p**self.gamma)
        stands, anew = stands_until(~accepted, span)
        at = anew.to(torch.uint8).argmax(1)  # (B,)
        rest = residual(_at(judged, p, state.x, at), _at(draft, q, state.x, at))  # (B, V)
        rest = torch.where(anew.any(1, keepdim=True), rest, 1.0)
        chance = state.rng.positions(span.shape[1], state.step, DRAW_RESIDUAL).gather(1, at[:, None]).squeeze(1)
        return stands, anew, draw_from(rest, chance)

    def _routed(self, state: JudgedState, span: Tensor, confidence: Tensor, entropy: Tensor) -> Tensor:
        """(B,) bool: rows whose run is verified."""
        long = span.sum(1) >= self.least_span
        if self.cost is None:
            return long
        chance = torch.exp(-self.beta / math.log(state.canvas.vocab_size) * entropy.clamp(max=1e4).double())
        running = torch.where(span, chance, 1.0).cumprod(1)
        expected = sum_over(running, span)
        sure = torch.inf if self.tau is None else self.tau
        return long & ((state.count == 1) | (expected > self.cost * (state.open & (confidence >= sure)).sum(1)))


def _of_token(on: Logits, weight: Tensor, token: Tensor) -> Tensor:
    """(B, L) float64: the probability of each `token`, (B, L), in `weight` (N, V); 0 if there is none."""
    ids = token[on.row, on.position].clamp(max=weight.shape[1] - 1)  # a mask stands at what was not drafted
    zeros = torch.zeros(token.shape, dtype=torch.float64, device=token.device)
    return on.on_canvas(weight.gather(1, ids[:, None]).squeeze(1), zeros)


def _at(on: Logits, weight: Tensor, x: Tensor, position: Tensor) -> Tensor:
    """(B, V): the rows of `weight`, (N, V), for one position of each row, (B,); zeros if there is none."""
    number = on.on_canvas(torch.arange(len(on.row), device=x.device), torch.full_like(x, -1))
    number = number.gather(1, position[:, None])  # (B, 1)
    weight = weight if len(weight) else weight.new_zeros(1, weight.shape[1])
    return torch.where(number >= 0, weight[number.squeeze(1).clamp(min=0)], 0.0)
