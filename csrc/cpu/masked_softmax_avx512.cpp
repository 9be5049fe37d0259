// AVX-512. Headers come before the target pragma, so that nothing shared is compiled for a machine we may not be on.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../softmax_math.h"
#include "masked_softmax.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

namespace samplers::cpu {
namespace {

struct Simd {
  static constexpr int kWidth = 16;
  using V = __m512;
  using M = __mmask16;
  static inline V set1(float x) { return _mm512_set1_ps(x); }
  static inline V load(const float* p) { return _mm512_loadu_ps(p); }
  static inline V load_bf16(const uint16_t* p) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static inline V load_fp16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
  static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static inline V max(V a, V b) { return _mm512_max_ps(a, b); }  // b if either is NaN
  static inline V min(V a, V b) { return _mm512_min_ps(a, b); }
  static inline V round(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline V scale(V p, V n) { return _mm512_scalef_ps(p, n); }
  static inline float highest(V x) { return _mm512_reduce_max_ps(x); }
  static inline float halving_sum(V x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  static inline M no_mask() { return 0; }
  static inline M or_nan(M m, V x) { return _mm512_kor(m, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)); }
  static inline bool any(M m) { return m != 0; }
  static inline V zero_below(V t, V floor, V w) {
    return _mm512_mask_mov_ps(w, _mm512_cmp_ps_mask(t, floor, _CMP_LT_OQ), _mm512_setzero_ps());
  }
  static inline V guided(V a, V b, V w) {
    const V low = set1(-INFINITY), high = set1(INFINITY);
    V r = fma(w, sub(a, b), a);
    const M keep = _mm512_cmp_ps_mask(a, low, _CMP_EQ_OQ) | _mm512_cmp_ps_mask(b, low, _CMP_EQ_OQ);
    r = _mm512_mask_mov_ps(r, keep, a);
    const M bad = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, high, _CMP_EQ_OQ);
    return _mm512_mask_mov_ps(r, bad, set1(NAN));
  }
  static inline void merge(Lanes& lanes, V first, V second) {
    const V f = load(lanes.first), s = load(lanes.second);
    store(lanes.second, max(max(s, second), min(f, first)));
    store(lanes.first, max(f, first));
  }
};

#include "masked_softmax_pass.h"

}  // namespace

const Kernels kAvx512 = {"avx512", SAMPLERS_PASSES, widen, guide, weights, scales};

}  // namespace samplers::cpu
#pragma GCC pop_options
#endif
