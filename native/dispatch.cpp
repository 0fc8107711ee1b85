#include "kernels.h"

namespace chatglm3 {

const Kernels* const* supported_kernels() {
  static const Kernels* tables[4] = {};
  if (!tables[0]) {
    size_t n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // with F16C, as in every such CPU
    if (avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
      tables[n++] = &kAvx512;
    }
    if (avx2) tables[n++] = &kAvx2;
#endif
    tables[n] = &kPortable;
  }
  return tables;
}

}  // namespace chatglm3
