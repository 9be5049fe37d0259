// The CUDA side of masked_softmax; see masked_softmax.cuh.
#pragma once

#include <stdint.h>

#include "../masked_softmax.h"

namespace samplers::cuda {

// A row has at most so many columns: its table of chunks is kept in shared memory.
constexpr int64_t kMostColumns = 262144;

// What the kernels need to know beyond the job, whose pointers are of the device here. Its indices have not been
// checked: a row whose index or id is out of range gets status 3.
struct SoftmaxCall {
  SoftmaxJob job;
  int64_t rows, guidance_rows;  // that there are, for the indices
  int multiprocessors;
  void* workspace;  // of workspace_bytes, aligned to 16
};

int64_t softmax_workspace_bytes(const SoftmaxJob& job, int multiprocessors);
int masked_softmax(const SoftmaxCall& call, void* stream);

}  // namespace samplers::cuda
