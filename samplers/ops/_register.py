"""How an op becomes known to torch: its schema, its kernels and its fake kernel, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from samplers.ops import _native

Function = Callable[..., Any]

SCHEMAS: dict[str, str] = {}  # by the op's name

_library = torch.library.Library("sampler_zoo", "FRAGMENT")


def register(
    schema: str, twin: Function | None, fake: Function, *, kernels: Mapping[str, Function] | None = None
) -> torch._ops.OpOverload:
    """Registers one op of the library `sampler_zoo`.

    The native extension defines its ops and their kernels itself. So the schema is defined here only if there is no
    extension, and the twin (the torch reference implementation) runs on each device that has no native kernel. The
    first call of a twin on the CPU warns.

    Args:
        schema: the op's signature, as in `torch.library.Library.define`. The extension must have the same.
        twin: the torch reference implementation: the op's arguments in the schema's order.
        fake: the same arguments → empty outputs of the right shapes, for `torch.compile`.
        kernels: by torch's dispatch key, for an op that is torch's own operations on every device, so that the
            extension does not have it. `twin` is then not used.

    Returns:
        The op, ready to be called.
    """
    name = schema.partition("(")[0]
    SCHEMAS[name] = schema
    if kernels is not None:
        _library.define(schema)
        for key, kernel in kernels.items():
            _library.impl(name, kernel, key)
    else:
        if _native.C is None:
            _library.define(schema)
            _library.impl(name, _warning(twin), "CPU")
        if not (_native.C and _native.C.build_facts()["cuda"]):
            _library.impl(name, twin, "CUDA")
    torch.library.register_fake(f"sampler_zoo::{name}", fake, lib=_library)
    return getattr(torch.ops.sampler_zoo, name).default


def _warning(twin: Function | None) -> Function:
    """The twin, which says once that it runs in place of a native kernel."""
    assert twin is not None

    def run(*args: Any) -> Any:
        _native.warn_once()
        return twin(*args)

    return run
