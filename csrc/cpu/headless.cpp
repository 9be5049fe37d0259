// Headless sampling: the chunks of a tile by masked_softmax's pass, each joined to its row's state.
#include "headless.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include <torch/csrc/stable/ops.h>

#include "masked_softmax.h"

namespace samplers::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// What is the same for every row of a tile.
struct Tile {
  const HeadlessFold& job;
  const Kernels& isa;
  HeadlessPlan plan;
  float k[2], kmax;
  bool top2;
  int64_t bytes;  // of one logit

  explicit Tile(const HeadlessFold& j)
      : job(j),
        isa(kernels()),
        plan(headless_plan(j.temperature, j.confidence_temperature, j.want != 0, (j.want & kEntropy) != 0)) {
    for (int s = 0; s < 2; ++s) k[s] = static_cast<float>(plan.k[s]);
    kmax = std::max(k[0], k[1]);
    top2 = (j.want & kMargin) != 0;
    bytes = j.type == Type::kF32 ? 4 : 2;
  }
};

struct Bench {
  alignas(64) float values[kChunk], scratch[kChunk];
  alignas(64) double cumulative[kChunk];
};

int entries(const Tile& tile, int64_t c) {
  return static_cast<int>(std::min<int64_t>(kChunk, tile.job.width - c * kChunk));
}

// Chunk c of the tile in fp32, guided; forbidden entries, and those between the end and its block's end, at -inf.
void materialise(const Tile& tile, int64_t n, int64_t c, float* out, float* scratch) {
  const HeadlessFold& job = tile.job;
  const int64_t begin = c * kChunk, first = job.offset + begin;
  const int count = entries(tile, c);
  tile.isa.widen(job.type, job.logits.row(n) + begin * tile.bytes, count, out);
  if (job.guidance.data) {
    tile.isa.widen(job.type, job.guidance.row(n) + begin * tile.bytes, count, scratch);
    tile.isa.guide(out, scratch, job.cfg_scale, count);
  }
  const int64_t* last = job.forbid + job.n_forbid;
  for (const int64_t* f = std::lower_bound(job.forbid, last, first); f != last && *f < first + count; ++f)
    out[*f - first] = kNone;
}

// Chunk c: its best and second best, and its sums beside `best`, the best logit of the chunks before it.
void survey(const Tile& tile, int64_t n, int64_t c, double best, Chunk& out, Lanes& lanes, Bench& bench) {
  const HeadlessFold& job = tile.job;
  const int64_t first = job.offset + c * kChunk;
  const int count = entries(tile, c), blocks = (count + kBlock - 1) / kBlock;
  const void* x = job.logits.row(n) + c * kChunk * tile.bytes;
  const char* ahead = static_cast<const char*>(x) + count * tile.bytes;
  Type type = job.type;
  const int64_t* last = job.forbid + job.n_forbid;
  const int64_t* f = std::lower_bound(job.forbid, last, first);
  if ((f != last && *f < first + count) || job.guidance.data || count % kBlock != 0) {
    materialise(tile, n, c, bench.values, bench.scratch);
    x = bench.values;
    type = Type::kF32;
  }
  tile.isa.peak[static_cast<int>(type)][tile.top2](x, blocks, ahead, out, lanes);
  out.sum[0] = out.sum[1] = out.entropy = 0;
  if (tile.plan.sets == 0 || out.bad || out.max == kNone) return;
  best = std::max<double>(best, out.max);
  const bool one = !headless_drops(tile.plan, 0, out.max, best);
  const bool two = tile.plan.sets == 2 && !headless_drops(tile.plan, 1, out.max, best);
  const bool deep = !((out.min - out.max) * tile.kmax >= kFloor);
  const auto& sums = tile.isa.sums[static_cast<int>(type)];
  if (one)
    sums[two][tile.plan.entropy][deep](x, blocks, out.max, tile.k, ahead, out.sum, &out.entropy);
  else if (two)
    sums[false][false][deep](x, blocks, out.max, tile.k + 1, ahead, out.sum + 1, nullptr);
}

// One entry of chunk c by inverse CDF.
void draw(const Tile& tile, int64_t n, int64_t c, float m, double place, double* real, int64_t* whole, Bench& bench) {
  const int count = entries(tile, c);
  materialise(tile, n, c, bench.values, bench.scratch);
  tile.isa.weights(bench.values, count, m, tile.k[tile.plan.draw_set], bench.scratch);
  double s = 0;
  for (int i = 0; i < count; ++i) bench.cumulative[i] = s += static_cast<double>(bench.scratch[i]);
  int64_t i = std::upper_bound(bench.cumulative, bench.cumulative + count, place * s) - bench.cumulative;
  if (i == count)
    for (i = count - 1; i > 0 && !(bench.scratch[i] > 0); --i) {
    }
  whole[kDrawnId] = tile.job.offset + c * kChunk + i;
  real[kDrawnLogit] = bench.values[i];
}

