"""headless_softmax: what masked_softmax gives, from hidden rows and the head's weight; the logits are never stored.

The vocabulary is cut into tiles. torch multiplies a tile, `headless_fold_` joins its logits to a running state of 80
bytes per row, and the next tile overwrites it; `headless_finish` reads the state out. So memory is one tile and O(N).

`_twin_fold` and `_twin_finish` below are the specification of these two; the native kernels (csrc/headless.h,
csrc/cpu/headless.cpp) do the same operations in the same order, so both give the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers.ops._check import (
    DTYPES,
    check_draw_values,
    check_inside,
    check_temperatures,
    check_vector,
    explain_errors,
)
from samplers.ops._register import register
from samplers.ops.masked_softmax import (
    BLOCK,
    CHUNK,
    DROP,
    LN2,
    LOG2E,
    WANT,
    MaskedSoftmax,
    _empty,
    _exp2,
    _exp2_double,
    _first_above,
    _flat,
    chunk_sums,
    guide,
    result,
    wanted,
)
from samplers.random import philox

if TYPE_CHECKING:
    from typing_extensions import Unpack

OP = "headless_softmax"
# Logits in a tile: on a CPU little enough for its caches, elsewhere enough to fill a chip with one product.
TILE_CPU, TILE_DEVICE = 1 << 18, 1 << 22

# A row's state: csrc/headless.h has the same order.
REALS = ("sum0", "sum1", "entropy", "first", "second", "drawn_logit", "given_logit")  # float64
WHOLES = ("best", "drawn", "bad")  # int64

_OUT = (
    "(Tensor token, Tensor confidence, Tensor margin, Tensor entropy, Tensor lse, Tensor given_probability, "
    "Tensor status)"
)
SCHEMA = (
    "headless_softmax(Tensor hidden, Tensor weight, Tensor? bias, float? softcap, Tensor? uniform, float temperature, "
    "float confidence_temperature, Tensor? forbid, Tensor? guidance, float cfg_scale, Tensor? given, int want, "
    "int tile) -> " + _OUT
)
FOLD_SCHEMA = (
    "headless_fold_(Tensor logits, int offset, Tensor(a!) real, Tensor(b!) whole, Tensor? uniform, "
    "float temperature, float confidence_temperature, Tensor? forbid, Tensor? guidance, float cfg_scale, "
    "Tensor? given, int want) -> ()"
)
FINISH_SCHEMA = (
    "headless_finish(Tensor real, Tensor whole, float temperature, float confidence_temperature, int want) -> " + _OUT
)


class HeadlessCall(NamedTuple):
    """The arguments of `headless_softmax`, in the schema's order."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    uniform: Tensor | None
    temperature: float
    confidence_temperature: float
    forbid: Tensor | None
    guidance: Tensor | None
    cfg_scale: float
    given: Tensor | None
    want: int
    tile: int


