// The CPU kernels of headless sampling, free of torch: fold a tile of logits into each row's state; read the state out.
#pragma once

#include <stdint.h>

#include "masked_softmax.h"

namespace samplers::cpu {

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

void headless_fold(const HeadlessFold& job);
void headless_finish(const HeadlessFinish& job);

}  // namespace samplers::cpu
