"""select, commit_, remask_ and the slot ops: the native kernels, their twin and the CUDA bodies in the block emulator, all
against plain Python; and bad input."""

import math

import numpy as np
import pytest
import torch
from emulator import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from native import isas, needs_native

from samplers import ops
from samplers.ops import reference, remask

pytestmark = pytest.mark.usefixtures("one_thread")

# Few values, so that ties are the rule; and those that order badly in floats.
VALUES = [0.0, -0.0, 0.5, 0.5, 0.25, 1.0, -1.0, 0.9, math.inf, -math.inf, math.nan, -math.nan, 1e-40, -1e-40, 1e38]


def order(score, candidate, lowest=False):
    """A row's positions as a stable descending sort has them, NaN last: plain Python."""
    places = [i for i in range(len(score)) if candidate[i]]
    sign = 1 if lowest else -1
    return sorted(places, key=lambda i: (True, 0.0) if math.isnan(score[i]) else (False, sign * score[i]))


def counted(rule, level, score, cost, places, lowest):
    """How many the rule allows."""
    if rule == "k":
        return level
    if rule == "threshold":
        level = float(score.dtype.type(level))
        return sum(s <= level if lowest else s >= level for s in score[places].tolist())
    n = 0
    if rule == "factor":
        while n < len(places) and float(score[places[n]]) >= 1 - level / (n + 2):
            n += 1
        return n
    spent = [min(max(c, 0), 2**14) if c == c else 2**14 for c in cost[places].tolist()]
    spent = [math.floor(c * 2**32) for c in spent]
    while n < len(places) and sum(spent[: n + 1]) - max(spent[: n + 1]) <= level * 2**32:
        n += 1
    return n


def expected(score, candidate, rule, level, least, most, lowest, cost=None):
    """→ (B, L) chosen, (B,) count, as lists."""
    chosen, counts = np.zeros(score.shape, bool), []

    def at(value, b):
        return value[b].item() if isinstance(value, torch.Tensor) else value

    for b in range(len(score)):
        places = order(score[b].tolist(), candidate[b], lowest)
        n = counted(rule, at(level, b), score[b], (score if cost is None else cost)[b], places, lowest)
        if most is not None:
            n = min(n, at(most, b))
        n = min(max(n, at(least, b), 0), len(places))
        chosen[b, places[:n]] = True
        counts.append(n)
    return chosen.tolist(), counts


