// A call of masked_softmax as plain data, for the kernels of every device: numbers and addresses, no torch.
#pragma once

#include <stdint.h>

#include "softmax_math.h"

namespace samplers {

enum class Type : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

// What the caller asked for, as bits; the Python side builds the same mask.
enum Want : int64_t { kConfidence = 1, kMargin = 2, kEntropy = 4, kLse = 8, kGiven = 16 };

struct Rows {
  const char* data;
  int64_t stride;        // in bytes
  const int64_t* index;  // row n reads row index[n]; null: n
  const char* row(int64_t n) const { return data + (index ? index[n] : n) * stride; }
};

struct SoftmaxJob {
  Type type;
  int64_t n, vocab;
  Rows logits;
  const double* uniform;
  double temperature, confidence_temperature;
  const int64_t* forbid;  // ascending, without repetition, all in [0, vocab)
  int64_t n_forbid;
  Rows guidance;  // data null: none
  float cfg_scale;
  int64_t top_k;   // 0: all
  double top_p;    // 1: all
  bool truncated;  // whether the statistics, like the draw, are of what top_k and top_p leave
  const int64_t* given;
  int64_t want;
  int64_t* token;
  float *confidence, *margin, *entropy, *lse, *given_out;
  int32_t* status;
};

// The sets of weights 2^(x k) that a row's entries are summed by: the statistics' set first, the draw's last.
struct WeightSets {
  int sets;        // how many there are; equal temperatures share one if they weigh the same entries
  int sample_set;  // which of them the draw reads
  bool truncates;  // top_k or top_p restrict the last set, if not all of them
  bool split;      // they restrict the last of two sets only: statistics are of every entry that may be drawn at all
  float k[2], kmax;
  double k64[2];  // log2(e) / temperature

  explicit WeightSets(const SoftmaxJob& job) {
    const bool draw = job.temperature > 0, statistics = job.want != 0;
    // The best entry is never removed. So at temperature 0 only statistics can tell that others were.
    truncates = (job.top_k > 0 || job.top_p < 1) && (draw || (job.truncated && statistics));
    split = truncates && statistics && !job.truncated;
    const bool shared = draw && statistics && !split && job.temperature == job.confidence_temperature;
    sets = (draw ? 1 : 0) + (statistics ? 1 : 0) - (shared ? 1 : 0);
    sample_set = sets == 2 ? 1 : 0;
    k64[0] = kLog2e / (statistics ? job.confidence_temperature : draw ? job.temperature : 1.0);
    k64[1] = sets == 2 ? kLog2e / job.temperature : k64[0];
    for (int s = 0; s < 2; ++s) k[s] = static_cast<float>(k64[s]);
    kmax = k[0] > k[1] ? k[0] : k[1];
  }
};

}  // namespace samplers
