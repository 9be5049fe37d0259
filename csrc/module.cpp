// The Python module itself: what was built, what was chosen, and golden vectors of the shared maths. Ops are not here:
// they reach Python through torch (csrc/torch), so this file needs no torch header.
#undef TORCH_TARGET_VERSION  // some versions of torch bring pybind11 headers that refuse to be included beside it
                             // (2.11)
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/masked_softmax.h"
#include "philox.h"
#include "softmax_math.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of the sampler zoo; use samplers.ops.";

  m.def("build_facts", [] {
    py::dict d;
    d["compiler"] = __VERSION__;
    d["cxx"] = static_cast<long>(__cplusplus);
    d["torch_built_with"] = SAMPLERS_BUILD_TORCH;
#if defined(SAMPLERS_CUDA)
    d["cuda"] = true;
#else
    d["cuda"] = false;
#endif
    d["cuda_archs"] = SAMPLERS_BUILD_CUDA_ARCHS;
    return d;
  });
  m.def("isa", [] { return samplers::cpu::kernels().name; }, "The instruction set in use.");
  m.def(
      "_choose_isa",
      [](const std::string& name) {
        const char* chosen = samplers::cpu::choose(name.c_str());
        if (!chosen) throw py::value_error("this machine or build has no instruction set '" + name + "'");
        return std::string(chosen);
      },
      "For tests: use this instruction set from now on; '' for the widest.");

  m.def(
      "philox",
      [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
        const samplers::Philox4 r = samplers::philox4x32(c0, c1, c2, c3, k0, k1);
        return py::make_tuple(r.r0, r.r1, r.r2, r.r3);
      },
      "Philox4x32-10 of one counter and key.");
  m.def("uniform", &samplers::uniform, py::arg("seed"), py::arg("row"), py::arg("position"), py::arg("step"),
        py::arg("draw"), "The library's draw in [0, 1) for (seed, row; position, step, draw).");
  m.def(
      "exp2_weight",
      [](const std::vector<float>& t) {
        std::vector<float> out;
        for (const float x : t) out.push_back(samplers::exp2_weight(x));
        return out;
      },
      "The fp32 exponential of the kernels, for t in [-126, 127).");
  m.def(
      "exp2_scale",
      [](const std::vector<double>& x) {
        std::vector<double> out;
        for (const double v : x) out.push_back(samplers::exp2_scale(v));
        return out;
      },
      "The double exponential of the kernels.");
}
