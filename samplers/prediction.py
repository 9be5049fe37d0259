"""Prediction and Logits: what a sampler gets from the model; and Predict, all that a sampler may know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .errors import SamplersError
from .noise_schedules import Point
from .random import DRAW_SHADOW, DRAW_TOKEN

if TYPE_CHECKING:
    from .copies import Copies
    from .gaussian.moments import Moments
    from .state import TokenState

__all__ = ["GaussianPredict", "Logits", "Predict", "Prediction"]

# The values at positions that were not asked about: those that never win.
FILL = {"confidence": -torch.inf, "margin": -torch.inf, "entropy": torch.inf, "lse": -torch.inf, "given": -torch.inf}


class Prediction:
    """What the model predicts at the positions that were asked about; elsewhere values that never win.

    Attributes:
        token: (B, L) int64, the token drawn (or best, at temperature 0); the mask id elsewhere.
        confidence: (B, L) float32, the probability of `token`; -inf elsewhere.
        margin: (B, L) float32, the best probability minus the second best; -inf elsewhere.
        entropy: (B, L) float32, nats; +inf elsewhere.
        lse: (B, L) float32, log sum exp of the logits; -inf elsewhere.
        given: (B, L) float32, the probability of a given token; -inf elsewhere.

    Reading one that was not named in `want` is a SamplersError.
    """

    token: Tensor
    confidence: Tensor
    margin: Tensor
    entropy: Tensor
    lse: Tensor
    given: Tensor

    def __init__(self, token: Tensor, **values: Tensor):
        self.__dict__.update(values, token=token)

    def take(self, index: Tensor) -> Prediction:
        """The same of the rows `index`, (n,) int64: row i is row index[i] of this one."""
        return Prediction(**{name: value[index] for name, value in self.__dict__.items()})

    def __getattr__(self, name: str) -> Tensor:  # of what is not there
        if name in FILL:
            raise SamplersError(f"prediction.{name} was not asked for: predict(state, want={name!r})")
        raise AttributeError(f"a prediction has no {name!r}; it has token, {', '.join(FILL)}")


@dataclass(frozen=True, eq=False)
class Logits:
    """The logits of N asked positions, packed, for samplers that do more with them than draw; see Predict.logits.

    Attributes:
        row, position: (N,) int64, where each is on the canvas.
        value: (N, V) float32, guided; tokens that must not be drawn at -inf.
        beside: in a run whose text must belong to a language, the logits of the open positions of these rows that were not asked
            about: they bear on what `read` may draw here. Else None.
    """

    row: Tensor
    position: Tensor
    value: Tensor
    beside: Logits | None = None

    def on_canvas(self, packed: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, L): `packed` (N,) at the asked positions, `elsewhere` (B, L) at the others."""
        return elsewhere.index_put((self.row, self.position), packed.to(elsewhere.dtype))

    def take(self, index: Tensor, rows: int) -> Logits:
        """The same of the rows `index`, (n,) int64, of the `rows` that there are: row i is row index[i]. One device sync."""
        by_row = self.row.argsort(stable=True)  # several forward passes have their rows one after the other
        at, row = packed_rows(torch.bincount(self.row, minlength=rows), index)
        at = by_row[at]
        beside = None if self.beside is None else self.beside.take(index, rows)
        return Logits(row, self.position[at], self.value[at], beside)

    def at(self, which: Tensor) -> Logits:
        """The entries `which`, (N,) bool or their numbers in int64, without those beside them. One device sync if it is bool."""
        if which.dtype == torch.bool:
            which = which.nonzero().squeeze(1)
        return Logits(self.row[which], self.position[which], self.value[which])

    def folded(self, number: int) -> Logits:
        """The same with row // number in the place of each row."""
        row = torch.div(self.row, number, rounding_mode="floor")
        return Logits(row, self.position, self.value, None if self.beside is None else self.beside.folded(number))


def sum_over(value: Tensor, where: Tensor) -> Tensor:
    """(B,) float64: the sum of `value`, (B, L) floats below 2^20 in size, over `where`, (B, L) bool; elsewhere it is not read.

    It is added up in whole units of 2^-40, so that it has the same bits however many positions the batch has beyond the row.
    """
    units = (torch.where(where, value, 0.0).double() * 2.0**40).round().to(torch.int64)
    return units.sum(1).double() * 2.0**-40


