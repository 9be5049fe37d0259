"""Ops, samplers and models on a GPU against the CPU. Skipped where there is no GPU, or the module has no CUDA kernels.

The classes come in order of how well their kernels are tested already, and bench/device.sh gives each a process of its own: after
an illegal access nothing works any more in its process.

SAMPLERS_REHEARSE=1 takes the CPU in place of the GPU, so that every line here runs on a machine that has none.
"""

import contextlib
import os
import warnings

import pytest
import torch

import samplers
from samplers import ops, registry
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.models.cache import Cache
from samplers.models.transformer import Experts
from samplers.ops import _native, headless_softmax, masked_softmax, reference
from samplers.syncs import pretend_device
from samplers.testing import SyncRecorder, Watched, watched
from samplers.testing.tiny import TinyMixture, TinySequential

REHEARSAL = os.environ.get("SAMPLERS_REHEARSE") == "1"
GPU = "cpu" if REHEARSAL else "cuda"
KERNELS = bool(_native.C and _native.C.build_facts()["cuda"])

pytestmark = [
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="torch sees no GPU"),
    pytest.mark.skipif(not (REHEARSAL or KERNELS), reason="built without CUDA kernels"),
]
WANT = ("confidence", "margin", "entropy", "lse", "given")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# ---------------------------------------------------------------------------------------------- the two devices


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(rows, vocab, seed=0, dtype=torch.float32):
    return torch.randn(rows, vocab, generator=generator(seed)).mul(4).to(dtype)


def copied(kw, device=GPU):
    """Arguments on a device, in memory of their own."""
    return {k: v.to(device, copy=True) if isinstance(v, torch.Tensor) else v for k, v in kw.items()}


def synchronize():
    if not REHEARSAL:
        torch.cuda.synchronize()


@contextlib.contextmanager
def no_wait():
    """An error if anything inside waits for the device."""
    synchronize()
    if not REHEARSAL:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if not REHEARSAL:
            torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def side_stream():
    """Another stream, which begins when all work so far is done, and is done when this ends."""
    synchronize()
    stream = contextlib.nullcontext() if REHEARSAL else torch.cuda.stream(torch.cuda.Stream())
    with stream:
        yield
    synchronize()


def as_on_a_gpu():
    """In a rehearsal the library takes the paths of a device: late checks and dry runs."""
    return pretend_device() if REHEARSAL else contextlib.nullcontext()


def captured(call):
    """A call as a graph: (function that runs it again into the same outputs, the outputs)."""
    if REHEARSAL:
        out = call()
        return lambda: [old.copy_(new) for old, new in zip(out, call())], out
    with side_stream():
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out


# An op is tested through make(seed), its arguments on the CPU, and run(arguments), a list of tensors: what it returns and
# what it writes. same(expected, got) compares two such lists.


def exactly(expected, got):
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=0, equal_nan=True)


def nearly(rtol, atol):
    def same(expected, got):
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=rtol, atol=atol, equal_nan=True)

    return same


def plainly(make, run, same):
    same(run(make(0)), run(copied(make(0))))


def without_waiting(make, run, same):
    run(copied(make(0)))  # whatever is set up once
    args = copied(make(0))
    with no_wait():
        got = run(args)
    same(run(make(0)), got)


def in_a_graph(make, run, same):
    args = copied(make(0))
    replay, out = captured(lambda: run(args))
    for seed in (1, 2):  # new numbers in the same memory
        for name, value in make(seed).items():
            if isinstance(value, torch.Tensor):
                args[name].copy_(value)
        replay()
        same(run(make(seed)), out)


def on_another_stream(make, run, same):
    args = copied(make(0))
    with side_stream():
        got = run(args)
    same(run(make(0)), got)


MANNERS = pytest.mark.parametrize(
    "manner", [plainly, without_waiting, in_a_graph, on_another_stream], ids=lambda manner: manner.__name__
)


# ---------------------------------------------------------------------------------------------- masked_softmax


