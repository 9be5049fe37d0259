// masked_softmax on the device: the specification of samplers/ops/masked_softmax.py (its twin, the torch reference
// implementation), bit for bit.
//
// A group of 16 lanes (of 32 for fp32) owns one chunk of 1024 entries at a time. Each lane holds 64 (32) of them, eight
// loads of 16 bytes: entry i lies in the lane and at the place that i mod 128 says, so the 128 accumulators are the
// lanes' own and the halving tree is shuffles. The chunk's maximum is known before the first weight, so nothing is done
// twice. With many rows, a block works through whole rows; when a row's table of chunks is full, one warp finishes the
// row while the others go on to the next. With few rows, several blocks share a row and a second kernel finishes it.
#pragma once

#include <math.h>

#include <type_traits>

#include "masked_softmax.h"
#include "numbers.h"

namespace samplers::cuda {
namespace softmax {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Blocks per multiprocessor. Two leave 128 registers per thread: a chunk's entries stay in them, and the work on a
// chunk takes longer than the loads of the next, so four warps per scheduler hide them. Guided rows hold two chunks.
template <bool kCareful>
constexpr int kResident = kCareful ? 1 : 2;
constexpr int kMostChunks = static_cast<int>(kMostColumns / kChunk);
constexpr int kBlocks = kChunk / kBlock;
constexpr float kNone = -INFINITY;
constexpr int32_t kOutOfRange = 3;  // a status: besides 0, 1, 2 of the CPU, where such a call is an error

// One chunk of one row.
struct Stats {
  float max, second;  // the two largest entries; max is a NaN if the chunk holds one
  float drawn_max;    // the largest that the draw may take: max, unless top-k or top-p restrict the draw alone
  float sum[2];       // sum of weights 2^((x - max) k), by weight set; drawn_max is the reference of the draw's
  float entropy;      // sum of weight * t, of the first set
};

// What top-k and top-p leave of a row: entries above `key`, and of those at it the ones up to `last`. Keys are floats
// as integers in the same order, less `shift` low bits that say nothing in the row's format.
struct Truncation {
  uint32_t key;
  int32_t shift, last;

  __device__ __forceinline__ static uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x + 0.f);  // zeros are equal
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  __device__ __forceinline__ bool removes(float x, int64_t id) const {
    const uint32_t k = key_of(x) >> shift;
    return k < key || (k == key && id > last);
  }
};

struct Args {
  SoftmaxJob job;
  int64_t rows, guidance_rows;
  int chunks, parts;  // parts > 1: so many blocks share a row
  int sets, sample_set;
  bool split;  // top-k and top-p restrict the second of two sets only
  float k[2], kmax;
  double k64[2];
  Stats* table;             // (n, chunks) where blocks share rows
  Truncation* truncations;  // (n,) if top-k or top-p restrict anything, else null
};

// What one warp needs to finish a row.
struct Scratch {
  double sums[3][kMostChunks];          // running sums over chunks: the weights by set, the entropy
  float entries[kChunk + kChunk / 32];  // of the chunk that holds the token, padded against bank conflicts
  uint32_t forbidden[kChunk / 32];      // its forbidden entries
};

template <int kFormat>
struct Layout {
  using Entry = std::conditional_t<kFormat == kF32, uint32_t, uint16_t>;
  static constexpr int kBytes = sizeof(Entry);
  static constexpr int kPer = 16 / kBytes;        // entries per load
  static constexpr int kLanes = kBlock / kPer;    // lanes per group
  static constexpr int kGroups = kWarp / kLanes;  // groups per warp
  static constexpr int kHalves = 4 / kBytes;      // entries per word
};

// What a block needs to fill tables: all zero before, and zero again after each chunk, are the marks of a group's
// forbidden entries. At most two chunks of a row are staged, its last ones.
template <int kFormat>
struct SharedStage {
  using L = Layout<kFormat>;
  uint4 stage[2][kChunk / L::kPer];
  uint32_t marks[kWarps * L::kGroups][kChunk / 32];
};

// ---- rows

// Where a row starts; nullptr if its index is out of range.
__device__ __forceinline__ const char* row_of(const Rows& rows, int64_t n, int64_t count) {
  const int64_t i = rows.index ? rows.index[n] : n;
  return i >= 0 && i < count ? rows.data + i * rows.stride : nullptr;
}

struct Row {
  const char *logits, *guidance;  // guidance null: none
  bool in_range;
  Truncation truncation;
};

__device__ __forceinline__ Row find_row(const Args& args, int64_t n) {
  Row row{row_of(args.job.logits, n, args.rows), nullptr, true, Truncation{0, 0, INT32_MAX}};
  row.in_range = row.logits != nullptr;
  if (args.job.guidance.data) {
    row.guidance = row_of(args.job.guidance, n, args.guidance_rows);
    row.in_range &= row.guidance != nullptr;
  }
  return row;
}

__device__ __forceinline__ Row find_truncated_row(const Args& args, int64_t n) {
  Row row = find_row(args, n);
  if (args.truncations) row.truncation = args.truncations[n];
  return row;
}

template <int kFormat>
__device__ __forceinline__ uint32_t load_one(const char* row, int64_t i) {
  if constexpr (kFormat == kF32) return __ldg(reinterpret_cast<const uint32_t*>(row) + i);
  return __ldg(reinterpret_cast<const uint16_t*>(row) + i);
}

// One guided logit; whether its id is forbidden is checked elsewhere.
template <int kFormat>
__device__ __forceinline__ float load_guided(const Args& args, const Row& row, int64_t i) {
  const float a = number<kFormat>(load_one<kFormat>(row.logits, i), 0);
  if (!row.guidance) return a;
  return guided(a, number<kFormat>(load_one<kFormat>(row.guidance, i), 0), args.job.cfg_scale);
}

// ---- one chunk

// The lane's entries of a chunk of `count` entries: words[b] are block b's; `filler` stands past the end. `room`: there
// is more of the row after the chunk, 16 bytes at least. `stage`: shared memory for a chunk, for this one alone.
template <int kFormat>
__device__ __forceinline__ void load_chunk(const char* row, int64_t begin, int count, bool room, int lane,
                                           uint32_t filler, uint4* stage, uint32_t (&words)[kBlocks][4]) {
  using L = Layout<kFormat>;
  constexpr int kStride = kBlock * L::kBytes;
  const unsigned group = (L::kLanes == kWarp ? kAllLanes : (1u << L::kLanes % kWarp) - 1)
                         << (threadIdx.x % kWarp - static_cast<unsigned>(lane));
  const char* first = row + begin * L::kBytes + lane * 16;
  const unsigned shift = static_cast<unsigned>(reinterpret_cast<uintptr_t>(first) & 15u);
  const auto load_all = [&](const char* from) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + b * kStride);
      words[b][0] = v.x, words[b][1] = v.y, words[b][2] = v.z, words[b][3] = v.w;
    }
  };
  if (count == kChunk && shift == 0) {
    load_all(first);
  } else if (count == kChunk && room) {
    // The row is not aligned: a lane's entries lie in two aligned loads, its own and the one that the next lane (the
    // first one's, of the next block) has made.
    first -= shift;
    load_all(first);
    const uint4 v = *reinterpret_cast<const uint4*>(first + kBlocks * kStride - lane * 16);  // the same for all
    const uint32_t next_words[4] = {v.x, v.y, v.z, v.w};
    const int next = (lane + 1) % L::kLanes;
    const unsigned bits = shift % 4 * 8;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t w[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t give = lane > 0 ? words[b][i] : b + 1 < kBlocks ? words[(b + 1) % kBlocks][i] : next_words[i];
        w[i] = words[b][i];
        w[i + 4] = __shfl_sync(group, give, next, L::kLanes);
      }
#pragma unroll
      for (int i = 0; i < 6; ++i) w[i] = shift & 8u ? w[i + 2] : w[i];
#pragma unroll
      for (int i = 0; i < 5; ++i) w[i] = shift & 4u ? w[i + 1] : w[i];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[b][i] = __funnelshift_r(w[i], w[i + 1], bits);
    }
  } else if (count > 0) {
    using Entry = typename L::Entry;
    Entry* entries = reinterpret_cast<Entry*>(stage);
    for (int i = lane; i < kChunk; i += L::kLanes)
      entries[i] = static_cast<Entry>(i < count ? load_one<kFormat>(row, begin + i) : filler);
    __syncwarp(group);
    load_all(reinterpret_cast<const char*>(stage + lane));
    __syncwarp(group);  // the stage is free again
  } else {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int w = 0; w < 4; ++w) words[b][w] = L::kHalves == 1 ? filler : filler * 0x10001u;
    }
  }
}

