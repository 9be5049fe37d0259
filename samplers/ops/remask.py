"""Which positions of a row are committed, or masked again: each row has its own count, tokens are written in place.

All rules choose a prefix of one order: the higher score first, equal scores by position, NaN after all numbers. They
differ in how long the prefix is:

    k           k positions
    threshold   all with score >= threshold                                        Fast-dLLM, arXiv 2505.22618, 3.3
    factor      while c_(n) >= 1 - factor / (n + 1), c_(n) the n-th best score      the same paper, by its factor
    budget      while cost_(1) + … + cost_(n) - max <= budget                       EB-Sampler, arXiv 2505.24857, algorithm 1

The prefix is then cut to at most `most` positions and extended to at least `least` (forced progress); it never has more
positions than there are candidates. Every number may also be a (B,) tensor on the scores' device, one number per row: one
launch, without a device sync.

`_choose` and `_twin_accept_slots` are the specification; the native kernels (csrc/cpu/remask.cpp) give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from samplers.ops._check import check_plane, check_vector, check_written, explain_errors
from samplers.ops._register import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

FLOATS = (torch.float32, torch.float64)
RULES = ("k", "threshold", "factor", "budget")
K, THRESHOLD, FACTOR, BUDGET = range(4)
ALL = 2**62  # more than any row has
MOST_COSTS = 1 << 16  # positions per row whose costs may be added up in 64 bits

SHARED = (
    "Tensor score, Tensor? candidate, Tensor? cost, int rule, float level, Tensor? level_rows, int least, "
    "Tensor? least_rows, int most, Tensor? most_rows, bool lowest) -> (Tensor chosen, Tensor count)"
)
SCHEMAS = {
    "select": f"select({SHARED}",
    "commit_": f"commit_(Tensor(a!) x, Tensor? token, int fill, {SHARED}",
    "select_slots": (
        "select_slots(Tensor score, Tensor? candidate, int slot, int start, Tensor? start_rows, float threshold, "
        "Tensor? threshold_rows, int least, int most, bool strict) -> (Tensor chosen, Tensor count)"
    ),
    "accept_slots_": (
        "accept_slots_(Tensor(a!) x, Tensor token, Tensor probability, Tensor chosen, Tensor? candidate, int slot, "
        "int start, Tensor? start_rows, float threshold, Tensor? threshold_rows, int head, Tensor? head_slots, "
        "int extra, int eos, bool strict, bool partial) -> (Tensor accepted, Tensor prefix, Tensor end, Tensor count)"
    ),
}


class SelectCall(NamedTuple):
    """The arguments that `select`, `commit_` and `remask_` share, in the schema's order."""

    score: Tensor
    candidate: Tensor | None
    cost: Tensor | None
    rule: int
    level: float
    level_rows: Tensor | None
    least: int
    least_rows: Tensor | None
    most: int
    most_rows: Tensor | None
    lowest: bool


class SelectSlotsCall(NamedTuple):
    """The arguments of `select_slots`, in the schema's order."""

    score: Tensor
    candidate: Tensor | None
    slot: int
    start: int
    start_rows: Tensor | None
    threshold: float
    threshold_rows: Tensor | None
    least: int
    most: int
    strict: bool


class AcceptSlotsCall(NamedTuple):
    """The arguments of `accept_slots_`, in the schema's order."""

    x: Tensor
    token: Tensor
    probability: Tensor
    chosen: Tensor
    candidate: Tensor | None
    slot: int
    start: int
    start_rows: Tensor | None
    threshold: float
    threshold_rows: Tensor | None
    head: int
    head_slots: Tensor | None
    extra: int
    eos: int
    strict: bool
    partial: bool


class Selection(NamedTuple):
    """What was chosen.

    Attributes:
        chosen: (B, L) bool; of `select_slots` (B, S) bool, one entry per slot.
        count: (B,) int64, how many in each row.
    """

    chosen: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is not needed here


