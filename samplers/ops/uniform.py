"""row_uniforms: the counter-based uniform numbers of a run, one Philox block each."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.ops._check import check_inside, check_vector, explain_errors
from samplers.ops._register import register
from samplers.random import uniform

NAME = "row_uniforms"
SCHEMA = "row_uniforms(Tensor seed, Tensor row, Tensor step, Tensor? which, Tensor? position, int length, int draw) -> Tensor"


@explain_errors
def row_uniforms(
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    *,
    which: Tensor | None = None,
    position: Tensor | None = None,
    length: int = 0,
    draw: int = 0,
) -> Tensor:
    """Uniform numbers in [0, 1) of batch rows, each at its row's own step: samplers.random.uniform in one pass.

    Args:
        seed, row, step: (B,) int64, who each row of the batch is and how many steps it has taken.
        which, position: (N,) int64, the batch row and the canvas position of each number; None: positions 0 to
            length - 1 of every row.
        length: positions per row, if `which` is None.
        draw: what the numbers are for; see samplers.random.

    Returns:
        (N,) float64; (B, length) if `which` is None.

    Raises:
        ValueError, TypeError, IndexError: a wrong shape, dtype or device, a row outside the batch (on a CUDA device its
            number is NaN), a draw outside [0, 2^32).
    """
    device = seed.device
    check_vector(NAME, seed, "seed", torch.int64, None, device)
    check_vector(NAME, row, "row", torch.int64, len(seed), device)
    check_vector(NAME, step, "step", torch.int64, len(seed), device)
    if (which is None) != (position is None):
        raise ValueError(f"{NAME}: which and position go together: give both, or neither and length")
    if which is None and length < 1:
        raise ValueError(f"{NAME}: length is {length}, expected 1 or more if which is None")
    if not 0 <= draw < 2**32:
        raise ValueError(f"{NAME}: draw is {draw}, expected 0 to 2^32 - 1")
    if which is not None:
        check_vector(NAME, which, "which", torch.int64, None, device)
        check_vector(NAME, position, "position", torch.int64, len(which), device)
        if device.type == "cpu" and not torch.compiler.is_compiling():
            check_inside(NAME, which, len(seed), "which", "the rows of the batch")
    flat = (x if x is None else x.contiguous() for x in (seed, row, step, which, position))
    return OP(*flat, length, draw)


def _twin(
    seed: Tensor, row: Tensor, step: Tensor, which: Tensor | None, position: Tensor | None, length: int, draw: int
) -> Tensor:
    if which is None:
        position = torch.arange(length, device=seed.device)[None]
        return uniform(seed[:, None], row[:, None], position, step[:, None], draw)
    assert position is not None
    return uniform(seed[which], row[which], position, step[which], draw)


def _fake(
    seed: Tensor, row: Tensor, step: Tensor, which: Tensor | None, position: Tensor | None, length: int, draw: int
) -> Tensor:
    shape = (len(seed), length) if which is None else (len(which),)
    return seed.new_empty(shape, dtype=torch.float64)


OP = register(SCHEMA, _twin, _fake)
