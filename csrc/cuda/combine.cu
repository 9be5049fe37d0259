#include "combine.cuh"

#include "combine.h"

namespace samplers::cuda {

int combine(const CombineJob<float>& job, void* stream) { return combination::run(job, stream); }
int combine(const CombineJob<double>& job, void* stream) { return combination::run(job, stream); }

}  // namespace samplers::cuda
