"""A sampler whose model is asked by somebody else: steps that stop at a question, and go on when there is an answer.

A step of a sampler is a pure function of an immutable state, so it is run again with all the answers that have come in since
it began, until it asks for one that is missing. That question, x and its time, goes to whoever has the model, such as a
pipeline of diffusers. So every sampler works whatever the number of evaluations in its steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..canvas import NoiseCanvas
from ..errors import OptionError, SamplersError
from ..gaussian.denoiser import GaussianDenoiser
from ..gaussian.grid import GaussianSampler, GridState
from ..gaussian.moments import Moments
from ..noise_schedules import NoiseSchedule, Point
from ..random import Rng

__all__ = ["Plan", "Query", "Question", "Replay", "not_here", "until_asked"]


class Question(Exception):
    """A step asks the model for what is not answered yet: the denoised x_0 of x at a point."""

    def __init__(self, x: Tensor, at: Point):
        super().__init__("this exception is caught by until_asked")
        self.x, self.at = x, at


class Replay:
    """The `predict` of a step: it gives the answers that there are, in order, and then raises Question."""

    def __init__(self, answers: tuple[Tensor, ...], schedule: NoiseSchedule, who: str):
        self.answers, self.schedule, self.who = iter(answers), schedule, who

    def __call__(self, x: Tensor, at: Point | float | Tensor) -> Tensor:
        if isinstance(at, Tensor):
            raise OptionError(
                f"sampler {self.who!r} asks for a time of its own for each row, and a pipeline has one for all"
            )
        for answer in self.answers:
            return answer
        raise Question(x, at if isinstance(at, Point) else Point.at(self.schedule, t=at))

    def pair(self, x: Tensor, at: Point | float | Tensor) -> tuple[Tensor, Tensor]:
        raise OptionError(
            f"sampler {self.who!r} needs the prediction without the condition beside the guided one, and a pipeline hands "
            "over the guided one alone: use samplers.sample(samplers.models.diffusers.from_diffusers(...), cfg_scale=...)"
        )

    def moments(self, x: Tensor, at: Point | float | Tensor, order: int = 3) -> Moments:
        raise OptionError(
            f"sampler {self.who!r} needs moments of x_0 beside its mean, and a pipeline hands over the mean alone: use "
            "samplers.sample(samplers.models.diffusers.from_diffusers(...).with_moments(probes=...))"
        )


def until_asked(
    sampler: GaussianSampler[Any], state: Any, answers: tuple[Tensor, ...]
) -> tuple[Any, tuple[Tensor, ...], Question | None]:
    """The state of the step that asks next, the answers that it has, and the question; None if the run is finished."""
    while not state.finished:
        try:
            out = sampler.step(Replay(answers, state.canvas.denoiser.schedule, sampler.name), state)
        except Question as asked:
            return state, answers, asked
        state, answers = out[0] if isinstance(out, tuple) else out, ()
    return state, (), None


@dataclass(frozen=True)
class Query:
    """An evaluation of a run: where, in which step of the solver, and whether it is that step's first."""

    at: Point
    step: int
    opens: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """A run whose questions are known before it begins.

    Attributes:
        times: the times at which steps begin, if somebody gave them.
        queries: all evaluations, in order; `planned` finds them.
        last: where a run that does not close with x_0 ends.
    """

    sampler: GaussianSampler[Any]
    schedule: NoiseSchedule
    steps: int
    times: tuple[float, ...] | None
    queries: tuple[Query, ...] = ()
    last: Point | None = None

    def canvas(self, x: Tensor, seed: Any = 0, first_row: int = 0) -> NoiseCanvas:
        denoiser = GaussianDenoiser.wrap(
            not_here,
            shape=x.shape[1:],
            schedule=self.schedule,
            dtype=x.dtype,
            device=x.device,
            name="a pipeline's model",
        )
        rng = Rng.of(seed, len(x), first_row, x.device)
        return NoiseCanvas(denoiser, self.steps, rng, first_noise=x, times=self.times)

    def planned(self) -> Plan:
        """With the queries of a dry run, in which the model always answers 0."""
        state: GridState = self.sampler.init(self.canvas(torch.zeros(1, 1, dtype=torch.float64, device="cpu")))
        last, queries = state.points[-1], []
        answers: tuple[Tensor, ...] = ()
        while True:
            state, answers, asked = until_asked(self.sampler, state, answers)
            if asked is None:
                break
            queries.append(Query(asked.at, state.i, not answers))
            answers = (*answers, torch.zeros_like(asked.x))
        return dataclasses.replace(self, queries=tuple(queries), last=last)


def not_here(x: Tensor, t: Tensor) -> Tensor:
    raise SamplersError("the model of a pipeline is asked by the pipeline")
