"""Cache operations: native against their twins and both against plain Python, bit for bit, memory around them included."""

import itertools
import random

import pytest
import torch
from native import isas, needs_native

from samplers.ops import (
    kv_append_,
    kv_compact_,
    kv_gather,
    kv_replace_,
    kv_row_bytes,
    kv_scatter_,
    kv_select_rows_,
    reference,
)

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "some layers", "pairs", "rows first", "one layer", "own widths")
OPS = torch.ops.sampler_zoo


def noise(rng, shape, dtype):
    """Random bits, NaNs and all."""
    ints = {4: torch.int32, 2: torch.int16, 1: torch.int8}[torch.empty((), dtype=dtype).element_size()]
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    return torch.randint(torch.iinfo(ints).min, torch.iinfo(ints).max, shape, generator=g, dtype=ints).view(dtype)


class Cache:
    """key and value as views of `memory`, in which also lies what must not change."""

    def __init__(self, rng, layout="plain", dtype=torch.bfloat16, layers=2, batch=3, heads=2, length=9, width=8):
        L, B, H, N, D = layers, batch, heads, length, width
        if layout == "pairs":  # (layers, 2, B, H, L, D), the middle of more rows
            self.memory = [noise(rng, (L, 2, B, H, N + 5, D), dtype)]
            self.key, self.value = (self.memory[0][:, i, :, :, 2 : 2 + N] for i in (0, 1))
        elif layout == "rows first":  # (layers, B, L, H, D)
            self.memory = [noise(rng, (L, B, N, H, D + 3), dtype) for _ in range(2)]
            self.key, self.value = (m[..., 1 : 1 + D].transpose(2, 3) for m in self.memory)
        else:
            more = 4 if layout == "some layers" else 0
            widths = (D, D + 8) if layout == "own widths" else (D, D)
            self.memory = [noise(rng, (L + more, B, H, N, d), dtype) for d in widths]
            self.key, self.value = (m[1 : 1 + L] if more else m for m in self.memory)
            if layout == "one layer":
                self.key, self.value = self.key[0], self.value[0]
        self.batch, self.length = batch, length

    def pair(self):
        return self.key, self.value

    def bits(self):
        return [bits(x.detach().clone(memory_format=torch.contiguous_format)) for x in self.memory_views()]

    def memory_views(self):
        return [m.flatten(0, 1) if m.dim() == 6 else m for m in self.memory]

    def copy(self):
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other.memory = [m.clone() for m in self.memory]
        two = [other.memory[0], other.memory[-1]]
        other.key, other.value = (
            m.as_strided(x.shape, x.stride(), x.storage_offset()) for m, x in zip(two, (self.key, self.value))
        )
        return other

    def new(self, rng, n, batch=None):
        """New rows, sometimes of strides of their own."""
        out = []
        for x in self.pair():
            *layers, B, H, _, D = x.shape
            B = B if batch is None else batch
            if rng.random() < 0.5:
                out.append(noise(rng, (*layers, B, H, n, D), x.dtype))
            else:  # as projections come: (layers, B, n, H, D)
                out.append(noise(rng, (*layers, B, n, H, D), x.dtype).transpose(-3, -2))
        return out


def bits(x):
    """(layers, B, H, L, D) integers over the same memory: a NaN is equal to itself."""
    x = x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    return x[None] if x.dim() == 4 else x


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.bits(), b.bits()))


def ints(rng, n, low, high):
    return torch.tensor([rng.randint(low, high) for _ in range(n)], dtype=torch.int64)


def rows_of(x, b, i):
    """Row i of batch row b in all layers and heads."""
    return bits(x)[:, b, :, i]


# Each case draws the arguments of one call that is right: (op, its twin, tensors that it writes beyond the cache, the
# rest), and carries the call out on a copy of the cache in plain Python.


