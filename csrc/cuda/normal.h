// The CUDA side of row_normals; see normal.cuh.
#pragma once

#include "../normal.h"

namespace samplers::cuda {

// → the runtime's error code, 0 for none. Pointers are of the device.
int normals(const NormalJob<float>& job, void* stream);
int normals(const NormalJob<double>& job, void* stream);

}  // namespace samplers::cuda
