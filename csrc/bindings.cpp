// gpucnn._C: every operation before Python. The only file that includes pybind11, which takes longer to compile than all
// of the maths. It checks shapes, releases the GIL, and passes pointers on; dtype and layout are checked by pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "conv2d.hpp"
#include "expect.hpp"
#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {

void define_native(pybind11::module_& m);  // native_bindings.cpp

namespace {

namespace py = pybind11;

// A C-contiguous NumPy array of T; bound with noconvert, so that another dtype or layout is a TypeError.
template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Optional = std::optional<Array<T>>;
template <class T>
using Strided = py::array_t<T, 0>;  // any layout

py::arg array(const char* name) {
    py::arg argument(name);
    argument.noconvert();
    return argument;
}

void expect_shape(const py::array& array, std::initializer_list<int64_t> shape, const char* operation, const char* name) {
    const bool same = std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim());
    if (!same) throw std::invalid_argument(std::string(operation) + ": " + name + " has another shape than the call says");
}

void expect_same_shape(const py::array& first, const py::array& second, const char* operation, const char* name) {
    const bool same =
        std::equal(first.shape(), first.shape() + first.ndim(), second.shape(), second.shape() + second.ndim());
    if (!same) throw std::invalid_argument(std::string(operation) + ": " + name + " has another shape than the call says");
}

template <class T>
const T* data_or_null(const Optional<T>& array) {
    return array ? array->data() : nullptr;
}

template <class T>
T* mutable_data_or_null(Optional<T>& array) {
    return array ? array->mutable_data() : nullptr;
}

// ---- gemm ----

template <class T>
Batch<T> batch_of(const Strided<T>& matrices, const char* rule) {
    bool whole = reinterpret_cast<std::uintptr_t>(matrices.data()) % alignof(T) == 0;
    int64_t strides[3];
    for (int axis = 0; axis < 3; ++axis) {
        strides[axis] = matrices.strides(axis) / int64_t{sizeof(T)};
        whole = whole && matrices.strides(axis) % int64_t{sizeof(T)} == 0;
    }
    expect(whole, "gemm", rule);
    return {{matrices.data(), strides[1], strides[2]}, strides[0]};
}

template <class T>
void define_gemm(py::module_& m) {
    m.def(
        "gemm",
        [](const Strided<T>& a, const Strided<T>& b, Array<T>& c, const Optional<T>& bias) {
            expect(a.ndim() == 3 && b.ndim() == 3, "gemm", "a and b must be (B, M, K) and (B, K, N)");
            const int64_t batch = a.shape(0), rows = a.shape(1), depth = a.shape(2), columns = b.shape(2);
            expect_shape(b, {batch, depth, columns}, "gemm", "b");
            expect_shape(c, {batch, rows, columns}, "gemm", "c");
            if (bias) expect_shape(*bias, {columns}, "gemm", "bias");
            const Batch<T> left = batch_of(a, "a's strides must be whole elements");
            const Batch<T> right = batch_of(b, "b's strides must be whole elements");
            T* const out = c.mutable_data();
            const py::gil_scoped_release released;
            gemm(left, right, out, data_or_null(bias), batch, rows, depth, columns);
        },
        array("a"), array("b"), array("c"), array("bias") = py::none());
}

// ---- convolution ----

// (N, C, H, W, K, R, S, P, Q, stride, padding, dilation: rows then columns, groups), as ConvShape of gpucnn/ops/shapes.py.
using ShapeTuple = std::array<int64_t, 16>;

ConvShape conv_shape(const ShapeTuple& t, const char* operation) {
    const ConvShape shape{t[0], t[1], t[2],  t[3],  t[4],  t[5],  t[6],  t[7],
                          t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]};
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

