// What the registration files share: checks of arguments. They guard memory; the friendly words for the same mistakes
// are on the Python side (samplers/ops/_check.py). Ops go through torch's stable ABI: one binary serves many torch
// versions and compiles in seconds. Each file adds its ops to the library with STABLE_TORCH_LIBRARY_FRAGMENT.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace samplers {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// The data of an optional vector, nullptr where it is not given; size < 0: any. It lies where `like` does, else on the
// CPU.
template <typename T>
const T* vector_of(const char* op, const Maybe& t, ScalarType type, int64_t size, const char* name,
                   const Tensor* like = nullptr) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(
      (like ? same_device(*t, *like) : t->is_cpu()) && t->dim() == 1 && t->scalar_type() == type && t->is_contiguous(),
      op, ": ", name, " must be a contiguous 1-D tensor of the documented dtype on the device of the others");
  STD_TORCH_CHECK(size < 0 || t->size(0) == size, op, ": ", name, " has ", t->size(0), " entries, expected ", size);
  return static_cast<const T*>(t->const_data_ptr());
}

inline void check_ids(const char* op, const int64_t* ids, int64_t n, int64_t bound, const char* name) {
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < bound, op, ": ", name, "[", i, "] = ", ids[i], " is outside [0, ", bound,
                    ")");
}

}  // namespace samplers
