// Moving rows of key and value caches, free of torch: raw pointers, strides in bytes, rows of any width.
#pragma once

#include <cstdint>
#include <vector>

namespace samplers::cpu {

// Keys or values of all layers, (layers, B, H, L, D) with D contiguous and any other strides.
struct Plane {
  char* data;
  int64_t layer, batch, head, row;  // strides, in bytes
  int64_t bytes;                    // of one row of one head
  char* at(int64_t l, int64_t b, int64_t h) const { return data + l * layer + b * batch + h * head; }
};

struct Cache {
  Plane plane[2];  // keys, values
  int64_t layers, batch, heads, length;
};

// Rows from, from + 1, ... of batch row `batch` of the source go to rows to, to + 1, ... of the destination.
struct Run {
  int64_t to, from, rows, batch;  // from < 0: zeros
};

// What each batch row of the destination gets, the same for every layer and head. Runs are carried out in order, and
// the rows of a run from the first, so of two that write the same row the later one is seen.
struct Plan {
  explicit Plan(int64_t batch) : first(1, 0) { first.reserve(batch + 1); }
  void add(int64_t to, int64_t from, int64_t rows, int64_t batch);  // joined to the run before where it continues it
  void end_row() { first.push_back(static_cast<int64_t>(runs.size())); }

  std::vector<Run> runs;
  std::vector<int64_t> first;  // batch row b's runs are first[b] to first[b + 1] - 1
  int64_t rows = 0;            // in all
};

void move_rows(const Cache& to, const Cache& from, const Plan& plan);

// Batch row b becomes what row source[b] was, for any source in [0, B): repeats, swaps and longer cycles. Of row s the
// first lengths[s] rows are copied (null: all); other rows of the destination stay.
void select_batch(const Cache& cache, const int64_t* source, const int64_t* lengths);

}  // namespace samplers::cpu
