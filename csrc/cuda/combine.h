// The CUDA side of combine; see combine.cuh.
#pragma once

#include "../combine.h"

namespace samplers::cuda {

// → the runtime's error code, 0 for none. Pointers are of the device.
int combine(const CombineJob<float>& job, void* stream);
int combine(const CombineJob<double>& job, void* stream);

}  // namespace samplers::cuda
