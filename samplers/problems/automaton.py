"""Rows that a weighted automaton makes: posteriors by forward-backward over its arcs, and all that is known of them exactly.

p(x) is proportional to the sum over paths of start[s_0] prod_k w(s_k, x_k, s_k+1) final[s_L]. With one path per row this is
a language with weights (balanced brackets, even parity, chains of words), with many a hidden Markov model.

Sums are float64 and made by halving a list of fixed length, never by a reduction whose order depends on the batch, so the
bits of a row are the same in every batch. Rescaling is by powers of two, so equal counts give equal probabilities bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .base import (
    RULED_OUT,
    Estimate,
    ExactTokens,
    Problem,
    Score,
    check_tokens,
    kernel_estimate,
    mean_estimate,
    per_position,
    truth_uniforms,
    wilson,
)
from .support import MASK, QUIET_BITS, Plan, Points, check_rows, encoded, groups_of, uniform_scores

__all__ = ["Automaton", "AutomatonTokens", "Language"]

NEVER = 1 << 28  # misses of what no path reaches
LISTED = 2048  # a language of at most so many rows is listed, and scored as a finite support
LEAST = -600.0  # nats: evidence below this counts as this much, lest a float64 underflows


@dataclass(frozen=True, eq=False)
class Automaton:
    """A weighted automaton over tokens 0 to `tokens` - 1.

    Attributes:
        source, token, target: (A,) int64, the arcs.
        weight: (A,) float64, positive.
        start, final: (S,) float64, the weights of states before the first token and after the last.
    """

    source: Tensor
    token: Tensor
    target: Tensor
    weight: Tensor
    start: Tensor
    final: Tensor
    tokens: int

    @staticmethod
    def of(
        arcs: Sequence[tuple[int, int, int]], start: Sequence[float], final: Sequence[float], tokens: int
    ) -> Automaton:
        """Arcs (source, token, target) of weight 1."""
        source, token, target = torch.tensor(arcs, dtype=torch.int64, device="cpu").unbind(1)
        one = torch.ones(len(arcs), dtype=torch.float64, device="cpu")
        first, last = (torch.tensor(end, dtype=torch.float64, device="cpu") for end in (start, final))
        return Automaton(source, token, target, one, first, last, tokens)

    @property
    def states(self) -> int:
        return len(self.start)

    def only(self, token: int) -> Automaton:
        """Without the arcs of other tokens."""
        here = self.token == token
        arcs = {name: getattr(self, name)[here] for name in ("source", "token", "target", "weight")}
        return replace(self, **arcs)

    def forward(self, vector: Tensor, says: Tensor | None = None) -> Tensor:
        """One step of row vectors (..., S), each arc times says[..., token] (..., V) if that is given."""
        moved = vector[..., self.source] * self.weight
        if says is not None:
            moved = moved * says[..., self.token]
        return torch.zeros_like(vector).index_add_(-1, self.target, moved)

    def backward(self, vector: Tensor) -> Tensor:
        """One step back of column vectors (..., S)."""
        return torch.zeros_like(vector).index_add_(-1, self.source, vector[..., self.target] * self.weight)


def _slots(group: Tensor, groups: int) -> Tensor:
    """The members of each group, (groups, width) int64 indices, filled up with len(group); the width is a power of two."""
    order = group.argsort(stable=True)
    count = torch.bincount(group, minlength=groups)
    width = 1 << max(0, int(count.max()) - 1).bit_length()
    slots = torch.full((groups, width), len(group), dtype=torch.int64, device="cpu")
    place = torch.arange(len(group), device="cpu") - (count.cumsum(0) - count)[group[order]]
    slots[group[order], place] = order
    return slots


def _halved(a: Tensor) -> Tensor:
    """The sum over the second dimension, a power of two, in one order whatever the others are: (G, D, R) -> (G, R)."""
    while a.shape[1] > 1:
        a = a[:, : a.shape[1] // 2] + a[:, a.shape[1] // 2 :]
    return a[:, 0]


@dataclass(frozen=True, eq=False)
class _Layer:
    """The arcs that a token of one position may take, states numbered among those of rows before and after it.

    Attributes:
        source, token, target: (A,) int64. weight: (A,) float64.
        into, out_of, carrying: which arcs enter each state, leave it, and have each token: see `_slots`.
    """

    source: Tensor
    token: Tensor
    target: Tensor
    weight: Tensor
    into: Tensor
    out_of: Tensor
    carrying: Tensor

    @staticmethod
    def of(automaton: Automaton, before: Tensor, after: Tensor, device: torch.device) -> _Layer:
        """before, after: the states of rows, int64."""
        number = torch.full((2, automaton.states), -1, dtype=torch.int64, device="cpu")
        for i, here in enumerate((before, after)):
            number[i, here] = torch.arange(len(here), dtype=torch.int64, device="cpu")
        source, target = number[0, automaton.source], number[1, automaton.target]
        live = (source >= 0) & (target >= 0)
        source, target, token = source[live], target[live], automaton.token[live]
        slots = _slots(target, len(after)), _slots(source, len(before)), _slots(token, automaton.tokens)
        return _Layer(*(x.to(device) for x in (source, token, target, automaton.weight[live], *slots)))


class AutomatonTokens(ExactTokens):
    """Posteriors of the rows of an automaton.

    A mask says nothing; a token at level t weighs (1 - t) [c = x] + t/V, and one at level 0 (all visible ones of masked
    noise) rules out the others. If no row agrees with what is visible, those with the fewest such mismatches count, as of
    CountingTokens: every message is a pair, the fewest misses on the way and the weight of the paths that have so many.

    Args:
        automaton: at least one row of `length` tokens must have a path.
        family: masked or uniform.
    """

    def __init__(
        self,
        automaton: Automaton,
        length: int,
        family: str,
        *,
        device: torch.device | str = "cpu",
        name: str = "automaton",
    ):
        self.tokens, self.length = automaton.tokens, length
        self._noised(family)
        self.device, self.name = torch.device(device), name

        self.start, self.final = automaton.start.to(self.device), automaton.final.to(self.device)
        before, after = [automaton.start > 0], [automaton.final > 0]
        for _ in range(length):
            before.append(automaton.forward(before[-1].to(torch.float64)) > 0)
            after.append(automaton.backward(after[-1].to(torch.float64)) > 0)
        self.live = [(b & a).nonzero()[:, 0] for b, a in zip(before, after[::-1])]  # the states of rows after k tokens
        self.layers = [_Layer.of(automaton, *ends, self.device) for ends in itertools.pairwise(self.live)]
        widest = max(slots.numel() for layer in self.layers for slots in (layer.into, layer.out_of, layer.carrying))
        self.block = max(1, (1 << 20) // widest)  # rows

    def posterior(self, x: Tensor, t: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        seen = F.one_hot(x, self.tokens + 1)[..., : self.tokens]  # (B, L, V), 0 at masks
        says = torch.ones(seen.shape, dtype=torch.float64, device=x.device)
        quiet = (x != self.tokens)[..., None]  # (B, L, 1)
        if t is not None:
            level = per_position(t, x)[..., None]
            quiet = level < 2.0**-QUIET_BITS
            says = torch.where(quiet, 1.0, (1 - level) * seen + level / self.tokens)
        return self._read(says, quiet & (seen == 0), positions)

    def _posterior_given(self, evidence: Tensor) -> Tensor:
        out = evidence <= -RULED_OUT  # (B, L, V)
        return self._read(torch.where(out, 1.0, evidence.clamp_min(LEAST).exp()), out, None)

    def _read(self, says: Tensor, miss: Tensor, positions: Tensor | None) -> Tensor:
        """The posterior (B, P, V) if token v at position k weighs says[k, v] and is a mismatch if miss[k, v]: (B, L, V) each."""
        wanted = range(self.length) if positions is None else positions.tolist()
        # Rows last: what is gathered then are whole lines of them.
        says, miss = says.permute(1, 2, 0), miss.permute(1, 2, 0).to(torch.int32)  # (L, V, B)
        parts = [
            self._read_block(a.contiguous(), b.contiguous(), wanted)
            for a, b in zip(says.split(self.block, 2), miss.split(self.block, 2))
        ]
        return torch.cat(parts, 2).permute(2, 0, 1).contiguous()

    def _read_block(self, says: Tensor, miss: Tensor, wanted: Sequence[int]) -> Tensor:
        """(L, V, R) -> (P, V, R)."""
        rows = says.shape[2]
        forward = [self._ends(self.start[self.live[0]], rows)]
        for k in range(max(wanted, default=0)):
            layer = self.layers[k]
            arcs = self._along(forward[-1], layer.source, layer, says[k], miss[k])
            forward.append(self._gathered(*arcs, layer.into))
        out = says.new_empty(len(wanted), self.tokens, rows)
        place = {k: i for i, k in enumerate(wanted)}
        back = self._ends(self.final[self.live[-1]], rows)
        for k in range(self.length - 1, min(wanted, default=self.length) - 1, -1):
            layer = self.layers[k]
            weight, missed = self._along(back, layer.target, layer, says[k], miss[k])
            if k in place:
                w, m = (part.index_select(0, layer.source) for part in forward[k])
                weights, fewest = self._of_slots(weight * w, missed + m, layer.carrying)  # (V, R)
                p = torch.where(fewest == fewest.amin(0), weights, 0.0)
                width = 1 << (self.tokens - 1).bit_length()
                out[place[k]] = p / _halved(F.pad(p, (0, 0, 0, width - self.tokens))[None])
            if k > min(wanted):
                back = self._gathered(weight, missed, layer.out_of)
        return out

    @staticmethod
    def _ends(weight: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The message at an end: weights and misses, (S, R) each."""
        misses = torch.zeros_like(weight, dtype=torch.int32)
        return weight[:, None].expand(-1, rows), misses[:, None].expand(-1, rows)

    @staticmethod
    def _along(
        message: tuple[Tensor, Tensor], end: Tensor, layer: _Layer, says: Tensor, miss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each arc's weight and misses, (A, R), from those of the states at one end of it."""
        weight, misses = (part.index_select(0, end) for part in message)
        said, missed = (part.index_select(0, layer.token) for part in (says, miss))
        return weight * layer.weight[:, None] * said, misses + missed

    def _gathered(self, weight: Tensor, misses: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """From arcs (A, R) to the message at the states that slots gather them to, the largest weight about 1."""
        weight, misses = self._of_slots(weight, misses, slots)
        _, exponent = torch.frexp(weight.amax(0))
        return torch.ldexp(weight, -exponent), misses

    @staticmethod
    def _of_slots(weight: Tensor, misses: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Per group of arcs the fewest misses, and the weight of the arcs that have so many: (G, R) each."""
        misses = torch.where(weight > 0, misses, NEVER)
        shape = (*slots.shape, weight.shape[1])
        weight = F.pad(weight, (0, 0, 0, 1)).index_select(0, slots.flatten()).view(shape)  # (G, D, R)
        misses = F.pad(misses, (0, 0, 0, 1), value=NEVER).index_select(0, slots.flatten()).view(shape)
        fewest = misses.amin(1)
        return _halved(torch.where(misses == fewest[:, None], weight, 0.0)), fewest.clamp_max(NEVER)


class Language(Problem):
    """Base of problems whose rows an automaton makes. Subclasses make the automaton, and say how to render a row.

    Scores: `mmd`, the squared kernel distance to the exact distribution with the kernel r^(number of positions that differ),
    r = 1 - 5/L or 1/3 if that is more, relative to what two exact rows have in common, its floor exact; `invalid`, the share of
    rows without a path, if there are such rows; `tv`, `kl` and chi2_p as of Support, if the rows are equally likely and at most
    2,048; `nll`, nats per position, if rows have several paths. Plots use `tv` if there is one, else `mmd`.

    Args:
        automaton: if `single`, no row has two paths, and all arcs and ends weigh 1 or 0: rows are equally likely.
        length: L.
        names: one character for each token.
    """

    families = ("masked", "uniform")
    primary = {"masked": "mmd", "uniform": "mmd"}

    def __init__(self, automaton: Automaton, length: int, names: str, single: bool = True):
        self.automaton, self.names, self.single = automaton, names, single
        self.length = self._length = length
        self.count = round(math.exp(self.log_total)) if single else None
        if self.count is not None and self.count <= LISTED:
            self.primary = dict.fromkeys(self.families, "tv")

    @property
    def tokens(self) -> int:
        """V, the number of clean tokens."""
        return self.automaton.tokens

    def _masked(self, device: torch.device | str = "cpu") -> AutomatonTokens:
        return AutomatonTokens(self.automaton, self._length, "masked", device=device, name=f"{self.name}/masked")

    def _uniform(self, device: torch.device | str = "cpu") -> AutomatonTokens:
        return AutomatonTokens(self.automaton, self._length, "uniform", device=device, name=f"{self.name}/uniform")

    # what is known exactly

    @functools.cached_property
    def _ahead(self) -> list[Tensor]:
        """The weight of all ways to go on from each state after k tokens: (S,), the largest 1, for k = 0 ... L."""
        found = [self.automaton.final]
        for _ in range(self._length):
            found.append(self.automaton.backward(found[-1]))
            found[-1] = found[-1] / found[-1].max()
        return found[::-1]

    def _log_weight(self, says: Sequence[Tensor | None], rows: int) -> Tensor:
        """The log of the sum over paths, each times what says[k] (rows, V) says of its tokens: (rows,) float64."""
        message = self.automaton.start.expand(rows, -1)
        log = torch.zeros(rows, dtype=torch.float64, device="cpu")
        for one in says:
            message = self.automaton.forward(message, one)
            top = message.amax(1)
            log += top.log()
            message = message / torch.where(top > 0, top, 1.0)[:, None]
        return log + (message @ self.automaton.final).log()

    @functools.cached_property
    def log_total(self) -> float:
        """The log of the weight of all paths; of equally likely rows the log of their number."""
        return float(self._log_weight([None] * self._length, 1)[0])

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exact: (n, L) int64 -> (n,) float64, nats; -inf if the row has no path."""
        check_rows(x, self._length, f"problem {self.name!r}: log_prob")
        tokens = ((x >= 0) & (x < self.tokens)).all(1)
        says = F.one_hot(x.clamp(0, self.tokens - 1), self.tokens).to(torch.float64).unbind(1)
        return torch.where(tokens, self._log_weight(says, len(x)) - self.log_total, -math.inf)

    @functools.cached_property
    def _entropy(self) -> tuple[float, float]:
        """The entropy and its standard error, by the entropies of the next token after the beginnings of exact samples."""
        auto = self.automaton
        x = self._sample_truth(1 << 12, 1 << 40, "masked")  # a seed that no user's samples have
        message = auto.start.expand(len(x), -1)
        total = torch.zeros(len(x), dtype=torch.float64, device="cpu")
        for k in range(self._length):
            arcs = message[:, auto.source] * auto.weight * self._ahead[k + 1][auto.target]  # (n, A)
            p = torch.zeros(len(x), self.tokens, dtype=torch.float64, device="cpu").index_add_(1, auto.token, arcs)
            total += torch.special.entr(p / p.sum(1, keepdim=True)).sum(1)
            message = auto.forward(message, F.one_hot(x[:, k], self.tokens).to(torch.float64))
            message = message / message.amax(1, keepdim=True)
        return float(total.mean()), float(total.std()) / math.sqrt(len(x))

    def entropy(self) -> float:
        """The distribution's entropy in nats. With several paths per row no formula is known: then it is an estimate from
        4,096 exact samples, and `entropy_error` its standard error."""
        return self.log_total if self.single else self._entropy[0]

    @property
    def entropy_error(self) -> float:
        """The standard error of `entropy()`: 0 if it is exact."""
        return 0.0 if self.single else self._entropy[1]

    def marginals(self) -> Tensor:
        """p(x_i = v): (L, V) float64."""
        masks = torch.full((1, self._length), self.tokens, dtype=torch.int64, device="cpu")
        return AutomatonTokens(self.automaton, self._length, "masked").posterior(masks)[0]

    def total_correlation(self) -> float:
        """The sum of the entropies of the positions less that of the row, nats; see `entropy` for its error."""
        return float(torch.special.entr(self.marginals()).sum()) - self.entropy()

    def one_shot(self, plan: Plan | None = None) -> float:
        """The probability that a row is valid if all its positions are drawn at once, or group by group from left to right.

        Args:
            plan: how many positions each group has, such as [4, 4]; None: all at once.

        Raises:
            OptionError: the groups are no numbers that add up to L, or rows have several paths and so no beginning tells the
                state.
        """
        return self._plan(plan)[0]

    def plan_kl(self, plan: Plan | None = None) -> float:
        """KL(p || q) in nats, q being what the plan of `one_shot` makes."""
        return self._plan(plan)[1]

    def _plan(self, plan: Plan | None) -> tuple[float, float]:
        who = f"problem {self.name!r}"
        groups = [len(g) for g in groups_of(plan, range(self._length), who)]
        if plan is not None and not all(isinstance(g, int) for g in plan):
            raise OptionError(
                f"{who}: groups are numbers of positions from left to right, such as [2, 2], not {plan!r}"
            )
        if not self.single:
            if plan is not None:
                raise OptionError(
                    f"{who}: what a row begins with does not tell the state, so plans are not known exactly"
                )
            return 1.0, self.total_correlation()
        auto, ahead, k = self.automaton, self._ahead, 0
        begin = auto.start[None]  # (R, S): the states that a group may begin in, each known to those who draw it
        true = valid = torch.ones(
            1, dtype=torch.float64, device="cpu"
        )  # (R,): the chance of each, of p and of the plan
        entropy = 0.0
        for size in groups:
            message, drawn = begin, (begin > 0).to(torch.float64)
            for j in range(k, k + size):
                arcs = message[:, auto.source] * auto.weight * ahead[j + 1][auto.target]  # (R, A)
                token = torch.zeros(len(begin), self.tokens, dtype=torch.float64, device="cpu")
                token = token.index_add_(1, auto.token, arcs)
                token = token / token.sum(1, keepdim=True)
                entropy += float((true * torch.special.entr(token).sum(1)).sum())
                # A path that leads nowhere has a weight of its own; `ahead` at the end of the group takes it out.
                drawn = auto.forward(drawn, token)
                message = auto.forward(message)
                message = message / message.amax(1, keepdim=True)
            k += size
            ends = message * ahead[k]
            true = true @ (ends / ends.sum(1, keepdim=True))  # (S,)
            valid = (valid @ drawn) * (ahead[k] > 0)
            alive = ahead[k] > 0
            begin = torch.eye(auto.states, dtype=torch.float64, device="cpu")[alive & (true > 0)]
            true, valid = true[alive & (true > 0)], valid[alive & (true > 0)]
        return float(valid.sum()), max(0.0, entropy - self.entropy())

    @functools.cached_property
    def _listed(self) -> Points | None:
        """All rows, if they are few and equally likely."""
        if self.count is None or self.count > LISTED:
            return None
        auto, ahead = self.automaton, self._ahead
        rows: list[tuple[tuple[int, ...], int]] = [((), int(s)) for s in (auto.start > 0).nonzero()]
        arcs = list(zip(auto.source.tolist(), auto.token.tolist(), auto.target.tolist()))
        for k in range(self._length):
            good = (ahead[k + 1] > 0).tolist()
            rows = [((*row, v), b) for row, s in rows for a, v, b in arcs if a == s and good[b]]
        return Points(torch.tensor(sorted({row for row, _ in rows}), dtype=torch.int64, device="cpu"))

    # samples

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        auto, ahead = self.automaton, self._ahead
        u = truth_uniforms(n, seed, self._length + 1)  # (n, L + 1): the last says which state it starts in
        state = _drawn((auto.start * ahead[0]).expand(n, -1), u[:, -1])
        slots = _slots(auto.source, auto.states)  # (S, D)
        x = torch.empty(n, self._length, dtype=torch.int64, device="cpu")
        for k in range(self._length):
            weight = F.pad(auto.weight * ahead[k + 1][auto.target], (0, 1))  # (A + 1,)
            here = slots[state]  # (n, D)
            arc = here.gather(1, _drawn(weight[here], u[:, k])[:, None])[:, 0]
            x[:, k], state = auto.token[arc], auto.target[arc]
        return x

    # scores

    def _score(self, x: Tensor, family: str) -> Score:
        check_tokens(x, self._length, self.tokens, None, f"{self.name} score")
        estimates: dict[str, Estimate] = {}
        extras: dict[str, float] = {}
        if self._listed is not None:
            estimates, extras = uniform_scores(self._listed, x, "rows_seen")
        elif self.single:
            estimates = {"invalid": wilson(int((self.log_prob(x) == -math.inf).sum()), len(x), truth=0.0)}
        else:
            estimates = {"nll": self._nll(x)}
        estimates["mmd"] = self._mmd(x)
        return Score(estimates, problem=self.name, family=family, primary=self.primary[family], extras=extras)

    def _nll(self, x: Tensor) -> Estimate:
        return mean_estimate(-self.log_prob(x) / self._length, truth=self.entropy() / self._length)

    def _mmd(self, x: Tensor) -> Estimate:
        same = F.one_hot(x, self.tokens).to(torch.float64).flatten(1)  # (n, L V)
        shares = [(self._alike ** (self._length - part @ same.t())).mean(1) for part in same.split(1024)]
        says = [torch.where(one > 0, 1.0, self._alike) for one in F.one_hot(x, self.tokens).unbind(1)]
        to_exact = (self._log_weight(says, len(x)) - self.log_total).exp()
        return kernel_estimate(torch.cat(shares)[:, None], to_exact, self._exact_kernel, 1.0, scale=self._exact_kernel)

    @property
    def _alike(self) -> float:
        """What the kernel is multiplied by for each position that differs: so small that it sees words of several tokens."""
        return max(1 / 3, 1 - 5 / self._length)

    @functools.cached_property
    def _exact_kernel(self) -> float:
        """E k(Y, Y') of two exact rows: forward over pairs of states."""
        auto = self.automaton
        alone = [auto.only(v) for v in range(self.tokens)]
        pairs, log = auto.start[:, None] * auto.start, -2 * self.log_total  # (S, S)
        for _ in range(self._length):
            moved = self._alike * auto.forward(auto.forward(pairs).t())
            for one in alone:
                moved = moved + (1 - self._alike) * one.forward(one.forward(pairs).t())
            log += math.log(float(moved.max()))
            pairs = moved / moved.max()
        return math.exp(log + math.log(float(auto.final @ pairs @ auto.final)))

    # text

    def render(self, x_row: Tensor) -> str:
        """The names of the tokens, '·' at masks."""
        return "".join(self.names[v] if 0 <= v < self.tokens else MASK for v in x_row.detach().cpu().tolist())

    def encode(self, text: str) -> Tensor:
        """Characters to tokens, one each: (n,) int64, blanks left out; '·' is the mask. OptionError for any other character."""
        return encoded(text, self.names, self.name)


def _drawn(weight: Tensor, u: Tensor) -> Tensor:
    """One column for each row of weights (n, D), by inverting: (n,) int64. Never one of weight 0."""
    total = weight.cumsum(1)
    pick = torch.searchsorted(total, (u * total[:, -1])[:, None].contiguous(), right=True)[:, 0]
    last = (weight > 0).to(torch.int64).mul(torch.arange(1, weight.shape[1] + 1, device="cpu")).amax(1) - 1
    return torch.minimum(pick, last)
