"""First-hitting sampling: jump from one appearance to the next, with no grid of times."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..prediction import Logits, Predict
from ..sampler import Facts, Sampler, option
from ..schedule import mask_schedule
from .plans import even_count
from .times import TimedDraft, TimedState, draw_from_mixture


@dataclass(frozen=True, eq=False)
class HittingState(TimedDraft):
    """The last prediction, None before the first; `hit` (B,) float64, when it was made; `drafts` (B, L) bool, its tokens."""

    last: Logits | None
    hit: Tensor
    drafts: Tensor


@dataclass(frozen=True)
class FirstHitting(Sampler[TimedState]):
    """Zheng et al. 2024, arXiv 2409.02908, algorithm 1: the continuous-time reverse process, simulated exactly.

    The paper draws the next time recursively, tau_{n-1} = a^{-1}(1 - u^{1/n} (1 - a_{tau_n})), and then a masked position
    at random. Those times are the order statistics of one uniform time a position, so here each position has its own
    time and the earliest goes next: the same law. The model sees the time of the hit (where it is time-conditioned).
    NFE is the number of positions. With fewer `steps` than positions a step takes the next n // steps or so positions
    from one forward, and `method` says how:

    parallel             all from the prediction p at the group's first hit. First order in 1 / steps.
    extrapolation        each from p + c (p - p'), p' the prediction before: the line through both, at the position's own
                         time; the first group has none. Less error on exact problems at the same NFE (docs/solvers.md).
    predictor_corrector  as parallel; then the tokens of the group before are drawn once more with the same uniforms,
                         from the same line at their own times, by what the model now says of them. It is not asked
                         again with the corrected tokens in place. A model that repeats visible tokens changes nothing.

    With one position a step all are the same. The paper has the last two as one sentence each (its boxes could not be
    read): times are visible fractions here, the line is in probabilities, cut off at 0, and the corrector's use of the
    line and of the old uniforms is ours (drawn afresh, it breaks what joins the old tokens to the new ones: on exact
    laws more error than parallel). Both keep the logits of one or two groups.
    """

    name = "first_hitting"
    family = "masked"
    cite = "Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic Masked Models, arXiv 2409.02908"
    summary = "exact continuous-time reverse process: one forward a token, in random order"
    facts = Facts(bias="exact", static_plan=True)

    schedule: str = option("linear", "mask schedule, which sets the times a model sees", check=mask_schedule)
    method: str = option(
        "parallel", "several positions a step", choices=("parallel", "extrapolation", "predictor_corrector")
    )

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(
            self.facts, revises=self.method == "predictor_corrector", stores_logits=self.method != "parallel"
        )

    def init(self, canvas: Layout) -> TimedState:
        if self.method == "parallel":
            return TimedState.begin(canvas, schedule=self.schedule)
        none, zero = torch.zeros_like(canvas.fill), torch.zeros(len(canvas.x), dtype=torch.float64)
        return HittingState.begin(canvas, schedule=self.schedule, last=None, hit=zero.to(none.device), drafts=none)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        count = even_count(state)  # (B,)
        masked = state.masked & state.open
        chosen = ops.select(state.time, masked, k=count, lowest=True).chosen  # (B, L) the earliest
        # `time` is a visible fraction: at the hit, 1 - time of the block's positions are expected masked.
        hit = torch.where(chosen, state.time, 1.0).amin(1)  # (B,)
        if not isinstance(state, HittingState):
            return state.commit(chosen, predict(state, chosen, t=state.level(hit)).token)

        if extrapolates := self.method == "extrapolation":
            # The next group is asked as well: its line goes through this prediction and its own.
            after = even_count(state, 1)
            more = ops.select(state.time, masked, k=count + torch.where(after > 1, after, 0), lowest=True).chosen
        else:
            more = state.drafts & state.open
        more = more & ~chosen & chosen.any(1, keepdim=True)
        now = predict.logits(state, chosen | more, t=state.level(hit))
        last = now if state.last is None or not len(state.last.row) else state.last
        known = last.on_canvas(torch.ones_like(last.row), torch.zeros_like(state.x)).bool()  # (B, L)
        place = (state.time - state.hit[:, None]) / (hit - state.hit).clamp_min(1e-300)[:, None]  # 0 at last, 1 now
        place = torch.where(known, place, 1.0)[now.row, now.position]  # (N,)
        asked = chosen.any(1)
        kept = {
            "last": now if len(now.row) else state.last,
            "hit": torch.where(asked, hit, state.hit),
            "drafts": torch.where(asked[:, None], chosen, state.drafts),
        }
        if extrapolates:
            return state.commit(chosen, draw_from_mixture(predict, state, now, last, place), **kept)
        token = draw_from_mixture(predict, state, now, now, 1.0)
        before = dataclasses.replace(state, step=state.step - 1)  # whose uniforms the drafts were drawn with
        x = torch.where(more & known, draw_from_mixture(predict, before, now, last, place), state.x)
        filled = ~(masked & ~chosen).any(1, keepdim=True)
        return state.revise(torch.where(chosen, token, x), more | filled, **kept)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)
