// Small bodies that show what the emulator promises; tests/ops/test_emulator.py.
#include "block.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

constexpr int kThreads = 96;

struct Out {
  int64_t* data;
  int64_t n;
};

// A block sums 1..n through shuffles, shared memory and a barrier; every thread writes the sum.
__global__ void __launch_bounds__(kThreads) sum(Out out) {
  __shared__ int64_t parts[kThreads / 32];
  int64_t mine = 0;
  for (int64_t i = threadIdx.x; i < out.n; i += blockDim.x) mine += i + 1;
  for (int by = 16; by > 0; by /= 2) mine += __shfl_xor_sync(samplers::cuda::kAllLanes, mine, by);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = 0;
  for (int w = 0; w < kThreads / 32; ++w) mine += parts[w];
  out.data[blockIdx.x * blockDim.x + threadIdx.x] = mine;
}

// As above without the barrier: right in one order of threads, wrong in another.
__global__ void race(Out out) {
  __shared__ int64_t first;
  if (threadIdx.x == 0) first = out.n;
  out.data[threadIdx.x] = first;
  __syncthreads();
  if (threadIdx.x == 0) first = 0;
}

// up, down, one lane's, a half-warp's, votes.
__global__ void warps(Out out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  int64_t* at = out.data + threadIdx.x * 7;
  at[0] = __shfl_up_sync(samplers::cuda::kAllLanes, lane, 3);
  at[1] = __shfl_down_sync(samplers::cuda::kAllLanes, lane, 5, 16);
  at[2] = __shfl_sync(samplers::cuda::kAllLanes, lane * 2.5, 7) == 17.5;
  at[3] = __shfl_xor_sync(half, lane, 8);
  at[4] = __ballot_sync(samplers::cuda::kAllLanes, lane % 3 == 0);
  at[5] = __any_sync(samplers::cuda::kAllLanes, lane == 31);
  at[6] = __all_sync(samplers::cuda::kAllLanes, lane < 31);
}

__global__ void stuck(Out out) {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x < 40) __syncwarp();
  out.data[threadIdx.x] = 1;
}

__global__ void outside(Out out) {
  if (threadIdx.x < 16) out.data[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}

__global__ void counts(Out out) {
  atomicAdd(out.data, int64_t{1});
  atomicMax(out.data + 1, static_cast<int64_t>(blockIdx.y * 1000 + threadIdx.x));
}

template <void (*kBody)(Out)>
void call(int64_t data, int64_t n, unsigned x, unsigned y, int threads) {
  samplers::cuda::launch(kBody, dim3(x, y), threads, nullptr, Out{reinterpret_cast<int64_t*>(data), n});
}

}  // namespace

PYBIND11_MODULE(SAMPLERS_EMULATED, m) {
  m.def("turns", [](unsigned order) { emulator::turns = order; });
  m.def("sum", call<sum>);
  m.def("race", call<race>);
  m.def("warps", call<warps>);
  m.def("stuck", call<stuck>);
  m.def("outside", call<outside>);
  m.def("counts", call<counts>);
}
