"""What tests of the native ops share."""

import pytest

from samplers.ops import _native

C = _native.C
needs_native = pytest.mark.skipif(C is None, reason=f"no native extension: {_native.REASON}")


def isas():
    """The instruction sets of this machine, each chosen in turn, the first choice again at the end; on the twins, once."""
    if C is None:
        yield "twin"
        return
    before = C.isa()
    try:
        for name in _native.ISAS:
            try:
                C._choose_isa(name)
            except ValueError:
                continue
            yield name
    finally:
        C._choose_isa(before)
