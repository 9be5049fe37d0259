// masked_softmax on the device: the specification of samplers/ops/masked_softmax.py (_twin), bit for bit.
//
// A group of 16 lanes (of 32 for fp32) owns one chunk of 1024 entries at a time. Each lane holds 64 (32) of them, eight
// loads of 16 bytes: entry i lies in the lane and at the place that i mod 128 says, so the 128 accumulators are the
// lanes' own and the halving tree is shuffles. The chunk's maximum is known before the first weight, so nothing is done
// twice. With many rows, a block works through whole rows; when a row's table of chunks is full, one warp finishes the
// row while the others go on to the next. With few rows, several blocks share a row and a second kernel finishes it.
#pragma once

#include <math.h>

#include "masked_softmax.h"
#include "numbers.h"

namespace samplers::cuda {
namespace softmax {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kMostChunks = static_cast<int>(kMostColumns / kChunk);
constexpr int kBlocks = kChunk / kBlock;
constexpr float kNone = -INFINITY;
constexpr int32_t kOutOfRange = 3;  // a status: besides 0, 1, 2 of the CPU, where such a call is an error

// One chunk of one row.
struct Stats {
  float m;            // reference: t = (x - m) * k
  float max, second;  // the two largest entries; max is a NaN if the chunk holds one
  float sum[2];       // sum of weights, by weight set
  float entropy;      // sum of weight * t, of the first set
};

struct Args {
  cpu::Job job;
  int64_t rows, guidance_rows;
  int chunks, parts;  // parts > 1: so many blocks share a row
  int sets, sample_set;
  float k[2], kmax;
  double k64[2];
  Stats* table;  // (n, chunks) where blocks share rows
};

// What one warp needs to finish a row.
struct Scratch {
  double sums[3][kMostChunks];          // running sums over chunks: the weights by set, the entropy
  float entries[kChunk + kChunk / 32];  // of the chunk that holds the token, padded against bank conflicts
  uint32_t forbidden[kChunk / 32];      // its forbidden entries
};

template <int kFormat>
struct Layout {
  static constexpr int kBytes = kFormat == kF32 ? 4 : 2;  // of an entry
  static constexpr int kPer = 16 / kBytes;                // entries a load
  static constexpr int kLanes = kBlock / kPer;            // lanes a group
  static constexpr int kGroups = kWarp / kLanes;          // groups a warp
  static constexpr int kHalves = 4 / kBytes;              // entries a word
};

// ---- rows
// ------------------------------------------------------------------------------------------------------------

// Where a row starts; nullptr if its index is out of range.
__device__ __forceinline__ const char* row_of(const cpu::Rows& rows, int64_t n, int64_t count) {
  const int64_t i = rows.index ? rows.index[n] : n;
  return i >= 0 && i < count ? rows.data + i * rows.stride : nullptr;
}

struct Row {
  const char *logits, *guidance;  // guidance null: none
  bool in_range;
};

__device__ __forceinline__ Row find_row(const Args& args, int64_t n) {
  Row row{row_of(args.job.logits, n, args.rows), nullptr, true};
  row.in_range = row.logits != nullptr;
  if (args.job.guidance.data) {
    row.guidance = row_of(args.job.guidance, n, args.guidance_rows);
    row.in_range &= row.guidance != nullptr;
  }
  return row;
}

template <int kFormat>
__device__ __forceinline__ uint32_t load_one(const char* row, int64_t i) {
  if constexpr (kFormat == kF32) return __ldg(reinterpret_cast<const uint32_t*>(row) + i);
  return __ldg(reinterpret_cast<const uint16_t*>(row) + i);
}

// One guided logit; whether its id is forbidden is looked up elsewhere.
template <int kFormat>
__device__ __forceinline__ float load_guided(const Args& args, const Row& row, int64_t i) {
  const float a = number<kFormat>(load_one<kFormat>(row.logits, i), 0);
  if (!row.guidance) return a;
  return guided(a, number<kFormat>(load_one<kFormat>(row.guidance, i), 0), args.job.cfg_scale);
}

// ---- one chunk
// -------------------------------------------------------------------------------------------------------

// The lane's entries of a chunk of `count` entries: words[b] are block b's. `filler` stands past the end.
template <int kFormat>
__device__ __forceinline__ void load_chunk(const char* row, int64_t begin, int count, bool room, int lane,
                                           uint32_t filler, uint32_t (&words)[kBlocks][4]) {
  using L = Layout<kFormat>;
  const char* first = row + begin * L::kBytes + lane * 16;
  const unsigned shift = static_cast<unsigned>(reinterpret_cast<uintptr_t>(first) & 15u);
  if (count == kChunk && shift == 0) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(first + b * kBlock * L::kBytes));
      words[b][0] = v.x, words[b][1] = v.y, words[b][2] = v.z, words[b][3] = v.w;
    }
  } else if (count == kChunk && room) {
    // The row is not aligned: two aligned loads (the second one hits the cache), put together. `room` says that the
    // second one ends inside the row.
    first -= shift;
    const unsigned bits = shift % 4 * 8;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint4* at = reinterpret_cast<const uint4*>(first + b * kBlock * L::kBytes);
      const uint4 p = __ldg(at), q = __ldg(at + 1);
      uint32_t w[8] = {p.x, p.y, p.z, p.w, q.x, q.y, q.z, q.w};
#pragma unroll
      for (int i = 0; i < 6; ++i) w[i] = shift & 8u ? w[i + 2] : w[i];
#pragma unroll
      for (int i = 0; i < 5; ++i) w[i] = shift & 4u ? w[i + 1] : w[i];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[b][i] = __funnelshift_r(w[i], w[i + 1], bits);
    }
  } else {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t word = 0;
#pragma unroll
        for (int h = 0; h < L::kHalves; ++h) {
          const int i = b * kBlock + lane * L::kPer + w * L::kHalves + h;
          word |= (i < count ? load_one<kFormat>(row, begin + i) : filler) << (16 * h);
        }
        words[b][w] = word;
      }
    }
  }
}

