#include "remask_passes.h"

#include "masked_softmax.h"

namespace samplers::cpu {

namespace portable {
#include "remask_pass.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "remask_pass.h"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include "remask_pass.h"
}
#pragma GCC pop_options

template <typename F>
const Passes<F>& passes() {
  const Kernels* chosen = &kernels();
  return chosen == &kAvx512 ? avx512::kPasses<F> : chosen == &kAvx2 ? avx2::kPasses<F> : portable::kPasses<F>;
}

#else

template <typename F>
const Passes<F>& passes() {
  return portable::kPasses<F>;
}

#endif

template const Passes<float>& passes();
template const Passes<double>& passes();

}  // namespace samplers::cpu
