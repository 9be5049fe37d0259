"""masked_softmax: from each row of logits a token, its probability and what else is asked for, in one read of them.

`_twin` below is the specification, the torch reference implementation. The native kernels (csrc/cpu/masked_softmax*.cpp)
do the same operations in the same order, so both give the same bits: a token depends on the logits and its uniform, and
not on what computed it.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers.ops._check import (
    Maybe,
    check_draw_values,
    check_inside,
    check_rows,
    check_temperatures,
    check_vector,
    explain_errors,
)
from samplers.ops._register import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

OP = "masked_softmax"
CHUNK = 1024  # vocabulary entries that share a reference, which is their maximum
BLOCK = 128  # fp32 accumulators per chunk; entry i of a chunk goes to accumulator i mod 128
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

SCHEMA = (
    "masked_softmax(Tensor logits, Tensor? index, Tensor? uniform, float temperature, float confidence_temperature, "
    "Tensor? forbid, Tensor? guidance, Tensor? guidance_index, float cfg_scale, int top_k, float top_p, bool truncated, "
    "Tensor? given, int want) -> (Tensor token, Tensor confidence, Tensor margin, Tensor entropy, Tensor lse, "
    "Tensor given_probability, Tensor status)"
)


class SoftmaxCall(NamedTuple):
    """The arguments of `masked_softmax`, in the schema's order."""

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
    truncated: bool
    given: Tensor | None
    want: int


class MaskedSoftmax(NamedTuple):
    """What `masked_softmax` returns: one value per row, or None for what was not wanted.

    Attributes:
        token: (N,) int64, the drawn or best token; -1 if `status` is not 0.
        confidence: (N,) float32, the probability of `token`.
        margin: (N,) float32, the probability of the best token less that of the second best.
        entropy: (N,) float32, in nats.
        lse: (N,) float32, log sum exp(l / confidence_temperature).
        given: (N,) float32, the probability of the given id.
        status: (N,) int32. 0: the row is fine. 1: it holds a NaN or +inf. 2: no token is possible. 3, on a CUDA device
            only: its `index`, `guidance_index` or `given` is out of range. If it is not 0, the floats are NaN.
    """

    token: Tensor
    confidence: Tensor | None
    margin: Tensor | None
    entropy: Tensor | None
    lse: Tensor | None
    given: Tensor | None
    status: Tensor


