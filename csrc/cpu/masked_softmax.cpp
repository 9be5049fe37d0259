// masked_softmax over rows: chunk tables by the instruction set's pass, then one short serial end a row.
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
struct Plan {
  const Job& job;
  const Kernels& isa;
  Kernels::Pass on_logits, on_floats;
  int64_t chunks;
  int sets;        // how many sets of weights the pass accumulates
  int sample_set;  // which of them the draw reads
  bool statistics, top2;
  float k[2], kmax;
  double k64[2];
  int64_t bytes;  // of one logit

  explicit Plan(const Job& j) : job(j), isa(kernels()) {
    const bool draw = j.temperature > 0;
    statistics = j.want != 0;
    const bool shared = draw && statistics && j.temperature == j.confidence_temperature;
    sets = (draw ? 1 : 0) + (statistics ? 1 : 0) - (shared ? 1 : 0);
    sample_set = sets == 2 ? 1 : 0;
    k64[0] = kLog2e / (statistics ? j.confidence_temperature : draw ? j.temperature : 1.0);
    k64[1] = sets == 2 ? kLog2e / j.temperature : k64[0];
    for (int s = 0; s < 2; ++s) k[s] = static_cast<float>(k64[s]);
    kmax = std::max(k[0], k[1]);
    top2 = (j.want & kMargin) != 0;
    const bool entropy = (j.want & kEntropy) != 0;
    on_logits = isa.pass[static_cast<int>(j.type)][sets][entropy][top2];
    on_floats = isa.pass[static_cast<int>(Type::kF32)][sets][entropy][top2];
    bytes = j.type == Type::kF32 ? 4 : 2;
    chunks = (j.vocab + kChunk - 1) / kChunk;
  }

  // Chunk c of row n in fp32, guided; forbidden entries, and those between the end and its block's end, at -inf.
  void materialise(int64_t n, int64_t c, float* out, float* scratch) const {
    const int64_t begin = c * kChunk;
    const int count = static_cast<int>(std::min<int64_t>(kChunk, job.vocab - begin));
    isa.widen(job.type, job.logits.row(n) + begin * bytes, count, out);
    if (job.guidance.data) {
      isa.widen(job.type, job.guidance.row(n) + begin * bytes, count, scratch);
      isa.guide(out, scratch, job.cfg_scale, count);
    }
    const int64_t* last = job.forbid + job.n_forbid;
    for (const int64_t* f = std::lower_bound(job.forbid, last, begin); f != last && *f < begin + count; ++f)
      out[*f - begin] = kNone;
  }

  // One guided logit, a forbidden one at -inf.
  float value(int64_t n, int64_t id) const {
    if (std::binary_search(job.forbid, job.forbid + job.n_forbid, id)) return kNone;
    const float a = one(job.logits.row(n), id);
    return job.guidance.data ? guided(a, one(job.guidance.row(n), id), job.cfg_scale) : a;
  }

  float one(const char* row, int64_t id) const {
    if (job.type == Type::kF32) return reinterpret_cast<const float*>(row)[id];
    const uint16_t h = reinterpret_cast<const uint16_t*>(row)[id];
    return job.type == Type::kBF16 ? float_from_bf16(h) : float_from_fp16(h);
  }
};

// What one thread needs, made once.
struct Bench {
  alignas(64) float values[kChunk], scratch[kChunk];
  alignas(64) double cumulative[kChunk];
  std::vector<double> exponent, scale[2];
  explicit Bench(int64_t chunks) : exponent(chunks) {
    scale[0].resize(chunks);
    scale[1].resize(chunks);
  }
};

void clear(Lanes& lanes) {
  for (int i = 0; i < kLanes; ++i) lanes.first[i] = lanes.second[i] = kNone;
}

// Fills table[begin, end) of row n.
void survey(const Plan& plan, int64_t n, int64_t begin, int64_t end, Chunk* table, Lanes& lanes, Bench& bench) {
  const Job& job = plan.job;
  const char* row = job.logits.row(n);
  const int64_t* last = job.forbid + job.n_forbid;
  const int64_t* forbid = std::lower_bound(job.forbid, last, begin * kChunk);
  for (int64_t c = begin; c < end; ++c) {
    const int64_t from = c * kChunk, count = std::min<int64_t>(kChunk, job.vocab - from);
    const char* here = row + from * plan.bytes;
    const char* ahead = here + kChunk * plan.bytes;
    const int blocks = static_cast<int>((count + kBlock - 1) / kBlock);
    const bool forbidden = forbid != last && *forbid < from + count;
    while (forbid != last && *forbid < from + count) ++forbid;
    if (forbidden || job.guidance.data || count % kBlock != 0) {
      plan.materialise(n, c, bench.values, bench.scratch);
      plan.on_floats(bench.values, blocks, plan.k, plan.kmax, ahead, table[c], lanes);
    } else {
      plan.on_logits(here, blocks, plan.k, plan.kmax, ahead, table[c], lanes);
    }
  }
}

