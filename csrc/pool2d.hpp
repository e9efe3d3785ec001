// Geometry of pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q).
#pragma once

#include <algorithm>
#include <vector>

#include "expect.hpp"
#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {

// What one window covers along one axis: begin, begin + dilation, ... < end, all inside the plane.
struct Span {
    int64_t begin, end, divisor;
};
using Spans = std::vector<Span>;

// Planes that one worker takes at a time.
inline int64_t plane_grain(const Planes& planes) { return 1 + GRAIN / (1 + planes.H * planes.W); }

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
