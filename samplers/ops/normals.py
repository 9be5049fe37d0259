"""row_normals: the counter-based standard normals of a run, four float32 or two float64 of each Philox block."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.ops._check import check_vector, explain_errors
from samplers.ops._register import register
from samplers.random import philox

NAME = "row_normals"
SCHEMA = "row_normals(Tensor seed, Tensor row, Tensor step, int length, int draw, ScalarType dtype) -> Tensor"


@explain_errors
def row_normals(
    seed: Tensor,
    row: Tensor,
    step: Tensor | int,
    *,
    length: int,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals of batch rows, each at its row's own step, by the transform of Box and Muller (1958).

    A number is a function of (seed, row, position, step, draw) and dtype: not of the batch, not of `length`, so that a
    longer row begins with a shorter one, and not of the device or the instruction set. A float32 normal is made of
    uniform numbers of 31 bits, a float64 normal of 63 bits, so the two dtypes give different numbers. A normal is finite and
    never 0; the largest that can occur is 6.66 in float32 and 9.42 in float64.

    Precision: the transform of the same uniform numbers is met to half a unit in the last place on average, and always to
    within 6 units (relative to the number itself: also of the smallest).

    Args:
        seed, row: (B,) int64, who each row of the batch is.
        step: (B,) int64 how many steps each row has taken, or one number for all.
        length: normals per row.
        draw: what the numbers are for; see samplers.random. Uniform numbers of the same draw come from the same blocks.
        dtype: float32 or float64.

    Returns:
        (B, length) of `dtype`.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or device, a length below 1, a draw outside [0, 2^32).
    """
    device = seed.device
    check_vector(NAME, seed, "seed", torch.int64, None, device)
    check_vector(NAME, row, "row", torch.int64, len(seed), device)
    if isinstance(step, int):
        step = torch.full_like(seed, step)
    check_vector(NAME, step, "step", torch.int64, len(seed), device)
    if length < 1:
        raise ValueError(f"{NAME}: length is {length}, expected 1 or more")
    if not 0 <= draw < 2**32:
        raise ValueError(f"{NAME}: draw is {draw}, expected 0 to 2^32 - 1")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{NAME}: dtype is {dtype}, expected torch.float32 or torch.float64")
    return OP(seed.contiguous(), row.contiguous(), step.contiguous(), length, draw, dtype)


# The polynomials of csrc/normal.h, lowest coefficient first, by bytes of the dtype.
_LOG = {
    4: "0x1.00001ep+0 0x1.5542f6p-1 0x1.01e9dap-1 0x1.6830eap-2 0x1.5c3b3ep-1 -0x1.2f400ap+0 0x1.f89360p+1 "
    "-0x1.3d003cp+2 0x1.be574cp+1",
    8: "0x1.000000000000cp+0 0x1.55555555530f7p-1 0x1.000000013601ap-1 0x1.999998f0f7f11p-2 0x1.555570f6e6c2ep-2 "
    "0x1.248f49f3abaaep-2 0x1.003a7c943f36fp-2 0x1.c09507a0d3de4p-3 0x1.dfe2c4bc034eep-3 -0x1.a29e34bd6e5f5p-4 "
    "0x1.ffb49be2ba602p+0 -0x1.247aa271a4166p+3 0x1.2af29060dc491p+5 -0x1.d645c129680c8p+6 0x1.245ee4df69244p+8 "
    "-0x1.19a7fd7ff89d4p+9 0x1.9d8fbe44ba507p+9 -0x1.bf2076a1d7ef5p+9 0x1.50c1465303262p+9 -0x1.3c7e77bf4602ap+8 "
    "0x1.1aa2735454f3cp+6",
}
_SIN = {
    4: "0x1.921fb6p+0 -0x1.4abc24p-1 0x1.4680a4p-4 -0x1.331986p-8",
    8: "0x1.921fb54442d18p+0 -0x1.4abbce625bdaep-1 0x1.466bc6774afcep-4 -0x1.32d2ccd46a554p-8 0x1.507821d4f8e6fp-13 "
    "-0x1.e2f3f103d3c9ep-19 0x1.dfc5c12dceed5p-25",
}
_COS = {
    4: "-0x1.3bd3ccp+0 0x1.03c1b0p-2 -0x1.55b2b6p-6 0x1.d4f7eap-11",
    8: "-0x1.3bd3cc9be45dep+0 0x1.03c1f081b5a52p-2 -0x1.55d3c7e3bfe55p-6 0x1.e1f50675b1d72p-11 -0x1.a6d1e238aa183p-16 "
    "0x1.f9c4ad753fc0ap-22 -0x1.b034411069a29p-28",
}
_TWO_LN2 = {4: float.fromhex("0x1.62e430p+0"), 8: float.fromhex("0x1.62e42fefa39efp+0")}