class Accepted(NamedTuple):
    """What `accept_slots_` returns.

    Attributes:
        accepted: (B, S) int64, accepted tokens at the head of each chosen slot; 0 for the others.
        prefix: (B,) int64, accepted tokens over the chosen slots in order, up to the first refusal or the end.
        end: (B,) int64, the canvas position of the first end-of-sequence token in that prefix; -1: none.
        count: (B,) int64, tokens written to x.
    """

    accepted: Tensor
    prefix: Tensor
    end: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is not needed here


@explain_errors
def select(
    score: Tensor,
    candidate: Tensor | None = None,
    *,
    k: Tensor | int | None = None,
    threshold: Tensor | float | None = None,
    factor: Tensor | float | None = None,
    budget: Tensor | float | None = None,
    cost: Tensor | None = None,
    least: Tensor | int = 0,
    most: Tensor | int | None = None,
    lowest: bool = False,
) -> Selection:
    """The best positions of each row, by one of four rules.

    Higher scores go first, equal ones (0 and -0 are) by position, NaN last of all candidates: what a stable descending
    sort gives. -inf is a score like any other: what must not be chosen is left out by `candidate`.

    Args:
        score: (B, L) float32 or float64, any strides.
        candidate: (B, L) bool, the positions that may be chosen. None: all.
        k: how many. int, or (B,) int64.
        threshold: commit every score >= threshold (<= with `lowest`), rounded to the scores' dtype. float, or (B,) floats.
        factor: the longest prefix with c_(n) >= 1 - factor / (n + 1), in float64: Fast-dLLM's bound for n tokens of one
            forward pass. (Its code commits one more if only the last position fails; the paper's bound is < instead of
            <=.)
        budget: the longest prefix whose costs, less the highest of them, add up to at most `budget`: with entropies, how
            far n independent draws can be from their joint distribution. Costs are added in units of 2^-32, so the sum
            does not depend on an order: below 0 is 0; 2^14 and above, and NaN, is 2^14. L <= 65536.
        cost: (B, L) of the scores' dtype, for `budget`. None: the scores, which makes sense with `lowest`.
        least: how many at least, whatever the rule says: int, or (B,) int64. It wins over `most`.
        most: how many at most.
        lowest: low scores first.

    Exactly one of k, threshold, factor and budget is given. Counts below 0 are 0 and above the candidates all of them.

    Returns:
        Selection(chosen (B, L) bool, count (B,) int64).

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a device or the set of rules is.
    """
    call = select_call("select", score, candidate, (k, threshold, factor, budget), cost, least, most, lowest)
    try:
        return Selection(*_SELECT(*call))
    except RuntimeError:
        _check("select", SelectCall(*call))
        raise


@explain_errors
def commit_(
    x: Tensor,
    token: Tensor,
    score: Tensor,
    candidate: Tensor | None = None,
    *,
    k: Tensor | int | None = None,
    threshold: Tensor | float | None = None,
    factor: Tensor | float | None = None,
    budget: Tensor | float | None = None,
    cost: Tensor | None = None,
    least: Tensor | int = 0,
    most: Tensor | int | None = None,
    lowest: bool = False,
) -> Selection:
    """Selects positions as `select` does and writes x[chosen] = token[chosen] in the same launch.

    Args:
        x: (B, L) int64, written in place.
        token: (B, L) int64.
        score, candidate, k, threshold, factor, budget, cost, least, most, lowest: as in `select`.

    Returns:
        Selection(chosen (B, L) bool, count (B,) int64).

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a device or the set of rules is.
    """
    if token is None:  # to the op below: write one id
        raise TypeError("commit_: token is None, expected a tensor")
    call = select_call("commit_", score, candidate, (k, threshold, factor, budget), cost, least, most, lowest)
    try:
        return Selection(*_COMMIT(x, token, 0, *call))
    except RuntimeError:
        _check("commit_", SelectCall(*call), x=x, token=token)
        raise