// scale[c] = 2^((m_c - M) k), and the row's total weight, summed in chunk order.
double weigh(const Plan& plan, const Chunk* table, int set, double reference, Bench& bench) {
  const int64_t n = plan.chunks;
  for (int64_t c = 0; c < n; ++c) bench.exponent[c] = (static_cast<double>(table[c].m) - reference) * plan.k64[set];
  plan.isa.scales(bench.exponent.data(), static_cast<int>(n), bench.scale[set].data());
  double total = 0;
  for (int64_t c = 0; c < n; ++c) total += static_cast<double>(table[c].sum[set]) * bench.scale[set][c];
  return total;
}

int64_t draw(const Plan& plan, int64_t n, const Chunk* table, double total, Bench& bench) {
  const int set = plan.sample_set;
  const double target = plan.job.uniform[n] * total;
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
  plan.materialise(n, chosen, bench.values, bench.scratch);
  const int count = static_cast<int>(std::min<int64_t>(kChunk, plan.job.vocab - chosen * kChunk));
  plan.isa.weights(bench.values, count, table[chosen].m, plan.k[set], bench.scratch);
  double s = 0;
  for (int i = 0; i < count; ++i) bench.cumulative[i] = s += static_cast<double>(bench.scratch[i]);
  const double goal = (target - before) / weight * s;
  int64_t i = std::upper_bound(bench.cumulative, bench.cumulative + count, goal) - bench.cumulative;
  if (i == count)
    for (i = count - 1; i > 0 && !(bench.scratch[i] > 0); --i) {
    }
  return chosen * kChunk + i;
}

int64_t best(const Plan& plan, int64_t n, const Chunk* table, float highest, Bench& bench) {
  int64_t c = 0;
  while (table[c].max != highest) ++c;
  plan.materialise(n, c, bench.values, bench.scratch);
  int64_t i = 0;
  while (bench.values[i] != highest) ++i;
  return c * kChunk + i;
}

void finish(const Plan& plan, int64_t n, const Chunk* table, const Lanes& lanes, Bench& bench) {
  const Job& job = plan.job;
  float highest = kNone, reference = kNone;
  bool bad = false;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    bad |= table[c].bad;
    highest = std::max(highest, table[c].max);
    reference = std::max(reference, table[c].m);
  }
  const int32_t status = bad ? 1 : highest == kNone ? 2 : 0;
  job.status[n] = status;
  if (status) {
    job.token[n] = -1;
    for (float* out : {job.confidence, job.margin, job.entropy, job.lse, job.given_out})
      if (out) out[n] = kNaN;
    return;
  }
  const double m = reference;
  const double w0 = plan.sets ? weigh(plan, table, 0, m, bench) : 0;
  const double w1 = plan.sets == 2 ? weigh(plan, table, 1, m, bench) : w0;
  const int64_t token = job.temperature > 0 ? draw(plan, n, table, w1, bench) : best(plan, n, table, highest, bench);
  job.token[n] = token;
  const auto probability = [&](float logit) {  // the pass rounds to fp32, so the quotient may come out just above 1
    return std::min(exp2_scale((static_cast<double>(logit) - m) * plan.k64[0]) / w0, 1.0);
  };
  if (job.confidence) job.confidence[n] = static_cast<float>(probability(plan.value(n, token)));
  if (job.given_out) job.given_out[n] = static_cast<float>(probability(plan.value(n, job.given[n])));
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
      if (scale == 0) continue;  // 0 * (m_c - M) with m_c = -inf
      const double s = table[c].sum[0], t = (static_cast<double>(table[c].m) - m) * plan.k64[0];
      e += scale * (static_cast<double>(table[c].entropy) + s * t);
    }
    job.entropy[n] = static_cast<float>(std::max(log_weight - kLn2 * e / w0, 0.0));
  }
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

const char* choose(const char* name) {
  const Kernels* found = find(name);
  if (!found) return nullptr;
  current().store(found);
  return found->name;
}

void masked_softmax(const Job& job) {
  if (job.n == 0) return;
  const Plan plan(job);
  const int64_t threads = torch::stable::get_num_threads();
  const double work = static_cast<double>(job.n) * static_cast<double>(job.vocab);
  constexpr double kSerial = 1 << 17;  // below about 50 us, waking a thread costs more than it brings
  const int64_t workers = work < kSerial ? 1 : threads;

  if (job.n >= 2 * workers || plan.chunks == 1) {
    // Rows are handed out one by one: a thread that the machine holds up takes fewer.
    std::atomic<int64_t> next{0};
    const auto run = [&] {
      Bench bench(plan.chunks);
      std::vector<Chunk> table(plan.chunks);
      Lanes lanes;
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < job.n;) {
        clear(lanes);
        survey(plan, n, 0, plan.chunks, table.data(), lanes, bench);
        finish(plan, n, table.data(), lanes, bench);
      }
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
      survey(plan, n, plan.chunks * part / parts, plan.chunks * (part + 1) / parts, table.data() + n * plan.chunks,
             lanes[task], bench);
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
    finish(plan, n, table.data() + n * plan.chunks, all, bench);
  }
}

}  // namespace samplers::cpu
