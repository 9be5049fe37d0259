// What the CUDA registrations share: the current stream, the current device, errors of a launch.
#pragma once

#if defined(SAMPLERS_CUDA)

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "../cuda/device.h"

namespace samplers {

// The device of a tensor made current for a scope, and torch's current stream on it.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& t)
      : index(static_cast<int>(t.get_device_index())), stream(stream_of(index)), guard_(index) {}
  const int index;
  void* const stream;
  int multiprocessors() const { return cuda::multiprocessors(index); }

 private:
  // torch has it in libtorch_cuda, which this module must not link: it would then not load beside a torch without CUDA.
  // Where a tensor is on a device, that library has long been loaded.
  static void* stream_of(int device) {
    using Get = int32_t (*)(int32_t, void**);
    static const Get get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(get != nullptr, "samplers: libtorch_cuda has no aoti_torch_get_current_cuda_stream");
    void* stream = nullptr;
    STD_TORCH_CHECK(get(device, &stream) == 0, "samplers: no current stream on CUDA device ", device);
    return stream;
  }

  torch::stable::accelerator::DeviceGuard guard_;
};

inline void check_launch(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, op, ": the kernel did not start: ", cuda::error_name(error));
}

}  // namespace samplers

#endif
