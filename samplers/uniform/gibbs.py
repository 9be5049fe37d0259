"""A Gibbs corrector for uniform noise: draw some positions anew, given all the others, at a constant noise level."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..prediction import Logits, Predict
from ..random import DRAW_PICK, gumbel
from .levels import NoisyState

__all__ = ["SELECTIONS", "leave_own_token_out", "redraw", "selection_score"]


def leave_own_token_out(state: NoisyState, logits: Logits, alpha: Tensor, where: Tensor) -> Logits:
    """The predictions that leave out the token that stands at the position itself, for Gibbs sampling.

    Gourevitch et al. 2026, arXiv 2605.22765: p(x_0,i | x_t) is proportional to p(x_0,i | x_t,-i) q(x_t,i | x_0,i), and q is
    1 + V alpha / (1 - alpha) times larger if the token was kept. That much is taken from the logit of x_t,i.

    Args:
        alpha: (B, 1) float64, the share of clean tokens.
        where: (B, 1) bool, the rows in which it is done; the others keep the whole prediction.
    """
    less = torch.where(where, torch.log1p(state.canvas.vocab_size * alpha / (1 - alpha)), 0.0)  # (B, 1)
    own = state.x[logits.row, logits.position][:, None]  # (N, 1)
    return dataclasses.replace(logits, value=logits.value.scatter_add(1, own, -less[logits.row].float()))


def redraw(state: NoisyState, picked: Tensor, x0: Tensor, noise: Tensor, uniform: Tensor, alpha: Tensor) -> Tensor:
    """(B, L) int64: the tokens, those at `picked` drawn from alpha p(x_0,i | x_t,-i) + (1 - alpha) / V.

    Args:
        picked: (B, L) bool.
        x0, noise: (B, L) int64, tokens drawn from the prediction that leaves the own token out, and from the noise.
        uniform: (B, L) float64, which of the two it is.
        alpha: (B, 1) float64.
    """
    return torch.where(picked, torch.where(uniform < alpha, x0, noise), state.x)


def selection_score(predict: Predict, state: NoisyState, logits: Logits, alpha: Tensor, selection: str) -> Tensor:
    """(B, L) float64: the positions with the highest scores are drawn anew. Gumbel noise is added, as in the reference.

    Args:
        logits: the predictions that leave the own token out.
        alpha: (B, 1) float64.
        selection: one of SELECTIONS.
    """
    noise = gumbel(state, DRAW_PICK)
    if selection == "random":
        return noise
    best = predict.read(state, logits, want=("confidence", "margin", "given"), temperature=0.0)
    other = torch.where(best.token == state.x, best.confidence - best.margin, best.confidence)  # the best but x_t

    def surprise(p: Tensor) -> Tensor:
        p = alpha * torch.where(state.open, p, 1.0) + (1 - alpha) / state.canvas.vocab_size
        return -torch.log(p)

    if selection == "lowest_maxprob":
        return surprise(best.confidence) + noise
    if selection == "lowest_current_prob":
        return surprise(best.given) + noise
    return surprise(best.given) - surprise(other) + noise


SELECTIONS = ("random", "lowest_log_margin", "lowest_maxprob", "lowest_current_prob")
