// AVX-512 with VNNI: sixteen lanes are one register, and four products are added in one instruction.
#include <immintrin.h>

#include "tile.h"

namespace chatglm3 {
namespace {

struct Avx512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr size_t kVectors = 8;
  using Wide = __m512;
  static constexpr size_t kLanes = 16, kDenseRows = 6;

  static Int set(int32_t value) { return _mm512_set1_epi32(value); }
  static Float set(float value) { return _mm512_set1_ps(value); }
  static Float zero_float() { return _mm512_setzero_ps(); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static Float load_scales(const int8_t* from) {
    return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static void store(float* to, Float a) { _mm512_storeu_ps(to, a); }

  static Wide zero_wide() { return _mm512_setzero_ps(); }
  static Wide set_wide(float value) { return _mm512_set1_ps(value); }
  static void store_wide(float* to, const Wide& a) { _mm512_storeu_ps(to, a); }
  static Wide load_wide(const float* from) { return _mm512_loadu_ps(from); }
  static float reduce(Wide a) { return _mm512_reduce_add_ps(a); }
  template <Type kType>
  static Wide load_half(const uint16_t* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if (kType == Type::kFloat16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  template <Type kType>
  static float to_float(uint16_t half) {
    if (kType == Type::kFloat16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(half << 16)));
  }

  static Int broadcast4(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
  }

  template <int kBits>
  struct Codes;
  template <int kBits>
  struct Dot;
};

template <>
struct Avx512::Codes<4> {
  explicit Codes(const uint8_t* from) {
    const __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(from);
    near = _mm512_and_si512(both, mask);
    far = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  Int near, far;
};
template <>
struct Avx512::Dot<4> {
  static constexpr int kZero = 8;
  Int total = _mm512_setzero_si512();
  void add(const Codes<4>& codes, const int8_t* a) {
    total = _mm512_dpbusd_epi32(total, codes.near, broadcast4(a));
    total = _mm512_dpbusd_epi32(total, codes.far, broadcast4(a + 16));
  }
  Int sum() const { return total; }
};

template <>
struct Avx512::Codes<8> {
  explicit Codes(const uint8_t* from) : value(_mm512_loadu_si512(from)) {}
  Int value;
};
template <>
struct Avx512::Dot<8> {
  static constexpr int kZero = 128;
  Int total = _mm512_setzero_si512();
  void add(const Codes<8>& codes, const int8_t* a) { total = _mm512_dpbusd_epi32(total, codes.value, broadcast4(a)); }
  Int sum() const { return total; }
};

}  // namespace

extern const Kernels kAvx512 = Tile<Avx512>::table("avx512");

}  // namespace chatglm3
