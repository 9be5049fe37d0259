// Plain C++: any machine, and the yardstick for the other two.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../softmax_math.h"
#include "masked_softmax.h"

namespace samplers::cpu {
namespace {

struct Simd {
  static constexpr int kWidth = 16;
  struct V {
    float v[16];
  };
  using M = bool;

  // 2^n; what is out of range here is a NaN's, or belongs to a chunk that will be done again.
  static inline float power(float n) {
    const int32_t e = n >= kFloor && n <= 127.f ? static_cast<int32_t>(n) : 0;
    return float_from_bits(static_cast<uint32_t>(e + 127) << 23);
  }

#define SAMPLERS_LANES(expression)                      \
  V r;                                                  \
  for (int i = 0; i < kWidth; ++i) r.v[i] = expression; \
  return r
  static inline V set1(float x) { SAMPLERS_LANES(x); }
  static inline V load(const float* p) { SAMPLERS_LANES(p[i]); }
  static inline V load_bf16(const uint16_t* p) { SAMPLERS_LANES(float_from_bf16(p[i])); }
  static inline V load_fp16(const uint16_t* p) { SAMPLERS_LANES(float_from_fp16(p[i])); }
  static inline V add(V a, V b) { SAMPLERS_LANES(a.v[i] + b.v[i]); }
  static inline V sub(V a, V b) { SAMPLERS_LANES(a.v[i] - b.v[i]); }
  static inline V mul(V a, V b) { SAMPLERS_LANES(a.v[i] * b.v[i]); }
  static inline V fma(V a, V b, V c) { SAMPLERS_LANES(fmaf(a.v[i], b.v[i], c.v[i])); }
  static inline V max(V a, V b) { SAMPLERS_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  // b if either is NaN
  static inline V min(V a, V b) { SAMPLERS_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
  // Adding and taking away 1.5 * 2^23 rounds half to even, for |x| < 2^22; rintf is a call without SSE4.1.
  static inline V round(V x) { SAMPLERS_LANES((x.v[i] + 12582912.f) - 12582912.f); }
  static inline V scale(V p, V n) { SAMPLERS_LANES(p.v[i] * power(n.v[i])); }
  static inline V zero_below(V t, V floor, V w) { SAMPLERS_LANES(t.v[i] < floor.v[i] ? 0.f : w.v[i]); }
  static inline V guided(V a, V b, V w) { SAMPLERS_LANES(samplers::guided(a.v[i], b.v[i], w.v[i])); }
#undef SAMPLERS_LANES

  static inline void store(float* p, V x) { memcpy(p, x.v, sizeof x.v); }
  static inline float highest(V x) {
    float m = x.v[0];
    for (int i = 1; i < kWidth; ++i) m = m > x.v[i] ? m : x.v[i];
    return m;
  }
  static inline float halving_sum(V x) {
    for (int h = kWidth / 2; h >= 1; h /= 2)
      for (int i = 0; i < h; ++i) x.v[i] += x.v[i + h];
    return x.v[0];
  }
  static inline M no_mask() { return false; }
  static inline M or_nan(M m, V x) {
    for (int i = 0; i < kWidth; ++i) m |= x.v[i] != x.v[i];
    return m;
  }
  static inline bool any(M m) { return m; }
  static inline void merge(Lanes& lanes, V first, V second) {
    const V f = load(lanes.first), s = load(lanes.second);
    store(lanes.second, max(max(s, second), min(f, first)));
    store(lanes.first, max(f, first));
  }
};

#include "masked_softmax_pass.h"

}  // namespace

const Kernels kPortable = {"portable", SAMPLERS_PASSES, widen, guide, weights, scales};

}  // namespace samplers::cpu
