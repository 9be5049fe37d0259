"""What would make the host wait for a device, recorded on a CPU, on which every op is seen; and draws of torch's generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .promises import authors_line

__all__ = ["SyncRecorder", "draws_of_torch"]

F = TypeVar("F", bound=Callable[..., Any])

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "repeat_interleave"}
WAITS |= {"_unique2", "unique2", "unique_dim"}
METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.numpy: "numpy"}  # these are no ops on a CPU


class SyncRecorder(TorchDispatchMode):
    """`with SyncRecorder() as recorder:` records values that are read, and shapes that depend on values.

    It may be entered again, and then goes on recording.

    Attributes:
        syncs: the names of what would have been device syncs, in order.
        places: for each, the line of the sampler's code that made it; '' if there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self.places: list[str] = []
        self._ignored = 0
        self._methods = _Methods(self)

    def ignore(self, function: F) -> F:
        """`function`, whose own device syncs are not recorded."""

        def call(*args: Any, **kw: Any) -> Any:
            self._ignored += 1
            try:
                return function(*args, **kw)
            finally:
                self._ignored -= 1

        return call  # type: ignore[return-value]

    def record(self, name: str) -> None:
        if not self._ignored:
            self.syncs.append(name)
            self.places.append(authors_line())

    def __enter__(self) -> SyncRecorder:
        super().__enter__()
        self._methods.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._methods.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self.record(f"{name} by a mask")
        elif name in WAITS and (kwargs or {}).get("output_size") is None:
            self.record(name)
        return func(*args, **(kwargs or {}))


class _Draws(TorchDispatchMode):
    """Records the lines that use torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and (kwargs or {}).get("generator") is None:
            self.places.append(authors_line())
        return func(*args, **(kwargs or {}))


def draws_of_torch(run: Callable[[], object]) -> list[str]:
    """The lines of the author's code that draw from torch's global generator during `run()`."""
    with _Draws() as draws:
        run()
    return [place for place in dict.fromkeys(draws.places) if place]


class _Methods(TorchFunctionMode):
    """Tells a recorder of the methods that are no ops."""

    def __init__(self, recorder: SyncRecorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in METHODS:
            return func(*args, **(kwargs or {}))
        self.recorder.record(METHODS[func])
        return self.recorder.ignore(func)(*args, **(kwargs or {}))  # one sync, whatever it is made of
