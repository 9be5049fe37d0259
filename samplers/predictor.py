"""Predictor: what a sampler asks the model through. It plans forward passes, hands them to a feed, and reads the answers.

A token sampler calls `predict(state, rows, want=...)` and gets a Prediction, (B, L) tensors of tokens and of how sure the
model is of them. (What a Gaussian one calls is in gaussian/predictor.py.) Which part of the canvas the model is given
is the business of samplers.feeds; guidance of logits, temperature, draws, counting and checks are here, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import ops
from .checks import integer
from .denoiser import Counter, Denoiser, TokenDenoiser
from .dry_run import DryRun
from .errors import DenoiserError, OptionError, SamplersError, did_you_mean
from .feeds import Answer, Feed, Query, SeenQuery
from .feeds.cached import CachedFeed
from .feeds.encoded import EncodedFeed
from .feeds.sequence import Chunk, SequenceFeed, SequenceState
from .guidance import BAD, NOTHING, Guiding
from .info import InfoRecorder
from .ops.masked_softmax import guide, truncated
from .prediction import FILL, Logits, Prediction
from .random import DRAW_SHADOW, DRAW_TOKEN
from .sampler import State
from .state import TokenState
from .syncs import reading_is_free

if TYPE_CHECKING:
    from .constraints.language import BoundLanguage
    from .copies import Copies

__all__ = ["ErrorTracker", "FamilyPredictor", "Predictor", "SamplingConfig", "SequencePredictor"]

Want = str | tuple[str, ...]

_STATUS = {
    1: "a NaN or +inf among its logits",
    2: "only -inf logits: no token is possible",
    3: "a row of logits that is not there",
}
PER_POSITION = ("uniform", "given", "guidance_index")  # the op's arguments with an entry for each position that is read
_BARRED = 4  # the model finds tokens possible, and the caller's forbid= or constrain= bars every one of them


class Asked(Protocol):
    """Where N answers belong: the batch row and the position of each, (N,) int64. A Query or Logits."""

    @property
    def row(self) -> Tensor: ...

    @property
    def position(self) -> Tensor: ...


class ErrorTracker:
    """What both kinds of predictor keep: the counter, and the first thing found wrong with an answer.

    On a CPU an answer is checked when it comes. On a device that would be a device sync in every step: the first thing found
    wrong stays there, in one small tensor, until the driver reads something back anyway.
    """

    def __init__(self, counter: Counter, sampler: str):
        self.counter = counter
        self.sampler = sampler
        device = counter.denoiser.device
        self.sync_eagerly = reading_is_free(device)
        self._finding = torch.zeros(4, dtype=torch.int64, device=device)  # status, row, position, forward pass

    def record(self, status: Tensor, asked: Asked) -> None:
        """Take note of the statuses (N,) of an answer, 0 if it is fine, and of where they were asked about."""
        if not status.numel() or (self.sync_eagerly and not bool(status.any())):
            return
        first = status.ne(0).to(torch.uint8).argmax().view(1)  # the first of equals
        what = [x.index_select(0, first).to(torch.int64) for x in (status, asked.row, asked.position)]
        finding = torch.cat([*what, torch.full_like(what[0], self.counter.nfe)])  # (4,)
        self._finding = torch.where(self._finding[0] == 0, finding, self._finding)
        if self.sync_eagerly:
            self.check()

    def check(self) -> None:
        """DenoiserError if an answer of the model was bad; called before a result is handed out."""
        self.raise_if_bad(*self._finding.tolist())

    def raise_if_bad(self, status: int, row: int, position: int, forward: int) -> None:
        if status:
            raise DenoiserError(
                f"denoiser {self.counter.denoiser.name!r} gave row {row}{self.describe(status, position)} "
                f"(forward pass {forward}, sampler {self.sampler!r})"
            )

    def describe(self, status: int, position: int) -> str:
        """What was wrong, as the end of a sentence."""
        raise NotImplementedError


class FamilyPredictor(ErrorTracker):
    """Base of what samplers of real numbers ask their model through; for families of other packages as well.

    A subclass gives its samplers a call that gets an answer through `ask`, which counts it and checks that it is finite.

    Args:
        denoiser: the model.
        rows: the rows of the batch.
        sampler: the sampler's name, for errors.
    """

    cache_bytes = 0  # reals have no cache

    def __init__(self, denoiser: Denoiser, rows: int, *, sampler: str):
        super().__init__(Counter(denoiser), sampler)
        self.rows = rows
        self._fine: list[Tensor] = []  # (B,) bool of each forward pass, on a device: whether the rows were finite

    def ask(self, call: Callable[[], Any], *, positions: int, passes: int = 1, evaluations: int = 1) -> Any:
        """What `call` returns, counted as one forward pass over all rows of the batch, or as `evaluations` of them.

        Args:
            positions: numbers or tokens that the model is given for each row, for Sample.token_evals.
            passes: rows of the network for each row of the batch: 2 of a guided model.
        """
        return self.counter.reals(call, self.rows, self.rows * passes, positions, evaluations)

    @property
    def nfe_rows(self) -> Tensor:
        """(B,) int64: every row takes part in every forward pass."""
        return torch.full((self.rows,), self.counter.nfe, dtype=torch.int64, device=self.counter.denoiser.device)

    def check_finite(self, out: Tensor) -> None:
        """DenoiserError if a row of an answer (B, ...) holds what is no finite number.

        On a CPU it is found at once. On a device what was found is kept, a byte per row, and looked at when the run ends.
        """
        if self.sync_eagerly:
            # One pass; a sum of finite numbers that is not finite is rare, and looked at below.
            total = float(out.sum())
            if total - total == 0:
                return
        self._fine.append(torch.isfinite(out).flatten(1).all(1))
        if self.sync_eagerly:
            self.check()

    def check(self) -> None:
        if not self._fine:
            return
        bad = ~torch.stack(self._fine)  # (forward passes, B)
        before = 1 + self.counter.nfe - len(self._fine)
        self._fine = []
        for forward, row in bad.nonzero()[:1].tolist():
            self.raise_if_bad(1, row, 0, forward + before)

    def finished(self, state: State) -> bool:
        """Whether a run is at its end."""
        return state.finished

    def describe(self, status: int, position: int) -> str:
        return " a value that is not finite"


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are read: the driver's arguments that the predictor keeps.

    Attributes:
        temperature, top_k, top_p: of the token draw; a tuple has one value per row of the batch.
    """

    temperature: float | tuple[float, ...]
    cfg_scale: float = 0.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 1.0
    forbid: tuple[int, ...] = ()
    demote: tuple[int, ...] = ()

    def draws(self) -> tuple[list[DrawSetting], list[int] | None]:
        """The different settings of the draw, and of each row the number of its own; None if all rows have the same."""
        values: tuple[Any, ...] = (self.temperature, self.top_k, self.top_p)
        rows = max((len(v) for v in values if isinstance(v, tuple)), default=1)
        each = [DrawSetting(*[v[i] if isinstance(v, tuple) else v for v in values]) for i in range(rows)]
        different = sorted(set(each))
        return different, None if len(different) == 1 else [different.index(e) for e in each]


