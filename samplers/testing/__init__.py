"""The conformance kit: what every sampler must keep, as checks that are found by the sampler's family.

    samplers check my_sampler                                  # by the name that it is registered under
    samplers check my_sampler --report runs                    # and a page, with its plot beside its nearest relatives
    pytest --pyargs samplers.testing --samplers my_sampler     # the same checks under pytest
    run_checks("my_sampler")                                   # the same in a test of your own

A sampler is held to: its signature, options and facts; shapes and dtypes; prompts that stay and no mask left, with ragged
prompts, infilling, blocks, guidance and stop rules; row i of a batch is the row alone; one seed, one result; interleaved
runs agree; the global generator is not touched; no random number of a step is used twice; the NFE is the declared one;
the model's own distribution on a tiny problem, or the declared order of convergence. A check that fails says what was
promised, what was seen, on which input, where, what usually causes it, and how to run that check alone. The kit itself is tested
with samplers that have one mistake each: `python tests/testing/planted.py`, in the repository, prints them all with the kit's
messages.

    run_checks      runs the checks of a sampler; BrokenPromises lists those that fail
    check           makes a function a check, for the modules of a family (Family.checks)

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
    from .kit import BrokenPromises, check, run_checks
    from .promises import BrokenPromise, NotApplicable, Promise
    from .sync_recorder import SyncRecorder
    from .watching import RecordedRng, Watched, watched

_WHERE = {
    "BrokenPromise": "samplers.testing.promises",
    "BrokenPromises": "samplers.testing.kit",
    "NotApplicable": "samplers.testing.promises",
    "Promise": "samplers.testing.promises",
    "RecordedRng": "samplers.testing.watching",
    "SyncRecorder": "samplers.testing.sync_recorder",
    "Watched": "samplers.testing.watching",
    "check": "samplers.testing.kit",
    "fits": "samplers.testing.fit",
    "pretend_device": "samplers.syncs",
    "run_checks": "samplers.testing.kit",
    "watched": "samplers.testing.watching",
}

__all__ = [
    "BrokenPromise",
    "BrokenPromises",
    "NotApplicable",
    "Promise",
    "RecordedRng",
    "SyncRecorder",
    "Watched",
    "check",
    "fits",
    "pretend_device",
    "run_checks",
    "watched",
]


def __getattr__(name: str) -> object:
    """Names load when they are used: the plug-in of pytest is in this package, and must not wait for torch."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'samplers.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
