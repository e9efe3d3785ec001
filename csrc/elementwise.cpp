// Element-wise operations that NumPy does in several passes over memory.
//
//   relu_forward    y  = max(x, 0): NaN passes through, -0 becomes +0
//   relu_backward   gx = gy where y > 0, else 0 (where y is NaN, gy passes, as in PyTorch)
//
// All arrays of a call have the same shape; y and gx are overwritten and must not overlap the inputs.
#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

template <class T>
GPUCNN_CLONES void relu_forward_range(const T* __restrict x, T* __restrict y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] <= 0 ? T(0) : x[i];
}

template <class T>
GPUCNN_CLONES void relu_backward_range(const T* __restrict y, const T* __restrict gy, T* __restrict gx, int64_t count) {
    for (int64_t i = 0; i < count; ++i) gx[i] = y[i] <= 0 ? T(0) : gy[i];
}

template <class T>
void relu_forward(const Array<T>& x, Array<T> y) {
    expect_same_shape(x, y, "relu_forward", "y");
    const T* from = x.data();
    T* to = y.mutable_data();
    const int64_t count = x.size();
    py::gil_scoped_release released;
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        relu_forward_range(from + begin, to + begin, end - begin);
    });
}

template <class T>
void relu_backward(const Array<T>& y, const Array<T>& gy, Array<T> gx) {
    expect_same_shape(y, gy, "relu_backward", "gy");
    expect_same_shape(y, gx, "relu_backward", "gx");
    const T *output = y.data(), *gradient = gy.data();
    T* to = gx.mutable_data();
    const int64_t count = y.size();
    py::gil_scoped_release released;
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        relu_backward_range(output + begin, gradient + begin, to + begin, end - begin);
    });
}

template <class T>
void define(py::module_& m) {
    m.def("relu_forward", &relu_forward<T>, py::arg("x").noconvert(), py::arg("y").noconvert());
    m.def("relu_backward", &relu_backward<T>, py::arg("y").noconvert(), py::arg("gy").noconvert(),
          py::arg("gx").noconvert());
}

}  // namespace

void register_elementwise(py::module_& m) {
    define<float>(m);
    define<double>(m);
}

}  // namespace gpucnn
