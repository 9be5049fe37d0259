#include "uniform.cuh"

#include "uniform.h"

namespace samplers::cuda {

int uniforms(const UniformJob& job, void* stream) { return uniform_numbers::run(job, stream); }

}  // namespace samplers::cuda