@explain_errors
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
    truncated: bool = False,
    want: tuple[str, ...] = ("confidence",),
    given: Tensor | None = None,
) -> MaskedSoftmax:
    """The drawn or best token of each row, and how sure the model is of it, in one read of the logits.

    Let l be the guided logits, with -inf for forbidden ids, and p = softmax(l / confidence_temperature). Then

    - token is a draw from softmax(l / temperature), restricted to the ids that top_k and top_p keep, by inverse CDF of
      `uniform`; at temperature 0 it is the best token, the lowest id among equals;
    - confidence is p[token]; margin is p of the best token less p of the second best; entropy is that of p in nats;
      lse is log sum exp(l / confidence_temperature); given is p[given].

    So what is reported is the model's own distribution over all tokens that may be drawn at all, whatever the draw's
    temperature, top_k and top_p are; these change the draw only. With `truncated=True` ids that top_k and top_p remove
    count as forbidden, in what is reported too.

    Args:
        logits: (R, V) float32, bfloat16, float16 or float64, at any strides. float64 is cast to float32. Logits whose
            last dimension is not contiguous are copied; of both kinds only the rows that `index` names are copied.
        index: (N,) int64, the rows of `logits` to read, repeats allowed. None: all of them, N = R.
        uniform: (N,) float64 in [0, 1), one draw per row. Needed if temperature > 0, ignored at 0.
        temperature: of the draw, >= 0.
        confidence_temperature: of the probabilities, > 0.
        forbid: (F,) int64, ids that are never drawn and carry no probability, whatever their logits are. Ids >= V are
            ignored: a mask id may lie just after the vocabulary.
        guidance: (R', V), dtype of `logits`: logits to move away from; l = logits + cfg_scale * (logits - guidance)
            in fp32. -inf in `logits` stays -inf; if only `guidance` is -inf the logit is taken as it is; a NaN in
            either or +inf in `guidance` gives the row status 1.
        guidance_index: (N,) int64, the rows of `guidance`. None: `index`.
        cfg_scale: the strength w of guidance; at 0 `guidance` is not read.
        top_k: keep the k highest logits, equals by the lower id; 0 keeps all.
        top_p: of these keep the fewest, highest first, that hold this share of softmax(l / temperature), or of
            softmax(l / confidence_temperature) at temperature 0; 1 keeps all. Shares are counted exactly, in integers.
            V <= 262,144 for both. At temperature 0 both matter only with `truncated`: they never remove the best token.
        truncated: whether the reported probabilities are those of what top_k and top_p leave. A nucleus of one token
            then has confidence 1.
        want: which of "confidence", "margin", "entropy", "lse", "given" to compute.
        given: (N,) int64 in [0, V), the ids of want "given".

    Returns:
        MaskedSoftmax. Everything is float32 except token (int64) and status (int32). No gradients.

    Precision: a weight 2^t has a relative error of 1.5e-7 + 9e-8 |t| from fp32 arithmetic (t in powers of two below its
    chunk's best), sums of 8 terms per accumulator and 7 more levels add at most 15 x 6e-8, and what is left out of a row
    (chunks 42 powers of two below its best) weighs less than V 2^-42 of it. Measured against float64 at V = 126,464,
    logits of spread 0.01 to 10, temperatures 0.3 to 2: probabilities 1.7e-7 and lse 6e-8 relative, entropy 6e-7 nats.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a device, a number or a name is. IndexError: an id or row is
        out of range. What needs the data itself is checked on the CPU only: there is no device sync.
    """
    call = SoftmaxCall(
        logits=_no_grad(logits),
        index=_flat(index),
        uniform=_flat(uniform) if temperature > 0 else None,
        temperature=float(temperature),
        confidence_temperature=float(confidence_temperature),
        forbid=_flat(forbid),
        guidance=_no_grad(guidance),
        guidance_index=_flat(guidance_index),
        cfg_scale=float(cfg_scale),
        top_k=top_k,
        top_p=float(top_p),
        truncated=truncated,
        given=_flat(given),
        want=wanted(OP, want, given),
    )
    _check(call)
    if cfg_scale == 0 and guidance is not None:
        call = call._replace(guidance=None, guidance_index=None)
    if not (_readable(logits) and (call.guidance is None or _readable(call.guidance))):
        call = _copied(call)
    if torch.compiler.is_compiling():
        out = _OP(*call)
    else:
        try:
            out = _OP(*call)
        except RuntimeError:
            _check_values(call)  # the kernel noticed; say it in Python's terms
            raise
    return result(out, call.want)


def _no_grad(x: Maybe) -> Maybe:
    return x.detach() if x is not None and x.requires_grad else x


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else _no_grad(x).contiguous()


def wanted(op: str, names: tuple[str, ...], given: Tensor | None) -> int:
    """→ the wanted values as bits."""
    if isinstance(names, str):
        raise TypeError(f"{op}: want is the string {names!r}, expected a tuple of names such as ({names!r},)")
    for name in names:
        if name not in WANT:
            raise ValueError(f"{op}: want has {name!r}, expected any of {', '.join(WANT)}")
    if ("given" in names) != (given is not None):
        raise ValueError(f"{op}: want 'given' and the argument given go together, one is missing")
    return sum(WANT[name] for name in set(names))


def result(out: tuple[Tensor, ...], want: int) -> MaskedSoftmax:
    """An op's outputs, None in place of what was not wanted."""
    token, *floats, status = out
    some = [x if want & bit else None for x, bit in zip(floats, WANT.values())]
    return MaskedSoftmax(token, *some, status)  # type: ignore[arg-type, call-arg]