// Marks the forbidden ids of a chunk in `marks` (32 words, zero before), by `lanes` lanes; → whether this lane found
// one.
__device__ __forceinline__ bool mark_forbidden(const SoftmaxJob& job, int64_t begin, int count, int lane, int lanes,
                                               uint32_t* marks) {
  bool found = false;
#pragma unroll 1
  for (int64_t f = lane; f < job.n_forbid; f += lanes) {
    const int64_t i = job.forbid[f] - begin;
    if (i < 0 || i >= count) continue;
    atomicOr(marks + i / 32, 1u << (i % 32));
    found = true;
  }
  return found;
}

// Bit b * kPer + e: the lane's entry e of block b is forbidden.
template <int kFormat>
__device__ __forceinline__ uint64_t forbidden_of(const SoftmaxJob& job, int64_t begin, int count, int lane,
                                                 uint32_t* marks) {
  using L = Layout<kFormat>;
  uint64_t mine = 0;
  if (job.n_forbid == 0) return mine;
  const bool found = mark_forbidden(job, begin, count, lane, L::kLanes, marks);
  if (!__any_sync(kAllLanes, found)) return mine;
  __syncwarp();
  for (int b = 0; b < kBlocks; ++b) {
    const int i = b * kBlock + lane * L::kPer;
    mine |= static_cast<uint64_t>(marks[i / 32] >> (i % 32) & ((1u << L::kPer) - 1)) << (b * L::kPer);
  }
  __syncwarp();
  for (int i = lane; i < kChunk / 32; i += L::kLanes) marks[i] = 0;
  __syncwarp();
  return mine;
}

__device__ __forceinline__ void merge_two(float& first, float& second, float other_first, float other_second) {
  second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
  first = max_nan(first, other_first);
}

// The group's accumulators: acc[j] + acc[j + 64], then + 32, ... + 1, j = lane * kPer + e. While a lane holds several,
// the two lanes of a pair share the additions; then the lanes' own bits say which e they hold.
template <int kLanes, int kPer>
__device__ __forceinline__ float halving_sum(float (&acc)[kPer], int lane) {
  int by = kLanes / 2;
#pragma unroll
  for (int held = kPer / 2; held >= 1; held /= 2, by /= 2) {
    const bool upper = (lane & by) != 0;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      const float keep = upper ? acc[i + held] : acc[i], give = upper ? acc[i] : acc[i + held];
      acc[i] = keep + __shfl_xor_sync(kAllLanes, give, by);
    }
  }
  float sum = acc[0];
