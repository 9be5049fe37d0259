// Which positions of a row are chosen: what the CPU and the CUDA kernels of select, commit_ and the slot ops share.
// Plain data, and the few lines of arithmetic that must come out the same on both.
#pragma once

#include <stdint.h>
#include <string.h>

#include "hd.h"

namespace samplers {

// The order of positions as integers: a higher key goes first, equal keys by position. Zeros of both signs are one key;
// below all numbers comes NaN, and below that what may not be chosen at all.
template <typename F>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Key = int32_t;
  using Bits = uint32_t;
  static constexpr Key kSign = INT32_MIN, kInfinity = 0x7f800000;
};
template <>
struct KeyOf<double> {
  using Key = int64_t;
  using Bits = uint64_t;
  static constexpr Key kSign = INT64_MIN, kInfinity = 0x7ff0000000000000;
};
template <typename F>
using Key = typename KeyOf<F>::Key;
template <typename F>
using Bits = typename KeyOf<F>::Bits;
template <typename F>
constexpr Key<F> kBarred = KeyOf<F>::kSign;
template <typename F>
constexpr Key<F> kNan = KeyOf<F>::kSign + 1;

// Integers only: compilers vectorise this, and no rounding mode or flag reaches it. `sign` is kSign to turn the order
// around, else 0.
template <typename F>
SAMPLERS_HD Key<F> score_key(F score, Key<F> sign) {
  Key<F> bits;
  memcpy(&bits, &score, sizeof bits);
  const Key<F> magnitude = bits & ~KeyOf<F>::kSign;
  bits ^= sign;
  Key<F> key = bits ^ ((bits >> (8 * sizeof bits - 1)) & ~KeyOf<F>::kSign);
  key += key == -1;  // -0
  return magnitude > KeyOf<F>::kInfinity ? kNan<F> : key;
}

