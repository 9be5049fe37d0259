// AVX2 with FMA and F16C. See masked_softmax_avx512.cpp for the order of headers and pragma.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../softmax_math.h"
#include "masked_softmax.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace samplers::cpu {
namespace {

struct Simd {
  static constexpr int kWidth = 8, kHalves = 16;
  static constexpr bool kSplits = true;
  using V = __m256;
  using H = __m256i;  // 16 16-bit integers
  using M = __m256;
  static inline V set1(float x) { return _mm256_set1_ps(x); }
  static inline V load(const float* p) { return _mm256_loadu_ps(p); }
  static inline __m256i load_bits(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  // Entries 0-3, 8-11, and the others: a 16-bit zero below each makes it a float.
  static inline void load_bf16_pair(const uint16_t* p, V& a, V& b) {
    const __m256i h = load_bits(p), zero = _mm256_setzero_si256();
    a = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, h));
    b = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, h));
  }
  static inline V load_fp16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline V load_one(int type, const void* x, int i) {
    if (type == 0) return load(static_cast<const float*>(x) + i);
    const uint16_t* p = static_cast<const uint16_t*>(x) + i;
    if (type == 2) return load_fp16(p);
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }

  // A 16-bit float as an integer of the same order, and back: it is its own inverse.
  static inline uint16_t ordered(int16_t h) { return static_cast<uint16_t>(h ^ ((h >> 15) & 0x7fff)); }
  static inline H load_ordered(const uint16_t* p) {
    const __m256i h = load_bits(p);
    return _mm256_xor_si256(h, _mm256_and_si256(_mm256_srai_epi16(h, 15), _mm256_set1_epi16(0x7fff)));
  }
  static inline H set16(int16_t x) { return _mm256_set1_epi16(x); }
  static inline H max16(H a, H b) { return _mm256_max_epi16(a, b); }
  static inline H min16(H a, H b) { return _mm256_min_epi16(a, b); }
  static inline int16_t highest16(H x) {
    const __m128i b = _mm_max_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(b, _mm_set1_epi16(0x7fff)));
    return static_cast<int16_t>(_mm_extract_epi16(least, 0) ^ 0x7fff);
  }
  static inline int16_t lowest16(H x) { return static_cast<int16_t>(~highest16(_mm256_xor_si256(x, set16(-1)))); }

  static inline void store(float* p, V x) { _mm256_storeu_ps(p, x); }
  static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
  static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static inline V max(V a, V b) { return _mm256_max_ps(a, b); }  // b if either is NaN
  static inline V min(V a, V b) { return _mm256_min_ps(a, b); }
  static inline void split(V t, V& n, V& r) {
    n = _mm256_floor_ps(t);
    r = sub(t, n);
  }
  static inline V scale(V p, V n) {  // 2^n is normal here
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
  }
  static inline float highest(V x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static inline float halving_sum(V x) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  // The last steps, 8 apart and less, for a pair from load_bf16_pair.
  static inline float split_sum(V a, V b) {
    const __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 b4 = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 s = _mm_add_ps(a4, b4), c = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  static inline M no_mask() { return _mm256_setzero_ps(); }
  static inline M or_nan(M m, V a, V b) { return _mm256_or_ps(m, _mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
  static inline bool any(M m) { return _mm256_movemask_ps(m) != 0; }
  static inline V zero_below(V t, V floor, V w) { return _mm256_andnot_ps(_mm256_cmp_ps(t, floor, _CMP_LT_OQ), w); }
  static inline V guided(V a, V b, V w) {
    const V low = set1(-INFINITY), high = set1(INFINITY);
    V r = fma(w, sub(a, b), a);
    r = _mm256_blendv_ps(r, a, _mm256_or_ps(_mm256_cmp_ps(a, low, _CMP_EQ_OQ), _mm256_cmp_ps(b, low, _CMP_EQ_OQ)));
    const V bad = _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q), _mm256_cmp_ps(b, high, _CMP_EQ_OQ));
    return _mm256_blendv_ps(r, set1(NAN), bad);
  }
  static inline void merge_at(Lanes& lanes, int i, V first, V second) {
    const V f = load(lanes.first + i), s = load(lanes.second + i);
    store(lanes.second + i, max(max(s, second), min(f, first)));
    store(lanes.first + i, max(f, first));
  }
  static inline void merge(Lanes& lanes, V first, V second) { merge_at(lanes, 0, first, second); }
};

#include "masked_softmax_pass.h"

}  // namespace

const Kernels kAvx2 = {"avx2", SAMPLERS_PEAKS, SAMPLERS_SUMS, widen, guide, weights, scales};

}  // namespace samplers::cpu
#pragma GCC pop_options
#endif
