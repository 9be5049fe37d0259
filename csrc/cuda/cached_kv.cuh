// Moving rows of KV caches on a device. A column is one layer's, head's and batch row's keys or values; a block has a
// column, or a piece of one, and moves it in words of 16 bytes, or of what all addresses are multiples of. No result
// depends on the order of threads: a row of the destination is written by the one thread that owns the word, in place
// only after a barrier that follows all reads of it.
#pragma once

#include "block.h"
#include "cached_kv.h"

namespace samplers::cuda::kv {

constexpr int kThreads = 256;
constexpr int kTile = 32;     // rows per block of move_rows
constexpr int kWords = 2048;  // per block of select_batch, in shared memory
constexpr int kBatch = 4;     // words that a thread of compact holds between reading and writing

struct Column {
  int64_t kv, layer, batch, head;
};

__device__ __forceinline__ Column column_of(int64_t i, const KvPair& p, int64_t batch) {
  Column c;
  c.head = i % p.heads, i /= p.heads;
  c.batch = i % batch, i /= batch;
  c.layer = i % p.layers, c.kv = i / p.layers;
  return c;
}

__device__ __forceinline__ char* place(const KvPlane& p, const Column& c, int64_t batch) {
  return p.data + c.layer * p.layer + batch * p.batch + c.head * p.head;
}

// Grid (columns of the destination, tiles of rows). `n` is the number of rows of the source, in a gather of the
// destination.
template <typename Word>
__global__ void __launch_bounds__(kThreads) move_rows(KvRows call) {
  const KvPair& p = call.pair;
  __shared__ int64_t to[kTile], from[kTile], batch[kTile];  // to < 0: nothing; from < 0: zeros
  __shared__ int beaten[kTile];
  const bool gather = call.map == KvMap::kGather;
  const int64_t n = gather ? p.length : p.from_length;
  const Column c = column_of(blockIdx.x, p, p.batch);
  const int64_t words = p.bytes[c.kv] / static_cast<int64_t>(sizeof(Word));
  for (int64_t begin = blockIdx.y * int64_t{kTile}; begin < n; begin += int64_t{gridDim.y} * kTile) {
    const int rows = static_cast<int>(n - begin < kTile ? n - begin : kTile);
    const int64_t* index = call.index == nullptr ? nullptr : call.index + c.batch * call.index_step;
    if (threadIdx.x < kTile) {
      const int r = static_cast<int>(threadIdx.x);
      const int64_t i = begin + r;
      beaten[r] = 0;
      to[r] = -1, from[r] = i, batch[r] = c.batch;
      if (r < rows && gather) {
        to[r] = i;
        if (call.rows != nullptr) batch[r] = call.rows[c.batch * call.rows_step + i];
        const bool there = index[i] >= 0 && index[i] < p.from_length && batch[r] >= 0 && batch[r] < p.from_batch;
        from[r] = there ? index[i] : -1;
      } else if (r < rows) {
        const int64_t start = call.start == nullptr ? call.at : call.start[c.batch];
        // Compared before they are added: a start may be any number.
        const bool wanted = call.map == KvMap::kScatter || call.count == nullptr || i < call.count[c.batch];
        const bool inside =
            call.map == KvMap::kScatter ? index[i] >= 0 && index[i] < p.length : start >= -i && start < p.length - i;
        if (wanted && inside) to[r] = call.map == KvMap::kScatter ? index[i] : start + i;
      }
    }
    __syncthreads();
    if (call.map == KvMap::kScatter) {  // beaten by a later row that goes to the same place
      constexpr int kLanes = kThreads / kTile;
      const int r = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
      if (r < rows && to[r] >= 0)
        for (int64_t j = begin + r + 1 + lane; j < n; j += kLanes)
          if (index[j] == to[r]) atomicMax(&beaten[r], 1);
      __syncthreads();
    }
    for (int64_t w = threadIdx.x; w < rows * words; w += kThreads) {
      const int64_t r = w / words, at = (w % words) * static_cast<int64_t>(sizeof(Word));
      if (to[r] < 0 || beaten[r] != 0) continue;
      Word word{};
      if (from[r] >= 0)
        word = *reinterpret_cast<const Word*>(place(p.from[c.kv], c, batch[r]) + from[r] * p.from[c.kv].row + at);
      *reinterpret_cast<Word*>(place(p.to[c.kv], c, c.batch) + to[r] * p.to[c.kv].row + at) = word;
    }
    __syncthreads();
  }
}

// One thread a batch row.
__global__ void __launch_bounds__(kThreads) advance(KvAdvance call) {
  const int64_t b = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (b >= call.batch) return;
  int64_t by = call.count == nullptr ? call.n : call.count[b];
  by = by < 0 ? 0 : by > call.n ? call.n : by;
  const int64_t to = call.lengths[b] > call.length ? call.length : call.lengths[b] + by;
  call.lengths[b] = to < 0 ? 0 : to > call.length ? call.length : to;
}

__device__ __forceinline__ int64_t clamped(int64_t length, int64_t most) {
  return length < 0 ? 0 : length > most ? most : length;
}

// The kept rows among the block's next kThreads: their numbers in `list`, in order; how many is returned to all. Every
// thread must come here.
__device__ __forceinline__ int kept_rows(const bool* keep, int64_t begin, int64_t end, int64_t* list, int* warps) {
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  const int64_t i = begin + t;
  const bool mine = i < end && keep[i];
  const unsigned votes = __ballot_sync(kAllLanes, mine);
  int before = 0, all = 0;
  for (int k = 0; k < kWarp; ++k) {
    before += k < lane ? static_cast<int>(votes >> k & 1u) : 0;
    all += static_cast<int>(votes >> k & 1u);
  }
  __syncthreads();  // the list and the counts of the call before have been read
  if (lane == 0) warps[warp] = all;
  __syncthreads();
  int total = 0;
  for (int k = 0; k < kThreads / kWarp; ++k) {
    if (k < warp) before += warps[k];
    total += warps[k];
  }
  if (mine) list[before] = i;
  __syncthreads();
  return total;
}

// Grid: columns. A kept row moves to the front, or stays: never past a row that is still to be read. So within a pass
// all is read, then written; and what a pass writes no later pass reads.
template <typename Word>
__global__ void __launch_bounds__(kThreads) compact(KvCompact call) {
  const KvPair& p = call.pair;
  __shared__ int64_t list[kThreads];
  __shared__ int warps[kThreads / kWarp];
  const Column c = column_of(blockIdx.x, p, p.batch);
  const KvPlane& plane = p.to[c.kv];
  char* const base = place(plane, c, c.batch);
  const int64_t words = p.bytes[c.kv] / static_cast<int64_t>(sizeof(Word));
  const int64_t end = clamped(call.lengths[c.batch], p.length);
  int64_t done = 0;
  for (int64_t begin = 0; begin < end; begin += kThreads) {
    const int kept = kept_rows(call.keep + c.batch * p.length, begin, end, list, warps);
    if (done + kept < begin + kThreads || kept < kThreads)  // else all have stayed where they are
      for (int64_t first = 0; first < kept * words; first += kThreads * kBatch) {
        Word held[kBatch];
        const auto at = [&](int k) { return first + k * kThreads + static_cast<int64_t>(threadIdx.x); };
        const auto word = [&](int64_t row, int64_t w) {
          return reinterpret_cast<Word*>(base + row * plane.row + w % words * static_cast<int64_t>(sizeof(Word)));
        };
        for (int k = 0; k < kBatch; ++k)
          if (at(k) < kept * words) held[k] = *word(list[at(k) / words], at(k));
        __syncthreads();
        for (int k = 0; k < kBatch; ++k)
          if (at(k) < kept * words) *word(done + at(k) / words, at(k)) = held[k];
      }
    done += kept;
  }
}

// Grid: batch rows. lengths[b] becomes the number of rows kept.
__global__ void __launch_bounds__(kThreads) count_kept(KvCompact call) {
  __shared__ int64_t list[kThreads];
  __shared__ int warps[kThreads / kWarp];
  const int64_t b = blockIdx.x, length = call.pair.length, end = clamped(call.lengths[b], length);
  int64_t total = 0;
  for (int64_t begin = 0; begin < end; begin += kThreads)
    total += kept_rows(call.keep + b * length, begin, end, list, warps);
  __syncthreads();  // all have read the length
  if (threadIdx.x == 0) call.lengths[b] = total;
}

// Grid (layers, heads, keys and values; pieces of a column's words). The same piece of all batch rows is read, then
// written, so any map of rows is right.
template <typename Word>
__global__ void __launch_bounds__(kThreads) select_batch(KvSelect call) {
  const KvPair& p = call.pair;
  __shared__ Word held[kWords];
  const Column c = column_of(blockIdx.x, p, 1);
  const KvPlane& plane = p.to[c.kv];
  const int64_t words = p.bytes[c.kv] / static_cast<int64_t>(sizeof(Word));
  const int piece = static_cast<int>(kWords / p.batch), all = piece * static_cast<int>(p.batch);
  for (int64_t begin = int64_t{blockIdx.y} * piece; begin < p.length * words; begin += int64_t{gridDim.y} * piece) {
    // The word of batch row b at place w of the piece, null where it is not moved.
    const auto word = [&](int64_t i, bool read) -> Word* {
      const int64_t b = i / piece, w = begin + i % piece, s = call.source[b];
      if (w >= p.length * words || s == b || s < 0 || s >= p.batch) return nullptr;
      if (call.lengths != nullptr && w / words >= clamped(call.lengths[s], p.length)) return nullptr;
      char* base = place(plane, c, read ? s : b);
      return reinterpret_cast<Word*>(base + w / words * plane.row + w % words * static_cast<int64_t>(sizeof(Word)));
    };
    for (int i = static_cast<int>(threadIdx.x); i < all; i += kThreads)
      if (const Word* from = word(i, true)) held[i] = *from;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < all; i += kThreads)
      if (Word* to = word(i, false)) *to = held[i];
    __syncthreads();
  }
}