def case_append(rng, c):
    n = rng.randint(0, c.length)
    lengths = ints(rng, c.batch, 0, c.length - n)
    count = ints(rng, c.batch, 0, n) if rng.random() < 0.5 else None
    new = c.new(rng, n)

    def model(m):
        for b in range(c.batch):
            for i in range(n if count is None else int(count[b])):
                for x, y in zip(m.pair(), new):
                    rows_of(x, b, int(lengths[b]) + i).copy_(rows_of(y, b, i))
        return lengths + (n if count is None else count)

    return kv_append_, reference.kv_append_, (*new, lengths, count), model


def case_replace(rng, c):
    n = rng.randint(0, c.length)
    start = ints(rng, c.batch, 0, c.length - n) if rng.random() < 0.5 else rng.randint(0, c.length - n)
    count = ints(rng, c.batch, 0, n) if rng.random() < 0.5 else None
    new = c.new(rng, n)

    def model(m):
        for b in range(c.batch):
            for i in range(n if count is None else int(count[b])):
                at = start if isinstance(start, int) else int(start[b])
                for x, y in zip(m.pair(), new):
                    rows_of(x, b, at + i).copy_(rows_of(y, b, i))

    def twin(key, value, new_key, new_value, start, count):
        whole = (None, start) if isinstance(start, int) else (start, 0)
        reference.kv_replace_(key, value, new_key, new_value, *whole, count)

    return kv_replace_, twin, (*new, start, count), model


def case_scatter(rng, c):
    n = rng.randint(0, c.length + 4)
    shape = (c.batch, n) if rng.random() < 0.5 else (n,)
    kind = rng.random()
    if kind < 0.3:  # a block, and a hole
        index = (rng.randrange(c.length) + torch.arange(n)) % c.length
        index = torch.where(index == rng.randrange(c.length), -1, index).expand(shape)
    else:  # repeats and skips
        index = ints(rng, c.batch * n, -2, c.length - 1)[: torch.Size(shape).numel()].view(shape)
    new = c.new(rng, n)

    def model(m):
        for b in range(c.batch):
            for i, at in enumerate(index.expand(c.batch, n)[b].tolist()):
                if at >= 0:
                    for x, y in zip(m.pair(), new):
                        rows_of(x, b, at).copy_(rows_of(y, b, i))

    return kv_scatter_, reference.kv_scatter_, (*new, index), model


def case_compact(rng, c):
    keep = torch.tensor([[rng.random() < 0.6 for _ in range(c.length)] for _ in range(c.batch)])
    lengths = ints(rng, c.batch, 0, c.length)

    def model(m):
        kept = []
        for b in range(c.batch):
            where = [i for i in range(int(lengths[b])) if keep[b, i]]
            for x in m.pair():
                moved = [rows_of(x, b, i).clone() for i in where]
                for i, row in enumerate(moved):
                    rows_of(x, b, i).copy_(row)
            kept.append(len(where))
        return torch.tensor(kept)

    return kv_compact_, reference.kv_compact_, (keep, lengths), model


def case_select(rng, c):
    source = ints(rng, c.batch, 0, c.batch - 1)
    if rng.random() < 0.5:
        source = torch.tensor(rng.sample(range(c.batch), c.batch))
    lengths = ints(rng, c.batch, 0, c.length) if rng.random() < 0.7 else None

    def model(m):
        old = c.copy()
        for b, s in enumerate(source.tolist()):
            for i in range(c.length if lengths is None else int(lengths[s])):
                for x, y in zip(m.pair(), old.pair()):
                    rows_of(x, b, i).copy_(rows_of(y, s, i))
        return None if lengths is None else lengths[source]

    return kv_select_rows_, reference.kv_select_rows_, (source, lengths), model


CASES = {f.__name__[5:]: f for f in (case_append, case_replace, case_scatter, case_compact, case_select)}


LENGTHS = {"append": 2, "compact": 1, "select": 1}  # where in a case's arguments is what it writes beyond the cache