void expect_input(const py::array& x, const ConvShape& shape, const char* operation, const char* name) {
    expect_shape(x, {shape.N, shape.C, shape.H, shape.W}, operation, name);
}
void expect_output(const py::array& y, const ConvShape& shape, const char* operation, const char* name) {
    expect_shape(y, {shape.N, shape.K, shape.P, shape.Q}, operation, name);
}
void expect_weight(const py::array& w, const ConvShape& shape, const char* operation, const char* name) {
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
        [name, forward](const Array<T>& x, const Array<T>& w, const Optional<T>& bias, Array<T>& y, const ShapeTuple& tuple) {
            const ConvShape shape = conv_shape(tuple, name);
            expect_input(x, shape, name, "x");
            expect_weight(w, shape, name, "w");
            expect_output(y, shape, name, "y");
            if (bias) expect_shape(*bias, {shape.K}, name, "bias");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            forward(x.data(), w.data(), data_or_null(bias), out, shape);
        },
        array("x"), array("w"), array("bias"), array("y"), py::arg("shape"));
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
            const py::gil_scoped_release released;
            backward(gy.data(), w.data(), out, shape);
        },
        array("gy"), array("w"), array("gx"), py::arg("shape"));
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
            const py::gil_scoped_release released;
            backward(x.data(), gy.data(), out, shape);
        },
        array("x"), array("gy"), array("gw"), py::arg("shape"));
}