class DrawSetting(NamedTuple):
    """How the tokens of a row are drawn."""

    temperature: float
    top_k: int
    top_p: float

    def arguments(self, temperature: float | None, truncated: bool) -> dict[str, Any]:
        """The op's arguments. temperature: the sampler's own, or None for the run's."""
        temperature = self.temperature if temperature is None else temperature
        how: dict[str, Any] = {"temperature": temperature}
        if (self.top_k or self.top_p < 1) and (temperature > 0 or truncated):  # they never remove the best token
            how |= {"top_k": self.top_k, "top_p": self.top_p, "truncated": truncated}
        return how

    def distribution(self, logits: Tensor) -> Tensor:
        """(N, V) float32: the distributions that tokens are drawn from, of logits (N, V) float32."""
        if self.temperature == 0:  # the best token, the lowest id of equals
            ids = torch.arange(logits.shape[1], device=logits.device)
            best = torch.where(logits == logits.amax(1, keepdim=True), ids, len(ids)).amin(1, keepdim=True)
            return (ids == best).float()
        if self.top_k or self.top_p < 1:
            logits = truncated(logits, self.top_k, self.top_p, self.temperature)
        return (logits / self.temperature).softmax(1)


def _joined(parts: list[Logits]) -> Logits:
    """The entries of several, one after the other."""
    row, position, value = (torch.cat([getattr(p, f) for p in parts]) for f in ("row", "position", "value"))
    return Logits(row, position, value)


class _At(NamedTuple):
    """Where N answers belong."""

    row: Tensor
    position: Tensor


