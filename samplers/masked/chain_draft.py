"""Speculative decoding of a masked model by itself, in any order: drafts of single positions, verified by copies of the row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Logits, Predict
from ..random import DRAW_RANK
from ..sampler import Conformance, Facts, Sampler, option
from ..state import TokenState
from .plans import min_count

DRAW_DRAFT, DRAW_ACCEPT = 60, 61


@dataclass(frozen=True, eq=False)
class DraftedState(TokenState):
    """A state that remembers the last answer.

    Attributes:
        last: the logits of the open positions, given all tokens but the one that was filled last; None before the first step.
        known: (B, L) bool, the positions that `last` has.
    """

    last: Logits | None
    known: Tensor


@dataclass(frozen=True)
class ChainDraft(Sampler[DraftedState]):
    """TODO"""

    name = "chain_draft"
    family = "masked"
    cite = ""
    summary = "drafts of the model, verified one after the other in a single forward pass"
    facts = Facts(bias="exact", stores_logits=True, copies=True)

    drafts: int = option(8, "positions that are drafted, and copies of the row that verify them", ge=1)
    order: str = option("random", "", choices=("random", "entropy", "spread"))
    pace: str = option("even", "", choices=("even", "last"))

    def init(self, canvas: Layout) -> DraftedState:
        return DraftedState.begin(canvas, last=None, known=torch.zeros_like(canvas.fill))

    def step(self, predict: Predict, state: DraftedState) -> DraftedState:
        number, (rows, length) = self.drafts, state.x.shape
        copies = predict.copies(number)
        open_ = state.open
        # q: what the last answer says, at the positions that it has. (B L, V) is not stored: an index into `last` is.
        has = (open_ & ~(open_ & ~state.known).any(1, keepdim=True)).any(1)  # (B,) rows with a draft
        position = torch.arange(length)
        if state.last is not None:
            place = state.last.on_canvas(torch.arange(len(state.last.row)), torch.full_like(state.x, -1))
            q_all = (state.last.value / predict.temperature).softmax(1)
        else:
            place, q_all = torch.full_like(state.x, -1), torch.zeros(1, state.canvas.vocab_size)
        # order of the open positions
        if self.order == "entropy" and state.last is not None:
            h = torch.special.entr(q_all).sum(1)
            score = torch.where(place >= 0, -h[place.clamp_min(0)], 0.0) 
            score = score + 1e-6 * state.rng.positions(length, state.step, DRAW_RANK)
        elif self.order == "spread":
            score = -_reversed_bits(position, length).double().expand(rows, -1)
        else:
            score = state.rng.positions(length, state.step, DRAW_RANK)
        score = torch.where(open_, score, -torch.inf)
        take = min(number, length)
        chain = score.topk(take, 1).indices  # (B, K)
        valid = open_.gather(1, chain)
        draft_valid = valid & has[:, None]
        # drafts
        q = q_all[place.gather(1, chain).clamp_min(0)]  # (B, K, V)
        y = _inverse(q, state.rng.positions(length, state.step, DRAW_DRAFT).gather(1, chain))  # (B, K)
        wide = copies.spread(state)
        # copy j has drafts 0..j-1
        fill = torch.zeros(rows, number, length, dtype=torch.bool)
        tok = state.x[:, None, :].repeat(1, number, 1)
        for j in range(1, take):
            fill[:, j] = fill[:, j - 1].scatter(1, chain[:, j - 1 : j], draft_valid[:, j - 1 : j])
            tok[:, j] = torch.where(fill[:, j], tok[:, j - 1].scatter(1, chain[:, j - 1 : j], y[:, j - 1 : j]), tok[:, j])
        ask_copy = torch.zeros(rows, number, dtype=torch.bool)
        ask_copy[:, 0] = True
        ask_copy[:, 1:take] = draft_valid[:, 1:]
        wide = wide.commit(fill.flatten(0, 1), tok.flatten(0, 1))
        ask = open_.repeat_interleave(number, 0) & ~fill.flatten(0, 1) & ask_copy.flatten()[:, None]
        logits = copies.logits(wide, ask)
        where = logits.on_canvas(torch.arange(len(logits.row)), torch.full_like(wide.x, -1)).view(rows, number, length)
        p_all = (logits.value / predict.temperature).softmax(1)
        at = torch.arange(take)
        here = where[:, at, chain[:, at]] if False else torch.stack([where[torch.arange(rows), j, chain[:, j]] for j in range(take)], 1)
        p = p_all[here.clamp_min(0)]  # (B, K, V)
        py, qy = p.gather(2, y[..., None]).squeeze(2), q.gather(2, y[..., None]).squeeze(2)
        u = state.rng.positions(length, state.step, DRAW_ACCEPT).gather(1, chain)
        accept = (u * qy < py) & draft_valid
        run = accept.long().cumprod(1).sum(1)  # (B,) accepted drafts
        n = valid.sum(1)
        stop = run < n
        r = run.clamp(max=take - 1)
        rowi = torch.arange(rows)
        residual = torch.where(has[:, None] , (p - q)[rowi, r].clamp_min(0), p[rowi, r])
        tot = residual.sum(1, keepdim=True)
        residual = torch.where(tot > 0, residual, p[rowi, r])
        u2 = state.rng.positions(length, state.step, 0).gather(1, chain)[rowi, r]
        z = _inverse(residual[:, None], u2[:, None]).squeeze(1)
        # which copy's answer stays
        a = torch.where(stop, run, run - 1).clamp_min(0)
        new_x = tok[rowi, a]
        filled = fill[rowi, a]
        one = chain.gather(1, a[:, None])
        token1 = torch.where(stop, z, y[rowi, a])
        filled = filled.scatter(1, one, valid.gather(1, a[:, None]))
        new_x = new_x.scatter(1, one, torch.where(valid[rowi, a], token1, new_x.gather(1, one).squeeze(1))[:, None])
        # forced
        if self.pace == "even":
            need = min_count(state)
        else:
            left = state.block_steps - state.block_step
            need = torch.where(left <= 1, state.count, 0)
        more = (need - filled.sum(1)).clamp_min(0)
        pa = where[rowi, a]  # (B, L)
        ent = torch.special.entr(p_all).sum(1)
        rest = open_ & ~filled & (pa >= 0)
        s2 = score if self.order != "entropy" else torch.where(rest, -ent[pa.clamp_min(0)], -torch.inf)
        forced = ops.select(torch.where(rest, s2, -torch.inf), rest, k=more).chosen
        u3 = state.rng.positions(length, state.step, 62)
        draw = _inverse(p_all[pa.clamp_min(0)], u3)
        new_x = torch.where(forced, draw, new_x)
        filled = filled | forced
        nxt = state.commit(filled, new_x)
        keep = torch.zeros(rows, number, dtype=torch.bool).scatter(1, a[:, None], True).flatten()
        sel = keep[logits.row]
        last = Logits(torch.div(logits.row[sel], number, rounding_mode="floor"), logits.position[sel], logits.value[sel])
        known = (where[rowi, a] >= 0) & ~filled
        import dataclasses
        return dataclasses.replace(nxt, last=last, known=known)


def _inverse(p: Tensor, u: Tensor) -> Tensor:
    c = p.double().cumsum(-1)
    return torch.searchsorted(c, (u * c[..., -1])[..., None], right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)


def _reversed_bits(position: Tensor, length: int) -> Tensor:
    bits = max(1, (length - 1).bit_length())
    return sum(((position >> k) & 1) << (bits - 1 - k) for k in range(bits))