def _polynomial(x: Tensor, coefficients: str) -> Tensor:
    *rest, highest = map(float.fromhex, coefficients.split())
    value = torch.full_like(x, highest)
    for c in reversed(rest):
        value = value.mul_(x).add_(c)
    return value


def _sqrt(x: Tensor) -> Tensor:
    """The square root, rounded to nearest. torch's own is not always: MKL's, on a CPU, may be one unit off."""
    if x.dtype == torch.float32:
        return x.double().sqrt().float()
    root = x.sqrt()
    high = root * 134217729.0  # 2^27 + 1 splits a number into halves whose products are exact (Dekker 1971)
    high = high - (high - root)
    low = root - high
    square = root * root
    error = high * high - square + 2 * high * low + low * low
    return root + (x - square - error) / (2 * root)


def _radius(n: Tensor) -> Tensor:
    """sqrt(-2 ln u) of n = 2^b u, or 2^b (u - 1) where that is negative; b bits in the type of n."""
    size = n.element_size()
    whole, mantissa, bias = (torch.int32, 23, 127) if size == 4 else (torch.int64, 52, 1023)
    bits = n.view(whole)
    # u = (1 - g) 2^-e, g in (0, 1/2]
    fraction = (bits & ((1 << mantissa) - 1) | (bias - 1) << mantissa).view(n.dtype)
    g = torch.where(n > 0, 1 - fraction, n * -(2.0 ** (-8 * size)))
    e = torch.where(n > 0, bias + 8 * size - 1 - (bits >> mantissa), 0).to(n.dtype)
    return _sqrt(_polynomial(g, _LOG[size]) * (g * g) + (g + g) + e * _TWO_LN2[size])


def _signed(word: Tensor) -> Tensor:
    """A word of 32 bits as int32 reads it, in int64."""
    return word - (word >> 31 << 32)


def _pair(v: Tensor, w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two normals of two signed words, int64, of as many bits as `dtype` has."""
    size = dtype.itemsize
    radius = _radius((v | 1).to(dtype))
    shifted = w << 2 | 2
    t = (shifted if size == 8 else _signed(shifted & 0xFFFFFFFF)).to(dtype) * 2.0 ** (-8 * size)
    tt = t * t
    sine = _polynomial(tt, _SIN[size]) * t * radius
    cosine = (_polynomial(tt, _COS[size]) * tt + 1) * radius
    cosine = torch.where(w < 0, -cosine, cosine)
    swapped = (w >> (8 * size - 2) & 1) != 0
    return torch.where(swapped, sine, cosine), torch.where(swapped, cosine, sine)


def _twin(seed: Tensor, row: Tensor, step: Tensor, length: int, draw: int, dtype: torch.dtype) -> Tensor:
    per_block = 16 // dtype.itemsize
    blocks = torch.arange(-(-length // per_block), device=seed.device)  # element i is in block i // per_block
    seed, row, step = seed[:, None], row[:, None], step[:, None]
    r0, r1, r2, r3 = philox((blocks, step, draw, (seed >> 32) ^ (row >> 32)), (seed, row))
    made: tuple[Tensor, ...]
    if dtype == torch.float64:
        made = _pair(r0 << 32 | r1, r2 << 32 | r3, dtype)
    else:
        v0, w0, v1, w1 = map(_signed, (r0, r1, r2, r3))
        made = *_pair(v0, w0, dtype), *_pair(v1, w1, dtype)
    return torch.stack(made, -1).flatten(1)[:, :length].contiguous()


def _fake(seed: Tensor, row: Tensor, step: Tensor, length: int, draw: int, dtype: torch.dtype) -> Tensor:
    return seed.new_empty((len(seed), length), dtype=dtype)


OP = register(SCHEMA, _twin, _fake)