#pragma unroll
  for (; by >= 1; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  by = kLanes / 2;
#pragma unroll
  for (int held = kPer / 2; held >= 1; held /= 2, by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  return sum;
}

// Floats as integers in the same order, for atomicMax.
__device__ __forceinline__ int ordered(float x) {
  const int i = static_cast<int>(__float_as_uint(x));
  return i >= 0 ? i : i ^ 0x7fffffff;
}
__device__ __forceinline__ float from_ordered(int i) {
  return float_from_bits(static_cast<uint32_t>(i >= 0 ? i : i ^ 0x7fffffff));
}

// Is a chunk with this maximum left out of all sets, in a row with that one? What a running maximum leaves out, the
// row's own does too: rounding keeps order. So which warp came first does not show.
__device__ __forceinline__ bool dropped(const Args& args, float max, float highest) {
  const double below = static_cast<double>(max) - static_cast<double>(highest);
  return below * args.k64[0] <= -kDrop && below * args.k64[1] <= -kDrop;
}

// The weight of an entry d below its chunk's largest. Not deep: t is known to be in [-126, 0].
template <bool kDeep>
__device__ __forceinline__ float weight_of(float d, float k, float& t) {
  const float exact = d * k;
  t = kDeep ? fmaxf(kFloor, exact) : exact;
  const float w = fast_exp2(t);
  return kDeep && exact < kFloor ? 0.f : w;
}

// The whole of a chunk's work, by a group; a group without a chunk of its own comes with count 0. Every lane of the
// warp must call it, and all lanes of the group return the same. kMore: entropy and the second largest as well.
// kCareful: entries are guided or truncated. `peak`: the largest entry of the row so far, ordered.
template <int kFormat, int kSets, bool kMore, bool kCareful>
__device__ __forceinline__ Stats chunk_stats(const Args& args, const Row& row, int64_t begin, int count, int lane,
                                             uint32_t* marks, uint4* stage, int* peak) {
  using L = Layout<kFormat>;
  constexpr uint32_t kNoneWord = kFormat == kF32 ? 0xff800000u : kFormat == kBF16 ? 0xff80ff80u : 0xfc00fc00u;
  constexpr uint32_t kNoneOne = kFormat == kF32 ? kNoneWord : kNoneWord & 0xffffu;
  const bool room = args.job.vocab - begin - kChunk >= L::kPer;
  uint32_t words[kBlocks][4];
  load_chunk<kFormat>(row.logits, begin, count, room, lane, kNoneOne, stage, words);
  uint32_t other[kBlocks][4];
  if (kCareful && row.guidance) load_chunk<kFormat>(row.guidance, begin, count, room, lane, 0, stage, other);
  const uint64_t forbidden = forbidden_of<kFormat>(args.job, begin, count, lane, marks);
  if (!kCareful && forbidden) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t hit = static_cast<uint32_t>(forbidden >> (b * L::kPer + w * L::kHalves));
        const uint32_t keep =
            L::kHalves == 1 ? (hit & 1 ? 0u : 0xffffffffu) : (hit & 1 ? 0u : 0xffffu) | (hit & 2 ? 0u : 0xffff0000u);
        words[b][w] = (words[b][w] & keep) | (kNoneWord & ~keep);
      }
    }
  }
  float values[kCareful ? kBlocks : 1][L::kPer];  // guided and truncated entries, once for all, in fp32
  Stats out{kNone, kNone, kNone, {0.f, 0.f}, 0.f};
  if constexpr (kCareful) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < L::kPer; ++e) {
        const int w = e / L::kHalves, h = e % L::kHalves;
        float x = number<kFormat>(words[b][w], h);
        if (row.guidance) x = guided(x, number<kFormat>(other[b][w], h), args.job.cfg_scale);
        if (forbidden >> (b * L::kPer + e) & 1) x = kNone;
        const bool removed = row.truncation.removes(x, begin + b * kBlock + lane * L::kPer + e);
        if (!removed) out.drawn_max = fmaxf(out.drawn_max, x);
        values[b][e] = removed && !args.split ? kNone : x;
      }
    }
  }

  float least = INFINITY;  // the lane's own
  if constexpr (kCareful) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < L::kPer; ++e) merge_two(out.max, out.second, values[b][e], kNone);
    }
  } else {
    uint32_t high[4], next[4], low[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) high[w] = low[w] = words[0][w], next[w] = kNoneWord;
#pragma unroll
    for (int b = 1; b < kBlocks; ++b) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if (kMore) next[w] = max_word<kFormat>(next[w], min_word<kFormat>(high[w], words[b][w]));
        high[w] = max_word<kFormat>(high[w], words[b][w]);
        if (kSets) low[w] = min_word<kFormat>(low[w], words[b][w]);
      }
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
      for (int h = 0; h < L::kHalves; ++h) {
        merge_two(out.max, out.second, number<kFormat>(high[w], h), kMore ? number<kFormat>(next[w], h) : kNone);
        least = fminf(least, number<kFormat>(low[w], h));
      }
    }
  }
#pragma unroll
  for (int by = L::kLanes / 2; by > 0; by /= 2) {
    const float other_max = __shfl_xor_sync(kAllLanes, out.max, by);
    const float other_second = kMore ? __shfl_xor_sync(kAllLanes, out.second, by) : kNone;
    merge_two(out.max, out.second, other_max, other_second);
    if (kCareful) out.drawn_max = fmaxf(out.drawn_max, __shfl_xor_sync(kAllLanes, out.drawn_max, by));
  }
  if (!kCareful) out.drawn_max = out.max;
  if (kSets == 0) return out;

  int highest = ordered(out.max);
  if (lane == 0) {
    const int before = atomicMax(peak, highest);
    highest = before > highest ? before : highest;
  }
  highest = __shfl_sync(kAllLanes, highest, 0, L::kLanes);
  const bool needed = out.max != kNone && !dropped(args, out.max, from_ordered(highest));
  if (!__any_sync(kAllLanes, needed)) return out;

  float acc[L::kPer] = {}, more[L::kPer] = {}, entropy[L::kPer] = {};
  const auto weigh = [&](auto deep) {
    constexpr bool kDeep = decltype(deep)::value;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < L::kPer; ++e) {
        float x;
        if constexpr (kCareful) {
          x = values[b][e];
        } else {
          x = number<kFormat>(words[b][e / L::kHalves], e % L::kHalves);
        }
        const float d = x - out.max;
        float t;
        const float w = weight_of<kDeep>(d, args.k[0], t);
        acc[e] += w;
        if (kMore) entropy[e] = fmaf(w, t, entropy[e]);
        if (kSets == 2 && !kCareful) more[e] += weight_of<kDeep>(d, args.k[1], t);
      }
    }
  };
  if constexpr (kCareful) {
    weigh(std::true_type{});
  } else if (__any_sync(kAllLanes, needed && !((least - out.max) * args.kmax >= kFloor))) {  // the warp stays together
    weigh(std::true_type{});
  } else {
    weigh(std::false_type{});
  }
  out.sum[0] = halving_sum<L::kLanes>(acc, lane);
  if (kMore) out.entropy = halving_sum<L::kLanes>(entropy, lane);
  if constexpr (kSets == 2 && kCareful) {  // after the first set: the registers do not hold both at once
    // The draw's reference may lie below that of the statistics. 0 if no entry is left, so that no weight is a NaN.
    const float drawn = out.drawn_max == kNone ? 0.f : out.drawn_max;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < L::kPer; ++e) {
        float t;
        const float x = values[b][e];
        const bool removed = row.truncation.removes(x, begin + b * kBlock + lane * L::kPer + e);
        more[e] += weight_of<true>(removed ? kNone : x - drawn, args.k[1], t);
      }
    }
  }
  out.sum[1] = kSets == 2 ? halving_sum<L::kLanes>(more, lane) : out.sum[0];
  if (!needed) out.sum[0] = out.sum[1] = out.entropy = 0.f;  // the other group of the warp asked for it
  return out;
}

