// ReLU, element by element, x and y (count): forward y = max(x, 0), where NaN stays NaN and -0 becomes 0; backward gx = gy
// where y > 0, else 0, where y is NaN gy. As on the CPU. Outputs are overwritten, and may be the memory of an input.
#include "elementwise.cuh"

#define RELU(FORWARD, BACKWARD, T) \
    KERNEL(256, 8) FORWARD(const T* x, T* y, int64 count) { \
        map_elements(x, y, count, [](float v) { return v <= 0.0f ? 0.0f : v; }); \
    } \
    KERNEL(256, 8) BACKWARD(const T* y, const T* gy, T* gx, int64 count) { \
        map_elements(y, gy, gx, count, [](float v, float g) { return v <= 0.0f ? 0.0f : g; }); \
    }
RELU(relu_forward, relu_backward, float)
RELU(relu_forward_bfloat16, relu_backward_bfloat16, bfloat16)
RELU(relu_forward_float16, relu_backward_float16, float16)
