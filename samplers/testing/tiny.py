"""Problems small enough to enumerate, with answers that do not depend on the batch, bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..curves import exact_curve
from ..denoiser import CacheUse, TokenDenoiser, as_canvases
from ..gaussian.denoiser import At, GaussianDenoiser
from ..gaussian.moments import Moments
from ..models.cache import Cache
from ..sampler import Sampler
from ..schedule import NoiseSchedule, noise_schedule

__all__ = [
    "TinyAttending",
    "TinyJoint",
    "TinyMixture",
    "TinyNet",
    "TinyPoint",
    "TinySequential",
    "TinySure",
    "TinyUniformJoint",
    "TinyUniformNet",
    "as_asked",
    "for_any_model",
    "of_tokens",
    "solve_ode",
]


class Told:
    """Shown as the call that makes it, so that a message of the kit can be pasted into a Python session."""

    _told = ""

    def __new__(cls, *args: Any, **kw: Any) -> Any:
        made = super().__new__(cls)
        made._told = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kw.items())])
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._told})"


class TinyJoint(Told, TokenDenoiser):
    """The exact denoiser of a joint distribution over all V^L strings; mask_id is V.

    Args:
        length, vocab: L and V.
        seed: seed of the distribution: exponential weights to the power `skew`, so that cells differ a lot.
        time_conditioned: it wants the time, keeps it in `times`, and does not depend on it.

    Attributes:
        strings: (S, L) int64, all strings.
        law: (S,) float64, their probabilities.
    """

    def __init__(
        self, length: int = 3, vocab: int = 3, seed: int = 0, skew: float = 1.5, time_conditioned: bool = False
    ):
        self.length, self.vocab_size, self.mask_id = length, vocab + 1, vocab
        self.time_conditioned, self.name = time_conditioned, f"tiny joint {vocab}^{length}"
        self.tokens = vocab
        self.strings = torch.tensor(list(itertools.product(range(vocab), repeat=length)))  # (S, L)
        weight = torch.empty(len(self.strings), dtype=torch.float64).exponential_(generator=_generator(seed)) ** skew
        self.law = weight / weight.sum()  # (S,) float64
        self.onehot = torch.nn.functional.one_hot(self.strings, vocab + 1).double()  # (S, L, V + 1)
        self.times: list[Tensor] = []
        self.masks = True

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        assert (t is not None) == self.time_conditioned
        if t is not None:
            self.times.append(t)
        if visible is not None and positions is not None:
            return _of_lines(self._logits, x, rows, visible, positions, self.length, self.tokens)
        return self._logits(x, rows)

    def _logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        fits = ((x[:, None] == self.strings) | (x[:, None] == self.mask_id)).all(2)  # (B, S)
        weight = (fits * self.law)[:, :, None, None] * self.onehot  # (B, S, L, V + 1)
        # One string after another: a matrix product could round differently in a batch of another size.
        total = torch.zeros(len(x), *self.onehot.shape[1:], dtype=torch.float64)
        for s in range(len(self.strings)):
            total += weight[:, s]
        logits = torch.log(total).float()  # (B, L, V + 1), mask id at -inf
        return logits if rows is None else logits[rows]

    @property
    def entropy_curve(self) -> Tensor:  # type: ignore[override]
        """(L,) float64, exact."""
        return exact_curve(self.strings, self.law).nats

    def index(self, x: Tensor) -> Tensor:
        """(B,) int64: the number of each string in `law`."""
        powers = self.tokens ** torch.arange(self.length - 1, -1, -1)  # type: ignore[operator]
        return (x * powers).sum(1)


class TinyUniformJoint(TinyJoint):
    """The exact denoiser of the same distribution under uniform noise, with one noise level per position: 0 is clean.

    `times` keeps the levels that it was given.
    """

    def __init__(self, length: int = 3, vocab: int = 3, seed: int = 0, skew: float = 1.5):
        super().__init__(length, vocab, seed, skew, time_conditioned=True)
        self.vocab_size, self.mask_id, self.time_per_position, self.masks = vocab, None, True, False
        # Which strings have token v at position i: (L, V, S / V)
        self.having = torch.stack(
            [torch.stack([(self.strings[:, i] == v).nonzero()[:, 0] for v in range(vocab)]) for i in range(length)]
        )

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        **more: Any,
    ) -> Tensor:
        assert t is not None and t.shape == x.shape, "one noise level per position is (B, L)"
        self.times.append(t)
        weight = self.noisy(x, t)  # (B, S)
        total = torch.zeros(*x.shape, self.tokens, dtype=torch.float64)
        for s in range(self.having.shape[2]):  # one after another, as above
            total += weight[:, self.having[:, :, s]]
        logits = torch.log(total).float()  # (B, L, V)
        return logits if rows is None else logits[rows]

    def noisy(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, S) float64: law(s) prod_i ((1 - t_i) [x_i = s_i] + t_i / V). x: (B, L) int64, t: (B, L)."""
        weight = self.law.expand(len(x), -1)
        for i in range(self.length):  # type: ignore[arg-type]
            same = x[:, i, None] == self.strings[:, i]
            weight = weight * ((1 - t[:, i, None]) * same + t[:, i, None] / self.tokens)
        return weight


