// csrc/cuda/normal.cuh on the CPU, and the normals of chosen words.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "normal.cuh"

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename T>
T* pointer(const py::handle& h) {
  return reinterpret_cast<T*>(h.cast<uintptr_t>());
}

template <typename F>
int run(const py::dict& d) {
  NormalJob<F> job{};
  job.seed = pointer<const int64_t>(d["seed"]);
  job.row = pointer<const int64_t>(d["row"]);
  job.step = pointer<const int64_t>(d["step"]);
  job.rows = d["rows"].cast<int64_t>();
  job.length = d["length"].cast<int64_t>();
  job.draw = d["draw"].cast<uint32_t>();
  job.out = pointer<F>(d["out"]);
  return cuda::normal_numbers::run(job, nullptr);
}

template <typename F>
std::vector<F> of_words(uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  std::vector<F> out(kPerBlock<F>);
  normals_of(Philox4{r0, r1, r2, r3}, out.data());
  return out;
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("run32", &run<float>);
  m.def("run64", &run<double>);
  m.def("of_words32", &of_words<float>, "The four float32 normals of a block.");
  m.def("of_words64", &of_words<double>, "The two float64 normals of a block.");
}
