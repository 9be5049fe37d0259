"""masked_softmax: token, probability and the like from rows of logits, in one read of them.

`_twin` below is the specification. The native kernels (csrc/cpu/masked_softmax*.cpp) do the same operations in the same
order, so both give the same bits: a token depends on the logits and its uniform, not on what computed it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers.ops import _native
from samplers.ops._check import check_inside, check_rows, check_vector, explained

OP = "masked_softmax"
CHUNK = 1024  # vocabulary entries that share a reference, which is their maximum
BLOCK = 128  # fp32 accumulators a chunk; entry i of a chunk goes to accumulator i mod 128
FLOOR = -126.0  # a weight below 2^-126 of its chunk's largest is 0
DROP = 42.0  # a chunk that lies this many powers of two below the row's best is left out
MASS = float(1 << 44)  # top-p counts weights in whole units of 2^-44
WIDEST = 1 << 18  # columns of which so many masses fit in 63 bits
LOG2E = 1.4426950408889634074
LN2 = 0.69314718055994530942
# 2^r on [0, 1], constant term first; the same numbers are in csrc/softmax_math.h.
EXP2 = tuple(
    float.fromhex(c)
    for c in ("0x1p0", "0x1.62e4bap-1", "0x1.ebdb6ap-3", "0x1.c91c10p-5", "0x1.277c1ep-7", "0x1.e96900p-10")
)
EXP2D = tuple(
    float.fromhex(c)
    for c in (
        *("0x1p+0", "0x1.62e42fefa39efp-1", "0x1.ebfbdff82c5aep-3", "0x1.c6b08d704a0c6p-5", "0x1.3b2ab6fb9f1a5p-7"),
        *("0x1.5d87fe78a3f9cp-10", "0x1.430913112c61bp-13", "0x1.ffcbfc6da6ed1p-17", "0x1.62bfc2c86d700p-20"),
        *("0x1.b524ebd13a55fp-24", "0x1.e6228acd1c6e5p-28", "0x1.e9ec1fcb69a7fp-32"),
    )
)
WANT = {"confidence": 1, "margin": 2, "entropy": 4, "lse": 8, "given": 16}
# Beyond these, float32 cannot hold log2(e)/T.
COLDEST, HOTTEST = 1e-30, 1e30

SCHEMA = (
    "masked_softmax(Tensor logits, Tensor? index, Tensor? uniform, float temperature, float confidence_temperature, "
    "Tensor? forbid, Tensor? guidance, Tensor? guidance_index, float cfg_scale, int top_k, float top_p, Tensor? given, "
    "int want) -> (Tensor token, Tensor confidence, Tensor margin, Tensor entropy, Tensor lse, "
    "Tensor given_probability, Tensor status)"
)


class _Call(NamedTuple):
    """The op's arguments, in the schema's order."""

    logits: Tensor
    index: Tensor | None  # type: ignore[assignment]  # tuple.index is not needed here
    uniform: Tensor | None
    temperature: float
    confidence_temperature: float
    forbid: Tensor | None
    guidance: Tensor | None
    guidance_index: Tensor | None
    cfg_scale: float
    top_k: int
    top_p: float
    given: Tensor | None
    want: int


class MaskedSoftmax(NamedTuple):
    """What `masked_softmax` returns: a value a row, None where it was not wanted.

    `status` is 0 where the row is fine, 1 where it holds a NaN or +inf, 2 where no token is possible, and on a CUDA
    device 3 where its `index`, `guidance_index` or `given` is out of range; where it is not 0, `token` is -1 and the
    floats are NaN.
    """

    token: Tensor  # (N,) int64
    confidence: Tensor | None  # (N,) float32
    margin: Tensor | None  # (N,) float32
    entropy: Tensor | None  # (N,) float32
    lse: Tensor | None  # (N,) float32
    given: Tensor | None  # (N,) float32
    status: Tensor  # (N,) int32


@explained
def masked_softmax(
    logits: Tensor,
    index: Tensor | None = None,
    *,
    uniform: Tensor | None = None,
    temperature: float = 0.0,
    confidence_temperature: float = 1.0,
    forbid: Tensor | None = None,
    guidance: Tensor | None = None,
    guidance_index: Tensor | None = None,
    cfg_scale: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    want: tuple[str, ...] = ("confidence",),
    given: Tensor | None = None,
) -> MaskedSoftmax:
    """The drawn or best token of each row, and how sure the row is of it, in one read of the logits.

    With l the guided logits, forbidden ids and what top_k and top_p cut off at -inf, and
    p = softmax(l / confidence_temperature):

    - token: a draw from softmax(l / temperature) by inverse CDF of `uniform`; at temperature 0 the best, the lowest id
      among equals;
    - confidence: p[token]; margin: p of the best less p of the second best; entropy of p in nats;
      lse: log sum exp(l / confidence_temperature); given: p[given].

    Args:
        logits: (R, V) float32, bfloat16 or float16; the last dimension contiguous, rows at any stride.
        index: (N,) int64, the rows of `logits` to read, repeats allowed. None: all of them, N = R.
        uniform: (N,) float64 in [0, 1), a draw a row. Needed if temperature > 0, ignored at 0.
        temperature: of the draw, >= 0.
        confidence_temperature: of the probabilities, > 0.
        forbid: (F,) int64, ids that are never drawn and carry no probability, whatever their logits are. Ids >= V are
            ignored: a mask id may lie just past the vocabulary.
        guidance: (R', V), dtype of `logits`: logits to move away from; l = logits + cfg_scale * (logits - guidance)
            in fp32. -inf in `logits` stays -inf; where only `guidance` is -inf the logit is taken as it is; NaN in
            either or +inf in `guidance` spoils the row.
        guidance_index: (N,) int64, the rows of `guidance`. None: `index`.
        cfg_scale: the strength w of guidance; at 0 `guidance` is not read.
        top_k: keep the k highest logits, equals by the lower id; 0 keeps all.
        top_p: of these keep the fewest, highest first, that hold this share of softmax(l / temperature), or of
            softmax(l / confidence_temperature) at temperature 0; 1 keeps all. Shares are counted exactly, in integers.
            What is cut off carries no probability, as if forbidden. V <= 262,144 for both.
        want: which of "confidence", "margin", "entropy", "lse", "given" to compute.
        given: (N,) int64 in [0, V), the ids of want "given".

    Returns:
        MaskedSoftmax. Everything is float32 except token (int64) and status (int32). No gradients.

    Precision: a weight 2^t has a relative error of 1.5e-7 + 9e-8 |t| from fp32 arithmetic (t in powers of two below its
    chunk's best), sums of 8 terms an accumulator and 7 more levels add at most 15 x 6e-8, and what is left out of a row
    (chunks 42 powers of two below its best) weighs less than V 2^-42 of it. Measured against float64 at V = 126,464,
    logits of spread 0.01 to 10, temperatures 0.3 to 2: probabilities 1.7e-7 and lse 6e-8 relative, entropy 6e-7 nats.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a stride, a device, a number or a name is. IndexError: an id
        or row is out of range. What needs a look at the data is checked on the CPU only: a device is never waited for.
    """
    call = _Call(
        logits=logits,
        index=index,
        uniform=uniform if temperature > 0 else None,
        temperature=float(temperature),
        confidence_temperature=float(confidence_temperature),
        forbid=forbid,
        guidance=guidance,
        guidance_index=guidance_index,
        cfg_scale=float(cfg_scale),
        top_k=top_k,
        top_p=float(top_p),
        given=given,
        want=_want(want, given),
    )
    _check(call)
    if cfg_scale == 0:
        call = call._replace(guidance=None, guidance_index=None)
    call = call._replace(
        logits=logits.detach(),
        index=_flat(call.index),
        uniform=_flat(call.uniform),
        forbid=_flat(call.forbid),
        guidance=None if call.guidance is None else call.guidance.detach(),
        guidance_index=_flat(call.guidance_index),
        given=_flat(call.given),
    )
    op = torch.ops.sampler_zoo.masked_softmax.default
    if torch.compiler.is_compiling():
        out = op(*call)
    else:
        try:
            out = op(*call)
        except RuntimeError:
            _check_values(call)  # the kernel noticed; say it in Python's terms
            raise
    token, *floats, status = out
    wanted = [x if call.want & bit else None for x, bit in zip(floats, WANT.values())]
    return MaskedSoftmax(token, *wanted, status)  # type: ignore[arg-type, call-arg]


def _flat(x):
    return None if x is None else x.detach().contiguous()


def _want(names, given):
    """→ the wanted values as bits."""
    if isinstance(names, str):
        raise TypeError(f"masked_softmax: want is the string {names!r}, expected a tuple of names such as ({names!r},)")
    for name in names:
        if name not in WANT:
            raise ValueError(f"masked_softmax: want has {name!r}, expected any of {', '.join(WANT)}")
    if ("given" in names) != (given is not None):
        raise ValueError("masked_softmax: want 'given' and the argument given go together, one is missing")
    return sum(WANT[name] for name in set(names))


def _check(call):
    """What can be seen without looking at the data."""
    logits, guidance, temperature = call.logits, call.guidance, call.temperature
    where = "masked_softmax: "
    check_rows(OP, logits, "logits")
    rows, vocab = logits.shape
    if vocab == 0:
        raise ValueError(f"{where}logits have no columns: shape {tuple(logits.shape)}, expected (R, V) with V >= 1")
    check_vector(OP, call.index, "index", torch.int64, None, logits.device)
    n = rows if call.index is None else call.index.shape[0]
    if not (math.isfinite(temperature) and (temperature == 0 or COLDEST <= temperature <= HOTTEST)):
        raise ValueError(f"{where}temperature is {temperature}, expected 0 or a number from {COLDEST} to {HOTTEST}")
    T = call.confidence_temperature
    if not COLDEST <= T <= HOTTEST:
        raise ValueError(f"{where}confidence_temperature is {T}, expected a number from {COLDEST} to {HOTTEST}")
    if temperature > 0:
        if call.uniform is None:
            raise ValueError(f"{where}temperature is {temperature}, so uniform is needed: ({n},) float64 in [0, 1)")
        check_vector(OP, call.uniform, "uniform", torch.float64, n, logits.device)
    check_vector(OP, call.forbid, "forbid", torch.int64, None, logits.device)
    if not math.isfinite(call.cfg_scale):
        raise ValueError(f"{where}cfg_scale is {call.cfg_scale}, expected a finite number")
    if isinstance(call.top_k, bool) or not isinstance(call.top_k, int) or call.top_k < 0:
        raise ValueError(f"{where}top_k is {call.top_k!r}, expected a whole number, 0 (all) or more")
    if not 0 < call.top_p <= 1:
        raise ValueError(f"{where}top_p is {call.top_p}, expected a number above 0, up to 1 (all)")
    if vocab > WIDEST and (call.top_k or call.top_p < 1):
        raise ValueError(f"{where}top_k and top_p take at most {WIDEST} columns, logits have {vocab}")
    if guidance is not None:
        check_rows(OP, guidance, "guidance")
        if guidance.shape[1] != vocab:
            raise ValueError(f"{where}guidance has {guidance.shape[1]} columns, logits have {vocab}")
        if guidance.dtype != logits.dtype:
            raise TypeError(f"{where}guidance is {guidance.dtype}, logits are {logits.dtype}; expected the same")
        if guidance.device != logits.device:
            raise ValueError(f"{where}guidance is on {guidance.device}, logits on {logits.device}; expected the same")
        check_vector(OP, call.guidance_index, "guidance_index", torch.int64, n, logits.device)
        if call.index is None and call.guidance_index is None and guidance.shape[0] != rows:
            raise ValueError(
                f"{where}guidance has {guidance.shape[0]} rows, logits have {rows}; guidance_index says which to read"
            )
    elif call.cfg_scale != 0 or call.guidance_index is not None:
        name = "guidance_index" if call.cfg_scale == 0 else "cfg_scale"
        raise ValueError(f"{where}{name} is given without guidance, the second set of logits")
    check_vector(OP, call.given, "given", torch.int64, n, logits.device)


def _check_values(call):
    """What needs a look at the data: on the CPU only, since elsewhere a look is a wait."""
    if call.logits.device.type != "cpu":
        return
    rows, vocab = call.logits.shape

    check_inside(OP, call.index, rows, "index", "rows of logits")
    check_inside(OP, call.given, vocab, "given", "ids of the vocabulary")
    if call.guidance is not None:
        if call.guidance_index is not None:
            check_inside(OP, call.guidance_index, call.guidance.shape[0], "guidance_index", "rows of guidance")
        else:
            check_inside(
                OP, call.index, call.guidance.shape[0], "index", "rows of guidance, for want of guidance_index"
            )
    if call.forbid is not None and (call.forbid < 0).any():
        i = int((call.forbid < 0).nonzero()[0])
        raise IndexError(f"masked_softmax: forbid[{i}] is {int(call.forbid[i])}, expected an id, 0 or more")
    if call.temperature > 0:
        bad = (~((call.uniform >= 0) & (call.uniform < 1))).nonzero()
        if len(bad):
            i = int(bad[0])
            raise ValueError(f"masked_softmax: uniform[{i}] is {float(call.uniform[i])}, expected a number in [0, 1)")


# ---- the twin --------------------------------------------------------------------------------------------------------


def _fma(a, b, c):
    """fp32 fused multiply-add. The product is exact in double; the sum is rounded twice, which differs from a true FMA
    about once in 10^9."""
    return (a.double() * b.double() + c.double()).float()


def _exp2(t):
    """2^t in fp32 for t <= 0; 0 below -126."""
    n = t.clamp(min=FLOOR).floor()
    r = (t.clamp(min=FLOOR) - n).double()
    p = torch.full_like(t, EXP2[5])
    for c in EXP2[4::-1]:
        p = (p.double() * r + c).float()
    w = p * ((n.nan_to_num(0.0, 0.0, 0.0).to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(t < FLOOR, 0.0, w)


def _exp2_double(x):
    """2^x in double, x <= 1000; 0 below -1000."""
    n = x.clamp(min=-1000.0).round()
    r = x.clamp(min=-1000.0) - n
    p = torch.full_like(x, EXP2D[11])
    for c in EXP2D[10::-1]:
        p = p * r + c
    power = ((n.nan_to_num(0.0, 0.0, 0.0).to(torch.int64) + 1023) << 52).view(torch.float64)
    return torch.where(x < -1000.0, 0.0, p * power)


def _halving_sum(acc):
    """(..., 128) → (...): acc[j] + acc[j + 64], then + 32, ... + 1."""
    while acc.shape[-1] > 1:
        half = acc.shape[-1] // 2
        acc = acc[..., :half] + acc[..., half:]
    return acc[..., 0]


def guide(a, b, w):
    """(1 + w) a - w b, with what is impossible kept impossible."""
    out = ((a - b).double() * float(np.float32(w)) + a.double()).float()  # an FMA
    out = torch.where((a == -math.inf) | (b == -math.inf), a, out)
    return torch.where(a.isnan() | b.isnan() | (b == math.inf), math.nan, out)


def _twin(*args):
    """The op in torch, on any device: the specification that the kernels follow bit for bit.

    A row is cut into chunks of 1024 entries. Each chunk c has its own reference, its maximum m_c. Its entries weigh
    w = 2^t, t = (x - m_c) * k in fp32 with k = log2(e) / temperature (0 where t < -126), summed in 128 accumulators and
    a halving tree. Chunks are joined in double, in order, scaled by 2^((m_c - M) k), M the row's maximum; those with
    (m_c - M) k <= -42 are left out, which loses less than V 2^-42 of the row. A draw picks the chunk, then the entry in
    it, by the same cumulative sums. Nothing depends on how rows or chunks are shared out, or on which chunks were known
    in time to be left out. (On a device torch sums in parallel, so the last bit of a double may differ there.)

    top_k and top_p come first: entries are ranked by value, equals by id; those of rank >= top_k become -inf. Then each
    has the mass floor(2^44 w), w its weight relative to M at the draw's temperature, and the first entries whose masses
    reach ceil(top_p * total) stay.
    """
    call = _Call(*args)
    _check_values(call)
    logits, index, guidance, guidance_index, want = (
        call.logits, call.index, call.guidance, call.guidance_index, call.want
    )  # fmt: skip
    device, vocab = logits.device, logits.shape[1]
    n = logits.shape[0] if index is None else index.shape[0]
    if guidance is not None and call.cfg_scale == 0:
        guidance = None
    if guidance is not None and guidance_index is None:
        guidance_index = index
    chunks = -(-vocab // CHUNK)
    forbidden = None
    if call.forbid is not None and call.forbid.numel():  # one slot more, for ids past the vocabulary
        forbidden = torch.zeros(vocab + 1, dtype=torch.bool, device=device)
        forbidden[call.forbid.clamp(max=vocab)] = True
        forbidden = forbidden[:vocab]  # (V,) bool

    # Slabs of rows: on a CPU small enough that the many temporaries stay in cache, elsewhere large enough to fill it.
    slabs = []
    step = max(1, (1 << (18 if device.type == "cpu" else 25)) // (chunks * CHUNK))
    for begin in range(0, n, step):
        here = slice(begin, min(begin + step, n))
        x = (logits[here] if index is None else logits[index[here]]).float()  # (n, V) float32
        if guidance is not None:
            b = (guidance[here] if guidance_index is None else guidance[guidance_index[here]]).float()
            x = guide(x, b, call.cfg_scale)
        if forbidden is not None:
            x = x.masked_fill(forbidden, -math.inf)
        if call.top_k or call.top_p < 1:
            T = call.temperature if call.temperature > 0 or not want else call.confidence_temperature
            x = _truncate(x, call.top_k, call.top_p, float(np.float32(LOG2E / (T or 1.0))))
        u = call.uniform[here] if call.uniform is not None and call.temperature > 0 else None
        ids = call.given[here] if call.given is not None and want & WANT["given"] else None
        slabs.append(_twin_slab(x, u, call.temperature, call.confidence_temperature, ids, want))
    if not slabs:
        return _empty(0, want, device)
    return tuple(torch.cat(parts) for parts in zip(*slabs))


def _twin_slab(x, uniform, temperature, confidence_temperature, given, want):
    """Rows x (n, V) float32, guided, forbidden ids at -inf."""
    (n, vocab), device = x.shape, x.device
    chunks = -(-vocab // CHUNK)
    bad = (x.isnan() | (x == math.inf)).any(1)  # (n,) bool
    # A block that lies wholly past the end of the vocabulary is not there: it adds nothing to any accumulator. So a
    # small vocabulary has one chunk of fewer blocks, and in the last of several chunks such blocks get weight 0.
    last = -(-vocab // BLOCK) - (chunks - 1) * (CHUNK // BLOCK)
    blocks = last if chunks == 1 else CHUNK // BLOCK
    padded = torch.nn.functional.pad(x, (0, chunks * blocks * BLOCK - vocab), value=-math.inf)
    cells = padded.view(n, chunks, blocks, BLOCK)  # (n, C, 8, 128) float32

    # Weight sets: the confidence's first, the draw's last; equal temperatures share one.
    temperatures = [confidence_temperature] if want else []
    if temperature > 0 and temperature not in temperatures:
        temperatures.append(temperature)
    ks = [float(np.float32(LOG2E / T)) for T in temperatures]

    m = cells.amax((2, 3))  # (n, C) float32: the references
    best_value = m.amax(1)  # (n,) float32
    reference = best_value.double()  # (n,) float64
    offset = m.double() - reference[:, None]  # (n, C) float64
    status = torch.where(bad, 1, torch.where(best_value == -math.inf, 2, 0)).to(torch.int32)  # (n,) int32

    sums, scales, totals, entropies = [], [], [], None
    centred = cells - m.masked_fill(m == -math.inf, 0.0)[:, :, None, None]
    for which, k in enumerate(ks):
        t = centred * k
        w = _exp2(t)
        acc = w[:, :, 0]
        for j in range(1, blocks):
            acc = acc + w[:, :, j]
        sums.append(_halving_sum(acc))  # (n, C) float32
        if which == 0 and want & WANT["entropy"]:
            t = t.clamp(min=FLOOR)
            acc = w[:, :, 0] * t[:, :, 0]
            for j in range(1, blocks):
                acc = _fma(w[:, :, j], t[:, :, j], acc)
            entropies = _halving_sum(acc)  # (n, C) float32
        exponent = offset * (LOG2E / temperatures[which])
        scales.append(_exp2_double(exponent.masked_fill(exponent <= -DROP, -math.inf)))  # (n, C) float64
        totals.append((sums[-1].double() * scales[-1]).cumsum(1))  # (n, C) float64, in chunk order

    if temperature > 0:
        token = _draw(cells, m, sums[-1], scales[-1], totals[-1], ks[-1], uniform)
    else:
        ids = torch.arange(vocab, device=device)
        token = torch.where(x == best_value[:, None], ids, vocab).amin(1).clamp(max=vocab - 1)  # the lowest of equals

    def probability(logit):
        return (_exp2_double((logit.double() - reference) * k64) / total).clamp(max=1.0)

    def finish(value):
        return torch.where(status == 0, value, math.nan).float()  # (n,) float32

    confidence, margin, entropy, lse, given_out = _empty(n, 0, device)[1:6]
    if want:
        k64, total = LOG2E / confidence_temperature, totals[0][:, -1]
    if want & WANT["confidence"]:
        confidence = finish(probability(x.gather(1, token[:, None])[:, 0]))
    if want & WANT["margin"]:
        is_best = x == best_value[:, None]
        second = x.masked_fill(is_best, -math.inf).amax(1)
        second = torch.where(is_best.sum(1) > 1, best_value, second)
        first, second = ((_exp2_double((v.double() - reference) * k64)) for v in (best_value, second))
        margin = finish(((first - second) / total).clamp(max=1.0))
    if entropies is not None:
        part = scales[0] * (entropies.double() + sums[0].double() * (offset * k64))
        part = torch.where(scales[0] == 0, 0.0, part).cumsum(1)[:, -1]
        entropy = finish((total.log() - LN2 * part / total).clamp(min=0.0))
    if want & WANT["lse"]:
        lse = finish(reference / confidence_temperature + total.log())
    if want & WANT["given"]:
        given_out = finish(probability(x.gather(1, given[:, None])[:, 0]))
    return torch.where(status == 0, token, -1), confidence, margin, entropy, lse, given_out, status


def _truncate(x, top_k, top_p, k):
    """Rows x (n, V) float32 with what top_k and top_p cut off at -inf; rows that hold NaN or +inf as they are."""
    bad = (x.isnan() | (x == math.inf)).any(1, keepdim=True)  # (n, 1) bool
    ranked, order = x.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(x.shape[1], device=x.device)
    kept = rank < (top_k or x.shape[1])  # (V,) bool, along `order`
    if top_p < 1:
        top = ranked[:, :1].masked_fill(ranked[:, :1] == -math.inf, 0.0)
        mass = (_exp2((ranked - top) * k) * MASS).nan_to_num(0.0).to(torch.int64) * kept
        through = mass.cumsum(1)
        total = through[:, -1:]
        target = torch.minimum((total.double() * top_p).ceil().to(torch.int64), total).clamp(min=1)
        kept = kept & (through - mass < target)
    stays = torch.zeros_like(bad.expand_as(x)).scatter(1, order, kept.expand_as(order))
    return torch.where(stays | bad, x, -math.inf)


def _draw(cells, m, sums, scales, cumulative, k, uniform):
    """Inverse CDF: first the chunk, then the entry in it."""
    n = m.shape[0]
    target = uniform * cumulative[:, -1]  # (n,) float64
    chunk = _first_above(cumulative, target, sums.double() * scales > 0)  # (n,) int64
    weight = (sums.double() * scales).gather(1, chunk[:, None])[:, 0]
    # The weight before a chunk is the sum so far, not a difference of sums.
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, chunk[:, None])[:, 0]

    rows = torch.arange(n, device=m.device)
    x = cells.flatten(2)[rows, chunk]  # (n, 1024) float32
    w = _exp2((x - m[rows, chunk][:, None]) * k)
    inside = w.double().cumsum(1)
    goal = (target - before) / weight * inside[:, -1]
    return chunk * CHUNK + _first_above(inside, goal, w > 0)


def _first_above(cumulative, target, positive):
    """First column whose cumulative sum exceeds the target; the last with weight where rounding left none.

    Columns without weight are passed over by name: a device's parallel scan may round a sum up where nothing was added,
    and a forbidden id must not be drawn even then.
    """
    columns = torch.arange(cumulative.shape[1], device=cumulative.device)
    count = columns.numel()
    first = torch.where((cumulative > target[:, None]) & positive, columns, count).amin(1)
    last = torch.where(positive, columns, 0).amax(1)
    return torch.where(first < count, first, last)


def _empty(n, want, device):
    floats = [torch.empty(n if want & bit else 0, dtype=torch.float32, device=device) for bit in WANT.values()]
    return (
        torch.empty(n, dtype=torch.int64, device=device),
        *floats,
        torch.empty(n, dtype=torch.int32, device=device),
    )


# ---- registration ----------------------------------------------------------------------------------------------------


def _fallback(*args):
    _native.say_once()
    return _twin(*args)


def _fake(*args):
    call = _Call(*args)
    return _empty(call.logits.shape[0] if call.index is None else call.index.shape[0], call.want, call.logits.device)


_library = torch.library.Library("sampler_zoo", "FRAGMENT")
if _native.C is None:
    _library.define(SCHEMA)
    _library.impl("masked_softmax", _fallback, "CPU")
if not (_native.C and _native.C.build_facts()["cuda"]):
    _library.impl("masked_softmax", _twin, "CUDA")
torch.library.register_fake("sampler_zoo::masked_softmax", _fake, lib=_library)
