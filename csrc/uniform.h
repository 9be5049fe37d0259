// Uniform numbers of a run: which of them are wanted, and for the CUDA kernel the i-th.
#pragma once

#include <stdint.h>

#include "philox.h"

namespace samplers {

struct UniformJob {
  const int64_t* seed;      // (B,)
  const int64_t* row;       // (B,) the row's number under its seed
  const int64_t* step;      // (B,)
  const int64_t* which;     // (n,) the batch row of each number; nullptr: (B, length) of them, n = B * length
  const int64_t* position;  // (n,), with `which`
  int64_t rows;             // B
  int64_t length;
  int64_t n;
  uint32_t draw;
  double* out;  // (n,)
};

// A row outside the batch has no number: NaN, which every op that takes uniforms refuses.
SAMPLERS_HD double uniform_at(const UniformJob& job, int64_t i) {
  const int64_t b = job.which ? job.which[i] : i / job.length;
  const int64_t position = job.which ? job.position[i] : i - b * job.length;
  if (b < 0 || b >= job.rows) return __builtin_nan("");
  return uniform(static_cast<uint64_t>(job.seed[b]), static_cast<uint64_t>(job.row[b]), static_cast<uint32_t>(position),
                 static_cast<uint32_t>(job.step[b]), job.draw);
}

}  // namespace samplers
