// The CUDA side of the cache operations; see cached_kv.cuh.
#pragma once

#include <stdint.h>

namespace samplers::cuda {

// Keys or values of all layers: strides in bytes.
struct KvPlane {
  char* data;
  int64_t layer, batch, head, row;
};

// Both caches of a call, which have the layers, heads and row widths in common.
struct KvPair {
  KvPlane to[2], from[2];
  int64_t bytes[2];  // of a row: of keys, of values
  int64_t layers, heads;
  int64_t batch, length;            // batch rows and rows a batch row, of the destination
  int64_t from_batch, from_length;  // of the source
};

// The numbers have not been checked: rows whose place is outside the cache are left out.
enum class KvMap : int {
  kRange,    // source row i goes to start[b] + i (start null: to `at` + i), for i < count[b] (count null: all)
  kScatter,  // source row i goes to index[b, i]; of equal indices the last wins
  kGather,   // row i comes from row index[b, i] of batch row rows[b, i] (rows null: b); outside: zeros
};

struct KvRows {
  KvPair pair;
  KvMap map;
  const int64_t *start, *count, *index, *rows;
  int64_t at, index_step, rows_step;  // a step is from one batch row to the next, 0 where all share
};
int kv_rows(const KvRows& call, void* stream);

// lengths[b] += count[b], or n; not past `length`.
struct KvAdvance {
  int64_t* lengths;
  const int64_t* count;
  int64_t batch, n, length;
};
int kv_advance(const KvAdvance& call, void* stream);

// In place: `from` is `to`.
struct KvCompact {
  KvPair pair;
  const bool* keep;  // (B, L)
  int64_t* lengths;
};
int kv_compact(const KvCompact& call, void* stream);

// A block holds a piece of all batch rows in shared memory, so there is a limit to them.
constexpr int64_t kMostBatchRows = 2048;

struct KvSelect {
  KvPair pair;
  const int64_t* source;
  int64_t* lengths;  // null: all rows
};
int kv_select(const KvSelect& call, void* stream);

}  // namespace samplers::cuda
