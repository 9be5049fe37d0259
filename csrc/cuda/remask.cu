#include "remask.cuh"

namespace samplers::cuda {

int choose(const Choice<float>& job, void* stream) { return remask::choose(job, stream); }
int choose(const Choice<double>& job, void* stream) { return remask::choose(job, stream); }
int accept(const Acceptance<float>& job, void* stream) { return remask::accept(job, stream); }
int accept(const Acceptance<double>& job, void* stream) { return remask::accept(job, stream); }

}  // namespace samplers::cuda