@st.composite
def cases(draw):
    """Scores, candidates, a rule and its bounds; numbers for all rows or one a row; contiguous or not."""
    rows, length = draw(st.integers(0, 4)), draw(st.integers(0, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = VALUES if draw(st.booleans()) else [0.5, 0.9, 0.95, 0.99, 1.0, *rng.random(20).tolist()]

    def plane(made):
        made = torch.as_tensor(made)
        if draw(st.booleans()):  # columns 2 apart, or a transposed tensor
            wide = torch.zeros(rows, 2 * length + 1, dtype=made.dtype)
            wide[:, 1::2] = made
            return wide[:, 1::2]
        return made.t().contiguous().t() if draw(st.booleans()) else made

    def number(low, high, kind):
        if draw(st.booleans()):
            return torch.tensor([rng.uniform(low, high) for _ in range(rows)]).to(kind)
        return float(rng.uniform(low, high)) if kind == torch.float64 else int(rng.integers(low, high))

    score = plane(torch.tensor(rng.choice(values, (rows, length)), dtype=dtype))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    candidate = plane(rng.random((rows, length)) < share)
    rule = draw(st.sampled_from(remask.RULES))
    level = {
        "k": lambda: number(-2, length + 3, torch.int64),
        "threshold": lambda: draw(st.sampled_from([0.9, 0.5, -math.inf, math.inf, math.nan, -0.0, 0.1, -1.0])),
        "factor": lambda: number(-0.5, 4, torch.float64),
        "budget": lambda: number(-0.5, 4, torch.float64),
    }[rule]()
    if rule == "threshold" and draw(st.booleans()):
        level = torch.tensor(rng.choice([0.9, 0.5, 0.99, math.nan, -math.inf], rows), dtype=dtype)
    cost = None
    if rule == "budget" and draw(st.booleans()):
        cost = plane(
            torch.tensor(rng.choice([0.0, 0.3, 0.7, 1e-12, 2.5, math.inf, math.nan, -1.0], (rows, length))).to(dtype)
        )
    least = draw(st.sampled_from([0, 1])) if draw(st.booleans()) else number(-1, length + 2, torch.int64)
    most = None if rule == "k" or draw(st.booleans()) else number(0, length + 2, torch.int64)
    lowest = rule != "factor" and draw(st.booleans())
    return score, candidate, rule, level, cost, least, most, lowest


# ---- the CUDA bodies, called as the ops are -------------------------------------------------------------------------


def plane(t):
    return (0, 0, 0) if t is None else (t.data_ptr(), *t.stride())


def per_row(number, rows):
    return (0 if rows is None else rows.data_ptr(), number)


def emulate(x, token, fill, score, candidate, cost, rule, level, level_rows, least, least_rows, most, most_rows, lowest, *,
            slot=1, start=0, start_rows=None, strict=False):  # fmt: skip
    """commit_ (select where x is None) by the kernel."""
    rows, limit = score.shape
    length = -(-limit // slot)
    chosen, count = torch.full((rows, length), 7, dtype=torch.uint8), torch.full((rows,), -7)
    job = {
        "rows": rows, "length": length, "limit": limit, "step": slot, "start": per_row(start, start_rows),
        "score": plane(score), "cost": plane(cost), "candidate": plane(candidate), "rule": rule, "lowest": lowest,
        "strict": strict, "level": per_row(float(level), level_rows), "least": per_row(least, least_rows),
        "most": per_row(most, most_rows), "chosen": chosen.data_ptr(), "count": count.data_ptr(), "x": plane(x),
        "token": plane(token), "fill": fill,
    }  # fmt: skip
    assert emulated("remask").choose(score.dtype == torch.float64, job) == 0
    assert (chosen < 2).all()
    return chosen.bool(), count


def emulate_select_slots(score, candidate, slot, start, start_rows, threshold, threshold_rows, least, most, strict):
    return emulate(
        None, None, 0, score, candidate, None, 1, threshold, threshold_rows, least, None, most, None, False,
        slot=slot, start=start, start_rows=start_rows, strict=strict,
    )  # fmt: skip


def emulate_accept(
    x, token, probability, chosen, candidate, slot, start, start_rows, threshold, threshold_rows, head, head_slots,
    extra, eos, strict, partial,
):  # fmt: skip
    rows, length = x.shape
    outs = [torch.full(chosen.shape, -7), *(torch.full((rows,), -7) for _ in range(3))]
    job = {
        "rows": rows, "length": length, "slots": chosen.shape[1], "slot": slot, "start": per_row(start, start_rows),
        "x": plane(x), "token": plane(token), "probability": plane(probability), "chosen": plane(chosen),
        "candidate": plane(candidate), "threshold": per_row(float(threshold), threshold_rows), "head": plane(head_slots),
        "head_all": head, "extra": extra, "eos": eos, "strict": strict, "partial": partial,
        **{name: out.data_ptr() for name, out in zip(("accepted", "prefix", "end", "count"), outs)},
    }  # fmt: skip
    assert emulated("remask").accept(probability.dtype == torch.float64, job) == 0
    return outs


# ---- choosing positions ----------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(cases())
def test_select_is_a_stable_sort(case):
    """All rules: the op and its twin against plain Python; commit_ and its twin against `chosen`."""
    score, candidate, rule, level, cost, least, most, lowest = case
    kw = {rule: level, "cost": cost, "least": least, "most": most, "lowest": lowest}
    with np.errstate(all="ignore"):
        chosen, count = expected(
            score.numpy(), candidate.tolist(), rule, level, least, most, lowest, None if cost is None else cost.numpy()
        )
    out = ops.select(score, candidate, **kw)
    assert (out.chosen.tolist(), out.count.tolist()) == (chosen, count)
    rules = tuple(kw.get(name) for name in remask.RULES)
    args = reference.select_call("select", score, candidate, rules, cost, least, most, lowest)
    token = torch.arange(score.numel()).view(score.shape) + 100
    written = torch.where(out.chosen, token, -token)
    x = -token
    assert equal(ops.commit_(x, token, score, candidate, **kw), out) and x.equal(written)
    for other in (reference.commit_, emulate):
        x = (-token).t().contiguous().t()
        assert equal(other(x, token, 0, *args), out) and x.equal(written), other
    assert equal(reference.select(*args), out)
    assert equal(emulate(None, None, 0, *args), out)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@settings(max_examples=25, deadline=None)
@given(st.integers(250, 1100), st.integers(0, 2**32), st.sampled_from(remask.RULES), st.booleans(), st.integers(0, 9))
def test_cuda_bodies_on_rows_of_many_blocks(length, seed, rule, double, turns):
    """More positions than threads, more ties than threads, and threads that take turns in other orders."""
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(2, length, generator=g, dtype=torch.float64)
    score[0] = (score[0] * 3).round() / 4 + 0.2
    score = score if double else score.float()
    candidate = torch.rand(2, length, generator=g) < 0.9
    cost = torch.rand(2, length, generator=g).to(score.dtype) if rule == "budget" else None
    level = {
        "k": torch.randint(1, length, (2,), generator=g),
        "threshold": 0.7,
        "factor": length / 3,
        "budget": length / 4,
    }
    kw = {rule: level[rule], "cost": cost, "least": 3}
    args = reference.select_call(
        "select", score, candidate, tuple(kw.get(name) for name in remask.RULES), cost, 3, None, False
    )
    module = emulated("remask")
    try:
        module.turns(turns)
        assert equal(emulate(None, None, 0, *args), ops.select(score, candidate, **kw))
    finally:
        module.turns(0)


@pytest.mark.parametrize("dtype", remask.FLOATS, ids=str)
def test_cuda_bodies_beyond_their_memory(dtype):
    """Rows whose keys do not all fit into shared memory."""
    length = 32768 // dtype.itemsize + 500
    score = (torch.rand(1, length, generator=torch.Generator().manual_seed(0)) * 999).round().to(dtype)
    for kw in ({"k": 3000}, {"budget": 1e5, "lowest": True}):
        rules = tuple(kw.get(name) for name in remask.RULES)
        args = reference.select_call("select", score, None, rules, None, 0, None, kw.get("lowest", False))
        assert equal(emulate(None, None, 0, *args), ops.select(score, **kw))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from([1e-3, 0.05, 1.0]), st.booleans()
)
def test_long_rows(rows, length, seed, grain, double):
    """Random scores on a grid (ties) at any length: the k best of torch's own stable sort, for every instruction set."""
    g = torch.Generator().manual_seed(seed)
    score = (torch.randn(rows, length, generator=g) / grain).round() * grain
    score = score.double() if double else score
    candidate = torch.rand(rows, length, generator=g) < 0.8
    k = torch.randint(0, length + 2, (rows,), generator=g)
    ranked = torch.where(candidate, score, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(length).expand(rows, -1))
    count = torch.minimum(k, candidate.sum(1))
    for _ in isas():
        out = ops.select(score, candidate, k=k)
        assert torch.equal(out.count, count)
        assert torch.equal(out.chosen, rank < count[:, None])


def test_threads_and_batch_change_nothing():
    g = torch.Generator().manual_seed(0)
    score = (torch.rand(40, 4096, generator=g) * 500).round() / 500
    k = torch.randint(0, 300, (40,), generator=g)
    entropy = torch.rand(40, 4096, generator=g)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs.append((*ops.select(score, k=k), *ops.select(score, budget=50.0, cost=entropy)))
        for out in outs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(out, outs[0]))
    finally:
        torch.set_num_threads(before)
    for i in (0, 17, 39):
        alone = (
            *ops.select(score[i : i + 1], k=k[i : i + 1]),
            *ops.select(score[i : i + 1], budget=50.0, cost=entropy[i : i + 1]),
        )
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, outs[0]))