template <class T>
void define_conv2d(py::module_& m) {
    define_forward<T>(m, "conv2d_forward_im2col", &conv2d_forward_im2col<T>);
    define_forward<T>(m, "conv2d_forward_direct", &conv2d_forward_direct<T>);
    define_backward_input<T>(m, "conv2d_backward_input_im2col", &conv2d_backward_input_im2col<T>);
    define_backward_input<T>(m, "conv2d_backward_input_direct", &conv2d_backward_input_direct<T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_im2col", &conv2d_backward_weight_im2col<T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_direct", &conv2d_backward_weight_direct<T>);
    define_forward<T>(m, "conv2d_forward_fft", &conv2d_forward_fft<T>);
    define_backward_input<T>(m, "conv2d_backward_input_fft", &conv2d_backward_input_fft<T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_fft", &conv2d_backward_weight_fft<T>);
    define_forward<T>(m, "conv2d_forward_winograd", &conv2d_forward_winograd<2, T>);
    define_forward<T>(m, "conv2d_forward_winograd4", &conv2d_forward_winograd<4, T>);
    define_backward_input<T>(m, "conv2d_backward_input_winograd", &conv2d_backward_input_winograd<2, T>);
    define_backward_input<T>(m, "conv2d_backward_input_winograd4", &conv2d_backward_input_winograd<4, T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_winograd", &conv2d_backward_weight_winograd<2, T>);
    define_backward_weight<T>(m, "conv2d_backward_weight_winograd4", &conv2d_backward_weight_winograd<4, T>);
    m.def(
        "conv2d_backward_bias",
        [](const Array<T>& gy, Array<T>& gb) {
            expect(gy.ndim() == 4, "conv2d_backward_bias", "gy must be (N, K, P, Q)");
            expect_shape(gb, {gy.shape(1)}, "conv2d_backward_bias", "gb");
            T* const out = gb.mutable_data();
            const py::gil_scoped_release released;
            conv2d_backward_bias(gy.data(), out, gy.shape(0), gy.shape(1), gy.shape(2) * gy.shape(3));
        },
        array("gy"), array("gb"));
}

template <class T>
void define_csr_matmul(py::module_& m) {
    m.def(
        "csr_matmul",
        [](const Array<T>& values, const Array<int64_t>& columns, const Array<int64_t>& starts, const Array<T>& dense,
           Array<T>& out) {
            expect(dense.ndim() == 2 && starts.ndim() == 1 && starts.size() >= 1, "csr_matmul",
                   "dense must be a matrix and starts (rows + 1,)");
            const int64_t rows = starts.size() - 1, inner = dense.shape(0), width = dense.shape(1);
            expect_shape(values, {values.size()}, "csr_matmul", "values");
            expect_shape(columns, {values.size()}, "csr_matmul", "columns");
            expect_shape(out, {rows, width}, "csr_matmul", "out");
            T* const result = out.mutable_data();
            const py::gil_scoped_release released;
            csr_matmul(Csr{starts.data(), columns.data(), rows}, values.data(), values.size(), dense.data(), result, inner,
                       width);
        },
        array("values"), array("columns"), array("starts"), array("dense"), array("out"));
}

// ---- pooling ----

Planes planes_of(const py::array& x, const py::array& y, const char* operation) {
    expect(x.ndim() == 4 && y.ndim() == 4 && x.shape(0) == y.shape(0) && x.shape(1) == y.shape(1), operation,
           "input and output must be (N, C, H, W) and (N, C, P, Q)");
    return {x.shape(0) * x.shape(1), x.shape(2), x.shape(3), y.shape(2), y.shape(3)};
}

template <class T>
void define_max_pool2d(py::module_& m) {
    m.def(
        "max_pool2d_forward",
        [](const Array<T>& x, Array<T>& y, Array<int64_t>& indices, const Window& window) {
            const Planes planes = planes_of(x, y, "max_pool2d_forward");
            expect_same_shape(y, indices, "max_pool2d_forward", "indices");
            T* const out = y.mutable_data();
            int64_t* const winners = indices.mutable_data();
            const py::gil_scoped_release released;
            max_pool2d_forward(x.data(), out, winners, planes, window);
        },
        array("x"), array("y"), array("indices"), py::arg("window"));
    m.def(
        "max_pool2d_backward",
        [](const Array<T>& gy, const Array<int64_t>& indices, Array<T>& gx) {
            const Planes planes = planes_of(gx, gy, "max_pool2d_backward");
            expect_same_shape(gy, indices, "max_pool2d_backward", "indices");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release released;
            max_pool2d_backward(gy.data(), indices.data(), out, planes);
        },
        array("gy"), array("indices"), array("gx"));
}

template <class T>
void define_avg_pool2d(py::module_& m) {
    m.def(
        "avg_pool2d_forward",
        [](const Array<T>& x, Array<T>& y, const Window& window, bool count_include_pad) {
            const Planes planes = planes_of(x, y, "avg_pool2d_forward");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            avg_pool2d_forward(x.data(), out, planes, window, count_include_pad);
        },
        array("x"), array("y"), py::arg("window"), py::arg("count_include_pad"));
    m.def(
        "avg_pool2d_backward",
        [](const Array<T>& gy, Array<T>& gx, const Window& window, bool count_include_pad) {
            const Planes planes = planes_of(gx, gy, "avg_pool2d_backward");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release released;
            avg_pool2d_backward(gy.data(), out, planes, window, count_include_pad);
        },
        array("gy"), array("gx"), py::arg("window"), py::arg("count_include_pad"));
    m.def(
        "adaptive_avg_pool2d_forward",
        [](const Array<T>& x, Array<T>& y) {
            const Planes planes = planes_of(x, y, "adaptive_avg_pool2d_forward");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            adaptive_avg_pool2d_forward(x.data(), out, planes);
        },
        array("x"), array("y"));
    m.def(
        "adaptive_avg_pool2d_backward",
        [](const Array<T>& gy, Array<T>& gx) {
            const Planes planes = planes_of(gx, gy, "adaptive_avg_pool2d_backward");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release released;
            adaptive_avg_pool2d_backward(gy.data(), out, planes);
        },
        array("gy"), array("gx"));
}

// ---- normalisation ----

Extents extents_of(const py::array& x, const char* operation) {
    expect(x.ndim() == 3, operation, "x must be (N, C, L)");
    return {x.shape(0), x.shape(1), x.shape(2)};
}

template <class T>
void expect_channels(const Optional<T>& array, const Extents& extents, const char* operation, const char* name) {
    if (array) expect_shape(*array, {extents.C}, operation, name);
}

template <class T>
void define_batch_norm_backward(py::module_& m, const char* name, bool training) {
    m.def(
        name,
        [name, training](const Array<T>& x, const Array<T>& gy, const Array<T>& mean, const Array<T>& inverse_std,
                         const Optional<T>& weight, Array<T>& gx, Optional<T> gweight, Optional<T> gbias) {
            const Extents extents = extents_of(x, name);
            expect_same_shape(x, gy, name, "gy");
            expect_same_shape(x, gx, name, "gx");
            expect_shape(mean, {extents.C}, name, "mean");
            expect_shape(inverse_std, {extents.C}, name, "inverse_std");
            expect_channels(weight, extents, name, "weight");
            expect_channels(gweight, extents, name, "gweight");
            expect_channels(gbias, extents, name, "gbias");
            const BatchNormBackward<T> pointers{x.data(),           gy.data(),
                                                mean.data(),        inverse_std.data(),
                                                data_or_null(weight), gx.mutable_data(),
                                                mutable_data_or_null(gweight), mutable_data_or_null(gbias),
                                                training};
            const py::gil_scoped_release released;
            batch_norm_backward(pointers, extents);
        },
        array("x"), array("gy"), array("mean"), array("inverse_std"), array("weight"), array("gx"), array("gweight"),
        array("gbias"));
}

template <class T>
void define_batch_norm(py::module_& m) {
    m.def(
        "batch_norm_statistics",
        [](const Array<T>& x, Array<T>& mean, Array<T>& variance) {
            const Extents extents = extents_of(x, "batch_norm_statistics");
            expect_shape(mean, {extents.C}, "batch_norm_statistics", "mean");
            expect_shape(variance, {extents.C}, "batch_norm_statistics", "variance");
            expect(extents.N * extents.L > 0, "batch_norm_statistics", "x has no elements");
            T *const means = mean.mutable_data(), *const variances = variance.mutable_data();
            const py::gil_scoped_release released;
            batch_norm_statistics(x.data(), extents, means, variances);
        },
        array("x"), array("mean"), array("variance"));
    m.def(
        "batch_norm_apply",
        [](const Array<T>& x, const Array<T>& mean, const Array<T>& inverse_std, const Optional<T>& weight,
           const Optional<T>& bias, Array<T>& y) {
            const char* name = "batch_norm_apply";
            const Extents extents = extents_of(x, name);
            expect_same_shape(x, y, name, "y");
            expect_shape(mean, {extents.C}, name, "mean");
            expect_shape(inverse_std, {extents.C}, name, "inverse_std");
            expect_channels(weight, extents, name, "weight");
            expect_channels(bias, extents, name, "bias");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            batch_norm_apply(x.data(), extents, mean.data(), inverse_std.data(), data_or_null(weight), data_or_null(bias), out);
        },
        array("x"), array("mean"), array("inverse_std"), array("weight"), array("bias"), array("y"));
    define_batch_norm_backward<T>(m, "batch_norm_backward_training", true);
    define_batch_norm_backward<T>(m, "batch_norm_backward_inference", false);
}

template <class T>
void define_local_response_norm(py::module_& m) {
    m.def(
        "local_response_norm_forward",
        [](const Array<T>& x, Array<T>& y, Array<T>& scale, int64_t size, double alpha, double beta, double k) {
            const char* name = "local_response_norm_forward";
            const Extents extents = extents_of(x, name);
            expect(size > 0, name, "size must be positive");
            expect_same_shape(x, y, name, "y");
            expect_same_shape(x, scale, name, "scale");
            T *const out = y.mutable_data(), *const scales = scale.mutable_data();
            const py::gil_scoped_release released;
            local_response_norm_forward(x.data(), out, scales, extents, size, alpha, beta, k);
        },
        array("x"), array("y"), array("scale"), py::arg("size"), py::arg("alpha"), py::arg("beta"), py::arg("k"));
    m.def(
        "local_response_norm_backward",
        [](const Array<T>& x, const Array<T>& scale, const Array<T>& gy, Array<T>& gx, int64_t size, double alpha,
           double beta) {
            const char* name = "local_response_norm_backward";
            const Extents extents = extents_of(x, name);
            expect(size > 0, name, "size must be positive");
            expect_same_shape(x, scale, name, "scale");
            expect_same_shape(x, gy, name, "gy");
            expect_same_shape(x, gx, name, "gx");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release released;
            local_response_norm_backward(x.data(), scale.data(), gy.data(), out, extents, size, alpha, beta);
        },
        array("x"), array("scale"), array("gy"), array("gx"), py::arg("size"), py::arg("alpha"), py::arg("beta"));
}

// ---- element-wise operations, random numbers, optimiser steps ----

template <class T>
void define_elementwise(py::module_& m) {
    m.def(
        "relu_forward",
        [](const Array<T>& x, Array<T>& y) {
            expect_same_shape(x, y, "relu_forward", "y");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            relu_forward(x.data(), out, x.size());
        },
        array("x"), array("y"));
    m.def(
        "relu_backward",
        [](const Array<T>& y, const Array<T>& gy, Array<T>& gx) {
            expect_same_shape(y, gy, "relu_backward", "gy");
            expect_same_shape(y, gx, "relu_backward", "gx");
            T* const out = gx.mutable_data();
            const py::gil_scoped_release released;
            relu_backward(y.data(), gy.data(), out, y.size());
        },
        array("y"), array("gy"), array("gx"));
    m.def(
        "dropout",
        [](const Array<T>& x, Array<T>& y, std::uint64_t seed, std::uint64_t offset, std::uint32_t threshold, double scale) {
            expect_same_shape(x, y, "dropout", "y");
            T* const out = y.mutable_data();
            const py::gil_scoped_release released;
            dropout(x.data(), out, x.size(), seed, offset, threshold, scale);
        },
        array("x"), array("y"), py::arg("seed"), py::arg("offset"), py::arg("threshold"), py::arg("scale"));
}

template <class T>
void define_update(py::module_& m) {
    m.def(
        "sgd_update",
        [](Array<T>& p, const Array<T>& g, Optional<T> momentum_buffer, double lr, double momentum, double dampening,
           bool nesterov, double weight_decay, bool first) {
            expect_same_shape(p, g, "sgd_update", "g");
            expect(momentum_buffer.has_value() == (momentum != 0), "sgd_update",
                   "momentum_buffer must be an array if momentum is not 0, and None if it is");
            if (momentum_buffer) expect_same_shape(p, *momentum_buffer, "sgd_update", "momentum_buffer");
            T *const parameter = p.mutable_data(), *const buffer = mutable_data_or_null(momentum_buffer);
            const py::gil_scoped_release released;
            sgd_update(parameter, g.data(), buffer, p.size(), {lr, momentum, dampening, nesterov, weight_decay, first});
        },
        array("p"), array("g"), array("momentum_buffer"), py::arg("lr"), py::arg("momentum"), py::arg("dampening"),
        py::arg("nesterov"), py::arg("weight_decay"), py::arg("first"));
    m.def(
        "adam_update",
        [](Array<T>& p, const Array<T>& g, Array<T>& m, Array<T>& v, double lr, double beta1, double beta2, double eps,
           double weight_decay, bool decoupled, int64_t step) {
            expect_same_shape(p, g, "adam_update", "g");
            expect_same_shape(p, m, "adam_update", "m");
            expect_same_shape(p, v, "adam_update", "v");
            expect(step >= 1, "adam_update", "step counts from 1");
            T *const parameter = p.mutable_data(), *const first = m.mutable_data(), *const second = v.mutable_data();
            const py::gil_scoped_release released;
            adam_update(parameter, g.data(), first, second, p.size(), {lr, beta1, beta2, eps, weight_decay, decoupled, step});
        },
        array("p"), array("g"), array("m"), array("v"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
        py::arg("weight_decay"), py::arg("decoupled"), py::arg("step"));
}

// ---- batches ----

void gather(const Array<std::uint8_t>& images, const Array<int64_t>& indices, Array<float>& out,
            const Array<int64_t>& offsets, const Array<std::uint8_t>& flips, const Array<float>& scale,
            const Array<float>& shift, std::uint8_t fill) {
    const char* name = "gather_batch";
    expect(images.ndim() == 4 && out.ndim() == 4, name, "images and out must be (N, C, H, W)");
    const int64_t batch = out.shape(0);
    const Crop crop{images.shape(0), images.shape(1), images.shape(2), images.shape(3), out.shape(2), out.shape(3)};
    expect_shape(out, {batch, crop.C, crop.h, crop.w}, name, "out");
    expect_shape(indices, {batch}, name, "indices");
    expect_shape(offsets, {batch, 2}, name, "offsets");
    expect_shape(flips, {batch}, name, "flips");
    expect_shape(scale, {crop.C}, name, "scale");
    expect_shape(shift, {crop.C}, name, "shift");
    expect(std::all_of(indices.data(), indices.data() + batch,
                       [&](int64_t index) { return index >= 0 && index < crop.images; }),
           name, "an index lies outside the images");
    float* const to = out.mutable_data();
    const py::gil_scoped_release released;
    gather_batch(images.data(), indices.data(), to, batch, crop, offsets.data(), flips.data(), scale.data(), shift.data(),
                 fill);
}

// ---- the module ----

void define_whole_module(py::module_& m) {
    m.attr("compiler") = __VERSION__;
    m.attr("instruction_set") = instruction_set();
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", [](int count) {
        expect(count >= 1 && count <= MAX_THREADS, "set_num_threads", "count must be from 1 to 1024");
        set_num_threads(count);
    });
    m.def("conv2d_im2col_workspace_bytes", [](const ShapeTuple& tuple, int64_t item_size) {
        return conv2d_im2col_workspace_bytes(conv_shape(tuple, "conv2d_im2col_workspace_bytes"), item_size);
    });
    m.def("conv2d_fft_workspace_bytes", [](const ShapeTuple& tuple, int64_t item_size) {
        const ConvShape shape = conv_shape(tuple, "conv2d_fft_workspace_bytes");
        const bool single = item_size == sizeof(float);
        return single ? conv2d_fft_workspace_bytes<float>(shape) : conv2d_fft_workspace_bytes<double>(shape);
    });
    m.def("conv2d_winograd_workspace_bytes", [](const ShapeTuple& tuple, int64_t item_size) {
        return conv2d_winograd_workspace_bytes<2>(conv_shape(tuple, "conv2d_winograd_workspace_bytes"), item_size);
    });
    m.def("conv2d_winograd4_workspace_bytes", [](const ShapeTuple& tuple, int64_t item_size) {
        return conv2d_winograd_workspace_bytes<4>(conv_shape(tuple, "conv2d_winograd4_workspace_bytes"), item_size);
    });
    m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
    m.def(
        "philox_uint32",
        [](Array<std::uint32_t>& out, std::uint64_t seed, std::uint64_t offset) {
            std::uint32_t* const words = out.mutable_data();
            const py::gil_scoped_release released;
            philox_uint32(words, out.size(), seed, offset);
        },
        array("out"), py::arg("seed"), py::arg("offset"));
    m.def(
        "multiply_add_loop",
        [](int64_t rounds, int64_t item_size) {
            expect(rounds >= 0, "multiply_add_loop", "rounds must be at least 0");
            const py::gil_scoped_release released;
            return item_size == sizeof(float) ? multiply_add_loop<float>(rounds) : multiply_add_loop<double>(rounds);
        },
        py::arg("rounds"), py::arg("item_size"));
    m.def(
        "copy_bytes",
        [](const Array<std::uint8_t>& from, Array<std::uint8_t>& to) {
            expect_same_shape(from, to, "copy_bytes", "to");
            const char* const source = reinterpret_cast<const char*>(from.data());
            char* const target = reinterpret_cast<char*>(to.mutable_data());
            const py::gil_scoped_release released;
            copy_bytes(source, target, from.size());
        },
        array("from_"), array("to"));
    m.def("gather_batch", &gather, array("images"), array("indices"), array("out"), array("offsets"), array("flips"),
          array("scale"), array("shift"), py::arg("fill"));
}

template <class T>
void define_all(py::module_& m) {
    define_gemm<T>(m);
    define_conv2d<T>(m);
    define_csr_matmul<T>(m);
    define_max_pool2d<T>(m);
    define_avg_pool2d<T>(m);
    define_batch_norm<T>(m);
    define_local_response_norm<T>(m);
    define_elementwise<T>(m);
    define_update<T>(m);
}

// Activations of a few megabytes come and go with every layer. glibc would map and unmap each of them, and the kernel zero
// every page anew, which takes longer than a ReLU; so they come from the heap, and the heap keeps what is freed.
void keep_freed_memory() {
#ifdef __GLIBC__
    constexpr int LARGEST_FROM_HEAP = 32 * 1024 * 1024;  // glibc allows no more
    constexpr int KEPT = 512 * 1024 * 1024;
    mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP);
    mallopt(M_TRIM_THRESHOLD, KEPT);
#endif
}

}  // namespace
}  // namespace gpucnn

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU operations of gpucnn; called through gpucnn.ops and gpucnn.data, which check the arguments";
    gpucnn::keep_freed_memory();
    gpucnn::define_whole_module(m);
    gpucnn::define_native(m);
    gpucnn::define_all<float>(m);
    gpucnn::define_all<double>(m);
}
