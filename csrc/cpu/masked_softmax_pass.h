// The inner loops, once for all instruction sets. A file that includes this has set its target and defined `Simd`,
// a struct of static functions over vectors of Simd::kWidth floats; everything here lands in that file's own namespace,
// since the same template compiled for two targets must not meet itself at link time.

// Vectors come in pairs, since widening one vector of 16-bit entries makes two. `kSplit`: the pair holds its entries in
// turns of four, which is cheaper than in order; the halving sum knows (Simd::split_sum).
template <int kType>
struct Load;
template <>
struct Load<0> {
  static inline void pair(const void* x, int i, Simd::V& a, Simd::V& b) {
    a = Simd::load(static_cast<const float*>(x) + i);
    b = Simd::load(static_cast<const float*>(x) + i + Simd::kWidth);
  }
  static constexpr int kBytes = 4;
  static constexpr bool kSplit = false;
};
template <>
struct Load<1> {
  static inline void pair(const void* x, int i, Simd::V& a, Simd::V& b) {
    Simd::load_bf16_pair(static_cast<const uint16_t*>(x) + i, a, b);
  }
  static constexpr int kBytes = 2, kInfinity = 0x7f80;
  static constexpr bool kSplit = Simd::kSplits;
};
template <>
struct Load<2> {
  static inline void pair(const void* x, int i, Simd::V& a, Simd::V& b) {
    a = Simd::load_fp16(static_cast<const uint16_t*>(x) + i);
    b = Simd::load_fp16(static_cast<const uint16_t*>(x) + i + Simd::kWidth);
  }
  static constexpr int kBytes = 2, kInfinity = 0x7c00;
  static constexpr bool kSplit = false;
};

template <int kType>
static inline float from_half(uint16_t h) {
  return kType == 1 ? float_from_bf16(h) : float_from_fp16(h);
}

// 32-bit floats: the maximum, and by comparing two at a time, whether a NaN is there.
template <bool kTop2>
struct Peak32 {
  static void run(const void* x, int blocks, const char* ahead, Chunk& out, Lanes& lanes) {
    using V = Simd::V;
    constexpr int kW = Simd::kWidth;
    V first[2], second = Simd::set1(-INFINITY), low[2];
    first[0] = first[1] = second;
    low[0] = low[1] = Simd::set1(INFINITY);
    Simd::M odd = Simd::no_mask();
    for (int i = 0; i < blocks * kBlock; i += 2 * kW) {
      for (int line = 0; line < 8 * kW; line += 64) __builtin_prefetch(ahead + i * 4 + line);
      V a, b;
      Load<0>::pair(x, i, a, b);
      odd = Simd::or_nan(odd, a, b);
      low[0] = Simd::min(low[0], a);
      low[1] = Simd::min(low[1], b);
      if (kTop2) {
        second = Simd::max(second, Simd::min(first[0], a));
        first[0] = Simd::max(first[0], a);
        second = Simd::max(second, Simd::min(first[0], b));
        first[0] = Simd::max(first[0], b);
      } else {
        first[0] = Simd::max(first[0], a);
        first[1] = Simd::max(first[1], b);
      }
    }
    out.max = Simd::highest(Simd::max(first[0], first[1]));
    out.min = -Simd::highest(Simd::sub(Simd::set1(0.f), Simd::min(low[0], low[1])));
    out.bad = Simd::any(odd) || out.max == INFINITY;
    if (kTop2) Simd::merge(lanes, first[0], second);
  }
};

