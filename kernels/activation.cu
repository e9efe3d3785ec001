// Activations, element by element over `count` values; outputs are overwritten, and may be the memory of an input.
//
//   leaky_relu   y = x where x > 0, else slope x                  gx = gy where x > 0, else slope gy
//   elu          y = x where x > 0, else alpha (e^x - 1)          gx = gy where x > 0, else gy alpha e^x
//   sigmoid      y = 1 / (1 + e^-x)                               gx = gy y (1 - y)
//   tanh         y = tanh x                                       gx = gy (1 - y^2)
//
// NaN stays NaN. 16-bit values are computed in float32 and rounded once.
#include "elementwise.cuh"

// From e^-|x|, which cannot overflow.
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

#define LEAKY_RELU(FORWARD, BACKWARD, T) \
    KERNEL(256, 8) FORWARD(const T* x, T* y, int64 count, float slope) { \
        map_elements(x, y, count, [slope](float v) { return v > 0.0f ? v : slope * v; }); \
    } \
    KERNEL(256, 8) BACKWARD(const T* x, const T* gy, T* gx, int64 count, float slope) { \
        map_elements(x, gy, gx, count, [slope](float v, float g) { return v > 0.0f ? g : slope * g; }); \
    }
LEAKY_RELU(leaky_relu_forward, leaky_relu_backward, float)
LEAKY_RELU(leaky_relu_forward_bfloat16, leaky_relu_backward_bfloat16, bfloat16)
LEAKY_RELU(leaky_relu_forward_float16, leaky_relu_backward_float16, float16)

#define ELU(FORWARD, BACKWARD, T) \
    KERNEL(256, 8) FORWARD(const T* x, T* y, int64 count, float alpha) { \
        map_elements(x, y, count, [alpha](float v) { return v > 0.0f ? v : alpha * expm1f(v); }); \
    } \
    KERNEL(256, 8) BACKWARD(const T* x, const T* gy, T* gx, int64 count, float alpha) { \
        map_elements(x, gy, gx, count, [alpha](float v, float g) { return v > 0.0f ? g : g * (alpha * expf(v)); }); \
    }
ELU(elu_forward, elu_backward, float)
ELU(elu_forward_bfloat16, elu_backward_bfloat16, bfloat16)
ELU(elu_forward_float16, elu_backward_float16, float16)

#define SIGMOID(FORWARD, BACKWARD, T) \
    KERNEL(256, 8) FORWARD(const T* x, T* y, int64 count) { \
        map_elements(x, y, count, [](float v) { return sigmoid(v); }); \
    } \
    KERNEL(256, 8) BACKWARD(const T* y, const T* gy, T* gx, int64 count) { \
        map_elements(y, gy, gx, count, [](float v, float g) { return g * v * (1.0f - v); }); \
    }
SIGMOID(sigmoid_forward, sigmoid_backward, float)
SIGMOID(sigmoid_forward_bfloat16, sigmoid_backward_bfloat16, bfloat16)
SIGMOID(sigmoid_forward_float16, sigmoid_backward_float16, float16)

#define TANH(FORWARD, BACKWARD, T) \
    KERNEL(256, 8) FORWARD(const T* x, T* y, int64 count) { \
        map_elements(x, y, count, [](float v) { return tanhf(v); }); \
    } \
    KERNEL(256, 8) BACKWARD(const T* y, const T* gy, T* gx, int64 count) { \
        map_elements(y, gy, gx, count, [](float v, float g) { return g * (1.0f - v * v); }); \
    }
TANH(tanh_forward, tanh_backward, float)
TANH(tanh_forward_bfloat16, tanh_backward_bfloat16, bfloat16)
TANH(tanh_forward_float16, tanh_backward_float16, float16)