// ---- the end of a row, by one warp

__device__ __forceinline__ int first_lane(unsigned votes) { return __ffs(static_cast<int>(votes)) - 1; }

// The first i in [0, n) for which yes(i), and n if there is none.
template <typename Yes>
__device__ __forceinline__ int find_first(int n, int lane, const Yes& yes) {
#pragma unroll 1
  for (int begin = 0; begin < n; begin += kWarp) {
    const unsigned votes = __ballot_sync(kAllLanes, begin + lane < n && yes(begin + lane));
    if (votes) return begin + first_lane(votes);
  }
  return n;
}

// The last i in [0, n) for which yes(i), and 0 if there is none.
template <typename Yes>
__device__ __forceinline__ int find_last(int n, int lane, const Yes& yes) {
  int last = 0;
#pragma unroll 1
  for (int begin = 0; begin < n; begin += kWarp) {
    const unsigned votes = __ballot_sync(kAllLanes, begin + lane < n && yes(begin + lane));
    if (votes) last = begin + kWarp - 1 - __clz(static_cast<int>(votes));
  }
  return last;
}

// m_c, the reference of a chunk's weights in a set.
__device__ __forceinline__ float reference_of(const Args& args, const Stats& chunk, int set) {
  return set == args.sample_set ? chunk.drawn_max : chunk.max;
}

// 2^((m_c - M) k), 0 for what is left out.
__device__ __forceinline__ double scale_of(const Args& args, const Stats& chunk, double reference, int set) {
  const double x = (static_cast<double>(reference_of(args, chunk, set)) - reference) * args.k64[set];
  return x <= -kDrop ? 0.0 : exp2_scale(x);
}

// scratch.sums: the running sums of the chunks' weights and entropies, added up in chunk order.
__device__ __forceinline__ void add_up(const Args& args, const Stats* table, double reference, Scratch& scratch,
                                       int lane) {
  constexpr int kStep = 4;
  const int padded = (args.chunks + kStep - 1) / kStep * kStep;
#pragma unroll 1
  for (int c = lane; c < padded; c += kWarp) {
    double weight[2] = {0, 0}, entropy = 0;
    if (c < args.chunks) {
      const Stats chunk = table[c];
      const double scale = scale_of(args, chunk, reference, 0);
      weight[0] = static_cast<double>(chunk.sum[0]) * scale;
      if (args.sets == 2) weight[1] = static_cast<double>(chunk.sum[1]) * scale_of(args, chunk, reference, 1);
      if (scale != 0) {  // left out; its exponent may be -inf
        const double s = chunk.sum[0], t = (static_cast<double>(chunk.max) - reference) * args.k64[0];
        entropy = scale * (static_cast<double>(chunk.entropy) + s * t);
      }
    }
    scratch.sums[0][c] = weight[0];
    scratch.sums[1][c] = weight[1];
    scratch.sums[2][c] = entropy;
  }
  __syncwarp();
  if (lane < 3) {  // a sum each
    double* at = scratch.sums[lane];
    double sum = 0;
    for (int c = 0; c < padded; c += kStep) {
      double v[kStep];
#pragma unroll
      for (int i = 0; i < kStep; ++i) v[i] = at[c + i];
#pragma unroll
      for (int i = 0; i < kStep; ++i) at[c + i] = sum += v[i];
    }
  }
  __syncwarp();
}

__device__ __forceinline__ float& entry_at(Scratch& scratch, int i) { return scratch.entries[i + i / 32]; }

// Chunk c of the row in scratch.entries, guided; forbidden entries and those past the end at -inf. → its entries.
template <int kFormat>
__device__ __forceinline__ int materialise(const Args& args, const Row& row, int c, Scratch& scratch, int lane) {
  const int64_t begin = static_cast<int64_t>(c) * kChunk;
  const int count = static_cast<int>(args.job.vocab - begin < kChunk ? args.job.vocab - begin : kChunk);
  scratch.forbidden[lane] = 0;
  __syncwarp();
  mark_forbidden(args.job, begin, count, lane, kWarp, scratch.forbidden);
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < kChunk; i += kWarp) {
    float x = i < count ? load_guided<kFormat>(args, row, begin + i) : kNone;
    if (scratch.forbidden[i / 32] >> (i % 32) & 1 || row.truncation.removes(x, begin + i)) x = kNone;
    entry_at(scratch, i) = x;
  }
  __syncwarp();
  return count;
}

