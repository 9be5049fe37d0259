// The inner loops, once for all instruction sets. A file that includes this has set its target and defined `Simd`,
// a struct of static functions over vectors of Simd::kWidth floats; everything here lands in that file's own namespace,
// since the same template compiled for two targets must not meet itself at link time.

template <int kType>
struct Load;
template <>
struct Load<0> {
  static inline Simd::V at(const void* x, int i) { return Simd::load(static_cast<const float*>(x) + i); }
  static constexpr int kBytes = 4;
};
template <>
struct Load<1> {
  static inline Simd::V at(const void* x, int i) { return Simd::load_bf16(static_cast<const uint16_t*>(x) + i); }
  static constexpr int kBytes = 2;
};
template <>
struct Load<2> {
  static inline Simd::V at(const void* x, int i) { return Simd::load_fp16(static_cast<const uint16_t*>(x) + i); }
  static constexpr int kBytes = 2;
};

// 2^t, t >= -126. The operands of max are ordered so that a NaN in t survives it, here and everywhere.
static inline Simd::V exp2_poly(Simd::V t) {
  const Simd::V n = Simd::round(t), r = Simd::sub(t, n);
  Simd::V p = Simd::set1(kExp2[5]);
  p = Simd::fma(p, r, Simd::set1(kExp2[4]));
  p = Simd::fma(p, r, Simd::set1(kExp2[3]));
  p = Simd::fma(p, r, Simd::set1(kExp2[2]));
  p = Simd::fma(p, r, Simd::set1(kExp2[1]));
  p = Simd::fma(p, r, Simd::set1(kExp2[0]));
  return Simd::scale(p, n);
}

// acc[j] + acc[j + 64], then + 32, ... + 1.
static inline float halving_sum(Simd::V* acc) {
  constexpr int kGroups = kBlock / Simd::kWidth;
#pragma GCC unroll 8
  for (int h = kGroups / 2; h >= 1; h /= 2) {
#pragma GCC unroll 8
    for (int g = 0; g < h; ++g) acc[g] = Simd::add(acc[g], acc[g + h]);
  }
  return Simd::halving_sum(acc[0]);
}

template <int kType, int kSets, bool kEntropy, bool kTop2>
struct Pass {
  static constexpr int kW = Simd::kWidth, kGroups = kBlock / kW;
  using V = Simd::V;

  static inline void sums(const void* x, int blocks, const float* k, float m, const char* ahead, Chunk& out, V& first,
                          V& second) {
    V acc0[kGroups], acc1[kGroups], ent[kGroups];
    for (int g = 0; g < kGroups; ++g) acc0[g] = acc1[g] = ent[g] = Simd::set1(0.f);
    const V vm = Simd::set1(m), k0 = Simd::set1(k[0]), k1 = Simd::set1(k[1]), floor = Simd::set1(kFloor);
    for (int j = 0; j < blocks; ++j) {
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
        const int i = j * kBlock + g * kW;
        if (g * kW * Load<kType>::kBytes % 64 == 0) __builtin_prefetch(ahead + i * Load<kType>::kBytes);
        const V v = Load<kType>::at(x, i);
        if (kTop2) second = Simd::max(second, Simd::min(first, v));
        first = Simd::max(first, v);
        const V d = Simd::sub(v, vm);
        const V t0 = Simd::max(floor, Simd::mul(d, k0)), w0 = exp2_poly(t0);
        acc0[g] = Simd::add(acc0[g], w0);
        if (kEntropy) ent[g] = Simd::fma(w0, t0, ent[g]);
        if (kSets == 2) acc1[g] = Simd::add(acc1[g], exp2_poly(Simd::max(floor, Simd::mul(d, k1))));
      }
    }
    out.sum[0] = halving_sum(acc0);
    out.sum[1] = kSets == 2 ? halving_sum(acc1) : out.sum[0];
    out.entropy = kEntropy ? halving_sum(ent) : 0.f;
  }

  static void run(const void* x, int blocks, const float* k, float kmax, const char* ahead, Chunk& out, Lanes& lanes) {
    const V none = Simd::set1(-INFINITY);
    V first = none, second = none;
    if (kSets == 0) {  // no weights for a NaN to ride on: look for it
      Simd::M odd = Simd::no_mask();
      for (int i = 0; i < blocks * kBlock; i += kW) {
        if (i * Load<kType>::kBytes % 64 == 0) __builtin_prefetch(ahead + i * Load<kType>::kBytes);
        const V v = Load<kType>::at(x, i);
        odd = Simd::or_nan(odd, v);
        first = Simd::max(first, v);
      }
      out.max = out.m = Simd::highest(first);
      out.sum[0] = out.sum[1] = out.entropy = 0.f;
      out.bad = Simd::any(odd) || out.max == INFINITY;
      return;
    }
    V head = none;
    for (int g = 0; g < kGroups; ++g) head = Simd::max(head, Load<kType>::at(x, g * kW));
    out.m = Simd::highest(head);
    sums(x, blocks, k, out.m, ahead, out, first, second);
    out.max = Simd::highest(first);
    if (!((out.max - out.m) * kmax <= kHeadroom)) {
      out.m = out.max;
      if (out.max == -INFINITY) {  // nothing to weigh, but a NaN may have hidden from the maximum
        Simd::M odd = Simd::no_mask();
        for (int i = 0; i < blocks * kBlock; i += kW) odd = Simd::or_nan(odd, Load<kType>::at(x, i));
        out.sum[0] = out.sum[1] = out.entropy = 0.f;
        out.bad = Simd::any(odd);
        return;
      }
      V ignored1 = none, ignored2 = none;
      sums(x, blocks, k, out.m, static_cast<const char*>(x), out, ignored1, ignored2);
    }
    out.bad = out.sum[0] != out.sum[0];
    if (kTop2) Simd::merge(lanes, first, second);
  }
};