def test_lladas_loop():
    """Where no scores are equal: LLaDA's own loop over rows."""
    g = torch.Generator().manual_seed(3)
    score, masked = torch.rand(8, 256, generator=g), torch.rand(8, 256, generator=g) < 0.7
    token, x = torch.randint(1, 50, (8, 256), generator=g), torch.zeros(8, 256, dtype=torch.int64)
    k = torch.randint(0, 16, (8,), generator=g)
    confidence = torch.where(masked, score, -torch.inf)
    theirs = x.clone()
    for j in range(8):
        at = torch.topk(confidence[j], k=int(k[j])).indices
        theirs[j, at] = token[j, at]
    out = ops.commit_(x, token, score, masked, k=k)
    assert torch.equal(x, theirs)
    assert torch.equal(out.count, k)


def test_fast_dllm():
    """threshold and factor as in the paper, on confidences that show the difference."""
    c = torch.tensor([[0.99, 0.98, 0.10], [0.3, 0.2, 0.1], [0.9, 0.95, 0.9]])
    assert ops.select(c, threshold=0.9, least=1).chosen.tolist() == [
        [True, True, False],
        [True, False, False],
        [True] * 3,
    ]
    # Where the last of all fails, the paper's code commits it (3); the rule says 2.
    assert ops.select(c, factor=1.0, least=1).count.tolist() == [2, 1, 3]
    # (n + 1)(1 - c_(n)) <= f: 2 * 0.5 and 3 * 0.5 against 1.
    assert ops.select(torch.tensor([[0.5, 0.5]]), factor=1.0).count.tolist() == [1]


