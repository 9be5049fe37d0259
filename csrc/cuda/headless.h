// The CUDA side of headless sampling; see headless.cuh. Pointers in the jobs are of the device.
#pragma once

#include "../cpu/headless.h"

namespace samplers::cuda {

// `forbid` may hold any ids, in any order: those outside the tile are passed over.
int headless_fold(const cpu::HeadlessFold& job, void* stream);
int headless_finish(const cpu::HeadlessFinish& job, void* stream);

}  // namespace samplers::cuda
