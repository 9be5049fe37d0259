"""The conformance kit: what every sampler must keep, as tests that are generated from the registry.

    pytest --pyargs samplers.testing --sampler my_sampler     # one sampler, by the name that it is registered under
    pytest --pyargs samplers.testing                          # all that are installed

A sampler is held to: its signature, options and facts; shapes and dtypes; prompts that stay and no mask left, with ragged
prompts, infilling, blocks, guidance and stop rules; row i of a batch is the row alone; one seed, one result; interleaved
runs agree; the global generator is not touched; no random number of a step is used twice; the NFE is the declared one;
the model's own distribution on a tiny problem, or the declared order of convergence. A check that fails says what was
promised, what was seen, what usually causes it, and how to run that check alone. The kit itself is tested with samplers
that have one mistake each: `python tests/testing/planted.py`, in the repository, prints them all with the kit's messages.

For tests of your own there are:

    fits            whether counts are draws of a distribution: the p-value of a chi-square test
    watched         a copy of a sampler whose steps you see
    Watched         what a sampler gets as `predict`, handed on with a record of every call
    RecordedRng     the randomness of a run, with a record of every use of it
    SyncRecorder    the device syncs that code would make, recorded on a CPU
    pretend_device  a context in which runs take the paths of a device on the CPU
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..syncs import pretend_device
    from .fit import fits
    from .sync_recorder import SyncRecorder
    from .watching import RecordedRng, Watched, watched

_WHERE = {
    "RecordedRng": "samplers.testing.watching",
    "SyncRecorder": "samplers.testing.sync_recorder",
    "Watched": "samplers.testing.watching",
    "fits": "samplers.testing.fit",
    "pretend_device": "samplers.syncs",
    "watched": "samplers.testing.watching",
}

__all__ = ["RecordedRng", "SyncRecorder", "Watched", "fits", "pretend_device", "watched"]


def __getattr__(name: str) -> object:
    """Names load when they are used: the plug-in of pytest is in this package, and must not wait for torch."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'samplers.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