def arguments(rows, vocab, seed=0):
    g = generator(1000 + seed)
    return {
        "uniform": torch.rand(rows, dtype=torch.float64, generator=g),
        "given": torch.randint(vocab, (rows,), generator=g),
        "forbid": torch.tensor([vocab // 2, vocab + 3]),
        "want": WANT,
    }


def values(out):
    """What was computed, tokens and status first."""
    return [out.token, out.status, *(getattr(out, name) for name in WANT if getattr(out, name) is not None)]


def same_values(expected, got):
    exactly(expected[:2], got[:2])
    # The two logarithms may differ in the last bit of a double, and so a float's once in a while.
    nearly(1.2e-7, 1e-12)(expected[2:], got[2:])


class TestSoftmax:
    @MANNERS
    @pytest.mark.parametrize("rows", [1, 3, 600])
    def test_manners(self, manner, rows):
        def run(a):
            out = masked_softmax(a["x"], temperature=0.7, **{k: v for k, v in a.items() if k != "x"})
            cut = masked_softmax(a["x"], temperature=0.7, uniform=a["uniform"], top_k=5)
            guided = masked_softmax(a["x"], guidance=a["x"], cfg_scale=1.0)
            return values(out) + values(cut) + values(guided)

        def same(expected, got):
            for part in (slice(0, 7), slice(7, 10), slice(10, 13)):
                same_values(expected[part], got[part])

        manner(lambda seed: {"x": randn(rows, 5003, seed), **arguments(rows, 5003, seed)}, run, same)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("rows", "vocab"), [(0, 50), (1, 126464), (7, 50257), (64, 32000), (700, 5003), (3000, 131), (9, 1)]
    )
    def test_equals_the_cpu(self, dtype, rows, vocab):
        x, kw = randn(rows, vocab, dtype=dtype), arguments(rows, vocab)
        guidance = randn(rows, vocab, seed=1, dtype=dtype)
        y, g, guidance_y = x.to(GPU), copied(kw), guidance.to(GPU)
        for how in ({"temperature": T} for T in (0.0, 0.7, 1.0)):
            same_values(values(masked_softmax(x, **how, **kw)), values(masked_softmax(y, **how, **g)))
        how = {"temperature": 0.7, "cfg_scale": 1.5}
        a = masked_softmax(x, guidance=guidance, **how, **kw)
        same_values(values(a), values(masked_softmax(y, guidance=guidance_y, **how, **g)))
        how = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
        same_values(values(masked_softmax(x, **how, **kw)), values(masked_softmax(y, **how, **g)))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_at_any_address(self, dtype):
        wide = randn(300, 2600, dtype=dtype)
        for begin in range(9):
            x, kw = wide[:, begin : begin + 2311], arguments(300, 2311, begin)
            y = wide.to(GPU)[:, begin : begin + 2311]
            a, b = (masked_softmax(z, temperature=1.0, **k) for z, k in ((x, kw), (y, copied(kw))))
            same_values(values(a), values(b))

    def test_spoilt_rows(self):
        x = randn(5, 3000)
        x[0, 5], x[1, 2999], x[2] = float("nan"), float("inf"), -float("inf")
        assert masked_softmax(x.to(GPU)).status.tolist() == [1, 1, 2, 0, 0]
        index = torch.tensor([3, 5, -1, 4], device=GPU)
        with pytest.raises(IndexError) if REHEARSAL else contextlib.nullcontext():
            out = masked_softmax(x.to(GPU), index)
            assert out.status.tolist() == [0, 3, 3, 0]
            assert out.token.tolist()[1:3] == [-1, -1]


# ---------------------------------------------------------------------------------------------- row_uniforms


class TestUniforms:
    @MANNERS
    @pytest.mark.parametrize("rows", [1, 7, 256])
    def test_manners(self, manner, rows):
        def make(seed):
            g = generator(seed)
            whole = {
                k: torch.randint(-(2**63), 2**63 - 1, (rows,), generator=g, dtype=torch.int64) for k in ("seed", "row")
            }
            where = {
                "which": torch.randint(rows, (501,), generator=g),
                "position": torch.randint(4096, (501,), generator=g),
            }
            return {**whole, "step": torch.randint(1000, (rows,), generator=g), **where}

        def run(a):
            who = a["seed"], a["row"], a["step"]
            return [
                ops.row_uniforms(*who, length=1023, draw=3),
                ops.row_uniforms(*who, which=a["which"], position=a["position"], draw=2**32 - 1),
            ]

        manner(make, run, exactly)

    def test_no_rows_and_rows_outside_the_batch(self):
        none, one = torch.zeros(0, dtype=torch.int64, device=GPU), torch.ones(1, dtype=torch.int64, device=GPU)
        assert ops.row_uniforms(none, none, none, length=5).shape == (0, 5)
        assert ops.row_uniforms(one, one, one, which=none, position=none).shape == (0,)
        which = torch.tensor([0, 1, -1], device=GPU)
        with pytest.raises(IndexError) if REHEARSAL else contextlib.nullcontext():
            out = ops.row_uniforms(one, one, one, which=which, position=which.clamp(0, 0))
            assert out.isnan().tolist() == [False, True, True]


# ---------------------------------------------------------------------------------------------- row_normals


class TestNormals:
    @MANNERS
    @pytest.mark.parametrize("rows", [1, 7, 256])
    def test_manners(self, manner, rows):
        def make(seed):
            g = generator(seed)
            who = {
                k: torch.randint(-(2**63), 2**63 - 1, (rows,), generator=g, dtype=torch.int64) for k in ("seed", "row")
            }
            return {**who, "step": torch.randint(1000, (rows,), generator=g)}

        def run(a):
            dtypes = torch.float32, torch.float64
            return [ops.row_normals(**a, length=n, draw=3, dtype=dtype) for n in (1, 1022) for dtype in dtypes]

        manner(make, run, exactly)

    def test_the_twin_on_the_device(self):
        who = [torch.arange(3, device=GPU) for _ in range(3)]
        for dtype in (torch.float32, torch.float64):
            twin = ops.reference.row_normals(*who, 100_001, 3, dtype)
            assert torch.equal(ops.row_normals(*who, length=100_001, draw=3, dtype=dtype), twin)

    def test_no_rows(self):
        none = torch.zeros(0, dtype=torch.int64, device=GPU)
        assert ops.row_normals(none, none, none, length=5).shape == (0, 5)


# ---------------------------------------------------------------------------------------------- combine


class TestCombine:
    @MANNERS
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("shape", [(1,), (7, 33), (8, 4, 64, 64)], ids=str)
    def test_manners(self, manner, dtype, shape):
        def make(seed):
            return {f"t{i}": torch.randn(shape, dtype=dtype, generator=generator(seed + 7 * i)) for i in range(5)}

        def run(a):
            factors = (0.7, -1.3, 1e-9, 3.25, -0.1)
            pairs = list(zip(a.values(), factors))
            return [ops.combine(*(v for pair in pairs[:count] for v in pair)) for count in range(1, 6)]

        manner(make, run, exactly)

    def test_nothing(self):
        assert ops.combine(torch.zeros(0, 3, device=GPU), 2.0).shape == (0, 3)


# ---------------------------------------------------------------------------------------------- caches


def caches(dtype, widths, layers=2, batch=5, heads=2, length=97, n=33):
    """make(seed): a cache with values of two widths, new rows and all that the cache's ops take."""

    def make(seed):
        g = generator(seed)

        def numbers(rows, width):
            return torch.randint(-100, 100, (layers, batch, heads, rows, width), generator=g).to(dtype)

        args = {}
        for kind, width in zip(("key", "value"), widths):
            args[kind], args[f"new_{kind}"] = numbers(length, width), numbers(n, width)
        args["lengths"] = torch.randint(length - n + 1, (batch,), generator=g)
        args["start"] = torch.randint(length - n + 1, (batch,), generator=g)
        args["count"] = torch.randint(n + 1, (batch,), generator=g)
        args["index"] = torch.randint(-2, length, (batch, n), generator=g)  # some to one place: the last one wins
        args["rows"] = torch.randint(max(batch, 1), (batch, n), generator=g)
        args["keep"] = torch.rand(batch, length, generator=g) < 0.7
        args["source"] = torch.randint(max(batch, 1), (batch,), generator=g)
        return args

    return make


def every_cache_op(a):
    key, value, new = a["key"], a["value"], (a["new_key"], a["new_value"])
    ops.kv_append_(key, value, *new, a["lengths"], a["count"])
    ops.kv_replace_(key, value, *new, 3)
    ops.kv_replace_(key, value, *new, a["start"], a["count"])
    ops.kv_scatter_(key, value, *new, a["index"])
    out = [x.clone() for x in (key, value, a["lengths"])]
    out += ops.kv_gather(key, value, a["index"])
    out += ops.kv_gather(key, value, a["index"], rows=a["rows"])
    ops.kv_compact_(key, value, a["keep"], a["lengths"])
    out += [x.clone() for x in (key, value, a["lengths"])]
    ops.kv_select_rows_(key, value, a["source"], a["lengths"])
    ops.kv_select_rows_(key[:1], value[:1], a["source"])
    return [*out, key, value, a["lengths"]]


class TestCaches:
    @MANNERS
    # Words of 16, 4, 2 and 1 bytes.
    @pytest.mark.parametrize(
        ("dtype", "widths"),
        [(torch.bfloat16, (64, 128)), (torch.float32, (3, 5)), (torch.float16, (33, 1)), (torch.int8, (7, 16))],
        ids=str,
    )
    def test_manners(self, manner, dtype, widths):
        manner(caches(dtype, widths), every_cache_op, exactly)

    @pytest.mark.parametrize("batch", [0, 1, 40])
    def test_batches(self, batch):
        plainly(caches(torch.bfloat16, (64, 64), batch=batch), every_cache_op, exactly)

    def test_a_model(self):
        plainly(
            caches(torch.bfloat16, (128, 128), layers=4, batch=8, heads=8, length=1056, n=32), every_cache_op, exactly
        )

    def test_part_of_another_tensor(self):
        def run(a):
            both = torch.zeros(3, 2, 4, 2, 64, 16, dtype=a["new_key"].dtype, device=a["new_key"].device)
            key, value = both[1:, 0], both[1:, 1]  # layers and halves apart
            ops.kv_append_(key[:, :, :, 5:40], value[:, :, :, 5:40], a["new_key"], a["new_value"], a["lengths"])
            return [both, a["lengths"]]

        def make(seed):
            return {**caches(torch.float32, (16, 16), batch=4, length=35, n=9)(seed)}

        plainly(make, run, exactly)

    def test_rows_outside_are_left_out(self):
        """On a device a row whose place is outside is left out and the rest is done, as the twins do it."""
        op = reference if REHEARSAL else torch.ops.sampler_zoo
        make = caches(torch.float32, (4, 8), batch=4, length=20, n=9)

        def run(op):
            def made(args):
                far = torch.tensor([-3, 2**62, 15, -(2**63)], device=args["key"].device)
                args["index"][:, ::3] = far[:, None] + 20
                key, value, new = args["key"], args["value"], (args["new_key"], args["new_value"])
                lengths, count = far + 5, far * 2
                op.kv_append_(key, value, *new, lengths, None)
                op.kv_replace_(key, value, *new, far, 0, count)
                op.kv_scatter_(key, value, *new, args["index"])
                out = torch.empty_like(args["new_key"]), torch.empty_like(args["new_value"])
                op.kv_gather_(*out, key, value, args["index"], args["index"] - 18)
                after = far.clone()
                op.kv_select_rows_(key, value, far - 13, after)
                op.kv_compact_(key, value, args["keep"], count)
                return [key, value, *out, lengths, after, count]

            return made

        exactly(run(reference)(make(0)), run(op)(copied(make(0))))


# ---------------------------------------------------------------------------------------------- select and its kin

# Few values, so that ties are the rule, and those that order badly.
SCORES = torch.tensor([0.0, -0.0, 0.5, 0.25, 0.9, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, 0.95, 0.99])


def planes(rows, length, dtype, slot=4):
    def make(seed):
        g = generator(seed)
        slots = -(-length // slot)

        def number(high):
            return torch.randint(high + 1, (rows,), generator=g)

        few = SCORES[torch.randint(len(SCORES), (rows, length), generator=g)]
        fine = torch.rand(rows, length, generator=g)
        return {
            "x": torch.randint(9, (rows, length), generator=g),
            "token": torch.randint(9, 18, (rows, length), generator=g),
            "score": torch.where(torch.rand(rows, 1, generator=g) < 0.5, few, fine).to(dtype),
            "cost": torch.rand(rows, length, generator=g).to(dtype),
            "candidate": torch.rand(rows, length, generator=g) < 0.8,
            "k": number(length // 2) - 1,
            "least": number(2),
            "most": number(length),
            "level": torch.rand(rows, generator=g),
            "start": number(3),
            "chosen": torch.rand(rows, slots, generator=g) < 0.5,
            "head": torch.randint(slot + 1, (rows, slots), generator=g),
        }

    def run(a):
        x, token, score, candidate = a["x"], a["token"], a["score"], a["candidate"]
        bounds = {"least": a["least"], "most": a["most"]}
        out = [
            *ops.select(score, candidate, k=a["k"]),
            *ops.select(score, k=length // 3, lowest=True),
            *ops.select(score, candidate, threshold=a["level"], **bounds),
            *ops.select(score, candidate, factor=a["level"], **bounds),
            *ops.select(score, candidate, budget=0.3, cost=a["cost"], least=1),
            *ops.select(score, candidate, budget=a["level"], lowest=True, **bounds),
            *ops.commit_(x, token, score, candidate, k=a["k"]),
            x.clone(),
            *ops.remask_(x, score, candidate, 77, threshold=0.5, most=3),
            x.clone(),
            *ops.select_slots(score, candidate, slot=slot, threshold=a["level"], start=a["start"]),
        ]
        how = {"slot": slot, "threshold": 0.4, "start": a["start"], "eos": 11}
        out += ops.accept_slots_(x, token, score, a["chosen"], candidate, head=1, **how)
        out.append(x.clone())
        out += ops.accept_slots_(x, token, score, a["chosen"], head=a["head"], extra=1, partial=True, **how)
        return [*out, x]

    return make, run


class TestSelections:
    @MANNERS
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize(("rows", "length"), [(1, 1), (7, 33), (8, 256)])
    def test_manners(self, manner, dtype, rows, length):
        manner(*planes(rows, length, dtype), exactly)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    # The keys of the longest rows are not kept in shared memory.
    @pytest.mark.parametrize(("rows", "length"), [(0, 16), (300, 100), (3, 4097), (2, 20011)])
    def test_sizes(self, dtype, rows, length):
        plainly(*planes(rows, length, dtype), exactly)

    def test_strides(self):
        make, run = planes(6, 50, torch.float32)
        for name in ("score", "candidate"):

            def strided(a, name=name):
                wide = torch.zeros(6, 101, dtype=a[name].dtype, device=a[name].device)
                wide[:, 1::2] = a[name]
                return run({**a, name: wide[:, 1::2]})

            plainly(make, strided, exactly)


# ---------------------------------------------------------------------------------------------- headless_softmax


def dyadic(rows, width, seed, scale, dtype):
    """Few bits a number: products of such rows are exact in float32, in whatever order they are added."""
    return (torch.randint(-8, 9, (rows, width), generator=generator(seed)).float() * scale).to(dtype)


class TestHeadless:
    def folded(self, a):
        """The state after three tiles, and what is read out of it."""
        logits = a["logits"]
        real = torch.empty(len(logits), 7, dtype=torch.float64, device=logits.device)
        whole = torch.empty(len(logits), 3, dtype=torch.int64, device=logits.device)
        for begin, end in ((0, 2048), (2048, 3072), (3072, logits.shape[1])):
            guidance = a["guidance"][:, begin:end] if a["cfg"] else None
            torch.ops.sampler_zoo.headless_fold_(
                logits[:, begin:end], begin, real, whole, a["uniform"] if a["temperature"] > 0 else None,
                a["temperature"], 1.0, a["forbid"], guidance, a["cfg"], a["given"], 31,
            )  # fmt: skip
        token, *floats, status = torch.ops.sampler_zoo.headless_finish(real, whole, a["temperature"], 1.0, 31)
        return [whole, token, status, real, *floats]

    @MANNERS
    @pytest.mark.parametrize("rows", [1, 3, 300])
    @pytest.mark.parametrize(("temperature", "cfg"), [(0.0, 0.0), (0.7, 0.0), (1.0, 0.0), (0.7, 1.5)])
    def test_fold(self, manner, rows, temperature, cfg):
        def make(seed):
            kw = arguments(rows, 5003, seed)
            logits, guidance = randn(rows, 5003, seed), randn(rows, 5003, seed + 9)
            return {**kw, "logits": logits, "guidance": guidance, "temperature": temperature, "cfg": cfg}

        def same(expected, got):
            exactly(expected[:4], got[:4])  # the state itself, to the bit
            nearly(1.2e-7, 1e-12)(expected[4:], got[4:])

        manner(make, self.folded, same)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rows", [0, 1, 7, 257])
    @MANNERS
    def test_exact_products(self, manner, dtype, rows):
        if rows == 0 and manner is not plainly:
            pytest.skip("nothing to record")
        weight = dyadic(5003, 64, 5, 0.125, dtype)

        def make(seed):
            hidden = {
                "hidden": dyadic(rows, 64, seed, 0.25, dtype),
                "guidance": dyadic(rows, 64, seed + 9, 0.25, dtype),
            }
            return {**arguments(rows, 5003, seed), **hidden, "weight": weight}

        def run(a):
            common = {k: a[k] for k in ("uniform", "given", "forbid", "want")}
            out = values(headless_softmax(a["hidden"], a["weight"], temperature=0.7, **common))
            out += values(headless_softmax(a["hidden"], a["weight"], temperature=1.0, tile=2048, **common))
            more = {"guidance": a["guidance"], "cfg_scale": 0.5}
            return out + values(headless_softmax(a["hidden"], a["weight"], temperature=0.7, **more, **common))

        def same(expected, got):
            for i in range(0, 21, 7):
                same_values(expected[i : i + 7], got[i : i + 7])

        manner(make, run, same)

    def test_a_model(self):
        """The best token of real products: the same where it is clear; probabilities to what the products leave."""
        g = generator(0)
        hidden, weight = torch.randn(65, 512, generator=g), torch.randn(50257, 512, generator=g) * 0.3
        bias = torch.randn(50257, generator=g)
        how = {"want": ("confidence", "margin", "entropy", "lse"), "softcap": 30.0}
        a = headless_softmax(hidden, weight, bias=bias, **how)
        b = headless_softmax(*(x.to(GPU) for x in (hidden, weight)), bias=bias.to(GPU), **how)
        clear = a.margin > 1e-4
        assert clear.sum() > 50
        exactly([a.token[clear]], [b.token.cpu()[clear]])
        nearly(1e-4, 1e-5)(a[1:5], b[1:5])


# ---------------------------------------------------------------------------------------------- torch's own operations


class TestTorchOps:
    @MANNERS
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str
    )
    @pytest.mark.parametrize(
        "how", [{}, {"attention": "causal"}, {"attention": "block_causal", "block_length": 4}], ids=str
    )
    def test_cached_attention(self, manner, dtype, tolerance, how):
        """Against the specification in float32 of the same numbers."""
        batch, heads, kv_heads, length, n, width = 5, 8, 2, 131, 12, 64

        def make(seed):
            g = generator(seed)

            def plane(heads, rows):
                return torch.randn(batch, heads, rows, width, generator=g).to(dtype)

            return {
                "query": plane(heads, n), "key": plane(kv_heads, length), "value": plane(kv_heads, length),
                "new_key": plane(kv_heads, n), "new_value": plane(kv_heads, n),
                "lengths": torch.cat([torch.tensor([0, length]), torch.randint(length, (batch - 2,), generator=g)]),
                "keep": torch.rand(batch, length, generator=g) < 0.8, "new_keep": torch.rand(batch, n, generator=g) < 0.8,
            }  # fmt: skip

        def run(a):
            return [
                ops.cached_attention(**a, **how),
                ops.cached_attention(**{**a, "keep": None, "new_keep": None}, **how),
            ]

        def same(expected, got):
            if dtype == torch.float32:
                nearly(tolerance, tolerance)(expected, got)
            else:  # the CPU rounds as well
                nearly(2 * tolerance, 2 * tolerance)(expected, got)

        manner(make, run, same)

    def test_what_is_not_seen_may_be_anything(self):
        x = torch.randn(2, 4, 40, 32, generator=generator(0))
        new = torch.randn(2, 4, 6, 32, generator=generator(1))
        lengths = torch.tensor([7, 0])

        def run(x, new, lengths):
            return ops.cached_attention(new, x, x, new, new, lengths=lengths)

        expected = run(x, new, lengths)
        x[0, :, 7:], x[1] = torch.nan, torch.inf
        nearly(2e-5, 2e-5)([expected], [run(x.to(GPU), new.to(GPU), lengths.to(GPU))])

    @MANNERS
    def test_kl_divergence(self, manner):
        def make(seed):
            logits, other = randn(37, 5003, seed), randn(20, 5003, seed + 1)
            logits[3, 7], other[4, 9], other[5, 3] = -torch.inf, -torch.inf, -torch.inf
            index = torch.randint(-1, 20, (37,), generator=generator(seed))
            return {"logits": logits, "other": other, "other_lse": other.double().logsumexp(1), "index": index}

        manner(make, lambda a: list(ops.kl_divergence(**a)), nearly(1e-10, 1e-10))


# ---------------------------------------------------------------------------------------------- whole runs

VOCAB = 11
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]


def looked_up(family, device):
    """A model whose logits are sums of looked-up rows, which are the same to the bit on every device."""
    width = VOCAB + (family == "masked")
    left, own, right = (torch.randn(3, VOCAB + 1, width, generator=generator(7)) * 0.8).to(device)
    edge = VOCAB if family == "masked" else 0

    def logits(ids):
        before, after = (torch.nn.functional.pad(ids, side, value=edge) for side in ((1, 0), (0, 1)))
        return left[before[:, :-1]] + own[ids] + right[after[:, 1:]]

    mask_id = VOCAB if family == "masked" else None
    return samplers.TokenDenoiser.wrap(logits, vocab_size=width, mask_id=mask_id, device=device)


class SequenceOn(TinySequential):
    """TinySequential, whose own tensors are on its inner denoiser's device."""

    def __init__(self, inner):
        super().__init__(inner)
        self.device = inner.device

    def new_cache(self, batch, length):
        return Cache(1, batch, 1, length, 1, dtype=torch.int64, device=self.device)

    def predict(self, *args, **kw):
        with torch.device(self.device):
            return super().predict(*args, **kw)


def suited(name, setting):
    """A model, a sampler with options for small canvases, and the arguments that it takes."""
    cls = registry.load(name)
    never = ("steps", "cfg_scale") if cls.facts.sequential else ()
    sampler = samplers.create(name, **cls.conformance.small)
    return cls, sampler, {k: v for k, v in setting.items() if k not in never}


def model_for(cls, device):
    inner = looked_up(cls.family, device)
    return SequenceOn(inner) if cls.facts.sequential else inner


class MixtureOn(TinyMixture):
    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)
        self.weight, self.mean, self.std = (x.to(device) for x in (self.weight, self.mean, self.std))


class TestRuns:
    @pytest.mark.parametrize(
        "setting",
        [
            {"block_length": 5, "steps": 7, "temperature": 1.0},
            {"temperature": 0.7, "cfg_scale": 1.5, "top_k": 8},
            {"steps": 4, "temperature": 0.0, "forbid": 2, "stop": 3},
        ],
        ids=str,
    )
    def test_tokens(self, zoo_tokens, setting):
        cls, sampler, setting = suited(zoo_tokens, {"prompt": PROMPTS, "gen_length": 12, "seed": 5, **setting})
        a = samplers.sample(model_for(cls, "cpu"), sampler, trace=True, **setting)
        with as_on_a_gpu():
            b = samplers.sample(model_for(cls, GPU), sampler, trace=True, **setting)
        for k, (before, after) in enumerate(zip(a.trace, b.trace)):
            assert torch.equal(before.x, after.x.cpu()), f"the runs differ after {k} steps"
        exactly([a.x, a.lengths, a.nfe_rows], [b.x, b.lengths, b.nfe_rows])
        assert (a.steps, a.nfe, a.head_rows) == (b.steps, b.nfe, b.head_rows)

    def test_reals(self, zoo_gaussian):
        sampler = samplers.create(zoo_gaussian)
        a, b = (samplers.sample(MixtureOn(d), sampler, steps=12, batch=33, seed=3) for d in ("cpu", GPU))
        nearly(1e-9, 1e-9)([a.x], [b.x])
        assert a.nfe == b.nfe

    def test_likelihood(self):
        x = torch.randint(VOCAB, (3, 9), generator=generator(0))
        a, b = (samplers.nll(looked_up("masked", d), x, mc=16, replicates=4) for d in ("cpu", GPU))
        nearly(1e-5, 1e-5)([a.nll, a.stderr], [b.nll, b.stderr])


class DeviceSyncs:
    """What SyncRecorder does on a CPU, by torch's own warnings on a GPU: copies from the host's memory are among them."""

    def __init__(self):
        self.syncs = []
        self._mode = contextlib.ExitStack()

    def __enter__(self):
        caught = self._mode.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

        def end():
            torch.cuda.set_sync_debug_mode("default")
            self.syncs += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]

        self._mode.callback(end)
        return self

    def __exit__(self, *error):
        self._mode.close()

    def ignore(self, function):
        def call(*args, **kw):
            torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*args, **kw)
            finally:
                torch.cuda.set_sync_debug_mode("warn")

        return call


