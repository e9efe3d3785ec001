// Batch normalisation over (N, C, L) arrays, L = H * W.
//
//   batch_norm_statistics           mean_c, variance_c (divided by N L) of channel c: two passes, sums in double
//   batch_norm_apply                y = (x - mean) inverse_std weight + bias
//   batch_norm_backward_training    mean and variance come from x: with m = N L, xh = (x - mean) inverse_std,
//                                   gbias = sum gy, gweight = sum gy xh,
//                                   gx = weight inverse_std (gy - gbias / m - xh gweight / m)
//   batch_norm_backward_inference   mean and variance are constants: the same gbias and gweight, gx = weight inverse_std gy
//
// (Ioffe & Szegedy 2015, section 3.) weight, bias, gweight and gbias may be null. Outputs are overwritten.
#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

int64_t channel_grain(const Extents& e) { return 1 + GRAIN / (1 + e.N * e.L); }
int64_t plane_grain(const Extents& e) { return 1 + GRAIN / (1 + e.L); }

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
GPUCNN_CLONES void affine_plane(const T* __restrict x, T* __restrict y, int64_t L, T center, T factor, T offset) {
    for (int64_t i = 0; i < L; ++i) y[i] = (x[i] - center) * factor + offset;
}

template <class T>
GPUCNN_CLONES void backward_channel(const BatchNormBackward<T>& b, const Extents& e, int64_t c) {
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

}  // namespace

template <class T>
void batch_norm_statistics(const T* x, const Extents& e, T* mean, T* variance) {
    parallel_for_ranges(e.C, channel_grain(e), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) channel_statistics(x, e, c, mean, variance);
    });
}

template <class T>
void batch_norm_apply(const T* x, const Extents& e, const T* mean, const T* inverse_std, const T* weight, const T* bias,
                      T* y) {
    parallel_for_ranges(e.N * e.C, plane_grain(e), [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t c = plane % e.C;
            const T factor = weight ? weight[c] * inverse_std[c] : inverse_std[c];
            affine_plane(x + plane * e.L, y + plane * e.L, e.L, mean[c], factor, bias ? bias[c] : T(0));
        }
    });
}

template <class T>
void batch_norm_backward(const BatchNormBackward<T>& pointers, const Extents& e) {
    parallel_for_ranges(e.C, channel_grain(e), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) backward_channel(pointers, e, c);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void batch_norm_statistics<T>(const T*, const Extents&, T*, T*); \
    template void batch_norm_apply<T>(const T*, const Extents&, const T*, const T*, const T*, const T*, T*); \
    template void batch_norm_backward<T>(const BatchNormBackward<T>&, const Extents&);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