// 16-bit floats, as integers in the same order: twice the lanes, and a NaN lies beyond an infinity.
template <int kType, bool kTop2>
struct Peak16 {
  static void run(const void* x, int blocks, const char* ahead, Chunk& out, Lanes& lanes) {
    using H = Simd::H;
    constexpr int kW = Simd::kHalves;
    constexpr int16_t kInf = Load<kType>::kInfinity;
    // Two of each, so that an entry need not wait for the one before it.
    H first[2], low[2], second = Simd::set16(INT16_MIN);
    first[0] = first[1] = second;
    low[0] = low[1] = Simd::set16(INT16_MAX);
    for (int i = 0; i < blocks * kBlock; i += 2 * kW) {
      for (int line = 0; line < 4 * kW; line += 64) __builtin_prefetch(ahead + i * 2 + line);
      for (int half = 0; half < 2; ++half) {
        const H v = Simd::load_ordered(static_cast<const uint16_t*>(x) + i + half * kW);
        H& best = first[kTop2 ? 0 : half];
        low[half] = Simd::min16(low[half], v);
        if (kTop2) second = Simd::max16(second, Simd::min16(best, v));
        best = Simd::max16(best, v);
      }
    }
    const int16_t highest = Simd::highest16(Simd::max16(first[0], first[1])),
                  lowest = Simd::lowest16(Simd::min16(low[0], low[1]));
    out.max = from_half<kType>(Simd::ordered(highest));
    out.min = from_half<kType>(Simd::ordered(lowest));
    out.bad = highest >= kInf || lowest < -kInf - 1;  // -inf is -kInf - 1 in this order
    if (kTop2) {
      alignas(64) int16_t a[kW], b[kW];
      memcpy(a, &first[0], sizeof a);
      memcpy(b, &second, sizeof b);
      for (int i = 0; i < kW; i += kLanes) {
        Lanes here;
        for (int j = 0; j < kLanes; ++j) {
          here.first[j] = from_half<kType>(Simd::ordered(a[i + j]));
          here.second[j] = b[i + j] == INT16_MIN ? -INFINITY : from_half<kType>(Simd::ordered(b[i + j]));
        }
        for (int j = 0; j < kLanes; j += Simd::kWidth)
          Simd::merge_at(lanes, j, Simd::load(here.first + j), Simd::load(here.second + j));
      }
    }
  }
};

// Weights of kG vectors at once, step by step: each step's operations are independent of each other, which keeps a core
// busier than one vector's chain after the other.
template <int kG, bool kDeep>
static inline void weigh(const Simd::V* d, Simd::V k, Simd::V* t, Simd::V* w) {
  Simd::V r[kG], n[kG], scaled[kG];
#define SAMPLERS_EACH _Pragma("GCC unroll 8") for (int i = 0; i < kG; ++i)
  SAMPLERS_EACH scaled[i] = t[i] = Simd::mul(d[i], k);
  if (kDeep) SAMPLERS_EACH t[i] = Simd::max(Simd::set1(kFloor), t[i]);
  SAMPLERS_EACH Simd::split(t[i], n[i], r[i]);
  SAMPLERS_EACH w[i] = Simd::fma(Simd::set1(kExp2[5]), r[i], Simd::set1(kExp2[4]));
  SAMPLERS_EACH w[i] = Simd::fma(w[i], r[i], Simd::set1(kExp2[3]));
  SAMPLERS_EACH w[i] = Simd::fma(w[i], r[i], Simd::set1(kExp2[2]));
  SAMPLERS_EACH w[i] = Simd::fma(w[i], r[i], Simd::set1(kExp2[1]));
  SAMPLERS_EACH w[i] = Simd::fma(w[i], r[i], Simd::set1(kExp2[0]));
  SAMPLERS_EACH w[i] = Simd::scale(w[i], n[i]);
  if (kDeep) SAMPLERS_EACH w[i] = Simd::zero_below(scaled[i], Simd::set1(kFloor), w[i]);
#undef SAMPLERS_EACH
}

// acc[j] + acc[j + 64], then + 32, ... + 1.
template <bool kSplit>
static inline float halving_sum(Simd::V* acc) {
  constexpr int kGroups = kBlock / Simd::kWidth;
#pragma GCC unroll 8
  for (int h = kGroups / 2; h >= 2; h /= 2) {
#pragma GCC unroll 8
    for (int g = 0; g < h; ++g) acc[g] = Simd::add(acc[g], acc[g + h]);
  }
  return kSplit ? Simd::split_sum(acc[0], acc[1]) : Simd::halving_sum(Simd::add(acc[0], acc[1]));
}

