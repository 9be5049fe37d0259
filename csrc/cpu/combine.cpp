#include "combine.h"

#include <torch/csrc/stable/ops.h>

#include "masked_softmax.h"

namespace samplers::cpu {

namespace portable {
#include "combine_pass.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "combine_pass.h"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include "combine_pass.h"
}
#pragma GCC pop_options

template <typename F>
static auto chunk() {
  const Kernels* chosen = &kernels();
  return chosen == &kAvx512 ? avx512::combine_chunk<F>
         : chosen == &kAvx2 ? avx2::combine_chunk<F>
                            : portable::combine_chunk<F>;
}

#else

template <typename F>
static auto chunk() {
  return portable::combine_chunk<F>;
}

#endif

template <typename F>
void combine(const CombineJob<F>& job) {
  constexpr int64_t kGrain = 1 << 15;
  const auto run = chunk<F>();
  if (job.n < 2 * kGrain) return run(job, 0, job.n);
  torch::stable::parallel_for(0, job.n, kGrain, [&](int64_t begin, int64_t end) { run(job, begin, end); });
}

template void combine(const CombineJob<float>& job);
template void combine(const CombineJob<double>& job);

}  // namespace samplers::cpu