def syncs():
    return SyncRecorder() if REHEARSAL else DeviceSyncs()


class TestNoReadBack:
    def test_the_recorder_sees_a_wait(self):
        recorder, x = syncs(), torch.ones(3, device=GPU)
        with recorder:
            x.sum().item()
        seen = len(recorder.syncs)
        assert seen > 0
        with recorder:
            recorder.ignore(x.sum().item)()
        assert len(recorder.syncs) == seen

    def test_a_step_of_its_own(self, zoo_tokens):
        """What a sampler does between its questions to the model waits for nothing."""
        setting = {"prompt": PROMPTS, "gen_length": 12, "block_length": 5, "temperature": 1.0}
        cls, sampler, setting = suited(zoo_tokens, setting)
        if cls.facts.sequential:
            pytest.skip("how far a sequence has grown is read after each verification")
        recorder = syncs()

        def step(run, predict, state):
            with recorder:
                return run(Watched(predict, recorder.ignore), state)

        with pretend_device(dry_runs=False):
            samplers.sample(model_for(cls, GPU), watched(sampler, step=step), **setting)
        assert not recorder.syncs, sorted(set(recorder.syncs))

    def test_a_step_of_reals(self, zoo_gaussian):
        if zoo_gaussian == "dpm_adaptive":
            pytest.skip("each row's error decides on its next step, which is worked out on the CPU")
        recorder = syncs()

        def step(run, predict, state):
            with recorder:
                return run(Watched(predict, recorder.ignore), state)

        samplers.sample(MixtureOn(GPU), watched(samplers.create(zoo_gaussian), step=step), steps=8, batch=3)
        if not REHEARSAL:  # the grid of times is on the CPU, where the recorder sees it read
            assert not recorder.syncs, sorted(set(recorder.syncs))

    def test_a_whole_step(self, zoo_tokens):
        """With a static plan nothing waits, in the driver and the model either; the first steps may set things up."""
        cls, sampler, setting = suited(zoo_tokens, {"gen_length": 24, "batch": 3, "steps": 12, "temperature": 1.0})
        if not sampler.effective_facts.static_plan:
            pytest.skip("the counts depend on the answers and are read once per step")
        with pretend_device(dry_runs=not REHEARSAL):  # a dry run is on the CPU, where the recorder would see it
            states = sum(1 for _ in samplers.stream(model_for(cls, GPU), sampler, **setting))
            run = samplers.stream(model_for(cls, GPU), sampler, **setting)
            first = min(4, states - 1)
            for _ in range(first):
                next(run)
            recorder = syncs()
            with recorder:
                for _ in range(min(4, states - first)):  # not the end of the run, where its checks are read
                    next(run)
        found = sorted(set(recorder.syncs))
        if REHEARSAL:  # without a dry run the counts are read
            found = [name for name in found if name not in ("tolist", "_local_scalar_dense")]
        assert not found, found
        run.close()


