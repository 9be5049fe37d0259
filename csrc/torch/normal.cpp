// row_normals: the counter-based standard normals of a run.
#include "../cpu/random.h"

#include "args.h"

#if defined(SAMPLERS_CUDA)
#include "../cuda/normal.h"
#include "cuda.h"
#endif

namespace samplers {
namespace {

constexpr const char* kOp = "row_normals";

template <typename F>
void run(const Tensor& seed, NormalJob<F> job, Tensor& out) {
  job.out = static_cast<F*>(out.mutable_data_ptr());
  if (seed.is_cpu()) return cpu::normals(job);
#if defined(SAMPLERS_CUDA)
  STD_TORCH_CHECK(job.rows * job.blocks() < int64_t{1} << 38, kOp,
                  ": the CUDA kernel makes fewer than 2^38 blocks of numbers in a call");
  const OnDevice device(seed);
  check_launch(kOp, cuda::normals(job, device.stream));
#endif
}

template <typename F>
Tensor normals_as(ScalarType type, const Tensor& seed, const Tensor& row, const Tensor& step, int64_t length,
                  int64_t draw) {
  NormalJob<F> job{};
  job.rows = seed.dim() == 1 ? seed.size(0) : -1;
  job.seed = vector_of<int64_t>(kOp, Maybe(seed), ScalarType::Long, job.rows, "seed", &seed);
  job.row = vector_of<int64_t>(kOp, Maybe(row), ScalarType::Long, job.rows, "row", &seed);
  job.step = vector_of<int64_t>(kOp, Maybe(step), ScalarType::Long, job.rows, "step", &seed);
  STD_TORCH_CHECK(length > 0, kOp, ": length must be 1 or more");
  STD_TORCH_CHECK(draw >= 0 && draw < int64_t{1} << 32, kOp, ": draw = ", draw, " is outside [0, 2^32)");
  job.length = length;
  job.draw = static_cast<uint32_t>(draw);
  Tensor out = torch::stable::new_empty(seed, {job.rows, length}, type);
  run(seed, job, out);
  return out;
}

Tensor row_normals(const Tensor& seed, const Tensor& row, const Tensor& step, int64_t length, int64_t draw,
                   ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp, ": dtype must be float32 or float64");
  return dtype == ScalarType::Float ? normals_as<float>(dtype, seed, row, step, length, draw)
                                    : normals_as<double>(dtype, seed, row, step, length, draw);
}

}  // namespace
}  // namespace samplers

STABLE_TORCH_LIBRARY_FRAGMENT(sampler_zoo, m) {
  m.def("row_normals(Tensor seed, Tensor row, Tensor step, int length, int draw, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CPU, m) { m.impl("row_normals", TORCH_BOX(&samplers::row_normals)); }
#if defined(SAMPLERS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sampler_zoo, CUDA, m) { m.impl("row_normals", TORCH_BOX(&samplers::row_normals)); }
#endif