template <int kType, bool kTwo, bool kEntropy, bool kDeep>
struct Sums {
  static void run(const void* x, int blocks, float m, const float* k, const char* ahead, float* sum, float* entropy) {
    using V = Simd::V;
    constexpr int kW = Simd::kWidth, kGroups = kBlock / kW, kG = 4;
    V acc0[kGroups], acc1[kGroups], ent[kGroups];
    for (int g = 0; g < kGroups; ++g) acc0[g] = acc1[g] = ent[g] = Simd::set1(0.f);
    const V vm = Simd::set1(m), k0 = Simd::set1(k[0]), k1 = Simd::set1(kTwo ? k[1] : 0.f);
#pragma GCC unroll 1
    for (int j = 0; j < blocks; ++j) {
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; g += kG) {
        V d[kG], t[kG], w[kG];
        constexpr int kBytes = Load<kType>::kBytes, kStep = kG * kW * kBytes;
        for (int at = 0; at < kStep; at += 64)
          if ((g * kW * kBytes + at) % 64 == 0) __builtin_prefetch(ahead + (j * kBlock + g * kW) * kBytes + at);
#pragma GCC unroll 8
        for (int i = 0; i < kG; i += 2) {
          Load<kType>::pair(x, j * kBlock + (g + i) * kW, d[i], d[i + 1]);
          d[i] = Simd::sub(d[i], vm);
          d[i + 1] = Simd::sub(d[i + 1], vm);
        }
        weigh<kG, kDeep>(d, k0, t, w);
#pragma GCC unroll 8
        for (int i = 0; i < kG; ++i) {
          acc0[g + i] = Simd::add(acc0[g + i], w[i]);
          if (kEntropy) ent[g + i] = Simd::fma(w[i], t[i], ent[g + i]);
        }
        if (kTwo) {
          weigh<kG, kDeep>(d, k1, t, w);
#pragma GCC unroll 8
          for (int i = 0; i < kG; ++i) acc1[g + i] = Simd::add(acc1[g + i], w[i]);
        }
      }
    }
    constexpr bool kSplit = Load<kType>::kSplit;
    sum[0] = halving_sum<kSplit>(acc0);
    if (kTwo) sum[1] = halving_sum<kSplit>(acc1);
    if (kEntropy) *entropy = halving_sum<kSplit>(ent);
  }
};

template <int kType>
static void widen_type(const void* x, int n, float* out) {
  const auto one = [&](int i) {
    return kType == 0 ? static_cast<const float*>(x)[i] : from_half<kType>(static_cast<const uint16_t*>(x)[i]);
  };
  int i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) Simd::store(out + i, Simd::load_one(kType, x, i));
  for (; i < n; ++i) out[i] = one(i);  // never read past the row's end
  for (; i % kBlock != 0; ++i) out[i] = -INFINITY;
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
  for (int i = 0; i < n; i += Simd::kWidth) {
    const Simd::V d = Simd::sub(Simd::load(x + i), Simd::set1(m));
    Simd::V t, w;
    weigh<1, true>(&d, Simd::set1(k), &t, &w);
    Simd::store(out + i, w);
  }
}

static void scales(const double* x, int n, double* out) {
  for (int i = 0; i < n; ++i) out[i] = exp2_scale(x[i]);
}

#define SAMPLERS_PEAKS                                                                        \
  {                                                                                           \
    {Peak32<false>::run, Peak32<true>::run}, {Peak16<1, false>::run, Peak16<1, true>::run}, { \
      Peak16<2, false>::run, Peak16<2, true>::run                                             \
    }                                                                                         \
  }
#define SAMPLERS_SUMS_DEEP(T, S, E) {Sums<T, S, E, false>::run, Sums<T, S, E, true>::run}
#define SAMPLERS_SUMS_SETS(T, S) {SAMPLERS_SUMS_DEEP(T, S, false), SAMPLERS_SUMS_DEEP(T, S, true)}
#define SAMPLERS_SUMS_TYPE(T) {SAMPLERS_SUMS_SETS(T, false), SAMPLERS_SUMS_SETS(T, true)}
#define SAMPLERS_SUMS {SAMPLERS_SUMS_TYPE(0), SAMPLERS_SUMS_TYPE(1), SAMPLERS_SUMS_TYPE(2)}
