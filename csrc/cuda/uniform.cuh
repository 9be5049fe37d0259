// row_uniforms: one thread per number.
#pragma once

#include "../uniform.h"
#include "block.h"

namespace samplers::cuda::uniform_numbers {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) fill(UniformJob job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < job.n) job.out[i] = uniform_at(job, i);
}

inline int run(const UniformJob& job, void* stream) {
  if (job.n == 0) return 0;
  return launch(&fill, dim3(static_cast<unsigned>((job.n + kThreads - 1) / kThreads)), kThreads, stream, job);
}

}  // namespace samplers::cuda::uniform_numbers
