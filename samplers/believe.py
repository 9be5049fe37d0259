"""Believe: what a sampler asks the model through. Guidance, temperature, draws, counting and checks are here, once.

A token sampler calls `believe(state, rows, want=...)` and gets a Belief, (B, L) tensors of tokens and of how sure the
model is of them; a Gaussian one calls `believe(x, t)` and gets the denoised x_0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .caching import Kept, Scheme
from .canvas import Canvas, TokenState
from .denoiser import Counter, Denoiser, GaussianDenoiser, TokenDenoiser
from .errors import DenoiserError, SamplersError
from .ops.masked_softmax import guide
from .random import DRAW_BLIND, DRAW_TOKEN
from .sampler import Sampler, State

__all__ = ["Belief", "Believe", "Foreseen", "Knobs", "Logits", "NoiseBelieve"]


@dataclass(frozen=True)
class Belief:
    """What the model thinks of the positions that were asked for; elsewhere the values that never win.

    Attributes:
        token: (B, L) int64, the token drawn (or best, at temperature 0); the mask id where not asked.
        confidence: (B, L) float32, the probability of `token`; -inf where not asked.
        margin: (B, L) float32, the best probability less the second best; -inf where not asked.
        entropy: (B, L) float32, nats; +inf where not asked.
        lse: (B, L) float32, log sum exp of the logits; -inf where not asked.
        given: (B, L) float32, the probability of a given token; -inf where not asked.
    Those not named in `want` are None.
    """

    token: Tensor
    confidence: Tensor | None = None
    margin: Tensor | None = None
    entropy: Tensor | None = None
    lse: Tensor | None = None
    given: Tensor | None = None

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is None and name in _ELSEWHERE:
            raise SamplersError(f"belief.{name} was not asked for: believe(state, want={name!r})")
        return value


_ELSEWHERE = {"confidence": -torch.inf, "margin": -torch.inf, "entropy": torch.inf} | dict.fromkeys(
    ("lse", "given"), -torch.inf
)
_STATUS = {
    1: "a NaN or +inf among its logits",
    2: "only -inf logits: no token is possible",
    3: "a row of logits that is not there",
}


class _Asked:
    """What both kinds of `believe` keep: the counter, each row's forwards, and what was found wrong with an answer.

    On a CPU an answer is looked at when it comes. On a device a look would wait for it in every step: the first thing
    found wrong stays there, in one small tensor, until the driver reads something back anyway.
    """

    def __init__(self, denoiser: Denoiser, batch: int, sampler: str):
        self.counter = Counter(denoiser)
        self.sampler = sampler
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=denoiser.device)  # (B,)
        self.looks_at_once = denoiser.device.type == "cpu"
        self._finding = torch.zeros(4, dtype=torch.int64, device=denoiser.device)  # status, row, position, forward

    def _found(self, status: Tensor, row: Tensor, position: Tensor) -> None:
        """Take note of the statuses of an answer, 0 where it is fine; with each its row and position. All (N,)."""
        if not status.numel() or (self.looks_at_once and not bool(status.any())):
            return
        first = status.ne(0).to(torch.uint8).argmax().view(1)  # the first of equals
        what = [x.index_select(0, first).to(torch.int64) for x in (status, row, position)]
        finding = torch.cat([*what, torch.full_like(what[0], self.counter.nfe)])  # (4,)
        self._finding = torch.where(self._finding[0] == 0, finding, self._finding)
        if self.looks_at_once:
            self.check()

    def check(self) -> None:
        """DenoiserError if an answer of the model was bad; called before a result is handed out."""
        self._judge(*self._finding.tolist())

    def _judge(self, status: int, row: int, position: int, forward: int) -> None:
        if status:
            raise DenoiserError(
                f"denoiser {self.counter.denoiser.name!r} gave row {row}{self._what(status, position)} "
                f"(forward {forward}, sampler {self.sampler!r})"
            )

    def _what(self, status: int, position: int) -> str:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Logits:
    """The logits of N asked positions, packed, for samplers that do more with them than draw; see Believe.logits.

    Attributes:
        row, position: (N,) int64, where each is on the canvas.
        value: (N, V) float32, guided; what must not be drawn at -inf.
    """

    row: Tensor
    position: Tensor
    value: Tensor

    def on_canvas(self, packed: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, L): `packed` (N,) at the asked positions, `elsewhere` (B, L) at the others."""
        return elsewhere.index_put((self.row, self.position), packed.to(elsewhere.dtype))


