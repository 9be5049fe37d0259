// combine: one thread per element.
#pragma once

#include "../combine.h"
#include "block.h"

namespace samplers::cuda::combination {

constexpr int kThreads = 256;

template <typename F, int kTerms>
__global__ void __launch_bounds__(kThreads) sum_terms(CombineJob<F> job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < job.n) job.out[i] = combine_at<F, kTerms>(job, i);
}

template <typename F>
int run(const CombineJob<F>& job, void* stream) {
  if (job.n == 0) return 0;
  const dim3 grid(static_cast<unsigned>((job.n + kThreads - 1) / kThreads));
  switch (job.terms) {
    case 1:
      return launch(&sum_terms<F, 1>, grid, kThreads, stream, job);
    case 2:
      return launch(&sum_terms<F, 2>, grid, kThreads, stream, job);
    case 3:
      return launch(&sum_terms<F, 3>, grid, kThreads, stream, job);
    case 4:
      return launch(&sum_terms<F, 4>, grid, kThreads, stream, job);
    default:
      return launch(&sum_terms<F, 5>, grid, kThreads, stream, job);
  }
}

}  // namespace samplers::cuda::combination
