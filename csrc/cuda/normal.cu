#include "normal.cuh"

#include "normal.h"

namespace samplers::cuda {

int normals(const NormalJob<float>& job, void* stream) { return normal_numbers::run(job, stream); }
int normals(const NormalJob<double>& job, void* stream) { return normal_numbers::run(job, stream); }

}  // namespace samplers::cuda
