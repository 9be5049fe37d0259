"""The CUDA bodies of the cache operations, run by the block emulator, against their twins: every byte, numbers that are
out of range included, in several orders of threads."""

import random

import pytest
import torch
from emulator import emulated
from test_cached_kv import CASES, DTYPES, LAYOUTS, LENGTHS, Cache, bits, ints, same

from samplers.ops import reference

RANGE, SCATTER, GATHER = range(3)


@pytest.fixture(autouse=True)
def module(one_thread):
    module = emulated("cached_kv")
    yield module
    module.turns(0)


def address(x):
    return 0 if x is None else x.data_ptr()


def planes(pair):
    out = []
    for x in pair:
        layer, *rest = x.stride() if x.dim() == 5 else (0, *x.stride())
        out += [x.data_ptr(), *(s * x.element_size() for s in (layer, *rest[:3]))]
    return out


def sizes(to, source):
    layers = to[0].shape[0] if to[0].dim() == 5 else 1
    batch, heads, length = to[0].shape[-4:-1]
    return [
        *(x.shape[-1] * x.element_size() for x in to),
        *(layers, heads, batch, length, source[0].shape[-4], source[0].shape[-2]),
    ]


def rows(to, source, which, start=None, count=None, index=None, batch=None, at=0):
    step = [0 if x is None or x.dim() == 1 else x.shape[1] for x in (index, batch)]
    call = (planes(to), planes(source), sizes(to, source), which, address(start), address(count), address(index))
    assert emulated("cached_kv").rows(*call, address(batch), at, *step) == 0


# The ops as csrc/torch/cached_kv.cpp has them for a device; named and called like the twins.


def body_append(key, value, new_key, new_value, lengths, count):
    rows((key, value), (new_key, new_value), RANGE, start=lengths, count=count)
    n, length = new_key.shape[-2], key.shape[-2]
    assert emulated("cached_kv").advance(address(lengths), address(count), key.shape[-4], n, length) == 0


def body_replace(key, value, new_key, new_value, start, count):
    where = {"at": start} if isinstance(start, int) else {"start": start}
    rows((key, value), (new_key, new_value), RANGE, count=count, **where)


def body_scatter(key, value, new_key, new_value, index):
    rows((key, value), (new_key, new_value), SCATTER, index=index.contiguous())


def body_compact(key, value, keep, lengths):
    to = (key, value)
    assert emulated("cached_kv").compact(planes(to), sizes(to, to), address(keep), address(lengths)) == 0


def body_select(key, value, source, lengths):
    to = (key, value)
    assert emulated("cached_kv").select(planes(to), sizes(to, to), address(source), address(lengths)) == 0


BODIES = {
    "append": body_append,
    "replace": body_replace,
    "scatter": body_scatter,
    "compact": body_compact,
    "select": body_select,
}


def compare(name, cache, twin, args):
    results = []
    for function in (BODIES[name], twin):
        copies = [x.clone() if isinstance(x, torch.Tensor) and x.dim() == 1 else x for x in args]
        there = cache.copy()
        function(*there.pair(), *copies)
        results.append((there, copies[LENGTHS[name]] if name in LENGTHS else None))
    (got, got_lengths), (expected, lengths) = results
    assert same(got, expected)
    assert lengths is None or torch.equal(got_lengths, lengths)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_every_byte(module, name, layout):
    for seed in range(6):
        module.turns(seed % 3)
        rng = random.Random(f"cuda {name} {layout} {seed}")
        width = rng.choice((1, 3, 8, 32))
        c = Cache(rng, layout, rng.choice(DTYPES), batch=rng.choice((1, 3)), length=rng.choice((9, 40)), width=width)
        _, twin, args, _ = CASES[name](rng, c)
        compare(name, c, twin, args)


@pytest.mark.parametrize("name", CASES)
def test_long_rows(module, name):
    """Several tiles of rows a column, in each direction that kernels cut one; 300 rows of 256 bytes."""
    rng = random.Random(f"long {name}")
    c = Cache(rng, "plain", torch.bfloat16, layers=1, batch=2, heads=1, length=300, width=128)
    _, twin, args, _ = CASES[name](rng, c)
    compare(name, c, twin, args)