@explain_errors
def remask_(
    x: Tensor,
    score: Tensor,
    candidate: Tensor | None,
    mask_id: int,
    *,
    k: Tensor | int | None = None,
    threshold: Tensor | float | None = None,
    least: Tensor | int = 0,
    most: Tensor | int | None = None,
) -> Selection:
    """Writes x[chosen] = mask_id at the k lowest scores, or at those <= threshold; ties by position, NaN last.

    Args:
        x: (B, L) int64, written in place.
        candidate: (B, L) bool, the tokens that may be masked again: without the prompt. None: all.
        mask_id: what is written.
        score, k, threshold, least, most: as in `select`, with `lowest`.

    Returns:
        Selection(chosen (B, L) bool, count (B,) int64).

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a device or the set of rules is.
    """
    call = select_call("remask_", score, candidate, (k, threshold, None, None), None, least, most, True)
    try:
        return Selection(*_COMMIT(x, None, mask_id, *call))
    except RuntimeError:
        _check("remask_", SelectCall(*call), x=x)
        raise


@explain_errors
def select_slots(
    score: Tensor,
    candidate: Tensor | None = None,
    *,
    slot: int,
    threshold: Tensor | float,
    start: Tensor | int = 0,
    least: int = 1,
    most: int | None = None,
    strict: bool = True,
) -> Selection:
    """Selects slots by the score of their first token: ReFusion (arXiv 2512.13586), the plan of a step.

    Slot s of row b is the `slot` positions from start[b] + s * slot. The candidate slots whose first position scores above
    the threshold are chosen, or the best one if none does; a slot is a candidate if its first position is. `candidate` is
    True in the paper's serial block.

    Args:
        score: (B, L) float32 or float64, any strides; read at the slots' first positions only.
        candidate: (B, L) bool: still masked and in the present serial block. None: all.
        slot: positions per slot, >= 1.
        threshold: float, or (B,) floats; rounded to the scores' dtype.
        start: where slot 0 begins: int, or (B,) int64 (a prompt's length).
        least, most: how many slots at least (forced progress) and at most.
        strict: score > threshold, as in the reference code; False: >=.

    Returns:
        Selection(chosen (B, S) bool, count (B,) int64), S = ceil(L / slot).
    """
    level, level_rows = _level("select_slots", "threshold", threshold)
    begin, begin_rows = _split(start)
    most = ALL if most is None else most
    call = (score, candidate, slot, begin, begin_rows, level, level_rows, least, most, strict)
    try:
        return Selection(*_SELECT_SLOTS(*call))
    except RuntimeError:
        _check_slots("select_slots", SelectSlotsCall(*call), "score")
        raise


@explain_errors
def accept_slots_(
    x: Tensor,
    token: Tensor,
    probability: Tensor,
    chosen: Tensor,
    candidate: Tensor | None = None,
    *,
    slot: int,
    threshold: Tensor | float,
    start: Tensor | int = 0,
    head: Tensor | int = 1,
    extra: int = 0,
    eos: int = -1,
    strict: bool = True,
    partial: bool = False,
) -> Accepted:
    """Writes what verification accepts of the chosen slots: ReFusion (arXiv 2512.13586), the accepted prefixes of a step.

    In each chosen slot the first `head` tokens are accepted unverified, then those with a probability above the threshold
    up to the first that has not, then `extra` more. The chosen slots are read in order of position: `prefix` runs through
    them to the first refused token, or to the first `eos` in it. The tokens up to and including `eos` are written to x.
    Without `eos` only the whole slots of the prefix are written, and the rest of it is drawn anew, as in the paper's code,
    unless `partial`.

    The paper has two uses. Global verification is head=1, extra=0: a slot's first token has no left neighbour in its slot
    to be verified by; if count is 0 and end -1, refinement follows. A round of refinement is head=accepted so far + 1,
    extra=0: the token after the accepted ones is accepted as well, so each round brings at least one token per slot.

    Args:
        x: (B, L) int64, written in place.
        token: (B, L) int64, the drafted tokens.
        probability: (B, L) float32 or float64, of each drafted token given those before it; NaN is refused.
        chosen: (B, S) bool, as of `select_slots`.
        candidate: (B, L) bool: a slot ends before its first position that is none (a last slot may be short). None: all.
        slot, threshold, start, strict: as of `select_slots`.
        head: tokens of each slot that are accepted unverified: int, or (B, S) int64.
        extra: tokens after a slot's accepted ones that are accepted as well, >= 0.
        eos: the token id that ends a row; -1: none.
        partial: also write the accepted part of the slot that the prefix ends in.

    Returns:
        Accepted(accepted (B, S), prefix (B,), end (B,), count (B,)), all int64.
    """
    level, level_rows = _level("accept_slots_", "threshold", threshold)
    begin, begin_rows = _split(start)
    ahead, ahead_slots = (0, head) if isinstance(head, Tensor) else (head, None)
    call = (
        x, token, probability, chosen, candidate, slot, begin, begin_rows, level, level_rows, ahead, ahead_slots, extra,
        eos, strict, partial,
    )  # fmt: skip
    try:
        return Accepted(*_ACCEPT_SLOTS(*call))
    except RuntimeError:
        _check_accept_slots(AcceptSlotsCall(*call))
        raise


