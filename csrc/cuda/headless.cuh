// Headless sampling on the device: the specification of samplers/ops/headless.py, bit for bit.
//
// A block folds one row of a tile. Its warps take the statistics of chunks as masked_softmax's do, 32 chunks at a time;
// then one warp joins them to the row's state, one chunk per lane: references, scales and uniforms are made side by
// side, and only the sums, a few additions per chunk, go one by one in order.
#pragma once

#include "../headless.h"
#include "headless.h"
#include "masked_softmax.cuh"

namespace samplers::cuda {
namespace headless {

using softmax::kNone;
using softmax::Layout;
using softmax::Row;
using softmax::Scratch;
using softmax::Stats;

constexpr int kBatch = kWarp;  // chunks that are joined at once

struct FoldArgs {
  softmax::Args tile;  // its rows begin `offset` entries before the tile does, so that ids are the vocabulary's
  HeadlessPlan plan;
  int64_t offset;
  double* real;
  int64_t* whole;
};

// What the joining warp keeps of a row between batches, in shared memory: the registers are for the statistics.
struct State {
  double total[3];
  float first, second;
  float drawn_reference;
  int64_t drawn, best;  // chunks of this tile that hold them, -1: none does
  bool bad;
};

// One batch of chunks, `first` the number of its first.
__device__ __forceinline__ void join(const FoldArgs& args, const Stats* table, int64_t first, int count, double uniform,
                                     HeadlessChunk* joins, double* totals, State& kept, int lane) {
  State state = kept;
  Stats stats = table[lane < count ? lane : 0];
  const bool bad = stats.max != stats.max || stats.max == INFINITY;
  state.bad |= __any_sync(kAllLanes, bad) != 0;
  if (bad || lane >= count) stats.max = stats.second = kNone;

  float upto = stats.max;  // the best of this lane and those before it
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const float other = __shfl_up_sync(kAllLanes, upto, by);
    if (lane >= by) upto = fmaxf(upto, other);
  }
  float before = __shfl_up_sync(kAllLanes, upto, 1);
  before = lane == 0 ? state.first : fmaxf(before, state.first);
  const bool there = stats.max != kNone;
  if (there) joins[lane] = headless_chunk(args.plan, before, stats.max, stats.sum[0], stats.sum[1], stats.entropy);
  const unsigned all = __ballot_sync(kAllLanes, there);
  __syncwarp();
  const int set = args.plan.draw_set;
  if (lane == 0) {
    for (int c = 0; c < count; ++c) {
      if (all >> c & 1) headless_add(args.plan, joins[c], state.total);
      totals[c] = set == 1 ? state.total[1] : state.total[0];
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 3; ++i) state.total[i] = __shfl_sync(kAllLanes, state.total[i], 0);

  if (set >= 0) {
    const double weight = set ? joins[lane].weight[1] : joins[lane].weight[0];
    const bool takes = there && headless_takes(uniform, first + lane, weight, totals[lane]);
    const unsigned votes = __ballot_sync(kAllLanes, takes);
    if (votes) {
      const int last = kWarp - 1 - __clz(static_cast<int>(votes));
      state.drawn = first + last;
      state.drawn_reference = __shfl_sync(kAllLanes, stats.max, last);
    }
  }
  const float top = __shfl_sync(kAllLanes, upto, kWarp - 1);
  if (top > state.first) state.best = first + softmax::first_lane(__ballot_sync(kAllLanes, stats.max == top));
  float high = stats.max, next = stats.second;
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, high, by), below = __shfl_xor_sync(kAllLanes, next, by);
    softmax::merge_two(high, next, other, below);
  }
  softmax::merge_two(state.first, state.second, high, next);
  __syncwarp();
  if (lane == 0) kept = state;
  __syncwarp();
}

