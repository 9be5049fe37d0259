// masked_softmax over rows: chunk tables by the instruction set's pass, then one short serial end per row.
#include "masked_softmax.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../softmax_math.h"

namespace samplers::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

const Kernels* find(const char* name) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool any = name == nullptr || *name == '\0';
  if (avx512 && (any || !std::strcmp(name, "avx512"))) return &kAvx512;
  if (avx2 && (any || !std::strcmp(name, "avx2"))) return &kAvx2;
  if (any || !std::strcmp(name, "portable")) return &kPortable;
  return nullptr;
#else
  return name == nullptr || *name == '\0' || !std::strcmp(name, "portable") ? &kPortable : nullptr;
#endif
}

const Kernels* first_choice() {
  const Kernels* asked = find(std::getenv("SAMPLERS_ISA"));
  return asked ? asked : find("");  // an unknown name is the Python side's to complain about
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{first_choice()};
  return chosen;
}

// What is the same for every row of a job.
struct Plan : WeightSets {
  const SoftmaxJob& job;
  const Kernels& isa;
  int64_t chunks;
  bool top2, entropy;

  explicit Plan(const SoftmaxJob& j) : WeightSets(j), job(j), isa(kernels()) {
    top2 = (j.want & kMargin) != 0;
    entropy = (j.want & kEntropy) != 0;
    chunks = (j.vocab + kChunk - 1) / kChunk;
  }
  int count(int64_t c) const { return static_cast<int>(std::min<int64_t>(kChunk, job.vocab - c * kChunk)); }
};

// What one thread needs, made once.
struct Bench {
  alignas(64) float values[kChunk], scratch[kChunk];
  alignas(64) double cumulative[kChunk];
  std::vector<double> exponent, scale[2];
  std::vector<float> row;   // a truncated row, whole
  std::vector<Chunk> left;  // its chunks, where the statistics' table is that of the row as it was
  bool peaked = false;      // most of the last row was left out: find the next one's maxima first
  explicit Bench(int64_t chunks) : exponent(chunks), left(chunks) {
    scale[0].resize(chunks);
    scale[1].resize(chunks);
  }
};

// One row as its passes see it: where it lies, and what has to be done to an entry before it counts.
struct View {
  const Plan& plan;
  Type type;
  const char *a, *b;  // b: guidance, or null
  const int64_t *forbid, *last;
  bool sums[2];  // which sets its chunks are weighed for

  View(const Plan& p, int64_t n)
      : plan(p),
        type(p.job.type),
        a(p.job.logits.row(n)),
        b(p.job.guidance.data ? p.job.guidance.row(n) : nullptr),
        forbid(p.job.forbid),
        last(p.job.forbid + p.job.n_forbid),
        sums{p.sets > 0, p.sets == 2} {}

  int64_t bytes() const { return type == Type::kF32 ? 4 : 2; }
  const int64_t* forbidden_from(int64_t id) const { return std::lower_bound(forbid, last, id); }

  // Chunk c in fp32, guided; forbidden entries, and those between the end and its block's end, at -inf.
  void materialise(int64_t c, float* out, float* scratch) const {
    const int64_t begin = c * kChunk;
    const int count = plan.count(c);
    plan.isa.widen(type, a + begin * bytes(), count, out);
    if (b) {
      plan.isa.widen(type, b + begin * bytes(), count, scratch);
      plan.isa.guide(out, scratch, plan.job.cfg_scale, count);
    }
    for (const int64_t* f = forbidden_from(begin); f != last && *f < begin + count; ++f) out[*f - begin] = kNone;
  }

  // One guided logit, a forbidden one at -inf.
  float value(int64_t id) const {
    const int64_t* f = forbidden_from(id);
    if (f != last && *f == id) return kNone;
    return b ? guided(one(a, id), one(b, id), plan.job.cfg_scale) : one(a, id);
  }

  float one(const char* row, int64_t id) const {
    if (type == Type::kF32) return reinterpret_cast<const float*>(row)[id];
    const uint16_t h = reinterpret_cast<const uint16_t*>(row)[id];
    return type == Type::kBF16 ? float_from_bf16(h) : float_from_fp16(h);
  }

  // Chunk c as the passes read it: where it lies, or a copy.
  struct Source {
    const void* x;
    Type type;
  };
  Source source(int64_t c, Bench& bench) const {
    const int64_t begin = c * kChunk;
    const int count = plan.count(c);
    const int64_t* f = forbidden_from(begin);
    if (!b && count % kBlock == 0 && (f == last || *f >= begin + count)) return {a + begin * bytes(), type};
    materialise(c, bench.values, bench.scratch);
    return {bench.values, Type::kF32};
  }
};