# ---- arguments -------------------------------------------------------------------------------------------------------
#
# A kernel checks what could hurt memory. Only if it refuses does Python check again, to say why: a call takes a few
# microseconds, and a check before it would double that.


def _split(value: Tensor | int) -> tuple[int, Tensor | None]:
    """→ (number, None) or (0, tensor)."""
    return (0, value.contiguous()) if isinstance(value, Tensor) else (value, None)


def _level(op: str, name: str, value: Tensor | float) -> tuple[float, Tensor | None]:
    """→ (number, None) or (0.0, float64 tensor)."""
    if not isinstance(value, Tensor):
        return value, None
    if value.is_complex():
        raise TypeError(f"{op}: {name} is {value.dtype}, expected real numbers")
    return 0.0, value.double().contiguous()


def select_call(
    op: str,
    score: Tensor,
    candidate: Tensor | None,
    rules: tuple[Tensor | int | None, Tensor | float | None, Tensor | float | None, Tensor | float | None],
    cost: Tensor | None,
    least: Tensor | int,
    most: Tensor | int | None,
    lowest: bool,
) -> tuple[Unpack[SelectCall]]:
    """The shared arguments as the ops take them, in the order of SelectCall (which takes time to make, and only errors
    need). rules: k, threshold, factor and budget, of which one is not None."""
    given = [(i, level) for i, level in enumerate(rules) if level is not None]
    if len(given) != 1:
        names = " and ".join(RULES[i] for i, _ in given) or "no rule"
        raise ValueError(f"{op}: {names} given, expected one of {', '.join(RULES)}")
    rule, value = given[0]
    level, level_rows = (0.0, None) if rule == K else _level(op, RULES[rule], value)
    if rule == K:
        if most is not None:
            raise ValueError(f"{op}: most is given beside k, which is itself the most")
        most = rules[0]  # k
    if cost is not None and rule != BUDGET:
        raise ValueError(f"{op}: cost is given without budget")
    if lowest and rule == FACTOR:
        raise ValueError(f"{op}: factor is a rule for confidences, the highest first; lowest does not go with it")
    most, most_rows = (ALL, None) if most is None else _split(most)
    least, least_rows = _split(least)
    return score, candidate, cost, rule, level, level_rows, least, least_rows, most, most_rows, lowest


