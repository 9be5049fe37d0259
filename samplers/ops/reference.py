"""The ops' specifications: for each op its twin, the torch reference implementation.

A twin has the name of its op in `torch.ops.sampler_zoo` and takes that op's arguments in the schema's order: `SCHEMAS` has
all schemas, and the `...Call` tuples name the arguments. It runs on any device and returns what the op returns; the
native kernels are tested against it, bit for bit. The functions of `samplers.ops` are what to call otherwise: they have
defaults and named arguments, and they run the kernels.

    call = reference.SoftmaxCall(logits=logits, index=None, ...)
    token, *floats, status = reference.masked_softmax(*call)
"""

from samplers.ops._register import SCHEMAS
from samplers.ops.cached_attention import _twin as cached_attention
from samplers.ops.cached_kv import (
    AppendCall,
    CompactCall,
    GatherCall,
    ReplaceCall,
    ScatterCall,
    SelectRowsCall,
)
from samplers.ops.cached_kv import _twin_append as kv_append_
from samplers.ops.cached_kv import _twin_compact as kv_compact_
from samplers.ops.cached_kv import _twin_gather as kv_gather_
from samplers.ops.cached_kv import _twin_replace as kv_replace_
from samplers.ops.cached_kv import _twin_scatter as kv_scatter_
from samplers.ops.cached_kv import _twin_select_rows as kv_select_rows_
from samplers.ops.combine import _twin as combine
from samplers.ops.headless import HeadlessCall
from samplers.ops.headless import _twin_finish as headless_finish
from samplers.ops.headless import _twin_fold as headless_fold_
from samplers.ops.masked_softmax import SoftmaxCall
from samplers.ops.masked_softmax import _twin as masked_softmax
from samplers.ops.normals import _twin as row_normals
from samplers.ops.remask import AcceptSlotsCall, SelectCall, SelectSlotsCall, select_call
from samplers.ops.remask import _twin_accept_slots as accept_slots_
from samplers.ops.remask import _twin_commit as commit_
from samplers.ops.remask import _twin_select as select
from samplers.ops.remask import _twin_select_slots as select_slots
from samplers.ops.uniform import _twin as row_uniforms

__all__ = [
    "SCHEMAS",
    "AcceptSlotsCall",
    "AppendCall",
    "CompactCall",
    "GatherCall",
    "HeadlessCall",
    "ReplaceCall",
    "ScatterCall",
    "SelectCall",
    "SelectRowsCall",
    "SelectSlotsCall",
    "SoftmaxCall",
    "accept_slots_",
    "cached_attention",
    "combine",
    "commit_",
    "headless_finish",
    "headless_fold_",
    "kv_append_",
    "kv_compact_",
    "kv_gather_",
    "kv_replace_",
    "kv_scatter_",
    "kv_select_rows_",
    "masked_softmax",
    "row_normals",
    "row_uniforms",
    "select",
    "select_call",
    "select_slots",
]