void clear(Lanes& lanes) {
  for (int i = 0; i < kLanes; ++i) lanes.first[i] = lanes.second[i] = kNone;
}

int blocks_of(const Plan& plan, int64_t c) { return (plan.count(c) + kBlock - 1) / kBlock; }

// What to fetch while chunk c is worked on; how far ahead was measured: 4 KB if it is weighed, twice that if not.
const char* after(const View& view, int64_t c, int64_t bytes = 4096) {
  return view.a + c * kChunk * view.bytes() + bytes;
}

void peak(const View& view, const View::Source& from, int64_t c, const char* ahead, Chunk& out, Lanes& lanes) {
  const Plan& plan = view.plan;
  plan.isa.peak[static_cast<int>(from.type)][plan.top2](from.x, blocks_of(plan, c), ahead, out, lanes);
}

// Is a chunk with this maximum left out of a set, in a row with this one? What a running maximum leaves out, the row's
// own does too: rounding keeps order.
bool dropped(const Plan& plan, int set, float max, float highest) {
  return (static_cast<double>(max) - static_cast<double>(highest)) * plan.k64[set] <= -kDrop;
}

// The sums of chunk c, of those sets that may matter in a row that reaches `highest`.
void weigh(const View& view, const View::Source& from, int64_t c, float highest, Chunk& out) {
  const Plan& plan = view.plan;
  out.sum[0] = out.sum[1] = out.entropy = 0;
  if (out.bad || out.max == kNone) return;
  const bool first = view.sums[0] && !dropped(plan, 0, out.max, highest);
  const bool second = view.sums[1] && !dropped(plan, 1, out.max, highest);
  if (!first && !second) return;
  const bool deep = !((out.min - out.max) * plan.kmax >= kFloor);
  const auto& sums = plan.isa.sums[static_cast<int>(from.type)];
  const int blocks = blocks_of(plan, c);
  if (first)
    sums[second][plan.entropy][deep](from.x, blocks, out.max, plan.k, after(view, c), out.sum, &out.entropy);
  else if (second)
    sums[false][false][deep](from.x, blocks, out.max, plan.k + 1, after(view, c), out.sum + 1, nullptr);
}

// Fills table[begin, end) of a row.
void survey(const View& view, int64_t begin, int64_t end, Chunk* table, Lanes& lanes, Bench& bench) {
  float highest = kNone;
  if (bench.peaked && !view.b) {  // a row's maxima first: reading it again from the cache beats weighing it all
    for (int64_t c = begin; c < end; ++c) {
      peak(view, view.source(c, bench), c, after(view, c, 8192), table[c], lanes);
      highest = std::max(highest, table[c].max);
    }
    for (int64_t c = begin; c < end; ++c) weigh(view, view.source(c, bench), c, highest, table[c]);
    return;
  }
  for (int64_t c = begin; c < end; ++c) {
    const View::Source from = view.source(c, bench);
    // The sums take longer, so it is they that fetch what comes next.
    const char* ahead = view.plan.sets ? static_cast<const char*>(from.x) : after(view, c, 8192);
    peak(view, from, c, ahead, table[c], lanes);
    highest = std::max(highest, table[c].max);
    weigh(view, from, c, highest, table[c]);
  }
}

// scale[c] = 2^((m_c - M) k), 0 for what is left out, and the row's total weight, summed in chunk order.
double total_of(const Plan& plan, const Chunk* table, int set, double highest, Bench& bench) {
  const int64_t n = plan.chunks;
  for (int64_t c = 0; c < n; ++c) {
    const double x = (static_cast<double>(table[c].max) - highest) * plan.k64[set];
    bench.exponent[c] = x <= -kDrop ? -INFINITY : x;
  }
  plan.isa.scales(bench.exponent.data(), static_cast<int>(n), bench.scale[set].data());
  double total = 0;
  for (int64_t c = 0; c < n; ++c) total += static_cast<double>(table[c].sum[set]) * bench.scale[set][c];
  return total;
}

