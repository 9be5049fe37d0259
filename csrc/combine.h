// A linear combination of up to five tensors in one pass: shared by the CPU loop and the CUDA kernel.
#pragma once

#include <stdint.h>

#include "hd.h"

namespace samplers {

constexpr int kMostTerms = 5;

template <typename F>
struct CombineJob {
  const F* in[kMostTerms];
  F c[kMostTerms];
  int terms;
  int64_t n;
  F* out;
};

// ((c0 a0 + c1 a1) + c2 a2) + ..., each product and each sum rounded: the bits of the same operations in torch.
template <typename F, int kTerms>
SAMPLERS_HD F combine_at(const CombineJob<F>& job, int64_t i) {
  F sum = job.c[0] * job.in[0][i];
  for (int k = 1; k < kTerms; ++k) sum = sum + job.c[k] * job.in[k][i];
  return sum;
}

}  // namespace samplers
