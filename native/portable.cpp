// Plain C++ in loops of sixteen, which compilers turn into the vectors that every CPU of the target has (NEON, SSE2).
#include "tile.h"

namespace chatglm3 {
namespace {

struct Portable {
  struct Int {
    int32_t lane[kTile];
  };
  struct Float {
    float lane[kTile];
  };
  static constexpr size_t kVectors = 4;
  using Wide = Float;
  static constexpr size_t kLanes = kTile, kDenseRows = 1;

  template <class To, class Function>
  static inline To each(Function function) {
    To result;
    for (size_t i = 0; i < kTile; ++i) result.lane[i] = function(i);
    return result;
  }
  static Int set(int32_t value) {
    return each<Int>([=](size_t) { return value; });
  }
  static Float set(float value) {
    return each<Float>([=](size_t) { return value; });
  }
  static Float zero_float() { return set(0.0f); }
  static Int add(const Int& a, const Int& b) {
    return each<Int>([&](size_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Float add(const Float& a, const Float& b) {
    return each<Float>([&](size_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return each<Float>([&](size_t i) { return a.lane[i] * b.lane[i]; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](size_t i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Float to_float(const Int& a) {
    return each<Float>([&](size_t i) { return static_cast<float>(a.lane[i]); });
  }
  static Float load(const float* from) {
    return each<Float>([&](size_t i) { return from[i]; });
  }
  static Float load_scales(const int8_t* from) {
    return each<Float>([&](size_t i) { return static_cast<float>(from[i]); });
  }
  static void store(float* to, const Float& a) { std::memcpy(to, a.lane, sizeof a.lane); }
  static Wide zero_wide() { return set(0.0f); }
  static Wide set_wide(float value) { return set(value); }
  static void store_wide(float* to, const Wide& a) { store(to, a); }
  static Wide load_wide(const float* from) { return load(from); }
  static float reduce(const Wide& a) {
    float sum = 0;
    for (float value : a.lane) sum += value;
    return sum;
  }

  template <Type kType>
  static float to_float(uint16_t half) {
    uint32_t bits;
    if (kType == Type::kBFloat16) {
      bits = static_cast<uint32_t>(half) << 16;
    } else {
      const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
      if (magnitude < 0x0400) {  // zero or denormal: a multiple of 2^-24
        const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, sizeof bits);
      } else {
        bits = (magnitude << 13) + (magnitude < 0x7c00 ? 0x38000000u : 0x70000000u);
      }
      bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  template <Type kType>
  static Wide load_half(const uint16_t* from) {
    return each<Float>([&](size_t i) { return to_float<kType>(from[i]); });
  }

  template <int kBits>
  struct Codes {
    explicit Codes(const uint8_t* from) : bytes(from) {}
    const uint8_t* bytes;
  };
  template <int kBits>
  struct Dot {
    static constexpr int kZero = kBits == 8 ? 128 : 8;
    Int total{};
    void add(const Codes<kBits>& codes, const int8_t* a) {
      for (size_t row = 0; row < kTile; ++row) {
        for (size_t i = 0; i < 4; ++i) {
          const uint8_t code = codes.bytes[4 * row + i];
          total.lane[row] += kBits == 8 ? code * a[i] : (code & 15) * a[i] + (code >> 4) * a[16 + i];
        }
      }
    }
    const Int& sum() const { return total; }
  };
};

}  // namespace

extern const Kernels kPortable = Tile<Portable>::table("portable");

}  // namespace chatglm3
