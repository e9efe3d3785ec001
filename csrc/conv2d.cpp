// The convolution's Python border, and its gradient by the bias; see conv2d.hpp for the maths.
#include "conv2d.hpp"

#include <pybind11/stl.h>

#include <optional>

#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

// (N, C, H, W, K, R, S, P, Q, stride, padding, dilation: rows then columns, groups), as ConvShape of gpucnn/ops/shapes.py.
using ShapeTuple = std::array<int64_t, 16>;

ConvShape conv_shape(const ShapeTuple& t, const char* operation) {
    const ConvShape shape{t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]};
    const bool positive = shape.C > 0 && shape.H > 0 && shape.W > 0 && shape.K > 0 && shape.R > 0 && shape.S > 0 &&
                          shape.P > 0 && shape.Q > 0 && shape.stride_h > 0 && shape.stride_w > 0 && shape.dilation_h > 0 &&
                          shape.dilation_w > 0 && shape.groups > 0;
    expect(positive && shape.N >= 0 && shape.padding_h >= 0 && shape.padding_w >= 0, operation,
           "every size of the shape must be positive (N and padding may be 0)");
    expect(shape.C % shape.groups == 0 && shape.K % shape.groups == 0, operation, "C and K must be multiples of groups");
    const int64_t last_row = (shape.P - 1) * shape.stride_h + (shape.R - 1) * shape.dilation_h;
    const int64_t last_column = (shape.Q - 1) * shape.stride_w + (shape.S - 1) * shape.dilation_w;
    expect(last_row < shape.H + 2 * shape.padding_h && last_column < shape.W + 2 * shape.padding_w, operation,
           "P and Q must be such that the last window lies inside the padded image");
    return shape;
}

template <class T>
void expect_input(const Array<T>& x, const ConvShape& shape, const char* operation, const char* name) {
    expect_shape(x, {shape.N, shape.C, shape.H, shape.W}, operation, name);
}
template <class T>
void expect_output(const Array<T>& y, const ConvShape& shape, const char* operation, const char* name) {
    expect_shape(y, {shape.N, shape.K, shape.P, shape.Q}, operation, name);
}
template <class T>
void expect_weight(const Array<T>& w, const ConvShape& shape, const char* operation, const char* name) {
    expect_shape(w, {shape.K, shape.group_channels(), shape.R, shape.S}, operation, name);
}

template <class T>
using Forward = void (*)(const T*, const T*, const T*, T*, const ConvShape&);
template <class T>
using Backward = void (*)(const T*, const T*, T*, const ConvShape&);

template <class T>
void define_forward(py::module_& m, const char* name, Forward<T> forward) {
    m.def(
        name,
        [name, forward](const Array<T>& x, const Array<T>& w, const std::optional<Array<T>>& bias, Array<T>& y,
                        const ShapeTuple& tuple) {
            const ConvShape shape = conv_shape(tuple, name);
            expect_input(x, shape, name, "x");
            expect_weight(w, shape, name, "w");
            expect_output(y, shape, name, "y");
            if (bias) expect_shape(*bias, {shape.K}, name, "bias");
            T* const out = y.mutable_data();
            const T* const bias_data = bias ? bias->data() : nullptr;
            const py::gil_scoped_release unlocked;
            forward(x.data(), w.data(), bias_data, out, shape);
        },
        py::arg("x").noconvert(), py::arg("w").noconvert(), py::arg("bias").noconvert(), py::arg("y").noconvert(),
        py::arg("shape"));
}

template <class T>
void define_backward_input(py::module_& m, const char* name, Backward<T> backward) {
    m.def(
        name,
        [name, backward](const Array<T>& gy, const Array<T>& w, Array<T>& gx, const ShapeTuple& tuple) {
            const ConvShape shape = conv_shape(tuple, name);
            expect_output(gy, shape, name, "gy");
            expect_weight(w, shape, name, "w");
            expect_input(gx, shape, name, "gx");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release unlocked;
            backward(gy.data(), w.data(), out, shape);
        },
        py::arg("gy").noconvert(), py::arg("w").noconvert(), py::arg("gx").noconvert(), py::arg("shape"));
}

template <class T>
void define_backward_weight(py::module_& m, const char* name, Backward<T> backward) {
    m.def(
        name,
        [name, backward](const Array<T>& x, const Array<T>& gy, Array<T>& gw, const ShapeTuple& tuple) {
            const ConvShape shape = conv_shape(tuple, name);
            expect_input(x, shape, name, "x");
            expect_output(gy, shape, name, "gy");
            expect_weight(gw, shape, name, "gw");
            T* const out = gw.mutable_data();
            const py::gil_scoped_release unlocked;
            backward(x.data(), gy.data(), out, shape);
        },
        py::arg("x").noconvert(), py::arg("gy").noconvert(), py::arg("gw").noconvert(), py::arg("shape"));
}

// The sum of one plane, in double: plain sums of a hundred thousand single-precision numbers lose digits.
template <class T>
GPUCNN_CLONES double sum_plane(const T* plane, int64_t pixels) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < pixels; ++i) sum += plane[i];
    return sum;
}

template <class T>
void define_backward_bias(py::module_& m) {
    constexpr const char* NAME = "conv2d_backward_bias";
    m.def(
        NAME,
        [](const Array<T>& gy, Array<T>& gb) {
            expect(gy.ndim() == 4, NAME, "gy must be (N, K, P, Q)");
            expect_shape(gb, {gy.shape(1)}, NAME, "gb");
            T* const out = gb.mutable_data();
            const py::gil_scoped_release unlocked;
            conv2d_backward_bias(gy.data(), out, gy.shape(0), gy.shape(1), gy.shape(2) * gy.shape(3));
        },
        py::arg("gy").noconvert(), py::arg("gb").noconvert());
}

template <class T>
void register_conv2d_of(py::module_& m) {
    define_forward<T>(m, "conv2d_forward_im2col", &conv2d_forward_im2col<T>);
    define_forward<T>(m, "conv2d_forward_direct", &conv2d_forward_direct<T>);
    define_backward_input<T>(m, "conv2d_backward_input_im2col", &conv2d_backward_input_im2col<T>);
    define_backward_input<T>(m, "conv2d_backward_input_direct", &conv2d_backward_input_direct<T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_im2col", &conv2d_backward_weight_im2col<T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_direct", &conv2d_backward_weight_direct<T>);
    define_backward_bias<T>(m);
}

}  // namespace

template <class T>
void conv2d_backward_bias(const T* gy, T* gb, int64_t images, int64_t filters, int64_t pixels) {
    parallel_for(filters, [&](int64_t k) {
        double sum = 0;
        for (int64_t n = 0; n < images; ++n) sum += sum_plane(gy + (n * filters + k) * pixels, pixels);
        gb[k] = static_cast<T>(sum);
    });
}

void register_conv2d(py::module_& m) {
    register_conv2d_of<float>(m);
    register_conv2d_of<double>(m);
}

}  // namespace gpucnn
