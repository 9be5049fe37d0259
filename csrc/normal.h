// Standard normals of a run by the transform of Box and Muller (1958), shared by every kernel and mirrored by the twin
// in samplers/ops/normals.py. Every operation and its order is part of the specification, as in softmax_math.h: only
// sums, products, square roots and integer operations, each rounded by itself, so that all implementations agree bit
// for bit.
//
// A block of Philox makes four float32 or two float64 normals: words of 32 or 64 bits are taken in pairs (v, w), and
//
//     radius = sqrt(-2 ln u),  u = (v | 1) / 2^32,  between 2^-32 and 1 - 2^-32       (2^64 for float64)
//     angle  = (pi / 2) t,     t = (the lower 30 bits of w, with sign, and half a unit) / 2^30, between -1/2 and 1/2
//     normals = radius * (+-cos angle, sin angle), the upper two bits of w being the sign and whether the two change
//     places
//
// Both u and t are symmetric and never 0, 1/2 or 1: a normal is finite and not 0, and its distribution is symmetric.
#pragma once

#include <math.h>
#include <stdint.h>

#include "philox.h"
#include "softmax_math.h"

namespace samplers {

// Polynomials, minimax in the relative error of the whole function, coefficients rounded one after the other, lowest
// first. (Lists are macros since device code cannot read an array that lies outside its functions.)
// (-2 ln(1 - g) - 2 g) / g^2 for 0 < g <= 1/2: 3.7e-9, 2.4e-18
#define SAMPLERS_LOG32                                                                                             \
  0x1.00001ep+0f, 0x1.5542f6p-1f, 0x1.01e9dap-1f, 0x1.6830eap-2f, 0x1.5c3b3ep-1f, -0x1.2f400ap+0f, 0x1.f89360p+1f, \
      -0x1.3d003cp+2f, 0x1.be574cp+1f
#define SAMPLERS_LOG64                                                                                                 \
  0x1.000000000000cp+0, 0x1.55555555530f7p-1, 0x1.000000013601ap-1, 0x1.999998f0f7f11p-2, 0x1.555570f6e6c2ep-2,        \
      0x1.248f49f3abaaep-2, 0x1.003a7c943f36fp-2, 0x1.c09507a0d3de4p-3, 0x1.dfe2c4bc034eep-3, -0x1.a29e34bd6e5f5p-4,   \
      0x1.ffb49be2ba602p+0, -0x1.247aa271a4166p+3, 0x1.2af29060dc491p+5, -0x1.d645c129680c8p+6, 0x1.245ee4df69244p+8,  \
      -0x1.19a7fd7ff89d4p+9, 0x1.9d8fbe44ba507p+9, -0x1.bf2076a1d7ef5p+9, 0x1.50c1465303262p+9, -0x1.3c7e77bf4602ap+8, \
      0x1.1aa2735454f3cp+6
// sin(pi t / 2) / t in t^2: 2.8e-8, 4.0e-17, nearly all of it the rounding of pi / 2
#define SAMPLERS_SIN32 0x1.921fb6p+0f, -0x1.4abc24p-1f, 0x1.4680a4p-4f, -0x1.331986p-8f
#define SAMPLERS_SIN64                                                                                             \
  0x1.921fb54442d18p+0, -0x1.4abbce625bdaep-1, 0x1.466bc6774afcep-4, -0x1.32d2ccd46a554p-8, 0x1.507821d4f8e6fp-13, \
      -0x1.e2f3f103d3c9ep-19, 0x1.dfc5c12dceed5p-25
// (cos(pi t / 2) - 1) / t^2 in t^2: 4.4e-10, 3.1e-19
#define SAMPLERS_COS32 -0x1.3bd3ccp+0f, 0x1.03c1b0p-2f, -0x1.55b2b6p-6f, 0x1.d4f7eap-11f
#define SAMPLERS_COS64                                                                                               \
  -0x1.3bd3cc9be45dep+0, 0x1.03c1f081b5a52p-2, -0x1.55d3c7e3bfe55p-6, 0x1.e1f50675b1d72p-11, -0x1.a6d1e238aa183p-16, \
      0x1.f9c4ad753fc0ap-22, -0x1.b034411069a29p-28

template <typename F>
SAMPLERS_HD F polynomial(F, F c) {
  return c;
}
template <typename F, typename... More>
SAMPLERS_HD F polynomial(F x, F c, More... more) {
  return polynomial(x, more...) * x + c;
}

// a where the bits of `mask` are 1, else b: a choice that no compiler turns into a jump, so that loops are vectorised.
template <typename Bits>
SAMPLERS_HD Bits choose_bits(Bits mask, Bits a, Bits b) {
  return b ^ ((a ^ b) & mask);
}

// sqrt(-2 ln u) of n = 2^32 u below u = 1/2, of n = 2^32 (u - 1) above: there 1 - u must not be rounded away.
// u = (1 - g) 2^-e with g in (0, 1/2], so that -ln u = e ln 2 - ln(1 - g) is a sum of positive numbers.
SAMPLERS_HD float normal_radius(float n) {
  const uint32_t bits = bits_from_float(n), above = 0u - (bits >> 31);
  const float mantissa = float_from_bits((bits & 0x7fffffu) | 0x3f000000u);  // in [1/2, 1)
  const float g = float_from_bits(choose_bits(above, bits_from_float(n * -0x1p-32f), bits_from_float(1.f - mantissa)));
  const float e = static_cast<float>(static_cast<int32_t>((158u - (bits >> 23)) & ~above));
  return sqrtf(polynomial(g, SAMPLERS_LOG32) * (g * g) + (g + g) + e * 0x1.62e430p+0f);
}

// The same of 2^64 u, or 2^64 (u - 1).
SAMPLERS_HD double normal_radius(double n) {
  const uint64_t bits = bits_from_double(n), above = uint64_t{0} - (bits >> 63);
  const double mantissa = double_from_bits((bits & 0xfffffffffffffu) | 0x3fe0000000000000u);
  const double g =
      double_from_bits(choose_bits(above, bits_from_double(n * -0x1p-64), bits_from_double(1. - mantissa)));
  const uint32_t exponent = static_cast<uint32_t>(bits >> 52);
  const double e = static_cast<int32_t>((1086u - exponent) & ~static_cast<uint32_t>(above));
  return sqrt(polynomial(g, SAMPLERS_LOG64) * (g * g) + (g + g) + e * 0x1.62e42fefa39efp+0);
}

// The nearest double of a 64-bit integer with a sign, given in halves: few machines convert such integers in vectors.
SAMPLERS_HD double double_from_halves(uint32_t high, uint32_t low) {
  const double below = static_cast<int32_t>(low ^ 0x80000000u);
  return static_cast<int32_t>(high) * 4294967296.0 + (below + 2147483648.0);
}

// Two normals of two words.
SAMPLERS_HD void normal_pair(uint32_t v, uint32_t w, float* out) {
  const float radius = normal_radius(static_cast<float>(static_cast<int32_t>(v | 1u)));
  const float t = static_cast<float>(static_cast<int32_t>(w << 2 | 2u)) * 0x1p-32f, tt = t * t;
  const uint32_t s = bits_from_float(polynomial(tt, SAMPLERS_SIN32) * t * radius);
  const uint32_t c = bits_from_float((polynomial(tt, SAMPLERS_COS32) * tt + 1.f) * radius) ^ (w & 0x80000000u);
  const uint32_t swapped = 0u - (w >> 30 & 1u);
  out[0] = float_from_bits(choose_bits(swapped, s, c));
  out[1] = float_from_bits(choose_bits(swapped, c, s));
}

// How many normals a block makes.
template <typename F>
constexpr int kPerBlock = 16 / sizeof(F);

SAMPLERS_HD void normals_of(const Philox4& r, float* out) {
  normal_pair(r.r0, r.r1, out);
  normal_pair(r.r2, r.r3, out + 2);
}

SAMPLERS_HD void normals_of(const Philox4& r, double* out) {
  const double radius = normal_radius(double_from_halves(r.r0, r.r1 | 1u));
  const double t = double_from_halves(r.r2 << 2 | r.r3 >> 30, r.r3 << 2 | 2u) * 0x1p-64, tt = t * t;
  const uint64_t s = bits_from_double(polynomial(tt, SAMPLERS_SIN64) * t * radius);
  const uint64_t c = bits_from_double((polynomial(tt, SAMPLERS_COS64) * tt + 1.) * radius) ^
                     static_cast<uint64_t>(r.r2 & 0x80000000u) << 32;
  const uint64_t swapped = uint64_t{0} - (r.r2 >> 30 & 1u);
  out[0] = double_from_bits(choose_bits(swapped, s, c));
  out[1] = double_from_bits(choose_bits(swapped, c, s));
}

template <typename F>
struct NormalJob {
  const int64_t* seed;  // (B,)
  const int64_t* row;   // (B,) the row's number under its seed
  const int64_t* step;  // (B,)
  int64_t rows;         // B
  int64_t length;
  uint32_t draw;
  F* out;  // (B, length)

  // Blocks of a row: element i is number i mod kPerBlock of block i / kPerBlock, whatever the length.
  SAMPLERS_HD int64_t blocks() const { return (length + kPerBlock<F> - 1) / kPerBlock<F>; }
};

}  // namespace samplers