// Marks the forbidden ids of a chunk in `marks` (32 words, zero before), by `lanes` lanes; → whether this lane found
// one.
__device__ __forceinline__ bool mark_forbidden(const cpu::Job& job, int64_t begin, int count, int lane, int lanes,
                                               uint32_t* marks) {
  bool found = false;
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
__device__ __forceinline__ uint64_t forbidden_of(const cpu::Job& job, int64_t begin, int count, int lane,
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

template <int kLanes>
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
  for (int by = kLanes / 2; by > 0; by /= 2) x = max_nan(x, __shfl_xor_sync(kAllLanes, x, by));
  return x;
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

// The whole of a chunk's work, by a group; a group without a chunk of its own comes with count 0. Every lane of the
// warp must call it, and all lanes of the group return the same. kMore: entropy and the second largest, too.
template <int kFormat, int kSets, bool kMore, bool kGuided>
__device__ __forceinline__ Stats survey_chunk(const Args& args, const Row& row, int64_t begin, int count, int lane,
                                              uint32_t* marks) {
  using L = Layout<kFormat>;
  constexpr uint32_t kNoneWord = kFormat == kF32 ? 0xff800000u : kFormat == kBF16 ? 0xff80ff80u : 0xfc00fc00u;
  constexpr uint32_t kNoneOne = kFormat == kF32 ? kNoneWord : kNoneWord & 0xffffu;
  const bool room = args.job.vocab - begin - kChunk >= L::kPer;
  uint32_t words[kBlocks][4];
  load_chunk<kFormat>(row.logits, begin, count, room, lane, kNoneOne, words);
  const uint64_t forbidden = forbidden_of<kFormat>(args.job, begin, count, lane, marks);
  if (!kGuided && forbidden) {
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
  const auto block_of = [&](int b, float (&x)[L::kPer]) {  // block b of the lane in fp32
    uint32_t other[4];
    if constexpr (kGuided) {
      const int i = b * kBlock + lane * L::kPer;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        other[w] = 0;
#pragma unroll
        for (int h = 0; h < L::kHalves; ++h) {
          const int at = i + w * L::kHalves + h;
          if (at < count) other[w] |= load_one<kFormat>(row.guidance, begin + at) << (16 * h);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < L::kPer; ++e) {
      const int w = e / L::kHalves, h = e % L::kHalves;
      x[e] = number<kFormat>(words[b][w], h);
      if constexpr (kGuided) {
        x[e] = guided(x[e], number<kFormat>(other[w], h), args.job.cfg_scale);
        if (forbidden >> (b * L::kPer + e) & 1) x[e] = kNone;
      }
    }
  };

  Stats out;
  float first = kNone, head = kNone, second = kNone;
  if constexpr (kGuided) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      float x[L::kPer];
      block_of(b, x);
#pragma unroll
      for (int e = 0; e < L::kPer; ++e) merge_two(first, second, x[e], kNone);
      if (b == 0) head = first;
    }
  } else {
    uint32_t high[4] = {kNoneWord, kNoneWord, kNoneWord, kNoneWord},
             low[4] = {kNoneWord, kNoneWord, kNoneWord, kNoneWord};
    const auto join = [&](float& best, float& next) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
#pragma unroll
        for (int h = 0; h < L::kHalves; ++h)
          merge_two(best, next, number<kFormat>(high[w], h), kMore ? number<kFormat>(low[w], h) : kNone);
      }
    };
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if (kMore) low[w] = max_word<kFormat>(low[w], min_word<kFormat>(high[w], words[b][w]));
        high[w] = max_word<kFormat>(high[w], words[b][w]);
      }
      if (b == 0) {
        float ignored = kNone;
        join(head, ignored);
      }
    }
    join(first, second);
  }
  if (kMore) {
#pragma unroll
    for (int by = L::kLanes / 2; by > 0; by /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, first, by), next = __shfl_xor_sync(kAllLanes, second, by);
      merge_two(first, second, other, next);
    }
  } else {
    first = group_max<L::kLanes>(first);
  }
  out.max = first;
  out.second = second;
  out.m = first;
  out.sum[0] = out.sum[1] = out.entropy = 0.f;
  if (kSets == 0) return out;

  head = group_max<L::kLanes>(head);
  if ((first - head) * args.kmax <= kHeadroom) out.m = head;
  const int blocks = (count + kBlock - 1) / kBlock;
  float acc[L::kPer] = {}, more[L::kPer] = {}, entropy[L::kPer] = {};
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    if (b >= blocks) continue;  // a block past the end is not there
    float x[L::kPer];
    block_of(b, x);
