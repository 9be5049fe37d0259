"""Checks of arguments that several ops make, in the words that their users read."""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_rows(op, x, name):
    """(R, V) floats with a contiguous last dimension."""
    where = f"{op}: {name}"
    if x.dim() != 2:
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected two dimensions (R, V)")
    if x.dtype not in DTYPES:
        raise TypeError(f"{where} is {x.dtype}, expected float32, bfloat16 or float16")
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise ValueError(f"{where} has strides {tuple(x.stride())}, expected a contiguous last dimension (stride 1)")


def check_vector(op, x, name, dtype, size, device):
    """One dimension, of this dtype, length (None: any) and device; None passes."""
    if x is None:
        return
    where = f"{op}: {name}"
    if x.dim() != 1 or (size is not None and x.shape[0] != size):
        raise ValueError(f"{where} has shape {tuple(x.shape)}, expected ({'any length' if size is None else size},)")
    if x.dtype != dtype:
        raise TypeError(f"{where} is {x.dtype}, expected {dtype}")
    if x.device != device:
        raise ValueError(f"{where} is on {x.device}, expected {device} like the rest")


def check_inside(op, ids, bound, name, of):
    """Every id in [0, bound). Looks at the data, so for CPU tensors only."""
    bad = None if ids is None else ((ids < 0) | (ids >= bound)).nonzero()
    if bad is not None and len(bad):
        i = int(bad[0])
        raise IndexError(f"{op}: {name}[{i}] is {int(ids[i])}, expected 0 to {bound - 1} ({of})")


def check_plane(op, t, name, dtypes, shape=None, device=None, optional=False):
    """(B, L), of one of these dtypes, of this shape and device (None: any); None passes if it is optional."""
    if t is None and optional:
        return
    where = f"{op}: {name}"
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{where} is {t!r}, expected a tensor")
    if t.dim() != 2 or (shape is not None and tuple(t.shape) != shape):
        raise ValueError(f"{where} has shape {tuple(t.shape)}, expected {'(B, L)' if shape is None else shape}")
    if t.dtype not in dtypes:
        raise TypeError(f"{where} is {t.dtype}, expected {' or '.join(map(str, dtypes))}")
    if device is not None and t.device != device:
        raise ValueError(f"{where} is on {t.device}, expected {device} like the rest")


def check_written(op, x):
    """Not an expanded tensor, whose rows or columns are one memory; None passes."""
    if x is not None and x.numel() > 0 and any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride())):
        raise ValueError(f"{op}: x is written in place and must not be an expanded tensor")
