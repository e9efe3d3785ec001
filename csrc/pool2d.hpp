// Geometry of pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q).
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {

using Window = std::array<int64_t, 8>;  // kernel, stride, padding, dilation, each (h, w)

// What one window covers along one axis: begin, begin + dilation, ... < end, all inside the plane.
struct Span {
    int64_t begin, end, divisor;
};
using Spans = std::vector<Span>;

struct Planes {
    int64_t count, H, W, P, Q;
    int64_t grain() const { return 1 + GRAIN / (1 + H * W); }
};

inline Planes planes_of(const py::array& x, const py::array& y, const char* operation) {
    expect(x.ndim() == 4 && y.ndim() == 4 && x.shape(0) == y.shape(0) && x.shape(1) == y.shape(1), operation,
           "input and output must be (N, C, H, W) and (N, C, P, Q)");
    return {x.shape(0) * x.shape(1), x.shape(2), x.shape(3), y.shape(2), y.shape(3)};
}

// axis: 0 for rows, 1 for columns
inline Spans window_spans(const Window& window, int axis, int64_t extent, int64_t outputs, bool count_padding,
                   const char* operation) {
    const int64_t kernel = window[axis], stride = window[2 + axis], pad = window[4 + axis], dilation = window[6 + axis];
    expect(kernel > 0 && stride > 0 && pad >= 0 && dilation > 0, operation,
           "kernel, stride and dilation must be positive and padding not negative");
    Spans spans(outputs);
    for (int64_t i = 0; i < outputs; ++i) {
        const int64_t start = i * stride - pad;
        const int64_t begin = start < 0 ? start + (-start + dilation - 1) / dilation * dilation : start;
        const int64_t end = std::min(start + (kernel - 1) * dilation + 1, extent);
        expect(begin < end, operation, "a window would lie wholly in the padding");
        spans[i] = {begin, end, count_padding ? std::min(start + kernel, extent + pad) - start : end - begin};
    }
    return spans;
}

inline Spans adaptive_spans(int64_t extent, int64_t outputs, const char* operation) {
    expect(extent > 0, operation, "the input has no elements");
    Spans spans(outputs);
    for (int64_t i = 0; i < outputs; ++i) {
        const int64_t begin = i * extent / outputs, end = ((i + 1) * extent + outputs - 1) / outputs;
        spans[i] = {begin, end, end - begin};
    }
    return spans;
}

}  // namespace gpucnn