@explain_errors
def headless_softmax(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    uniform: Tensor | None = None,
    temperature: float = 0.0,
    confidence_temperature: float = 1.0,
    forbid: Tensor | None = None,
    guidance: Tensor | None = None,
    cfg_scale: float = 0.0,
    want: tuple[str, ...] = ("confidence",),
    given: Tensor | None = None,
    tile: int | None = None,
) -> MaskedSoftmax:
    """`masked_softmax` of the logits that a head makes of hidden rows, without storing the logits.

    The logits are those that the model itself would have: l = hidden @ weight.T + bias by torch's own product, rounded
    to the dtype of `hidden`, then softcap * tanh(l / softcap) in that dtype. Everything else is computed in fp32, as in
    masked_softmax: the same token at temperature 0, the same probabilities to fp32's last bits. There is no top_k and no
    top_p: they need the stored logits.

    A draw follows the same distribution exactly, but it is another draw than masked_softmax's for the same `uniform`,
    since the total weight is not known until the last tile is done. Chunks of 1024 ids come in order; chunk c, of weight
    w_c, takes the draw over with probability w_c / (w_1 + ... + w_c), so it holds it in the end with probability

        w_c/S_c * (1 - w_{c+1}/S_{c+1}) * ... * (1 - w_C/S_C) = w_c/S_c * S_c/S_{c+1} * ... * S_{C-1}/S_C = w_c/S_C,

    where S_c is the sum up to c: a weighted reservoir of one (Chao 1982). The entry in the chunk is drawn by inverse CDF. The
    two uniforms of a chunk are Philox words keyed by the first 53 bits of the row's `uniform` and counted by the chunk:
    neighbouring values of `uniform` give unrelated tokens. For given logits no result depends on the tile, to the bit.

    Args:
        hidden: (N, D) float32, bfloat16, float16 or float64, at any strides: what the head is applied to. The logits of
            float64 are cast to float32.
        weight: (V, D), of the same dtype, at any strides: the layout of torch.nn.Linear and of tied embeddings.
        bias: (V,), of the same dtype.
        softcap: > 0, the bound of a soft-capped head.
        uniform, temperature, confidence_temperature, forbid, want, given: as in masked_softmax.
        guidance: (N, D), of the same dtype: hidden rows whose logits to move away from; l + cfg_scale * (l - their
            logits) in fp32.
        cfg_scale: the strength of guidance; at 0 `guidance` is not read.
        tile: ids per tile, a multiple of 1024. None: as many as make a tile of 2^18 logits on the CPU and 2^22 elsewhere
            (1/2 and 8 MiB in bfloat16), but at least 1024.

    Returns:
        MaskedSoftmax. No gradients.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, a number, a device or a name is. IndexError: an id is out of
        range. What needs the data itself is checked on the CPU only: there is no device sync.
    """
    call = HeadlessCall(
        hidden=hidden,
        weight=weight,
        bias=bias,
        softcap=None if softcap is None else float(softcap),
        uniform=uniform if temperature > 0 else None,
        temperature=float(temperature),
        confidence_temperature=float(confidence_temperature),
        forbid=forbid,
        guidance=guidance,
        cfg_scale=float(cfg_scale),
        given=given,
        want=wanted(OP, want, given),
        tile=0,
    )
    _check(call)
    if cfg_scale == 0:
        call = call._replace(guidance=None)
    if not torch.compiler.is_compiling():
        _check_values(call)
    call = call._replace(
        hidden=hidden.detach(),
        weight=weight.detach(),
        bias=_flat(bias),
        uniform=_flat(call.uniform),
        forbid=_flat(forbid),
        guidance=None if call.guidance is None else call.guidance.detach(),
        given=_flat(given),
        tile=_tile(call, tile),
    )
    return result(_OP(*call), call.want)


