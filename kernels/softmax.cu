// Softmax and its logarithm over the last axis of x (rows, length), and their gradients from y and gy. Outputs are
// overwritten, and may be the memory of an input.
//
//   softmax      y = e^x / Σ e^x              gx = y · (gy − Σ gy·y)
//   log_softmax  y = x − log Σ e^x            gx = gy − e^y · Σ gy
//
// Names end in the threads that share a row: 32 for short rows, 256 for long ones.
#include "softmax.cuh"

template <int GROUP, bool LOGARITHM>
__device__ __forceinline__ void forward(const float* x, float* y, int64 rows, int length) {
    const int64 row = group_row<GROUP>();
    if (row >= rows) return;  // the whole group
    x += row * length;
    y += row * length;
    const Running total = row_softmax<GROUP>(x, length);
    const float log_sum = LOGARITHM ? logf(total.sum) : 0.0f;
    for (int i = group_thread<GROUP>(); i < length; i += GROUP) {
        const float shifted = x[i] - total.largest;
        y[i] = LOGARITHM ? shifted - log_sum : expf(shifted) / total.sum;
    }
}

template <int GROUP, bool LOGARITHM>
__device__ __forceinline__ void backward(const float* y, const float* gy, float* gx, int64 rows, int length) {
    const int64 row = group_row<GROUP>();
    if (row >= rows) return;
    y += row * length;
    gy += row * length;
    gx += row * length;
    float part = 0.0f;
    for (int i = group_thread<GROUP>(); i < length; i += GROUP)
        part = LOGARITHM ? part + gy[i] : multiply_add(gy[i], y[i], part);
    const float total = group_sum<GROUP>(part);
    for (int i = group_thread<GROUP>(); i < length; i += GROUP)
        gx[i] = LOGARITHM ? gy[i] - expf(y[i]) * total : y[i] * (gy[i] - total);
}

#define SOFTMAX(NAME, GROUP, LOGARITHM) \
    KERNEL(256, 4) NAME##_forward_##GROUP(const float* x, float* y, int64 rows, int length) { \
        forward<GROUP, LOGARITHM>(x, y, rows, length); \
    } \
    KERNEL(256, 4) NAME##_backward_##GROUP(const float* y, const float* gy, float* gx, int64 rows, int length) { \
        backward<GROUP, LOGARITHM>(y, gy, gx, rows, length); \
    }

SOFTMAX(softmax, 32, false)
SOFTMAX(softmax, 256, false)
SOFTMAX(log_softmax, 32, true)
SOFTMAX(log_softmax, 256, true)
