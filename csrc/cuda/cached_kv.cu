#include "cached_kv.cuh"

namespace samplers::cuda {

int kv_rows(const KvRows& call, void* stream) { return kv::run_rows(call, stream); }
int kv_advance(const KvAdvance& call, void* stream) { return kv::run_advance(call, stream); }
int kv_compact(const KvCompact& call, void* stream) { return kv::run_compact(call, stream); }
int kv_select(const KvSelect& call, void* stream) { return kv::run_select(call, stream); }

}  // namespace samplers::cuda
