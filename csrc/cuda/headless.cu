#include "headless.cuh"

namespace samplers::cuda {

namespace headless {
extern template int run<kF32>(const HeadlessFold& job, void* stream);
extern template int run<kBF16>(const HeadlessFold& job, void* stream);
extern template int run<kF16>(const HeadlessFold& job, void* stream);
}  // namespace headless

int headless_fold(const HeadlessFold& job, void* stream) {
  if (job.n == 0 || job.width == 0) return 0;
  switch (job.type) {
    case Type::kF32:
      return headless::run<kF32>(job, stream);
    case Type::kBF16:
      return headless::run<kBF16>(job, stream);
    default:
      return headless::run<kF16>(job, stream);
  }
}

int headless_finish(const HeadlessFinish& job, void* stream) {
  return job.n == 0 ? 0 : headless::run_finish(job, stream);
}

}  // namespace samplers::cuda