// The score that has a key of the usual order.
template <typename F>
SAMPLERS_HD F key_score(Key<F> key) {
  const Key<F> bits = key ^ ((key >> (8 * sizeof key - 1)) & ~KeyOf<F>::kSign);
  F score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

// The keys above this one reach the threshold; none does where it is NaN.
template <typename F>
SAMPLERS_HD Key<F> threshold_bound(F level, bool lowest, bool strict) {
  if (level != level) return ~KeyOf<F>::kSign;
  return score_key(level, lowest ? KeyOf<F>::kSign : Key<F>{0}) - (strict ? 0 : 1);
}

// Costs and budgets in units of 2^-32: integers add up to the same whatever the order. 2^16 costs of at most 2^14 stay
// below 2^62. NaN counts as the highest cost, and as no budget.
constexpr int64_t kMostCosts = 1 << 16;
SAMPLERS_HD int64_t fixed_cost(double cost) {
  if (cost <= 0) return 0;
  return cost < 16384.0 ? static_cast<int64_t>(cost * 4294967296.0) : int64_t{1} << 46;
}
SAMPLERS_HD int64_t fixed_budget(double budget) {
  if (!(budget >= 0)) return -1;
  return budget < 1073741824.0 ? static_cast<int64_t>(budget * 4294967296.0) : int64_t{1} << 62;
}

// Fast-dLLM's factor: may the n-th best, of this confidence, be committed together with those before it?
SAMPLERS_HD bool factor_holds(double confidence, int64_t n, double factor) {
  return confidence >= 1.0 - factor / static_cast<double>(n + 1);
}

SAMPLERS_HD int64_t clamp_count(int64_t count, int64_t least, int64_t most, int64_t candidates) {
  count = count < most ? count : most;
  count = count > least ? count : least;
  count = count < candidates ? count : candidates;
  return count > 0 ? count : 0;
}

// A (B, L) tensor of any strides, in elements.
template <typename T>
struct Plane {
  T* data;
  int64_t row, column;
  SAMPLERS_HD T& at(int64_t b, int64_t i) const { return data[b * row + i * column]; }
};

// A parameter: one per row, or one for all.
template <typename T>
struct PerRow {
  const T* rows;
  T all;
  SAMPLERS_HD T operator[](int64_t b) const { return rows ? rows[b] : all; }
};

enum class Rule : int { kAll = 0, kThreshold = 1, kFactor = 2, kBudget = 3 };

// One call of select, commit_ or select_slots. Place i of row b is position start[b] + i * step; places beyond `limit`
// are nobody's.
template <typename F>
struct Choice {
  int64_t rows, length, limit, step;
  PerRow<int64_t> start;
  Plane<const F> score, cost;      // cost.data null: the score
  Plane<const uint8_t> candidate;  // data null: all
  Rule rule;
  bool lowest, strict;
  PerRow<double> level;  // threshold, factor or budget
  PerRow<int64_t> least, most;
  uint8_t* chosen;             // (rows, length)
  int64_t* count;              // (rows,)
  Plane<int64_t> x;            // data null: nothing is written
  Plane<const int64_t> token;  // data null: `fill` is written
  int64_t fill;
};

// How many places of a row there are.
template <typename F>
SAMPLERS_HD int64_t places(const Choice<F>& job, int64_t start) {
  if (start < 0 || start >= job.limit) return 0;
  const int64_t there = (job.limit - start - 1) / job.step + 1;
  return there < job.length ? there : job.length;
}

// One call of accept_slots_.
template <typename F>
struct Acceptance {
  int64_t rows, length, slots, slot;
  PerRow<int64_t> start;
  Plane<int64_t> x;
  Plane<const int64_t> token;
  Plane<const F> probability;
  Plane<const uint8_t> chosen;     // (rows, slots)
  Plane<const uint8_t> candidate;  // (rows, length); data null: all
  PerRow<double> threshold;
  Plane<const int64_t> head;  // (rows, slots); data null: head_all
  int64_t head_all, extra, eos;
  bool strict, partial;
  int64_t* accepted;              // (rows, slots)
  int64_t *prefix, *end, *count;  // (rows,)
};

// One slot of accept_slots_: its tokens that are candidates, and how many of them stand.
struct SlotRun {
  bool chosen;
  int64_t first, size, accepted;
};

template <typename F>
SAMPLERS_HD SlotRun run_of_slot(const Acceptance<F>& job, int64_t b, int64_t s) {
  const int64_t start = job.start[b];
  SlotRun run{false, 0, 0, 0};
  if (start < 0 || start >= job.length || start + s * job.slot >= job.length || !job.chosen.at(b, s)) return run;
  run.chosen = true;
  run.first = start + s * job.slot;
  const int64_t room = job.length - run.first < job.slot ? job.length - run.first : job.slot;
  while (run.size < room && (!job.candidate.data || job.candidate.at(b, run.first + run.size))) ++run.size;
  const F threshold = static_cast<F>(job.threshold[b]);
  const int64_t head = job.head.data ? job.head.at(b, s) : job.head_all;
  int64_t n = head < 0 ? 0 : head < run.size ? head : run.size;
  for (; n < run.size; ++n) {
    const F p = job.probability.at(b, run.first + n);
    if (!(job.strict ? p > threshold : p >= threshold)) break;
  }
  run.accepted = job.extra < run.size - n ? n + job.extra : run.size;
  return run;
}

// Where the first end of the sequence among the accepted tokens is; -1: none.
template <typename F>
SAMPLERS_HD int64_t end_in(const Acceptance<F>& job, int64_t b, const SlotRun& run) {
  if (job.eos < 0) return -1;
  for (int64_t i = run.first; i < run.first + run.accepted; ++i)
    if (job.token.at(b, i) == job.eos) return i;
  return -1;
}

// Writes what is to be written of a slot that the prefix reaches; `end`: the end of the sequence in it, or -1.
struct SlotWrite {
  int64_t prefix, written;
};

template <typename F>
SAMPLERS_HD SlotWrite write_slot(const Acceptance<F>& job, int64_t b, const SlotRun& run, int64_t end) {
  const int64_t prefix = end >= 0 ? end + 1 - run.first : run.accepted;
  const int64_t written = end >= 0 || run.accepted == run.size || job.partial ? prefix : 0;
  for (int64_t i = run.first; i < run.first + written; ++i) job.x.at(b, i) = job.token.at(b, i);
  return {prefix, written};
}

}  // namespace samplers