template <int kFormat>
__device__ __forceinline__ void finish_tile(const FoldArgs& args, int64_t n, const Row& row, const State& state,
                                            double uniform, Scratch& scratch, int lane) {
  const softmax::Args& tile = args.tile;
  double* real = args.real + n * kReals;
  int64_t* whole = args.whole + n * kWholes;
  int64_t best = -1, drawn = -1;
  float drawn_logit = kNone;
  if (state.best >= 0) {
    const int count = softmax::materialise<kFormat>(tile, row, static_cast<int>(state.best), scratch, lane);
    best = state.best * kChunk +
           softmax::find_first(count, lane, [&](int i) { return softmax::entry_at(scratch, i) == state.first; });
    __syncwarp();
  }
  if (state.drawn >= 0) {
    const int count = softmax::materialise<kFormat>(tile, row, static_cast<int>(state.drawn), scratch, lane);
    const float k = args.plan.draw_set == 1 ? tile.k[1] : tile.k[0];
    for (int i = lane; i < kChunk; i += kWarp) {
      float ignored;
      softmax::entry_at(scratch, i) =
          softmax::weight_of<true>(softmax::entry_at(scratch, i) - state.drawn_reference, k, ignored);
    }
    __syncwarp();
    const double place = headless_draws(uniform, state.drawn).place;
    drawn = state.drawn * kChunk + softmax::draw_in_chunk(place, count, scratch, lane);
    drawn_logit = softmax::logit_of<kFormat>(tile, row, drawn, lane);
  }
  float given_logit = kNone;
  bool given_here = false;
  if (tile.job.want & kGiven) {
    const int64_t given = tile.job.given[n];
    given_here = given >= args.offset && given < tile.job.vocab;
    if (given_here) given_logit = softmax::logit_of<kFormat>(tile, row, given, lane);
  }
  if (lane != 0) return;
  for (int i = 0; i < 3; ++i) real[kSum0 + i] = state.total[i];
  real[kFirst] = state.first;
  real[kSecond] = state.second;
  if (state.bad) whole[kBad] = 1;
  if (state.best >= 0) whole[kBestId] = best;
  if (state.drawn >= 0) {
    whole[kDrawnId] = drawn;
    real[kDrawnLogit] = drawn_logit;
  }
  if (given_here) real[kGivenLogit] = given_logit;
}

// Block n folds row n.
template <int kFormat, int kSets, bool kMore, bool kCareful>
__global__ void __launch_bounds__(softmax::kThreads, kCareful ? 1 : 2) fold_rows(FoldArgs args) {
  using L = Layout<kFormat>;
  __shared__ Stats table[kBatch];
  __shared__ HeadlessChunk joins[kBatch];
  __shared__ double totals[kBatch];
  __shared__ State state;
  __shared__ Scratch scratch;
  __shared__ softmax::SharedStage<kFormat> shared;
  __shared__ int
      peak[softmax::kWarps * L::kGroups];  // by group: the largest entry of its chunks, and of the tiles before
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int group = thread / L::kLanes, groups = threads / L::kLanes;
  const int64_t n = blockIdx.x;
  const Row row = softmax::find_row(args.tile, n);
  double* real = args.real + n * kReals;
  if (thread == 0) {
    if (args.offset == 0) headless_start(real, args.whole + n * kWholes);
    state = {{real[kSum0], real[kSum1], real[kEntropySum]},
             static_cast<float>(real[kFirst]),
             static_cast<float>(real[kSecond]),
             0.f,
             -1,
             -1,
             false};
  }
  for (int i = thread; i < groups * (kChunk / 32); i += threads) shared.marks[i / (kChunk / 32)][i % (kChunk / 32)] = 0;
  __syncthreads();
  if (thread < groups) peak[thread] = softmax::ordered(state.first);
  __syncthreads();
  const double uniform = args.plan.draw_set >= 0 ? args.tile.job.uniform[n] : 0.0;
  for (int first = static_cast<int>(args.offset / kChunk); first < args.tile.chunks; first += kBatch) {
    const int left = args.tile.chunks - first, count = left < kBatch ? left : kBatch;
    // A warp's groups go together, also those without a chunk.
    for (int begin = 0; begin < count; begin += groups) {
      if (begin + thread / kWarp * L::kGroups >= count) break;
      const int c = begin + group;
      const int64_t from = static_cast<int64_t>(first + c) * kChunk, there = args.tile.job.vocab - from;
      const int entries = c < count ? static_cast<int>(there < kChunk ? there : kChunk) : 0;
      const Stats stats = softmax::chunk_stats<kFormat, kSets, kMore, kCareful>(
          args.tile, row, from, entries, thread % L::kLanes, shared.marks[group], shared.stage[c % 2], peak + group);
      if (c < count && thread % L::kLanes == 0) table[c] = stats;
    }
    __syncthreads();
    if (thread < kWarp) join(args, table, first, count, uniform, joins, totals, state, thread);
    __syncthreads();
  }
  if (thread < kWarp) finish_tile<kFormat>(args, n, row, state, uniform, scratch, thread);
}

