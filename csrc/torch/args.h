// What the registration files share: checks of arguments. They guard memory; the friendly words for the same mistakes
// are on the Python side (samplers/ops/_check.py). Ops go through torch's stable ABI: one binary serves many torch
// versions and compiles in seconds. Each file adds its ops to the library with STABLE_TORCH_LIBRARY_FRAGMENT.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>

#include "../masked_softmax.h"

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

// Rows of logits, of a type that the kernels read; false for any other.
inline bool float_type(const Tensor& t, Type& type) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      type = Type::kF32;
      return true;
    case ScalarType::BFloat16:
      type = Type::kBF16;
      return true;
    case ScalarType::Half:
      type = Type::kF16;
      return true;
    default:
      return false;
  }
}

inline Rows rows_of(const Tensor& t, const int64_t* index = nullptr) {
  return {static_cast<const char*>(t.const_data_ptr()), t.stride(0) * static_cast<int64_t>(t.element_size()), index};
}

inline void check_temperatures(const char* op, double temperature, double confidence_temperature) {
  STD_TORCH_CHECK(temperature >= 0 && std::isfinite(temperature), op, ": temperature must be finite and >= 0");
  STD_TORCH_CHECK(confidence_temperature > 0 && std::isfinite(confidence_temperature), op,
                  ": confidence_temperature must be finite and > 0");
}

// The uniforms of a draw, which only a temperature above 0 needs.
inline const double* uniforms_of(const char* op, const Maybe& uniform, double temperature, int64_t n,
                                 const Tensor& like) {
  if (!(temperature > 0)) return nullptr;
  STD_TORCH_CHECK(uniform.has_value(), op, ": temperature > 0 needs uniform");
  const double* u = vector_of<double>(op, uniform, ScalarType::Double, n, "uniform", &like);
  for (int64_t i = 0; i < n && like.is_cpu(); ++i)
    STD_TORCH_CHECK(u[i] >= 0 && u[i] < 1, op, ": uniform[", i, "] = ", u[i], " is outside [0, 1)");
  return u;
}

// The outputs for n rows: token, confidence, margin, entropy, log-sum-exp, probability of a given id, status. Those
// that are not wanted have no rows, and the job no address of them. `given`: where the job keeps the last but one.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Job>
Outputs make_outputs(const Tensor& like, int64_t n, int64_t want, Job& job, float*& given) {
  const auto make = [&](ScalarType t, bool wanted) { return torch::stable::new_empty(like, {wanted ? n : 0}, t); };
  const auto floats = [&](int64_t bit, float*& data) {
    Tensor t = make(ScalarType::Float, want & bit);
    data = want & bit ? static_cast<float*>(t.mutable_data_ptr()) : nullptr;
    return t;
  };
  Tensor token = make(ScalarType::Long, true), status = make(ScalarType::Int, true);
  job.token = static_cast<int64_t*>(token.mutable_data_ptr());
  job.status = static_cast<int32_t*>(status.mutable_data_ptr());
  Tensor confidence = floats(kConfidence, job.confidence), margin = floats(kMargin, job.margin);
  Tensor entropy = floats(kEntropy, job.entropy), lse = floats(kLse, job.lse);
  return {token, confidence, margin, entropy, lse, floats(kGiven, given), status};
}

}  // namespace samplers
