// The inner loops of the selection, for each instruction set.
#pragma once

#include "../remask_rules.h"

namespace samplers::cpu {

template <typename F>
constexpr Key<F> kHighest = ~kBarred<F>;

// What the keys of a row's candidates lie between, and how many there are.
template <typename F>
struct Range {
  Key<F> low, high;
  int64_t candidates;
};

template <typename F>
struct Passes {
  // Keys of n scores, kBarred where `candidate` (null: none) is 0.
  Range<F> (*make_keys)(const F* score, const uint8_t* candidate, int64_t n, Key<F> sign, Key<F>* keys);
  int64_t (*count_above)(const Key<F>* keys, int64_t n, Key<F> bound);
  void (*mark_above)(const Key<F>* keys, int64_t n, Key<F> bound, uint8_t* chosen);
};

// Of the instruction set that all kernels use (masked_softmax.h).
template <typename F>
const Passes<F>& passes();
extern template const Passes<float>& passes();
extern template const Passes<double>& passes();

}  // namespace samplers::cpu
