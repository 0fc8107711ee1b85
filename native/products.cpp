// The products over all vectors: activations are quantised first, then blocks of rows are shared out to the threads.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace chatglm3 {
namespace {

constexpr size_t kBlockBytes = 256 << 10;   // of weights for many vectors: fits a level-2 cache beside the activations
constexpr size_t kStreamBytes = 1024 << 10;  // for few: each start of a stream waits for memory
constexpr size_t kFewVectors = 4;
constexpr size_t kDenseVectors = 4;
constexpr size_t kDenseInputs = 2048;  // 4 vectors of so many floats fit a level-1 cache

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Rows (or tiles) a task, for `count` of them of `bytes` each: not too few bytes, but enough tasks for every thread.
size_t share(size_t count, size_t bytes, size_t vectors, unsigned threads) {
  const size_t fair = ceil_div(count, 4 * threads), wanted = vectors > kFewVectors ? kBlockBytes : kStreamBytes;
  return std::max<size_t>(1, std::min(wanted / std::max<size_t>(bytes, 1), fair));
}

}  // namespace

void grouped_linear(const Kernels& kernels, unsigned threads, const GroupedWeight& w, const float* x, size_t vectors,
                    size_t inputs, const Output& out) {
  const size_t padded = w.groups * w.group_size;
  std::vector<int8_t> codes(vectors * padded);
  std::vector<float> scales(vectors * w.groups);
  std::vector<int32_t> offsets(vectors * w.groups);
  parallel_for(threads, vectors, [&](size_t v) {
    kernels.quantize(x + v * inputs, inputs, w.groups, w.group_size, w.bits, codes.data() + v * padded,
                     scales.data() + v * w.groups, offsets.data() + v * w.groups);
  });
  const Activations activations{codes.data(), scales.data(), offsets.data()};
  const size_t tiles = ceil_div(out.features, kTile);
  const size_t step = share(tiles, w.tile_bytes(), vectors, threads);
  parallel_for(threads, ceil_div(tiles, step), [&](size_t task) {
    const size_t end = std::min(tiles, (task + 1) * step);
    for (size_t first = 0; first < vectors; first += kernels.vectors) {
      const size_t count = std::min(kernels.vectors, vectors - first);
      for (size_t tile = task * step; tile < end; ++tile) kernels.grouped(w, tile, activations, first, count, out);
    }
  });
}

void dense_linear(const Kernels& kernels, unsigned threads, const DenseWeight& w, const float* x, size_t vectors,
                  const Output& out) {
  const size_t element = w.type == Type::kFloat32 ? sizeof(float) : sizeof(uint16_t);
  const size_t step = share(out.features, std::min(w.inputs, kDenseInputs) * element, vectors, threads);
  const size_t depth = vectors > kDenseVectors ? kDenseInputs : w.inputs;
  parallel_for(threads, ceil_div(out.features, step), [&](size_t task) {
    const size_t row = task * step, row_end = std::min(out.features, row + step);
    for (size_t v = 0; v < vectors; ++v) {
      float* values = out.values + v * out.stride;
      for (size_t r = row; r < row_end; ++r) values[r] = out.bias ? out.bias[r] : 0;
    }
    for (size_t begin = 0; begin < w.inputs; begin += depth) {
      const size_t end = std::min(w.inputs, begin + depth);
      for (size_t v = 0; v < vectors; v += kDenseVectors) {
        const Output part{out.values + v * out.stride, out.stride, out.features, nullptr};
        kernels.dense(w, row, row_end, begin, end, x + v * w.inputs, std::min(kDenseVectors, vectors - v), part);
      }
    }
  });
}

}  // namespace chatglm3