int64_t draw(const View& view, double uniform, const Chunk* table, double total, Bench& bench) {
  const Plan& plan = view.plan;
  const int set = plan.sample_set;
  const double target = uniform * total;
  double before = 0, weight = 0, sum = 0;
  int64_t chosen = -1;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    const double w = static_cast<double>(table[c].sum[set]) * bench.scale[set][c];
    if (w > 0) {  // the last one with weight stands if rounding carried the target past the end
      chosen = c;
      before = sum;
      weight = w;
    }
    sum += w;
    if (sum > target) break;
  }
  view.materialise(chosen, bench.values, bench.scratch);
  const int count = plan.count(chosen);
  plan.isa.weights(bench.values, count, table[chosen].max, plan.k[set], bench.scratch);
  double s = 0;
  for (int i = 0; i < count; ++i) bench.cumulative[i] = s += static_cast<double>(bench.scratch[i]);
  const double goal = (target - before) / weight * s;
  int64_t i = std::upper_bound(bench.cumulative, bench.cumulative + count, goal) - bench.cumulative;
  if (i == count)
    for (i = count - 1; i > 0 && !(bench.scratch[i] > 0); --i) {
    }
  return chosen * kChunk + i;
}

int64_t best(const View& view, const Chunk* table, float highest, Bench& bench) {
  int64_t c = 0;
  while (table[c].max != highest) ++c;
  view.materialise(c, bench.values, bench.scratch);
  int64_t i = 0;
  while (bench.values[i] != highest) ++i;
  return c * kChunk + i;
}

// A row as one weight set sees it, and its chunks.
struct Table {
  const View& view;
  const Chunk* chunks;
};

// Writes row n's results: the statistics of `all`, the draw of `left`, which is the same unless plan.split.
void finish(int64_t n, const Table& all, const Table& left, const Lanes& lanes, Bench& bench) {
  const View& view = all.view;
  const Chunk* table = all.chunks;
  const Plan& plan = view.plan;
  const SoftmaxJob& job = plan.job;
  float highest = kNone;
  bool bad = false;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    bad |= table[c].bad;
    highest = std::max(highest, table[c].max);
  }
  const int32_t status = bad ? 1 : highest == kNone ? 2 : 0;
  job.status[n] = status;
  if (status) {
    job.token[n] = -1;
    for (float* out : {job.confidence, job.margin, job.entropy, job.lse, job.given_out})
      if (out) out[n] = kNaN;
    return;
  }
  const double m = highest;
  const double w0 = plan.sets ? total_of(plan, table, 0, m, bench) : 0;
  const double w1 = plan.sets == 2 ? total_of(plan, left.chunks, 1, m, bench) : w0;
  if (plan.sets) {
    const int64_t kept = std::count_if(table, table + plan.chunks,
                                       [&](const Chunk& chunk) { return !dropped(plan, 0, chunk.max, highest); });
    bench.peaked = 4 * kept <= plan.chunks;
  }
  const int64_t token =
      job.temperature > 0 ? draw(left.view, job.uniform[n], left.chunks, w1, bench) : best(view, table, highest, bench);
  job.token[n] = token;
  const auto probability =
      [&](float logit) {  // the sums are rounded to fp32, so the quotient may come out just above 1
        return std::min(exp2_scale((static_cast<double>(logit) - m) * plan.k64[0]) / w0, 1.0);
      };
  if (job.confidence) job.confidence[n] = static_cast<float>(probability(view.value(token)));
  if (job.given_out) job.given_out[n] = static_cast<float>(probability(view.value(job.given[n])));
  if (job.margin) {
    float first = kNone, second = kNone;
    for (int i = 0; i < kLanes; ++i)
      for (const float v : {lanes.first[i], lanes.second[i]}) {
        second = std::max(second, std::min(first, v));
        first = std::max(first, v);
      }
    const double p1 = exp2_scale((static_cast<double>(first) - m) * plan.k64[0]);
    const double p2 = exp2_scale((static_cast<double>(second) - m) * plan.k64[0]);
    job.margin[n] = static_cast<float>(std::min((p1 - p2) / w0, 1.0));
  }
  const double log_weight = std::log(w0);
  if (job.lse) job.lse[n] = static_cast<float>(m / job.confidence_temperature + log_weight);
  if (job.entropy) {
    double e = 0;
    for (int64_t c = 0; c < plan.chunks; ++c) {
      const double scale = bench.scale[0][c];
      if (scale == 0) continue;  // left out; its exponent may be -inf
      const double s = table[c].sum[0], t = (static_cast<double>(table[c].max) - m) * plan.k64[0];
      e += scale * (static_cast<double>(table[c].entropy) + s * t);
    }
    job.entropy[n] = static_cast<float>(std::max(log_weight - kLn2 * e / w0, 0.0));
  }
}

