#include "combine.h"

#include <torch/csrc/stable/ops.h>

#include "masked_softmax.h"

namespace samplers::cpu {

#define SAMPLERS_PASS "combine_pass.h"
#include "each_isa.h"

template <typename F>
void combine(const CombineJob<F>& job) {
  constexpr int64_t kGrain = 1 << 15;
  const auto run = SAMPLERS_OF_ISA(combine_chunk<F>);
  if (job.n < 2 * kGrain) return run(job, 0, job.n);
  torch::stable::parallel_for(0, job.n, kGrain, [&](int64_t begin, int64_t end) { run(job, begin, end); });
}

template void combine(const CombineJob<float>& job);
template void combine(const CombineJob<double>& job);

}  // namespace samplers::cpu
