// AVX2, FMA and F16C: sixteen lanes are two registers.
#include <immintrin.h>

#include "tile.h"

namespace chatglm3 {
namespace {

struct Avx2 {
  struct Int {
    __m256i low, high;
  };
  struct Float {
    __m256 low, high;
  };
  static constexpr size_t kVectors = 4;
  using Wide = __m256;
  static constexpr size_t kLanes = 8, kDenseRows = 3;

  static Int set(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static Float set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Float zero_float() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Int add(Int a, Int b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static Float mul(Float a, Float b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static Float fma(Float a, Float b, Float c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Float to_float(Int a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static Float load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static Float load_scales(const int8_t* from) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return to_float(Int{_mm256_cvtepi8_epi32(codes), _mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))});
  }
  static void store(float* to, Float a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }

  static Wide zero_wide() { return _mm256_setzero_ps(); }
  static Wide set_wide(float value) { return _mm256_set1_ps(value); }
  static void store_wide(float* to, const Wide& a) { _mm256_storeu_ps(to, a); }
  static Wide load_wide(const float* from) { return _mm256_loadu_ps(from); }
  static Wide add(Wide a, Wide b) { return _mm256_add_ps(a, b); }
  static Wide fma(Wide a, Wide b, Wide c) { return _mm256_fmadd_ps(a, b, c); }
  static float reduce(Wide a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  template <Type kType>
  static Wide load_half(const uint16_t* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (kType == Type::kFloat16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  template <Type kType>
  static float to_float(uint16_t half) {
    if (kType == Type::kFloat16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(half << 16)));
  }

  static __m256i load_bytes(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static __m256i broadcast4(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
  }
  static __m256i pairs(__m256i a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

  template <int kBits>
  struct Codes;
  template <int kBits>
  struct Dot;
};

// A 4-bit code times an int8, two such products added: at most 3,810, so a block's eight fit into 16 bits.
template <>
struct Avx2::Codes<4> {
  explicit Codes(const uint8_t* from) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i first = load_bytes(from), second = load_bytes(from + 32);
    near = {_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
    far = {_mm256_and_si256(_mm256_srli_epi16(first, 4), mask), _mm256_and_si256(_mm256_srli_epi16(second, 4), mask)};
  }
  Int near, far;
};
template <>
struct Avx2::Dot<4> {
  static constexpr int kZero = 8;
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  void add(const Codes<4>& codes, const int8_t* a) {
    add(codes.near, broadcast4(a));
    add(codes.far, broadcast4(a + 16));
  }
  // Compilers reorder the additions into a tree that needs more registers than there are; the empty asm keeps them apart.
  void add(const Int& codes, __m256i four) {
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(codes.low, four));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(codes.high, four));
    asm("" : "+x"(low), "+x"(high));
  }
  Int sum() const { return {pairs(low), pairs(high)}; }
};

// maddubs would overflow with codes up to 255: take w = code - 128, and multiply |w| by a with the sign of w.
template <>
struct Avx2::Codes<8> {
  explicit Codes(const uint8_t* from) {
    const __m256i zero = _mm256_set1_epi8(-128);
    value = {_mm256_xor_si256(load_bytes(from), zero), _mm256_xor_si256(load_bytes(from + 32), zero)};
    absolute = {_mm256_abs_epi8(value.low), _mm256_abs_epi8(value.high)};
  }
  Int value, absolute;
};
template <>
struct Avx2::Dot<8> {
  static constexpr int kZero = 0;
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  void add(const Codes<8>& codes, const int8_t* a) {
    const __m256i four = broadcast4(a);
    low = _mm256_add_epi32(low, pairs(_mm256_maddubs_epi16(codes.absolute.low, _mm256_sign_epi8(four, codes.value.low))));
    high =
        _mm256_add_epi32(high, pairs(_mm256_maddubs_epi16(codes.absolute.high, _mm256_sign_epi8(four, codes.value.high))));
  }
  Int sum() const { return {low, high}; }
};

}  // namespace

extern const Kernels kAvx2 = Tile<Avx2>::table("avx2");

}  // namespace chatglm3
