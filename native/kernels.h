// The kernels of one instruction set, behind one table. docs/kernels.md describes the layout of quantised weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace chatglm3 {

constexpr size_t kTile = 16;        // rows of a weight that are stored together
constexpr size_t kBlock = 32;       // inputs that are stored together; a group is one or more blocks
constexpr size_t kChunk = 64;       // bytes: four inputs of sixteen rows (eight at 4 bits)

struct GroupedWeight {  // [tiles * 16, groups * group_size], scale of (row, group) = row_scale * scales
  const uint8_t* codes;
  const int8_t* scales;
  const float* row_scale;
  size_t groups, group_size;
  int bits;

  size_t tile_bytes() const { return groups * group_size * kTile * bits / 8; }
};

struct Activations {  // int8, one scale a group
  const int8_t* codes;     // [vectors, groups * group_size]
  const float* scales;     // [vectors, groups]
  const int32_t* offsets;  // [vectors, groups]: minus the zero point of the weight's codes times the sum of these
};

struct Output {  // float [vectors, stride]; the bias may be null
  float* values;
  size_t stride, features;
  const float* bias;
};

enum class Type { kFloat32, kFloat16, kBFloat16 };

struct DenseWeight {  // [rows, inputs], row by row
  const void* values;
  size_t inputs;
  Type type;
};

struct Attention {  // one token's queries over `count` tokens; rows of keys and values follow each other
  const void* keys;
  const void* values;
  size_t count, width;
  Type type;    // of keys and values
  float scale;  // on the products of queries and keys
};

struct Kernels {
  const char* name;
  // How many vectors `grouped` takes at once without running out of registers.
  size_t vectors;
  // One vector of `inputs` floats to codes, scales and offsets for weights of `bits`; what lies beyond the inputs is 0.
  void (*quantize)(const float* x, size_t inputs, size_t groups, size_t group_size, int bits, int8_t* codes,
                   float* scales, int32_t* offsets);
  // Sixteen outputs, those of tile `tile`, for the `count` vectors from `first` on.
  void (*grouped)(const GroupedWeight& w, size_t tile, const Activations& x, size_t first, size_t count,
                  const Output& out);
  // out[v, r] += x[v, begin:end] . w[r, begin:end] for `count` vectors (at most 4) and rows [row, row_end).
  void (*dense)(const DenseWeight& w, size_t row, size_t row_end, size_t begin, size_t end, const float* x,
                size_t count, const Output& out);
  // The root-mean-square norm of one vector, and SiLU(x[:width]) * x[width:].
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t width, float* out);
  void (*swiglu)(const float* x, size_t width, size_t begin, size_t end, float* out);
  // `heads` queries (at most 4) [heads, width] to outputs of that shape; `scores` has room for [heads, count].
  void (*attend)(const Attention& attention, const float* queries, size_t heads, float* scores, float* out);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The tables that this CPU can run, the fastest first; ends with a null pointer.
const Kernels* const* supported_kernels();

// The products on a table, over all vectors, with threads.
void grouped_linear(const Kernels& kernels, unsigned threads, const GroupedWeight& w, const float* x, size_t vectors,
                    size_t inputs, const Output& out);
void dense_linear(const Kernels& kernels, unsigned threads, const DenseWeight& w, const float* x, size_t vectors,
                  const Output& out);
// Rows [rows, width] normalised; rows [rows, 2 * width] through SwiGLU; one token's heads over a cache whose key/value
// heads are `stride` numbers apart.
void rms_norm(const Kernels& kernels, unsigned threads, const float* x, const float* weight, float eps, size_t rows,
              size_t width, float* out);
void swiglu(const Kernels& kernels, unsigned threads, const float* x, size_t rows, size_t width, float* out);
void attend(const Kernels& kernels, unsigned threads, const Attention& first, size_t stride, const float* queries,
            size_t heads, size_t groups, float* out);
void add(unsigned threads, const float* a, const float* b, size_t count, float* out);
// Rows of a quantised weight, multiplied out: [count, inputs].
void embed(const GroupedWeight& w, size_t inputs, const int64_t* rows, size_t count, float* out);
// Adjacent pairs of the first 2 * pairs numbers of each head turned by a row [pairs, 2] of cosines and sines.
void rope(const float* x, size_t tokens, size_t token_stride, size_t heads, size_t width, const float* table,
          size_t pairs, float* out);

}  // namespace chatglm3