def _check(op: str, call: SelectCall, **write: Tensor | None) -> None:
    """What can be wrong with select and commit_, without the data itself. write: x and token."""
    score, rule = call.score, call.rule
    check_plane(op, score, "score", FLOATS)
    shape, device = tuple(score.shape), score.device
    check_plane(op, call.candidate, "candidate", (torch.bool,), shape, device, optional=True)
    check_plane(op, call.cost, "cost", (score.dtype,), shape, device, optional=True)
    if rule == BUDGET and shape[1] > MOST_COSTS:
        raise ValueError(f"{op}: a budget takes rows of at most {MOST_COSTS} positions, score has {shape[1]}")
    bounds = {"least": call.least, "k" if rule == K else "most": call.most}
    for name, value in bounds.items():
        if not isinstance(value, int | torch.SymInt):
            raise TypeError(f"{op}: {name} is {value!r}, expected an int or a ({shape[0]},) int64 tensor")
    rows = {RULES[rule]: call.level_rows, **dict(zip(bounds, (call.least_rows, call.most_rows)))}
    for name, row in rows.items():
        check_vector(op, row, name, torch.float64 if row is call.level_rows else torch.int64, shape[0], device)
    for name, plane in write.items():
        check_plane(op, plane, name, (torch.int64,), shape, device, optional=name == "token")
    check_written(op, write.get("x"))


def _check_slots(op: str, call: SelectSlotsCall | AcceptSlotsCall, name: str) -> None:
    """What the two slot ops share; `name` is the field of the (B, L) floats."""
    first = getattr(call, name)
    check_plane(op, first, name, FLOATS)
    if call.slot < 1:
        raise ValueError(f"{op}: slot is {call.slot}, expected 1 or more")
    shape, device = tuple(first.shape), first.device
    check_plane(op, call.candidate, "candidate", (torch.bool,), shape, device, optional=True)
    check_vector(op, call.start_rows, "start", torch.int64, shape[0], device)
    check_vector(op, call.threshold_rows, "threshold", torch.float64, shape[0], device)


