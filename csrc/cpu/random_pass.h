// The loops over blocks of Philox, plain enough for a compiler to vectorise: included once per instruction set by
// random.cpp, each time in a namespace and under a target of its own.

static void uniform_pass(const Blocks& x, double* out) {
  for (int i = 0; i < kBlocks; ++i) {
    const Philox4 r = philox4x32(x.position[i], x.step[i], x.draw, x.high[i], x.key0[i], x.key1[i]);
    out[i] = unit_interval(r.r0, r.r1);
  }
}

template <typename F>
static void normal_pass(const Blocks& x, F* out) {
  for (int i = 0; i < kBlocks; ++i)
    normals_of(philox4x32(x.position[i], x.step[i], x.draw, x.high[i], x.key0[i], x.key1[i]), out + i * kPerBlock<F>);
}

static constexpr Passes kPasses = {uniform_pass, normal_pass<float>, normal_pass<double>};