def test_compaction_moves_little_and_much(module):
    """Nothing dropped at first, then one row in the second tile, then all but a few."""
    keep = torch.ones(1, 800, dtype=torch.bool)
    keep[0, 300], keep[0, 600:790] = False, False
    c = Cache(random.Random(2), "plain", torch.float32, layers=1, batch=1, heads=1, length=800, width=4)
    for turn, length in enumerate((256, 300, 512, 799, 800)):
        module.turns(turn)
        compare("compact", c, reference.kv_compact_, (keep, torch.tensor([length])))


def test_numbers_out_of_range(module):
    """Numbers that no check has seen touch nothing outside, and do what the twin does."""
    far = 2**40
    for seed in range(20):
        rng = random.Random(seed)
        module.turns(seed % 3)
        c = Cache(rng, "some layers", torch.float16, layers=1, batch=3, length=7, width=4)
        new = c.new(rng, 5)
        wild = torch.tensor([rng.choice((-far, -6, -2, 0, 3, 5, 7, far)) for _ in range(3)])
        count = torch.tensor([rng.choice((-far, -1, 2, 5, 9, far)) for _ in range(3)])
        compare("append", c, reference.kv_append_, (*new, wild, rng.choice((count, None))))

        def replace(key, value, new_key, new_value, start, count):
            reference.kv_replace_(key, value, new_key, new_value, start, 0, count)

        compare("replace", c, replace, (*new, wild, count))
        compare("scatter", c, reference.kv_scatter_, (*new, ints(rng, 15, -9, 16).view(3, 5)))
        keep = torch.tensor([[rng.random() < 0.5 for _ in range(7)] for _ in range(3)])
        compare("compact", c, reference.kv_compact_, (keep, wild))
        compare("select", c, reference.kv_select_rows_, (ints(rng, 3, -1, 3), rng.choice((wild, None))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather(layout):
    for seed in range(6):
        rng = random.Random(f"cuda gather {layout} {seed}")
        c = Cache(rng, layout, rng.choice(DTYPES), length=40, width=rng.choice((3, 16)))
        n, to = rng.choice((5, 70)), rng.choice((1, 3))
        batch = None if to == c.batch and seed % 2 else ints(rng, to * n, -1, c.batch).view(to, n)
        index = ints(rng, to * n, -2, c.length + 1).view(to, n)
        out = Cache(rng, layout, c.key.dtype, batch=to, length=n, width=c.key.shape[-1])
        expected = out.copy()
        rows(out.pair(), c.pair(), GATHER, index=index, batch=batch)
        reference.kv_gather_(*expected.pair(), *c.pair(), index, batch)
        assert same(out, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name, layout):
    """The ops as they are registered for a device, against the CPU's."""
    for seed in range(6):
        rng = random.Random(f"gpu {name} {layout} {seed}")
        c = Cache(rng, layout, rng.choice(DTYPES), batch=rng.choice((1, 3)), length=300, width=rng.choice((3, 64)))
        function, _, args, _ = CASES[name](rng, c)
        moved, expected, copies = [], [], []
        for device, kept in (("cpu", expected), ("cuda", moved)):
            there = c.copy()
            pair = [x.to(device) for x in there.pair()]
            copies.append([x.to(device, copy=True) if isinstance(x, torch.Tensor) else x for x in args])
            function(*pair, *copies[-1])
            kept += [*pair, *(x for x in copies[-1] if isinstance(x, torch.Tensor))]
        assert all(torch.equal(bits(x), bits(y.cpu())) if x.dim() > 3 else torch.equal(x, y.cpu())
                   for x, y in zip(expected, moved))  # fmt: skip


def test_words(module):
    """16 bytes a word where all allows it, less where an address or a stride does not."""
    for width, shift, expected in ((8, 0, 16), (8, 4, 4), (8, 1, 2), (6, 0, 4), (7, 0, 2)):
        x = torch.zeros(2 * 1 * 1 * 3 * width + 8, dtype=torch.bfloat16)[shift:][: 6 * width].view(2, 1, 1, 3, width)
        assert module.word_bytes(planes((x, x)), planes((x, x)), sizes((x, x), (x, x))) == expected


def test_many_batch_rows():
    """As many as a block can hold one word of each."""
    c = Cache(random.Random(3), "plain", torch.float32, layers=1, batch=2048, heads=1, length=2, width=1)
    source = torch.randint(2048, (2048,), generator=torch.Generator().manual_seed(0))
    compare("select", c, reference.kv_select_rows_, (source, source % 3))
