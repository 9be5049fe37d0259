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
  static constexpr int kWidth = 16, kHalves = 32;
  static constexpr bool kSplits = true;
  using V = __m512;
  using H = __m512i;  // 32 16-bit integers
  using M = __mmask16;
  static inline V set1(float x) { return _mm512_set1_ps(x); }
  static inline V load(const float* p) { return _mm512_loadu_ps(p); }
  // Entries 0-3, 8-11, 16-19, 24-27, and the others: a 16-bit zero below each makes it a float.
  static inline void load_bf16_pair(const uint16_t* p, V& a, V& b) {
    const __m512i h = _mm512_loadu_si512(p), zero = _mm512_setzero_si512();
    a = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, h));
    b = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, h));
  }
  static inline V load_fp16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline V load_one(int type, const void* x, int i) {
    if (type == 0) return load(static_cast<const float*>(x) + i);
    const uint16_t* p = static_cast<const uint16_t*>(x) + i;
    if (type == 2) return load_fp16(p);
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }

  // A 16-bit float as an integer of the same order, and back: it is its own inverse.
  static inline uint16_t ordered(int16_t h) { return static_cast<uint16_t>(h ^ ((h >> 15) & 0x7fff)); }
  static inline H load_ordered(const uint16_t* p) {
    const __m512i h = _mm512_loadu_si512(p);
    return _mm512_ternarylogic_epi32(h, _mm512_srai_epi16(h, 15), _mm512_set1_epi16(0x7fff), 0x78);  // h ^ (s & c)
  }
  static inline H set16(int16_t x) { return _mm512_set1_epi16(x); }
  static inline H max16(H a, H b) { return _mm512_max_epi16(a, b); }
  static inline H min16(H a, H b) { return _mm512_min_epi16(a, b); }
  static inline int16_t highest16(H x) {
    const __m256i a = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i b = _mm_max_epi16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(b, _mm_set1_epi16(0x7fff)));
    return static_cast<int16_t>(_mm_extract_epi16(least, 0) ^ 0x7fff);
  }
  static inline int16_t lowest16(H x) { return static_cast<int16_t>(~highest16(_mm512_xor_si512(x, set16(-1)))); }

  static inline void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
  static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static inline V max(V a, V b) { return _mm512_max_ps(a, b); }  // b if either is NaN
  static inline V min(V a, V b) { return _mm512_min_ps(a, b); }
  // Not vreduceps: it rounds r down, and nobody else does.
  static inline void split(V t, V& n, V& r) {
    n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    r = sub(t, n);
  }
  static inline V scale(V p, V n) { return _mm512_scalef_ps(p, n); }
  static inline float highest(V x) { return _mm512_reduce_max_ps(x); }
  static inline float halving_sum(V x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  // The last steps, 16 apart and less, for a pair from load_bf16_pair.
  static inline float split_sum(V a, V b) {
    const __m256 a8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m256 b8 = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1));
    const __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
    const __m128 b4 = _mm_add_ps(_mm256_castps256_ps128(b8), _mm256_extractf128_ps(b8, 1));
    const __m128 s = _mm_add_ps(a4, b4), c = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  static inline M no_mask() { return 0; }
  static inline M or_nan(M m, V a, V b) { return _mm512_kor(m, _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)); }
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
  static inline void merge_at(Lanes& lanes, int i, V first, V second) {
    const V f = load(lanes.first + i), s = load(lanes.second + i);
    store(lanes.second + i, max(max(s, second), min(f, first)));
    store(lanes.first + i, max(f, first));
  }
  static inline void merge(Lanes& lanes, V first, V second) { merge_at(lanes, 0, first, second); }
};

#include "masked_softmax_pass.h"

}  // namespace

const Kernels kAvx512 = {"avx512", SAMPLERS_PEAKS, SAMPLERS_SUMS, widen, guide, weights, scales};

}  // namespace samplers::cpu
#pragma GCC pop_options
#endif
