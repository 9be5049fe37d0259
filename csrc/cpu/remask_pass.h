// The loops over a row, plain enough for a compiler to vectorise: included once per instruction set by
// remask_passes.cpp, each time in a namespace and under a target of its own.

template <typename F>
static int64_t count_above(const Key<F>* keys, int64_t n, Key<F> bound) {
  Key<F> count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] > bound;
  return count;
}

template <typename F>
static Range<F> make_keys(const F* score, const uint8_t* candidate, int64_t n, Key<F> sign, Key<F>* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = score_key(score[i], sign);
  if (candidate)
    for (int64_t i = 0; i < n; ++i) keys[i] = candidate[i] ? keys[i] : kBarred<F>;
  Key<F> below = kHighest<F>, high = kBarred<F>;  // one less than the lowest: kBarred - 1 is above all keys
  for (int64_t i = 0; i < n; ++i) {
    const Key<F> less = static_cast<Key<F>>(static_cast<Bits<F>>(keys[i]) - 1);
    below = below < less ? below : less;
    high = high > keys[i] ? high : keys[i];
  }
  return {static_cast<Key<F>>(static_cast<Bits<F>>(below) + 1), high, count_above<F>(keys, n, kBarred<F>)};
}

template <typename F>
static void mark_above(const Key<F>* keys, int64_t n, Key<F> bound, uint8_t* chosen) {
  for (int64_t i = 0; i < n; ++i) chosen[i] = keys[i] > bound;
}

template <typename F>
constexpr Passes<F> kPasses = {make_keys<F>, count_above<F>, mark_above<F>};