template <int kType>
static void widen_type(const void* x, int n, float* out) {
  int i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) Simd::store(out + i, Load<kType>::at(x, i));
  if (i < n) {  // the last entries through a small buffer: never read past the row's end
    alignas(64) char tail[Simd::kWidth * 4] = {};
    memcpy(tail, static_cast<const char*>(x) + static_cast<int64_t>(i) * Load<kType>::kBytes,
           static_cast<size_t>(n - i) * Load<kType>::kBytes);
    Simd::store(out + i, Load<kType>::at(tail, 0));
  }
  for (int j = n; j % kBlock != 0; ++j) out[j] = -INFINITY;
}

static void widen(Type type, const void* x, int n, float* out) {
  if (type == Type::kF32) {
    widen_type<0>(x, n, out);
  } else if (type == Type::kBF16) {
    widen_type<1>(x, n, out);
  } else {
    widen_type<2>(x, n, out);
  }
}

static void guide(float* a, const float* b, float w, int n) {
  const Simd::V vw = Simd::set1(w);
  int i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth)
    Simd::store(a + i, Simd::guided(Simd::load(a + i), Simd::load(b + i), vw));
  for (; i < n; ++i) a[i] = guided(a[i], b[i], w);
}

static void weights(const float* x, int n, float m, float k, float* out) {
  const Simd::V vm = Simd::set1(m), vk = Simd::set1(k), floor = Simd::set1(kFloor);
  for (int i = 0; i < n; i += Simd::kWidth) {
    const Simd::V t = Simd::mul(Simd::sub(Simd::load(x + i), vm), vk);
    Simd::store(out + i, Simd::zero_below(t, floor, exp2_poly(Simd::max(floor, t))));
  }
}

static void scales(const double* x, int n, double* out) {
  for (int i = 0; i < n; ++i) out[i] = exp2_scale(x[i]);
}

#define SAMPLERS_PASS_TOP2(T, S, E) {Pass<T, S, E, false>::run, Pass<T, S, E, true>::run}
#define SAMPLERS_PASS_SETS(T, S) {SAMPLERS_PASS_TOP2(T, S, false), SAMPLERS_PASS_TOP2(T, S, true)}
// Without weights there is no entropy and no second best to speak of.
#define SAMPLERS_PASS_NONE(T)                                         \
  {                                                                   \
    {Pass<T, 0, false, false>::run, Pass<T, 0, false, false>::run}, { \
      Pass<T, 0, false, false>::run, Pass<T, 0, false, false>::run    \
    }                                                                 \
  }
#define SAMPLERS_PASS_TYPE(T) {SAMPLERS_PASS_NONE(T), SAMPLERS_PASS_SETS(T, 1), SAMPLERS_PASS_SETS(T, 2)}
#define SAMPLERS_PASSES {SAMPLERS_PASS_TYPE(0), SAMPLERS_PASS_TYPE(1), SAMPLERS_PASS_TYPE(2)}
