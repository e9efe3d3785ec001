// The gradient of a convolution by its bias; see conv2d.hpp for the maths.
#include "conv2d.hpp"

#include "parallel.hpp"

namespace gpucnn {
namespace {

// The sum of one plane, in double: plain sums of a hundred thousand single-precision numbers lose digits.
template <class T>
GPUCNN_CLONES double sum_plane(const T* plane, int64_t pixels) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < pixels; ++i) sum += plane[i];
    return sum;
}

}  // namespace

template <class T>
void conv2d_backward_bias(const T* gy, T* gb, int64_t images, int64_t filters, int64_t pixels) {
    parallel_for(filters, [&](int64_t k) {
        double sum = 0;
        for (int64_t n = 0; n < images; ++n) sum += sum_plane(gy + (n * filters + k) * pixels, pixels);
        gb[k] = static_cast<T>(sum);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void conv2d_backward_bias<T>(const T*, T*, int64_t, int64_t, int64_t);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
