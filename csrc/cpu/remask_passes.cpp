#include "remask_passes.h"

#include "masked_softmax.h"

namespace samplers::cpu {

#define SAMPLERS_PASS "remask_pass.h"
#include "each_isa.h"

template <typename F>
const Passes<F>& passes() {
  return SAMPLERS_OF_ISA(kPasses<F>);
}

template const Passes<float>& passes();
template const Passes<double>& passes();

}  // namespace samplers::cpu