// The row as top-k and top-p leave it, in fp32, in memory of the bench's own. On the way `table` and `lanes` become
// those of the row as it was: its one reading from memory.
View truncate_row(const View& view, Chunk* table, Lanes& lanes, Bench& bench) {
  const Plan& plan = view.plan;
  bench.row.resize(plan.chunks * kChunk);
  float highest = kNone;
  bool bad = false;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    float* x = bench.row.data() + c * kChunk;
    view.materialise(c, x, bench.scratch);
    const View::Source from{x, Type::kF32};
    peak(view, from, c, after(view, c), table[c], lanes);
    bad |= table[c].bad;
    highest = std::max(highest, table[c].max);
    weigh(view, from, c, highest, table[c]);
  }
  if (!bad && highest != kNone) {
    const int64_t n = (plan.chunks - 1) * kChunk + blocks_of(plan, plan.chunks - 1) * kBlock;
    truncate(plan.isa, {plan.job.top_k, plan.job.top_p, plan.k[plan.sample_set]}, highest, bench.row.data(), n);
  }
  View left = view;
  left.type = Type::kF32;
  left.a = reinterpret_cast<const char*>(bench.row.data());
  left.b = nullptr;
  left.forbid = left.last;
  return left;
}

// A whole row, by one thread. `table` has room for its chunks.
void whole_row(const Plan& plan, int64_t n, Chunk* table, Bench& bench) {
  Lanes lanes;
  clear(lanes);
  View view(plan, n);
  if (!plan.truncates) {
    survey(view, 0, plan.chunks, table, lanes, bench);
    return finish(n, {view, table}, {view, table}, lanes, bench);
  }
  view.sums[0] = plan.split;  // else what is left is weighed for everything
  view.sums[1] = false;
  View left = truncate_row(view, table, lanes, bench);
  left.sums[0] = !plan.split && plan.sets > 0;
  left.sums[1] = plan.sets == 2;
  Lanes two;
  clear(two);
  survey(left, 0, plan.chunks, bench.left.data(), two, bench);
  const Table rest{left, bench.left.data()};
  if (plan.split) return finish(n, {view, table}, rest, lanes, bench);
  finish(n, rest, rest, two, bench);
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

const char* choose(const char* name) {
  const Kernels* found = find(name);
  if (!found) return nullptr;
  current().store(found);
  return found->name;
}

void masked_softmax(const SoftmaxJob& job) {
  if (job.n == 0) return;
  const Plan plan(job);
  const int64_t threads = torch::stable::get_num_threads();
  const double work = static_cast<double>(job.n) * static_cast<double>(job.vocab);
  constexpr double kSerial = 1 << 17;  // below about 50 us, waking a thread costs more than it brings
  const int64_t workers = work < kSerial ? 1 : threads;

  if (job.n >= 2 * workers || plan.chunks == 1 || plan.truncates) {
    // Rows are handed out one by one: a thread that the machine holds up takes fewer.
    std::atomic<int64_t> next{0};
    const auto run = [&] {
      Bench bench(plan.chunks);
      std::vector<Chunk> table(plan.chunks);
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < job.n;)
        whole_row(plan, n, table.data(), bench);
    };
    if (workers == 1) return run();
    torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { run(); });
    return;
  }

  // Few long rows: threads share each row's chunks. Chunks do not know of each other, so the table is the same.
  const int64_t parts = std::min(plan.chunks, 4 * workers), tasks = job.n * parts;
  std::vector<Chunk> table(job.n * plan.chunks);
  std::vector<Lanes> lanes(tasks);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    Bench bench(0);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const int64_t n = task / parts, part = task % parts;
      clear(lanes[task]);
      survey(View(plan, n), plan.chunks * part / parts, plan.chunks * (part + 1) / parts,
             table.data() + n * plan.chunks, lanes[task], bench);
    }
  });
  Bench bench(plan.chunks);
  for (int64_t n = 0; n < job.n; ++n) {
    Lanes& all = lanes[n * parts];
    for (int64_t part = 1; part < parts; ++part) {
      const Lanes& more = lanes[n * parts + part];
      for (int i = 0; i < kLanes; ++i)
        for (const float v : {more.first[i], more.second[i]}) {
          all.second[i] = std::max(all.second[i], std::min(all.first[i], v));
          all.first[i] = std::max(all.first[i], v);
        }
    }
    const View view(plan, n);
    const Table row{view, table.data() + n * plan.chunks};
    finish(n, row, row, all, bench);
  }
}

}  // namespace samplers::cpu
