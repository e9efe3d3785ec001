// ReLU, element by element, x and y (count): forward y = max(x, 0), where NaN stays NaN and -0 becomes 0; backward gx = gy
// where y > 0, else 0, where y is NaN gy. As on the CPU. Outputs are overwritten, and may be the memory of an input.
#include "elementwise.cuh"

KERNEL(256, 8) relu_forward(const float* x, float* y, int64 count) {
    map_elements(x, y, count, [](float v) { return v <= 0.0f ? 0.0f : v; });
}

KERNEL(256, 8) relu_backward(const float* y, const float* gy, float* gx, int64 count) {
    map_elements(y, gy, gx, count, [](float v, float g) { return v <= 0.0f ? 0.0f : g; });
}
