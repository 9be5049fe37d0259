"""The kernels' Python face: one function an op, each with a torch twin that is its specification.

Which of the two runs is decided once, at import: the native extension when it was built and `SAMPLERS_NATIVE` is not
`0`, else the twin. `SAMPLERS_ISA=avx512|avx2|portable` holds the native CPU kernels to one instruction set. Results are
the same either way; `status()` says what is in use.
"""

from samplers.ops._native import status
from samplers.ops.headless import headless_softmax
from samplers.ops.masked_softmax import MaskedSoftmax, masked_softmax

__all__ = ["MaskedSoftmax", "headless_softmax", "masked_softmax", "status"]