def run(name, function, cache, args):
    """The case's call on copies of the cache and of the lengths → (cache, lengths)."""
    cache = cache.copy()
    args = [x.clone() if isinstance(x, torch.Tensor) and x.dim() == 1 else x for x in args]
    function(*cache.pair(), *args)
    return cache, args[LENGTHS[name]] if name in LENGTHS else None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_every_byte(name, layout):
    """What was asked for was written, nothing else was, and native, twin and plain Python agree on it."""
    for seed in range(24):
        rng = random.Random(f"{name} {layout} {seed}")
        width = rng.choice((1, 8, 16, 33, 64, 80))
        cache = Cache(rng, layout, rng.choice(DTYPES), batch=rng.choice((1, 3, 4)), width=width)
        function, twin, args, model = CASES[name](rng, cache)
        expected = cache.copy()
        lengths = model(expected)
        for f in (function, twin):
            for _ in isas() if f is function else [None]:
                got, got_lengths = run(name, f, cache, args)
                assert same(got, expected), (f.__name__, seed)
                assert lengths is None or torch.equal(got_lengths, lengths)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather(layout):
    for seed in range(24):
        rng = random.Random(f"gather {layout} {seed}")
        c = Cache(rng, layout, rng.choice(DTYPES), width=rng.choice((3, 16)))
        before = c.copy()
        n, to = rng.randint(0, 12), rng.choice((1, 3, 5))
        rows = ints(rng, to * n, 0, c.batch - 1).view(to, n) if rng.random() < 0.5 else None
        if rows is None:
            to = c.batch
        shared = rng.random() < 0.3 and rows is None
        index = ints(rng, n if shared else to * n, -1, c.length - 1).view((n,) if shared else (to, n))
        expected = Cache(rng, layout, c.key.dtype, batch=to, length=n, width=c.key.shape[-1])
        outs = [expected.copy() for _ in range(2)]
        for b, i in itertools.product(range(to), range(n)):
            at = int(index.expand(to, n)[b, i])
            for x, y in zip(expected.pair(), c.pair()):
                row = rows_of(x, b, i)
                row.zero_() if at < 0 else row.copy_(rows_of(y, b if rows is None else int(rows[b, i]), at))
        assert kv_gather(*c.pair(), index, rows=rows, out=outs[0].pair())[0] is outs[0].key
        reference.kv_gather_(*outs[1].pair(), *c.pair(), index, rows)
        assert all(same(out, expected) for out in outs)
        fresh = kv_gather(*c.pair(), index, rows=rows)
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(fresh, expected.pair()))
        assert same(c, before)


def test_gather_joins_batch_rows():
    """ReFusion's merge: slots refined side by side become one sequence."""
    key = torch.arange(3.0 * 4).view(1, 3, 1, 4, 1)
    merged, _ = kv_gather(key, -key, torch.tensor([2, 3, 2, 3, 2]), rows=torch.tensor([0, 0, 1, 1, 2]))
    assert merged.shape == (1, 1, 1, 5, 1)
    assert merged.flatten().tolist() == [2, 3, 6, 7, 10]


@needs_native
@pytest.mark.parametrize("name", CASES)
def test_large_calls(name):
    """Enough bytes for threads, and for writing past the processor's caches; also rows that are aligned to nothing."""
    before = torch.get_num_threads()
    try:
        for threads, width, layout in ((1, 256, "plain"), (3, 256, "plain"), (3, 128, "rows first"), (2, 255, "plain")):
            torch.set_num_threads(threads)
            rng = random.Random(f"large {name} {threads} {layout}")
            c = Cache(rng, layout, torch.float32, layers=2, batch=4, heads=8, length=170, width=width)
            function, twin, args, _ = CASES[name](rng, c)
            expected, lengths = run(name, twin, c, args)
            for _ in isas():
                got, got_lengths = run(name, function, c, args)
                assert same(got, expected)
                assert lengths is None or torch.equal(got_lengths, lengths)
    finally:
        torch.set_num_threads(before)


