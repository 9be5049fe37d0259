// The arithmetic of masked_softmax, shared by every kernel and mirrored by the twin, the torch reference
// implementation, in samplers/ops/masked_softmax.py. Every operation and its order is part of the specification: two
// implementations that follow it agree bit for bit, so a token never depends on the instruction set, the thread count
// or the device. Compile with -ffp-contract=off (nvcc: -fmad=false): an FMA happens where it is written and nowhere
// else.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hd.h"

namespace samplers {

constexpr int kChunk = 1024;      // vocabulary entries that share a reference, which is their maximum
constexpr int kBlock = 128;       // fp32 accumulators per chunk; element i goes to accumulator i mod kBlock
constexpr float kFloor = -126.f;  // a weight below 2^-126 of its chunk's largest is 0: denormals cost microcode
// A chunk whose largest weight lies this many powers of two below the row's largest is left out, without being computed
// if that is known in time. All that is left out of a row weighs less than V 2^-42 of its total, 2^-24 at V = 2^18:
// less than the rounding of a probability to fp32.
constexpr double kDrop = 42.0;
constexpr double kLog2e = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// 2^r on [0, 1]: minimax in relative error (8.3e-8) with the constant held at 1, so that 2^0 is exactly 1.
// (The lists are macros since device code cannot read an array that lies outside its functions.)
#define SAMPLERS_EXP2 1.f, 0x1.62e4bap-1f, 0x1.ebdb6ap-3f, 0x1.c91c10p-5f, 0x1.277c1ep-7f, 0x1.e96900p-10f
constexpr float kExp2[6] = {SAMPLERS_EXP2};

// The same in double (1.6e-16), by interpolation in Chebyshev nodes. Evaluated with separate multiplications and
// additions: torch has no double FMA, and this is the twin's arithmetic too.
#define SAMPLERS_EXP2D                                                                                          \
  0x1.0000000000000p+0, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5aep-3, 0x1.c6b08d704a0c6p-5, 0x1.3b2ab6fb9f1a5p-7, \
      0x1.5d87fe78a3f9cp-10, 0x1.430913112c61bp-13, 0x1.ffcbfc6da6ed1p-17, 0x1.62bfc2c86d700p-20,               \
      0x1.b524ebd13a55fp-24, 0x1.e6228acd1c6e5p-28, 0x1.e9ec1fcb69a7fp-32

SAMPLERS_HD float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SAMPLERS_HD uint32_t bits_from_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SAMPLERS_HD double double_from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SAMPLERS_HD uint64_t bits_from_double(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The weight 2^t of an entry t <= 0 powers of two below its chunk's largest; a NaN stays one.
SAMPLERS_HD float exp2_weight(float t) {
  constexpr float c[6] = {SAMPLERS_EXP2};
  if (t < kFloor) return 0.f;
  const float n = floorf(t), r = t - n;
  float p = c[5];
  for (int i = 4; i >= 0; --i) p = fmaf(p, r, c[i]);
  const int32_t e = n == n ? static_cast<int32_t>(n) : 0;
  return p * float_from_bits(static_cast<uint32_t>(e + 127) << 23);
}

// 2^x in double for x <= 1000; below -1000 it is 0 (so is 2^-inf), a NaN stays one.
SAMPLERS_HD double exp2_scale(double x) {
  constexpr double c[12] = {SAMPLERS_EXP2D};
  const double clamped = x < -1000.0 ? -1000.0 : x;
  const double shifted = clamped + 6755399441055744.0;  // 1.5 * 2^52: the low bits now hold x, rounded half to even
  const double n = shifted - 6755399441055744.0, r = clamped - n;
  double p = c[11];
  for (int i = 10; i >= 0; --i) p = p * r + c[i];
  const double power = double_from_bits((bits_from_double(shifted) + 1023) << 52);
  return x < -1000.0 ? 0.0 : p * power;
}

// Classifier-free guidance of one logit: (1 + w) a - w b, with what is impossible kept impossible.
SAMPLERS_HD float guided(float a, float b, float w) {
  if (a != a || b != b || b == INFINITY) return NAN;
  if (a == -INFINITY || b == -INFINITY) return a;
  return fmaf(w, a - b, a);
}

SAMPLERS_HD float float_from_bf16(uint16_t h) { return float_from_bits(static_cast<uint32_t>(h) << 16); }

SAMPLERS_HD float float_from_fp16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent) return float_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

}  // namespace samplers
