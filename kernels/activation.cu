// Activations, element by element over `count` floats; outputs are overwritten, and may be the memory of an input.
//
//   leaky_relu   y = x where x > 0, else slope x                  gx = gy where x > 0, else slope gy
//   elu          y = x where x > 0, else alpha (e^x - 1)          gx = gy where x > 0, else gy alpha e^x
//   sigmoid      y = 1 / (1 + e^-x)                               gx = gy y (1 - y)
//   tanh         y = tanh x                                       gx = gy (1 - y^2)
//
// NaN stays NaN.
#include "elementwise.cuh"

// From e^-|x|, which cannot overflow.
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

KERNEL(256, 8) leaky_relu_forward(const float* x, float* y, int64 count, float slope) {
    map_elements(x, y, count, [slope](float v) { return v > 0.0f ? v : slope * v; });
}
KERNEL(256, 8) leaky_relu_backward(const float* x, const float* gy, float* gx, int64 count, float slope) {
    map_elements(x, gy, gx, count, [slope](float v, float g) { return v > 0.0f ? g : slope * g; });
}

KERNEL(256, 8) elu_forward(const float* x, float* y, int64 count, float alpha) {
    map_elements(x, y, count, [alpha](float v) { return v > 0.0f ? v : alpha * expm1f(v); });
}
KERNEL(256, 8) elu_backward(const float* x, const float* gy, float* gx, int64 count, float alpha) {
    map_elements(x, gy, gx, count, [alpha](float v, float g) { return v > 0.0f ? g : g * (alpha * expf(v)); });
}

KERNEL(256, 8) sigmoid_forward(const float* x, float* y, int64 count) {
    map_elements(x, y, count, [](float v) { return sigmoid(v); });
}
KERNEL(256, 8) sigmoid_backward(const float* y, const float* gy, float* gx, int64 count) {
    map_elements(y, gy, gx, count, [](float v, float g) { return g * v * (1.0f - v); });
}

KERNEL(256, 8) tanh_forward(const float* x, float* y, int64 count) {
    map_elements(x, y, count, [](float v) { return tanhf(v); });
}
KERNEL(256, 8) tanh_backward(const float* y, const float* gy, float* gx, int64 count) {
    map_elements(y, gy, gx, count, [](float v, float g) { return g * (1.0f - v * v); });
}
