// The CPU kernels of select, commit_, select_slots and accept_slots_, free of torch.
#pragma once

#include "../remask_rules.h"

namespace samplers::cpu {

template <typename F>
void choose(const Choice<F>& job);
extern template void choose(const Choice<float>&);
extern template void choose(const Choice<double>&);

template <typename F>
void accept(const Acceptance<F>& job);
extern template void accept(const Acceptance<float>&);
extern template void accept(const Acceptance<double>&);

}  // namespace samplers::cpu
