// Average pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q); a plane belongs to one worker.
//
//   avg_pool2d_*            y = sum over the window / divisor; divisor = elements of the window cut off at H + pad, W + pad
//                           (count_include_pad), or of the window cut to the plane (not), as in PyTorch
//   adaptive_avg_pool2d_*   window i of P = [floor(i H / P), ceil((i + 1) H / P)), divisor = its elements
//   *_backward              gx = sum of gy / divisor over the windows that hold this element
//
// Both are separable: forward adds the rows of a window into one row, then that row's columns; backward the other way
// round. Outputs are overwritten.
#include "pool2d.hpp"

namespace gpucnn {
namespace {

struct AveragePool {
    Planes planes;
    Spans rows, columns;
};

// sums: W values of scratch
template <class T>
GPUCNN_CLONES void average_plane(const T* __restrict x, T* __restrict y, T* __restrict sums, const AveragePool& pool) {
    const int64_t W = pool.planes.W;
    for (const Span& row : pool.rows) {
        std::copy_n(x + row.begin * W, W, sums);
        for (int64_t h = row.begin + 1; h < row.end; ++h)
            for (int64_t w = 0; w < W; ++w) sums[w] += x[h * W + w];
        for (const Span& column : pool.columns) {
            T sum = sums[column.begin];
            for (int64_t w = column.begin + 1; w < column.end; ++w) sum += sums[w];
            *y++ = sum / T(row.divisor * column.divisor);
        }
    }
}

template <class T>
GPUCNN_CLONES void average_backward_plane(const T* __restrict gy, T* __restrict gx, T* __restrict sums,
                                          const AveragePool& pool) {
    const int64_t W = pool.planes.W;
    std::fill_n(gx, pool.planes.H * W, T(0));
    for (const Span& row : pool.rows) {
        std::fill_n(sums, W, T(0));
        for (const Span& column : pool.columns) {
            const T share = *gy++ / T(row.divisor * column.divisor);
            for (int64_t w = column.begin; w < column.end; ++w) sums[w] += share;
        }
        for (int64_t h = row.begin; h < row.end; ++h)
            for (int64_t w = 0; w < W; ++w) gx[h * W + w] += sums[w];
    }
}

template <class T>
void average_forward(const T* x, T* y, const AveragePool& pool) {
    const auto [count, H, W, P, Q] = pool.planes;
    std::vector<T> sums(count * W);
    parallel_for_ranges(count, plane_grain(pool.planes), [&, H = H, W = W, P = P, Q = Q](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) average_plane(x + i * H * W, y + i * P * Q, sums.data() + i * W, pool);
    });
}

template <class T>
void average_backward(const T* gy, T* gx, const AveragePool& pool) {
    const auto [count, H, W, P, Q] = pool.planes;
    std::vector<T> sums(count * W);
    parallel_for_ranges(count, plane_grain(pool.planes), [&, H = H, W = W, P = P, Q = Q](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            average_backward_plane(gy + i * P * Q, gx + i * H * W, sums.data() + i * W, pool);
    });
}

AveragePool plan_window(const Planes& planes, const Window& window, bool count_include_pad, const char* operation) {
    expect(window[6] == 1 && window[7] == 1, operation, "dilation must be 1");
    return {planes, window_spans(window, 0, planes.H, planes.P, count_include_pad, operation),
            window_spans(window, 1, planes.W, planes.Q, count_include_pad, operation)};
}

AveragePool plan_adaptive(const Planes& planes, const char* operation) {
    return {planes, adaptive_spans(planes.H, planes.P, operation), adaptive_spans(planes.W, planes.Q, operation)};
}

}  // namespace

template <class T>
void avg_pool2d_forward(const T* x, T* y, const Planes& planes, const Window& window, bool count_include_pad) {
    average_forward(x, y, plan_window(planes, window, count_include_pad, "avg_pool2d_forward"));
}

template <class T>
void avg_pool2d_backward(const T* gy, T* gx, const Planes& planes, const Window& window, bool count_include_pad) {
    average_backward(gy, gx, plan_window(planes, window, count_include_pad, "avg_pool2d_backward"));
}

template <class T>
void adaptive_avg_pool2d_forward(const T* x, T* y, const Planes& planes) {
    average_forward(x, y, plan_adaptive(planes, "adaptive_avg_pool2d_forward"));
}

template <class T>
void adaptive_avg_pool2d_backward(const T* gy, T* gx, const Planes& planes) {
    average_backward(gy, gx, plan_adaptive(planes, "adaptive_avg_pool2d_backward"));
}

#define GPUCNN_INSTANTIATE(T) \
    template void avg_pool2d_forward<T>(const T*, T*, const Planes&, const Window&, bool); \
    template void avg_pool2d_backward<T>(const T*, T*, const Planes&, const Window&, bool); \
    template void adaptive_avg_pool2d_forward<T>(const T*, T*, const Planes&); \
    template void adaptive_avg_pool2d_backward<T>(const T*, T*, const Planes&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
