#include "masked_softmax.cuh"

namespace samplers::cuda {

namespace softmax {
extern template int run<kF32>(const SoftmaxCall& call, void* stream);
extern template int run<kBF16>(const SoftmaxCall& call, void* stream);
extern template int run<kF16>(const SoftmaxCall& call, void* stream);
}  // namespace softmax

int64_t softmax_workspace_bytes(const SoftmaxJob& job, int multiprocessors) {
  return softmax::workspace_bytes(job, multiprocessors);
}

int masked_softmax(const SoftmaxCall& call, void* stream) {
  if (call.job.n == 0) return 0;
  switch (call.job.type) {
    case Type::kF32:
      return softmax::run<kF32>(call, stream);
    case Type::kBF16:
      return softmax::run<kBF16>(call, stream);
    default:
      return softmax::run<kF16>(call, stream);
  }
}

}  // namespace samplers::cuda
