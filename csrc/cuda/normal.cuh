// row_normals: one thread per block of Philox, which is four float32 or two float64.
#pragma once

#include "../normal.h"
#include "block.h"

namespace samplers::cuda::normal_numbers {

constexpr int kThreads = 256;

template <typename F>
__global__ void __launch_bounds__(kThreads) fill_normals(NormalJob<F> job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, per_row = job.blocks();
  if (i >= job.rows * per_row) return;
  const int64_t b = i / per_row, first = (i - b * per_row) * kPerBlock<F>;
  F made[kPerBlock<F>];
  normals_of(philox_of(static_cast<uint64_t>(job.seed[b]), static_cast<uint64_t>(job.row[b]),
                       static_cast<uint32_t>(first / kPerBlock<F>), static_cast<uint32_t>(job.step[b]), job.draw),
             made);
  for (int k = 0; k < kPerBlock<F>; ++k)
    if (first + k < job.length) job.out[b * job.length + first + k] = made[k];
}

template <typename F>
int run(const NormalJob<F>& job, void* stream) {
  const int64_t n = job.rows * job.blocks();
  if (n == 0) return 0;
  return launch(&fill_normals<F>, dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)), kThreads, stream, job);
}

}  // namespace samplers::cuda::normal_numbers
