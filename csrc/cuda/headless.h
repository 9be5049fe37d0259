// The CUDA side of headless sampling; see headless.cuh. Pointers in the jobs are of the device.
#pragma once

#include "../headless.h"

namespace samplers::cuda {

// `forbid` may hold any ids, in any order: those outside the tile are passed over.
int headless_fold(const HeadlessFold& job, void* stream);
int headless_finish(const HeadlessFinish& job, void* stream);

}  // namespace samplers::cuda
