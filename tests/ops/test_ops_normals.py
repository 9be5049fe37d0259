"""row_normals: twin, native kernels and CUDA body give the same bits; these are normals, and good to a unit or so."""

import math

import mpmath
import numpy as np
import pytest
import torch
from emulator import emulated
from native import isas
from scipy import stats

from samplers.ops import reference, row_normals
from samplers.ops.normals import _pair
from samplers.random import DRAW_NOISE, Rng, philox

SEED = torch.tensor([0, 5, -1, 2**63 - 1, -(2**63)])
ROW = torch.tensor([0, 2**33 + 7, 1, -5, 12])
STEP = torch.tensor([0, 3, 2**31, 2**32 + 1, -1])
DTYPES = (torch.float32, torch.float64)
EDGES = (0, 1, 2, 3, 2**29 - 1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 128, 2**32 - 2, 2**32 - 1)
# (row, element) of the five rows above, draw 2.
KNOWN32 = [
    -2.643845796585083,
    -0.6272286176681519,
    -0.15194956958293915,
    -0.17845462262630463,
    0.3767548203468323,
    0.0039039046969264746,
    0.5898273587226868,
    -0.5474206805229187,
    0.11489669233560562,
    2.9442551136016846,
]
KNOWN64 = [
    2.1876532909177353,
    -1.6116789043528097,
    -0.18337736554350448,
    -0.14597076833430717,
    -0.03250659695036388,
    0.37537016425382214,
    -0.33378839749180583,
    0.732223373051585,
    -0.44100619447293,
    2.913305924856082,
]


def same_bits(a, b):
    whole = torch.int32 if a.dtype == torch.float32 else torch.int64
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(whole), b.view(whole))


def exact(v, w, bits):
    """The two normals of a pair of words, by mpmath: what the docstring of csrc/normal.h says."""
    with mpmath.workdps(50):
        u = mpmath.mpf(v | 1) / 2**bits
        rest = (w << 2 | 2) % 2**bits
        angle = mpmath.pi / 2 * (rest - (rest >> (bits - 1) << bits)) / 2**bits
        radius = mpmath.sqrt(-2 * mpmath.log(u))
        pair = [radius * mpmath.cos(angle) * (-1 if w >> (bits - 1) else 1), radius * mpmath.sin(angle)]
        return pair[::-1] if w >> (bits - 2) & 1 else pair


def off_by(value, true, dtype):
    """Relative error in units of half the spacing of numbers just below 2."""
    return float(abs(mpmath.mpf(value) - true) / abs(true)) / torch.finfo(dtype).eps * 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("draw", [0, DRAW_NOISE, 2**32 - 1])
def test_native_and_twin_give_the_same_bits(dtype, draw):
    for _ in isas():
        for length in (1, 2, 3, 4, 5, 63, 64, 127, 255, 256, 257, 1001):
            out = row_normals(SEED, ROW, STEP, length=length, draw=draw, dtype=dtype)
            assert same_bits(out, reference.row_normals(SEED, ROW, STEP, length, draw, dtype)), length


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_and_many_rows(dtype):
    """Far positions; enough work for several threads; as many rows as there are blocks in a tile, and more."""
    for rows, length in ((1, 1_000_003), (3, 70_001), (1000, 2), (129, 37)):
        rng = Rng.of(2**40 + 9, rows, first_row=5)
        call = rng.seed, rng.row, torch.arange(rows)
        twin = reference.row_normals(*call, length, 7, dtype)
        for _ in isas():
            assert same_bits(row_normals(*call, length=length, draw=7, dtype=dtype), twin), (rows, length)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_depends_on_neither_length_nor_batch(dtype):
    whole = row_normals(SEED, ROW, STEP, length=301, draw=2, dtype=dtype)
    for length in (1, 2, 3, 6, 64, 255, 300):
        assert same_bits(
            row_normals(SEED, ROW, STEP, length=length, draw=2, dtype=dtype), whole[:, :length].contiguous()
        )
    for b in range(len(SEED)):
        alone = row_normals(SEED[b : b + 1], ROW[b : b + 1], int(STEP[b]), length=301, draw=2, dtype=dtype)
        assert same_bits(alone, whole[b : b + 1])
    for part in (slice(1, 4), slice(None, None, 2)):
        assert same_bits(row_normals(SEED[part], ROW[part], STEP[part], length=301, draw=2, dtype=dtype), whole[part])


