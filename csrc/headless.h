// The running state of one row of headless sampling, for every kernel and mirrored by the torch twin in
// samplers/ops/headless.py: chunks of logits come one after another, are joined to the state and forgotten.
#pragma once

#include <math.h>
#include <stdint.h>

#include "hd.h"
#include "masked_softmax.h"
#include "philox.h"
#include "softmax_math.h"

namespace samplers {

// Columns [offset, offset + width) of the logits of n rows. Offset is a multiple of 1024; at 0 the state starts anew.
struct HeadlessFold {
  Type type;
  int64_t n, offset, width;
  Rows logits, guidance;  // guidance.data null: none
  float cfg_scale;
  const double* uniform;  // null at temperature 0
  double temperature, confidence_temperature;
  const int64_t* forbid;  // ascending, without repetition, all in [offset, offset + width)
  int64_t n_forbid;
  const int64_t* given;  // null: not wanted
  int64_t want;
  double* real;    // (n, kReals)
  int64_t* whole;  // (n, kWholes)
};

struct HeadlessFinish {
  int64_t n;
  const double* real;
  const int64_t* whole;
  double temperature, confidence_temperature;
  int64_t want;
  int64_t* token;
  float *confidence, *margin, *entropy, *lse, *given;  // null: not wanted
  int32_t* status;
};

// A row's reals: sums of weights for two temperatures and of weight * t, relative to the best logit so far; that and
// the second best; the logits of the drawn and of the given id.
enum HeadlessReal : int { kSum0, kSum1, kEntropySum, kFirst, kSecond, kDrawnLogit, kGivenLogit, kReals };
// A row's whole numbers: the best id, the drawn id, whether a NaN or +inf was met. No id yet: -1.
enum HeadlessWhole : int { kBestId, kDrawnId, kBad, kWholes };

// What a call says of all its rows.
struct HeadlessPlan {
  int sets;      // of weights: the confidence's first, the draw's last; equal temperatures share one
  int draw_set;  // which of them the draw reads, -1: no draw
  double k[2];   // log2(e) / temperature, by set
  bool entropy;
  double confidence_temperature;
};

SAMPLERS_HD HeadlessPlan headless_plan(double temperature, double confidence_temperature, bool statistics,
                                       bool entropy) {
  const bool draw = temperature > 0, own = draw && statistics && temperature != confidence_temperature;
  HeadlessPlan plan;
  plan.sets = own ? 2 : statistics || draw ? 1 : 0;
  plan.k[0] = kLog2e / (statistics ? confidence_temperature : draw ? temperature : 1.0);
  plan.k[1] = own ? kLog2e / temperature : plan.k[0];
  plan.draw_set = draw ? (own ? 1 : 0) : -1;
  plan.entropy = entropy;
  plan.confidence_temperature = confidence_temperature;
  return plan;
}

SAMPLERS_HD void headless_start(double* real, int64_t* whole) {
  for (int i = 0; i < kReals; ++i) real[i] = i <= kEntropySum ? 0.0 : -INFINITY;
  whole[kBestId] = whole[kDrawnId] = -1;
  whole[kBad] = 0;
}

// The two uniforms of a row and a chunk: whether the chunk takes the draw over, and where in it. The key is the row's
// own uniform, all 53 bits of it, the counter is the chunk, so they do not depend on how chunks come.
struct HeadlessDraws {
  double take, place;
};
SAMPLERS_HD HeadlessDraws headless_draws(double uniform, int64_t chunk) {
  const uint64_t key = static_cast<uint64_t>(uniform * 9007199254740992.0);  // 2^53
  const Philox4 r =
      philox4x32(static_cast<uint32_t>(chunk), 0, 0, 0, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  return {unit_interval(r.r0, r.r1), unit_interval(r.r2, r.r3)};
}

// Is a chunk with this maximum left out of a set, beside this best logit?
SAMPLERS_HD bool headless_drops(const HeadlessPlan& plan, int set, double max, double best) {
  return (max - best) * plan.k[set] <= -kDrop;
}

// A chunk, as it joins sums that are relative to `before`, the best logit of the chunks before it. The higher of the
// two is the new reference: the sums sink to it, or the chunk's own do, and 42 powers of two down they vanish.
struct HeadlessChunk {
  double distance, scale[2], weight[2], entropy;
};
SAMPLERS_HD HeadlessChunk headless_chunk(const HeadlessPlan& plan, double before, double max, float sum0, float sum1,
                                         float entropy) {
  HeadlessChunk c{max - before, {0, 0}, {sum0, sum1}, entropy};
  const bool sinks = c.distance > 0;
  for (int s = 0; s < 2; ++s) {  // a fixed count: device code then keeps arrays in registers
    if (s >= plan.sets) break;
    const double down = (sinks ? -c.distance : c.distance) * plan.k[s];
    c.scale[s] = down <= -kDrop ? 0.0 : exp2_scale(down);
    if (sinks) continue;
    if (s == 0 && plan.entropy)
      c.entropy = c.scale[0] == 0 ? 0.0 : c.scale[0] * (c.entropy + c.weight[0] * (c.distance * plan.k[0]));
    c.weight[s] *= c.scale[s];
  }
  return c;
}

// total: the two sums of weights and that of weight * t.
SAMPLERS_HD void headless_add(const HeadlessPlan& plan, const HeadlessChunk& c, double* total) {
  if (c.distance > 0) {
    if (plan.entropy) total[2] = c.scale[0] == 0 ? 0.0 : c.scale[0] * (total[2] - total[0] * (c.distance * plan.k[0]));
    for (int s = 0; s < 2; ++s)
      if (s < plan.sets) total[s] *= c.scale[s];
  }
  for (int s = 0; s < 2; ++s)
    if (s < plan.sets) total[s] += c.weight[s];
  if (plan.entropy) total[2] += c.entropy;
}

// Whether a chunk takes the draw over: with probability (its weight) / (all weight so far). The first one always does,
// since u <= 1 - 2^-53 and so u * weight rounds to less than the weight.
SAMPLERS_HD bool headless_takes(double uniform, int64_t chunk, double weight, double total) {
  return weight > 0 && headless_draws(uniform, chunk).take * total < weight;
}

// What the state says when all chunks are in. 0: fine, 1: a NaN or +inf was met, 2: no token is possible.
SAMPLERS_HD int32_t headless_status(const double* real, const int64_t* whole) {
  return whole[kBad] ? 1 : real[kFirst] == -INFINITY ? 2 : 0;
}

SAMPLERS_HD double headless_probability(const HeadlessPlan& plan, const double* real, double logit) {
  const double p = exp2_scale((logit - real[kFirst]) * plan.k[0]) / real[kSum0];
  return p < 1.0 ? p : 1.0;  // the sums are rounded to fp32, so the quotient may come out just above 1
}

SAMPLERS_HD double headless_margin(const HeadlessPlan& plan, const double* real) {
  const double p = (1.0 - exp2_scale((real[kSecond] - real[kFirst]) * plan.k[0])) / real[kSum0];
  return p < 1.0 ? p : 1.0;
}

SAMPLERS_HD double headless_entropy(const double* real) {
  const double h = log(real[kSum0]) - kLn2 * real[kEntropySum] / real[kSum0];
  return h > 0.0 ? h : 0.0;
}

SAMPLERS_HD double headless_lse(const HeadlessPlan& plan, const double* real) {
  return real[kFirst] / plan.confidence_temperature + log(real[kSum0]);
}

}  // namespace samplers
