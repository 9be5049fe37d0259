// Runs kernel bodies on the CPU: one fiber per thread, one block after another; barriers, shuffles and votes hand over
// to the next fiber. It finds wrong results, threads that wait for each other for ever, barriers that not all threads
// reach at one place, and (by running the threads of a block in other orders) many a missing barrier. It is no model of
// the device's memory, and what a warp does in lockstep it does not.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// Of the fiber that runs now.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

constexpr int kWarpSize = 32;
constexpr size_t kStack = 64 * 1024;

// How the threads of a block take turns: 0 ascending, 1 descending, anything else seeds a shuffle. Results must not
// depend on it.
inline unsigned turns = 0;

enum class State { kReady, kBarrier, kWarp, kDone };

#if defined(__x86_64__)
// Saves what a call must preserve and carries on where `to` left off; swapcontext does the same ten times as slowly,
// since it also asks the kernel for the signal mask.
__attribute__((naked, noinline)) static void change_stacks(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

struct Fiber {
  State state;
  std::unique_ptr<char[]> stack{new char[kStack]};
#if defined(__x86_64__)
  void* top;
#else
  ucontext_t context;
#endif
  // Where and for what it waits.
  const char* what;
  int line;
  unsigned mask;
  int source;         // the lane whose value it wants
  uint64_t put, got;  // its value, and what the exchange brought
};

struct Block {
  std::vector<Fiber> fibers;
  std::function<void()> body;
  int threads = 0, now = 0;
#if defined(__x86_64__)
  void* scheduler;
#else
  ucontext_t scheduler;
#endif

  int warp_begin() const { return now / kWarpSize * kWarpSize; }

  void resume(int i) {
    now = i;
    threadIdx = {static_cast<unsigned>(i) % blockDim.x, static_cast<unsigned>(i) / blockDim.x % blockDim.y,
                 static_cast<unsigned>(i) / (blockDim.x * blockDim.y)};
#if defined(__x86_64__)
    change_stacks(&scheduler, fibers[i].top);
#else
    swapcontext(&scheduler, &fibers[i].context);
#endif
  }

  void yield() {
    Fiber& me = fibers[now];
#if defined(__x86_64__)
    change_stacks(&me.top, scheduler);
#else
    swapcontext(&me.context, &scheduler);
#endif
  }

  void prepare(int i) {
    Fiber& f = fibers[i];
    f.state = State::kReady;
#if defined(__x86_64__)
    // As if entry() had been called from nowhere: six registers and the address that `ret` goes to.
    uintptr_t top = reinterpret_cast<uintptr_t>(f.stack.get() + kStack) & ~uintptr_t{15};
    void** stack = reinterpret_cast<void**>(top) - 8;
    memset(stack, 0, 8 * sizeof *stack);
    stack[6] = reinterpret_cast<void*>(&entry);
    f.top = stack;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, &entry, 0);
#endif
  }

  static void entry();

  // All threads that are still there wait at the barrier: let them go on.
  bool release_barrier() {
    int waiting = 0, first = -1;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].state == State::kDone) continue;
      if (fibers[i].state != State::kBarrier) return false;
      if (first < 0) first = i;
      if (fibers[i].line != fibers[first].line) return false;
      ++waiting;
    }
    for (int i = 0; i < threads; ++i)
      if (fibers[i].state == State::kBarrier) fibers[i].state = State::kReady;
    return waiting > 0;
  }

  // The running lane has put its value; if it was the last of its mask, the values change hands.
  void exchange() {
    const int begin = warp_begin();
    Fiber& me = fibers[now];
    unsigned vote = 0;
    for (int l = 0; l < kWarpSize; ++l) {
      if (!(me.mask >> l & 1)) continue;
      if (begin + l >= threads) throw_later("names lanes that the block does not have");
      const Fiber& f = fibers[begin + l];
      if (f.state != State::kWarp || f.mask != me.mask || f.line != me.line) return;
      vote |= static_cast<unsigned>(f.put != 0) << l;
    }
    for (int l = 0; l < kWarpSize; ++l) {
      if (!(me.mask >> l & 1)) continue;
      Fiber& f = fibers[begin + l];
      if (f.source < 0) {
        f.got = vote;
      } else {
        if (!(me.mask >> f.source & 1)) throw_later("reads a lane outside its mask");
        f.got = fibers[begin + f.source].put;
      }
      f.state = State::kReady;
    }
  }

  std::string trouble;
  // An exception must not cross a fiber's first frame, so the scheduler throws it.
  void throw_later(const char* message) {
    if (trouble.empty())
      trouble = std::string(fibers[now].what) + " at line " + std::to_string(fibers[now].line) + " " + message;
  }

  [[noreturn]] void deadlock() const {
    std::string text = "emulator: block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                       std::to_string(blockIdx.z) + ") is stuck:";
    for (int i = 0; i < threads;) {  // runs of threads that wait for the same
      const Fiber& f = fibers[i];
      int end = i + 1;
      while (end < threads && fibers[end].state == f.state &&
             (f.state == State::kDone || (fibers[end].line == f.line && fibers[end].mask == f.mask)))
        ++end;
      text += " threads " + std::to_string(i) + "-" + std::to_string(end - 1);
      text += f.state == State::kDone ? " have returned;"
                                      : " wait in " + std::string(f.what) + " at line " + std::to_string(f.line) + ";";
      i = end;
    }
    throw std::runtime_error(text);
  }

  void run_block() {
    for (int i = 0; i < threads; ++i) prepare(i);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (turns == 1) std::reverse(order.begin(), order.end());
    if (turns > 1) std::shuffle(order.begin(), order.end(), std::mt19937(turns));
    for (;;) {
      bool moved = false, left = false;
      for (const int i : order) {
        if (fibers[i].state == State::kReady) {
          resume(i);
          moved = true;
          if (!trouble.empty()) throw std::runtime_error("emulator: " + trouble);
        }
        left |= fibers[i].state != State::kDone;
      }
      if (!left) return;
      if (!moved && !release_barrier()) deadlock();
    }
  }
};