def test_every_map_of_four_batch_rows():
    for source in itertools.product(range(4), repeat=4):
        cache = torch.arange(4.0 * 5).view(1, 4, 1, 5, 1)
        key, value, lengths = cache.clone(), -cache, torch.tensor([5, 2, 0, 3])
        kv_select_rows_(key, value, torch.tensor(source), lengths)
        expected = cache.clone()
        for b, s in enumerate(source):
            n = (5, 2, 0, 3)[s]
            expected[0, b, 0, :n] = cache[0, s, 0, :n]
            assert lengths[b] == n
        assert torch.equal(key, expected)
        assert torch.equal(value, -expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_written(layout):
    """kv_row_bytes a row and not one more: every byte that may change does, and is counted."""
    c = Cache(random.Random(0), layout, length=20)
    for m in c.memory:
        m.view(torch.uint8).zero_()
    new = c.new(random.Random(1), 4)
    for x in new:
        bits(x).fill_(-1)
    kv_replace_(*c.pair(), *new, 7)
    written = sum(int((m.view(torch.uint8) == 255).sum()) for m in c.memory)
    assert written == 4 * c.batch * kv_row_bytes(*c.pair())
    assert sum(int((m.view(torch.uint8) == 0).sum()) for m in c.memory) == sum(m.nbytes for m in c.memory) - written


@pytest.mark.parametrize("seed", range(12))
def test_walk(seed):
    """A long run of operations against a dictionary: which row lies where in each batch row."""
    rng = random.Random(seed)
    layers, B, H, L, D = 2, rng.choice((1, 3, 5)), 2, 16, 4
    key, value = torch.zeros(layers, B, H, L, D), torch.zeros(layers, B, H, L, D)
    lengths, tags = torch.zeros(B, dtype=torch.int64), itertools.count(1)
    model = {b: [] for b in range(B)}  # tags of the rows that are there

    def fresh(n):
        """n new rows a batch row, whose every number tells the row's tag, layer and head → (tags, key, value)."""
        ids = [[next(tags) for _ in range(n)] for _ in range(B)]
        x = torch.tensor(ids, dtype=torch.float32).view(1, B, 1, n, 1) * 100
        x = x + torch.arange(layers).view(-1, 1, 1, 1, 1) * 10 + torch.arange(H).view(1, 1, -1, 1, 1)
        x = x.repeat(1, 1, 1, 1, D)
        return ids, x, -x

    def check():
        assert lengths.tolist() == [len(model[b]) for b in range(B)]
        for b, l, h in itertools.product(range(B), range(layers), range(H)):
            row = torch.tensor(model[b], dtype=torch.float32) * 100 + 10 * l + h
            assert torch.equal(key[l, b, h, : len(row)], row[:, None].expand(-1, D))
            assert torch.equal(value[l, b, h, : len(row)], -row[:, None].expand(-1, D))

    for _ in range(60):
        op, shortest = rng.choice(("append", "append", "replace", "scatter", "compact", "select", "crop", "reorder")), 0
        shortest = min(len(r) for r in model.values())
        if op == "append":
            n = rng.randint(0, L - max(len(r) for r in model.values()))
            count = [rng.randint(0, n) for _ in range(B)]
            ids, k, v = fresh(n)
            kv_append_(key, value, k, v, lengths, torch.tensor(count))
            for b in range(B):
                model[b] += ids[b][: count[b]]
        elif op == "replace":
            n = rng.randint(0, shortest)
            start = [rng.randint(0, len(model[b]) - n) for b in range(B)]
            ids, k, v = fresh(n)
            kv_replace_(key, value, k, v, torch.tensor(start))
            for b in range(B):
                model[b][start[b] : start[b] + n] = ids[b]
        elif op == "scatter" and shortest:
            n = rng.randint(0, 6)
            index = [[rng.randint(-1, len(model[b]) - 1) for _ in range(n)] for b in range(B)]
            ids, k, v = fresh(n)
            kv_scatter_(key, value, k, v, torch.tensor(index, dtype=torch.int64).view(B, n))
            for b in range(B):
                for at, tag in zip(index[b], ids[b]):
                    if at >= 0:
                        model[b][at] = tag
        elif op == "compact":
            keep = [[rng.random() < 0.8 for _ in range(L)] for _ in range(B)]
            kv_compact_(key, value, torch.tensor(keep), lengths)
            model = {b: [tag for tag, kept in zip(model[b], keep[b]) if kept] for b in range(B)}
        elif op == "select":
            source = [rng.randrange(B) for _ in range(B)]
            kv_select_rows_(key, value, torch.tensor(source), lengths)
            model = {b: list(model[source[b]]) for b in range(B)}
        elif op == "crop":
            most = rng.randint(0, L)
            lengths.clamp_(max=most)
            model = {b: r[:most] for b, r in model.items()}
        elif op == "reorder":  # any order: gathered, and put back
            order = [rng.sample(range(len(r)), len(r)) + [-1] * (L - len(r)) for r in model.values()]
            kv_replace_(key, value, *kv_gather(key, value, torch.tensor(order)), 0, lengths)
            model = {b: [r[i] for i in order[b] if i >= 0] for b, r in model.items()}
        check()


def test_device_rules():
    """On a device the numbers are not checked: rows without a place are left out and all else is done."""
    cache = torch.arange(2.0 * 4).view(1, 2, 1, 4, 1)
    new = torch.tensor([100.0, 101, 102]).view(1, 1, 1, 3, 1).expand(1, 2, 1, 3, 1)

    def after(twin, *args):
        key, value = cache.clone(), cache.clone()
        twin(key, value, *args)
        assert torch.equal(key, value)
        return key.flatten(0, 3).flatten().tolist()

    lengths = torch.tensor([2, -1])
    assert after(reference.kv_append_, new, new, lengths, None) == [0, 1, 100, 101, 101, 102, 6, 7]
    assert lengths.tolist() == [4, 2]
    lengths, count = torch.tensor([4, 0]), torch.tensor([9, -1])
    assert after(reference.kv_append_, new, new, lengths, count) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert lengths.tolist() == [4, 0]
    assert after(reference.kv_replace_, new, new, None, 3, None) == [0, 1, 2, 100, 4, 5, 6, 100]
    assert after(reference.kv_scatter_, new, new, torch.tensor([4, 1, -7])) == [0, 101, 2, 3, 4, 101, 6, 7]
    lengths = torch.tensor([9, -3])
    keep = torch.tensor([[False, True, False, True]] * 2)
    assert after(reference.kv_compact_, keep, lengths) == [1, 3, 2, 3, 4, 5, 6, 7]
    assert lengths.tolist() == [2, 0]
    lengths = torch.tensor([9, 2])
    assert after(reference.kv_select_rows_, torch.tensor([5, 0]), lengths) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert lengths.tolist() == [4, 4]
    out = torch.ones(1, 2, 1, 3, 1)
    reference.kv_gather_(out, out.clone(), cache, cache, torch.tensor([4, 1, 2]), torch.tensor([0, 2, 1]))
    assert out.flatten().tolist() == [0, 0, 6, 0, 0, 6]


# ---- bad input -------------------------------------------------------------------------------------------------------

K = torch.zeros(2, 3, 2, 8, 4)  # (layers, B, H, L, D)
N = torch.ones(2, 3, 2, 5, 4)
I3, I5 = torch.arange(3), torch.arange(5)
KEEP = torch.ones(3, 8, dtype=torch.bool)


def append(key=K, value=K, new_key=N, new_value=N, lengths=I3, count=None):
    kv_append_(key, value, new_key, new_value, lengths, count)


def replace(key=K, value=K, new_key=N, new_value=N, start=0, count=None):
    kv_replace_(key, value, new_key, new_value, start, count)


def scatter(key=K, value=K, new_key=N, new_value=N, index=I5):
    kv_scatter_(key, value, new_key, new_value, index)


def gather(key=K, value=K, index=I5, rows=None, out=None):
    kv_gather(key, value, index, rows=rows, out=out)


def compact(key=K, value=K, keep=KEEP, lengths=I3):
    kv_compact_(key, value, keep, lengths)


def select(key=K, value=K, source=I3, lengths=None):
    kv_select_rows_(key, value, source, lengths)


ONES = torch.tensor([1, 1, 1])
BAD = [
    (ValueError, r"key has shape \(3, 8, 4\), expected \(layers, B, H, L, D\)", append, {"key": K[0, 0, :, :, :].new_zeros(3, 8, 4)}),
    (ValueError, r"value has shape \(2, 3, 2, 7, 4\), key has \(2, 3, 2, 8, 4\)", append, {"value": K[:, :, :, :7]}),
    (ValueError, "value has shape", append, {"value": K[0]}),
    (TypeError, "value is torch.float16, key is torch.float32", append, {"value": K.half()}),
    (ValueError, "value is on meta, key on cpu", append, {"value": K.to("meta")}),
    (ValueError, "key has strides .*, expected a contiguous last dimension", append, {"key": torch.zeros(2, 3, 2, 4, 8).mT}),
    (ValueError, "key is expanded", append, {"key": K[:1].expand(2, 3, 2, 8, 4)}),
    (ValueError, "key requires grad", append, {"key": K.clone().requires_grad_(), "lengths": I3 + 4}),
    (TypeError, "new_key is torch.bfloat16, the cache is torch.float32", append, {"new_key": N.bfloat16(), "new_value": N.bfloat16()}),
    (ValueError, r"new_key has shape \(2, 3, 2, 5, 3\), expected \(2, 3, 2, n, 4\)", append, {"new_key": N[..., :3]}),
    (ValueError, r"new_value has shape \(2, 3, 2, 5, 3\), expected \(2, 3, 2, n, 4\)", append, {"new_value": N[..., :3]}),
    (ValueError, r"new_key has shape \(2, 1, 2, 5, 4\)", append, {"new_key": N[:, :1], "new_value": N[:, :1]}),
    (ValueError, "new_value has shape .*, new_key has", append, {"new_value": N[:, :, :, :4]}),
    (ValueError, r"lengths has shape \(2,\), expected \(3,\)", append, {"lengths": I3[:2]}),
    (TypeError, "lengths is torch.int32, expected torch.int64", append, {"lengths": I3.int()}),
    (ValueError, "lengths has strides", append, {"lengths": torch.zeros(6, dtype=torch.int64)[::2]}),
    (ValueError, "lengths is on meta", append, {"lengths": I3.to("meta")}),
    (IndexError, r"lengths\[1\] is -1, expected 0 to 8", append, {"lengths": torch.tensor([0, -1, 0])}),
    (IndexError, r"lengths\[0\] is 9, expected 0 to 8", append, {"lengths": I3 + 9, "new_key": N[:, :, :, :0], "new_value": N[:, :, :, :0]}),
    (IndexError, r"batch row 2 would get rows 4 to 8, expected rows below 8", append, {"lengths": I3 + 2}),
    (IndexError, r"count\[1\] is 6, expected 0 to 5", append, {"count": torch.tensor([1, 6, 1])}),
    (IndexError, r"count\[0\] is -1", append, {"count": ONES - 2}),
    (ValueError, "count has shape", append, {"count": ONES[:1]}),
    (IndexError, r"start\[0\] is -1", replace, {"start": -1}),
    (IndexError, "batch row 0 would get rows 4 to 8", replace, {"start": 4}),
    (IndexError, r"start\[2\] is -2", replace, {"start": torch.tensor([1, 2, -2])}),
    (IndexError, r"start\[0\] is 9223372036854775807", replace, {"start": 2**63 - 1}),
    (TypeError, "start is 1.5, expected an int", replace, {"start": 1.5}),
    (TypeError, "start is torch.int32", replace, {"start": I3.int()}),
    (IndexError, r"index\[2\] is 8, expected 0 to 7", scatter, {"index": torch.tensor([1, 2, 8, -1, 3])}),
    (IndexError, r"index\[1, 0\] is 8", scatter, {"index": torch.tensor([[0] * 5, [8] * 5, [9] * 5])}),
    (ValueError, r"index has shape \(4,\), expected \(5,\) or \(B, 5\)", scatter, {"index": torch.arange(4)}),
    (ValueError, r"index has shape \(2, 5\), expected 3 batch rows", scatter, {"index": torch.zeros(2, 5, dtype=torch.int64)}),
    (TypeError, "index is torch.float32", scatter, {"index": torch.zeros(5)}),
    (ValueError, "index has shape", scatter, {"index": torch.zeros(1, 3, 5, dtype=torch.int64)}),
    (IndexError, r"index\[0\] is 8, expected -1 to 7", gather, {"index": torch.tensor([8])}),
    (IndexError, r"rows\[0\] is 3, expected 0 to 2", gather, {"index": torch.tensor([1]), "rows": torch.tensor([3])}),
    (IndexError, r"rows\[0\] is -1", gather, {"index": torch.tensor([-1]), "rows": torch.tensor([-1])}),
    (ValueError, r"rows has shape \(4,\), expected \(5,\)", gather, {"rows": torch.zeros(4, dtype=torch.int64)}),
    (TypeError, "rows is torch.bool", gather, {"rows": torch.zeros(5, dtype=torch.bool)}),
    (ValueError, "the result has 2 batch rows, the cache has 3", gather, {"index": torch.zeros(2, 5, dtype=torch.int64)}),
    (ValueError, r"out\[0\] has shape", gather, {"out": (N[:1], N[:1])}),
    (ValueError, r"index has shape \(5,\), expected \(4,\)", gather, {"out": (N[:, :, :, :4].clone(), N[:, :, :, :4].clone())}),
    (TypeError, r"out\[0\] is torch.float16", gather, {"out": (N.half(), N.half())}),
    (ValueError, r"out\[1\] is expanded", gather, {"out": (N.clone(), N[:1].expand(N.shape))}),
    (ValueError, r"keep has shape \(3, 7\), expected \(3, 8\)", compact, {"keep": torch.ones(3, 7, dtype=torch.bool)}),
    (TypeError, "keep is torch.int64, expected torch.bool", compact, {"keep": torch.ones(3, 8, dtype=torch.int64)}),
    (IndexError, r"lengths\[2\] is 10, expected 0 to 8", compact, {"lengths": I3 + 8 - torch.tensor([8, 8, 0])}),
    (IndexError, r"source\[1\] is 3, expected 0 to 2", select, {"source": torch.tensor([0, 3, 0])}),
    (IndexError, r"source\[0\] is -1", select, {"source": I3 - 1}),
    (ValueError, "source has shape", select, {"source": I3[:2]}),
    (TypeError, "source is torch.int32", select, {"source": I3.int()}),
    (IndexError, r"lengths\[0\] is 9", select, {"lengths": I3 + 9}),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(BAD)))