#pragma unroll
    for (int e = 0; e < L::kPer; ++e) {
      const float d = x[e] - out.m;
      const float t = fmaxf(kFloor, d * args.k[0]), w = fast_exp2(t);
      acc[e] += w;
      if (kMore) entropy[e] = fmaf(w, t, entropy[e]);
      if (kSets == 2) more[e] += fast_exp2(fmaxf(kFloor, d * args.k[1]));
    }
  }
  out.sum[0] = halving_sum<L::kLanes>(acc, lane);
  out.sum[1] = kSets == 2 ? halving_sum<L::kLanes>(more, lane) : out.sum[0];
  if (kMore) out.entropy = halving_sum<L::kLanes>(entropy, lane);
  if (out.m == kNone) out.sum[0] = out.sum[1] = out.entropy = 0.f;  // nothing to weigh
  return out;
}

// ---- the end of a row, by one warp
// -----------------------------------------------------------------------------------

__device__ __forceinline__ int first_lane(unsigned votes) { return __ffs(static_cast<int>(votes)) - 1; }

// The first i in [0, n) for which yes(i), and n if there is none.
template <typename Yes>
__device__ __forceinline__ int find_first(int n, int lane, const Yes& yes) {
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
  for (int begin = 0; begin < n; begin += kWarp) {
    const unsigned votes = __ballot_sync(kAllLanes, begin + lane < n && yes(begin + lane));
    if (votes) last = begin + kWarp - 1 - __clz(static_cast<int>(votes));
  }
  return last;
}

__device__ __forceinline__ double scale_of(const Args& args, const Stats& chunk, double reference, int set) {
  return exp2_scale((static_cast<double>(chunk.m) - reference) * args.k64[set]);
}

