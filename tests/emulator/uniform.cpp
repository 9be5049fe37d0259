// csrc/cuda/uniform.cuh on the CPU.
#include <pybind11/pybind11.h>

#include "uniform.cuh"

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename T>
T* pointer(const py::handle& h) {
  return h.is_none() ? nullptr : reinterpret_cast<T*>(h.cast<uintptr_t>());
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("run", [](const py::dict& d) {
    UniformJob job{};
    job.seed = pointer<const int64_t>(d["seed"]);
    job.row = pointer<const int64_t>(d["row"]);
    job.step = pointer<const int64_t>(d["step"]);
    job.which = pointer<const int64_t>(d["which"]);
    job.position = pointer<const int64_t>(d["position"]);
    job.rows = d["rows"].cast<int64_t>();
    job.length = d["length"].cast<int64_t>();
    job.n = d["n"].cast<int64_t>();
    job.draw = d["draw"].cast<uint32_t>();
    job.out = pointer<double>(d["out"]);
    return cuda::uniform_numbers::run(job, nullptr);
  });
}
