// The CPU kernels of headless sampling, free of torch: fold a tile of logits into each row's state; read the state out.
#pragma once

#include "../headless.h"

namespace samplers::cpu {

void headless_fold(const HeadlessFold& job);
void headless_finish(const HeadlessFinish& job);

}  // namespace samplers::cpu