def test_entropy_budget():
    h = torch.tensor([[0.5, 0.0, 0.2, 0.2, 3.0]])
    for budget, count in ((0.0, 2), (0.1, 2), (0.2, 3), (0.39, 3), (0.4, 4), (0.89, 4), (0.9, 5)):
        # 0.2 is a little more as a float32: a budget is compared with what was given, not with what was meant.
        out = ops.select(h, budget=budget + 1e-7, lowest=True)
        assert out.count.tolist() == [count], budget
    # Chosen by confidence, paid for by entropy.
    out = ops.select(torch.tensor([[0.9, 0.8, 0.7]]), budget=1.0, cost=torch.tensor([[2.0, 1.0, 0.1]]))
    assert out.chosen.tolist() == [[True, True, False]]


def test_remask():
    x = torch.arange(5).repeat(3, 1)
    score = torch.tensor([[0.3, 0.1, 0.1, 0.9, 0.1]] * 2 + [[math.nan, 0.5, -math.inf, 0.2, 0.2]])
    prompt = torch.tensor([True, False, False, False, False])
    out = ops.remask_(x, score, ~prompt.expand(3, -1), 99, k=torch.tensor([2, 0, 4]))
    assert x.tolist() == [[0, 99, 99, 3, 4], [0, 1, 2, 3, 4], [0, 99, 99, 99, 99]]
    assert out.count.tolist() == [2, 0, 4]
    x = torch.arange(5).repeat(1, 1)
    out = ops.remask_(x, score[:1], None, 99, threshold=0.3, most=2)
    assert x.tolist() == [[0, 99, 99, 3, 4]]