def test_bad_input(row):
    error, message, function, kw = BAD[row]
    before = I3.clone()
    with pytest.raises(error, match=message) as info:
        function(**kw)
    name = "kv_gather" if function is gather else next(n for n in reference.SCHEMAS if function.__name__ in n)
    assert str(info.value).startswith(f"{name}: ")
    assert not K.any(), "something was written"
    assert N.all()
    assert torch.equal(I3, before)


@pytest.mark.parametrize("row", range(len(BAD)))
@needs_native
def test_kernel_guards_memory_by_itself(row):
    """Compiled code reaches the ops without the Python checks, which here only put the kernel's refusal into words."""
    error, _, function, kw = BAD[row]
    if any(x.requires_grad or x.is_meta for x in kw.values() if isinstance(x, torch.Tensor)):
        pytest.skip("not for the kernel to see")
    with pytest.raises(error) as info:
        function(**kw)
    reasons, reason = [], info.value
    while reason is not None:
        reasons.append(type(reason))
        reason = reason.__context__
    assert RuntimeError in reasons, reasons
    assert not K.any()
    assert N.all()


def test_nothing_to_do():
    """No rows, no batch rows, no layers, no capacity."""
    for shape in ((2, 3, 2, 8, 4), (2, 0, 2, 8, 4), (0, 3, 2, 8, 4), (2, 3, 2, 0, 4), (2, 3, 0, 8, 4)):
        key, value = torch.zeros(shape), torch.zeros(shape)
        new = torch.zeros(*shape[:3], 0, 4)
        lengths = torch.zeros(shape[1], dtype=torch.int64)
        kv_append_(key, value, new, new, lengths)
        kv_replace_(key, value, new, new, 0)
        kv_scatter_(key, value, new, new, torch.empty(0, dtype=torch.int64))
        assert kv_gather(key, value, torch.empty(0, dtype=torch.int64))[0].shape == new.shape
        kv_compact_(key, value, torch.zeros(shape[1], shape[3], dtype=torch.bool), lengths)
        kv_select_rows_(key, value, torch.arange(shape[1]), lengths)
        assert not lengths.any()


