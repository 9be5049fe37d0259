// The CPU kernel of masked_softmax, free of torch: raw pointers in, raw pointers out.
#pragma once

#include <stdint.h>

#include "../masked_softmax.h"

namespace samplers::cpu {

// One chunk of one row after its passes.
struct Chunk {
  float max, min;  // largest and smallest entry
  float sum[2];    // sum of weights, by weight set
  float entropy;   // sum of weight * t, of the first set
  bool bad;        // a NaN or +inf was met
};

// Best and second best value seen so far, lane by lane: which lane saw what does not matter for the two best values.
constexpr int kLanes = 16;
struct alignas(64) Lanes {
  float first[kLanes], second[kLanes];
};

// What one instruction set offers. Passes run over `blocks` * 128 entries of a type.
struct Kernels {
  const char* name;
  // `ahead` is memory that will be wanted next: it is prefetched, never read.
  // Fills max, min and bad; lanes take in the two best values if kTop2.
  using Peak = void (*)(const void* x, int blocks, const char* ahead, Chunk& out, Lanes& lanes);
  Peak peak[3][2];  // [type][top2]
  // Sums the weights of entries below the reference m, for one or two temperatures. Not deep: no t is below the floor.
  using Sums = void (*)(const void* x, int blocks, float m, const float* k, const char* ahead, float* sum,
                        float* entropy);
  Sums sums[3][2][2][2];  // [type][two sets][entropy][deep]
  // n entries to fp32, the rest of their last block of 128 filled with -inf.
  void (*widen)(Type type, const void* x, int n, float* out);
  void (*guide)(float* a, const float* b, float w, int n);
  // The weights of n fp32 entries, whole vectors read and written.
  void (*weights)(const float* x, int n, float m, float k, float* out);
  // out[i] = 2^x[i] in double.
  void (*scales)(const double* x, int n, double* out);
};

extern const Kernels kAvx512, kAvx2, kPortable;

// Chosen once, at first use: the widest the machine has, or what SAMPLERS_ISA says. choose("") chooses again.
const Kernels& kernels();
const char* choose(const char* name);  // for tests; returns what is in use now, nullptr if `name` cannot be had

void masked_softmax(const SoftmaxJob& job);

// Keeps, of x[0, n), n a multiple of 128, the top_k largest and of those the fewest, largest first, that hold top_p of
// the weight 2^((x - max) k); the rest becomes -inf. Equals go by the lower id. `highest` is the largest entry, finite.
struct Truncation {
  int64_t top_k;
  double top_p;
  float k;
};
void truncate(const Kernels& isa, const Truncation& how, float highest, float* x, int64_t n);

}  // namespace samplers::cpu
