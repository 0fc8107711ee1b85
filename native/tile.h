// The kernels written once over an instruction set `Isa`, whose vectors hold the sixteen rows of a tile in 32-bit lanes.
//
// Isa has: Int and Float, sixteen lanes, with zero(), add, to_float, fma, mul, set and store; Codes<bits>, which loads a
// chunk of weights; Dot<bits>, which adds the products of a chunk with four activations to a sum that Isa may keep
// narrow for one block, and says which zero point of the codes is left in it (kZero). For dense weights it has Wide,
// kLanes floats, with load_wide, load_half, zero_wide, set_wide, store_wide, fma, add and reduce. Everything here is a
// template on Isa, so that no two instruction sets share an instantiation.
#pragma once

#include <cstring>
#include <type_traits>

#include "elementwise.h"
#include "kernels.h"

namespace chatglm3 {

// The hardware's own prefetching stops at each page and looks ahead too little: ask for what comes 4 KB later to be in
// the level-2 cache, which can wait for many lines at a time, and for what comes next to be in level 1.
static inline void prefetch(const void* from) {
  __builtin_prefetch(static_cast<const char*>(from) + 4096, 0, 2);
  __builtin_prefetch(static_cast<const char*>(from) + 256, 0, 3);
}

template <class Isa>
struct Tile {
  using Int = typename Isa::Int;
  using Float = typename Isa::Float;

  template <int kBits, int kCount>
  static void product(const GroupedWeight& w, size_t tile, const Activations& x, size_t first, const Output& out) {
    const size_t inputs = w.groups * w.group_size;
    const uint8_t* codes = w.codes + tile * w.tile_bytes();
    const int8_t* scales = w.scales + tile * w.groups * kTile;
    const int8_t* activations = x.codes + first * inputs;
    Float total[kCount];
    for (int v = 0; v < kCount; ++v) total[v] = Isa::zero_float();
    for (size_t group = 0; group < w.groups; ++group, scales += kTile) {
      Int sum[kCount];
      for (int v = 0; v < kCount; ++v) sum[v] = Isa::set(x.offsets[(first + v) * w.groups + group]);
      for (size_t block = 0; block < w.group_size; block += kBlock, activations += kBlock) {
        add_block<kBits, kCount>(codes, activations, inputs, sum);
        codes += kBlock * kTile * kBits / 8;
      }
      const Float scale = Isa::load_scales(scales);
      for (int v = 0; v < kCount; ++v) {
        const float of_vector = x.scales[(first + v) * w.groups + group];
        total[v] = Isa::fma(Isa::to_float(sum[v]), Isa::mul(scale, Isa::set(of_vector)), total[v]);
      }
    }
    write<kCount>(w, tile, total, first, out);
  }

  template <int kBits, int kCount>
  static inline void add_block(const uint8_t* codes, const int8_t* activations, size_t inputs, Int* sum) {
    typename Isa::template Dot<kBits> dot[kCount];
    constexpr int kChunks = kBits == 4 ? 4 : 8;
    for (int chunk = 0; chunk < kChunks; ++chunk, codes += kChunk) {
      prefetch(codes);
      const typename Isa::template Codes<kBits> loaded(codes);
      for (int v = 0; v < kCount; ++v) dot[v].add(loaded, activations + v * inputs + 4 * chunk);
    }
    for (int v = 0; v < kCount; ++v) sum[v] = Isa::add(sum[v], dot[v].sum());
  }

  template <int kCount>
  static void write(const GroupedWeight& w, size_t tile, const Float* total, size_t first, const Output& out) {
    const size_t row = tile * kTile;
    const size_t rows = out.features - row < kTile ? out.features - row : kTile;
    const Float row_scale = Isa::load(w.row_scale + row);
    for (int v = 0; v < kCount; ++v) {
      float values[kTile];
      Isa::store(values, Isa::mul(total[v], row_scale));
      if (out.bias) {
        for (size_t r = 0; r < rows; ++r) values[r] += out.bias[row + r];
      }
      std::memcpy(out.values + (first + v) * out.stride + row, values, rows * sizeof(float));
    }
  }

  template <int kBits, int kCount>
  static void dispatch(const GroupedWeight& w, size_t tile, const Activations& x, size_t first, size_t count,
                       const Output& out) {
    if (count == kCount) return product<kBits, kCount>(w, tile, x, first, out);
    if constexpr (kCount > 1) dispatch<kBits, kCount - 1>(w, tile, x, first, count, out);
  }

