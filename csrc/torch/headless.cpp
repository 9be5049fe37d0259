// Headless sampling: the schemas of its two ops, their checks, and the way to the kernels. The loop over tiles, with
// the product of each, is samplers/ops/headless.py.
#include <algorithm>
#include <vector>

#include "../cpu/headless.h"
#include "../cuda/headless.h"
#include "../headless.h"
#include "args.h"
#include "cuda.h"

namespace samplers {
namespace {

constexpr char kFoldOp[] = "headless_fold_", kFinishOp[] = "headless_finish";

void check_state(const char* op, const Tensor& like, const Tensor& real, const Tensor& whole, int64_t n) {
  STD_TORCH_CHECK(same_device(real, like) && real.dim() == 2 && real.scalar_type() == ScalarType::Double &&
                      real.size(0) == n && real.size(1) == kReals && real.is_contiguous(),
                  op, ": real must be a contiguous (", n, ", ", int{kReals},
                  ") float64 tensor on the device of the rest");
  STD_TORCH_CHECK(same_device(whole, like) && whole.dim() == 2 && whole.scalar_type() == ScalarType::Long &&
                      whole.size(0) == n && whole.size(1) == kWholes && whole.is_contiguous(),
                  op, ": whole must be a contiguous (", n, ", ", int{kWholes},
                  ") int64 tensor on the device of the rest");
}

void headless_fold(const Tensor& logits, int64_t offset, Tensor real, Tensor whole, const Maybe& uniform,
                   double temperature, double confidence_temperature, const Maybe& forbid, const Maybe& guidance,
                   double cfg_scale, const Maybe& given, int64_t want) {
  HeadlessFold job{};
  const bool cuda = logits.is_cuda();
  STD_TORCH_CHECK((logits.is_cpu() || cuda) && logits.dim() == 2 && float_type(logits, job.type) &&
                      (logits.size(1) == 1 || logits.stride(1) == 1),
                  "headless_fold_: logits must be a 2-D tensor on the CPU or a CUDA device, float32, bfloat16 or "
                  "float16, last dimension "
                  "contiguous");
  STD_TORCH_CHECK(offset >= 0 && offset % kChunk == 0, "headless_fold_: offset is ", offset,
                  ", expected a multiple of ", int{kChunk});
  job.n = logits.size(0);
  job.width = logits.size(1);
  job.offset = offset;
  job.logits = rows_of(logits);
  check_state(kFoldOp, logits, real, whole, job.n);
  check_temperatures(kFoldOp, temperature, confidence_temperature);
  job.temperature = temperature;
  job.confidence_temperature = confidence_temperature;
  job.uniform = uniforms_of(kFoldOp, uniform, temperature, job.n, logits);
  std::vector<int64_t> ids;
  const int64_t* f = vector_of<int64_t>(kFoldOp, forbid, ScalarType::Long, -1, "forbid", &logits);
  if (f && !cuda) {
    std::copy_if(f, f + forbid->size(0), std::back_inserter(ids),
                 [&](int64_t id) { return id >= offset && id < offset + job.width; });
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  job.forbid = cuda ? f : ids.data();  // the CUDA kernels take them in any order
  job.n_forbid = cuda ? (f ? forbid->size(0) : 0) : static_cast<int64_t>(ids.size());
  if (guidance && cfg_scale != 0) {
    STD_TORCH_CHECK(same_device(*guidance, logits) && guidance->dim() == 2 &&
                        guidance->scalar_type() == logits.scalar_type() && guidance->size(0) == job.n &&
                        guidance->size(1) == job.width && (job.width == 1 || guidance->stride(1) == 1),
                    "headless_fold_: guidance must be like logits: same shape, same dtype, last dimension contiguous");
    job.guidance = rows_of(*guidance);
    job.cfg_scale = static_cast<float>(cfg_scale);
  }
  job.want = want;
  if (want & kGiven) {
    STD_TORCH_CHECK(given.has_value(), "headless_fold_: want has 'given' but given is missing");
    job.given = vector_of<int64_t>(kFoldOp, given, ScalarType::Long, job.n, "given", &logits);
  }
  job.real = static_cast<double*>(real.mutable_data_ptr());
  job.whole = static_cast<int64_t*>(whole.mutable_data_ptr());
  if (job.n == 0 || job.width == 0) return;
  if (!cuda) return cpu::headless_fold(job);
#if defined(SAMPLERS_CUDA)
  STD_TORCH_CHECK(job.n < int64_t{1} << 31 && offset + job.width <= int64_t{1} << 31,
                  "headless_fold_: the CUDA kernel takes fewer than 2^31 rows and ids");
  const OnDevice device(logits);
  check_launch(kFoldOp, cuda::headless_fold(job, device.stream));
#endif
}

Outputs headless_finish(const Tensor& real, const Tensor& whole, double temperature, double confidence_temperature,
                        int64_t want) {
  HeadlessFinish job{};
  job.n = real.dim() == 2 ? real.size(0) : -1;
  check_state(kFinishOp, real, real, whole, job.n);
  check_temperatures(kFinishOp, temperature, confidence_temperature);
  job.real = static_cast<const double*>(real.const_data_ptr());
  job.whole = static_cast<const int64_t*>(whole.const_data_ptr());
  job.temperature = temperature;
  job.confidence_temperature = confidence_temperature;
  job.want = want;
  const Outputs outputs = make_outputs(real, job.n, want, job, job.given);
  if (real.is_cpu()) {
    cpu::headless_finish(job);
  } else {
#if defined(SAMPLERS_CUDA)
    const OnDevice device(real);
    check_launch(kFinishOp, cuda::headless_finish(job, device.stream));
#endif
  }
  return outputs;
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "headless_fold_(Tensor logits, int offset, Tensor(a!) real, Tensor(b!) whole, Tensor? uniform, "
      "float temperature, float confidence_temperature, Tensor? forbid, Tensor? guidance, float cfg_scale, "
      "Tensor? given, int want) -> ()");
  m.def(
      "headless_finish(Tensor real, Tensor whole, float temperature, float confidence_temperature, int want) -> "
      "(Tensor token, Tensor confidence, Tensor margin, Tensor entropy, Tensor lse, Tensor given_probability, "
      "Tensor status)");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) {
  m.impl("headless_fold_", TORCH_BOX(&samplers::headless_fold));
  m.impl("headless_finish", TORCH_BOX(&samplers::headless_finish));
}
#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) {
  m.impl("headless_fold_", TORCH_BOX(&samplers::headless_fold));
  m.impl("headless_finish", TORCH_BOX(&samplers::headless_finish));
}
#endif
