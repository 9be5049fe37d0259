#include "cuda/headless.cuh"

#include <pybind11/pybind11.h>

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename T>
T* pointer(const py::dict& d, const char* name) {
  return reinterpret_cast<T*>(d[name].cast<int64_t>());
}

Rows rows(const py::dict& d, const char* data, const char* stride) {
  return {pointer<const char>(d, data), d[stride].cast<int64_t>(), nullptr};
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("fold", [](const py::dict& d) {
    HeadlessFold job{};
    job.type = static_cast<Type>(d["type"].cast<int>());
    job.n = d["n"].cast<int64_t>();
    job.offset = d["offset"].cast<int64_t>();
    job.width = d["width"].cast<int64_t>();
    job.logits = rows(d, "logits", "stride");
    job.guidance = rows(d, "guidance", "guidance_stride");
    job.cfg_scale = d["cfg_scale"].cast<float>();
    job.uniform = pointer<const double>(d, "uniform");
    job.temperature = d["temperature"].cast<double>();
    job.confidence_temperature = d["confidence_temperature"].cast<double>();
    job.forbid = pointer<const int64_t>(d, "forbid");
    job.n_forbid = d["n_forbid"].cast<int64_t>();
    job.given = pointer<const int64_t>(d, "given");
    job.want = d["want"].cast<int64_t>();
    job.real = pointer<double>(d, "real");
    job.whole = pointer<int64_t>(d, "whole");
    switch (job.type) {
      case Type::kF32:
        return cuda::headless::run<cuda::kF32>(job, nullptr);
      case Type::kBF16:
        return cuda::headless::run<cuda::kBF16>(job, nullptr);
      default:
        return cuda::headless::run<cuda::kF16>(job, nullptr);
    }
  });
  m.def("finish", [](const py::dict& d) {
    HeadlessFinish job{};
    job.n = d["n"].cast<int64_t>();
    job.real = pointer<const double>(d, "real");
    job.whole = pointer<const int64_t>(d, "whole");
    job.temperature = d["temperature"].cast<double>();
    job.confidence_temperature = d["confidence_temperature"].cast<double>();
    job.want = d["want"].cast<int64_t>();
    job.token = pointer<int64_t>(d, "token");
    job.confidence = pointer<float>(d, "confidence");
    job.margin = pointer<float>(d, "margin");
    job.entropy = pointer<float>(d, "entropy");
    job.lse = pointer<float>(d, "lse");
    job.given = pointer<float>(d, "given");
    job.status = pointer<int32_t>(d, "status");
    return cuda::headless::run_finish(job, nullptr);
  });
}