// The first of `count` entries whose running sum of weights exceeds share * (their total), the sums taken one by one.
__device__ __forceinline__ int draw_in_order(double share, int count, Scratch& scratch) {
  double total = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) total += static_cast<double>(entry_at(scratch, i));
  const double goal = share * total;
  double sum = 0;
  int last = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float w = entry_at(scratch, i);
    sum += static_cast<double>(w);
    if (sum > goal) return i;
    if (w > 0) last = i;
  }
  return last;
}

// The same, at once: sums taken in parallel differ from those by less than 1024 * 2^-53 of the total each. Where the
// goal lies further than that from the sums beside it, the answer is the same; else it is sought again in order.
__device__ __forceinline__ int draw_in_chunk(double share, int count, Scratch& scratch, int lane) {
  constexpr int kEach = kChunk / kWarp;
  double mine = 0;
#pragma unroll 4
  for (int i = 0; i < kEach; ++i) mine += static_cast<double>(entry_at(scratch, lane * kEach + i));
  double upto = mine;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const double before = __shfl_up_sync(kAllLanes, upto, by);
    if (lane >= by) upto += before;
  }
  const double total = __shfl_sync(kAllLanes, upto, kWarp - 1), goal = share * total, margin = 1e-12 * total;
  double sum = __shfl_up_sync(kAllLanes, upto, 1);
  if (lane == 0) sum = 0;
  const unsigned votes = __ballot_sync(kAllLanes, upto > goal);
  const int where = votes ? first_lane(votes) : 0;
  int found = -1;
  if (votes && lane == where) {
#pragma unroll 1
    for (int i = 0; i < kEach; ++i) {
      const double below = sum;
      sum += static_cast<double>(entry_at(scratch, lane * kEach + i));
      if (sum > goal) {
        if (sum > goal + margin && (below == 0 || below < goal - margin)) found = lane * kEach + i;
        break;
      }
    }
  }
  found = __shfl_sync(kAllLanes, found, where);
  return found >= 0 ? found : draw_in_order(share, count, scratch);
}

template <int kFormat>
__device__ __forceinline__ int64_t draw(const Args& args, int64_t n, const Row& row, const Stats* table,
                                        double reference, Scratch& scratch, int lane) {
  const int set = args.sample_set;
  const double* sums = scratch.sums[set];
  const double target = args.job.uniform[n] * sums[args.chunks - 1];
  const auto weight = [&](int c) {
    return static_cast<double>(table[c].sum[set]) * scale_of(args, table[c], reference, set);
  };
  int c = find_first(args.chunks, lane, [&](int i) { return sums[i] > target; });
  if (c == args.chunks)  // rounding carried the target past the end: the last one with weight
    c = find_last(args.chunks, lane, [&](int i) { return weight(i) > 0; });
  const double share = (target - (c > 0 ? sums[c - 1] : 0)) / weight(c);
  const int count = materialise<kFormat>(args, row, c, scratch, lane);
  const float m = reference_of(args, table[c], set), k = args.k[set];
#pragma unroll 2
  for (int i = lane; i < kChunk; i += kWarp) {
    float ignored;
    entry_at(scratch, i) = weight_of<true>(entry_at(scratch, i) - m, k, ignored);
  }
  __syncwarp();
  return static_cast<int64_t>(c) * kChunk + draw_in_chunk(share, count, scratch, lane);
}

// The lowest id among the best.
template <int kFormat>
__device__ __forceinline__ int64_t best(const Args& args, const Row& row, const Stats* table, float highest,
                                        Scratch& scratch, int lane) {
  const int c = find_first(args.chunks, lane, [&](int i) { return table[i].max == highest; });
  const int count = materialise<kFormat>(args, row, c, scratch, lane);
  return static_cast<int64_t>(c) * kChunk +
         find_first(count, lane, [&](int i) { return entry_at(scratch, i) == highest; });
}

// One guided logit as the statistics count it, at -inf if it is forbidden or truncated; the same in all lanes.
template <int kFormat>
__device__ __forceinline__ float logit_of(const Args& args, const Row& row, int64_t id, int lane) {
  bool forbidden = false;
#pragma unroll 1
  for (int64_t f = lane; f < args.job.n_forbid; f += kWarp) forbidden |= args.job.forbid[f] == id;
  if (__any_sync(kAllLanes, forbidden)) return kNone;
  const float x = load_guided<kFormat>(args, row, id);
  return !args.split && row.truncation.removes(x, id) ? kNone : x;
}

__device__ __forceinline__ void write_invalid(const SoftmaxJob& job, int64_t n, int32_t status) {
  job.status[n] = status;
  job.token[n] = -1;
  if (job.confidence) job.confidence[n] = NAN;
  if (job.margin) job.margin[n] = NAN;
  if (job.entropy) job.entropy[n] = NAN;
  if (job.lse) job.lse[n] = NAN;
  if (job.given_out) job.given_out[n] = NAN;
}

