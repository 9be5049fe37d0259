// Rows of KV caches are moved by memmove: a run of rows in one piece where both sides lie packed, else row by row.
#include "cached_kv.h"

#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/ops.h>

namespace samplers::cpu {
namespace {

constexpr int64_t kGrain = 64 << 10;    // bytes worth waking a thread for
constexpr int64_t kScratch = 16 << 10;  // bytes a cycle of batch rows is turned by at a time

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

inline void copy(const Plane& to, char* out, const Plane& from, const char* in, int64_t rows) {
  if (to.row == to.bytes && from.row == from.bytes) {
    std::memmove(out, in, rows * to.bytes);
    return;
  }
  for (int64_t i = 0; i < rows; ++i) std::memmove(out + i * to.row, in + i * from.row, to.bytes);
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
  for_columns(to, bytes, [&](int64_t kv, int64_t l, int64_t b, int64_t h) {
    const Plane &out = to.plane[kv], &in = from.plane[kv];
    char* const base = out.at(l, b, h);
    const Run* run = plan.runs.data() + plan.first[b];
    const Run* const end = plan.runs.data() + plan.first[b + 1];
    for (; run < end; ++run) {
      char* const target = base + run->to * out.row;
      if (run->from < 0) {
        for (int64_t i = 0; i < run->rows; ++i) std::memset(target + i * out.row, 0, out.bytes);
      } else {
        copy(out, target, in, in.at(l, run->batch, h) + run->from * in.row, run->rows);
      }
    }
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
  for_columns(columns, bytes, [&](int64_t kv, int64_t l, int64_t, int64_t h) {
    const Plane& plane = cache.plane[kv];
    const int64_t tile = std::max<int64_t>(1, kScratch / std::max<int64_t>(1, plane.bytes));
    static thread_local std::vector<char> scratch;
    scratch.resize(tile * plane.bytes);
    Plane spare = plane;
    spare.row = plane.bytes;
    for (int64_t begin = 0; begin < cache.length; begin += tile)
      for (const Step& s : steps) {
        const int64_t count = std::min(tile, s.rows - begin);
        if (count <= 0) continue;
        const auto place = [&](int64_t b) { return b < 0 ? scratch.data() : plane.at(l, b, h) + begin * plane.row; };
        copy(s.to < 0 ? spare : plane, place(s.to), s.from < 0 ? spare : plane, place(s.from), count);
      }
  });
}

}  // namespace samplers::cpu
