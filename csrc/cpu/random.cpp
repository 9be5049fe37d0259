// Uniform numbers and normals: blocks of Philox by the instruction set's pass, a tile of them at a time.
#include "random.h"

#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "masked_softmax.h"

namespace samplers::cpu {
namespace {

constexpr int kBlocks = 64;  // blocks per tile

// What the blocks of a tile are made of. Rows may be short, so each block has a row of its own.
struct alignas(64) Blocks {
  uint32_t position[kBlocks] = {}, step[kBlocks] = {}, high[kBlocks] = {}, key0[kBlocks] = {}, key1[kBlocks] = {};
  uint32_t draw;

  // Blocks [begin, begin + count) are those from `first` on of one row.
  void set(int begin, int count, uint64_t seed, uint64_t row, uint32_t step_, uint32_t first) {
    const uint32_t high_ = static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(row >> 32);
    for (int i = begin; i < begin + count; ++i) {
      position[i] = first + static_cast<uint32_t>(i - begin);
      step[i] = step_;
      high[i] = high_;
      key0[i] = static_cast<uint32_t>(seed);
      key1[i] = static_cast<uint32_t>(row);
    }
  }
};

// All blocks of a tile, whether or not they are wanted.
struct Passes {
  void (*uniforms)(const Blocks& x, double* out);
  void (*floats)(const Blocks& x, float* out);
  void (*doubles)(const Blocks& x, double* out);
};

#define SAMPLERS_PASS "random_pass.h"
#include "each_isa.h"

const Passes& passes() { return SAMPLERS_OF_ISA(kPasses); }

// Calls body(begin, end, blocks) for the tiles of n blocks, by several threads if that pays.
template <typename Body>
void over_tiles(int64_t n, const Body& body) {
  constexpr int64_t kSerial = 64;  // tiles; some 30 us
  const int64_t tiles = (n + kBlocks - 1) / kBlocks;
  const auto run = [&](int64_t begin, int64_t end) {
    Blocks blocks;
    for (int64_t tile = begin; tile < end; ++tile) body(tile * kBlocks, std::min(n, (tile + 1) * kBlocks), blocks);
  };
  if (tiles <= kSerial) return run(0, tiles);
  torch::stable::parallel_for(0, tiles, kSerial, run);
}

// Cuts blocks [begin, end) of rows of `length` where a row ends: part(place in the tile, row, first block, count).
template <typename Part>
void over_parts(int64_t begin, int64_t end, int64_t length, const Part& part) {
  int64_t b = begin / length, first = begin - b * length;
  for (int64_t i = begin; i < end; ++b, first = 0) {
    const int64_t count = std::min(length - first, end - i);
    part(static_cast<int>(i - begin), b, first, static_cast<int>(count));
    i += count;
  }
}

template <typename Job>
void set_blocks(const Job& job, int64_t begin, int64_t end, int64_t length, Blocks& blocks) {
  blocks.draw = job.draw;
  over_parts(begin, end, length, [&](int at, int64_t b, int64_t first, int count) {
    blocks.set(at, count, job.seed[b], job.row[b], static_cast<uint32_t>(job.step[b]), static_cast<uint32_t>(first));
  });
}

}  // namespace

void uniforms(const UniformJob& job) {
  over_tiles(job.n, [&](int64_t begin, int64_t end, Blocks& blocks) {
    if (!job.which) {
      set_blocks(job, begin, end, job.length, blocks);
    } else {
      blocks.draw = job.draw;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = job.which[i];
        blocks.set(static_cast<int>(i - begin), 1, job.seed[b], job.row[b], static_cast<uint32_t>(job.step[b]),
                   static_cast<uint32_t>(job.position[i]));
      }
    }
    alignas(64) double made[kBlocks];
    passes().uniforms(blocks, made);
    std::memcpy(job.out + begin, made, (end - begin) * sizeof *made);
  });
}

template <typename F>
void normals(const NormalJob<F>& job) {
  const int64_t per_row = job.blocks();
  over_tiles(job.rows * per_row, [&](int64_t begin, int64_t end, Blocks& blocks) {
    set_blocks(job, begin, end, per_row, blocks);
    alignas(64) F made[kBlocks * kPerBlock<F>];
    if constexpr (sizeof(F) == 4)
      passes().floats(blocks, made);
    else
      passes().doubles(blocks, made);
    over_parts(begin, end, per_row, [&](int at, int64_t b, int64_t first, int count) {
      const int64_t left = job.length - first * kPerBlock<F>;
      std::memcpy(job.out + b * job.length + first * kPerBlock<F>, made + at * kPerBlock<F>,
                  std::min<int64_t>(count * kPerBlock<F>, left) * sizeof(F));
    });
  });
}

template void normals(const NormalJob<float>&);
template void normals(const NormalJob<double>&);

}  // namespace samplers::cpu