# ---------------------------------------------------------------------------------------------- models


def transformer(attention, device):
    config = Config(
        VOCAB, width=64, layers=3, heads=4, kv_heads=2, head_width=16, mlp_width=96, embeddings=VOCAB + 1,
        attention=attention, block_length=4 if attention == "block_causal" else None, qk_norm=True,
    )  # fmt: skip
    model = Transformer(config, seed=3)
    with torch.no_grad():
        model.head.weight.mul_(20)  # so that no two answers are nearly alike
    return TransformerDenoiser(model.to(device), mask_id=VOCAB)


class TestModels:
    @pytest.mark.parametrize(
        ("attention", "cache"),
        [
            *(("full", cache) for cache in (None, "prefix", "dual", "delayed(3)")),
            *(("causal", cache) for cache in (None, "prefix", "block")),
            ("block_causal", "block"),
        ],
    )
    @pytest.mark.parametrize("sampler", ["random_order", "low_confidence"])
    def test_caches(self, attention, cache, sampler):
        """Every forward pass of a run: the same tokens in, the same hidden rows out."""
        results, passes = [], []
        setting = {"prompt": [[1, 2, 3, 4], [5, 6, 7, 8]], "gen_length": 16, "block_length": 8, "steps": 8}
        for device, paths in (("cpu", contextlib.nullcontext()), (GPU, as_on_a_gpu())):
            denoiser = transformer(attention, device)
            seen, hidden = [], denoiser.hidden

            def watch(x, t=None, *, rows=None, cache=None, seen=seen, hidden=hidden):
                out = hidden(x, t, rows=rows, cache=cache)
                seen.append((x.clone(), out))
                return out

            denoiser.hidden = watch
            with paths:
                results.append(samplers.sample(denoiser, sampler, cache=cache, temperature=0.0, seed=1, **setting))
            passes.append(seen)
        for k, ((x, a), (y, b)) in enumerate(zip(*passes, strict=True)):
            assert torch.equal(x, y.cpu()), f"forward pass {k} is given other tokens"
            torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-4)
        exactly([results[0].x], [results[1].x])
        assert results[0].cache_bytes == results[1].cache_bytes

    def test_bfloat16_through_the_head(self):
        """A model in bfloat16 runs, and its hidden rows are those of float32 to its precision."""
        model = transformer("full", GPU).model
        x = torch.randint(VOCAB, (3, 20), generator=generator(0)).to(GPU)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(model.bfloat16()(x).float(), expected, rtol=0.1, atol=0.1)
        out = samplers.sample(
            TransformerDenoiser(model, mask_id=VOCAB), "low_confidence", gen_length=9, batch=3, steps=3
        )
        assert ((out.x >= 0) & (out.x < VOCAB)).all()


