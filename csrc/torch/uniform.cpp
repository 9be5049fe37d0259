// row_uniforms: the counter-based uniform numbers of a run.
#include "../cpu/random.h"

#include "args.h"

#if defined(SAMPLERS_CUDA)
#include "../cuda/uniform.h"
#include "cuda.h"
#endif

namespace samplers {
namespace {

constexpr const char* kOp = "row_uniforms";

Tensor row_uniforms(const Tensor& seed, const Tensor& row, const Tensor& step, const Maybe& which,
                    const Maybe& position, int64_t length, int64_t draw) {
  UniformJob job{};
  job.rows = seed.dim() == 1 ? seed.size(0) : -1;
  job.seed = vector_of<int64_t>(kOp, Maybe(seed), ScalarType::Long, job.rows, "seed", &seed);
  job.row = vector_of<int64_t>(kOp, Maybe(row), ScalarType::Long, job.rows, "row", &seed);
  job.step = vector_of<int64_t>(kOp, Maybe(step), ScalarType::Long, job.rows, "step", &seed);
  STD_TORCH_CHECK(which.has_value() == position.has_value(), kOp, ": which and position go together");
  STD_TORCH_CHECK(which.has_value() || length > 0 || job.rows == 0, kOp, ": length must be 1 or more");
  STD_TORCH_CHECK(draw >= 0 && draw < int64_t{1} << 32, kOp, ": draw = ", draw, " is outside [0, 2^32)");
  job.n = which ? which->size(0) : job.rows * length;
  job.which = vector_of<int64_t>(kOp, which, ScalarType::Long, job.n, "which", &seed);
  job.position = vector_of<int64_t>(kOp, position, ScalarType::Long, job.n, "position", &seed);
  job.length = length;
  job.draw = static_cast<uint32_t>(draw);
  Tensor out = which ? torch::stable::new_empty(seed, {job.n}, ScalarType::Double)
                     : torch::stable::new_empty(seed, {job.rows, length}, ScalarType::Double);
  job.out = static_cast<double*>(out.mutable_data_ptr());
  if (seed.is_cpu()) {
    if (job.which) check_ids(kOp, job.which, job.n, job.rows, "which");
    cpu::uniforms(job);
  } else {
#if defined(SAMPLERS_CUDA)
    STD_TORCH_CHECK(job.n < int64_t{1} << 38, kOp, ": the CUDA kernel makes fewer than 2^38 numbers in a call");
    const OnDevice device(seed);
    check_launch(kOp, cuda::uniforms(job, device.stream));
#endif
  }
  return out;
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "row_uniforms(Tensor seed, Tensor row, Tensor step, Tensor? which, Tensor? position, int length, int draw) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) { m.impl("row_uniforms", TORCH_BOX(&samplers::row_uniforms)); }
#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) { m.impl("row_uniforms", TORCH_BOX(&samplers::row_uniforms)); }
#endif