class Predictor(ErrorTracker):
    """What a token sampler asks the model through; implements samplers.prediction.Predict.

    Args:
        counter: of the denoiser.
        feed: how the model is given the canvas; it must use the same counter.
        config: how answers are read.
        sampler: its name, for errors.
    """

    def __init__(self, counter: Counter, feed: Feed, config: SamplingConfig, *, sampler: str = ""):
        super().__init__(counter, sampler)
        self.denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
        denoiser, device = self.denoiser, self.denoiser.device
        self.feed, self.config = feed, config
        self._draws, number = config.draws()
        # (B,) the number of each row's setting; None if all rows draw alike
        self._draw_of = None if number is None else torch.tensor(number, dtype=torch.int64, device=device)
        if denoiser.head is not None and len(denoiser.head.weight) != denoiser.vocab_size:
            raise DenoiserError(
                f"denoiser {denoiser.name!r} has vocab_size {denoiser.vocab_size} and a head of "
                f"{len(denoiser.head.weight)} ids; they must agree"
            )
        never = [i for i in (denoiser.mask_id, *config.forbid) if i is not None]
        self._forbid = torch.tensor(never, dtype=torch.int64, device=device)
        inside = [i for i in never if i < denoiser.vocab_size]
        self._forbid_inside = torch.tensor(inside, dtype=torch.int64, device=device)
        self._demote = torch.tensor(config.demote, dtype=torch.int64, device=device)
        self._seen: tuple[TokenState, list[int]] | None = None  # the counts that were read last, and of which state
        self._copies: dict[tuple[int, bool, int], Copies] = {}
        self.dry_run: DryRun | None = None
        self.recorder: InfoRecorder | None = None
        self.guiding: Guiding | None = None
        self.constraint: Tensor | None = None  # bool, broadcasts to (B, L, V): never drawn in this step
        self.language: BoundLanguage | None = None  # what the text of every row belongs to

    @property
    def temperature(self) -> float:
        temperature = self._draws[0].temperature
        if any(draw.temperature != temperature for draw in self._draws):
            raise OptionError(
                f"sampler {self.sampler!r} works with the run's temperature itself, so it takes one for all rows; runs of "
                "several temperatures can share their forward passes: samplers.Pool"
            )
        return temperature

    @property
    def nfe_rows(self) -> Tensor:
        """(B,) int64, forward passes that each row took part in so far."""
        return self.feed.nfe_rows

    @property
    def encoder_rows(self) -> Tensor | None:
        """(B,) int64, of nfe_rows those in which a BlockDenoiser read decided tokens; None of any other denoiser."""
        return self.feed.encoder_rows if isinstance(self.feed, EncodedFeed) else None

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the run's caches have written so far."""
        return self.feed.cache_bytes + sum(copies.feed.cache_bytes for copies in self._copies.values())

    @property
    def steers(self) -> bool:
        return self.guiding is not None and self.guiding.posterior

    # ------------------------------------------------------------------------------------------ for samplers

    def __call__(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: Want = (),
        t: Tensor | None = None,
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
    ) -> Prediction:
        if (through := self._cached_copies()) is not None:
            how = {"temperature": temperature, "confidence_temperature": confidence_temperature, "truncated": truncated}
            return through.one(state, rows, want=want, t=t, given=given, **how)
        asked, rows = rows, rows if self.language is None else self.language.widened(state, rows)
        return self.answer(
            state,
            self.queries(state, rows, t),
            want=want,
            temperature=temperature,
            confidence_temperature=confidence_temperature,
            truncated=truncated,
            given=given,
            only=None if self.language is None else asked,
        )

    def logits(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        t: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> Logits:
        if (through := self._cached_copies()) is not None:
            return through.one_logits(state, rows, t=t, temperature=temperature)
        asked, rows = rows, rows if self.language is None else self.language.widened(state, rows)
        made = self._logits(state, self.queries(state, rows, t), temperature)
        if rows is asked:
            return made
        assert asked is not None
        inside = asked[made.row, made.position]
        return dataclasses.replace(made.at(inside), beside=made.at(~inside))

    def _logits(self, state: TokenState, queries: Iterable[Query], temperature: Tensor | None = None) -> Logits:
        """The logits of some forward passes, guided and packed; see Predict.logits."""
        parts = []
        for query in queries:
            if temperature is not None:
                query = dataclasses.replace(query, temperature=temperature)
            value, index, query = self._asked(state, query)
            if index is not None:
                value = value[index]
            elif self.denoiser.head is None and temperature is None:
                value = value.clone()  # ours, to write into
            if query.guided:
                value = guide(value[: query.count].float(), value[query.count :].float(), self.config.cfg_scale)
            if temperature is not None:
                value = value.float() / temperature[query.row][:, None]
            value = self._apply_constraint(value.float(), query).index_fill_(1, self._forbid_inside, -torch.inf)
            parts.append(Logits(query.row, query.position, value))
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=state.x.device)
            empty = torch.zeros(0, self.denoiser.vocab_size, dtype=torch.float32, device=state.x.device)
            return Logits(none, none, empty)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def read(
        self,
        state: TokenState,
        logits: Logits,
        *,
        want: Want = (),
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
        draw: int = DRAW_TOKEN,
    ) -> Prediction:
        want = self._wanted(want)
        values = self.fill_values(state, want)
        how = self._draw_arguments(state, logits, want, temperature, confidence_temperature, truncated, given, draw)
        if self.language is None:
            out = self._drawn(logits, how, lambda at, own: ops.masked_softmax(logits.value, at, **own))
            out = self._blamed(out, None)
        else:
            out = self._drawn_together(state, logits, logits.value, how, draw, logits.beside)
        self._scatter(out, logits, logits.row * state.x.shape[1] + logits.position, values)
        return self._prediction(state, values)

    def probabilities(self, logits: Logits, check: bool = True) -> Tensor:
        value = logits.value
        if check:
            bad = (value.isnan() | (value == math.inf)).any(1)
            self.record(torch.where(bad, 1, torch.where((value == -math.inf).all(1), 2, 0)), logits)
        if self._draw_of is None:
            return self._draws[0].distribution(value)
        number, out = self._draw_of[logits.row], torch.empty_like(value)
        for i, setting in enumerate(self._draws):
            at = (number == i).nonzero().squeeze(1)  # a device sync, which rows that draw alike are spared
            out[at] = setting.distribution(value[at])
        return out

    def steered(self, state: TokenState, onward: Callable[[Logits], Logits], before: Tensor, after: Tensor) -> Logits:
        assert self.guiding is not None
        parts = []
        for query in self.queries(state, None, None):

            def ask(state: TokenState, query: Query) -> Tensor:
                value = self._packed(state, query).float()
                one = dataclasses.replace(query, guided=False)
                halves = [self._apply_constraint(half, one) for half in value.split(max(query.count, 1))]
                return torch.cat(halves).index_fill(1, self._forbid_inside, -torch.inf)

            if query.guided:
                part, status = self.guiding.steered(state, query, ask, onward, before, after)
                if status is not None:
                    self.record(status, query)
            else:
                part = onward(Logits(query.row, query.position, ask(state, query)))
            parts.append(part)
        return _joined(parts)

    def copies(self, number: int, apart: bool = False, first: int = 0) -> Copies:
        key = integer("copies(number)", number), bool(apart), integer("copies(first)", first, 0)
        if key not in self._copies:
            from .copies import Copies

            self._copies[key] = Copies(self, *key)
        return self._copies[key]

    def _cached_copies(self) -> Copies | None:
        """The copies whose caches stand for those of the run, if it has copies and caches: there must be one of each."""
        if not self._copies or not isinstance(self.feed, CachedFeed):
            return None
        return next(iter(self._copies.values()))

    # ------------------------------------------------------------------------------------------ what a line sees

    def sight(self, state: TokenState) -> Tensor:
        width, denoiser = state.x.shape[1], self.denoiser
        here = torch.arange(width, device=state.x.device)
        if denoiser.attention == "full":
            return torch.ones(width, width, dtype=torch.bool, device=state.x.device)
        size = 1 if denoiser.attention == "causal" else denoiser.attention_block
        return here[:, None] // size >= here // size

    def seen(
        self,
        state: TokenState,
        x: Tensor,
        positions: Tensor,
        visible: Tensor,
        asked: Tensor,
        *,
        want: Want = (),
        t: Tensor | None = None,
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
        draw: int = DRAW_SHADOW,
    ) -> Prediction:
        return self.answer(
            state,
            self._seen_queries(state, x, positions, visible, asked, t),
            want=want,
            temperature=temperature,
            confidence_temperature=confidence_temperature,
            truncated=truncated,
            given=x if given is None else given,
            draw=draw,
            sequence=x,
        )

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
        return self._logits(state, self._seen_queries(state, x, positions, visible, asked, t))

    def attention(
        self, state: TokenState, rows: Tensor | None = None, *, want: Want = (), temperature: float | None = None
    ) -> tuple[Prediction, Tensor]:
        self._needs("attends", "predict.attention")
        queries = [dataclasses.replace(query, maps=[]) for query in self.queries(state, rows, None)]
        prediction = self.answer(state, queries, want=want, temperature=temperature)
        batch, width = state.x.shape
        maps = torch.zeros(batch, width, width, dtype=torch.float32, device=state.x.device)
        for query in queries:
            assert query.maps
            n = query.length
            # A forward pass goes as far as its longest row: the lines that are filling attend to nothing here.
            ends = n if query.lengths is None else query.lengths[:, None, None]
            line = torch.arange(n, device=maps.device)[:, None]
            found = torch.where(line < ends, query.maps[0], 0.0)
            maps[:, :n, :n] = found if query.rows is None else maps[:, :n, :n].index_copy(0, query.rows, found)
        return prediction, maps

    def _needs(self, need: str, call: str) -> None:
        """SamplersError if a sampler asks in a way that it has not said it needs, and that this run does not have."""
        has = getattr(self.denoiser, need) and getattr(self.feed, "plan_seen", None) is not None
        if not has or self.dry_run is not None:
            raise SamplersError(
                f"sampler {self.sampler!r} calls {call}, which this run does not have: declare Facts(needs=({need!r},)), and the "
                "driver says before a run what does not go with it"
            )

    def _seen_queries(
        self, state: TokenState, x: Tensor, positions: Tensor, visible: Tensor, asked: Tensor, t: Tensor | None
    ) -> list[SeenQuery]:
        """The forward passes of `seen`, its arguments checked."""
        self._needs("masks", "predict.seen")
        shape, batch = tuple(x.shape), len(state.x)
        known = {"x": (x, torch.int64, shape), "positions": (positions, torch.int64, shape)}
        known |= {"visible": (visible, torch.bool, (*shape, *shape[1:])), "asked": (asked, torch.bool, shape)}
        for name, (value, dtype, size) in known.items():
            if value.dtype != dtype or tuple(value.shape) != size or len(value) != batch:
                raise SamplersError(
                    f"predict.seen(state, x, positions, visible, asked): {name} is {tuple(value.shape)} {value.dtype}; of "
                    f"sequences of n columns x, positions and asked are (B, n) and visible is (B, n, n), B = {batch}; x and "
                    "positions are int64, the others bool"
                )
        if self.sync_eagerly and bool(((positions < 0) | (positions >= state.x.shape[1])).any()):
            raise SamplersError(
                f"predict.seen: positions go from {int(positions.min())} to {int(positions.max())}; those of the canvas are 0 to "
                f"{state.x.shape[1] - 1}"
            )
        return self.feed.plan_seen(state, x, positions, visible, asked, t)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------ plan, feed, read

    def queries(self, state: TokenState, rows: Tensor | None, t: Tensor | None) -> Iterable[Query]:
        """The forward passes that answer for `rows`. One device sync, unless the counts are known already."""
        if rows is not None and (rows.dtype != torch.bool or rows.shape != state.x.shape):
            raise SamplersError(
                f"predict(state, rows): rows is {tuple(rows.shape)} {rows.dtype}; (B, L) = {tuple(state.x.shape)} bool is needed"
            )
        if self.dry_run is not None:
            counts = self.dry_run.next_counts()
        elif rows is None and self._seen is not None and self._seen[0] is state:
            counts = self._seen[1]
        else:
            counts = self.feed.counts(state, rows).tolist()
        return self.feed.plan(state, rows, counts, t)

    def answer(
        self,
        state: TokenState,
        queries: Iterable[Query],
        *,
        want: Want = (),
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        truncated: bool = False,
        given: Tensor | None = None,
        draw: int = DRAW_TOKEN,
        sequence: Tensor | None = None,
        only: Tensor | None = None,
    ) -> Prediction:
        """Run forward passes and read their answers: tokens, and what else is wanted, on the canvas.

        Args:
            sequence: (B, n) int64, the tokens of SeenQueries, whose answers are (B, n); None: it is the canvas.
            only: (B, L) bool, the positions whose answers are handed out, of those that the queries ask about; None: all.
        """
        want = self._wanted(want)
        values = self.fill_values(state, want, sequence)
        if only is not None and "given" in want:  # what is asked beside them may hold a mask, which has no probability
            given = torch.where(only, state.x if given is None else given, 0)
        unasked = {} if only is None else self.fill_values(state, want)
        for query in queries:
            how = self._draw_arguments(state, query, want, temperature, confidence_temperature, truncated, given, draw)
            # What top_k and top_p cut off is known when all logits are, so then they must be stored.
            stored = self.constraint is not None or self.language is not None
            stored = stored or any("top_k" in draw for draw in how["draws"])
            stored = stored or self._is_guided_apart(query)
            headless = self.denoiser.head is not None and not stored
            out = self._read_hidden(state, query, how) if headless else self._read_logits(state, query, how)
            self._scatter(out, query, query.on_canvas(values["token"].shape[1]), values)
        if only is not None:
            values = {k: torch.where(only, v, other) for (k, other), v in zip(unasked.items(), values.values())}
        return self._prediction(state, values)

    def finished(self, state: TokenState) -> bool:
        """Whether nothing is left to do. One device sync, which the next call need not repeat; none after a dry run."""
        if self.dry_run is not None:
            return self.dry_run.state.finished
        counts = self.feed.counts(state, None)
        if self.sync_eagerly:
            read = counts.tolist()
        else:  # errors of the forward passes before this one come along
            n, read = len(self._finding), torch.cat([self._finding, counts]).tolist()
            self.raise_if_bad(*read[:n])
            read = read[n:]
        self._seen = (state, read)
        return self.feed.idle(read)

    def _is_guided_apart(self, query: Query) -> bool:
        """Whether the answers to a query are guided by more than a second half of its own forward pass."""
        return query.guided and self.guiding is not None and not self.guiding.fused

    def _asked(self, state: TokenState, query: Query) -> tuple[Tensor, Tensor | None, Query]:
        """A forward pass: the logits (R, V), the rows of them that were asked for (None for all), and what is left to guide."""
        if not self._is_guided_apart(query):
            return *self._logits_of(self.feed.feed(state, query)), query
        assert self.guiding is not None
        value, status = self.guiding.logits(state, query, self._packed)
        if status is not None:
            self.record(status, query)
        return value, None, dataclasses.replace(query, guided=False)

    def _packed(self, state: TokenState, query: Query) -> Tensor:
        """(n, V): a forward pass, and the logits that were asked for; n is twice the count of a guided query."""
        value, index = self._logits_of(self.feed.feed(state, query))
        return value if index is None else value[index]

    def _logits_of(self, answer: Answer) -> tuple[Tensor, Tensor | None]:
        """The answer's logits (R, V), and the rows of them that were asked for; None for all."""
        head = self.denoiser.head
        if head is None:
            return answer.value, answer.index
        return self.counter.head(lambda: head.logits(answer.packed())), None

    def _read_logits(self, state: TokenState, query: Query, how: dict[str, Any]) -> ops.MaskedSoftmax:
        """A forward pass, and what the fused op makes of its logits."""
        logits, index, query = self._asked(state, query)
        own = None if index is None else index[: query.count]
        model = logits
        if self.language is not None:
            logits = logits if index is None else logits[index]
            own_logits = self._apply_constraint(logits[: query.count], query)
            if query.guided:
                own_logits = guide(own_logits.float(), logits[query.count :].float(), self.config.cfg_scale)
            return self._drawn_together(state, query, own_logits, how, DRAW_TOKEN)
        if self.constraint is not None:
            logits = logits if index is None else logits[index]
            barred = self._apply_constraint(logits[: query.count], query)
            logits, index = torch.cat([barred, logits[query.count :]]), None
        if query.guided:
            index = torch.arange(2 * query.count, device=logits.device) if index is None else index
            how |= {"guidance": logits, "guidance_index": index[query.count :], "cfg_scale": self.config.cfg_scale}
            index = index[: query.count]

        def read(at: Tensor | None, own: dict[str, Any]) -> ops.MaskedSoftmax:
            return ops.masked_softmax(logits, index if at is None else at if index is None else index[at], **own)

        return self._blamed(self._drawn(query, how, read), lambda: model[: query.count] if own is None else model[own])

    def _read_hidden(self, state: TokenState, query: Query, how: dict[str, Any]) -> ops.MaskedSoftmax:
        """The same of hidden rows and the head: logits are never stored."""
        head = self.denoiser.head
        assert head is not None
        hidden, blind = self.feed.feed(state, query).packed(), None
        if query.guided:
            how |= {"cfg_scale": self.config.cfg_scale}
            hidden, blind = hidden[: query.count], hidden[query.count :]

        def read(at: Tensor | None, own: dict[str, Any]) -> ops.MaskedSoftmax:
            asked = hidden if at is None else hidden[at]
            if blind is not None:
                own |= {"guidance": blind if at is None else blind[at]}
            return ops.headless_softmax(asked, head.weight, bias=head.bias, softcap=head.softcap, **own)

        out = self.counter.head(lambda: self._drawn(query, how, read))
        return self._blamed(out, lambda: head.logits(hidden))

    def _drawn(
        self, asked: Asked, how: dict[str, Any], read: Callable[[Tensor | None, dict[str, Any]], ops.MaskedSoftmax]
    ) -> ops.MaskedSoftmax:
        """What `read` makes of N positions; if rows draw differently, of the positions of each setting by themselves.

        Args:
            how: the op's arguments, those of each setting in "draws".
            read: called with the numbers of the positions that are read, (n,) int64 or None for all, and the op's arguments.
        """
        common = how.copy()
        draws = common.pop("draws")
        if self._draw_of is None:
            common.update(draws[0])
            return read(None, common)
        number, parts = self._draw_of[asked.row], []
        for i, draw in enumerate(draws):
            at = (number == i).nonzero().squeeze(1)  # a device sync, which rows that draw alike are spared
            if len(at):
                own = {name: common[name][at] for name in PER_POSITION if common.get(name) is not None}
                parts.append((at, read(at, common | own | draw)))
        if not parts:
            return read(None, common | draws[0])
        back = torch.cat([at for at, _ in parts]).argsort()
        fields: Any = [None if p[0] is None else torch.cat(p)[back] for p in zip(*(out for _, out in parts))]
        return ops.MaskedSoftmax(*fields)

    def _drawn_together(
        self,
        state: TokenState,
        asked: Asked,
        logits: Tensor,
        how: dict[str, Any],
        draw: int,
        beside: Logits | None = None,
    ) -> ops.MaskedSoftmax:
        """What is drawn of N positions under a language: see BoundLanguage.read.

        Args:
            logits: (N, V), guided.
            how: the op's arguments, those of each setting in "draws".
            draw: which of the step's uniform numbers.
            beside: logits of further positions of these rows, which bear on what the N may be.
        """
        language, n, row, position = self.language, len(asked.row), asked.row, asked.position
        assert language is not None
        more = 0 if beside is None else len(beside.row)
        if beside is not None and more:
            row, position = torch.cat([row, beside.row]), torch.cat([position, beside.position])
            logits = torch.cat([logits, beside.value.to(logits.dtype)])
        extra = torch.arange(n + more, device=row.device) >= n
        how = how | {"given": None if how.get("given") is None else torch.nn.functional.pad(how["given"], (0, more))}

        def read(at: Tensor | None, own: dict[str, Any]) -> ops.MaskedSoftmax:
            parts = [part if at is None else part[at] for part in (row, position, logits, extra)]
            return language.read(state, *parts[:3], beside=parts[3], draw=draw, **own)

        out = self._drawn(_At(row, position), how | {"uniform": None}, read)
        fields: Any = [None if v is None else v[:n] for v in out]
        return ops.MaskedSoftmax(*fields)

    def _apply_constraint(self, logits: Tensor, query: Query) -> Tensor:
        """(N, V) logits with what this step's constraint forbids at -inf."""
        if self.constraint is None:
            return logits
        length = self.constraint.shape[1]
        bar = self.constraint.expand(query.batch, length, -1)
        return logits.masked_fill(bar[query.row, query.position if length > 1 else query.position * 0], -torch.inf)

    def _draw_arguments(
        self,
        state: TokenState,
        asked: Asked,
        want: tuple[str, ...],
        temperature: float | None,
        confidence_temperature: float,
        truncated: bool,
        given: Tensor | None,
        draw: int = DRAW_TOKEN,
    ) -> dict[str, Any]:
        """The op's arguments that say how to draw, and what else is wanted of N positions; see `_drawn`."""
        draws = [setting.arguments(temperature, truncated) for setting in self._draws]
        hot = any(setting["temperature"] > 0 for setting in draws)
        how = {
            "draws": draws,
            "uniform": self._uniforms(state, asked, draw) if hot else None,
            "confidence_temperature": confidence_temperature,
            "forbid": self._forbid,
            "want": want,
        }
        if "given" in want:
            place = asked.column if isinstance(asked, SeenQuery) else asked.position
            how["given"] = ids = (state.x if given is None else given)[asked.row, place]
            mask_id = self.denoiser.mask_id
            if self.sync_eagerly and mask_id is not None and bool((ids == mask_id).any()):
                raise SamplersError(
                    f"want='given' asks for the probability of the mask id {mask_id}, which is no token: the masks among the "
                    "asked positions need a token in given=, such as torch.where(mask, 0, state.x)"
                )
        return how

    def _uniforms(self, state: TokenState, asked: Asked, draw: int) -> Tensor:
        """(N,) float64, by which the tokens of N answers are drawn. Lines beside the canvas have the draw number `draw`."""
        if not isinstance(asked, SeenQuery):
            return state.rng.at(asked.row, asked.position, state.step, draw)
        uniform = torch.zeros(asked.count, dtype=torch.float64, device=state.x.device)
        for part, number in zip(asked.parts, (DRAW_TOKEN, draw)):
            uniform[part] = state.rng.at(asked.row[part], asked.position[part], state.step, number)
        return uniform

    def fill_values(self, state: TokenState, want: tuple[str, ...], x: Tensor | None = None) -> dict[str, Tensor]:
        """(B, L) values for the positions that are not asked about. x: the tokens, if they are not the canvas's."""
        x, mask_id = state.x if x is None else x, state.canvas.mask_id
        values = {"token": x.clone() if mask_id is None else torch.full_like(x, mask_id)}
        for name in want:
            values[name] = torch.full(x.shape, FILL[name], dtype=torch.float32, device=x.device)
        return values

    def _scatter(self, out: ops.MaskedSoftmax, asked: Asked, flat: Tensor, values: dict[str, Tensor]) -> None:
        """Write what the op made of N positions to their places on the canvas, `flat` (N,) of it flattened."""
        self.record(out.status, asked)
        for name, value in values.items():
            new = getattr(out, name)
            if name == "token" and not self.sync_eagerly:
                # A row that is not fine has token -1, which no model may see; until it is checked, it stays as it was.
                new = torch.where(out.status == 0, new, value.flatten()[flat])
            value.view(-1).index_copy_(0, flat, new)

    def _wanted(self, want: Want) -> tuple[str, ...]:
        """What to compute: what was asked for, and what Sample.info needs."""
        want = (want,) if isinstance(want, str) else tuple(want)
        for name in want:
            if name not in FILL:
                raise SamplersError(
                    f"want={name!r} is nothing that a prediction has{did_you_mean(str(name), FILL)} "
                    f"It has token always, and on request {', '.join(FILL)}"
                )
        return want if self.recorder is None or "confidence" in want else (*want, "confidence")

    def _prediction(self, state: TokenState, values: dict[str, Tensor]) -> Prediction:
        if self.recorder is not None:
            width = state.x.shape[1]  # the canvas comes first in a sequence
            self.recorder.read(values["token"][:, :width], values["confidence"][:, :width])
        if self.config.demote:
            # LLaDA's rule for end-of-sequence tokens: they may be predicted, and are the last to be committed.
            demoted = torch.isin(values["token"], self._demote)
            least = {"confidence": 0.0, "margin": 0.0, "entropy": math.log(self.denoiser.vocab_size)}
            for name in least.keys() & values.keys():
                asked = values[name] != FILL[name]
                values[name] = torch.where(demoted & asked, least[name], values[name])
        return Prediction(**values)

    def raise_if_bad(self, status: int, row: int, position: int, forward: int) -> None:
        if status in (BAD, NOTHING):
            assert self.guiding is not None
            said = "is NaN or +inf" if status == BAD else "leaves no token that the model finds possible"
            raise OptionError(
                f"guide: what the classifier says of row {row}, position {position} {said} (forward pass {forward}, sampler "
                f"{self.sampler!r}); log p(y | x) is a number of at most 0, or -inf for a token that is ruled out"
            )
        if status == _BARRED:
            who = ["forbid="] * bool(self.config.forbid) + ["constrain="] * (self.constraint is not None)
            raise OptionError(
                f"what {' and '.join(who)} forbids leaves row {row}, position {position} without a token: no token is possible "
                f"there that denoiser {self.denoiser.name!r} gives a probability (forward pass {forward}, sampler "
                f"{self.sampler!r})"
            )
        super().raise_if_bad(status, row, position, forward)

    def describe(self, status: int, position: int) -> str:
        return f", position {position} {_STATUS[status]}"

    def _blamed(self, out: ops.MaskedSoftmax, logits: Callable[[], Tensor] | None) -> ops.MaskedSoftmax:
        """The same answer, its status _BARRED if no token was possible because of what the caller forbids.

        On a CPU the model's own logits (N, V) tell; elsewhere that would cost a pass over them in every step, and whatever
        is forbidden is blamed.
        """
        if self.constraint is None and not self.config.forbid:
            return out
        barred = out.status == 2
        if self.sync_eagerly and logits is not None:
            if not bool(barred.any()):
                return out
            own = logits().float()
            if self.denoiser.mask_id is not None and self.denoiser.mask_id < own.shape[1]:
                own = own.index_fill(1, self._forbid[:1], -torch.inf)
            barred &= (own > -torch.inf).any(1)
        return out._replace(status=torch.where(barred, _BARRED, out.status))