inline Block& block() {
  static Block b;
  return b;
}

inline void Block::entry() {
  Block& b = block();
  try {
    b.body();
  } catch (const std::exception& error) {
    b.trouble = error.what();
  }
  b.fibers[b.now].state = State::kDone;
  b.yield();
}

inline void run(dim3 grid, dim3 threads, std::function<void()> body) {
  Block& b = block();
  b.threads = static_cast<int>(threads.x * threads.y * threads.z);
  if (b.threads < 1 || b.threads > 1024) throw std::runtime_error("emulator: a block has 1 to 1024 threads");
  if (static_cast<int>(b.fibers.size()) < b.threads) b.fibers.resize(b.threads);
  b.body = std::move(body);
  b.trouble.clear();
  blockDim = threads;
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        b.run_block();
      }
}

inline uint64_t warp(const char* what, int line, unsigned mask, uint64_t put, int source) {
  Block& b = block();
  Fiber& me = b.fibers[b.now];
  me.what = what;
  me.line = line;
  me.mask = mask;
  me.put = put;
  me.source = source;
  me.state = State::kWarp;
  if (mask >> (b.now % kWarpSize) & 1) {
    b.exchange();
  } else {
    b.throw_later("is called by a lane outside its mask");
  }
  if (me.state != State::kReady || !b.trouble.empty()) b.yield();
  return me.got;
}

template <typename T>
T shuffle(const char* what, int line, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp(what, line, mask, bits, source);
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return block().now % kWarpSize; }

}  // namespace emulator

inline void __syncthreads(int line = __builtin_LINE()) {
  emulator::Block& b = emulator::block();
  emulator::Fiber& me = b.fibers[b.now];
  me.what = "__syncthreads";
  me.line = line;
  me.mask = 0;
  me.state = emulator::State::kBarrier;
  b.yield();
}

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  emulator::warp("__syncwarp", line, mask, 0, -1);
}

inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffle("__shfl_sync", line, mask, v, emulator::lane() / width * width + from % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, int line = __builtin_LINE()) {
  const int me = emulator::lane(), from = me ^ bits;
  return emulator::shuffle("__shfl_xor_sync", line, mask, v, from / width > me / width ? me : from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  const int me = emulator::lane();
  return emulator::shuffle("__shfl_down_sync", line, mask, v, me % width + by < width ? me + by : me);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  const int me = emulator::lane();
  return emulator::shuffle("__shfl_up_sync", line, mask, v, me % width >= by ? me - by : me);
}
inline unsigned __ballot_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
  return static_cast<unsigned>(emulator::warp("__ballot_sync", line, mask, yes != 0, -1));
}
inline int __any_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
  return emulator::warp("__any_sync", line, mask, yes != 0, -1) != 0;
}
inline int __all_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
  return emulator::warp("__all_sync", line, mask, yes != 0, -1) == mask;
}

template <typename T>
T atomicAdd(T* at, T by) {
  const T old = *at;
  *at = static_cast<T>(old + by);
  return old;
}
template <typename T>
T atomicMax(T* at, T other) {
  const T old = *at;
  *at = std::max(old, other);
  return old;
}
template <typename T>
T atomicMin(T* at, T other) {
  const T old = *at;
  *at = std::min(old, other);
  return old;
}
template <typename T>
T atomicOr(T* at, T other) {
  const T old = *at;
  *at = static_cast<T>(old | other);
  return old;
}
template <typename T>
T atomicExch(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <typename T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned u;
  memcpy(&u, &x, sizeof u);
  return u;
}
inline float __fadd_rd(float a, float b) {  // the sum rounded down
  const float s = a + b, part = s - a, error = (a - (s - part)) + (b - part);
  return error < 0 ? nextafterf(s, -INFINITY) : s;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (bits & 31));
}
inline float __uint_as_float(unsigned u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}