# ---------------------------------------------------------------------------------------------- batches and requests


SHAPES = {
    "plain": {},
    "experts": {
        "experts": Experts(8, 2, 24, shared_width=32, score="sigmoid", normed=True, bias=True, dense_layers=(0,))
    },
    "rotary": {"rotary_width": 8, "qkv_bias": True, "o_bias": True, "softcap": 30.0},
}


def shaped(shape, attention, device, shift=False):
    config = Config(
        VOCAB, width=64, layers=2, heads=4, kv_heads=2, mlp_width=96, embeddings=VOCAB + 1, attention=attention,
        block_length=4 if attention == "block_causal" else None, **SHAPES[shape],
    )  # fmt: skip
    model = Transformer(config, seed=3)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return TransformerDenoiser(model.to(device), mask_id=VOCAB, shift=shift)


def both(make, run):
    """A run on the CPU and the same on the GPU."""
    results = []
    for device, paths in (("cpu", contextlib.nullcontext()), (GPU, as_on_a_gpu())):
        with paths:
            results.append(run(make(device)))
    return results


class TestBatches:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        ("attention", "more"),
        [
            ("full", {}),
            ("full", {"cache": "dual", "shift": True}),
            ("full", {"cache": "prefix", "cfg_scale": 0.5}),
            ("full", {"window": "block"}),
            ("causal", {"cache": "block"}),
            ("block_causal", {"cache": "block", "shift": True}),
            ("block_causal", {"window": "block"}),
        ],
        ids=str,
    )
    def test_ragged_rows(self, shape, attention, more):
        """Rows of three lengths, in groups and padded: the tokens and the passes of the CPU."""
        shift = more.get("shift", False)
        run = {key: value for key, value in more.items() if key != "shift"}
        run |= {"prompt": [[1, 2, 3, 4, 5], [6, 7], [8]], "gen_length": 12, "block_length": 4, "temperature": 0.0}
        for ragged in ("groups", "pad"):
            a, b = both(
                lambda device: shaped(shape, attention, device, shift),
                lambda denoiser, ragged=ragged: samplers.sample(denoiser, "low_confidence", ragged=ragged, **run),
            )
            exactly([a.x, a.nfe_rows], [b.x, b.nfe_rows])
            assert (a.nfe, a.token_evals, a.cache_bytes) == (b.nfe, b.token_evals, b.cache_bytes)

    def test_settings_per_row(self):
        run = {"gen_length": 12, "batch": 4, "steps": 6, "seed": 3}
        run |= {"temperature": [0.0, 0.7, 1.0, 1.3], "top_p": [1.0, 0.9, 1.0, 0.5], "top_k": [0, 0, 3, 0]}
        a, b = both(lambda device: looked_up("masked", device), lambda d: samplers.sample(d, "entropy_bound", **run))
        exactly([a.x], [b.x])

    def test_events(self):
        def run(denoiser):
            events = list(samplers.stream(denoiser, "entropy_bound", gen_length=9, batch=2, seed=2).events())
            return [(e.row, e.position, e.token, e.final, e.ended) for e in events]

        for one, other in zip(*both(lambda device: looked_up("masked", device), run), strict=True):
            exactly(one[:4], other[:4])
            assert one[4] == other[4]

    def test_a_pool(self):
        def run(denoiser):
            pool = samplers.Pool(denoiser)
            runs = [
                pool.add(name, prompt=[1, 2, 3][: i + 1], gen_length=8, seed=i)
                for i, name in enumerate(("entropy_bound", "radd", "low_confidence"))
            ]
            list(pool)
            return pool.nfe, [run.result().x for run in runs]

        a, b = both(lambda device: shaped("plain", "full", device), run)
        assert a[0] == b[0]
        exactly(a[1], b[1])

    def test_prompts_as_embeddings(self):
        embeds = torch.randn(2, 3, 64, generator=generator(5))
        a, b = both(
            lambda device: shaped("plain", "full", device),
            lambda d: samplers.sample(d, "low_confidence", prompt_embeds=embeds, gen_length=8, temperature=0.0),
        )
        exactly([a.x], [b.x])

    def test_blocks_that_are_read(self):
        """A BlockDenoiser: what is decided is read once a block, and steps are given the open block alone."""
        table = torch.randn(VOCAB, VOCAB, generator=generator(9)) * 2

        def make(device):
            own = table.to(device)

            def read(tokens, context):
                return own[tokens].sum(1) if context is None else context + own[tokens].sum(1)

            def denoise(block, context):
                return own[block] + context[:, None] / 4

            return samplers.BlockDenoiser.wrap(denoise, read=read, vocab_size=VOCAB, canvas_length=4, device=device)

        run = {"prompt": [[1, 2, 3], [4, 5, 6]], "gen_length": 8, "steps": 12, "seed": 1}
        a, b = both(make, lambda d: samplers.sample(d, "entropy_bound_uniform", **run))
        exactly([a.x, a.nfe_rows], [b.x, b.nfe_rows])
        assert a.encoder_passes == b.encoder_passes


