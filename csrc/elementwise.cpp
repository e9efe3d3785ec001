// Element-wise operations that NumPy does in several passes over memory.
//
//   relu_forward    y  = max(x, 0): NaN passes through, -0 becomes +0
//   relu_backward   gx = gy where y > 0, else 0 (where y is NaN, gy passes, as in PyTorch)
//
// All arrays of a call have the same shape; y and gx are overwritten and must not overlap the inputs.
#include "operations.hpp"
#include "parallel.hpp"

namespace gpucnn {
namespace {

template <class T>
GPUCNN_CLONES void relu_forward_range(const T* __restrict x, T* __restrict y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] <= 0 ? T(0) : x[i];
}

template <class T>
GPUCNN_CLONES void relu_backward_range(const T* __restrict y, const T* __restrict gy, T* __restrict gx, int64_t count) {
    for (int64_t i = 0; i < count; ++i) gx[i] = y[i] <= 0 ? T(0) : gy[i];
}

}  // namespace

template <class T>
void relu_forward(const T* x, T* y, int64_t count) {
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        relu_forward_range(x + begin, y + begin, end - begin);
    });
}

template <class T>
void relu_backward(const T* y, const T* gy, T* gx, int64_t count) {
    parallel_for_ranges(count, GRAIN, [=](int64_t begin, int64_t end) {
        relu_backward_range(y + begin, gy + begin, gx + begin, end - begin);
    });
}

#define GPUCNN_INSTANTIATE(T) \
    template void relu_forward<T>(const T*, T*, int64_t); \
    template void relu_backward<T>(const T*, const T*, T*, int64_t);
GPUCNN_INSTANTIATE(float)
GPUCNN_INSTANTIATE(double)

}  // namespace gpucnn
