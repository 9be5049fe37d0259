#pragma once

#include "../combine.h"

namespace samplers::cpu {

template <typename F>
void combine(const CombineJob<F>& job);
extern template void combine(const CombineJob<float>& job);
extern template void combine(const CombineJob<double>& job);

}  // namespace samplers::cpu
