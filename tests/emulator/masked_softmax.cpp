#include "masked_softmax.cuh"

#include <pybind11/pybind11.h>

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename T>
T* pointer(const py::dict& d, const char* name) {
  return reinterpret_cast<T*>(d[name].cast<int64_t>());
}

Rows rows(const py::dict& d, const char* data, const char* stride, const char* index) {
  return {pointer<const char>(d, data), d[stride].cast<int64_t>(), pointer<const int64_t>(d, index)};
}

// A job of plain numbers and addresses; tests/ops/test_cuda_kernels.py fills it from tensors.
cuda::SoftmaxCall call_of(const py::dict& d) {
  cuda::SoftmaxCall call{};
  SoftmaxJob& job = call.job;
  job.type = static_cast<Type>(d["type"].cast<int>());
  job.n = d["n"].cast<int64_t>();
  job.vocab = d["vocab"].cast<int64_t>();
  job.logits = rows(d, "logits", "stride", "index");
  job.guidance = rows(d, "guidance", "guidance_stride", "guidance_index");
  job.uniform = pointer<const double>(d, "uniform");
  job.temperature = d["temperature"].cast<double>();
  job.confidence_temperature = d["confidence_temperature"].cast<double>();
  job.forbid = pointer<const int64_t>(d, "forbid");
  job.n_forbid = d["n_forbid"].cast<int64_t>();
  job.cfg_scale = d["cfg_scale"].cast<float>();
  job.top_k = d["top_k"].cast<int64_t>();
  job.top_p = d["top_p"].cast<double>();
  job.truncated = d["truncated"].cast<bool>();
  job.given = pointer<const int64_t>(d, "given");
  job.want = d["want"].cast<int64_t>();
  job.token = pointer<int64_t>(d, "token");
  job.confidence = pointer<float>(d, "confidence");
  job.margin = pointer<float>(d, "margin");
  job.entropy = pointer<float>(d, "entropy");
  job.lse = pointer<float>(d, "lse");
  job.given_out = pointer<float>(d, "given_out");
  job.status = pointer<int32_t>(d, "status");
  call.rows = d["rows"].cast<int64_t>();
  call.guidance_rows = d["guidance_rows"].cast<int64_t>();
  call.multiprocessors = d["multiprocessors"].cast<int>();
  return call;
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("parts", [](const py::dict& d) {
    const cuda::SoftmaxCall call = call_of(d);
    return cuda::softmax::parts_of(call.job, call.multiprocessors);
  });
  m.def("run", [](const py::dict& d) {
    cuda::SoftmaxCall call = call_of(d);
    std::vector<double> workspace(cuda::softmax::workspace_bytes(call.job, call.multiprocessors) / 8 + 1);
    call.workspace = workspace.data();
    switch (call.job.type) {
      case Type::kF32:
        return cuda::softmax::run<cuda::kF32>(call, nullptr);
      case Type::kBF16:
        return cuda::softmax::run<cuda::kBF16>(call, nullptr);
      default:
        return cuda::softmax::run<cuda::kF16>(call, nullptr);
    }
  });
  // The first t, in steps of `step` through the bits of a float from `first`, whose fast_exp2 is not exp2_weight's to
  // the bit; None if there is none.
  m.def("exp2_differs", [](uint32_t first, uint32_t last, uint32_t step) {
    for (uint64_t bits = first; bits <= last; bits += step) {
      const float t = float_from_bits(static_cast<uint32_t>(bits)), a = cuda::fast_exp2(t), b = exp2_weight(t);
      if (memcmp(&a, &b, sizeof a) != 0) return py::object(py::float_(t));
    }
    return py::object(py::none());
  });
}
