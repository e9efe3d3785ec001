// Batch normalisation over (N, C, L) arrays, L = H * W.
//
//   batch_norm_statistics           mean_c, variance_c (divided by N L) of channel c: two passes, sums in double
//   batch_norm_apply                y = (x - mean) inverse_std weight + bias
//   batch_norm_backward_training    mean and variance come from x: with m = N L, xh = (x - mean) inverse_std,
//                                   gbias = sum gy, gweight = sum gy xh,
//                                   gx = weight inverse_std (gy - gbias / m - xh gweight / m)
//   batch_norm_backward_inference   mean and variance are constants: the same gbias and gweight, gx = weight inverse_std gy
//
// (Ioffe & Szegedy 2015, section 3.) weight, bias, gweight and gbias may be None. Outputs are overwritten.
#include <optional>

#include <pybind11/stl.h>

#include "array.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

template <class T>
using Optional = std::optional<Array<T>>;

struct Extents {
    int64_t N, C, L;
    int64_t channel_grain() const { return 1 + GRAIN / (1 + N * L); }
    int64_t plane_grain() const { return 1 + GRAIN / (1 + L); }
};

Extents extents_of(const py::array& x, const char* operation) {
    expect(x.ndim() == 3, operation, "x must be (N, C, L)");
    return {x.shape(0), x.shape(1), x.shape(2)};
}

void expect_channels(const py::array& array, const Extents& e, const char* operation, const char* name) {
    expect_shape(array, {e.C}, operation, name);
}

template <class T>
const T* data_or_null(const Optional<T>& array, const Extents& e, const char* operation, const char* name) {
    if (!array) return nullptr;
    expect_channels(*array, e, operation, name);
    return array->data();
}

template <class T>
T* mutable_data_or_null(Optional<T>& array, const Extents& e, const char* operation, const char* name) {
    if (!array) return nullptr;
    expect_channels(*array, e, operation, name);
    return array->mutable_data();
}

// Sum of term(i) over the elements i of one channel, whose first row starts at `first`. Sixteen partial sums let the
// compiler use vectors, and shorten the chain of roundings.
template <class Term>
inline double sum_over_channel(const Extents& e, int64_t first, const Term& term) {
    constexpr int LANES = 16;
    double lanes[LANES] = {};
    for (int64_t n = 0; n < e.N; ++n) {
        const int64_t begin = first + n * e.C * e.L, end = begin + e.L;
        int64_t i = begin;
        for (; i + LANES <= end; i += LANES)
            for (int lane = 0; lane < LANES; ++lane) lanes[lane] += term(i + lane);
        for (int lane = 0; i < end; ++i, ++lane) lanes[lane] += term(i);
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

template <class T>
GPUCNN_CLONES void channel_statistics(const T* x, const Extents& e, int64_t c, T* mean, T* variance) {
    const double count = double(e.N * e.L);
    const double center = sum_over_channel(e, c * e.L, [=](int64_t i) { return double(x[i]); }) / count;
    const double squares = sum_over_channel(e, c * e.L, [=](int64_t i) {
        const double deviation = double(x[i]) - center;
        return deviation * deviation;
    });
    mean[c] = T(center);
    variance[c] = T(squares / count);
}

template <class T>
void batch_norm_statistics(const Array<T>& x, Array<T> mean, Array<T> variance) {
    const char* name = "batch_norm_statistics";
    const Extents e = extents_of(x, name);
    expect_channels(mean, e, name, "mean");
    expect_channels(variance, e, name, "variance");
    expect(e.N * e.L > 0, name, "x has no elements");
    const T* from = x.data();
    T *means = mean.mutable_data(), *variances = variance.mutable_data();
    py::gil_scoped_release released;
    parallel_for_ranges(e.C, e.channel_grain(), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) channel_statistics(from, e, c, means, variances);
    });
}

template <class T>
GPUCNN_CLONES void affine_plane(const T* __restrict x, T* __restrict y, int64_t L, T center, T factor, T offset) {
    for (int64_t i = 0; i < L; ++i) y[i] = (x[i] - center) * factor + offset;
}

