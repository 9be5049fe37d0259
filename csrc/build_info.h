// What a binary can say of its own making.
#pragma once

#ifndef SAMPLERS_BUILD_TORCH
#define SAMPLERS_BUILD_TORCH "unknown"
#endif

// The device architectures that the binary has code for, as nvcc names them; empty without CUDA.
#ifndef SAMPLERS_BUILD_CUDA_ARCHS
#define SAMPLERS_BUILD_CUDA_ARCHS ""
#endif
