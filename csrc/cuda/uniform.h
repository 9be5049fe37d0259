// The CUDA side of row_uniforms; see uniform.cuh.
#pragma once

#include "../uniform.h"

namespace samplers::cuda {

// → the runtime's error code, 0 for none. Pointers are of the device.
int uniforms(const UniformJob& job, void* stream);

}  // namespace samplers::cuda
