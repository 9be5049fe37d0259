"""The kernels' Python face: one function per op.

Each op has a twin, a torch reference implementation that is its specification (`samplers.ops.reference`). Which of the
two runs is decided once, at import: the native extension if it was built and `SAMPLERS_NATIVE` is not `0`, else the twin.
`SAMPLERS_ISA=avx512|avx2|portable` restricts the native CPU kernels to one instruction set. Results are the same either
way; `status()` says what is in use.
"""

from samplers.ops import reference
from samplers.ops._native import status
from samplers.ops.cached_attention import cached_attention
from samplers.ops.cached_kv import (
    kv_append_,
    kv_compact_,
    kv_gather,
    kv_replace_,
    kv_row_bytes,
    kv_scatter_,
    kv_select_rows_,
)
from samplers.ops.combine import combine
from samplers.ops.divergence import kl_divergence
from samplers.ops.headless import headless_softmax
from samplers.ops.masked_softmax import MaskedSoftmax, masked_softmax
from samplers.ops.normals import row_normals
from samplers.ops.remask import Accepted, Selection, accept_slots_, commit_, remask_, select, select_slots
from samplers.ops.uniform import row_uniforms

__all__ = [
    "Accepted",
    "MaskedSoftmax",
    "Selection",
    "accept_slots_",
    "cached_attention",
    "combine",
    "commit_",
    "headless_softmax",
    "kl_divergence",
    "kv_append_",
    "kv_compact_",
    "kv_gather",
    "kv_replace_",
    "kv_row_bytes",
    "kv_scatter_",
    "kv_select_rows_",
    "masked_softmax",
    "reference",
    "remask_",
    "row_normals",
    "row_uniforms",
    "select",
    "select_slots",
    "status",
]