  static void grouped(const GroupedWeight& w, size_t tile, const Activations& x, size_t first, size_t count,
                      const Output& out) {
    if (w.bits == 4) {
      dispatch<4, Isa::kVectors>(w, tile, x, first, count, out);
    } else {
      dispatch<8, Isa::kVectors>(w, tile, x, first, count, out);
    }
  }

  // A group with a value that is not finite gets the scale NaN, so that every output it reaches is NaN as well.
  static void quantize(const float* x, size_t inputs, size_t groups, size_t group_size, int bits, int8_t* codes,
                       float* scales, int32_t* offsets) {
    const int zero = bits == 4 ? Isa::template Dot<4>::kZero : Isa::template Dot<8>::kZero;
    for (size_t group = 0; group < groups; ++group, codes += group_size) {
      const size_t begin = group * group_size;
      const size_t count = begin >= inputs ? 0 : inputs - begin < group_size ? inputs - begin : group_size;
      scales[group] = quantize_group(x + begin, count, codes);
      std::memset(codes + count, 0, group_size - count);
      int32_t sum = 0;
      for (size_t i = 0; i < group_size; ++i) sum += codes[i];
      offsets[group] = -zero * sum;
    }
  }

  static float quantize_group(const float* x, size_t count, int8_t* codes) {
    int32_t largest_bits = 0;  // of the absolute values; floats of one sign compare as their bits do
    for (size_t i = 0; i < count; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      bits &= 0x7fffffff;
      largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    constexpr int32_t kInfinity = 0x7f800000;
    const bool usable = largest_bits < kInfinity && largest > 1e-30f;
    const float to_code = usable ? 127.0f / largest : 0.0f;
    for (size_t i = 0; i < count; ++i) codes[i] = usable ? round_to_code(x[i] * to_code) : 0;
    return largest_bits < kInfinity ? largest * (1.0f / 127) : largest - largest;
  }

  // Adding 1.5 * 2^23 leaves the integer nearest to `value` in the low bits of the float.
  static inline int8_t round_to_code(float value) {
    const float shifted = value + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<int8_t>(bits - 0x4b400000);
  }

  template <Type kType, class Element>
  static inline auto load(const Element* from) {
    if constexpr (kType == Type::kFloat32) {
      return Isa::load_wide(from);
    } else {
      return Isa::template load_half<kType>(from);
    }
  }
  template <Type kType, class Element>
  static inline float to_float(Element value) {
    if constexpr (kType == Type::kFloat32) {
      return value;
    } else {
      return Isa::template to_float<kType>(value);
    }
  }

  // Adds the dot products of kRows rows with kCount vectors over [begin, end). kUnroll independent sums hide the latency
  // of the additions where there are few.
  template <Type kType, int kRows, int kCount, int kUnroll>
  static void dense_rows(const DenseWeight& w, size_t row, size_t begin, size_t end, const float* x, const Output& out) {
    using Wide = typename Isa::Wide;
    Wide sum[kRows][kCount][kUnroll];
    for (auto& of_row : sum)
      for (auto& of_vector : of_row)
        for (Wide& one : of_vector) one = Isa::zero_wide();
    using Element = std::conditional_t<kType == Type::kFloat32, float, uint16_t>;
    const Element* weights = static_cast<const Element*>(w.values) + row * w.inputs;
    constexpr size_t kStep = kUnroll * Isa::kLanes;
    size_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      for (int r = 0; r < kRows; ++r) {
        for (int u = 0; u < kUnroll; ++u) {
          const size_t at = i + u * Isa::kLanes;
          const Element* from = weights + r * w.inputs + at;
          if (kCount == 1) prefetch(from);
          const Wide weight = load<kType>(from);
          for (int v = 0; v < kCount; ++v)
            sum[r][v][u] = Isa::fma(weight, Isa::load_wide(x + v * w.inputs + at), sum[r][v][u]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kCount; ++v) {
        for (int u = 1; u < kUnroll; ++u) sum[r][v][0] = Isa::add(sum[r][v][0], sum[r][v][u]);
        float total = Isa::reduce(sum[r][v][0]);
        for (size_t j = i; j < end; ++j)
          total += to_float<kType>(weights[r * w.inputs + j]) * x[v * w.inputs + j];
        out.values[v * out.stride + row + r] += total;
      }
    }
  }

  template <Type kType, int kCount>
  static void dense_count(const DenseWeight& w, size_t row, size_t row_end, size_t begin, size_t end, const float* x,
                         size_t count, const Output& out) {
    if (count != kCount) {
      if constexpr (kCount > 1) dense_count<kType, kCount - 1>(w, row, row_end, begin, end, x, count, out);
      return;
    }
    constexpr size_t kRows = Isa::kDenseRows;
    for (; row + kRows <= row_end; row += kRows)
      dense_rows<kType, kRows, kCount, kCount == 1 ? 2 : 1>(w, row, begin, end, x, out);
    for (; row < row_end; ++row) dense_rows<kType, 1, kCount, 1>(w, row, begin, end, x, out);
  }

  static void dense(const DenseWeight& w, size_t row, size_t row_end, size_t begin, size_t end, const float* x,
                    size_t count, const Output& out) {
    switch (w.type) {
      case Type::kFloat32: return dense_count<Type::kFloat32, 4>(w, row, row_end, begin, end, x, count, out);
      case Type::kFloat16: return dense_count<Type::kFloat16, 4>(w, row, row_end, begin, end, x, count, out);
      case Type::kBFloat16: return dense_count<Type::kBFloat16, 4>(w, row, row_end, begin, end, x, count, out);
    }
  }

  // Softmax attention in three passes: products with the keys, their exponentials, and the mean of the values.
  static void attend(const Attention& attention, const float* queries, size_t heads, float* scores, float* out) {
    const size_t count = attention.count;
    const DenseWeight keys{attention.keys, attention.width, attention.type};
    std::memset(scores, 0, heads * count * sizeof(float));
    dense(keys, 0, count, 0, attention.width, queries, heads, Output{scores, count, count, nullptr});
    for (size_t h = 0; h < heads; ++h) Elementwise<Isa>::softmax(scores + h * count, count, attention.scale);
    switch (attention.type) {
      case Type::kFloat32: return mix<Type::kFloat32, 4>(attention, scores, heads, out);
      case Type::kFloat16: return mix<Type::kFloat16, 4>(attention, scores, heads, out);
      case Type::kBFloat16: return mix<Type::kBFloat16, 4>(attention, scores, heads, out);
    }
  }

  // out[h] = sum over t of weights[h, t] * values[t]
  template <Type kType, int kHeads>
  static void mix(const Attention& attention, const float* weights, size_t heads, float* out) {
    if (heads != kHeads) {
      if constexpr (kHeads > 1) mix<kType, kHeads - 1>(attention, weights, heads, out);
      return;
    }
    using Element = std::conditional_t<kType == Type::kFloat32, float, uint16_t>;
    const Element* values = static_cast<const Element*>(attention.values);
    const size_t count = attention.count, width = attention.width;
    size_t i = 0;
    for (; i + 2 * Isa::kLanes <= width; i += 2 * Isa::kLanes) {
      typename Isa::Wide sum[kHeads][2];
      for (auto& of_head : sum) of_head[0] = of_head[1] = Isa::zero_wide();
      for (size_t t = 0; t < count; ++t) {
        const Element* value = values + t * width + i;
        const auto first = load<kType>(value), second = load<kType>(value + Isa::kLanes);
        for (int h = 0; h < kHeads; ++h) {
          const auto weight = Isa::set_wide(weights[h * count + t]);
          sum[h][0] = Isa::fma(weight, first, sum[h][0]);
          sum[h][1] = Isa::fma(weight, second, sum[h][1]);
        }
      }
      for (int h = 0; h < kHeads; ++h) {
        Isa::store_wide(out + h * width + i, sum[h][0]);
        Isa::store_wide(out + h * width + i + Isa::kLanes, sum[h][1]);
      }
    }
    for (; i < width; ++i) {
      for (int h = 0; h < kHeads; ++h) {
        float sum = 0;
        for (size_t t = 0; t < count; ++t) sum += weights[h * count + t] * to_float<kType>(values[t * width + i]);
        out[h * width + i] = sum;
      }
    }
  }

  static constexpr Kernels table(const char* name) {
    using Rows = Elementwise<Isa>;
    return {name, Isa::kVectors, quantize, grouped, dense, Rows::rms_norm, Rows::swiglu, attend};
  }
};

}  // namespace chatglm3
