// Functions of single numbers and rows, in plain loops that compilers turn into the vectors of the file's instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace chatglm3 {

template <class Isa>
struct Elementwise {
  // e^x as 2^n * e^r with |r| <= ln(2) / 2; e^r by its Taylor series, off by 2e-7 at most. NaN stays NaN.
  static inline float exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the nearest integer is in the low bits
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    const float series =
        1 + r * (1 + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return series * power;
  }

  // Sums that go into kSums numbers first, because the order of a float sum is fixed otherwise.
  static constexpr size_t kSums = 32;
  template <class Function>
  static inline float sum(size_t count, Function of) {
    float sums[kSums] = {};
    size_t i = 0;
    for (; i + kSums <= count; i += kSums)
      for (size_t j = 0; j < kSums; ++j) sums[j] += of(i + j);
    float total = 0;
    for (; i < count; ++i) total += of(i);
    for (float one : sums) total += one;
    return total;
  }

  static void rms_norm(const float* x, const float* weight, float eps, size_t width, float* out) {
    const float squares = sum(width, [&](size_t i) { return x[i] * x[i]; });
    const float factor = 1 / std::sqrt(squares / static_cast<float>(width) + eps);
    for (size_t i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
  }

  static void swiglu(const float* x, size_t width, size_t begin, size_t end, float* out) {
    for (size_t i = begin; i < end; ++i) out[i] = x[i] / (1 + exp(-x[i])) * x[width + i];
  }

  static void softmax(float* x, size_t count, float scale) {
    float largest = x[0];
    for (size_t i = 1; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
    for (size_t i = 0; i < count; ++i) x[i] = exp((x[i] - largest) * scale);
    const float factor = 1 / sum(count, [&](size_t i) { return x[i]; });
    for (size_t i = 0; i < count; ++i) x[i] *= factor;
  }
};

}  // namespace chatglm3