class SequencePredictor:
    """What a sequential sampler asks the model through: a predictor over a SequenceFeed, and what sequences can do besides.

    predict(state, want=...)              the masks at `state.open`, given after the row's sequence and not kept
    predict.next(state, where, masks)     the next token of each row, as plain autoregression asks for it
    predict.chunk(fed, *asks)             any positions, laid out for a forward pass; `predict.ask(state, chunk, token)`
                                          gives tokens there, whose keys and values stay if they are committed
    predict.guess(state, token, guesses, masks, asked)    the logits after tokens that are tried, and kept if they are committed
    predict.branches(state, number)       copies of the sequence, one per branch, that do not see each other
    """

    def __init__(self, predictor: Predictor, feed: SequenceFeed):
        self.predictor, self.feed = predictor, feed
        self.logits, self.read, self.copies = predictor.logits, predictor.read, predictor.copies
        self.probabilities = predictor.probabilities
        self.chunk, self.branches, self.merge = feed.chunk, feed.branches, feed.merge

    @property
    def temperature(self) -> float:
        return self.predictor.temperature

    def __call__(self, state: TokenState, rows: Tensor | None = None, **how: Any) -> Prediction:
        return self.predictor(state, rows, **how)

    def next(self, state: SequenceState, where: Tensor, masks: Tensor, *, want: Want = ()) -> Prediction:
        """One forward pass for one more token per row: given what the row has committed last, and a mask if one is needed.

        Args:
            where: (B, L) bool, at most one position per row.
            masks: (B, L) bool, positions that are answered by a mask in their place, which is not kept. Any other must be
                the one after the last of the sequence, whose line answers.
        """
        masks = masks & where
        counts = self.feed.counts(state, where, masks).tolist()
        return self.predictor.answer(state, self.feed.plan(state, where, counts, masks=masks), want=want)

    def guess(self, state: SequenceState, token: Tensor, guesses: Tensor, masks: Tensor, asked: Tensor) -> Logits:
        """One forward pass: what the row has committed and not kept, its last token in any case; tokens to try; and masks.

        Keys and values of the tokens that are tried stay if they are committed, in this order, with at least one more after them.

        Args:
            token: (B, L) int64, what is tried.
            guesses: (B, L) bool, where: a run of positions that begins after the last token of the row's sequence.
            masks: (B, L) bool, positions that are given as masks after the guesses, and not kept.
            asked: (B, L) bool, the positions that are answered. A mask is answered in its own line; any other position in the
                line of the token before it, which must be given: the last of the sequence, or a guess.

        Returns:
            Logits of the asked positions, by row and position.
        """
        state = dataclasses.replace(state, x=torch.where(guesses, token, state.x))
        counts = self.feed.counts(state, asked, masks, guesses).tolist()
        return self.predictor._logits(state, self.feed.plan(state, asked, counts, masks=masks, guesses=guesses))

    def ask(
        self,
        state: SequenceState,
        chunk: Chunk,
        token: Tensor,
        which: int | None = None,
        *,
        want: Want = (),
        given: Tensor | None = None,
        temperature: float | None = None,
        keep: bool = True,
    ) -> Prediction:
        """One forward pass: `token`, (B, L), at the chunk's positions, after what each row has kept.

        Args:
            which: number of the chunk's query mask that is answered; None: nothing is asked, the tokens are only kept.
            want, given, temperature: as for a call.
            keep: their keys and values stay after what is kept, else not.
        """
        query = chunk.query(token, which, keep=keep)
        if query.count:
            return self.predictor.answer(state, [query], want=want, given=given, temperature=temperature)
        self.feed.feed(state, query)
        return Prediction(**self.predictor.fill_values(state, (want,) if isinstance(want, str) else want))
