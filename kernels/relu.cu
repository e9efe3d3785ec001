// ReLU, element by element, x and y (count): forward y = max(x, 0), where NaN stays NaN; backward gx = gy where y > 0, else
// 0. Outputs are overwritten, and may be the memory of an input.
#include "common.cuh"

KERNEL(256, 8) relu_forward(const float* x, float* y, int64 count) {
    for (int64 i = global_thread(); i < count; i += global_threads()) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

KERNEL(256, 8) relu_backward(const float* y, const float* gy, float* gx, int64 count) {
    for (int64 i = global_thread(); i < count; i += global_threads()) gx[i] = y[i] > 0.0f ? gy[i] : 0.0f;
}