template <class T>
void batch_norm_apply(const Array<T>& x, const Array<T>& mean, const Array<T>& inverse_std, const Optional<T>& weight,
                      const Optional<T>& bias, Array<T> y) {
    const char* name = "batch_norm_apply";
    const Extents e = extents_of(x, name);
    expect_same_shape(x, y, name, "y");
    expect_channels(mean, e, name, "mean");
    expect_channels(inverse_std, e, name, "inverse_std");
    const T *weights = data_or_null(weight, e, name, "weight"), *biases = data_or_null(bias, e, name, "bias");
    const T *from = x.data(), *means = mean.data(), *inverses = inverse_std.data();
    T* to = y.mutable_data();
    py::gil_scoped_release released;
    parallel_for_ranges(e.N * e.C, e.plane_grain(), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t c = plane % e.C;
            affine_plane(from + plane * e.L, to + plane * e.L, e.L, means[c],
                         weights ? weights[c] * inverses[c] : inverses[c], biases ? biases[c] : T(0));
        }
    });
}

// Pointers of one backward call; weight, gweight and gbias may be null.
template <class T>
struct Backward {
    const T *x, *gy, *mean, *inverse_std, *weight;
    T *gx, *gweight, *gbias;
    bool training;
};

template <class T>
GPUCNN_CLONES void backward_channel(const Backward<T>& b, const Extents& e, int64_t c) {
    const T *x = b.x, *gy = b.gy;
    const T mean = b.mean[c], inverse_std = b.inverse_std[c];
    const double sum = sum_over_channel(e, c * e.L, [=](int64_t i) { return double(gy[i]); });
    const double projection = inverse_std * sum_over_channel(e, c * e.L, [=](int64_t i) {
        return double(gy[i]) * (double(x[i]) - mean);
    });
    if (b.gbias) b.gbias[c] = T(sum);
    if (b.gweight) b.gweight[c] = T(projection);
    const double count = double(e.N * e.L);
    const T factor = b.weight ? b.weight[c] * inverse_std : inverse_std;
    const T offset = T(sum / count), slope = T(inverse_std * projection / count);
    for (int64_t n = 0; n < e.N; ++n) {
        const int64_t first = (n * e.C + c) * e.L;
        T* __restrict gx = b.gx + first;
        if (b.training)
            for (int64_t i = 0; i < e.L; ++i) gx[i] = factor * (gy[first + i] - offset - (x[first + i] - mean) * slope);
        else
            for (int64_t i = 0; i < e.L; ++i) gx[i] = factor * gy[first + i];
    }
}

template <class T, bool TRAINING>
void batch_norm_backward(const Array<T>& x, const Array<T>& gy, const Array<T>& mean, const Array<T>& inverse_std,
                         const Optional<T>& weight, Array<T> gx, Optional<T> gweight, Optional<T> gbias) {
    const char* name = TRAINING ? "batch_norm_backward_training" : "batch_norm_backward_inference";
    const Extents e = extents_of(x, name);
    expect_same_shape(x, gy, name, "gy");
    expect_same_shape(x, gx, name, "gx");
    expect_channels(mean, e, name, "mean");
    expect_channels(inverse_std, e, name, "inverse_std");
    const Backward<T> pointers{x.data(), gy.data(), mean.data(), inverse_std.data(), data_or_null(weight, e, name, "weight"),
                               gx.mutable_data(), mutable_data_or_null(gweight, e, name, "gweight"),
                               mutable_data_or_null(gbias, e, name, "gbias"), TRAINING};
    py::gil_scoped_release released;
    parallel_for_ranges(e.C, e.channel_grain(), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) backward_channel(pointers, e, c);
    });
}

template <class T>
void define(py::module_& m) {
    const auto array = [](const char* name) { return py::arg(name).noconvert(); };
    m.def("batch_norm_statistics", &batch_norm_statistics<T>, array("x"), array("mean"), array("variance"));
    m.def("batch_norm_apply", &batch_norm_apply<T>, array("x"), array("mean"), array("inverse_std"), array("weight"),
          array("bias"), array("y"));
    m.def("batch_norm_backward_training", &batch_norm_backward<T, true>, array("x"), array("gy"), array("mean"),
          array("inverse_std"), array("weight"), array("gx"), array("gweight"), array("gbias"));
    m.def("batch_norm_backward_inference", &batch_norm_backward<T, false>, array("x"), array("gy"), array("mean"),
          array("inverse_std"), array("weight"), array("gx"), array("gweight"), array("gbias"));
}

}  // namespace

void register_batch_norm(py::module_& m) {
    define<float>(m);
    define<double>(m);
}

}  // namespace gpucnn
