"""Speculative copies: a masked model drafts for itself, in any order, and copies of the row verify it in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas import Layout
from ..copies import Copies
from ..errors import OptionError
from ..prediction import Logits, Predict, Prediction
from ..random import DRAW_ACCEPT, DRAW_GUESS, DRAW_POSITION, DRAW_RESIDUAL
from ..sampler import Facts, Sampler, option
from ..state import TokenState
from .plans import in_time
from .speculation import draw_from, residual


@dataclass(frozen=True, eq=False)
class DraftedState(TokenState):
    """A state that remembers the last answer.

    Attributes:
        last: logits at the positions that may be drafted, given all tokens but the one that was filled last; None before the
            first forward pass.
    """

    last: Logits | None


@dataclass(frozen=True)
class SpeculativeCopies(Sampler[DraftedState]):
    """A rule of this zoo: speculative decoding of a masked model by itself, exact for any order that does not look ahead.

    Let q be the last answer, which lacks only the token that was filled last. A step puts the open positions in an order, draws
    a token from q for each of the first K, and asks about K copies of the row in one forward pass: copy j holds the first j
    drafts. They are verified one after the other as in Leviathan et al. 2023 (arXiv 2211.17192, algorithm 1): draft j + 1 stays
    with probability min(1, p / q), p of copy j; in place of the first that does not, a token is drawn from (p - q)+, normalised.
    The answer for the copy that stands is the next q.

    So every token has the distribution p that the model gives it when all tokens before it are known. The samples have the
    distribution of one position at a time, whatever K is, if the order does not depend on tokens that are not filled yet; a pass
    fills at least one position, and as many more as the model's answers agree. At temperature 0 and in a random order they are
    the tokens of `random_order` with one position per step. With `steps` below that, all that is left in the last pass is
    filled from the answer of the copy that stands, and only there are tokens independent of each other.

    A step costs up to K rows of the model for each row of the batch (`row_evals`), and logits at up to K (K + 1) positions: it
    saves passes, not arithmetic. The first pass of a block drafts nothing. Use a sampler that asks about each row once if a
    forward pass of K rows takes K times as long as one of one row.

    Its parents: any-subset models verify drafts in one pass by attention masks (Guo and Ermon 2025, arXiv 2504.20456); Anari et
    al. 2025 (2511.07869) bound the parallel rounds of models in any order that draft for themselves, whole sequences at a time;
    FreeDave (2510.00294) verifies greedy tokens by copies. Here: draws, copies of any masked model, and a cap on passes.
    """

    name = "speculative_copies"
    family = "masked"
    cite = "a rule of this zoo; acceptance: Leviathan et al. 2023, Fast Inference ... via Speculative Decoding, arXiv 2211.17192"
    summary = "drafts of the model itself in any order, verified by copies in one pass: the model's own distribution"
    facts = Facts(bias="exact", stores_logits=True, copies=True)

    drafts: int = option(8, "most positions per forward pass, each verified by a copy of the row", ge=1)
    order: str = option(
        "random",
        "which positions are drafted first: in the order of random_order, those of the lowest entropy (the leftmost in a block's "
        "first pass), or far from each other (by the position's bits in reverse)",
        choices=("random", "entropy", "spread"),
    )

    def init(self, canvas: Layout) -> DraftedState:
        return DraftedState.begin(canvas, last=None)

    def step(self, predict: Predict, state: DraftedState) -> DraftedState:
        if getattr(predict, "language", None) is not None:
            raise OptionError(
                f"sampler {self.name!r} verifies one position after another, and constrain= with a language draws all of them "
                "together; give a constrain function, or use another sampler"
            )
        length = state.x.shape[1]
        copies = predict.copies(min(self.drafts, length))
        number = len(copies)
        # (B, 1) positions that must be filled now: all in the last pass, or what a window that moves needs in order to pass
        must = in_time(state, state.count * (state.block_step + 1 >= state.block_steps))[:, None]
        q_at, guess = self._guess(predict, state)
        key = self._key(state, guess) + 2.0 * (q_at < 0)  # what cannot be drafted goes last
        order = torch.where(state.open, key.clamp(max=1e9), torch.inf).argsort(dim=1, stable=True)  # (B, L)
        rank = order.argsort(1)[:, None]  # (B, 1, L)
        chain, copy = order[:, :number], torch.arange(number, device=order.device)  # (B, K), (K,)
        drafted = ((q_at.gather(1, chain) >= 0) & state.open.gather(1, chain)).cumprod(1).bool()  # (B, K)
        many = drafted.sum(1)[:, None]  # (B, 1)
        draft = torch.where(drafted, guess.token.gather(1, chain), 0)

        wide = copies.spread(replace(state, last=None))
        filled = rank < torch.minimum(copy, many)[:, :, None]  # (B, K, L) what each copy holds of the drafts
        wide = wide.commit(filled.flatten(0, 1), guess.token.repeat_interleave(number, 0))
        asked = copies.apart_of(wide.open) & state.open[:, None] & (copy <= many)[:, :, None]
        if self.order != "entropy":  # no further than the next step will draft, or what must be filled
            asked &= (rank <= copy[:, None] + number) | (rank < must[:, :, None])
        logits = copies.logits(wide, asked.flatten(0, 1))
        entry = torch.arange(len(logits.row), device=order.device)
        p_at = copies.apart_of(logits.on_canvas(entry, torch.full_like(wide.x, -1)))  # (B, K, L), -1: not asked
        here = p_at.gather(2, chain[:, :, None]).squeeze(2)  # (B, K)

        p = _probabilities(copies, logits, here)  # (B, K, V)
        q = torch.zeros_like(p)
        if state.last is not None:
            q = _probabilities(predict, state.last, q_at.gather(1, chain)) * drafted[:, :, None]
        u = state.rng.positions(length, state.step, DRAW_ACCEPT).gather(1, chain)
        p_draft, q_draft = (x.gather(2, draft[:, :, None]).squeeze(2) for x in (p, q))
        accepted = drafted & (here >= 0) & (u * q_draft < p_draft)  # False of NaN
        run = accepted.cumprod(1).sum(1, keepdim=True)  # (B, 1)
        stands = run.clamp(max=number - 1)  # the copy that holds accepted drafts only, and as many as there are

        u = state.rng.positions(length, state.step, DRAW_RESIDUAL).gather(1, chain).gather(1, stands)
        p, q = (x.gather(1, stands[:, :, None].expand(-1, 1, x.shape[2])).squeeze(1) for x in (p, q))  # (B, V)
        token = torch.where(run > stands, draft.gather(1, stands), draw_from(residual(p, q), u.squeeze(1))[:, None])
        next_one = (torch.arange(length, device=order.device) == chain.gather(1, stands)) & (
            here.gather(1, stands) >= 0
        )
        last = copies.pick_logits(logits, stands.squeeze(1))
        rest = predict.read(state, last)
        answered = p_at.gather(1, stands[:, :, None].expand(-1, 1, length)).squeeze(1) >= 0  # (B, L)
        state = copies.pick(wide, stands.squeeze(1))
        filled = next_one | (answered & (rank.squeeze(1) < must))
        state = state.fix(filled, torch.where(next_one, token, rest.token))
        return replace(state, last=last if len(last.row) else None)  # none, if every row begins a block

    def _guess(self, predict: Predict, state: DraftedState) -> tuple[Tensor, Prediction]:
        """(B, L) int64, the entries of the last answer that the positions have, or -1; and what was drawn of them."""
        none = torch.full_like(state.x, -1)
        if state.last is None:
            return none, Prediction(
                none, entropy=torch.full(none.shape, torch.inf, dtype=torch.float32, device=none.device)
            )
        entry = torch.arange(len(state.last.row), device=none.device)
        want = "entropy" if self.order == "entropy" else ()
        return state.last.on_canvas(entry, none), predict.read(state, state.last, want=want, draw=DRAW_GUESS)

    def _key(self, state: DraftedState, guess: Prediction) -> Tensor:
        """(B, L) floats below 2, or entropies: positions of lower numbers go first, the leftmost of equals."""
        if self.order == "entropy":
            return guess.entropy
        if self.order == "random":
            return state.rng.positions(state.x.shape[1], torch.zeros_like(state.step), DRAW_POSITION)
        position = torch.arange(state.x.shape[1], device=state.x.device)
        return sum((position >> i & 1).double() * 2.0**-i for i in range(31)).expand(state.x.shape)  # type: ignore[union-attr]


def _probabilities(predict: Predict | Copies, logits: Logits, at: Tensor) -> Tensor:
    """(B, K, V) float32: what tokens are drawn from at the entries `at`, (B, K) int64; anything if that is -1."""
    entry = at.clamp_min(0).flatten()
    return predict.probabilities(logits.at(entry), check=False).view(*at.shape, -1)
