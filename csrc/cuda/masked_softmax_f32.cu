#include "masked_softmax.cuh"

// One file per format, so that they compile side by side.
template int samplers::cuda::softmax::run<samplers::cuda::kF32>(const SoftmaxCall& call, void* stream);
