// Convolution as a loop nest, without im2col and without packing; see conv2d.hpp for the maths.
//
// A task is one plane of the output (of y, of gx) or one R x S filter plane (of gw); the inner loop runs along an image row.
// The reference that reads like the formula. Good where a sum has few channels; with one, conv2d_depthwise.cpp takes over.
#include "conv2d.hpp"
#include "conv2d_depthwise.hpp"
#include "gemm.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

// Output columns q whose input column q * stride + offset lies in [0, width).
Range inside(int64_t outputs, int64_t stride, int64_t offset, int64_t width) {
    const int64_t begin = offset < 0 ? ceil_div(-offset, stride) : 0;
    const int64_t end = width > offset ? ceil_div(width - offset, stride) : 0;
    return {std::min(begin, outputs), std::max(std::min(begin, outputs), std::min(end, outputs))};
}

// y row += weight * x row, for the columns in range: y[q] += weight * x[q * stride].
template <class T>
GPUCNN_CLONES void add_row(T weight, const T* x, int64_t stride, Range columns, T* y) {
    if (stride == 1)
        for (int64_t q = columns.begin; q < columns.end; ++q) y[q] += weight * x[q];
    else
        for (int64_t q = columns.begin; q < columns.end; ++q) y[q] += weight * x[q * stride];
}

// The same read backwards: x[q * stride] += weight * y[q].
template <class T>
GPUCNN_CLONES void add_row_back(T weight, const T* y, int64_t stride, Range columns, T* x) {
    if (stride == 1)
        for (int64_t q = columns.begin; q < columns.end; ++q) x[q] += weight * y[q];
    else
        for (int64_t q = columns.begin; q < columns.end; ++q) x[q * stride] += weight * y[q];
}

template <class T>
GPUCNN_CLONES T dot_row(const T* y, const T* x, int64_t stride, Range columns) {
    T sum = 0;
    if (stride == 1) {
#pragma omp simd reduction(+ : sum)
        for (int64_t q = columns.begin; q < columns.end; ++q) sum += y[q] * x[q];
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t q = columns.begin; q < columns.end; ++q) sum += y[q] * x[q * stride];
    }
    return sum;
}

// Calls body(p, x's row, q range, x's column offset) for every output row p that tap (r, s) joins to a row of the input.
template <class Body>
void each_row(const ConvShape& shape, int64_t r, int64_t s, const Body& body) {
    const int64_t offset = tap_column(shape, s);
    const Range rows = inside(shape.P, shape.stride_h, tap_row(shape, r), shape.H);
    const Range columns = inside(shape.Q, shape.stride_w, offset, shape.W);
    for (int64_t p = rows.begin; p < rows.end; ++p)
        body(p, p * shape.stride_h + tap_row(shape, r), columns, offset);
}

// y plane (P, Q) of one filter plane w (R, S) and one x plane (H, W), added up.
template <class T>
void add_plane(const T* x, const T* w, T* y, const ConvShape& shape) {
    for (int64_t r = 0; r < shape.R; ++r)
        for (int64_t s = 0; s < shape.S; ++s)
            each_row(shape, r, s, [&](int64_t p, int64_t h, Range columns, int64_t offset) {
                add_row(w[r * shape.S + s], x + h * shape.W + offset, shape.stride_w, columns, y + p * shape.Q);
            });
}

template <class T>
void add_plane_back(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    for (int64_t r = 0; r < shape.R; ++r)
        for (int64_t s = 0; s < shape.S; ++s)
            each_row(shape, r, s, [&](int64_t p, int64_t h, Range columns, int64_t offset) {
                add_row_back(w[r * shape.S + s], gy + p * shape.Q, shape.stride_w, columns, gx + h * shape.W + offset);
            });
}

// Sum over one image of gy plane times the x plane under tap (r, s). Rows are added up in double: with many images a sum in
// single precision would lose digits.
template <class T>
double dot_plane(const T* gy, const T* x, int64_t r, int64_t s, const ConvShape& shape) {
    double sum = 0;
    each_row(shape, r, s, [&](int64_t p, int64_t h, Range columns, int64_t offset) {
        sum += dot_row(gy + p * shape.Q, x + h * shape.W + offset, shape.stride_w, columns);
    });
    return sum;
}

}  // namespace

template <class T>
void conv2d_forward_direct(const T* x, const T* w, const T* bias, T* y, const ConvShape& shape) {
    if (is_depthwise(shape)) return depthwise_forward(x, w, bias, y, shape);
    const int64_t channels = shape.group_channels(), plane = shape.H * shape.W, taps = shape.R * shape.S;
    parallel_for(shape.N * shape.K, [&](int64_t task) {
        const int64_t n = task / shape.K, k = task % shape.K, group = k / shape.group_filters();
        T* const out = y + task * shape.P * shape.Q;
        std::fill(out, out + shape.P * shape.Q, bias ? bias[k] : T{0});
        for (int64_t c = 0; c < channels; ++c)
            add_plane(x + (n * shape.C + group * channels + c) * plane, w + (k * channels + c) * taps, out, shape);
    });
}

template <class T>
void conv2d_backward_input_direct(const T* gy, const T* w, T* gx, const ConvShape& shape) {
    if (is_depthwise(shape)) return depthwise_backward_input(gy, w, gx, shape);
    const int64_t channels = shape.group_channels(), filters = shape.group_filters(), taps = shape.R * shape.S;
    parallel_for(shape.N * shape.C, [&](int64_t task) {
        const int64_t n = task / shape.C, c = task % shape.C, group = c / channels;
        T* const out = gx + task * shape.H * shape.W;
        std::fill(out, out + shape.H * shape.W, T{0});
        for (int64_t k = group * filters; k < (group + 1) * filters; ++k)
            add_plane_back(gy + (n * shape.K + k) * shape.P * shape.Q, w + (k * channels + c % channels) * taps, out, shape);
    });
}

template <class T>
void conv2d_backward_weight_direct(const T* x, const T* gy, T* gw, const ConvShape& shape) {
    if (is_depthwise(shape)) return depthwise_backward_weight(x, gy, gw, shape);
    const int64_t channels = shape.group_channels();
    parallel_for(shape.K * channels * shape.R, [&](int64_t task) {
        const int64_t r = task % shape.R, k = task / shape.R / channels, c = task / shape.R % channels;
        const int64_t source = k / shape.group_filters() * channels + c;
        for (int64_t s = 0; s < shape.S; ++s) {
            double sum = 0;
            for (int64_t n = 0; n < shape.N; ++n)
                sum += dot_plane(gy + (n * shape.K + k) * shape.P * shape.Q, x + (n * shape.C + source) * shape.H * shape.W, r,
                                 s, shape);
            gw[task * shape.S + s] = static_cast<T>(sum);
        }
    });
}

#define GPUCNN_INSTANTIATE(T)                                                                         \
    template void conv2d_forward_direct<T>(const T*, const T*, const T*, T*, const ConvShape&);       \
    template void conv2d_backward_input_direct<T>(const T*, const T*, T*, const ConvShape&);          \
    template void conv2d_backward_weight_direct<T>(const T*, const T*, T*, const ConvShape&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
