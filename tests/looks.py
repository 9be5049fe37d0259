"""Counting what would make the host wait for a device, on a CPU, where every op is seen."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Looks(TorchDispatchMode):
    """Counts numbers read, and shapes that depend on data. `unseen` wraps a method whose looks are its own affair."""

    WAITS = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "is_nonzero",
        "unique2",
        "_unique2",
        "repeat_interleave",
    }

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, self.off = 0, False
        before = torch.Tensor.tolist

        def tolist(tensor):  # no op, on a CPU
            self.count += not self.off
            return before(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def unseen(self, method):
        def call(*args, **kw):
            self.off = True
            try:
                return method(*args, **kw)
            finally:
                self.off = False

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        self.count += (name in self.WAITS or by_mask) and not self.off
        return func(*args, **(kwargs or {}))
