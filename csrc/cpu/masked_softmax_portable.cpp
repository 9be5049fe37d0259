// Plain C++: any machine, and the yardstick for the other two.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../softmax_math.h"
#include "masked_softmax.h"

namespace samplers::cpu {
namespace {

struct Simd {
  static constexpr int kWidth = 16, kHalves = 32;
  static constexpr bool kSplits = false;
  struct V {
    float v[16];
  };
  struct H {
    int16_t v[32];
  };
  using M = bool;

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
  static inline V scale(V p, V n) {
    SAMPLERS_LANES(p.v[i] * float_from_bits(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23));
  }
  static inline V zero_below(V t, V floor, V w) { SAMPLERS_LANES(t.v[i] < floor.v[i] ? 0.f : w.v[i]); }
  static inline V guided(V a, V b, V w) { SAMPLERS_LANES(samplers::guided(a.v[i], b.v[i], w.v[i])); }
  // Adding and taking away 1.5 * 2^23 rounds half to even, for |x| < 2^22; floorf is a call without SSE4.1.
  static inline V floor(V x) {
    V r;
    for (int i = 0; i < kWidth; ++i) {
      const float n = (x.v[i] + 12582912.f) - 12582912.f;
      r.v[i] = n > x.v[i] ? n - 1.f : n;
    }
    return r;
  }
#undef SAMPLERS_LANES
  static inline void load_bf16_pair(const uint16_t* p, V& a, V& b) {
    a = load_bf16(p);
    b = load_bf16(p + kWidth);
  }
  static inline V load_one(int type, const void* x, int i) {
    if (type == 0) return load(static_cast<const float*>(x) + i);
    const uint16_t* p = static_cast<const uint16_t*>(x) + i;
    return type == 1 ? load_bf16(p) : load_fp16(p);
  }
  static inline void split(V t, V& n, V& r) {
    n = floor(t);
    r = sub(t, n);
  }

#define SAMPLERS_HALVES(expression)                                            \
  H r;                                                                         \
  for (int i = 0; i < kHalves; ++i) r.v[i] = static_cast<int16_t>(expression); \
  return r
  // A 16-bit float as an integer of the same order, and back: it is its own inverse.
  static inline uint16_t ordered(int16_t h) { return static_cast<uint16_t>(h ^ ((h >> 15) & 0x7fff)); }
  static inline H load_ordered(const uint16_t* p) { SAMPLERS_HALVES(ordered(static_cast<int16_t>(p[i]))); }
  static inline H set16(int16_t x) { SAMPLERS_HALVES(x); }
  static inline H max16(H a, H b) { SAMPLERS_HALVES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
  static inline H min16(H a, H b) { SAMPLERS_HALVES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
#undef SAMPLERS_HALVES
  static inline int16_t highest16(H x) {
    int16_t m = x.v[0];
    for (int i = 1; i < kHalves; ++i) m = m > x.v[i] ? m : x.v[i];
    return m;
  }
  static inline int16_t lowest16(H x) {
    int16_t m = x.v[0];
    for (int i = 1; i < kHalves; ++i) m = m < x.v[i] ? m : x.v[i];
    return m;
  }

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
  static inline float split_sum(V a, V b) { return halving_sum(add(a, b)); }  // never: kSplits is false
  static inline M or_nan(M m, V a, V b) {
    for (int i = 0; i < kWidth; ++i) m |= (a.v[i] != a.v[i]) | (b.v[i] != b.v[i]);
    return m;
  }
  static inline bool any(M m) { return m; }
  static inline void merge_at(Lanes& lanes, int i, V first, V second) {
    const V f = load(lanes.first + i), s = load(lanes.second + i);
    store(lanes.second + i, max(max(s, second), min(f, first)));
    store(lanes.first + i, max(f, first));
  }
  static inline void merge(Lanes& lanes, V first, V second) { merge_at(lanes, 0, first, second); }
};

#include "masked_softmax_pass.h"

}  // namespace

const Kernels kPortable = {"portable", SAMPLERS_PEAKS, SAMPLERS_SUMS, widen, guide, weights, scales};

}  // namespace samplers::cpu
