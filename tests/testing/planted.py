"""Planted mistakes: samplers with one mistake each, the check of the kit that must find it, and what it must say.

    python tests/testing/planted.py            # runs the kit on all of them: a table, with the kit's messages
    python tests/testing/planted.py peeks      # only these

The three samplers without a mistake, which the others are made of, must pass the whole kit (tests/testing/test_kit.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from samplers.authoring import (
    DRAW_FIRST_FREE,
    Conformance,
    DraftState,
    Facts,
    GaussianPredict,
    GaussianSampler,
    GridState,
    Layout,
    NoiseCanvas,
    NoisyState,
    Point,
    Predict,
    Prediction,
    Sampler,
    TimedState,
    TokenState,
    even_count,
    gumbel,
    min_count,
    ops,
    option,
    quota,
)


@dataclass(frozen=True)
class Mistake:
    """A planted mistake.

    Attributes:
        name, family: of the sampler.
        what: its docstring.
        check: the check of the kit that must find it.
        phrase: words that the message must have.
        cure: words that say what to change; its line "usual causes" must have them.
    """

    name: str
    family: str
    what: str
    check: str
    phrase: str
    cure: str


MISTAKES: list[Mistake] = []
RIGHT: list[str] = []
CLASSES: dict[str, type[Any]] = {}


# What a message says of the cure, by the check; a mistake of another cure says so.
CURES = {
    "a_step_makes_no_device_sync": "Decide with torch.where",
    "a_sure_model_is_followed": "a wrong factor alpha or sigma",
    "committed_tokens_stay": "must declare Facts(revises=True)",
    "counted_nfe_is_the_declared": "Return None if it depends on the model",
    "declared_order": "Compare the formula with the paper's",
    "distribution_on_a_tiny_problem": "Commit prediction.token",
    "draw_numbers": "Give each purpose a number of its own",
    "a_run_of_a_pool_is_the_run_alone": "name the errors that are meant",
    "declared_order_on_uneven_steps": "take both from the points",
    "prints_nothing": "Take it out",
    "samples_follow_the_model": "noise whose variance is not what the step took away",
    "tokens_of_one_step_are_independent": "must not be cut to u[:, :1]",
    "greedy_takes_the_best": "use prediction.token or predict.read",
    "infill_keeps_what_is_given": "use state.open",
    "interleaved_runs_agree": "It belongs in a state of your own",
    "limits_are_finite": "make that step of order 1",
    "levels_reach_a_model_that_takes_them": "use state.renoised(x, level, decide)",
    "logits_are_asked_for_only_if_declared": "Declare Facts(stores_logits=True) if",
    "noise_is_declared": "declare Facts(stochastic=True)",
    "row_of_64_is_the_row_alone": "Reduce over dim 1 only",
    "row_of_a_batch_is_the_row_alone": "Reduce over dim 1 only",
    "row_of_a_mixed_batch_is_the_row_alone": "Reduce over dim 1 only",
    "seed_decides": "Take random numbers from state.rng.positions",
    "signature": "give it the names above",
    "states_are_immutable": "It belongs in a state of your own",
    "static_plan_is_kept": "leave out static_plan=True",
    "time_of_a_row_is_its_own": "(B,) values, one for each row",
    "time_reaches_a_time_conditioned_model": "Leave t out",
}


def plant(
    check: str, phrase: str, name: str = "", cure: str = "", registered: str = ""
) -> Callable[[type[Any]], type[Any]]:
    """Name the class after itself and add it to the table."""

    def add(cls: type[Any]) -> type[Any]:
        cls.name = name or _snake(cls.__name__)
        known = registered or cls.name
        CLASSES[known] = cls
        what = (WHAT.get(cls.name) or cls.__doc__ or "").splitlines()[0]
        MISTAKES.append(Mistake(known, cls.family, what, check, phrase, cure or CURES[check]))
        return cls

    return add


def right(cls: type[Any]) -> type[Any]:
    cls.name = _snake(cls.__name__)
    CLASSES[cls.name] = cls
    RIGHT.append(cls.name)
    return cls


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# Of the classes whose docstring or summary is the mistake.
WHAT = {"no_docstring": "It has no docstring.", "bad-name": "Its name has a hyphen."}

FIRST = DRAW_FIRST_FREE


# ---------------------------------------------------------------------------------------------- masked


@right
@dataclass(frozen=True)
class Masked(Sampler[TokenState]):
    """It commits the surest positions, as many per step as the plan says, and has no mistake."""

    family = "masked"
    cite = "a test"
    summary = "has one mistake"

    def count(self, state: TokenState) -> Any:
        return even_count(state)

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return prediction.confidence

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        return state.commit_best(self.score(state, prediction), prediction.token, k=self.count(state))


def uniform(state: TokenState, draw: int = FIRST) -> Tensor:
    """(B, L) float64"""
    return state.rng.positions(state.x.shape[1], state.step, draw)


# Randomness and rows.


@plant("seed_decides", "global generator")
@dataclass(frozen=True)
class GlobalGenerator(Masked):
    """It ranks positions by torch.rand."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return torch.rand(state.x.shape)


@plant("seed_decides", "that of numpy.random has changed")
@dataclass(frozen=True)
class NumpyGenerator(Masked):
    """It ranks positions by numpy.random."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return torch.from_numpy(np.random.random(tuple(state.x.shape)))  # noqa: NPY002


@plant("row_of_64_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class OwnGenerator(Masked):
    """It ranks positions by a torch.Generator of its own, whose row i is the batch's."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return torch.rand(state.x.shape, generator=torch.Generator().manual_seed(0))


