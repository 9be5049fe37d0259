// The CPU kernels of row_uniforms and row_normals, free of torch.
#pragma once

#include "../normal.h"
#include "../uniform.h"

namespace samplers::cpu {

void uniforms(const UniformJob& job);

template <typename F>
void normals(const NormalJob<F>& job);
extern template void normals(const NormalJob<float>&);
extern template void normals(const NormalJob<double>&);

}  // namespace samplers::cpu
