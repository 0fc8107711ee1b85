// The Python module: buffers come as addresses, checked by chatglm3/kernels/native.py, and the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace chatglm3;

namespace {

std::atomic<const Kernels*> chosen{supported_kernels()[0]};

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (auto table = supported_kernels(); *table; ++table) names.emplace_back((*table)->name);
  return names;
}

void choose(const std::string& name) {
  for (auto table = supported_kernels(); *table; ++table) {
    if ((*table)->name == name) return chosen.store(*table);
  }
  throw nb::value_error("no such kernels on this CPU");
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void grouped(uintptr_t x, size_t vectors, size_t inputs, uintptr_t codes, uintptr_t scales, uintptr_t row_scale,
             uintptr_t bias, size_t groups, size_t group_size, int bits, size_t features, uintptr_t out,
             unsigned threads) {
  const GroupedWeight weight{at<uint8_t>(codes), at<int8_t>(scales), at<float>(row_scale), groups, group_size, bits};
  const Output output{at<float>(out), features, features, at<float>(bias)};
  grouped_linear(*chosen.load(), threads, weight, at<float>(x), vectors, inputs, output);
}

void half(uintptr_t x, size_t vectors, size_t inputs, uintptr_t weight, bool bfloat16, uintptr_t bias, size_t features,
          uintptr_t out, unsigned threads) {
  const HalfWeight values{at<uint16_t>(weight), inputs, bfloat16 ? Half::kBFloat16 : Half::kFloat16};
  const Output output{at<float>(out), features, features, at<float>(bias)};
  half_linear(*chosen.load(), threads, values, at<float>(x), vectors, output);
}

}  // namespace

NB_MODULE(_native, m) {
  using release = nb::call_guard<nb::gil_scoped_release>;
  m.def("supported", &supported);
  m.def("choose", &choose);
  m.def("chosen", [] { return chosen.load()->name; });
  m.def("grouped_linear", &grouped, release());
  m.def("half_linear", &half, release());
}
