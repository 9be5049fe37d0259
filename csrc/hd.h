// One inner function, two compilers: what is marked SAMPLERS_HD is compiled for the host by any C++ compiler and for
// the device by nvcc, so that the maths of a CUDA kernel is tested on machines without a GPU.
#pragma once

#if defined(__CUDACC__)
#define SAMPLERS_HD __host__ __device__ inline
#else
#define SAMPLERS_HD inline
#endif