def _readable(x: Tensor) -> bool:
    """Whether the kernels can read these rows where they lie."""
    return x.dtype != torch.float64 and (x.shape[1] <= 1 or x.stride(1) == 1)


def _copied(call: SoftmaxCall) -> SoftmaxCall:
    """The call with its logits and guidance such that the kernels can read them."""
    if not torch.compiler.is_compiling():
        _check_values(call)  # before rows are taken by their numbers
    guidance_index = call.index if call.guidance_index is None else call.guidance_index
    logits, index = _rows_of(call.logits, call.index)
    if call.guidance is None:
        return call._replace(logits=logits, index=index)
    guidance, guidance_index = _rows_of(call.guidance, guidance_index)
    return call._replace(logits=logits, index=index, guidance=guidance, guidance_index=guidance_index)


def _rows_of(x: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """→ (rows that the kernels can read, where the rows of `index` are among them)."""
    if _readable(x):
        return x, index
    if index is not None and len(index) < len(x):
        inside = (index >= 0) & (index < len(x))
        x = x.index_select(0, torch.where(inside, index, 0))
        # A number that is out of range stays so: the CPU's kernel says so, a device's gives that row status 3.
        index = torch.where(inside, torch.arange(len(index), device=index.device), -1)
    if not _readable(x):
        dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
        x = x.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return x, index


def _check(call: SoftmaxCall) -> None:
    """What can be checked without the data itself."""
    logits, guidance = call.logits, call.guidance
    where = "masked_softmax: "
    check_rows(OP, logits, "logits")
    rows, vocab = logits.shape
    if vocab == 0:
        raise ValueError(f"{where}logits have no columns: shape {tuple(logits.shape)}, expected (R, V) with V >= 1")
    check_vector(OP, call.index, "index", torch.int64, None, logits.device)
    n = rows if call.index is None else call.index.shape[0]
    check_temperatures(OP, call, n, logits.device)
    check_vector(OP, call.forbid, "forbid", torch.int64, None, logits.device)
    if not math.isfinite(call.cfg_scale):
        raise ValueError(f"{where}cfg_scale is {call.cfg_scale}, expected a finite number")
    if isinstance(call.top_k, bool) or not isinstance(call.top_k, numbers.Integral) or call.top_k < 0:
        raise ValueError(f"{where}top_k is {call.top_k!r}, expected a whole number, 0 (all) or more")
    if not 0 < call.top_p <= 1:
        raise ValueError(f"{where}top_p is {call.top_p}, expected a number above 0, up to 1 (all)")
    if vocab > WIDEST and (call.top_k or call.top_p < 1):
        raise ValueError(f"{where}top_k and top_p take at most {WIDEST} columns, logits have {vocab}")
    if guidance is not None:
        check_rows(OP, guidance, "guidance")
        if guidance.shape[1] != vocab:
            raise ValueError(f"{where}guidance has {guidance.shape[1]} columns, logits have {vocab}")
        if guidance.dtype != logits.dtype and {guidance.dtype, logits.dtype} != {torch.float32, torch.float64}:
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


def _check_values(call: SoftmaxCall) -> None:
    """What needs the data itself: on the CPU only, since elsewhere it takes a device sync."""
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
                OP, call.index, call.guidance.shape[0], "index", "rows of guidance; guidance_index names others"
            )
    check_draw_values(OP, call)


# ---- the twin --------------------------------------------------------------------------------------------------------


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """fp32 fused multiply-add. The product is exact in double; the sum is rounded twice, which differs from a true FMA
    about once in 10^9."""
    return (a.double() * b.double() + c.double()).float()


