// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A counter-based generator is a pure function, so a draw depends on what it is for and on nothing else: not on the
// batch, not on the device, not on what was drawn before.
#pragma once

#include <stdint.h>

#include "hd.h"

namespace samplers {

struct Philox4 {
  uint32_t r0, r1, r2, r3;
};

SAMPLERS_HD Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  constexpr uint64_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = kMul0 * c0, b = kMul1 * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    c0 = n0;
    c2 = n2;
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {c0, c1, c2, c3};
}

// The library's contract for a draw: the key says whose it is, the counter says which.
SAMPLERS_HD Philox4 philox_of(uint64_t seed, uint64_t row, uint32_t position, uint32_t step, uint32_t draw) {
  const uint32_t high = static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(row >> 32);
  return philox4x32(position, step, draw, high, static_cast<uint32_t>(seed), static_cast<uint32_t>(row));
}

// 53 random bits in [0, 1): never 1, and 0 once in 2^53 draws. (Signed words, since fewer machines convert unsigned
// ones.)
SAMPLERS_HD double unit_interval(uint32_t r0, uint32_t r1) {
  const double high = static_cast<int32_t>(r0 >> 5), low = static_cast<int32_t>(r1 >> 6);
  return (high * 67108864.0 + low) * 1.1102230246251565404e-16;
}

SAMPLERS_HD double uniform(uint64_t seed, uint64_t row, uint32_t position, uint32_t step, uint32_t draw) {
  const Philox4 r = philox_of(seed, row, position, step, draw);
  return unit_interval(r.r0, r.r1);
}

}  // namespace samplers
