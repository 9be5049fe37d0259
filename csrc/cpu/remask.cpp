// Scores become integer keys of the same order, and the key of the last chosen one is found by bisection: each step is
// one vectorised count over a row that stays in cache. Nothing is sorted unless a rule asks for cumulative sums.
#include "remask.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "remask_passes.h"

namespace samplers::cpu {
namespace {

// Chosen are the keys above `bound`, and the first `ties` of those equal to it.
template <typename K>
struct Cut {
  K bound;
  int64_t ties;
};

// Keys of one row at a time.
template <typename F>
struct Row {
  explicit Row(int64_t length) : keys(new Key<F>[length]), length(length), pass(passes<F>()) {}
  std::unique_ptr<Key<F>[]> keys;
  int64_t length;
  const Passes<F>& pass;
  Range<F> range;
  std::vector<F> scores;  // a row that is not contiguous is gathered here first
  std::vector<uint8_t> candidates;
};

template <typename F>
void load(const Choice<F>& job, int64_t b, Row<F>& row) {
  const int64_t there = places(job, job.start[b]), start = there ? job.start[b] : 0;
  const F* score = job.score.data + b * job.score.row + start * job.score.column;
  if (const int64_t stride = job.score.column * job.step; stride != 1) {
    row.scores.resize(row.length);
    for (int64_t i = 0; i < there; ++i) row.scores[i] = score[i * stride];
    score = row.scores.data();
  }
  const uint8_t* candidate = job.candidate.data;
  if (candidate) {
    candidate += b * job.candidate.row + start * job.candidate.column;
    if (const int64_t stride = job.candidate.column * job.step; stride != 1) {
      row.candidates.resize(row.length);
      for (int64_t i = 0; i < there; ++i) row.candidates[i] = candidate[i * stride];
      candidate = row.candidates.data();
    }
  }
  const Key<F> sign = job.lowest ? KeyOf<F>::kSign : 0;
  row.range = row.pass.make_keys(score, candidate, there, sign, row.keys.get());
  std::fill(row.keys.get() + there, row.keys.get() + row.length, kBarred<F>);
}

// The boundary after the k best, 1 <= k < candidates.
template <typename F>
Cut<Key<F>> cut_behind(const Row<F>& row, int64_t k) {
  Key<F> low = row.range.low, high = row.range.high;  // the k-th best lies between
  int64_t above = 0;                                  // keys > high
  while (low < high) {
    const Bits<F> span = static_cast<Bits<F>>(high) - static_cast<Bits<F>>(low);
    const Key<F> middle = static_cast<Key<F>>(static_cast<Bits<F>>(low) + span / 2);  // < high
    const int64_t count = row.pass.count_above(row.keys.get(), row.length, middle);
    if (count == k) return {middle, 0};
    if (count > k) {
      low = middle + 1;
    } else {
      high = middle;
      above = count;
    }
  }
  return {low, k - above};
}

// A row's chosen places as bytes.
template <typename F>
void mark(const Row<F>& row, Cut<Key<F>> cut, uint8_t* chosen) {
  row.pass.mark_above(row.keys.get(), row.length, cut.bound, chosen);
  for (int64_t i = 0; cut.ties > 0; ++i)
    if (row.keys[i] == cut.bound) {
      chosen[i] = 1;
      --cut.ties;
    }
}

template <typename F>
void mark_best(const Row<F>& row, int64_t k, uint8_t* chosen) {
  if (k == 0)
    std::fill(chosen, chosen + row.length, 0);
  else
    mark(row, k == row.range.candidates ? Cut<Key<F>>{kBarred<F>, 0} : cut_behind(row, k), chosen);
}

// How many of the best the factor or the budget lets pass. Steps commit few, so the best are put in order some at a
// time.
template <typename F>
int64_t longest_prefix(const Choice<F>& job, int64_t b, Row<F>& row, uint8_t* chosen) {
  struct Place {
    Key<F> key;
    int64_t i;
  };
  std::vector<Place> best;
  const Plane<const F>& cost = job.cost.data ? job.cost : job.score;
  const double level = job.level[b];
  const int64_t budget = fixed_budget(level);
  for (int64_t m = 64;; m *= 8) {
    m = std::min(m, row.range.candidates);
    mark_best(row, m, chosen);
    best.clear();
    for (int64_t i = 0; i < row.length; ++i)
      if (chosen[i]) best.push_back({row.keys[i], i});
    std::sort(best.begin(), best.end(),
              [](const Place& p, const Place& q) { return p.key != q.key ? p.key > q.key : p.i < q.i; });
    int64_t n = 0, sum = 0, highest = 0;
    for (; n < m; ++n) {
      if (job.rule == Rule::kFactor) {
        if (best[n].key == kNan<F> || !factor_holds(key_score<F>(best[n].key), n + 1, level)) return n;
      } else {
        const int64_t c = fixed_cost(cost.at(b, job.start[b] + best[n].i * job.step));
        sum += c;
        highest = std::max(highest, c);
        if (sum - highest > budget) return n;
      }
    }
    if (m == row.range.candidates) return m;
  }
}

template <typename F>
void write(const Choice<F>& job, int64_t b, const uint8_t* chosen) {
  const auto put = [&](int64_t i) { job.x.at(b, i) = job.token.data ? job.token.at(b, i) : job.fill; };
  int64_t i = 0;
  for (; i + 8 <= job.length; i += 8) {
    uint64_t eight;
    memcpy(&eight, chosen + i, 8);
    if (eight)
      for (int64_t j = i; j < i + 8; ++j)
        if (chosen[j]) put(j);
  }
  for (; i < job.length; ++i)
    if (chosen[i]) put(i);
}

template <typename F>
void choose_row(const Choice<F>& job, int64_t b, Row<F>& row) {
  uint8_t* chosen = job.chosen + b * job.length;
  load(job, b, row);
  int64_t count = row.range.candidates;
  Key<F> bound = kBarred<F>;  // of the threshold
  if (job.rule == Rule::kThreshold) {
    bound = threshold_bound(static_cast<F>(job.level[b]), job.lowest, job.strict);
    count = row.pass.count_above(row.keys.get(), row.length, bound);
  } else if (job.rule != Rule::kAll) {
    count = longest_prefix(job, b, row, chosen);
  }
  const int64_t k = clamp_count(count, job.least[b], job.most[b], row.range.candidates);
  if (job.rule == Rule::kThreshold && k == count)
    mark(row, {bound, 0}, chosen);
  else
    mark_best(row, k, chosen);
  job.count[b] = k;
  if (job.x.data) write(job, b, chosen);
}

// A serial loop if waking a thread would cost more than it brings.
template <typename Body>
void over_rows(int64_t rows, int64_t work, const Body& body) {
  constexpr int64_t kSerial = 1 << 15;  // elements; some 30 us
  const int64_t least = std::max<int64_t>(1, kSerial * rows / std::max<int64_t>(work, 1));
  if (rows <= least) return body(0, rows);
  torch::stable::parallel_for(0, rows, least, body);
}

// One row of accept_slots_.
template <typename F>
void accept_row(const Acceptance<F>& job, int64_t b) {
  int64_t prefix = 0, count = 0, end = -1;
  bool reached = true;  // all chosen slots before this one were accepted to their ends
  for (int64_t s = 0; s < job.slots; ++s) {
    const SlotRun run = run_of_slot(job, b, s);
    job.accepted[b * job.slots + s] = run.accepted;
    if (!run.chosen || !reached) continue;
    end = end_in(job, b, run);
    const SlotWrite put = write_slot(job, b, run, end);
    prefix += put.prefix;
    count += put.written;
    reached = end < 0 && run.accepted == run.size;
  }
  job.prefix[b] = prefix;
  job.end[b] = end;
  job.count[b] = count;
}

}  // namespace

template <typename F>
void choose(const Choice<F>& job) {
  over_rows(job.rows, job.rows * job.length, [&](int64_t from, int64_t to) {
    Row<F> row(job.length);
    for (int64_t b = from; b < to; ++b) choose_row(job, b, row);
  });
}
template void choose(const Choice<float>&);
template void choose(const Choice<double>&);

template <typename F>
void accept(const Acceptance<F>& job) {
  over_rows(job.rows, job.rows * job.length, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) accept_row(job, b);
  });
}
template void accept(const Acceptance<float>&);
template void accept(const Acceptance<double>&);

}  // namespace samplers::cpu