def test_known_numbers():
    """Of blocks that torch's philox makes and mpmath transforms; and as they are, so that no later change goes unseen."""
    for dtype, bits in ((torch.float32, 32), (torch.float64, 64)):
        out = row_normals(SEED, ROW, STEP, length=4 if bits == 32 else 2, draw=2, dtype=dtype)
        for b, row in enumerate(out.tolist()):
            high = (SEED[b] >> 32) ^ (ROW[b] >> 32)
            r = [int(x) for x in philox((0, STEP[b], 2, high), (SEED[b], ROW[b]))]
            words = r if bits == 32 else [r[0] << 32 | r[1], r[2] << 32 | r[3]]
            true = [z for i in range(0, len(words), 2) for z in exact(words[i], words[i + 1], bits)]
            assert all(off_by(z, t, dtype) < 4 for z, t in zip(row, true, strict=True)), (dtype, b)
    assert row_normals(SEED, ROW, STEP, length=2, draw=2).flatten().tolist() == KNOWN32
    assert row_normals(SEED, ROW, STEP, length=2, draw=2, dtype=torch.float64).flatten().tolist() == KNOWN64


@pytest.mark.parametrize(("dtype", "bits", "limit"), [(torch.float32, 32, 6), (torch.float64, 64, 5)], ids=str)
def test_precision(dtype, bits, limit):
    """Against mpmath: words at the edges, all pairs of them, and random ones. Never 0, infinite or NaN."""
    generator = np.random.Generator(np.random.Philox(3))
    edges = [e << (bits - 32) | low for e in EDGES for low in ((0,) if bits == 32 else (0, 1, 2**32 - 1))]
    pairs = [(v, w) for v in edges for w in edges]
    pairs += [tuple(map(int, generator.integers(0, 2**bits, 2, dtype=np.uint64))) for _ in range(3000)]
    signed = torch.tensor([[x - (x >> (bits - 1) << bits) for x in pair] for pair in pairs])
    got = torch.stack(_pair(*signed.unbind(1), dtype), 1)
    assert got.isfinite().all() and (got != 0).all()
    errors = [off_by(z, t, dtype) for row, (v, w) in zip(got.tolist(), pairs) for z, t in zip(row, exact(v, w, bits))]
    assert max(errors) < limit and np.mean(errors) < 1
    assert got.abs().max() == pytest.approx(math.sqrt(2 * bits * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_header_gives_the_bits_of_the_twin(dtype):
    """At the edges as well, where no draw of a test arrives."""
    module, size = emulated("normal"), dtype.itemsize
    generator = np.random.Generator(np.random.Philox(4))
    words = [(a, b, c, d) for a in EDGES for b in EDGES for c, d in ((b, a), (7, a), (2**32 - 1, b))]
    words += generator.integers(0, 2**32, (3000, 4)).tolist()
    of_words = module.of_words32 if size == 4 else module.of_words64
    header = torch.tensor([of_words(*w) for w in words], dtype=dtype)
    r = torch.tensor(words)
    if size == 8:
        twin = _pair(r[:, 0] << 32 | r[:, 1], r[:, 2] << 32 | r[:, 3], dtype)
    else:
        r = r - (r >> 31 << 32)
        twin = *_pair(r[:, 0], r[:, 1], dtype), *_pair(r[:, 2], r[:, 3], dtype)
    assert same_bits(header, torch.stack(twin, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_law(dtype):
    """Moments, the distribution and its tails, of 4 million numbers."""
    rng = Rng.of(11, 4)
    z = row_normals(rng.seed, rng.row, 0, length=1_000_000, draw=2, dtype=dtype).double().flatten().numpy()
    n = len(z)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 5 * math.sqrt(variance / n), power
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for edge in (3.0, 4.0, 4.75):
        for count in ((z > edge).sum(), (z < -edge).sum()):
            assert stats.binomtest(int(count), n, stats.norm.sf(edge)).pvalue > 1e-4, edge
    assert abs(z).max() < math.sqrt(2 * 8 * dtype.itemsize * math.log(2)) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_independent(dtype):
    """No correlation of values or of squares between neighbours, in a block or not, nor with the same position of another
    row, step, draw or seed; and the points of a pair fill the plane evenly."""
    seed, row = torch.tensor([4]), torch.tensor([9])

    def of(seed, row, step, draw):
        return row_normals(seed, row, step, length=400_000, draw=draw, dtype=dtype)[0].double().numpy()

    z = of(seed, row, 1, 2)
    others = {f"{k} further": z[k:] for k in (1, 2, 3, 4, 5, 8, 16, 64, 256)}
    others |= {
        "row": of(seed, row + 1, 1, 2),
        "row + 2^32": of(seed, row + 2**32, 1, 2),
        "step": of(seed, row, 2, 2),
        "draw": of(seed, row, 1, 3),
        "seed": of(seed + 1, row, 1, 2),
    }
    for name, other in others.items():
        mine = z[: len(other)]
        for f in (lambda x: x, np.square, np.sign):
            assert abs(np.corrcoef(f(mine), f(other))[0, 1]) < 5 / math.sqrt(len(mine)), name
    per_block = 16 // dtype.itemsize
    block = z.reshape(-1, per_block)
    for i in range(per_block):
        for j in range(i):
            assert abs(np.corrcoef(block[:, i] ** 2, block[:, j] ** 2)[0, 1]) < 5 / math.sqrt(len(block)), (i, j)
    for x, y in zip(*(block[:, k::2].T for k in (0, 1))):
        angle = np.arctan2(y, x) / (2 * math.pi) + 0.5
        assert stats.chisquare(np.bincount((angle * 64).astype(int) % 64, minlength=64)).pvalue > 1e-4
        assert stats.kstest((x**2 + y**2) / 2, "expon").pvalue > 1e-4


def test_the_normals_of_a_run():
    """Rng.normal draws them, rounds them to smaller dtypes, and moves no generator."""
    before = torch.get_rng_state()
    rng = Rng(SEED, ROW)
    wide = row_normals(SEED, ROW, 6, length=15, draw=DRAW_NOISE)
    assert same_bits(rng.normal((3, 5), 6), wide.reshape(5, 3, 5))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(rng.normal((15,), 6, dtype), wide.to(dtype))
    fine = row_normals(SEED, ROW, 6, length=15, draw=DRAW_NOISE, dtype=torch.float64)
    assert same_bits(rng.normal((15,), 6, torch.float64), fine)
    assert rng.normal((), 6).shape == (5,)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.sampler_zoo.row_normals.default, (SEED, ROW, STEP, 6, 1, dtype))


def test_compiled():
    def noise(seed, row, step):
        return 2 * row_normals(seed, row, step, length=6, draw=1)

    compiled = torch.compile(noise, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(SEED, ROW, STEP), noise(SEED, ROW, STEP))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"seed": SEED.int()}, TypeError, "row_normals: seed is torch.int32, expected torch.int64"),
        ({"row": ROW[:2]}, ValueError, r"row has shape \(2,\), expected \(5,\)"),
        ({"step": STEP[:1]}, ValueError, r"step has shape \(1,\), expected \(5,\)"),
        ({"step": "now"}, TypeError, "step is 'now', expected Tensor or int"),
        ({"length": 0}, ValueError, "length is 0, expected 1 or more"),
        ({"length": 2.5}, TypeError, "length is 2.5, expected int"),
        ({"draw": -1}, ValueError, "draw is -1, expected 0 to"),
        ({"draw": 2**32}, ValueError, "draw is 4294967296, expected 0 to"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype is torch.bfloat16, expected torch.float32 or torch.float64"),
    ],
)
def test_bad_input(change, error, says):
    call = {"seed": SEED, "row": ROW, "step": STEP, "length": 4} | change
    with pytest.raises(error, match=says):
        row_normals(**call)


def test_no_rows():
    none = SEED[:0]
    assert row_normals(none, none, none, length=3).shape == (0, 3)
    assert reference.row_normals(none, none, none, 3, 0, torch.float32).shape == (0, 3)


@pytest.mark.parametrize("turns", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cuda_body(turns, dtype):
    module = emulated("normal")
    module.turns(turns)
    for length in (1, 6, 301):
        out = torch.full((5 * length + 1,), 8.0, dtype=dtype)
        job = {k: v.data_ptr() for k, v in {"seed": SEED, "row": ROW, "step": STEP, "out": out}.items()}
        run = module.run32 if dtype == torch.float32 else module.run64
        assert run(job | {"rows": 5, "length": length, "draw": 8}) == 0
        native = row_normals(SEED, ROW, STEP, length=length, draw=8, dtype=dtype)
        assert same_bits(out[:-1], native.flatten()) and out[-1] == 8.0
    module.turns(0)