template <int kFormat>
__device__ __forceinline__ void finish(const Args& args, int64_t n, const Stats* table, Scratch& scratch, int lane) {
  const SoftmaxJob& job = args.job;
  const Row row = find_truncated_row(args, n);
  const int64_t given = job.given_out ? job.given[n] : 0;
  if (!row.in_range || given < 0 || given >= job.vocab) {
    if (lane == 0) write_invalid(job, n, kOutOfRange);
    return;
  }
  float highest = kNone, second = kNone;
#pragma unroll 1
  for (int c = lane; c < args.chunks; c += kWarp) {
    merge_two(highest, second, table[c].max, table[c].second);
  }
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, highest, by), next = __shfl_xor_sync(kAllLanes, second, by);
    merge_two(highest, second, other, next);
  }
  const int32_t status = highest != highest || highest == INFINITY ? 1 : highest == kNone ? 2 : 0;
  if (status) {
    if (lane == 0) write_invalid(job, n, status);
    return;
  }
  const double m = highest;
  if (args.sets) add_up(args, table, m, scratch, lane);
  const int64_t token = job.temperature > 0 ? draw<kFormat>(args, n, row, table, m, scratch, lane)
                                            : best<kFormat>(args, row, table, highest, scratch, lane);
  const float chosen = job.confidence ? logit_of<kFormat>(args, row, token, lane) : kNone;
  const float asked = job.given_out ? logit_of<kFormat>(args, row, given, lane) : kNone;
  if (lane != 0) return;
  job.status[n] = 0;
  job.token[n] = token;
  if (job.want == 0) return;
  const double total = scratch.sums[0][args.chunks - 1];
  const auto relative = [&](float logit) { return exp2_scale((static_cast<double>(logit) - m) * args.k64[0]); };
  const auto at_most_one = [](double p) { return static_cast<float>(p < 1.0 ? p : 1.0); };
  if (job.confidence) job.confidence[n] = at_most_one(relative(chosen) / total);
  if (job.given_out) job.given_out[n] = at_most_one(relative(asked) / total);
  if (job.margin) job.margin[n] = at_most_one((relative(highest) - relative(second)) / total);
  const double log_weight = log(total);
  if (job.lse) job.lse[n] = static_cast<float>(m / job.confidence_temperature + log_weight);
  if (job.entropy) {
    const double h = log_weight - kLn2 * scratch.sums[2][args.chunks - 1] / total;
    job.entropy[n] = static_cast<float>(h > 0.0 ? h : 0.0);
  }
}

// ---- kernels

template <int kFormat, int kSets, bool kMore, bool kCareful>
__device__ __forceinline__ void chunk_stats_into(const Args& args, const Row& row, int first, int end,
                                                 SharedStage<kFormat>& shared, Stats* table, int* peak) {
  using L = Layout<kFormat>;
  const int group = static_cast<int>(threadIdx.x) / L::kLanes, lane = static_cast<int>(threadIdx.x) % L::kLanes;
  const int c = first + group % L::kGroups;
  const int64_t begin = static_cast<int64_t>(c) * kChunk, left = args.job.vocab - begin;
  const int count = c < end && row.in_range ? static_cast<int>(left < kChunk ? left : kChunk) : 0;
  const Stats stats = chunk_stats<kFormat, kSets, kMore, kCareful>(args, row, begin, count, lane, shared.marks[group],
                                                                   shared.stage[c % 2], peak);
  if (c < end && lane == 0) table[c] = stats;
}

template <int kFormat>
__device__ __forceinline__ void clear_marks(SharedStage<kFormat>& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kWarps * Layout<kFormat>::kGroups * (kChunk / 32); i += kThreads)
    shared.marks[i / (kChunk / 32)][i % (kChunk / 32)] = 0;
  __syncthreads();
}

// Many rows: a block takes row after row.
template <int kFormat, int kSets, bool kMore, bool kCareful>
__global__ void __launch_bounds__(kThreads, kResident<kCareful>) whole_rows(Args args) {
  using L = Layout<kFormat>;
  __shared__ Stats table[2][kMostChunks];
  __shared__ Scratch scratch;
  __shared__ SharedStage<kFormat> shared;
  __shared__ int next[2], peak[2];  // the first chunk that no warp has taken; the row's largest entry so far
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x < 2) next[threadIdx.x] = 0, peak[threadIdx.x] = INT32_MIN;
  clear_marks(shared);
  int64_t before = -1;  // the row whose table is full but which is not finished
  int turn = 0;
  for (int64_t n = blockIdx.x;; n += gridDim.x, ++turn) {
    const int now = turn % 2;
    if (before >= 0 && warp == turn % kWarps) finish<kFormat>(args, before, table[1 - now], scratch, lane);
    if (n >= args.job.n) return;
    const Row row = find_truncated_row(args, n);
    for (;;) {
      int first = 0;
      if (lane == 0) first = atomicAdd(&next[now], L::kGroups);
      first = __shfl_sync(kAllLanes, first, 0);
      if (first >= args.chunks) break;
      chunk_stats_into<kFormat, kSets, kMore, kCareful>(args, row, first, args.chunks, shared, table[now], peak + now);
    }
    // After the barrier this table is full and the other one, finished by now, is free.
    __syncthreads();
    if (threadIdx.x == 0) next[now] = 0, peak[now] = INT32_MIN;
    before = n;
  }
}

// Few rows: block (part, row) fills its share of the row's table.
template <int kFormat, int kSets, bool kMore, bool kCareful>
__global__ void __launch_bounds__(kThreads, kResident<kCareful>) parts_of_rows(Args args) {
  using L = Layout<kFormat>;
  __shared__ SharedStage<kFormat> shared;
  __shared__ int peak;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) peak = INT32_MIN;
  clear_marks(shared);
  const int64_t n = blockIdx.y;
  const int part = static_cast<int>(blockIdx.x);
  const int begin = args.chunks * part / args.parts, end = args.chunks * (part + 1) / args.parts;
  const Row row = find_truncated_row(args, n);
  for (int first = begin + warp * L::kGroups; first < end; first += kWarps * L::kGroups)
    chunk_stats_into<kFormat, kSets, kMore, kCareful>(args, row, first, end, shared, args.table + n * args.chunks,
                                                      &peak);
}

template <int kFormat>
__global__ void __launch_bounds__(kWarp) finalize_rows(Args args) {
  __shared__ Scratch scratch;
  const int64_t n = blockIdx.x;
  finish<kFormat>(args, n, args.table + n * args.chunks, scratch, static_cast<int>(threadIdx.x));
}

// ---- top-k and top-p

constexpr int kTruncateThreads = 512, kTruncateWarps = kTruncateThreads / kWarp;
constexpr int kPivots = 7;  // tried at a time: three bits of a key per pass

struct TruncateStage {
  uint32_t forbidden[kMostColumns / 32];
  uint64_t parts[kTruncateWarps][kPivots];
  uint64_t sums[kPivots];
  float highest[kTruncateWarps];
  int32_t last;
};

