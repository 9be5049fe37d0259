// combine: a linear combination of tensors in one pass.
#include "../cpu/combine.h"

#include "args.h"

#if defined(SAMPLERS_CUDA)
#include "../cuda/combine.h"
#include "cuda.h"
#endif

namespace samplers {
namespace {

constexpr const char* kOp = "combine";

template <typename F>
Tensor run(const Tensor& first, const Maybe* tensors, const double* c) {
  CombineJob<F> job{};
  job.n = first.numel();
  for (int k = 0; k < kMostTerms; ++k) {
    if (k > 0 && !tensors[k]) continue;
    const Tensor& t = k == 0 ? first : *tensors[k];
    STD_TORCH_CHECK(job.terms == k, kOp, ": the tensors are given one after another");
    STD_TORCH_CHECK(
        same_device(t, first) && t.scalar_type() == first.scalar_type() && t.is_contiguous() && t.numel() == job.n, kOp,
        ": the tensors must be contiguous, of one shape, dtype and device");
    job.in[k] = static_cast<const F*>(t.const_data_ptr());
    job.c[k] = static_cast<F>(c[k]);
    job.terms = k + 1;
  }
  Tensor out = torch::stable::new_empty(first, first.sizes());
  job.out = static_cast<F*>(out.mutable_data_ptr());
  if (first.is_cpu()) {
    cpu::combine(job);
  } else {
#if defined(SAMPLERS_CUDA)
    STD_TORCH_CHECK(job.n < int64_t{1} << 38, kOp, ": the CUDA kernel takes fewer than 2^38 elements");
    const OnDevice device(first);
    check_launch(kOp, cuda::combine(job, device.stream));
#endif
  }
  return out;
}

Tensor combine(const Tensor& a, double ca, const Maybe& b, double cb, const Maybe& c, double cc, const Maybe& d,
               double cd, const Maybe& e, double ce) {
  const Maybe tensors[kMostTerms] = {std::nullopt, b, c, d, e};
  const double factors[kMostTerms] = {ca, cb, cc, cd, ce};
  if (a.scalar_type() == ScalarType::Float) return run<float>(a, tensors, factors);
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Double, kOp, ": the tensors must be float32 or float64");
  return run<double>(a, tensors, factors);
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def(
      "combine(Tensor a, float ca, Tensor? b, float cb, Tensor? c, float cc, Tensor? d, float cd, Tensor? e, float ce) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) { m.impl("combine", TORCH_BOX(&samplers::combine)); }
#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) { m.impl("combine", TORCH_BOX(&samplers::combine)); }
#endif
