"""First-hitting sampling: jump from one appearance to the next, without a grid of times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..canvas import Layout
from ..prediction import Predict
from ..sampler import Facts, Sampler, option
from ..schedule import mask_schedule
from .first_hitting_line import LineState, extrapolation, next_group, predictor_corrector
from .times import TimedState


@dataclass(frozen=True)
class FirstHitting(Sampler[TimedState]):
    """Zheng et al. 2024, arXiv 2409.02908, algorithm 1: the continuous-time reverse process, simulated exactly.

    The paper draws the next time recursively, tau_{n-1} = a^{-1}(1 - u^{1/n} (1 - a_{tau_n})), and then a masked position
    at random. Those times are the order statistics of one uniform time per position. So here each position has a time of its
    own and the earliest goes next, which is the same distribution. A time-conditioned model is given the time of the hit.

    NFE is the number of positions. With fewer `steps` than positions, a step takes the next group of n // steps or so
    positions from one forward pass, and `method` says how their tokens are drawn:

    parallel             All from the prediction p at the group's first hit, as in the paper. First order in 1 / steps.
    extrapolation        Each from p + c (p - p'), where p' is the prediction before and c grows with the position's place in
                         its group. The first group has no p'. Second order in 1 / steps while tokens depend mildly on each
                         other.
    predictor_corrector  As parallel. Then the tokens of the group before are drawn once more, with the same uniform numbers,
                         between p' and p. A model that repeats visible tokens changes nothing. Costs no forward pass.

    If each step takes one position, all three are the same. The last two are ours, after the paper's idea of reusing an
    earlier prediction. The paper extrapolates in the hitting time, these in the number of visible positions; and the
    corrector's line and its reuse of the uniform numbers are ours. docs/solvers.md has the derivation and measured errors.
    Both keep the logits of one or two groups.
    """

    name = "first_hitting"
    family = "masked"
    cite = "Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic Masked Models, arXiv 2409.02908"
    summary = "exact continuous-time reverse process: one forward pass per token, in random order"
    facts = Facts(bias="exact", static_plan=True, whole_blocks=True)

    schedule: str = option(
        "linear",
        "mask schedule, which sets the times that the model is given",
        check=mask_schedule,
        kind="mask_schedules",
    )
    method: str = option(
        "parallel",
        "how a step draws several positions",
        choices=("parallel", "extrapolation", "predictor_corrector"),
    )

    @property
    def effective_facts(self) -> Facts:
        return dataclasses.replace(
            self.facts, revises=self.method == "predictor_corrector", stores_logits=self.method != "parallel"
        )

    def init(self, canvas: Layout) -> TimedState:
        state = TimedState if self.method == "parallel" else LineState
        return state.begin(canvas, schedule=self.schedule)

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        return METHODS[self.method](predict, state)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)


def parallel(predict: Predict, state: TimedState) -> TimedState:
    """A step that draws its whole group from one prediction."""
    group, level = next_group(state)
    return state.commit(group, predict(state, group, t=level).token)


METHODS: dict[str, Callable[[Predict, Any], TimedState]] = {
    "parallel": parallel,
    "extrapolation": extrapolation,
    "predictor_corrector": predictor_corrector,
}