# ---------------------------------------------------------------------------------------------- the rest


class TestCompiled:
    def test_softmax_and_select(self):
        x, kw = randn(40, 5003).to(GPU), copied(arguments(40, 5003))

        def step(x):
            out = masked_softmax(x * 2, temperature=0.7, **kw)
            chosen, count = ops.select(out.confidence[None], k=7)
            return out.token + 1, out.confidence * 2, chosen, count

        expected = step(x)
        got = torch.compile(step, fullgraph=True, backend="aot_eager" if REHEARSAL else "inductor")(x)
        exactly([expected[i].cpu() for i in (0, 2, 3)], [got[i] for i in (0, 2, 3)])
        torch.testing.assert_close(got[1], expected[1])


class TestLarge:
    def test_offsets_beyond_four_billion_entries(self):
        rows, vocab = (34, 1264) if REHEARSAL else (34100, 126464)  # 4.31e9 entries
        if not REHEARSAL and torch.cuda.mem_get_info()[0] < rows * vocab * 2 * 1.2:
            pytest.skip("the GPU has too little free memory")
        x = torch.zeros(rows, vocab, dtype=torch.bfloat16, device=GPU)
        best = torch.arange(rows, device=GPU) * 7919 % vocab
        x[torch.arange(rows, device=GPU), best] = 9.0
        assert torch.equal(masked_softmax(x).token, best)
        few = torch.tensor([0, rows - 1, rows - 2], device=GPU)
        assert torch.equal(masked_softmax(x, few).token, best[few])

    def test_a_cache_beyond_four_gibibytes(self):
        length, width = (64, 16) if REHEARSAL else (2**20, 2304)  # 4.5 GiB each of keys and values
        if not REHEARSAL and torch.cuda.mem_get_info()[0] < 5 * length * width * 2:
            pytest.skip("the GPU has too little free memory")
        key = torch.zeros(1, 1, length, width, dtype=torch.bfloat16, device=GPU)
        value = torch.zeros_like(key)
        new = torch.randn(1, 1, 3, width, generator=generator(0)).to(GPU, torch.bfloat16)
        ops.kv_replace_(key, value, new, new, length - 3)
        exactly([new.cpu(), new.cpu()], [key[:, :, -3:], value[:, :, -3:]])
        index = torch.tensor([length - 1, length - 3, 0], device=GPU)
        a, _ = ops.kv_gather(key, value, index)
        exactly([new[0, 0, [2, 0]].cpu()], [a[0, 0, :2]])
        keep = torch.zeros(1, length, dtype=torch.bool, device=GPU)
        keep[0, -3:] = True
        lengths = torch.tensor([length], device=GPU)
        ops.kv_compact_(key, value, keep, lengths)
        exactly([new.cpu()], [key[:, :, :3]])
        assert lengths.tolist() == [3]