def _exp2(t: Tensor) -> Tensor:
    """2^t in fp32 for t <= 0; 0 below -126."""
    n = t.clamp(min=FLOOR).floor()
    r = (t.clamp(min=FLOOR) - n).double()
    p = torch.full_like(t, EXP2[5])
    for c in EXP2[4::-1]:
        p = (p.double() * r + c).float()
    w = p * ((n.nan_to_num(0.0, 0.0, 0.0).to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(t < FLOOR, 0.0, w)


def _exp2_double(x: Tensor) -> Tensor:
    """2^x in double, x <= 1000; 0 below -1000."""
    n = x.clamp(min=-1000.0).round()
    r = x.clamp(min=-1000.0) - n
    p = torch.full_like(x, EXP2D[11])
    for c in EXP2D[10::-1]:
        p = p * r + c
    power = ((n.nan_to_num(0.0, 0.0, 0.0).to(torch.int64) + 1023) << 52).view(torch.float64)
    return torch.where(x < -1000.0, 0.0, p * power)


def _halving_sum(acc: Tensor) -> Tensor:
    """(..., 128) → (...): acc[j] + acc[j + 64], then + 32, ... + 1."""
    while acc.shape[-1] > 1:
        half = acc.shape[-1] // 2
        acc = acc[..., :half] + acc[..., half:]
    return acc[..., 0]


def guide(a: Tensor, b: Tensor, w: float) -> Tensor:
    """(1 + w) a - w b, with what is impossible kept impossible."""
    out = ((a - b).double() * float(np.float32(w)) + a.double()).float()  # an FMA
    out = torch.where((a == -math.inf) | (b == -math.inf), a, out)
    return torch.where(a.isnan() | b.isnan() | (b == math.inf), math.nan, out)


def _twin(*args: Unpack[SoftmaxCall]) -> tuple[Tensor, ...]:
    """The op in torch, on any device: the specification, which the kernels follow bit for bit.

    A row is cut into chunks of 1024 entries. Each chunk c has its own reference, its maximum m_c. Its entries weigh
    w = 2^t, t = (x - m_c) * k in fp32 with k = log2(e) / temperature (0 where t < -126), summed in 128 accumulators and
    a halving tree. Chunks are joined in double, in order, scaled by 2^((m_c - M) k), M the row's maximum; those with
    (m_c - M) k <= -42 are left out, which loses less than V 2^-42 of the row. A draw picks the chunk, then the entry in
    it, by the same cumulative sums. Nothing depends on how rows or chunks are shared out, or on which chunks were known
    in time to be left out. (On a device torch sums in parallel, so the last bit of a double may differ.)

    top_k and top_p restrict the draw: entries are ranked by value, equals by id; those of rank >= top_k become -inf.
    Then each has the mass floor(2^44 w), w its weight relative to M at the draw's temperature, and the first entries
    whose masses reach ceil(top_p * total) stay. The draw is made of the chunks of that row, each with a maximum and sums
    of its own; everything else is made of the chunks of the row as it was. If `truncated`, everything is made of what
    stays.
    """
    call = SoftmaxCall(*args)
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
    # The best entry is never removed. So at temperature 0 only the statistics can tell that others were.
    truncates = (call.top_k > 0 or call.top_p < 1) and (call.temperature > 0 or (call.truncated and want != 0))
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
        left = x
        if truncates:
            k = float(np.float32(LOG2E / (call.temperature or call.confidence_temperature)))
            left = _truncate(x, call.top_k, call.top_p, k)
            x = left if call.truncated or not want else x
        u = call.uniform[here] if call.uniform is not None and call.temperature > 0 else None
        ids = call.given[here] if call.given is not None and want & WANT["given"] else None
        slabs.append(_twin_slab(x, left, u, call.temperature, call.confidence_temperature, ids, want))
    if not slabs:
        return _empty(0, want, device)
    return tuple(torch.cat(parts) for parts in zip(*slabs))


class _Table(NamedTuple):
    """The chunks of rows of logits at one temperature."""

    cells: Tensor  # (n, C, blocks, 128) float32, the entries
    m: Tensor  # (n, C) float32, each chunk's largest entry, which is its reference
    k: float  # log2(e) / temperature, rounded to float32
    sums: Tensor  # (n, C) float32, of the weights
    entropies: Tensor  # (n, C) float32, of weight * t; zeros if not asked for
    scale: Tensor  # (n, C) float64
    cumulative: Tensor  # (n, C) float64, of sums * scale, in chunk order


def _table(x: Tensor, temperature: float, entropy: bool) -> _Table:
    n, vocab = x.shape
    chunks = -(-vocab // CHUNK)
    # A block that lies wholly past the end of the vocabulary is not there: it adds nothing to any accumulator. So a
    # small vocabulary has one chunk of fewer blocks, and in the last of several chunks such blocks get weight 0.
    last = -(-vocab // BLOCK) - (chunks - 1) * (CHUNK // BLOCK)
    blocks = last if chunks == 1 else CHUNK // BLOCK
    padded = torch.nn.functional.pad(x, (0, chunks * blocks * BLOCK - vocab), value=-math.inf)
    cells = padded.view(n, chunks, blocks, BLOCK)
    m = cells.amax((2, 3))
    k = float(np.float32(LOG2E / temperature))
    sums, entropies = chunk_sums(cells, m, k, entropy)
    exponent = (m.double() - m.amax(1).double()[:, None]) * (LOG2E / temperature)
    scale = _exp2_double(exponent.masked_fill(exponent <= -DROP, -math.inf))
    return _Table(cells, m, k, sums, entropies, scale, (sums.double() * scale).cumsum(1))


def chunk_sums(cells: Tensor, m: Tensor, k: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Chunks (n, C, blocks, 128) float32 with maxima m → the sum of their weights, and of weight * t if `entropy`, else
    zeros; both (n, C) float32."""
    t = (cells - m.masked_fill(m == -math.inf, 0.0)[:, :, None, None]) * k
    w = _exp2(t)
    acc = w[:, :, 0]
    for j in range(1, cells.shape[2]):
        acc = acc + w[:, :, j]
    sums = _halving_sum(acc)
    if not entropy:
        return sums, torch.zeros_like(sums)
    t = t.clamp(min=FLOOR)
    acc = w[:, :, 0] * t[:, :, 0]
    for j in range(1, cells.shape[2]):
        acc = _fma(w[:, :, j], t[:, :, j], acc)
    return sums, _halving_sum(acc)


def _twin_slab(
    x: Tensor,
    left: Tensor,
    uniform: Tensor | None,
    temperature: float,
    confidence_temperature: float,
    given: Tensor | None,
    want: int,
) -> tuple[Tensor, ...]:
    """Rows x (n, V) float32, guided, forbidden ids at -inf; and what top_k and top_p leave of them for the draw, which
    is x itself if that is all."""
    (n, vocab), device = x.shape, x.device
    bad = (x.isnan() | (x == math.inf)).any(1)  # (n,) bool
    best_value = x.amax(1)  # (n,) float32
    reference = best_value.double()  # (n,) float64
    status = torch.where(bad, 1, torch.where(best_value == -math.inf, 2, 0)).to(torch.int32)  # (n,) int32
    if want:
        table = _table(x, confidence_temperature, bool(want & WANT["entropy"]))

    if temperature > 0:
        assert uniform is not None
        shared = want and left is x and temperature == confidence_temperature
        token = _draw(table if shared else _table(left, temperature, False), uniform)
    else:
        ids = torch.arange(vocab, device=device)
        token = torch.where(x == best_value[:, None], ids, vocab).amin(1).clamp(max=vocab - 1)  # the lowest of equals

    def probability(logit: Tensor) -> Tensor:
        return (_exp2_double((logit.double() - reference) * k64) / total).clamp(max=1.0)

    def finish(value: Tensor) -> Tensor:
        return torch.where(status == 0, value, math.nan).float()  # (n,) float32

    confidence, margin, entropy, lse, given_out = _empty(n, 0, device)[1:6]
    if want:
        k64, total = LOG2E / confidence_temperature, table.cumulative[:, -1]
    if want & WANT["confidence"]:
        confidence = finish(probability(x.gather(1, token[:, None])[:, 0]))
    if want & WANT["margin"]:
        is_best = x == best_value[:, None]
        second = x.masked_fill(is_best, -math.inf).amax(1)
        second = torch.where(is_best.sum(1) > 1, best_value, second)
        first, second = ((_exp2_double((v.double() - reference) * k64)) for v in (best_value, second))
        margin = finish(((first - second) / total).clamp(max=1.0))
    if want & WANT["entropy"]:
        below = (table.m.double() - reference[:, None]) * k64  # (n, C)
        part = table.scale * (table.entropies.double() + table.sums.double() * below)
        part = torch.where(table.scale == 0, 0.0, part).cumsum(1)[:, -1]
        entropy = finish((total.log() - LN2 * part / total).clamp(min=0.0))
    if want & WANT["lse"]:
        lse = finish(reference / confidence_temperature + total.log())
    if want & WANT["given"]:
        assert given is not None
        given_out = finish(probability(x.gather(1, given[:, None])[:, 0]))
    return torch.where(status == 0, token, -1), confidence, margin, entropy, lse, given_out, status


def truncated(x: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Logits x (n, V) float32 with what top_k and top_p keep from a draw at `temperature` at -inf, as the op does it."""
    return _truncate(x, top_k, top_p, float(np.float32(LOG2E / temperature)))


def _truncate(x: Tensor, top_k: int, top_p: float, k: float) -> Tensor:
    """Rows x (n, V) float32 with what top_k and top_p remove at -inf; rows that hold NaN or +inf as they are."""
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


def _draw(table: _Table, uniform: Tensor) -> Tensor:
    """Inverse CDF: first the chunk, then the entry in it."""
    cells, m, k, cumulative = table.cells, table.m, table.k, table.cumulative
    n, weights = m.shape[0], table.sums.double() * table.scale  # (n, C) float64
    target = uniform * cumulative[:, -1]  # (n,) float64
    chunk = _first_above(cumulative, target, weights > 0)  # (n,) int64
    weight = weights.gather(1, chunk[:, None])[:, 0]
    # The weight before a chunk is the sum so far, not a difference of sums.
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, chunk[:, None])[:, 0]

    rows = torch.arange(n, device=m.device)
    x = cells.flatten(2)[rows, chunk]  # (n, 1024) float32
    w = _exp2((x - m[rows, chunk][:, None]) * k)
    inside = w.double().cumsum(1)
    goal = (target - before) / weight * inside[:, -1]
    return chunk * CHUNK + _first_above(inside, goal, w > 0)


def _first_above(cumulative: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """First column whose cumulative sum exceeds the target; the last with weight if rounding left none.

    Columns without weight are excluded explicitly: a device's parallel scan may round a sum up although nothing was added,
    and a forbidden id must not be drawn even then.
    """
    columns = torch.arange(cumulative.shape[1], device=cumulative.device)
    count = columns.numel()
    first = torch.where((cumulative > target[:, None]) & positive, columns, count).amin(1)
    last = torch.where(positive, columns, 0).amax(1)
    return torch.where(first < count, first, last)


def _empty(n: int, want: int, device: torch.device) -> tuple[Tensor, ...]:
    floats = [torch.empty(n if want & bit else 0, dtype=torch.float32, device=device) for bit in WANT.values()]
    return (
        torch.empty(n, dtype=torch.int64, device=device),
        *floats,
        torch.empty(n, dtype=torch.int32, device=device),
    )


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake(*args: Unpack[SoftmaxCall]) -> tuple[Tensor, ...]:
    call = SoftmaxCall(*args)
    return _empty(call.logits.shape[0] if call.index is None else call.index.shape[0], call.want, call.logits.device)


_OP = register(SCHEMA, _twin, _fake)
