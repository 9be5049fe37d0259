#include "device.h"

#include <cuda_runtime.h>

#include <atomic>

namespace samplers::cuda {

int multiprocessors(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // zero: not asked yet
  const bool remembered = device >= 0 && device < kDevices;
  int count = remembered ? known[device].load(std::memory_order_relaxed) : 0;
  if (count > 0) return count;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1) return 1;
  if (remembered) known[device].store(count, std::memory_order_relaxed);
  return count;
}

const char* error_name(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace samplers::cuda