// One block: every batch row takes its source's length.
__global__ void __launch_bounds__(kThreads) select_lengths(KvSelect call) {
  __shared__ int64_t now[kMostBatchRows];
  const int64_t batch = call.pair.batch;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    const int64_t s = call.source[b];
    now[b] = clamped(call.lengths[s >= 0 && s < batch ? s : b], call.pair.length);
  }
  __syncthreads();
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) call.lengths[b] = now[b];
}

// ---- launchers

// The widest word that every address of a call is a multiple of.
inline int word_bytes(const KvPair& p) {
  uint64_t all = 0;
  for (int kv = 0; kv < 2; ++kv) {
    all |= static_cast<uint64_t>(p.bytes[kv]);
    for (const KvPlane* x : {&p.to[kv], &p.from[kv]})
      all |= reinterpret_cast<uint64_t>(x->data) | static_cast<uint64_t>(x->layer) | static_cast<uint64_t>(x->batch) |
             static_cast<uint64_t>(x->head) | static_cast<uint64_t>(x->row);
  }
  return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

// f(word) with a word of that many bytes.
template <typename F>
int with_word(const KvPair& p, const F& f) {
  switch (word_bytes(p)) {
    case 16:
      return f(uint4{});
    case 4:
      return f(uint32_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint8_t{});
  }
}

inline unsigned pieces(int64_t n, int64_t of) {
  constexpr int64_t kMost = 65535;
  const int64_t count = (n + of - 1) / of;
  return static_cast<unsigned>(count < kMost ? count : kMost);
}

inline int run_rows(const KvRows& call, void* stream) {
  const KvPair& p = call.pair;
  const int64_t columns = 2 * p.layers * p.batch * p.heads, n = call.map == KvMap::kGather ? p.length : p.from_length;
  if (columns == 0 || n == 0) return 0;
  const dim3 grid(static_cast<unsigned>(columns), pieces(n, kTile));
  return with_word(p, [&](auto word) { return launch(move_rows<decltype(word)>, grid, kThreads, stream, call); });
}

inline int run_advance(const KvAdvance& call, void* stream) {
  if (call.batch == 0) return 0;
  return launch(advance, dim3(static_cast<unsigned>((call.batch + kThreads - 1) / kThreads)), kThreads, stream, call);
}

inline int run_compact(const KvCompact& call, void* stream) {
  const KvPair& p = call.pair;
  const int64_t columns = 2 * p.layers * p.batch * p.heads;
  if (p.batch == 0) return 0;
  int error = 0;
  if (columns > 0)
    error = with_word(p, [&](auto word) {
      return launch(compact<decltype(word)>, dim3(static_cast<unsigned>(columns)), kThreads, stream, call);
    });
  return error ? error : launch(count_kept, dim3(static_cast<unsigned>(p.batch)), kThreads, stream, call);
}

inline int run_select(const KvSelect& call, void* stream) {
  const KvPair& p = call.pair;
  const int64_t columns = 2 * p.layers * p.heads;
  if (p.batch == 0) return 0;
  int error = 0;
  if (columns > 0 && p.length > 0)
    error = with_word(p, [&](auto word) {
      const int64_t most = (p.bytes[0] > p.bytes[1] ? p.bytes[0] : p.bytes[1]) / static_cast<int64_t>(sizeof(word));
      if (most == 0) return 0;
      const dim3 grid(static_cast<unsigned>(columns), pieces(p.length * most, kWords / p.batch));
      return launch(select_batch<decltype(word)>, grid, kThreads, stream, call);
    });
  if (error || call.lengths == nullptr) return error;
  return launch(select_lengths, dim3(1), kThreads, stream, call);
}

}  // namespace samplers::cuda::kv
