// What kernel bodies include instead of the CUDA headers. nvcc compiles a body for the device; any other compiler finds
// the same names in tests/emulator/emulator.h and compiles the same text for the CPU, where a test can run it without a
// GPU. So a body uses only what the emulator has: thread and block indices, __syncthreads, __syncwarp, shuffles, votes,
// static __shared__ arrays and integer atomics.
#pragma once

#include <stdint.h>

#include "../hd.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulator.h"  // from the include path
#endif

namespace samplers::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Starts `kernel` over the grid and returns the runtime's error code, 0 for none. A kernel takes one struct, by value.
template <typename Args>
int launch(void (*kernel)(Args), dim3 grid, int threads, void* stream, const Args& args) {
#if defined(__CUDACC__)
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
#else
  (void)stream;
  emulator::run(grid, threads, [&] { kernel(args); });
  return 0;
#endif
}

}  // namespace samplers::cuda