void fold_row(const Tile& tile, int64_t n, Bench& bench) {
  const HeadlessFold& job = tile.job;
  double* real = job.real + n * kReals;
  int64_t* whole = job.whole + n * kWholes;
  if (job.offset == 0) headless_start(real, whole);
  const double uniform = job.uniform ? job.uniform[n] : 0.0;
  Lanes lanes;
  for (int i = 0; i < kLanes; ++i) lanes.first[i] = lanes.second[i] = kNone;
  lanes.first[0] = static_cast<float>(real[kFirst]);
  lanes.second[0] = static_cast<float>(real[kSecond]);
  int64_t drawn = -1;
  float drawn_reference = 0;
  for (int64_t c = 0; c * kChunk < job.width; ++c) {
    Chunk chunk;
    survey(tile, n, c, real[kFirst], chunk, lanes, bench);
    if (chunk.bad) whole[kBad] = 1;
    if (chunk.bad || chunk.max == kNone) continue;
    const HeadlessChunk joins =
        headless_chunk(tile.plan, real[kFirst], chunk.max, chunk.sum[0], chunk.sum[1], chunk.entropy);
    headless_add(tile.plan, joins, real + kSum0);
    if (joins.distance > 0) {
      real[kFirst] = chunk.max;
      materialise(tile, n, c, bench.values, bench.scratch);
      whole[kBestId] =
          job.offset + c * kChunk + (std::find(bench.values, bench.values + kChunk, chunk.max) - bench.values);
    }
    const int set = tile.plan.draw_set;
    if (set >= 0 && headless_takes(uniform, job.offset / kChunk + c, joins.weight[set], real[kSum0 + set])) {
      drawn = c;
      drawn_reference = chunk.max;
    }
  }
  if (drawn >= 0)
    draw(tile, n, drawn, drawn_reference, headless_draws(uniform, job.offset / kChunk + drawn).place, real, whole,
         bench);
  if (tile.top2) {
    float first = kNone, second = kNone;
    for (int i = 0; i < kLanes; ++i)
      for (const float v : {lanes.first[i], lanes.second[i]}) {
        second = std::max(second, std::min(first, v));
        first = std::max(first, v);
      }
    real[kSecond] = second;
  }
  if (job.given && job.given[n] >= job.offset && job.given[n] < job.offset + job.width) {
    const int64_t i = job.given[n] - job.offset;
    materialise(tile, n, i / kChunk, bench.values, bench.scratch);
    real[kGivenLogit] = bench.values[i % kChunk];
  }
}

}  // namespace

void headless_fold(const HeadlessFold& job) {
  const Tile tile(job);
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    Bench bench;
    for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < job.n;) fold_row(tile, n, bench);
  };
  constexpr int64_t kSerial = 1 << 17;  // below about 50 us, waking a thread costs more than it brings
  const int64_t workers = job.n * job.width < kSerial ? 1 : std::min<int64_t>(torch::stable::get_num_threads(), job.n);
  if (workers <= 1) return run();
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { run(); });
}

void headless_finish(const HeadlessFinish& job) {
  const HeadlessPlan plan =
      headless_plan(job.temperature, job.confidence_temperature, job.want != 0, (job.want & kEntropy) != 0);
  for (int64_t n = 0; n < job.n; ++n) {
    const double* real = job.real + n * kReals;
    const int64_t* whole = job.whole + n * kWholes;
    const int32_t status = headless_status(real, whole);
    const bool draws = plan.draw_set >= 0;
    job.status[n] = status;
    job.token[n] = status ? -1 : whole[draws ? kDrawnId : kBestId];
    const auto put = [&](float* out, auto value) {
      if (out) out[n] = status ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(value());
    };
    put(job.confidence, [&] { return headless_probability(plan, real, real[draws ? kDrawnLogit : kFirst]); });
    put(job.margin, [&] { return headless_margin(plan, real); });
    put(job.entropy, [&] { return headless_entropy(real); });
    put(job.lse, [&] { return headless_lse(plan, real); });
    put(job.given, [&] { return headless_probability(plan, real, real[kGivenLogit]); });
  }
}

}  // namespace samplers::cpu
