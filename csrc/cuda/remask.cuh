// select, commit_ and the slot ops on the device: the specification of samplers/ops/remask.py, one block per row.
//
// A row's keys are compared eight bits at a time, highest first: a histogram over the 256 values of those bits, a scan
// from its top, and the bin that the rule does not fit into whole is the next window. What a bin holds is summed as
// integers, so the order of the atomics does not show, and a factor or a budget needs no sort. What is left in the end
// is one key; those that have it go by position.
#pragma once

#include "block.h"
#include "remask.h"

namespace samplers::cuda {
namespace remask {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBins = kThreads;  // one thread per bin
constexpr int kMemory = 32768;   // bytes of keys that are kept; beyond, keys are made again when they are needed
template <typename F>
constexpr int64_t kKept = kMemory / sizeof(F);

using Word = unsigned long long;  // what 64-bit atomics take

// Of a prefix of the order: how many, the sum and the highest of their costs, and the last one's key.
struct Total {
  Word n, sum, highest, lowest;
};

__device__ __forceinline__ Total nothing() { return {0, 0, 0, ~Word{0}}; }
__device__ __forceinline__ Total join(const Total& a, const Total& b) {
  return {a.n + b.n, a.sum + b.sum, a.highest > b.highest ? a.highest : b.highest,
          a.lowest < b.lowest ? a.lowest : b.lowest};
}

template <typename F>
struct Shared {
  Key<F> keys[kKept<F>];
  unsigned count[kBins];
  Word sum[kBins], highest[kBins], lowest[kBins];
  Total warps[kWarps], last;
  int first;
  unsigned found[kWarps];
  Word number;
};

template <typename F>
struct Row {
  const Choice<F>& job;
  Shared<F>& shared;
  int64_t b, start, there;  // places `there` and beyond are nobody's

