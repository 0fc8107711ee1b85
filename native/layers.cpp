// What a layer needs beside its products, shared out to the threads where there is enough to do.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace chatglm3 {
namespace {

constexpr size_t kTaskNumbers = 4096;  // below, handing work to another thread costs more than it saves
constexpr size_t kTaskHeads = 4;

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

void rms_norm(const Kernels& kernels, unsigned threads, const float* x, const float* weight, float eps, size_t rows,
              size_t width, float* out) {
  const size_t step = std::max<size_t>(1, kTaskNumbers / width);
  parallel_for(threads, ceil_div(rows, step), [&](size_t task) {
    for (size_t row = task * step; row < std::min(rows, (task + 1) * step); ++row)
      kernels.rms_norm(x + row * width, weight, eps, width, out + row * width);
  });
}

void swiglu(const Kernels& kernels, unsigned threads, const float* x, size_t rows, size_t width, float* out) {
  const size_t parts = ceil_div(width, kTaskNumbers);
  parallel_for(threads, rows * parts, [&](size_t task) {
    const size_t row = task / parts, begin = task % parts * kTaskNumbers;
    kernels.swiglu(x + row * 2 * width, width, begin, std::min(width, begin + kTaskNumbers), out + row * width);
  });
}

void attend(const Kernels& kernels, unsigned threads, const Attention& first, size_t stride, const float* queries,
            size_t heads, size_t groups, float* out) {
  const size_t together = heads / groups, parts = ceil_div(together, kTaskHeads);
  const bool small = heads * first.count * first.width < kTaskNumbers * 16;
  parallel_for(small ? 1 : threads, groups * parts, [&](size_t task) {
    const size_t group = task / parts, head = task % parts * kTaskHeads;
    const size_t count = std::min(kTaskHeads, together - head);
    const size_t offset = group * stride * (first.type == Type::kFloat32 ? sizeof(float) : sizeof(uint16_t));
    Attention own = first;
    own.keys = static_cast<const char*>(first.keys) + offset;
    own.values = static_cast<const char*>(first.values) + offset;
    std::vector<float> scores(count * first.count);
    const size_t at = (group * together + head) * first.width;
    kernels.attend(own, queries + at, count, scores.data(), out + at);
  });
}

void add(unsigned threads, const float* a, const float* b, size_t count, float* out) {
  parallel_for(threads, ceil_div(count, kTaskNumbers), [&](size_t task) {
    const size_t end = std::min(count, (task + 1) * kTaskNumbers);
    for (size_t i = task * kTaskNumbers; i < end; ++i) out[i] = a[i] + b[i];
  });
}

void embed(const GroupedWeight& w, size_t inputs, const int64_t* rows, size_t count, float* out) {
  const int zero = w.bits == 4 ? 8 : 128;
  for (size_t n = 0; n < count; ++n, out += inputs) {
    const size_t tile = rows[n] / kTile, row = rows[n] % kTile;
    const uint8_t* codes = w.codes + tile * w.tile_bytes() + 4 * row;
    for (size_t i = 0; i < inputs; ++i) {
      const size_t group = i / w.group_size, within = i % kBlock;  // chunks hold 4 inputs; at 4 bits the other half's too
      const size_t chunk = w.bits == 4 ? i / kBlock * 4 + within % 16 / 4 : i / 4;
      const uint8_t code = codes[chunk * kChunk + i % 4];
      const int value = w.bits == 8 ? code : within < 16 ? code & 15 : code >> 4;
      const float scale = w.row_scale[rows[n]] * w.scales[(tile * w.groups + group) * kTile + row];
      out[i] = static_cast<float>(value - zero) * scale;
    }
  }
}

void rope(const float* x, size_t tokens, size_t token_stride, size_t heads, size_t width, const float* table,
          size_t pairs, float* out) {
  for (size_t token = 0; token < tokens; ++token, x += token_stride, table += 2 * pairs) {
    for (size_t head = 0; head < heads; ++head, out += width) {
      const float* from = x + head * width;
      for (size_t i = 0; i < 2 * pairs; i += 2) {
        const float cosine = table[i], sine = table[i + 1];
        out[i] = from[i] * cosine - from[i + 1] * sine;
        out[i + 1] = from[i + 1] * cosine + from[i] * sine;
      }
      std::memcpy(out + 2 * pairs, from + 2 * pairs, (width - 2 * pairs) * sizeof(float));
    }
  }
}

}  // namespace chatglm3
