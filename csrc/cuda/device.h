// Facts about a device, for launchers; no CUDA header, so that any compiler reads it.
#pragma once

namespace samplers::cuda {

// Its multiprocessors, asked once a device; 1 if that fails (the launch that follows then says why).
int multiprocessors(int device);
// The runtime's words for an error code.
const char* error_name(int code);

}  // namespace samplers::cuda
