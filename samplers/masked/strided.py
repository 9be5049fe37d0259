"""Introspective strided decoding: one causal forward pass checks the last guesses and makes the next ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..feeds.sequence import SequenceState
from ..predictor import SequencePredictor
from ..random import DRAW_ACCEPT, DRAW_GUESS, DRAW_RESIDUAL
from ..sampler import Conformance, Facts, Sampler, option
from .speculation import draw_from, first_run, residual


@dataclass(frozen=True, eq=False)
class StridedState(SequenceState):
    """A state that remembers what it guesses of its next positions.

    Attributes:
        guess: (B, N - 1) int64, of the first positions of the row's run of masks.
        weight: (B, N - 1, V) float32, the distribution that each was drawn from.
        guessed: (B,) int64, how many there are.
    """

    guess: Tensor
    weight: Tensor
    guessed: Tensor


@dataclass(frozen=True)
class Strided(Sampler[StridedState]):
    """Introspective strided decoding of I-DLM, arXiv 2604.11035: verification and the next draft share a causal forward pass.

    A pass is given the row's last token, its N - 1 guesses, and N - 1 masks: 2N - 1 tokens, after a KV cache. The line before a
    guess says p, the distribution of the token after it; the last guess's line says that of the position after all guesses, the
    anchor; the masks answer for the N - 1 positions after the anchor. From left to right a guess, drawn from q, is accepted
    with probability min(1, p / q); the first refused one is drawn anew from max(p - q, 0), normalised; if none is, the
    anchor is drawn from p. So a pass commits 1 to N tokens, and they have the distribution of `autoregressive`: this is
    speculative sampling (Leviathan et al. 2023, arXiv 2211.17192). At temperature 0 they are its tokens.

    Guesses of the next pass are the N - 1 positions after the last committed one. Derived: after a refusal the guesses to the
    right of it stay guesses, and the anchor and the masks give the rest. Each was drawn from a known q, and nothing that has
    been committed depends on which token it is, so that the acceptance stays exact; only q is a worse guess then.

    For causal models that predict the next token, through a KV cache, as `autoregressive`. A position that has no token just
    before it in the sequence (the first of a row without a prompt, or the first after tokens that were given in the middle) is
    answered by a mask in its place. Guesses end with the block and before given tokens.

    Differs from the reference code: what becomes of guesses after a refusal is derived here. There each mask stands at the
    position before the one that it answers for (logits shifted by one); here it stands in its place, as `predicts_next` says.
    """

    name = "strided"
    family = "masked"
    cite = "I-DLM 2026, introspective strided decoding, arXiv 2604.11035"
    summary = (
        "guesses checked and made in one causal pass, through a KV cache; the tokens of autoregressive in fewer passes"
    )
    facts = Facts(bias="exact", sequential=True, stores_logits=True, sweep=("stride", (1, 2, 3, 4, 6, 8)))
    conformance = Conformance(one_at_a_time={"stride": 1})

    stride: int = option(4, "N: the most tokens that a pass commits; 1: autoregressive", ge=1)

    def init(self, canvas: Layout) -> StridedState:
        none = torch.zeros_like(canvas.x[:, :1]).expand(-1, self.stride - 1)
        weight = torch.zeros(*none.shape, canvas.vocab_size, dtype=torch.float32, device=none.device)
        return StridedState.begin(canvas, guess=none, weight=weight, guessed=torch.zeros_like(canvas.x[:, 0]))

    def step(self, predict: SequencePredictor, state: StridedState) -> StridedState:
        (batch, width), n, device = state.x.shape, self.stride, state.x.device
        run = first_run(state.open)
        number = run.cumsum(1) - 1  # (B, L), 0 at the first position of the run
        size, begin = run.sum(1), run.to(torch.uint8).argmax(1)
        m = state.guessed[:, None]  # (B, 1)
        place = torch.arange(2 * n - 1, device=device)  # positions of the run that a pass can reach
        at = (begin[:, None] + place).clamp(max=width - 1)  # (B, 2N - 1)

        # The pass.
        last = state.order.gather(1, (state.length - 1).clamp(min=0)[:, None])  # (B, 1)
        follows = (begin[:, None] == last + 1) & (state.length > 0)[:, None]
        tried, asked = run & (number < m), run & (number < m + n)
        masks = asked & ((number > m) | ((number == 0) & ~follows))
        inside = number.clamp(0, 2 * n - 2)  # where a position of the run is in a table
        guess = torch.nn.functional.pad(state.guess, (0, n), value=0)  # (B, 2N - 1)
        logits = predict.guess(state, guess.gather(1, inside), tried, masks, asked)
        p = torch.zeros(batch, 2 * n - 1, state.weight.shape[2], dtype=torch.float32, device=device)
        p = p.index_put((logits.row, number[logits.row, logits.position]), predict.probabilities(logits))

        # How many of the guesses stand, k; and the token after them.
        of_p, of_q = (w[:, : n - 1].gather(2, state.guess[..., None]).squeeze(2).double() for w in (p, state.weight))
        uniform = [
            state.rng.positions(width, state.step, d).gather(1, at) for d in (DRAW_ACCEPT, DRAW_RESIDUAL, DRAW_GUESS)
        ]
        accepted = (place[: n - 1] < m) & (uniform[0][:, : n - 1] * of_q < of_p)
        k = accepted.to(torch.int64).cumprod(1).sum(1, keepdim=True)  # (B, 1)
        row = torch.arange(batch, device=device)
        q = torch.nn.functional.pad(state.weight, (0, 0, 0, n)) * (place < m)[..., None]  # (B, 2N - 1, V)
        rest = residual(p[row, k[:, 0]], q[row, k[:, 0]])
        rest = torch.where(k < size[:, None], rest, 1.0)  # if all of the run stands, no token comes after it
        token = draw_from(rest, uniform[1].gather(1, k).squeeze(1))[:, None]

        # The next guesses: those that are left, then new ones.
        there = place < torch.minimum(size[:, None], m + n)
        fresh = draw_from(torch.where(there[..., None], p, 1.0).flatten(0, 1), uniform[2].flatten()).view(batch, -1)
        kept = place < m
        next_at = k + 1 + place[: n - 1]  # (B, N - 1)
        new = torch.where(kept, guess, fresh).gather(1, next_at)
        weight = torch.where(kept[..., None], q, p)[row[:, None], next_at]
        guessed = (size - 1 - k[:, 0]).clamp(0, n - 1)
        out = torch.where(number < k, guess.gather(1, inside), token)
        return state.commit(run & (number <= k), out, guess=new, weight=weight, guessed=guessed)
