#include "headless.cuh"

// One file per format, so that they compile side by side.
template int samplers::cuda::headless::run<samplers::cuda::kBF16>(const HeadlessFold& job, void* stream);