// A thread reads one row's state out. (A template, so that only the file that launches it compiles it.)
template <typename Finish>
__global__ void __launch_bounds__(softmax::kThreads) finish_rows(Finish job) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= job.n) return;
  const HeadlessPlan plan =
      headless_plan(job.temperature, job.confidence_temperature, job.want != 0, (job.want & kEntropy) != 0);
  const double* real = job.real + n * kReals;
  const int64_t* whole = job.whole + n * kWholes;
  const int32_t status = headless_status(real, whole);
  const bool draws = plan.draw_set >= 0;
  job.status[n] = status;
  job.token[n] = status ? -1 : whole[draws ? kDrawnId : kBestId];
  const auto put = [&](float* out, double value) {
    if (out) out[n] = status ? NAN : static_cast<float>(value);
  };
  put(job.confidence, headless_probability(plan, real, real[draws ? kDrawnLogit : kFirst]));
  put(job.margin, headless_margin(plan, real));
  put(job.entropy, headless_entropy(real));
  put(job.lse, headless_lse(plan, real));
  put(job.given, headless_probability(plan, real, real[kGivenLogit]));
}

template <int kFormat, int kSets, bool kMore, bool kCareful>
int start(const FoldArgs& args, void* stream) {
  // No more warps than there are chunks for.
  const int64_t chunks = args.tile.chunks - args.offset / kChunk, a_warp = Layout<kFormat>::kGroups;
  const int64_t warps = (chunks + a_warp - 1) / a_warp;
  const int threads = static_cast<int>(warps < softmax::kWarps ? warps : softmax::kWarps) * kWarp;
  return launch(&fold_rows<kFormat, kSets, kMore, kCareful>, dim3(static_cast<unsigned>(args.tile.job.n)), threads,
                stream, args);
}

inline FoldArgs plan(const HeadlessFold& job) {
  FoldArgs args{};
  args.plan = headless_plan(job.temperature, job.confidence_temperature, job.want != 0, (job.want & kEntropy) != 0);
  args.offset = job.offset;
  args.real = job.real;
  args.whole = job.whole;
  softmax::Args& tile = args.tile;
  const int64_t back = job.offset * (job.type == Type::kF32 ? 4 : 2);
  tile.job.type = job.type;
  tile.job.n = job.n;
  tile.job.vocab = job.offset + job.width;
  tile.job.logits = job.logits;
  tile.job.logits.data -= back;
  tile.job.guidance = job.guidance;
  if (job.guidance.data) tile.job.guidance.data -= back;
  tile.job.cfg_scale = job.cfg_scale;
  tile.job.top_p = 1;
  tile.job.uniform = job.uniform;
  tile.job.forbid = job.forbid;
  tile.job.n_forbid = job.n_forbid;
  tile.job.given = job.given;
  tile.job.want = job.want;
  tile.rows = tile.guidance_rows = job.n;
  tile.chunks = static_cast<int>((tile.job.vocab + kChunk - 1) / kChunk);
  tile.sets = args.plan.sets;
  for (int s = 0; s < 2; ++s) {
    tile.k64[s] = args.plan.k[s];
    tile.k[s] = static_cast<float>(args.plan.k[s]);
  }
  tile.kmax = tile.k[0] > tile.k[1] ? tile.k[0] : tile.k[1];
  return args;
}

// The kernel for one format, by what is wanted, as in masked_softmax.cuh.
template <int kFormat>
int run(const HeadlessFold& job, void* stream) {
  const FoldArgs args = plan(job);
  const bool more = (job.want & (kMargin | kEntropy)) != 0;
  if (job.guidance.data)
    return args.tile.sets == 2 ? start<kFormat, 2, true, true>(args, stream)
                               : start<kFormat, 1, true, true>(args, stream);
  if (args.tile.sets == 0) return start<kFormat, 0, false, false>(args, stream);
  if (args.tile.sets == 1)
    return more ? start<kFormat, 1, true, false>(args, stream) : start<kFormat, 1, false, false>(args, stream);
  return more ? start<kFormat, 2, true, false>(args, stream) : start<kFormat, 2, false, false>(args, stream);
}

inline int run_finish(const HeadlessFinish& job, void* stream) {
  const int64_t blocks = (job.n + softmax::kThreads - 1) / softmax::kThreads;
  return launch(&finish_rows<HeadlessFinish>, dim3(static_cast<unsigned>(blocks)), softmax::kThreads, stream, job);
}

}  // namespace headless
}  // namespace samplers::cuda
