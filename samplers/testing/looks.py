"""What would make the host wait for a device, noted on a CPU, where every op is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Looks"]

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "repeat_interleave"}
WAITS |= {"_unique2", "unique2", "unique_dim"}
METHODS = ("tolist", "numpy")  # no ops, on a CPU


class Looks(TorchDispatchMode):
    """`with Looks(monkeypatch) as looks:` notes values that are read, and shapes that hang on values, in `looks.found`.

    `unseen` wraps a function whose looks are its own affair.
    """

    def __init__(self, monkeypatch: Any):
        super().__init__()
        self.found: list[str] = []
        self._on, self._off = False, 0
        for name in METHODS:
            monkeypatch.setattr(torch.Tensor, name, self._noted(name, getattr(torch.Tensor, name)))

    def unseen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            self._off += 1
            try:
                return function(*args, **kw)
            finally:
                self._off -= 1

        return call

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            self._note(name)
            return self.unseen(method)(*args, **kw)  # one look, whatever it is made of

        return call

    def _note(self, name: str) -> None:
        if self._on and not self._off:
            self.found.append(name)

    def __enter__(self) -> Looks:
        self._on = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._on = False
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self._note(f"{name} by a mask")
        elif name in WAITS and (kwargs or {}).get("output_size") is None:
            self._note(name)
        return func(*args, **(kwargs or {}))