def test_gradients_do_not_pass():
    key, new = torch.zeros(1, 1, 1, 4, 2), torch.ones(1, 1, 1, 1, 2, requires_grad=True)
    kv_replace_(key, key.clone(), new, new, 1)
    assert not key.requires_grad
    assert key.flatten().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


# ---- torch's own rules -----------------------------------------------------------------------------------------------


def calls():
    """One call of every op: (name, arguments)."""
    rng = random.Random(5)
    c = Cache(rng, dtype=torch.float32)
    for x in c.memory:  # opcheck compares with ==, so no NaN
        x.normal_()
    new = [torch.randn(2, 3, 2, 4, 8) for _ in range(2)]
    lengths, keep = torch.tensor([1, 5, 0]), torch.arange(27).view(3, 9) % 2 == 0
    out = [torch.zeros(2, 3, 2, 4, 8) for _ in range(2)]
    yield "kv_append_", (*c.pair(), *new, lengths, torch.tensor([4, 0, 2]))
    yield "kv_append_", (*c.pair(), *new, lengths, None)
    yield "kv_replace_", (*c.pair(), *new, None, 3, None)
    yield "kv_replace_", (*c.pair(), *new, lengths, 0, None)
    yield "kv_scatter_", (*c.pair(), *new, torch.tensor([4, -1, 0, 4]))
    yield "kv_gather_", (*out, *c.pair(), torch.tensor([4, -1, 0, 4]), None)
    yield "kv_compact_", (*c.pair(), keep, lengths)
    yield "kv_select_rows_", (*c.pair(), torch.tensor([1, 2, 0]), lengths)
    yield "kv_select_rows_", (*c.pair(), torch.tensor([1, 2, 0]), None)


