// The CUDA side of select, commit_ and the slot ops; see remask.cuh.
#pragma once

#include "../remask_rules.h"

namespace samplers::cuda {

// → the runtime's error code, 0 for none. Pointers are of the device.
int choose(const Choice<float>& job, void* stream);
int choose(const Choice<double>& job, void* stream);
int accept(const Acceptance<float>& job, void* stream);
int accept(const Acceptance<double>& job, void* stream);

}  // namespace samplers::cuda