  __device__ __forceinline__ Key<F> make(int64_t i) const {
    if (i >= there) return kBarred<F>;
    const int64_t position = start + i * job.step;
    if (job.candidate.data && !job.candidate.at(b, position)) return kBarred<F>;
    return score_key(job.score.at(b, position), job.lowest ? KeyOf<F>::kSign : Key<F>{0});
  }
  __device__ __forceinline__ Key<F> key(int64_t i) const { return i < kKept<F> ? shared.keys[i] : make(i); }
  // Keys as unsigned numbers of the same order, and back.
  static __device__ __forceinline__ Word ordered(Key<F> key) {
    return static_cast<Bits<F>>(key) ^ static_cast<Bits<F>>(KeyOf<F>::kSign);
  }
  static __device__ __forceinline__ Key<F> signed_key(Word word) {
    return static_cast<Key<F>>(static_cast<Bits<F>>(word) ^ static_cast<Bits<F>>(KeyOf<F>::kSign));
  }
  __device__ __forceinline__ Word cost(int64_t i) const {
    const Plane<const F>& cost = job.cost.data ? job.cost : job.score;
    return static_cast<Word>(fixed_cost(static_cast<double>(cost.at(b, start + i * job.step))));
  }
};

// Does a prefix of this total stay within the rule? Each holds for all shorter prefixes of one that it holds for.
struct AtMost {
  static constexpr bool kCosts = false;
  Word k;
  __device__ __forceinline__ bool operator()(const Total& t) const { return t.n <= k; }
};
template <typename F>
struct WithinFactor {
  static constexpr bool kCosts = true;
  double factor;
  __device__ __forceinline__ bool operator()(const Total& t) const {
    if (t.n == 0) return true;
    const Key<F> key = Row<F>::signed_key(t.lowest);
    return key != kNan<F> && factor_holds(static_cast<double>(key_score<F>(key)), static_cast<int64_t>(t.n), factor);
  }
};
struct WithinBudget {
  static constexpr bool kCosts = true;
  int64_t budget;
  __device__ __forceinline__ bool operator()(const Total& t) const {
    return t.n == 0 || static_cast<int64_t>(t.sum - t.highest) <= budget;
  }
};

// The totals of threads 0 to this one. Every thread of the block must call it.
template <typename F>
__device__ __forceinline__ Total scan(Total mine, Shared<F>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int by = 1; by < kWarp; by *= 2) {
    const Total before = {__shfl_up_sync(kAllLanes, mine.n, by), __shfl_up_sync(kAllLanes, mine.sum, by),
                          __shfl_up_sync(kAllLanes, mine.highest, by), __shfl_up_sync(kAllLanes, mine.lowest, by)};
    if (lane >= by) mine = join(before, mine);
  }
  if (lane == kWarp - 1) shared.warps[warp] = mine;
  __syncthreads();
  Total before = nothing();
  for (int w = 0; w < warp; ++w) before = join(before, shared.warps[w]);
  __syncthreads();
  return join(before, mine);
}

// The sum over the block; every thread must call it and gets it.
template <typename F>
__device__ __forceinline__ Word sum_over_block(Word mine, Shared<F>& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.number = 0;
  __syncthreads();
  for (int by = kWarp / 2; by > 0; by /= 2) mine += __shfl_xor_sync(kAllLanes, mine, by);
  if (threadIdx.x % kWarp == 0) atomicAdd(&shared.number, mine);
  __syncthreads();
  return shared.number;
}

// The highest key of which not all bearers fit, and the total of the keys above it. False: everything fits.
template <typename F, typename Holds>
__device__ __forceinline__ bool descend(const Row<F>& row, const Holds& holds, Word& key, Total& above) {
  Shared<F>& shared = row.shared;
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kBits = 8 * sizeof(F);
  key = 0;
  above = nothing();
  for (int shift = kBits - 8; shift >= 0; shift -= 8) {
    __syncthreads();
    shared.count[thread] = 0;
    shared.sum[thread] = shared.highest[thread] = 0;
    shared.lowest[thread] = ~Word{0};
    if (thread == 0) shared.first = kBins;
    __syncthreads();
    for (int64_t i = thread; i < row.job.length; i += kThreads) {
      const Key<F> mine = row.key(i);
      const Word word = Row<F>::ordered(mine);
      if (mine == kBarred<F> || (shift + 8 < kBits && word >> (shift + 8) != key)) continue;
      const unsigned bin = static_cast<unsigned>(word >> shift) & (kBins - 1);
      atomicAdd(&shared.count[bin], 1u);
      if constexpr (Holds::kCosts) {
        const Word cost = row.cost(i);
        atomicAdd(&shared.sum[bin], cost);
        atomicMax(&shared.highest[bin], cost);
        atomicMin(&shared.lowest[bin], word);
      }
    }
    __syncthreads();
    const int bin = kBins - 1 - thread;
    const Total mine = {shared.count[bin], shared.sum[bin], shared.highest[bin], shared.lowest[bin]};
    const Total upto = join(above, scan(mine, shared));
    if (!holds(upto)) atomicMin(&shared.first, thread);
    __syncthreads();
    const int first = shared.first;
    if (first == kBins) return false;
    if (thread + 1 == first) shared.last = upto;
    __syncthreads();
    if (first > 0) above = shared.last;
    key = key << 8 | static_cast<Word>(kBins - 1 - first);
  }
  return true;
}

// How many of the best the rule lets pass.
template <typename F, typename Holds>
__device__ __forceinline__ int64_t longest_prefix(const Row<F>& row, int64_t candidates, const Holds& holds) {
  Shared<F>& shared = row.shared;
  const int thread = static_cast<int>(threadIdx.x);
  Word key;
  Total above;
  if (!descend(row, holds, key, above)) return candidates;
  Word longest = above.n;
  for (int64_t begin = 0; begin < row.job.length; begin += kThreads) {  // those of this key by position
    const int64_t i = begin + thread;
    const bool is = i < row.job.length && row.key(i) == Row<F>::signed_key(key);
    Total mine = nothing();
    if (is) {
      const Word cost = row.cost(i);
      mine = {1, cost, cost, key};
    }
    const Total upto = join(above, scan(mine, shared));
    if (is && holds(upto)) longest = upto.n;
    if (thread == kThreads - 1) shared.last = upto;
    __syncthreads();
    above = shared.last;
    __syncthreads();
  }
  // The longest that any thread saw.
  if (thread == 0) shared.number = 0;
  __syncthreads();
  atomicMax(&shared.number, longest);
  __syncthreads();
  return static_cast<int64_t>(shared.number);
}

// Chosen are the keys above `bound`, and the first `ties` of those equal to it.
template <typename F>
__device__ __forceinline__ void write(const Row<F>& row, Key<F> bound, Word ties) {
  const Choice<F>& job = row.job;
  Shared<F>& shared = row.shared;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Word taken = 0;
  for (int64_t begin = 0; begin < job.length; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool inside = i < job.length;
    const Key<F> key = inside ? row.key(i) : kBarred<F>;
    bool chosen = inside && key > bound;
    if (taken < ties) {  // the same for all threads
      const bool tied = inside && key == bound;
      const unsigned votes = __ballot_sync(kAllLanes, tied);
      __syncthreads();
      if (lane == 0) shared.found[warp] = static_cast<unsigned>(__popc(votes));
      __syncthreads();
      Word before = taken;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? shared.found[w] : 0;
        taken += shared.found[w];
      }
      chosen |= tied && before + static_cast<Word>(__popc(votes & ((1u << lane) - 1))) < ties;
    }
    if (!inside) continue;
    job.chosen[row.b * job.length + i] = chosen;
    if (chosen && job.x.data) job.x.at(row.b, i) = job.token.data ? job.token.at(row.b, i) : job.fill;
  }
}