def packed_rows(count: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What is packed row by row, taken for other rows: which entries, (N,) int64, and the new row of each, (N,) int64.

    One device sync.

    Args:
        count: (B,) int64, how many entries each row has.
        index: (n,) int64: new row i is row index[i].
    """
    first, many = count.cumsum(0) - count, count[index]
    row = torch.repeat_interleave(many)  # (N,)
    begin = many.cumsum(0) - many
    return first[index][row] + torch.arange(len(row), device=row.device) - begin[row], row


class Predict(Protocol):
    """What a token sampler may know of the model: the type of the argument `predict` of Sampler.step."""

    @property
    def temperature(self) -> float:
        """The temperature of the token draw, as the run was told; 0 takes the best token."""
        ...

    @property
    def steers(self) -> bool:
        """Whether a guide acts on the tokens after a step: a sampler with Facts(posterior=True) then asks by `steered`."""
        ...

    def __call__(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: str | tuple[str, ...] = (),
        t: Tensor | None = None,
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
    ) -> Prediction:
        """One forward pass. Rows of the batch without a position to ask about cost nothing.

        Args:
            rows: (B, L) bool, the positions to ask about; None: state.open.
            want: any of confidence, margin, entropy, lse, given; no other is computed.
            t: (B,) the noise level, for a time-conditioned model; for a model that takes one time per position, the level
                of the open ones. None: what the state says, `state.noise_level` or `state.levels`.
            temperature: temperature of the draw; None: the run's.
            confidence_temperature: temperature of the softmax that confidence, margin, entropy and lse are taken from. They
                are the model's own, over all tokens that may be drawn at all, whatever the draw's temperature.
            truncated: take them from what the run's top_k and top_p leave instead, as Dream's code does.
            given: (B, L) int64, the tokens whose probability "given" is; None: those that stand there.
        """
        ...

    def logits(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        t: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> Logits:
        """As a call, but the logits themselves, guided and packed: for rules that combine distributions.

        They are stored as (N, V) float32: ask about no more positions than you need. What you make of them goes
        through `read`.

        Args:
            temperature: (B,) float32, by which the logits of each row are divided. A self-conditioned model is then told these
                in the next step, and not its own; so read them at temperature 1.
        """
        ...

    def copies(self, number: int, apart: bool = False, first: int = 0) -> Copies:
        """What K copies of every row are asked through, for samplers that try several continuations: see samplers.copies.

        Args:
            number: K, 1 or more.
            apart: each copy draws random numbers of its own, but for copy 0, which draws what the row itself draws. False: every
                copy draws what the row itself draws.
            first: the number of the first copy: others than before draw other random numbers, if they are apart.

        Returns:
            The same object for the same arguments, within a run. Get it before the first question of a step.

        Raises:
            OptionError: the run feeds its model in a way that rows cannot be copied in (sequential samplers).
        """
        ...

    def read(
        self,
        state: TokenState,
        logits: Logits,
        *,
        want: str | tuple[str, ...] = (),
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
        draw: int = DRAW_TOKEN,
    ) -> Prediction:
        """What a call would have made of these logits: tokens drawn at `temperature` (None: the run's), and `want`.

        Args:
            draw: which of the step's uniform numbers is used; a second draw in one step needs another than the first.
        """
        ...

    def probabilities(self, logits: Logits, check: bool = True) -> Tensor:
        """(N, V) float32: what a token is drawn from, at the run's temperature, among what its top_k and top_p leave.

        At temperature 0 that is 1 for the best token. For rules that compare two distributions of a token that was drawn.

        Args:
            check: False: logits that no token can be drawn from are no error; what comes of them means nothing. For answers
                about contexts that may be impossible, such as drafts that are not verified yet.
        """
        ...

    def sight(self, state: TokenState) -> Tensor:
        """(L, L) bool: whether the answer for position i may depend on position j in a call, as the model attends."""
        ...

    def seen(
        self,
        state: TokenState,
        x: Tensor,
        positions: Tensor,
        visible: Tensor,
        asked: Tensor,
        *,
        want: str | tuple[str, ...] = (),
        t: Tensor | None = None,
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
        draw: int = DRAW_SHADOW,
    ) -> Prediction:
        """One forward pass of sequences of your own, in which you say what each line sees. It needs Facts(needs=("masks",)).

        A sequence may be longer than the canvas, whose columns come first, in order: column j < L stands at position j. What
        comes after them stands where you say. Rows without a line to ask about cost nothing; each other counts n tokens.

        Args:
            x: (B, n) int64, tokens and masks.
            positions: (B, n) int64, where on the canvas each stands; several may stand at one position.
            visible: (B, n, n) bool: whether line i sees column j. What stands after a row's end, or after its window, no line
                sees, whatever this says. A line does not see itself unless this says so; a model of its own has a line that
                sees nothing see itself.
            asked: (B, n) bool, the lines that are answered: what stands at positions[i], given what line i sees. Those after a
                row's end are not.
            given: (B, n) int64, the tokens whose probability "given" is; None: x.
            draw: the draw number of lines from column L on, which stand at a position beside a line of the canvas: a second such
                line at one position, or a second call in one step, needs another (21 to 24 are free).
            want, t, temperature, confidence_temperature, truncated: as for a call.

        Returns:
            A Prediction of (B, n) tensors.

        Raises:
            SamplersError: a wrong shape or dtype, a position that the canvas does not have; a run that has no such passes, which
                the driver refuses before it begins if the sampler declares what it needs.
        """
        ...

    def seen_logits(
        self,
        state: TokenState,
        x: Tensor,
        positions: Tensor,
        visible: Tensor,
        asked: Tensor,
        *,
        t: Tensor | None = None,
    ) -> Logits:
        """As `seen`, but the logits themselves, packed: `row` and `position` on the canvas, so `read` and `on_canvas` work if no
        two asked lines of a row stand at one position. It needs Facts(stores_logits=True) as well.
        """
        ...

    def attention(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: str | tuple[str, ...] = (),
        temperature: float | None = None,
    ) -> tuple[Prediction, Tensor]:
        """As a call, and the model's attention of that forward pass beside it. It needs Facts(needs=("attends",)).

        Returns:
            The Prediction; and (B, L, L) float32, how much position i attends to position j, the mean over layers and heads; 0 in
            rows that took no part, and at filling. With guidance it is that of the rows that see the prompt.
        """
        ...

    def steered(self, state: TokenState, onward: Callable[[Logits], Logits], before: Tensor, after: Tensor) -> Logits:
        """The guided log-probabilities of the tokens after the step at the open positions, if the run `steers`.

        Args:
            onward: from the logits of the clean tokens (N, V) to the log-probabilities of the tokens after the step, such as
                those of q(x_s | x_t); it may be called twice.
            before, after: (B, 1) float64, the noise levels before and after the step.
        """
        ...


class GaussianPredict(Protocol):
    """What a Gaussian sampler may know of the model: the type of the argument `predict` of its step."""

    def __call__(self, x: Tensor, at: Point | float | Tensor) -> Tensor:
        """The denoised x_0, (B, *shape), of every row: guided and thresholded, if the run is. One forward pass.

        Args:
            x: (B, *shape), in the dtype of the run's state, as is the answer.
            at: a point of the schedule; or its time; or (B,) float64, a time for each row.
        """
        ...

    def pair(self, x: Tensor, at: Point | float | Tensor) -> tuple[Tensor, Tensor]:
        """As a call, and the x_0 without the condition beside it; without guidance it is the same one. One forward pass."""
        ...

    def moments(self, x: Tensor, at: Point | float | Tensor, order: int = 3) -> Moments:
        """Mean, variance and third central moment of each coordinate of x_0 given x; fewer if `order` is below 3.

        The model must give them: exact problems do, and any other by heads or by derivatives (GaussianDenoiser.moments). A call
        counts as model.moment_evals(order) forward passes. The mean is thresholded, if the run is; what is known has variance 0.

        Raises:
            OptionError: the model gives no moments, or the run is guided here.
        """
        ...
