// The cache operations: schemas, checks, and the plans of what goes where. Everything is checked before a byte moves;
// on a device everything but the numbers.
#include "../cpu/cached_kv.h"

#include <algorithm>
#include <vector>

#include "../cuda/cached_kv.h"
#include "args.h"
#include "cuda.h"

namespace samplers {
namespace {

using cpu::Cache;
using cpu::Plan;

struct Sizes {
  int64_t layers, batch, heads, length;
};

// The op that is called, and the device that all its tensors must be on: -1 for the CPU.
struct Op {
  const char* name;
  int device;
  Op(const char* n, const Tensor& key)
      : name(n), device(key.is_cpu() ? -1 : static_cast<int>(key.get_device_index())) {}
  bool here(const Tensor& t) const { return device < 0 ? t.is_cpu() : t.is_cuda() && t.get_device_index() == device; }
};

// One of the two tensors of a pair, (layers, B, H, L, D), or (B, H, L, D) for one layer.
cpu::Plane plane_of(const Op& op, const Tensor& t, const char* name, bool written, Sizes& sizes) {
  const int64_t dims = t.dim(), skip = dims - 4;
  STD_TORCH_CHECK(op.here(t) && (dims == 4 || dims == 5), op.name, ": ", name,
                  " must be a tensor (layers, B, H, L, D) or (B, H, L, D) on the device of the cache");
  const int64_t width = t.size(dims - 1), item = static_cast<int64_t>(t.element_size());
  STD_TORCH_CHECK(width <= 1 || t.stride(dims - 1) == 1, op.name, ": the last dimension of ", name,
                  " must be contiguous");
  if (written)
    for (int64_t d = 0; d < dims; ++d)
      STD_TORCH_CHECK(t.size(d) <= 1 || t.stride(d) != 0, op.name, ": ", name, " is expanded, it cannot be written");
  sizes = {skip ? t.size(0) : 1, t.size(skip), t.size(skip + 1), t.size(skip + 2)};
  void* data = written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
  return {static_cast<char*>(data),  skip ? t.stride(0) * item : 0, t.stride(skip) * item,
          t.stride(skip + 1) * item, t.stride(skip + 2) * item,     width * item};
}

Cache cache_of(const Op& op, const Tensor& key, const Tensor& value, const char* key_name, const char* value_name,
               bool written) {
  Cache c{};
  Sizes k, v;
  c.plane[0] = plane_of(op, key, key_name, written, k);
  c.plane[1] = plane_of(op, value, value_name, written, v);
  STD_TORCH_CHECK(key.scalar_type() == value.scalar_type() && k.layers == v.layers && k.batch == v.batch &&
                      k.heads == v.heads && k.length == v.length,
                  op.name, ": ", value_name, " must be like ", key_name, " in dtype and in all sizes but the last");
  c.layers = k.layers, c.batch = k.batch, c.heads = k.heads, c.length = k.length;
  return c;
}

Cache rows_of(const Op& op, const Tensor& key, const Tensor& value, const Cache& like, ScalarType type) {
  const Cache c = cache_of(op, key, value, "new_key", "new_value", false);
  STD_TORCH_CHECK(key.scalar_type() == type && c.layers == like.layers && c.batch == like.batch &&
                      c.heads == like.heads && c.plane[0].bytes == like.plane[0].bytes &&
                      c.plane[1].bytes == like.plane[1].bytes,
                  op.name, ": new_key and new_value must be like the cache in dtype and in all sizes but the rows");
  return c;
}

const int64_t* int64s(const Op& op, const Maybe& t, int64_t size, const char* name) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(
      op.here(*t) && t->dim() == 1 && t->size(0) == size && t->scalar_type() == ScalarType::Long && t->is_contiguous(),
      op.name, ": ", name, " must be a contiguous int64 tensor (", size, ",) on the device of the cache");
  return static_cast<const int64_t*>(t->const_data_ptr());
}

// A (B,) vector that is written.
int64_t* lengths_of(const Op& op, const Tensor& t, const Cache& c) {
  int64s(op, t, c.batch, "lengths");
  int64_t* data = static_cast<int64_t*>(t.mutable_data_ptr());
  for (int64_t b = 0; op.device < 0 && b < c.batch; ++b)
    STD_TORCH_CHECK(data[b] >= 0 && data[b] <= c.length, op.name, ": lengths[", b, "] = ", data[b], " is outside [0, ",
                    c.length, "]");
  return data;
}

// (n,) or (B, n) int64: data, entries per row, and the step from one row to the next.
struct Index {
  const int64_t* data;
  int64_t n, step;
  const int64_t* row(int64_t b) const { return data + b * step; }
};

Index index_of(const Op& op, const Tensor& t, int64_t batch, const char* name) {
  const int64_t dims = t.dim();
  STD_TORCH_CHECK(op.here(t) && (dims == 1 || dims == 2) && t.scalar_type() == ScalarType::Long && t.is_contiguous(),
                  op.name, ": ", name, " must be a contiguous int64 tensor (n,) or (B, n) on the device of the cache");
  STD_TORCH_CHECK(dims == 1 || batch < 0 || t.size(0) == batch, op.name, ": ", name, " has ", t.size(0),
                  " rows, expected ", batch);
  const int64_t n = t.size(dims - 1);
  return {static_cast<const int64_t*>(t.const_data_ptr()), n, dims == 2 ? n : 0};
}

// Row b's first count[b] of n new rows, at start[b] or, without start, at `at`.
Plan ranges(const Op& op, const Cache& c, int64_t n, const int64_t* start, int64_t at, const int64_t* count) {
  Plan plan(c.batch);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t rows = count ? count[b] : n, begin = start ? start[b] : at;
    STD_TORCH_CHECK(rows >= 0 && rows <= n, op.name, ": count[", b, "] = ", rows, " is outside [0, ", n, "]");
    STD_TORCH_CHECK(begin >= 0 && rows <= c.length - begin, op.name, ": batch row ", b, " would get ", rows,
                    " rows at ", begin, " of a cache of ", c.length);
    plan.add(begin, 0, rows, b);
    plan.end_row();
  }
  return plan;
}

