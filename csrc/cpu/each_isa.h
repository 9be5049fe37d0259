// Compiles the plain loops of the file SAMPLERS_PASS once per instruction set, each time in a namespace and under a
// target of its own. Included inside samplers::cpu, once per translation unit; SAMPLERS_OF_ISA(name) is then `name` of
// the instruction set that all kernels use (masked_softmax.h).

namespace portable {
#include SAMPLERS_PASS
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include SAMPLERS_PASS
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include SAMPLERS_PASS
}
#pragma GCC pop_options

#define SAMPLERS_OF_ISA(name) \
  (&kernels() == &kAvx512 ? avx512::name : &kernels() == &kAvx2 ? avx2::name : portable::name)

#else

#define SAMPLERS_OF_ISA(name) portable::name

#endif
