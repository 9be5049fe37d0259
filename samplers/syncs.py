"""Device syncs: whether the host may read a value at once, or should wait until it reads something anyway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["dry_runs_pay", "pretend_device", "reading_is_free"]

_pretended = False
_dry_runs = True


def reading_is_free(device: torch.device) -> bool:
    """True on a CPU. On any other device reading a value waits until the device has caught up: a device sync."""
    return device.type == "cpu" and not _pretended


def dry_runs_pay(device: torch.device) -> bool:
    """Whether it is worth working out counts in a dry run in order not to read them."""
    return _dry_runs and not reading_is_free(device)


@contextlib.contextmanager
def pretend_device(*, dry_runs: bool = True) -> Iterator[None]:
    """Runs that are started inside take the paths of a device on the CPU: late checks and, if wanted, dry runs. For tests."""
    global _pretended, _dry_runs
    before = _pretended, _dry_runs
    _pretended, _dry_runs = True, dry_runs
    try:
        yield
    finally:
        _pretended, _dry_runs = before
