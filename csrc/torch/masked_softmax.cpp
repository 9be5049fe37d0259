// masked_softmax: its schema, its checks, and the way to the kernels.
#include <algorithm>
#include <vector>

#include "../cpu/masked_softmax.h"
#include "../cuda/masked_softmax.h"
#include "args.h"
#include "cuda.h"

namespace samplers {
namespace {

constexpr char kOp[] = "masked_softmax";
constexpr int64_t kMaxTruncated = 1 << 18;  // the integer masses of so many entries fit in 63 bits

void compute(const SoftmaxJob& job, const Tensor& logits, const Maybe& guidance, bool cuda) {
  if (!cuda) return cpu::masked_softmax(job);
#if defined(SAMPLERS_CUDA)
  STD_TORCH_CHECK(job.vocab <= cuda::kMostColumns, "masked_softmax: logits have ", job.vocab,
                  " columns, the CUDA kernel takes at most ", cuda::kMostColumns);
  const OnDevice device(logits);
  cuda::SoftmaxCall call{job, logits.size(0), guidance ? guidance->size(0) : 0, device.multiprocessors(), nullptr};
  const int64_t bytes = cuda::softmax_workspace_bytes(job, call.multiprocessors);
  const Tensor workspace = torch::stable::new_empty(logits, {bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  check_launch(kOp, cuda::masked_softmax(call, device.stream));
#else
  (void)logits, (void)guidance;
#endif
}

// On the CPU the data of index, uniform, forbid, guidance_index and given are checked; on a device that would take a
// sync, and its kernels make sure that no value reads memory that is not the op's.
Outputs masked_softmax(const Tensor& logits, const Maybe& index, const Maybe& uniform, double temperature,
                       double confidence_temperature, const Maybe& forbid, const Maybe& guidance,
                       const Maybe& guidance_index, double cfg_scale, int64_t top_k, double top_p, bool truncated,
                       const Maybe& given, int64_t want) {
  STD_TORCH_CHECK((logits.is_cpu() || logits.is_cuda()) && logits.dim() == 2,
                  "masked_softmax: logits must be a 2-D tensor on the CPU or a CUDA device");
  const bool cuda = logits.is_cuda();
  SoftmaxJob job{};
  STD_TORCH_CHECK(float_type(logits, job.type), "masked_softmax: logits must be float32, bfloat16 or float16");
  job.vocab = logits.size(1);
  STD_TORCH_CHECK(job.vocab > 0, "masked_softmax: logits have no columns");
  STD_TORCH_CHECK(job.vocab == 1 || logits.stride(1) == 1,
                  "masked_softmax: the last dimension of logits must be contiguous");
  job.n = index ? index->size(0) : logits.size(0);
  const int64_t* rows = vector_of<int64_t>(kOp, index, ScalarType::Long, -1, "index", &logits);
  if (rows && !cuda) check_ids(kOp, rows, job.n, logits.size(0), "index");
  job.logits = rows_of(logits, rows);

  check_temperatures(kOp, temperature, confidence_temperature);
  job.temperature = temperature;
  job.confidence_temperature = confidence_temperature;
  job.uniform = uniforms_of(kOp, uniform, temperature, job.n, logits);

  std::vector<int64_t> ids;
  const int64_t* f = vector_of<int64_t>(kOp, forbid, ScalarType::Long, -1, "forbid", &logits);
  if (f && !cuda) {
    for (int64_t i = 0; i < forbid->size(0); ++i) {
      STD_TORCH_CHECK(f[i] >= 0, "masked_softmax: forbid[", i, "] = ", f[i], " is negative");
      if (f[i] < job.vocab) ids.push_back(f[i]);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  job.forbid = cuda ? f : ids.data();  // the CUDA kernels take them in any order
  job.n_forbid = cuda ? (f ? forbid->size(0) : 0) : static_cast<int64_t>(ids.size());

  if (guidance && cfg_scale != 0) {
    STD_TORCH_CHECK(
        same_device(*guidance, logits) && guidance->dim() == 2 && guidance->scalar_type() == logits.scalar_type() &&
            guidance->size(1) == job.vocab && (job.vocab == 1 || guidance->stride(1) == 1),
        "masked_softmax: guidance must be like logits: 2-D, same dtype, same columns, last dimension contiguous");
    const int64_t* from =
        guidance_index ? vector_of<int64_t>(kOp, guidance_index, ScalarType::Long, job.n, "guidance_index", &logits)
                       : rows;
    if (from && !cuda)
      check_ids(kOp, from, job.n, guidance->size(0), guidance_index ? "guidance_index" : "index (into guidance)");
    // An empty index has no address either.
    STD_TORCH_CHECK(from || job.n == 0 || guidance->size(0) == job.n, "masked_softmax: guidance has ",
                    guidance->size(0), " rows, expected ", job.n);
    job.guidance = rows_of(*guidance, from);
    job.cfg_scale = static_cast<float>(cfg_scale);
  }

  STD_TORCH_CHECK(top_k >= 0, "masked_softmax: top_k must be >= 0");
  STD_TORCH_CHECK(top_p > 0 && top_p <= 1, "masked_softmax: top_p must be in (0, 1]");
  STD_TORCH_CHECK(job.vocab <= kMaxTruncated || (top_k == 0 && top_p == 1),
                  "masked_softmax: top_k and top_p take at most ", kMaxTruncated, " columns");
  job.top_k = top_k;
  job.top_p = top_p;
  job.truncated = truncated;
  job.want = want;
  if (want & kGiven) {
    STD_TORCH_CHECK(given.has_value(), "masked_softmax: want has 'given' but given is missing");
    job.given = vector_of<int64_t>(kOp, given, ScalarType::Long, job.n, "given", &logits);
    if (!cuda) check_ids(kOp, job.given, job.n, job.vocab, "given");
  }

  const Outputs outputs = make_outputs(logits, job.n, want, job, job.given_out);
  compute(job, logits, guidance, cuda);
  return outputs;
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "masked_softmax(Tensor logits, Tensor? index, Tensor? uniform, float temperature, float confidence_temperature, "
      "Tensor? forbid, Tensor? guidance, Tensor? guidance_index, float cfg_scale, int top_k, "
      "float top_p, bool truncated, Tensor? given, int want) -> "
      "(Tensor token, Tensor confidence, Tensor margin, Tensor entropy, Tensor lse, Tensor given_probability, "
      "Tensor status)");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) { m.impl("masked_softmax", TORCH_BOX(&samplers::masked_softmax)); }
#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) { m.impl("masked_softmax", TORCH_BOX(&samplers::masked_softmax)); }
#endif
