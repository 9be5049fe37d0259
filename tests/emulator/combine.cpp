// csrc/cuda/combine.cuh on the CPU.
#include <pybind11/pybind11.h>

#include <vector>

#include "combine.cuh"

namespace py = pybind11;
using namespace samplers;

namespace {

template <typename F>
int run(const std::vector<uintptr_t>& in, const std::vector<double>& c, int64_t n, uintptr_t out) {
  CombineJob<F> job{};
  job.terms = static_cast<int>(in.size());
  for (int k = 0; k < job.terms; ++k) job.in[k] = reinterpret_cast<const F*>(in[k]), job.c[k] = static_cast<F>(c[k]);
  job.n = n;
  job.out = reinterpret_cast<F*>(out);
  return cuda::combination::run(job, nullptr);
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("run", [](const py::list& in, const py::list& c, int64_t n, uintptr_t out, bool wide) {
    std::vector<uintptr_t> tensors;
    std::vector<double> factors;
    for (const auto& t : in) tensors.push_back(t.cast<uintptr_t>());
    for (const auto& f : c) factors.push_back(f.cast<double>());
    return wide ? run<double>(tensors, factors, n, out) : run<float>(tensors, factors, n, out);
  });
}
