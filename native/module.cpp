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

void dense(uintptr_t x, size_t vectors, size_t inputs, uintptr_t weight, int type, uintptr_t bias, size_t features,
           uintptr_t out, unsigned threads) {
  const DenseWeight values{at<void>(weight), inputs, static_cast<Type>(type)};
  const Output output{at<float>(out), features, features, at<float>(bias)};
  dense_linear(*chosen.load(), threads, values, at<float>(x), vectors, output);
}

void norm(uintptr_t x, uintptr_t weight, float eps, size_t rows, size_t width, uintptr_t out, unsigned threads) {
  rms_norm(*chosen.load(), threads, at<float>(x), at<float>(weight), eps, rows, width, at<float>(out));
}

void gate(uintptr_t x, size_t rows, size_t width, uintptr_t out, unsigned threads) {
  swiglu(*chosen.load(), threads, at<float>(x), rows, width, at<float>(out));
}

void sum(uintptr_t a, uintptr_t b, size_t count, uintptr_t out, unsigned threads) {
  add(threads, at<float>(a), at<float>(b), count, at<float>(out));
}

void lookup(uintptr_t codes, uintptr_t scales, uintptr_t row_scale, size_t groups, size_t group_size, int bits,
            size_t inputs, uintptr_t rows, size_t count, uintptr_t out) {
  const GroupedWeight weight{at<uint8_t>(codes), at<int8_t>(scales), at<float>(row_scale), groups, group_size, bits};
  embed(weight, inputs, at<int64_t>(rows), count, at<float>(out));
}

void rotate(uintptr_t x, size_t tokens, size_t token_stride, size_t heads, size_t width, uintptr_t table, size_t pairs,
            uintptr_t out) {
  rope(at<float>(x), tokens, token_stride, heads, width, at<float>(table), pairs, at<float>(out));
}

void attention(uintptr_t queries, size_t heads, uintptr_t keys, uintptr_t values, size_t groups, size_t stride,
               size_t count, size_t width, int type, float scale, uintptr_t out, unsigned threads) {
  const Attention first{at<void>(keys), at<void>(values), count, width, static_cast<Type>(type), scale};
  attend(*chosen.load(), threads, first, stride, at<float>(queries), heads, groups, at<float>(out));
}

}  // namespace

NB_MODULE(_native, m) {
  using release = nb::call_guard<nb::gil_scoped_release>;
  m.def("supported", &supported);
  m.def("choose", &choose);
  m.def("chosen", [] { return chosen.load()->name; });
  m.def("grouped_linear", &grouped, release());
  m.def("dense_linear", &dense, release());
  m.def("add", &sum, release());
  m.def("embed", &lookup, release());
  m.def("rms_norm", &norm, release());
  m.def("swiglu", &gate, release());
  m.def("apply_rope", &rotate, release());
  m.def("attend", &attention, release());
}
