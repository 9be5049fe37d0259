"""FreeDave: several positions per forward pass, and the tokens of a base rule that commits them step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops
from ..prediction import Predict, Prediction
from ..sampler import Facts, Sampler, option
from ..state import TokenState
from .candidates import goes_on
from .plans import even_count, fill_up_to, min_count


@dataclass(frozen=True)
class FreeDave(Sampler[TokenState]):
    """Wu and Zhang 2025 (FreeDave), arXiv 2510.00294: draft what the next steps would commit, and verify all drafts at once.

    The base rule is `low_confidence` with its even plan: a step commits the best-scored open positions. Draft j fills in what
    the next j steps would commit if the model did not change its mind, all from the present prediction. One forward pass
    answers for all drafts. The target of a draft is one base step taken from it. From draft 1, which is the base rule's next
    state, the row goes on to the largest draft whose new tokens are all in the target, and again from there, until it cannot.
    The answer for the draft that is left serves the next step.

    So the tokens, and the positions of every base step, are those of the base rule, and a row never takes more forward passes
    (if drafts of a row share one: with window="block", a pipeline or a cfg_interval those on two sides of an end may not).
    This holds for any number of `steps`, and at any temperature, since `state.step` counts base steps and a token is drawn with
    the random number of the base step that commits it; above temperature 0 fewer drafts are right, since each step draws anew.
    It holds with cache="prefix" and "dual" as well, against the base rule with that cache: a block is given whole in every
    forward pass, and what is kept of others was kept when the block began. With "delayed" it does not, since what is kept
    depends on the number of forward passes; nor with a cache that is not exact under a window that slides, for the same reason.
    The answer for a row must not depend on the rows beside it; if a model rounds otherwise in a larger batch, tokens whose
    scores are equal but for the last bits may differ. With stop_rule="llada2" what several base steps have written counts as
    written in one. With a constrain hook, each step needs a second forward pass.

    With a `threshold` this is FreeDave++: the base rule is `threshold`, draft 1 is its next state, and each further draft has one
    more position. Under match="subset", as published, the row may go on to a part of a target: every token was above the
    threshold (or the best) in the model's answer for tokens that were committed before it, but the row may leave the path of
    `threshold`. Under match="exact" it goes on to whole targets only: at temperature 0 and without a cap on `steps` the tokens
    are those of `threshold`, in no more forward passes.

    Differs from the reference code: rows of a batch have drafts of their own; drafts end with the row's block.
    """

    name = "freedave"
    family = "masked"
    cite = "Wu and Zhang 2025, Free Draft-and-Verification, arXiv 2510.00294"
    summary = "drafts of the next steps, verified in one forward pass: the tokens of low_confidence"
    default_temperature = 0.0
    facts = Facts(bias="biased", copies=True, sweep=("drafts", (1, 2, 4, 8)))

    drafts: int = option(4, "drafts per row; each forward pass answers for as many copies of the row", ge=1)
    order: str = option(
        "confidence",
        "which positions go first: the most confident or the leftmost",
        choices=("confidence", "left_to_right"),
    )
    threshold: float | None = option(
        None,
        "FreeDave++: a base step commits all tokens of at least this probability; none: the even plan's count",
        gt=0,
    )
    match: str = option(
        "subset",
        "FreeDave++: how much of a target a draft must have: a part, or all of it",
        choices=("subset", "exact"),
    )

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        number = min(self.drafts, state.x.shape[1])  # more would repeat others
        copies = predict.copies(number)
        now = predict(state, want="confidence") if state.ready is None else state.ready
        score = self.score(now)
        ahead = torch.arange(number, device=score.device)  # (K,) steps before the one that makes the draft
        first = self.base_step(state, now)  # (B, L)
        if self.threshold is None:
            most = even_count(state, ahead[:, None]).cumsum(0).T  # (B, K) positions in each draft
        else:
            most = first.sum(1, keepdim=True) + ahead
        size = torch.minimum(most, state.count[:, None])  # (B, K)
        new = torch.cat([torch.ones_like(size[:, :1], dtype=torch.bool), size[:, 1:] > size[:, :-1]], 1)  # (B, K)

        before = copies.spread(state)
        ranked = torch.where(first, torch.inf, score)
        token, wide_score = (x.repeat_interleave(number, 0) for x in (now.token, ranked))  # (B K, L)
        drafted = ops.select(wide_score, before.open, k=size.flatten()).chosen  # (B K, L)
        wide = before.commit(drafted, token)
        if self.threshold is None:  # a draft is as many base steps on as it stands for
            more = torch.where(before.done, 0, ahead.repeat(len(size)))
            block_step = torch.where(goes_on(before, wide), wide.block_step + more, 0)
            wide = replace(wide, step=wide.step + more, block_step=block_step)
        answer = copies(wide, wide.open & new.flatten()[:, None], want="confidence")

        whole = self.base_step(wide, answer)  # (B K, L)
        target = whole & (answer.token == token)
        target = target.view(-1, number, target.shape[1])  # (B, K, L) what a target has of what was drafted
        first = (
            (~drafted).view_as(target).sum(1)[:, None]
        )  # (B, 1, L) the first draft with this position; K: none has it
        wrong = (first > ahead[:, None]) & ~target  # (B, K, L)
        end = torch.where(wrong, first, number).amin(2, keepdim=True)  # (B, K, 1) the first draft with a wrong token
        reach = (ahead > ahead[:, None]) & (ahead < end) & new[:, None]  # (B, K, K): from draft b to draft j
        if self.match == "exact" or (self.threshold is None and state.canvas.window is not None):
            # A window that moves may hold too little for a draft, but not for the base rule, whose window has moved on.
            reach &= size[:, None] - size[:, :, None] == whole.sum(1).view(-1, number, 1)
        onward = torch.where(reach, ahead, ahead[:, None]).amax(2)  # (B, K)
        which = onward[:, :1]  # from draft 1
        for _ in range(number - 2):
            which = onward.gather(1, which)
        return copies.pick(wide, which.squeeze(1), answer)

    def score(self, prediction: Prediction) -> Tensor:
        """(B, L) float32: open positions of higher scores go first."""
        if self.order == "confidence":
            return prediction.confidence
        position = torch.arange(prediction.token.shape[1], device=prediction.token.device)
        return -position.to(torch.float32).expand_as(prediction.confidence)

    def base_step(self, state: TokenState, prediction: Prediction) -> Tensor:
        """(B, L) bool: the positions that a step of the base rule commits."""
        score = self.score(prediction)
        if self.threshold is None:
            return ops.select(score, state.open, k=even_count(state)).chosen
        sure = state.open & (prediction.confidence >= self.threshold)  # (B, L)
        if self.order == "left_to_right":
            sure &= (state.open & ~sure).cumsum(1) == 0  # a leading run of sure tokens
        return fill_up_to(state, sure, score, min_count(state))