// scratch.sums: the running sums of the chunks' weights and entropies, added up in chunk order.
__device__ __forceinline__ void add_up(const Args& args, const Stats* table, double reference, Scratch& scratch,
                                       int lane) {
  constexpr int kStep = 8;
  const int padded = (args.chunks + kStep - 1) / kStep * kStep;
  for (int c = lane; c < padded; c += kWarp) {
    double weight[2] = {0, 0}, entropy = 0;
    if (c < args.chunks) {
      const Stats chunk = table[c];
      const double scale = scale_of(args, chunk, reference, 0);
      weight[0] = static_cast<double>(chunk.sum[0]) * scale;
      if (args.sets == 2) weight[1] = static_cast<double>(chunk.sum[1]) * scale_of(args, chunk, reference, 1);
      if (scale != 0) {  // 0 * (m_c - M) with m_c = -inf
        const double s = chunk.sum[0], t = (static_cast<double>(chunk.m) - reference) * args.k64[0];
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
#pragma unroll 8
  for (int i = lane; i < kChunk; i += kWarp) {
    const float x = i < count ? load_guided<kFormat>(args, row, begin + i) : kNone;
    entry_at(scratch, i) = scratch.forbidden[i / 32] >> (i % 32) & 1 ? kNone : x;
  }
  __syncwarp();
  return count;
}

// The first of `count` entries whose running sum of weights exceeds share * (their total), the sums taken one by one.
__device__ __forceinline__ int draw_in_order(double share, int count, Scratch& scratch) {
  double total = 0;
  for (int i = 0; i < count; ++i) total += static_cast<double>(entry_at(scratch, i));
  const double goal = share * total;
  double sum = 0;
  int last = 0;
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
  const auto weight_of = [&](int c) {
    return static_cast<double>(table[c].sum[set]) * scale_of(args, table[c], reference, set);
  };
  int c = find_first(args.chunks, lane, [&](int i) { return sums[i] > target; });
  if (c == args.chunks)  // rounding carried the target past the end: the last one with weight
    c = find_last(args.chunks, lane, [&](int i) { return weight_of(i) > 0; });
  const double share = (target - (c > 0 ? sums[c - 1] : 0)) / weight_of(c);
  const int count = materialise<kFormat>(args, row, c, scratch, lane);
  const float m = table[c].m, k = args.k[set];
  for (int i = lane; i < kChunk; i += kWarp) {
    const float t = (entry_at(scratch, i) - m) * k;
    entry_at(scratch, i) = t < kFloor ? 0.f : fast_exp2(t);
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

// One guided logit, a forbidden one at -inf; the same in all lanes.
template <int kFormat>
__device__ __forceinline__ float logit_of(const Args& args, const Row& row, int64_t id, int lane) {
  bool forbidden = false;
  for (int64_t f = lane; f < args.job.n_forbid; f += kWarp) forbidden |= args.job.forbid[f] == id;
  return __any_sync(kAllLanes, forbidden) ? kNone : load_guided<kFormat>(args, row, id);
}

__device__ __forceinline__ void spoil(const cpu::Job& job, int64_t n, int32_t status) {
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
  const cpu::Job& job = args.job;
  const Row row = find_row(args, n);
  const int64_t given = job.given_out ? job.given[n] : 0;
  if (!row.in_range || given < 0 || given >= job.vocab) {
    if (lane == 0) spoil(job, n, kOutOfRange);
    return;
  }
  float highest = kNone, second = kNone, reference = kNone;
  for (int c = lane; c < args.chunks; c += kWarp) {
    merge_two(highest, second, table[c].max, table[c].second);
    reference = fmaxf(reference, table[c].m);
  }
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, highest, by), next = __shfl_xor_sync(kAllLanes, second, by);
    merge_two(highest, second, other, next);
    reference = fmaxf(reference, __shfl_xor_sync(kAllLanes, reference, by));
  }
  const int32_t status = highest != highest || highest == INFINITY ? 1 : highest == kNone ? 2 : 0;
  if (status) {
    if (lane == 0) spoil(job, n, status);
    return;
  }
  const double m = reference;
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
  const auto weight_of = [&](float logit) { return exp2_scale((static_cast<double>(logit) - m) * args.k64[0]); };
  const auto at_most_one = [](double p) { return static_cast<float>(p < 1.0 ? p : 1.0); };
  if (job.confidence) job.confidence[n] = at_most_one(weight_of(chosen) / total);
  if (job.given_out) job.given_out[n] = at_most_one(weight_of(asked) / total);
  if (job.margin) job.margin[n] = at_most_one((weight_of(highest) - weight_of(second)) / total);
  const double log_weight = log(total);
  if (job.lse) job.lse[n] = static_cast<float>(m / job.confidence_temperature + log_weight);
  if (job.entropy) {
    const double h = log_weight - kLn2 * scratch.sums[2][args.chunks - 1] / total;
    job.entropy[n] = static_cast<float>(h > 0.0 ? h : 0.0);
  }
}

// ---- kernels
// ---------------------------------------------------------------------------------------------------------

template <int kFormat, int kSets, bool kMore, bool kGuided>
__device__ __forceinline__ void survey_into(const Args& args, const Row& row, int first, int end, int lane,
                                            uint32_t* marks, Stats* table) {
  using L = Layout<kFormat>;
  const int group = lane / L::kLanes, c = first + group;
  const int64_t begin = static_cast<int64_t>(c) * kChunk, left = args.job.vocab - begin;
  const int count = c < end && row.in_range ? static_cast<int>(left < kChunk ? left : kChunk) : 0;
  const Stats stats = survey_chunk<kFormat, kSets, kMore, kGuided>(args, row, begin, count, lane % L::kLanes,
                                                                   marks + group * (kChunk / 32));
  if (c < end && lane % L::kLanes == 0) table[c] = stats;
}

// Many rows: a block takes row after row.
template <int kFormat, int kSets, bool kMore, bool kGuided>
__global__ void __launch_bounds__(kThreads, kSets == 2 || kMore ? 2 : 3) whole_rows(Args args) {
  using L = Layout<kFormat>;
  __shared__ Stats table[2][kMostChunks];
  __shared__ Scratch scratch;
  __shared__ uint32_t marks[kWarps][L::kGroups * (kChunk / 32)];
  __shared__ int next[2];  // the first chunk that no warp has taken
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = lane; i < L::kGroups * (kChunk / 32); i += kWarp) marks[warp][i] = 0;
  if (threadIdx.x < 2) next[threadIdx.x] = 0;
  __syncthreads();
  int64_t before = -1;  // the row whose table is full but which is not finished
  int turn = 0;
  for (int64_t n = blockIdx.x;; n += gridDim.x, ++turn) {
    const int now = turn % 2;
    if (before >= 0 && warp == turn % kWarps) finish<kFormat>(args, before, table[1 - now], scratch, lane);
    if (n >= args.job.n) return;
    const Row row = find_row(args, n);
    for (;;) {
      int first = 0;
      if (lane == 0) first = atomicAdd(&next[now], L::kGroups);
      first = __shfl_sync(kAllLanes, first, 0);
      if (first >= args.chunks) break;
      survey_into<kFormat, kSets, kMore, kGuided>(args, row, first, args.chunks, lane, marks[warp], table[now]);
    }
    // Behind the barrier this table is full and the other one, finished by now, is free.
    __syncthreads();
    if (threadIdx.x == 0) next[now] = 0;
    before = n;
  }
}

// Few rows: block (part, row) fills its share of the row's table.
template <int kFormat, int kSets, bool kMore, bool kGuided>
__global__ void __launch_bounds__(kThreads, kSets == 2 || kMore ? 2 : 3) parts_of_rows(Args args) {
  using L = Layout<kFormat>;
  __shared__ uint32_t marks[kWarps][L::kGroups * (kChunk / 32)];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = lane; i < L::kGroups * (kChunk / 32); i += kWarp) marks[warp][i] = 0;
  __syncwarp();
  const int64_t n = blockIdx.y;
  const int part = static_cast<int>(blockIdx.x);
  const int begin = args.chunks * part / args.parts, end = args.chunks * (part + 1) / args.parts;
  const Row row = find_row(args, n);
  for (int first = begin + warp * L::kGroups; first < end; first += kWarps * L::kGroups)
    survey_into<kFormat, kSets, kMore, kGuided>(args, row, first, end, lane, marks[warp], args.table + n * args.chunks);
}

template <int kFormat>
__global__ void __launch_bounds__(kWarp) ends_of_rows(Args args) {
  __shared__ Scratch scratch;
  const int64_t n = blockIdx.x;
  finish<kFormat>(args, n, args.table + n * args.chunks, scratch, static_cast<int>(threadIdx.x));
}

// ---- launch
// ----------------------------------------------------------------------------------------------------------

inline int chunks_of(const cpu::Job& job) { return static_cast<int>((job.vocab + kChunk - 1) / kChunk); }

// How many blocks share a row: as many as fill the device, as long as every warp has something to do; 1 where rows do.
inline int parts_of(const cpu::Job& job, int multiprocessors) {
  if (job.n >= 2 * static_cast<int64_t>(multiprocessors)) return 1;
  const int a_block = kWarps * (job.type == cpu::Type::kF32 ? 1 : 2), chunks = chunks_of(job);
  const int64_t most = (chunks + a_block - 1) / a_block, wanted = (4 * multiprocessors + job.n - 1) / job.n;
  return static_cast<int>(most < wanted ? most : wanted);
}

inline Args plan(const SoftmaxCall& call) {
  const cpu::Job& job = call.job;
  const bool draw = job.temperature > 0, statistics = job.want != 0;
  const bool shared = draw && statistics && job.temperature == job.confidence_temperature;
  Args args{};
  args.job = job;
  args.rows = call.rows;
  args.guidance_rows = call.guidance_rows;
  args.chunks = chunks_of(job);
  args.parts = parts_of(job, call.multiprocessors);
  args.sets = (draw ? 1 : 0) + (statistics ? 1 : 0) - (shared ? 1 : 0);
  args.sample_set = args.sets == 2 ? 1 : 0;
  args.k64[0] = kLog2e / (statistics ? job.confidence_temperature : draw ? job.temperature : 1.0);
  args.k64[1] = args.sets == 2 ? kLog2e / job.temperature : args.k64[0];
  for (int s = 0; s < 2; ++s) args.k[s] = static_cast<float>(args.k64[s]);
  args.kmax = args.k[0] > args.k[1] ? args.k[0] : args.k[1];
  args.table = static_cast<Stats*>(call.workspace);
  return args;
}

template <int kFormat, int kSets, bool kMore, bool kGuided>
int start(const Args& args, int multiprocessors, void* stream) {
  if (args.parts > 1) {
    const dim3 grid(static_cast<unsigned>(args.parts), static_cast<unsigned>(args.job.n));
    const int error = launch(&parts_of_rows<kFormat, kSets, kMore, kGuided>, grid, kThreads, stream, args);
    if (error) return error;
    return launch(&ends_of_rows<kFormat>, dim3(static_cast<unsigned>(args.job.n)), kWarp, stream, args);
  }
  const int64_t resident = static_cast<int64_t>(kSets == 2 || kMore ? 2 : 3) * multiprocessors;
  const dim3 grid(static_cast<unsigned>(args.job.n < resident ? args.job.n : resident));
  return launch(&whole_rows<kFormat, kSets, kMore, kGuided>, grid, kThreads, stream, args);
}

// The kernel for one format, by what is wanted. Guided rows are rarer: they have fewer kernels, each of which does
// more.
template <int kFormat>
int run(const SoftmaxCall& call, void* stream) {
  const Args args = plan(call);
  const int sms = call.multiprocessors;
  const bool more = (call.job.want & (cpu::kMargin | cpu::kEntropy)) != 0;
  if (call.job.guidance.data)
    return args.sets == 2 ? start<kFormat, 2, true, true>(args, sms, stream)
                          : start<kFormat, 1, true, true>(args, sms, stream);
  if (args.sets == 0) return start<kFormat, 0, false, false>(args, sms, stream);
  if (args.sets == 1)
    return more ? start<kFormat, 1, true, false>(args, sms, stream)
                : start<kFormat, 1, false, false>(args, sms, stream);
  return more ? start<kFormat, 2, true, false>(args, sms, stream) : start<kFormat, 2, false, false>(args, sms, stream);
}

inline int64_t workspace_bytes(const cpu::Job& job, int multiprocessors) {
  return parts_of(job, multiprocessors) > 1 ? job.n * chunks_of(job) * static_cast<int64_t>(sizeof(Stats)) : 0;
}

}  // namespace softmax
}  // namespace samplers::cuda