def _tile(call: HeadlessCall, tile: int | None) -> int:
    """→ ids per tile."""
    if tile is None:
        rows = len(call.hidden) * (2 if call.guidance is not None else 1)
        logits = TILE_CPU if call.hidden.device.type == "cpu" else TILE_DEVICE
        return max(1, logits // (max(rows, 1) * CHUNK)) * CHUNK
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1 or tile % CHUNK:
        raise ValueError(f"{OP}: tile is {tile!r}, expected a positive multiple of {CHUNK}")
    return tile


def _check(call: HeadlessCall) -> None:
    """What can be checked without the data itself."""
    hidden, weight = call.hidden, call.weight

    def matrix(x: Tensor, name: str, shape: str) -> None:
        if x.dim() != 2:
            raise ValueError(f"{OP}: {name} has shape {tuple(x.shape)}, expected two dimensions {shape}")
        if x.dtype not in (*DTYPES, torch.float64):
            raise TypeError(f"{OP}: {name} is {x.dtype}, expected float32, bfloat16, float16 or float64")
        if x.dtype != hidden.dtype:
            raise TypeError(f"{OP}: {name} is {x.dtype}, hidden is {hidden.dtype}; expected the same")
        if x.device != hidden.device:
            raise ValueError(f"{OP}: {name} is on {x.device}, hidden on {hidden.device}; expected the same")
        if x.shape[1] != hidden.shape[1]:
            raise ValueError(f"{OP}: {name} has {x.shape[1]} columns, hidden has {hidden.shape[1]}; expected the same")

    matrix(hidden, "hidden", "(N, D)")
    matrix(weight, "weight", "(V, D)")
    (n, _), vocab = hidden.shape, weight.shape[0]
    if vocab == 0:
        raise ValueError(f"{OP}: weight has no rows: shape {tuple(weight.shape)}, expected (V, D) with V >= 1")
    check_vector(OP, call.bias, "bias", hidden.dtype, vocab, hidden.device)
    if call.softcap is not None and not (math.isfinite(call.softcap) and call.softcap > 0):
        raise ValueError(f"{OP}: softcap is {call.softcap}, expected a finite number above 0, or None")
    check_temperatures(OP, call, n, hidden.device)
    check_vector(OP, call.forbid, "forbid", torch.int64, None, hidden.device)
    if not math.isfinite(call.cfg_scale):
        raise ValueError(f"{OP}: cfg_scale is {call.cfg_scale}, expected a finite number")
    if call.guidance is not None:
        matrix(call.guidance, "guidance", "(N, D)")
        if len(call.guidance) != n:
            raise ValueError(f"{OP}: guidance has {len(call.guidance)} rows, hidden has {n}; expected the same")
    elif call.cfg_scale != 0:
        raise ValueError(f"{OP}: cfg_scale is given without guidance, the second hidden rows")
    check_vector(OP, call.given, "given", torch.int64, n, hidden.device)


def _check_values(call: HeadlessCall) -> None:
    """What needs the data itself: on the CPU only, since elsewhere it takes a device sync."""
    if call.hidden.device.type != "cpu":
        return
    check_inside(OP, call.given, len(call.weight), "given", "ids of the vocabulary")
    check_draw_values(OP, call)


def _tiles(*args: Unpack[HeadlessCall]) -> tuple[Tensor, ...]:
    """The op: product, soft cap and fold, tile by tile."""
    call = HeadlessCall(*args)
    hidden, n, vocab = call.hidden, len(call.hidden), len(call.weight)
    rows = hidden if call.guidance is None else torch.cat([hidden, call.guidance])
    real = torch.empty(n, len(REALS), dtype=torch.float64, device=hidden.device)
    whole = torch.empty(n, len(WHOLES), dtype=torch.int64, device=hidden.device)
    room = torch.empty(len(rows) * min(call.tile, vocab), dtype=hidden.dtype, device=hidden.device)
    for begin in range(0, vocab, call.tile):
        end = min(begin + call.tile, vocab)
        logits = room[: len(rows) * (end - begin)].view(len(rows), end - begin)
        weight = call.weight[begin:end].t()
        if call.bias is None:
            torch.mm(rows, weight, out=logits)
        else:
            torch.addmm(call.bias[begin:end], rows, weight, out=logits)
        if call.softcap is not None:
            logits.div_(call.softcap).tanh_().mul_(call.softcap)
        if logits.dtype == torch.float64:
            logits = logits.float()
        _FOLD(
            logits[:n],
            begin,
            real,
            whole,
            call.uniform,
            call.temperature,
            call.confidence_temperature,
            call.forbid,
            None if call.guidance is None else logits[n:],
            call.cfg_scale,
            call.given,
            call.want,
        )
    return _FINISH(real, whole, call.temperature, call.confidence_temperature, call.want)


# ---- the twins -------------------------------------------------------------------------------------------------------


def _plan(temperature: float, confidence_temperature: float, want: int) -> tuple[list[float], int | None]:
    """→ (log2(e) / temperature by weight set, the set that the draw reads or None). Equal temperatures share a set."""
    temperatures = [confidence_temperature] if want else []
    if temperature > 0 and temperature not in temperatures:
        temperatures.append(temperature)
    return [LOG2E / T for T in temperatures], len(temperatures) - 1 if temperature > 0 else None


def _draws(uniform: Tensor, chunk: Tensor | int) -> tuple[Tensor, ...]:
    """The two uniforms of rows (n,) and a chunk, an int or (n,): whether it takes the draw over, and where in it."""
    key = (uniform * 2.0**53).long()
    r0, r1, r2, r3 = philox((chunk, 0, 0, 0), (key, key >> 32))
    return tuple(((a >> 5) * (1 << 26) + (b >> 6)).double() * 2.0**-53 for a, b in ((r0, r1), (r2, r3)))


def _twin_fold(
    logits: Tensor,
    offset: int,
    real: Tensor,
    whole: Tensor,
    uniform: Tensor | None,
    temperature: float,
    confidence_temperature: float,
    forbid: Tensor | None,
    guidance: Tensor | None,
    cfg_scale: float,
    given: Tensor | None,
    want: int,
) -> None:
    """Joins columns [offset, offset + width) of the logits to the rows' state; at offset 0 the state starts anew.

    Chunks of 1024 ids have maxima m and sums as in masked_softmax. They are joined in order, in double: with M the best
    logit so far, a chunk's sums are scaled by 2^((m - M) k) or, if m is above M, those so far by 2^((M - m) k); from 42
    powers of two down the scale is 0.
    """
    n, width = logits.shape
    # Slabs of rows, as in masked_softmax's twin: their many temporaries stay small.
    step = max(1, (1 << (18 if logits.device.type == "cpu" else 25)) // (-(-width // CHUNK) * CHUNK or 1))
    if n > step:
        for begin in range(0, n, step):
            slab = slice(begin, begin + step)
            l, r, w = logits[slab], real[slab], whole[slab]
            u, b, g = (None if x is None else x[slab] for x in (uniform, guidance, given))
            _twin_fold(l, offset, r, w, u, temperature, confidence_temperature, forbid, b, cfg_scale, g, want)
        return
    if n == 0 or width == 0:
        return
    x = logits.float()
    if guidance is not None and cfg_scale != 0:
        x = guide(x, guidance.float(), cfg_scale)
    if forbid is not None and forbid.numel():
        here = torch.where((forbid >= offset) & (forbid < offset + width), forbid - offset, width)
        mask = torch.zeros(width + 1, dtype=torch.bool, device=x.device).index_fill(0, here, True)
        x = x.masked_fill(mask[:width], -math.inf)
    chunks = -(-width // CHUNK)
    last = -(-width // BLOCK) - (chunks - 1) * (CHUNK // BLOCK)
    blocks = last if chunks == 1 else CHUNK // BLOCK
    cells = torch.nn.functional.pad(x, (0, chunks * blocks * BLOCK - width), value=-math.inf)
    cells = cells.view(n, chunks, blocks, BLOCK)
    ks, draw_set = _plan(temperature, confidence_temperature, want)
    m = cells.amax((2, 3))  # (n, C) float32
    bad = (cells.isnan() | (cells == math.inf)).flatten(2).any(2)  # (n, C) bool
    sums, entropies = [], torch.zeros_like(m)
    for s, k in enumerate(ks):
        of_set = chunk_sums(cells, m, float(np.float32(k)), s == 0 and bool(want & WANT["entropy"]))
        sums.append(of_set[0])
        entropies = of_set[1] if s == 0 else entropies

    if offset == 0:
        real.fill_(-math.inf)
        real[:, :3] = 0.0
        whole.fill_(-1)
        whole[:, 2] = 0
    *total, entropy, first, second, drawn_logit, given_logit = real.unbind(1)
    best, drawn, spoilt = whole.unbind(1)
    reference = first
    taken = torch.full_like(drawn, -1)  # (n,) int64, the chunk of this tile that holds the draw now
    for c in range(chunks):
        ok = (m[:, c] != -math.inf) & ~bad[:, c]
        distance = m[:, c].double() - reference
        sinks = distance > 0
        weight = []
        for s, k in enumerate(ks):
            down = -distance.abs() * k
            scale = torch.where(down <= -DROP, 0.0, _exp2_double(down))
            w = sums[s][:, c].double()
            if s == 0 and want & WANT["entropy"]:
                e = entropies[:, c].double()
                old = torch.where(scale == 0, 0.0, scale * (entropy - total[0] * (distance * k)))
                new = torch.where(scale == 0, 0.0, scale * (e + w * (distance * k)))
                entropy = torch.where(ok, torch.where(sinks, old + e, entropy + new), entropy)
            weight.append(torch.where(sinks, w, w * scale))
            total[s] = torch.where(ok, torch.where(sinks, total[s] * scale, total[s]) + weight[s], total[s])
        reference = torch.where(ok & sinks, m[:, c].double(), reference)
        if draw_set is not None:
            assert uniform is not None
            take, _ = _draws(uniform, offset // CHUNK + c)
            mine = weight[draw_set]
            taken = torch.where(ok & (mine > 0) & (take * total[draw_set] < mine), c, taken)
    top = m.masked_fill(bad, -math.inf).amax(1).double()
    columns = torch.arange(width, device=x.device)
    at = torch.where((x == top[:, None]) & (x > -math.inf), columns, width).amin(1)
    best = torch.where((top > first) & (at < width), offset + at, best)
    if want & WANT["margin"]:
        two = torch.nn.functional.pad(x, (0, 1), value=-math.inf).topk(2, dim=1).values.double()
        first, second = torch.cat([first[:, None], second[:, None], two], 1).topk(2, dim=1).values.unbind(1)
    first = torch.maximum(first, top)
    if draw_set is not None:
        assert uniform is not None
        k = float(np.float32(ks[draw_set]))
        rows, held = torch.arange(n, device=x.device), taken.clamp(min=0)
        values = cells.flatten(2)[rows, held]  # (n, 1024) float32
        w = _exp2((values - m[rows, held][:, None]) * k)
        inside = w.double().cumsum(1)
        _, place = _draws(uniform, offset // CHUNK + held)
        i = _first_above(inside, place * inside[:, -1], w > 0)
        drawn = torch.where(taken >= 0, offset + held * CHUNK + i, drawn)
        drawn_logit = torch.where(taken >= 0, values.gather(1, i[:, None])[:, 0].double(), drawn_logit)
    if given is not None and want & WANT["given"]:
        within = (given >= offset) & (given < offset + width)
        value = x.gather(1, (given - offset).clamp(0, width - 1)[:, None])[:, 0].double()
        given_logit = torch.where(within, value, given_logit)
    spoilt = torch.where(bad.any(1), 1, spoilt)
    real.copy_(torch.stack([*total, entropy, first, second, drawn_logit, given_logit], 1))
    whole.copy_(torch.stack([best, drawn, spoilt], 1))


def _twin_finish(
    real: Tensor, whole: Tensor, temperature: float, confidence_temperature: float, want: int
) -> tuple[Tensor, ...]:
    """Reads the state out when all chunks are in: masked_softmax's outputs."""
    total, _, entropy_sum, first, second, drawn_logit, given_logit = real.unbind(1)
    best, drawn, spoilt = whole.unbind(1)
    ks, draw_set = _plan(temperature, confidence_temperature, want)
    status = torch.where(spoilt != 0, 1, torch.where(first == -math.inf, 2, 0)).to(torch.int32)

    def finish(value: Tensor) -> Tensor:
        return torch.where(status == 0, value, math.nan).float()

    def weight(logit: Tensor) -> Tensor:
        return _exp2_double((logit - first) * ks[0])

    token, logit = (best, first) if draw_set is None else (drawn, drawn_logit)
    confidence, margin, entropy, lse, given = _empty(len(real), 0, real.device)[1:6]
    if want & WANT["confidence"]:
        confidence = finish((weight(logit) / total).clamp(max=1.0))
    if want & WANT["margin"]:
        margin = finish(((1.0 - weight(second)) / total).clamp(max=1.0))
    if want & WANT["entropy"]:
        entropy = finish((total.log() - LN2 * entropy_sum / total).clamp(min=0.0))
    if want & WANT["lse"]:
        lse = finish(first / confidence_temperature + total.log())
    if want & WANT["given"]:
        given = finish((weight(given_logit) / total).clamp(max=1.0))
    return torch.where(status == 0, token, -1), confidence, margin, entropy, lse, given, status


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake(*args: Unpack[HeadlessCall]) -> tuple[Tensor, ...]:
    call = HeadlessCall(*args)
    return _empty(len(call.hidden), call.want, call.hidden.device)


def _fake_fold(*args: object) -> None:
    return None


def _fake_finish(
    real: Tensor, whole: Tensor, temperature: float, confidence_temperature: float, want: int
) -> tuple[Tensor, ...]:
    return _empty(len(real), want, real.device)


_OP = register(SCHEMA, None, _fake, kernels={"CompositeExplicitAutograd": _tiles})
_FOLD = register(FOLD_SCHEMA, _twin_fold, _fake_fold)
_FINISH = register(FINISH_SCHEMA, _twin_finish, _fake_finish)
