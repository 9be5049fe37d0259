"""ReMDM: ancestral sampling that masks some of its tokens again and keeps the same marginals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Layout
from ..errors import OptionError
from ..prediction import Predict
from ..random import DRAW_REMASK
from ..sampler import Conformance, Facts, Sampler, option
from ..schedule import mask_schedule
from .times import TimedDraft, even_grid

# The authors' eta belong to 1,024 steps. A run of S steps that masks each token as often has eta x 1024 / S.
ETA = {"cap": 0.008 * 1024, "rescale": 0.015 * 1024, "loop": 0.02 * 1024}


@dataclass(frozen=True, eq=False)
class RemaskState(TimedDraft):
    """A state that remembers how sure the model was.

    Attributes:
        psi: (B, L) float32, the probability that each visible token had when it was drawn.
    """

    psi: Tensor


@dataclass(frozen=True)
class ReMDM(Sampler[RemaskState]):
    """Wang et al. 2025, arXiv 2503.00307: a visible token is masked again with probability sigma, a masked one appears with
    probability (b - (1 - sigma) a) / (1 - a), in a step that takes the visible fraction from a to b.

    Any sigma <= sigma_max = min(1, (1 - b) / a) keeps the schedule's marginals; 0 is `ancestral`. `strategy` chooses sigma:

    cap      min(eta, sigma_max).
    rescale  eta sigma_max.
    conf     sigma_max softmax(-psi) over the visible tokens, where psi is the probability that each had when it was drawn:
             about one token per step. Masked tokens appear as in `ancestral`. eta scales it (the reference has no such factor).
    loop     The schedule runs to alpha_on by time t_on, rests there until t_off with sigma = eta, and then ends.

    In the last step sigma_max is 0 and everything that is masked appears, without a clean-up forward pass. Whether a token
    appears or is masked again is decided before the model is asked, so a step in which nothing appears costs no forward pass.

    Differs from the reference code: any schedule (there: linear); the process runs in each block separately; each row saves
    its own steps (there: the whole batch's); the last step draws in place of argmax; psi is that of softmax at temperature 1
    in float32 (there: bfloat16). The script's eta, for 1,024 steps, are cap 0.008, rescale 0.015 and loop 0.02; if eta is left
    out, it is that times 1024 / steps, at most 1. docs/remasking.md says when remasking pays.
    """

    name = "remdm"
    family = "masked"
    cite = "Wang et al. 2025, Remasking Discrete Diffusion Models with Inference-Time Scaling, arXiv 2503.00307"
    summary = "ancestral with tokens masked again: cap, rescale, conf or loop"
    facts = Facts(bias="exact", static_plan=True, revises=True)
    conformance = Conformance(one_at_a_time={"block_length": 1})

    strategy: str = option("cap", "the rule for how much is masked again", choices=("cap", "rescale", "conf", "loop"))
    eta: float | None = option(
        None, "size of the rule; none: the authors' value for 1,024 steps, times 1024 / steps; for conf 1", ge=0, le=1
    )
    t_on: float = option(0.55, "loop: the time, from 1 to 0, at which it begins", gt=0, lt=1)
    t_off: float = option(0.05, "loop: the time at which it ends; below t_on", gt=0, lt=1)
    alpha_on: float = option(0.9, "loop: the visible fraction during the loop", gt=0, lt=1)
    schedule: str = option("linear", "mask schedule, as in ancestral", check=mask_schedule, kind="mask_schedules")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_off >= self.t_on:
            raise OptionError(f"option 't_off' of sampler 'remdm' is {self.t_off}; it must be below t_on = {self.t_on}")

    @property
    def effective_facts(self) -> Facts:
        # Which tokens conf masks again depends on the model's probabilities.
        return dataclasses.replace(self.facts, static_plan=self.strategy != "conf")

    def init(self, canvas: Layout) -> RemaskState:
        psi = torch.zeros_like(canvas.x, dtype=torch.float32)
        return RemaskState.begin(canvas, schedule=self.schedule, grid=self.grid, psi=psi)

    def grid(self, steps: int) -> Tensor:
        """(steps + 1,) float64, the schedule's progress at k / steps: k / steps itself, except for loop, which rests."""
        u = even_grid(steps)
        if self.strategy != "loop":
            return u
        rest = float(
            mask_schedule(self.schedule).progress(torch.tensor(self.alpha_on, dtype=torch.float64, device="cpu"))
        )
        before, after = rest * u / (1 - self.t_on), 1 - (1 - rest) * (1 - u) / self.t_off
        return torch.maximum(before.clamp(max=rest), after)

    def sigma(self, begin: Tensor, end: Tensor, k: Tensor, steps: Tensor) -> Tensor:
        """The share of visible tokens to mask again in step k of a block, which goes from `begin` to `end`."""
        most = ((1 - end) / begin.clamp_min(1e-300)).clamp(max=1.0)  # sigma_max
        k, steps = k.double(), steps.double()
        eta = ETA.get(self.strategy, torch.inf) / steps if self.eta is None else torch.full_like(most, self.eta)
        return SIGMA[self.strategy](self, most, eta.clamp(max=1.0), 1 - k / steps)

    def step(self, predict: Predict, state: RemaskState) -> RemaskState:
        begin, end = state.visible(), state.visible(1)  # (B,)
        sigma = self.sigma(begin, end, state.block_step, state.block_steps.clamp_min(1))[:, None]  # (B, 1)
        begin, end = begin[:, None], end[:, None]
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        masked, visible = state.masked & state.open, state.open & ~state.masked
        by_confidence = self.strategy == "conf"
        again = sigma
        if by_confidence:
            again, sigma = sigma * softmax_of_doubt(state.psi, visible), torch.zeros_like(sigma)
        uniform = state.rng.positions(state.x.shape[1], state.step, DRAW_REMASK)  # (B, L) float64
        appears = uniform < (end - (1 - sigma) * begin) / (1 - begin).clamp_min(1e-300)
        appears = masked & (appears | state.last_step[:, None])
        want = ("confidence",) if by_confidence else ()
        prediction = predict(state, appears, t=state.scheduled_level, want=want)
        x = torch.where(visible & (uniform < again), mask_id, state.x)
        psi = torch.where(appears, prediction.confidence, state.psi) if by_confidence else state.psi
        return state.revise(torch.where(appears, prediction.token, x), state.last_step, psi=psi)

    def expected_nfe(self, length: int, steps: int) -> float | None:
        """Sum_k [1 - (1 - r_k)^L], r_k = b - (1 - sigma) a: what appears in step k, again or for the first time."""
        if self.strategy == "conf":
            return None
        a = mask_schedule(self.schedule)(self.grid(steps))
        sigma = self.sigma(a[:-1], a[1:], torch.arange(steps, device="cpu"), torch.tensor(steps, device="cpu"))
        return float((1 - (1 - (a[1:] - (1 - sigma) * a[:-1])) ** length).sum())


# The rules: each gives sigma from sigma_max, eta and the time t, which runs from 1 to 0.


def cap(sampler: ReMDM, most: Tensor, eta: Tensor, t: Tensor) -> Tensor:
    return torch.minimum(most, eta)


def rescale(sampler: ReMDM, most: Tensor, eta: Tensor, t: Tensor) -> Tensor:
    return eta * most


def loop(sampler: ReMDM, most: Tensor, eta: Tensor, t: Tensor) -> Tensor:
    rests = (t <= sampler.t_on + 1e-9) & (t > sampler.t_off + 1e-9)
    return torch.minimum(torch.where(rests, most, 0.0), eta)


def softmax_of_doubt(psi: Tensor, visible: Tensor) -> Tensor:
    """The rule conf: how `rescale`'s sigma is shared out, softmax(-psi) over the visible tokens of a row, (B, L) float64."""
    # In whole units of 2^-40, whose sum does not depend on the width of the batch.
    weight = (torch.exp(-psi.double()) * visible * 2.0**40).to(torch.int64)  # (B, L)
    return weight / weight.sum(1, keepdim=True).clamp_min(1)


SIGMA = {"cap": cap, "rescale": rescale, "conf": rescale, "loop": loop}