#if defined(SAMPLERS_CUDA)
cuda::KvPair pair_of(const Cache& to, const Cache& from) {
  cuda::KvPair p{};
  const auto plane = [](const cpu::Plane& x) { return cuda::KvPlane{x.data, x.layer, x.batch, x.head, x.row}; };
  for (int kv = 0; kv < 2; ++kv) {
    p.to[kv] = plane(to.plane[kv]), p.from[kv] = plane(from.plane[kv]);
    p.bytes[kv] = to.plane[kv].bytes;
  }
  p.layers = to.layers, p.heads = to.heads, p.batch = to.batch, p.length = to.length;
  p.from_batch = from.batch, p.from_length = from.length;
  return p;
}
#endif

void kv_append_(const Tensor& key, const Tensor& value, const Tensor& new_key, const Tensor& new_value,
                const Tensor& lengths, const Maybe& count) {
  const Op op("kv_append_", key);
  const Cache c = cache_of(op, key, value, "key", "value", true);
  const Cache rows = rows_of(op, new_key, new_value, c, key.scalar_type());
  int64_t* at = lengths_of(op, lengths, c);
  const int64_t* some = int64s(op, count, c.batch, "count");
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    const OnDevice on(key);
    check_launch(op.name, cuda::kv_rows({pair_of(c, rows), cuda::KvMap::kRange, at, some}, on.stream));
    return check_launch(op.name, cuda::kv_advance({at, some, c.batch, rows.length, c.length}, on.stream));
  }
#endif
  cpu::move_rows(c, rows, ranges(op, c, rows.length, at, 0, some));
  for (int64_t b = 0; b < c.batch; ++b) at[b] += some ? some[b] : rows.length;
}

void kv_replace_(const Tensor& key, const Tensor& value, const Tensor& new_key, const Tensor& new_value,
                 const Maybe& start, int64_t at, const Maybe& count) {
  const Op op("kv_replace_", key);
  const Cache c = cache_of(op, key, value, "key", "value", true);
  const Cache rows = rows_of(op, new_key, new_value, c, key.scalar_type());
  const int64_t* begin = int64s(op, start, c.batch, "start");
  const int64_t* some = int64s(op, count, c.batch, "count");
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    const OnDevice on(key);
    return check_launch(
        op.name, cuda::kv_rows({pair_of(c, rows), cuda::KvMap::kRange, begin, some, nullptr, nullptr, at}, on.stream));
  }
