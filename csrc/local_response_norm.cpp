// Local response normalisation across channels of (N, C, L) arrays, L = H * W (Krizhevsky, Sutskever, Hinton 2012, section
// 3.3; PyTorch's convention for alpha and for the window [c - size / 2, c + (size - 1) / 2], cut to the channels there are).
//
//   forward    scale_c = k + alpha / size * sum of x_j^2 over the window of c;   y = x scale^-beta
//   backward   gx_c = gy_c scale_c^-beta - 2 alpha beta / size * x_c * sum of gy_j x_j scale_j^(-beta - 1) over the j in
//              whose window c lies
//
// scale is kept from forward for backward. y, scale and gx are overwritten.
#include <algorithm>
#include <cmath>
#include <memory>

#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

constexpr int64_t BLOCK = 256;  // neighbouring pixels worked on together: the channels of a window stay in the L1 cache
constexpr int64_t SLOTS = 64;   // pieces that the work is cut into at most, each with its own scratch

// before and after: channels that the window of a sum reaches on each side; ratio = alpha / size
template <class T>
struct Norm {
    int64_t channels, pixels, before, after;
    T ratio, beta, k;
};

// power = scale^-beta. The beta of the paper, 0.75, needs two square roots in place of a power.
template <class T>
inline void negative_power(const T* __restrict scale, T* __restrict power, int64_t count, T beta) {
    if (beta == T(0.75))
        for (int64_t i = 0; i < count; ++i) {
            const T root = std::sqrt(scale[i]);
            power[i] = 1 / (root * std::sqrt(root));
        }
    else
        for (int64_t i = 0; i < count; ++i) power[i] = std::pow(scale[i], -beta);
}

// sum[i] = sum of term(j, i) over the channels j around c
template <class T, class Term>
inline void sum_window(T* __restrict sum, const Norm<T>& norm, int64_t c, int64_t count, const Term& term) {
    std::fill_n(sum, count, T(0));
    const int64_t end = std::min(norm.channels, c + norm.after + 1);
    for (int64_t j = std::max<int64_t>(0, c - norm.before); j < end; ++j)
        for (int64_t i = 0; i < count; ++i) sum[i] += term(j, i);
}

template <class T>
GPUCNN_CLONES void forward_block(const T* __restrict x, T* __restrict y, T* __restrict scale, const Norm<T>& norm,
                                 int64_t count) {
    T sum[BLOCK], power[BLOCK];
    for (int64_t c = 0; c < norm.channels; ++c) {
        const int64_t row = c * norm.pixels;
        sum_window(sum, norm, c, count, [&](int64_t j, int64_t i) {
            const T value = x[j * norm.pixels + i];
            return value * value;
        });
        for (int64_t i = 0; i < count; ++i) scale[row + i] = norm.k + norm.ratio * sum[i];
        negative_power(scale + row, power, count, norm.beta);
        for (int64_t i = 0; i < count; ++i) y[row + i] = x[row + i] * power[i];
    }
}

// terms: channels * BLOCK values of scratch for gy x scale^(-beta - 1)
template <class T>
GPUCNN_CLONES void backward_block(const T* __restrict x, const T* __restrict scale, const T* __restrict gy,
                                  T* __restrict gx, T* __restrict terms, const Norm<T>& norm, int64_t count) {
    T sum[BLOCK], power[BLOCK];
    for (int64_t c = 0; c < norm.channels; ++c) {
        const int64_t row = c * norm.pixels;
        negative_power(scale + row, power, count, norm.beta);
        for (int64_t i = 0; i < count; ++i) {
            gx[row + i] = gy[row + i] * power[i];
            terms[c * BLOCK + i] = gx[row + i] * x[row + i] / scale[row + i];
        }
    }
    const T factor = 2 * norm.ratio * norm.beta;
    for (int64_t c = 0; c < norm.channels; ++c) {
        const int64_t row = c * norm.pixels;
        sum_window(sum, norm, c, count, [&](int64_t j, int64_t i) { return terms[j * BLOCK + i]; });
        for (int64_t i = 0; i < count; ++i) gx[row + i] -= factor * x[row + i] * sum[i];
    }
}

// Calls body(first element, pixels, slot) for every block of pixels of every image; a slot belongs to one worker at a time.
template <class T, class Body>
void for_each_block(const Norm<T>& norm, int64_t images, const Body& body) {
    const int64_t blocks = (norm.pixels + BLOCK - 1) / BLOCK;
    const int64_t smallest = 1 + GRAIN / (1 + norm.channels * std::min(BLOCK, norm.pixels));
    const int64_t grain = std::max((images * blocks + SLOTS - 1) / SLOTS, smallest);
    parallel_for_ranges(images * blocks, grain, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t pixel = item % blocks * BLOCK;
            body(item / blocks * norm.channels * norm.pixels + pixel, std::min(BLOCK, norm.pixels - pixel), begin / grain);
        }
    });
}

}  // namespace

template <class T>
void local_response_norm_forward(const T* x, T* y, T* scale, const Extents& extents, int64_t size, double alpha, double beta,
                                 double k) {
    const Norm<T> norm{extents.C, extents.L, size / 2, (size - 1) / 2, T(alpha / double(size)), T(beta), T(k)};
    for_each_block(norm, extents.N, [&](int64_t first, int64_t count, int64_t) {
        forward_block(x + first, y + first, scale + first, norm, count);
    });
}

template <class T>
void local_response_norm_backward(const T* x, const T* scale, const T* gy, T* gx, const Extents& extents, int64_t size,
                                  double alpha, double beta) {
    // c lies in the window of j if j lies in the mirrored window of c.
    const Norm<T> norm{extents.C, extents.L, (size - 1) / 2, size / 2, T(alpha / double(size)), T(beta), T(0)};
    const int64_t slot_size = norm.channels * BLOCK;
    const std::unique_ptr<T[]> terms(new T[SLOTS * slot_size]);  // not set: only the slots in use should cost anything
    for_each_block(norm, extents.N, [&](int64_t first, int64_t count, int64_t slot) {
        backward_block(x + first, scale + first, gy + first, gx + first, terms.get() + slot * slot_size, norm, count);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void local_response_norm_forward<T>(const T*, T*, T*, const Extents&, int64_t, double, double, double); \
    template void local_response_norm_backward<T>(const T*, const T*, const T*, T*, const Extents&, int64_t, double, double);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
