// Rows of KV caches are moved a column at a time, a column being one layer's, head's and batch row's keys or values.
#include "cached_kv.h"

#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "masked_softmax.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define SAMPLERS_KV_AVX2 1
#endif

namespace samplers::cpu {
namespace {

constexpr int64_t kGrain = 64 << 10;    // bytes worth waking a thread for
constexpr int64_t kScratch = 16 << 10;  // bytes a cycle of batch rows is turned by at a time
constexpr int64_t kStream = 6 << 20;    // bytes from which a call writes past the processor's caches
constexpr int kAhead = 8;               // runs whose target is fetched before it is written

// Where a column's rows lie: strides in bytes, `batch` from one batch row of the source to the next.
struct Column {
  char* to;
  const char* from;
  int64_t to_row, from_row, batch, bytes;
};

void move_column_portable(const Column& c, const Run* run, const Run* end, bool) {
  for (; run < end; ++run) {
    char* to = c.to + run->to * c.to_row;
    if (run->from < 0) {
      for (int64_t i = 0; i < run->rows; ++i) std::memset(to + i * c.to_row, 0, c.bytes);
      continue;
    }
    const char* from = c.from + run->batch * c.batch + run->from * c.from_row;
    const bool packed = c.to_row == c.bytes && c.from_row == c.bytes;
    const int64_t pieces = packed ? 1 : run->rows, bytes = packed ? run->rows * c.bytes : c.bytes;
    for (int64_t i = 0; i < pieces; ++i) std::memmove(to + i * c.to_row, from + i * c.from_row, bytes);
  }
}

#ifdef SAMPLERS_KV_AVX2
#pragma GCC push_options
#pragma GCC target("avx2,prfchw")

inline __m256i get(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

template <bool stream>
inline void put(char* p, __m256i v) {
  if (stream)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), v);
  else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

// Forward, 128 bytes at a time, so right where `to` lies in front of `from` in the same memory; bytes % 32 == 0.
template <bool stream>
inline void copy_forward(char* to, const char* from, int64_t bytes) {
  for (; bytes >= 128; bytes -= 128, to += 128, from += 128) {
    const __m256i a = get(from), b = get(from + 32), c = get(from + 64), d = get(from + 96);
    put<stream>(to, a), put<stream>(to + 32, b), put<stream>(to + 64, c), put<stream>(to + 96, d);
  }
  for (; bytes > 0; bytes -= 32, to += 32, from += 32) put<stream>(to, get(from));
}

// A processor waits for a line of memory that it is about to overwrite. Two ways round it: fetch the targets of later
// runs early, or, where the call writes more than the caches hold anyway, write past them.
void move_column_avx2(const Column& c, const Run* run, const Run* end, bool stream) {
  if (c.bytes % 32 != 0) return move_column_portable(c, run, end, stream);
  stream = stream && reinterpret_cast<intptr_t>(c.to) % 32 == 0 && c.to_row % 32 == 0;
  const bool packed = c.to_row == c.bytes && c.from_row == c.bytes;
  for (; run < end; ++run) {
    if (run->from < 0) {
      move_column_portable(c, run, run + 1, stream);
      continue;
    }
    char* const to = c.to + run->to * c.to_row;
    const char* const from = c.from + run->batch * c.batch + run->from * c.from_row;
    const int64_t pieces = packed ? 1 : run->rows, bytes = packed ? run->rows * c.bytes : c.bytes;
    if (stream) {
      for (int64_t i = 0; i < pieces; ++i) copy_forward<true>(to + i * c.to_row, from + i * c.from_row, bytes);
      continue;
    }
    if (packed && run->rows > 4) {
      std::memmove(to, from, bytes);
      continue;
    }
    if (end - run > kAhead) {
      const char* later = c.to + run[kAhead].to * c.to_row;
      for (int64_t i = 0; i < std::min<int64_t>(c.bytes, 512); i += 64) __builtin_prefetch(later + i, 1, 3);
    }
    for (int64_t i = 0; i < pieces; ++i) copy_forward<false>(to + i * c.to_row, from + i * c.from_row, bytes);
  }
  if (stream) _mm_sfence();
}

#pragma GCC pop_options

auto mover() { return kernels().name == kPortable.name ? move_column_portable : move_column_avx2; }
#else
auto mover() { return move_column_portable; }
#endif

// f(kv, l, b, h) for all keys and values, layers, batch rows and heads. `bytes` is the whole work's.
template <typename F>
void for_columns(const Cache& c, int64_t bytes, const F& f) {
  const int64_t columns = 2 * c.layers * c.batch * c.heads;
  if (columns == 0) return;
  const auto work = [&](int64_t begin, int64_t end) {
    int64_t h = begin % c.heads, b = begin / c.heads % c.batch, l = begin / (c.heads * c.batch) % c.layers;
    int64_t kv = begin / (c.heads * c.batch * c.layers);
    for (int64_t i = begin; i < end; ++i) {
      f(kv, l, b, h);
      if (++h < c.heads) continue;
      h = 0;
      if (++b < c.batch) continue;
      b = 0;
      if (++l == c.layers) l = 0, ++kv;
    }
  };
  if (bytes < 2 * kGrain) return work(0, columns);
  torch::stable::parallel_for(0, columns, std::max<int64_t>(1, columns * kGrain / bytes), work);
}

}  // namespace

void Plan::add(int64_t to, int64_t from, int64_t n, int64_t batch) {
  if (n <= 0) return;
  rows += n;
  if (static_cast<int64_t>(runs.size()) > first.back()) {
    Run& last = runs.back();
    const bool follows = from < 0 ? last.from < 0 : last.from >= 0 && from == last.from + last.rows;
    if (follows && to == last.to + last.rows && batch == last.batch) {
      last.rows += n;
      return;
    }
  }
  runs.push_back({to, from, n, batch});
}

void move_rows(const Cache& to, const Cache& from, const Plan& plan) {
  const int64_t bytes = plan.rows * to.layers * to.heads * (to.plane[0].bytes + to.plane[1].bytes);
  const auto move = mover();
  for_columns(to, bytes, [&](int64_t kv, int64_t l, int64_t b, int64_t h) {
    const Plane &out = to.plane[kv], &in = from.plane[kv];
    const Run* runs = plan.runs.data();
    move({out.at(l, b, h), in.at(l, 0, h), out.row, in.row, in.batch, out.bytes}, runs + plan.first[b],
         runs + plan.first[b + 1], bytes >= kStream);
  });
}

void select_batch(const Cache& cache, const int64_t* source, const int64_t* lengths) {
  // Row `to` from row `from`, in an order in which no row is overwritten while another still wants it; -1 is a spare.
  struct Step {
    int64_t to, from, rows;
  };
  std::vector<Step> steps;
  const int64_t n = cache.batch;
  std::vector<int64_t> wanted(n, 0), ready;  // by how many other rows
  std::vector<bool> pending(n, false);
  for (int64_t b = 0; b < n; ++b)
    if (source[b] != b) pending[b] = true, ++wanted[source[b]];
  const auto rows = [&](int64_t s) { return lengths ? lengths[s] : cache.length; };
  for (int64_t b = 0; b < n; ++b)
    if (pending[b] && wanted[b] == 0) ready.push_back(b);
  while (!ready.empty()) {
    const int64_t b = ready.back(), s = source[b];
    ready.pop_back();
    steps.push_back({b, s, rows(s)});
    pending[b] = false;
    if (--wanted[s] == 0 && pending[s]) ready.push_back(s);
  }
  for (int64_t b = 0; b < n; ++b) {  // what is left are cycles
    if (!pending[b]) continue;
    steps.push_back({-1, b, rows(b)});
    int64_t at = b;
    for (; source[at] != b; at = source[at]) {
      steps.push_back({at, source[at], rows(source[at])});
      pending[at] = false;
    }
    steps.push_back({at, -1, rows(b)});
    pending[at] = false;
  }

  int64_t total = 0;
  for (const Step& s : steps) total += s.rows;
  if (total == 0) return;
  Cache columns = cache;  // all batch rows are one task
  columns.batch = 1;
  const int64_t bytes = total * cache.layers * cache.heads * (cache.plane[0].bytes + cache.plane[1].bytes);
  const auto move = mover();
  for_columns(columns, bytes, [&](int64_t kv, int64_t l, int64_t, int64_t h) {
    const Plane& plane = cache.plane[kv];
    const int64_t tile = std::max<int64_t>(1, kScratch / std::max<int64_t>(1, plane.bytes));
    static thread_local std::vector<char> scratch;
    scratch.resize(tile * plane.bytes);
    for (int64_t begin = 0; begin < cache.length; begin += tile)
      for (const Step& s : steps) {
        const int64_t count = std::min(tile, s.rows - begin);
        if (count <= 0) continue;
        const auto place = [&](int64_t b) { return b < 0 ? scratch.data() : plane.at(l, b, h) + begin * plane.row; };
        const auto row = [&](int64_t b) { return b < 0 ? plane.bytes : plane.row; };
        const Run run{0, 0, count, 0};
        move({place(s.to), place(s.from), row(s.to), row(s.from), 0, plane.bytes}, &run, &run + 1,
             s.to >= 0 && bytes >= kStream);
      }
  });
}

}  // namespace samplers::cpu
