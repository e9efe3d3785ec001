// Average pooling over H and W of (N, C, H, W) arrays into (N, C, P, Q); a plane belongs to one worker.
//
//   avg_pool2d_*            y = sum over the window / divisor; divisor = elements of the window cut off at H + pad, W + pad
//                           (count_include_pad), or of the window cut to the plane (not), as in PyTorch
//   adaptive_avg_pool2d_*   window i of P = [floor(i H / P), ceil((i + 1) H / P)), divisor = its elements
//   *_backward              gx = sum of gy / divisor over the windows that hold this element
//
// Both are separable: forward adds the rows of a window into one row, then that row's columns; backward the other way
// round. Outputs are overwritten.
#include <pybind11/stl.h>

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
void average_forward(const Array<T>& x, Array<T>& y, const AveragePool& pool) {
    const T* from = x.data();
    T* to = y.mutable_data();
    const auto [count, H, W, P, Q] = pool.planes;
    py::gil_scoped_release released;
    std::vector<T> sums(count * W);
    parallel_for_ranges(count, pool.planes.grain(), [&, H = H, W = W, P = P, Q = Q](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) average_plane(from + i * H * W, to + i * P * Q, sums.data() + i * W, pool);
    });
}

template <class T>
void average_backward(const Array<T>& gy, Array<T>& gx, const AveragePool& pool) {
    const T* from = gy.data();
    T* to = gx.mutable_data();
    const auto [count, H, W, P, Q] = pool.planes;
    py::gil_scoped_release released;
    std::vector<T> sums(count * W);
    parallel_for_ranges(count, pool.planes.grain(), [&, H = H, W = W, P = P, Q = Q](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            average_backward_plane(from + i * P * Q, to + i * H * W, sums.data() + i * W, pool);
    });
}

AveragePool plan_window(const py::array& x, const py::array& y, const Window& window, bool count_include_pad,
                        const char* operation) {
    const Planes planes = planes_of(x, y, operation);
    expect(window[6] == 1 && window[7] == 1, operation, "dilation must be 1");
    return {planes, window_spans(window, 0, planes.H, planes.P, count_include_pad, operation),
            window_spans(window, 1, planes.W, planes.Q, count_include_pad, operation)};
}

AveragePool plan_adaptive(const py::array& x, const py::array& y, const char* operation) {
    const Planes planes = planes_of(x, y, operation);
    return {planes, adaptive_spans(planes.H, planes.P, operation), adaptive_spans(planes.W, planes.Q, operation)};
}

template <class T>
void avg_pool2d_forward(const Array<T>& x, Array<T> y, const Window& window, bool count_include_pad) {
    average_forward(x, y, plan_window(x, y, window, count_include_pad, "avg_pool2d_forward"));
}

template <class T>
void avg_pool2d_backward(const Array<T>& gy, Array<T> gx, const Window& window, bool count_include_pad) {
    average_backward(gy, gx, plan_window(gx, gy, window, count_include_pad, "avg_pool2d_backward"));
}

template <class T>
void adaptive_avg_pool2d_forward(const Array<T>& x, Array<T> y) {
    average_forward(x, y, plan_adaptive(x, y, "adaptive_avg_pool2d_forward"));
}

template <class T>
void adaptive_avg_pool2d_backward(const Array<T>& gy, Array<T> gx) {
    average_backward(gy, gx, plan_adaptive(gx, gy, "adaptive_avg_pool2d_backward"));
}

template <class T>
void define(py::module_& m) {
    m.def("avg_pool2d_forward", &avg_pool2d_forward<T>, py::arg("x").noconvert(), py::arg("y").noconvert(),
          py::arg("window"), py::arg("count_include_pad"));
    m.def("avg_pool2d_backward", &avg_pool2d_backward<T>, py::arg("gy").noconvert(), py::arg("gx").noconvert(),
          py::arg("window"), py::arg("count_include_pad"));
    m.def("adaptive_avg_pool2d_forward", &adaptive_avg_pool2d_forward<T>, py::arg("x").noconvert(),
          py::arg("y").noconvert());
    m.def("adaptive_avg_pool2d_backward", &adaptive_avg_pool2d_backward<T>, py::arg("gy").noconvert(),
          py::arg("gx").noconvert());
}

}  // namespace

void register_avg_pool2d(py::module_& m) {
    define<float>(m);
    define<double>(m);
}

}  // namespace gpucnn
