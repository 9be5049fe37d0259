"""Sums and maxima over all token strings of an automaton: what a constrained draw is made of, in float64.

Everything is exact in the sense of the other sums of this library: terms are counted in whole units of a power of two below
the largest of them, so a sum does not depend on its order, on the batch or on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Table", "Trellis", "best_token", "drawn_token", "kind_weights", "log_sums", "log_weights"]

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
        source, by, target: (E,) int64, the moves there are: from which state, by which kind, to which.
    """

    kind: Tensor
    size: Tensor
    lowest: Tensor
    live: Tensor
    move: Tensor
    accepting: Tensor
    start: int
    source: Tensor
    by: Tensor
    target: Tensor

    @property
    def states(self) -> int:
        return len(self.accepting)

    @property
    def kinds(self) -> int:
        return len(self.size)

    @classmethod
    def of(cls, kind: Tensor, move: Tensor, accepting: Tensor, start: int, device: torch.device | str) -> Table | None:
        """The table without states and tokens that are in no string; None if there is no string at all.

        Args:
            kind: (V,) int64 on the CPU, -1 for tokens that are in no string.
            move: (Q, C) int64 on the CPU, -1: no string goes on so. accepting: (Q,) bool on the CPU.
        """
        states, kinds = move.shape
        used = torch.bincount(kind[kind >= 0], minlength=kinds) > 0
        move = torch.where(used, move, -1)
        source, by = (move >= 0).nonzero().unbind(1)
        target = move[source, by]
        first = torch.zeros(states, dtype=torch.bool, device="cpu")
        first[start] = True
        useful = _closure(first, source, target) & _closure(accepting, target, source)
        if not bool(useful[start]):
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
        order = torch.argsort(source * n_kinds + by)
        tensors = (
            new_kind,
            torch.bincount(new_kind[live], minlength=n_kinds),
            lowest,
            live,
            table,
            accepting[useful],
        )
        edges = (part[order] for part in (source, by, target))
        kind_, size, lowest, live, move, accepting = (part.to(device) for part in tensors)
        return cls(
            kind_, size, lowest, live, move, accepting, int(state_number[start]), *(part.to(device) for part in edges)
        )


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


class Trellis:
    """All strings of n tokens for each of A rows, weighed by the kind of the token in each place.

    Args:
        table: the automaton.
        weight: (A, n, C) float64, the log weight of each kind in each place; finite.
        length: (A,) int64, how many tokens a row's text has, at most n.
        last: (A,) int64, the last place whose tokens matter. Of what comes after it, only the best completion counts, so that
            weights of 0 ask whether there is one at all.
        soft: weights add up, as probabilities do. False: only the heaviest string counts.
    """

    def __init__(self, table: Table, weight: Tensor, length: Tensor, last: Tensor, soft: bool):
        self.table, self.weight, self.length, self.last, self.soft = table, weight, length, last, soft
        rows, n, _ = weight.shape
        # (n + 1, A, Q + 1): the log weight of what is still to come, from each state; the last column is of no state
        self.after = weight.new_full((n + 1, rows, table.states + 1), -torch.inf)
        self.after[n, :, :-1] = torch.where(table.accepting, 0.0, -torch.inf)
        for k in range(n - 1, -1, -1):
            value = weight[:, k][:, table.by] + self.after[k + 1][:, table.target]  # (A, E)
            if soft:
                total, most = log_sums(value, table.source, table.states)
                new = torch.where((last < k)[:, None], most, total)
            else:
                new = _maxima(value, table.source, table.states)
            self.after[k, :, :-1] = torch.where((length > k)[:, None], new, self.after[k + 1, :, :-1])

    @property
    def total(self) -> Tensor:
        """(A,) float64: the log weight of all strings together; -inf if there is none of that length."""
        return self.after[0, :, self.table.start]

    def _options(self, k: int, state: Tensor) -> Tensor:
        """(A, C) float64: the log weight of going on with each kind from the rows' states (A,)."""
        target = self.table.move[state, :-1]  # (A, C)
        return self.weight[:, k] + self.after[k + 1].gather(1, target)

    def _moved(self, k: int, state: Tensor, kind: Tensor) -> Tensor:
        return torch.where(self.length > k, self.table.move[state, kind], state)

    def drawn(self, uniform: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Kinds drawn from left to right, each given those before it: a draw from all strings by their weight.

        Args:
            uniform: (A, n) float64 in [0, 1).
            places: how many places to draw, from the first.

        Returns:
            (A, places) int64, the kinds; (A, places) float64 in [0, 1), what is left of the uniform numbers, for the token.
        """
        state = torch.full_like(self.length, self.table.start)
        kinds, rests = [], []
        for k in range(places):
            value = self._options(k, state)
            weight, _ = _units(value - value.amax(1, keepdim=True), self.table.kinds)
            kind, rest = _pick(weight, uniform[:, k])
            kinds.append(kind)
            rests.append(rest)
            state = self._moved(k, state, kind)
        return torch.stack(kinds, 1), torch.stack(rests, 1)

    def best(self, token: Tensor, places: int) -> Tensor:
        """(A, places) int64: the kinds of the heaviest string; of equal ones that whose first differing token has the lower id.

        Args:
            token: (A, n, C) int64, the token that each kind stands for in each place.
        """
        state, kinds = torch.full_like(self.length, self.table.start), []
        for k in range(places):
            value = self._options(k, state)
            ids = torch.where(value == value.amax(1, keepdim=True), token[:, k], torch.iinfo(torch.int64).max)
            kind = ids.argmin(1)
            kinds.append(kind)
            state = self._moved(k, state, kind)
        return torch.stack(kinds, 1)

    def marginals(self, places: int) -> Tensor:
        """(A, places, C) float64: the log weight of all strings whose token in a place is of a kind, without the place's own
        weight; -inf if there is none. With the log weight of a token added, it is that of the strings with this token. (Of soft
        weights.)
        """
        table, rows = self.table, len(self.length)
        before = self.weight.new_full((rows, table.states), -torch.inf)
        before[:, table.start] = 0.0
        out = []
        for k in range(places):
            reach = before[:, table.source]  # (A, E)
            out.append(log_sums(reach + self.after[k + 1][:, table.target], table.by, table.kinds)[0])
            new, _ = log_sums(reach + self.weight[:, k][:, table.by], table.target, table.states)
            before = torch.where((self.length > k)[:, None], new, before)
        return torch.stack(out, 1)


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