#endif
  cpu::move_rows(c, rows, ranges(op, c, rows.length, begin, at, some));
}

void kv_scatter_(const Tensor& key, const Tensor& value, const Tensor& new_key, const Tensor& new_value,
                 const Tensor& index) {
  const Op op("kv_scatter_", key);
  const Cache c = cache_of(op, key, value, "key", "value", true);
  const Cache rows = rows_of(op, new_key, new_value, c, key.scalar_type());
  const Index to = index_of(op, index, c.batch, "index");
  STD_TORCH_CHECK(to.n == rows.length, op.name, ": index has ", to.n, " entries, new_key has ", rows.length, " rows");
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    const OnDevice on(key);
    return check_launch(op.name, cuda::kv_rows({pair_of(c, rows), cuda::KvMap::kScatter, nullptr, nullptr, to.data,
                                                nullptr, 0, to.step},
                                               on.stream));
  }
#endif
  Plan plan(c.batch);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t* place = to.row(b);
    for (int64_t i = 0; i < to.n; ++i) {
      STD_TORCH_CHECK(place[i] < c.length, op.name, ": index[", b, ", ", i, "] = ", place[i], " is not below ",
                      c.length);
      if (place[i] >= 0) plan.add(place[i], i, 1, b);
    }
    plan.end_row();
  }
  cpu::move_rows(c, rows, plan);
}

void kv_gather_(const Tensor& out_key, const Tensor& out_value, const Tensor& key, const Tensor& value,
                const Tensor& index, const Maybe& rows) {
  const Op op("kv_gather_", key);
  const Cache out = cache_of(op, out_key, out_value, "out_key", "out_value", true);
  const Cache c = cache_of(op, key, value, "key", "value", false);
  STD_TORCH_CHECK(out_key.scalar_type() == key.scalar_type() && out.layers == c.layers && out.heads == c.heads &&
                      out.plane[0].bytes == c.plane[0].bytes && out.plane[1].bytes == c.plane[1].bytes,
                  op.name, ": out must be like the cache in dtype, layers, heads and widths");
  const Index from = index_of(op, index, out.batch, "index");
  STD_TORCH_CHECK(from.n == out.length, op.name, ": index has ", from.n, " entries, out has ", out.length, " rows");
  Index of{nullptr, 0, 0};
  if (rows) {
    of = index_of(op, *rows, out.batch, "rows");
    STD_TORCH_CHECK(of.n == from.n, op.name, ": rows has ", of.n, " entries, index has ", from.n);
  } else {
    STD_TORCH_CHECK(out.batch == c.batch, op.name, ": out has ", out.batch, " batch rows, the cache has ", c.batch);
  }
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    const OnDevice on(key);
    return check_launch(op.name, cuda::kv_rows({pair_of(out, c), cuda::KvMap::kGather, nullptr, nullptr, from.data,
                                                of.data, 0, from.step, of.step},
                                               on.stream));
  }
#endif
  Plan plan(out.batch);
  for (int64_t b = 0; b < out.batch; ++b) {
    const int64_t *place = from.row(b), *batch = of.row(b);
    for (int64_t i = 0; i < from.n; ++i) {
      STD_TORCH_CHECK(place[i] < c.length, op.name, ": index[", b, ", ", i, "] = ", place[i], " is not below ",
                      c.length);
      const int64_t s = rows ? batch[i] : b;
      STD_TORCH_CHECK(s >= 0 && s < c.batch, op.name, ": rows[", b, ", ", i, "] = ", s, " is outside [0, ", c.batch,
                      ")");
      plan.add(i, std::max<int64_t>(place[i], -1), 1, s);
    }
    plan.end_row();
  }
  cpu::move_rows(out, c, plan);
}

