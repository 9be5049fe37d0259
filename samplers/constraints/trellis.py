"""Sums and maxima over all token strings of an automaton: what a constrained draw is made of, in float64.

Everything is exact in the sense of the other sums of this library: terms are counted in whole units of a power of two below
the largest of them, so a sum does not depend on its order, on the batch or on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Span", "Table", "Trellis", "best_token", "drawn_token", "kind_weights", "log_sums", "log_weights"]

RULED_OUT = 1e6  # nats: a token that the model, top_k or top_p rules out is taken if the language leaves nothing else
HELD = 1e9  # nats: the price of another token in the place of one that is held
CHUNK = 1 << 22  # logits that are worked on at the same time


@dataclass(frozen=True, eq=False)
class Table:
    """An automaton over tokens. Tokens that lead from every state to the same states are of one kind.

    Every state can be reached and can be completed to a string of the language.

    Attributes:
        kind: (V,) int64, the kind of each token; C: it is in no string.
        size: (C,) int64, tokens of each kind, 1 or more. lowest: (C,) int64, the lowest id of each kind.
        live: (V',) int64, the tokens that are in some string, ascending.
        move: (Q + 1, C + 1) int64, the state after a token of a kind; Q: no string goes on so.
        accepting: (Q,) bool.
        start: the state before the first token.
        number: (Q0,) int64, the number that each state of the language's own automaton has here; Q: it is not here.
        source, target, by: (P,) int64, the pairs of states there is a move between, and which set of kinds moves so.
        within, member: (M,) int64, the sets of kinds, one after the other: the number of a set, and a kind in it. States that
            differ by a count alone share their sets, so there are far fewer sets than pairs.
        sets: how many sets there are.
    """

    kind: Tensor
    size: Tensor
    lowest: Tensor
    live: Tensor
    move: Tensor
    accepting: Tensor
    start: int
    number: Tensor
    source: Tensor
    target: Tensor
    by: Tensor
    within: Tensor
    member: Tensor
    sets: int

    @property
    def states(self) -> int:
        return len(self.accepting)

    @property
    def kinds(self) -> int:
        return len(self.size)

    @classmethod
    def of(
        cls,
        kind: Tensor,
        move: Tensor,
        accepting: Tensor,
        start: int,
        device: torch.device | str,
        starts: Iterable[int] = (),
    ) -> Table | None:
        """The table without states and tokens that are in no string; None if there is no string at all.

        Args:
            kind: (V,) int64 on the CPU, -1 for tokens that are in no string.
            move: (Q, C) int64 on the CPU, -1: no string goes on so. accepting: (Q,) bool on the CPU.
            starts: the states in which texts begin, if that is not `start` alone.
        """
        states, kinds = move.shape
        used = torch.bincount(kind[kind >= 0], minlength=kinds) > 0
        move = torch.where(used, move, -1)
        source, by = (move >= 0).nonzero().unbind(1)
        target = move[source, by]
        first = torch.zeros(states, dtype=torch.bool, device="cpu")
        first[list(starts) or [start]] = True
        useful = _closure(first, source, target) & _closure(accepting, target, source)
        if not bool((useful & first).any()):
            return None
        keep = useful[source] & useful[target]
        source, by, target = source[keep], by[keep], target[keep]
        used = torch.zeros(kinds, dtype=torch.bool, device="cpu")
        used[by] = True
        state_number, kind_number = _numbered(useful), _numbered(used)
        n_states, n_kinds = int(useful.sum()), int(used.sum())
        source, by, target = state_number[source], kind_number[by], state_number[target]
        new_kind = torch.where(kind >= 0, kind_number[kind.clamp_min(0)], -1)
        new_kind = torch.where(new_kind >= 0, new_kind, n_kinds)
        live = (new_kind < n_kinds).nonzero().squeeze(1)
        lowest = torch.full((n_kinds,), len(kind), dtype=torch.int64, device="cpu")
        lowest.scatter_reduce_(0, new_kind[live], live, "amin")
        table = torch.full((n_states + 1, n_kinds + 1), n_states, dtype=torch.int64, device="cpu")
        table[source, by] = target
        pairs, set_of_pair, within, member = _pairs(source * n_states + target, by)
        tensors = (
            new_kind,
            torch.bincount(new_kind[live], minlength=n_kinds),
            lowest,
            live,
            table,
            accepting[useful],
        )
        moves = pairs // n_states, pairs % n_states, set_of_pair, within, member
        kind_, size, lowest, live, move, accepting = (part.to(device) for part in tensors)
        source, target, by, within, member = (part.to(device) for part in moves)
        number, sets = torch.where(useful, state_number, n_states), len(within.unique())
        tensors = kind_, size, lowest, live, move, accepting
        own = int(number[start]), number.to(device)
        return cls(*tensors, *own, source, target, by, within, member, sets)

    def completions(self, n: int) -> Tensor:
        """(n + 1, Q + 1) float64: 0 if a text goes on from a state for just so many tokens, else -inf."""
        out = torch.full((n + 1, self.states + 1), -torch.inf, dtype=torch.float64, device=self.accepting.device)
        out[0, :-1] = torch.where(self.accepting, 0.0, -torch.inf)
        for k in range(n):
            out[k + 1, :-1] = _maxima(out[k : k + 1, self.target], self.source, self.states)[0]
        return out


def _pairs(pair: Tensor, by: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moves (E,) grouped: the pairs of states, ascending; the number of each one's set of kinds; the sets, see Table."""
    order = torch.argsort(by, stable=True)
    order = order[torch.argsort(pair[order], stable=True)]
    pairs, sizes = torch.unique_consecutive(pair[order], return_counts=True)
    number: dict[tuple[int, ...], int] = {}
    of_pair = [number.setdefault(tuple(kinds.tolist()), len(number)) for kinds in by[order].split(sizes.tolist())]
    within = [i for kinds, i in number.items() for _ in kinds]
    member = [kind for kinds in number for kind in kinds]
    made = [torch.tensor(part, dtype=torch.int64, device="cpu") for part in (of_pair, within, member)]
    return pairs, made[0], made[1], made[2]


def _closure(first: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """(Q,) bool: what can be reached from the states `first`, (Q,) bool, along the edges."""
    reached = first.clone()
    while True:
        more = reached.clone()
        more[target[reached[source]]] = True
        if bool((more == reached).all()):
            return reached
        reached = more


def _numbered(where: Tensor) -> Tensor:
    """(n,) int64: the number of each True among the True ones; -1 elsewhere."""
    return torch.where(where, where.cumsum(0) - 1, -1)


def _units(value: Tensor, terms: int) -> tuple[Tensor, float]:
    """exp of values of at most 0 in whole units of 2^-bits, int64, and bits: so many that `terms` of them fit in 63 bits."""
    bits = min(52, 62 - max(terms, 1).bit_length())
    return torch.round(torch.exp(value) * 2.0**bits).to(torch.int64), float(bits)


def log_sums(value: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """log sum exp of the values of each group, and their maximum: (A, groups) float64 each; -inf of an empty group.

    Args:
        value: (A, E) float64. group: (E,) int64.
    """
    most = _maxima(value, group, groups)
    finite = torch.where(most > -torch.inf, most, 0.0)
    weight, bits = _units(value - finite[:, group], value.shape[1])
    total = torch.zeros(most.shape, dtype=torch.int64, device=value.device).index_add_(1, group, weight)
    return torch.where(most > -torch.inf, finite + total.double().log() - bits * math.log(2), -torch.inf), most


def _maxima(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """(A, groups): the largest of each group's values (A, E), -inf of an empty group."""
    most = value.new_full((len(value), groups), -torch.inf)
    return most.scatter_reduce_(1, group.expand(len(value), -1), value, "amax")


@dataclass(frozen=True, eq=False)
class Span:
    """Which places of the rows' texts have to be summed over: not those known from the front on, nor the free ones at the end.

    Attributes:
        lead: (A,) int64, how many tokens each row's text is known to begin with. state: (A,) int64, the state after them.
        first: the least of the leads. stop: no place from here on is known or asked about, in any row.
        after: (A, Q + 1) float64, 0 if a row's text can be completed from a state before the place `stop`, else -inf.
    """

    lead: Tensor
    state: Tensor
    first: int
    stop: int
    after: Tensor


class Trellis:
    """All strings of n tokens for each of A rows, weighed by the kind of the token in each place.

    Args:
        table: the automaton.
        weight: (A, n, C) float64, the log weight of each kind in each place; finite.
        length: (A,) int64, how many tokens a row's text has, at most n.
        last: (A,) int64, the last place whose tokens matter. Of what comes after it, only the best completion counts, so that
            weights of 0 ask whether there is one at all.
        soft: weights add up, as probabilities do. False: only the heaviest string counts.
        span: the places that are summed over; in the others the weights are those of the tokens that are known, and 0. None:
            all of them.
    """

    def __init__(
        self, table: Table, weight: Tensor, length: Tensor, last: Tensor, soft: bool, span: Span | None = None
    ):
        if span is None:
            start, n = torch.full_like(length, table.start), weight.shape[1]
            end = table.completions(0).expand(len(length), -1)
            span = Span(torch.zeros_like(length), start, 0, n, end)
        self.table, self.weight, self.length, self.soft, self.span = table, weight, length, soft, span
        first, stop = span.first, span.stop
        value = weight[:, first:stop][:, :, table.member].flatten(0, 1)
        group = (table.within, table.sets)
        of_sets = log_sums(value, *group)[0] if soft else _maxima(value, *group)
        self.by_set = of_sets.view(len(weight), stop - first, table.sets)  # the log weight of each set of kinds
        # (stop - first + 1, A, Q + 1): the log weight of what is still to come, from each state; the last column is of no state
        self.after = weight.new_full((stop - first + 1, *span.after.shape), -torch.inf)
        self.after[-1] = span.after
        for k in range(stop - 1, first - 1, -1):
            value = self.by_set[:, k - first][:, table.by] + self._after(k + 1)[:, table.target]  # (A, P)
            if soft:
                total, most = log_sums(value, table.source, table.states)
                new = torch.where((last < k)[:, None], most, total)
            else:
                new = _maxima(value, table.source, table.states)
            self._after(k)[:, :-1] = torch.where((length > k)[:, None], new, self._after(k + 1)[:, :-1])

    def _after(self, k: int) -> Tensor:
        return self.after[k - self.span.first]

    @property
    def total(self) -> Tensor:
        """(A,) float64: the log weight of all strings together; -inf if there is none of that length."""
        span = self.span
        return self.after[span.lead - span.first, torch.arange(len(span.lead), device=span.lead.device), span.state]

    def _options(self, k: int, state: Tensor) -> Tensor:
        """(A, C) float64: the log weight of going on with each kind from the rows' states (A,); 0 of rows that know it."""
        target = self.table.move[state, :-1]  # (A, C)
        value = self.weight[:, k] + self._after(k + 1).gather(1, target)
        return torch.where((self.span.lead > k)[:, None], 0.0, value)

    def _moved(self, k: int, state: Tensor, kind: Tensor) -> Tensor:
        state = torch.where(self.length > k, self.table.move[state, kind], state)
        return torch.where(self.span.lead > k, self.span.state, state)

    def drawn(self, uniform: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Kinds drawn from left to right, each given those before it: a draw from all strings by their weight.

        Args:
            uniform: (A, n) float64 in [0, 1).
            places: how many places to draw, from the first.

        Returns:
            (A, places) int64, the kinds; (A, places) float64 in [0, 1), what is left of the uniform numbers, for the token.
            Where a row's token is known, they mean nothing.
        """
        state, first = self.span.state, self.span.first
        kinds = torch.zeros(len(state), places, dtype=torch.int64, device=state.device)
        rests = self.weight.new_zeros(len(state), places)
        for k in range(first, min(places, self.span.stop)):
            value = self._options(k, state)
            weight, _ = _units(value - value.amax(1, keepdim=True), self.table.kinds)
            kinds[:, k], rests[:, k] = _pick(weight, uniform[:, k])
            state = self._moved(k, state, kinds[:, k])
        return kinds, rests

    def best(self, token: Tensor, places: int) -> Tensor:
        """(A, places) int64: the kinds of the heaviest string; of equal ones that whose first differing token has the lower id.

        Args:
            token: (A, n, C) int64, the token that each kind stands for in each place.
        """
        state, first = self.span.state, self.span.first
        kinds = torch.zeros(len(state), places, dtype=torch.int64, device=state.device)
        for k in range(first, min(places, self.span.stop)):
            value = self._options(k, state)
            ids = torch.where(value == value.amax(1, keepdim=True), token[:, k], torch.iinfo(torch.int64).max)
            kinds[:, k] = ids.argmin(1)
            state = self._moved(k, state, kinds[:, k])
        return kinds

    def marginals(self, places: int) -> Tensor:
        """(A, places, C) float64: the log weight of all strings whose token in a place is of a kind, without the place's own
        weight; -inf if there is none. With the log weight of a token added, it is that of the strings with this token. (Of soft
        weights. Where a row's token is known, it means nothing.)
        """
        table, span, rows = self.table, self.span, len(self.length)
        begin = self.weight.new_full((rows, table.states + 1), -torch.inf).scatter_(1, span.state[:, None], 0.0)[:, :-1]
        before, out = begin, self.weight.new_zeros(rows, places, table.kinds)
        for k in range(span.first, min(places, span.stop)):
            reach = before[:, table.source]  # (A, P)
            of_set, _ = log_sums(reach + self._after(k + 1)[:, table.target], table.by, table.sets)
            out[:, k] = log_sums(of_set[:, table.within], table.member, table.kinds)[0]
            new, _ = log_sums(reach + self.by_set[:, k - span.first][:, table.by], table.target, table.states)
            before = torch.where((self.length > k)[:, None], new, before)
            before = torch.where((span.lead > k)[:, None], begin, before)
        return out


def _pick(weight: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A draw from whole-numbered weights (N, K): which, (N,) int64, and where in its share the uniform (N,) falls, in [0, 1)."""
    upto = weight.cumsum(1)
    at = (uniform * upto[:, -1]).to(torch.int64).clamp_max(upto[:, -1] - 1)[:, None]
    which = torch.searchsorted(upto, at, right=True).clamp_max(weight.shape[1] - 1)
    share = weight.gather(1, which)
    rest = uniform[:, None] * upto[:, -1:] - (upto.gather(1, which) - share)
    return which.squeeze(1), (rest / share.clamp_min(1)).clamp(0.0, 1 - 2.0**-53).squeeze(1)


def log_weights(logits: Tensor, temperature: float) -> Tensor:
    """(N, K) float64: logits / temperature, the largest 0, and -RULED_OUT in the place of -inf."""
    value = logits.double() / temperature
    most = value.amax(1, keepdim=True)
    return (value - torch.where(most > -torch.inf, most, 0.0)).clamp_min(-RULED_OUT)


def _chunks(table: Table, logits: Tensor, temperature: float, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Log weights of the live tokens (n, V'), a few positions at a time, with their part of each of `more`."""
    size = max(1, CHUNK // logits.shape[1])
    for part in zip(logits.split(size), *(m.split(size) for m in more)):
        yield log_weights(part[0][:, table.live], temperature), *part[1:]


def kind_weights(table: Table, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The log weights of the kinds at N positions: log sums over their tokens, and maxima, (N, C) float64.

    Args:
        logits: (N, V) floats, not all -inf, without NaN.
    """
    groups = table.kind[table.live]
    parts = [log_sums(value, groups, table.kinds) for (value,) in _chunks(table, logits, temperature)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def best_token(table: Table, logits: Tensor, temperature: float, most: Tensor) -> Tensor:
    """(N, C) int64: the likeliest token of each kind, the lowest id of equal ones. most: (N, C), the maxima of kind_weights."""
    groups, none = table.kind[table.live], torch.iinfo(torch.int64).max
    out = []
    for value, best in _chunks(table, logits, temperature, most):
        ids = torch.where(value == best[:, groups], table.live, none)
        out.append(
            torch.full_like(best, none, dtype=torch.int64).scatter_reduce_(1, groups.expand_as(ids), ids, "amin")
        )
    return torch.cat(out)


def drawn_token(table: Table, logits: Tensor, temperature: float, kind: Tensor, uniform: Tensor) -> Tensor:
    """(N,) int64: tokens of the given kinds (N,), drawn by their weights with one uniform number each, in the order of ids."""
    groups, out = table.kind[table.live], []
    for value, c, u in _chunks(table, logits, temperature, kind, uniform):
        own = torch.where(groups == c[:, None], value, -torch.inf)
        weight, _ = _units(own - own.amax(1, keepdim=True), value.shape[1])
        out.append(table.live[_pick(weight, u)[0]])
    return torch.cat(out)