@dataclass(frozen=True)
class Knobs:
    """How answers are read: the driver's arguments that Believe keeps."""

    temperature: float
    cfg_scale: float = 0.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    top_k: int = 0
    top_p: float = 1.0
    forbid: tuple[int, ...] = ()
    demote: tuple[int, ...] = ()


class Believe(_Asked):
    """What a token sampler asks the model through: `believe(state, rows, want=...)` -> Belief.

    Runs the model on the rows of the batch that need it and its head on the positions that do, applies guidance and
    temperature, draws with the run's own randomness, and counts. One fused op makes token, confidence, margin and entropy.
    """

    def __init__(
        self, denoiser: TokenDenoiser, batch: int, knobs: Knobs, *, scheme: Scheme | None = None, sampler: str = ""
    ):
        super().__init__(denoiser, batch, sampler)
        self.denoiser, self.knobs = denoiser, knobs
        self.truncation = {"top_k": knobs.top_k, "top_p": knobs.top_p} if knobs.top_k or knobs.top_p < 1 else {}
        if denoiser.head is not None and len(denoiser.head.weight) != denoiser.vocab_size:
            raise DenoiserError(
                f"denoiser {denoiser.name!r} has vocab_size {denoiser.vocab_size} and a head of "
                f"{len(denoiser.head.weight)} ids; they must agree"
            )
        never = [i for i in (denoiser.mask_id, *knobs.forbid) if i is not None]
        self._forbid = torch.tensor(never, dtype=torch.int64, device=denoiser.device)
        inside = [i for i in never if i < denoiser.vocab_size]
        self._forbid_inside = torch.tensor(inside, dtype=torch.int64, device=denoiser.device)
        self._demote = torch.tensor(knobs.demote, dtype=torch.int64, device=denoiser.device)
        self._previous: Tensor | None = None  # (B, L, V), of a self-conditioned denoiser
        self.scheme = scheme
        self._kept: dict[tuple[int, bool], Kept] = {}  # by length and whether the prompt is masked
        self._seen: tuple[TokenState, list[int]] | None = None  # the last look, and the state it was at
        self.foreseen: Foreseen | None = None
        self.constraint: Tensor | None = None  # bool, broadcasts to (B, L, V): never drawn in this step

    @property
    def temperature(self) -> float:
        """Of the token draw, as the run was told; 0 takes the best."""
        return self.knobs.temperature

    def __call__(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: str | tuple[str, ...] = (),
        t: Tensor | None = None,
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        given: Tensor | None = None,
    ) -> Belief:
        """Ask for `rows`, (B, L) bool (default: state.open). Rows of the batch without a position cost nothing.

        Args:
            want: any of confidence, margin, entropy, lse, given; no other is computed.
            t: (B,) the noise level for a time-conditioned model, of the open positions where it takes a time a position;
                default: what the state says, `state.noise_level` or `state.levels`.
            temperature: of the draw; None: the run's.
            confidence_temperature: of the softmax behind confidence, margin, entropy and lse. The draw has its own.
            given: (B, L) int64, the tokens whose probability "given" is; default: those that stand there.
        """
        want = (want,) if isinstance(want, str) else tuple(want)
        made = self._blank(state, want)
        for who, asked, needed, length, guided in self._parts(state, rows):
            flat = torch.nonzero_static(asked, size=needed)  # (N, 2): known size, so no wait
            row, position = who[flat[:, 0]], flat[:, 1]
            # What top-k and top-p cut is known when all logits are, and so they need the logits stored.
            unstored = self.denoiser.head is not None and not self.truncation and self.constraint is None
            made_of = self._with_head if unstored else self._with_logits
            kw = self._drawing(state, row, position, want, temperature, confidence_temperature, given)
            out = made_of(state, t, who, asked, needed, length, guided, row, position, **kw)
            self._take(state, out, row, position, made)
        return self._belief(state, made)

    def logits(self, state: TokenState, rows: Tensor | None = None, *, t: Tensor | None = None) -> Logits:
        """As a call, but the logits themselves, guided and packed: for rules that combine distributions.

        Stored as (N, V) float32: ask for no more rows than you need. What you make of them goes through `read`.
        """
        parts = []
        for who, asked, needed, length, guided in self._parts(state, rows):
            flat = torch.nonzero_static(asked, size=needed)
            row, position = who[flat[:, 0]], flat[:, 1]
            value, index = self._answer(state, t, who, asked, needed, length, guided)
            value = value.clone() if index is None else value[index]  # ours, to write into
            if guided:
                value = guide(value[:needed].float(), value[needed:].float(), self.knobs.cfg_scale)
            value = self._barred(value.float(), row, position).index_fill_(1, self._forbid_inside, -torch.inf)
            parts.append(Logits(row, position, value))
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=state.x.device)
            return Logits(none, none, torch.zeros(0, self.denoiser.vocab_size, device=state.x.device))
        return Logits(*(torch.cat([getattr(p, f) for p in parts]) for f in ("row", "position", "value")))

    def read(
        self,
        state: TokenState,
        logits: Logits,
        *,
        want: str | tuple[str, ...] = (),
        temperature: float | None = None,
        confidence_temperature: float = 1.0,
        given: Tensor | None = None,
        draw: int = DRAW_TOKEN,
    ) -> Belief:
        """What a call would have given of these logits: tokens drawn at `temperature` (None: the run's), and `want`.

        draw: which of the step's uniforms; a second draw in one step needs another than the first.
        """
        want = (want,) if isinstance(want, str) else tuple(want)
        row, position = logits.row, logits.position
        made = self._blank(state, want)
        kw = self._drawing(state, row, position, want, temperature, confidence_temperature, given, draw)
        self._take(state, ops.masked_softmax(logits.value, **kw), row, position, made)
        return self._belief(state, made)

    # ------------------------------------------------------------------------------------------ which rows run

    def finished(self, state: TokenState) -> bool:
        """Whether nothing is left to do. One look at the device, which the next call need not repeat; none if foreseen."""
        if self.foreseen is not None:
            return self.foreseen.state.finished
        counts = self._counts(state, state.open)
        look = torch.cat([self._finding, state.done.all().view(1), counts.flatten()]).tolist()
        self._judge(*look[:4])  # of the forwards before this one, where they were not looked at at once
        self._seen = (state, look[5:])
        return bool(look[4])

    def _counts(self, state: TokenState, rows: Tensor) -> Tensor:
        """(groups, 2) int64: of each group of rows that may share a forward, those that run and their positions."""
        needed = rows.sum(1)  # (B,)
        group, groups = self._group(state)
        counts = torch.zeros(groups, 2, dtype=torch.int64, device=rows.device)
        return counts.index_add_(0, group, torch.stack([(needed > 0).to(torch.int64), needed], 1))

    def _group(self, state: TokenState) -> tuple[Tensor, int]:
        """(B,): each row's group; and how many there are. Rows of one length, those inside cfg_interval apart."""
        canvas, (low, high) = state.canvas, self.knobs.cfg_interval
        assert canvas.group is not None
        kinds = len(canvas.group_lengths)
        if not self._guides(canvas) or (low, high) == (0.0, 1.0):
            return canvas.group, kinds
        level = state.noise_level
        return canvas.group + kinds * ((level > low) & (level <= high)), 2 * kinds

    def _guides(self, canvas: Canvas) -> bool:
        return self.knobs.cfg_scale != 0 and canvas.has_prompt

    def _parts(self, state: TokenState, rows: Tensor | None) -> Iterator[tuple[Tensor, Tensor, int, int, bool]]:
        """The forwards to make: (rows of the batch (A,), asked (A, length), positions asked, length, guided) of each."""
        canvas = state.canvas
        seen = rows is None and self._seen is not None and self._seen[0] is state
        rows = state.open if rows is None else rows & canvas.fill
        if self.foreseen is not None:
            look = self.foreseen.take()
        elif seen:
            look = self._seen[1]  # type: ignore[index]
        else:
            look = self._counts(state, rows).flatten().tolist()
        group, groups = self._group(state)
        active = rows.any(1)
        for g, (n_rows, needed) in enumerate(zip(look[::2], look[1::2])):
            if n_rows:
                who = torch.nonzero_static(active & (group == g), size=n_rows).squeeze(1)  # (A,)
                length = canvas.group_lengths[g % len(canvas.group_lengths)]
                guided = self._guides(canvas) and (groups == len(canvas.group_lengths) or g >= groups // 2)
                self.nfe_rows[who] += 1
                yield who, rows[who, :length], needed, length, guided

    # ------------------------------------------------------------------------------------------ one forward

    def _input(self, state: TokenState, t: Tensor | None, who: Tensor, asked: Tensor, length: int, guided: bool):
        """What the model is given: (x, t, asked, more), the unguided rows behind the guided ones."""
        canvas, denoiser = state.canvas, self.denoiser
        x = state.x[who, :length]  # (A, length)
        time = None
        if denoiser.time_conditioned:
            if denoiser.time_per_position:
                time = state.levels if t is None else torch.where(state.open, t[:, None], state.levels)
                time = time[who, :length]  # (A, length)
            else:
                time = (state.noise_level if t is None else t)[who]  # (A,)
        more = {}
        if denoiser.self_conditioned:
            if self._previous is None:
                self._previous = torch.zeros(*state.x.shape, denoiser.vocab_size, device=x.device)
            more["previous"] = self._previous[who, :length]
        if guided:
            # Unsupervised guidance (Nie et al. 2024, SMDM): the unconditional rows are the same with the prompt masked.
            # Uniform noise has no mask; what says nothing there is noise.
            nothing = (
                canvas.mask_id if canvas.mask_id is not None else canvas.noise(state.step, DRAW_BLIND)[who, :length]
            )
            x = torch.cat([x, torch.where(canvas.prompt_mask[who, :length], nothing, x)])
            if time is not None and time.dim() == 2:
                time = torch.cat([time, torch.where(canvas.prompt_mask[who, :length], 1.0, time)])
            elif time is not None:
                time = torch.cat([time, time])
            asked = torch.cat([asked, asked])
            more = {k: torch.cat([v, v]) for k, v in more.items()}
        return x, time, asked, more

    def _forward(self, state, t, who, asked, needed, length, guided) -> tuple[Tensor, Tensor | None]:
        """One forward: hidden rows (n, D) of a denoiser with a head, else logits (R, V) and the needed rows' numbers,
        or None for all. Guided: twice as many, the unguided ones behind."""
        if self.scheme is not None:
            return self._cached(state, t, who, asked, needed, length, guided), None
        x, time, both, more = self._input(state, t, who, asked, length, guided)
        n = (1 + guided) * needed
        if self.denoiser.head is not None:
            return self.counter.hidden(x, time, both, n), None
        logits, index = self.counter.tokens(x, time, both, n, **more)
        if self._previous is not None:
            flat = torch.nonzero_static(asked, size=needed)
            first = (logits if index is None else logits[index])[:needed].float()
            self._previous = self._previous.index_put((who[flat[:, 0]], flat[:, 1]), first)
        return logits, index

    def _cached(self, state, t, who, asked, needed, length, guided) -> Tensor:
        """The same through a KV cache: packed. With guidance the rows whose prompt is masked have a cache of their own."""
        canvas, rows = state.canvas, torch.zeros_like(state.open)
        rows[who, :length] = asked
        t = (state.noise_level if t is None else t) if self.denoiser.time_conditioned else None
        answers = []
        for blind in (False, True)[: 1 + guided]:
            if (length, blind) not in self._kept:
                mine = [i for i, n in enumerate(canvas.lengths) if n == length]
                assert self.scheme is not None
                self._kept[length, blind] = Kept(self.denoiser, self.scheme, mine, length)
            x = torch.where(canvas.prompt_mask, canvas.mask_id or 0, state.x) if blind else state.x
            answer, cost = self._kept[length, blind].answer(state, x, t, rows, needed, self.counter)
            answers.append(answer)
            if not blind:  # `_parts` has counted one for each row
                self.nfe_rows += (cost - 1).clamp_min(0)
        return torch.cat(answers)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the run's caches have written so far."""
        return sum(kept.store.bytes_written for kept in self._kept.values())

    def _answer(self, state, t, who, asked, needed, length, guided) -> tuple[Tensor, Tensor | None]:
        """The logits of one forward: (R, V) and the needed rows' numbers, or None for all. Guided: twice as many."""
        out, index = self._forward(state, t, who, asked, needed, length, guided)
        head = self.denoiser.head
        return (out, index) if head is None else (self.counter.head(lambda: head.logits(out)), None)

    def _with_logits(self, state, t, who, asked, needed, length, guided, row, position, **kw) -> ops.MaskedSoftmax:
        """A forward and what the fused op makes of its logits. Guided: the second half of x is the unconditional one."""
        logits, index = self._answer(state, t, who, asked, needed, length, guided)
        if self.constraint is not None:
            logits = logits if index is None else logits[index]
            logits, index = torch.cat([self._barred(logits[:needed], row, position), logits[needed:]]), None
        if guided:
            index = torch.arange(2 * needed, device=logits.device) if index is None else index
            kw |= {"guidance": logits, "guidance_index": index[needed:], "cfg_scale": self.knobs.cfg_scale}
            index = index[:needed]
        return ops.masked_softmax(logits, index, **kw)

    def _with_head(self, state, t, who, asked, needed, length, guided, row, position, **kw) -> ops.MaskedSoftmax:
        """The same of hidden rows and the head: logits are never stored."""
        head = self.denoiser.head
        assert head is not None
        hidden, _ = self._forward(state, t, who, asked, needed, length, guided)
        if guided:
            kw |= {"guidance": hidden[needed:], "cfg_scale": self.knobs.cfg_scale}
            hidden = hidden[:needed]
        return self.counter.head(
            lambda: ops.headless_softmax(hidden, head.weight, bias=head.bias, softcap=head.softcap, **kw)
        )

    def _barred(self, logits: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """(N, V) logits with what this step's constraint forbids at -inf."""
        if self.constraint is None:
            return logits
        batch, length = self.nfe_rows.shape[0], self.constraint.shape[1]
        bar = self.constraint.expand(batch, length, -1)
        return logits.masked_fill(bar[row, position if length > 1 else torch.zeros_like(position)], -torch.inf)

    # ------------------------------------------------------------------------------------------ what is made of it

    def _drawing(
        self, state, row, position, want, temperature, confidence_temperature, given, draw=DRAW_TOKEN
    ) -> dict[str, Any]:
        """The op's arguments that say how to draw, and what else is wanted of N positions."""
        temperature = self.temperature if temperature is None else temperature
        kw = {
            "uniform": state.rng.at(row, position, state.step, draw) if temperature > 0 else None,
            "temperature": temperature,
            "confidence_temperature": confidence_temperature,
            "forbid": self._forbid,
            "want": want,
            **self.truncation,
        }
        if "given" in want:
            kw["given"] = (state.x if given is None else given)[row, position]
        return kw

    def _blank(self, state: TokenState, want: tuple[str, ...]) -> dict[str, Tensor]:
        """Values for where nothing is asked."""
        mask_id = state.canvas.mask_id
        made = {"token": state.x.clone() if mask_id is None else torch.full_like(state.x, mask_id)}
        return made | {name: torch.full(state.x.shape, _ELSEWHERE[name], device=state.x.device) for name in want}

    def _take(self, state: TokenState, out: ops.MaskedSoftmax, row: Tensor, position: Tensor, made) -> None:
        """Write what the op made of N positions to where they are on the canvas."""
        self._found(out.status, row, position)
        # A row that is not fine has token -1, which no model may see; until it is looked at, it stays as it was.
        token = (
            out.token if self.looks_at_once else torch.where(out.status == 0, out.token, made["token"][row, position])
        )
        made["token"][row, position] = token
        for name in made.keys() - {"token"}:
            made[name][row, position] = getattr(out, name)

    def _belief(self, state: TokenState, made: dict[str, Tensor]) -> Belief:
        if self.knobs.demote:
            # LLaDA's rule for end-of-sequence tokens: they may be predicted, and are the last to be committed.
            where = torch.isin(made["token"], self._demote)
            least = {"confidence": 0.0, "margin": 0.0, "entropy": math.log(self.denoiser.vocab_size)}
            for name in least.keys() & made.keys():
                asked = made[name] != _ELSEWHERE[name]
                made[name] = torch.where(where & asked, least[name], made[name])
        return Belief(**made)

    def _what(self, status: int, position: int) -> str:
        return f", position {position} {_STATUS[status]}"


class Foreseen:
    """What a run will ask for, known ahead without the device, where that does not depend on the model's answers.

    The sampler runs a second time on the CPU, on a canvas of its own, with a model that always says the same. Its random
    draws are those of the run itself (they are counters, not a generator), so are its counts; its tokens mean nothing.
    """

    def __init__(self, sampler: Sampler, canvas: Canvas, believe: Believe):
        self.sampler, self.state = sampler, sampler.init(canvas.to("cpu"))
        self.believe = believe
        self._asked: list[list[int]] = []

    def advance(self) -> None:
        """Take the step that the run will take."""
        assert not self._asked, "a step of the run asked for less than was foreseen"
        self.state = self.sampler.step(self, self.state)

    def take(self) -> list[int]:
        """What the run's next call needs, as `Believe._counts` gives it."""
        return self._asked.pop(0)

    @property
    def temperature(self) -> float:
        return self.believe.temperature

    def __call__(
        self, state, rows=None, *, want=(), t=None, temperature=None, confidence_temperature=1.0, given=None
    ) -> Belief:
        return self._made(state, self._ask(state, rows), want)

    def logits(self, state, rows=None, *, t=None) -> Logits:
        """One number a position in place of V: what is made of them has no bearing on what is asked next."""
        row, position = self._ask(state, rows).nonzero().unbind(1)
        return Logits(row, position, torch.zeros(len(row), 1))

    def read(self, state, logits, *, want=(), **how) -> Belief:
        asked = torch.zeros_like(state.open).index_put((logits.row, logits.position), torch.tensor(True))
        return self._made(state, asked, want)

    def _ask(self, state, rows) -> Tensor:
        rows = state.open if rows is None else rows & state.canvas.fill
        self._asked.append(self.believe._counts(state, rows).flatten().tolist())
        return rows

    def _made(self, state, rows, want) -> Belief:
        # Any token but the mask will do.
        token = torch.where(rows, 1 if state.canvas.mask_id == 0 else 0, self.believe._blank(state, ())["token"])
        want = (want,) if isinstance(want, str) else want
        return Belief(token, **{name: torch.where(rows, 0.5, _ELSEWHERE[name]) for name in want})


class NoiseBelieve(_Asked):
    """What a Gaussian sampler asks the model through: `believe(x, t)` -> the denoised x_0, (B, *shape)."""

    def __init__(self, denoiser: GaussianDenoiser, batch: int, *, sampler: str = ""):
        super().__init__(denoiser, batch, sampler)
        self.denoiser = denoiser

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The denoised x_0 of every row at the schedule's time t."""
        out = self.counter.gaussian(x, torch.full((len(x),), t, dtype=torch.float64, device=x.device))
        self.nfe_rows += 1
        rows = torch.arange(len(x), device=x.device)
        self._found(~torch.isfinite(out).flatten(1).all(1), rows, rows)
        return out

    def finished(self, state: State) -> bool:
        return state.finished

    cache_bytes = 0  # reals have no cache

    def _what(self, status: int, position: int) -> str:
        return " a value that is not finite"