void kv_compact_(const Tensor& key, const Tensor& value, const Tensor& keep, const Tensor& lengths) {
  const Op op("kv_compact_", key);
  const Cache c = cache_of(op, key, value, "key", "value", true);
  STD_TORCH_CHECK(op.here(keep) && keep.dim() == 2 && keep.scalar_type() == ScalarType::Bool && keep.is_contiguous() &&
                      keep.size(0) == c.batch && keep.size(1) == c.length,
                  op.name, ": keep must be a contiguous bool tensor (B, L) on the device of the cache");
  int64_t* length = lengths_of(op, lengths, c);
  const bool* kept = static_cast<const bool*>(keep.const_data_ptr());
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    const OnDevice on(key);
    return check_launch(op.name, cuda::kv_compact({pair_of(c, c), kept, length}, on.stream));
  }
#endif
  Plan plan(c.batch);
  std::vector<int64_t> now(c.batch, 0);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t i = 0; i < length[b]; ++i) {
      if (!kept[b * c.length + i]) continue;
      if (i != now[b]) plan.add(now[b], i, 1, b);  // rows move to the front only, so in order each is read in time
      ++now[b];
    }
    plan.end_row();
  }
  cpu::move_rows(c, c, plan);
  std::copy(now.begin(), now.end(), length);
}

void kv_select_rows_(const Tensor& key, const Tensor& value, const Tensor& source, const Maybe& lengths) {
  const Op op("kv_select_rows_", key);
  const Cache c = cache_of(op, key, value, "key", "value", true);
  const int64_t* from = int64s(op, source, c.batch, "source");
  int64_t* length = lengths ? lengths_of(op, *lengths, c) : nullptr;
#if defined(SAMPLERS_CUDA)
  if (op.device >= 0) {
    STD_TORCH_CHECK(c.batch <= cuda::kMostBatchRows, op.name, ": the cache has ", c.batch, " batch rows, at most ",
                    cuda::kMostBatchRows, " can be selected on CUDA");
    const OnDevice on(key);
    return check_launch(op.name, cuda::kv_select({pair_of(c, c), from, length}, on.stream));
  }
#endif
  check_ids(op.name, from, c.batch, c.batch, "source");
  cpu::select_batch(c, from, length);
  if (!length) return;
  const std::vector<int64_t> old(length, length + c.batch);
  for (int64_t b = 0; b < c.batch; ++b) length[b] = old[from[b]];
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "kv_append_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor(c!) lengths, "
      "Tensor? count) -> ()");
  m.def(
      "kv_replace_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor? start, int at, "
      "Tensor? count) -> ()");
  m.def("kv_scatter_(Tensor(a!) key, Tensor(b!) value, Tensor new_key, Tensor new_value, Tensor index) -> ()");
  m.def(
      "kv_gather_(Tensor(a!) out_key, Tensor(b!) out_value, Tensor key, Tensor value, Tensor index, Tensor? rows) -> "
      "()");
  m.def("kv_compact_(Tensor(a!) key, Tensor(b!) value, Tensor keep, Tensor(c!) lengths) -> ()");
  m.def("kv_select_rows_(Tensor(a!) key, Tensor(b!) value, Tensor source, Tensor(c!)? lengths) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) {
  m.impl("kv_append_", TORCH_BOX(&samplers::kv_append_));
  m.impl("kv_replace_", TORCH_BOX(&samplers::kv_replace_));
  m.impl("kv_scatter_", TORCH_BOX(&samplers::kv_scatter_));
  m.impl("kv_gather_", TORCH_BOX(&samplers::kv_gather_));
  m.impl("kv_compact_", TORCH_BOX(&samplers::kv_compact_));
  m.impl("kv_select_rows_", TORCH_BOX(&samplers::kv_select_rows_));
}

#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) {
  m.impl("kv_append_", TORCH_BOX(&samplers::kv_append_));
  m.impl("kv_replace_", TORCH_BOX(&samplers::kv_replace_));
  m.impl("kv_scatter_", TORCH_BOX(&samplers::kv_scatter_));
  m.impl("kv_gather_", TORCH_BOX(&samplers::kv_gather_));
  m.impl("kv_compact_", TORCH_BOX(&samplers::kv_compact_));
  m.impl("kv_select_rows_", TORCH_BOX(&samplers::kv_select_rows_));
}
#endif