template <typename F>
__global__ void __launch_bounds__(kThreads, 2) choose_rows(Choice<F> job) {
  __shared__ Shared<F> shared;
  const int64_t b = blockIdx.x, start = job.start[b];
  const int64_t there = places(job, start);
  const Row<F> row{job, shared, b, start, there};

  Key<F> bound = kBarred<F>;  // of the threshold
  if (job.rule == Rule::kThreshold) bound = threshold_bound(static_cast<F>(job.level[b]), job.lowest, job.strict);
  Word mine = 0, sure = 0;
  for (int64_t i = threadIdx.x; i < job.length; i += kThreads) {
    const Key<F> key = row.make(i);
    if (i < kKept<F>) shared.keys[i] = key;
    mine += key != kBarred<F>;
    sure += key > bound;
  }
  const int64_t candidates = static_cast<int64_t>(sum_over_block(mine, shared));
  int64_t count = candidates;
  if (job.rule == Rule::kThreshold)
    count = static_cast<int64_t>(sum_over_block(sure, shared));
  else if (job.rule == Rule::kFactor)
    count = longest_prefix(row, candidates, WithinFactor<F>{job.level[b]});
  else if (job.rule == Rule::kBudget)
    count = longest_prefix(row, candidates, WithinBudget{fixed_budget(job.level[b])});

  const int64_t k = clamp_count(count, job.least[b], job.most[b], candidates);
  Word ties = 0;
  if (k == 0) {
    bound = ~KeyOf<F>::kSign;
  } else if (k == candidates) {
    bound = kBarred<F>;
  } else if (job.rule != Rule::kThreshold || k != count) {
    Word key;
    Total above;
    descend(row, AtMost{static_cast<Word>(k)}, key, above);
    bound = Row<F>::signed_key(key);
    ties = static_cast<Word>(k) - above.n;
  }
  write(row, bound, ties);
  if (threadIdx.x == 0) job.count[b] = k;
}

template <typename F>
__global__ void __launch_bounds__(kThreads, 2) accept_rows(Acceptance<F> job) {
  __shared__ int first;
  __shared__ Word prefix, count;
  __shared__ int64_t end;
  const int64_t b = blockIdx.x;
  const int slots = static_cast<int>(job.slots), thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    first = slots;
    prefix = count = 0;
    end = -1;
  }
  __syncthreads();
  // The prefix ends in the first slot that is not accepted to its end, or has the end of the sequence in it.
  for (int s = thread; s < slots; s += kThreads) {
    const SlotRun run = run_of_slot(job, b, s);
    job.accepted[b * slots + s] = run.accepted;
    if (run.chosen && (run.accepted < run.size || end_in(job, b, run) >= 0)) atomicMin(&first, s);
  }
  __syncthreads();
  for (int s = thread; s <= first && s < slots; s += kThreads) {
    const SlotRun run = run_of_slot(job, b, s);
    if (!run.chosen) continue;
    const int64_t at = s == first ? end_in(job, b, run) : -1;
    if (at >= 0) end = at;  // one thread's
    const SlotWrite put = write_slot(job, b, run, at);
    atomicAdd(&prefix, static_cast<Word>(put.prefix));
    atomicAdd(&count, static_cast<Word>(put.written));
  }
  __syncthreads();
  if (thread == 0) {
    job.prefix[b] = static_cast<int64_t>(prefix);
    job.end[b] = end;
    job.count[b] = static_cast<int64_t>(count);
  }
}

template <typename F>
int choose(const Choice<F>& job, void* stream) {
  return job.rows == 0 ? 0 : launch(&choose_rows<F>, dim3(static_cast<unsigned>(job.rows)), kThreads, stream, job);
}

template <typename F>
int accept(const Acceptance<F>& job, void* stream) {
  return job.rows == 0 ? 0 : launch(&accept_rows<F>, dim3(static_cast<unsigned>(job.rows)), kThreads, stream, job);
}

}  // namespace remask
}  // namespace samplers::cuda