@plant("row_of_64_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class OneOrderForAllRows(Masked):
    """It takes the random order of the batch's first row for all rows."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return uniform(state)[:1].expand_as(state.x)


@plant("row_of_64_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class RowIndexOfTheBatch(Masked):
    """Rows with an odd index in the batch go from right to left."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        rows, length = state.x.shape
        return torch.arange(length) * (1.0 - 2.0 * (torch.arange(rows) % 2))[:, None]


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class CountOfTheBatch(Masked):
    """It commits as many positions per row as the batch has rows."""

    def count(self, state: TokenState) -> Any:
        return len(state.x)


@plant("row_of_a_mixed_batch_is_the_row_alone", "a mean, maximum or count of all rows")
@dataclass(frozen=True)
class CountFromTheMean(Masked):
    """It takes the count from the batch's mean number of open positions, as Dream's code does."""

    def count(self, state: TokenState) -> Any:
        left = (state.block_steps - state.block_step).clamp_min(1)
        return (state.count.double().mean() / left).ceil().to(torch.int64)


@plant("row_of_a_mixed_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class ProgressFromTheMean(Masked):
    """It takes the progress of a block from the batch's mean."""

    def count(self, state: TokenState) -> Any:
        done = ((state.block_step + 1).double() / state.block_steps.clamp_min(1)).mean()
        return (state.count - (state.block_size * (1 - done)).floor().to(torch.int64)).clamp_min(1)


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class ThresholdFromTheBatch(Masked):
    """It commits what is at least 0.7 times as sure as the surest of the batch."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        threshold = 0.7 * prediction.confidence.amax()
        ready = prediction.confidence >= threshold
        score = torch.where(ready, 2.0, prediction.confidence.double())
        return state.commit_best(score, prediction.token, k=torch.maximum(ready.sum(1), min_count(state)))


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class TopKOfTheBatch(Masked):
    """It commits the surest positions of the flattened batch, and one per row at least."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        rank = prediction.confidence.flatten().argsort(descending=True).argsort().view_as(state.x)
        best = rank < 2 * len(state.x)
        most = ops.select(prediction.confidence, state.open, k=min_count(state)).chosen
        return state.commit(best | most, prediction.token)


@plant("row_of_a_batch_is_the_row_alone", "state.x.shape[1] (it includes padding)")
@dataclass(frozen=True)
class PaddedLength(Masked):
    """It divides the width of the canvas, padding included, by the steps."""

    def count(self, state: TokenState) -> Any:
        return torch.maximum(state.x.shape[1] // state.block_steps.clamp_min(1), min_count(state))


# Draws.


@plant("distribution_on_a_tiny_problem", 'declare bias="biased"')
@dataclass(frozen=True)
class Peeks(Masked):
    """It says bias="exact", and ranks positions by the probability of the token that was drawn."""

    facts = Facts(bias="exact")


@plant("distribution_on_a_tiny_problem", "another temperature")
@dataclass(frozen=True)
class AlwaysGreedy(Masked):
    """It takes the best token whatever the temperature."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence", temperature=0.0)
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("greedy_takes_the_best", "ignores predict.temperature")
@dataclass(frozen=True)
class IgnoresTemperature(Masked):
    """It draws tokens by Gumbel noise of its own, at temperature 1 always."""

    facts = Facts(stores_logits=True)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        logits = predict.logits(state)
        draws = [uniform(state, FIRST + v)[logits.row, logits.position] for v in range(logits.value.shape[1])]
        noisy = logits.value - torch.log(-torch.log(torch.stack(draws, 1)))
        token = logits.on_canvas(noisy.argmax(1), state.x)
        return state.commit_best(uniform(state, FIRST + 999), token, k=even_count(state))


@plant("greedy_takes_the_best", "the lowest id of equals")
@dataclass(frozen=True)
class TiesByHighestId(Masked):
    """At temperature 0 it takes the last of equally good tokens."""

    facts = Facts(stores_logits=True)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        logits = predict.logits(state)
        drawn = predict.read(state, logits, want="confidence")
        best = logits.value.shape[1] - 1 - logits.value.flip(1).argmax(1)
        token = drawn.token if predict.temperature else logits.on_canvas(best, state.x)
        return state.commit_best(drawn.confidence, token, k=even_count(state))


@plant("prompt_untouched_no_mask_left", "the mask id was committed", cure="must leave the mask id out")
@dataclass(frozen=True)
class CommitsTheMaskId(Masked):
    """It asks about the left half of the open positions, and commits all of them."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        left = state.open & (torch.arange(state.x.shape[1]) < state.x.shape[1] // 2)
        return state.commit(state.open, predict(state, left).token)


@plant("draw_numbers", "draw 0 ")
@dataclass(frozen=True)
class OrderByTheTokensNumber(Masked):
    """It orders positions by the number that the tokens are drawn with."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return uniform(state, 0)


@plant("draw_numbers", "gumbel(state) beside positions(L, state.step, 8)")
@dataclass(frozen=True)
class GumbelAndEight(Masked):
    """It adds gumbel(state) to a rank, and takes its own random numbers with draw 8."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return torch.where(uniform(state, 8) < 0.5, prediction.confidence + gumbel(state), 0.0)


@plant("draw_numbers", f"draw {FIRST} ")
@dataclass(frozen=True)
class OneNumberTwoPurposes(Masked):
    """It flips a coin per position, and orders positions, by one draw number."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        coin = uniform(state, FIRST) < 0.3
        return torch.where(coin, 1.0, 0.0) + uniform(state, FIRST)


@plant("draw_numbers", "two reads of tokens without draw=")
@dataclass(frozen=True)
class TwoCandidatesOneNumber(Masked):
    """It draws two candidates per position with one random number, and takes the likelier."""

    facts = Facts(stores_logits=True)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        logits = predict.logits(state)
        a, b = (predict.read(state, logits, want="confidence") for _ in range(2))
        token = torch.where(a.confidence >= b.confidence, a.token, b.token)
        return state.commit_best(torch.maximum(a.confidence, b.confidence), token, k=even_count(state))


@plant("draw_numbers", "are reserved for the library", cure="count yours from DRAW_FIRST_FREE")
@dataclass(frozen=True)
class ReservedNumber(Masked):
    """It takes random numbers with draw 9, which the library uses."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return uniform(state, 9)


# What only another setting than the usual one shows.


@plant("distribution_on_a_tiny_problem", "to the power 1 / temperature", cure="a temperature that is applied twice")
@dataclass(frozen=True)
class TemperatureTwice(Masked):
    """It divides by the temperature twice, which is right at temperatures 0 and 1."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence", temperature=predict.temperature**2)
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("tokens_of_one_step_are_independent", "from the product of the model's distributions")
@dataclass(frozen=True)
class OneNumberForAllPositions(Masked):
    """It draws all tokens of a row's step with one random number, which is right if a step draws one."""

    facts = Facts(stores_logits=True)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        logits = predict.logits(state)
        number = uniform(state)[:, :1].expand_as(state.x)[logits.row, logits.position]
        below = (logits.value / max(predict.temperature, 1e-3)).double().softmax(1).cumsum(1) <= number[:, None]
        token = below.sum(1).clamp_max(logits.value.shape[1] - 1)
        return state.commit_best(uniform(state, FIRST + 1), logits.on_canvas(token, state.x), k=even_count(state))


@plant("every_choice_runs", "With rule='random'", cure="Take random numbers from state.rng.positions")
@dataclass(frozen=True)
class OneChoiceDrawsAnywhere(Masked):
    """With one of its choices, which is not the default, it takes torch.rand."""

    rule: str = option("surest", "what goes first", choices=("surest", "random"))

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return prediction.confidence if self.rule == "surest" else torch.rand(state.x.shape)


@plant("every_choice_runs", "prediction.margin was not asked for", cure="mend that line")
@dataclass(frozen=True)
class OneChoiceFails(Masked):
    """One of its choices reads what was not asked for."""

    rule: str = option("surest", "what goes first", choices=("surest", "margin"))

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return prediction.confidence if self.rule == "surest" else prediction.margin


@plant("every_choice_runs", "is not done after", cure="a rule that may choose no position for ever")
@dataclass(frozen=True)
class LeastNumberNeverEnds(Masked):
    """It allows a width of 0, with which it chooses nothing for ever."""

    width: int = option(1, "positions per step", ge=0)

    def count(self, state: TokenState) -> Any:
        return even_count(state).clamp_min(self.width) * min(self.width, 1)


@plant("every_choice_runs", "With adaptive=True too, Facts(static_plan=True)", cure="override effective_facts")
@dataclass(frozen=True)
class StaticByDefaultOnly(Masked):
    """Its plan is static by default, and not with one of its options, though it says so of both."""

    facts = Facts(static_plan=True)
    adaptive: bool = option(False, "commit all that is surer than 0.3")

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        ready = (prediction.confidence > 0.3).sum(1) * self.adaptive
        return state.commit_best(prediction.confidence, prediction.token, k=torch.maximum(even_count(state), ready))


@plant("seed_decides", "that of numpy.random has changed")
@dataclass(frozen=True)
class SeedsNumpy(Masked):
    """It seeds numpy's global generator, for one order of positions in all runs."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        np.random.seed(0)  # noqa: NPY002
        return torch.from_numpy(np.random.random(state.x.shape[1])).expand_as(state.x)  # noqa: NPY002


@plant("prints_nothing", "it printed 'step'")
@dataclass(frozen=True)
class PrintLeftIn(Masked):
    """It prints in every step."""

    def count(self, state: TokenState) -> Any:
        print("step")
        return even_count(state)


@plant("a_run_of_a_pool_is_the_run_alone", "tokens different")
@dataclass(frozen=True)
class SwallowsTheQuestion(Masked):
    """It takes token 0 if the model cannot be asked, whatever the reason."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        try:
            return super().step(predict, state)
        except BaseException:
            return state.commit(state.open, torch.zeros_like(state.x))


# State.


@plant("states_are_immutable", "an op in place on state.x", cure="Use torch.where and state.commit")
@dataclass(frozen=True)
class WritesIntoX(Masked):
    """It writes tokens into state.x in place."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        token = predict(state).token
        chosen = state.open & (state.open.cumsum(1) <= even_count(state)[:, None])
        state.x.copy_(torch.where(chosen, token, state.x))
        return state.commit(chosen, token)


@plant("prompt_untouched_no_mask_left", "The prompt of a row", cure="state.commit and state.revise write at open")
@dataclass(frozen=True)
class OverwritesThePrompt(Masked):
    """After a commit it rewrites the canvas, prompts included: whatever follows token 1 becomes token 0."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        state = super().step(predict, state)
        before = torch.nn.functional.pad(state.x[:, :-1], (1, 0), value=3)
        return dataclasses.replace(state, x=torch.where(state.open, state.x, torch.where(before == 1, 0, state.x)))


@plant("infill_keeps_what_is_given", "between positions to fill")
@dataclass(frozen=True)
class FillsAllAfterThePrompt(Masked):
    """It takes every position after the first open one for open, and writes there."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        token = predict(state).token
        after = (state.open.cumsum(1) > 0) & ~state.canvas.fill
        made = torch.where(token == state.canvas.mask_id, 0, token)
        return dataclasses.replace(state.commit(state.open, token), x=torch.where(after, made, state.x))


@plant("interleaved_runs_agree", "on self")
@dataclass(frozen=True)
class StateOnSelf(Masked):
    """It keeps the last confidence on self, and ranks by the change."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        last = self.__dict__.get("_last")
        object.__setattr__(self, "_last", prediction.confidence)
        return prediction.confidence if last is None or last.shape != state.x.shape else -(last - prediction.confidence)


@plant("interleaved_runs_agree", "StateOnTheClass.TURNS changed during the run")
@dataclass(frozen=True)
class StateOnTheClass(Masked):
    """It counts steps in a list on the class, and turns round in every second step."""

    TURNS: ClassVar[list[int]] = [0]

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        self.TURNS[0] = self.TURNS[0] + 1 if bool(state.step.any()) else 0
        return prediction.confidence * (-1.0) ** self.TURNS[0]


@dataclass(frozen=True, eq=False)
class ListState(TokenState):
    seen: list[Tensor]


@plant("states_are_immutable", "stepped from again")
@dataclass(frozen=True)
class ListInTheState(Masked):
    """It appends to a list in its state in place, and ranks by the mean of what is in it."""

    def init(self, canvas: Layout) -> TokenState:
        return ListState.begin(canvas, seen=[])

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        assert isinstance(state, ListState)
        state.seen.append(torch.where(state.open, prediction.confidence, 0.0))
        return torch.stack(state.seen).mean(0) * (-1.0) ** len(state.seen)


@plant("committed_tokens_stay", "masked again")
@dataclass(frozen=True)
class RemasksUnsaid(Masked):
    """It masks a token again in every third step, and does not say that it revises."""

    def init(self, canvas: Layout) -> TokenState:
        return DraftState.begin(canvas)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        assert isinstance(state, DraftState)
        masked = state.masked & state.open
        prediction = predict(state, masked, want="confidence")
        count = torch.where(state.last_step, state.count, even_count(state))
        chosen = ops.select(prediction.confidence, masked, k=count).chosen
        again = state.open & ~masked & (state.open.cumsum(1) == 1) & (state.step % 3 == 2)[:, None]
        x = torch.where(chosen, prediction.token, torch.where(again & ~state.last_step[:, None], 11, state.x))
        return state.revise(x, state.last_step)


# Counts.


@plant("counted_nfe_is_the_declared", "cap on NFE", cure="commit min_count(state) or more")
@dataclass(frozen=True)
class IgnoresSteps(Masked):
    """It commits one position per step whatever `steps` says."""

    def count(self, state: TokenState) -> Any:
        return 1


@plant("counted_nfe_is_the_declared", "expected_nfe(16, 1) = 2")
@dataclass(frozen=True)
class WrongNfe(Masked):
    """It declares twice the forward passes that it makes."""

    def expected_nfe(self, length: int, steps: int) -> float:
        return 2 * min(length, steps)


@plant("counted_nfe_is_the_declared", "counts steps")
@dataclass(frozen=True)
class CountsStepsAsPasses(Masked):
    """Positions appear at random times; it declares one forward pass per step, and steps without a position make none."""

    def init(self, canvas: Layout) -> TokenState:
        return TimedState.begin(canvas)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        assert isinstance(state, TimedState)
        appears = state.open & (state.time < state.visible(1)[:, None])
        return state.commit(appears, predict(state, appears).token)

    def expected_nfe(self, length: int, steps: int) -> float:
        return steps


@plant("counted_nfe_is_the_declared", "two forward passes")
@dataclass(frozen=True)
class TwoPassesPerStep(Masked):
    """It asks twice per step and declares one forward pass."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        first = predict(state, want="confidence", temperature=0.0)
        return state.commit_best(first.confidence, predict(state).token, k=even_count(state))

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)


# Device syncs.


@plant("a_step_makes_no_device_sync", "_local_scalar_dense")
@dataclass(frozen=True)
class ReadsItem(Masked):
    """It reads the least count with .item()."""

    def count(self, state: TokenState) -> Any:
        even_count(state).max().item()
        return even_count(state)


@plant("a_step_makes_no_device_sync", "`if tensor:`")
@dataclass(frozen=True)
class BranchesOnATensor(Masked):
    """It decides by `if` on a tensor whether anything is sure enough."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        if (prediction.confidence > 0.9).any():
            return prediction.confidence
        return prediction.confidence * 2


@plant("a_step_makes_no_device_sync", "index by a mask")
@dataclass(frozen=True)
class IndexesByAMask(Masked):
    """It takes the open positions' confidences with confidence[open]."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return prediction.confidence - prediction.confidence[state.open].numel()


@plant("a_step_makes_no_device_sync", "tolist")
@dataclass(frozen=True)
class LoopsOverRows(Masked):
    """It loops over the rows with tolist()."""

    def count(self, state: TokenState) -> Any:
        return torch.tensor([max(1, n // 4) for n in state.count.tolist()]).maximum(min_count(state))


# Facts.


@plant("logits_are_asked_for_only_if_declared", "stores_logits=False")
@dataclass(frozen=True)
class LogitsUnsaid(Masked):
    """It asks for logits and does not say so."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        drawn = predict.read(state, predict.logits(state), want="confidence")
        return state.commit_best(drawn.confidence, drawn.token, k=even_count(state))


@plant("logits_are_asked_for_only_if_declared", "stores_logits=True")
@dataclass(frozen=True)
class LogitsNeverAsked(Masked):
    """It says that it asks for logits, and never does."""

    facts = Facts(stores_logits=True)


@plant("logits_are_asked_for_only_if_declared", "Facts(needs=())", cure="declare Facts(needs=('masks',))")
@dataclass(frozen=True)
class SightUnsaid(Masked):
    """It says what each line sees, and does not say that it needs a model that takes it."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        visible = predict.sight(state).expand(len(state.x), -1, -1)
        place = torch.arange(state.x.shape[1]).expand_as(state.x)
        drawn = predict.seen(state, state.x, place, visible, state.open, want="confidence")
        return state.commit_best(drawn.confidence, drawn.token, k=even_count(state))


@plant("static_plan_is_kept", "depends on prediction.*")
@dataclass(frozen=True)
class NotStatic(Masked):
    """It says that its plan is static, and commits what is surer than 0.3."""

    facts = Facts(static_plan=True)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence")
        return state.commit_best(prediction.confidence, prediction.token, threshold=0.3, least=min_count(state))


@plant("prompt_untouched_no_mask_left", "declare Facts(revises=True)", cure="Ask about state.open or a part of it")
@dataclass(frozen=True)
class AsksAboutVisible(Masked):
    """It asks about everything after the prompt, and does not say that it judges visible tokens."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, state.canvas.fill, want="confidence")
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


# Time.


@plant("time_reaches_a_time_conditioned_model", "of another scale")
@dataclass(frozen=True)
class TimeInSteps(Masked):
    """It gives the model the number of the step as its time."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence", t=state.block_step.double())
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("time_reaches_a_time_conditioned_model", "visible fraction in place")
@dataclass(frozen=True)
class TimeRunsBackwards(Masked):
    """It gives the model the visible fraction as its time."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence", t=(1 - state.noise_level).clamp_min(1e-3))
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("time_reaches_a_time_conditioned_model", "The noise level falls")
@dataclass(frozen=True)
class TimeStands(Masked):
    """It gives the model time 1 in every step."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="confidence", t=torch.ones_like(state.noise_level))
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("interleaved_runs_agree", "CacheOnTheClass.SCORES changed during the run")
@dataclass(frozen=True)
class CacheOnTheClass(Masked):
    """It keeps scores in a dictionary on the class, for all runs of that size."""

    SCORES: ClassVar[dict[torch.Size, Tensor]] = {}

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return self.SCORES.setdefault(state.x.shape, prediction.confidence)


@plant("distribution_on_a_tiny_problem", "left to right")
@dataclass(frozen=True)
class WritesAhead(Masked):
    """It writes token 0 at the masked positions of blocks that are not begun."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        after = super().step(predict, state)
        ahead = (after.x == state.canvas.mask_id) & ~state.open
        return dataclasses.replace(after, x=torch.where(ahead, 0, after.x))


@plant("counts_are_what_the_model_saw", "Counts are what the model saw", cure="ask through predict")
@dataclass(frozen=True)
class CallsTheModelItself(Masked):
    """It calls the model past `predict`, so that nobody counts."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        predict.counter.denoiser.predict(state.x, rows=state.open)  # type: ignore[attr-defined]
        return super().step(predict, state)


@plant("a_step_makes_no_device_sync", "numpy")
@dataclass(frozen=True)
class ThroughNumpy(Masked):
    """It computes its score with numpy."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        return torch.from_numpy(np.sqrt(prediction.confidence.numpy()))


@plant("a_step_makes_no_device_sync", "index_put_ by a mask")
@dataclass(frozen=True)
class WritesByAMask(Masked):
    """It sets scores of the open positions with score[open] = ..."""

    def score(self, state: TokenState, prediction: Prediction) -> Tensor:
        score = torch.zeros_like(prediction.confidence)
        score[state.open] = 1.0
        return score + prediction.confidence


@plant("time_of_a_row_is_its_own", "row invariance")
@dataclass(frozen=True)
class TimeOfTheFirstRow(Masked):
    """It gives the model the noise level of the batch's first row for all rows."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(
            state, want="confidence", t=state.noise_level[:1].expand_as(state.noise_level).clamp_min(1e-3)
        )
        return state.commit_best(prediction.confidence, prediction.token, k=even_count(state))


@plant("counted_nfe_is_the_declared", "is the mean number of forward passes")
@dataclass(frozen=True)
class OnePassMore(Masked):
    """It looks at the canvas once more in the first step of each block, and does not count that."""

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        predict(state, state.open & (state.block_step == 0)[:, None])
        return super().step(predict, state)

    def expected_nfe(self, length: int, steps: int) -> float:
        return min(length, steps)


# Options, texts, signatures.


@plant("options", "line of help", cure="write option(default")
@dataclass(frozen=True)
class NoHelp(Masked):
    """It has an option without a line of help."""

    width: int = option(1, ge=1)


@plant("options", "has bounds", cure="add ge=, gt=, le=, lt=, choices= or check=")
@dataclass(frozen=True)
class NoBounds(Masked):
    """It has an option that takes any number."""

    width: int = option(1, "positions per step")


@plant("options", "name of an argument of sample()", cure="leave the option out")
@dataclass(frozen=True)
class DeclaresSteps(Masked):
    """It declares `steps` as an option of its own."""

    steps: int = option(8, "steps per block", ge=1)


@plant("options", "The command line can give the default", cure="make several options of a tuple")
@dataclass(frozen=True)
class TupleOption(Masked):
    """It has an option whose default is a tuple."""

    weights: tuple[float, ...] = option((0.5, 0.5), "weights of confidence and margin")


@plant("options", "does not call the one of Sampler", cure="call super().__post_init__() first")
@dataclass(frozen=True)
class BoundsNotChecked(Masked):
    """It has a __post_init__ that does not call the base's, so that no bound is checked."""

    width: int = option(1, "positions per step", ge=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_half", self.width / 2)


@plant("facts", "cite is empty", cure="write cite =")
@dataclass(frozen=True)
class NoCite(Masked):
    """It names no paper and no note."""

    cite = ""


@plant("facts", "summary is empty", cure="write summary =")
@dataclass(frozen=True)
class NoSummary(Masked):
    """It has no summary for the list."""

    summary = ""


@plant("facts", "there is no docstring", cure="write one such as")
@dataclass(frozen=True)
class NoDocstring(Masked):
    width: int = option(1, "positions per step", ge=1)


@plant("facts", "lower_snake", name="bad-name", cure="change it in the class and where it is registered")
@dataclass(frozen=True)
class BadName(Masked):
    """Its name has a hyphen, which no command line likes."""


@plant("signature", "init(self, canvas, temperature)")
@dataclass(frozen=True)
class InitWithMore(Masked):
    """Its init takes an argument that nobody gives."""

    def init(self, canvas: Layout, temperature: float = 1.0) -> TokenState:
        return TokenState.begin(canvas)


@plant("signature", "step(self, model, state)")
@dataclass(frozen=True)
class StepRenamed(Masked):
    """Its step calls its argument `model`."""

    def step(self, model: Predict, state: TokenState) -> TokenState:  # type: ignore[override]
        return super().step(model, state)


# ---------------------------------------------------------------------------------------------- uniform


@right
@dataclass(frozen=True)
class Uniform(Sampler[NoisyState]):
    """It decides positions of uniform noise in random order, as many per step as the plan owes, and has no mistake."""

    family = "uniform"
    cite = "a test"
    summary = "has one mistake"
    facts = Facts(bias="exact", revises=True, static_plan=True)

    def init(self, canvas: Layout) -> NoisyState:
        return NoisyState.begin(canvas)

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        chosen = ops.select(uniform(state), state.open, k=quota(state, state.count)).chosen
        return state.commit(chosen, predict(state, chosen).token)

    def expected_nfe(self, length: int, steps: int) -> float | None:
        return min(length, steps)


@plant("distribution_on_a_tiny_problem", "follow the model's own distribution")
@dataclass(frozen=True)
class TakesX0(Uniform):
    """It takes the drawn x_0 for x_s in every step, without the noise between."""

    conformance = Conformance(one_at_a_time={"steps": 64})

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        t = 1 - state.block_step.double() / state.block_steps.clamp_min(1)
        return state.revise(predict(state, t=t).token, state.last_step)

    def expected_nfe(self, length: int, steps: int) -> float | None:
        return steps


@plant("levels_reach_a_model_that_takes_them", "state.renoised(x, level, decide)")
@dataclass(frozen=True)
class LevelsStand(Uniform):
    """It writes drafts that are less noisy in every step, and never says so."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        token, noise = predict(state).token, state.canvas.noise(state.step, FIRST)
        clean = (state.block_step + 1).double() / state.block_steps.clamp_min(1)
        return state.revise(torch.where(uniform(state, FIRST + 1) < clean[:, None], token, noise), state.last_step)

    def expected_nfe(self, length: int, steps: int) -> float | None:
        return steps


@plant("prompt_untouched_no_mask_left", "decides nothing in its last step", cure="state.last_step")
@dataclass(frozen=True)
class NeverDecides(Uniform):
    """It writes drafts and decides none."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        return state.renoised(predict(state).token, torch.zeros_like(state.level), torch.zeros_like(state.done))


@plant("distribution_on_a_tiny_problem", "noise that is committed")
@dataclass(frozen=True)
class CommitsNoise(Uniform):
    """In its last step it decides noise at one position of ten."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        chosen = ops.select(uniform(state), state.open, k=quota(state, state.count)).chosen
        noise = state.canvas.noise(state.step, FIRST + 1)
        token = torch.where(uniform(state, FIRST + 2) < 0.1, noise, predict(state, chosen).token)
        return state.commit(chosen, token)


@plant("row_of_a_mixed_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class QuotaFromTheMean(Uniform):
    """It settles the batch's mean quota in every row."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        share = quota(state, state.count).double().mean().ceil().to(torch.int64)
        chosen = ops.select(uniform(state), state.open, k=torch.maximum(share, quota(state, state.count))).chosen
        return state.commit(chosen, predict(state, chosen).token)


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class OneNoiseOfTokens(Uniform):
    """In its first steps it decides noise, the same in all rows."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        chosen = ops.select(uniform(state), state.open, k=quota(state, state.count)).chosen
        noise = state.canvas.noise(state.step, FIRST + 1)[:1].expand_as(state.x)
        return state.commit(chosen, torch.where((state.step < 2)[:, None], noise, predict(state, chosen).token))


@plant("distribution_on_a_tiny_problem", "to the power 1 / temperature", cure="taken for 1 unless it is 0")
@dataclass(frozen=True)
class TwoTemperatures(Uniform):
    """It knows the temperatures 0 and 1 only."""

    def step(self, predict: Predict, state: NoisyState) -> NoisyState:
        chosen = ops.select(uniform(state), state.open, k=quota(state, state.count)).chosen
        return state.commit(chosen, predict(state, chosen, temperature=float(predict.temperature > 0)).token)


# ---------------------------------------------------------------------------------------------- gaussian


@right
@dataclass(frozen=True)
class Gaussian(GaussianSampler[GridState]):
    """It is the multistep solver DPM-Solver++ (2M) of second order, and has no mistake."""

    cite = "a test"
    summary = "has one mistake"
    order: ClassVar[int | None] = 2

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        """The extrapolated x_0."""
        if not state.history or math.isinf(h):
            return x0
        before, x0_before = state.history[-1]
        r = (s.lam - before) / h
        return (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        """x with the step's noise."""
        return x

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        h, x0, keep = t.lam - s.lam, predict(state.x, s.t), t.sigma / s.sigma
        x = keep * state.x + (t.alpha - keep * s.alpha) * self.target(state, s, h, x0)
        return self.advance(state, self.noised(state, t, x), history=((s.lam, x0),))


@plant("values_are_finite", "finite with any number of steps", cure="a division by steps - 1")
@dataclass(frozen=True)
class NotFiniteInOneStep(Gaussian):
    """It fades something out by i / (steps - 1)."""

    def step(self, predict: GaussianPredict, state: GridState) -> GridState:
        fade = 1 - torch.tensor(float(state.i)) / (state.canvas.steps - 1)
        after = super().step(predict, state)
        return dataclasses.replace(after, x=after.x + 0.0 * fade)


@plant("seed_decides", "global generator")
@dataclass(frozen=True)
class TorchRandn(Gaussian):
    """It adds torch.randn_like."""

    order = None

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + 0.1 * t.sigma * torch.randn_like(x)


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class OneNoiseForAllRows(Gaussian):
    """It adds the noise of the batch's first row to all rows."""

    order = None

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + 0.1 * t.sigma * state.canvas.noise(state.i + 1)[:1]


@plant("row_of_a_batch_is_the_row_alone", "row invariance")
@dataclass(frozen=True)
class StandardisesTheBatch(Gaussian):
    """It subtracts the batch's mean from the extrapolated x_0."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        return x0 - 0.01 * x0.mean(0)


@plant("interleaved_runs_agree", "on self")
@dataclass(frozen=True)
class HistoryOnSelf(Gaussian):
    """It keeps the last prediction on self."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        last = self.__dict__.get("_last") if state.i else None
        object.__setattr__(self, "_last", x0)
        return x0 if last is None else 1.5 * x0 - 0.5 * last


@dataclass(frozen=True, eq=False)
class PileState(GridState):
    pile: list[Tensor] = dataclasses.field(default_factory=list)


@plant("states_are_immutable", "stepped from again")
@dataclass(frozen=True)
class PileInTheState(Gaussian):
    """It appends predictions to a list in its state in place."""

    def init(self, canvas: NoiseCanvas) -> PileState:
        return PileState.begin(canvas, points=self.times(canvas, self.solver_steps(canvas)))

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        assert isinstance(state, PileState)
        state.pile.append(x0)
        return x0 if len(state.pile) < 2 else 1.5 * x0 - 0.5 * state.pile[-2]


@plant("declared_order", "of order 2")
@dataclass(frozen=True)
class FirstOrderOnly(Gaussian):
    """It declares order 2 and never extrapolates."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        return x0


@plant("declared_order", "often in the first or last step only")
@dataclass(frozen=True)
class WrongLastCoefficient(Gaussian):
    """In the last step its coefficient of x_0 is a tenth too small."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        good = super().target(state, s, h, x0)
        return 0.9 * good if state.i + 2 == len(state.points) else good


@plant("declared_order", "of order 1", cure="declare the order that was seen")
@dataclass(frozen=True)
class OrderThatNobodyReads(Gaussian):
    """It has an option for its order, which is right by default, and does not read it."""

    order: int = option(2, "order of a step", choices=(1, 2))  # type: ignore[misc]


@plant("limits_are_finite", "ZeroDivisionError")
@dataclass(frozen=True)
class DividesBySigmaOfTheEnd(Gaussian):
    """It makes the step in x / sigma, which is not defined at sigma = 0."""

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = self.target(state, s, t.lam - s.lam, predict(state.x, s))
        y = state.x / s.sigma + (t.alpha / t.sigma - s.alpha / s.sigma) * x0
        return self.advance(state, t.sigma * y, history=((s.lam, x0),))


@plant("limits_are_finite", "values such as")
@dataclass(frozen=True)
class NotFiniteAtTheNoise(Gaussian):
    """It takes the weight of x_0 from log(alpha / sigma), which is minus infinity at alpha = 0."""

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        h, x0 = t.lam - s.lam, predict(state.x, s)
        x = t.sigma / s.sigma * state.x - t.alpha * math.expm1(-h) * self.target(state, s, h, x0)
        return self.advance(state, x, history=((s.lam, x0),))


@plant("values_are_finite", "torch.float64 here", cure="made without dtype=state.x.dtype")
@dataclass(frozen=True)
class CastsToFloat32(Gaussian):
    """It works in float32 whatever the model's dtype."""

    def step(self, predict: GaussianPredict, state: GridState) -> GridState:
        after = super().step(predict, state)
        return dataclasses.replace(after, x=after.x.float())


@plant("draw_numbers", "noise(0) is used", cure="step i takes state.canvas.noise(state.i + 1)")
@dataclass(frozen=True)
class NoiseOfTheStart(Gaussian):
    """Step i takes draw i, so that the first step adds the noise that the run started with."""

    order = None

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + 0.1 * t.sigma * state.canvas.noise(state.i)


@plant("counted_nfe_is_the_declared", "several forward passes per step", cure="override it, or spend")
@dataclass(frozen=True)
class TwoPassSolver(Gaussian):
    """It asks twice per step, and inherits an expected_nfe of one per step."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        return x0

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        predict(state.x, t.t)
        return super().update(predict, state, s, t)


@plant("counted_nfe_is_the_declared", "does not depend on canvas.steps", cure="override it, or spend")
@dataclass(frozen=True)
class TenStepsAlways(Gaussian):
    """It walks down a grid of ten steps whatever `steps` says."""

    def init(self, canvas: NoiseCanvas) -> GridState:
        return GridState.begin(canvas, points=self.times(canvas, 9))


@plant("declared_order", "of order 2")
@dataclass(frozen=True)
class HeunWithAWrongWeight(Gaussian):
    """It is Heun's method with weights 0.45 and 0.55 in place of a half each."""

    def solver_steps(self, canvas: NoiseCanvas) -> int:
        return super().solver_steps(canvas) // 2

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        step = t.alpha / t.sigma - s.alpha / s.sigma
        y, x0 = state.x / s.sigma, predict(state.x, s)
        trial = predict(t.sigma * (y + step * x0), t)
        return self.advance(state, t.sigma * (y + step * (0.45 * x0 + 0.55 * trial)))


@plant("a_sure_model_is_followed", "x less alpha x_0 has mean")
@dataclass(frozen=True)
class EndsOnePointEarly(Gaussian):
    """It leaves out the last step of the grid, and returns x with the noise of the point before."""

    order = None

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        if t is state.points[-1]:
            predict(state.x, s)
            return self.advance(state, state.x)
        return super().update(predict, state, s, t)


@plant("a_sure_model_is_followed", "standard deviation")
@dataclass(frozen=True)
class ForgetsAlpha(Gaussian):
    """It uses the formula for x_0 plus noise, sigma(t) / sigma(s) x, on a process that also shrinks x_0."""

    order = None

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        x0 = predict(state.x, s)
        return self.advance(state, t.sigma / s.sigma * state.x + (1 - t.sigma / s.sigma) * x0)


@plant("a_sure_model_is_followed", "standard deviation")
@dataclass(frozen=True)
class TooMuchNoise(Gaussian):
    """It adds noise in every step and takes none of the old noise away for it."""

    order, facts = None, Facts(stochastic=True)

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + t.sigma * state.canvas.noise(state.i + 1)


@plant("noise_is_declared", "draws of noise in one run")
@dataclass(frozen=True)
class NoiseUnsaid(Gaussian):
    """It draws noise in its steps, and does not say that it is stochastic."""

    order = None

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + 0.1 * t.sigma * state.canvas.noise(state.i + 1)


@plant("draw_numbers", "noise(1) is used", cure="step i takes state.canvas.noise(state.i + 1)")
@dataclass(frozen=True)
class OneNoiseForAllSteps(Gaussian):
    """It adds the same noise in every step."""

    order, facts = None, Facts(stochastic=True)

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        return x + 0.1 * t.sigma * state.canvas.noise(1)


@plant("values_are_finite", "torch.float32 here", cure="made without dtype=state.x.dtype")
@dataclass(frozen=True)
class ForcesFloat64(Gaussian):
    """It works in float64 whatever the model's dtype."""

    def step(self, predict: GaussianPredict, state: GridState) -> GridState:
        after = super().step(predict, state)
        return dataclasses.replace(after, x=after.x.double())


@plant(
    "values_are_finite", "x was not finite when it reached the model", cure="a multistep formula without a first step"
)
@dataclass(frozen=True)
class NoFirstStep(Gaussian):
    """It divides by the length of the step before, which is 0 in the first step."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        before, x0_before = state.history[-1] if state.history else (s.lam, x0)
        r = torch.tensor((s.lam - before) / h, dtype=torch.float64)
        return x0 + (x0 - x0_before) / (2 * r)


@plant("declared_order_on_uneven_steps", "of order 2 on steps whose lengths change")
@dataclass(frozen=True)
class EqualStepsOnly(Gaussian):
    """It extrapolates as if all steps were of one length, which those of the usual grids nearly are."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        return 1.5 * x0 - 0.5 * state.history[-1][1] if state.history else x0


@plant("declared_order_on_uneven_steps", "on the schedule 'edm'", cure="use s.alpha and s.sigma as they are")
@dataclass(frozen=True)
class PreservesVarianceOnly(Gaussian):
    """It takes sigma^2 = 1 - alpha^2 for granted in its second-order term, which no constant x_0 shows."""

    def target(self, state: GridState, s: Point, h: float, x0: Tensor) -> Tensor:
        if not state.history:
            return x0
        noise = math.sqrt(1 - min(s.alpha, 1 - 1e-9) ** 2)
        (before, x0_before), lam = state.history[-1], math.log(max(s.alpha, 1e-9) / noise)
        r = max(lam - before, 1e-3) / h
        return (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before


@plant("samples_follow_the_model", "standard deviation")
@dataclass(frozen=True)
class NoiseTooSmall(Gaussian):
    """It adds 0.8 of the noise that each step takes away."""

    order, facts = None, Facts(stochastic=True)

    def update(self, predict: GaussianPredict, state: GridState, s: Point, t: Point) -> GridState:
        keep, x0 = math.exp(s.lam - t.lam), predict(state.x, s)
        fresh = t.sigma * math.sqrt(1 - keep**2) * state.canvas.noise(state.i + 1)
        return self.advance(state, t.sigma / s.sigma * keep * state.x + t.alpha * (1 - keep**2) * x0 + 0.8 * fresh)


@plant("noise_is_declared", "no draw of noise in one run", cure="take state.canvas.noise(state.i + 1)")
@dataclass(frozen=True)
class NoiseOfTheRowNumber(Gaussian):
    """Its noise is made of the number of the row, so that no seed changes it."""

    order, facts = None, Facts(stochastic=True)

    def noised(self, state: GridState, t: Point, x: Tensor) -> Tensor:
        number = (state.canvas.rng.row.double()[:, None] + 1) * (torch.arange(x.shape[1]) + 7 * state.i + 1)
        return x + 0.1 * t.sigma * torch.sin(number * 12.9898)


# ---------------------------------------------------------------------------------------------- refused before any test


@plant("loads", "needs the decorator @dataclass(frozen=True)", cure="write @dataclass(frozen=True) above it")
class NotADataclass(Masked):
    """It has an option, and no decorator makes it one."""

    width: int = option(1, "positions per step", ge=1)


@plant("loads", "has no default", cure="write width: int = option(")
@dataclass(frozen=True)
class NoDefault(Masked):
    """It has an option without a default."""

    width: int


@plant("loads", "must be > 0", cure="change the default or the bound")
@dataclass(frozen=True)
class DefaultOutOfBounds(Masked):
    """Its default is out of its own bounds."""

    threshold: float = option(0.0, "least probability", gt=0)


@plant("loads", "known: masked, uniform, gaussian", name="misspelt_family", cure="write one of the known families")
@dataclass(frozen=True)
class MisspeltFamily(Masked):
    """Its family is misspelt."""

    family = "maskd"


@plant(
    "loads",
    "but it is registered as 'another_name'",
    cure="entry point in pyproject.toml say the same",
    registered="another_name",
)
@dataclass(frozen=True)
class NamedOtherwise(Masked):
    """Its entry point has another name than the class."""


@plant("loads", "must be int", cure="change the default or the bound")
@dataclass(frozen=True)
class DefaultOfAnotherType(Masked):
    """The default of its whole number is a text."""

    width: int = option("8", "positions per step", ge=1)  # type: ignore[assignment]


@plant(
    "loads", "option 'seen' of DefaultIsAList has a default_factory", cure="options are numbers, texts, bools or None"
)
@dataclass(frozen=True)
class DefaultIsAList(Masked):
    """It has a list as an option, which it would fill while it runs."""

    seen: list[int] = dataclasses.field(default_factory=list)


@plant("loads", "has no step method", cure="write def step(self, predict, state)")
@dataclass(frozen=True)
class MisspeltStep(Sampler[TokenState]):
    """Its method is called `stpe`."""

    family, cite, summary = "masked", "a test", "has one mistake"

    def stpe(self, predict: Predict, state: TokenState) -> TokenState:
        return state


# ---------------------------------------------------------------------------------------------- running the kit on them


@contextlib.contextmanager
def installed() -> Iterator[str]:
    """All classes of this file, registered as a distribution of their own; gives the folder that it is in."""
    from samplers import registry

    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "planted_mistakes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-mistakes\nVersion: 1.0\n")
        points = "\n".join(f"{name} = planted:{cls.__name__}" for name, cls in CLASSES.items())
        (info / "entry_points.txt").write_text(f"[samplers]\n{points}\n")
        before = sys.path[:]
        sys.path[:0] = [folder, str(Path(__file__).parent)]
        registry.reload()
        try:
            yield folder
        finally:
            sys.path[:] = before
            registry.reload()


def judged(names: list[str]) -> dict[str, str]:
    """What the kit says of each mistake; nothing of one that it does not find."""
    from samplers.testing import kit

    messages = {}
    with installed():
        for one in MISTAKES:
            if one.name in names:
                broken = (r.broken for r in kit.run(one.name, only=[one.check]) if r.broken)
                if (found := next(broken, None)) is not None:
                    messages[one.name] = str(found)
    return messages


def main(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    names = [a for a in arguments if a != "--json"] or [m.name for m in MISTAKES]
    messages = judged(names)
    if as_json:
        print(json.dumps(messages))
        return 0
    found = 0
    for number, one in enumerate((m for m in MISTAKES if m.name in names), 1):
        message = messages.get(one.name, "")
        caught = one.phrase in message
        found += caught
        print(f"{number:2} {one.name} ({one.family}): {one.what}")
        print(f"   {'found' if caught else 'NOT FOUND'} by {one.check}")
        print("".join(f"   | {line}\n" for line in message.splitlines()))
    print(f"{found} of {len(names)} mistakes are found")
    return found != len(names)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import planted  # the module that the registry imports, not a second copy of it

    sys.exit(planted.main(sys.argv[1:]))
