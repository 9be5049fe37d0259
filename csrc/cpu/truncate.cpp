// Top-k and top-p of one row, exactly: by selection, not by sorting, and with weights as integers, whose sums do not
// depend on their order. So the same entries survive on every machine.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../softmax_math.h"
#include "masked_softmax.h"

namespace samplers::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Entry {
  float x;
  int32_t id;
  bool operator<(const Entry& o) const { return x != o.x ? x > o.x : id < o.id; }  // better first
};

// The weight of an entry as an integer, in units of 2^-44; 2^18 of them fit.
int64_t mass_of(float weight) { return static_cast<int64_t>(weight * 0x1p44f); }

void collect(const float* x, int64_t n, float least, std::vector<Entry>& out) {
  out.clear();
  for (int64_t i = 0; i < n; i += 16) {
    int any = 0;
    for (int j = 0; j < 16; ++j) any |= x[i + j] >= least;
    if (!any) continue;
    for (int j = 0; j < 16; ++j)
      if (x[i + j] >= least && x[i + j] != kNone) out.push_back({x[i + j], static_cast<int32_t>(i + j)});
  }
}

// A value that at least k entries reach: the k-th largest of the maxima of 2k or more groups. -inf if there is none.
float reached_by(const float* x, int64_t n, int64_t k) {
  const int64_t blocks = n / kBlock, parts = std::min(blocks, (2 * k + kBlock - 1) / kBlock);
  if (parts * kBlock < k) return kNone;
  std::vector<float> maxima(parts * kBlock, kNone);
  for (int64_t j = 0; j < blocks; ++j) {
    float* m = maxima.data() + j % parts * kBlock;
    for (int i = 0; i < kBlock; ++i) m[i] = std::max(m[i], x[j * kBlock + i]);
  }
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

// The last entry, best first, that is needed for the masses to reach the target. Their sum does reach it.
Entry last_needed(std::vector<Entry>& all, int64_t target, float highest, float k) {
  const auto mass = [&](const Entry& e) { return mass_of(exp2_weight((e.x - highest) * k)); };
  auto low = all.begin(), high = all.end();
  while (high - low > 1) {  // the answer lies in [low, high), and what is before low has been taken off the target
    const auto mid = low + (high - low) / 2;
    std::nth_element(low, mid, high);
    int64_t sum = 0;
    for (auto e = low; e != mid; ++e) sum += mass(*e);
    if (sum >= target) {
      high = mid;
    } else {
      target -= sum;
      low = mid;
    }
  }
  return *low;
}

void keep_until(const Entry& last, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] > last.x || (x[i] == last.x && i <= last.id) ? x[i] : kNone;
}

}  // namespace

void truncate(const Kernels& isa, const Truncation& how, float highest, float* x, int64_t n) {
  std::vector<Entry> some;
  if (how.top_k > 0 && how.top_k < n) {
    collect(x, n, reached_by(x, n, how.top_k), some);
    if (static_cast<int64_t>(some.size()) >= how.top_k) {
      std::nth_element(some.begin(), some.begin() + (how.top_k - 1), some.end());
      keep_until(some[how.top_k - 1], x, n);
    }
  }
  if (how.top_p >= 1) return;

  alignas(64) float w[kChunk];
  int64_t total = 0;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, n - i));
    isa.weights(x + i, count, highest, how.k, w);
    for (int j = 0; j < count; ++j) total += mass_of(w[j]);
  }
  const int64_t target =
      std::max<int64_t>(1, std::min(total, static_cast<int64_t>(std::ceil(static_cast<double>(total) * how.top_p))));
  // Look among the best first: the set is small unless the row is flat.
  for (float depth = 6;; depth *= 4) {
    const float least = depth < -kFloor ? highest - depth / how.k : kNone;
    collect(x, n, least, some);
    int64_t sum = 0;
    for (const Entry& e : some) sum += mass_of(exp2_weight((e.x - highest) * how.k));
    if (sum >= target) return keep_until(last_needed(some, target, highest, how.k), x, n);
    if (least == kNone) return;  // not reached: all entries together hold the total
  }
}

}  // namespace samplers::cpu
