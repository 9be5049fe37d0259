"""What would make the host wait for a device, recorded on a CPU, on which every op is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SyncRecorder"]

F = TypeVar("F", bound=Callable[..., Any])

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "repeat_interleave"}
WAITS |= {"_unique2", "unique2", "unique_dim"}
METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.numpy: "numpy"}  # these are no ops on a CPU


class SyncRecorder(TorchDispatchMode):
    """`with SyncRecorder() as recorder:` records values that are read, and shapes that depend on values.

    It may be entered again, and then goes on recording.

    Attributes:
        syncs: the names of what would have been device syncs, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
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