def test_edges():
    none = ops.select(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), k=2, least=1)
    assert none.count.tolist() == [0, 0] and not none.chosen.any()
    assert ops.select(torch.zeros(1, 1), k=1).chosen.tolist() == [[True]]
    assert [v.shape for v in ops.select(torch.zeros(0, 3), k=1)] == [(0, 3), (0,)]
    assert [v.shape for v in ops.select(torch.zeros(3, 0), k=1)] == [(3, 0), (3,)]
    assert ops.select(torch.zeros(1, 9), k=4).chosen[0].tolist() == [True] * 4 + [False] * 5
    assert ops.select(torch.zeros(1, 4).expand(3, -1), k=2).count.tolist() == [2, 2, 2]  # read, so expanded is fine
    nan = torch.tensor([[math.nan, -math.inf, 0.0]])
    assert [ops.select(nan, k=k).chosen[0].tolist() for k in (1, 2, 3)] == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_numbers_of_any_size():
    """What is out of all bounds neither overflows nor reads beyond a row."""
    far, score, x = 2**62, torch.rand(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    for k, count in ((far, 5), (-far, 0), (torch.tensor([2**63 - 1, -(2**63)]), None)):
        assert ops.select(score, k=k).count.tolist() == ([5, 0] if count is None else [count] * 2)
    assert ops.select(score, threshold=-1e300, least=-far, most=far).count.tolist() == [5, 5]
    assert ops.select(score, budget=1e300).count.tolist() == [5, 5]
    assert ops.select(score, factor=1e300).count.tolist() == [5, 5]
    starts = (far, -far, torch.tensor([2**63 - 1, -(2**63)]))
    for slot in (1, 3, far):
        for start in starts:
            out = ops.select_slots(score, slot=slot, threshold=0.0, start=start)
            assert out.chosen.shape == (2, -(-5 // slot)) and not out.chosen.any()
            got = ops.accept_slots_(x, x + 1, score, ~out.chosen, slot=slot, threshold=0.0, start=start)
            assert got.count.tolist() == [0, 0] and not x.any()
    got = ops.accept_slots_(x, x + 1, score, torch.ones(2, 1, dtype=torch.bool), slot=far, threshold=2.0, extra=far)
    assert got.accepted.tolist() == [[5], [5]]
    got = ops.accept_slots_(x, x + 2, score, torch.ones(2, 1, dtype=torch.bool), slot=far, threshold=2.0, head=far)
    assert x.tolist() == [[3] * 5] * 2, "x + 1, and x + 2 of that"


def test_inputs_are_left_alone():
    score, candidate = torch.rand(3, 20).requires_grad_(), torch.rand(3, 20) < 0.5
    token = torch.randint(9, (3, 20))
    kept = [t.clone() for t in (score, candidate, token)]
    ops.commit_(torch.zeros_like(token), token, score, candidate, k=3)
    assert all(torch.equal(a, b) for a, b in zip((score, candidate, token), kept))


# ---- slots -----------------------------------------------------------------------------------------------------------


def plain_slots(score, candidate, slot, start, threshold, least, most, strict):
    """select_slots in plain Python."""
    length = score.shape[1]
    chosen = np.zeros((len(score), -(-length // slot)), bool)
    for b in range(len(score)):
        first = {s: start[b] + s * slot for s in range(chosen.shape[1])}
        first = {s: i for s, i in first.items() if start[b] >= 0 and i < length and candidate[b, i]}
        value = [float(score[b, first[s]]) if s in first else 0.0 for s in range(chosen.shape[1])]
        places = order(value, [s in first for s in range(chosen.shape[1])])
        n = sum(value[s] > threshold[b] if strict else value[s] >= threshold[b] for s in places)
        chosen[b, places[: max(min(n, most), least)]] = True
    return chosen


def plain_accept(x, token, p, chosen, candidate, slot, start, threshold, head, extra, eos, strict, partial):
    """accept_slots_ in plain Python, as the docstring has it."""
    batch, length = p.shape
    accepted, prefix, end, count = np.zeros(chosen.shape, int), [0] * batch, [-1] * batch, [0] * batch
    for b in range(batch):
        flat, runs = [], []  # the drafted tokens in order, and which of them stand
        for s in np.flatnonzero(chosen[b]):
            places = []
            for i in range(start[b] + s * slot, min(start[b] + (s + 1) * slot, length)):
                if start[b] < 0 or not candidate[b, i]:
                    break
                places.append(i)
            n = 0
            while n < len(places) and (
                n < head[b, s] or (p[b, places[n]] > threshold[b] if strict else p[b, places[n]] >= threshold[b])
            ):
                n += 1
            accepted[b, s] = n = min(n + extra, len(places))
            flat += places
            runs += [(j < n, len(flat) - len(places), len(flat)) for j in range(len(places))]
        kept = []
        for i, (stands, begin, stop) in zip(flat, runs):
            if not stands:
                break
            kept.append((i, begin, stop))
            if eos >= 0 and token[b, i] == eos:
                end[b] = i
                break
        prefix[b] = len(kept)
        write = kept if end[b] >= 0 or partial else [k for k in kept if k[2] <= len(kept)]
        for i, *_ in write:
            x[b, i] = token[b, i]
        count[b] = len(write)
    return accepted.tolist(), prefix, end, count


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 24), st.integers(1, 9), st.integers(0, 2**32), st.booleans(), st.booleans(),
    st.integers(0, 2), st.booleans(), st.booleans(),
)  # fmt: skip
def test_slots(batch, length, slot, seed, strict, partial, extra, tensors, holes):
    rng = np.random.default_rng(seed)
    score = rng.choice([0.1, 0.5, 0.9, 0.95, math.nan], (batch, length))
    p = rng.choice([0.1, 0.5, 0.9, 0.95, math.nan], (batch, length), p=[0.1, 0.1, 0.35, 0.35, 0.1])
    token, x = rng.integers(0, 12, (batch, length)), rng.integers(50, 60, (batch, length))
    start = rng.integers(-1, length + 2, batch) if tensors else np.full(batch, rng.integers(0, 3))
    threshold = rng.choice([0.5, 0.9], batch) if tensors else np.full(batch, 0.5)
    candidate = rng.random((batch, length)) < (0.8 if holes else 1.1)
    least, most = int(rng.integers(0, 3)), int(rng.integers(1, 9))
    t = torch.from_numpy
    kw = {
        "slot": slot,
        "threshold": t(threshold) if tensors else 0.5,
        "start": t(start) if tensors else int(start[0]) if batch else 0,
        "strict": strict,
    }
    chosen = plain_slots(score, candidate, slot, start, threshold, least, most, strict)
    for other in (None, reference.select_slots, emulate_select_slots):
        call = instead(ops.select_slots, "_SELECT_SLOTS", other)
        out = call(t(score), t(candidate), least=least, most=most, **kw)
        assert out.chosen.numpy().tolist() == chosen.tolist()
        assert out.count.tolist() == chosen.sum(1).tolist()

    head = rng.integers(0, slot + 2, chosen.shape) if tensors else np.ones(chosen.shape, int)
    eos = int(rng.choice([-1, 3]))
    written = x.copy()
    accepted, *rest = plain_accept(
        written, token, p, chosen, candidate, slot, start, threshold, head, extra, eos, strict, partial
    )
    for other in (None, reference.accept_slots_, emulate_accept):
        call = instead(ops.accept_slots_, "_ACCEPT_SLOTS", other)
        y = t(x.copy())
        out = call(
            y, t(token), t(p), t(chosen), t(candidate), head=t(head) if tensors else 1, extra=extra, eos=eos,
            partial=partial, **kw,
        )  # fmt: skip
        assert out.accepted.numpy().tolist() == accepted
        assert [v.tolist() for v in out[1:]] == rest
        assert y.numpy().tolist() == written.tolist()


def instead(function, name, other):
    """The public function with the op that it calls exchanged, if there is another."""

    def call(*args, **kw):
        with pytest.MonkeyPatch.context() as patch:
            if other:
                patch.setattr(remask, name, other)
            return function(*args, **kw)

    return call


def test_refusion_steps():
    """One step by hand: plan, verification, and where it refuses, a round of refinement."""
    start, slot, length = 2, 4, 14
    score = torch.zeros(1, length)
    score[0, [2, 6, 10]] = torch.tensor([0.95, 0.2, 0.91])
    out = ops.select_slots(score, slot=slot, start=start, threshold=0.9)
    assert out.chosen.tolist() == [[True, False, True, False]]
    assert ops.select_slots(score, slot=slot, start=start, threshold=0.99).chosen.tolist() == [
        [True, False, False, False]
    ]
    token = torch.arange(100, 100 + length)[None]
    p = torch.full((1, length), 0.95)
    p[0, 2], p[0, 13] = 0.0, 0.3  # a slot's first token is not asked for; the last token is refused
    x = torch.full((1, length), -1)
    got = ops.accept_slots_(x, token, p, out.chosen, slot=slot, start=start, threshold=0.9)
    assert got.accepted.tolist() == [[4, 0, 3, 0]]
    assert (got.prefix.item(), got.end.item(), got.count.item()) == (7, -1, 4)
    assert x.tolist() == [[-1, -1, 102, 103, 104, 105] + [-1] * 8]
    # With the end of the sequence inside the prefix: everything up to it.
    got = ops.accept_slots_(x, token, p, out.chosen, slot=slot, start=start, threshold=0.9, eos=111)
    assert (got.prefix.item(), got.end.item(), got.count.item()) == (6, 11, 6)
    assert x[0, 10:].tolist() == [110, 111, -1, -1]
    # A refused first slot: nothing is written, and refinement goes on from what stood.
    p[0, 4] = 0.1
    x.fill_(-1)
    got = ops.accept_slots_(x, token, p, out.chosen, slot=slot, start=start, threshold=0.9)
    assert (got.accepted.tolist(), got.count.item()) == ([[2, 0, 3, 0]], 0)
    got = ops.accept_slots_(x, token, p, out.chosen, slot=slot, start=start, threshold=0.9, head=got.accepted, extra=1)
    assert got.accepted.tolist() == [[3, 0, 4, 0]]


# ---- bad input -------------------------------------------------------------------------------------------------------

S = torch.zeros(2, 5)
X = torch.zeros(2, 5, dtype=torch.int64)
M = torch.ones(2, 5, dtype=torch.bool)
N = torch.ones(2, dtype=torch.int64)
SLOTS = torch.ones(2, 3, dtype=torch.bool)

BAD = {
    "no rule": (ValueError, "select: no rule given, expected one of k, threshold", lambda: ops.select(S)),
    "two rules": (ValueError, "k and factor given", lambda: ops.select(S, k=1, factor=1.0)),
    "k and most": (ValueError, "most is given beside k", lambda: ops.select(S, k=1, most=1)),
    "cost alone": (ValueError, "cost is given without budget", lambda: ops.select(S, k=1, cost=S)),
    "factor lowest": (ValueError, "lowest does not go", lambda: ops.select(S, factor=1.0, lowest=True)),
    "score dims": (ValueError, r"score has shape \(5,\), expected \(B, L\)", lambda: ops.select(S[0], k=1)),
    "score dtype": (TypeError, "score is torch.float16, expected torch.float32 or", lambda: ops.select(S.half(), k=1)),
    "candidate shape": (ValueError, r"candidate has shape \(2, 4\), expected \(2, 5\)", lambda: ops.select(S, M[:, 1:], k=1)),
    "candidate dtype": (TypeError, "candidate is torch.int64, expected torch.bool", lambda: ops.select(S, X, k=1)),
    "k dtype": (TypeError, "k is torch.int32, expected torch.int64", lambda: ops.select(S, k=N.int())),
    "k float": (TypeError, r"k is 1.5, expected an int or a \(2,\) int64 tensor", lambda: ops.select(S, k=1.5)),
    "k shape": (ValueError, r"k has shape \(1,\), expected \(2,\)", lambda: ops.select(S, k=N[:1])),
    "threshold complex": (TypeError, "select: threshold is torch.complex64, expected real", lambda: ops.select(S, threshold=S[:, 0] + 0j)),
    "least": (ValueError, r"least has shape \(2, 1\)", lambda: ops.select(S, k=1, least=N[:, None])),
    "most": (TypeError, "most is torch.float32", lambda: ops.select(S, threshold=1.0, most=N.float())),
    "threshold": (ValueError, r"threshold has shape \(3,\)", lambda: ops.select(S, threshold=torch.zeros(3))),
    "cost dtype": (TypeError, "cost is torch.float64, expected torch.float32", lambda: ops.select(S, budget=1.0, cost=S.double())),
    "budget length": (ValueError, "at most 65536 positions, score has 65537", lambda: ops.select(torch.zeros(1, 65537), budget=1.0)),
    "token missing": (TypeError, "commit_: token is None, expected a tensor", lambda: ops.commit_(X, None, S, k=1)),
    "score list": (TypeError, r"score is \[\[0.5\]\], expected a tensor", lambda: ops.select([[0.5]], k=1)),
    "x dtype": (TypeError, "commit_: x is torch.int32", lambda: ops.commit_(X.int(), X, S, k=1)),
    "x expanded": (ValueError, "x is written in place", lambda: ops.commit_(X[:1].expand(2, -1), X, S, k=1)),
    "token shape": (ValueError, r"token has shape \(1, 5\)", lambda: ops.commit_(X, X[:1], S, k=1)),
    "remask x": (ValueError, r"x has shape \(5,\)", lambda: ops.remask_(X[0], S, None, 9, k=1)),
    "slot": (ValueError, "select_slots: slot is 0", lambda: ops.select_slots(S, slot=0, threshold=0.5)),
    "start": (TypeError, "start is torch.bool", lambda: ops.select_slots(S, slot=2, threshold=0.5, start=N.bool())),
    "slots threshold": (ValueError, "threshold has shape", lambda: ops.select_slots(S, slot=2, threshold=torch.zeros(5))),
    "chosen": (ValueError, r"chosen has shape \(2, 5\), expected \(2, 3\)", lambda: ops.accept_slots_(X, X, S, M, slot=2, threshold=0.5)),
    "head": (TypeError, "head is torch.bool", lambda: ops.accept_slots_(X, X, S, SLOTS, slot=2, threshold=0.5, head=SLOTS)),
    "extra": (ValueError, "extra is -1", lambda: ops.accept_slots_(X, X, S, SLOTS, slot=2, threshold=0.5, extra=-1)),
    "probability": (TypeError, "probability is torch.bfloat16", lambda: ops.accept_slots_(X, X, S.bfloat16(), SLOTS, slot=2, threshold=0.5)),
    "accept x": (ValueError, "accept_slots_: x is written", lambda: ops.accept_slots_(X[:1].expand(2, -1), X, S, SLOTS, slot=2, threshold=0.5)),
    "device": (ValueError, "candidate is on meta, expected cpu", lambda: reference.select(*reference.select_call("select", S, M.to("meta"), (1, None, None, None), None, 0, None, False))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()


@needs_native
def test_kernel_guards_memory_by_itself():
    op = torch.ops.sampler_zoo
    tail = (None, 0, 0.0, None, 0, None, 1, None, False)
    for score, candidate in ((S[0], None), (S.half(), None), (S, M[:1]), (S, X)):
        with pytest.raises(RuntimeError, match="select"):
            op.select(score, candidate, *tail)
    for x, token in ((X[:, 1:], X), (X, X[:1]), (X.int(), X), (X[:1].expand(2, -1), X)):
        with pytest.raises(RuntimeError, match="commit_"):
            op.commit_(x, token, 0, S, None, *tail)
    with pytest.raises(RuntimeError, match="rule"):
        op.select(S, None, None, 4, 0.0, None, 0, None, 1, None, False)


# ---- torch integration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", remask.SCHEMAS)
def test_schema_is_one(name):
    assert str(getattr(torch.ops.sampler_zoo, name).default._schema) == f"sampler_zoo::{reference.SCHEMAS[name]}"


def test_opcheck():
    score, x, k = torch.rand(3, 17), torch.zeros(3, 17, dtype=torch.int64), torch.tensor([1, 0, 5])
    mask, slots = torch.rand(3, 17) < 0.8, torch.ones(3, 5, dtype=torch.bool)
    op = torch.ops.sampler_zoo
    shared = (score, mask, None, 0, 0.0, None, 1, None, 0, k, False)
    torch.library.opcheck(op.select.default, shared)
    torch.library.opcheck(op.commit_.default, (x, x + 1, 0, *shared))
    torch.library.opcheck(op.select_slots.default, (score, mask, 4, 1, None, 0.5, None, 1, 9, True))
    accept = (x, x + 1, score, slots, mask, 4, 1, None, 0.5, None, 1, None, 0, 1, True, False)
    torch.library.opcheck(op.accept_slots_.default, accept)


def test_compile():
    def step(x, token, score, k):
        out = ops.commit_(x, token, score * 2, x == 0, k=k)
        return x + 1, out.count + ops.select(score, threshold=0.5).count

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (4, 7):
        x, score = torch.zeros(n, 30, dtype=torch.int64), torch.rand(n, 30)
        args = (torch.ones_like(x), score, torch.full((n,), 3))
        y = x.clone()
        for a, b in zip(compiled(x, *args), step(y, *args)):
            assert torch.equal(a, b)
        assert torch.equal(x, y)
