// Small steps of arithmetic that C++ has no name for but the device an instruction; elsewhere they are spelt out.
#pragma once

#include <stdint.h>

#include "../hd.h"
#include "../softmax_math.h"
#include "block.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace samplers::cuda {

enum Format : int { kF32 = 0, kBF16 = 1, kF16 = 2 };  // as Type

// The larger; a NaN if either is one.
__device__ __forceinline__ float max_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return a != a ? a : b != b ? b : a > b ? a : b;
#endif
}

// Half `which` of a word that holds two 16-bit numbers, or the word itself, as fp32.
template <int kFormat>
__device__ __forceinline__ float number(uint32_t word, int which) {
  if constexpr (kFormat == kF32) return float_from_bits(word);
  if constexpr (kFormat == kBF16) return float_from_bits(which ? word & 0xffff0000u : word << 16);
  const uint16_t half = static_cast<uint16_t>(which ? word >> 16 : word);
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(half));
#else
  return float_from_fp16(half);
#endif
}

// max_nan and the smaller, of the one or two numbers of a word.
template <int kFormat>
__device__ __forceinline__ uint32_t max_word(uint32_t a, uint32_t b) {
  if constexpr (kFormat == kF32) return __float_as_uint(max_nan(float_from_bits(a), float_from_bits(b)));
#if defined(__CUDA_ARCH__)
  uint32_t r = 0;
  if constexpr (kFormat == kBF16) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  if constexpr (kFormat == kF16) asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
#else
  uint32_t r = 0;
  for (int h = 0; h < 2; ++h) {
    const float x = number<kFormat>(a, h), y = number<kFormat>(b, h);
    r |= (x != x || x > y ? a : b) & (h ? 0xffff0000u : 0xffffu);
  }
  return r;
#endif
}

template <int kFormat>
__device__ __forceinline__ uint32_t min_word(uint32_t a, uint32_t b) {
  if constexpr (kFormat == kF32) return __float_as_uint(fminf(float_from_bits(a), float_from_bits(b)));
#if defined(__CUDA_ARCH__)
  uint32_t r = 0;
  if constexpr (kFormat == kBF16) asm("min.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  if constexpr (kFormat == kF16) asm("min.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
#else
  uint32_t r = 0;
  for (int h = 0; h < 2; ++h) {
    const float x = number<kFormat>(a, h), y = number<kFormat>(b, h);
    r |= (x < y ? a : b) & (h ? 0xffff0000u : 0xffffu);
  }
  return r;
#endif
}

// exp2_weight for t in [-126, 0], bit for bit, in fewer instructions: the sum with 1.5 * 2^23, rounded down, holds
// floor(t) in its low bits, which go to the exponent by an addition. 2^t is normal there, so that is exact.
__device__ __forceinline__ float fast_exp2(float t) {
  const float shifted = __fadd_rd(t, 12582912.f), r = t - (shifted - 12582912.f);
  constexpr float c[6] = {SAMPLERS_EXP2};
  float p = c[5];
#pragma unroll
  for (int i = 4; i >= 0; --i) p = fmaf(p, r, c[i]);
  return float_from_bits(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

}  // namespace samplers::cuda
