"""StarShape: in the middle of the run every step draws all that is masked, and masks as many positions afresh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..errors import OptionError
from ..prediction import Predict
from ..random import DRAW_REMASK
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .times import TimedDraft, even_grid


@dataclass(frozen=True)
class StarShape(Sampler[TimedDraft]):
    """UNI-D2's StarShape (its code, MIT): ancestral steps while t > t_on or t < t_off, and star steps between them.

    t = 1 - k / S runs from 1 to 0. A star step from t to s draws x_0, in which visible tokens stay, and masks
    floor(n (1 - alpha_s)) of the block's n positions, chosen uniformly, whether they were visible before or not. In an
    ancestral step a masked position appears with probability (alpha_s - alpha_t) / (1 - alpha_t). With `plateau` the
    visible fraction rests between t_on and t_off, and the other times are stretched over what is left of the schedule ("plato").

    What it keeps: the masked positions are a uniform set of exactly that size, independent of the tokens. So if the visible
    tokens are distributed as the data are there, and at most one position appears in a step, they still are after it. With one
    mask left a star step is therefore a Gibbs step, which repairs what was drawn together before: with many steps the samples
    are the model's if n t_off < 2, and in general not otherwise, since a star step with m masks reveals about m alpha of them
    together, however short it is. docs/remasking.md says when remasking pays.

    Differs from the reference: each block and each row has its own n and its own steps; a position that would be masked again
    is not drawn, so the model is asked about the others only, and a step in which nothing appears costs no forward pass; in the
    last step all that is masked appears.
    """

    name = "starshape"
    family = "masked"
    cite = "nkalyanv99/UNI-D2, StarShape sampler, github.com/nkalyanv99/UNI-D2"
    summary = "ancestral, with steps in the middle that draw everything and mask as many afresh"
    facts = Facts(bias="exact", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    t_on: float = option(0.55, "the time, from 1 to 0, at which star steps begin", gt=0, lt=1)
    t_off: float = option(0.05, "the last time of a star step; below t_on", gt=0, lt=1)
    plateau: bool = option(False, "hold the visible fraction from t_on to t_off, and stretch the rest of the schedule")
    schedule: str = option("linear", "mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_off >= self.t_on:
            raise OptionError(
                f"option 't_off' of sampler 'starshape' is {self.t_off}; it must be below t_on = {self.t_on}"
            )

    def init(self, canvas: Layout) -> TimedDraft:
        return TimedDraft.begin(canvas, schedule=self.schedule, grid=self.grid)

    def grid(self, steps: int) -> Tensor:
        """(steps + 1,) float64, the schedule's progress at k / steps: k / steps itself, or with a plateau."""
        u = even_grid(steps)
        if not self.plateau:
            return u
        before, after = u.clamp(max=1 - self.t_on), (u - (1 - self.t_off)).clamp_min(0.0)
        return ((before + after) / (1 - (self.t_on - self.t_off))).clamp(max=1.0)

    def step(self, predict: Predict, state: TimedDraft) -> TimedDraft:
        begin, end = state.visible()[:, None], state.visible(1)[:, None]  # (B, 1)
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        t = 1 - state.block_step.double() / state.block_steps.clamp_min(1)  # (B,)
        last = state.last_step[:, None]
        star = ((t <= self.t_on + 1e-9) & (t >= self.t_off - 1e-9))[:, None] & ~last  # (B, 1)
        masked = state.masked & state.open
        u = state.rng.positions(state.x.shape[1], state.step, DRAW_REMASK)  # (B, L) float64
        # 1e-9: a product that is a whole number except for its last bits is that number.
        count = torch.floor(state.count * (1 - end.squeeze(1)) + 1e-9).to(torch.int64)
        hidden = ops.select(u, state.open, k=count).chosen  # (B, L) what a star step masks
        chance = (end - begin) / (1 - begin).clamp_min(1e-300)
        appears = masked & torch.where(star, ~hidden, (u < chance) | last)
        token = predict(state, appears, t=state.scheduled_level).token
        x = torch.where(star & hidden, mask_id, state.x)
        return state.revise(torch.where(appears, token, x), state.last_step)
