// Max pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q); a plane belongs to one worker.
//
//   max_pool2d_forward    y = max over the window, padding = -inf; the first of equal values wins, the last NaN wins;
//                         indices = h * W + w of the winner in its H x W plane (PyTorch's convention)
//   max_pool2d_backward   gx = sum of gy over the windows that chose this element
//
// Outputs are overwritten.
#include <atomic>
#include <limits>
#include <type_traits>

#include "pool2d.hpp"

namespace gpucnn {
namespace {

struct MaxPool {
    Planes planes;
    Spans rows, columns;
    int64_t dilation_h, dilation_w;
    int64_t inner_begin, inner_end;  // outputs q whose windows lie wholly inside the row
};

template <class T>
inline void max_of_window(const T* x, int64_t W, Span row, Span column, const MaxPool& pool, T* y, int64_t* index) {
    T best = -std::numeric_limits<T>::infinity();
    int64_t winner = row.begin * W + column.begin;
    for (int64_t h = row.begin; h < row.end; h += pool.dilation_h)
        for (int64_t w = column.begin; w < column.end; w += pool.dilation_w) {
            const T value = x[h * W + w];
            if (value > best || value != value) best = value, winner = h * W + w;
        }
    *y = best;
    *index = winner;
}

// Outputs [0, count) of one row whose K x K windows lie wholly inside the plane, the first one starting at x[first]:
// branch-free, so that the compiler computes many windows at once.
template <class T, int K, int STRIDE>
inline void max_of_inner_row(const T* __restrict x, int64_t W, int64_t first, int64_t count, T* __restrict y,
                             int64_t* __restrict indices) {
    using Offset = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide as T: one vector of each
    for (int64_t q = 0; q < count; ++q) {
        T best = -std::numeric_limits<T>::infinity();
        Offset winner = 0;
        for (int r = 0; r < K; ++r)
            for (int s = 0; s < K; ++s) {
                const T value = x[first + q * STRIDE + r * W + s];
                const bool wins = (value > best) | (value != value);
                best = wins ? value : best;
                winner = wins ? Offset(r * W + s) : winner;
            }
        y[q] = best;
        indices[q] = first + q * STRIDE + winner;
    }
}

// K = 0: any window.
template <class T, int K, int STRIDE>
GPUCNN_CLONES void max_pool_planes(const T* x, T* y, int64_t* indices, const MaxPool& pool, int64_t begin, int64_t end) {
    const auto [count, H, W, P, Q] = pool.planes;
    for (int64_t plane = begin; plane < end; ++plane)
        for (int64_t p = 0; p < P; ++p) {
            const T* from = x + plane * H * W;
            T* to = y + (plane * P + p) * Q;
            int64_t* winners = indices + (plane * P + p) * Q;
            const Span row = pool.rows[p];
            const bool inner = K > 0 && row.end - row.begin == K;
            const int64_t inner_begin = inner ? pool.inner_begin : Q, inner_end = inner ? pool.inner_end : Q;
            for (int64_t q = 0; q < inner_begin; ++q)
                max_of_window(from, W, row, pool.columns[q], pool, to + q, winners + q);
            if constexpr (K > 0)
                if (inner_begin < inner_end)
                    max_of_inner_row<T, K, STRIDE>(from, W, row.begin * W + pool.columns[inner_begin].begin,
                                                   inner_end - inner_begin, to + inner_begin, winners + inner_begin);
            for (int64_t q = inner_end; q < Q; ++q)
                max_of_window(from, W, row, pool.columns[q], pool, to + q, winners + q);
        }
}

MaxPool plan_max_pool(const Planes& planes, const Window& window, const char* operation) {
    MaxPool pool{planes, window_spans(window, 0, planes.H, planes.P, false, operation),
                 window_spans(window, 1, planes.W, planes.Q, false, operation), window[6], window[7], 0, planes.Q};
    const auto cut = [&](int64_t q) { return pool.columns[q].divisor < (window[1] - 1) * window[7] + 1; };
    while (pool.inner_end > 0 && cut(pool.inner_end - 1)) --pool.inner_end;
    while (pool.inner_begin < pool.inner_end && cut(pool.inner_begin)) ++pool.inner_begin;
    return pool;
}

template <class T>
auto max_pool_function(const Window& window, int64_t W) {
    const auto is = [&](int64_t kernel, int64_t stride) {
        return window[0] == kernel && window[1] == kernel && window[2] == stride && window[3] == stride;
    };
    const bool dense = window[6] == 1 && window[7] == 1 && W < (int64_t(1) << 29);  // 3 rows of offsets fit an int32
    if (dense && is(2, 2)) return &max_pool_planes<T, 2, 2>;
    if (dense && is(3, 2)) return &max_pool_planes<T, 3, 2>;
    if (dense && is(3, 1)) return &max_pool_planes<T, 3, 1>;
    return &max_pool_planes<T, 0, 0>;
}

// False, with gx zero, if an index lies outside the plane.
template <class T>
GPUCNN_CLONES bool max_pool_backward_plane(const T* gy, const int64_t* indices, int64_t outputs, T* gx, int64_t inputs) {
    bool inside = true;
    for (int64_t i = 0; i < inputs; ++i) gx[i] = 0;
    for (int64_t i = 0; i < outputs; ++i) inside &= indices[i] >= 0 && indices[i] < inputs;
    for (int64_t i = 0; inside && i < outputs; ++i) gx[indices[i]] += gy[i];
    return inside;
}

}  // namespace

template <class T>
void max_pool2d_forward(const T* x, T* y, int64_t* indices, const Planes& planes, const Window& window) {
    const MaxPool pool = plan_max_pool(planes, window, "max_pool2d_forward");
    const auto function = max_pool_function<T>(window, planes.W);
    parallel_for_ranges(planes.count, plane_grain(planes),
                        [&](int64_t begin, int64_t end) { function(x, y, indices, pool, begin, end); });
}

template <class T>
void max_pool2d_backward(const T* gy, const int64_t* indices, T* gx, const Planes& planes) {
    const int64_t outputs = planes.P * planes.Q, inputs = planes.H * planes.W;
    std::atomic<bool> inside{true};
    parallel_for_ranges(planes.count, plane_grain(planes), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (!max_pool_backward_plane(gy + i * outputs, indices + i * outputs, outputs, gx + i * inputs, inputs))
                inside = false;
    });
    expect(inside, "max_pool2d_backward", "an index lies outside its H x W plane");
}

#define GPUCNN_INSTANTIATE(T) \
    template void max_pool2d_forward<T>(const T*, T*, int64_t*, const Planes&, const Window&); \
    template void max_pool2d_backward<T>(const T*, const int64_t*, T*, const Planes&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