class TinyNet(Told, TokenDenoiser):
    """Random logits that depend on a window of neighbours: an arbitrary model of any length, without ties.

    It counts what it is asked, and checks that every needed position is masked unless `visible_too`, which is for samplers
    that judge or change what they have committed.

    Attributes:
        asked: the (rows, positions) of each call.
        given: how many tokens each call was given.
        times: (B,) float64 each, the times of each call if it is time_conditioned.
    """

    def __init__(
        self,
        vocab: int = 11,
        seed: int = 0,
        reach: int = 3,
        time_conditioned: bool = False,
        visible_too: bool = False,
    ):
        self.vocab_size, self.mask_id, self.reach, self.tokens = vocab + 1, vocab, reach, vocab
        self.visible_too = visible_too
        self.time_conditioned, self.name = time_conditioned, "tiny net"
        self.table = torch.randn(2 * reach + 1, vocab + 1, vocab + 1, generator=_generator(seed)) * 0.8
        self.asked: list[tuple[int, int]] = []
        self.given: list[int] = []
        self.times: list[Tensor] = []
        self.masks = self.attends = True

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        assert x.dtype == torch.int64 and x.dim() == 2
        assert bool(((x >= 0) & (x < self.vocab_size)).all()), "a token outside the vocabulary reached the model"
        assert (t is not None) == self.time_conditioned
        if t is not None:
            self.times.append(t)
        rows = torch.ones_like(x, dtype=torch.bool) if rows is None else rows
        if not self.visible_too:
            assert bool(x[rows].eq(self.tokens).all()), "logits were asked for at a position that is not masked"
        self.asked.append((len(x), int(rows.sum())))
        self.given.append(x.numel())
        if visible is not None and positions is not None:
            level = None if t is None else t[rows.nonzero()[:, 0]]
            length = 1 + int(positions.max())
            return _of_lines(
                lambda canvas, own: self._logits(canvas, level)[own], x, rows, visible, positions, length, self.tokens
            )
        return self._logits(x, t)[rows]

    def attended(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `predict`, and an arbitrary attention: each position's, over its window, depends on what stands there."""
        span = 2 * self.reach + 1
        near = torch.nn.functional.pad(x, (self.reach, self.reach), value=self.tokens).unfold(
            1, span, 1
        )  # (B, L, span)
        weight = (3 * self.table[torch.arange(span), near, 0]).softmax(-1)
        wide = torch.zeros(*x.shape, x.shape[1] + 2 * self.reach, dtype=torch.float32)
        column = torch.arange(x.shape[1])[:, None] + torch.arange(span)
        wide.scatter_(2, column.expand(len(x), -1, -1), weight)
        return self.predict(x, t, rows=rows), wide[:, :, self.reach : self.reach + x.shape[1]]

    def _logits(self, x: Tensor, t: Tensor | None) -> Tensor:
        padded = torch.nn.functional.pad(x, (self.reach, self.reach), value=self.tokens)
        out = torch.zeros(*x.shape, self.vocab_size)
        for j in range(2 * self.reach + 1):
            out += self.table[j][padded[:, j : j + x.shape[1]]]
        if t is not None:
            out = out * (0.5 + 0.5 * t[:, None, None]).float()
        return out


class TinySure(Told, TokenDenoiser):
    """Six positions whose best tokens do not depend on what it sees; three of them have a second token that is as good.

    Args:
        scale: the logit of the best tokens; the others have 0.
        mask: whether there is a mask, with id 4.

    Attributes:
        best: (6,) int64, the best token of each position, the lowest id of equals.
    """

    def __init__(self, scale: float, mask: bool = True):
        self.vocab_size, self.mask_id, self.length, self.name = 5, 4 if mask else None, 6, "tiny sure"
        self.masks = mask
        self.best = torch.tensor([3, 1, 2, 0, 3, 2], device="cpu")
        logits = torch.nn.functional.one_hot(self.best, 5).float()
        logits[1:4] += torch.nn.functional.one_hot(torch.tensor([2, 3, 3], device="cpu"), 5)
        self.said = scale * logits  # (6, 5)

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        logits = self.said.expand(len(x), -1, -1)  # (B, 6, 5)
        logits = logits if positions is None else self.said[positions]
        return logits if rows is None else logits[rows]


class TinyUniformNet(TinyNet):
    """As TinyNet without a mask: an arbitrary model of uniform noise."""

    def __init__(self, vocab: int = 11, seed: int = 0, reach: int = 3, time_conditioned: bool = False):
        super().__init__(vocab, seed, reach, time_conditioned, visible_too=True)
        self.vocab_size, self.mask_id, self.name, self.masks, self.attends = (
            vocab,
            None,
            "tiny uniform net",
            False,
            False,
        )
        self.table = self.table[:, :, :vocab].contiguous()


class TinyAttending(Told, TokenDenoiser):
    """Another denoiser, with an attention that says nothing: of the same weight at all positions of a canvas of fixed length."""

    attends = True

    def __init__(self, inner: TokenDenoiser):
        self.inner, self.name, self.length = inner, f"{inner.name}, with an attention", inner.length
        self.vocab_size, self.mask_id, self.time_conditioned = inner.vocab_size, inner.mask_id, inner.time_conditioned

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict(self, x: Tensor, t: Tensor | None = None, **more: Any) -> Tensor:
        return self.inner.predict(x, t, **more)

    def attended(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        maps = torch.full((*x.shape, x.shape[1]), 1 / x.shape[1], dtype=torch.float32)
        return self.inner.predict(x, t, rows=rows), maps


class TinySequential(Told, TokenDenoiser):
    """Another denoiser of masked tokens, read as a sequence: for samplers with Facts(sequential=True).

    A token sees what is kept and the tokens that are given before it, each at its position on a canvas that is masked
    elsewhere. The answer is what the other denoiser says of the token's own position if it is a mask, else of the next
    one. If the other denoiser is exact, both kinds of answer are.

    Attributes:
        asked: the (rows, tokens given, answers) of each call.
    """

    attention, predicts_next = "causal", True

    def __init__(self, inner: TokenDenoiser):
        self.inner, self.name, self.length = inner, f"{inner.name}, as a sequence", inner.length
        self.vocab_size, self.mask_id = inner.vocab_size, inner.mask_id
        self.asked: list[tuple[int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def new_cache(self, batch: int, length: int) -> Cache:
        return Cache(1, batch, 1, length, 1, dtype=torch.int64)  # keys are tokens, values are positions

    def predict(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: CacheUse | None = None
    ) -> Tensor:
        assert cache is not None and rows is not None
        store, positions = cache.store, cache.positions
        row, column = rows.nonzero().unbind(1)  # (N,) each: the given tokens that are answered
        length = self.length
        if length is None:
            length = 2 + max(int(p.max()) for p in (positions, store.value) if p.numel())
        kept = torch.arange(store.length) < store.lengths[row, None]  # (N, rows of the cache)
        before = torch.arange(x.shape[1]) <= column[:, None]  # (N, n)
        mask_id: int = self.mask_id  # type: ignore[assignment]
        canvas = torch.full((len(row), length + 1), mask_id)
        for seen, at, token in (
            (kept, store.value[0, :, 0, :, 0], store.key[0, :, 0, :, 0]),
            (before, positions, x),
        ):
            canvas.scatter_(1, torch.where(seen, at[row], length), token[row])
        target = positions[row, column] + (x[row, column] != mask_id)
        wanted = torch.arange(length) == target[:, None]
        self.asked.append((len(x), x.numel(), len(row)))
        if cache.write == "append":
            new = (v[None, :, None, :, None] for v in (x, positions))
            store.append(*new, cache.stored)
        return self.inner.predict(canvas[:, :-1], rows=wanted)


def of_tokens(cls: type[Sampler[Any]], exact: bool = False, **how: Any) -> TokenDenoiser:
    """A small model of tokens that samplers of a class can run on: any network, or the exact model of a distribution.

    Args:
        how: arguments of the model, such as its seed.
    """
    made: TokenDenoiser
    if exact:
        made = TinyUniformJoint(**how) if cls.family == "uniform" else TinyJoint(**how)
    else:
        made = TinyUniformNet(**how) if cls.family == "uniform" else TinyNet(visible_too=cls.facts.revises, **how)
    return as_asked(cls, made)


def as_asked(cls: type[Sampler[Any]], denoiser: TokenDenoiser) -> TokenDenoiser:
    """A denoiser of tokens in the way that samplers of a class ask it: at positions, or as a sequence, or for its attention."""
    if "attends" in cls.facts.needs and not denoiser.attends:
        return TinyAttending(denoiser)
    return TinySequential(denoiser) if cls.facts.sequential else denoiser


class TinyMixture(Told, GaussianDenoiser):
    """Independent coordinates of 0.4 N(-1, 0.3^2) + 0.6 N(0.8, 0.5^2), closed form in float64, whatever the model's dtype."""

    def __init__(self, dim: int = 4, schedule: str | NoiseSchedule = "vp_linear", dtype: torch.dtype = torch.float64):
        self.shape, self.schedule, self.dtype = (dim,), noise_schedule(schedule), dtype
        self.name = "tiny mixture"
        self.weight = torch.tensor([0.4, 0.6], dtype=torch.float64)
        self.mean = torch.tensor([-1.0, 0.8], dtype=torch.float64)
        self.std = torch.tensor([0.3, 0.5], dtype=torch.float64)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        variance = (a * self.std) ** 2 + s**2
        off = x[..., None] - a * self.mean  # (B, dim, 2)
        share = torch.softmax(self.weight.log() - off**2 / (2 * variance) - variance.log() / 2, -1)
        return (share * (self.mean + a * self.std**2 / variance * off)).sum(-1).to(x.dtype)

    def moments_of_data(self) -> tuple[float, float]:
        """Mean and standard deviation of a coordinate of x_0."""
        mean = float((self.weight * self.mean).sum())
        return mean, math.sqrt(float((self.weight * (self.std**2 + self.mean**2)).sum()) - mean**2)

    def moments(self, x: Tensor, at: Any, order: int = 3, signs: Any = None) -> Moments:
        """Exact, by the parts of each component's own mean, variance and distance from the whole mean."""
        a, s = (c[..., None] for c in At.of(self.schedule, at).columns(x))
        variance = (a * self.std) ** 2 + s**2
        off = x[..., None] - a * self.mean  # (B, dim, 2)
        share = torch.softmax(self.weight.log() - off**2 / (2 * variance) - variance.log() / 2, -1)
        each, left = self.mean + a * self.std**2 / variance * off, (self.std * s) ** 2 / variance
        away = each - (share * each).sum(-1, keepdim=True)
        sums = (share * each, share * (left + away**2), share * (away**3 + 3 * left * away))
        return Moments(*(m.sum(-1).to(x.dtype) for m in sums[:order]))


class TinyPoint(Told, GaussianDenoiser):
    """A model that knows x_0, `point`, whatever it sees: the exact denoiser of a distribution of one point."""

    def __init__(self, schedule: str | NoiseSchedule = "vp_linear"):
        self.point = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64, device="cpu")
        self.shape, self.schedule, self.dtype = (3,), noise_schedule(schedule), torch.float64
        self.name = "tiny point"

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.point + 0 * x  # a function of x, which may be differentiated

    def moments(self, x: Tensor, at: Any, order: int = 3, signs: Any = None) -> Moments:
        mean = self.point + 0 * x
        return Moments(*(mean, torch.zeros_like(mean), torch.zeros_like(mean))[:order])


def solve_ode(denoiser: GaussianDenoiser, x: Tensor, t_start: float, t_end: float, steps: int = 2000) -> Tensor:
    """The probability-flow ODE by classical Runge-Kutta of order 4 in lambda. It shares no code with any sampler.

    With y = x / alpha and rho = e^{-lambda}: dy / dlambda = -rho e(x, t).
    """
    schedule = denoiser.schedule
    start, end = (float(schedule.lam(t)) for t in (t_start, t_end))
    h = (end - start) / steps

    def slope(lam: float, y: Tensor) -> Tensor:
        t = schedule.t_of(torch.tensor(lam, dtype=torch.float64))
        a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
        e = (a * y - a * denoiser.predict(a * y, t.expand(len(y)))) / s
        return -math.exp(-lam) * e

    y = x / float(schedule.alpha(t_start))
    for k in range(steps):
        lam = start + k * h
        k1 = slope(lam, y)
        k2 = slope(lam + h / 2, y + h / 2 * k1)
        k3 = slope(lam + h / 2, y + h / 2 * k2)
        k4 = slope(lam + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * float(schedule.alpha(t_end))


def _of_lines(
    logits: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    rows: Tensor | None,
    visible: Tensor,
    positions: Tensor,
    length: int | None,
    mask_id: int,
) -> Tensor:
    """Each line's answer, as that of the canvas that it sees: logits(canvases (N, L), own positions (N, L)) -> (N, V)."""
    assert length is not None
    every = torch.ones_like(x, dtype=torch.bool) if rows is None else rows
    out = logits(*as_canvases(x, visible, positions, every, length, mask_id))
    return out if rows is not None else out.unflatten(0, tuple(x.shape))


def for_any_model(family: str = "masked") -> list[str]:
    """The samplers of a family that run on any of its denoisers: not sequential, without needs, and of one moment."""

    def runs(name: str) -> bool:
        facts = registry.load(name).facts
        return not facts.sequential and not facts.needs and facts.moments == 1

    return [name for name in registry.names("*", family) if runs(name)]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