def _check_accept_slots(call: AcceptSlotsCall) -> None:
    op = "accept_slots_"
    _check_slots(op, call, "probability")
    shape, device = tuple(call.probability.shape), call.probability.device
    slots = (shape[0], -(-shape[1] // call.slot))
    check_plane(op, call.x, "x", (torch.int64,), shape, device)
    check_written(op, call.x)
    check_plane(op, call.token, "token", (torch.int64,), shape, device)
    check_plane(op, call.chosen, "chosen", (torch.bool,), slots, device)
    check_plane(op, call.head_slots, "head", (torch.int64,), slots, device, optional=True)
    if call.extra < 0:
        raise ValueError(f"{op}: extra is {call.extra}, expected 0 or more")


# ---- the twins -------------------------------------------------------------------------------------------------------


def _each(number: float, rows: Tensor | None, dtype: torch.dtype, score: Tensor) -> Tensor:
    """A parameter as (B, 1) of this dtype."""
    if rows is None:
        return torch.full((score.shape[0], 1), number, dtype=dtype, device=score.device)
    return rows.to(dtype)[:, None]


def _order(score: Tensor, candidate: Tensor, lowest: bool) -> Tensor:
    """(B, L) int64: the positions, the first to be chosen first; those that may not be chosen last."""
    bits = ((-score if lowest else score).double() + 0.0).view(torch.int64)  # + 0: the zeros of both signs are one
    key = bits ^ ((bits >> 63) & (2**63 - 1))  # the order of floats as integers
    key = torch.where(score.isnan(), -(2**63) + 1, key)
    return torch.sort(key.masked_fill(~candidate, -(2**63)), dim=1, descending=True, stable=True).indices


def _fixed(amount: Tensor, most: int) -> Tensor:
    """float64 → int64 in units of 2^-32, `most` units where it is more or NaN."""
    units = amount * 2.0**32
    return torch.where(units < most, units, 0.0).to(torch.int64).masked_fill(~(units < most), most)


def _choose(call: SelectCall, strict: bool = False) -> tuple[Tensor, Tensor]:
    """The four rules in torch, on any device: the specification that the kernels follow. → chosen, count"""
    score, candidate, cost, rule, level, level_rows, least, least_rows, most, most_rows, lowest = call
    (rows, length), device = score.shape, score.device
    if candidate is None:
        candidate = torch.ones_like(score, dtype=torch.bool)
    candidates = candidate.sum(1, keepdim=True)  # (B, 1) int64
    order = _order(score, candidate, lowest)  # (B, L) int64
    n = torch.arange(1, length + 1, device=device)  # (L,) how many a prefix would be
    if rule == K:
        fits = n <= candidates
    elif rule == THRESHOLD:
        bound = _each(level, level_rows, torch.float64, score).to(score.dtype)
        if lowest:
            sure = score < bound if strict else score <= bound
        else:
            sure = score > bound if strict else score >= bound
        fits = (sure & candidate).gather(1, order)
    elif rule == FACTOR:
        best = score.gather(1, order).double()
        fits = best >= 1.0 - _each(level, level_rows, torch.float64, score) / (n + 1)
    else:
        costs = _fixed((score if cost is None else cost).gather(1, order).double().clamp(min=0.0), 2**46)
        costs = torch.where(n <= candidates, costs, 0)
        budget = _each(level, level_rows, torch.float64, score)
        budget = torch.where(budget >= 0, _fixed(budget.nan_to_num(0.0), 2**62), -1)
        lost = costs.cumsum(1) - costs.cummax(1).values if length else costs
        fits = lost <= budget
    count = (fits & (n <= candidates)).to(torch.int64).cumprod(1).sum(1, keepdim=True)
    count = torch.minimum(count, _each(most, most_rows, torch.int64, score))
    count = torch.maximum(count, _each(least, least_rows, torch.int64, score))
    count = torch.minimum(count, candidates).clamp(min=0)
    rank = torch.empty_like(order).scatter_(1, order, (n - 1).expand(rows, -1))
    return rank < count, count[:, 0]


def _twin_select(*args: Unpack[SelectCall]) -> tuple[Tensor, Tensor]:
    call = SelectCall(*args)
    _check("select", call)
    return _choose(call)


def _twin_commit(x: Tensor, token: Tensor | None, fill: int, *args: Unpack[SelectCall]) -> tuple[Tensor, Tensor]:
    call = SelectCall(*args)
    _check("commit_", call, x=x, token=token)
    chosen, count = _choose(call)
    x.copy_(torch.where(chosen, fill if token is None else token, x))
    return chosen, count


def _slots(first: Tensor, call: SelectSlotsCall | AcceptSlotsCall) -> tuple[Tensor, Tensor, int]:
    """→ (B, S) int64, where each slot begins; (B, S) bool, whether that is on the canvas; the most positions per slot."""
    length = first.shape[1]
    slot = min(call.slot, max(length, 1))
    start = _each(call.start, call.start_rows, torch.int64, first)
    begin = start.clamp(-1, length) + torch.arange(-(-length // slot), device=first.device) * slot
    return begin, (start >= 0) & (begin < length), slot


def _twin_select_slots(*args: Unpack[SelectSlotsCall]) -> tuple[Tensor, Tensor]:
    call = SelectSlotsCall(*args)
    _check_slots("select_slots", call, "score")
    begin, there, _ = _slots(call.score, call)
    at = torch.where(there, begin, 0)
    if call.candidate is not None:
        there = there & call.candidate.gather(1, at)
    first = call.score.gather(1, at)  # (B, S)
    level, level_rows = call.threshold, call.threshold_rows
    choice = SelectCall(first, there, None, THRESHOLD, level, level_rows, call.least, None, call.most, None, False)
    return _choose(choice, call.strict)


def _twin_accept_slots(*args: Unpack[AcceptSlotsCall]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """accept_slots_ in torch, over (B, S, slot): slots are rows of positions, those beyond the canvas refused."""
    call = AcceptSlotsCall(*args)
    _check_accept_slots(call)
    x, token, probability, eos = call.x, call.token, call.probability, call.eos
    begin, there, slot = _slots(probability, call)
    (batch, length), count = x.shape, begin.shape[1]
    if length == 0:
        none = x.new_zeros(batch)
        return x.new_zeros(batch, 0), none, none - 1, none.clone()
    place = torch.arange(slot, device=x.device)
    position = begin[:, :, None] + place  # (B, S, slot)
    on = there[:, :, None] & (position < length) & call.chosen[:, :, None]
    at = torch.where(on, position, 0).flatten(1)  # (B, S * slot)

    def read(plane: Tensor) -> Tensor:
        return plane.gather(1, at).view(batch, count, slot)

    if call.candidate is not None:
        on = on & read(call.candidate)
    on = on.to(torch.int64).cumprod(2).bool()  # a slot ends before its first position that is none
    size = on.sum(2)  # (B, S)
    bound = _each(call.threshold, call.threshold_rows, torch.float64, probability).to(probability.dtype)[:, :, None]
    p = read(probability)
    ahead = torch.full_like(size, call.head) if call.head_slots is None else call.head_slots
    stands = (p > bound if call.strict else p >= bound) | (place < ahead[:, :, None])
    accepted = (on & stands).to(torch.int64).cumprod(2).sum(2)
    accepted = torch.minimum(accepted + min(call.extra, slot), size)  # (B, S)

    # In order of position: a slot is reached if all before it were accepted to the end.
    whole = accepted == size
    reached = torch.nn.functional.pad(whole.to(torch.int64).cumprod(1)[:, :-1], (1, 0), value=1).bool()  # (B, S)
    inside = reached[:, :, None] & (place < accepted[:, :, None])  # (B, S, slot): the prefix
    ends = (inside & (read(token) == eos) & (eos >= 0)).flatten(1).to(torch.int64)  # (B, S * slot)
    up_to_end = (ends.cumsum(1) - ends == 0).view_as(inside)  # the first end itself included
    inside = inside & up_to_end
    prefix = inside.sum((1, 2))
    ended = ends.any(1)  # (B,)
    end = torch.where(ended, at.gather(1, ends.argmax(1, keepdim=True))[:, 0], -1)
    if not call.partial:
        inside = inside & (whole[:, :, None] | ended[:, None, None])
    written = inside.flatten(1).to(torch.int64)
    commit = torch.zeros(x.shape, dtype=torch.int64, device=x.device).scatter_add_(1, at, written).bool()
    x.copy_(torch.where(commit, token, x))
    return accepted, prefix, end, written.sum(1)


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_choose(score: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    return score.new_empty((score.shape[0], columns), dtype=torch.bool), score.new_empty(
        score.shape[0], dtype=torch.int64
    )


def _fake_select(*args: Unpack[SelectCall]) -> tuple[Tensor, Tensor]:
    call = SelectCall(*args)
    _check("select", call)
    return _fake_choose(call.score, call.score.shape[1])


def _fake_commit(x: Tensor, token: Tensor | None, fill: int, *args: Unpack[SelectCall]) -> tuple[Tensor, Tensor]:
    call = SelectCall(*args)
    _check("commit_", call, x=x, token=token)
    return _fake_choose(call.score, call.score.shape[1])


def _fake_select_slots(*args: Unpack[SelectSlotsCall]) -> tuple[Tensor, Tensor]:
    call = SelectSlotsCall(*args)
    _check_slots("select_slots", call, "score")
    return _fake_choose(call.score, -(-call.score.shape[1] // call.slot))


def _fake_accept_slots(*args: Unpack[AcceptSlotsCall]) -> tuple[Tensor, ...]:
    call = AcceptSlotsCall(*args)
    _check_accept_slots(call)
    return (call.x.new_empty(call.chosen.shape), *(call.x.new_empty(call.x.shape[0]) for _ in range(3)))


_SELECT = register(SCHEMAS["select"], _twin_select, _fake_select)
_COMMIT = register(SCHEMAS["commit_"], _twin_commit, _fake_commit)
_SELECT_SLOTS = register(SCHEMAS["select_slots"], _twin_select_slots, _fake_select_slots)
_ACCEPT_SLOTS = register(SCHEMAS["accept_slots_"], _twin_accept_slots, _fake_accept_slots)