@pytest.mark.parametrize("row", range(9))
def test_opcheck(row):
    name, args = list(calls())[row]
    torch.library.opcheck(getattr(OPS, name).default, args)


def test_schemas():
    for name, schema in reference.SCHEMAS.items():
        assert str(getattr(OPS, name).default._schema) == f"sampler_zoo::{schema}"


def test_compile():
    """Mutation under torch.compile, in one graph, and one graph for all integers."""

    def step(key, value, new_key, new_value, lengths, start: int):
        kv_append_(key, value, new_key, new_value, lengths)
        kv_replace_(key, value, new_key * 2, new_value * 2, start)
        picked = kv_gather(key, value, torch.arange(3))
        kv_compact_(key, value, key[0, :, 0, :, 0] != 0, lengths)
        kv_select_rows_(key, value, torch.tensor([1, 0]), lengths)
        kv_scatter_(key, value, new_key[:, :, :, :1], new_value[:, :, :, :1], lengths.view(2, 1))
        return picked[0].sum()

    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for start in range(5):
        g = torch.Generator().manual_seed(start)
        key, value = torch.zeros(2, 2, 2, 12, 4), torch.zeros(2, 2, 2, 12, 4)
        new = [torch.randn(2, 2, 2, 3, 4, generator=g) for _ in range(2)]
        a = [key, value, *new, torch.tensor([4, 1])]
        b = [x.clone() for x in a]
        assert torch.equal(step(*a, start), compiled(*b, start))
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert counter.frame_count <= 3