// One row's truncation, by a block that reads it once for three bits of the key it looks for. Sums are of integers, so
// their order does not show.
template <int kFormat>
struct Truncator {
  const Args& args;
  const Row& row;
  TruncateStage& shared;
  float highest = kNone;

  __device__ __forceinline__ float value(int64_t i) const {
    return shared.forbidden[i / 32] >> (i % 32) & 1 ? kNone : load_guided<kFormat>(args, row, i);
  }

  // add(x, i, sums) for every entry; → the sums over the block, until the next call.
  template <typename Add>
  __device__ __forceinline__ const uint64_t* sum(const Add& add) {
    uint64_t mine[kPivots] = {};
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args.job.vocab; i += kTruncateThreads) add(value(i), i, mine);
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
#pragma unroll
      for (int by = kWarp / 2; by > 0; by /= 2) mine[j] += __shfl_xor_sync(kAllLanes, mine[j], by);
      if (threadIdx.x % kWarp == 0) shared.parts[warp][j] = mine[j];
    }
    __syncthreads();
    if (threadIdx.x < kPivots) {
      uint64_t total = 0;
      for (int w = 0; w < kTruncateWarps; ++w) total += shared.parts[w][threadIdx.x];
      shared.sums[threadIdx.x] = total;
    }
    __syncthreads();
    return shared.sums;
  }

  // Whether the row holds a best entry to measure by.
  __device__ __forceinline__ bool find_highest() {
    for (int64_t i = threadIdx.x; i < args.job.vocab; i += kTruncateThreads) highest = max_nan(highest, value(i));
#pragma unroll
    for (int by = kWarp / 2; by > 0; by /= 2) highest = max_nan(highest, __shfl_xor_sync(kAllLanes, highest, by));
    if (threadIdx.x % kWarp == 0) shared.highest[threadIdx.x / kWarp] = highest;
    __syncthreads();
    for (int w = 0; w < kTruncateWarps; ++w) highest = max_nan(highest, shared.highest[w]);
    __syncthreads();
    return highest == highest && highest != INFINITY && highest != kNone;
  }

  // The weight of an entry in units of 2^-44.
  __device__ __forceinline__ uint64_t mass_of(float x) const {
    float ignored;
    return static_cast<uint64_t>(weight_of<true>(x - highest, args.k[args.sample_set], ignored) * 0x1p44f);
  }

  // The truncation that leaves the fewest entries, best first, whose measures reach the target; all together do.
  template <typename Measure>
  __device__ __forceinline__ Truncation least(uint64_t target, const Measure& measure) {
    // A 16-bit format's keys are told apart by their upper bits, unless they are guided.
    const int shift = row.guidance || kFormat == kF32 ? 0 : kFormat == kBF16 ? 15 : 12;
    uint64_t key = 0;
    for (int bit = (31 - shift) / 3 * 3; bit >= 0; bit -= 3) {
      const uint64_t* sums = sum([&](float x, int64_t i, uint64_t (&mine)[kPivots]) {
        const uint64_t k = Truncation::key_of(x) >> shift;
        if (k < key + (uint64_t{1} << bit)) return;
        const uint64_t m = measure(x, i);
#pragma unroll
        for (int j = 0; j < kPivots; ++j) mine[j] += k >= key + (static_cast<uint64_t>(j + 1) << bit) ? m : 0;
      });
      int digit = 0;
      while (digit < kPivots && sums[digit] >= target) ++digit;
      key += static_cast<uint64_t>(digit) << bit;
      __syncthreads();
    }
    const uint64_t* sums = sum([&](float x, int64_t i, uint64_t (&mine)[kPivots]) {
      const uint64_t k = Truncation::key_of(x) >> shift;
      if (k < key) return;
      const uint64_t m = measure(x, i);
      mine[0] += k > key ? m : 0;
      mine[1] += k == key ? m : 0;
      mine[2] += k == key && m > 0 ? 1 : 0;
    });
    const uint64_t above = sums[0], equal = sums[1], ties = sums[2];
    __syncthreads();
    Truncation truncation{static_cast<uint32_t>(key), shift, INT32_MAX};
    const uint64_t each = equal / ties, wanted = (target - above + each - 1) / each;
    if (wanted < ties)
      truncation.last = find_tie(
          wanted, [&](float x, int64_t i) { return Truncation::key_of(x) >> shift == key && measure(x, i) > 0; });
    return truncation;
  }

  // The id of tie number `wanted`, from 1, by id: warps count their shares of the row, and the one that has it searches
  // its share.
  template <typename Tie>
  __device__ __forceinline__ int32_t find_tie(uint64_t wanted, const Tie& tie) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t vocab = args.job.vocab, share = (vocab + kTruncateThreads - 1) / kTruncateThreads * kWarp;
    const int64_t begin = warp * share, end = begin + share < vocab ? begin + share : vocab;
    const auto votes = [&](int64_t i) {
      return __ballot_sync(kAllLanes, i + lane < end && tie(value(i + lane), i + lane));
    };
    uint64_t count = 0;
    for (int64_t i = begin; i < end; i += kWarp) count += __popc(votes(i));
    if (lane == 0) shared.parts[warp][0] = count;
    __syncthreads();
    uint64_t before = 0;
    for (int w = 0; w < warp; ++w) before += shared.parts[w][0];
    if (before < wanted && wanted <= before + count) {
      for (int64_t i = begin; before < wanted; i += kWarp) {
        unsigned found = votes(i);
        for (; found != 0 && before < wanted; found &= found - 1)
          if (++before == wanted && lane == 0)
            shared.last = static_cast<int32_t>(i + __ffs(static_cast<int>(found)) - 1);
      }
    }
    __syncthreads();
    const int32_t last = shared.last;
    __syncthreads();
    return last;
  }

  __device__ __forceinline__ Truncation find() {
    Truncation truncation = row.truncation;  // keeps all
    if (!row.in_range || !find_highest()) return truncation;
    const SoftmaxJob& job = args.job;
    if (job.top_k > 0 && job.top_k < job.vocab)
      truncation = least(static_cast<uint64_t>(job.top_k), [](float, int64_t) { return uint64_t{1}; });
    if (job.top_p >= 1) return truncation;
    const auto measure = [&](float x, int64_t i) { return truncation.removes(x, i) ? uint64_t{0} : mass_of(x); };
    const uint64_t total = sum([&](float x, int64_t i, uint64_t (&mine)[kPivots]) { mine[0] += measure(x, i); })[0];
    __syncthreads();
    const uint64_t share = static_cast<uint64_t>(ceil(static_cast<double>(total) * job.top_p));
    return least(share < 1 ? 1 : share < total ? share : total, measure);
  }
};

