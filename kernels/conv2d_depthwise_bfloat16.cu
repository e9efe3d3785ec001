// Depthwise convolution of planes of bfloat16, all three passes; the mathematics and layouts stand in conv2d_depthwise.cuh.
// Weights are w (float32), or w16 where w is null; b and partial sums are float32. Outputs are overwritten.
#include "conv2d_depthwise.cuh"

#define DEPTHWISE(T, TAPS, STRIDE, ROWS, BLOCKS)                                                                       \
    KERNEL(128, BLOCKS) conv2d_forward_depthwise_k##TAPS##s##STRIDE##_##T(                                             \
        const T* x, const float* w, const T* w16, const float* b, T* y, ConvShape c, int relu) {                       \
        depthwise<Reading<TAPS, STRIDE>, TAPS, ROWS>(Planes<T>{                                                        \
            x, {w, w16}, b, y, static_cast<int64>(c.N) * c.K, c.K, c.K / c.C, c.H, c.W, c.P, c.Q, 0, relu});           \
    }                                                                                                                  \
    KERNEL(128, BLOCKS) conv2d_backward_input_depthwise_k##TAPS##s##STRIDE##_##T(                                      \
        const T* gy, const float* w, const T* w16, T* gx, ConvShape c) {                                               \
        depthwise<Back<TAPS, STRIDE>::Map, TAPS, ROWS>(Planes<T>{                                                      \
            gy, {w, w16}, nullptr, gx, static_cast<int64>(c.N) * c.C, c.C, 1, c.P, c.Q, c.H, c.W, STRIDE == 1, 0});    \
    }

DEPTHWISE(bfloat16, 3, 1, 8, 5)
DEPTHWISE(bfloat16, 3, 2, 4, 5)
DEPTHWISE(bfloat16, 5, 1, 8, 3)
DEPTHWISE(bfloat16, 5, 2, 4, 3)
DEPTHWISE(bfloat16, 7, 1, 4, 3)
DEPTHWISE(bfloat16, 7, 2, 4, 2)

#define DEPTHWISE_BACKWARD_WEIGHT(T, TAPS, STRIDE, BLOCKS)                                                             \
    KERNEL(128, BLOCKS) conv2d_backward_weight_depthwise_k##TAPS##s##STRIDE##_##T(                                     \
        const T* x, const T* gy, float* partial, ConvShape c, int split_items) {                                       \
        depthwise_backward_weight<TAPS, STRIDE, 4>(x, gy, partial, c, split_items);                                    \
    }

DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 3, 1, 4)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 3, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 5, 1, 3)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 5, 2, 3)
DEPTHWISE_BACKWARD_WEIGHT(bfloat16, 7, 1, 3)
