// The CUDA bodies of the cache operations; tests/ops/test_cuda_cached_kv.py. Two planes are eight numbers and so on:
// address and strides of keys, then of values.
#include "cached_kv.cuh"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

namespace cuda = samplers::cuda;
namespace {

using Numbers = std::vector<int64_t>;

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// sizes: bytes of a row of keys and of values, layers, heads, batch, length, the source's batch and length.
cuda::KvPair pair(const Numbers& to, const Numbers& from, const Numbers& sizes) {
  cuda::KvPair p{};
  for (int kv = 0; kv < 2; ++kv) {
    const int64_t *t = to.data() + 5 * kv, *f = from.data() + 5 * kv;
    p.to[kv] = {at<char>(t[0]), t[1], t[2], t[3], t[4]};
    p.from[kv] = {at<char>(f[0]), f[1], f[2], f[3], f[4]};
    p.bytes[kv] = sizes[kv];
  }
  p.layers = sizes[2], p.heads = sizes[3], p.batch = sizes[4], p.length = sizes[5];
  p.from_batch = sizes[6], p.from_length = sizes[7];
  return p;
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("word_bytes", [](const Numbers& to, const Numbers& from, const Numbers& sizes) {
    return cuda::kv::word_bytes(pair(to, from, sizes));
  });
  m.def("rows", [](const Numbers& to, const Numbers& from, const Numbers& sizes, int map, int64_t start, int64_t count,
                   int64_t index, int64_t rows, int64_t where, int64_t index_step, int64_t rows_step) {
    return cuda::kv::run_rows(
        {pair(to, from, sizes), static_cast<cuda::KvMap>(map), at<const int64_t>(start), at<const int64_t>(count),
         at<const int64_t>(index), at<const int64_t>(rows), where, index_step, rows_step},
        nullptr);
  });
  m.def("advance", [](int64_t lengths, int64_t count, int64_t batch, int64_t n, int64_t length) {
    return cuda::kv::run_advance({at<int64_t>(lengths), at<const int64_t>(count), batch, n, length}, nullptr);
  });
  m.def("compact", [](const Numbers& to, const Numbers& sizes, int64_t keep, int64_t lengths) {
    return cuda::kv::run_compact({pair(to, to, sizes), at<const bool>(keep), at<int64_t>(lengths)}, nullptr);
  });
  m.def("select", [](const Numbers& to, const Numbers& sizes, int64_t source, int64_t lengths) {
    return cuda::kv::run_select({pair(to, to, sizes), at<const int64_t>(source), at<int64_t>(lengths)}, nullptr);
  });
}