template <int kFormat>
__global__ void __launch_bounds__(kTruncateThreads, 1) truncate_rows(Args args) {
  __shared__ TruncateStage shared;
  const int words = static_cast<int>((args.job.vocab + 31) / 32);
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kTruncateThreads) shared.forbidden[i] = 0;
  __syncthreads();
  for (int64_t f = threadIdx.x; f < args.job.n_forbid; f += kTruncateThreads) {
    const int64_t id = args.job.forbid[f];
    if (id >= 0 && id < args.job.vocab) atomicOr(shared.forbidden + id / 32, 1u << (id % 32));
  }
  __syncthreads();
  for (int64_t n = blockIdx.x; n < args.job.n; n += gridDim.x) {
    const Row row = find_row(args, n);
    Truncator<kFormat> truncator{args, row, shared};
    const Truncation truncation = truncator.find();
    if (threadIdx.x == 0) args.truncations[n] = truncation;
  }
}

// ---- launch

inline int chunks_of(const SoftmaxJob& job) { return static_cast<int>((job.vocab + kChunk - 1) / kChunk); }

// How many blocks share a row: as many as fill the device, as long as every warp has something to do; 1 if rows do.
inline int parts_of(const SoftmaxJob& job, int multiprocessors) {
  if (job.n == 0 || job.n >= 2 * static_cast<int64_t>(multiprocessors)) return 1;
  const int a_block = kWarps * (job.type == Type::kF32 ? 1 : 2), chunks = chunks_of(job);
  const int64_t most = (chunks + a_block - 1) / a_block, wanted = (4 * multiprocessors + job.n - 1) / job.n;
  return static_cast<int>(most < wanted ? most : wanted);
}

// The chunks of all rows, where blocks share rows.
inline int64_t tables_of(const SoftmaxJob& job, int parts) { return parts > 1 ? job.n * chunks_of(job) : 0; }

inline Args plan(const SoftmaxCall& call) {
  const SoftmaxJob& job = call.job;
  const WeightSets weights(job);
  Args args{};
  args.job = job;
  args.rows = call.rows;
  args.guidance_rows = call.guidance_rows;
  args.chunks = chunks_of(job);
  args.parts = parts_of(job, call.multiprocessors);
  args.sets = weights.sets;
  args.sample_set = weights.sample_set;
  args.split = weights.split;
  for (int s = 0; s < 2; ++s) args.k[s] = weights.k[s], args.k64[s] = weights.k64[s];
  args.kmax = weights.kmax;
  args.table = static_cast<Stats*>(call.workspace);
  if (weights.truncates) args.truncations = reinterpret_cast<Truncation*>(args.table + tables_of(job, args.parts));
  return args;
}

template <int kFormat, int kSets, bool kMore, bool kCareful>
int start(const Args& args, int multiprocessors, void* stream) {
  if (args.parts > 1) {
    const dim3 grid(static_cast<unsigned>(args.parts), static_cast<unsigned>(args.job.n));
    const int error = launch(&parts_of_rows<kFormat, kSets, kMore, kCareful>, grid, kThreads, stream, args);
    if (error) return error;
    return launch(&finalize_rows<kFormat>, dim3(static_cast<unsigned>(args.job.n)), kWarp, stream, args);
  }
  const int64_t resident = static_cast<int64_t>(kResident<kCareful>) * multiprocessors;
  const dim3 grid(static_cast<unsigned>(args.job.n < resident ? args.job.n : resident));
  return launch(&whole_rows<kFormat, kSets, kMore, kCareful>, grid, kThreads, stream, args);
}

// The kernel for one format, by what is wanted. Guided rows are rarer: they have fewer kernels, each of which does
// more.
template <int kFormat>
int run(const SoftmaxCall& call, void* stream) {
  if (call.job.n == 0) return 0;
  const Args args = plan(call);
  const int sms = call.multiprocessors;
  const bool more = (call.job.want & (kMargin | kEntropy)) != 0;
  if (args.truncations) {
    const dim3 grid(static_cast<unsigned>(args.job.n < sms ? args.job.n : sms));
    const int error = launch(&truncate_rows<kFormat>, grid, kTruncateThreads, stream, args);
    if (error) return error;
  }
  if (call.job.guidance.data || args.truncations)
    return args.sets == 2 ? start<kFormat, 2, true, true>(args, sms, stream)
                          : start<kFormat, 1, true, true>(args, sms, stream);
  if (args.sets == 0) return start<kFormat, 0, false, false>(args, sms, stream);
  if (args.sets == 1)
    return more ? start<kFormat, 1, true, false>(args, sms, stream)
                : start<kFormat, 1, false, false>(args, sms, stream);
  return more ? start<kFormat, 2, true, false>(args, sms, stream) : start<kFormat, 2, false, false>(args, sms, stream);
}

inline int64_t workspace_bytes(const SoftmaxJob& job, int multiprocessors) {
  const int64_t tables = tables_of(job, parts_of(job, multiprocessors)) * static_cast<int64_t>(sizeof(Stats));
  return tables + (WeightSets(job).truncates ? job.n * static_cast<int64_t>(sizeof(Truncation)) : 0);
}

}  // namespace softmax
}  // namespace samplers::cuda
